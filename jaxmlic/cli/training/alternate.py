"""`jaxmlic alternate`."""

from collections.abc import Sequence

from jaxmlic import config as config_lib
from jaxmlic import sharding
from jaxmlic.cli.parser import Parser
from jaxmlic.cli.training import propagate
from jaxmlic.experiments.self_training import run


def main(argv: Sequence[str]) -> int:
    """`jaxmlic alternate`."""
    parser = Parser(
        hosts=True,
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
        report=print,
    )
