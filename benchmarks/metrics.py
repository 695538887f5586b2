"""Our whole report against scikit-learn's average precision alone, side by side.

    python benchmarks/metrics.py [--repeats=7] [--labels=labels-val.npz]

In one process, interleaved, medians over the repeats, at three sizes: COCO 2014 val and train without empty images, and
a wide one. Labels are seeded synthetic ones with about 3 positives per image unless `--labels` names an `.npz` with an
array `labels` [N, C] (a prepared data set has one per split); scores are seeded noise plus a push for the positives.
"""

import argparse
import os
import platform
import statistics
import time

import numpy as np
import sklearn
from sklearn.metrics import average_precision_score

from jaxmlic import metrics

SIZES = ((40_137, 80), (82_081, 80), (5_000, 1_000))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--labels", help=".npz with an array `labels` [N, C] in {1, 0}, instead of synthetic ones")
    args = parser.parse_args(argv)
    rng = np.random.default_rng(0)
    if args.labels:
        matrices = [np.maximum(np.load(args.labels)["labels"], 0)]
    else:
        matrices = [_synthetic_labels(rng, *size) for size in SIZES]
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}"
    print(f"{machine}, numpy {np.__version__}, scikit-learn {sklearn.__version__}")
    print(f"seconds, median of {args.repeats} interleaved runs; report = jaxmlic.metrics.evaluate, all of it")
    columns = ("N x C", "report", "sklearn AP", "argsort AP", "sklearn/report", "argsort/report", "max |AP diff|")
    print("  ".join(f"{c:>14}" for c in columns))
    for labels in matrices:
        scores = (rng.normal(size=labels.shape) + 1.5 * labels).astype(np.float32)
        ours, sk, plain, difference = _compare(scores, labels, args.repeats)
        row = (f"{labels.shape[0]:,} x {labels.shape[1]}", f"{ours:.3f}", f"{sk:.3f}", f"{plain:.3f}")
        row += (f"{sk / ours:.1f}", f"{plain / ours:.1f}", f"{difference:.1e}")
        print("  ".join(f"{c:>14}" for c in row))


def argsort_average_precision(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The usual numpy AP, one argsort and one cumulative sum per class; ties in arbitrary order. float64 [C]."""
    ranks = np.arange(1, len(scores) + 1)
    ap = np.full(scores.shape[1], np.nan)
    for c in range(scores.shape[1]):
        hit = labels[np.argsort(-scores[:, c]), c] == 1
        if hit.any():
            ap[c] = (np.cumsum(hit)[hit] / ranks[hit]).mean()
    return ap


def _synthetic_labels(rng: np.random.Generator, num_examples: int, num_classes: int) -> np.ndarray:
    """int8 [N, C] with about 3 positives per image and a long-tailed class frequency; every class has a positive."""
    frequency = 1 / np.arange(1, num_classes + 1)
    frequency = np.minimum(3 * frequency / frequency.sum(), 0.9)
    labels = (rng.random((num_examples, num_classes)) < frequency).astype(np.int8)
    labels[rng.integers(num_examples, size=num_classes), np.arange(num_classes)] = 1
    return labels


def _compare(scores, labels, repeats: int) -> tuple[float, float, float, float]:
    contenders = (
        lambda: metrics.evaluate(scores, labels)["AP"],
        lambda: average_precision_score(labels, scores, average=None),
        lambda: argsort_average_precision(scores, labels),
    )
    seconds = [[] for _ in contenders]
    results = [run() for run in contenders]  # warm-up
    for _ in range(repeats):
        for times, run in zip(seconds, contenders, strict=True):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
    has_positives = labels.any(axis=0)  # scikit-learn warns and gives 0 for the others
    difference = float(np.abs(results[0] - results[1])[has_positives].max())
    return *(statistics.median(times) for times in seconds), difference


if __name__ == "__main__":
    main()
