"""Runs a frozen trunk once over a data set and stores what it gives: `jaxmlic features`."""

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from array_record.python import array_record_module
from ml_collections import ConfigDict

from jaxmlic import distributed, progress, sharding, storage
from jaxmlic.data import augment, datasets, loader
from jaxmlic.errors import UserError
from jaxmlic.inputs import cache
from jaxmlic.inputs.images import ImageReader
from jaxmlic.inputs.source import VALUES
from jaxmlic.inputs.views import Views
from jaxmlic.models import trunks
from jaxmlic.models.layers.pooling import POOLS
from jaxmlic.models.trunks import pretrained


def needed_splits(config: ConfigDict) -> dict[str, bool]:
    """{split: whether training reads it} of a run and its evaluation."""
    splits = {config.data.test_split: False}
    if config.data.val_split:
        splits[config.data.val_split] = False
    return splits | {config.data.train_split: True}


def compute(
    config: ConfigDict, multipliers: dict[str, float | None], report: Callable[[str], None] = lambda line: None
) -> Path:
    """Runs the trunk over every split of the config that is not cached yet; returns the cache's folder.

    multipliers: learning-rate multiplier of every parameter, None = frozen.
    report: gets a line for each split.

    Raises UserError as `cache.check_storable` and the weight importer do, for a missing split, and for values that
    the storage dtype cannot hold.
    """
    dataset = datasets.load(config.data.name, config.data.dir or None)
    cache.check_storable(config, multipliers)
    fields = cache.key_fields(config, dataset)
    folder = cache.folder_of(dataset, fields)
    views = Views.of(config)
    mesh = sharding.make_mesh()
    forward, stages = _make_forward(config, mesh)
    for split, train in needed_splits(config).items():
        whole = loader.View(dataset, split, np.arange(dataset.count(split)))
        splits = cache.splits_there(folder, fields)
        found = cache.place(whole, splits, views.count if train else 1)
        if found is not None:
            also = "" if found[0] == split else f" (in {found[0]!r})"
            report(f"{split}: there already{also}, {len(whole):,} images, {_described(splits[found[0]])}")
            continue
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / cache.file_name(split)
        partial = path.with_suffix(".partial")
        try:
            shape = _write(partial, whole, _batches(whole, config, views if train else Views(), forward, mesh), config)
            if distributed.is_main():
                partial.replace(path)
            splits = cache.splits_there(folder, fields) | {split: shape}  # read anew: another process may have written
            storage.write_text(
                folder / cache.MANIFEST, json.dumps({"key": fields, "splits": splits, "stages": stages}, indent=1)
            )
        except OSError as error:
            raise UserError(f"{folder}: the features cannot be written ({storage.reason(error)})") from None
        finally:
            if distributed.is_main():
                partial.unlink(missing_ok=True)
        dataset.publish(path)
        dataset.publish(folder / cache.MANIFEST)
        distributed.wait_for_all(f"features {split}")
        dataset.fetch(folder)
        size = path.stat().st_size / 2**20
        report(f"{split}: {len(whole):,} images, {_described(splits[split])}, {size:,.1f} MiB")
    return folder


def _described(shape: list[int]) -> str:
    views, height, width, features = shape
    return f"{views} {'view' if views == 1 else 'views'} of {height} x {width} x {features}"


