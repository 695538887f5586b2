"""Rematerialisation: what the backward pass computes again in place of keeping it (config.train.remat).

"none": everything that the backward pass reads is kept. "blocks": of each block of a trunk (a residual block, or a
convolution with its norm) only the input. "full": of each stage only the input; the backward pass of a stage computes
its blocks' inputs again, then works block by block. The numbers are the same.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator

import flax.linen as nn
import jax

from jaxmlic.errors import check_choice

LEVELS = ("none", "blocks", "full")

Part = Callable[[nn.Module, jax.Array], jax.Array | tuple]

_level = contextvars.ContextVar("remat", default="none")


@contextlib.contextmanager
def level(name: str) -> Iterator[None]:
    """Models traced inside rematerialise their trunk so. UserError for a name that is not in LEVELS."""
    check_choice("train.remat", name, LEVELS)
    token = _level.set(name)
    try:
        yield
    finally:
        _level.reset(token)


def block(part: Part, module: nn.Module, x: jax.Array) -> jax.Array | tuple:
    """`part(module, x)`, a block of a trunk: from its input again in the backward pass, unless the level is "none"."""
    return (part if _level.get() == "none" else nn.remat(part))(module, x)


def stage(part: Part, module: nn.Module, x: jax.Array) -> jax.Array | tuple:
    """`part(module, x)`, blocks of a trunk: from their input again in the backward pass at the level "full"."""
    return (nn.remat(part) if _level.get() == "full" else part)(module, x)
