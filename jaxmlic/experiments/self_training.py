"""Train on the labelled part, label the rest, train on all of it, and again: `jaxmlic alternate`.

Each round is a run of its own that starts from the one before, and each set of labels a file, so what is complete is
skipped and what was stopped is continued:

WORKDIR/round0       trained on the labelled part
WORKDIR/labels1.npz  labels from round 0's features
WORKDIR/round1       trained on all images with labels 1, from round 0's parameters; and so on
"""

from pathlib import Path

from ml_collections import ConfigDict

from jaxmlic import config as config_lib
from jaxmlic.errors import UserError
from jaxmlic.experiments import sweep
from jaxmlic.inputs import cache as cache_lib
from jaxmlic.propagation import label_file, propagate


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
    config: ConfigDict, workdir: str, method: propagate.Method, *, labelled: str, split: str = "train", rounds: int = 1
) -> int:
    """All rounds, each evaluated on the test split, and a table of them; 0, or 130 when stopped by Ctrl-C.

    Raises UserError for a labels file that was made in another way, and as training and propagation do.
    """
    if rounds < 1:
        raise UserError(f"--rounds={rounds}: at least 1")
    if config.data.pseudo_labels:
        raise UserError("config.data.pseudo_labels: each round makes its own; leave it empty")
    method.check()
    folder, results = Path(workdir), {}
    configs = rounds_of(config, folder, labelled, split, rounds)
    if config.data.source == "features":
        for one in configs[:2]:
            cache_lib.compute(one)
    for number, one in enumerate(configs):
        if number:
            _labels(configs[number - 1], folder, number, method, labelled, split)
        found, stopped = sweep.run_one(one, folder / f"round{number}")
        if found is None:
            print(f"stopped in round {number}; the same command continues there")
            return 130 if stopped == 2 else 0
        results[f"round{number}"] = [{"seed": config.seed, **found}]
    sweep.write(folder, results)
    print(sweep.table(results))
    return 0


def _labels(before: ConfigDict, folder: Path, number: int, method: propagate.Method, labelled: str, split: str) -> None:
    """labels<number>.npz from the run of the round before, unless it is there."""
    out, previous = folder / f"labels{number}.npz", folder / f"round{number - 1}"
    if not out.exists():
        propagate.run(before, method, labelled=labelled, out=str(out), split=split, workdir=str(previous))
        return
    wanted, info = propagate.describe(method, labelled, split), label_file.load(out).info
    changed = [
        f"{key}: {info.get(key)!r} there, {value!r} now" for key, value in wanted.items() if info.get(key) != value
    ]
    if changed:
        raise UserError(f"{out} was made in another way ({'; '.join(changed)}); use another --workdir")