def _make_forward(
    config: ConfigDict, mesh: jax.sharding.Mesh
) -> tuple[Callable[[jax.Array], np.ndarray], dict[str, list[int]]]:
    """(images float32 [B, S, S, 3], divided over the devices) -> features [B, h, w, D] in the storage dtype, numpy.

    And the shape [h, w, D] of each stage in them, where stages are stored.
    """
    trunk, preprocess = trunks.build(config.model.trunk, dtype=config.model.dtype, batch_norm=config.model.batch_norm)
    trunk = trunk.clone(name=None)
    everywhere = sharding.replicated(mesh)
    variables = jax.tree.map(
        lambda value: sharding.place(value, everywhere), pretrained.load(config.pretrained, config.model.trunk)
    )
    read, store = cache.reads(config), config.features.store
    dtype = cache.DTYPES[config.features.dtype]

    def maps(variables: dict, images: jax.Array) -> dict[str, jax.Array]:
        feature_map, found = trunk.apply(variables, preprocess(images), False)
        if store != "stages":
            return {VALUES: feature_map}
        for stage in cache.stage_names(config):
            if stage not in found:
                there = ", ".join(found)
                raise UserError(
                    f"config.features.stages: trunk {config.model.trunk!r} has no {stage!r}; it has {there}"
                )
        return {stage: trunks.shrink(found[stage], read.map_size) for stage in cache.stage_names(config)}

    def forward(variables: dict, images: jax.Array) -> jax.Array:
        found = maps(variables, images)
        if store == "pooled":
            return POOLS[read.pool](found[VALUES].astype(jnp.float32))[:, None, None, :].astype(dtype)
        if store == "map":
            return found[VALUES].astype(dtype)
        flat = [x.reshape(len(x), 1, 1, -1).astype(dtype) for x in found.values()]
        return jnp.concatenate(flat, axis=-1)

    size = config.data.image_size
    shapes = jax.eval_shape(maps, variables, jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32))
    # In the order of the record; a dict that went through JAX has its keys sorted.
    stages = {stage: list(shapes[stage].shape[1:]) for stage in cache.stage_names(config)} if store == "stages" else {}
    place = sharding.split(mesh)
    step = jax.jit(forward, in_shardings=(everywhere, place), out_shardings=place)
    return lambda images: sharding.gather(step(variables, images)), stages


def _write(path: Path, view: loader.View, batches: Iterator, config: ConfigDict) -> list[int]:
    """Writes one split, of several processes the first one, and returns the shape of a record."""
    writer, shape = None, None
    if distributed.is_main():
        writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    try:
        with progress.Progress(f"features of {view.dataset.name}/{view.split}", len(view)) as bar:
            for features, mask in batches:
                if not np.isfinite(features.astype(np.float32)).all():
                    raise UserError(
                        f"features of {view.where()} do not fit config.features.dtype = {config.features.dtype!r} (or "
                        "are not finite): try 'bfloat16'"
                    )
                shape = list(features.shape[1:])
                for record in features[mask] if writer else ():
                    writer.write(record.tobytes())
                bar.advance(int(mask.sum()))
    finally:
        if writer:
            writer.close()
    return shape


def _batches(
    view: loader.View, config: ConfigDict, views: Views, forward: Callable, mesh: jax.sharding.Mesh
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(features [B, views, h, w, D], mask [B]) over the whole view, in order, on every process; each decodes a part."""
    size, data, rules = config.data.image_size, config.data, config.augment
    batch_size = -(-config.train.batch_size // mesh.size) * mesh.size
    sides = [size] if views.count == 1 else [size, data.resize or size]
    own = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    batches = [loader.eval_batches(ImageReader(view, side), batch_size, threads=data.threads, **own) for side in sides]
    divided = sharding.split(mesh)
    # float32 for all: one program of the trunk, not one for uint8 and one for float32.
    plain = jax.jit(lambda images: images.astype(jnp.float32), out_shardings=divided)
    whole = jax.jit(functools.partial(augment.whole, size=size), out_shardings=divided)
    crop = jax.jit(
        lambda key, images: augment.crop_and_flip(
            key, images, size, flip=rules.flip, crop_area=rules.crop_area, crop_aspect=rules.crop_aspect
        ),
        out_shardings=divided,
    )
    for number, group in enumerate(zip(*batches, strict=True)):
        first, last = sharding.put(group[0], mesh), sharding.put({"image": group[-1]["image"]}, mesh)
        images, key = last["image"], jax.random.fold_in(jax.random.key(config.seed), number)
        parts = [plain(first["image"])]
        if views.resampled:
            parts.append(whole(images, mirrored=np.zeros(batch_size, bool)))
        if views.flips:
            parts.append(whole(images, mirrored=np.ones(batch_size, bool)))
        parts += [crop(jax.random.fold_in(key, i), images) for i in range(views.crops)]
        yield np.stack([forward(part) for part in parts], axis=1), sharding.gather(first["mask"])
