"""`jaxmlic convergence`."""

from collections.abc import Sequence

import numpy as np

from jaxmlic import storage
from jaxmlic.cli.parser import Parser
from jaxmlic.errors import UserError
from jaxmlic.reports import convergence


def main(argv: Sequence[str]) -> int:
    """Draws the curves, writes their values beside the picture, prints the last and the best of each."""
    parser = Parser(
        prog="jaxmlic convergence",
        description="Draws a validation metric of runs against epochs: which converges faster, and to what.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders")
    parser.add_argument("--out", required=True, help="the picture, a png; the numbers go beside it, as csv")
    parser.add_argument("--metric", default="mAP", help="as in metrics.jsonl, without val/ (mAP)")
    options = parser.parse_args(argv)
    names = convergence.names_of(options.runs)
    curves = {name: convergence.curve(run, options.metric) for name, run in zip(names, options.runs, strict=True)}
    if len(curves) < len(options.runs):
        raise UserError("convergence: a run is named twice")
    out = storage.to_path(options.out)
    convergence.plot(out, curves, options.metric)
    convergence.write_csv(out.with_suffix(".csv"), curves, options.metric)
    for name, (epochs, values) in curves.items():
        print(f"{name}: {100 * values[-1]:.2f} after {epochs[-1]:.1f} epochs, best {100 * np.nanmax(values):.2f}")
    print(f"written: {out} and {out.with_suffix('.csv')}")
    return 0
