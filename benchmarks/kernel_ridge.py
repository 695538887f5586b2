"""Kernel ridge regression beside scikit-learn's KernelRidge and LogisticRegression: time and memory as images grow.

    python benchmarks/kernel_ridge.py [--images 1000 4500 10000 20000 100000] [--landmarks 4000] [--full-grid-to 20000]

Every measurement is a process of its own: CPU seconds and wall seconds without imports and compilation, and the peak of
memory above that of the data. The images are made: 1,280 numbers in 300 groups, 260 labels, 4 of them positive.

  ours       `kernels.ridge`, above 10,000 images `kernels.nystrom`: ridge and bandwidth selected from 3 x 4 by the mAP
             of nine held-out folds, all images' held-out scores, and the fit to all images; mAP included.
  fits       scikit-learn's KernelRidge for the same grid and folds, 108 fits and one: one is timed and multiplied.
  one fit    KernelRidge once, with a ridge and a bandwidth that somebody knew, without held-out scores.
  logistic   LogisticRegression (lbfgs), once for all labels one against the rest: five labels are timed and multiplied.

scikit-learn's are in float64, as by default, and left out where a matrix N x N of it passes the given memory.
"""

import argparse
import functools
import json
import resource
import subprocess
import sys
import time

import numpy as np

DIM, CLASSES, FOLDS = 1280, 260, 9
BANDWIDTHS, RIDGES = (0.75, 1.5, 3.0), (0.03, 0.1, 0.3, 1.0)
EXACT_LIMIT = 10_000  # configs/kernel_ridge.py
TIMED_LABELS = 5


def make_data(count):
    """(points float32 [N, D] of which the mean squared distance is 1, labels int8 [N, C])."""
    rng = np.random.default_rng(0)
    group = rng.integers(0, 300, count)
    points = rng.normal(size=(300, DIM)).astype(np.float32)[group]
    points += rng.normal(size=(count, DIM)).astype(np.float32)
    points /= np.sqrt(2 * DIM * 2)
    labels = (rng.random((300, CLASSES)) < 4 / CLASSES)[group] ^ (rng.random((count, CLASSES)) < 0.002)
    return points, labels.astype(np.int8)


def ours(points, labels, landmarks, bandwidths):
    import jax

    from jaxmlic.kernels import folds, nystrom, ridge

    fold_of = folds.folds_of(len(points), FOLDS, seed=0)
    if len(points) <= EXACT_LIMIT:
        found = ridge.select(points, labels, fold_of, "exp", bandwidths, RIDGES)
        dual = ridge.fit(points, folds.targets(labels), "exp", found.bandwidth, found.ridge)
    else:
        rows = np.sort(np.random.default_rng(0).choice(len(points), landmarks, replace=False))
        dual = nystrom.select(points, points[rows], labels, fold_of, "exp", bandwidths, RIDGES).dual
    jax.block_until_ready(dual)


def kernel_ridge(points, labels, rows):
    """Fitted to rows, and the scores of the others."""
    from sklearn.kernel_ridge import KernelRidge

    model = KernelRidge(alpha=0.1, kernel="rbf", gamma=1.5).fit(points[rows], labels[rows] - labels[rows].mean(0))
    others = np.setdiff1d(np.arange(len(points)), rows)
    if len(others):
        model.predict(points[others])


def logistic(points, labels):
    from sklearn.linear_model import LogisticRegression

    for column in np.flatnonzero(labels.any(0))[:TIMED_LABELS]:
        LogisticRegression(C=100.0, max_iter=200).fit(points, labels[:, column])


def measure(what, count, landmarks, bandwidths):
    """{cpu, wall: seconds, peak: bytes} of one call after one that compiles and imports."""
    points, labels = make_data(count)
    few = min(count, 300)
    if what == "ours":
        run, factor = functools.partial(ours, landmarks=landmarks, bandwidths=bandwidths), 1
        few = count if count <= EXACT_LIMIT else few  # the same shapes: compiled
    elif what == "logistic":
        run, factor = logistic, CLASSES / TIMED_LABELS
    else:
        points, every = points.astype(np.float64), np.arange(count)
        rows = every if what == "one fit" else every[every % FOLDS != 0]
        run = functools.partial(kernel_ridge, rows=rows)
        factor = 1 if what == "one fit" else len(bandwidths) * len(RIDGES) * FOLDS + 1
        kernel_ridge(points[:few], labels[:few], np.arange(few))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if what in ("ours", "logistic"):
        run(points[:few], labels[:few])
    wall, cpu = time.perf_counter(), time.process_time()
    run(points, labels)
    found = {"cpu": factor * (time.process_time() - cpu), "wall": factor * (time.perf_counter() - wall)}
    return found | {"peak": 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 4500, 10_000, 20_000, 100_000])
    parser.add_argument("--landmarks", type=int, default=4000)
    parser.add_argument("--full-grid-to", type=int, default=20_000, help="more images: one bandwidth")
    parser.add_argument("--memory", type=float, default=8, help="GiB: scikit-learn is left out above it")
    parser.add_argument("--only", nargs="+", default=["ours", "fits", "one fit", "logistic"])
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        count = options.images[0]
        print(json.dumps(measure(options.one, count, options.landmarks, grid_of(count, options))))
        return
    for count in options.images:
        for what in options.only:
            if what in ("fits", "one fit") and 2 * 8 * count**2 > options.memory * 2**30:
                print(
                    f"{count:>7,} images  {what:9}  left out: two matrices of {8 * count**2 / 2**30:.0f} GiB",
                    flush=True,
                )
                continue
            command = [sys.executable, __file__, "--one", what, "--images", str(count)]
            command += [f"--landmarks={options.landmarks}", f"--full-grid-to={options.full_grid_to}"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                why = (done.stderr.strip().splitlines() or [f"ended by signal {-done.returncode}"])[-1]
                print(f"{count:>7,} images  {what:9}  failed: {why}", flush=True)
                continue
            found = json.loads(done.stdout.splitlines()[-1])
            times = f"{found['cpu']:9.1f} CPU s {found['wall']:9.1f} s"
            grid = f"{len(grid_of(count, options))} x {len(RIDGES)} settings"
            print(f"{count:>7,} images  {what:9} {times}  peak +{found['peak'] / 2**30:.2f} GiB  ({grid})", flush=True)


def grid_of(count, options):
    """The bandwidths for so many images."""
    return BANDWIDTHS if count <= options.full_grid_to else BANDWIDTHS[1:2]


if __name__ == "__main__":
    main()
