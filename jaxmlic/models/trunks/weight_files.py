"""Files of named arrays, of four kinds: `.safetensors`, `.npz`, and PyTorch's `.pth` of both ages. See `read_state`."""

import json
import math
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np

from jaxmlic.errors import UserError
from jaxmlic.models.trunks import torch_pickle

_PARALLEL = "module."  # what DataParallel puts before every name


def read_state(path: str | Path) -> dict[str, np.ndarray]:
    """Every array of a state dict, by name; what parallel training put before all names is taken off.

    The kind of file is told by its content, and nothing in it is run. The arrays may be read-only.
    UserError, one line, if it cannot be read, whatever its bytes are.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path}: a directory; give the file of weights in it")
    try:
        with path.open("rb") as file:
            state = _read(file, path.stat().st_size)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file of weights") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # zipfile, json and numpy raise what they like on damaged files, MemoryError included
        raise UserError(f"{path}: damaged or unreadable ({str(error)[:200]}); fetch the file again") from None
    if all(name.startswith(_PARALLEL) for name in state):
        state = {name.removeprefix(_PARALLEL): array for name, array in state.items()}
    return state


def _read(file: BinaryIO, size: int) -> dict[str, np.ndarray]:
    start = file.read(9)
    file.seek(0)
    # First, since the length that a safetensors file begins with can look like a pickle's first bytes.
    if start[8:] == b"{" and struct.unpack("<Q", start[:8])[0] <= _MAX_HEADER:
        return _read_safetensors(file, size)
    if start[:2] == b"PK":
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            if any(name.endswith("/data.pkl") for name in names):
                return torch_pickle.read_zip(archive)
        return _read_npz(file, names)
    if start[:1] == b"\x80":
        return torch_pickle.read_legacy(file, size)
    raise UserError("neither a .safetensors, nor an .npz of arrays, nor a PyTorch pickle")


def _read_npz(file: BinaryIO, members: list[str]) -> dict[str, np.ndarray]:
    strange = [name for name in members if not name.endswith(".npy")]
    if strange:
        raise UserError(f"not an .npz: holds {', '.join(strange[:8])}")
    file.seek(0)
    with np.load(file, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


# safetensors: the header's length (uint64), then a JSON object {name: {dtype, shape, data_offsets: [start, end]}}, then
# the values. Source: huggingface/safetensors, README.md; the limit on the header is its own.

_MAX_HEADER = 100_000_000
_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def _read_safetensors(file: BinaryIO, size: int) -> dict[str, np.ndarray]:
    length = struct.unpack("<Q", file.read(8))[0]
    if 8 + length > size:
        raise UserError(f"truncated: {size} bytes end before its header does")
    header = json.loads(file.read(length), object_pairs_hook=_without_duplicates)
    header.pop("__metadata__", None)
    size -= 8 + length
    spans = {name: _span(name, entry) for name, entry in header.items()}
    end = 0
    for name, (_, _, start, stop) in sorted(spans.items(), key=lambda item: item[1][2:]):
        if start != end:
            raise UserError(f"damaged: the values of {name[:100]} overlap others or leave a gap before them")
        end = stop
    if end != size:
        raise UserError(f"{'truncated' if end > size else 'damaged'}: {size} bytes of values, wanted {end}")
    values = file.read(size)
    return {
        name: np.frombuffer(values, dtype.newbyteorder("<"), math.prod(shape), start).reshape(shape)
        for name, (dtype, shape, start, _) in spans.items()
    }


def _span(name: str, entry: Any) -> tuple[np.dtype, list[int], int, int]:
    """dtype, shape, first byte and the byte after the last; UserError unless they agree."""
    match entry:
        case {"dtype": str(kind), "shape": list(shape), "data_offsets": [start, stop]} if all(
            type(n) is int and 0 <= n < 2**63 for n in (*shape, start, stop)
        ):
            if kind not in _DTYPES:
                raise UserError(f"{name[:100]} is of the dtype {kind[:20]}, which is not read")
            dtype = np.dtype(_DTYPES[kind])
            if stop - start == math.prod(shape) * dtype.itemsize:
                return dtype, shape, start, stop
    raise UserError(f"damaged: the header's entry of {name[:100]} contradicts itself")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise UserError("damaged: a name comes twice in its header")
    return dict(pairs)
