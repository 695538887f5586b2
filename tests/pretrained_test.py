"""Weight files: read exactly, refused with one line when they are wrong, and never run."""

import collections
import io
import pickle
import struct
import zipfile

import flax
import jax
import numpy as np
import pytest

from jaxmlic.errors import UserError
from jaxmlic.models import trunks
from jaxmlic.models.trunks import efficientnet_lite, pretrained


@pytest.fixture(scope="module")
def state():
    """A state dict of Lite0 with PyTorch's names and shapes, classifier and counters included."""
    rng = np.random.default_rng(0)
    shapes = flax.traverse_util.flatten_dict(pretrained._shapes(efficientnet_lite, {}))
    arrays = {}
    for key, name in efficientnet_lite.torch_names("lite0").items():
        shape = shapes[key].shape
        shape = (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else shape
        arrays[name] = rng.normal(size=shape).astype(np.float32)
        if name.endswith("running_var"):
            arrays[name.replace("running_var", "num_batches_tracked")] = np.array(7)
    arrays["_fc.weight"], arrays["_fc.bias"] = np.zeros((1000, 1280), np.float32), np.zeros(1000, np.float32)
    return arrays


def save(path, arrays):
    np.savez(path, **arrays)
    return path


def refusal(path, trunk="efficientnet_lite0"):
    """The one line `load` refuses the file with."""
    with pytest.raises(UserError) as caught:
        pretrained.load(path, trunk)
    line = str(caught.value)
    assert str(path) in line and "\n" not in line
    return line


def test_every_array_goes_to_its_place(state, tmp_path):
    variables = pretrained.load(save(tmp_path / "lite0.npz", state), "efficientnet_lite0")
    expected = pretrained._shapes(efficientnet_lite, {})
    assert jax.tree.structure(variables) == jax.tree.structure(expected)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), variables) == jax.tree.map(lambda a: (a.shape, a.dtype), expected)
    params, stats = variables["params"], variables["batch_stats"]
    stem = state["_conv_stem.weight"]  # output, input, height, width
    assert params["conv_stem"]["kernel"][2, 1, 0, 5] == stem[5, 0, 2, 1]
    depthwise = state["_blocks.3._depthwise_conv.weight"]
    assert params["blocks_3"]["depthwise_conv"]["kernel"][4, 1, 0, 9] == depthwise[9, 0, 4, 1]
    np.testing.assert_array_equal(
        params["blocks_15"]["project_conv"]["kernel"][0, 0], state["_blocks.15._project_conv.weight"][:, :, 0, 0].T
    )
    np.testing.assert_array_equal(params["blocks_1"]["bn0"]["scale"], state["_blocks.1._bn0.weight"])
    np.testing.assert_array_equal(params["bn1"]["bias"], state["_bn1.bias"])
    np.testing.assert_array_equal(stats["bn0"]["mean"], state["_bn0.running_mean"])
    np.testing.assert_array_equal(stats["blocks_7"]["bn2"]["var"], state["_blocks.7._bn2.running_var"])


def test_half_precision_weights_become_float32(state, tmp_path):
    halves = {name: array.astype(np.float16) for name, array in state.items()}
    variables = pretrained.load(save(tmp_path / "half.npz", halves), "efficientnet_lite")
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float32)}


def test_wrong_weights_are_refused_with_both_lists(state, tmp_path):
    changed = dict(state)
    changed["_bn1.scale"] = changed.pop("_bn1.weight")
    line = refusal(save(tmp_path / "names.npz", changed))
    assert "missing in the file (1): _bn1.weight;" in line and "unexpected in the file (1): _bn1.scale" in line

    line = refusal(save(tmp_path / "lite0.npz", state), "efficientnet_lite2")
    assert "not the weights of efficientnet_lite2; missing in the file (" in line and " more;" in line

    shapes = state | {"_bn0.bias": np.zeros(33, np.float32), "_conv_stem.weight": np.zeros((32, 4, 3, 3), np.float32)}
    line = refusal(save(tmp_path / "shapes.npz", shapes))
    assert "_bn0.bias is (33,), wanted (32,)" in line
    assert "_conv_stem.weight is (32, 4, 3, 3), wanted (32, 3, 3, 3)" in line

    line = refusal(save(tmp_path / "integers.npz", state | {"_bn0.bias": np.zeros(32, np.int32)}))
    assert "_bn0.bias is int32, wanted a float" in line


