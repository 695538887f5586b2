"""Kernel ridge regression on a frozen trunk: the classifier of all training images in closed form, without steps.

Ridge and bandwidth are those with the best mean average precision of held-out training images, whose exact scores need
no refitting (see `jaxmlic.kernels.ridge`, and `jaxmlic.kernels.nystrom` for many images). The parameters are the
training images' points, or some of them, and their dual coefficients, or for the linear kernel a weight vector a label.
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxmlic import progress
from jaxmlic.errors import UserError, check_choice, check_least
from jaxmlic.kernels import folds, nystrom, product, ridge
from jaxmlic.metrics.calibration import fit_platt
from jaxmlic.models.heads._descriptors import DescriptorModel, describe_fn, reads
from jaxmlic.models.heads.contract import Fitted, Prediction
from jaxmlic.models.trunks import Descriptor

__all__ = ["Model", "describe_fn", "fit_fn", "linear_layer", "predict_fn", "reads"]

# By name: (descriptors are compared by direction, the kernel of their points).
KERNELS = {"mean_distance": (True, "exp"), "rbf": (False, "exp"), "linear": (False, "linear")}
_LEAST_SLOPE = 1e-3  # of the logits by the scores: their order stays


class Model(DescriptorModel):
    """Images to label logits.

    Attributes:
      kernel: of the distance d between images, each descriptor's divided by its mean over the training images and
        averaged with `weights`: "mean_distance", exp(-bandwidth d) of directions (2 - 2 cos); "rbf", the same of
        Euclidean distances; or "linear".
      bandwidths: from which one is selected; "linear" has none.
      ridges: from which one is selected.
      folds: held-out parts for the selection; 0 for one image each (leave-one-out).
      exact_limit: with more training images than this the matrix N x N is not made; the fit is to the features of
        landmarks (Nystrom), for the linear kernel to the points themselves.
      landmarks: M, training images that it keeps then, drawn with the seed.
    """

    kernel: str = "mean_distance"
    bandwidths: tuple[float, ...] = (0.75, 1.5, 3.0)
    ridges: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0)
    folds: int = 9
    exact_limit: int = 10_000
    landmarks: int = 4_000

    @property
    def num_support(self) -> int:
        """Training images that the classifier keeps."""
        return self.num_train if self.num_train <= self.exact_limit else min(self.landmarks, self.num_train)

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        train: bool = False,
        labels: jax.Array | None = None,
        frozen_trunk: bool = False,
    ) -> dict[str, jax.Array]:
        """Images uint8 or float [B, H, W, 3] in 0..255, or `trunks.StoredMaps`, to label logits.

        Returns descriptors (a list, float32 [B, D_m]), pooled [B, D], the image's point, and logits float32 [B, C].
        """
        check_choice("model.kernel", self.kernel, KERNELS)
        unit, function = KERNELS[self.kernel]
        found = self.descriptors(images)
        points = self.points(found, unit)
        zeros, count = nn.initializers.zeros, points.shape[1]
        if self.kernel == "linear":
            scores = points @ self.param("weights", zeros, (count, self.num_labels))
        else:
            support = self.param("support", zeros, (self.num_support, count))
            dual = self.param("dual", zeros, (self.num_support, self.num_labels))
            bandwidth = self.param("bandwidth", nn.initializers.ones, ())
            scores = product(points, support, dual, function, bandwidth)
        scores = scores + self.param("mean", zeros, (self.num_labels,))[None]
        slope, offset = self.param("slope", nn.initializers.ones, ()), self.param("offset", zeros, ())
        return {"descriptors": found, "pooled": points, "logits": slope * scores + offset}


def fit_fn(
    model: Model,
    descriptors: Sequence[Descriptor],
    labels: np.ndarray,
    seed: int,
    report: Callable[[str], None] = lambda line: None,
) -> Fitted:
    """The parameters from the training images' descriptors, float32 [N, D_m], and labels int8 [N, C].

    Scores become logits by one slope and offset, fitted to the held-out scores of all classes together (Platt): the
    order of labels and of images stays.
    """
    _check(model)
    unit, function = KERNELS[model.kernel]
    params, points = model.fitted_points(descriptors, unit)
    grid = (1.0,) if model.kernel == "linear" else tuple(model.bandwidths), tuple(model.ridges)
    fold_of = folds.folds_of(len(labels), model.folds, seed)
    if len(labels) <= model.exact_limit:
        report(f"selecting among {len(grid[0])} x {len(grid[1])} settings on {len(labels):,} images")
        with progress.Progress("selecting", len(grid[0]), "bandwidths", transient=True) as bar:
            found = ridge.select(points, labels, fold_of, function, *grid, bar.advance)
        support = points
        dual = ridge.fit(points, folds.targets(labels), function, found.bandwidth, found.ridge)
    else:
        if model.kernel == "linear":
            support = np.eye(points.shape[1], dtype=np.float32)
        else:
            rows = np.random.default_rng(seed).choice(len(labels), model.num_support, replace=False)
            support = points[np.sort(rows)]
        report(
            f"selecting among {len(grid[0])} x {len(grid[1])} settings on {len(labels):,} images by {len(support):,} "
            "features"
        )
        with progress.Progress("selecting", len(grid[0]) * model.folds, "parts", transient=True) as bar:
            found = nystrom.select(points, support, labels, fold_of, function, *grid, bar.advance)
        dual = found.dual
    held = found.scores
    slope, offset = fit_platt(held, labels)
    slope = max(slope, _LEAST_SLOPE)
    params |= {"mean": folds.class_means(labels), "slope": np.float32(slope), "offset": np.float32(offset)}
    if model.kernel == "linear":
        params["weights"] = jnp.dot(support.T, dual, precision=jax.lax.Precision.HIGHEST)
    else:
        params |= {"support": support, "dual": dual, "bandwidth": np.float32(found.bandwidth)}
    numbers = {"ridge": found.ridge, "bandwidth": found.bandwidth}
    numbers["out_of_fold_mAP"] = next(value for *pair, value in found.grid if pair == [found.bandwidth, found.ridge])
    notes = [f"bandwidth {b:g}, ridge {r:g}: held-out mAP {100 * value:.2f}" for b, r, value in found.grid]
    return Fitted(params, np.float32(slope) * held + np.float32(offset), numbers, notes)


def _check(model: Model) -> None:
    """UserError for a grid that is empty or has a number that is not above 0, and for impossible parts."""
    for name, values in (("bandwidths", model.bandwidths), ("ridges", model.ridges)):
        if not len(values) or not min(values) > 0:
            raise UserError(f"config.model.{name} = {tuple(values)}: one number or more, all above 0")
    check_least("model.folds", model.folds, 0)
    check_least("model.exact_limit", model.exact_limit, 2)
    check_least("model.landmarks", model.landmarks, 1)
    if model.folds == 1:
        raise UserError("config.model.folds = 1 leaves nothing to fit: 2 or more, or 0 for one image each")
    if model.folds == 0 and model.num_train > model.exact_limit:
        raise UserError(
            f"config.model.folds = 0 would solve {model.num_train:,} systems, one an image: set it to 5 or so, or "
            "config.model.exact_limit to the number of images or more"
        )


def linear_layer(model: Model, variables: dict) -> dict[str, jax.Array]:
    """The same logits as a linear layer on the pooled vector: kernel float32 [D, C] and bias [C].

    Raises UserError for a kernel that is not linear, and for descriptors that no other head pools.
    """
    if model.kernel != "linear" or model.stages or model.parts:
        raise UserError(
            "a classifier can start from kernel ridge where that is linear in the pooled map: train it with "
            "config.model.kernel='linear', without config.model.stages and config.model.parts"
        )
    found = variables["params"]
    kernel = found["slope"] * found["factor"][0] * found["scale"][:, None] * found["weights"]
    centre = jnp.dot(found["centre"], kernel, precision=jax.lax.Precision.HIGHEST)
    return {"kernel": kernel, "bias": found["slope"] * found["mean"] + found["offset"] - centre}


def predict_fn(model: Model, variables: dict, images: jax.Array) -> Prediction:
    """Scores are the float32 logits; which labels count as predicted is a threshold's matter."""
    return Prediction(scores=model.apply(variables, images)["logits"])
