"""Labels for the unlabelled images of a training split, as a file that training reads: `jaxmlic propagate`.

Features come from the best checkpoint of a run, or from what `jaxmlic features` stored of a frozen trunk; the methods
are those of `jaxmlic.propagation`.
"""

import dataclasses

import numpy as np

from jaxmlic import propagation
from jaxmlic.errors import UserError, did_you_mean
from jaxmlic.propagation import neighbours

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


def describe(method: Method, labelled: str, split: str) -> dict:
    """What decides a file beside the features."""
    chosen = dataclasses.asdict(method)
    chosen = {"method": chosen.pop("name"), **chosen, "k": method.k or METHODS[method.name]}
    if method.alpha is None:
        chosen["alpha"] = ALPHA if method.name == "diffusion" else None
    return chosen | {"labelled": labelled, "split": split}
