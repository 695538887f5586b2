"""Class folders as people have them: with and without splits, packed, around and beside other things."""

import io
import tarfile

import numpy as np
import pytest

from jaxmlic.data.prepare import folders
from jaxmlic.data.prepare.sources.files import Files
from jaxmlic.errors import UserError

SPLIT_TREE = ["train/cat/a.jpg", "train/dog/b.JPEG", "train/dog/c.png", "test/cat/a.jpg", "test/dog/d.jpg"]


def tree(path, names):
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(b"x")
    return path


def read(path, names):
    with Files([tree(path, names)]) as files:
        return folders.read(files)


def rows(table):
    """{split: {id: class}}."""
    return {
        split: {row.id: table.class_names[int(np.argmax(row.labels))] for row in rows}
        for split, rows in table.splits.items()
    }


def test_splits_and_classes(tmp_path):
    table = read(tmp_path, SPLIT_TREE)
    assert table.class_names == ["cat", "dog"] and not table.problems and not table.has_boxes
    assert rows(table) == {
        "train": {"train/cat/a.jpg": "cat", "train/dog/b.JPEG": "dog", "train/dog/c.png": "dog"},
        "test": {"test/cat/a.jpg": "cat", "test/dog/d.jpg": "dog"},
    }
    row = table.splits["test"][1]
    np.testing.assert_array_equal(row.labels, np.array([0, 1], np.int8))
    assert row.labels.dtype == np.int8 and row.where == ("test/dog/d.jpg", 0)
    assert row.image.path == str(tmp_path / "test/dog/d.jpg")


def test_spellings_of_splits_in_their_order(tmp_path):
    names = ["Testing/a/1.jpg", "validation/a/2.jpg", "TRAIN/a/3.jpg", "TRAIN/b/4.jpg"]
    table = read(tmp_path, names)
    assert list(table.splits) == ["train", "val", "test"] and len(table.splits["train"]) == 2
    assert "val: no image of b" in table.notes and "test: no image of b" in table.notes


def test_two_folders_for_one_split(tmp_path):
    with pytest.raises(UserError, match="train and training both give the split 'train'"):
        read(tmp_path, ["train/a/1.jpg", "training/a/2.jpg"])


@pytest.mark.parametrize("around", ["", "data/", "a/b/"])
def test_one_folder_around_everything_is_stripped(tmp_path, around):
    table = read(tmp_path, [around + name for name in SPLIT_TREE] + ["README.md"])
    assert set(rows(table)["train"]) == {"train/cat/a.jpg", "train/dog/b.JPEG", "train/dog/c.png"}
    assert table.splits["train"][0].where == (around + "train/cat/a.jpg", 0)
    assert "README.md: not used" in table.notes and not table.problems


def test_classes_alone_are_the_train_split(tmp_path):
    table = read(tmp_path, ["bus/1.jpg", "train/2.jpg", "car/deep/down/3.jpg"])  # a class may be called train
    assert rows(table) == {"train": {"bus/1.jpg": "bus", "train/2.jpg": "train", "car/deep/down/3.jpg": "car"}}
    assert any("every image is in the split 'train'" in note for note in table.notes)


def test_only_a_test_split(tmp_path):
    assert list(read(tmp_path, ["test/a/1.jpg", "test/b/2.jpg"]).splits) == ["test"]


def test_nothing_is_dropped_silently(tmp_path):
    names = ["train/loose.jpg", "top.png", "extra/z/9.jpg", "train/cat/notes.txt", "train/cat/old.tif", "train/log.txt"]
    table = read(tmp_path, SPLIT_TREE + names)
    assert sorted(problem.file for problem in table.problems) == sorted(names[:5])
    assert all("\n" not in str(problem) for problem in table.problems)
    assert "train/log.txt: not used" in table.notes
    assert sum(map(len, table.splits.values())) == 5


def test_clutter_is_counted(tmp_path):
    clutter = ["train/cat/.DS_Store", "train/cat/Thumbs.db", "__MACOSX/train/cat/._a.jpg", "train/dog/._b.JPEG"]
    table = read(tmp_path, SPLIT_TREE + clutter)
    assert "4 hidden files ignored" in table.notes and not table.problems
    assert sum(map(len, table.splits.values())) == 5


def test_an_archive_is_the_same(tmp_path):
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as tar:
        for name in SPLIT_TREE:
            info = tarfile.TarInfo(f"./{name}")
            info.size = 1
            tar.addfile(info, io.BytesIO(b"x"))
    with Files([tmp_path / "x.tar.gz"]) as files:
        packed = folders.read(files)
        assert packed.splits["train"][0].image.read() == b"x"
    assert rows(packed) == rows(read(tmp_path / "y", SPLIT_TREE))


@pytest.mark.parametrize("names", [["a.jpg", "b.jpg"], ["cat/readme.txt"], []])
def test_no_class_folders_is_one_line(tmp_path, names):
    with pytest.raises(UserError, match="no image there lies in a class folder"):
        read(tmp_path, names)


@pytest.mark.parametrize(
    "names, expected",
    [
        (SPLIT_TREE, True),
        (["data/" + name for name in SPLIT_TREE], True),
        (["cat/1.jpg", "dog/2.jpg", "SOURCE.txt", ".DS_Store"], True),
        ([*SPLIT_TREE, "train/loose.jpg"], True),
        (["images/1.jpg", "images/2.jpg", "train.csv"], False),
        (["images/1.jpg", "images/2.jpg"], False),
        (["cat/1.jpg", "dog/2.jpg", "labels.csv"], False),
        (["VOC2007/JPEGImages/1.jpg", "VOC2007/Annotations/1.xml", "VOC2007/SegmentationClass/1.png"], False),
        (["train2014/1.jpg", "val2014/2.jpg"], False),
        (["cat/1.jpg", "dog/2.jpg", "3.jpg", "4.jpg", "5.jpg"], False),
        (["a.jpg"], False),
        ([], False),
    ],
)
def test_detection(tmp_path, names, expected):
    with Files([tree(tmp_path, names)]) as files:
        assert folders.is_class_folders(files) is expected
