"""The check of a prepared data set: what is wrong with it, or worth knowing, before it is trained on.

Every image is decoded once, in threads; of each only digests, a perceptual hash and a thumbnail are kept, so memory
grows by about a kilobyte an image.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from jaxmlic.data import datasets
from jaxmlic.data.check import findings
from jaxmlic.data.check.duplicates import NEAR
from jaxmlic.data.check.images import ODD, ImageFacts, inspect_all
from jaxmlic.labels import graph as label_graph
from jaxmlic.labels import stratify


def check(dataset: datasets.Dataset, near: int = NEAR, workers: int = 1) -> dict:
    """Look at all images and labels.

    Args:
      dataset: a prepared data set.
      near: bits in which the hashes of near-duplicates differ at most, 0..MAX_NEAR.
      workers: threads.

    Returns:
      JSON-able values: `name`, `path`, `near`, `roles` {split: train, val, test or unlabelled}, `splits` {split or
      "all": numbers of its labels and images}, `alphabetical`, `classes` [{name, present {split: count}, unknown
      {split: count}}] in column order, `cooccurrence` (counts [C, C], all splits; the diagonal counts each class) and
      `findings` [{level, kind, text, count, listed: the first 1000}], errors first. Images are named "split/id".
    """
    names, roles = dataset.class_names, split_roles(dataset.splits)
    values = {split: dataset.labels(split) for split in dataset.splits}
    images = inspect_all(dataset, workers)
    parts = {split: [image for image in images if image.split == split] for split in dataset.splits}
    rows = np.concatenate(list(values.values()))
    counts = {split: stratify.counts(of_split) for split, of_split in values.items()}
    together, num_positive = label_graph.cooccurrence(rows)
    return {
        "name": dataset.name,
        "path": str(dataset.path),
        "near": near,
        "roles": roles,
        "splits": {split: _numbers(values[split], parts[split]) for split in parts} | {"all": _numbers(rows, images)},
        "alphabetical": list(names) == sorted(names, key=str.casefold),
        "classes": [
            {
                "name": name,
                "present": {split: int(present[c]) for split, (present, _, _) in counts.items()},
                "unknown": {split: int(unknown[c]) for split, (_, _, unknown) in counts.items()},
            }
            for c, name in enumerate(names)
        ],
        "cooccurrence": (together + np.diag(num_positive)).tolist(),
        "findings": findings.find_all(parts, values, roles, names, near),
    }


def split_roles(splits: Sequence[str]) -> dict[str, str]:
    """What each split is for, by its name; without a test split the val splits are what is tested on (COCO)."""
    prefixes = {"val": "val", "dev": "val", "unlabel": "unlabelled"}
    roles = {split: next((r for p, r in prefixes.items() if split.lower().startswith(p)), "train") for split in splits}
    roles |= {split: "test" for split in splits if "test" in split.lower()}
    if "test" not in roles.values():
        roles = {split: "test" if role == "val" else role for split, role in roles.items()}
    return roles


def _numbers(values: np.ndarray, images: list[ImageFacts]) -> dict:
    """Of a split: its labels int8 [N, C] and its images."""
    sizes = np.count_nonzero(values == 1, axis=1)
    readable = [image for image in images if image.why is None]
    sides = np.array([(image.height, image.width) for image in readable]).reshape(-1, 2)
    return {
        "images": len(values),
        "cardinality": float(sizes.mean()),
        "density": float(sizes.mean() / values.shape[1]),
        "label_set_sizes": {str(size): int(n) for size, n in enumerate(np.bincount(sizes)) if n},
        "distinct_label_sets": len(np.unique(np.packbits(values == 1, axis=1), axis=0)),
        "empty_rows": int(np.sum(sizes == 0)),
        "present": int(sizes.sum()),
        "unknown": int(np.sum(values == -1)),
        "boxes": sum(image.num_boxes for image in images),
        "difficult_boxes": sum(image.num_difficult for image in images),
        "unreadable": len(images) - len(readable),
        "formats": dict(Counter(image.format for image in readable).most_common()),
        "odd": {kind: n for kind in ODD if (n := sum(kind in image.odd for image in readable))},
        "height": _spread(sides[:, 0]),
        "width": _spread(sides[:, 1]),
    }


def _spread(sides: np.ndarray) -> dict[str, float]:
    return {key: float(f(sides)) for key, f in (("min", np.min), ("median", np.median), ("max", np.max)) if len(sides)}
