"""What a head is fed of descriptor sets: stored ones, or computed of photographs."""

import hashlib
import json
import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlic import sharding
from jaxmlic.data import augment, loader
from jaxmlic.errors import UserError
from jaxmlic.inputs import cache
from jaxmlic.inputs.descriptors import stored
from jaxmlic.inputs.descriptors.descriptor_set import DescriptorSet
from jaxmlic.inputs.descriptors.recipe import sets_of, vectors
from jaxmlic.inputs.descriptors.trunk_set import TrunkSet
from jaxmlic.inputs.source import Source, descriptor_key, eval_inputs
from jaxmlic.models import trunks


class DescriptorSource(Source):
    """The sets of `config.features.sets`; the model has no trunk of its own."""

    is_stored = reads_arrays = True
    sets: list[DescriptorSet]

    def check(self) -> None:
        """UserError for fields that descriptors leave without a meaning, and for sets that are none."""
        config, read = self.config, cache.reads(self.config)
        self.sets = sets_of(config)
        if config.data.features_file:
            raise UserError("config.data.features_file is read with config.data.source='file' alone")
        if config.pretrained:
            raise UserError("config.pretrained is for one trunk; the weights of sets are in config.features.weights")
        if read.stages is not None:
            raise UserError(
                f"config.features.sets gives vectors, and this head ({config.head}) reads stages of a trunk: choose "
                "another head, or set config.model.stages=() where there is such a field"
            )
        if config.model.get("parts"):
            raise UserError("config.model.parts is for a file of features; sets know their sizes: leave it out")
        augment.check_no_pixels("descriptors", **config.augment)

    @property
    def pretrained_trunks(self) -> tuple[str, ...]:
        """Those of the sets."""
        return tuple(dict.fromkeys(one.trunk for one in self.sets if isinstance(one, TrunkSet)))

    def check_pixels(self, workdir: str | os.PathLike) -> None:
        """Always a UserError: descriptors are made outside the model."""
        raise UserError(
            f"{os.fspath(workdir)} reads descriptors of images (config.features.sets), which are computed outside of "
            "its model: there are no maps over pixels, and it cannot be exported or served; `jaxmlic predict` labels "
            "photographs"
        )

    @property
    def side(self) -> None:
        """Every set resizes in its own way."""
        return None

    def photographs(self, images: Sequence[np.ndarray], count: int, mesh: jax.sharding.Mesh) -> trunks.StoredMaps:
        """Descriptors of images uint8 [H, W, 3], computed here."""
        self.check_weights()
        found = self.describe(images, count)
        values = np.zeros((count, 1, found.shape[1]), found.dtype)
        values[: len(images), 0] = found
        return jax.tree.map(lambda x: sharding.place(x, sharding.split(mesh)), eval_inputs(unpack(self.sets, values)))

    def describe(self, images: Sequence[np.ndarray], count: int) -> np.ndarray:
        """[N, D] of images, rounded as they would be stored, so that scores are the same either way."""
        return vectors(self.sets, images, count).astype(cache.DTYPES[self.config.features.dtype])

    def check_weights(self) -> None:
        """UserError where a finished run learned from descriptors by other weights than those of its sets now."""
        if self.trained_on and not self.trained_on.startswith(self._digest()):
            raise UserError(
                f"config.features.weights: {self.config.features.weights} holds other weights than those that the run "
                "was trained with: give it the same files again"
            )

    def _digest(self) -> str:
        fields = [one.key_fields() for one in self.sets]
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]

    def fingerprint(self, view: loader.View) -> str:
        """Of the sets with their weights, and of the pixels."""
        return self._digest() + super().fingerprint(view)

    def example(self) -> trunks.StoredMaps:
        """Zeros of the descriptors of one image."""
        return eval_inputs(unpack(self.sets, jnp.zeros((1, 1, sum(one.size for one in self.sets)), jnp.float32)))

    def record_shapes(self) -> dict[str, tuple[tuple[int, ...], jnp.dtype]]:
        """The descriptors of an image."""
        dtype = jnp.dtype(cache.DTYPES[self.config.features.dtype])
        arrays = unpack(self.sets, np.zeros((1, 1, sum(one.size for one in self.sets)), np.float32))
        return {key: (x.shape[1:], dtype) for key, x in arrays.items()}

    def eval_reader(self, view: loader.View) -> loader.RowReader:
        """Stored descriptors where all sets have them and the weights are here to tell; otherwise computed ones."""
        try:
            return DescriptorReader(view, self)
        except NotStoredError:
            return PhotographReader(view, self)

    def train_reader(self, view: loader.View) -> "DescriptorReader":
        """UserError with the remedy where a set is not stored."""
        return DescriptorReader(view, self)

    validation_reader = train_reader

    def training_inputs(
        self, key: jax.Array, batch: dict[str, jax.Array], epoch: jax.Array
    ) -> tuple[trunks.StoredMaps, jax.Array]:
        """The descriptors as they are: views are averaged, none is drawn."""
        return eval_inputs(batch), batch["labels"]


class NotStoredError(UserError):
    """A set is not stored for a split."""


def unpack(sets: Sequence[DescriptorSet], values: np.ndarray | jax.Array) -> dict[str, np.ndarray | jax.Array]:
    """[B, 1, D] of all sets side by side -> {key: [B, 1, D_m]} of each descriptor, the arrays of a batch."""
    arrays, start = {}, 0
    for number, part in enumerate(part for one in sets for part in one.parts):
        arrays[descriptor_key(number, part.group, part.standardise)] = values[..., start : start + part.size]
        start += part.size
    return arrays


class DescriptorReader(loader.RowReader):
    """As `ImageReader`, but a batch holds each descriptor [B, 1, D_m] for images."""

    def __init__(self, view: loader.View, source: DescriptorSource):
        super().__init__(view)
        found: list[stored.Stored] = []
        for one in source.sets:
            parts = stored.find(source.config, one, view)
            if parts is None:
                raise NotStoredError(
                    f"no {one.name!r} of {view.where()} for this config: run `jaxmlic features` with the same --config "
                    "and overrides first"
                )
            found += parts
        rows, key = found[0].rows, tuple(str(part.path) for part in found)
        if any(not np.array_equal(rows, part.rows) for part in found):  # some are stored of other splits than others
            rows, key = np.arange(len(view)), (*key, view.split, view.indices.tobytes())
            self._columns = [(part.values, part.rows) for part in found]
        else:
            self._columns = [(part.values, np.arange(len(part.values))) for part in found]
        self.stored = loader.Stored(key, rows, self._read, lambda values: unpack(source.sets, values))

    def __call__(self, rows: np.ndarray) -> loader.Batch:
        """int rows [B] of the view -> descriptors, labels and an all-true mask."""
        return self.batch(rows, **self.stored.unpack(self._read(self.stored.records[rows])))

    def _read(self, records: np.ndarray) -> np.ndarray:
        return np.concatenate([values[rows[records]] for values, rows in self._columns], axis=1)[:, None]


class PhotographReader(loader.RowReader):
    """The same batches, computed of the data set's photographs."""

    def __init__(self, view: loader.View, source: DescriptorSource):
        super().__init__(view)
        source.check_weights()
        self._source, self._records = source, view.dataset.source(view.split)

    def __call__(self, rows: np.ndarray) -> loader.Batch:
        """int rows [B] of the view -> descriptors, labels and an all-true mask."""
        images = [stored.read_image(self._records[int(self.view.indices[row])], self.view) for row in rows]
        return self.batch(rows, **unpack(self._source.sets, self._source.describe(images, len(rows))[:, None]))
