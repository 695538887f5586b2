"""Losses over pairs of a positive and a negative label, in O(B C) memory. The contract is that of `pointwise`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlic.errors import UserError, did_you_mean
from jaxmlic.losses.pointwise import LOG_ZERO, prepare, require

RANKS = ("exact", "sampled")
# Positives of an example up to which ranking losses go through them one by one. A round costs a few passes over [B, C];
# sorting and bisecting cost on a CPU what 50 to 100 rounds do.
LOOPED = 32


def warp(
    logits: jax.Array,
    labels: jax.Array,
    weights: jax.Array | None = None,
    key: jax.Array | None = None,
    *,
    rank: str = "exact",
) -> jax.Array:
    r"""Weighted approximate ranking (Weston et al. 2011; Gong et al. 2014).

    .. math:: \sum_{j} \sum_{k} F(r_j) \max(0, 1 - z_j + z_k), \qquad F(r) = \sum_{i \le r} \tfrac{1}{i}

    j runs over positives and k over negatives; F(r) is a constant for the gradient.

    Args:
      logits, labels: as for binary_cross_entropy.
      weights: float, broadcast to [..., C]; a pair has sqrt(w_j w_k), ranks count labels of any weight above 0.
      key: PRNG key for rank="sampled", folded with the place of each example; not used otherwise.
      rank: "exact", r_j = number of negatives with z_k > z_j - 1; or "sampled", r_j = floor((m - 1) / n) with m known
        labels and n negatives drawn, with replacement, until one is such.

    Returns:
      float32 [...]: the sum over pairs; 0 without positives or without negatives. Memory grows as C, not C^2.
    """
    return _sum_over_pairs(*prepare(logits, labels, weights), None, 0.0, rank, key)


def lsep(logits: jax.Array, labels: jax.Array, weights: jax.Array | None = None) -> jax.Array:
    r"""Log-sum-exp pairwise loss (Li et al. 2017, Eq. 4).

    .. math:: \log\Big(1 + \sum_{j} \sum_{k} e^{z_k - z_j}\Big)

    j runs over positives and k over negatives. The double sum is the product of two sums, so no pair is ever formed.

    Args:
      logits, labels: as for binary_cross_entropy.
      weights: float, broadcast to [..., C]; a pair has sqrt(w_j w_k), within the logarithm.

    Returns:
      float32 [...]: one logarithm over all pairs; 0 without positives or without negatives.
    """
    logits, positive, negative, weights = prepare(logits, labels, weights)
    log_root = 0.5 * jnp.log(weights)
    positives = jax.nn.logsumexp(jnp.where(positive, log_root - logits, LOG_ZERO), axis=-1)
    negatives = jax.nn.logsumexp(jnp.where(negative, log_root + logits, LOG_ZERO), axis=-1)
    return jax.nn.softplus(positives + negatives)


def ramp(t: jax.Array, s: float | None = -0.75, leak: float = 0.0) -> jax.Array:
    r"""The ramp of 3.4 of CNN-LSTM-RMLC, a hinge that ends at s, with a share of the hinge.

    .. math:: (1 - leak)\, R_s(t) + leak\, H_1(t), \qquad H_a(t) = \max(0, a - t),
       \qquad R_s(t) = H_1(t) - H_s(t) = \min\big(1 - s, \max(0, 1 - t)\big)

    R_s is 1 - s for t <= s, falling to 0 at t = 1: a wrong label costs no more than 1 - s, however wrong it looks.
    The text asks -1 < s <= 0 and then uses "0.75", read as -0.75. The code of the paper's reference [31] has
    H_1 - 0.9 H_s, which is leak = 0.1: a tenth of the slope remains beyond the ramp's end.

    Args:
      t: float, any shape: the margin.
      s: where the ramp ends, a number in (-1, 0]; None for no end, the hinge H_1 that it is compared with.
      leak: share of the hinge, in [0, 1]: 0 as printed, 0.1 as released, 1 for the hinge. It needs an end.

    Returns:
      float, shape and dtype of t. Raises UserError for another s or leak.

    >>> ramp(jnp.array([-2.0, 0.0, 0.5, 1.0])).tolist()  # no more than 1.75, however wrong
    [1.75, 1.0, 0.5, 0.0]
    """
    check_end(s, leak)
    hinge = jnp.maximum(1.0 - t, 0.0)
    if s is None:
        return hinge
    end = jnp.clip(1.0 - t, 0.0, 1.0 - s)
    return end if leak == 0 else (1.0 - leak) * end + leak * hinge


def check_end(s: float | None, leak: float) -> None:
    """UserError for an s or a leak that the ramp cannot have."""
    require("s", s, s is None or (s > -1) & (s <= 0), "in (-1, 0]")
    require("leak", leak, 0 <= leak <= 1, "in [0, 1]")
    require("leak", leak, s is not None or leak == 0, "0, and s = None has no end to leak beyond")


def rmlc(
    logits: jax.Array,
    labels: jax.Array,
    weights: jax.Array | None = None,
    key: jax.Array | None = None,
    *,
    s: float | None = -0.75,
    leak: float = 0.0,
    k: float = 5.0,
    rank: str = "exact",
) -> jax.Array:
    r"""Robust multi-label loss, Eq. 1 of CNN-LSTM-RMLC without its regulariser (the optimizer's weight decay).

    .. math:: \sum_{j} \sum_{k} F(r_j)\, R_s(z_j - z_k) + k \sum_{c} R_s(y_c z_c)

    read with j over positives, k over negatives, c over all known labels, y in {-1, +1}, and F(r) = sum_{i <= r} 1 / i
    (F(0) = 0) a constant for the gradient. "n, the number of
    images" in r_j = floor((m - 1) / n) is read as WARP's number of draws, rank="sampled"; what it estimates, the number
    of negatives with z_k > z_j - 1, is the default.

    Args:
      logits, labels: as for binary_cross_entropy.
      weights: float, broadcast to [..., C]; a pair has sqrt(w_j w_k), ranks count labels of any weight above 0.
      key: PRNG key for rank="sampled", folded with the place of each example; not used otherwise.
      s: where the ramp ends, a number in (-1, 0]; None for the hinge, in pairs and margins, to see what the end does.
      leak: share of the hinge in both terms, see `ramp`: 0 as printed, 0.1 as released by the reference [31].
      k: weight of the second term, 0 or more.
      rank: "exact" or "sampled", as for warp.

    Returns:
      float32 [...]: the sum over pairs and classes. Memory grows as C, not C^2.
    """
    require("k", k, k >= 0, "0 or more")
    prepared = logits, positive, negative, weights = prepare(logits, labels, weights)
    margins = weights * ramp(jnp.where(positive, logits, -logits), s, leak)
    return _sum_over_pairs(*prepared, s, leak, rank, key) + k * jnp.sum(
        jnp.where(positive | negative, margins, 0.0), axis=-1
    )


def _sum_over_pairs(
    logits: jax.Array,
    positive: jax.Array,
    negative: jax.Array,
    weights: jax.Array,
    s: float | None,
    leak: float,
    rank: str,
    key: jax.Array | None,
) -> jax.Array:
    """sum_j sum_k F(r_j) h(z_j - z_k) over positives j and negatives k, without forming pairs.

    h is `ramp`, or for s = None the hinge H_1. Both are linear between their kinks, so that the sum is
    `constant + sum_c slope_c z_c`, and differentiating this form gives the exact gradient. A pair has the slope 1 where
    z_j - 1 < z_k <= z_j - s, and the slope `leak` where z_k is above. The slopes are found positive after positive
    where no example of the batch has more than LOOPED of them, else by sorting: two ways to the same numbers but for
    rounding.

    Args: the four arrays [..., C] of `prepare`, and the options of `rmlc`.
    Returns float32 [...].
    """
    fixed = jax.lax.stop_gradient(logits)  # [..., C]
    most = jnp.max(jnp.sum(positive, axis=-1), initial=0)
    arrays = fixed, positive, negative, jnp.sqrt(weights)
    if rank == "exact":
        loop, sort = (lambda *x: _by_looping(*x, s, leak, most)), (lambda *x: _by_sorting(*x, s, leak, rank, key))
        constant, slope = jax.lax.cond(most <= LOOPED, loop, sort, *arrays)
    else:
        constant, slope = _by_sorting(*arrays, s, leak, rank, key)
    # The slopes of an example sum to 0, so any centre will do: near the logits, little is lost to rounding.
    return constant + jnp.sum(slope * (logits - jnp.mean(fixed, axis=-1, keepdims=True)), axis=-1)


def _by_looping(
    logits: jax.Array,
    positive: jax.Array,
    negative: jax.Array,
    root: jax.Array,
    s: float | None,
    leak: float,
    most: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Constant [...] and slope [..., C] of `_sum_over_pairs`; root [..., C] = sqrt(weights), `most` positives int32 [].

    Time grows as the number of positives times C, with a small factor: no sorting, no gathering.
    """
    harmonic = _harmonic(logits.shape[-1])
    index = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)  # [..., C]

    def pick(mask: jax.Array, values: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(mask, values, 0.0), axis=-1, keepdims=True)

    def add(_: jax.Array, found: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        constant, slope, previous = found
        left = jnp.where(positive & (index > previous), index, logits.shape[-1])
        place = jnp.min(left, axis=-1, keepdims=True)  # [..., 1], the next positive, or C
        mask = index == place  # [..., C], one label or none
        own = pick(mask, logits)  # [..., 1], z_j
        above = negative & (logits > own - 1.0)
        on = above if s is None else above & (logits <= own - s)
        factor = pick(mask, root) * harmonic[jnp.sum(above, axis=-1, keepdims=True)]  # 0 where no positive is left
        sloping = cost = pick(on, root)
        slopes = jnp.where(on, root, 0.0)
        if s is not None:
            beyond = pick(above & ~on, root)
            cost = cost + _constant_beyond(s, leak) * beyond
            if leak:
                sloping = sloping + leak * beyond
                slopes = jnp.where(above & ~on, leak * root, slopes)
        slope += factor * slopes - jnp.where(mask, factor * sloping, 0.0)
        return constant + (factor * cost)[..., 0], slope, place

    start = jnp.zeros_like(logits[..., 0]), jnp.zeros_like(logits), jnp.full_like(index[..., :1], -1)
    return jax.lax.fori_loop(0, most, add, start)[:2]


def _by_sorting(
    logits: jax.Array,
    positive: jax.Array,
    negative: jax.Array,
    root: jax.Array,
    s: float | None,
    leak: float,
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
    positive_sums = _prefix_sums(positives)
    on_slope, _ = _between(negative_sums, first, last)
    pulled, _ = _between(positive_sums, zero if s is None else to_positive[1], to_positive[0])
    constant, slope = positives * on_slope, negatives * pulled - positives * on_slope
    if s is not None:
        beyond, _ = _between(negative_sums, last, end)
        constant += positives * _constant_beyond(s, leak) * beyond
        if leak:
            leaking, _ = _between(positive_sums, zero, to_positive[1])
            slope += leak * (negatives * leaking - positives * beyond)
    return jnp.sum(constant, axis=-1), jnp.put_along_axis(jnp.zeros_like(slope), order, slope, axis=-1, inplace=False)


def _constant_beyond(s: float, leak: float) -> float:
    """What a pair beyond the ramp's end costs beside its slope: (1 - leak) (1 - s) + leak (1 - t) = this - leak t."""
    return 1.0 - s if leak == 0 else 1.0 - (1.0 - leak) * s


def _rank_weight(
    violators: jax.Array, positive: jax.Array, negative: jax.Array, rank: str, key: jax.Array | None
) -> jax.Array:
    """F(r_j) float32 [..., C] from the number of violators of each label as if it were positive, float32 [..., C]."""
    if rank not in RANKS:
        raise UserError(f"loss option rank = {rank!r} is unknown{did_you_mean(rank, RANKS)}; ranks: {', '.join(RANKS)}")
    if rank == "sampled":
        if key is None:
            raise UserError("loss option rank = 'sampled' draws at random and needs a key")
        known = jnp.sum(positive | negative, axis=-1, keepdims=True)
        share = violators / jnp.maximum(jnp.sum(negative, axis=-1, keepdims=True), 1)
        # The number of draws until the first violator is geometric: one random number instead of a loop.
        draws = _geometric_by_example(key, jnp.where(violators > 0, share, 1.0))
        violators = jnp.where(violators > 0, (known - 1) // draws, 0)
    return _harmonic(positive.shape[-1])[violators.astype(jnp.int32)]


def _geometric_by_example(key: jax.Array, probability: jax.Array) -> jax.Array:
    """Draws int32 [..., C] that depend on the key and on an example's place, not on how many examples follow it."""
    rows = probability.reshape(-1, probability.shape[-1])
    keys = jax.vmap(lambda place: jax.random.fold_in(key, place))(jnp.arange(len(rows)))
    draws = jax.vmap(lambda key, row: jax.random.geometric(key, row, dtype=jnp.int32))(keys, rows)
    return draws.reshape(probability.shape)


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
