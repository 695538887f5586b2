"""Prepared data sets as they lie on disk, opened for reading; `prepare.writer` makes them.

A prepared data set is the folder `DATA_DIR/NAME/1.0.0` in tfds's standard layout, so that
`tfds.builder_from_directory(path).as_data_source(split)` reads it. Beside tfds's files it holds `jaxmlic.json` (class
names, splits, where it came from), `labels-<split>.npz` (ids and labels in the order of the records) and, when images
were left out on request, `skipped.csv`.

A data set in a bucket is copied to this machine when it is opened, once for each version of its files, and read there:
records are drawn in random order, thousands a second.
"""

import functools
import json
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module

from jaxmlic import progress, storage
from jaxmlic.data import named_splits as named
from jaxmlic.data.records import RecordSource
from jaxmlic.errors import UserError, did_you_mean
from jaxmlic.storage import load_npz, reason, to_path

VERSION = "1.0.0"  # of the layout of a prepared data set
DERIVED = ("check/", "features/", "graph/")  # what other commands write into its folder


def default_data_dir() -> Path:
    """Where prepared data sets live: $JAXMLIC_DATA, else ~/.cache/jaxmlic/data."""
    return to_path(os.environ.get("JAXMLIC_DATA") or Path.home() / ".cache" / "jaxmlic" / "data")


def check_shard(path: Path, count: int) -> None:
    """OSError unless a shard holds its records: a full disk can go unnoticed by the writer, a copy can be cut."""
    if not path.is_file():
        raise OSError(f"{path.name} is missing")
    try:
        reader = array_record_module.ArrayRecordReader(str(path))
        found = reader.num_records()
        reader.close()
    except (RuntimeError, ValueError) as error:
        raise OSError(f"{path.name} cannot be read back: {error}") from None
    if found != count:
        raise OSError(f"{path.name} holds {found} of {count} records")


def prepared(data_dir: str | os.PathLike | None = None) -> list[str]:
    """Names of the data sets that are prepared in a folder, sorted."""
    data_dir = to_path(data_dir) if data_dir else default_data_dir()
    return sorted(path.parent.parent.name for path in data_dir.glob(f"[!.]*/{VERSION}/jaxmlic.json"))


