"""Cached features: `jaxmlic features` runs a frozen trunk once over a data set; any head trains from what it stored.

The config decides everything: the trunk, its weights, the size, the augmentation (which becomes stored views) and
`config.features`. All of that is the cache's key, so a run with `config.data.source="features"` finds the features that
its frozen trunk would compute, or is told what to run. Such a run has the same parameters and checkpoints as one with
the frozen trunk: evaluation and prediction take photographs as ever.

A cache is the folder DATA_SET/1.0.0/features/KEY: manifest.json, and for each split an ArrayRecord file with one record
an image, the raw float16 or bfloat16 values of [views, h, w, D]; where several stages are stored, their values one
after the other, [views, 1, 1, sum of h w D]. View 0 is what evaluation sees; training draws from `Views.draw`. A stored
split's features serve its named parts as well.
"""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import flax.errors
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from array_record.python import array_record_data_source, array_record_module
from ml_collections import ConfigDict
from tqdm import tqdm

from jaxmlic import sharding
from jaxmlic.data import augment, datasets, loader, named_splits
from jaxmlic.errors import UserError
from jaxmlic.inputs import feature_file
from jaxmlic.inputs.images import ImageReader
from jaxmlic.models import trunks
from jaxmlic.models.heads import contract
from jaxmlic.models.layers import pooling
from jaxmlic.models.trunks import pretrained
from jaxmlic.training import optim
from jaxmlic.training import state as state_lib

FORMAT = 1  # raised when what a cache holds changes its meaning
FOLDER, MANIFEST = "features", "manifest.json"
DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
STORES = ("pooled", "map", "stages")
VALUES, STAGE = "features", "stage:"  # keys of a batch: the map, and the beginning of each stage's
POOLS = {"avg": pooling.global_avg_pool, "max": pooling.global_max_pool}


@dataclass(frozen=True)
class Views:
    """What is stored of a training image. View 0 is the image as evaluation sees it.

    Attributes:
      crops: random crops, each mirrored or not by chance; 0 when the config has no cropping.
      flips: whether the mirrored image is stored (without crops).
      resampled: whether training sees the uncropped image through another resize than evaluation, so that it is a view
        of its own.
    """

    crops: int = 0
    flips: bool = False
    resampled: bool = False

    @classmethod
    def of(cls, config: ConfigDict) -> "Views":
        """The views that stand for the config's augmentation."""
        if tuple(config.augment.crop_area) == (1.0, 1.0):
            return cls(flips=config.augment.flip, resampled=config.data.resize not in (0, config.data.image_size))
        if config.features.crops < 1:
            raise UserError(
                f"config.features.crops = {config.features.crops}: config.augment.crop_area asks for random crops, so "
                "at least 1 has to be stored"
            )
        return cls(crops=config.features.crops)

    @property
    def count(self) -> int:
        """Views of a training image, view 0 among them."""
        return 1 + self.crops + int(self.flips) + int(self.resampled)

    def draw(self, key: jax.Array, batch: int) -> jax.Array:
        """int32 [B], the view that each image shows in a training step.

        Without crops it is the same draw as `augment.crop_and_flip` makes from this key, so a run from features takes
        the steps of the run with the frozen trunk.
        """
        if self.crops:
            return jax.random.randint(key, (batch,), 1, 1 + self.crops)
        return augment.draw_flips(key, batch, self.flips).astype(jnp.int32) + int(self.resampled)


def draw(key: jax.Array, batch: dict[str, jax.Array], config: ConfigDict) -> trunks.StoredMaps:
    """One view of each image of a Reader's batch [B, views, h, w, D], as StoredMaps. Pure, for the training step."""
    if config.data.source == "file":
        return inputs(batch)
    view = Views.of(config).draw(key, len(batch["labels"]))
    return _features(batch, lambda x: jnp.take_along_axis(x, view[:, None, None, None, None], axis=1)[:, 0])


