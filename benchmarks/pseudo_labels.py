"""Error against the number of labelled images, in the form of MSCNN-LCE-MIC's Tables VII and VIII.

Run:  python benchmarks/pseudo_labels.py --dataset=cifar10_jpeg --size=64 --single-label \\
          --labelled=1000,2000,3000,4000 --config.augment.flip=False --config.pretrained=WEIGHTS --workdir=DIR
      python benchmarks/pseudo_labels.py --dataset=voc2007_subset --size=224 --steps=700 --batch=32 \\
          --labelled=100,200,400 --config.pretrained=WEIGHTS --workdir=DIR
First, the features of train and test (WEIGHTS is efficientnet_lite0_imagenet.npz; flip=False: no mirrored images):
      jaxmlic features --config=linear:dataset=cifar10_jpeg,mode=frozen,size=64 --config.augment.flip=False \\
          --config.pretrained=WEIGHTS

For each number and seed: a stratified part of train is labelled (`jaxmlic data split --subset`), the rest gets labels
from `improved` or `soft` propagation, `diffusion`, or scikit-learn's LabelSpreading with k neighbours; a linear
classifier is then trained on all of train with them (AdamW, the config's learning rate and decay), or on the labelled
part `alone`, with the same number of steps. Two errors, each 100 - accuracy with one label an image, else 100 - mAP
over the classes with at least 5 positives:
  rest  of the labels found for the unlabelled images of train (alone: of the classifier's labels for them)
  test  of the classifier on the test split
k and alpha are those with the smallest error on a third of the labelled images, hidden for this. What is complete is
not done again.
"""

import argparse
import functools
import itertools
import json
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import linear_training
import numpy as np
from scipy import sparse

from jaxmlic import config as config_lib
from jaxmlic import losses, metrics, propagation
from jaxmlic.cli import main as cli
from jaxmlic.data import datasets, loader
from jaxmlic.experiments import pseudo_labels
from jaxmlic.propagation import label_file
from jaxmlic.propagation.method import DECISIONS
from jaxmlic.reports import tables

ALPHAS = (0.5, 0.9, 0.99)
GRIDS = {
    "improved": [(k, None) for k in (5, 10, 20, 50)],
    "soft": [(k, None) for k in (5, 10, 20, 50)],
    "diffusion": list(itertools.product((10, 20, 50), ALPHAS)),
    "spreading": list(itertools.product((10, 20, 50), ALPHAS)),
}
MOST = 50  # neighbours


