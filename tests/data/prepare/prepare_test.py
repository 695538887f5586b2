"""`jaxmlic data prepare` from the outside: good tables, and every mistake ends in one line, status 2 and no change."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from jaxmlic.cli import main as cli
from jaxmlic.data import datasets
from jaxmlic.data.prepare import checks, writer


def encoded(seed=0, height=20, width=30, form="JPEG", mode="RGB", **options):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, form, **options)
    return buffer.getvalue()


@pytest.fixture
def source(tmp_path):
    """Folder with train.csv (6 rows), test.csv (2 rows) and their images."""
    folder = tmp_path / "source"
    (folder / "images").mkdir(parents=True)
    for i in range(10):
        (folder / "images" / f"{i}.jpg").write_bytes(encoded(i))
    rows = ["0.jpg,cat;dog", "1.jpg,dog", "2.jpg,", "3.jpg,cat", "4.jpg,cat", "5.jpg,bird"]
    (folder / "train.csv").write_text("image,labels\n" + "\n".join(rows) + "\n")
    (folder / "test.csv").write_text("image,labels\n6.jpg,dog\n7.jpg,bird;cat\n")
    return folder


@pytest.fixture
def run(tmp_path, capfd):
    """Runs the command in this process: (status, lines on stdout, lines on stderr)."""

    def call(*argv, name="mine"):
        capfd.readouterr()
        status = cli.run(["data", "prepare", name, f"--data-dir={tmp_path / 'data'}", *map(str, argv)])
        out, err = capfd.readouterr()
        return status, out.splitlines(), err.splitlines()

    return call


def snapshot(folder):
    """Every file below a folder with its bytes."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def assert_refused(result, *parts):
    status, out, err = result
    assert (status, out, len(err)) == (2, [], 1), result
    assert err[0].startswith("jaxmlic: ")
    for part in parts:
        assert part in err[0], err[0]


def test_a_table_is_prepared(source, run, tmp_path):
    status, out, err = run(f"--source={source}")
    assert (status, err) == (0, [])
    text = "\n".join(out)
    for part in ("mine: 8 images, 3 classes", "train: 6 images", "1 without a label", "test: 2 images", "';'"):
        assert part in text
    dataset = datasets.load("mine", tmp_path / "data")
    assert dataset.class_names == ("bird", "cat", "dog") and dataset.splits == {"train": 6, "test": 2}
    np.testing.assert_array_equal(
        dataset.labels("train"), [[0, 1, 1], [0, 0, 1], [0, 0, 0], [0, 1, 0], [0, 1, 0], [1, 0, 0]]
    )
    assert list(dataset.ids("test")) == ["6.jpg", "7.jpg"]
    for i in range(6):
        assert dataset.source("train")[i]["image"] == (source / "images" / f"{i}.jpg").read_bytes()
    info = dataset.info
    assert info["source"] == str(source) and info["label_values"] == "1,0,-1" and info["skipped"] == 0
    assert not info["has_boxes"] and os.listdir(tmp_path / "data") == ["mine"]


def test_images_of_every_kind_are_taken_as_they_are(source, run, tmp_path):
    rgba = np.zeros((9, 8, 4), np.uint8)
    alpha = io.BytesIO()
    Image.fromarray(rgba).save(alpha, "PNG")
    kinds = {
        "alpha.png": alpha.getvalue(),
        "grey.jpg": encoded(mode="L"),
        "cmyk.jpg": encoded(mode="CMYK"),
        "wide.jpg": encoded(height=4, width=20_000),
        "palette.png": encoded(form="PNG", mode="P"),
        "picture.webp": encoded(form="WEBP"),
        "wrong_ending.jpg": encoded(form="PNG"),
    }
    for name, data in kinds.items():
        (source / name).write_bytes(data)
    (source / "train.csv").write_text("".join(f"{name},cat\n" for name in kinds))
    assert run(f"--source={source}", "--workers=3")[0] == 0
    records = datasets.load("mine", tmp_path / "data").source("train")
    assert {records[i]["id"]: records[i]["image"] for i in range(len(records))} == kinds


