"""Writes prepared data sets: a tfds builder that streams ArrayRecord shards without TensorFlow; see `datasets`."""

import csv
import itertools
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module

from jaxmlic.data.datasets import VERSION, check_shard, load, write_named_split
from jaxmlic.data.prepare.staging import Journal, ShardEntry, staged
from jaxmlic.data.prepare.tables.sheets import Problem
from jaxmlic.data.records import serialize_example
from jaxmlic.errors import UserError, shorten
from jaxmlic.storage import load_npz, replacing, save_npz

SHARD_BYTES = 256 << 20
RECORD_OPTIONS = "group_size:1,uncompressed"  # images are compressed already; the reader finds out by itself

Example = Mapping[str, Any]
"""`id` text, `image` encoded bytes, `labels` int8 [C], and where the set has boxes `boxes`: a sequence of
{`bbox`: [ymin, xmin, ymax, xmax] in 0..1, `label`: int, `difficult`: bool}."""

Items = Iterable[Example | Problem]
"""Examples in the order in which they are stored, and in between what was left out."""

Stream = Items | Callable[[str | None], Items]
"""To continue an interrupted run, a function of the id of the last example stored (None at the start)."""


def record_fields(num_labels: int, has_boxes: bool) -> tfds.features.FeaturesDict:
    """The fields of a record, the same for every data set of this package."""
    fields = {
        "image": tfds.features.Image(),
        "labels": tfds.features.Tensor(shape=(num_labels,), dtype=np.int8),
        "id": tfds.features.Text(),
    }
    if has_boxes:
        box = {
            "bbox": tfds.features.BBoxFeature(),
            "label": tfds.features.Scalar(np.int64),
            "difficult": tfds.features.Scalar(np.bool_),
        }
        fields["boxes"] = tfds.features.Sequence(box)
    return tfds.features.FeaturesDict(fields)


class MultiLabelBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A tfds builder whose records keep their order and are streamed to disk.

    tfds's own writer keeps a split in memory and, beyond 1 GB, on disk through TensorFlow; `write_split` needs neither.
    """

    VERSION = tfds.core.Version(VERSION)
    num_labels: int
    has_boxes: bool

    def _info(self) -> tfds.core.DatasetInfo:
        info = self.dataset_info_from_configs(
            features=record_fields(self.num_labels, self.has_boxes), disable_shuffling=True
        )
        # It would look for a copy on Google's servers, and leave an empty temporary folder behind each time.
        info.initialize_from_bucket = lambda: None
        return info

    def _split_generators(self, dl_manager):
        """Where tfds's own `download_and_prepare` ends: `write` streams the examples past it."""
        raise UserError(f"{self.name} is prepared by `jaxmlic data prepare {self.name}`, not by tfds")

    _generate_examples = _split_generators  # tfds wants it to exist

    def write_split(
        self, split: str, stream: Stream, folder: Path, journal: Journal, ends: Sequence[int] | None = None
    ) -> tuple[tfds.core.SplitInfo, dict, list[Problem]]:
        """Write one split into `folder` (which exists), in shards of about SHARD_BYTES or as `ends` says.

        Args:
          split: its name.
          stream: its examples.
          folder: where the shards go.
          journal: what an interrupted run completed; every completed shard is entered.
          ends: for each shard the number of items of the stream, bad ones included, behind which it ends. One without
            an example is left out.

        Returns:
          tfds's account of the split, {"ids": str [N], "labels": int8 [N, C]}, and what the stream left out.
        """
        shards = self._completed(split, folder, journal)
        last = str(shards[-1].ids[-1]) if shards else None
        items = iter(stream(last) if callable(stream) else stream)
        left_out = []  # behind the last example: a continued run will meet it again
        taken = sum(len(shard.ids) + len(shard.left_out) for shard in shards)
        for end in itertools.repeat(None) if ends is None else [end for end in ends if end > taken]:
            part = items if end is None else itertools.islice(items, end - taken)
            limit, taken = (SHARD_BYTES, taken) if end is None else (math.inf, end)
            shard, left_out = self._write_shard(folder, split, len(shards), part, left_out, limit)
            if shard is None and end is None:
                break
            if shard is None:
                continue
            shards.append(shard)
            if journal.path is not None:
                save_npz(_shard_arrays(folder, split, len(shards) - 1), {"ids": shard.ids, "labels": shard.labels})
                journal.enter(split, [shard.entry() for shard in shards])
        if not shards:
            raise UserError(f"the split {split!r} of {self.name!r} has no examples")
        info = self.split_info(
            split, folder, [len(shard.ids) for shard in shards], sum(shard.num_bytes for shard in shards)
        )
        arrays = {key: np.concatenate([getattr(shard, key) for shard in shards]) for key in ("ids", "labels")}
        return info, arrays, [problem for shard in shards for problem in shard.left_out] + left_out

    def split_info(self, split: str, folder: Path, shard_lengths: list[int], num_bytes: int) -> tfds.core.SplitInfo:
        """tfds's account of a split whose shards lie, or will lie, in a folder."""
        template = tfds.core.ShardedFileTemplate(
            data_dir=folder, dataset_name=self.name, split=split, filetype_suffix="array_record"
        )
        return tfds.core.SplitInfo(
            name=split, shard_lengths=shard_lengths, num_bytes=num_bytes, filename_template=template
        )

    def _completed(self, split: str, folder: Path, journal: Journal) -> list["_Shard"]:
        """The shards that an interrupted run completed."""
        shards = []
        for number, entry in enumerate(journal.shards(split)):
            try:
                check_shard(folder / f"{split}.shard-{number}", entry.count)
                arrays = load_npz(_shard_arrays(folder, split, number), ("ids", "labels"))
            except (OSError, UserError):  # cut short when the machine went down
                return []
            shards.append(_Shard(entry.num_bytes, **arrays, left_out=[Problem(*row) for row in entry.left_out]))
        return shards

    def _write_shard(
        self, folder: Path, split: str, number: int, items: Iterator, left_out: list[Problem], limit: float
    ) -> tuple["_Shard | None", list[Problem]]:
        """The next examples, of `limit` bytes or a little more, as one shard, None when there are none left; and what
        was left out behind the last one."""
        ids, labels, size = [], [], 0
        within, behind = [], list(left_out)
        writer = None
        try:
            while size < limit and (item := next(items, None)) is not None:
                if isinstance(item, Problem):
                    behind.append(item)
                    continue
                if writer is None:
                    path = folder / f"{split}.shard-{number}"
                    writer = array_record_module.ArrayRecordWriter(str(path), RECORD_OPTIONS)
                if len(item["labels"]) != self.num_labels or ("boxes" in item) != self.has_boxes:
                    raise ValueError(f"the example {item['id']!r} does not fit {self.num_labels} classes and boxes")
                record = serialize_example(item)
                writer.write(record)
                size += len(record)
                ids.append(item["id"])
                labels.append(np.asarray(item["labels"], np.int8).copy())
                within += behind
                behind = []
        finally:
            if writer is not None:
                writer.close()
        return (_Shard(size, np.array(ids, str), np.stack(labels), within) if ids else None), behind


@dataclass(frozen=True)
class _Shard:
    """A complete shard: bytes, ids str [n], labels int8 [n, C], and what was left out before its last example."""

    num_bytes: int
    ids: np.ndarray
    labels: np.ndarray
    left_out: list[Problem]

    def entry(self) -> ShardEntry:
        return ShardEntry(len(self.ids), self.num_bytes, [list(astuple(problem)) for problem in self.left_out])


def _shard_arrays(folder: Path, split: str, number: int) -> Path:
    return folder / f"{split}.shard-{number}.npz"


def _name_shards(folder: Path, split_infos: Iterable[tfds.core.SplitInfo]) -> None:
    """Give the shards their names, which say how many there are."""
    for info in split_infos:
        for number, count in enumerate(info.shard_lengths):
            path = folder / f"{info.name}.shard-{number}"
            check_shard(path, count)
            path.rename(info.filename_template.sharded_filepath(shard_index=number, num_shards=len(info.shard_lengths)))


def builder(name: str, data_dir: os.PathLike, num_labels: int, has_boxes: bool) -> MultiLabelBuilder:
    """A builder of a class made for this data set."""
    fields = {"name": name, "num_labels": num_labels, "has_boxes": has_boxes, "__module__": __name__}
    made = type(MultiLabelBuilder)(name, (MultiLabelBuilder,), fields, skip_registration=True)
    return made(data_dir=os.fspath(data_dir), file_format="array_record")


