"""`jaxmlic pointing`."""

from collections.abc import Sequence

from jaxmlic import run as run_lib
from jaxmlic import storage
from jaxmlic.cli.parser import Parser
from jaxmlic.evaluation.pointing import TOLERANCE
from jaxmlic.reports.page import pointing


def main(argv: Sequence[str]) -> int:
    """Plays the pointing game, prints the hits and writes them beside the scores."""
    parser = Parser(
        prog="jaxmlic pointing",
        description="Says whether a run's maps mean anything, where its data set has boxes: how often the highest "
        "point of Grad-CAM, gradients and attention lies on an object of the label, and how often the centre does.",
    )
    parser.add_argument("--workdir", required=True, help="folder of a `jaxmlic train`")
    parser.add_argument("--split", help="whose images are looked at (the run's test split)")
    parser.add_argument("--count", type=int, default=500, help="images with boxes, the first of the split (500)")
    parser.add_argument(
        "--tolerance", type=float, default=TOLERANCE, help=f"beside a box, as a share of the image's side ({TOLERANCE})"
    )
    parser.add_argument("--data-dir", help="where the data sets are now, if not where the run found them")
    options = parser.parse_args(argv)
    storage.check_writable(options.workdir)
    run = run_lib.load(options.workdir, options.data_dir)
    found = pointing.play(run, options.split, options.count, options.tolerance)
    print(f"{pointing.text(found)}\n\n{pointing.write(pointing.path_of(run.workdir, found['split']), found)}")
    return 0
