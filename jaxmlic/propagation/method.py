"""A way to propagate labels, as the options of a command name it: neighbours, graph, method, decision, weights."""

import dataclasses

import numpy as np

from jaxmlic import propagation
from jaxmlic.errors import UserError, unknown
from jaxmlic.propagation import neighbours

METHODS = {"improved": 20, "soft": 20, "diffusion": 50}  # default number of neighbours
_METRICS = {"improved": "euclidean", "soft": "euclidean", "diffusion": "cosine"}
ALPHA = 0.99  # of Iscen et al.
DECISIONS = ("half", "frequency")


@dataclasses.dataclass(frozen=True)
class Method:
    """How labels are propagated.

    Attributes:
      name: "improved" (MSCNN-LCE-MIC), "soft" (its links, scores instead of labels) or "diffusion" (Iscen et al.).
      k: neighbours of each image; 0 for the method's default.
      single_label: every image has exactly one label.
      class_weights: multiply an image's weight by that of its class, against imbalance; for one label an image.
      alpha: how far labels travel by diffusion; None for ALPHA.
      neighbours: how they are searched, one of `neighbours.SEARCHES`.
      decide: which of many labels an image gets: "half", those with a score of 0.5 or more, or "frequency", see
        `propagation.by_frequency`.
      max_steps: upper limit of rounds, or of diffusion's conjugate gradient steps; 0 for the method's own (1,000
        rounds; diffusion steps until its tolerance, in Iscen et al.'s code 20).
      unknown_band: scores (low, high), from low on and below high, whose labels stay unknown; () for none.
      weights: of images, one of `propagation.WEIGHTS`; "" for the method's own: "one" for improved, else "entropy".
      balance: diffusion with the same labelled mass for each class, as in Iscen et al.'s code; for one label an image.
    """

    name: str = "improved"
    k: int = 0
    single_label: bool = False
    class_weights: bool = False
    alpha: float | None = None
    neighbours: str = "exact"
    decide: str = "half"
    balance: bool = False
    max_steps: int = 0
    unknown_band: tuple[float, ...] = ()
    weights: str = ""

    def check(self) -> None:
        """UserError for values that do not exist or do not go together."""
        for option, value, known in (
            ("method", self.name, METHODS),
            ("decide", self.decide, DECISIONS),
            ("neighbours", self.neighbours, neighbours.SEARCHES),
            ("weights", self.weights, ("", *propagation.WEIGHTS)),
        ):
            if value not in known:
                raise unknown(f"--{option} =", value, list(filter(None, known)))
        if self.k < 0:
            raise UserError(f"--k={self.k}: at least 1, or 0 for the method's default")
        if self.max_steps < 0:
            raise UserError(f"--max-steps={self.max_steps}: at least 1, or 0 for the method's own limit")
        if self.unknown_band and not (
            len(self.unknown_band) == 2 and 0 <= self.unknown_band[0] < self.unknown_band[1] <= 1
        ):
            band = ",".join(f"{value:g}" for value in self.unknown_band)
            raise UserError(f"--unknown-band={band}: two scores LOW,HIGH from 0 to 1, the lower one first")
        if self.class_weights and not self.single_label:
            raise UserError("--class-weights goes with --single-label: of many labels an image has no one class")
        if self.alpha is not None and self.name != "diffusion":
            raise UserError("--alpha goes with --method=diffusion")
        if self.alpha is not None and not 0 <= self.alpha < 1:
            raise UserError(f"--alpha={self.alpha}: from 0 to 1, 1 excluded")
        if self.decide == "frequency" and self.single_label:
            raise UserError("--decide=frequency goes with many labels an image, not with --single-label")
        if self.balance and not (self.single_label and self.name == "diffusion"):
            raise UserError("--balance goes with --method=diffusion and --single-label")

    def __call__(self, features: np.ndarray, labels: np.ndarray) -> propagation.PseudoLabels:
        """Labels for all of N images from features float [N, D] and labels int8 [N, C], -1 where unlabelled.

        Raises UserError for a k that is not below N, and as the functions of `propagation`.
        """
        if self.k >= max(len(features), 2):
            raise UserError(f"--k={self.k}: each of {len(features):,} images has {len(features) - 1:,} others")
        nearest = propagation.knn(features, self.k or METHODS[self.name], _METRICS[self.name], search=self.neighbours)
        found = self._propagate(nearest, labels)
        if self.decide == "frequency":
            found = propagation.by_frequency(found, labels)
        if self.weights:
            found = propagation.weigh(found, labels, self.weights, multi_label=not self.single_label)
        if self.class_weights:
            of_class = propagation.class_weights(found.labels)[np.argmax(found.labels == 1, axis=1)]
            weighed = np.where((found.labels == 1).any(1), found.weights * of_class, found.weights)
            found = found._replace(weights=weighed)
        if self.unknown_band:
            found = propagation.leave_unknown(found, labels, *self.unknown_band, multi_label=not self.single_label)
        return found

    def _propagate(self, nearest: tuple[np.ndarray, np.ndarray], labels: np.ndarray) -> propagation.PseudoLabels:
        """What the named method finds from neighbours (indices [N, K], distances or cosines [N, K])."""
        multi_label = not self.single_label
        if self.name == "diffusion":
            return propagation.diffusion(
                propagation.cosine_graph(*nearest),
                labels,
                multi_label=multi_label,
                alpha=ALPHA if self.alpha is None else self.alpha,
                balance=self.balance,
                max_steps=self.max_steps or None,
            )
        hard = self.name == "improved"
        spread = propagation.improved_label_propagation if hard else propagation.soft_label_propagation
        limit = {"max_rounds": self.max_steps} if self.max_steps else {}
        return spread(propagation.heat_kernel_graph(*nearest), labels, multi_label=multi_label, **limit)


def describe(method: Method, labelled: str, split: str) -> dict:
    """The options that decide a file of pseudo-labels, apart from the features."""
    options = dataclasses.asdict(method)
    options = {"method": options.pop("name"), **options, "k": method.k or METHODS[method.name]}
    options["unknown_band"] = list(method.unknown_band)  # as JSON gives it back
    if method.alpha is None:
        options["alpha"] = ALPHA if method.name == "diffusion" else None
    return options | {"labelled": labelled, "split": split}
