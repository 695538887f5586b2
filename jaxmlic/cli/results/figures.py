"""`jaxmlic figures`."""

import csv
from collections.abc import Sequence

from jaxmlic import run as run_lib
from jaxmlic import storage
from jaxmlic.cli.parser import Parser
from jaxmlic.errors import UserError, unknown, writing
from jaxmlic.reports.figures import canvas, catalogue
from jaxmlic.reports.tables import table

ELSEWHERE = (
    ("Multi-order RNN Fig. 3", "jaxmlic predict --trace"),
    ("CNN-LSTM-RMLC Fig. 6", "jaxmlic noise-curves"),
    ("curves of training", "jaxmlic convergence"),
)


def main(argv: Sequence[str]) -> int:
    """Draws one figure of a run, writes its numbers beside it, or lists the figures."""
    parser = Parser(
        prog="jaxmlic figures",
        description="Draws a figure of the papers from a run: a png, and its numbers beside it as csv.",
        epilog="jaxmlic figures --workdir=runs/coco --figure=step-attention --form=deconvolution zebra.jpg",
    )
    parser.add_argument("--list", action="store_true", help="the figures, and whose they are")
    parser.add_argument("--workdir", help="folder of a `jaxmlic train`")
    parser.add_argument("--figure", metavar="NAME", help="one that --list shows")
    parser.add_argument("--out", help="the png; default: WORKDIR/figures/NAME.png")
    parser.add_argument("--label", action="append", default=[], help="a label to draw; may be given several times")
    parser.add_argument("--split", help="where scores, and images if no IMAGE is given, come from (the test split)")
    parser.add_argument("--protocol", help="how labels are decided (the run's config.eval.protocol)")
    parser.add_argument("--count", type=int, default=4, help="images of the split, those with two labels first (4)")
    parser.add_argument("--form", default="gradient", help=f"of attention and saliency: {', '.join(catalogue.FORMS)}")
    parser.add_argument("--stage", default="", help="of the trunk, for feature-maps and grad-cam (the last)")
    parser.add_argument("--table", default="", help="PAPER/NUMBER for printed-table, such as mscnn_lce_mic/V")
    parser.add_argument("--data-dir", help="where the data sets are now, if not where the run found them")
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="image files, or folders of them")
    options = parser.parse_args(argv)
    if options.list:
        print(listing())
        return 0
    if not options.figure:
        raise UserError("--figure=NAME is missing; jaxmlic figures --list shows the names")
    entry = catalogue.find(options.figure)
    if options.form not in catalogue.FORMS:
        raise unknown("--form =", options.form, catalogue.FORMS)
    if options.count < 1:
        raise UserError(f"--count={options.count}: at least 1")
    if entry.needs_run and not options.workdir:
        raise UserError(f"--figure={options.figure} is drawn of a run: add --workdir=RUN")
    if not options.workdir and not options.out:
        raise UserError("--out=FILE.png is missing")
    out = (
        storage.to_path(options.out)
        if options.out
        else storage.to_path(options.workdir) / "figures" / f"{options.figure}.png"
    )
    if out.suffix != ".png":
        raise UserError(f"--out={out}: a picture's name ends in .png")
    request = catalogue.Request(
        images=run_lib.find_images(options.images),
        count=options.count,
        split=options.split,
        protocol=options.protocol,
        labels=options.label,
        form=options.form,
        stage=options.stage,
        table=options.table,
    )
    drawing = entry.draw(run_lib.load(options.workdir, options.data_dir) if entry.needs_run else None, request)
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(drawing.figure, out)
    written = [str(out)]
    if drawing.rows:
        written.append(str(out.with_suffix(".csv")))
        with storage.replacing(written[-1], "w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(drawing.rows)
    print(f"written: {' and '.join(written)}")
    return 0


def listing() -> str:
    """A line for each figure: name, what it shows, the papers' own."""
    rows = [(name, entry.summary, entry.papers) for name, entry in catalogue.FIGURES.items()]
    lines = [table(rows, header=("figure", "what it shows", "in the papers")), "", "other commands draw:"]
    return "\n".join([*lines, table(ELSEWHERE, indent=2)])
