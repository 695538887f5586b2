"""Label propagation against scikit-learn's LabelSpreading on the same neighbours: time, peak memory, quality.

Run:  python benchmarks/propagation.py [--points=20000] [--dim=1280] [--k=20] [--classes=20] [--labelled=0.1]
      python benchmarks/propagation.py --points=100000 --only=improved,diffusion

Points lie around `classes` centres, so close that neighbours mix; one label each, of which a share is known. Each
method is a process of its own: its time from features to labels, its peak memory less that of the features, and the
share of hidden labels that it gets wrong. "spreading" is scikit-learn as it is used (kernel="knn", alpha 0.99, 30
iterations or until it changes by less than 1e-3); "spreading_same_graph" gives it our graph through its kernel, so that
only the solver differs.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
import warnings

import numpy as np

from jaxmlic import propagation

METHODS = ("improved", "diffusion", "spreading", "spreading_same_graph")
ALPHA = 0.99


def problem(options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """features float32 [N, D], classes [N] and who is labelled [N]."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((options.classes, options.dim), np.float32)
    classes = rng.integers(0, options.classes, options.points)
    noise = rng.standard_normal((options.points, options.dim), np.float32)
    features = centres[classes] + options.noise * noise
    return features, classes, rng.random(options.points) < options.labelled


def solve(name: str, features: np.ndarray, classes: np.ndarray, known: np.ndarray, options: argparse.Namespace):
    """Class of each point [N]."""
    if name.startswith("spreading"):
        from sklearn.semi_supervised import LabelSpreading

        kernel = "knn"
        if name == "spreading_same_graph":
            graph = propagation.cosine_graph(*propagation.knn(features, options.k, "cosine"))
            kernel = lambda x, y: graph  # noqa: E731
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it did not converge is what its default does
            model = LabelSpreading(kernel=kernel, n_neighbors=options.k, alpha=ALPHA, max_iter=options.iterations)
            model.fit(features, np.where(known, classes, -1))
        return model.transduction_
    labels = np.full((len(features), options.classes), -1, np.int8)
    labels[known] = 0
    labels[known, classes[known]] = 1
    if name == "diffusion":
        graph = propagation.cosine_graph(*propagation.knn(features, options.k, "cosine"))
        found = propagation.diffusion(graph, labels, multi_label=False, alpha=ALPHA)
    else:
        graph = propagation.heat_kernel_graph(*propagation.knn(features, options.k, "euclidean"))
        found = propagation.improved_label_propagation(graph, labels, multi_label=False)
    return np.where((found.labels == 1).any(1), found.labels.argmax(1), -1)


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=1280)
    parser.add_argument("--k", type=int, default=20)
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--labelled", type=float, default=0.1)
    parser.add_argument("--noise", type=float, default=4.0)
    parser.add_argument("--iterations", type=int, default=30)
    parser.add_argument("--only", default=",".join(METHODS))
    parser.add_argument("--one", action="store_true", help="measure here, and print JSON")
    options = parser.parse_args()
    if options.one:
        features, classes, known = problem(options)
        before, start = peak_mib(), time.perf_counter()
        found = solve(options.only, features, classes, known, options)
        seconds = time.perf_counter() - start
        error = float(np.mean(found[~known] != classes[~known]))
        print(json.dumps({"seconds": seconds, "mib": peak_mib() - before, "error": error}))
        return
    print(
        f"{options.points:,} x {options.dim}, k {options.k}, {options.classes} classes, {options.labelled:.0%} labelled"
    )
    print(f"{'method':22} {'seconds':>9} {'MiB more':>9} {'error %':>8}")
    for name in options.only.split(","):
        argv = [sys.executable, __file__, "--one", *(a for a in sys.argv[1:] if not a.startswith("--only"))]
        done = subprocess.run([*argv, f"--only={name}"], capture_output=True, text=True)
        if done.returncode:
            print(f"{name:22} failed: {(done.stderr.strip().splitlines() or ['killed'])[-1][:80]}")
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        print(f"{name:22} {found['seconds']:9.2f} {found['mib']:9,.0f} {100 * found['error']:8.2f}")


if __name__ == "__main__":
    main()