def inputs(batch: dict[str, jax.Array]) -> jax.Array | trunks.StoredMaps:
    """What a head is given for evaluation: view 0 of the features of a batch, or its images."""
    return batch["image"] if "image" in batch else _features(batch, lambda x: x[:, 0])


def _features(batch: dict[str, jax.Array], pick: Callable[[jax.Array], jax.Array]) -> trunks.StoredMaps:
    stages = {key.removeprefix(STAGE): pick(x) for key, x in batch.items() if key.startswith(STAGE)}
    return trunks.StoredMaps(pick(batch[VALUES]) if VALUES in batch else None, stages)


def check_source(config: ConfigDict) -> None:
    """UserError for a config.data.source that does not exist, or does not go with the rest."""
    if config.data.source not in ("images", "features", "file"):
        raise UserError(f"config.data.source = {config.data.source!r}; it is 'images', 'features' or 'file'")
    feature_file.check(config)


def check(config: ConfigDict, paces: dict[str, float | None]) -> None:
    """UserError unless the trunk stays as it is all through training, and the config's features can stand for it.

    paces: learning-rate multiplier of every parameter, None = frozen.
    """
    cache, _ = config.features, Views.of(config)
    if cache.dtype not in DTYPES:
        raise UserError(f"config.features.dtype = {cache.dtype!r}; it is {' or '.join(map(repr, DTYPES))}")
    if cache.store not in STORES:
        raise UserError(f"config.features.store = {cache.store!r}; it is {' or '.join(map(repr, STORES))}")
    if cache.store == "pooled" and config.model.get("pool") not in POOLS:
        raise UserError(
            "config.features.store = 'pooled' goes with config.model.pool = 'avg' or 'max', and this one is "
            f"{config.model.get('pool')!r}: set config.features.store='map'"
        )
    if config.augment.mixup != "off":
        raise UserError("config.augment.mixup mixes pixels, which stored features cannot: set it to 'off'")
    if not config.pretrained:
        raise UserError("features of a trunk without weights mean nothing: set config.pretrained=FILE")
    _check_trunk(config)
    if any(pace is not None for name, pace in paces.items() if name.startswith("trunk/")):
        raise UserError(
            "features stand for a frozen trunk, but config.optim.groups trains it: set "
            "config.optim.groups=(('trunk/.*', None), ('.*', 1.0))"
        )


def _check_trunk(config: ConfigDict) -> None:
    """UserError for a trunk whose output in training is not its output in evaluation."""
    module, fields = trunks.get(config.model.trunk)
    trunk, image = module.Trunk(**fields), jnp.zeros((1, config.data.image_size, config.data.image_size, 3))
    shapes = jax.eval_shape(lambda: trunk.init(jax.random.key(0), image, False))
    if "batch_stats" in shapes and config.model.batch_norm != "frozen":
        raise UserError("features stand for a frozen trunk: set config.model.batch_norm='frozen'")
    try:  # without a key for it, dropout cannot be drawn
        jax.eval_shape(lambda variables: trunk.apply(variables, image, True, mutable=["batch_stats"]), shapes)
    except flax.errors.InvalidRngError:
        raise UserError(
            f"trunk {config.model.trunk!r} drops features at random in training, which stored ones cannot: take the "
            "trunk without its fully connected layers"
        ) from None


def key_fields(config: ConfigDict, dataset: datasets.Dataset) -> dict:
    """All that the features depend on, in plain values."""
    views = Views.of(config)
    fields = {
        "format": FORMAT,
        "trunk": config.model.trunk,
        "weights": _file_hash(config.pretrained),
        "compute": config.model.dtype,
        "image_size": config.data.image_size,
        "resize": config.data.resize or config.data.image_size,
        "store": config.features.store,
        "pool": config.model.pool if config.features.store == "pooled" else None,
        "dtype": config.features.dtype,
        "views": dataclasses.asdict(views),
        "images": named_splits.digest({split: dataset.ids(split) for split in dataset.splits}),
        "prepared": dataset.info.get("fingerprint"),
    }
    if config.features.store == "stages":
        fields |= {"stages": list(_stage_names(config)), "map_size": config.model.get("map_size", 0)}
    if views.crops:
        fields |= {
            "crop_area": list(config.augment.crop_area),
            "crop_aspect": list(config.augment.crop_aspect),
            "crop_flip": config.augment.flip,
            "seed": config.seed,
        }
    return fields


