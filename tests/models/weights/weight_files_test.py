"""Files of arrays: four kinds give the same arrays, and bytes of every other sort end in one line."""

import json
import struct
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy as safetensors_library
from weight_writers import Storage, dumps, legacy, refusal, safetensors, tensor, zipped

from jaxmlic.errors import UserError
from jaxmlic.models.weights.weight_files import read_state

ARRAYS = {
    "conv.weight": np.random.default_rng(0).normal(size=(4, 3, 2, 2)).astype(np.float32),
    "bn.bias": np.linspace(-1, 1, 5).astype(np.float16),
    "bn.num_batches_tracked": np.array(7),
    "empty": np.zeros((0, 3), np.float32),
}
_STORAGES = {"float32": "FloatStorage", "float16": "HalfStorage", "int64": "LongStorage"}


def write(path, kind):
    """ARRAYS in a file of that kind."""
    if kind == "npz":
        np.savez(path, **ARRAYS)
        return path
    if kind == "safetensors":
        return safetensors(path, ARRAYS)
    storages = {str(i): array.ravel() for i, array in enumerate(ARRAYS.values())}
    tensors = {}
    for i, (name, array) in enumerate(ARRAYS.items()):
        strides = tuple(s // array.itemsize for s in array.strides)
        tensors[name] = tensor(Storage(str(i), array.size, _STORAGES[str(array.dtype)]), 0, array.shape, strides)
    return legacy(path, tensors, storages) if kind == "legacy" else zipped(path, dumps(tensors), storages)


KINDS = ["npz", "safetensors", "legacy", "zip"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same_arrays(tmp_path, kind):
    read = read_state(write(tmp_path / "weights.npz", kind))  # content counts, not the name
    assert set(read) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_of_every_kind_are_mistakes_of_the_users(tmp_path, kind):
    """Cut anywhere, they are refused; with bytes changed, or inserted, or taken out, nothing but a UserError comes."""
    path = write(tmp_path / "weights.npz", kind)
    whole = path.read_bytes()
    for length in [*range(1, 40), *range(40, len(whole), 41), len(whole) - 1]:
        path.write_bytes(whole[:length])
        refusal(path)
    rng = np.random.default_rng(0)
    for _ in range(400):
        damaged = bytearray(whole)
        for at in rng.integers(len(whole), size=rng.integers(1, 4)):
            match rng.integers(3):
                case 0:
                    damaged[at] = rng.integers(256)
                case 1:
                    damaged[at:at] = rng.bytes(rng.integers(1, 9))
                case 2:
                    del damaged[at : at + rng.integers(1, 9)]
        path.write_bytes(damaged)
        try:
            read_state(path)
        except UserError as error:
            assert str(path) in str(error)


def test_safetensors_that_their_own_library_wrote(tmp_path):
    safetensors_library.save_file(ARRAYS, tmp_path / "weights.safetensors", metadata={"format": "pt"})
    read = read_state(tmp_path / "weights.safetensors")
    assert set(read) == set(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(read[name], array)


def test_safetensors_in_all_floats(tmp_path):
    values = np.linspace(-2, 2, 9)
    arrays = {str(np.dtype(d)): values.astype(d) for d in (np.float64, np.float32, np.float16, jnp.bfloat16)}
    read = read_state(safetensors(tmp_path / "floats.safetensors", arrays))
    for name, array in arrays.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)


def test_safetensors_with_lies_are_refused(tmp_path):
    path = tmp_path / "lie.safetensors"

    def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
        return json.dumps({"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)})

    def one(*entries, values=bytes(8)):
        body = ", ".join(f'"{name}": {entry}' for name, entry in zip("aba", entries, strict=False))
        return refusal(safetensors(path, header="{" + body + "}", values=values))

    safetensors(path, header='{"a": ' + entry() + "}", values=bytes(8))
    assert read_state(path)["a"].shape == (2,)
    for wrong in (
        entry(shape=(3,)),
        entry(shape=(-2,)),
        entry(shape=(2.0,)),
        entry(shape=(True, 2)),
        entry(offsets=(8, 0)),
        entry(offsets=(-8, 0)),
        entry(offsets=(0,)),
        entry(shape=(2**62, 2**62)),
        "3",
        "{}",
        "null",
    ):
        assert "damaged or unreadable" in one(wrong)
    assert "damaged or unreadable" in one(entry(dtype="F8_E4M3", offsets=(0, 2)), values=bytes(2))
    assert "invalid offset for tensor `b`" in one(entry(), entry(offsets=(4, 12)), values=bytes(12))
    assert "invalid offset for tensor `b`" in one(entry(), entry(offsets=(12, 20)), values=bytes(20))
    assert "file not fully covered" in one(entry(), values=bytes(12))
    assert "file not fully covered" in one(entry(), values=bytes(4))
    assert "damaged or unreadable" in refusal(safetensors(path, header="{" * 10**5, values=b""))
    for length in (10**6, 10**8):
        path.write_bytes(struct.pack("<Q", length) + b"{}")
        assert "invalid header length" in refusal(path)
    path.write_bytes(struct.pack("<Q", 10**8 + 1) + b"{}")
    assert "neither a .safetensors" in refusal(path)
    # Its length begins with the byte that a pickle begins with.
    header = '{"a": ' + entry() + "}"
    assert read_state(safetensors(path, header=header + " " * (0x280 - len(header)), values=bytes(8)))["a"].size == 2


def test_files_that_hold_no_weights_are_refused(tmp_path):
    assert "no such file" in refusal(tmp_path / "absent.npz")
    assert "a directory" in refusal(tmp_path)
    for content in (b"", b"hello", b"\x93NUMPY"):
        (tmp_path / "text.npz").write_bytes(content)
        assert "neither a .safetensors, nor an .npz of arrays, nor a PyTorch pickle" in refusal(tmp_path / "text.npz")
    np.savez(tmp_path / "objects.npz", a=np.array([{}], object))
    assert "damaged or unreadable" in refusal(tmp_path / "objects.npz")
    with zipfile.ZipFile(tmp_path / "book.zip", "w") as archive:
        archive.writestr("book.txt", b"")
    assert "not an .npz: holds book.txt" in refusal(tmp_path / "book.zip")


def test_only_a_prefix_of_all_names_is_taken_off(tmp_path):
    one, two = np.ones(1), np.ones(2)
    np.savez(tmp_path / "all.npz", **{"module.a": one, "module.b": two})
    assert list(read_state(tmp_path / "all.npz")) == ["a", "b"]
    np.savez(tmp_path / "some.npz", **{"module.a": one, "b": two})
    assert list(read_state(tmp_path / "some.npz")) == ["module.a", "b"]
