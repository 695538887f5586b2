"""Seconds of the two searches behind `jaxmlic data split` and `jaxmlic data check`, on synthetic data of 100,000 rows.

Run:  python benchmarks/data_tools.py [--rows=100000] [--repeats=3]

Labels: 80 classes, shares from 0.3 % to 50 % on a logarithmic scale. Hashes: random 64-bit numbers, of which a tenth
repeat another one with up to six bits changed.
"""

import argparse
import statistics
import time

import numpy as np

from jaxmlic.data.check.duplicates import NEAR, near_pairs
from jaxmlic.labels.stratify import stratified_parts


def timed(function) -> float:
    """Seconds of a call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    """Prints medians and extremes."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    labels = (rng.random((args.rows, 80)) < np.geomspace(0.003, 0.5, 80)).astype(np.int8)
    hashes = rng.integers(0, 2**64, args.rows, np.uint64)
    copies = args.rows // 10
    hashes[:copies] = hashes[-copies:]
    for _ in range(6):
        hashes[:copies] ^= np.uint64(1) << rng.integers(0, 64, copies, np.uint64)
    routes = {
        f"ten stratified folds of {args.rows:,} x 80": lambda: stratified_parts(labels, [0.1] * 10, seed=0),
        f"near pairs among {args.rows:,} hashes": lambda: sum(len(pair[0]) for pair in near_pairs(hashes, NEAR)),
    }
    for name, run in routes.items():
        seconds = [timed(run) for _ in range(args.repeats)]
        print(f"{name}: {statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})")


if __name__ == "__main__":
    main()
