"""The score file: what a model said about a split, with all that is needed to judge it.

Evaluate writes it; ensemble, compare and report read it. An `.npz` without pickles: `scores` float32 [N, C], `labels`
int8 [N, C] in {1, 0, -1}, `ids` and `class_names` as text arrays, `config` and `extra` as JSON text, `protocol` and
`split` as text; `threshold` (float64) and `chosen` (bool [N, C]) if there are any.
"""

from collections.abc import Sequence

from jaxmlic.errors import UserError


def check_same_classes(a_names: Sequence[str], b_names: Sequence[str], what_a: str, what_b: str) -> None:
    """Refuses to combine two things whose columns mean different classes.

    Args:
      a_names: class names in column order.
      b_names: class names in column order.
      what_a: what has the first names, for the message ("the checkpoint runs/a", "scores/b.npz").
      what_b: what has the others.

    Raises:
      UserError: the lists differ; the message names the first difference.
    """
    a, b = [str(name) for name in a_names], [str(name) for name in b_names]
    if a == b:
        return
    if len(a) != len(b):
        only = [f"only {what} has {n!r}" for x, y, what in ((a, b, what_a), (b, a, what_b)) for n in x if n not in y][
            :1
        ]
        more = "".join(f"; {text}" for text in only)
        raise UserError(f"{what_a} has {len(a)} classes, {what_b} has {len(b)}{more}; use the same data set for both")
    position = next(i for i in range(len(a)) if a[i] != b[i])
    first = f"column {position} is {a[position]!r} in {what_a} but {b[position]!r} in {what_b}"
    if sorted(a) == sorted(b):
        raise UserError(f"the same {len(a)} classes in another order: {first}; reorder the columns of one by name")
    raise UserError(f"different classes: {first}; use the same data set for both")
