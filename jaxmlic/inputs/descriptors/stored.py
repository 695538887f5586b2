"""Descriptor sets on disk: `jaxmlic features` of a config that names sets.

A set is the folder DATA_SET/1.0.0/features/NAME-SIDE-KEY: manifest.json and, for each split and kind of descriptor, a
file with the descriptors of its images in the order of their records, the raw float16 or bfloat16 values of [N, D].
What is stored stays: a further set or kind computes no other one anew.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from jaxmlic import distributed, progress, storage
from jaxmlic.data import datasets, loader, named_splits
from jaxmlic.data.image import ImageError, decode_image
from jaxmlic.errors import UserError, check_choice
from jaxmlic.inputs import cache
from jaxmlic.inputs.descriptors.descriptor_set import DescriptorSet, Part
from jaxmlic.inputs.descriptors.recipe import sets_of

FORMAT = 1  # raised when what a set holds changes its meaning
_AHEAD = 64  # images that are read in advance


@dataclasses.dataclass(frozen=True)
class Stored:
    """A descriptor of a stored split.

    Attributes:
      values: [M, D], read from the disk as they are asked for.
      rows: int64 [N], those of a view's images.
      path: of the file.
    """

    values: np.ndarray
    rows: np.ndarray
    path: Path


def key_fields(config: ConfigDict, one: DescriptorSet, dataset: datasets.Dataset) -> dict:
    """All that a set's stored values depend on, in plain values."""
    return {
        "format": FORMAT,
        **one.key_fields(),
        "dtype": config.features.dtype,
        "images": named_splits.digest({split: dataset.ids(split) for split in dataset.splits}),
        "prepared": dataset.info.get("fingerprint"),
    }


def find(config: ConfigDict, one: DescriptorSet, view: loader.View) -> list[Stored] | None:
    """The set's descriptors of a view; None where one of them is not stored.

    UserError for a file of another size than it has to have.
    """
    fields = key_fields(config, one, view.dataset)
    folder = cache.folder_of(view.dataset, fields)
    splits, dtype = cache.splits_there(folder, fields), np.dtype(cache.DTYPES[config.features.dtype])
    found = []
    for part in one.parts:
        there = _place(view, splits, part)
        if there is None:
            return None
        split, rows = there
        path, shape = folder / _file_name(split, part), (view.dataset.count(split), part.size)
        try:
            if path.stat().st_size != np.prod(shape) * dtype.itemsize:
                raise cache.damaged(folder, f"{path.name} has {path.stat().st_size:,} bytes")
            found.append(Stored(np.memmap(path, dtype, "r", shape=shape), rows, path))
        except OSError as error:
            raise cache.damaged(folder, storage.reason(error)) from None
    return found


def _place(view: loader.View, splits: dict[str, list[str]], part: Part) -> tuple[str, np.ndarray] | None:
    """As `cache.place`, of the splits that this descriptor is stored of."""
    return cache.place(view, {split: [1] for split, kinds in splits.items() if part.kind in kinds}, 1)


def compute(config: ConfigDict, splits: list[str], report: Callable[[str], None] = lambda line: None) -> list[Path]:
    """Computes the config's sets of every split where they are not stored yet; the folders, one a set.

    Of several processes the first one computes, on its own devices.

    Raises UserError for a missing split, an image that cannot be read, and values that the storage dtype cannot hold.
    """
    check_choice("features.dtype", config.features.dtype, cache.DTYPES)
    dataset = datasets.load(config.data.name, config.data.dir or None)
    sets = sets_of(config)
    keys = [key_fields(config, one, dataset) for one in sets]  # all weights are there, before the first is used
    folders = []
    for one, fields in zip(sets, keys, strict=True):
        folder = cache.folder_of(dataset, fields)
        for split in splits:
            view = loader.View(dataset, split, np.arange(dataset.count(split)))
            there = cache.splits_there(folder, fields)
            missing = [part for part in one.parts if _place(view, there, part) is None]
            if missing and distributed.is_main():
                _compute_split(config, one, fields, folder, view, missing)
            distributed.wait_for_all(f"{one.name} {split}")
            dataset.fetch(folder)
            kinds = ", ".join(part.kind for part in missing) or "there already"
            report(f"{one.name}, {split}: {len(view):,} images, {one.size:,} numbers each ({kinds})")
        folders.append(folder)
    return folders


