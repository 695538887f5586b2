"""Option parsers whose errors are one line."""

import argparse
from collections.abc import Callable

from jaxmlic import distributed
from jaxmlic.errors import UserError


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line, like those of every other mistake.

    hosts: the command runs on several hosts; parsing its line joins them, before JAX is used.
    """

    def __init__(self, *args, hosts: bool = False, **options):
        super().__init__(*args, **options)
        self._hosts = hosts
        if hosts:
            group = self.add_argument_group(
                "several hosts", "SLURM, Open MPI and TPU slices are found without these; start the command on each."
            )
            group.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0")
            group.add_argument("--num-processes", type=int, metavar="N", help="processes of the job")
            group.add_argument("--process-id", type=int, metavar="I", help="number of this one, from 0")

    def parse_known_args(self, args=None, namespace=None):
        options, rest = super().parse_known_args(args, namespace)
        if self._hosts:
            distributed.start(options.coordinator, options.num_processes, options.process_id)
        return options, rest

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
