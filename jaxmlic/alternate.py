"""Train on the labelled part, label the rest, train on all of it, and again: `jaxmlic alternate`.

Each round is a run of its own that starts from the one before, and each set of labels a file, so what is complete is
skipped and what was stopped is continued:

WORKDIR/round0       trained on the labelled part
WORKDIR/labels1.npz  labels from round 0's features
WORKDIR/round1       trained on all images with labels 1, from round 0's parameters; and so on
"""

from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from jaxmlic import config as config_lib
from jaxmlic import features, propagate, pseudo_labels, sharding, sweep
from jaxmlic.cli import Parser
from jaxmlic.errors import UserError


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
            features.compute(one)
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
    wanted, info = propagate.describe(method, labelled, split), pseudo_labels.load(out).info
    changed = [
        f"{key}: {info.get(key)!r} there, {value!r} now" for key, value in wanted.items() if info.get(key) != value
    ]
    if changed:
        raise UserError(f"{out} was made in another way ({'; '.join(changed)}); use another --workdir")


def main(argv: Sequence[str]) -> int:
    """`jaxmlic alternate`."""
    parser = Parser(
        prog="jaxmlic alternate",
        description="Trains on a labelled part, labels the rest by propagation, trains on all of it, in rounds.",
        epilog="Config fields can be set for all rounds: --config.train.duration='5 epochs'.",
    )
    parser.add_argument("--config", required=True, metavar="FILE[:ARG]", help="experiment file")
    parser.add_argument("--workdir", required=True, help="gets a run and a file of labels for each round")
    parser.add_argument("--rounds", type=int, default=1, help="trainings on pseudo-labels (1)")
    propagate.add_options(parser)
    options, overrides = parser.parse_known_args(argv)
    config = config_lib.load(options.config, overrides)
    sharding.use_cpu_devices(config.train.cpu_devices, config.train.batch_size)
    method = propagate.method_of(options)
    return run(
        config,
        options.workdir,
        method,
        labelled=options.labelled,
        split=options.split,
        rounds=options.rounds,
    )


if __name__ == "__main__":
    from jaxmlic import cli

    cli.main(["alternate"])
