"""PyTorch's files of tensors (`.pth`, `.pt`), read without PyTorch and without running anything they say.

A pickle is a program for a stack machine that can import and call whatever it names. The machine here knows numbers,
text, tuples, lists, dicts and references, which is what a state dict is made of, and a few names, which it takes for
tensors and their storages by pattern. It imports nothing, calls nothing and sets no attribute; any other instruction or
name is refused. Dict keys are text or integers, so that no nested key can keep the machine busy.
"""

import math
import pickletools
import struct
import zipfile
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
# What a file of tensors may name. Parameters, and _rebuild_tensor without its version, are in files of 2017.
_KNOWN = {
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_tensor"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch.nn.parameter", "Parameter"),
    *((module, name) for module in ("torch", "torch.storage") for name in _STORAGES),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = frozenset(
    (
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
        *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    )
)
# The state dict in a checkpoint of a training, by the names trainers give it.
_WRAPPERS = ("state_dict", "model", "model_state_dict")
_MAX_PICKLE = 2**27  # bytes; that of a ResNet-101 has 10^5
_MAX_DIMENSIONS = 32


class _Name(NamedTuple):
    """Something the file would import. It stays a name."""

    module: str
    name: str


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
    try:
        return _run(file)
    except UserError:
        raise
    except Exception as error:  # whatever a broken program makes of the stack
        raise UserError(f"damaged: the pickle does not read ({_clip(f'{type(error).__name__}: {error}')})") from None


def _run(file: BinaryIO) -> tuple[Any, dict[str, _Storage]]:
    stack, marks, memo, storages = [], [], {}, {}

    def pop_to_mark() -> list:
        start = marks.pop()
        values = stack[start:]
        del stack[start:]
        return values

    for opcode, arg, _ in pickletools.genops(file):
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop(), storages
            case name if name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            case name if name in _LITERALS:
                stack.append(arg)
            case "MARK":
                marks.append(len(stack))
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[arg] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[arg])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3" as name:
                stack[-int(name[-1]) :] = [tuple(stack[-int(name[-1]) :])]
            case "TUPLE":
                stack.append(tuple(pop_to_mark()))
            case "EMPTY_LIST":
                stack.append([])
            case "APPEND":
                _extend(stack[-2], [stack.pop()])
            case "APPENDS":
                values = pop_to_mark()
                _extend(stack[-1], values)
            case "EMPTY_DICT":
                stack.append({})
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _update(stack[-1], [(key, value)])
            case "SETITEMS":
                values = pop_to_mark()
                _update(stack[-1], zip(values[::2], values[1::2], strict=True))
            case "GLOBAL":
                stack.append(_name(*arg.split(" ", 1)))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_name(module, name))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(_rebuild(function, arguments))
            case "BUILD":  # the `_metadata` of a state dict, or whether a parameter is trained
                stack.pop()
                if type(stack[-1]) not in (dict, _Tensor):
                    raise UserError("refused: it changes what is neither a tensor nor a dict of them; nothing was run")
            case "BINPERSID":
                storage = _storage(stack.pop())
                if storages.setdefault(storage.key, storage) != storage:
                    raise UserError(f"damaged: storage {_clip(storage.key)} is of two kinds")
                stack.append(storage)
            case name:
                raise UserError(f"refused: it uses {name}, which no file of weights needs; nothing was run")
    raise EOFError("it does not end")


def _extend(target: Any, values: list) -> None:
    if type(target) is not list:
        raise TypeError("it appends to something else than a list")
    target.extend(values)


def _update(target: Any, pairs: Any) -> None:
    for key, value in pairs:
        if type(target) is not dict or not isinstance(key, str | int):
            raise TypeError("it sets an item that is none of a dict by name")
        target[key] = value


def _name(module: Any, name: Any) -> _Name:
    if not isinstance(module, str) or not isinstance(name, str):
        raise TypeError("it asks for a name that is no text")
    if (module, name) not in _KNOWN:
        asked = _clip(f"{module}.{name}")
        raise UserError(f"refused: it asks for {asked}, which no file of weights needs; nothing was run")
    return _Name(module, name)


def _rebuild(function: Any, arguments: Any) -> Any:
    match function, arguments:
        case _Name("collections", "OrderedDict"), ():
            return {}
        case _Name("collections", "OrderedDict"), (list(pairs),):  # as Python 2 wrote it
            ordered = {}
            _update(ordered, pairs)
            return ordered
        case _Name("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2"), (storage, offset, shape, strides, *_):
            return _tensor(storage, offset, shape, strides)
        case _Name(_, "_rebuild_parameter" | "Parameter"), (_Tensor() as tensor, *_):
            return tensor
    raise UserError("refused: it calls what is no tensor's constructor; nothing was run")


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> _Tensor:
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


def _storage(reference: Any) -> _Storage:
    match reference:
        case ("storage", _Name("torch" | "torch.storage", kind), str(key), str(), length, *view) if _is_count(
            length
        ) and view in ([], [None]):
            return _Storage(key, np.dtype(_STORAGES[kind]), length)
    raise UserError("damaged, or of an unknown kind: a reference that is not to a storage")


def _is_count(n: Any) -> bool:
    return type(n) is int and 0 <= n < 2**63


def _clip(text: str, limit: int = 100) -> str:
    return text if len(text) <= limit else text[:limit] + "..."
