"""Scores that rank labels, from the paths that a search found."""

import chex
import jax
import jax.numpy as jnp

from jaxmlic.decode.search import steps_of_path

Array = jax.Array

# Scores of path_marginals: log-odds within +-ODDS, and on both sides of them, room for a tie-breaker in 0..TIE.
_ODDS = 40.0
_TIE = 50.0


def labels_on(paths: Array, num_labels: int) -> Array:
    """Which labels are on each path: bool [..., C] of paths int [..., T], where END (the number C) is none of them."""
    return jax.nn.one_hot(paths, num_labels, dtype=bool).any(axis=-2)


def path_marginals(paths: Array, log_probs: Array, num_labels: int, first_step_log_probs: Array | None = None) -> Array:
    """Scores that rank labels by how probable the paths are that contain them.

    A label's marginal is the sum of the probabilities of the paths with it, after these have been normalised to 1. Its
    score is the log-odds of that, so that above 0 means a marginal above 1/2, clipped to +-40. Labels on no path come
    below all others (-100 to -50) and labels on every path above (50 to 100), where the first step's probability breaks
    the ties. So scores are comparable between images.

    Args:
      paths: int [N, T], labels and then END, of one image.
      log_probs: float [N]; -inf is no path.
      num_labels: C.
      first_step_log_probs: float [C + 1], at START; None leaves the ties.

    Returns:
      float32 [C].
    """
    log_probs = log_probs.astype(jnp.float32)[:, None]  # [N, 1]
    on_path = labels_on(paths, num_labels)  # [N, C]
    log_with = jax.nn.logsumexp(jnp.where(on_path, log_probs, -jnp.inf), axis=0)  # [C]
    log_without = jax.nn.logsumexp(jnp.where(on_path, -jnp.inf, log_probs), axis=0)  # [C]
    if first_step_log_probs is None:
        tie = jnp.zeros(num_labels)
    else:
        chex.assert_shape(first_step_log_probs, (num_labels + 1,))
        tie = first_step_log_probs[:num_labels].astype(jnp.float32).clip(min=-_TIE) + _TIE  # [C], 0..TIE
    on_none = log_with == -jnp.inf
    on_all = (log_without == -jnp.inf) & ~on_none
    odds = (log_with - log_without).clip(-_ODDS, _ODDS)
    return jnp.where(on_none, tie - 2 * _TIE, jnp.where(on_all, tie + _TIE, odds))


def max_over_steps(step_log_probs: Array, path: Array) -> Array:
    """A label's highest probability at any step of a path: the alternative to path_marginals.

    Args:
      step_log_probs: float [T + 1, C + 1] of `along_path`, for the best path.
      path: int [T], labels and then END; the step at which END is chosen is the last that counts.

    Returns:
      float32 [C], the log-odds of that probability, clipped to +-40.
    """
    counted = jnp.where(steps_of_path(step_log_probs, path)[:, None], step_log_probs, -jnp.inf)  # [T + 1, C + 1]
    highest = counted[:, :-1].max(axis=0).astype(jnp.float32)  # [C]
    return (highest - jnp.log(-jnp.expm1(highest))).clip(-_ODDS, _ODDS)
