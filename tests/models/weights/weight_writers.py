"""Weight files put together by hand, so that they can lie and no other library is needed."""

import collections
import io
import json
import pickle
import struct
import zipfile

import pytest

from jaxmlic.errors import UserError
from jaxmlic.models.weights.weight_files import read_state

# PyTorch's two formats

MAGIC, PROTOCOL, SYSTEM = 0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}


class Global:
    """Pickled as the import of a name that need not exist here."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class Call:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments


class Storage:
    def __init__(self, key, length, kind="FloatStorage"):
        self.id = ("storage", Global("torch", kind), key, "cpu", length, None)


class Pickler(pickle._Pickler):
    def persistent_id(self, obj):
        return obj.id if isinstance(obj, Storage) else None

    def save(self, obj, *args, **kwargs):
        if isinstance(obj, Global):
            return self.write(f"c{obj.module}\n{obj.name}\n".encode())
        if isinstance(obj, Call):
            self.save(obj.function)
            self.save(obj.arguments)
            return self.write(pickle.REDUCE)
        return super().save(obj, *args, **kwargs)


def dumps(obj):
    file = io.BytesIO()
    Pickler(file, protocol=2).dump(obj)
    return file.getvalue()


REBUILD = Global("torch._utils", "_rebuild_tensor_v2")


def tensor(storage, offset, shape, strides):
    return Call(REBUILD, storage, offset, shape, strides, False, collections.OrderedDict())


def legacy(path, state, storages, system=SYSTEM, magic=MAGIC, protocol=PROTOCOL):
    parts = [dumps(magic), dumps(protocol), dumps(system), dumps(state), dumps(list(storages))]
    for values in storages.values():
        parts += [struct.pack("<q", len(values)), values.tobytes()]
    path.write_bytes(b"".join(parts))
    return path


def zipped(path, program, storages, method=zipfile.ZIP_STORED, byteorder=b"little"):
    """PyTorch's zip format, around any pickle."""
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/byteorder", byteorder)
        for key, values in storages.items():
            archive.writestr(f"archive/data/{key}", values.tobytes())
        archive.writestr("archive/version", b"3\n")
    return path


_DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "uint8": "U8"}


def safetensors(path, arrays=(), header=None, values=None):
    """The format by hand; header and values replace those of the arrays."""
    entries, parts, at = {"__metadata__": {"format": "pt"}}, [], 0
    for name, array in dict(arrays).items():
        dtype, end = _DTYPES[str(array.dtype)], at + array.nbytes
        entries[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [at, end]}
        parts.append(array.tobytes())
        at = end
    text = json.dumps(entries).encode() if header is None else header.encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + (b"".join(parts) if values is None else values))
    return path


def refusal(path):
    """The one line the file is refused with."""
    with pytest.raises(UserError) as caught:
        read_state(path)
    line = str(caught.value)
    assert str(path) in line and "\n" not in line
    return line
