"""`jaxmlic noise-curves`."""

from collections.abc import Sequence

from jaxmlic.cli.parser import Parser
from jaxmlic.reports.noise_curves import run


def main(argv: Sequence[str]) -> int:
    parser = Parser(prog="jaxmlic noise-curves", description=__doc__.splitlines()[0])
    parser.add_argument("folder", metavar="RUNS", help="--workdir of a `jaxmlic sweep`")
    parser.add_argument("--metric", default="mAP", help="a column of its runs.csv: mAP, accuracy, CF1, ...")
    parser.add_argument("--out", help="the picture, instead of RUNS/noise_curves.png")
    parser.add_argument("--title", help="of the picture, instead of one with the folder's name")
    options = parser.parse_args(argv)
    run(options.folder, options.metric, options.out, options.title)
    return 0
