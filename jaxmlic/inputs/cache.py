"""Cached features: what `jaxmlic features` stored of a frozen trunk, found by its key and read in place of images.

The config decides everything: the trunk, its weights, the size, the augmentation (which becomes stored views) and
`config.features`. All of that is the cache's key, so a run with `config.data.source="features"` finds the features that
its frozen trunk would compute, or ends in an error that names the command to run. Such a run has the same parameters
and checkpoints as one with the frozen trunk: evaluation and prediction take photographs as ever.

A cache is the folder DATA_SET/1.0.0/features/KEY: manifest.json, and for each split an ArrayRecord file with one record
an image, the raw float16 or bfloat16 values of [views, h, w, D]; where several stages are stored, their values one
after the other, [views, 1, 1, sum of h w D]. View 0 is what evaluation sees; training draws from `Views.draw`. A stored
split's features serve its named parts as well.
"""

import dataclasses
import functools
import hashlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from array_record.python import array_record_data_source
from ml_collections import ConfigDict

from jaxmlic import storage
from jaxmlic.data import augment, datasets, loader, named_splits
from jaxmlic.errors import UserError, check_choice
from jaxmlic.inputs.images import ImageReader
from jaxmlic.inputs.source import STAGE, VALUES, Source, stored_maps
from jaxmlic.inputs.views import Views
from jaxmlic.models import trunks
from jaxmlic.models.heads import contract

FORMAT = 1  # raised when what a cache holds changes its meaning
FOLDER, MANIFEST = "features", "manifest.json"
DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
STORES = ("pooled", "map", "stages")
_HELD_BYTES = 1 << 30  # of features that training keeps in memory in any case
_RECORDS = 1024  # read at once


class CachedSource(Source):
    """Features of the config's frozen trunk."""

    is_stored = reads_arrays = True

    def check_training(self, multipliers: dict[str, float | None]) -> None:
        """UserError unless the trunk stays as it is all through training, and stored features can stand for it."""
        check_storable(self.config, multipliers)

    def train_reader(self, view: loader.View) -> "CachedReader":
        """All views of every image; UserError with the remedy where they are not stored."""
        return CachedReader(view, self.config, train=True)

    def validation_reader(self, view: loader.View) -> "CachedReader":
        """View 0 of every image; UserError with the remedy where it is not stored."""
        return CachedReader(view, self.config, train=False)

    def eval_reader(self, view: loader.View) -> loader.RowReader:
        """View 0 of every image where it is stored and the weights are here to tell; otherwise photographs."""
        if storage.to_path(self.config.pretrained).is_file():
            fields = key_fields(self.config, view.dataset)
            if place(view, splits_there(folder_of(view.dataset, fields), fields), 1) is not None:
                return CachedReader(view, self.config, train=False)
        return ImageReader(view, self.config.data.image_size)

    def training_inputs(
        self, key: jax.Array, batch: dict[str, jax.Array], epoch: jax.Array
    ) -> tuple[trunks.StoredMaps, jax.Array]:
        """One view of each image of a batch [B, views, h, w, D]."""
        view = Views.of(self.config).draw(key, len(batch["labels"]))[:, None, None, None, None]
        return stored_maps(batch, lambda x: jnp.take_along_axis(x, view, axis=1)[:, 0]), batch["labels"]


def reads(config: ConfigDict) -> contract.Reads:
    """What the config's head reads of its trunk."""
    return contract.find(config.head).reads(config.model)


def check_storable(config: ConfigDict, multipliers: dict[str, float | None]) -> None:
    """UserError unless stored features can stand for the config's trunk.

    multipliers: learning-rate multiplier of every parameter, None = frozen.
    """
    Views.of(config)
    check_choice("features.dtype", config.features.dtype, DTYPES)
    check_choice("features.store", config.features.store, STORES)
    reads(config).check_store(config.features.store)
    augment.check_no_pixels("stored features", **config.augment)
    if not config.pretrained:
        raise UserError("features of a trunk without weights mean nothing: set config.pretrained=FILE")
    if trunks.acts_in_training(config.model.trunk, config.model.batch_norm, frozen=True):
        raise UserError("features stand for a frozen trunk: set config.model.batch_norm='frozen'")
    if any(rate is not None for name, rate in multipliers.items() if name.startswith("trunk/")):
        raise UserError(
            "features stand for a frozen trunk, but config.optim.groups trains it: set "
            "config.optim.groups=(('trunk/.*', None), ('.*', 1.0))"
        )


