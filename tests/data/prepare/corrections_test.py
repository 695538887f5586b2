"""`jaxmlic data review --apply`: corrections come back as a data set or a table, and mistakes in them in one line."""

import cv2
import numpy as np
import pytest

from jaxmlic.cli import main as cli
from jaxmlic.data import datasets
from jaxmlic.data.prepare import writer

CLASSES = ["cat", "dog", "bird"]
HEADER = "rank,kind,image,class,given,probability,corrected\n"


def example(name, labels, boxes=()):
    pixels = np.full((6, 8, 3), 40 * len(name) % 255, np.uint8)
    image = cv2.imencode(".png", pixels)[1].tobytes()
    found = [{"bbox": [0.0, 0.0, 0.5, 0.5], "label": label, "difficult": False} for label in boxes]
    return {"id": name, "image": image, "labels": np.array(labels, np.int8), "boxes": found}


@pytest.fixture
def dataset(tmp_path):
    """`mine`: three training images and a test image, with boxes and a named split."""
    splits = {
        "train": [
            example("a.png", [1, 0, 0], [0, 0]),
            example("bb.png", [0, 1, -1], [1]),
            example("ccc.png", [1, 1, 0], [0, 1]),
        ],
        "test": [example("dddd.png", [0, 0, 1])],
    }
    writer.write("mine", tmp_path / "data", CLASSES, splits, {}, True)
    found = datasets.load("mine", tmp_path / "data")
    datasets.write_named_split(found, "few", {"labelled": np.array([2, 0])}, {})
    return found


@pytest.fixture
def apply(tmp_path, capfd, dataset):
    """Writes a review.csv and applies it: (status, lines on stdout, lines on stderr)."""

    def call(text, *argv, name="mine"):
        path = tmp_path / "review.csv"
        path.write_bytes(text.encode())
        capfd.readouterr()
        command = ["data", "review", name, f"--apply={path}", f"--data-dir={tmp_path / 'data'}", *argv]
        status = cli.run(command)
        out, err = capfd.readouterr()
        return status, out.splitlines(), err.splitlines()

    return call


GOOD = HEADER + (
    "1,likely absent,a.png,cat,1,0.01,0\n"
    "2,likely present,dddd.png,dog,0,0.99,1.0\n"
    "3,likely present,ccc.png,bird,0,0.98,\n"
    "4,likely absent,ccc.png,dog,1,0.03,1\n"
    "1,annotate next,bb.png,bird,-1,0.5,1\n"
)


def test_a_corrected_data_set(apply, dataset, tmp_path):
    status, out, err = apply(GOOD, "--as=mended")
    assert (status, err) == (0, [])
    assert out[0] == (
        "3 labels of 3 images change (unknown -> present 1, absent -> present 1, present -> absent 1), 1 are confirmed"
    )
    mended = datasets.load("mended", tmp_path / "data")
    assert mended.labels("train").tolist() == [[0, 0, 0], [0, 1, 1], [1, 1, 0]]
    assert mended.labels("test").tolist() == [[0, 1, 1]]
    assert dataset.labels("train").tolist() == [[1, 0, 0], [0, 1, -1], [1, 1, 0]]  # as it was
    assert mended.class_names == dataset.class_names and mended.ids("few/labelled").tolist() == ["ccc.png", "a.png"]
    before, after = dataset.source("train", boxes=True), mended.source("train", boxes=True)
    assert [one["image"] for one in before] == [one["image"] for one in after]
    assert [one["labels"].tolist() for one in after] == mended.labels("train").tolist()
    assert [one["boxes"]["label"].tolist() for one in after] == [[], [1], [0, 1]]  # a.png is no cat, so no box of one


