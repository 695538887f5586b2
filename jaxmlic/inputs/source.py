"""What every kind of input offers the trainer and the evaluator."""

import abc
import os
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxmlic import sharding
from jaxmlic.data.loader import RowReader, View
from jaxmlic.errors import UserError
from jaxmlic.models import trunks

# Keys of a batch: the feature map, and the beginning of each stage's and of each descriptor's.
VALUES, STAGE, DESCRIPTOR = "features", "stage:", "descriptor:"

Inputs = jax.Array | trunks.StoredMaps


class Source(abc.ABC):
    """Where a run's inputs come from. `config` is the whole config of the run.

    Attributes:
      is_stored: whether `jaxmlic features` makes what it reads.
      reads_arrays: whether its readers take batches from arrays, their `stored`.
      trained_on: of a finished run, the `fingerprint` of its training images; "" where that is not known.
    """

    is_stored = reads_arrays = False
    trained_on = ""

    def __init__(self, config: ConfigDict):
        self.config = config

    def check(self) -> None:
        """UserError for fields that do not go with this source."""
        if self.config.data.features_file:
            raise UserError("config.data.features_file is read with config.data.source='file' alone: set it too")
        if self.config.features.sets:
            raise UserError("config.features.sets is read with config.data.source='descriptors' alone: set it too")

    @property
    def pretrained_trunks(self) -> tuple[str, ...]:
        """The trunks that a file of pretrained weights is read for, where the run starts from such."""
        trunk = self.config.model.get("trunk", "")
        return (trunk,) if trunk and trunks.has_pretrained(trunk) else ()

    def check_photographs(self, workdir: str | os.PathLike) -> None:
        """UserError where the run in `workdir`, trained on this source, has no trunk to read photographs with."""
        del workdir

    def check_pixels(self, workdir: str | os.PathLike) -> None:
        """As `check_photographs`, for what gives pixels to the model itself: maps, gradients, a bundle, a service."""
        self.check_photographs(workdir)

    @property
    def side(self) -> int | None:
        """Of the square that photographs are resized to for `photographs`; None where it takes them as they are."""
        return self.config.data.image_size

    def photographs(self, images: Sequence[np.ndarray], count: int, mesh: jax.sharding.Mesh) -> Inputs:
        """Inputs of images uint8 [H, W, 3], zero-padded to `count` of them and divided over the devices."""
        batch = np.zeros((count, *images[0].shape), np.uint8)
        np.stack(images, out=batch[: len(images)])
        return sharding.place(batch, sharding.split(mesh))

    def fingerprint(self, view: View) -> str:
        """Changes when what is read for the images of a view does; "" where that is not known."""
        return str(view.dataset.info.get("fingerprint", ""))

    def check_training(self, multipliers: dict[str, float | None]) -> None:
        """UserError where training would change what is stored. multipliers: of each parameter, None = frozen."""
        del multipliers

    def example(self) -> Inputs:
        """Zeros of the inputs of one image, for initialising a model."""
        size = self.config.data.image_size
        return jnp.zeros((1, size, size, 3), jnp.uint8)

    def record_shapes(self) -> dict[str, tuple[tuple[int, ...], jnp.dtype]]:
        """{array of a training batch: (its shape without the axis of images, dtype)}, without labels and mask."""
        side = self.config.data.resize or self.config.data.image_size
        return {"image": ((side, side, 3), jnp.uint8)}

    @abc.abstractmethod
    def train_reader(self, view: View) -> RowReader:
        """Reads what training draws from."""

    @abc.abstractmethod
    def validation_reader(self, view: View) -> RowReader:
        """Reads what the run's own validation scores."""

    @abc.abstractmethod
    def eval_reader(self, view: View) -> RowReader:
        """Reads any split for evaluation: what is stored where it is there, otherwise photographs."""

    @abc.abstractmethod
    def training_inputs(
        self, key: jax.Array, batch: dict[str, jax.Array], epoch: jax.Array
    ) -> tuple[Inputs, jax.Array]:
        """(inputs, labels int8 [B, C]) of a training step, drawn with `key`. Pure."""


def eval_inputs(batch: dict[str, jax.Array]) -> Inputs:
    """What a head is given for evaluation: the images of a batch, or view 0 of its features."""
    return batch["image"] if "image" in batch else stored_maps(batch, lambda x: x[:, 0])


def stored_maps(batch: dict[str, jax.Array], pick: Callable[[jax.Array], jax.Array]) -> trunks.StoredMaps:
    """The features of a batch, of whose arrays [B, views, h, w, D] `pick` takes one view of each image."""
    stages = {key.removeprefix(STAGE): pick(x) for key, x in batch.items() if key.startswith(STAGE)}
    keys = sorted(key for key in batch if key.startswith(DESCRIPTOR))
    descriptors = tuple(trunks.Descriptor(pick(batch[key]), *_described(key)) for key in keys)
    return trunks.StoredMaps(pick(batch[VALUES]) if VALUES in batch else None, stages, descriptors)


def descriptor_key(number: int, group: str, standardise: bool) -> str:
    """Of a batch's array [B, views, D]: keys sort in the order of the descriptors."""
    return f"{DESCRIPTOR}{number:04d}:{int(standardise)}:{group}"


def _described(key: str) -> tuple[str, bool]:
    """(group, standardise) of `descriptor_key`."""
    _, _, standardise, group = key.split(":", 3)
    return group, standardise == "1"