BAD_IMAGES = {
    "truncated JPEG": (encoded(height=200, width=200)[:-300], "truncated JPEG"),
    "truncated PNG": (encoded(form="PNG")[:-40], "truncated PNG"),
    "0 bytes": (b"", "0 bytes"),
    "text": (b"<html>404 not found</html>", "not an image"),
    "too large": (
        encoded(form="PNG")[:16] + b"\0\0\x4e\x20\0\0\x27\x10" + encoded(form="PNG")[24:],
        "20000 x 10000 pixels are more than the limit",
    ),
}


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_bad_images(source, run, tmp_path, kind):
    data, why = BAD_IMAGES[kind]
    assert run(f"--source={source}", name="other")[0] == 0
    before = snapshot(tmp_path / "data")
    (source / "images" / "3.jpg").write_bytes(data)
    assert_refused(run(f"--source={source}"), "train.csv:5: 3.jpg: ", why, "--skip-bad")
    assert_refused(run(f"--source={source}", "--overwrite", name="other"), "train.csv:5: ", why)
    assert snapshot(tmp_path / "data") == before and os.listdir(tmp_path / "data") == ["other"]

    status, out, err = run(f"--source={source}", "--skip-bad")
    assert (status, err) == (0, []) and "1 row left out" in out[-1]
    dataset = datasets.load("mine", tmp_path / "data")
    assert dataset.splits == {"train": 5, "test": 2} and dataset.info["skipped"] == 1
    assert list(dataset.ids("train")) == ["0.jpg", "1.jpg", "2.jpg", "4.jpg", "5.jpg"]
    assert len(dataset.labels("train")) == 5
    with open(dataset.path / "skipped.csv", newline="") as file:
        header, row = csv.reader(file)
    assert header == ["file", "line", "why"] and row[:2] == ["train.csv", "5"] and why in row[2]
    assert dataset.info["skipped_rows"] == [["train.csv", 5, row[2]]]


def test_every_bad_image_is_listed_though_the_first_stops_the_writing(source, run, tmp_path):
    for name in ("1.jpg", "4.jpg", "7.jpg"):
        (source / "images" / name).write_bytes(b"")
    assert_refused(run(f"--source={source}", "--workers=1"), "train.csv:3: 1.jpg: empty file", "and 2 more")
    with open(tmp_path / "data" / "mine.problems.csv", newline="") as file:
        assert [row[:2] for row in csv.reader(file)][1:] == [["train.csv", "3"], ["train.csv", "6"], ["test.csv", "3"]]


