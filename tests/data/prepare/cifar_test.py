"""CIFAR-10 and STL-10 from files of the owners' layouts with fewer images."""

import io
import os
import pickle
import struct
import zipfile

import cv2
import numpy as np
import pytest
from official import write_tar

from jaxmlic.data.prepare import cifar
from jaxmlic.data.prepare.sources.files import Files
from jaxmlic.errors import UserError

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
BATCHES = ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"]


def test_official_sizes():
    assert cifar.BATCH * 3073 == 30_730_000 and sum(map(len, cifar._BATCHES.values())) == 6
    assert cifar.STL["unlabelled"] * 3 * 96 * 96 == 2_764_800_000  # unlabeled_X.bin
    assert cifar.STL["train"] * 3 * 96 * 96 == 138_240_000 and cifar.STL["test"] * 3 * 96 * 96 == 221_184_000
    assert (cifar.FOLDS, cifar.FOLD) == (10, 1000)


def decoded(image):
    return cv2.imdecode(np.frombuffer(image.read(), np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]


def pictures(count, side, seed=0):
    """uint8 [count, side, side, 3]: nothing symmetric about them."""
    images = np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    images[0] = 0
    images[0, 0, 1:] = (255, 10, 20)  # a red line along the top, from the second column on
    return images


def archive(path, members):
    """A tar.gz of {name: bytes}."""
    return write_tar(path, members, "w:gz")


def folder(path, members):
    for name, data in members.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def refused(read, source, *parts):
    with pytest.raises(UserError) as caught, Files([source], checksums=False) as files:
        read(files)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value), str(caught.value)


class Python2(pickle._Pickler):
    """Writes what `cPickle.dump(..., protocol=2)` of Python 2 wrote: texts are bytes, NumPy has its old name."""

    dispatch = dict(pickle._Pickler.dispatch)  # noqa: RUF012 - as in the base class

    def save_text(self, text):
        text = text.encode() if isinstance(text, str) else text
        self.write(pickle.BINSTRING + struct.pack("<i", len(text)) + text)
        self.memoize(text)

    def save_function(self, function):
        self.write(b"cnumpy.core.multiarray\n_reconstruct\n")

    dispatch[bytes] = dispatch[str] = save_text
    dispatch[type(np.zeros(0).__reduce__()[0])] = save_function


def python2(value):
    buffer = io.BytesIO()
    Python2(buffer, 2).dump(value)
    return buffer.getvalue()


@pytest.fixture
def cifar10(monkeypatch):
    """(images [24, 32, 32, 3], labels [24], the binary files, the Python files) of six batches of four."""
    monkeypatch.setattr(cifar, "BATCH", 4)
    images = pictures(24, 32)
    labels = np.random.default_rng(1).integers(0, 10, 24)
    binary = {"batches.meta.txt": "\n".join([*NAMES, "", ""]).encode(), "readme.html": b"<html>"}
    python = {"batches.meta": python2({"label_names": NAMES, "num_cases_per_batch": 4, "num_vis": 3072})}
    for i, batch in enumerate(BATCHES):
        planes = images[4 * i : 4 * i + 4].transpose(0, 3, 1, 2).reshape(4, -1)
        numbers = labels[4 * i : 4 * i + 4]
        binary[batch + ".bin"] = np.concatenate([numbers[:, None].astype(np.uint8), planes], 1).tobytes()
        python[batch] = python2({"data": planes, "labels": numbers.tolist(), "batch_label": "x", "filenames": ["a"]})
    binary = {f"cifar-10-batches-bin/{name}": data for name, data in binary.items()}
    python = {f"cifar-10-batches-py/{name}": data for name, data in python.items()}
    return images, labels, binary, python


@pytest.mark.parametrize("form", ["binary", "python"])
@pytest.mark.parametrize("packed", [True, False])
def test_cifar10(tmp_path, cifar10, form, packed):
    images, labels, *members = cifar10
    members = members[form == "python"]
    source = archive(tmp_path / "cifar.tar.gz", members) if packed else folder(tmp_path / "cifar", members)
    with Files([source]) as files:
        table = cifar.read_cifar10(files)
    assert table.class_names == NAMES and not table.problems and not table.has_boxes
    assert [len(table.splits[split]) for split in ("train", "test")] == [20, 4]
    rows = table.splits["train"] + table.splits["test"]
    assert [row.id for row in rows] == [f"train/{i:05d}" for i in range(20)] + [f"test/{i:05d}" for i in range(4)]
    for row, image, label in zip(rows, images, labels, strict=True):
        np.testing.assert_array_equal(decoded(row.image), image)
        np.testing.assert_array_equal(row.labels, np.arange(10) == label)
        assert row.labels.dtype == np.int8


