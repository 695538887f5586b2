"""Prepared data sets: a tfds builder that writes ArrayRecord without TensorFlow, and what reads them back.

A prepared data set is the folder `DATA_DIR/NAME/1.0.0` in tfds's standard layout, so that
`tfds.builder_from_directory(path).as_data_source(split)` reads it. Beside tfds's files it holds `jaxmlic.json` (class
names, splits, where it came from), `labels-<split>.npz` (ids and labels in the order of the records) and, when images
were left out on request, `skipped.csv`.
"""

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module

from jaxmlic.data.datasets import VERSION, _check_shard, load, write_named_split
from jaxmlic.data.prepare.staging import Journal, staged
from jaxmlic.data.records import serialize_example
from jaxmlic.errors import UserError, shorten

SHARD_BYTES = 256 << 20

Example = Mapping[str, Any]
"""`id` text, `image` encoded bytes, `labels` int8 [C], and where the set has boxes `boxes`: a sequence of
{`bbox`: [ymin, xmin, ymax, xmax] in 0..1, `label`: int, `difficult`: bool}."""

Examples = Iterable[Example] | Callable[[str | None], Iterable[Example]]


def features(num_labels: int, has_boxes: bool) -> tfds.features.FeaturesDict:
    """The tfds features of every data set of this package."""
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
            features=features(self.num_labels, self.has_boxes), disable_shuffling=True
        )
        # It would look for a copy on Google's servers, and leave an empty temporary folder behind each time.
        info.initialize_from_bucket = lambda: None
        return info

    def _split_generators(self, dl_manager):
        """Where tfds's own `download_and_prepare` ends: `write` streams the examples past it."""
        raise UserError(f"{self.name} is prepared by `jaxmlic data prepare {self.name}`, not by tfds")

    _generate_examples = _split_generators  # tfds wants it to exist

    def write_split(
        self, split: str, examples: Examples, folder: Path, journal: Journal | None = None, skipped: list | None = None
    ) -> tuple[tfds.core.SplitInfo, dict]:
        """Write one split into `folder` (which exists), in shards of about SHARD_BYTES.

        Args:
          split: its name.
          examples: see `write`.
          folder: where the shards go.
          journal: what an interrupted run completed; every completed shard is entered.
          skipped: the list that the stream adds to, entered and taken up with the shards.

        Returns:
          tfds's account of the split, and {"ids": str [N], "labels": int8 [N, C]}.
        """
        journal = Journal(None, "") if journal is None else journal
        skipped = [] if skipped is None else skipped
        template = tfds.core.ShardedFileTemplate(
            data_dir=folder, dataset_name=self.name, split=split, filetype_suffix="array_record"
        )
        shards, parts = self._completed(split, folder, journal, skipped)
        last = str(parts[-1]["ids"][-1]) if parts else None
        stream = iter(examples(last) if callable(examples) else examples)
        while (shard := self._write_shard(folder, split, len(shards), stream)) is not None:
            size, arrays = shard
            shards.append([len(arrays["ids"]), size])
            parts.append(arrays)
            if journal.path is not None:
                np.savez(folder / f"{split}.shard-{len(shards) - 1}.npz", **arrays)
                journal.enter(split, shards, skipped)
        if not shards:
            raise UserError(f"the split {split!r} of {self.name!r} has no examples")
        info = tfds.core.SplitInfo(
            name=split,
            shard_lengths=[count for count, _ in shards],
            num_bytes=sum(size for _, size in shards),
            filename_template=template,
        )
        return info, {key: np.concatenate([part[key] for part in parts]) for key in ("ids", "labels")}

    def _completed(self, split: str, folder: Path, journal: Journal, skipped: list) -> tuple[list, list[dict]]:
        """The shards that an interrupted run completed, and their ids and labels; `skipped` as it was then."""
        shards, parts = [], []
        for number, (count, size) in enumerate(journal.shards(split)):
            path = folder / f"{split}.shard-{number}"
            try:
                _check_shard(path, count)
                with np.load(f"{path}.npz", allow_pickle=False) as file:
                    parts.append({"ids": file["ids"], "labels": file["labels"]})
            except (OSError, ValueError, KeyError):  # cut short when the machine went down
                return [], []
            shards.append([count, size])
        if shards:
            skipped[:] = journal.skipped(split)
        return shards, parts

    def _write_shard(self, folder: Path, split: str, number: int, stream: Iterator) -> tuple[int, dict] | None:
        """The next examples of the stream as one shard: its bytes, ids and labels; None when there are none left."""
        ids, labels, size = [], [], 0
        writer = None
        try:
            while size < SHARD_BYTES and (example := next(stream, None)) is not None:
                if writer is None:
                    path = folder / f"{split}.shard-{number}"
                    # Images are compressed already; the reader finds out by itself.
                    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1,uncompressed")
                if len(example["labels"]) != self.num_labels or ("boxes" in example) != self.has_boxes:
                    raise ValueError(f"the example {example['id']!r} does not fit {self.num_labels} classes and boxes")
                record = serialize_example(example)
                writer.write(record)
                size += len(record)
                ids.append(example["id"])
                labels.append(np.asarray(example["labels"], np.int8).copy())
        finally:
            if writer is not None:
                writer.close()
        return (size, {"ids": np.array(ids, str), "labels": np.stack(labels)}) if ids else None


