"""Pretrained weights: a PyTorch state dict on disk -> a trunk's variables, or a UserError that says what differs.

Two kinds of file are read: `.npz` (arrays by their PyTorch names), and PyTorch's legacy pickle (a `.pth` from before
1.6), without PyTorch and without running anything the file says: the few names such a file needs stand for inert
objects of our own, and any other name is refused.
"""

import collections
import math
import pickle
import struct
import zipfile
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np

from jaxmlic.errors import UserError
from jaxmlic.models import trunks


def load(path: str | Path, trunk: str) -> dict[str, Any]:
    """Variables of a trunk, float32: `{"params": ..., "batch_stats": ...}`, as `Trunk.init` has them.

    path: a state dict with PyTorch's names (`.npz`, or a legacy `.pth`). The classifier on top of the network and the
        counters of its batch norms are left out, knowingly.
    trunk: a name such as "efficientnet_lite0".
    UserError if the file cannot be read, or does not hold exactly the trunk's arrays in their shapes.
    """
    module, fields = trunks.get(trunk)
    if not hasattr(module, "torch_names"):
        raise UserError(f"trunk {trunk!r} has no pretrained weights to load; leave the path of weights empty")
    names = module.torch_names(**fields)
    state = {name: array for name, array in read_state(path).items() if not _left_out(name, module)}
    missing, unexpected = sorted(set(names.values()) - set(state)), sorted(set(state) - set(names.values()))
    if missing or unexpected:
        raise UserError(
            f"{path}: not the weights of {trunk}; missing in the file ({len(missing)}): {_some(missing)};"
            f" unexpected in the file ({len(unexpected)}): {_some(unexpected)}"
        )
    wanted = flax.traverse_util.flatten_dict(_shapes(module, fields))
    flat, wrong = {}, []
    for key, name in names.items():
        array = _to_flax(state[name])
        if array.shape != wanted[key].shape:
            wrong.append(f"{name} is {_to_torch(array.shape)}, wanted {_to_torch(wanted[key].shape)}")
        elif not jnp.issubdtype(array.dtype, jnp.floating):
            wrong.append(f"{name} is {array.dtype}, wanted a float")
        else:
            flat[key] = jnp.asarray(array, jnp.float32)
    if wrong:
        raise UserError(f"{path}: not the weights of {trunk}; {_some(wrong)}")
    return flax.traverse_util.unflatten_dict(flat)


