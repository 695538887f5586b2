"""`jaxmlic sweep`."""

from jaxmlic import config as config_lib
from jaxmlic import storage
from jaxmlic.cli.parser import Parser
from jaxmlic.errors import UserError
from jaxmlic.experiments import beside_papers, sweep


def main(argv: list[str]) -> int:
    parser = Parser(
        hosts=True,
        prog="jaxmlic sweep",
        description="Runs the entries of an experiment's sweep(); complete runs are skipped, others continued.",
        epilog="Config fields can be set for all entries: --config.train.duration='5 epochs'.",
    )
    parser.add_argument("--config", required=True, metavar="FILE[:ARG]", help="experiment file with a sweep()")
    parser.add_argument("--workdir", required=True, help="gets a folder per entry and seed, sweep.csv and runs.csv")
    parser.add_argument("--seeds", type=int, default=1, help="runs per entry, with seeds config.seed, +1, ...")
    parser.add_argument("--only", default="", help="comma-separated names of entries or series")
    parser.add_argument(
        "--weights",
        metavar="DIR",
        help="folder with a weight file for each trunk (vgg16.safetensors, resnet101-63fe2227.pth, ...): every entry "
        "takes its own trunk's, in place of --config.pretrained",
    )
    options, overrides = parser.parse_known_args(argv)
    if options.seeds < 1:
        raise UserError(f"--seeds={options.seeds}: at least 1")
    outcome = sweep.run(
        options.config,
        options.workdir,
        seeds=options.seeds,
        only=[name for name in options.only.split(",") if name],
        overrides=overrides,
        weights=options.weights,
        report=_print_now,
    )
    if outcome.stopped_in:
        print(f"sweep stopped in {outcome.stopped_in}; the same command continues there")
        return 130 if outcome.stopped_by == 2 else 0
    print(sweep.table(outcome.rows))
    compared = beside_papers.compare(config_lib.find(options.config)[0].stem, outcome.rows, outcome.datasets)
    if compared:
        print(f"\n{compared}")
    commands = sweep.fusion_commands(options.config, options.workdir, outcome.rows)
    if commands:
        print("\n".join(["", "fusions of these runs:", *commands]))
    folder = storage.to_path(options.workdir)
    print(f"\nwritten: {folder / 'sweep.csv'} and {folder / 'runs.csv'}")
    if outcome.failures:
        raise UserError(f"{len(outcome.failures)} of {outcome.planned} runs failed: {'; '.join(outcome.failures)}")
    return 0


def _print_now(text: str) -> None:
    print(text, flush=True)
