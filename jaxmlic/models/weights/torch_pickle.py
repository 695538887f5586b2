"""PyTorch's files of tensors (`.pth`, `.pt`), read without PyTorch and without running anything in them.

A pickle is a program for a stack machine that can import and call whatever it names. Here the standard library's
machine runs with the instructions and names that a state dict is made of, and refuses all others; names stand for
tensors and storages, and nothing is imported. It is the machine in Python, since the one in C can be kept busy by the
hash of a nested dict key, and by a memo index that asks for gigabytes.
"""

import math
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterable
from io import BytesIO
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxmlic.errors import UserError

_STORAGES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
# Instructions that a file of tensors may have, by the names of their constants in `pickle`.
_INSTRUCTIONS = (
    *("PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE"),
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET", "LONG_BINGET"),
    *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "APPEND", "APPENDS"),
    *("SETITEM", "SETITEMS", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BINPERSID"),
)
# The state dict in a checkpoint of a training, by the names trainers give it.
_WRAPPERS = ("state_dict", "model", "model_state_dict")
_MAX_PICKLE = 2**27  # bytes; that of a ResNet-101 has 10^5
_MAX_DIMENSIONS = 32


class _Dict(dict):
    """A dict by name or number: the hash of a nested key could take 2^30 steps."""

    def __setitem__(self, key: Any, value: Any) -> None:
        if not isinstance(key, str | int):
            raise TypeError("it sets an item that is none of a dict by name")
        super().__setitem__(key, value)


class _Name:
    """A name that the file imports: it stands for `dtype`, of a storage, or for a call of `build`."""

    __slots__ = ("build", "dtype")

    def __init__(self, build: Callable | None = None, dtype: Any = None):
        self.build, self.dtype = build, dtype

    def __call__(self, *arguments: Any) -> Any:
        if self.build is None:
            raise UserError("refused: it calls what is no tensor's constructor; nothing was run")
        return self.build(*arguments)


class _Storage(NamedTuple):
    """A run of values elsewhere in the file."""

    key: str
    dtype: np.dtype
    length: int


class _Tensor(NamedTuple):
    """A view of a storage, offset and strides in values."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


# The legacy format, from before PyTorch 1.6: five pickles (magic number, protocol, system, the object, storage keys),
# then for each key in turn the storage's length (int64) and its values. Source: torch/serialization.py, _legacy_save.

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


def read_legacy(file: BinaryIO, size: int) -> dict[str, np.ndarray]:
    """Tensors by name from the legacy format; the file has `size` bytes. UserError for anything else."""
    if _parse(file)[0] != _MAGIC:
        raise UserError("a pickle, but not one of PyTorch's")
    protocol, _, (state, storages), keys = _parse(file)[0], _parse(file), _parse(file), _parse(file)[0]
    if protocol != _PROTOCOL:
        raise UserError(f"PyTorch's legacy format, but of another version than {_PROTOCOL}")
    tensors = _state_dict(state)
    if not isinstance(keys, list) or not all(isinstance(k, str) for k in keys) or set(keys) != set(storages):
        raise UserError("damaged: its list of storages does not match its tensors")
    needed = {tensor.storage.key for tensor in tensors.values()}
    values = {}
    for storage in map(storages.get, keys):
        header, length = file.read(8), storage.length * storage.dtype.itemsize
        count = struct.unpack("<q", header)[0] if len(header) == 8 else storage.length
        if count != storage.length:
            raise UserError(f"damaged: storage {_clip(storage.key)} has {count} values, wanted {storage.length}")
        if len(header) < 8 or file.tell() + length > size:
            raise UserError(f"truncated: {size} bytes end before its arrays do")
        if storage.key in needed:
            values[storage.key] = file.read(length)
        else:
            file.seek(length, 1)
    return _views(tensors, values)


def read_zip(archive: zipfile.ZipFile) -> dict[str, np.ndarray]:
    """Tensors by name from PyTorch's zip format: NAME/data.pkl, and NAME/data/KEY with the values of each storage."""
    pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise UserError(f"damaged: an archive of PyTorch's with {len(pickles)} pickles in it")
    folder = pickles[0].removesuffix("data.pkl")
    members = {member.filename: member for member in archive.infolist()}
    if f"{folder}byteorder" in members and archive.read(f"{folder}byteorder") != b"little":
        raise UserError("written on a big-endian machine, which is not read; save it again on a common one")
    if members[pickles[0]].file_size > _MAX_PICKLE:
        raise UserError(f"refused: its pickle alone has more than {_MAX_PICKLE} bytes")
    state, _ = _parse(BytesIO(archive.read(pickles[0])))
    tensors = _state_dict(state)
    values = {}
    for storage in {tensor.storage.key: tensor.storage for tensor in tensors.values()}.values():
        member = members.get(f"{folder}data/{storage.key}")
        if member is None:
            raise UserError(f"damaged: it lacks the values of storage {_clip(storage.key)}")
        if member.file_size != storage.length * storage.dtype.itemsize:
            raise UserError(
                f"damaged: storage {_clip(storage.key)} has {member.file_size} bytes, wanted {storage.length} values"
            )
        values[storage.key] = archive.read(member)
    return _views(tensors, values)


