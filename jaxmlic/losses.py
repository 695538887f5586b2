"""Losses under one contract: logits [..., C] and labels [..., C] in {1, 0, -1} -> one value per example.

    loss(logits, labels, weights=None, **options) -> float32 [...]

Logits may be of any float dtype; everything is computed in float32. A label of -1 (or anything but 1 and 0) is unknown:
it counts neither as positive nor as negative, and adds nothing to the value, to a rank or to a gradient. `weights`,
broadcast to [..., C], multiplies a label's term (sqrt(w_j w_k) a pair's, so that [B, 1] weighs whole examples); a label
of weight 0 is as good as unknown. No gradient flows into weights. An example that knows nothing has the value 0 and
gradient 0. The caller reduces over examples. Every loss raises AssertionError where the shapes of logits and labels
differ; wrong options raise UserError.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxmlic.errors import UserError, did_you_mean

RANKS = ("exact", "sampled")
# Stands for log 0: finite, so that gradients of a logarithm over nothing are 0 and not NaN.
NOTHING = -1e30
# Positives of an example up to which ranking losses go through them one by one. A round costs a few passes over [B, C];
# sorting and bisecting cost on a CPU what 50 to 100 rounds do.
LOOPED = 32


def binary_cross_entropy(logits: jax.Array, labels: jax.Array, weights: jax.Array | None = None) -> jax.Array:
    """Independent sigmoid cross-entropy, summed over the known labels of an example and divided by C.

    Args:
      logits: float [..., C]; computed in float32 whatever the dtype.
      labels: int [..., C], 1 present, 0 absent, -1 unknown.
      weights: float, broadcast to [..., C]; None = 1.

    Returns:
      float32 [...]: the mean over classes, with 0 for an unknown label (so that an example weighs as much as it knows).
    """
    logits, positive, negative, weights = _prepare(logits, labels, weights)
    # -log sigmoid(+-z) = softplus(-+z): one stable term for both cases.
    terms = jax.nn.softplus(jnp.where(positive, -logits, logits))
    return jnp.mean(jnp.where(positive | negative, weights * terms, 0.0), axis=-1)


def weighted_cross_entropy(logits: jax.Array, labels: jax.Array, weights: jax.Array | None = None) -> jax.Array:
    """Cross-entropy in which positives and negatives have equal say: Eq. 9 of MSCNN-LCE-MIC, summed over classes.

    Read as: i runs over the C labels of an image and |1| is 1, so
      wt_p = (|Po| + |Ne| + 1) / (|Po| + 1),  wt_n = (|Po| + |Ne| + 1) / (|Ne| + 1),
    where |Po| and |Ne| count the known positive and negative labels of the whole batch, all leading axes together; the
    paper's loss of a batch is the mean of the returned values. The value of an example therefore depends on the others;
    rows that only pad a batch need labels of -1.
    Under jit the arrays are global, and so are the counts on a mesh; in a vmap or shard_map they would be the part's.

    Args and returns: as binary_cross_entropy, but the sum over known classes, not divided by C.
    """
    logits, positive, negative, weights = _prepare(logits, labels, weights)
    num_positive, num_negative = jnp.sum(positive, dtype=jnp.float32), jnp.sum(negative, dtype=jnp.float32)
    total = num_positive + num_negative + 1.0
    balance = jnp.where(positive, total / (num_positive + 1.0), total / (num_negative + 1.0))
    terms = jax.nn.softplus(jnp.where(positive, -logits, logits))
    return jnp.sum(jnp.where(positive | negative, weights * balance * terms, 0.0), axis=-1)


def softmax_cross_entropy(logits: jax.Array, labels: jax.Array, weights: jax.Array | None = None) -> jax.Array:
    """Cross-entropy of the softmax over known labels against the positives, each with target 1 / their number.

    The "Softmax" baseline of CNN-RNN's and CNN-LSTM-RMLC's tables (Gong et al. 2014).

    Args:
      logits: float [..., C].
      labels: int [..., C], 1 present, 0 absent, -1 unknown (left out of the normaliser, too).
      weights: float, broadcast to [..., C]; a positive's multiplies its term, a negative's matters only where it is 0.

    Returns:
      float32 [...]: the sum over classes, that is the mean over positives; 0 without positives.
    """
    logits, positive, negative, weights = _prepare(logits, labels, weights)
    normaliser = jax.nn.logsumexp(jnp.where(positive | negative, logits, NOTHING), axis=-1, keepdims=True)
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
    """Sigmoid focal loss, -alpha_t (1 - p_t)^gamma log p_t (Lin et al. 2017), reduced as binary_cross_entropy.

    Args:
      logits, labels, weights: as for binary_cross_entropy, which gamma = 0 gives.
      gamma: 0 or more; how much easy labels are played down.
      alpha: weight of positives, 1 - alpha that of negatives; None = 1 for both.

    Returns:
      float32 [...]: summed over the known labels of an example and divided by C.
    """
    logits, positive, negative, weights = _prepare(logits, labels, weights)
    _require("gamma", gamma, gamma >= 0, "0 or more")
    towards = jnp.where(positive, logits, -logits)
    # (1 - p_t)^gamma in logarithms: no power of 0, whose derivative is infinite for gamma below 1.
    terms = jnp.exp(gamma * jax.nn.log_sigmoid(-towards)) * jax.nn.softplus(-towards)
    if alpha is not None:
        _require("alpha", alpha, 0 <= alpha <= 1, "in [0, 1]")
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
    """Asymmetric loss (Ridnik et al. 2021, Eqs. 4 to 6), reduced as binary_cross_entropy.

    L+ = (1 - p)^gamma_pos log p and L- = p_m^gamma_neg log(1 - p_m) with p_m = max(p - clip, 0). Made from logits in
    float32: log(max(p, 1e-8)), as published, is -inf in half precision. The gradient is that of the formula; it passes
    through the focusing factors.

    Args:
      logits, labels, weights: as for binary_cross_entropy, which gammas and clip of 0 give.
      gamma_neg, gamma_pos: 0 or more; how much easy negatives and positives are played down.
      clip: in [0, 1); negatives with a probability up to this cost nothing.

    Returns:
      float32 [...]: summed over the known labels of an example and divided by C.
    """
    logits, positive, negative, weights = _prepare(logits, labels, weights)
    _require("gamma_neg", gamma_neg, gamma_neg >= 0, "0 or more")
    _require("gamma_pos", gamma_pos, gamma_pos >= 0, "0 or more")
    _require("clip", clip, 0 <= clip < 1, "in [0, 1)")
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


def warp(
    logits: jax.Array,
    labels: jax.Array,
    weights: jax.Array | None = None,
    key: jax.Array | None = None,
    *,
    rank: str = "exact",
) -> jax.Array:
    """Weighted approximate ranking, sum_j sum_k F(r_j) max(0, 1 - z_j + z_k) (Weston et al. 2011; Gong et al. 2014).

    j runs over positives and k over negatives; F(r) = sum_{i <= r} 1 / i is a constant for the gradient.

    Args:
      logits, labels: as for binary_cross_entropy.
      weights: float, broadcast to [..., C]; a pair has sqrt(w_j w_k), ranks count labels of any weight above 0.
      key: PRNG key for rank="sampled"; not used otherwise.
      rank: "exact", r_j = number of negatives with z_k > z_j - 1; or "sampled", r_j = floor((m - 1) / n) with m known
        labels and n negatives drawn, with replacement, until one is such.

    Returns:
      float32 [...]: the sum over pairs; 0 without positives or without negatives. Memory grows as C, not C^2.
    """
    return _sum_over_pairs(*_prepare(logits, labels, weights), None, rank, key)


def lsep(logits: jax.Array, labels: jax.Array, weights: jax.Array | None = None) -> jax.Array:
    """Log-sum-exp pairwise loss, log(1 + sum_j sum_k exp(z_k - z_j)) (Li et al. 2017, Eq. 4).

    j runs over positives and k over negatives. The double sum is the product of two sums, so no pair is ever formed.

    Args:
      logits, labels: as for binary_cross_entropy.
      weights: float, broadcast to [..., C]; a pair has sqrt(w_j w_k), within the logarithm.

    Returns:
      float32 [...]: one logarithm over all pairs; 0 without positives or without negatives.
    """
    logits, positive, negative, weights = _prepare(logits, labels, weights)
    log_root = 0.5 * jnp.log(weights)
    positives = jax.nn.logsumexp(jnp.where(positive, log_root - logits, NOTHING), axis=-1)
    negatives = jax.nn.logsumexp(jnp.where(negative, log_root + logits, NOTHING), axis=-1)
    return jax.nn.softplus(positives + negatives)


def ramp(t: jax.Array, s: float | None = -0.75) -> jax.Array:
    """R_s(t) = min(1 - s, max(0, 1 - t)) = H_1(t) - H_s(t), where H_a(t) = max(0, a - t): 3.4 of CNN-LSTM-RMLC.

    1 - s for t <= s, falling to 0 at t = 1: a wrong label costs no more than 1 - s, however wrong it looks.
    The text asks -1 < s <= 0 and then uses "0.75", read as -0.75.

    Args:
      t: float, any shape: the margin.
      s: where the ramp ends, a number in (-1, 0]; None for no end, the hinge H_1 that it is compared with.

    Returns:
      float, shape and dtype of t. Raises UserError for another s.
    """
    if s is None:
        return jnp.maximum(1.0 - t, 0.0)
    _require("s", s, -1 < s <= 0, "in (-1, 0]")
    return jnp.clip(1.0 - t, 0.0, 1.0 - s)


def rmlc(
    logits: jax.Array,
    labels: jax.Array,
    weights: jax.Array | None = None,
    key: jax.Array | None = None,
    *,
    s: float | None = -0.75,
    k: float = 5.0,
    rank: str = "exact",
) -> jax.Array:
    """Robust multi-label loss, Eq. 1 of CNN-LSTM-RMLC without its regulariser (the optimizer's weight decay).

    sum_j sum_k F(r_j) R_s(z_j - z_k) + k sum_c R_s(y_c z_c), read with j over positives, k over negatives, c over all
    known labels, y in {-1, +1}, and F(r) = sum_{i <= r} 1 / i (F(0) = 0) a constant for the gradient. "n, the number of
    images" in r_j = floor((m - 1) / n) is read as WARP's number of draws, rank="sampled"; what it estimates, the number
    of negatives with z_k > z_j - 1, is the default.

    Args:
      logits, labels: as for binary_cross_entropy.
      weights: float, broadcast to [..., C]; a pair has sqrt(w_j w_k), ranks count labels of any weight above 0.
      key: PRNG key for rank="sampled"; not used otherwise.
      s: where the ramp ends, a number in (-1, 0]; None for the hinge, in pairs and margins, to see what the end does.
      k: weight of the second term, 0 or more.
      rank: "exact" or "sampled", as for warp.

    Returns:
      float32 [...]: the sum over pairs and classes. Memory grows as C, not C^2.
    """
    _require("k", k, k >= 0, "0 or more")
    prepared = logits, positive, negative, weights = _prepare(logits, labels, weights)
    margins = weights * ramp(jnp.where(positive, logits, -logits), s)
    return _sum_over_pairs(*prepared, s, rank, key) + k * jnp.sum(jnp.where(positive | negative, margins, 0.0), axis=-1)


def _prepare(
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


def _require(name: str, value: float, holds: bool, expected: str):
    if not holds:
        raise UserError(f"loss option {name} = {value!r} is not {expected}")


def _sum_over_pairs(
    logits: jax.Array,
    positive: jax.Array,
    negative: jax.Array,
    weights: jax.Array,
    s: float | None,
    rank: str,
    key: jax.Array | None,
) -> jax.Array:
    """sum_j sum_k F(r_j) h(z_j - z_k) over positives j and negatives k, without forming pairs.

    h is the ramp R_s, or for s = None the hinge H_1. Both are linear between their kinks, so that the sum is
    `constant + sum_c slope_c z_c`, and differentiating this form gives the exact gradient. A pair has a slope where
    z_j - 1 < z_k <= z_j - s. The slopes are found positive after positive where no example of the batch has more than
    LOOPED of them, else by sorting: two ways to the same numbers but for rounding.

    Args: the four arrays [..., C] of `_prepare`, and the options of `rmlc`.
    Returns float32 [...].
    """
    fixed = jax.lax.stop_gradient(logits)  # [..., C]
    most = jnp.max(jnp.sum(positive, axis=-1), initial=0)
    arrays = fixed, positive, negative, jnp.sqrt(weights)
    if rank == "exact":
        loop, sort = (lambda *x: _by_looping(*x, s, most)), (lambda *x: _by_sorting(*x, s, rank, key))
        constant, slope = jax.lax.cond(most <= LOOPED, loop, sort, *arrays)
    else:
        constant, slope = _by_sorting(*arrays, s, rank, key)
    # The slopes of an example sum to 0, so any centre will do: near the logits, little is lost to rounding.
    return constant + jnp.sum(slope * (logits - jnp.mean(fixed, axis=-1, keepdims=True)), axis=-1)


def _by_looping(
    logits: jax.Array, positive: jax.Array, negative: jax.Array, root: jax.Array, s: float | None, most: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Constant [...] and slope [..., C] of `_sum_over_pairs`; root [..., C] = sqrt(weights), `most` positives int32 [].

    Time grows as the number of positives times C, with a small factor: no sorting, no gathering.
    """
    harmonic = _harmonic(logits.shape[-1])
    index = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)  # [..., C]
    pick = lambda mask, values: jnp.sum(jnp.where(mask, values, 0.0), axis=-1, keepdims=True)  # noqa: E731

    def add(_: jax.Array, found: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        constant, slope, previous = found
        left = jnp.where(positive & (index > previous), index, logits.shape[-1])
        place = jnp.min(left, axis=-1, keepdims=True)  # [..., 1], the next positive, or C
        mask = index == place  # [..., C], one label or none
        own = pick(mask, logits)  # [..., 1], z_j
        above = negative & (logits > own - 1.0)
        on = above if s is None else above & (logits <= own - s)
        factor = pick(mask, root) * harmonic[jnp.sum(above, axis=-1, keepdims=True)]  # 0 where no positive is left
        sloping = pick(on, root)
        cost = sloping if s is None else sloping + (1.0 - s) * pick(above & ~on, root)  # beyond the ramp: 1 - s
        slope += factor * jnp.where(on, root, 0.0) - jnp.where(mask, factor * sloping, 0.0)
        return constant + (factor * cost)[..., 0], slope, place

    start = jnp.zeros_like(logits[..., 0]), jnp.zeros_like(logits), jnp.full_like(index[..., :1], -1)
    return jax.lax.fori_loop(0, most, add, start)[:2]


def _by_sorting(
    logits: jax.Array,
    positive: jax.Array,
    negative: jax.Array,
    root: jax.Array,
    s: float | None,
    rank: str,
    key: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """As `_by_looping`, whatever the number of positives.

    In sorted order the pairs with a slope are a range of negatives for a positive and a range of positives for a
    negative, both found by bisection with the same comparisons. Ties fall within or without a range together.
    """
    order = jnp.argsort(logits, axis=-1)
    logits, positive, negative, root = (
        jnp.take_along_axis(x, order, axis=-1) for x in (logits, positive, negative, root)
    )
    bounds = jnp.stack([logits - 1.0] if s is None else [logits - 1.0, logits - s])  # low (and high), ascending as well
    from_negative = _bisect_right(logits[None], bounds)  # negatives from here on are above the bound of positive j
    to_positive = _bisect_left(bounds, logits[None])  # positives before this have their bound below negative k
    zero, end = jnp.zeros(logits.shape, jnp.int32), jnp.full(logits.shape, logits.shape[-1], jnp.int32)
    first, last = from_negative[0], end if s is None else from_negative[1]

    negatives = jnp.where(negative, root, 0.0)
    negative_sums = _prefix_sums(negatives)
    _, violators = _between(negative_sums, first, end)
    positives = jnp.where(positive, root * _rank_weight(violators, positive, negative, rank, key), 0.0)
    on_slope, _ = _between(negative_sums, first, last)
    pulled, _ = _between(_prefix_sums(positives), zero if s is None else to_positive[1], to_positive[0])
    constant, slope = positives * on_slope, negatives * pulled - positives * on_slope
    if s is not None:
        beyond, _ = _between(negative_sums, last, end)  # these cost the whole 1 - s
        constant += positives * (1.0 - s) * beyond
    return jnp.sum(constant, axis=-1), jnp.put_along_axis(jnp.zeros_like(slope), order, slope, axis=-1, inplace=False)


def _rank_weight(
    violators: jax.Array, positive: jax.Array, negative: jax.Array, rank: str, key: jax.Array | None
) -> jax.Array:
    """F(r_j) float32 [..., C] from the number of violators of each label as if it were positive, float32 [..., C]."""
    if rank not in RANKS:
        raise UserError(f"loss option rank = {rank!r} is unknown{did_you_mean(rank, RANKS)}; ranks: {', '.join(RANKS)}")
    if rank == "sampled":
        if key is None:
            raise UserError(
                "loss option rank = 'sampled' draws at random and needs a key, which config.loss cannot give"
            )
        known = jnp.sum(positive | negative, axis=-1, keepdims=True)
        share = violators / jnp.maximum(jnp.sum(negative, axis=-1, keepdims=True), 1)
        # The number of draws until the first violator is geometric: one random number instead of a loop.
        draws = jax.random.geometric(key, jnp.where(violators > 0, share, 1.0), dtype=jnp.int32)
        violators = jnp.where(violators > 0, (known - 1) // draws, 0)
    return _harmonic(positive.shape[-1])[violators.astype(jnp.int32)]


def _harmonic(count: int) -> jax.Array:
    """F(0), ..., F(count): float32 [count + 1]."""
    return jnp.asarray(np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, count + 1))]), jnp.float32)


