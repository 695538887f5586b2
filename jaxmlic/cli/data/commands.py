"""`jaxmlic data COMMAND ...`: one table of the commands on data sets."""

import argparse

from jaxmlic.cli.data import check, graph, prepare, split
from jaxmlic.cli.parser import Parser


def main(argv: list[str]) -> int:
    """Runs the arguments after `jaxmlic data` and returns the exit status; raises UserError on a user's mistake."""
    args = _parser().parse_args(argv)
    return args.run(args)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="jaxmlic data", description="Commands on data sets.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (prepare, check, split, graph):
        module.add_parser(commands)
    return parser
