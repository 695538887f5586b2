"""Data sets prepared into a bucket, from images in one: the same bytes as prepared here."""

import os
import shutil
import sys
from pathlib import Path

import buckets
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "data" / "prepare"))
from beam_test import BAD, files, table

from jaxmlic import storage
from jaxmlic.cli import main as cli
from jaxmlic.data import datasets


@pytest.fixture(scope="module", params=["s3", "gs"])
def bucket(request, tmp_path_factory):
    """(URL, cache, a folder with a table, the same prepared here); the images are in the bucket's images/ too."""
    folder = tmp_path_factory.mktemp("prepare")
    source = table(folder / "source", BAD)
    with getattr(buckets, f"{request.param}_bucket")(str(folder / "cache")) as url:
        storage.send_folder(source, f"{url}/images")
        for path in source.glob("*.png"):
            path.unlink()
        assert prepare(source, folder / "here", url) == 0
        yield url, folder / "cache", source, files(folder / "here")


def prepare(source, data_dir, url, *options):
    argv = ["data", "prepare", "pets", f"--source={source}", f"--data-dir={data_dir}", f"--images={url}/images"]
    return cli.run([*argv, "--skip-bad", "--shards=6", *options])


def test_into_a_bucket(bucket, capsys):
    url, cache, source, here = bucket
    assert prepare(source, f"{url}/data", url) == 0
    assert f"pets: 20 images, 2 classes, in {url}/data/pets/1.0.0" in capsys.readouterr().out
    assert names(url) == set(here)
    shutil.rmtree(cache)
    there = datasets.load("pets", f"{url}/data")
    assert {name: (there.path / name).read_bytes() for name in here} == here
    assert prepare(source, f"{url}/data", url) == 0
    assert "already prepared" in capsys.readouterr().out
    assert prepare(source, f"{url}/data", url, "--shards=2") == 2
    assert "add --overwrite to replace it" in capsys.readouterr().err


def test_into_a_bucket_by_beam(bucket, capsys):
    pytest.importorskip("apache_beam")
    url, cache, source, here = bucket
    old = storage.to_path(f"{url}/data/pets/1.0.0")
    storage.write_text(old / "pets-train.array_record-00006-of-00007", "of an earlier preparation")
    assert prepare(source, f"{url}/data", url, "--beam", "--overwrite") == 0
    assert f"pets: 20 images, 2 classes, in {url}/data/pets/1.0.0" in capsys.readouterr().out
    assert names(url) == set(here)
    shutil.rmtree(cache, ignore_errors=True)
    there = datasets.load("pets", f"{url}/data")
    assert {name: (there.path / name).read_bytes() for name in here} == here


def names(url):
    return set(storage.listing(f"{url}/data/pets/1.0.0"))


def test_mistakes(bucket, tmp_path, monkeypatch, capsys):
    url, _, source, _ = bucket
    monkeypatch.chdir(tmp_path)
    argv = ["data", "prepare", "pets", f"--source={source}", "--skip-bad"]
    assert cli.run([*argv, f"--data-dir={url}/data", f"--images={url}/nothing"]) == 2
    assert f"{url}/nothing: no such folder: --images names the folder of the images" in capsys.readouterr().err
    assert cli.run(["data", "prepare", "pets", f"--source={url}/images/train.jsonl"]) == 2
    assert f"--source={url}/images/train.jsonl: tables and archives are read here" in capsys.readouterr().err
    scheme = url.partition(":")[0]
    assert cli.run([*argv, f"--data-dir={scheme}://attic/data", f"--images={url}/images"]) == 2
    assert "no bucket 'attic' is there" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []
