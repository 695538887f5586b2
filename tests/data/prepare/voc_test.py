"""VOC 2007 and 2012 from small copies of the official archives, with their oddities."""

import numpy as np
import pytest
from official import image_bytes, prepare, refused, write_tar

from jaxmlic.data import datasets
from jaxmlic.data.prepare import voc
from jaxmlic.data.prepare.sources.files import Files
from jaxmlic.data.prepare.tables.annotations import Mistake
from jaxmlic.data.prepare.voc import CLASS_NAMES

OBJECT = """
  <object>
    <name>{name}</name>
    <pose>Left</pose>
    <difficult>{difficult}</difficult>
    <bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox>{more}
  </object>"""
PART = "<part><name>head</name><bndbox><xmin>2</xmin><ymin>2</ymin><xmax>4</xmax><ymax>4</ymax></bndbox></part>"


def annotation(objects, year="2007"):
    """XML of (name, difficult, box[, more]) tuples."""
    inner = "".join(
        OBJECT.format(name=name, difficult=difficult, box=box, more="".join(more))
        for name, difficult, box, *more in objects
    )
    return f"<annotation>\n  <folder>VOC{year}</folder>{inner}\n</annotation>\n"


# id: objects; 000003 has no object at all, 000005 a dog that is difficult and one that is not.
FACTS = {
    "000001": [("dog", 0, (1, 1, 30, 20)), ("person", 0, (3, 3, 9, 9), PART)],
    "000002": [("train", 1, (5, 6, 10.4, 12))],
    "000003": [],
    "000005": [("dog", 1, (1, 2, 3, 4)), ("dog", 0, (2, 2, 8, 8)), ("cat", 1, (1, 1, 2, 2))],
    "000004": [("car", 0, (1, 1, 5, 5))],
    "000006": [("car", 0, (1, 1, 5, 5)), ("bus", 1, (1, 1, 5, 5))],
}
TRAINVAL, TEST = ("000001", "000002", "000003", "000005"), ("000004", "000006")


def members(ids, lists, year="2007"):
    """{name: bytes} of an official archive; Windows line ends in the lists."""
    root = f"VOCdevkit/VOC{year}"
    files = {f"{root}/ImageSets/Main/{name}.txt": "\r\n".join(of).encode() + b"\r\n" for name, of in lists.items()}
    files[f"{root}/ImageSets/Main/dog_trainval.txt"] = b"000001  1\n000002 -1\n"
    for i, image in enumerate(ids):
        files[f"{root}/Annotations/{image}.xml"] = annotation(FACTS[image], year).encode()
        files[f"{root}/JPEGImages/{image}.jpg"] = image_bytes(i, mode="CMYK" if i == 1 else "L" if i == 2 else "RGB")
    return files


@pytest.fixture
def archives(tmp_path):
    """A folder with the two official tar files of VOC 2007, made small."""
    folder = tmp_path / "down loads"
    folder.mkdir()
    lists = {"trainval": TRAINVAL, "train": TRAINVAL[:2], "val": TRAINVAL[2:]}
    write_tar(folder / "VOCtrainval_06-Nov-2007.tar", members(TRAINVAL, lists))
    write_tar(folder / "VOCtest_06-Nov-2007.tar", members(TEST, {"test": TEST}))
    return folder


def expected(image):
    labels = np.zeros(20, np.int8)
    for name, difficult, *_ in FACTS[image]:
        place = CLASS_NAMES.index(name)
        labels[place] = 1 if not difficult else labels[place] or -1
    return labels


def test_the_official_archives(archives, tmp_path):
    status, out, err = prepare("voc2007", tmp_path, archives, "--no-checksums")
    assert status == 0, err
    dataset = datasets.load("voc2007", tmp_path / "data")
    assert dataset.class_names == CLASS_NAMES
    assert dataset.splits == {"train": 4, "test": 2}
    assert dataset.ids("train").tolist() == list(TRAINVAL)
    for split, ids in (("train", TRAINVAL), ("test", TEST)):
        np.testing.assert_array_equal(dataset.labels(split), np.stack([expected(image) for image in ids]))
    assert dataset.ids("main/train").tolist() == list(TRAINVAL[:2])
    assert dataset.ids("main/val").tolist() == list(TRAINVAL[2:])
    assert sorted([*dataset.ids("rmlc/train"), *dataset.ids("rmlc/test")]) == sorted(FACTS)
    assert dataset.count("rmlc/train") == 4  # 6000 of 9963, of six
    text = "\n".join(out)
    assert "the official VOC 2007 has 5,011" in text and "seed 0" in text


def test_boxes_count_from_one_and_keep_their_flags(archives, tmp_path):
    prepare("voc2007", tmp_path, archives, "--no-checksums")
    source = datasets.load("voc2007", tmp_path / "data").source("train", boxes=True)
    boxes = source[0]["boxes"]  # the part of the person is no object
    # The picture is 30 x 20: a box from pixel 1 to pixel 30 is all of it.
    np.testing.assert_allclose(boxes["bbox"], [[0, 0, 1, 1], [2 / 20, 2 / 30, 9 / 20, 9 / 30]], rtol=1e-6)
    assert boxes["label"].tolist() == [CLASS_NAMES.index("dog"), CLASS_NAMES.index("person")]
    assert source[3]["boxes"]["difficult"].tolist() == [True, False, True]
    assert len(source[2]["boxes"]["bbox"]) == 0


