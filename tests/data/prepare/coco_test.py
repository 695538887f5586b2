"""COCO 2014 and 2017 from small copies of the official files, with their oddities."""

import json
import zipfile

import numpy as np
import pytest
from official import image_bytes, prepare, refused

from jaxmlic.data import datasets
from jaxmlic.data.prepare import coco
from jaxmlic.data.prepare.sources.files import Files
from jaxmlic.errors import UserError

# The real file is sorted neither by id nor by name; ids have holes.
CATEGORIES = [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}, {"id": 3, "name": "car"}]


def thing(image, category, bbox=(1, 2, 5, 6), iscrowd=0):
    polygons = [[1.5, 2.25, 3.0, 4.0, 5.0, 6.0]] if not iscrowd else {"counts": [3, 4], "size": [20, 30]}
    return {
        "id": image * 1000 + category,
        "image_id": image,
        "category_id": category,
        "bbox": list(bbox),
        "iscrowd": iscrowd,
        "area": 30.5,
        "segmentation": polygons,
    }


def instances(ids, annotations, prefix="COCO_train2014_"):
    """The content of an instances file, with the fields that are not needed."""
    images = [
        {
            "id": i,
            "file_name": f"{prefix}{i:012}.jpg",
            "height": 20,
            "width": 30,
            "license": 3,
            "coco_url": "http://x/é",
        }
        for i in ids
    ]
    return {
        "info": {"year": 2014},
        "licenses": [{"id": 3, "name": "CC"}],
        "images": images,
        "annotations": annotations,
        "categories": [{**entry, "supercategory": "x"} for entry in CATEGORIES],
    }


TRAIN = instances([9, 25, 30], [thing(30, 18), thing(9, 1), thing(9, 3, (0, 0, 30, 20), 1), thing(9, 1, (3, 3, 0, 4))])
VAL = instances([42, 73], [thing(42, 3)], "COCO_val2014_")


def write_folders(folder, train=TRAIN, val=VAL):
    (folder / "annotations").mkdir(parents=True)
    for split, content in (("train", train), ("val", val)):
        (folder / "annotations" / f"instances_{split}2014.json").write_text(json.dumps(content))
        (folder / f"{split}2014").mkdir()
        for image in content["images"]:
            mode = "L" if image["id"] == 25 else "RGB"
            (folder / f"{split}2014" / image["file_name"]).write_bytes(image_bytes(image["id"], mode=mode))
    (folder / "annotations" / "captions_val2014.json").write_text(json.dumps({"images": [], "annotations": []}))
    return folder


def check_dataset(dataset, names=("person", "car", "dog")):
    assert dataset.class_names == names
    assert dataset.splits == {"train": 3, "val": 2}
    assert dataset.ids("train").tolist() == [image["file_name"] for image in TRAIN["images"]]
    wanted = {"train": [{"person", "car"}, set(), {"dog"}], "val": [{"car"}, set()]}
    for split, rows in wanted.items():
        for labels, row in zip(dataset.labels(split), rows, strict=True):
            assert {name for name, value in zip(names, labels, strict=True) if value == 1} == row
            assert set(labels) <= {0, 1}


def test_folders(tmp_path):
    status, out, err = prepare("coco2014", tmp_path, write_folders(tmp_path / "coco"))
    assert status == 0, err
    dataset = datasets.load("coco2014", tmp_path / "data")
    check_dataset(dataset)
    text = "\n".join(out)
    assert "the official one has 82,783" in text and "1 boxes without area" in text
    boxes = dataset.source("train", boxes=True)[0]["boxes"]
    np.testing.assert_allclose(boxes["bbox"], [[2 / 20, 1 / 30, 8 / 20, 6 / 30], [0, 0, 1, 1]], rtol=1e-6)
    assert boxes["difficult"].tolist() == [False, True]  # a crowd
    assert dataset.source("train")[1]["image"] == image_bytes(25, mode="L")


def test_zips_as_published(tmp_path):
    folder = write_folders(tmp_path / "coco")
    for name, inside in (("annotations_trainval2014", "annotations"), ("train2014",) * 2, ("val2014",) * 2):
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted((folder / inside).iterdir()):
                archive.write(path, f"{inside}/{path.name}")
    archives = [tmp_path / f"{name}.zip" for name in ("annotations_trainval2014", "train2014", "val2014")]
    assert prepare("coco2014", tmp_path, *archives, "--no-checksums")[0] == 0
    check_dataset(datasets.load("coco2014", tmp_path / "data"))


def test_an_archive_that_is_not_the_owners(tmp_path):
    with zipfile.ZipFile(tmp_path / "val2014.zip", "w") as archive:
        archive.writestr("val2014/x.jpg", b"x")
    refused(
        prepare("coco2014", tmp_path, tmp_path / "val2014.zip"), "its owner's file has 6,645,013,297", "--no-checksum"
    )


def test_alphabetical_order_as_ml_gcn(tmp_path):
    folder = write_folders(tmp_path / "coco")
    assert prepare("coco2014", tmp_path, folder, "--class-order=alphabetical")[0] == 0
    check_dataset(datasets.load("coco2014", tmp_path / "data"), ("car", "dog", "person"))


