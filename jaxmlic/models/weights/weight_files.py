"""Files of named arrays, of four kinds: `.safetensors`, `.npz`, and PyTorch's `.pth` of both ages. See `read_state`."""

import struct
import zipfile
from pathlib import Path
from typing import BinaryIO

import numpy as np
import safetensors

from jaxmlic import storage
from jaxmlic.errors import UserError
from jaxmlic.models.weights import torch_pickle

_PARALLEL = "module."  # what DataParallel puts before every name
_MAX_HEADER = 100_000_000  # bytes, of a safetensors file: the limit of its own library


def read_state(path: str | Path) -> dict[str, np.ndarray]:
    """Every array of a state dict, by name; what parallel training put before all names is taken off.

    The content decides the kind of file, and nothing in it is run. The arrays may be read-only.
    UserError, one line, if it cannot be read, whatever its bytes are.
    """
    path = storage.to_path(path)
    if path.is_dir():
        raise UserError(f"{path}: a directory; give the file of weights in it")
    local = storage.local_copy(path)
    try:
        with local.open("rb") as file:
            state = _read(file, local)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file of weights") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # zipfile, safetensors and numpy each have their own, MemoryError included
        raise UserError(f"{path}: damaged or unreadable ({str(error)[:200]}); fetch the file again") from None
    if all(name.startswith(_PARALLEL) for name in state):
        state = {name.removeprefix(_PARALLEL): array for name, array in state.items()}
    return state


def _read(file: BinaryIO, path: Path) -> dict[str, np.ndarray]:
    start = file.read(9)
    file.seek(0)
    # First, since the length that a safetensors file begins with can look like a pickle's first bytes.
    if start[8:] == b"{" and struct.unpack("<Q", start[:8])[0] <= _MAX_HEADER:
        return _read_safetensors(path)
    if start[:2] == b"PK":
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            if any(name.endswith("/data.pkl") for name in names):
                return torch_pickle.read_zip(archive)
        return _read_npz(file, names)
    if start[:1] == b"\x80":
        return torch_pickle.read_legacy(file, path.stat().st_size)
    raise UserError("neither a .safetensors, nor an .npz of arrays, nor a PyTorch pickle")


def _read_npz(file: BinaryIO, members: list[str]) -> dict[str, np.ndarray]:
    strange = [name for name in members if not name.endswith(".npy")]
    if strange:
        raise UserError(f"not an .npz: holds {', '.join(strange[:8])}")
    file.seek(0)
    with np.load(file, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    with safetensors.safe_open(path, framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