def key_fields(config: ConfigDict, dataset: datasets.Dataset) -> dict:
    """All that the features depend on, in plain values."""
    return config_fields(config) | {
        "format": FORMAT,
        "weights": weights_digest(config.pretrained, "pretrained"),
        "images": named_splits.digest({split: dataset.ids(split) for split in dataset.splits}),
        "prepared": dataset.info.get("fingerprint"),
    }


def config_fields(config: ConfigDict) -> dict:
    """What the features depend on beside the weights and the images, in plain values."""
    views, read = Views.of(config), reads(config)
    fields = {
        "trunk": config.model.trunk,
        "compute": config.model.dtype,
        "image_size": config.data.image_size,
        "resize": config.data.resize or config.data.image_size,
        "store": config.features.store,
        "pool": read.pool if config.features.store == "pooled" else None,
        "dtype": config.features.dtype,
        "views": dataclasses.asdict(views),
    }
    if config.features.store == "stages":
        fields |= {"stages": list(stage_names(config)), "map_size": read.map_size}
    if views.crops:
        fields |= {
            "crop_area": list(config.augment.crop_area),
            "crop_aspect": list(config.augment.crop_aspect),
            "crop_flip": config.augment.flip,
            "seed": config.seed,
        }
    return fields


def weights_digest(path: str, field: str) -> str:
    """The SHA-256 of the file of weights that a field of the config names, read once as long as it stays the same."""
    try:
        local = storage.local_copy(path)
        stat = local.stat()
        return _digest(str(local), stat.st_mtime_ns, stat.st_size)
    except (OSError, UserError) as error:
        raise UserError(f"config.{field}: {path} cannot be read ({storage.reason(error)})") from None


@functools.lru_cache(maxsize=8)
def _digest(path: str, *_: int) -> str:
    return storage.sha256(path)


def stage_names(config: ConfigDict) -> tuple[str, ...]:
    """The stages that are stored: those of the config, else the trunk's levels."""
    return tuple(config.features.stages) or trunks.levels(config.model.trunk)


def folder_of(dataset: datasets.Dataset, fields: dict) -> Path:
    """Where the features of this key lie, or will."""
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
    folder = dataset.path / FOLDER / f"{fields['trunk']}-{fields['image_size']}-{digest[:12]}"
    dataset.fetch(folder)
    return folder


def file_name(split: str) -> str:
    """Of a split's ArrayRecord."""
    return split.replace("/", "__") + ".array_record"


