"""Losses under one contract: logits [..., C] and labels [..., C] in {1, 0, -1} -> one value per example::

    loss(logits, labels, weights=None, **options) -> float32 [...]

Logits may be of any float dtype; everything is computed in float32. A label of -1 (or anything but 1 and 0) is unknown:
it counts neither as positive nor as negative, and adds nothing to the value, to a rank or to a gradient. `weights`,
broadcast to [..., C], multiplies a label's term (sqrt(w_j w_k) a pair's, so that [B, 1] weighs whole examples); a label
of weight 0 is as good as unknown. No gradient flows into weights. An example that knows nothing has the value 0 and
gradient 0. The caller reduces over examples. Every loss raises AssertionError where the shapes of logits and labels
differ; wrong options raise UserError.
"""

import chex
import jax
import jax.numpy as jnp

from jaxmlic.errors import UserError

# Stands for log 0: finite, so that gradients of a logarithm over nothing are 0 and not NaN.
LOG_ZERO = -1e30


def binary_cross_entropy(logits: jax.Array, labels: jax.Array, weights: jax.Array | None = None) -> jax.Array:
    r"""Independent sigmoid cross-entropy, summed over the known labels of an example and divided by C.

    .. math:: -\frac{1}{C} \sum_{c} y_c \log \sigma(z_c) + (1 - y_c) \log\big(1 - \sigma(z_c)\big)

    Args:
      logits: float [..., C]; computed in float32 whatever the dtype.
      labels: int [..., C], 1 present, 0 absent, -1 unknown.
      weights: float, broadcast to [..., C]; None = 1.

    Returns:
      float32 [...]: the mean over classes, with 0 for an unknown label (so that an example weighs as much as it knows).

    >>> logits, labels = jnp.array([[2.0, -1.0, 0.0]]), jnp.array([[1, 0, -1]])
    >>> print(binary_cross_entropy(logits, labels).round(3))  # (0.127 + 0.313 + 0) / 3
    [0.147]
    """
    logits, positive, negative, weights = prepare(logits, labels, weights)
    # -log sigmoid(+-z) = softplus(-+z): one stable term for both cases.
    terms = jax.nn.softplus(jnp.where(positive, -logits, logits))
    return jnp.mean(jnp.where(positive | negative, weights * terms, 0.0), axis=-1)


def weighted_cross_entropy(logits: jax.Array, labels: jax.Array, weights: jax.Array | None = None) -> jax.Array:
    r"""Cross-entropy in which positives and negatives have equal weight: Eq. 9 of MSCNN-LCE-MIC, summed over classes.

    Read as: i runs over the C labels of an image and the paper's |1| is 1, so

    .. math:: wt_p = \frac{|Po| + |Ne| + 1}{|Po| + 1}, \qquad wt_n = \frac{|Po| + |Ne| + 1}{|Ne| + 1},

    where Po and Ne count the known positive and negative labels of the whole batch, all leading axes together; the
    paper's loss of a batch is the mean of the returned values. The value of an example therefore depends on the others;
    rows that only pad a batch need labels of -1.
    Under jit the arrays are global, and so are the counts on a mesh; in a vmap or shard_map they would be the part's.

    Args and returns: as binary_cross_entropy, but the sum over known classes, not divided by C.
    """
    logits, positive, negative, weights = prepare(logits, labels, weights)
    num_positive, num_negative = jnp.sum(positive, dtype=jnp.float32), jnp.sum(negative, dtype=jnp.float32)
    total = num_positive + num_negative + 1.0
    balance = jnp.where(positive, total / (num_positive + 1.0), total / (num_negative + 1.0))
    terms = jax.nn.softplus(jnp.where(positive, -logits, logits))
    return jnp.sum(jnp.where(positive | negative, weights * balance * terms, 0.0), axis=-1)


def softmax_cross_entropy(logits: jax.Array, labels: jax.Array, weights: jax.Array | None = None) -> jax.Array:
    r"""Cross-entropy of the softmax over known labels against the positives, each with target 1 / their number.

    .. math:: -\frac{1}{|P|} \sum_{j \in P} \log \frac{e^{z_j}}{\sum_{c} e^{z_c}}

    The "Softmax" baseline of CNN-RNN's and CNN-LSTM-RMLC's tables (Gong et al. 2014).

    Args:
      logits: float [..., C].
      labels: int [..., C], 1 present, 0 absent, -1 unknown (left out of the normaliser, too).
      weights: float, broadcast to [..., C]; a positive's multiplies its term, a negative's matters only where it is 0.

    Returns:
      float32 [...]: the sum over classes, that is the mean over positives; 0 without positives.
    """
    logits, positive, negative, weights = prepare(logits, labels, weights)
    normaliser = jax.nn.logsumexp(jnp.where(positive | negative, logits, LOG_ZERO), axis=-1, keepdims=True)
    terms = jnp.where(positive, weights * (normaliser - logits), 0.0)
    return jnp.sum(terms, axis=-1) / jnp.maximum(jnp.sum(positive, axis=-1), 1)


