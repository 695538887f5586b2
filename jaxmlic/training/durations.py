"""Durations in steps, epochs, examples or percent, read in one place."""

import re

from jaxmlic.errors import UserError

_PATTERN = re.compile(r"\s*([0-9]*\.?[0-9]+(?:e[0-9]+)?)\s*(steps?|epochs?|examples?|%)\s*", re.IGNORECASE)


def steps(text: str, *, examples: int, batch_size: int, total: int | None = None, field: str = "duration") -> int:
    """Number of optimisation steps that `text` stands for.

    Args:
      text: "500 steps", "10 epochs", "20000 examples" or "5%" (of `total`).
      examples: size of the training split; an epoch is `examples / batch_size` steps, not rounded.
      batch_size: global batch size.
      total: steps of the whole training; needed for percent.
      field: the config field that holds `text`, for the message.

    Raises:
      UserError: `text` is none of these forms, or a percentage has nothing to refer to.
    """
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise UserError(
            f"config.{field} = {text!r} is no duration; write '500 steps', '10 epochs', '20000 examples' or '5%'"
        )
    amount, unit = float(match[1]), match[2].lower()
    if unit == "%":
        if total is None:
            raise UserError(
                f"config.{field} = {text!r}: the whole training cannot be a percentage; use steps or epochs"
            )
        return round(amount / 100 * total)
    if unit.startswith("epoch"):
        return round(amount * examples / batch_size)
    if unit.startswith("example"):
        return round(amount / batch_size)
    return round(amount)


def is_zero(text: str) -> bool:
    """Whether `text` is a duration of nothing, such as "0 steps", and not one that is rounded to it."""
    match = _PATTERN.fullmatch(text)
    return match is not None and float(match[1]) == 0
