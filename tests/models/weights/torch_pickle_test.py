"""PyTorch's pickles: tensors are read exactly, programs are refused and never run."""

import collections
import pickle
import struct
import zipfile

import numpy as np
import pytest
from weight_writers import MAGIC, PROTOCOL, SYSTEM, Call, Global, Storage, dumps, legacy, refusal, tensor, zipped

from jaxmlic.models.weights.weight_files import read_state


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
    state = read_state(small)
    assert list(state) == ["turned", "part", "count"]
    np.testing.assert_array_equal(state["turned"], np.arange(12, dtype=np.float32).reshape(4, 3).T)
    np.testing.assert_array_equal(state["part"], [[7, 8], [10, 11]])
    assert state["count"] == 41 and state["count"].dtype == np.int64


@pytest.mark.parametrize("pickle_protocol", [2, 4, 5])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_files_that_pytorch_wrote(tmp_path, zipped, pickle_protocol):
    torch = pytest.importorskip("torch")
    base = torch.arange(24, dtype=torch.float32)
    written = collections.OrderedDict(
        turned=base.reshape(2, 3, 4).permute(2, 0, 1),
        part=base[5:9],
        half=torch.ones(3, dtype=torch.bfloat16) / 3,
        empty=torch.zeros(0, 4),
        count=torch.tensor(3),
        trained=torch.nn.Parameter(torch.ones(2, 2)),
    )
    written._metadata = {"": {"version": 1}}  # as the state dict of a module has it
    path = tmp_path / "weights.pth"
    torch.save(written, path, _use_new_zipfile_serialization=zipped, pickle_protocol=pickle_protocol)
    state = read_state(path)
    assert list(state) == list(written)
    for name, value in written.items():
        assert state[name].shape == tuple(value.shape)
        np.testing.assert_array_equal(state[name].astype(np.float32), value.detach().float().numpy())


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_state_dict"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_checkpoints_of_trainings_are_unwrapped(tmp_path, zipped, wrapper):
    torch = pytest.importorskip("torch")
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    network(torch.ones(2, 3, 5, 5)).sum().backward()
    optimizer.step()  # tensors of its own, which are skipped
    parallel = {f"module.{name}": value for name, value in network.state_dict().items()}
    checkpoint = {"epoch": 3, "optimizer": optimizer.state_dict(), wrapper: parallel, "best": 0.5, "note": None}
    torch.save(checkpoint, tmp_path / "last.pt", _use_new_zipfile_serialization=zipped)
    state = read_state(tmp_path / "last.pt")
    assert list(state) == list(network.state_dict())
    for name, value in network.state_dict().items():
        np.testing.assert_array_equal(state[name], value)


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


def executes(target):
    """Python code, as the argument of eval, that leaves a file behind."""
    return f"__import__('pathlib').Path({str(target)!r}).touch()"


def text(string):
    return b"X" + struct.pack("<I", len(string.encode())) + string.encode()


def attacks(target):
    """Programs that a pickle machine would run, by name; each leaves a file behind or tampers with the reader."""
    code = executes(target)
    call = b"cbuiltins\neval\n" + text(code) + b"\x85R"
    empty = b"ccollections\nOrderedDict\n)R"
    return {
        "reduce": call,
        "stack global": text("builtins") + text("eval") + b"\x93" + text(code) + b"\x85R",
        "instance": b"(" + text(code) + b"ibuiltins\neval\n",
        "object": b"(cbuiltins\neval\n" + text(code) + b"o",
        "new object": b"cbuiltins\nobject\n)\x81",
        "new object of a known name": b"ccollections\nOrderedDict\n)\x81",
        "instance of a known name": b"(icollections\nOrderedDict\n",
        "new object with keywords": b"cbuiltins\nobject\n)}\x92",
        "attribute of an attribute": b"\x8c\x0bcollections\x8c\x1dOrderedDict.__init__.__globals__\x93",
        "state of an instance": b"cbuiltins\nobject\n)\x81}" + text("__setstate__") + call + b"sb",
        "state of a name": b"ccollections\nOrderedDict\n}" + text("__setitem__") + b"Nsb",
        "slots of a name": b"ccollections\nOrderedDict\nN}" + text("__setitem__") + b"Ns\x86b",
        "state of a dict": empty + b"}" + text("items") + call + b"sb",
        "key of a dict": empty + call + b"K\x01s",
        "extension": b"\x82\x01",
        "extension of two bytes": b"\x83\x01\x00",
        "extension of four bytes": b"\x84\x01\x00\x00\x00",
        "memo": b"cbuiltins\neval\nq\x000h\x00" + text(code) + b"\x85R",
        "memo of a known name": b"ccollections\nOrderedDict\nq\x00" + text(code) + b"\x85R",
        "memo out of bounds": b"]r\xff\xff\xff\xff0j\xfe\xff\xff\xff",
        "persistent": b"Pbuiltins.eval\n",
        "persistent call": call + b"Q",
        "buffer": b"\x97",
    }


