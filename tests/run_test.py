"""A finished run as an object: the same numbers as the commands, and mistakes in one line."""

import json
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest

import jaxmlic
from jaxmlic.data import datasets
from jaxmlic.errors import UserError
from jaxmlic.evaluation import score_file
from jaxmlic.experiments import runs


@pytest.fixture(scope="module")
def run(finished_run):
    return jaxmlic.load(finished_run)


def test_a_run_evaluates_as_the_command_does(run, finished_run, tmp_path):

    copy = shutil.copytree(finished_run, tmp_path / "run")
    numbers = runs.evaluate(copy, protocol="top1_forced")
    found = run.evaluate(protocol="top1_forced")
    stored = score_file.load(copy / "scores" / "test.npz")
    np.testing.assert_array_equal(found.scores.scores, stored.scores)
    assert found.numbers["mAP"] == numbers["mAP"] and found.numbers["protocol"] == "top1_forced"
    assert not (finished_run / "scores").exists()  # the object writes nothing


def test_photographs_have_the_scores_of_evaluation(run, data_dir, tmp_path):
    source = datasets.load("tiny", data_dir).source("test")
    for i in range(2):
        (tmp_path / f"{i}.png").write_bytes(source[i]["image"])
    (tmp_path / "2.png").write_bytes(b"no image")
    found, unreadable = run.predict([tmp_path / f"{i}.png" for i in range(3)])
    np.testing.assert_allclose([one.scores for one in found], run.evaluate().scores.scores[:2], atol=1e-5)
    np.testing.assert_array_equal(found[0].chosen, found[0].scores >= 0)
    assert [one.file.name for one in found] == ["0.png", "1.png"] and found[0].path is None
    assert list(unreadable) == [tmp_path / "2.png"]
    assert cv2.imread(str(tmp_path / "0.png")).shape == (20, 20, 3)
    with pytest.raises(UserError, match="labels images in one step"):
        run.predict([tmp_path / "0.png"], trace=True)


def test_what_a_run_knows(run, finished_run):
    assert run.class_names == ["red", "green", "blue"] and run.config.head == "linear"
    assert run.history()[-1]["step"] == 16 and "linear, 3 classes" in repr(run)
    tables = run.label_embeddings()
    assert tables["classifier"].shape == (3, 192) and tables["classifier"].dtype == np.float32
    stored = json.loads((finished_run / "config.json").read_text())
    assert stored["trained_classes"] == ["red", "green", "blue"]


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(UserError, match=r"config\.json does not exist; --workdir must be the folder"):
        jaxmlic.load(tmp_path)


def test_importing_the_package_starts_nothing():
    code = "import jaxmlic, sys; print(jaxmlic.__version__, sorted({'jax', 'flax', 'numpy', 'cv2'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == f"{jaxmlic.__version__} []", done.stderr
