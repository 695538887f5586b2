"""`python -m jaxmlic.data COMMAND ...`, the same as `jaxmlic data COMMAND ...`."""

import sys

from jaxmlic.data import prepare
from jaxmlic.errors import did_you_mean

COMMANDS = {"prepare": prepare.main}


def main(argv: list[str] | None = None) -> int:
    """Run a command on data; 0 on success, 2 on a user's mistake."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in COMMANDS:
        return COMMANDS[argv[0]](argv[1:])
    usage = f"usage: jaxmlic data {{{','.join(COMMANDS)}}} ... (`jaxmlic data prepare --help` shows examples)"
    if argv and argv[0] in ("-h", "--help"):
        print(usage)
        return 0
    unknown = f"unknown command {argv[0]!r}{did_you_mean(argv[0], COMMANDS)}; " if argv else ""
    print(f"jaxmlic: {unknown}{usage}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