def test_files_that_hold_no_weights_are_refused(state, tmp_path):
    assert "no such file" in refusal(tmp_path / "absent.npz")
    assert "a directory" in refusal(tmp_path)
    for content in (b"", b"hello", b"\x93NUMPY"):
        (tmp_path / "text.npz").write_bytes(content)
        assert "neither an .npz of arrays nor a PyTorch pickle" in refusal(tmp_path / "text.npz")
    whole = save(tmp_path / "whole.npz", {"a": np.zeros(1000)}).read_bytes()
    for length in (2, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.npz").write_bytes(whole[:length])
        assert "damaged or unreadable" in refusal(tmp_path / "cut.npz")
    objects = save(tmp_path / "objects.npz", {"a": np.array([{}], object)})
    assert "damaged or unreadable" in refusal(objects)
    with zipfile.ZipFile(tmp_path / "new.pth", "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    assert "_use_new_zipfile_serialization=False" in refusal(tmp_path / "new.pth")
    with zipfile.ZipFile(tmp_path / "book.zip", "w") as archive:
        archive.writestr("book.txt", b"")
    assert "not an .npz: holds book.txt" in refusal(tmp_path / "book.zip")
    with pytest.raises(UserError, match="trunk 'small_cnn' has no pretrained weights"):
        pretrained.load(tmp_path / "whole.npz", "small_cnn")


def test_trunks_are_found_by_name():
    assert trunks.get("efficientnet_lite") == (efficientnet_lite, {})
    for name in ("efficientnet_lite9", "pretrained", "", "small"):
        with pytest.raises(UserError, match=r"efficientnet_lite0.*small_cnn"):
            trunks.get(name)
    with pytest.raises(UserError, match="did you mean 'efficientnet_lite0'"):
        trunks.get("efficientnet-lite0")


# PyTorch's legacy format, put together by hand, so that no PyTorch is needed here.

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


@pytest.fixture
def small(tmp_path):
    """Two storages, three tensors: a transposed one, a part of the same storage, a scalar of integers."""
    floats, integers = np.arange(12, dtype=np.float32), np.array([41], np.int64)
    a, b = Storage("a", 12), Storage("b", 1, "LongStorage")
    state = collections.OrderedDict(
        turned=tensor(a, 0, (3, 4), (1, 3)), part=tensor(a, 7, (2, 2), (3, 1)), count=tensor(b, 0, (), ())
    )
    return legacy(tmp_path / "small.pth", state, {"a": floats, "b": integers})


def test_legacy_files_are_read_without_pytorch(small):
    state = pretrained.read_state(small)
    assert list(state) == ["turned", "part", "count"]
    np.testing.assert_array_equal(state["turned"], np.arange(12, dtype=np.float32).reshape(4, 3).T)
    np.testing.assert_array_equal(state["part"], [[7, 8], [10, 11]])
    assert state["count"] == 41 and state["count"].dtype == np.int64


def test_legacy_and_npz_give_the_same_variables(state, tmp_path):
    storages, tensors = {}, collections.OrderedDict()
    for i, (name, array) in enumerate(state.items()):
        storages[str(i)] = array.ravel()
        kind = "FloatStorage" if array.dtype == np.float32 else "LongStorage"
        strides = tuple(s // array.itemsize for s in array.strides)
        tensors[name] = tensor(Storage(str(i), array.size, kind), 0, array.shape, strides)
    got = pretrained.load(legacy(tmp_path / "lite0.pth", tensors, storages), "efficientnet_lite0")
    expected = pretrained.load(save(tmp_path / "lite0.npz", state), "efficientnet_lite0")
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_files_that_pytorch_wrote(tmp_path):
    torch = pytest.importorskip("torch")
    base = torch.arange(24, dtype=torch.float32)
    written = collections.OrderedDict(
        turned=base.reshape(2, 3, 4).permute(2, 0, 1),
        part=base[5:9],
        half=torch.ones(3, dtype=torch.bfloat16) / 3,
        empty=torch.zeros(0, 4),
        count=torch.tensor(3),
    )
    torch.save(written, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    state = pretrained.read_state(tmp_path / "old.pth")
    assert list(state) == list(written)
    for name, value in written.items():
        assert state[name].shape == tuple(value.shape)
        np.testing.assert_array_equal(state[name].astype(np.float32), value.float().numpy())
    torch.save(written, tmp_path / "new.pth")
    assert "PyTorch's zip format" in refusal(tmp_path / "new.pth")


@pytest.mark.parametrize("place", ["state", "value", "system", "storage"])
@pytest.mark.parametrize("name", ["os system", "posix system", "builtins eval", "builtins exec"])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, place, name):
    target = tmp_path / "run"
    module, function = name.split()
    order = f"touch {target}" if function == "system" else f"__import__('pathlib').Path({str(target)!r}).touch()"
    attack = Call(Global(module, function), order)
    storage = Storage("a", 1)
    if place == "storage":
        storage.id = (*storage.id[:2], attack, *storage.id[3:])
    state = collections.OrderedDict(a=attack if place == "value" else tensor(storage, 0, (1,), (1,)))
    path = legacy(
        tmp_path / "attack.pth",
        attack if place == "state" else state,
        {"a": np.zeros(1, np.float32)},
        system=attack if place == "system" else SYSTEM,
    )
    assert f"refused: it asks for {module}.{function}" in refusal(path)
    assert not target.exists()
    pickle.loads(dumps(attack))
    assert target.exists()  # where it is let, the payload does work


def test_legacy_files_with_lies_are_refused(tmp_path):
    values = {"a": np.zeros(4, np.float32)}

    def one(*view, storage=None, **kwargs):
        state = collections.OrderedDict(a=tensor(storage or Storage("a", 4), *view))
        return refusal(legacy(tmp_path / "lie.pth", state, values, **kwargs))

    assert "a tensor reaches beyond its storage" in one(0, (5,), (1,))
    assert "a tensor reaches beyond its storage" in one(1, (2, 2), (2, 1))
    assert "a tensor reaches beyond its storage" in one(0, (10**12,), (0,))
    assert "a tensor that is no view of a storage" in one(-1, (2,), (1,))
    assert "a tensor that is no view of a storage" in one(2, (2,), (-1,))
    assert "a tensor that is no view of a storage" in one(0, (2,), (1,), storage="a")
    assert "storage a has 4 values, wanted 5" in one(0, (5,), (1,), storage=Storage("a", 5))
    assert "a pickle, but not one of PyTorch's" in one(0, (4,), (1,), magic=1)
    assert "version 1002" in one(0, (4,), (1,), protocol=1002)
    assert "no state dict" in refusal(legacy(tmp_path / "list.pth", [1, 2], {}))
    assert "not tensors are model" in refusal(legacy(tmp_path / "nested.pth", {"model": {}}, {}))


def test_a_cut_or_damaged_legacy_file_is_a_mistake_of_the_users(small):
    whole = small.read_bytes()
    for length in range(1, len(whole)):
        small.write_bytes(whole[:length])
        assert "truncated" in refusal(small) or "damaged" in refusal(small)
    rng = np.random.default_rng(0)
    for _ in range(500):
        damaged = bytearray(whole)
        for at in rng.integers(1, len(whole), 2):
            damaged[at] = rng.integers(256)
        small.write_bytes(damaged)
        try:
            pretrained.read_state(small)
        except UserError as error:
            assert str(small) in str(error)
