"""`jaxmlic data COMMAND ...`: one table of the commands on data sets."""

import argparse

from jaxmlic.cli.data import check, graph, prepare, review, split
from jaxmlic.cli.parser import Parser


def main(argv: list[str]) -> int:
    """Runs the arguments after `jaxmlic data` and returns the exit status; raises UserError on a user's mistake."""
    parser = _parser()
    args, args.overrides = _parse(parser, argv)
    return args.run(args)


def _parse(parser: Parser, argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options, and the config's fields (--config.x.y=V) for a command that takes them."""
    args, rest = parser.parse_known_args(argv)
    overrides = [text for text in rest if text.startswith("--config.") and hasattr(args, "takes_overrides")]
    if odd := [text for text in rest if text not in overrides]:
        parser.error(f"unrecognized arguments: {' '.join(odd)}")
    return args, overrides


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="jaxmlic data", description="Commands on data sets.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (prepare, check, split, graph, review):
        module.add_parser(commands)
    return parser
