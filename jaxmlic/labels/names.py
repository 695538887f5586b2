"""Class names: the order of the columns in labels and scores."""

from collections.abc import Sequence

from jaxmlic.errors import UserError


def check_same_classes(a_names: Sequence[str], b_names: Sequence[str], what_a: str, what_b: str) -> None:
    """Refuses to combine arrays whose columns are different classes.

    Args:
      a_names: class names of the one, in column order.
      b_names: class names of the other.
      what_a: the source of the first names, for the message ("the checkpoint runs/a", "scores/b.npz").
      what_b: the source of the others.

    Raises:
      UserError: the lists differ; the message names the first difference.
    """
    a, b = [str(name) for name in a_names], [str(name) for name in b_names]
    if a == b:
        return
    if len(a) != len(b):
        sides = ((a, b, what_a), (b, a, what_b))
        only = next((f"; only {what} has {n!r}" for x, y, what in sides for n in x if n not in y), "")
        raise UserError(f"{what_a} has {len(a)} classes, {what_b} has {len(b)}{only}; use the same data set for both")
    position = next(i for i in range(len(a)) if a[i] != b[i])
    first = f"column {position} is {a[position]!r} in {what_a} but {b[position]!r} in {what_b}"
    if sorted(a) == sorted(b):
        raise UserError(f"the same {len(a)} classes in another order: {first}; reorder the columns of one by name")
    raise UserError(f"different classes: {first}; use the same data set for both")
