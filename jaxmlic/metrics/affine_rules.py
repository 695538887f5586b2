"""Decisions `a_c p + b_c` that serve the number that is reported, learned from calibrated probabilities alone.

Let p be the probability that an image has label c. In a batch of M images let n_c be the expected number of images that
are given c, h_c the expected number of those that have it, g_c the expected number of all that have it; counts of a
batch are taken as Poisson's, and phi(x) = (1 - exp(-x)) / x. Precision is 0 for a label that is never given, and only
labels that some image of the batch has are counted, so

    sum of precisions = sum_c h_c / n_c (1 - exp(-n_c)) = sum_c h_c phi(n_c)
    sum of recalls    = sum_c h_c / g_c (1 - exp(-g_c)) = sum_c h_c phi(g_c)      labels counted = sum_c 1 - exp(-g_c)

For their harmonic mean F with dF : u dP + v dR, u : v = R^2 : P^2, giving c to one image more is worth

    p (u phi(n_c) + v phi(g_c)) + u h_c phi'(n_c)  =  a_c p + b_c

and no decision, image by image, is better than a best one of this form: what is given depends on the image only through
the rates n and h, and F grows towards the optimum along its gradient.
"""

import dataclasses

import numpy as np

from jaxmlic.metrics.report import top_k

ROUNDS = 60
_DAMPING = 0.5
_PATIENCE, _LEAST_GAIN = 8, 1e-4  # rounds without so much more, and it is over
_STARTS = (0.0, 0.5, 1.0)  # powers of the frequency that the first decisions divide by
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(24)
_SWEEPS = 30


@dataclasses.dataclass(frozen=True, eq=False)
class Rule:
    """A label is given to an image where `scale_c p + offset_c` is among its `k` best; without k, where it is above 0.

    Attributes:
      scale, offset: float64 [C].
      k: labels an image; None for any number.
    """

    scale: np.ndarray
    offset: np.ndarray
    k: int | None

    def values(self, probabilities: np.ndarray) -> np.ndarray:
        """float32 [N, C] of probabilities [N, C]."""
        return (probabilities * self.scale + self.offset).astype(np.float32)

    def choose(self, probabilities: np.ndarray) -> np.ndarray:
        """bool [N, C]; all C labels where k is larger, ties by class index."""
        return best(self.values(probabilities), self.k)


def best(values: np.ndarray, k: int | None) -> np.ndarray:
    """bool [N, C]: the k best of each row of float32 [N, C], ties by column; without k those above 0."""
    if k is None:
        return values > 0
    chosen = np.zeros(values.shape, bool)
    np.put_along_axis(chosen, top_k(values, k), True, axis=1)
    return chosen


@dataclasses.dataclass(frozen=True)
class Expected:
    """What a decision is expected to give on a batch, as fractions: CP, CR, CF1 of these two, and N+."""

    CP: float
    CR: float
    CF1: float
    num_found: float


def expected(n: np.ndarray, h: np.ndarray, g: np.ndarray) -> Expected:
    """Of counts in a batch, float [C] each: given, given and true, true. See the module."""
    counted = max(float(-np.expm1(-g).sum()), 1e-12)
    precision, recall = float((h * _phi(n)).sum()) / counted, float((h * _phi(g)).sum()) / counted
    return Expected(precision, recall, _harmonic(precision, recall), float(-np.expm1(-h).sum()))


def fit_means(probabilities: np.ndarray, k: int | None, images: int, rounds: int = ROUNDS) -> tuple[Rule, Expected]:
    """The rule for the harmonic mean of mean precision and mean recall (CF1), and what is expected of it.

    Args:
      probabilities: float [N, C], calibrated, of images like those to come.
      k: labels an image; None for any number.
      images: of a batch that is scored together, M.
      rounds: of deciding and counting, from each start.
    """
    p = np.asarray(probabilities, np.float32)
    share = images / max(len(p), 1)
    g = p.sum(axis=0, dtype=np.float64) * share
    frequency = np.maximum(p.mean(axis=0, dtype=np.float64), 1e-12)
    found: tuple[float, Rule, Expected] | None = None
    for power in _STARTS:
        # without k, the start is from about half the largest probability up
        offset = np.zeros(p.shape[1]) if k is not None else -0.5 * frequency ** (-power / 2)
        rule = Rule(frequency**-power, offset, k)
        n = h = None
        highest, since = 0.0, 0
        for _ in range(rounds):
            taken, hits = (counts * share for counts in _count(rule, p))
            worth = expected(taken, hits, g)
            if found is None or found[0] < worth.CF1:
                found = worth.CF1, rule, worth
            since = 0 if highest * (1 + _LEAST_GAIN) < worth.CF1 else since + 1
            highest = max(highest, worth.CF1)
            if since == _PATIENCE:
                break
            n, h = (taken, hits) if n is None else (n + _DAMPING * (taken - n), h + _DAMPING * (hits - h))
            rule = _gradient(n, h, g, k)
    assert found is not None
    return found[1], found[2]


