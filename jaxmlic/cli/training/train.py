"""`jaxmlic train`."""

import argparse
import sys

from jaxmlic import config as config_lib
from jaxmlic import distributed
from jaxmlic.cli.parser import Parser
from jaxmlic.experiments import runs
from jaxmlic.training.logs import profile


def main(argv: list[str]) -> int:
    parser = Parser(
        hosts=True,
        prog="jaxmlic train",
        description="Trains an experiment. A run folder that already holds part of it is continued.",
        epilog="Every field of the config can be set: --config.optim.lr=0.01 (see configs/common.py for all of them).",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config", required=True, metavar="FILE[:ARG]", help="experiment file, e.g. configs/quickstart.py:smoke"
    )
    parser.add_argument("--workdir", required=True, help="run folder, made if it does not exist")
    parser.add_argument(
        "--profile",
        metavar="STEPS",
        help="trace steps into WORKDIR/profile, for TensorBoard and Perfetto: FIRST:END, or a number of steps",
    )
    options, overrides = parser.parse_known_args(argv)
    profiled = None if options.profile is None else profile.parse(options.profile)
    config = config_lib.load(options.config, overrides)
    outcome = runs.fit(config, options.workdir, profiled, report=lambda line: print(line, file=sys.stderr))
    return 0 if outcome.finished else distributed.stopped_status(outcome.stopped_by)
