"""`jaxmlic ensemble`."""

from jaxmlic.cli.parser import Parser
from jaxmlic.evaluation.ensemble import SPACES, run


def main(argv: list[str]) -> int:
    parser = Parser(
        prog="jaxmlic ensemble",
        description="Fuses score files of one split into one and compares it with its members under one protocol.",
        epilog="jaxmlic ensemble runs/m2/scores/test.npz runs/m3/scores/test.npz --out=runs/distr_en.npz",
    )
    parser.add_argument(
        "files", nargs="*", metavar="SCORES.npz", help="score files of `jaxmlic evaluate`, at least two"
    )
    parser.add_argument("--out", default="ensemble.npz", help="score file to write (default: %(default)s)")
    parser.add_argument("--protocol", help="default: that of the files")
    parser.add_argument("--space", choices=SPACES, default="logit", help="what is averaged (default: %(default)s)")
    parser.add_argument("--weights", help="one for each file, e.g. 0.3,0.7, scaled to sum to 1 (default: equal)")
    options = parser.parse_args(argv)
    run(options.files, out=options.out, protocol=options.protocol, space=options.space, weights=options.weights)
    return 0