def _count(rule: Rule, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Images that are given each label, and the sum of their probabilities, float64 [C]. Ties fall as they may."""
    values = p * rule.scale.astype(np.float32)
    values += rule.offset.astype(np.float32)
    num_labels = p.shape[1]
    if rule.k is None or rule.k >= num_labels:
        given = values > 0 if rule.k is None else np.ones(p.shape, bool)
        return given.sum(axis=0).astype(np.float64), np.where(given, p, 0).sum(axis=0, dtype=np.float64)
    order = np.argpartition(values, num_labels - rule.k, axis=1)[:, num_labels - rule.k :]  # [N, k]
    labels, chances = order.ravel(), np.take_along_axis(p, order, axis=1).ravel()
    return (
        np.bincount(labels, minlength=num_labels).astype(np.float64),
        np.bincount(labels, chances, minlength=num_labels),
    )


def _gradient(n: np.ndarray, h: np.ndarray, g: np.ndarray, k: int | None) -> Rule:
    precision, recall = (h * _phi(n)).sum(), (h * _phi(g)).sum()
    u, v = _weights(precision, recall)
    return Rule(u * _phi(n) + v * _phi(g), u * h * _phi_slope(n), k)


def fit_overall(probabilities: np.ndarray) -> tuple[Rule, float]:
    """The rule for OF1, and OF1 as expected: exactly the best threshold of 2 hits / (given + true)."""
    p = np.sort(np.asarray(probabilities, np.float64), axis=None)[::-1]
    f1 = 2 * np.cumsum(p) / np.maximum(np.arange(1, p.size + 1) + p.sum(), 1e-12)
    value = float(f1.max(initial=0.0))
    num_labels = probabilities.shape[1]
    return Rule(np.ones(num_labels), np.full(num_labels, -0.5 * value), None), value


def utility_rule(num_labels: int, cost: float) -> Rule:
    """The rule for the expected number of right labels less `cost` times that of wrong ones."""
    return Rule(np.full(num_labels, 1 + cost), np.full(num_labels, -float(cost)), None)


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """Exact expectations over independent labels of a batch whose scores are all known.

    Attributes:
      p: float64 [N, C].
      recall: float64 [N, C], what giving a label adds to the sum of recalls: p E[1 / (1 + others that have it)].
      counted: labels that some image is expected to have.
    """

    p: np.ndarray
    recall: np.ndarray
    counted: float

    def f1(self, given: np.ndarray) -> float:
        """Harmonic mean of the expected means, of decisions bool [N, C]."""
        precision, recall = self.sums(given)
        return _harmonic(precision, recall) / max(self.counted, 1e-12)

    def sums(self, given: np.ndarray) -> tuple[float, float]:
        """Expected sums of precisions and of recalls."""
        n, h = given.sum(axis=0), np.where(given, self.p, 0).sum(axis=0)
        return float((h / np.maximum(n, 1)).sum()), float(self.recall[given].sum())


def batch(probabilities: np.ndarray) -> Batch:
    """Of calibrated probabilities float [N, C]; E[1 / (1 + G)] is the integral of the product of 1 - p + p t."""
    p = np.asarray(probabilities, np.float64)
    recall = np.zeros_like(p)
    for node, weight in zip(0.5 * (1 + _NODES), 0.5 * _WEIGHTS, strict=True):
        own = np.log1p(-p * (1 - node))  # finite: no node is 0
        recall += weight * np.exp(own.sum(axis=0) - own)
    with np.errstate(divide="ignore"):
        none = np.exp(np.log1p(-np.minimum(p, 1.0)).sum(axis=0))
    return Batch(p, p * recall, float((1 - none).sum()))


def decide_batch(probabilities: np.ndarray, k: int | None, rounds: int = ROUNDS) -> np.ndarray:
    """Decisions bool [N, C] for CF1 that know the whole batch (transductive): how often a label is given is no chance.

    From the rule that is learned on the batch itself, images are decided anew one by one, each as is best with the
    others as they are, until none changes.
    """
    found = batch(probabilities)
    start, _ = fit_means(probabilities, k, len(probabilities), rounds)
    frequency = np.maximum(found.p.mean(axis=0), 1e-12)
    starts = [start.choose(found.p)]
    starts += [Rule(frequency**-power, np.zeros(len(frequency)), k or 1).choose(found.p) for power in _STARTS]
    improved = [_improve(found, given, k) for given in starts]
    return max(improved, key=found.f1)


def _improve(found: Batch, given: np.ndarray, k: int | None) -> np.ndarray:
    given = given.copy()
    p, recall = found.p, found.recall
    for _ in range(_SWEEPS):
        changed = False
        n, h = given.sum(axis=0), np.where(given, p, 0).sum(axis=0)  # anew in each sweep, without rounding
        precision, total = found.sums(given)
        for i in range(len(p)):
            own = given[i]
            n_rest, h_rest = n - own, h - np.where(own, p[i], 0)
            rest = h_rest / np.maximum(n_rest, 1)
            gain = (h_rest + p[i]) / (n_rest + 1) - rest  # of the sum of precisions
            u, v = _weights(precision, total)
            new = best((u * gain + v * recall[i]).astype(np.float32)[None], k)[0]
            if (new == own).all():
                continue
            after = (
                precision + gain[new].sum() - gain[own].sum(),
                total + recall[i][new].sum() - recall[i][own].sum(),
            )
            if _harmonic(*after) > _harmonic(precision, total) * (1 + 1e-9):
                n, h = n_rest + new, h_rest + np.where(new, p[i], 0)
                precision, total = after
                given[i], changed = new, True
        if not changed:
            break
    return given


def _weights(precision: float, recall: float) -> tuple[float, float]:
    """(u, v) with u + v = 1, in the ratio of the harmonic mean's derivatives."""
    total = precision**2 + recall**2
    return (recall**2 / total, precision**2 / total) if total > 0 else (0.5, 0.5)


def _harmonic(a: float, b: float) -> float:
    return 2 * a * b / (a + b) if a + b > 0 else 0.0


def _phi(x: np.ndarray) -> np.ndarray:
    """(1 - exp(-x)) / x, 1 at 0."""
    safe = np.maximum(x, 1e-8)
    return -np.expm1(-safe) / safe


def _phi_slope(x: np.ndarray) -> np.ndarray:
    """The derivative, -1/2 at 0."""
    safe = np.maximum(x, 1e-4)
    return (np.exp(-safe) - _phi(safe)) / safe