def test_a_python_array_in_column_major_order_is_the_same(tmp_path, cifar10):
    images, labels, _, members = cifar10
    planes = np.asfortranarray(images[:4].transpose(0, 3, 1, 2).reshape(4, -1))
    members["cifar-10-batches-py/data_batch_1"] = python2({"data": planes, "labels": labels[:4].tolist()})
    with Files([folder(tmp_path, members)]) as files:
        np.testing.assert_array_equal(decoded(cifar.read_cifar10(files).splits["train"][2].image), images[2])


def test_cifar10_that_is_damaged(tmp_path, cifar10):
    _, _, binary, _ = cifar10
    last = "cifar-10-batches-bin/test_batch.bin"
    broken = binary | {last: binary[last][:-1]}
    refused(cifar.read_cifar10, archive(tmp_path / "a.tar.gz", broken), last, "12,291 bytes", "12,292")
    missing = {name: data for name, data in binary.items() if "data_batch_3" not in name}
    refused(cifar.read_cifar10, archive(tmp_path / "b.tar.gz", missing), "no data_batch_3.bin")
    refused(cifar.read_cifar10, archive(tmp_path / "c.tar.gz", {"readme": b""}), "cifar-10-binary.tar.gz")
    names = binary | {"cifar-10-batches-bin/batches.meta.txt": b"cat\ncat\n"}
    refused(cifar.read_cifar10, archive(tmp_path / "d.tar.gz", names), "batches.meta.txt", "2 class names, 1 of them")
    wrong = binary | {last: b"\x0b" + binary[last][1:]}
    with Files([archive(tmp_path / "e.tar.gz", wrong)]) as files:
        table = cifar.read_cifar10(files)
    assert [str(problem) for problem in table.problems] == [f"{last}:1: label 11: 0 to 9 are classes"]
    assert [row.id for row in table.splits["test"]] == ["test/00001", "test/00002", "test/00003"]


class Evil:
    def __init__(self, call, *args):
        self.call, self.args = call, args

    def __reduce__(self):
        return self.call, self.args


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_malicious_pickle_runs_nothing(tmp_path, cifar10, protocol):
    members = cifar10[3]
    target = tmp_path / "owned"
    for number, evil in enumerate([Evil(os.system, f"touch {target}"), Evil(eval, f"open({str(target)!r}, 'w')")]):
        data = pickle.dumps({"data": evil, "labels": []}, protocol)
        source = folder(tmp_path / str(number), members | {"cifar-10-batches-py/data_batch_1": data})
        refused(cifar.read_cifar10, source, "cifar-10-batches-py/data_batch_1", "wants to run", "refused")
        assert not target.exists()


@pytest.mark.parametrize(
    "data, why",
    [
        (b"", "not a pickle"),
        (python2({"data": np.zeros((4, 3072), np.uint8), "labels": [1] * 4})[:-9], "not a pickle"),
        (python2([1]), "no dict"),
        (python2({"labels": [1] * 4}), "no 'data' and 'labels'"),
        (python2({"data": np.zeros((4, 3072), np.float32), "labels": [1] * 4}), "something other than bytes"),
        (python2({"data": np.array([None]), "labels": [1] * 4}), "something other than bytes"),
        (python2({"data": np.zeros((3, 3072), np.uint8), "labels": [1] * 4}), "9,216 bytes"),
        (python2({"data": np.zeros((4, 3072), np.uint8), "labels": [1] * 3}), "labels must be 4"),
        (python2({"data": np.zeros((4, 3072), np.uint8), "labels": [1, 2, 3, "4"]}), "labels must be 4"),
        (b"\x80\x02cnumpy\nndarray\n)\x81K\x01b.", "not a pickle"),
    ],
)
def test_a_damaged_pickle_is_one_line(tmp_path, cifar10, data, why):
    members = cifar10[3] | {"cifar-10-batches-py/data_batch_1": data}
    refused(cifar.read_cifar10, folder(tmp_path, members), "cifar-10-batches-py/data_batch_1", why)


@pytest.fixture
def stl10(monkeypatch):
    """({split: images}, {split: labels from 1 on}, the files) of 6, 3 and 5 images, and ten folds of two."""
    sizes = {"train": 6, "test": 3, "unlabelled": 5}
    monkeypatch.setattr(cifar, "STL", sizes)
    monkeypatch.setattr(cifar, "FOLD", 2)
    images = {split: pictures(count, 96, seed) for seed, (split, count) in enumerate(sizes.items())}
    labels = {"train": np.array([1, 10, 3, 3, 7, 2]), "test": np.array([4, 9, 1])}
    members = {"class_names.txt": "\n".join(NAMES).encode() + b"\n"}
    folds = [f"{k % 6} {(k + 1) % 6} " for k in range(10)]
    members["fold_indices.txt"] = "\n".join(folds).encode() + b"\n"
    for split, name in (("train", "train_X.bin"), ("test", "test_X.bin"), ("unlabelled", "unlabeled_X.bin")):
        members[name] = images[split].transpose(0, 3, 2, 1).tobytes()  # channel, column, row
    for split in labels:
        members[f"{split}_y.bin"] = labels[split].astype(np.uint8).tobytes()
    return images, labels, {f"stl10_binary/{name}": data for name, data in members.items()}


