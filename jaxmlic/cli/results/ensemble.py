"""`jaxmlic ensemble`."""

import math
from collections.abc import Sequence

from jaxmlic import storage
from jaxmlic.cli.parser import Parser
from jaxmlic.errors import UserError
from jaxmlic.evaluation import ensemble, scoring
from jaxmlic.reports import ensemble_table, score_report


def main(argv: Sequence[str]) -> int:
    """Prints members and fusion side by side, and writes the fusion with its report."""
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
    parser.add_argument(
        "--space", choices=ensemble.SPACES, default="logit", help="what is averaged (default: %(default)s)"
    )
    parser.add_argument("--weights", help="one for each file, e.g. 0.3,0.7, scaled to sum to 1 (default: equal)")
    options = parser.parse_args(argv)
    out = storage.to_path(options.out)
    if out.suffix != ".npz":
        raise UserError(f"--out={out}: a score file's name ends in .npz")
    if storage.resolve(out) in [storage.resolve(file) for file in options.files]:
        raise UserError(f"--out={out}: is one of the files to fuse; give another name")
    weights = None if options.weights is None else parse_weights(options.weights, len(options.files))
    found = ensemble.combine(options.files, protocol=options.protocol, space=options.space, weights=weights)
    print(*found.notes, ensemble_table.text(found), sep="\n")
    members = [
        {"file": path, "weight": weight} | scoring.as_json(member)
        for path, weight, member in zip(found.paths, found.weights, found.members, strict=True)
    ]
    facts = {"split": found.scores.split, "space": found.space, "members": members}
    print(f"\n{score_report.write(out, found.scores, found.report, facts)}")
    return 0


def parse_weights(text: str, count: int) -> list[float]:
    """`"1,3"` -> [1.0, 3.0]. UserError unless there are `count` positive numbers."""
    try:
        weights = [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--weights={text}: not numbers; write --weights=0.3,0.7") from None
    if len(weights) != count:
        raise UserError(f"--weights={text}: {len(weights)} for {count} score files; give one each")
    if not all(0 < weight < math.inf for weight in weights):
        raise UserError(f"--weights={text}: every weight must be positive; leave out a file that is to count nothing")
    return weights
