"""A head's prediction as a StableHLO program: of uint8 pixels, for any number of images, on CPU, GPU and TPU."""

from collections.abc import Callable

import jax
import jax.export
import numpy as np
from flax import traverse_util

from jaxmlic.models.heads import contract

PLATFORMS = ("cpu", "cuda", "tpu")


def arrays_of(variables: dict) -> dict[str, np.ndarray]:
    """{"params/classifier/kernel": array}: the variables as an .npz holds them and the program takes them."""
    return {name: np.asarray(value) for name, value in traverse_util.flatten_dict(variables, sep="/").items()}


def export_program(
    predict: Callable[[dict, jax.Array], contract.Prediction], weights: dict[str, np.ndarray], side: int
) -> bytes:
    """The serialised program (weights, images uint8 [B, side, side, 3]) -> {"scores", and "chosen", "path"}.

    The last two are there where the head gives them. The head sees one image at a time, mapped over a symbolic B: so
    its code needs no word about symbolic shapes, and no image can depend on another.

    Args:
      predict: (variables, images) -> Prediction.
      weights: see `arrays_of`; only their shapes and dtypes enter the program.
      side: of the images.
    """

    def of_one(variables: dict, image: jax.Array) -> dict[str, jax.Array]:
        found = predict(variables, image[None])
        return {name: value[0] for name, value in vars(found).items() if value is not None}

    def of_all(weights: dict[str, jax.Array], images: jax.Array) -> dict[str, jax.Array]:
        variables = traverse_util.unflatten_dict(weights, sep="/")
        return jax.vmap(of_one, in_axes=(None, 0))(variables, images)

    (batch,) = jax.export.symbolic_shape("batch")
    shapes = {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in weights.items()}
    images = jax.ShapeDtypeStruct((batch, side, side, 3), np.uint8)
    return bytes(jax.export.export(jax.jit(of_all), platforms=PLATFORMS)(shapes, images).serialize())
