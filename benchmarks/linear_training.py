"""A linear layer trained on stored features in one compiled loop over all steps: hundreds of runs in minutes."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from jaxmlic.training import optim

Params = dict[str, jax.Array]


def logits(params: Params, features: jax.Array) -> jax.Array:
    """float32 [B, C] of features [B, D]."""
    return features @ params["kernel"] + params["bias"][None]


def fit(
    config: ConfigDict, params: Params, loss: Callable[[Params, jax.Array], jax.Array], *, steps: int, examples: int
) -> tuple[jax.Array, jax.Array]:
    """Kernel [D, C] and bias [C] after `steps` of the config's optimizer and schedule; call it under jit.

    `loss(params, step)` is the mean loss of the batch of a step, int32 []; an epoch has `examples`.
    """
    rates = optim.schedule(config.optim, steps, optim.steps_of(config, examples, steps))
    tx = optim.make(config.optim, dict.fromkeys(params, 1.0), rates)

    def update(carry: tuple[Params, optax.OptState], step: jax.Array):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params, step), state, params)
        return (optax.apply_updates(params, updates), state), None

    params, _ = jax.lax.scan(update, (params, tx.init(params)), jnp.arange(steps))[0]
    return params["kernel"], params["bias"]