class Dataset:
    """A prepared data set; see `load`.

    A split is a stored one, or "NAME/PART" of a named one (see `write_named_split`), as `split_names` lists them.

    Attributes: `name`, `path` (its folder on this machine), `home` (the same, or its folder in a bucket),
    `class_names`, `splits` ({stored split: count}), `has_boxes` and `info` (all of jaxmlic.json).
    """

    def __init__(self, path: Path, info: dict, splits: tfds.core.SplitDict, home: Path | None = None):
        self.path = path
        self.home = home or path
        self.info = info
        self.name = info["name"]
        self.class_names = tuple(info["class_names"])
        self.splits = dict(info["splits"])
        self.has_boxes = bool(info["has_boxes"])
        self._splits = splits

    def __repr__(self) -> str:
        return f"Dataset({self.name!r}, {len(self.class_names)} classes, {self.splits})"

    def publish(self, path: Path) -> None:
        """Copies a file that was written into `path` to `home`, where that is another place."""
        if self.home != self.path:
            storage.send_file(path, self.home / path.relative_to(self.path).as_posix())

    def fetch(self, folder: Path) -> None:
        """Copies what `home` holds of a folder inside `path`, where that is another place."""
        if self.home != self.path:
            storage.fetch_folder(self.home / folder.relative_to(self.path).as_posix(), prune=False)

    def split_names(self) -> list[str]:
        """The stored splits and all parts of named ones; UserError for a damaged file of them."""
        return [*self.splits, *named.names(self.path)]

    def count(self, split: str) -> int:
        """How many examples a split has."""
        return self.splits[split] if split in self.splits else len(self.rows(split))

    def labels(self, split: str) -> np.ndarray:
        """int8 [N, C] in {1 present, 0 absent, -1 unknown}, in the order of the records."""
        return self._arrays(split)["labels"].copy()

    def ids(self, split: str) -> np.ndarray:
        """str [N], in the order of the records."""
        return self._arrays(split)["ids"].copy()

    def source(self, split: str, boxes: bool = False) -> RecordSource:
        """Random access to the raw records of a split (see RecordSource); UserError if a shard is missing or cut."""
        rows = self.rows(split)
        if boxes and not self.has_boxes:
            raise UserError(f"the data set {self.name!r} has no boxes")
        stored = [split] if split in self.splits else self.splits
        instructions = [instruction for part in stored for instruction in self._splits[part].file_instructions]
        for instruction in instructions:
            try:
                check_shard(Path(instruction.filename), instruction.examples_in_shard)
            except OSError as error:
                raise _damaged(self.path, reason(error)) from None
        name = f"{self.name}/{split}"
        if split in self.splits:
            return RecordSource(name, instructions, len(self.class_names), boxes)
        return named.PartSource(name, instructions, rows, len(self.class_names), boxes)

    def dividing(self, labels: np.ndarray) -> np.ndarray:
        """Of labels int8 [N, C] the columns that divide examples into training and validation part: all of them."""
        return labels

    @functools.cache  # noqa: B019 - a data set handle lives as long as the run
    def rows(self, split: str) -> np.ndarray:
        """int64 [N], where its examples lie when the stored splits follow one another. UserError for unknown splits."""
        start = 0
        for stored, count in self.splits.items():
            if stored == split:
                rows = np.arange(start, start + count)
                break
            start += count
        else:
            known = self.split_names()
            if split not in known:
                listed = ", ".join(known[:12]) + (f" ... (`jaxmlic data split {self.name} --list`)" * (len(known) > 12))
                raise UserError(
                    f"the data set {self.name!r} has no split {split!r}{did_you_mean(split, known)}: it has {listed}"
                )
            rows = named.read(self.path, split, self._digest())
        rows.flags.writeable = False
        return rows

    @functools.cache  # noqa: B019
    def _digest(self) -> str:
        return named.digest({split: self._arrays(split)["ids"] for split in self.splits})

    @functools.cache  # noqa: B019
    def _arrays(self, split: str) -> dict[str, np.ndarray]:
        rows = self.rows(split)
        if split not in self.splits:
            stored = [self._arrays(part) for part in self.splits]
            return {key: np.concatenate([arrays[key] for arrays in stored])[rows] for key in ("ids", "labels")}
        path = self.path / f"labels-{split}.npz"
        try:
            arrays = load_npz(path, ("ids", "labels"))
        except UserError as error:
            raise _damaged(self.path, str(error)) from None
        if arrays["labels"].shape != (self.splits[split], len(self.class_names)):
            raise _damaged(self.path, f"{path.name} has the shape {arrays['labels'].shape}")
        wrong = np.argwhere(~np.isin(arrays["labels"], (1, 0, -1)))
        if len(wrong):  # losses would take it for unknown, metrics refuse it
            row, label = wrong[0]
            what = (
                f"the label {arrays['labels'][row, label]} for {self.class_names[label]!r}, which is none of 1, 0, -1"
            )
            raise _damaged(self.path, f"{path.name}: {str(arrays['ids'][row])!r} has {what}")
        return arrays


class WithAdded(Dataset):
    """A data set as a run sees it whose last classes were added after its training.

    Columns are found by name; an added class that the data set does not have is unknown (-1) throughout. Examples are
    divided by the classes that the run was trained on, as they were then.
    """

    def __init__(self, dataset: Dataset, class_names: Sequence[str], added: Collection[str]):
        """UserError where the data set lacks one of the class names that is not among `added`."""
        super().__init__(dataset.path, dataset.info, dataset._splits, dataset.home)
        stored = {name: column for column, name in enumerate(dataset.class_names)}
        lacking = [name for name in class_names if name not in stored and name not in added]
        if lacking:
            raise UserError(
                f"the data set {self.name!r} has no class {lacking[0]!r}{did_you_mean(lacking[0], stored)}, which the "
                "run was trained on; use one with all of its classes"
            )
        self._trained = len(class_names) - len(added)
        self._columns = np.array([stored.get(name, -1) for name in class_names])
        self._dataset = dataset
        self.class_names = tuple(class_names)

    def source(self, split: str, boxes: bool = False) -> RecordSource:
        """The raw records, whose labels are those of the data set; see `Dataset.source`."""
        return self._dataset.source(split, boxes)

    def dividing(self, labels: np.ndarray) -> np.ndarray:
        """The columns of the classes that the run was trained on."""
        return labels[:, : self._trained]

    @functools.cache  # noqa: B019
    def _arrays(self, split: str) -> dict[str, np.ndarray]:
        found = self._dataset._arrays(split)
        labels = np.where(self._columns >= 0, found["labels"][:, self._columns], np.int8(-1))
        return {"ids": found["ids"], "labels": labels}