def test_bytes_are_kept_as_they_are(archives, tmp_path):
    prepare("voc2007", tmp_path, archives, "--no-checksums")
    source = datasets.load("voc2007", tmp_path / "data").source("train")
    assert [source[i]["image"] for i in range(2)] == [image_bytes(0), image_bytes(1, mode="CMYK")]


@pytest.mark.parametrize("depth", ["devkit", "parent", "year"])
def test_folders_at_any_depth(tmp_path, depth):
    lists = {"trainval": TRAINVAL, "test": TEST}
    for name, data in members(TRAINVAL + TEST, lists).items():
        path = tmp_path / "x" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    source = {"parent": "x", "devkit": "x/VOCdevkit", "year": "x/VOCdevkit/VOC2007"}[depth]
    status, _, err = prepare("voc2007", tmp_path, tmp_path / source)
    assert status == 0, err
    dataset = datasets.load("voc2007", tmp_path / "data")
    assert dataset.splits == {"train": 4, "test": 2}
    assert "main/train" not in dataset.split_names()


def test_2012(tmp_path):
    write_tar(tmp_path / "VOC.tar", members(TRAINVAL, {"train": TRAINVAL[:1], "val": TRAINVAL[1:]}, "2012"))
    assert prepare("voc2012", tmp_path, tmp_path / "VOC.tar")[0] == 0
    dataset = datasets.load("voc2012", tmp_path / "data")
    assert dataset.splits == {"train": 1, "val": 3}
    assert dataset.ids("main/trainval").tolist() == list(TRAINVAL)


def test_the_wrong_year(archives, tmp_path):
    refused(prepare("voc2012", tmp_path, archives, "--no-checksums"), "this is VOC2007, not VOC2012", "own folder")


def test_the_wrong_year_in_a_renamed_folder(tmp_path):
    for name, data in members(TRAINVAL, {"trainval": TRAINVAL, "test": ["000001"]}, "2012").items():
        path = tmp_path / "VOC2007" / name.removeprefix("VOCdevkit/VOC2012/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    refused(prepare("voc2007", tmp_path, tmp_path / "VOC2007"), "this is VOC2012, not VOC2007")


def test_only_one_of_the_two_archives(archives, tmp_path):
    (archives / "VOCtest_06-Nov-2007.tar").unlink()
    refused(prepare("voc2007", tmp_path, archives, "--no-checksums"), "ImageSets/Main/test.txt", "VOCtest_06-Nov-2007")


def test_a_list_that_names_a_missing_image(tmp_path):
    write_tar(tmp_path / "VOC.tar", members(TRAINVAL + TEST, {"trainval": (*TRAINVAL, "000099"), "test": TEST}))
    refused(prepare("voc2007", tmp_path, tmp_path / "VOC.tar"), "000099.xml: is missing", "--skip-bad")
    assert prepare("voc2007", tmp_path, tmp_path / "VOC.tar", "--skip-bad")[0] == 0
    dataset = datasets.load("voc2007", tmp_path / "data")
    assert dataset.splits == {"train": 4, "test": 2}
    assert "000099" in (dataset.path / "skipped.csv").read_text()


@pytest.mark.parametrize(
    ("xml", "why"),
    [
        ("", "not XML"),
        ("<annotation><object></annotation>", "not XML"),
        ("<html></html>", "not <annotation>"),
        (annotation([("dgo", 0, (1, 1, 2, 2))]), "unknown class 'dgo' (did you mean 'dog'?)"),
        (annotation([("dog", 2, (1, 1, 2, 2))]), "<difficult>"),
        (annotation([("dog", 0, (1, 1, "x", 2))]), "four numbers"),
        (annotation([("dog", 0, (1, 1, "nan", 2))]), "four numbers"),
        (annotation([("dog", 0, (5, 1, 2, 2))]), "xmin > xmax"),
        ('<?xml version="1.0" encoding="klingon"?><annotation/>', "cannot be read|not XML"),
    ],
)
def test_annotations_that_are_wrong(xml, why):
    with pytest.raises(Mistake) as mistake:
        voc.parse(xml.encode(), "a.xml")
    assert any(part in str(mistake.value) for part in why.split("|"))


def test_entities_do_not_explode():
    """A "billion laughs" file is refused by the parser and not expanded."""
    entities = '<!ENTITY a0 "ha">' + "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 12))
    bomb = f"<!DOCTYPE annotation [{entities}]><annotation><object><name>&a11;</name></object></annotation>"
    with pytest.raises(Mistake):
        voc.parse(bomb.encode(), "a.xml")


def test_reading_needs_no_pixels(archives):
    """Labels are known before any image is decoded: counts of a whole data set take seconds."""
    with Files([archives], checksums=False) as files:
        found = voc.read(files, "2007")
    assert [len(rows) for rows in found.splits.values()] == [4, 2]
    assert not found.problems
