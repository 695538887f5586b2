"""How far a number depends on which images were in the split: intervals, paired tests, Holm's correction.

The unit that is drawn is the image, with all its labels. Two models are compared on the same draws.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from jaxmlic.metrics.report import Decisions
from jaxmlic.metrics.weighted import WeightedReport

_BLOCK = 1 << 23  # weights in memory at once
Advance = Callable[[int], None]


def resample_counts(num_images: int, draws: int, seed: int = 0) -> Iterator[np.ndarray]:
    """How often each image is in each bootstrap resample: blocks float32 [N, d], `draws` columns in all."""
    rng = np.random.default_rng(seed)
    for count in _blocks(num_images, draws):
        counts = [np.bincount(rng.integers(0, num_images, num_images), minlength=num_images) for _ in range(count)]
        yield np.ascontiguousarray(np.array(counts, np.float32).T)


def bootstrap(
    reports: Sequence[WeightedReport], num_images: int, draws: int, seed: int = 0, advance: Advance = lambda n: None
) -> list[list[dict[str, np.ndarray]]]:
    """For each report and each of its protocols {name: float64 [draws]}, all on the same resamples.

    advance: gets the number of draws that one more report has done.
    """
    parts: list[list[list[dict[str, np.ndarray]]]] = [[] for _ in reports]
    with ThreadPoolExecutor(os.cpu_count()) as threads:  # sparse products leave Python free
        for weights in resample_counts(num_images, draws, seed):
            found = threads.map(lambda report, weights=weights: report.numbers(weights), reports)
            for own, numbers in zip(parts, found, strict=True):
                own.append(numbers)
                advance(weights.shape[1])
    return [_join(own) for own in parts]


def permute_pairs(
    a: Sequence[Decisions], b: Sequence[Decisions], draws: int, seed: int = 0, advance: Advance = lambda n: None
) -> list[dict[str, np.ndarray]]:
    """Differences a - b after a coin has decided for each image whether the two models change places.

    A class's scores of each model are replaced by their ranks, which changes none of the numbers and puts two models
    of different scales into one ranking.

    Args:
      a: what each protocol decides of the one model's N images.
      b: the same of the other's, in the same order.
      draws: coins for each image; where 2 ** N is no more than that, all arrangements are taken once instead.
      seed: of the coins.
      advance: gets the number of draws done.

    Returns:
      For each protocol {name: float64 [draws]}.
    """
    both = WeightedReport([_stack(one, other) for one, other in zip(a, b, strict=True)])
    num_images = len(a[0].scores)
    parts = []
    for stay in _coins(num_images, draws, seed):
        first = both.numbers(np.concatenate([stay, 1 - stay]))
        second = both.numbers(np.concatenate([1 - stay, stay]))
        parts.append([{name: x[name] - y[name] for name in x} for x, y in zip(first, second, strict=True)])
        advance(stay.shape[1])
    return _join(parts)


def is_exact(num_images: int, draws: int) -> bool:
    """Whether `permute_pairs` takes all arrangements."""
    return num_images < 63 and 2**num_images <= draws


def interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The percentile interval of draws, without those where the number is undefined; NaN if it is in all."""
    values = values[~np.isnan(values)]
    if not values.size:
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap_p(differences: np.ndarray) -> float:
    """Two-sided p value of "no difference" from differences of the same resamples: twice the smaller tail beyond 0."""
    differences = differences[~np.isnan(differences)]
    if not differences.size:
        return float("nan")
    tail = min(np.count_nonzero(differences <= 0), np.count_nonzero(differences >= 0))
    return min(1.0, 2 * (tail + 1) / (differences.size + 1))


def permutation_p(observed: float, null: np.ndarray, exact: bool = False) -> float:
    """Two-sided p value: twice the smaller share of arrangements that are as extreme as what was observed.

    exact: `null` holds every arrangement, the observed one among them.
    """
    null = null[~np.isnan(null)]
    if not null.size or np.isnan(observed):
        return float("nan")
    slack = abs(observed) * 1e-12  # sums in another order
    extra = 0 if exact else 1
    tails = (np.count_nonzero(null <= observed + slack), np.count_nonzero(null >= observed - slack))
    return min(1.0, 2 * (min(tails) + extra) / (null.size + extra))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment, which keeps the chance of any false claim among m; NaN are no tests."""
    p = np.asarray(p_values, np.float64)
    adjusted = np.full(p.shape, np.nan)
    tests = np.flatnonzero(~np.isnan(p))
    order = tests[np.argsort(p[tests], kind="stable")]
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted.tolist()


def _blocks(num_images: int, draws: int) -> Iterator[int]:
    size = int(np.clip(_BLOCK // max(num_images, 1), 1, 256))
    for start in range(0, draws, size):
        yield min(size, draws - start)


def _coins(num_images: int, draws: int, seed: int) -> Iterator[np.ndarray]:
    """Blocks float32 [N, d] of ones for images that stay."""
    if is_exact(num_images, draws):
        numbers = np.arange(2**num_images)
        yield ((numbers >> np.arange(num_images)[:, None]) & 1).astype(np.float32)
        return
    rng = np.random.default_rng(seed)
    for count in _blocks(2 * num_images, draws):
        yield rng.integers(0, 2, (num_images, count), np.int8).astype(np.float32)


def _stack(a: Decisions, b: Decisions) -> Decisions:
    """Both models' images one after the other, their scores replaced by ranks within class and model."""

    def rows(name: str) -> np.ndarray:
        return np.concatenate([getattr(a, name), getattr(b, name)])

    return dataclasses.replace(
        a,
        scores=np.concatenate([_ranks(a), _ranks(b)]),
        known=None if a.known is None else rows("known"),
        **{
            name: rows(name)
            for name in ("positive", "predicted", "precision", "recall", "entering", "ap_at_10", "top1", "counted")
        },
    )


def _ranks(found: Decisions) -> np.ndarray:
    """float32 [N, C]: how many known images of the class have a lower score, plus half of those with the same."""
    ranks = np.zeros(found.scores.shape, np.float32)
    for c in range(ranks.shape[1]):
        column = found.scores[:, c]
        ranked = np.sort(column if found.known is None else column[found.known[:, c]])
        ranks[:, c] = (np.searchsorted(ranked, column) + np.searchsorted(ranked, column, side="right")) / 2
    return ranks


def _join(parts: list[list[dict[str, np.ndarray]]]) -> list[dict[str, np.ndarray]]:
    """Blocks of draws, each a list over protocols, one after the other."""
    return [
        {name: np.concatenate([own[name] for own in blocks]) for name in blocks[0]}
        for blocks in zip(*parts, strict=True)
    ]
