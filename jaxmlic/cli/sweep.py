"""`jaxmlic sweep`."""

from jaxmlic.cli.parser import Parser
from jaxmlic.errors import UserError
from jaxmlic.experiments.sweep import run


def main(argv: list[str]) -> int:
    parser = Parser(
        prog="jaxmlic sweep",
        description="Runs the entries of an experiment's sweep(); complete runs are skipped, others continued.",
        epilog="Config fields can be set for all entries: --config.train.duration='5 epochs'.",
    )
    parser.add_argument("--config", required=True, metavar="FILE[:ARG]", help="experiment file with a sweep()")
    parser.add_argument("--workdir", required=True, help="gets a folder per entry and seed, sweep.csv and runs.csv")
    parser.add_argument("--seeds", type=int, default=1, help="runs per entry, with seeds config.seed, +1, ...")
    parser.add_argument("--only", default="", help="comma-separated names of entries")
    options, overrides = parser.parse_known_args(argv)
    if options.seeds < 1:
        raise UserError(f"--seeds={options.seeds}: at least 1")
    only = [name for name in options.only.split(",") if name]
    return run(options.config, options.workdir, seeds=options.seeds, only=only, overrides=overrides)
