"""TagProp (Guillaumin, Mensink, Verbeek and Schmid, ICCV 2009) on a frozen trunk: see `jaxmlic.kernels.tagprop`.

The parameters are the training images' points and labels, the weights of ranks or distances, and the sigmoids.
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxmlic import progress
from jaxmlic.errors import UserError, check_choice, check_least
from jaxmlic.kernels import tagprop
from jaxmlic.kernels.nearest import nearest
from jaxmlic.metrics import average_precision
from jaxmlic.models.heads._descriptors import DescriptorModel, describe_fn, reads
from jaxmlic.models.heads.contract import Fitted, Prediction
from jaxmlic.models.trunks import Descriptor

__all__ = ["Model", "describe_fn", "fit_fn", "predict_fn", "reads"]


class Model(DescriptorModel):
    """Images to label logits.

    Attributes:
      form: "rank", a weight for each rank (RK), or "distance", exp of a learned combination of the descriptors'
        distances (SD for one, ML for several).
      sigmoids: whether each label has a sigmoid of its own.
      neighbours: K; with fewer other training images, all of them.
      rounds: of the fit, each with sigmoids and 20 steps of EM or gradient.
    """

    form: str = "distance"
    sigmoids: bool = True
    neighbours: int = 200
    rounds: int = 5

    @property
    def num_neighbours(self) -> int:
        """K, at most the other training images."""
        return max(1, min(self.neighbours, self.num_train - 1))

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        train: bool = False,
        labels: jax.Array | None = None,
        frozen_trunk: bool = False,
    ) -> dict[str, jax.Array]:
        """As `kernel_ridge.Model`."""
        check_choice("model.form", self.form, tagprop.FORMS)
        found = self.descriptors(images)
        points = self.points(found, unit=True)
        zeros, count = nn.initializers.zeros, self.num_neighbours
        support = self.param("support", zeros, (self.num_train, points.shape[1]))
        positive = self.param("positive", zeros, (self.num_train, self.num_labels))
        theta = self.param("theta", zeros, (count if self.form == "rank" else len(found),))
        sigmoids = [self.param(name, zeros, (self.num_labels,)) for name in ("slope", "offset") if self.sigmoids]
        rows, _ = nearest(support, points, count)
        weights = tagprop.weights_of(theta, _distances(points, support, rows, found), self.form)
        x = tagprop.shares(weights, rows, positive > 0)
        learned = tagprop.TagProp(theta, *(sigmoids or [jnp.zeros(0)] * 2))
        return {"descriptors": found, "pooled": points, "logits": tagprop.logits(learned, x)}


def _distances(queries: jax.Array, points: jax.Array, rows: jax.Array, descriptors: Sequence[Descriptor]) -> jax.Array:
    """float32 [Q, K, M]: of each descriptor's part of the points, one neighbour after the other."""
    sizes = [one.values.shape[1] for one in descriptors]
    parts = [slice(end - size, end) for size, end in zip(sizes, np.cumsum(sizes), strict=True)]

    def of_rank(rows: jax.Array) -> jax.Array:
        squares = (queries - points[rows]) ** 2
        return jnp.stack([jnp.sum(squares[:, part], axis=1) for part in parts], axis=1)

    return jax.lax.map(of_rank, rows.T).transpose(1, 0, 2)


def fit_fn(
    model: Model,
    descriptors: Sequence[Descriptor],
    labels: np.ndarray,
    seed: int,
    report: Callable[[str], None] = lambda line: None,
) -> Fitted:
    """As `kernel_ridge.fit_fn`, without a selection. Nothing is drawn.

    No image is among its own neighbours, but the few weights and the sigmoids have seen the labels of all.
    """
    check_choice("model.form", model.form, tagprop.FORMS)
    check_least("model.neighbours", model.neighbours, 1)
    check_least("model.rounds", model.rounds, 1)
    if len(labels) < 2:
        raise UserError("neighbours need two training images or more")
    params, points = model.fitted_points(descriptors, unit=True)
    rows, _ = nearest(points, points, model.num_neighbours, np.arange(len(labels)))
    distances = jax.jit(_distances)(points, points, rows, list(descriptors))
    report(f"learning weights of {rows.shape[1]} neighbours")
    how = {"sigmoids": model.sigmoids, "rounds": model.rounds}
    with progress.Progress("learning", model.rounds, "rounds", transient=True) as bar:
        learned, curve = tagprop.fit(distances, rows, labels, model.form, report=bar.advance, **how)
    x = tagprop.shares(tagprop.weights_of(learned.theta, distances, model.form), rows, labels == 1)
    held = np.asarray(tagprop.logits(learned, x))
    params |= {"support": points, "positive": (labels == 1).astype(np.float32), "theta": learned.theta}
    if model.sigmoids:
        params |= {"slope": learned.slope, "offset": learned.offset}
    ap = average_precision(held, labels)
    value = float(np.nanmean(ap)) if np.isfinite(ap).any() else float("nan")
    notes = [f"objective after each round: {', '.join(f'{x:.4f}' for x in curve)}"]
    return Fitted(params, held, {"out_of_fold_mAP": value, "objective": curve[-1]}, notes)


def predict_fn(model: Model, variables: dict, images: jax.Array) -> Prediction:
    """Scores are the float32 logits; which labels count as predicted is a threshold's matter."""
    return Prediction(scores=model.apply(variables, images)["logits"])
