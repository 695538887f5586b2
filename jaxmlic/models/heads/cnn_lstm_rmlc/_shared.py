"""What the three heads share: the regularised loss, and the image preprocessing of Algorithm 2."""

import jax
import jax.numpy as jnp

from jaxmlic.errors import UserError, check_least
from jaxmlic.losses.named import named
from jaxmlic.models.heads.contract import Prediction
from jaxmlic.models.layers import pixels
from jaxmlic.models.trunks import StoredMaps

Array = jax.Array


def prepare(images: Array | StoredMaps, grey: bool, edges: float) -> Array | StoredMaps:
    """Images made grey, and unsharp masked by the amount `edges` where that is not 0; stored maps cannot be."""
    check_least("model.edges", edges, 0)
    if not grey and not edges:
        return images
    if isinstance(images, StoredMaps):
        raise UserError("config.model.grey and config.model.edges change images, and the features are stored ones")
    images = pixels.grey(images) if grey else images
    return pixels.enhance_edges(images, edges) if edges else images


def half_square(kernel: Array) -> Array:
    """tr(W'W) / 2 of eq. 1, float32 []."""
    return 0.5 * jnp.sum(jnp.square(kernel))


def penalty(outputs: dict[str, Array], regulariser: float) -> Array:
    """lambda tr(W'W) / 2, float32 []; UserError for a negative lambda."""
    check_least("loss.regulariser", regulariser, 0)
    return regulariser * outputs["regulariser"]


def loss_fn(
    outputs: dict[str, Array],
    labels: Array,
    *,
    name: str,
    options: tuple = (),
    regulariser: float = 0.0,
    key: Array | None = None,
) -> tuple[Array, dict[str, Array]]:
    """Eq. 1 with any of jaxmlic.losses in place of its sums, float32 [B]; nothing further to log.

    `regulariser` is lambda. The trainer takes the mean over images where eq. 1 has the sum, so that lambda here is the
    paper's divided by the number of images.
    """
    added = penalty(outputs, regulariser)
    return named(name, options, outputs["logits"], labels, key) + added, {}


def predict_fn(model, variables: dict, images: Array) -> Prediction:
    """Scores are the logits."""
    return Prediction(scores=model.apply(variables, images, train=False)["logits"])


def label_embeddings(variables: dict) -> dict[str, Array]:
    """The classifier's weights of each label, float32 [C, D]."""
    return {"classifier": variables["params"]["classifier"]["kernel"].T}