def focal(
    logits: jax.Array,
    labels: jax.Array,
    weights: jax.Array | None = None,
    *,
    gamma: float = 2.0,
    alpha: float | None = None,
) -> jax.Array:
    r"""Sigmoid focal loss (Lin et al. 2017), reduced as binary_cross_entropy.

    .. math:: -\alpha_t (1 - p_t)^{\gamma} \log p_t, \qquad p_t = p \text{ for positives}, 1 - p \text{ for negatives}

    Args:
      logits, labels, weights: as for binary_cross_entropy, which gamma = 0 gives.
      gamma: 0 or more; how much easy labels are played down.
      alpha: weight of positives, 1 - alpha that of negatives; None = 1 for both.

    Returns:
      float32 [...]: summed over the known labels of an example and divided by C.
    """
    logits, positive, negative, weights = prepare(logits, labels, weights)
    require("gamma", gamma, gamma >= 0, "0 or more")
    towards = jnp.where(positive, logits, -logits)
    # (1 - p_t)^gamma in logarithms: no power of 0, whose derivative is infinite for gamma below 1.
    terms = jnp.exp(gamma * jax.nn.log_sigmoid(-towards)) * jax.nn.softplus(-towards)
    if alpha is not None:
        require("alpha", alpha, (alpha >= 0) & (alpha <= 1), "in [0, 1]")
        terms = jnp.where(positive, alpha, 1.0 - alpha) * terms
    return jnp.mean(jnp.where(positive | negative, weights * terms, 0.0), axis=-1)


def asymmetric(
    logits: jax.Array,
    labels: jax.Array,
    weights: jax.Array | None = None,
    *,
    gamma_neg: float = 4.0,
    gamma_pos: float = 0.0,
    clip: float = 0.05,
) -> jax.Array:
    r"""Asymmetric loss (Ridnik et al. 2021, Eqs. 4 to 6), reduced as binary_cross_entropy.

    .. math:: L_+ = -(1 - p)^{\gamma_+} \log p, \qquad L_- = -p_m^{\gamma_-} \log(1 - p_m),
       \qquad p_m = \max(p - clip, 0)

    Made from logits in float32: log(max(p, 1e-8)), as published, is -inf in half precision. The gradient
    is that of the formula; it passes through the focusing factors.

    Args:
      logits, labels, weights: as for binary_cross_entropy, which gammas and clip of 0 give.
      gamma_neg, gamma_pos: 0 or more; how much easy negatives and positives are played down.
      clip: in [0, 1); negatives with a probability up to this cost nothing.

    Returns:
      float32 [...]: summed over the known labels of an example and divided by C.

    >>> asymmetric(jnp.array([[-3.0, -4.0]]), jnp.array([[0, 0]])).tolist()  # probabilities below the clip
    [0.0]
    """
    logits, positive, negative, weights = prepare(logits, labels, weights)
    require("gamma_neg", gamma_neg, gamma_neg >= 0, "0 or more")
    require("gamma_pos", gamma_pos, gamma_pos >= 0, "0 or more")
    require("clip", clip, (clip >= 0) & (clip < 1), "in [0, 1)")
    positive_terms = jnp.exp(gamma_pos * jax.nn.log_sigmoid(-logits)) * jax.nn.softplus(-logits)
    shifted = jax.nn.sigmoid(logits) - clip
    # Where p_m is 0 its logarithm is too, so the factor may be anything: 1 has a finite derivative for every gamma.
    costs = ~(shifted <= 0)  # so that a NaN is among them
    factor = jnp.where(costs, shifted, 1.0) ** gamma_neg
    # log(1 - p_m) = log(min(sigmoid(-z) + clip, 1)), exact for clip = 0 as well, whose logarithm is -inf.
    log_rest = jnp.logaddexp(jax.nn.log_sigmoid(-logits), jnp.log(jnp.float32(clip)))
    negative_terms = jnp.where(costs, -factor * jnp.minimum(log_rest, 0.0), 0.0)
    terms = jnp.where(positive, positive_terms, negative_terms)
    return jnp.mean(jnp.where(positive | negative, weights * terms, 0.0), axis=-1)


def prepare(
    logits: jax.Array, labels: jax.Array, weights: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Float32 logits (0 where unknown), bool positives and negatives, float32 weights (1 where unknown): all [..., C].

    Unknown entries get harmless numbers here, since a NaN that is masked afterwards still spoils gradients.
    """
    chex.assert_equal_shape([logits, labels])
    if weights is None:
        weights = 1.0
    weights = jax.lax.stop_gradient(jnp.broadcast_to(jnp.asarray(weights, jnp.float32), labels.shape))
    positive, negative = (labels == 1) & (weights > 0), (labels == 0) & (weights > 0)
    known = positive | negative
    return jnp.where(known, logits.astype(jnp.float32), 0.0), positive, negative, jnp.where(known, weights, 1.0)


def require(name: str, value: float | jax.Array, holds: bool | jax.Array, expected: str):
    """UserError unless it holds; a traced number was checked before it was traced."""
    if not isinstance(holds, jax.core.Tracer) and not holds:
        raise UserError(f"loss option {name} = {value!r} is not {expected}")
