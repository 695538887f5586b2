"""`--beam` and `--shards`: the same data set, byte by byte, however its images are read."""

import importlib.util
import json

import cv2
import numpy as np
import pytest
from array_record.python import array_record_module

from jaxmlic.cli import main as cli
from jaxmlic.data import datasets
from jaxmlic.data.records import parse_example


def table(folder, bad=(), splits=(("train", 23), ("test", 4))):
    """Pictures of 8 px with two classes and, in each third, a box; those in `bad` are text files."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for split, count in splits:
        lines = []
        for number in range(count):
            name = f"{split}{number:02d}.png"
            image = rng.integers(0, 255, (8, 8, 3), np.uint8)
            content = b"no picture" if name in bad else cv2.imencode(".png", image)[1].tobytes()
            (folder / name).write_bytes(content)
            labels = [label for label, drawn in zip(("cat", "dog"), rng.random(2) < 0.6, strict=True) if drawn]
            boxes = [{"label": "cat", "bbox": [1, 1, 5, 6]}] if number % 3 == 0 and "cat" in labels else []
            lines.append(json.dumps({"file": name, "labels": labels, "boxes": boxes}) + "\n")
        (folder / f"{split}.jsonl").write_text("".join(lines))
    (folder / "classes.txt").write_text("cat\ndog\n")
    return folder


def prepare(source, data_dir, *options):
    return cli.run(["data", "prepare", "pets", f"--source={source}", f"--data-dir={data_dir}", *options])


def files(data_dir):
    folder = data_dir / "pets" / "1.0.0"
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def without_path(content, *data_dirs):
    """tfds notes the folder that it wrote in."""
    for data_dir in data_dirs:
        content = {name: text.replace(str(data_dir).encode(), b"DATA") for name, text in content.items()}
    return content


def records(path):
    reader = array_record_module.ArrayRecordReader(str(path))
    return reader.read_all()


BAD = ("train00.png", "train08.png", "train16.png", "train17.png", "train18.png", "train19.png", "train22.png")


@pytest.mark.parametrize("shards", [1, 4, 6])
def test_shards_hold_even_ranges_of_rows(shards, tmp_path):
    source = table(tmp_path / "source", BAD)
    assert prepare(source, tmp_path / "data", "--skip-bad", f"--shards={shards}") == 0
    dataset = datasets.load("pets", tmp_path / "data")
    wanted = [[] for _ in range(shards)]
    for number in range(23):
        if f"train{number:02d}.png" not in BAD:
            wanted[int(np.floor(number * shards / 23))].append(f"train{number:02d}.png")
    wanted = [names for names in wanted if names]  # rows 16 to 19 are one shard of six, and all bad
    assert len(wanted) == {1: 1, 4: 4, 6: 5}[shards]
    paths = sorted(dataset.path.glob("pets-train*"))
    found = [[_id(record) for record in records(path)] for path in paths]
    assert found == wanted
    assert dataset.ids("train").tolist() == [name for names in wanted for name in names]
    assert [path.name.rpartition("-of-")[2] for path in paths] == [f"{len(wanted):05d}"] * len(wanted)


def _id(record):
    _, start, end = parse_example(record)["id"]
    return record[start + 2 : end].decode()


def test_beam_writes_the_same_bytes(tmp_path, capsys):
    pytest.importorskip("apache_beam")
    source = table(tmp_path / "source", BAD)
    for name, options in (("here", ()), ("beam", ("--beam", "--beam-options=--runner=DirectRunner"))):
        assert prepare(source, tmp_path / name, "--skip-bad", "--shards=6", *options) == 0
    lines = capsys.readouterr().out.replace(str(tmp_path / "beam"), str(tmp_path / "here")).splitlines()
    assert lines[: len(lines) // 2] == lines[len(lines) // 2 :] and "7 rows left out (--skip-bad)" in "".join(lines)
    here, beam = (without_path(files(tmp_path / name), tmp_path / name) for name in ("here", "beam"))
    assert here.keys() == beam.keys()
    assert [name for name in here if here[name] != beam[name]] == []


def test_beam_lists_all_mistakes_and_leaves_nothing(tmp_path, capsys):
    pytest.importorskip("apache_beam")
    source = table(tmp_path / "source", BAD)
    assert prepare(source, tmp_path / "here") == 2
    here = capsys.readouterr().err
    listed = (tmp_path / "here" / "pets.problems.csv").read_text()
    assert prepare(source, tmp_path / "beam", "--beam", "--shards=3") == 2
    assert (
        capsys.readouterr().err.splitlines()[-1] == here.replace(str(tmp_path / "here"), str(tmp_path / "beam")).strip()
    )
    assert (tmp_path / "beam" / "pets.problems.csv").read_text() == listed
    assert [path.name for path in (tmp_path / "beam").iterdir()] == ["pets.problems.csv"]


def test_mistakes_in_options(tmp_path, monkeypatch, capsys):
    source = table(tmp_path / "source", splits=(("train", 2),))
    for options, message in (
        (["--shards=0"], "--shards=0: at least 1"),
        (["--beam-options=--runner=X"], "--beam-options goes with --beam"),
    ):
        assert prepare(source, tmp_path / "data", *options) == 2
        assert capsys.readouterr().err == f"jaxmlic: {message}\n"
    assert cli.run(["data", "prepare", "scenes", f"--data-dir={tmp_path}", "--shards=2"]) == 2
    assert "--shards means nothing for scenes" in capsys.readouterr().err
    if importlib.util.find_spec("apache_beam"):
        assert prepare(source, tmp_path / "data", "--beam", "--beam-options=--runner=NoRunner") == 2
        assert "the Beam pipeline failed" in capsys.readouterr().err
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "apache_beam" else find(name))
    assert prepare(source, tmp_path / "data", "--beam") == 2
    assert capsys.readouterr().err == "jaxmlic: --beam needs the package apache-beam: pip install apache-beam\n"
    assert not (tmp_path / "data" / "pets").exists()


def test_an_interrupted_run_keeps_its_shards(tmp_path, monkeypatch, capsys):
    from jaxmlic.data.prepare import checks

    source = table(tmp_path / "source", BAD)
    check = checks.check_row

    def stop(row, has_boxes):
        if row.id == "train21.png":
            raise KeyboardInterrupt
        return check(row, has_boxes)

    monkeypatch.setattr(checks, "check_row", stop)
    options = ("--skip-bad", "--shards=6", "--workers=1")
    assert prepare(source, tmp_path / "data", *options) == 130
    assert list((tmp_path / "data").glob(".pets.partial-*/pets/1.0.0/train.shard-3"))
    monkeypatch.setattr(checks, "check_row", check)
    assert prepare(source, tmp_path / "data", *options) == 0
    assert prepare(source, tmp_path / "whole", *options) == 0
    again, whole = (without_path(files(tmp_path / name), tmp_path / name) for name in ("data", "whole"))
    assert again == whole
