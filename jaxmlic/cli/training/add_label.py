"""`jaxmlic add-label`."""

import argparse
from collections.abc import Sequence

from jaxmlic.cli.parser import Parser
from jaxmlic.errors import UserError
from jaxmlic.run.extension import add_labels


def main(argv: Sequence[str]) -> int:
    """Writes a run with more labels than another, and prints what became of it."""
    parser = Parser(
        prog="jaxmlic add-label",
        description="Adds labels to a finished run of the head 'linear' without training anything else: from the "
        "vectors that a text encoder gave their names, or in closed form from examples, on the run's own vectors of "
        "images. The new run folder evaluates and predicts; the scores of the labels before stay as they are, to the "
        "bit.",
        epilog="jaxmlic add-label runs/birds --label=owl --vectors=names.npz --workdir=runs/birds_owl; "
        "jaxmlic add-label runs/birds --label=owl --positives=owls/ --workdir=runs/birds_owl; see docs/zero_shot.md",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN", help="folder of a `jaxmlic train`")
    parser.add_argument("--label", action="append", required=True, metavar="NAME", help="may be given several times")
    parser.add_argument("--workdir", required=True, metavar="NEW", help="folder of the new run; it must not exist")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--vectors", metavar="FILE", help="of a text encoder, .npz or .safetensors")
    source.add_argument(
        "--positives",
        metavar="WHERE",
        help="a folder of photographs with the label; a table of photographs and labels (.csv, .tsv, .jsonl); or a "
        "prepared data set with the label among its classes, NAME or NAME/SPLIT",
    )
    parser.add_argument("--scale", type=float, default=0.0, help="of cosines (default: the run's config.text.scale)")
    parser.add_argument("--bias", type=float, default=0.0, help="added to them (default: the run's config.text.bias)")
    parser.add_argument("--data", default="", metavar="NAME", help="data set that the new run is evaluated on")
    parser.add_argument("--data-dir", help="where the data sets are now, if not where the run found them")
    options = parser.parse_args(argv)
    if options.positives and (options.scale or options.bias):
        raise UserError("add-label: --scale and --bias go with --vectors; leave them out")
    found = add_labels(
        options.run,
        options.label,
        options.workdir,
        vectors=options.vectors or "",
        positives=options.positives or "",
        data=options.data,
        data_dir=options.data_dir,
        scale=options.scale,
        bias=options.bias,
        report=print,
    )
    print(*found.notes, sep="\n")
    print(f"{found.workdir}: {', '.join(options.label)} added; jaxmlic evaluate --workdir={found.workdir}")
    return 0
