"""Optimizers from a config: schedules, groups of parameters with their own learning rate, frozen parameters."""

import re
from collections.abc import Callable

import flax.traverse_util
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from jaxmlic.errors import UserError, check_choice, did_you_mean, unknown
from jaxmlic.models import trunks
from jaxmlic.training import durations

Tree = dict


def flatten(params: Tree) -> dict[str, jax.Array]:
    """{"trunk/conv_stem/kernel": array, ...}."""
    return flax.traverse_util.flatten_dict(params, sep="/")


def unflatten(flat: dict[str, jax.Array]) -> Tree:
    """The inverse of `flatten`."""
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def multipliers(groups: tuple, names: list[str]) -> dict[str, float | None]:
    """Learning-rate multiplier of every parameter, None = frozen: the first group whose expression matches the name.

    Raises:
      UserError: a parameter that no group matches, a group that matches nothing, a malformed expression.
    """
    found, used = {}, set()
    for name in names:
        for pattern, rate in groups:
            try:
                matched = re.fullmatch(pattern, name)
            except re.error as error:
                raise UserError(f"config.optim.groups: {pattern!r} is no regular expression ({error})") from None
            if matched:
                found[name] = rate
                used.add(pattern)
                break
        else:
            raise UserError(f"config.optim.groups: no group matches parameter {name}; end the list with ('.*', 1.0)")
    for pattern, _ in groups:
        # The closing catch-all may be left with nothing to catch, and so may the trunk's group where features come from
        # a file; any other idle group is a slip in its expression.
        without_trunk = pattern == "trunk/.*" and not any(name.startswith("trunk/") for name in names)
        if pattern not in used and pattern != ".*" and not without_trunk:
            raise UserError(f"config.optim.groups: {pattern!r} matches no parameter{did_you_mean(pattern, names)}")
    return found


def paced(multipliers: dict[str, float | None], trunk: str, decay: float) -> dict[str, float | None]:
    """`multipliers` with those of the trunk's stages times decay^(last - stage): early ones learn more slowly.

    Args:
      multipliers: learning-rate multiplier of every parameter, None = frozen.
      trunk: its name in a config.
      decay: of one stage to the one before it, config.optim.stage_decay; 1 = off.

    Raises:
      UserError: a decay outside (0, 1], one without a trunk that learns, a trunk that does not number its stages.
    """
    if decay == 1.0:
        return multipliers
    if not 0 < decay < 1:
        raise UserError(f"config.optim.stage_decay = {decay!r}; it lies in 0 < decay <= 1")
    modules = {name: name.split("/")[1] for name, rate in multipliers.items() if name.startswith("trunk/")}
    if all(multipliers[name] is None for name in modules):
        raise UserError(f"config.optim.stage_decay = {decay!r} paces the trunk, of which nothing learns; set it to 1.0")
    stages = trunks.stage_numbers(trunk, sorted(set(modules.values())))
    last = max(stages.values())
    paces = {name: decay ** (last - stages[module]) for name, module in modules.items()}
    return {name: None if rate is None else rate * paces.get(name, 1.0) for name, rate in multipliers.items()}


def schedule(config: ConfigDict, total_steps: int, to_steps: Callable[[str, str], int]) -> optax.Schedule:
    """The learning rate by step. `to_steps(text, field)` converts a duration."""
    warmup = to_steps(config.warmup, "optim.warmup")
    if config.schedule == "one_cycle":
        share = warmup / total_steps if warmup else 0.3
        return optax.cosine_onecycle_schedule(total_steps, config.lr, pct_start=share)
    if config.schedule == "cosine":
        rest = optax.cosine_decay_schedule(config.lr, max(1, total_steps - warmup))
    elif config.schedule == "constant":
        rest = optax.constant_schedule(config.lr)
    elif config.schedule == "step":
        bounds = {to_steps(m, "optim.milestones") - warmup: config.gamma for m in config.milestones}
        rest = optax.piecewise_constant_schedule(config.lr, bounds)
    else:
        raise unknown("config.optim.schedule =", config.schedule, ("cosine", "one_cycle", "constant", "step"))
    if not warmup:
        return rest
    return optax.join_schedules([optax.linear_schedule(0.0, config.lr, warmup), rest], [warmup])


def make(
    config: ConfigDict, multipliers: dict[str, float | None], learning_rate: optax.Schedule
) -> optax.GradientTransformation:
    """The optimizer over the flat dict of trainable parameters (frozen ones never reach it).

    Order: clip the global norm, (coupled L2), the optimizer's own scaling, (adamw's decoupled decay), the group's
    multiplier, the learning rate.
    """
    if config.name == "none":  # heads with a closed form
        return optax.set_to_zero()
    trainable = {name: rate for name, rate in multipliers.items() if rate is not None}
    try:
        decayed = {name: re.fullmatch(config.decay, name) is not None for name in trainable}
    except re.error as error:
        raise UserError(f"config.optim.decay: {config.decay!r} is no regular expression ({error})") from None
    decay = optax.add_decayed_weights(config.weight_decay, mask=decayed)
    if not config.eps > 0:
        raise UserError(f"config.optim.eps = {config.eps!r} is not above 0")
    adam = optax.scale_by_adam(b1=config.momentum, b2=config.beta2, eps=config.eps)
    chains = {
        "adamw": (adam, decay),
        "adam": (decay, adam),
        "sgd": (decay, optax.trace(config.momentum)),
        "sgd_nesterov": (decay, optax.trace(config.momentum, nesterov=True)),
        "rmsprop": (decay, optax.scale_by_rms(decay=config.beta2, eps=config.eps), optax.trace(config.momentum)),
    }
    check_choice("optim.name", config.name, (*chains, "none"))
    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    scaled = optax.stateless(lambda updates, _: {name: u * trainable[name] for name, u in updates.items()})
    return optax.chain(*clip, *chains[config.name], scaled, optax.scale_by_learning_rate(learning_rate))


def steps_of(config: ConfigDict, examples: int, total: int | None = None) -> Callable[[str, str], int]:
    """A converter of duration texts for this training split."""

    def to_steps(text: str, field: str) -> int:
        return durations.steps(text, examples=examples, batch_size=config.train.batch_size, total=total, field=field)

    return to_steps


def average(ema: dict, new: dict, decay: float, step: jax.Array) -> dict:
    """Exponential moving average of parameters; the decay starts low so that early values are forgotten."""
    rate = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda old, value: old + (1.0 - rate) * (value - old), ema, new)
