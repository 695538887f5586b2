"""Train on the labelled part, label the rest, train on all of it, and again: `jaxmlic alternate`.

Each round is a run of its own that starts from the one before, and each set of labels a file, so what is complete is
skipped and what was stopped is continued:

WORKDIR/round0       trained on the labelled part
WORKDIR/labels1.npz  labels from round 0's features
WORKDIR/round1       trained on all images with labels 1, from round 0's parameters; and so on
"""

from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from jaxmlic import config as config_lib
from jaxmlic import distributed, storage
from jaxmlic.config import Entry
from jaxmlic.errors import UserError
from jaxmlic.experiments.pseudo_labels import propagate
from jaxmlic.experiments.runs import run_one, store_features
from jaxmlic.experiments.sweeps import results
from jaxmlic.inputs import open_source
from jaxmlic.propagation import label_file
from jaxmlic.propagation.method import Method, describe


def rounds_of(config: ConfigDict, workdir: Path, labelled: str, split: str, rounds: int) -> list[ConfigDict]:
    """The config of each round, the first on the labelled part alone."""
    configs = [config_lib.override(config, {"data.train_split": labelled})]
    for number in range(1, rounds + 1):
        values = {
            "data.train_split": split,
            "data.pseudo_labels": str(workdir / f"labels{number}.npz"),
            "start_from": str(workdir / f"round{number - 1}"),
        }
        configs.append(config_lib.override(config, values))
    return configs


def run(
    config: ConfigDict,
    workdir: str,
    method: Method,
    *,
    labelled: str,
    split: str = "train",
    rounds: int = 1,
    report: Callable[[str], None] = lambda text: None,
) -> int:
    """All rounds, each evaluated on the test split, and a table of them; 0, or 130 when stopped by Ctrl-C.

    Raises UserError for a labels file that was made in another way, and as training and propagation do.
    """
    if rounds < 1:
        raise UserError(f"--rounds={rounds}: at least 1")
    if config.data.pseudo_labels:
        raise UserError("config.data.pseudo_labels: each round makes its own; leave it empty")
    method.check()
    folder, rows = storage.to_path(workdir), []
    configs = rounds_of(config, folder, labelled, split, rounds)
    if open_source(config).is_stored:
        for one in configs[:2]:
            store_features(one, report)
    for number, one in enumerate(configs):
        if number:
            _labels(configs[number - 1], folder, number, method, labelled, split, report)
        found, stopped = run_one(one, folder / f"round{number}", report)
        if found is None:
            report(f"stopped in round {number}; the same command continues there")
            return distributed.stopped_status(stopped)
        rows.append(results.row(Entry(f"round{number}"), config.seed, found))
    results.write(folder, rows)
    report(results.table(rows))
    return 0


def _labels(
    before: ConfigDict, folder: Path, number: int, method: Method, labelled: str, split: str, report: Callable
) -> None:
    """labels<number>.npz from the run of the round before, unless it is there."""
    out, previous = folder / f"labels{number}.npz", folder / f"round{number - 1}"
    if not out.exists():
        _, lines = propagate(before, method, labelled=labelled, out=str(out), split=split, workdir=str(previous))
        report("\n".join(lines))
        return
    # A file from before there was an option does not name it.
    absent = {"balance": False, "max_steps": 0, "unknown_band": [], "weights": ""}
    wanted, info = describe(method, labelled, split), absent | label_file.load(out).info
    changed = [
        f"{key}: {info.get(key)!r} there, {value!r} now" for key, value in wanted.items() if info.get(key) != value
    ]
    if changed:
        raise UserError(f"{out} was made in another way ({'; '.join(changed)}); use another --workdir")
