"""Prediction from a run folder: same scores as evaluation, files, thresholds, unreadable images."""

import json
import shutil

import numpy as np
import pytest
from conftest import table_of

from jaxmlic.cli import main as cli
from jaxmlic.cli.results import predict
from jaxmlic.data import datasets
from jaxmlic.evaluation import score_file
from jaxmlic.experiments import runs
from jaxmlic.run import predicted
from jaxmlic.training import run_folder
from jaxmlic.training.logs import metrics_log


@pytest.fixture(scope="module")
def run(finished_run, tmp_path_factory):
    return shutil.copytree(finished_run, tmp_path_factory.mktemp("predict") / "run")


@pytest.fixture(scope="module")
def photos(data_dir, tmp_path_factory):
    """The test split's pictures as files; their names are their ids."""
    folder = tmp_path_factory.mktemp("photos with spaces")
    source = datasets.load("tiny", data_dir).source("test")
    for i in range(len(source)):
        (folder / f"{source[i]['id']}.png").write_bytes(source[i]["image"])
    return folder


def test_scores_equal_those_of_evaluation(run, photos, capsys):
    assert cli.run(["predict", f"--workdir={run}", str(photos)]) == 0
    printed = capsys.readouterr().out
    runs.evaluate(str(run))
    scores = score_file.load(run / "scores" / "test.npz")
    found = json.loads((run / "predictions.json").read_text())
    assert [image["file"] for image in found["images"]] == [str(photos / f"{name}.png") for name in scores.ids]
    logits = np.array([[image["logits"][name] for name in scores.class_names] for image in found["images"]])
    np.testing.assert_allclose(logits, scores.scores, atol=1e-5)
    for image, row in zip(found["images"], logits, strict=True):
        assert set(image["labels"]) == {n for n, z in zip(scores.class_names, row, strict=True) if z >= 0}
        assert image["labels"] == sorted(image["labels"], key=lambda n: -image["logits"][n])
    rows = table_of(run / "predictions.csv")
    np.testing.assert_allclose([float(r["red"]) for r in rows], 1 / (1 + np.exp(-logits[:, 0])), atol=1e-5)
    assert rows[0]["threshold_source"] == "given: probability 0.5 (logit 0)"
    assert (
        printed.count("/test-0") == 29 and "threshold: given: probability 0.5 (logit 0); probabilities: as" in printed
    )


def test_fitted_threshold_is_the_validation_part_s(run, photos):
    step = run_folder.result(run)["best_step"]
    fitted = next(r["val/best_threshold"] for r in metrics_log.read(run) if r["step"] == step and "val/mAP" in r)
    predict.predict(str(run), [str(photos / "test-000.png")], threshold="fitted", out=str(run / "one"))
    found = json.loads((run / "one.json").read_text())
    what = f"probability {1 / (1 + np.exp(-fitted)):.3g} (logit {fitted:.3g})"
    assert found["threshold"] == {
        "logit": fitted,
        "source": f"{what}, fitted on the validation part at step {step} for the highest OF1",
    }


def test_unreadable_images_are_listed_and_the_others_labelled(run, photos, tmp_path, capsys):
    bad = {"empty.jpg": b"", "cut.png": (photos / "test-000.png").read_bytes()[:90], "text.jpg": b"hello"}
    for name, data in bad.items():
        (tmp_path / name).write_bytes(data)
    arguments = [*(str(tmp_path / name) for name in bad), str(photos / "test-001.png")]
    assert cli.run(["predict", f"--workdir={run}", f"--out={tmp_path / 'p'}", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and "3 of 4 images could not be read" in captured.err
    assert all(name in captured.err for name in bad)
    found = json.loads((tmp_path / "p.json").read_text())
    assert [image["file"] for image in found["images"]] == [arguments[-1]]
    assert set(found["unreadable"]) == set(arguments[:3])


def test_all_unreadable(run, tmp_path, capsys):
    (tmp_path / "a.jpg").write_bytes(b"")
    assert cli.run(["predict", f"--workdir={run}", f"--out={tmp_path / 'p'}", str(tmp_path / "a.jpg")]) == 2
    assert "1 of 1 images could not be read" in capsys.readouterr().err
    assert not (tmp_path / "p.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.jpg"], "image nowhere.jpg does not exist"),
        ([], "IMAGE"),
        (["--threshold=2", "PHOTO"], "--threshold=2: a probability between 0 and 1"),
        (["--threshold=half", "PHOTO"], "--threshold=half"),
        (["EMPTY"], "holds no images"),
    ],
)
def test_mistakes(run, photos, tmp_path, arguments, message, capsys):
    names = {"PHOTO": str(photos / "test-000.png"), "EMPTY": str(tmp_path)}
    assert cli.run(["predict", f"--workdir={run}", *(names.get(a, a) for a in arguments)]) == 2
    captured = capsys.readouterr().err
    assert message in captured and captured.count("\n") == 1


def test_sigmoid_at_the_extremes():
    np.testing.assert_allclose(predicted.sigmoid(np.array([-1e4, 0, 1e4])), [0, 0.5, 1])