def _state_dict(state: Any) -> dict[str, _Tensor]:
    """The tensors by name, taken out of a training checkpoint where they lie in one."""
    if isinstance(state, dict):
        state = next((state[key] for key in _WRAPPERS if isinstance(state.get(key), dict)), state)
    if not isinstance(state, dict) or not all(isinstance(k, str) for k in state):
        raise UserError("holds no state dict of tensors by name")
    strange = sorted(_clip(name) for name, value in state.items() if not isinstance(value, _Tensor))
    if strange:
        raise UserError(f"holds no state dict: not tensors are {', '.join(strange[:8])}")
    return state


def _views(tensors: dict[str, _Tensor], values: dict[str, bytes]) -> dict[str, np.ndarray]:
    """Read-only arrays that share the storages' memory."""
    arrays = {}
    for name, (storage, offset, shape, strides) in tensors.items():
        flat = np.frombuffer(values[storage.key], storage.dtype.newbyteorder("<"))
        steps = [stride * flat.itemsize for stride in strides]
        arrays[name] = np.lib.stride_tricks.as_strided(flat[offset:], shape, steps, writeable=False)
    return arrays


def _parse(file: BinaryIO) -> tuple[Any, dict[str, _Storage]]:
    """The object of the file's next pickle, and every storage it refers to. UserError if it holds more than data."""
    machine = _Machine(file, encoding="latin-1")
    try:
        return machine.load(), machine.storages
    except UserError:
        raise
    except Exception as error:  # whatever a broken program makes of the stack
        raise UserError(f"damaged: the pickle does not read ({_clip(f'{type(error).__name__}: {error}')})") from None


class _Instructions(dict):
    def __missing__(self, code: int) -> Callable:
        raise UserError(f"refused: it uses instruction {chr(code)!r}, which no file of weights needs; nothing was run")


class _Machine(pickle._Unpickler):
    """The standard machine, with the instructions above, and the names and references of a file of weights."""

    dispatch = _Instructions(
        {code[0]: pickle._Unpickler.dispatch[code[0]] for code in (getattr(pickle, name) for name in _INSTRUCTIONS)}
    )

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> _Name:
        if (module, name) not in _NAMES:
            asked = _clip(f"{module}.{name}")
            raise UserError(f"refused: it asks for {asked}, which no file of weights needs; nothing was run")
        return _NAMES[module, name]

    def persistent_load(self, reference: Any) -> _Storage:
        match reference:
            case ("storage", _Name(dtype=kind), str(key), str(), length, *view) if (
                kind is not None and _is_count(length) and view in ([], [None])
            ):
                storage = _Storage(key, np.dtype(kind), length)
            case _:
                raise UserError("damaged, or of an unknown kind: a reference that is not to a storage")
        if self.storages.setdefault(key, storage) != storage:
            raise UserError(f"damaged: storage {_clip(key)} is of two kinds")
        return storage

    def load_empty_dict(self) -> None:
        self.append(_Dict())

    dispatch[pickle.EMPTY_DICT[0]] = load_empty_dict

    def load_build(self) -> None:
        """Drops the `_metadata` of a state dict, and whether a parameter is trained."""
        self.stack.pop()
        if type(self.stack[-1]) not in (_Dict, _Tensor):
            raise UserError("refused: it changes what is neither a tensor nor a dict of them; nothing was run")

    dispatch[pickle.BUILD[0]] = load_build


def _ordered_dict(pairs: Iterable = ()) -> _Dict:
    """With pairs as Python 2 wrote it."""
    ordered = _Dict()
    for key, value in pairs:
        ordered[key] = value
    return ordered


def _parameter(tensor: Any, *_: Any) -> _Tensor:
    if not isinstance(tensor, _Tensor):
        raise UserError("damaged: a parameter that is no tensor")
    return tensor


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    if (
        not isinstance(storage, _Storage)
        or not isinstance(shape, tuple)
        or not isinstance(strides, tuple)
        or len(shape) != len(strides)
        or len(shape) > _MAX_DIMENSIONS
        or not all(_is_count(n) for n in (offset, *shape, *strides))
    ):
        raise UserError("damaged: a tensor that is no view of a storage")
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if 0 not in shape and (last >= storage.length or math.prod(shape) > storage.length):
        raise UserError("damaged: a tensor reaches beyond its storage")
    return _Tensor(storage, offset, shape, strides)


# What a file of tensors may name. Parameters, and _rebuild_tensor without its version, are in files of 2017.
_NAMES = {
    ("collections", "OrderedDict"): _Name(_ordered_dict),
    ("torch._utils", "_rebuild_tensor"): _Name(_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _Name(_tensor),
    ("torch._utils", "_rebuild_parameter"): _Name(_parameter),
    ("torch.nn.parameter", "Parameter"): _Name(_parameter),
    **{(module, name): _Name(dtype=kind) for module in ("torch", "torch.storage") for name, kind in _STORAGES.items()},
}


def _is_count(n: Any) -> bool:
    return type(n) is int and 0 <= n < 2**63


def _clip(text: str, limit: int = 100) -> str:
    return text if len(text) <= limit else text[:limit] + "..."