def _compute_split(
    config: ConfigDict, one: DescriptorSet, fields: dict, folder: Path, view: loader.View, missing: list[Part]
) -> None:
    paths = {part.kind: folder / _file_name(view.split, part) for part in missing}
    partial = {kind: path.with_suffix(".partial") for kind, path in paths.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(partial, config, one, view)
        for kind, path in paths.items():
            partial[kind].replace(path)
        splits = cache.splits_there(folder, fields)  # read anew: another process may have written
        kinds = sorted({*splits.get(view.split, ()), *paths})
        text = json.dumps({"key": fields, "splits": splits | {view.split: kinds}}, indent=1)
        storage.write_text(folder / cache.MANIFEST, text)
    except OSError as error:
        raise UserError(f"{folder}: the features cannot be written ({storage.reason(error)})") from None
    finally:
        for path in partial.values():
            path.unlink(missing_ok=True)
    for path in (*paths.values(), folder / cache.MANIFEST):
        view.dataset.publish(path)


def _write(paths: dict[str, Path], config: ConfigDict, one: DescriptorSet, view: loader.View) -> None:
    """The descriptors of a view's images, each kind to its path. Images wait until their shape fills a batch."""
    dtype, count = cache.DTYPES[config.features.dtype], config.train.batch_size
    ends = dict(zip([part.kind for part in one.parts], np.cumsum([part.size for part in one.parts]), strict=True))
    files = [
        (np.memmap(paths[part.kind], dtype, "w+", shape=(len(view), part.size)), ends[part.kind] - part.size)
        for part in one.parts
        if part.kind in paths
    ]
    waiting: dict[tuple[int, ...], list[tuple[int, np.ndarray]]] = {}

    def describe(shape: tuple[int, ...]) -> int:
        rows, prepared = zip(*waiting.pop(shape), strict=True)
        with np.errstate(over="ignore"):  # asked below
            found = one.describe(np.stack(prepared), count).astype(dtype)
        if not np.isfinite(found.astype(np.float32)).all():
            raise UserError(
                f"{one.name} of {view.where()} does not fit config.features.dtype = {config.features.dtype!r} (or is "
                "not finite): try 'bfloat16'"
            )
        for values, start in files:
            values[list(rows)] = found[:, start : start + values.shape[1]]
        return len(rows)

    with progress.Progress(f"{one.name} of {view.dataset.name}/{view.split}", len(view)) as bar:
        for row, prepared in enumerate(_prepared(one, view, config.data.threads)):
            waiting.setdefault(prepared.shape, []).append((row, prepared))
            if len(waiting[prepared.shape]) == count:
                bar.advance(describe(prepared.shape))
        for shape in list(waiting):
            bar.advance(describe(shape))
    for values, _ in files:
        values.flush()


def _prepared(one: DescriptorSet, view: loader.View, threads: int) -> Iterator[np.ndarray]:
    """What a set reads of each image, in order, some in advance."""
    source = view.dataset.source(view.split)
    with ThreadPoolExecutor(max(1, threads)) as pool:
        futures = []
        for index in view.indices:
            futures.append(pool.submit(lambda i: one.prepare(read_image(source[i], view)), int(index)))
            if len(futures) > _AHEAD:
                yield futures.pop(0).result()
        for future in futures:
            yield future.result()


def read_image(record: dict, view: loader.View) -> np.ndarray:
    """uint8 [H, W, 3] of a record of a view's data set; UserError, with its id, where it cannot be read."""
    try:
        return decode_image(record["image"])
    except ImageError as error:
        raise UserError(
            f"image {record['id']!r} in {view.where()} cannot be read ({error}); prepare the data set again"
        ) from None


def _file_name(split: str, part: Part) -> str:
    return f"{split.replace('/', '__')}.{part.kind}.values"
