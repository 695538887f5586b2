"""2PKNN (Verma and Jawahar, ECCV 2012) on a frozen trunk: labels of the nearest training images that have each label.

Group size and bandwidth are those with the best mean average precision of the training images, each scored by the
others. The parameters are the training images' points and labels.
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxmlic.errors import UserError
from jaxmlic.kernels.nearest import two_pass, two_pass_held_out
from jaxmlic.metrics import average_precision
from jaxmlic.metrics.calibration import fit_platt
from jaxmlic.models.heads._descriptors import DescriptorModel, describe_fn, reads
from jaxmlic.models.heads.contract import Fitted, Prediction
from jaxmlic.models.trunks import Descriptor

__all__ = ["Model", "describe_fn", "fit_fn", "predict_fn", "reads"]

_FLOOR = 1e-30  # of sums of weights, before their logarithm
_LEAST_SLOPE = 1e-3  # of the logits by the log scores: their order stays


class Model(DescriptorModel):
    """Images to label logits.

    Attributes:
      group_sizes: K1, images of each label in the first pass; one is selected.
      bandwidths: of exp(-bandwidth d) in the second pass, d the mean over descriptors of 2 - 2 cos, each divided by its
        mean over the training images; one is selected.
    """

    group_sizes: tuple[int, ...] = (2, 4, 8)
    bandwidths: tuple[float, ...] = (2.0, 5.0, 10.0, 20.0)

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        train: bool = False,
        labels: jax.Array | None = None,
        frozen_trunk: bool = False,
    ) -> dict[str, jax.Array]:
        """As `kernel_ridge.Model`."""
        found = self.descriptors(images)
        points = self.points(found, unit=True)
        zeros, ones = nn.initializers.zeros, nn.initializers.ones
        support = self.param("support", zeros, (self.num_train, points.shape[1]))
        positive = self.param("positive", zeros, (self.num_train, self.num_labels))
        group_size, bandwidth = self.param("group_size", ones, ()), self.param("bandwidth", ones, ())
        slope, offset = self.param("slope", ones, ()), self.param("offset", zeros, ())
        sums = two_pass(support, positive > 0, points, group_size, bandwidth[None])[:, 0]
        return {"descriptors": found, "pooled": points, "logits": slope * jnp.log(sums + _FLOOR) + offset}


def fit_fn(
    model: Model,
    descriptors: Sequence[Descriptor],
    labels: np.ndarray,
    seed: int,
    report: Callable[[str], None] = lambda line: None,
) -> Fitted:
    """As `kernel_ridge.fit_fn`; unknown labels (-1) of neighbours count as absent. Nothing is drawn."""
    for name, values in (("group_sizes", model.group_sizes), ("bandwidths", model.bandwidths)):
        if not len(values) or not min(values) > 0:
            raise UserError(f"config.model.{name} = {tuple(values)}: one number or more, all above 0")
    params, points = model.fitted_points(descriptors, unit=True)
    positive, widths, grid, best = labels == 1, np.float32(model.bandwidths), [], None
    report(f"scoring {len(labels):,} images by all others")
    sums = two_pass_held_out(points, positive, model.group_sizes, widths)
    for group_size, by_width in zip(model.group_sizes, sums, strict=True):
        for width, found in zip(model.bandwidths, by_width, strict=True):
            held = np.log(found + np.float32(_FLOOR))
            ap = average_precision(held, labels)
            value = float(np.nanmean(ap)) if np.isfinite(ap).any() else float("nan")
            grid.append((group_size, width, value))
            if best is None or value > best[0]:
                best = (value, group_size, width, held)
    value, group_size, width, held = best
    slope, offset = fit_platt(held, labels)
    slope = max(slope, _LEAST_SLOPE)
    params |= {"support": points, "positive": positive.astype(np.float32), "group_size": np.float32(group_size)}
    params |= {"bandwidth": np.float32(width), "slope": np.float32(slope), "offset": np.float32(offset)}
    numbers = {"group_size": group_size, "bandwidth": width, "out_of_fold_mAP": value}
    notes = [f"{size} of each label, bandwidth {width:g}: mAP {100 * value:.2f}" for size, width, value in grid]
    return Fitted(params, np.float32(slope) * held + np.float32(offset), numbers, notes)


def predict_fn(model: Model, variables: dict, images: jax.Array) -> Prediction:
    """Scores are the float32 logits; which labels count as predicted is a threshold's matter."""
    return Prediction(scores=model.apply(variables, images)["logits"])