@pytest.mark.parametrize("kind", ["legacy", "zip"])
@pytest.mark.parametrize("name", attacks("x"))
def test_programs_are_refused_and_not_run(tmp_path, name, kind):
    target, path = tmp_path / "run", tmp_path / "attack.pth"
    program = b"\x80\x02}" + text("a") + attacks(target)[name] + b"s."
    if kind == "legacy":
        path.write_bytes(dumps(MAGIC) + dumps(PROTOCOL) + dumps(SYSTEM) + program + dumps([]))
    else:
        zipped(path, program, {})
    line = refusal(path)
    assert "refused: " in line or "damaged" in line
    assert not target.exists()


def test_the_attacks_do_run_where_they_are_let(tmp_path):
    """So that the test above refuses something."""
    for name in ("reduce", "stack global", "instance", "object", "memo", "key of a dict"):
        pickle.loads(b"\x80\x02}" + text("a") + attacks(tmp_path / "run")[name] + b"s.")
        (tmp_path / "run").unlink()


def test_a_nested_key_or_a_long_name_does_not_keep_the_reader_busy(tmp_path):
    """Thirty pairs of pairs cost nothing to write down, and 2^30 steps to hash or to print."""
    bomb = b")" + b"q\x00h\x00\x86" * 30
    for program in (b"}" + bomb + b"Ns", bomb, b"}" + text("a") + bomb + b"s", bomb + b"Q", bomb + b"b"):
        zipped(tmp_path / "bomb.pth", b"\x80\x02" + program + b".", {})
        assert len(refusal(tmp_path / "bomb.pth")) < 500
    zipped(tmp_path / "name.pth", b"\x80\x02c" + b"x" * 10**6 + b"\nf\n.", {})
    assert len(refusal(tmp_path / "name.pth")) < 500


def test_zip_files_are_read_without_pytorch(tmp_path):
    floats, integers = np.arange(12, dtype=np.float32), np.array([41], np.int64)
    a, b = Storage("0", 12), Storage("1", 1, "LongStorage")
    state = dict(turned=tensor(a, 0, (3, 4), (1, 3)), count=tensor(b, 0, (), ()))
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        path = zipped(tmp_path / "small.pt", dumps(state), {"0": floats, "1": integers}, method)
        read = read_state(path)
        np.testing.assert_array_equal(read["turned"], floats.reshape(4, 3).T)
        assert read["count"] == 41 and read["count"].dtype == np.int64


def test_files_of_2017_are_read(tmp_path):
    """Parameters made by a call and a state, and tensors rebuilt by a function without a version."""
    old = Call(Global("torch._utils", "_rebuild_tensor"), Storage("0", 4), 0, (2, 2), (2, 1))
    state = Call(
        Global("collections", "OrderedDict"), [["weight", Call(Global("torch.nn.parameter", "Parameter"), old)]]
    )
    values = np.arange(4, dtype=np.float32)
    read = read_state(legacy(tmp_path / "old.pth", state, {"0": values}))
    np.testing.assert_array_equal(read["weight"], values.reshape(2, 2))


def test_zip_files_with_lies_are_refused(tmp_path):
    state, values = dumps({"a": tensor(Storage("0", 4), 0, (4,), (1,))}), np.zeros(4, np.float32)
    path = tmp_path / "lie.pt"
    assert "it lacks the values of storage 0" in refusal(zipped(path, state, {"1": values}))
    assert "storage 0 has 20 bytes, wanted 4 values" in refusal(zipped(path, state, {"0": np.zeros(5, np.float32)}))
    assert "big-endian" in refusal(zipped(path, state, {"0": values}, byteorder=b"big"))
    two = dumps({"a": tensor(Storage("0", 4), 0, (4,), (1,)), "b": tensor(Storage("0", 3), 0, (3,), (1,))})
    assert "storage 0 is of two kinds" in refusal(zipped(path, two, {"0": values}))
    zipped(path, state, {"0": values})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("second/data.pkl", state)
    assert "2 pickles" in refusal(path)


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
    assert "of another version than 1001" in one(0, (4,), (1,), protocol=1002)
    assert "no state dict" in refusal(legacy(tmp_path / "list.pth", [1, 2], {}))
    assert "not tensors are layer" in refusal(legacy(tmp_path / "nested.pth", {"layer": {}}, {}))


def test_a_cut_or_damaged_legacy_file_is_a_mistake_of_the_users(small):
    whole = small.read_bytes()
    for length in range(1, len(whole)):
        small.write_bytes(whole[:length])
        assert "truncated" in refusal(small) or "damaged" in refusal(small)