def test_a_corrected_table_is_prepared_again(apply, dataset, tmp_path, capfd):
    status, out, err = apply(GOOD, f"--out={tmp_path / 'labels.csv'}")
    assert (status, err) == (0, [])
    (tmp_path / "jpg").mkdir()
    for split in dataset.splits:
        for record in dataset.source(split):
            (tmp_path / "jpg" / record["id"]).write_bytes(record["image"])
    options = out[1].partition("prepare NEW ")[2].replace("FOLDER", str(tmp_path / "jpg")).split()
    assert cli.run(["data", "prepare", "again", *options, f"--data-dir={tmp_path / 'data'}"]) == 0, capfd.readouterr()
    again = datasets.load("again", tmp_path / "data")
    assert again.class_names == dataset.class_names
    assert again.labels("train").tolist() == [[0, 0, 0], [0, 1, 1], [1, 1, 0]]
    assert again.labels("test").tolist() == [[0, 1, 1]]


def test_what_a_spreadsheet_makes_of_the_file(apply, tmp_path):
    """A byte order mark, CRLF, columns in another order, empty lines."""
    text = "\ufeffcorrected,class,image,given,note\r\n0,cat,a.png,1,sure\r\n\r\n,,,,\r\n"
    status, _, err = apply(text, "--as=mended")
    assert (status, err) == (0, [])
    assert datasets.load("mended", tmp_path / "data").labels("train")[0].tolist() == [0, 0, 0]


ROW = "1,likely absent,a.png,cat,1,0.01,0\n"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (HEADER + ROW.replace(",0\n", ",2\n"), ["review.csv:2:", "'2'", "1 (present), 0 (absent) or -1"]),
        (HEADER + ROW.replace("a.png", "z.png"), ["review.csv:2:", "no image 'z.png'", "'mine'"]),
        (HEADER + "\n" + ROW.replace("cat", "cut"), ["review.csv:3:", "no class 'cut'", "did you mean 'cat'?"]),
        (HEADER + ROW.replace(",1,", ",0,"), ["review.csv:2:", "given is '0'", "has 1", "review this data set again"]),
        (HEADER + ROW + ROW.replace(",0\n", ",-1\n"), ["review.csv:3:", "-1 here and 0 on line 2", "remove one"]),
        (HEADER + ROW.replace(",0\n", "\n"), ["review.csv:2:", "6 columns", "has 7"]),
        (HEADER + ROW.replace(",0\n", ",\n"), ["nothing is corrected", "column corrected"]),
        (HEADER.replace(",", ";") + ROW.replace(",", ";"), ["review.csv:1:", "no column 'image'", "commas"]),
        ("", ["the file is empty"]),
        (HEADER + '1,"x,a.png,cat,1,0.01,0\n', ["review.csv:2:", "not valid CSV", "quotes"]),
    ],
)
def test_mistakes_in_the_file(apply, tmp_path, text, parts):
    status, out, err = apply(text, "--as=mended")
    assert (status, out, len(err)) == (2, [], 1), err
    for part in parts:
        assert part in err[0]
    assert not (tmp_path / "data" / "mended").exists()


def test_an_image_of_two_splits(apply, tmp_path):
    splits = {"train": [example("a.png", [1, 0, 0])], "test": [example("a.png", [1, 0, 0])]}
    writer.write("twice", tmp_path / "data", CLASSES, splits, {}, True)
    status, _, err = apply(HEADER + ROW, "--as=mended", name="twice")
    assert status == 2 and "is in train and test" in err[0]


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        ([], "either --as=NAME"),
        (["--as=x", "--out=y.csv"], "either --as=NAME"),
        (["--as=mine"], "another name"),
        (["--as=x", "--folds=3"], "--folds means nothing with --apply"),
        (["--as=x", "--config.seed=1"], "--config.seed=1 goes with --config=FILE alone"),
        (["--as=x", "--colour"], "unrecognized arguments: --colour"),
    ],
)
def test_mistakes_in_the_command(apply, argv, part):
    status, _, err = apply(GOOD, *argv)
    assert (status, len(err)) == (2, 1) and part in err[0], err


def test_a_class_named_like_a_column(apply, tmp_path):
    writer.write("odd", tmp_path / "data", ["cat", "split"], {"train": [example("a.png", [1, 0])]}, {}, True)
    status, _, err = apply(HEADER + ROW, f"--out={tmp_path / 'x.csv'}", name="odd")
    assert status == 2 and "a class is named 'split'" in err[0] and "--as=NAME" in err[0]
