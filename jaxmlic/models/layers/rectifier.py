"""The ReLU of trunks and heads, whose backward pass can follow another rule than the derivative.

A deconvolutional network (Zeiler and Fergus, 2014) runs a network backwards with its filters transposed, its max pools
undone by their switches and the ReLU applied to what comes back. All but the last is the gradient, so that a rule for
the ReLU alone makes one from the other; "guided" (Springenberg et al., 2015) applies both.
"""

import contextlib
import contextvars
from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp

from jaxmlic.errors import unknown

Array = jax.Array

RULES = ("gradient", "deconvolution", "guided")
_rule = contextvars.ContextVar("rule of the backward pass", default="gradient")


def rule() -> str:
    """The rule for what is traced now."""
    return _rule.get()


@contextlib.contextmanager
def backward(name: str) -> Iterator[None]:
    """Functions traced in the block have this one of RULES for every ReLU; UserError for an unknown name.

    A jitted function keeps the rule of its first call: make a new one in the block.
    """
    if name not in RULES:
        raise unknown("backward rule", name, RULES)
    token = _rule.set(name)
    try:
        yield
    finally:
        _rule.reset(token)


def pass_back(grad: Array, active: Array, name: str) -> Array:
    """What a ReLU hands down of `grad` under a rule; `active` bool: where its output has a slope."""
    if name != "deconvolution":
        grad = jnp.where(active, grad, 0)
    return grad if name == "gradient" else jnp.maximum(grad, 0)


def relu(x: Array) -> Array:
    """max(x, 0), whose backward pass has the rule in force."""
    return jax.nn.relu(x) if rule() == "gradient" else _relu(x, rule())


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _relu(x: Array, name: str) -> Array:
    del name  # matters on the way back
    return jnp.maximum(x, 0)


def _relu_forward(x: Array, name: str) -> tuple[Array, Array]:
    return _relu(x, name), x > 0


def _relu_backward(name: str, active: Array, grad: Array) -> tuple[Array]:
    return (pass_back(grad, active, name),)


_relu.defvjp(_relu_forward, _relu_backward)