def _stage_names(config: ConfigDict) -> tuple[str, ...]:
    return tuple(config.features.stages) or trunks.levels(config.model.trunk)


def _file_hash(path: str) -> str:
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    except OSError as error:
        raise UserError(f"config.pretrained: {path} cannot be read ({error.strerror})") from None
    return digest.hexdigest()


def folder_of(dataset: datasets.Dataset, fields: dict) -> Path:
    """Where the features of this key lie, or will."""
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
    return dataset.path / FOLDER / f"{fields['trunk']}-{fields['image_size']}-{digest[:12]}"


def _file_name(split: str) -> str:
    return split.replace("/", "__") + ".array_record"


class Reader(loader.RowReader):
    """As `ImageReader`, but a batch holds `features` [B, views, h, w, D], or `stage:NAME` of each, for images.

    cache: keep all of it in memory. `train` says whether all views are read, or view 0 alone; `fields` is the
    cache's key, for a caller that has it: it takes reading the weights.
    """

    def __init__(self, view: loader.View, config: ConfigDict, *, train: bool, fields: dict | None = None):
        super().__init__(view)
        fields = key_fields(config, view.dataset) if fields is None else fields
        folder = folder_of(view.dataset, fields)
        num_views = Views.of(config).count if train else 1
        found = _manifest(folder, view, fields, num_views)
        split, self._rows = _place(view, found["splits"], num_views)
        self._shape, self._dtype = tuple(found["splits"][split]), DTYPES[config.features.dtype]
        self._stages = found.get("stages", {}) if config.features.store == "stages" else {}
        self._records = array_record_data_source.ArrayRecordDataSource([str(folder / _file_name(split))])
        if len(self._records) != view.dataset.count(split):
            raise _damaged(folder, f"{_file_name(split)} holds {len(self._records)} records")
        self._num_views = self._shape[0] if train else 1
        self._values = self._read(np.arange(len(view))) if config.data.cache else None

    def __call__(self, rows: np.ndarray) -> loader.Batch:
        """int rows [B] of the view -> features, labels and an all-true mask."""
        values = self._read(rows) if self._values is None else self._values[rows]
        return self.batch(rows, **(self._unpack(values) if self._stages else {VALUES: values}))

    def _unpack(self, values: np.ndarray) -> dict[str, np.ndarray]:
        """[B, views, 1, 1, n] -> the map [B, views, h, w, D] of each stage."""
        arrays, start = {}, 0
        for stage, shape in self._stages.items():
            size = int(np.prod(shape))
            part = values[..., start : start + size].reshape(*values.shape[:2], *shape)
            arrays[STAGE + stage], start = part, start + size
        return arrays

    def _read(self, rows: np.ndarray) -> np.ndarray:
        records = self._records.__getitems__(self._rows[rows].tolist())
        values = np.stack([np.frombuffer(record, self._dtype).reshape(self._shape) for record in records])
        return np.ascontiguousarray(values[:, : self._num_views])


def _place(view: loader.View, splits: dict[str, list[int]], num_views: int) -> tuple[str, np.ndarray] | None:
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
        there = _place(view, manifest["splits"], num_views) is not None
    except FileNotFoundError:
        manifest, there = None, False
    except (OSError, ValueError, KeyError) as error:
        raise _damaged(folder, str(error)) from None
    if not there:
        near = "" if manifest else _nearest(folder.parent, fields)
        raise UserError(
            f"no features of {view.where()} for this config{near}: run `jaxmlic features` with the same --config and "
            "overrides first"
        )
    return manifest