def write_named_split(
    dataset: Dataset | str | os.PathLike,
    name: str,
    parts: Mapping[str, np.ndarray],
    info: Mapping[str, Any],
    overwrite: bool = False,
    *,
    folds: bool = False,
) -> Path:
    """Add a named split to a prepared data set; a Dataset that has read one of that name before goes on with the old.

    Args:
      dataset: or its complete folder DATA_DIR/NAME/1.0.0, which may still be the one that `write` fills.
      name: letters, digits, _ and -.
      parts: {part: int rows [N] of the stored splits one after the other, as Dataset.rows}, in the order of use. Parts
        may share rows, but one named train... and one named test... may not.
      info: how it was made, as JSON holds it.
      overwrite: replace one of that name.
      folds: let trainI and testJ share rows; trainI and testI still may not.

    Returns:
      the file, splits/NAME.npz in the data set's folder.

    Raises:
      UserError: a bad name, an existing file, an empty part, shared rows, or it cannot be written.
      ValueError: rows that are not there, or twice in a part.
    """
    if not isinstance(dataset, Dataset):
        folder = Path(dataset).absolute()
        dataset = load(folder.parent.name, folder.parent.parent)
    options = {
        "num_rows": sum(dataset.splits.values()),
        "digest": dataset._digest(),
        "overwrite": overwrite,
        "folds": folds,
    }
    path = named.write(dataset.path, name, parts, info, **options)
    dataset.publish(path)
    return path


def _damaged(path: Path, why: str) -> UserError:
    name = path.parent.name
    return UserError(f"{path}: damaged ({why}): run `jaxmlic data prepare {name}` again with --overwrite")


def _copy(home: Path, records: bool) -> Path:
    """The local copy of a data set's folder in a bucket, with what is missing in it."""

    def wanted(name: str) -> bool:
        return not name.startswith(DERIVED) and (records or ".array_record" not in name)

    bar = None

    def show(done: int, total: int) -> None:
        nonlocal bar
        if total and bar is None:
            bar = progress.Progress(f"copying {home}", -(-total >> 20), unit="MiB")
        if bar is not None:
            bar.advance((done >> 20) - bar.done)

    try:
        return storage.fetch_folder(home, wanted, show)
    finally:
        if bar is not None:
            bar.close()


def load(name: str, data_dir: str | os.PathLike | None = None, *, records: bool = True) -> Dataset:
    """Open a prepared data set.

    Args:
      name: its name.
      data_dir: the folder of all data sets; None is `default_data_dir()`.
      records: whether `source` will be called; without it only labels are copied from a bucket.

    Raises:
      UserError: there is no data set of that name, or its folder is damaged.
    """
    data_dir = to_path(data_dir) if data_dir else default_data_dir()
    home = path = data_dir / name / VERSION
    if not (path / "jaxmlic.json").exists() if storage.is_bucket(path) else not path.is_dir():
        known = prepared(data_dir)
        listed = f"it holds {', '.join(known)}" if known else "it holds none"
        raise UserError(
            f"no data set {name!r} in {data_dir}{did_you_mean(name, known)} ({listed}): "
            f"run `jaxmlic data prepare {name} --source=...`"
        )
    if storage.is_bucket(home):
        path = _copy(home, records)
    try:
        info = json.loads((path / "jaxmlic.json").read_text(encoding="utf-8"))
        splits = tfds.builder_from_directory(path).info.splits
        dataset = Dataset(path, info, splits, home)
        counts = {split: splits[split].num_examples for split in info["splits"]}
    except FileNotFoundError as error:
        raise _damaged(path, f"{os.path.basename(error.filename or '')} is missing") from None
    except Exception as error:  # tfds raises many kinds on files that are not its own
        raise _damaged(path, f"{type(error).__name__}: {str(error)[:200]}") from None
    if counts != dataset.splits:
        raise _damaged(path, f"tfds counts {counts}, jaxmlic.json {dataset.splits}")
    return dataset
