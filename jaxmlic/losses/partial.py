"""Losses for labels that are missing: recorded as absent (Hill, SPLC), or not recorded (partial asymmetric loss).

The contract is that of `pointwise`; all are reduced as binary_cross_entropy, where the papers sum over classes.
"""

import jax
import jax.numpy as jnp

from jaxmlic.errors import unknown as unknown_choice
from jaxmlic.losses.pointwise import prepare, require

MODES = ("ignore", "negative", "selective")


def hill(
    logits: jax.Array,
    labels: jax.Array,
    weights: jax.Array | None = None,
    *,
    gamma: float = 2.0,
    margin: float = 1.0,
    lamb: float = 1.5,
) -> jax.Array:
    """Hill loss (Zhang et al. 2021): absent labels that look very present, perhaps missing ones, cost less again.

    A positive costs -(1 - p_m)^gamma log p_m with p_m = sigmoid(z - margin), a negative (lamb - p) p^2, whose slope
    by p is 0 at p = 2 lamb / 3.

    Args:
      logits, labels, weights: as for binary_cross_entropy. Missing labels are 0 here; unknown ones add nothing.
      gamma: 0 or more; how much easy positives are played down.
      margin: taken from the positives' logits.
      lamb: lambda, 1 or more.

    Returns:
      float32 [...]: summed over the known labels of an example and divided by C.
    """
    logits, positive, negative, weights = prepare(logits, labels, weights)
    require("gamma", gamma, gamma >= 0, "0 or more")
    require("lamb", lamb, lamb >= 1, "1 or more")
    probability = jax.nn.sigmoid(logits)
    terms = jnp.where(positive, _focal_positive(logits - margin, gamma), (lamb - probability) * probability**2)
    return jnp.mean(jnp.where(positive | negative, weights * terms, 0.0), axis=-1)


def splc(
    logits: jax.Array,
    labels: jax.Array,
    weights: jax.Array | None = None,
    *,
    tau: float = 0.6,
    gamma: float = 2.0,
    margin: float = 1.0,
) -> jax.Array:
    """Self-paced loss correction (Zhang et al. 2021) of the focal margin loss.

    An absent label whose probability is above tau counts as present. A positive costs -(1 - p)^gamma log p, with the
    margin taken from the logit of a recorded one alone, a negative -p^gamma log(1 - p). The authors correct from the
    second epoch on. A loss knows no epoch: for that, train one epoch with tau = 1, which corrects nothing, and start
    from it.

    Args:
      logits, labels, weights: as for binary_cross_entropy. Missing labels are 0 here; unknown ones add nothing.
      tau: in (0, 1].
      gamma: 0 or more; how much easy labels are played down.
      margin: taken from the positives' logits.

    Returns:
      float32 [...]: summed over the known labels of an example and divided by C.
    """
    logits, positive, negative, weights = prepare(logits, labels, weights)
    require("tau", tau, (tau > 0) & (tau <= 1), "in (0, 1]")
    require("gamma", gamma, gamma >= 0, "0 or more")
    logits = jnp.where(positive, logits - margin, logits)
    present = positive | (jax.nn.sigmoid(logits) > tau)
    terms = _focal_positive(jnp.where(present, logits, -logits), gamma)
    return jnp.mean(jnp.where(positive | negative, weights * terms, 0.0), axis=-1)


