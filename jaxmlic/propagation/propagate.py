"""Labels for the unlabelled images of a training split, as a file that training reads: `jaxmlic propagate`.

Features come from the best checkpoint of a run, or from what `jaxmlic features` stored of a frozen trunk; the methods
are those of `jaxmlic.propagation`.
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxmlic import metrics, propagation, sharding
from jaxmlic.data import datasets, loader
from jaxmlic.errors import UserError, did_you_mean
from jaxmlic.evaluation import scoring
from jaxmlic.inputs import cache as cache_lib
from jaxmlic.inputs.images import ImageReader
from jaxmlic.labels.names import check_same_classes
from jaxmlic.models.heads import contract
from jaxmlic.propagation import label_file, neighbours
from jaxmlic.training import run_folder

METHODS = {"improved": 20, "diffusion": 50}  # and the neighbours of each image
METRICS = {"improved": "euclidean", "diffusion": "cosine"}
ALPHA = 0.99  # of Iscen et al.
DECISIONS = ("half", "frequency")


@dataclasses.dataclass(frozen=True)
class Method:
    """How labels are propagated.

    Attributes:
      name: "improved" (MSCNN-LCE-MIC) or "diffusion" (Iscen et al.).
      k: neighbours of each image; 0 for the method's own.
      single_label: every image has exactly one label.
      class_weights: multiply an image's weight by that of its class, against imbalance; for one label an image.
      alpha: of diffusion, how far labels travel; None for ALPHA.
      neighbours: how they are searched, one of `neighbours.SEARCHES`.
      decide: which of many labels an image gets: "half", those with a score of 0.5 or more, or "frequency", see
        `propagation.by_frequency`.
    """

    name: str = "improved"
    k: int = 0
    single_label: bool = False
    class_weights: bool = False
    alpha: float | None = None
    neighbours: str = "exact"
    decide: str = "half"

    def check(self) -> None:
        """UserError for values that do not exist or do not go together, and for a library that is not installed."""
        if self.name not in METHODS:
            raise UserError(f"--method={self.name}: {', '.join(METHODS)}{did_you_mean(self.name, METHODS)}")
        if self.k < 0:
            raise UserError(f"--k={self.k}: at least 1, or 0 for the method's own")
        if self.class_weights and not self.single_label:
            raise UserError("--class-weights goes with --single-label: of many labels an image has no one class")
        if self.alpha is not None and self.name != "diffusion":
            raise UserError("--alpha goes with --method=diffusion")
        if self.alpha is not None and not 0 <= self.alpha < 1:
            raise UserError(f"--alpha={self.alpha}: from 0 to 1, 1 excluded")
        if self.decide not in DECISIONS:
            raise UserError(f"--decide={self.decide}: {', '.join(DECISIONS)}{did_you_mean(self.decide, DECISIONS)}")
        if self.decide == "frequency" and self.single_label:
            raise UserError("--decide=frequency goes with many labels an image, not with --single-label")
        if self.neighbours not in neighbours.SEARCHES:
            known = ", ".join(neighbours.SEARCHES)
            raise UserError(
                f"--neighbours={self.neighbours}: {known}{did_you_mean(self.neighbours, neighbours.SEARCHES)}"
            )
        if self.neighbours == "approximate":
            neighbours.index_library()  # now, not after the features have been computed

    def __call__(self, values: np.ndarray, labels: np.ndarray) -> propagation.PseudoLabels:
        """features float [N, D] and labels int8 [N, C], -1 throughout where unlabelled, to labels for all.

        UserError for a k that there are not so many others for, and as the parts.
        """
        if self.k >= max(len(values), 2):
            raise UserError(f"--k={self.k}: each of {len(values):,} images has {len(values) - 1:,} others")
        k = self.k or METHODS[self.name]
        found = propagation.knn(values, k, METRICS[self.name], search=self.neighbours)
        if self.name == "improved":
            graph = propagation.heat_kernel_graph(*found)
            found = propagation.improved_label_propagation(graph, labels, multi_label=not self.single_label)
        else:
            graph, alpha = propagation.cosine_graph(*found), ALPHA if self.alpha is None else self.alpha
            found = propagation.diffusion(graph, labels, multi_label=not self.single_label, alpha=alpha)
        if self.decide == "frequency":
            found = propagation.by_frequency(found, labels)
        if not self.class_weights:
            return found
        of_class = propagation.class_weights(found.labels)[np.argmax(found.labels == 1, axis=1)]
        return found._replace(weights=np.where((found.labels == 1).any(1), found.weights * of_class, found.weights))


def image_features(config: ConfigDict, view: loader.View, workdir: str | None) -> tuple[np.ndarray, str]:
    """float32 [N, D] of a view's images, and whose they are: the run's in `workdir`, or a frozen trunk's from a cache.

    Of a stored map the mean over positions is taken, of stored stages that of the last. UserError for a head without
    an output named `pooled`, and where nothing is stored.
    """
    if workdir is None:
        reader = cache_lib.Reader(view, config, train=False)
        parts = []
        for start in range(0, len(view), 256):
            found = cache_lib.inputs(reader(np.arange(start, min(start + 256, len(view)))))
            last = found.feature_map if found.feature_map is not None else list(found.stages.values())[-1]
            parts.append(last.astype(np.float32).mean(axis=(1, 2)))
        return np.concatenate(parts), f"{config.model.trunk}, frozen"
    run = run_folder.load(workdir)
    mesh = sharding.make_mesh()
    model = contract.find(config.head).Model(len(run.class_names), **config.model)
    variables, step = scoring.restore_variables(run, model, mesh)

    def forward(variables: dict, inputs: jax.Array) -> jax.Array:
        outputs = model.apply(variables, inputs, train=False)
        if "pooled" not in outputs:
            raise UserError(f"head {config.head!r} has no output 'pooled' to propagate with")
        return outputs["pooled"].astype(jnp.float32)

    place = sharding.split(mesh)
    forward = jax.jit(forward, in_shardings=(sharding.replicated(mesh), place), out_shardings=place)
    reader = cache_lib.find(view, config) or ImageReader(view, config.data.image_size)
    batch_size, parts = scoring.batch_size_for(config, mesh), []
    for batch in loader.eval_batches(reader, batch_size, threads=config.data.threads):
        found = forward(variables, cache_lib.inputs(sharding.put(batch, mesh)))
        parts.append(np.asarray(found)[batch["mask"]])
    return np.concatenate(parts), f"{workdir} at step {step}"


def known_labels(view: loader.View, labelled: str) -> tuple[np.ndarray, np.ndarray]:
    """The view's labels int8 [N, C] with -1 throughout where an image is not in split `labelled`, and who is [N].

    Raises UserError unless all images of `labelled` are in the view and some others too.
    """
    dataset = view.dataset
    known = np.isin(view.ids, dataset.ids(labelled))
    count = dataset.count(labelled)
    if known.sum() != count:
        raise UserError(
            f"--labelled={labelled}: {count - known.sum():,} of its {count:,} images are not in split {view.split!r}"
        )
    if known.all():
        raise UserError(f"--labelled={labelled}: it is all of split {view.split!r}; no image is left to be labelled")
    return np.where(known[:, None], view.stored_labels, np.int8(-1)), known


def run(
    config: ConfigDict, method: Method, *, labelled: str, out: str, split: str = "train", workdir: str | None = None
) -> dict:
    """Writes the file `out` and `out`.json with the numbers, prints and returns them. UserErrors as its parts."""
    method.check()
    dataset = datasets.load(config.data.name, config.data.dir or None)
    if workdir is not None:
        found_in = f"data set {dataset.name!r}"
        check_same_classes(run_folder.load(workdir).class_names, dataset.class_names, str(workdir), found_in)
    view = loader.select(config.data, dataset, split)
    labels, known = known_labels(view, labelled)
    values, source = image_features(config, view, workdir)
    found = method(values, labels)
    info = describe(method, labelled, split) | {"source": source}
    label_file.save(
        out,
        label_file.PseudoLabelFile(
            view.ids, found.labels, found.weights, found.scores, known, list(dataset.class_names), info
        ),
    )
    numbers = info | quality(found, view.stored_labels, known, method.single_label)
    run_folder.write_json(Path(out).with_suffix(".json"), numbers)
    if method.decide == "half" and not (found.labels[~known] == 1).any():
        print("no image got a label: no score reaches 0.5; --decide=frequency keeps the labelled images' frequencies")
    print(f"{out}: " + ", ".join(f"{key} {_short(value)}" for key, value in numbers.items()))
    return numbers


def describe(method: Method, labelled: str, split: str) -> dict:
    """What decides a file beside the features."""
    chosen = dataclasses.asdict(method)
    chosen = {"method": chosen.pop("name"), **chosen, "k": method.k or METHODS[method.name]}
    if method.alpha is None:
        chosen["alpha"] = ALPHA if method.name == "diffusion" else None
    return chosen | {"labelled": labelled, "split": split}


def quality(found: propagation.PseudoLabels, truth: np.ndarray, known: np.ndarray, single_label: bool) -> dict:
    """How far the labels found agree with those that were hidden (images that nothing reached count as empty)."""
    hidden = ~known
    numbers = {
        "images": len(known),
        "labelled_images": int(known.sum()),
        "reached": int((found.labels[hidden] != -1).any(1).sum()),
        "rounds": int(found.num_rounds),
        "mean_weight": float(found.weights[hidden].mean()),
    }
    if not (truth[hidden] == 1).any():
        return numbers  # they were not known to anybody
    chosen = found.labels[hidden] == 1
    if single_label:
        right = chosen & (truth[hidden] == 1)
        return numbers | {"error": float(1 - right.any(1).mean())}
    ranked = metrics.evaluate(found.scores[hidden], truth[hidden], "all_point")
    given = metrics.evaluate(found.scores[hidden], truth[hidden], "path", chosen=chosen)  # the labels, not the scores
    return numbers | {"mAP": float(ranked["mAP"])} | {name: float(given[name]) for name in ("OP", "OR", "OF1", "CF1")}


def _short(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