def test_one_split_alone(tmp_path):
    folder = write_folders(tmp_path / "coco")
    (folder / "annotations" / "instances_val2014.json").unlink()
    status, out, _ = prepare("coco2014", tmp_path, folder)
    assert status == 0 and "the split 'val' is not there" in "\n".join(out)
    assert datasets.load("coco2014", tmp_path / "data").splits == {"train": 3}


def test_the_other_year(tmp_path):
    folder = write_folders(tmp_path / "coco")
    refused(prepare("coco2017", tmp_path, folder), "no instances_train2017.json", "captions_val2014.json")


def test_a_missing_image(tmp_path):
    folder = write_folders(tmp_path / "coco")
    (folder / "val2014" / "COCO_val2014_000000000073.jpg").unlink()
    refused(prepare("coco2014", tmp_path, folder), "COCO_val2014_000000000073.jpg: no image of this name")
    assert prepare("coco2014", tmp_path, folder, "--skip-bad")[0] == 0
    assert datasets.load("coco2014", tmp_path / "data").splits == {"train": 3, "val": 1}


def test_two_images_of_one_name(tmp_path):
    """The one in the split's own folder counts; without one there is no telling."""
    folder = write_folders(tmp_path / "coco")
    name = "COCO_val2014_000000000073.jpg"
    (folder / "backup").mkdir()
    (folder / "backup" / name).write_bytes(image_bytes(1000))
    assert prepare("coco2014", tmp_path, folder)[0] == 0
    assert datasets.load("coco2014", tmp_path / "data").source("val")[1]["image"] == image_bytes(73)
    (folder / "val2014" / name).rename(folder / name)
    refused(prepare("coco2014", tmp_path, folder, "--overwrite"), "two images have this name", "backup/")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ("instances_train2014.json", "empty")),
        ('{"images": [],\n "annotations": [\n{"image_id": 1', ("instances_train2014.json:3", "ends too early")),
        ('{"images": [],\n x}', ("instances_train2014.json:2", "not valid JSON")),
        ('{"images": [{"id": "1", "file_name": "a"}], "annotations": [], "categories": []}', ("$.images[0].id",)),
        ('{"images": [], "annotations": []}', ("categories",)),
        ('{"images": [], "annotations": [], "categories": []}', ("no categories",)),
        ("[1, 2]", ("instances_train2014.json", "Expected `object`")),
        (
            '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}',
            ("twice",),
        ),
        (b"\xff\xfe{", ("instances_train2014.json",)),
    ],
)
def test_files_that_are_wrong(tmp_path, text, parts):
    folder = write_folders(tmp_path / "coco")
    data = text if isinstance(text, bytes) else text.encode()
    (folder / "annotations" / "instances_train2014.json").write_bytes(data)
    refused(prepare("coco2014", tmp_path, folder), *parts)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda content: content["annotations"].append(thing(30, 77)), "unknown category 77"),
        (lambda content: content["annotations"].append(thing(31, 18)), "objects of image 31, which is not among"),
        (lambda content: content["images"].append(content["images"][0]), "is there twice"),
        (lambda content: content["annotations"].append(thing(30, 18, (1, 2, 300, 6))), "lies outside the image"),
    ],
)
def test_entries_that_are_wrong(tmp_path, change, why):
    content = json.loads(json.dumps(TRAIN))
    folder = write_folders(tmp_path / "coco")
    change(content)
    (folder / "annotations" / "instances_train2014.json").write_text(json.dumps(content))
    refused(prepare("coco2014", tmp_path, folder), why, "--skip-bad")


def test_categories_of_two_files_must_agree(tmp_path):
    content = {**VAL, "categories": VAL["categories"][:2]}
    folder = write_folders(tmp_path / "coco", val=content)
    refused(prepare("coco2014", tmp_path, folder), "categories differ")


def test_a_file_on_disk_is_not_read_into_memory(tmp_path, monkeypatch):
    """It is mapped: `Files.read` is not called for it."""
    folder = write_folders(tmp_path / "coco")
    with Files([folder]) as files:
        monkeypatch.setattr(files, "read", lambda name: pytest.fail("read"))
        found = coco.decode(files, files.one("instances_train2014.json", "the labels"))
    assert [image.id for image in found.images] == [9, 25, 30]


def test_a_mistake_leaves_no_map_open(tmp_path):
    path = tmp_path / "bad.json"
    path.write_text("{")
    with Files([tmp_path]) as files, pytest.raises(UserError, match="ends too early"):
        coco.decode(files, "bad.json")


def test_json_that_is_nested_beyond_the_stack_or_not_utf8(tmp_path):
    folder = tmp_path / "annotations"
    folder.mkdir()
    path = folder / "instances_train2014.json"
    path.write_bytes(b'{"info": ' + b"[" * 100_000 + b"]" * 100_000 + b"}")
    refused(prepare("coco2014", tmp_path, folder), path.name, "nested too deeply")
    path.write_bytes(b'{\n"images": [{"id": 1, "file_name": "x\xe9\x80"}],\n"annotations": [], "categories": []}')
    refused(prepare("coco2014", tmp_path, folder), f"{path.name}:2:")