def find(view: loader.View, config: ConfigDict) -> loader.RowReader | None:
    """A reader of view 0, for evaluation, if the config trains from features and they are here; else None."""
    if config.data.source == "file":
        return feature_file.Reader(view, config)
    if config.data.source != "features" or not os.path.isfile(config.pretrained):
        return None
    fields = key_fields(config, view.dataset)
    there = _place(view, _splits_there(folder_of(view.dataset, fields), fields), 1) is not None
    return Reader(view, config, train=False, fields=fields) if there else None


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


def _damaged(folder: Path, why: str) -> UserError:
    return UserError(f"{folder}: damaged features ({why}): remove the folder and run `jaxmlic features` again")


def needed_splits(config: ConfigDict) -> dict[str, bool]:
    """{split: whether training reads it} of a run and its evaluation."""
    splits = {config.data.test_split: False}
    if config.data.val_split:
        splits[config.data.val_split] = False
    return splits | {config.data.train_split: True}


def compute(config: ConfigDict) -> Path:
    """Runs the trunk over every split of the config that is not cached yet; returns the cache's folder.

    Raises UserError as `check` and the weight importer do, for a missing split, and for values that the storage dtype
    cannot hold.
    """
    dataset = datasets.load(config.data.name, config.data.dir or None)
    model = contract.find(config.head).Model(len(dataset.class_names), **config.model)
    check(config, optim.multipliers(config.optim.groups, state_lib.parameter_names(config, model)))
    fields = key_fields(config, dataset)
    folder = folder_of(dataset, fields)
    views = Views.of(config)
    forward, stages = _make_forward(config)
    for split, train in needed_splits(config).items():
        whole = loader.View(dataset, split, np.arange(dataset.count(split)))
        splits = _splits_there(folder, fields)
        found = _place(whole, splits, views.count if train else 1)
        if found is not None:
            also = "" if found[0] == split else f" (in {found[0]!r})"
            print(f"{split}: there already{also}, {len(whole):,} images, {_described(splits[found[0]])}")
            continue
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / _file_name(split)
        partial = path.with_suffix(".partial")
        try:
            shape = _write(partial, whole, config, views if train else Views(), forward)
            partial.replace(path)
            splits = _splits_there(folder, fields) | {split: shape}  # read anew: another process may have written
            manifest = json.dumps({"key": fields, "splits": splits, "stages": stages}, indent=1)
            (folder / f"{MANIFEST}.new").write_text(manifest, encoding="utf-8")
            (folder / f"{MANIFEST}.new").replace(folder / MANIFEST)
        except OSError as error:
            raise UserError(f"{folder}: the features cannot be written ({error.strerror or error})") from None
        finally:
            partial.unlink(missing_ok=True)
        size = path.stat().st_size / 2**20
        print(f"{split}: {len(whole):,} images, {_described(splits[split])}, {size:,.1f} MiB")
    return folder


def _described(shape: list[int]) -> str:
    views, height, width, features = shape
    return f"{views} {'view' if views == 1 else 'views'} of {height} x {width} x {features}"


def _splits_there(folder: Path, fields: dict) -> dict[str, list[int]]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return dict(manifest["splits"]) if manifest["key"] == fields else {}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(folder, str(error)) from None


