"""`jaxmlic sweep`."""

import argparse
import os

from jaxmlic import config as config_lib
from jaxmlic import distributed, storage
from jaxmlic.cli.parser import Parser
from jaxmlic.errors import UserError
from jaxmlic.experiments import beside_papers, sweep
from jaxmlic.experiments.sweeps import claims, results

MOST_AT_ONCE = 32


def main(argv: list[str]) -> int:
    parser = Parser(
        hosts=True,
        prog="jaxmlic sweep",
        description="Runs the entries of an experiment's sweep(); complete runs are skipped, others continued.\n"
        "Any number of workers may be given the same command and folder: they share the runs.",
        epilog="Config fields can be set for all entries: --config.train.duration='5 epochs'.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, metavar="FILE[:ARG]", help="experiment file with a sweep()")
    parser.add_argument("--workdir", required=True, help="gets a folder per entry and seed, and the tables")
    parser.add_argument("--seeds", type=int, default=1, help="runs per entry, with seeds config.seed, +1, ...")
    parser.add_argument("--only", default="", help="comma-separated names of entries or series")
    parser.add_argument(
        "--weights",
        metavar="DIR",
        help="folder with a weight file for each trunk (vgg16.safetensors, resnet101-63fe2227.pth, ...): every entry "
        "takes its own trunk's, in place of --config.pretrained",
    )
    parser.add_argument(
        "--part",
        metavar="I/N",
        help="of N parts of the runs, from 1/N to N/N; taken from SLURM's array task, or from JOB_COMPLETION_INDEX "
        "(from 0) and JOB_COMPLETIONS. Without a part, workers take what no other has taken",
    )
    parser.add_argument(
        "--vmap",
        nargs="?",
        type=int,
        const=MOST_AT_ONCE,
        default=1,
        metavar="MOST",
        help="train runs on stored features that differ in numbers alone in one program, at most MOST "
        f"({MOST_AT_ONCE}) at once",
    )
    options, overrides = parser.parse_known_args(argv)
    if options.seeds < 1:
        raise UserError(f"--seeds={options.seeds}: at least 1")
    if options.vmap < 1:
        raise UserError(f"--vmap={options.vmap}: at least 1")
    outcome = sweep.run(
        options.config,
        options.workdir,
        seeds=options.seeds,
        only=[name for name in options.only.split(",") if name],
        overrides=overrides,
        weights=options.weights,
        part=_part(options.part),
        most_at_once=options.vmap,
        report=_print_now,
    )
    if outcome.stopped_in:
        print(f"sweep stopped in {outcome.stopped_in}; the same command continues there")
        return distributed.stopped_status(outcome.stopped_by)
    print(results.table(outcome.rows, outcome.failed))
    compared = beside_papers.compare(config_lib.find(options.config)[0].stem, outcome.rows, outcome.datasets)
    if compared:
        print(f"\n{compared}")
    commands = sweep.fusion_commands(options.config, options.workdir, outcome.rows)
    if commands:
        print("\n".join(["", "fusions of these runs:", *commands]))
    folder = storage.to_path(options.workdir)
    print(f"\nwritten: {folder / 'sweep.csv'}, {folder / 'runs.csv'} and {folder / 'sweep.html'}")
    if outcome.failures:
        raise UserError(f"{len(outcome.failures)} of {outcome.planned} runs failed: {'; '.join(outcome.failures)}")
    return 0


def _part(text: str | None) -> claims.Part | None:
    """The worker's part, from the option or the environment; a line says so where it is the environment's."""
    if text is not None:
        return claims.parse_part(text)
    if distributed.count() > 1:  # the pods or tasks are the processes of one run
        return None
    part, line = claims.part_of_environment(os.environ)
    if line:
        _print_now(line)
    return part


def _print_now(text: str) -> None:
    print(text, flush=True)