def write(
    name: str,
    data_dir: str | os.PathLike,
    class_names: Sequence[str],
    splits: Mapping[str, Stream],
    info: Mapping[str, Any],
    has_boxes: bool = False,
    *,
    left_out: Sequence[Problem] = (),
    named_splits: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
    overwrite: bool = False,
    resume: str | None = None,
    shard_ends: Mapping[str, Sequence[int]] | None = None,
) -> Path:
    """Write a data set, streaming its examples; it appears under its name only when it is complete.

    With `resume`, what an interrupted run (killed, or stopped by a full disk) wrote in whole shards stays, and the next
    call with the same key continues from there.

    Args:
      name: letters, digits and underscores, starting with a letter.
      data_dir: the folder of all data sets; made if need be.
      class_names: C names, in the order of the labels.
      splits: {split: its stream}.
      info: more fields for jaxmlic.json.
      has_boxes: whether the examples carry boxes.
      left_out: what is missing besides what the streams leave out; skipped.csv lists both.
      named_splits: {name: {part: ids}} for `write_named_split`; ids that were left out are passed over.
      overwrite: replace a data set of that name; the old one stays until the new one is complete.
      resume: a text that is the same only for the same source and options; None does not keep anything.
      shard_ends: {split: `ends` of `MultiLabelBuilder.write_split`}.

    Returns:
      the folder DATA_DIR/NAME/1.0.0.

    Raises:
      UserError: a bad name, an empty split, an existing data set, no space left on the device.
    """
    skipped, ends = list(left_out), shard_ends or {}
    with staged(name, Path(data_dir), overwrite, resume) as (folder, journal):
        made = builder(name, folder.parent.parent, len(class_names), has_boxes)
        split_infos = []
        for split, stream in splits.items():
            split_info, arrays, problems = made.write_split(split, stream, folder, journal, ends.get(split))
            split_infos.append(split_info)
            skipped += problems
            save_npz(folder / f"labels-{split}.npz", arrays)
        _name_shards(folder, split_infos)
        describe(folder, made, class_names, split_infos, info, skipped, named_splits)
        for leftover in [*folder.glob("*.shard-*.npz"), *folder.glob("journal.json")]:
            leftover.unlink()
    return Path(data_dir) / name / VERSION


def describe(
    folder: Path,
    made: MultiLabelBuilder,
    class_names: Sequence[str],
    split_infos: Sequence[tfds.core.SplitInfo],
    info: Mapping[str, Any],
    skipped: Sequence[Problem],
    named_splits: Mapping[str, Mapping[str, Sequence[str]]] | None,
) -> None:
    """Writes what describes the shards of a data set into its folder, where its labels-<split>.npz are already."""
    made.info.set_splits(tfds.core.SplitDict(split_infos))
    made.info.write_to_directory(folder)
    if skipped:
        write_problems(folder / "skipped.csv", skipped)
    described = {
        "name": made.name,
        "class_names": list(class_names),
        "splits": {split_info.name: split_info.num_examples for split_info in split_infos},
        "label_values": "1,0,-1",
        "source": None,
        "skipped": len(skipped),
        "has_boxes": made.has_boxes,
    }
    described |= {**info, "skipped_rows": [astuple(problem) for problem in skipped]}
    text = json.dumps(described, indent=1, ensure_ascii=False)
    # Half a surrogate pair (a file's name that is not UTF-8) becomes an escape that JSON reads back.
    (folder / "jaxmlic.json").write_bytes(text.encode("utf-8", "backslashreplace"))
    if named_splits:
        _write_named(folder, named_splits)


def _write_named(folder: Path, named_splits: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
    """`named_splits` of `write`, by row numbers."""
    dataset = load(folder.parent.name, folder.parent.parent)
    ids = (image for split in dataset.splits for image in dataset.ids(split).tolist())
    row_of = {image: row for row, image in enumerate(ids)}
    for name, parts in named_splits.items():
        rows = {part: np.array([row_of[i] for i in ids if i in row_of], np.int64) for part, ids in parts.items()}
        missing = sum(len(ids) for ids in parts.values()) - sum(map(len, rows.values()))
        rows = {part: found for part, found in rows.items() if len(found)}
        info = {"source": "the data set's own lists", "left_out": missing}
        if rows:  # an interrupted run may have left one
            write_named_split(dataset, name, rows, info, overwrite=True)


def write_problems(path: Path, problems: Iterable[Problem]) -> None:
    """Write problems as CSV with the header file,line,why; UserError where that cannot be written."""
    with replacing(path, "w", newline="", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "line", "why"])
        writer.writerows((shorten(problem.file), problem.line, shorten(problem.why)) for problem in problems)