@functools.partial(jnp.vectorize, signature="(n),(m)->(m)")
def _bisect_right(points: jax.Array, values: jax.Array) -> jax.Array:
    """Number of points <= value, int32; points ascend along the last axis."""
    return jnp.searchsorted(points, values, side="right")


@functools.partial(jnp.vectorize, signature="(n),(m)->(m)")
def _bisect_left(points: jax.Array, values: jax.Array) -> jax.Array:
    """Number of points < value, int32; points ascend along the last axis."""
    return jnp.searchsorted(points, values, side="left")


def _prefix_sums(values: jax.Array) -> jax.Array:
    """Sums of the first 0, 1, ..., C values and the numbers of positive ones among them, float32 [2, ..., C + 1]."""
    stacked = jnp.stack([values, (values > 0).astype(jnp.float32)])
    return jnp.pad(jnp.cumsum(stacked, axis=-1), [(0, 0)] * values.ndim + [(1, 0)])


def _between(prefix_sums: jax.Array, start: jax.Array, stop: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sum and number of positive values[..., start:stop], float32 [..., C], for indices start and stop int32 [..., C].

    The sum is exactly 0 where the number is: a difference of rounded sums would leave a residue, which Adam scales up
    to a step.
    """
    sums, counts = jnp.take_along_axis(prefix_sums, stop[None], axis=-1) - jnp.take_along_axis(
        prefix_sums, start[None], axis=-1
    )
    return jnp.where(counts > 0, sums, 0.0), counts