def read_state(path: str | Path) -> dict[str, np.ndarray]:
    """Every array of a state dict, by name. The kind of file is told by its content. UserError if it cannot be read."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path}: a directory; give the file of weights in it")
    try:
        with path.open("rb") as file:
            start = file.read(2)
            file.seek(0)
            if start == b"PK":
                return _read_npz(file)
            if start[:1] == b"\x80":
                return _read_legacy(file, path.stat().st_size)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file of weights") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: damaged or unreadable ({error})") from None
    raise UserError(f"{path}: neither an .npz of arrays nor a PyTorch pickle")


def _read_npz(file: BinaryIO) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(file) as archive:
        strange = [name for name in archive.namelist() if not name.endswith(".npy")]
    if any(name.endswith("data.pkl") for name in strange):
        raise UserError(
            "PyTorch's zip format is not read; in PyTorch, save it again with"
            " torch.save(state, path, _use_new_zipfile_serialization=False)"
        )
    if strange:
        raise UserError(f"not an .npz: holds {_some(strange)}")
    with np.load(file, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


# PyTorch's legacy format: five pickles (magic number, protocol, system, the object, storage keys), then for each key in
# turn the storage's length (int64) and its raw values. Source: torch/serialization.py, _legacy_save.

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
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


class _StorageType(NamedTuple):
    """Stands for torch.FloatStorage and its kin."""

    dtype: np.dtype


class _Storage(NamedTuple):
    """A run of values that comes later in the file."""

    key: str
    dtype: np.dtype
    length: int


class _Tensor(NamedTuple):
    """A view of a storage, offset and strides in values."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _RebuildTensor:
    """Stands for torch._utils._rebuild_tensor_v2: notes a view, reads nothing. Without attributes a file could set."""

    __slots__ = ()

    def __call__(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
        numbers = (offset, *shape, *strides)
        if not isinstance(storage, _Storage) or len(shape) != len(strides) or not all(_is_count(n) for n in numbers):
            raise UserError("damaged: a tensor that is no view of a storage")
        last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        empty = 0 in shape
        if not empty and (last >= storage.length or math.prod(shape) > storage.length):
            raise UserError("damaged: a tensor reaches beyond its storage")
        return _Tensor(storage, offset, tuple(shape), tuple(strides))


class _Unpickler(pickle.Unpickler):
    """Knows the names a state dict of tensors needs, and refuses every other before it is imported."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _RebuildTensor()
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return _StorageType(np.dtype(_STORAGES[name]))
        raise UserError(f"refused: it asks for {module}.{name}, which no file of weights needs; nothing was run")

    def persistent_load(self, pid: Any) -> _Storage:
        match pid:
            case ("storage", _StorageType(dtype), str(key), str(), int(length), *view) if view in ([], [None]):
                return _Storage(key, dtype, length)
        raise UserError("damaged, or of an unknown kind: a reference that is not to a storage")


def _read_legacy(file: BinaryIO, size: int) -> dict[str, np.ndarray]:
    try:
        if _Unpickler(file).load() != _MAGIC:
            raise UserError("a pickle, but not one of PyTorch's")
        protocol, _, state, keys = (_Unpickler(file).load() for _ in range(4))
    except UserError:
        raise
    except Exception as error:  # a broken pickle can raise anything
        raise UserError(f"damaged: the pickle does not read ({type(error).__name__}: {error})") from None
    if protocol != _PROTOCOL:
        raise UserError(f"PyTorch's legacy format, but version {protocol!r} of it; only {_PROTOCOL} is read")
    if not isinstance(state, dict) or not all(isinstance(k, str) for k in state):
        raise UserError("holds no state dict of tensors by name")
    tensors = {name: tensor for name, tensor in state.items() if isinstance(tensor, _Tensor)}
    if len(tensors) != len(state):
        raise UserError(f"holds no state dict: not tensors are {_some(sorted(set(state) - set(tensors)))}")
    storages = {tensor.storage.key: tensor.storage for tensor in tensors.values()}
    if not isinstance(keys, list) or set(keys) != set(storages):
        raise UserError("damaged: its list of storages does not match its tensors")
    values = {key: _read_storage(file, storages[key], size) for key in keys}
    return {name: _view(tensor, values[tensor.storage.key]) for name, tensor in tensors.items()}


def _read_storage(file: BinaryIO, storage: _Storage, size: int) -> np.ndarray:
    header = file.read(8)
    if len(header) < 8:
        raise UserError(f"truncated: {size} bytes end before its arrays do")
    length = struct.unpack("<q", header)[0]
    if length != storage.length:
        raise UserError(f"damaged: storage {storage.key} has {length} values, wanted {storage.length}")
    if file.tell() + length * storage.dtype.itemsize > size:
        raise UserError(f"truncated: {size} bytes end before its arrays do")
    return np.frombuffer(file.read(length * storage.dtype.itemsize), storage.dtype.newbyteorder("<"))


def _view(tensor: _Tensor, values: np.ndarray) -> np.ndarray:
    strides = [stride * values.itemsize for stride in tensor.strides]
    return np.lib.stride_tricks.as_strided(values[tensor.offset :], tensor.shape, strides, writeable=False).copy()


def _is_count(n: Any) -> bool:
    return isinstance(n, int) and n >= 0


def _left_out(name: str, module: ModuleType) -> bool:
    return name in module.TORCH_CLASSIFIER or name.endswith(".num_batches_tracked")


def _shapes(module: ModuleType, fields: dict[str, Any]) -> Any:
    image = jnp.zeros((1, module.STRIDE, module.STRIDE, 3))
    return jax.eval_shape(lambda: module.Trunk(**fields).init(jax.random.key(0), image, False))


def _to_flax(array: np.ndarray) -> np.ndarray:
    """OIHW -> HWIO for the kernel of a convolution; the rest as it is."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array


def _to_torch(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else shape


def _some(names: list[str], limit: int = 8) -> str:
    if not names:
        return "none"
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
