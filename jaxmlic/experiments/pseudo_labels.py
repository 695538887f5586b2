"""Labels for the unlabelled images of a training split, as a file that training reads: `jaxmlic propagate`.

Features come from the best checkpoint of a run, or from what `jaxmlic features` stored of a frozen trunk; the methods
are those of `jaxmlic.propagation`.
"""

import numpy as np
from ml_collections import ConfigDict

from jaxmlic import metrics, propagation, storage
from jaxmlic import run as run_lib
from jaxmlic.data import datasets, loader
from jaxmlic.errors import UserError
from jaxmlic.inputs import cache, eval_inputs
from jaxmlic.propagation import label_file
from jaxmlic.propagation.method import Method, describe


def image_features(config: ConfigDict, view: loader.View, found: run_lib.Run | None) -> tuple[np.ndarray, str]:
    """float32 [N, D] of a view's images, and whose they are: a run's, or a frozen trunk's from a cache.

    Of a stored map the mean over positions is taken, of stored stages that of the last. UserError for a head without
    an output named `pooled`, and where nothing is stored.
    """
    if found is not None:
        return found.image_features(view, progress=True), f"{found.workdir} at step {found.step}"
    reader = cache.CachedReader(view, config, train=False)
    parts = []
    for start in range(0, len(view), 256):
        maps = eval_inputs(reader(np.arange(start, min(start + 256, len(view)))))
        last = maps.feature_map if maps.feature_map is not None else list(maps.stages.values())[-1]
        parts.append(last.astype(np.float32).mean(axis=(1, 2)))
    return np.concatenate(parts), f"{config.model.trunk}, frozen"


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


def propagate(
    config: ConfigDict, method: Method, *, labelled: str, out: str, split: str = "train", workdir: str | None = None
) -> tuple[dict, list[str]]:
    """Writes the file `out` and `out`.json with the numbers; returns the numbers and lines about them.

    workdir: the run whose features are taken; None for those stored of the config's frozen trunk.
    UserErrors as its parts.
    """
    method.check()
    storage.check_writable(storage.to_path(out).parent)
    found = None if workdir is None else run_lib.load(workdir, config.data.dir or None)
    dataset = found.dataset if found else datasets.load(config.data.name, config.data.dir or None)
    view = loader.select(config.data, dataset, split)
    labels, known = known_labels(view, labelled)
    values, source = image_features(config, view, found)
    result = method(values, labels)
    info = describe(method, labelled, split) | {"source": source}
    label_file.save(
        out,
        label_file.PseudoLabelFile(
            view.ids, result.labels, result.weights, result.scores, known, list(dataset.class_names), info
        ),
    )
    numbers = info | quality(result, view.stored_labels, known, method.single_label)
    storage.write_json(storage.to_path(out).with_suffix(".json"), numbers)
    lines = []
    if method.decide == "half" and not (result.labels[~known] == 1).any():
        lines.append(
            "no image got a label: no score reaches 0.5; --decide=frequency keeps the labelled images' frequencies"
        )
    return numbers, [*lines, f"{out}: " + ", ".join(f"{key} {_short(value)}" for key, value in numbers.items())]


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
    if (unknown := (found.labels[hidden] == -1).mean()) > 0:
        numbers["unknown"] = float(unknown)
    chosen = found.labels[hidden] == 1
    if single_label:
        right = chosen & (truth[hidden] == 1)
        return numbers | {"error": float(1 - right.any(1).mean())}
    ranked = metrics.evaluate(found.scores[hidden], truth[hidden], "all_point")
    given = metrics.evaluate(found.scores[hidden], truth[hidden], "path", chosen=chosen)  # the labels, not the scores
    numbers |= {"mAP": float(ranked["mAP"]), "error": float(1 - ranked["top1"])}
    return numbers | {name: float(given[name]) for name in ("OP", "OR", "OF1", "CF1")}


def _short(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