@pytest.mark.parametrize("packed", [True, False])
def test_stl10(tmp_path, stl10, packed):
    images, labels, members = stl10
    source = archive(tmp_path / "stl.tar.gz", members) if packed else folder(tmp_path / "stl", members)
    with Files([source]) as files:
        table = cifar.read_stl10(files)
        assert table.class_names == NAMES and not table.problems
        assert {split: len(rows) for split, rows in table.splits.items()} == {"train": 6, "test": 3, "unlabelled": 5}
        for split, rows in table.splits.items():
            for i, row in enumerate(rows):
                assert row.id == f"{split}/{i:05d}" and row.labels.dtype == np.int8
                np.testing.assert_array_equal(decoded(row.image), images[split][i])
                expected = np.arange(10) == labels[split][i] - 1 if split in labels else np.full(10, -1)
                np.testing.assert_array_equal(row.labels, expected)
        states = [str(row.image.state()) for rows in table.splits.values() for row in rows]
        assert len(set(states)) == 14
    folds = table.named_splits["folds"]
    assert list(folds) == [f"train{k}" for k in range(10)]
    assert folds["train0"] == ["train/00000", "train/00001"] and folds["train5"] == ["train/00005", "train/00000"]


def test_stl10_that_is_damaged(tmp_path, stl10):
    _, _, members = stl10
    cut = members | {"stl10_binary/unlabeled_X.bin": members["stl10_binary/unlabeled_X.bin"][:-1]}
    refused(cifar.read_stl10, archive(tmp_path / "a.tar.gz", cut), "unlabeled_X.bin", "138,239 bytes", "138,240")
    refused(cifar.read_stl10, folder(tmp_path / "b", members | {"stl10_binary/test_y.bin": b"\1"}), "test_y.bin", "1 b")
    for text in (b"0 1\n" * 9, b"0 1\n" * 9 + b"0 6\n", b"0 1\n" * 9 + b"3 3\n", b"0 1\n" * 9 + b"0 x 1\n", b"\n"):
        source = folder(tmp_path / "c", members | {"stl10_binary/fold_indices.txt": text})
        refused(cifar.read_stl10, source, "fold_indices.txt", "download the archive again")
    with zipfile.ZipFile(tmp_path / "stl.zip", "w") as packed:
        for name, data in members.items():
            packed.writestr(name, data)
    refused(cifar.read_stl10, tmp_path / "stl.zip", "stl10_binary.tar.gz, or extract it")
    wrong = members | {"stl10_binary/train_y.bin": bytes([0, 10, 3, 3, 7, 11])}
    with Files([folder(tmp_path / "d", wrong)]) as files:
        table = cifar.read_stl10(files)
    assert [problem.line for problem in table.problems] == [1, 6]
    assert table.named_splits["folds"]["train5"] == []


def test_stored_pixels_that_are_gone(tmp_path, stl10):
    source = folder(tmp_path, stl10[2])
    with Files([source]) as files:
        rows = cifar.read_stl10(files).splits["unlabelled"]
        (source / "stl10_binary" / "unlabeled_X.bin").write_bytes(b"")
        with pytest.raises(OSError, match="unexpected end"):
            rows[3].image.read()


def test_a_fold_with_a_number_of_thousands_of_digits(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, "FOLDS", 1)
    monkeypatch.setattr(cifar, "FOLD", 2)
    source = folder(tmp_path, {"fold_indices.txt": b"0 " + b"1" * 5000 + b"\n"})
    refused(cifar._folds, source, "fold_indices.txt:1", "different numbers")


def test_a_pickle_that_asks_for_memory(tmp_path, cifar10):
    _, _, _, python = cifar10
    name = "cifar-10-batches-py/data_batch_1"
    greedy = python | {name: python[name][:2] + b"Nr\xff\xff\xff\x7f0" + python[name][2:]}
    refused(cifar.read_cifar10, folder(tmp_path, greedy), name, "memo")


def test_class_names_of_a_pickle_are_different(tmp_path, cifar10):
    _, _, _, python = cifar10
    twice = python | {"cifar-10-batches-py/batches.meta": python2({"label_names": [*NAMES[:9], "cat"]})}
    refused(cifar.read_cifar10, folder(tmp_path, twice), "batches.meta", "not all different")