def partial_asymmetric(
    logits: jax.Array,
    labels: jax.Array,
    weights: jax.Array | None = None,
    *,
    mode: str = "ignore",
    gamma_pos: float = 0.0,
    gamma_neg: float = 1.0,
    gamma_unknown: float = 2.0,
    clip: float = 0.0,
    likelihood: int = 5,
    prior: tuple[float, ...] = (),
    prior_threshold: float = 0.05,
) -> jax.Array:
    """Partial asymmetric loss with the selection of unknown labels (Ben-Baruch et al. 2022); gammas of 0: partial BCE.

    Positives cost -(1 - p)^gamma_pos log p; negatives -(1 - q)^gamma_neg log q with q = min(1 - p + clip, 1); unknown
    labels that count as absent the same with gamma_unknown. As in the authors' code no gradient flows through the
    focusing factors. An example without any known label has the value 0 in every mode: it may be padding.

    Args:
      logits, labels, weights: as for binary_cross_entropy; a label of weight 0 adds nothing, even if it is unknown.
      mode: of the unknown labels: "ignore", they add nothing; "negative", they count as absent; "selective", they do
        but for those that may be present: of the whole batch, all leading axes together, the `likelihood` x examples
        most probable ones, and those of classes whose prior is above `prior_threshold`.
      gamma_pos, gamma_neg, gamma_unknown: 0 or more.
      clip: in [0, 1).
      likelihood: unknown labels an example that are left out as the most probable ones, 0 or more.
      prior: a number for each class, its share of present labels; () for none. The authors take the mean probability
        of a model that was trained with "ignore".
      prior_threshold: in [0, 1].

    Returns:
      float32 [...]: summed over the labels that count and divided by C.
    """
    if mode not in MODES:
        raise unknown_choice("loss option mode =", mode, MODES)
    for name, gamma in (("gamma_pos", gamma_pos), ("gamma_neg", gamma_neg), ("gamma_unknown", gamma_unknown)):
        require(name, gamma, gamma >= 0, "0 or more")
    require("clip", clip, (clip >= 0) & (clip < 1), "in [0, 1)")
    require("likelihood", likelihood, likelihood >= 0 and likelihood == int(likelihood), "a whole number, 0 or more")
    require("prior_threshold", prior_threshold, 0 <= prior_threshold <= 1, "in [0, 1]")
    require("prior", prior, len(prior) in (0, logits.shape[-1]), f"of the {logits.shape[-1]} classes' length")
    given = logits.astype(jnp.float32)
    logits, positive, negative, known_weights = prepare(logits, labels, weights)
    weights = jnp.broadcast_to(jnp.asarray(1.0 if weights is None else weights, jnp.float32), labels.shape)
    weights = jax.lax.stop_gradient(weights)
    known = positive | negative
    absent, gamma = negative, jnp.where(positive, gamma_pos, gamma_neg)
    if mode != "ignore":
        unknown = (labels != 1) & (labels != 0) & (weights > 0) & jnp.any(known, axis=-1, keepdims=True)
        if mode == "selective":
            unknown &= ~_likely(given, unknown, int(likelihood))
            if prior:
                frequent = jnp.asarray(prior, jnp.float32) > prior_threshold  # [C]
                unknown &= ~jnp.broadcast_to(frequent, labels.shape)
        logits = jnp.where(unknown, given, logits)
        absent, gamma = absent | unknown, jnp.where(unknown, gamma_unknown, gamma)
        known_weights = jnp.where(unknown, weights, known_weights)
    log_rest = jnp.minimum(jnp.logaddexp(jax.nn.log_sigmoid(-logits), jnp.log(jnp.float32(clip))), 0.0)  # log q
    log_right = jnp.where(positive, jax.nn.log_sigmoid(logits), log_rest)
    factor = jax.lax.stop_gradient(-jnp.expm1(log_right)) ** gamma  # (1 - p_t)^gamma
    return jnp.mean(jnp.where(positive | absent, -known_weights * factor * log_right, 0.0), axis=-1)


def _likely(logits: jax.Array, among: jax.Array, count: int) -> jax.Array:
    """bool [..., C]: the count x examples highest logits of those of the whole batch that are `among` [..., C]."""
    flat = jax.lax.stop_gradient(jnp.where(among, logits, -jnp.inf)).reshape(-1)
    total = min(count * (flat.size // logits.shape[-1]), flat.size)
    if not total:
        return jnp.zeros(logits.shape, bool)
    _, places = jax.lax.top_k(flat, total)
    return jnp.zeros(flat.shape, bool).at[places].set(True).reshape(logits.shape)


def _focal_positive(logits: jax.Array, gamma: float) -> jax.Array:
    """-(1 - p)^gamma log p, in logarithms: no power of 0, whose derivative is infinite for gamma below 1."""
    return jnp.exp(gamma * jax.nn.log_sigmoid(-logits)) * jax.nn.softplus(-logits)