def test_all_mistakes_are_listed(source, run, tmp_path):
    """Mistakes of the table and of images, in all splits, in one go."""
    assert run(f"--source={source}")[0] == 0
    before = snapshot(tmp_path / "data")
    with open(source / "train.csv", "a") as file:
        file.write("8.jpg,cat;;dog\nnone.jpg,cat\n0.jpg,dog\n../x.jpg,cat\n9.jpg,cat,extra\n")
    (source / "images" / "1.jpg").write_bytes(b"")
    (source / "images" / "7.jpg").write_bytes(encoded()[:200])
    listed = tmp_path / "data" / "mine.problems.csv"
    result = run(f"--source={source}", "--overwrite")
    assert_refused(result, "train.csv:8: empty label name", "and 6 more", f"all listed in {listed}")
    with open(listed, newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["file", "line", "why"]
    found = [(row[0], int(row[1])) for row in rows[1:]]
    assert found == [("train.csv", line) for line in (8, 9, 10, 11, 12, 3)] + [("test.csv", 3)]
    after = snapshot(tmp_path / "data")
    after.pop(listed)
    assert after == before

    status, out, _ = run(f"--source={source}", "--overwrite", "--skip-bad")
    assert status == 0 and "7 rows left out" in out[-1] and not listed.exists()
    dataset = datasets.load("mine", tmp_path / "data")
    assert dataset.splits == {"train": 5, "test": 1} and dataset.info["skipped"] == 7
    assert len((dataset.path / "skipped.csv").read_text().splitlines()) == 8


@pytest.mark.parametrize(
    ("name", "text", "parts"),
    [
        ("train.csv", "", ["train.csv", "is empty"]),
        ("train.csv", "image,labels\n", ["train.csv", "no rows"]),
        ("train.csv", "image,labels\n0.jpg,cat\n6.jpg,dog\n", ["test.csv:2: '6.jpg' is already on train.csv:3"]),
        ("train.csv", "image,labels\n0.jpg,cat\nnone.jpg,dog\n", ["train.csv:3: no image 'none.jpg'", "--images"]),
        ("train.csv", "image,labels\n0.jpg,cat;;dog\n", ["train.csv:2: empty label name"]),
        ("train.csv", b"image,labels\n0.jpg,\xe9t\xe9\n", ["train.csv:2: not UTF-8"]),
        ("train.csv", "name,cat,dog\n0.jpg,1,-1\n1.jpg,-1,-1\n", ["-1 occurs", "--label-values=1,-1,0"]),
        ("classes.txt", "cat\ndog\nbirt\n", ["train.csv:7: unknown label 'bird' (did you mean 'birt'?)"]),
        ("classes.txt", "cat\ndog\ncat\n", ["classes.txt:3: class 'cat' is already on line 1"]),
        ("classes.txt", "", ["classes.txt", "empty"]),
    ],
)
def test_mistakes_in_tables(source, run, tmp_path, name, text, parts):
    assert run(f"--source={source}")[0] == 0
    before = snapshot(tmp_path / "data")
    (source / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    assert_refused(run(f"--source={source}", "--overwrite"), *parts)
    left = {path: data for path, data in snapshot(tmp_path / "data").items() if path.name != "mine.problems.csv"}
    assert left == before


def test_unclear_separator(source, run, tmp_path):
    path = source / "spaced.csv"
    path.write_text("image,labels\n0.jpg,cat\n1.jpg,cat dog\n")
    assert_refused(run(f"--source={path}"), "spaced.csv:3: ", "--separator=' '", "--separator=';'")
    assert run(f"--source={path}", "--separator= ")[0] == 0
    assert datasets.load("mine", tmp_path / "data").class_names == ("cat", "dog")


def test_malformed_jsonl(source, run):
    path = source / "all.jsonl"
    path.write_text('{"file": "0.jpg", "labels": ["cat"]}\n{"file": "1.jpg", "labels": ["dog"]\n')
    assert_refused(run(f"--source={path}"), "all.jsonl:2: not valid JSON")


def test_mistakes_on_the_command_line(source, run, tmp_path):
    assert_refused(run(f"--source={tmp_path / 'nowhere'}"), "no such file or folder")
    assert_refused(run(), "'mine' is not built in", "--source")
    assert_refused(run(name="scene"), "did you mean 'scenes'")
    assert_refused(run(f"--source={source}", name="my-set"), "cannot name a data set")
    assert_refused(run(f"--source={source}", "--seed=3"), "--seed means nothing")
    assert_refused(run("--separator=;", name="scenes"), "--separator means nothing for scenes")
    assert_refused(run(f"--source={source}", "--workers=0"), "--workers=0")
    assert_refused(run(f"--source={source}", "--wrokers=2"), "--wrokers")
    assert_refused(run(f"--source={source}", "--label-values=1,0"), "--label-values=1,0: give three")
    assert_refused(run(f"--source={source}", "--images=/nonexistent"), "--images")
    assert_refused(run(f"--source={source}", "--split-column=fold"), "--split-column")
    (tmp_path / "file").write_text("")
    assert_refused(run(f"--source={source}", f"--data-dir={tmp_path / 'file'}"), "cannot write")
    assert not (tmp_path / "data").exists()


def test_all_of_a_split_is_bad(source, run, tmp_path):
    for i in (6, 7):
        (source / "images" / f"{i}.jpg").write_bytes(b"")
    assert_refused(run(f"--source={source}", "--skip-bad"), "'test'", "no examples")
    assert not datasets.prepared(tmp_path / "data")


def test_preparing_again(source, run, tmp_path):
    assert run(f"--source={source}")[0] == 0
    before = snapshot(tmp_path / "data")
    status, out, _ = run(f"--source={source}")
    assert status == 0 and "already prepared" in out[0]
    assert run(f"--source={source}", "--workers=1", "--skip-bad")[1] == out  # what changes no byte is no difference
    assert snapshot(tmp_path / "data") == before

    (source / "images" / "0.jpg").write_bytes(encoded(99, height=21))
    assert_refused(run(f"--source={source}"), "already prepared", "--overwrite")
    assert snapshot(tmp_path / "data") == before
    assert run(f"--source={source}", "--overwrite")[0] == 0
    dataset = datasets.load("mine", tmp_path / "data")
    assert dataset.source("train")[0]["image"] == encoded(99, height=21)

    (source / "train.csv").write_text("0.jpg,cat\n")
    assert_refused(run(f"--source={source}"), "already prepared", "--overwrite")


def test_set_with_images_left_out_does_not_pass_for_a_whole_one(source, run):
    (source / "images" / "0.jpg").write_bytes(b"")
    assert run(f"--source={source}", "--skip-bad")[0] == 0
    assert "already prepared" in run(f"--source={source}", "--skip-bad")[1][0]
    assert_refused(run(f"--source={source}"), "already prepared")


def test_boxes(source, run, tmp_path):
    rows = [
        {"file": "0.jpg", "labels": ["cat"], "boxes": [{"label": "cat", "bbox": [3, 2, 30, 12], "difficult": True}]},
        {"file": "1.jpg", "labels": ["dog"]},
        {"file": "2.jpg", "labels": ["dog"], "boxes": [{"label": "dog", "bbox": [0, -0.5, 31, 20]}]},
    ]
    path = source / "all.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    assert run(f"--source={path}")[0] == 0
    records = datasets.load("mine", tmp_path / "data").source("train", boxes=True)
    np.testing.assert_allclose(records[0]["boxes"]["bbox"], [[0.1, 0.1, 0.6, 1.0]], rtol=1e-6)
    assert records[0]["boxes"]["label"].tolist() == [0] and records[0]["boxes"]["difficult"].tolist() == [True]
    assert records[1]["boxes"]["bbox"].shape == (0, 4)
    np.testing.assert_allclose(records[2]["boxes"]["bbox"], [[0, 0, 1, 1]])  # clipped within the tolerance
    for bbox, why in (([0, 0, 40, 10], "outside the image of 30 x 20"), ([29.9, 0, 30.5, 10], None)):
        rows[1]["boxes"] = [{"label": "dog", "bbox": bbox}]
        path.write_text("\n".join(map(json.dumps, rows)))
        result = run(f"--source={path}", "--overwrite")
        if why:
            assert_refused(result, "all.jsonl:2: 1.jpg: the box", why)
        else:
            assert result[0] == 0
    table = tmp_path / "boxes.csv"
    table.write_text("file,label,xmin,ymin,xmax,ymax\n6.jpg,dog,0,0,15,10\n7.jpg,cat,0,0,15,99\n")
    assert_refused(run(f"--source={source}", f"--boxes={table}", name="two"), "boxes.csv:3: 7.jpg: the box", "outside")


def test_voc_values(source, run, tmp_path):
    (source / "train.csv").write_text("name,cat,dog,bird\n0,1,-1,0\n1,-1,-1,1\n")
    (source / "test.csv").write_text("name,cat,dog,bird\n2,-1,0,-1\n")
    assert_refused(run(f"--source={source}"), "--label-values=1,-1,0")
    status, out, _ = run(f"--source={source}", "--label-values=1,-1,0")
    assert status == 0 and "1 unknown values" in "\n".join(out)
    dataset = datasets.load("mine", tmp_path / "data")
    np.testing.assert_array_equal(dataset.labels("train"), [[1, 0, -1], [0, 0, 1]])
    np.testing.assert_array_equal(dataset.labels("test"), [[0, -1, 0]])
    assert dataset.info["label_values"] == "1,-1,0"


def test_a_full_disk_is_one_line(source, run, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    assert run(f"--source={source}", name="other")[0] == 0
    before = snapshot(tmp_path / "data")
    monkeypatch.setattr(writer.array_record_module.ArrayRecordWriter, "write", full)
    assert_refused(run(f"--source={source}"), "no space left on device", "--data-dir")
    assert_refused(run(f"--source={source}", "--overwrite", name="other"), "no space left on device")
    assert snapshot(tmp_path / "data") == before and os.listdir(tmp_path / "data") == ["other"]


def test_interruption_leaves_nothing(source, run, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(checks, "check_row", interrupt)
    status, _, err = run(f"--source={source}")
    assert status == 130 and len(err) == 1 and os.listdir(tmp_path / "data") == []


def test_scenes(run, tmp_path, monkeypatch):
    """The embedded data set, made small."""
    from jaxmlic.data.prepare.scenes import layout
    from jaxmlic.data.prepare.voc import CLASS_NAMES

    monkeypatch.setattr(layout, "SPLITS", {"train": 6, "test": 3})
    status, out, err = run("--side=64", "--seed=1", "--workers=1", name="scenes")
    assert (status, err) == (0, []), err
    assert "scenes: 9 images, 20 classes" in out[0]
    dataset = datasets.load("scenes", tmp_path / "data")
    assert dataset.has_boxes and dataset.class_names == CLASS_NAMES
    records = dataset.source("train", boxes=True)
    for i in range(6):
        # Every box's class is present in the labels, or the box is one that the labels leave out.
        labels = records[i]["labels"]
        certain = records[i]["boxes"]["label"][~records[i]["boxes"]["difficult"]]
        assert (labels[certain] == 1).all()
    assert "already prepared" in run("--side=64", "--seed=1", name="scenes")[1][0]
    assert_refused(run("--side=64", "--seed=2", name="scenes"), "already prepared", "--overwrite")


def test_as_a_module(source, tmp_path):
    """python -m jaxmlic data prepare, with $JAXMLIC_DATA; help shows examples; no traceback on a mistake."""
    environment = os.environ | {"JAXMLIC_DATA": str(tmp_path / "data")}

    def call(*argv):
        command = [sys.executable, "-m", "jaxmlic", "data", *argv]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    done = call("prepare", "mine", f"--source={source}")
    assert (done.returncode, done.stderr) == (0, "") and "8 images" in done.stdout
    done = call("prepare", "mine", "--source=/nonexistent")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def test_help_and_unknown_commands(capsys):
    for argv, parts in (
        (["prepare", "--help"], ["examples:", "--label-values=1,-1,0", "scenes", "--skip-bad"]),
        (["--help"], ["prepare"]),
    ):
        with pytest.raises(SystemExit) as caught:
            cli.run(["data", *argv])
        assert caught.value.code == 0
        text = capsys.readouterr().out
        assert all(part in text for part in parts)
    for argv in (["prepaer"], [], ["prepare"]):
        assert cli.run(["data", *argv]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "--help" in error


def big_source(tmp_path, count=40):
    """A folder with train.csv and test.csv, `count` images each, the seventh of train broken."""
    folder = tmp_path / "big"
    (folder / "images").mkdir(parents=True)
    for split in ("train", "test"):
        names = [f"{split}{i}.jpg" for i in range(count)]
        for i, name in enumerate(names):
            (folder / "images" / name).write_bytes(encoded(i))
        (folder / f"{split}.csv").write_text("image,labels\n" + "".join(f"{name},cat\n" for name in names))
    (folder / "images" / "train7.jpg").write_bytes(b"broken")
    return folder


@pytest.fixture
def stop_after(monkeypatch):
    """`stop_after(n, error)`: the n-th record raises; `stop_after(None)`: no more. Counts the images looked at."""
    real, seen = writer.serialize_example, []
    monkeypatch.setattr(writer, "SHARD_BYTES", 6000)
    inspect, looked = checks.inspect_image, []
    monkeypatch.setattr(checks, "inspect_image", lambda data: looked.append(1) or inspect(data))

    def install(count, error=None):
        seen.clear()
        looked.clear()

        def serialize(example):
            seen.append(1)
            if count is not None and len(seen) > count:
                raise error
            return real(example)

        monkeypatch.setattr(writer, "serialize_example", serialize)
        return looked

    return install


STOPS = {
    "Ctrl-C": (KeyboardInterrupt(), 130, "interrupted"),
    "full disk": (OSError(28, "No space left on device"), 2, "the same command goes on after the first"),
    "full disk, noticed by the writer": (RuntimeError("No space left on device"), 2, "goes on after the first"),
}


@pytest.mark.parametrize("reason", STOPS)
def test_an_interrupted_preparation_goes_on_where_it_stopped(run, tmp_path, stop_after, reason):
    """Stopped in train, stopped again in test, then finished: the same files as without a stop, most images once."""
    source = big_source(tmp_path)
    stop_after(None)
    assert run(f"--source={source}", "--skip-bad", "--workers=1", name="whole")[0] == 0
    error, code, text = STOPS[reason]
    for count in (30, 25):
        stop_after(count, error)
        status, _, err = run(f"--source={source}", "--skip-bad", "--workers=1")
        assert status == code and text in err[-1]
        assert datasets.prepared(tmp_path / "data") == ["whole"]
    looked = stop_after(None)
    status, out, _ = run(f"--source={source}", "--skip-bad", "--workers=1")
    assert status == 0 and "1 row left out" in "\n".join(out)
    assert len(looked) < 40  # of 80
    made = {
        path.relative_to(tmp_path / "data" / "mine"): data
        for path, data in snapshot(tmp_path / "data" / "mine").items()
    }
    for path, data in snapshot(tmp_path / "data" / "whole").items():
        relative = path.relative_to(tmp_path / "data" / "whole")
        name = str(relative).replace("whole-", "mine-")
        if relative.suffix not in (".json", ".npz"):  # these hold the name
            assert made.pop(type(relative)(name)) == data
    whole, mine = (datasets.load(name, tmp_path / "data") for name in ("whole", "mine"))
    for split in ("train", "test"):
        assert whole.ids(split).tolist() == mine.ids(split).tolist()
        np.testing.assert_array_equal(whole.labels(split), mine.labels(split))
    assert whole.info["skipped_rows"] == mine.info["skipped_rows"] and whole.info["skipped"] == 1
    assert sorted(os.listdir(tmp_path / "data")) == ["mine", "whole"]
    assert not list((tmp_path / "data").rglob("*journal*")) and not list((tmp_path / "data").rglob("*.shard-*"))


def test_what_an_interrupted_run_left_is_not_used_for_something_else(run, tmp_path, stop_after):
    source = big_source(tmp_path)
    (source / "images" / "train7.jpg").write_bytes(encoded(7))
    stop_after(30, KeyboardInterrupt())
    assert run(f"--source={source}")[0] == 130
    (source / "images" / "train0.jpg").write_bytes(encoded(99))
    looked = stop_after(None)
    assert run(f"--source={source}")[0] == 0
    assert len(looked) == 80
    dataset = datasets.load("mine", tmp_path / "data")
    assert dataset.source("train")[0]["image"] == encoded(99)
    assert os.listdir(tmp_path / "data") == ["mine"]


def test_a_shard_that_was_cut_is_written_again(run, tmp_path, stop_after):
    source = big_source(tmp_path)
    stop_after(30, KeyboardInterrupt())
    assert run(f"--source={source}", "--skip-bad")[0] == 130
    shard = next((tmp_path / "data").rglob("train.shard-1"))
    shard.write_bytes(shard.read_bytes()[:100])
    stop_after(None)
    assert run(f"--source={source}", "--skip-bad")[0] == 0
    dataset = datasets.load("mine", tmp_path / "data")
    assert dataset.splits == {"train": 39, "test": 40}
    assert [dataset.source("test")[i]["image"] for i in range(40)] == [encoded(i) for i in range(40)]


def test_a_killed_preparation_goes_on_where_it_stopped(run, tmp_path, stop_after):
    """SIGKILL between two shards of train; the next process takes over what the dead one left."""
    source = big_source(tmp_path)
    code = f"""
import os, signal
from jaxmlic.cli import main as cli
from jaxmlic.data.prepare import writer
writer.SHARD_BYTES = 6000
real, seen = writer.serialize_example, []
def serialize(example):
    seen.append(1)
    if len(seen) > 30:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(example)
writer.serialize_example = serialize
cli.run(["data", "prepare", "mine", "--source={source}", "--skip-bad", "--data-dir={tmp_path / "data"}"])
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    looked = stop_after(None)
    assert run(f"--source={source}", "--skip-bad")[0] == 0
    assert len(looked) < 65
    assert datasets.load("mine", tmp_path / "data").splits == {"train": 39, "test": 40}
    assert os.listdir(tmp_path / "data") == ["mine"]


def test_names_that_are_not_utf8(source, run, tmp_path):
    for split in ("train", "test"):
        (source / f"{split}.csv").unlink()
        for kind in ("cat", "dog"):
            (source / split / kind).mkdir(parents=True)
            (source / split / kind / "1.jpg").write_bytes(encoded())
    (source / "train" / "cat" / os.fsdecode(b"caf\xe9.jpg")).write_bytes(encoded())
    (source / os.fsdecode(b"r\xe9sum\xe9.txt")).write_text("")
    shutil.rmtree(source / "images")
    assert_refused(run(f"--source={source}"), "is not UTF-8: rename the file")
    status, out, err = run(f"--source={source}", "--skip-bad")
    assert (status, err) == (0, []) and any("r\\udce9sum\\udce9.txt: not used" in line for line in out)
    dataset = datasets.load("mine", tmp_path / "data")
    assert dataset.splits == {"train": 2, "test": 2} and dataset.info["skipped"] == 1
    assert "caf\\udce9" in (dataset.path / "skipped.csv").read_text(encoding="utf-8")
    (source / "train" / os.fsdecode(b"\xe9")).mkdir()
    (source / "train" / os.fsdecode(b"\xe9") / "1.jpg").write_bytes(encoded())
    assert_refused(run(f"--source={source}", "--skip-bad", name="other"), "the class '\\udce9' is not UTF-8")


def test_libraries_do_not_add_lines_of_their_own(source, run):
    data = encoded(0, 200, 300)
    middle = len(data) // 2
    (source / "images" / "0.jpg").write_bytes(data[:middle] + bytes(50) + data[middle:])  # libjpeg complains
    assert run(f"--source={source}", name="jpeg")[::2] == (0, [])
    data = encoded(0, form="PNG")
    (source / "images" / "1.jpg").write_bytes(data[:60] + bytes(50) + data[110:])
    assert_refused(run(f"--source={source}", name="png"), "1.jpg: broken PNG")
