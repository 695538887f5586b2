"""What a path is, mistakes in one, and copies: without a bucket where none is needed."""

import importlib.util
import os
from pathlib import Path

import buckets
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmlic import storage
from jaxmlic.cli import main as cli
from jaxmlic.errors import UserError
from jaxmlic.storage import paths
from jaxmlic.training.logs import profile


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    with buckets.s3_bucket(str(tmp_path_factory.mktemp("cache"))) as url:
        yield url


def test_local_paths_are_pathlib_s(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert storage.to_path("~/run") == tmp_path / "run" and isinstance(storage.to_path("a/b"), Path)
    assert storage.local_copy("a:b") == Path("a:b")  # a colon alone is no scheme
    assert storage.resolve("x/../y") == Path.cwd() / "y"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gcs://shelf/run", "gcs://shelf/run: scheme 'gcs' is unknown (did you mean 'gs'?); known: gs, s3"),
        ("hdfs://shelf/run", "hdfs://shelf/run: scheme 'hdfs' is unknown; known: gs, s3"),
        ("s3:///run", "s3:///run: no bucket named; write s3://BUCKET/FOLDER"),
        ("gs:/shelf/run", "gs:/shelf/run: no bucket named; write gs://BUCKET/FOLDER"),
    ],
)
def test_a_path_that_cannot_be_is_one_line_and_no_folder(text, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for argv in (
        ["train", "--config=quickstart:smoke", f"--workdir={text}"],
        ["evaluate", f"--workdir={text}"],
        ["data", "check", "scenes", f"--data-dir={text}"],
    ):
        assert cli.run(argv) == 2
        assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("scheme", "package"), paths.PACKAGES.items())
def test_a_missing_package_names_the_command(scheme, package, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    assert cli.run(["train", "--config=quickstart:smoke", f"--workdir={scheme}://shelf/run"]) == 2
    line = f"jaxmlic: {scheme}://shelf/run: {scheme}:// needs the package {package}: pip install {package}\n"
    assert capsys.readouterr().err == line


def test_a_bucket_that_is_not_there_and_a_field_that_names_one(shelf, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = ["train", "--config=quickstart:smoke"]
    assert cli.run([*run, "--workdir=s3://attic/run"]) == 2
    assert capsys.readouterr().err == "jaxmlic: s3://attic/run: no bucket 'attic' is there; make it first\n"
    assert cli.run([*run, f"--workdir={shelf}/run", "--config.pretrained=s3://attic/w.pth"]) == 2
    line = "jaxmlic: config.pretrained: s3://attic/w.pth: no bucket 'attic' is there; make it first\n"
    assert capsys.readouterr().err == line
    assert list(tmp_path.iterdir()) == [] and not storage.to_path(f"{shelf}/run").exists()


@pytest.mark.parametrize("what", ["reading", "writing"])
def test_no_permission_is_one_line(what, shelf, monkeypatch, capsys):
    def refuse(*args, **kwargs):
        raise PermissionError("Access Denied")

    files = paths.filesystem(shelf)
    monkeypatch.setattr(type(files), "call_s3" if what == "reading" else "_put_object", refuse, raising=False)
    if what == "writing":
        monkeypatch.setattr(type(files), "open", refuse)
    paths._CHECKED.clear()
    assert cli.run(["train", "--config=quickstart:smoke", f"--workdir={shelf}/run"]) == 2
    assert "no permission in bucket 'shelf' (Access Denied)" in capsys.readouterr().err


def test_an_object_is_replaced_whole_or_not_at_all(shelf):
    path = f"{shelf}/texts/a.txt"
    storage.write_text(path, "före\n")
    with pytest.raises(KeyError), storage.replacing(path) as file:
        file.write(b"half")
        raise KeyError
    assert storage.to_path(path).read_text() == "före\n"
    storage.save_npz(f"{shelf}/x.npz", {"a": np.arange(3)})
    np.testing.assert_array_equal(storage.load_npz(f"{shelf}/x.npz", ("a",))["a"], np.arange(3))
    storage.write_text(f"{shelf}/bad.npz", "no archive")
    with pytest.raises(UserError, match=r"bad\.npz: cannot be read as a file of arrays"):
        storage.load_npz(f"{shelf}/bad.npz")


def test_lines_are_appended_by_rewriting(shelf):
    log = storage.Appender(f"{shelf}/log.txt", seconds=1e9)
    log.write("a\n")
    assert not storage.to_path(f"{shelf}/log.txt").exists()
    log.flush()
    log.write("b\n")
    log.close()
    again = storage.Appender(f"{shelf}/log.txt", seconds=0.0)
    again.write("c\n")
    assert storage.to_path(f"{shelf}/log.txt").read_text() == "a\nb\nc\n"


def test_a_folder_is_whole_with_its_listing_alone(shelf):
    source = storage.Mirror(f"{shelf}/checkpoints")
    for number, text in (("4", "four"), ("8", "eight")):
        (source.path / number / "state").mkdir(parents=True)
        (source.path / number / "state" / "values").write_text(text)
    (source.path / "12.tmp").mkdir()  # not finished
    source.push()
    storage.to_path(f"{shelf}/checkpoints/8.files.json").unlink()  # as if the copy had been killed before its end
    other = storage.Mirror(f"{shelf}/checkpoints")
    other.pull()
    assert sorted(path.name for path in other.path.iterdir()) == ["4"]
    assert (other.path / "4" / "state" / "values").read_text() == "four"
    (other.path / "16").mkdir()
    (other.path / "16" / "values").write_text("sixteen")
    (other.path / "4" / "state" / "values").unlink()
    (other.path / "4" / "state").rmdir()
    (other.path / "4").rmdir()
    other.push()  # what is not there any more goes, the remains of the killed copy too
    names = {os.fspath(path).rpartition("/")[2] for path in storage.to_path(f"{shelf}/checkpoints").iterdir()}
    assert names == {"16", "16.files.json"}
    third = storage.Mirror(f"{shelf}/checkpoints")
    storage.write_text(f"{shelf}/checkpoints/16/values", "six")
    third.pull()  # cut short later: Orbax will miss it
    assert not (third.path / "16" / "values").exists()


def test_a_profile_goes_into_the_bucket(shelf, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trace = profile.Profile((0, 1), f"{shelf}/run", 0, active=True)
    trace.before(0)
    assert f"{shelf}/run/profile" in trace.after(1, jnp.ones(3) * 2)
    names = [name.rpartition("/")[2] for name in storage.listing(f"{shelf}/run/profile")]
    assert "perfetto_trace.json.gz" in names and any(name.endswith(".xplane.pb") for name in names)
    assert list(tmp_path.iterdir()) == []