def _make_forward(config: ConfigDict) -> tuple[Callable[[np.ndarray], np.ndarray], dict[str, list[int]]]:
    """Jitted (float or uint8 images [B, S, S, 3]) -> features [B, h, w, D] in the storage dtype, over all devices.

    And the shape [h, w, D] of each stage in them, where stages are stored.
    """
    trunk, preprocess = trunks.build(config.model.trunk, dtype=config.model.dtype, batch_norm=config.model.batch_norm)
    trunk = trunk.clone(name=None)
    mesh = sharding.make_mesh()
    variables = jax.device_put(pretrained.load(config.pretrained, config.model.trunk), sharding.replicated(mesh))
    store, dtype = config.features.store, DTYPES[config.features.dtype]

    def maps(variables: dict, images: jax.Array) -> dict[str, jax.Array]:
        feature_map, found = trunk.apply(variables, preprocess(images), False)
        if store != "stages":
            return {VALUES: feature_map}
        for stage in _stage_names(config):
            if stage not in found:
                there = ", ".join(found)
                raise UserError(
                    f"config.features.stages: trunk {config.model.trunk!r} has no {stage!r}; it has {there}"
                )
        return {stage: trunks.shrink(found[stage], config.model.get("map_size", 0)) for stage in _stage_names(config)}

    def forward(variables: dict, images: jax.Array) -> jax.Array:
        found = maps(variables, images)
        if store == "pooled":
            return POOLS[config.model.pool](found[VALUES].astype(jnp.float32))[:, None, None, :].astype(dtype)
        if store == "map":
            return found[VALUES].astype(dtype)
        flat = [x.reshape(len(x), 1, 1, -1).astype(dtype) for x in found.values()]
        return jnp.concatenate(flat, axis=-1)

    size = config.data.image_size
    shapes = jax.eval_shape(maps, variables, jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32))
    # In the order of the record; a dict that went through JAX has its keys sorted.
    stages = {stage: list(shapes[stage].shape[1:]) for stage in _stage_names(config)} if store == "stages" else {}
    place = sharding.split(mesh)
    step = jax.jit(forward, in_shardings=(sharding.replicated(mesh), place), out_shardings=place)
    return lambda images: np.asarray(step(variables, jax.device_put(images, place))), stages


def _write(path: Path, view: loader.View, config: ConfigDict, views: Views, forward: Callable) -> list[int]:
    """Writes one split and returns the shape of a record."""
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    shape = None
    try:
        with tqdm(total=len(view), unit=" images", desc=f"{view.dataset.name}/{view.split}", disable=None) as bar:
            for features, mask in _batches(view, config, views, forward):
                if not np.isfinite(features.astype(np.float32)).all():
                    raise UserError(
                        f"features of {view.where()} do not fit config.features.dtype = {config.features.dtype!r} (or "
                        "are not finite): try 'bfloat16'"
                    )
                shape = list(features.shape[1:])
                for record in features[mask]:
                    writer.write(record.tobytes())
                bar.update(int(mask.sum()))
    finally:
        writer.close()
    return shape


def _batches(view: loader.View, config: ConfigDict, views: Views, forward) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(features [B, views, h, w, D], mask [B]) over the whole view, in order."""
    size, data, rules = config.data.image_size, config.data, config.augment
    batch_size = -(-config.train.batch_size // jax.device_count()) * jax.device_count()
    sides = [size] if views.count == 1 else [size, data.resize or size]
    batches = [loader.eval_batches(ImageReader(view, side), batch_size, threads=data.threads) for side in sides]
    whole = jax.jit(functools.partial(augment.whole, size=size))
    crop = jax.jit(
        lambda key, images: augment.crop_and_flip(
            key, images, size, flip=rules.flip, crop_area=rules.crop_area, crop_aspect=rules.crop_aspect
        )
    )
    for number, group in enumerate(zip(*batches, strict=True)):
        images, key = group[-1]["image"], jax.random.fold_in(jax.random.key(config.seed), number)
        parts = [group[0]["image"]]
        if views.resampled:
            parts.append(whole(images, mirrored=np.zeros(batch_size, bool)))
        if views.flips:
            parts.append(whole(images, mirrored=np.ones(batch_size, bool)))
        parts += [crop(jax.random.fold_in(key, i), images) for i in range(views.crops)]
        # float32 for all: one program of the trunk, not one for uint8 and one for float32.
        yield np.stack([forward(np.asarray(part, np.float32)) for part in parts], axis=1), group[0]["mask"]
