"""A loss by its name and options, as `config.loss` gives them."""

import inspect
import typing
from collections.abc import Callable

import jax

from jaxmlic.errors import UserError, check_choice, did_you_mean
from jaxmlic.losses import pairwise, partial, pointwise

LOSSES = {
    "asymmetric": pointwise.asymmetric,
    "binary_cross_entropy": pointwise.binary_cross_entropy,
    "focal": pointwise.focal,
    "hill": partial.hill,
    "lsep": pairwise.lsep,
    "partial_asymmetric": partial.partial_asymmetric,
    "rmlc": pairwise.rmlc,
    "softmax_cross_entropy": pointwise.softmax_cross_entropy,
    "splc": partial.splc,
    "warp": pairwise.warp,
    "weighted_cross_entropy": pointwise.weighted_cross_entropy,
}


def named(name: str, options: tuple, logits: jax.Array, labels: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """The named loss per example, float32 [...] from logits and labels [..., C].

    Args:
      name: one of LOSSES.
      options: (name, value) pairs for the loss's keyword-only parameters.
      logits, labels: as in `pointwise`.
      key: for losses that draw at random, rank="sampled".

    Raises:
      UserError: a name, an option or a value that the loss does not have.
    """
    check_choice("loss.name", name, LOSSES)
    loss = LOSSES[name]
    drawn = {"key": key} if "key" in inspect.signature(loss).parameters else {}
    return loss(logits, labels, **drawn, **check_options(loss, options))


def check_options(loss: Callable[..., jax.Array], options: tuple) -> dict[str, float | str | tuple | None]:
    """config.loss.options as keyword arguments of `loss`; UserError for what is not an option of it."""
    known = {
        name: parameter
        for name, parameter in inspect.signature(loss).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    try:
        options = {str(name): value for name, value in options}
    except (TypeError, ValueError):
        raise UserError(f"config.loss.options = {options!r} is not a tuple of (name, value) pairs") from None
    for name, value in options.items():
        if name not in known:
            raise UserError(
                f"config.loss.options: {loss.__name__} has no option {name!r}{did_you_mean(name, known)}; "
                f"its options: {', '.join(known) or 'none'}"
            )
        if value is None and type(None) in typing.get_args(known[name].annotation):
            continue
        if isinstance(known[name].default, tuple):
            options[name] = _numbers(loss, name, value)
            continue
        kind = str if isinstance(known[name].default, str) else (int, float, jax.Array)
        if not isinstance(value, kind) or isinstance(value, bool):
            expected = "text" if kind is str else "a number"
            raise UserError(f"config.loss.options: {name} = {value!r} of {loss.__name__} is not {expected}")
    return options


def _numbers(loss: Callable[..., jax.Array], name: str, values: object) -> tuple[float, ...]:
    """An option that is a tuple of numbers; UserError for what is none."""
    plain = isinstance(values, tuple | list)
    if not plain or not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        raise UserError(f"config.loss.options: {name} = {values!r} of {loss.__name__} is not a tuple of numbers")
    return tuple(values)
