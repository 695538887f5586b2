"""Label propagation against scikit-learn's LabelSpreading on the same neighbours: time, peak memory, quality.

Run:  python benchmarks/propagation.py [--points=20000] [--dim=1280] [--k=20] [--classes=20] [--labelled=0.1]
          [--rounds=3] (in turn; medians)
      python benchmarks/propagation.py --points=100000 --only=improved,diffusion [--neighbours=approximate]
      python benchmarks/propagation.py --only=exact,approximate

Points lie around `classes` centres in a space of `latent` dimensions, so close that neighbours mix, and are seen as
`dim` rectified random mixtures with a little noise, much as a network's features; one label each, of which a share is
known. Each method is a process of its own: its time from features to labels, its peak memory more than what the
features took, and the share of hidden labels that it gets wrong. "spreading" is scikit-learn as it is used
(kernel="knn", 30 iterations or until it changes by less than 1e-3); "spreading_same_graph" gives it our graph through
its kernel, so that only the solver differs. "exact" and "approximate" are the search for neighbours alone, and the
share of them that they miss.
"""

import argparse
import functools
import json
import resource
import subprocess
import sys
import time
import warnings

import numpy as np

from jaxmlic import propagation

METHODS = ("improved", "diffusion", "spreading", "spreading_same_graph")
SEARCHES = ("exact", "approximate")


def problem(options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """features float32 [N, D], classes [N] and who is labelled [N]."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((options.classes, options.latent), np.float32)
    mixture = rng.standard_normal((options.latent, options.dim), np.float32) / options.latent**0.5
    classes = rng.integers(0, options.classes, options.points)
    features = np.empty((options.points, options.dim), np.float32)
    for start in range(0, options.points, 2048):  # in blocks, so that making them is not the peak of memory
        own = classes[start : start + 2048]
        latent = centres[own] + options.noise * rng.standard_normal((len(own), options.latent), np.float32)
        seen = np.maximum(latent @ mixture, 0)
        features[start : start + 2048] = seen + 0.1 * rng.standard_normal(seen.shape, np.float32)
    return features, classes, rng.random(options.points) < options.labelled


def missed(features: np.ndarray, indices: np.ndarray) -> float:
    """Share of the true nearest by Euclidean distance that `indices` [N, K] lack, on 500 points."""
    rows = np.random.default_rng(1).choice(len(features), min(500, len(features)), replace=False)
    closeness = 2 * features[rows] @ features.T - np.einsum("nd,nd->n", features, features)
    closeness[np.arange(len(rows)), rows] = -np.inf
    true = np.argsort(-closeness, axis=1)[:, : indices.shape[1]]
    return 1 - float((true[:, :, None] == indices[rows][:, None, :]).any(2).mean())


def solve(name: str, features: np.ndarray, classes: np.ndarray, known: np.ndarray, options: argparse.Namespace):
    """Class of each point [N], or its neighbours [N, k]."""
    knn = functools.partial(propagation.knn, features, options.k, search=options.neighbours)
    if name in SEARCHES:
        return propagation.knn(features, options.k, "euclidean", search=name)[0]
    if name.startswith("spreading"):
        from sklearn.semi_supervised import LabelSpreading

        kernel = "knn"
        if name == "spreading_same_graph":
            graph = propagation.cosine_graph(*knn("cosine"))

            def kernel(x: np.ndarray, y: np.ndarray):
                return graph

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it did not converge is what its default does
            model = LabelSpreading(
                kernel=kernel, n_neighbors=options.k, alpha=options.alpha, max_iter=options.iterations
            )
            model.fit(features, np.where(known, classes, -1))
        return model.transduction_
    labels = np.full((len(features), options.classes), -1, np.int8)
    labels[known] = 0
    labels[known, classes[known]] = 1
    if name == "diffusion":
        graph = propagation.cosine_graph(*knn("cosine"))
        found = propagation.diffusion(graph, labels, multi_label=False, alpha=options.alpha)
    else:
        graph = propagation.heat_kernel_graph(*knn("euclidean"))
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
    parser.add_argument("--latent", type=int, default=20)
    parser.add_argument("--noise", type=float, default=1.3)
    parser.add_argument("--alpha", type=float, default=0.9, help="of diffusion and LabelSpreading")
    parser.add_argument("--neighbours", default="exact", help="exact or approximate, of our graphs")
    parser.add_argument("--iterations", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", default=",".join(METHODS))
    parser.add_argument("--one", action="store_true", help="measure here, and print JSON")
    options = parser.parse_args()
    if options.one:
        features, classes, known = problem(options)
        before, start = peak_mib(), time.perf_counter()
        found = solve(options.only, features, classes, known, options)
        seconds = time.perf_counter() - start
        more = peak_mib() - before
        wrong = missed(features, found) if options.only in SEARCHES else np.mean(found[~known] != classes[~known])
        print(json.dumps({"seconds": seconds, "mib": more, "error": float(wrong)}))
        return
    print(
        f"{options.points:,} x {options.dim}, k {options.k}, {options.classes} classes, {options.labelled:.0%} labelled"
    )
    print(f"{'method':22} {'seconds':>9} {'MiB more':>9} {'error %':>8} {'times':>6}")
    names = options.only.split(",")
    runs = {name: [] for name in names}
    for _ in range(options.rounds):
        for name in names:
            argv = [sys.executable, __file__, "--one", *(a for a in sys.argv[1:] if not a.startswith("--only"))]
            done = subprocess.run([*argv, f"--only={name}"], capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{name} failed: {(done.stderr.strip().splitlines() or ['killed'])[-1][:200]}")
            runs[name].append(json.loads(done.stdout.splitlines()[-1]))
    middle = {
        name: {key: float(np.median([run[key] for run in found])) for key in found[0]} for name, found in runs.items()
    }
    for name, found in middle.items():
        times = f"{middle['spreading']['seconds'] / found['seconds']:6.2f}" if "spreading" in middle else ""
        print(f"{name:22} {found['seconds']:9.2f} {found['mib']:9,.0f} {100 * found['error']:8.2f} {times}")


if __name__ == "__main__":
    main()