class Problem:
    """Features of all training images, and their neighbours, which are searched once."""

    def __init__(self, options: argparse.Namespace, overrides: list[str]):
        self.options = options
        spec = f"linear:dataset={options.dataset},mode=frozen,size={options.size}"
        self.config = config_lib.load(spec, overrides)
        self.dataset = datasets.load(options.dataset, self.config.data.dir or None)
        self.view = loader.select(self.config.data, self.dataset, "train")
        self.truth = self.view.stored_labels
        self.values, _ = pseudo_labels.image_features(self.config, self.view, None)
        self.test = loader.select(self.config.data, self.dataset, self.config.data.test_split)
        self.test_values, _ = pseudo_labels.image_features(self.config, self.test, None)
        self.train = make_trainer(self.config, options.single_label)

    @functools.cache  # noqa: B019  (there is one)
    def neighbours(self, metric: str) -> tuple[np.ndarray, np.ndarray]:
        path = Path(self.options.workdir) / f"neighbours_{metric}.npz"
        if not path.exists():
            indices, found = propagation.knn(self.values, MOST, metric)
            np.savez(path, indices=indices, values=found)
        with np.load(path) as file:
            return file["indices"], file["values"]

    @functools.cache  # noqa: B019
    def graph(self, name: str, k: int) -> sparse.csr_array:
        if name in ("improved", "soft"):
            indices, values = self.neighbours("euclidean")
            return propagation.heat_kernel_graph(indices[:, :k], values[:, :k])
        if name == "diffusion":
            indices, values = self.neighbours("cosine")
            return propagation.cosine_graph(indices[:, :k], values[:, :k])
        # What LabelSpreading(kernel="knn") makes: weight 1 to a point itself and to its k - 1 nearest.
        indices, _ = self.neighbours("euclidean")
        indices = np.concatenate([np.arange(len(indices))[:, None], indices[:, : k - 1]], axis=1)
        rows = np.repeat(np.arange(len(indices)), k)
        return sparse.csr_array((np.ones(rows.size), (rows, indices.ravel())), shape=(len(indices),) * 2)

    @functools.cache  # noqa: B019
    def strength(self, k: int) -> sparse.csr_array:
        return propagation.link_strength(self.graph("improved", k))

    def solve(
        self, name: str, k: int, alpha: float | None, labels: np.ndarray, tolerance: float = 1e-6
    ) -> propagation.PseudoLabels:
        """labels int8 [N, C], -1 throughout where unlabelled."""
        graph, multi = self.graph(name, k), not self.options.single_label
        if name == "improved":
            return propagation.improved_label_propagation(graph, labels, multi_label=multi, strength=self.strength(k))
        if name == "soft":
            return propagation.soft_label_propagation(graph, labels, multi_label=multi, strength=self.strength(k))
        if name == "diffusion":
            return propagation.diffusion(graph, labels, multi_label=multi, alpha=alpha, tolerance=tolerance)
        return spreading(graph, labels, alpha, multi)

    def error(self, scores: np.ndarray, truth: np.ndarray, least: int) -> float:
        """Percent, of scores [N, C]; mAP is over classes with `least` positives."""
        if self.options.single_label:  # an image that nothing reached has no score, and counts as wrong
            right = truth[np.arange(len(truth)), scores.argmax(1)] == 1
            return 100 * (1 - float(np.mean(right & (np.ptp(scores, axis=1) > 0))))
        return 100 * (1 - metrics.evaluate(scores, truth, "all_point", min_positives=least)["mAP"])

    def classifier(self, labels: np.ndarray, weights: np.ndarray, seed: int):
        """Scores of a linear classifier trained on labels [N, C] with weights [N]: a function of features."""
        rng, batch = np.random.default_rng(seed), self.options.batch
        usable = np.flatnonzero((labels != -1).any(1) & (weights > 0))
        epochs = -(-self.options.steps * batch // len(usable))
        order = np.concatenate([rng.permutation(usable) for _ in range(epochs)])[: self.options.steps * batch]
        rows = order.reshape(self.options.steps, batch).astype(np.int32)
        kernel, bias = self.train(self.values, labels, weights, rows)
        return lambda values: values @ np.asarray(kernel) + np.asarray(bias)


def make_trainer(config, single_label: bool):
    """Compiled: (features [N, D], labels [N, C], weights [N], rows int32 [steps, batch]) -> (kernel, bias)."""
    loss_fn = losses.softmax_cross_entropy if single_label else losses.binary_cross_entropy

    @jax.jit
    def train(values, labels, weights, rows):
        def loss(params, step):
            logits = linear_training.logits(params, values[rows[step]])
            return jnp.mean(weights[rows[step]] * loss_fn(logits, labels[rows[step]]))

        params = {"kernel": jnp.zeros((values.shape[1], labels.shape[1])), "bias": jnp.zeros(labels.shape[1])}
        return linear_training.fit(config, params, loss, steps=len(rows), examples=len(values))

    return train


def spreading(graph: sparse.csr_array, labels: np.ndarray, alpha: float, multi: bool) -> propagation.PseudoLabels:
    """scikit-learn's LabelSpreading on a given graph; with many labels, once for each."""
    from sklearn.semi_supervised import LabelSpreading

    def shares(classes: np.ndarray, count: int) -> np.ndarray:
        model = LabelSpreading(kernel=lambda x, y: graph, alpha=alpha)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that 30 iterations, its default, are not enough
            model.fit(np.zeros((len(classes), 1)), classes)
        found = np.zeros((len(classes), count))
        found[:, model.classes_] = np.nan_to_num(model.label_distributions_)
        return found

    known = labels[:, 0] != -1
    if multi:
        scores = np.stack([shares(column, 2)[:, 1] for column in labels.T], axis=1)
        found = scores >= 0.5
    else:
        scores = shares(np.where(known, labels.argmax(1), -1), labels.shape[1])
        found = np.arange(labels.shape[1]) == scores.argmax(1)[:, None]
    scores = np.where(known[:, None], labels, scores).astype(np.float32)
    found = np.where(known[:, None], labels, found).astype(np.int8)
    return propagation.PseudoLabels(found, scores, np.ones(len(labels), np.float32), 0)


def select(problem: Problem, name: str, labels: np.ndarray, seed: int) -> tuple[int, float | None, float]:
    """k, alpha and their error on a third of the labelled images."""
    known = np.flatnonzero(labels[:, 0] != -1)
    hidden = np.random.default_rng(seed).permutation(known)[: len(known) // 3]
    fewer = labels.copy()
    fewer[hidden] = -1
    truth = problem.truth[hidden]  # labelled ones
    errors = [problem.error(problem.solve(name, *cell, fewer, 1e-3).scores[hidden], truth, 1) for cell in GRIDS[name]]
    return *GRIDS[name][int(np.argmin(errors))], min(errors)


def one(problem: Problem, name: str, count: int, seed: int) -> dict:
    """A method, a number of labelled images and a seed: the file of labels, the run, and their numbers."""
    folder, split = Path(problem.options.workdir), f"labelled{count}_seed{seed}"
    path = folder / f"{name}_{count}_{seed}.json"
    if path.exists():
        return json.loads(path.read_text())
    if f"{split}/labelled" not in problem.dataset.split_names():
        argv = [f"--subset={count}", "--from=train", f"--seed={seed}", f"--as={split}"]
        if cli.run(["data", "split", problem.options.dataset, *argv]):
            raise SystemExit(2)
    labels, known = pseudo_labels.known_labels(problem.view, f"{split}/labelled")
    numbers, rest = {"method": name, "labelled": count, "seed": seed}, np.flatnonzero(~known)
    if name == "alone":
        found = propagation.PseudoLabels(labels, np.maximum(labels, 0), known.astype(np.float32), 0)
    else:
        k, alpha, error = select(problem, name, labels, seed)
        found = problem.solve(name, k, alpha, labels)
        if problem.options.decide == "frequency":
            found = propagation.by_frequency(found, labels)
        numbers |= {
            "k": k,
            "alpha": alpha,
            "held_out": error,
            "rest": problem.error(found.scores[rest], problem.truth[rest], 5),
        }
    names = list(problem.dataset.class_names)
    file = label_file.PseudoLabelFile(
        problem.view.ids, found.labels, found.weights, found.scores.astype(np.float32), known, names, numbers
    )
    label_file.save(path.with_suffix(".npz"), file)
    scores = problem.classifier(found.labels, found.weights, seed)
    numbers["test"] = problem.error(scores(problem.test_values), problem.test.stored_labels, 5)
    if name == "alone":
        numbers["rest"] = problem.error(scores(problem.values[rest]), problem.truth[rest], 5)
    print(numbers, flush=True)
    path.write_text(json.dumps(numbers))
    return numbers


def table(rows: list[dict]) -> str:
    """Mean and standard deviation over seeds."""
    lines = [f"{'labelled':>8}  {'method':10} {'rest':>14} {'test':>14}  selected (k, alpha)"]
    for (count, name), group in itertools.groupby(rows, lambda row: (row["labelled"], row["method"])):
        group = list(group)
        means = ["{:6.2f} +- {:4.2f}".format(*tables.spread([row[key] for row in group])) for key in ("rest", "test")]
        chosen = "" if name == "alone" else ", ".join(f"({row['k']}, {row['alpha'] or '-'})" for row in group)
        lines.append(f"{count:>8}  {name:10} {means[0]:>14} {means[1]:>14}  {chosen}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--single-label", action="store_true")
    parser.add_argument("--labelled", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1000, help="of the classifier")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--decide", default="half", choices=DECISIONS, help="of many labels, as propagate's")
    parser.add_argument("--methods", default="improved,soft,diffusion,spreading,alone")
    parser.add_argument("--workdir", required=True)
    options, overrides = parser.parse_known_args()
    Path(options.workdir).mkdir(parents=True, exist_ok=True)
    problem = Problem(options, overrides)
    cells = itertools.product(map(int, options.labelled.split(",")), options.methods.split(","), range(options.seeds))
    print("\n" + table([one(problem, name, count, seed) for count, name, seed in cells]))


if __name__ == "__main__":
    main()