def _name_shards(folder: Path, split_infos: Iterable[tfds.core.SplitInfo]) -> None:
    """Give the shards their names, which say how many there are."""
    for info in split_infos:
        for number, count in enumerate(info.shard_lengths):
            path = folder / f"{info.name}.shard-{number}"
            _check_shard(path, count)
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
    splits: Mapping[str, Examples],
    info: Mapping[str, Any],
    has_boxes: bool = False,
    *,
    skipped: list[tuple[str, int, str]] | None = None,
    named_splits: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
    overwrite: bool = False,
    resume: str | None = None,
) -> Path:
    """Write a data set, streaming its examples; it appears under its name only when it is complete.

    With `resume`, what an interrupted run (killed, or stopped by a full disk) wrote in whole shards stays, and the next
    call with the same key goes on from there.

    Args:
      name: letters, digits and underscores, starting with a letter.
      data_dir: the folder of all data sets; made if need be.
      class_names: C names, in the order of the labels.
      splits: {split: examples in the order in which they are stored}. To go on where it stopped, a split has to be a
        function of the id of the last example stored (None at the start) that gives the examples after it.
      info: more fields for jaxmlic.json. Read, as `skipped` is, after the last example, so a stream may add to it.
      has_boxes: whether the examples carry boxes.
      skipped: (file, line, why) of what was left out, for skipped.csv.
      named_splits: {name: {part: ids}} for `write_named_split`; ids that were left out are passed over.
      overwrite: replace a data set of that name; the old one stays until the new one is complete.
      resume: a text that is the same only for the same source and options; None does not keep anything.

    Returns:
      the folder DATA_DIR/NAME/1.0.0.

    Raises:
      UserError: a bad name, an empty split, an existing data set, no space left on the device.
    """
    skipped = [] if skipped is None else skipped
    with staged(name, Path(data_dir), overwrite, resume) as (folder, journal):
        made = builder(name, folder.parent.parent, len(class_names), has_boxes)
        split_infos = []
        for split, examples in splits.items():
            split_info, labels = made.write_split(split, examples, folder, journal, skipped)
            split_infos.append(split_info)
            np.savez_compressed(folder / f"labels-{split}.npz", **labels)
        _name_shards(folder, split_infos)
        made.info.set_splits(tfds.core.SplitDict(split_infos))
        made.info.write_to_directory(folder)
        if skipped:
            write_problems(folder / "skipped.csv", skipped)
        described = {
            "name": name,
            "class_names": list(class_names),
            "splits": {split_info.name: split_info.num_examples for split_info in split_infos},
            "label_values": "1,0,-1",
            "source": None,
            "skipped": len(skipped),
            "has_boxes": has_boxes,
        }
        text = json.dumps(described | dict(info), indent=1, ensure_ascii=False)
        # Half a surrogate pair (a file's name that is not UTF-8) becomes an escape that JSON reads back.
        (folder / "jaxmlic.json").write_bytes(text.encode("utf-8", "backslashreplace"))
        if named_splits:
            _write_named(folder, named_splits)
        for leftover in [*folder.glob("*.shard-*.npz"), *folder.glob("journal.json")]:
            leftover.unlink()
    return Path(data_dir) / name / VERSION


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


def write_problems(path: Path, problems: Iterable[tuple[str, int, str]]) -> None:
    """Write (file, line, why) rows as CSV with a header; an earlier file of that name is replaced."""
    with open(path, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "line", "why"])
        writer.writerows((shorten(name), line, shorten(why)) for name, line, why in problems)
