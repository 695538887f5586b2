"""`jaxmlic convergence`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxmlic.cli.parser import Parser
from jaxmlic.errors import UserError
from jaxmlic.reports.convergence import curve, names_of, plot, write_csv


def main(argv: Sequence[str]) -> int:
    """`jaxmlic convergence`."""
    parser = Parser(
        prog="jaxmlic convergence",
        description="Draws a validation metric of runs against epochs: which converges faster, and to what.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders")
    parser.add_argument("--out", required=True, help="the picture, a png; the numbers go beside it, as csv")
    parser.add_argument("--metric", default="mAP", help="as in metrics.jsonl, without val/ (mAP)")
    options = parser.parse_args(argv)
    names = names_of(options.runs)
    curves = {name: curve(run, options.metric) for name, run in zip(names, options.runs, strict=True)}
    if len(curves) < len(options.runs):
        raise UserError("convergence: a run is named twice")
    out = Path(options.out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        plot(out, curves, options.metric)
        write_csv(out.with_suffix(".csv"), curves, options.metric)
    except OSError as error:
        raise UserError(f"--out={out}: cannot be written ({error.strerror})") from None
    for name, (epochs, values) in curves.items():
        print(f"{name}: {100 * values[-1]:.2f} after {epochs[-1]:.1f} epochs, best {100 * np.nanmax(values):.2f}")
    print(f"written: {out} and {out.with_suffix('.csv')}")
    return 0
