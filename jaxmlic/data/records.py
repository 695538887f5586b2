"""The records of a prepared split: serialised tf.train.Examples, as tfds lays them out, read and written quickly.

tfds parses a record with Python protobuf and builds every feature again as numpy, at 125 us and more a record (growing
with the number of classes) with the GIL held, which stops decoding threads; writing costs it 140 to 600 us. Here the
wire format is walked to the fields that are needed, in about 10 us. Tests hold both ways equal to tfds.
"""

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from array_record.python import array_record_data_source

from jaxmlic.errors import UserError

_BYTES, _FLOATS, _INT64S = 0x0A, 0x12, 0x1A  # tags of the list in a tf.train.Feature
_MINUS_ONE = b"\xff" * 9 + b"\x01"  # int64 -1 as a varint, the only value of a label that takes more than one byte


def _varint(buffer: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = buffer[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def parse_example(record: bytes) -> dict[str, tuple[int, int, int]]:
    """Where each feature of a serialised tf.train.Example lies.

    Returns:
      {name: (kind, start, end)}; kind is the tag of the list inside tf.train.Feature (0x0A bytes, 0x12 float, 0x1A
      int64; 0 for no list) and record[start:end] is that list as serialised.

    Raises:
      ValueError: the bytes are not a tf.train.Example.
    """
    fields = {}
    try:
        if record[0] != 0x0A:
            raise ValueError("not a tf.train.Example")
        end, at = _varint(record, 1)
        end += at
        if end != len(record):
            raise ValueError("damaged record: it is shorter or longer than it says")
        while at < end:  # entries of the map: 0x0A length {0x0A length name, 0x12 length {kind length list}}
            length, at = _varint(record, at + 1)
            stop, name, kind, low, high = at + length, "", 0, at, at
            while at < stop:
                tag = record[at]
                length, at = _varint(record, at + 1)
                if tag == 0x0A:
                    name = record[at : at + length].decode()
                elif tag == 0x12 and length:
                    kind = record[at]
                    size, low = _varint(record, at + 1)
                    high = low + size
                at += length
            fields[name] = (kind, low, high)
    except (IndexError, UnicodeDecodeError):
        raise ValueError("damaged record: not a tf.train.Example") from None
    return fields


def _bytes(record: bytes, field: tuple[int, int, int]) -> bytes:
    """The single element of a bytes list."""
    _, start, end = field
    if start == end:
        return b""
    length, at = _varint(record, start + 1)
    if at + length != end:
        raise ValueError("damaged record: a bytes feature does not hold one element")
    return record[at:end]


def _packed(record: bytes, field: tuple[int, int, int]) -> bytes:
    """The packed payload of an int64 or float list."""
    _, start, end = field
    return record[_varint(record, start + 1)[1] : end] if end > start else b""


def _int64s(payload: bytes) -> np.ndarray:
    values, at = [], 0
    while at < len(payload):
        value, at = _varint(payload, at)
        values.append(value)
    return np.array(values, np.uint64).astype(np.int64)


def _length(size: int) -> bytes:
    """A varint."""
    encoded = bytearray()
    while size > 0x7F:
        encoded.append(size & 0x7F | 0x80)
        size >>= 7
    encoded.append(size)
    return bytes(encoded)


def _field(tag: int, payload: bytes) -> bytes:
    return bytes((tag,)) + _length(len(payload)) + payload


def _entry(name: bytes, kind: int, payload: bytes) -> bytes:
    """One entry of tf.train.Features; `payload` is the one bytes element or the packed numbers."""
    inner = _field(0x0A, payload) if payload or kind == _BYTES else b""
    return _field(0x0A, _field(0x0A, name) + _field(0x12, _field(kind, inner)))


def serialize_example(example: Mapping[str, Any]) -> bytes:
    """The record of an example as tfds's `features.serialize_example` would write it.

    Args:
      example: `image` bytes, `labels` int8 [C] in {1, 0, -1}, `id` text and, if the set has boxes, `boxes`: a sequence
        of {`bbox`: [ymin, xmin, ymax, xmax] in 0..1, `label`: int, `difficult`: bool}.

    Raises:
      ValueError: a label or a box is not what it must be.
    """
    labels = np.ascontiguousarray(example["labels"], np.int8)
    if labels.ndim != 1 or not np.isin(labels, (-1, 0, 1)).all():
        raise ValueError(f"the labels of {example['id']!r} are not a row of 1, 0 and -1")
    entries = [
        _entry(b"image", _BYTES, bytes(example["image"])),
        _entry(b"labels", _INT64S, labels.tobytes().replace(b"\xff", _MINUS_ONE)),
        _entry(b"id", _BYTES, example["id"].encode()),
    ]
    if "boxes" in example:
        boxes = example["boxes"]
        for box in boxes:
            ymin, xmin, ymax, xmax = box["bbox"]
            if not (0 <= ymin <= ymax <= 1 and 0 <= xmin <= xmax <= 1 and box["label"] >= 0):
                raise ValueError(f"a box of {example['id']!r} is not inside 0..1: {box}")
        edges = [float(edge) for box in boxes for edge in box["bbox"]]
        entries += [
            _entry(b"boxes/bbox", _FLOATS, struct.pack(f"<{len(edges)}f", *edges)),
            _entry(b"boxes/label", _INT64S, b"".join(_length(int(box["label"])) for box in boxes)),
            _entry(b"boxes/difficult", _INT64S, bytes(bool(box["difficult"]) for box in boxes)),
        ]
    return _field(0x0A, b"".join(entries))


class RecordSource(Sequence):
    """The records of one split in their stored order: `source[i]`, `len(source)`; picklable, safe between threads.

    A record is `{"image": encoded bytes, "labels": int8 [C], "id": str}`; with `boxes=True` also `"boxes"`:
    `{"bbox": float32 [K, 4] (ymin, xmin, ymax, xmax in 0..1), "label": int64 [K], "difficult": bool [K]}`.
    """

    def __init__(self, name: str, file_instructions: Sequence, num_labels: int, boxes: bool = False):
        self._name = name
        self._num_labels = num_labels
        self._boxes = boxes
        self._records = array_record_data_source.ArrayRecordDataSource(file_instructions)

    def __len__(self) -> int:
        return len(self._records)

    def __repr__(self) -> str:
        # grain compares this text when it restores an iterator: it must not name the folder, which may move.
        return f"RecordSource({self._name!r}, records={len(self)}, num_labels={self._num_labels}, boxes={self._boxes})"

    def __getitem__(self, index: int) -> dict:
        """One record; IndexError outside 0..len-1, UserError when the file is damaged at this record."""
        if not 0 <= index < len(self._records):
            raise IndexError(f"record {index} of {len(self._records)}")
        try:
            return self.parse(self._records[index])
        except (RuntimeError, ValueError) as error:  # the ArrayRecord reader raises RuntimeError
            raise UserError(
                f"{self._name}: record {index} cannot be read ({error}): the data set is damaged, prepare it again "
                "with --overwrite"
            ) from None

    def __getitems__(self, indices: Sequence[int]) -> list[dict]:
        """Several records at once, read in parallel threads."""
        return [self.parse(record) for record in self._records.__getitems__(indices)]

    def parse(self, record: bytes) -> dict:
        """The fields of one serialised record; ValueError when it is damaged."""
        fields = parse_example(record)
        labels = np.frombuffer(_packed(record, fields["labels"]).replace(_MINUS_ONE, b"\xff"), np.int8)
        if len(labels) != self._num_labels:
            raise ValueError(f"damaged record: {len(labels)} labels where the data set has {self._num_labels}")
        example = {"image": _bytes(record, fields["image"]), "labels": labels}
        example["id"] = _bytes(record, fields["id"]).decode()
        if self._boxes:
            example["boxes"] = {
                "bbox": np.frombuffer(_packed(record, fields["boxes/bbox"]), "<f4").reshape(-1, 4),
                "label": _int64s(_packed(record, fields["boxes/label"])),
                "difficult": _int64s(_packed(record, fields["boxes/difficult"])).astype(bool),
            }
        return example
