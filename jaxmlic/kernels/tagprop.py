"""TagProp: labels as a weighted mean of those of the nearest training images, its weights learned by likelihood.

Guillaumin, Mensink, Verbeek and Schmid, TagProp: Discriminative Metric Learning in Nearest Neighbor Models for Image
Auto-Annotation, ICCV 2009. Image i has the label w with probability p_iw, from the share x_iw = sum_j pi_ij y_jw:

    plain:            p = eps + (1 - 2 eps) x             (eqs 1 and 2)
    with sigmoids:    p = sigmoid(alpha_w x + beta_w)     (eq 9), which lets rare labels be predicted

The weights pi over the K neighbours are free for each rank (RK), pi_ij = gamma_rank, or exp(-d_theta(i, j)) normalised,
d_theta a combination of distances with coefficients of at least 0 (SD for one distance, ML for several). The
log-likelihood of all labels is maximised, positives weighted by 1 / n+ and negatives by 1 / n- (eq 4): plain RK by EM,
the others by projected gradients, in turn with the sigmoids where there are any. A training image is never among its
own neighbours. Unknown labels (-1) of neighbours count as absent, those of the image itself do not count.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

EPS = 1e-5
FORMS = ("rank", "distance")
_HALVINGS = 10  # of a step that does not raise the likelihood
_GAIN = 1e-6  # relative, of the likelihood
_PRIOR = 1e-4  # of the squares of a sigmoid's coefficients, in units of its label's weight


class TagProp(NamedTuple):
    """What is learned.

    Attributes:
      theta: float32 [K] gamma of the ranks, at least 0, sum 1; or [M] coefficients of the distances, at least 0.
      slope, offset: float32 [C], alpha and beta of the sigmoids; empty [0] for the plain form.
    """

    theta: jax.Array
    slope: jax.Array
    offset: jax.Array


def weights_of(theta: jax.Array, distances: jax.Array, form: str) -> jax.Array:
    """pi float32 [N, K], rows of sum 1. distances: float32 [N, K, M] to the neighbours, the nearest first."""
    if form == "rank":
        return jnp.broadcast_to(theta[None], distances.shape[:2])
    return jax.nn.softmax(-jnp.einsum("nkm,m->nk", distances, theta), axis=1)


@jax.custom_vjp
def shares(weights: jax.Array, neighbours: jax.Array, positive: jax.Array) -> jax.Array:
    """x float32 [N, C]: sums of weights [N, K] of the neighbours int32 [N, K] whose row of positive [P, C] is True."""

    positive = jnp.asarray(positive)

    def add(total: jax.Array, column: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        weight, rows = column
        return total + weight[:, None] * positive[rows], None

    start = jnp.zeros((len(weights), positive.shape[1]), jnp.float32)
    return jax.lax.scan(add, start, (weights.T, neighbours.T))[0]


def _shares_forward(weights: jax.Array, neighbours: jax.Array, positive: jax.Array) -> tuple[jax.Array, tuple]:
    return shares(weights, neighbours, positive), (jnp.asarray(neighbours), jnp.asarray(positive))


def _shares_backward(kept: tuple, gradient: jax.Array) -> tuple[jax.Array, None, None]:
    neighbours, positive = kept
    return jax.lax.map(lambda rows: jnp.sum(gradient * positive[rows], axis=1), neighbours.T).T, None, None


shares.defvjp(_shares_forward, _shares_backward)


def logits(found: TagProp, x: jax.Array) -> jax.Array:
    """log p / (1 - p) float32 [N, C] of the shares [N, C]."""
    if len(found.slope):
        return found.slope[None] * x + found.offset[None]
    p = EPS + (1 - 2 * EPS) * x
    return jnp.log(p) - jnp.log1p(-p)


def importance(labels: np.ndarray) -> np.ndarray:
    """c float32 [N, C] of eq 4 of labels int8 [N, C]: 1 / n+, 1 / n-, and 0 for unknown ones."""
    positive, negative = labels == 1, labels == 0
    share = positive / max(positive.sum(), 1) + negative / max(negative.sum(), 1)
    return share.astype(np.float32)


def log_likelihood(found: TagProp, x: jax.Array, positive: jax.Array, weight: jax.Array) -> jax.Array:
    """float32 []: sum of c log p(y) (eq 3) for shares x, labels bool and c, all [N, C]."""
    scores = logits(found, x)
    return jnp.sum(weight * jax.nn.log_sigmoid(jnp.where(positive, scores, -scores)))


def fit(
    distances: jax.Array,
    neighbours: jax.Array,
    labels: np.ndarray,
    form: str,
    *,
    sigmoids: bool = True,
    rounds: int = 5,
    steps: int = 20,
    report: Callable[[], None] = lambda: None,
) -> tuple[TagProp, list[float]]:
    """TagProp of training images, and what is maximised after each round: it never falls, but for rounding.

    That is the log-likelihood, less a small multiple of the squares of the sigmoids' coefficients, so that those of a
    label without positives, or of one that is separated, stay finite.

    Args:
      distances: float32 [N, K, M] of each image to its neighbours, the nearest first.
      neighbours: int32 [N, K], other training images.
      labels: int8 [N, C] in {1, 0, -1}.
      form: "rank" or "distance".
      sigmoids: whether each label has one.
      rounds: of at most `steps` steps of EM or gradient, each with a fit of the sigmoids before it.
      report: called after each round.
    """
    positive, weight = jnp.asarray(labels == 1), importance(labels)
    count, num_distances = distances.shape[1:]
    theta = np.full(count, 1 / count, np.float32) if form == "rank" else np.ones(num_distances, np.float32)
    none = jnp.zeros(0, jnp.float32)
    found, curve = TagProp(jnp.asarray(theta), none, none), []
    if sigmoids:
        start = np.zeros(labels.shape[1], np.float32)
        found = found._replace(slope=jnp.asarray(start), offset=jnp.asarray(start))
    for _ in range(rounds):
        if sigmoids:
            x = shares(weights_of(found.theta, distances, form), neighbours, positive)
            found = found._replace(**_fit_sigmoids(found, x, positive, weight))
        if form == "rank" and not sigmoids:
            found = found._replace(theta=_em(found.theta, neighbours, positive, weight, steps))
        else:
            found = found._replace(theta=_ascend(found, distances, neighbours, positive, weight, form, steps))
        x = shares(weights_of(found.theta, distances, form), neighbours, positive)
        squares = found.slope**2 + found.offset**2 if sigmoids else np.zeros(labels.shape[1])
        penalty = _PRIOR / 2 * float(jnp.sum(weight.sum(axis=0) * squares))
        curve.append(float(log_likelihood(found, x, positive, weight)) - penalty)
        report()
    return found, curve


@jax.jit
def _em(
    gamma: jax.Array, neighbours: jax.Array, positive: jax.Array, weight: jax.Array, steps: jax.typing.ArrayLike
) -> jax.Array:
    """EM steps of plain RK: gamma_k grows with the mean responsibility of the k-th neighbour for the labels."""

    def step(_: int, gamma: jax.Array) -> jax.Array:
        own = jnp.broadcast_to(gamma[None], neighbours.shape)
        p = EPS + (1 - 2 * EPS) * shares(own, neighbours, positive)
        p = jnp.where(positive, p, 1 - p)

        def responsibility(column: tuple[jax.Array, jax.Array]) -> jax.Array:
            share, rows = column
            agrees = jnp.where(positive[rows] == positive, 1 - EPS, EPS)
            return jnp.sum(weight * share * agrees / p)

        new = jax.lax.map(responsibility, (gamma, neighbours.T))
        return new / jnp.sum(new)

    return jax.lax.fori_loop(0, steps, step, gamma)


@functools.partial(jax.jit, static_argnames="form")
def _ascend(
    found: TagProp,
    distances: jax.Array,
    neighbours: jax.Array,
    positive: jax.Array,
    weight: jax.Array,
    form: str,
    steps: jax.typing.ArrayLike,
) -> jax.Array:
    """Theta after projected gradient steps with halving; each raises the likelihood, the last one hardly."""

    def value(theta: jax.Array) -> jax.Array:
        x = shares(weights_of(theta, distances, form), neighbours, positive)
        return log_likelihood(found._replace(theta=theta), x, positive, weight)

    project = _to_simplex if form == "rank" else lambda theta: jnp.maximum(theta, 0.0)

    def step(carry: tuple) -> tuple:
        theta, best, size, _, number = carry
        gradient = jax.grad(value)(theta)

        def moved(size: jax.Array) -> tuple[jax.Array, jax.Array]:
            new = project(theta + size * gradient)
            return new, value(new)

        def halve(carry: tuple) -> tuple:
            _, _, size, number = carry
            new, reached = moved(size / 2)
            return new, reached, size / 2, number + 1

        new, reached = moved(size)
        new, reached, size, _ = jax.lax.while_loop(
            lambda c: (c[1] <= best) & (c[3] < _HALVINGS), halve, (new, reached, size, jnp.int32(0))
        )
        better = reached > best
        gain = jnp.where(better, reached - best, 0.0)
        return jnp.where(better, new, theta), jnp.where(better, reached, best), 2 * size, gain, number + 1

    def goes_on(carry: tuple) -> jax.Array:
        _, best, _, gain, number = carry
        return (number < steps) & (gain > _GAIN * jnp.abs(best))

    gradient = jax.grad(value)(found.theta)
    size = jnp.max(jnp.abs(found.theta)) / jnp.maximum(jnp.max(jnp.abs(gradient)), 1e-12)
    start = (found.theta, value(found.theta), size, jnp.float32(jnp.inf), jnp.int32(0))
    return jax.lax.while_loop(goes_on, step, start)[0]


def _to_simplex(values: jax.Array) -> jax.Array:
    """The nearest point [K] that is at least 0 with sum 1."""
    ordered = jnp.sort(values)[::-1]
    excess = (jnp.cumsum(ordered) - 1) / jnp.arange(1, len(values) + 1)
    last = jnp.sum(ordered > excess) - 1
    return jnp.maximum(values - excess[last], 0.0)


@jax.jit
def _fit_sigmoids(found: TagProp, x: jax.Array, positive: jax.Array, weight: jax.Array) -> dict[str, jax.Array]:
    """Slope and offset [C] of each label's logistic regression on its shares, by Newton steps with halving."""
    scale = weight / jnp.sum(weight, axis=0, keepdims=True).clip(1e-30)  # of each label, sum 1

    def value(slope: jax.Array, offset: jax.Array) -> jax.Array:
        scores = slope[None] * x + offset[None]
        fits = jnp.sum(scale * jax.nn.log_sigmoid(jnp.where(positive, scores, -scores)), axis=0)
        return fits - _PRIOR / 2 * (slope**2 + offset**2)

    def step(_: int, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        slope, offset = carry
        p = jax.nn.sigmoid(slope[None] * x + offset[None])
        error, curve = scale * (positive - p), scale * p * (1 - p)
        first = jnp.sum(error * x, axis=0) - _PRIOR * slope
        second = jnp.sum(error, axis=0) - _PRIOR * offset
        a = jnp.sum(curve * x * x, axis=0) + _PRIOR
        b, c = jnp.sum(curve * x, axis=0), jnp.sum(curve, axis=0) + _PRIOR
        determinant = a * c - b * b
        move = (c * first - b * second) / determinant, (a * second - b * first) / determinant
        sizes = 0.5 ** jnp.arange(8)
        values = jnp.stack([value(slope + s * move[0], offset + s * move[1]) for s in sizes])  # [8, C]
        size = jnp.where(values.max(axis=0) > value(slope, offset), sizes[values.argmax(axis=0)], 0.0)
        return slope + size * move[0], offset + size * move[1]

    slope, offset = jax.lax.fori_loop(0, 25, step, (found.slope, found.offset))
    return {"slope": slope, "offset": offset}
