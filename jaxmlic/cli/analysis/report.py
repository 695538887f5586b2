"""`jaxmlic report`."""

import time
from collections.abc import Sequence

from jaxmlic import storage
from jaxmlic.cli.parser import Parser
from jaxmlic.errors import check_least
from jaxmlic.reports.page import build, members

NAME = "report.html"


def main(argv: Sequence[str]) -> int:
    """Writes the page and prints where it is."""
    parser = Parser(
        prog="jaxmlic report",
        description="Writes one HTML file about runs of the same data set and split, side by side: metrics, learning "
        "curves, classes, mistakes with photographs, label graph and embeddings. It opens without a network.",
        epilog="jaxmlic report runs/linear runs/cnn_rnn --out=runs/report.html",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders, or score files of `jaxmlic evaluate`")
    parser.add_argument("--split", help="whose scores are shown (each run's test split)")
    parser.add_argument("--protocol", help="of all numbers (that of the first run)")
    parser.add_argument("--out", help=f"the page; default: {NAME} in the first run's folder")
    parser.add_argument(
        "--images", type=int, default=400, help="photographs in the page, at most; 0 for a page without (400)"
    )
    parser.add_argument("--data-dir", help="where the data sets are now, if not where the runs found them")
    options = parser.parse_args(argv)
    check_least("--images", options.images, 0)
    first = storage.to_path(options.runs[0])
    out = storage.to_path(options.out) if options.out else (first.parent if first.suffix == ".npz" else first) / NAME
    storage.check_writable(out.parent)
    begun = time.monotonic()
    found = members.open_members(options.runs, options.split, options.protocol, options.data_dir)
    page = build.build(found, options.images)
    storage.write_text(out, page)
    size = len(page.encode()) / 2**20
    print(f"written: {out} ({size:.1f} MiB, {time.monotonic() - begun:.0f} s)")
    return 0
