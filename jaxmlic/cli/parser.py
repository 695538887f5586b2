"""Option parsers whose errors are one line."""

import argparse
from collections.abc import Callable

from jaxmlic.errors import UserError


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line, like those of every other mistake."""

    def error(self, message: str):
        raise UserError(f"{self.prog.removeprefix('jaxmlic ')}: {message}; see {self.prog} --help")


def add_command(
    commands: argparse._SubParsersAction,
    name: str,
    run: Callable[[argparse.Namespace], int],
    summary: str,
    description: str = "",
    epilog: str = "",
) -> argparse.ArgumentParser:
    """A parser for `jaxmlic data NAME` with the options that all of them have; `run` becomes `args.run`."""
    parser = commands.add_parser(
        name,
        help=summary,
        description=description or f"{summary[0].upper()}{summary[1:]}.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    parser.add_argument("--data-dir", help="where prepared data sets live ($JAXMLIC_DATA, else ~/.cache/jaxmlic/data)")
    return parser
