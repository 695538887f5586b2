"""The Beam pipeline: rows of a table -> checked examples -> ArrayRecord shards, by tfds's own BeamWriter.

Rows travel as JSON in files of the data set's own folder, so that a job's description stays small; workers read the
images. That folder and the images must be where every worker can open them: a bucket, or a file system that all share.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.options.pipeline_options import PipelineOptions
from array_record.python import array_record_module
from tensorflow_datasets.core import file_adapters
from tensorflow_datasets.core import writer as tfds_writer
from tensorflow_datasets.core.utils import shard_utils

from jaxmlic import storage
from jaxmlic.data.prepare.checks import check_row
from jaxmlic.data.prepare.sources.files import BucketFile, LocalFile
from jaxmlic.data.prepare.tables.annotations import Box
from jaxmlic.data.prepare.tables.sheets import Problem
from jaxmlic.data.prepare.tables.table import Row
from jaxmlic.data.prepare.writer import RECORD_OPTIONS, MultiLabelBuilder
from jaxmlic.data.records import serialize_example
from jaxmlic.errors import UserError

_ROWS_IN_A_FILE = 1000
_BAD = "bad"  # tag of the problems


class _Serializer:
    """What tfds's writer asks for the bytes of an example."""

    example_specs = None

    def serialize_example(self, example: Mapping[str, Any]) -> bytes:
        return serialize_example(example)


class _ArrayRecords(tfds_writer.ExampleWriter):
    """Writes shards with the options of every data set here, to a local file first where a bucket holds them."""

    def __init__(self):
        super().__init__(file_adapters.FileFormat.ARRAY_RECORD)

    def write(self, path, examples) -> None:
        outbox = storage.Outbox(storage.to_path(path).parent)
        writer = array_record_module.ArrayRecordWriter(str(outbox.path / storage.to_path(path).name), RECORD_OPTIONS)
        try:
            for _, record in examples:
                writer.write(record)
        finally:
            writer.close()
        outbox.send()


class _Writer(tfds_writer.BeamWriter):
    """tfds's writer, with shards bounded by rows of the table.

    Its own bounds follow from the last good image, which a run that streams its rows cannot know: here and there the
    same rows are one shard.
    """

    def __init__(self, num_rows: int, **options: Any):
        super().__init__(**options)
        self._original_state["num_rows"] = num_rows
        self._num_rows = num_rows

    def _assign_shard(self, key_example: tuple[int, bytes], num_shards: int, largest_key: Sequence[int]):
        del largest_key
        return key_example[0] * num_shards // self._num_rows, key_example

    def _check_num_examples(self, num_examples: int) -> int:
        return num_examples  # no images at all is a mistake with a line of its own


def write_shards(
    made: MultiLabelBuilder, folder: Path, splits: Mapping[str, Sequence[Row]], num_shards: int, options: Sequence[str]
) -> tuple[dict[str, tuple[list[int], int]], dict[str, dict[int, Problem]]]:
    """Runs the pipeline over all splits.

    Args:
      made: the builder of the data set.
      folder: where the shards go, under their final names.
      splits: their rows; all images are files.
      num_shards: of each split; one without a good image is left out.
      options: Beam's, such as "--runner=DirectRunner".

    Returns:
      {split: (images in each shard, bytes)} and {split: {row number: what is wrong with the row}}.

    Raises:
      UserError: an image inside an archive, a runner that is unknown, a pipeline that failed.
    """
    _check_files(splits)
    writers = {}
    try:
        with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
            for split, rows in splits.items():
                info = made.split_info(split, folder, [1], 0)
                writers[split] = _Writer(
                    num_rows=len(rows),
                    serializer=_Serializer(),
                    filename_template=info.filename_template,
                    hash_salt=split,
                    disable_shuffling=True,
                    example_writer=_ArrayRecords(),
                    shard_config=shard_utils.ShardConfig(num_shards=num_shards),
                )
                _add_split(pipeline, split, _write_rows(folder, split, rows), writers[split], made, folder)
    except UserError:
        raise
    except Exception as error:  # of a runner, of a worker
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{folder}: the Beam pipeline failed ({why[:500]})") from error
    problems = {split: _problems(folder, split) for split in splits}
    counts = {split: writers[split].finalize() for split in splits if len(problems[split]) < len(splits[split])}
    for path in [*folder.glob("rows-*.jsonl"), *folder.glob("problems-*.json")]:
        path.unlink()
    return counts, problems


def _add_split(pipeline: beam.Pipeline, split: str, files: list[str], writer: _Writer, made: MultiLabelBuilder, folder):
    """Adds the steps of one split to the pipeline."""
    found = (
        pipeline
        | f"{split}: files of rows" >> beam.Create(files)
        | f"{split}: divide the files" >> beam.Reshuffle()
        | f"{split}: read rows" >> beam.FlatMap(read_rows)
        | f"{split}: divide the rows" >> beam.Reshuffle()
        | f"{split}: check images" >> beam.FlatMap(_check, made.has_boxes).with_outputs(_BAD, main="good")
    )

    @beam.ptransform_fn  # a name of its own for the steps of each split
    def write(examples):
        return writer.write_from_pcollection(examples)

    _ = found.good | f"{split}: write shards" >> write()
    _ = (
        found[_BAD]
        | f"{split}: gather problems" >> beam.combiners.ToList()
        | f"{split}: write problems" >> beam.Map(_write_problems, str(_problems_file(folder, split)))
    )


def _check(numbered: tuple[int, Row], has_boxes: bool) -> Iterator:
    number, row = numbered
    item = check_row(row, has_boxes)
    if isinstance(item, Problem):
        yield beam.pvalue.TaggedOutput(_BAD, (number, item.file, item.line, item.why))
    else:
        yield number, item


def _check_files(splits: Mapping[str, Sequence[Row]]) -> None:
    for rows in splits.values():
        for row in rows:
            if not isinstance(row.image, LocalFile | BucketFile):
                raise UserError(f"{row.id}: --beam reads images that are files: extract the archive, give its folder")


def _write_rows(folder: Path, split: str, rows: Sequence[Row]) -> list[str]:
    files = []
    for start in range(0, len(rows), _ROWS_IN_A_FILE):
        path = folder / f"rows-{split}-{start:09d}.jsonl"
        lines = [_to_json(number, rows[number]) for number in range(start, min(start + _ROWS_IN_A_FILE, len(rows)))]
        storage.write_text(path, "".join(lines))
        files.append(str(path))
    return files


def _to_json(number: int, row: Row) -> str:
    boxes = [[box.label, box.corners, box.difficult, box.where] for box in row.boxes]
    return json.dumps([number, row.id, row.image.path, row.labels.tolist(), boxes, row.where]) + "\n"


def read_rows(path: str) -> Iterator[tuple[int, Row]]:
    """(number, row) of the rows in a file that `write_shards` wrote."""
    for line in storage.to_path(path).read_text().splitlines():
        number, name, image, labels, boxes, where = json.loads(line)
        file = BucketFile(image, 0, "") if storage.is_bucket(image) else LocalFile(image)
        found = [Box(label, tuple(corners), bad, tuple(place)) for label, corners, bad, place in boxes]
        yield number, Row(name, file, np.array(labels, np.int8), found, tuple(where))


def _problems_file(folder: Path, split: str) -> Path:
    return folder / f"problems-{split}.json"


def _write_problems(problems: list[tuple], path: str) -> None:
    storage.write_json(path, sorted(problems))


def _problems(folder: Path, split: str) -> dict[int, Problem]:
    return {number: Problem(*rest) for number, *rest in storage.read_json(_problems_file(folder, split))}