class CachedReader(loader.RowReader):
    """As `ImageReader`, but a batch holds `features` [B, views, h, w, D], or `stage:NAME` of each, for images.

    With `config.data.cache` all of it is kept in memory; training does so with up to 1 GiB in any case. `train` says
    whether all views are read, or view 0 alone.
    """

    def __init__(self, view: loader.View, config: ConfigDict, *, train: bool):
        super().__init__(view)
        fields = key_fields(config, view.dataset)
        folder = folder_of(view.dataset, fields)
        num_views = Views.of(config).count if train else 1
        found = _manifest(folder, view, fields, num_views)
        split, self._rows = place(view, found["splits"], num_views)
        self._shape, self._dtype = tuple(found["splits"][split]), DTYPES[config.features.dtype]
        self._stages = found.get("stages", {}) if config.features.store == "stages" else {}
        self._records = array_record_data_source.ArrayRecordDataSource([str(folder / file_name(split))])
        if len(self._records) != view.dataset.count(split):
            raise damaged(folder, f"{file_name(split)} holds {len(self._records)} records")
        self._num_views = self._shape[0] if train else 1
        key = (str(folder), split, self._num_views)
        self.stored = loader.Stored(key, self._rows, self._read, self._unpack)
        self._values = self._read_all() if config.data.cache else None

    def __call__(self, rows: np.ndarray) -> loader.Batch:
        """int rows [B] of the view -> features, labels and an all-true mask."""
        values = self._read(self._rows[rows]) if self._values is None else self._values[rows]
        return self.batch(rows, **self._unpack(values))

    def hold(self) -> bool:
        """Whether all values are in memory, where up to 1 GiB of them is read now."""
        size = len(self) * self._num_views * int(np.prod(self._shape[1:])) * np.dtype(self._dtype).itemsize
        if self._values is None and size <= _HELD_BYTES:
            self._values = self._read_all()
        return self._values is not None

    def _unpack(self, values: np.ndarray) -> dict[str, np.ndarray]:
        """[B, views, 1, 1, n] -> the map [B, views, h, w, D] of each stage, or the values as they are."""
        if not self._stages:
            return {VALUES: values}
        arrays, start = {}, 0
        for stage, shape in self._stages.items():
            size = int(np.prod(shape))
            part = values[..., start : start + size].reshape(*values.shape[:2], *shape)
            arrays[STAGE + stage], start = part, start + size
        return arrays

    def _read_all(self) -> np.ndarray:
        values = np.empty((len(self), self._num_views, *self._shape[1:]), self._dtype)
        for start in range(0, len(self), _RECORDS):
            values[start : start + _RECORDS] = self._read(self._rows[start : start + _RECORDS])
        return values

    def _read(self, records: np.ndarray) -> np.ndarray:
        found = self._records.__getitems__(records.tolist())
        values = np.stack([np.frombuffer(record, self._dtype).reshape(self._shape) for record in found])
        return np.ascontiguousarray(values[:, : self._num_views])


def place(view: loader.View, splits: dict[str, list[int]], num_views: int) -> tuple[str, np.ndarray] | None:
    """Which of a cache's splits holds the view's examples, and as which of its records, int64 [N]; None if none does.

    The images of a named split lie in stored ones: features of a whole stored split serve every part of it, provided
    that so many views were stored (of a split that only evaluation reads it is one).
    """
    if view.split in splits and splits[view.split][0] >= num_views:
        return view.split, view.indices
    rows = view.dataset.rows(view.split)
    for split, shape in splits.items():
        if split in view.dataset.splits and shape[0] >= num_views:
            stored = view.dataset.rows(split)
            if rows.min() >= stored[0] and rows.max() <= stored[-1]:
                return split, (rows - stored[0])[view.indices]
    return None


def _manifest(folder: Path, view: loader.View, fields: dict, num_views: int) -> dict:
    """The manifest, with [views, h, w, D] of the split's records; UserError when there is no such cache, with what
    there is instead."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        there = place(view, manifest["splits"], num_views) is not None
    except FileNotFoundError:
        manifest, there = None, False
    except (OSError, ValueError, KeyError) as error:
        raise damaged(folder, str(error)) from None
    if not there:
        near = "" if manifest else _nearest(folder.parent, fields)
        raise UserError(
            f"no features of {view.where()} for this config{near}: run `jaxmlic features` with the same --config and "
            "overrides first"
        )
    return manifest


def _nearest(parent: Path, fields: dict) -> str:
    """What differs in the cache that is most like the one wanted."""
    found = []
    for path in sorted(parent.glob(f"*/{MANIFEST}")):
        try:
            other = json.loads(path.read_text(encoding="utf-8"))["key"]
        except (OSError, ValueError, KeyError):
            continue
        differing = [name for name in fields if other.get(name) != fields[name]]
        found.append((len(differing), [f"{name} {other.get(name)!r}, not {fields[name]!r}" for name in differing]))
    if not found:
        return ""
    return f" (there are some of {'; '.join(min(found)[1])[:300]})"


def damaged(folder: Path, why: str) -> UserError:
    """The error of a cache that cannot be read."""
    return UserError(f"{folder}: damaged features ({why}): remove the folder and run `jaxmlic features` again")


def splits_there(folder: Path, fields: dict) -> dict[str, list[int]]:
    """{split: shape of a record} of the cache in a folder, if it is the one of this key."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return dict(manifest["splits"]) if manifest["key"] == fields else {}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(folder, str(error)) from None
