"""`jaxmlic noise-curves`."""

from collections.abc import Sequence

from jaxmlic import storage
from jaxmlic.cli.parser import Parser
from jaxmlic.reports import noise_curves


def main(argv: Sequence[str]) -> int:
    """Prints the table; where there is more than one rate of noise, draws the curves."""
    parser = Parser(
        prog="jaxmlic noise-curves",
        description="Tabulates and draws a sweep's metric against the share of wrong training labels.",
    )
    parser.add_argument("folder", metavar="RUNS", help="--workdir of a `jaxmlic sweep`")
    parser.add_argument("--metric", default="mAP", help="a column of its runs.csv: mAP, accuracy, CF1, ...")
    parser.add_argument("--out", help="the picture, instead of RUNS/noise_curves.png")
    parser.add_argument("--title", help="of the picture, instead of one with the folder's name")
    options = parser.parse_args(argv)
    folder, metric = storage.to_path(options.folder), options.metric
    curves = noise_curves.read(folder, metric)
    print(noise_curves.text(curves, metric))
    if noise_curves.num_rates(curves) > 1:
        out = storage.to_path(options.out) if options.out else folder / "noise_curves.png"
        title = options.title or f"{metric} under label noise: {folder.resolve().name}"
        noise_curves.plot(out, curves, metric, title)
        print(f"\nwritten: {out}")
    return 0
