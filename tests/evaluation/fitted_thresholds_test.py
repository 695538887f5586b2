"""Thresholds of a run: fitted on validation, refused elsewhere, kept, used by default, never when stale."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

import jaxmlic
from jaxmlic import metrics
from jaxmlic.cli import main as cli
from jaxmlic.data import datasets
from jaxmlic.errors import UserError
from jaxmlic.evaluation import compare, score_file, thresholds
from jaxmlic.evaluation.score_file import ScoreFile
from jaxmlic.training import run_folder


def scores_of(seed=0, num_images=80, without=3):
    """Logits that are twice too large; one class has no positive."""
    rng = np.random.default_rng(seed)
    true = rng.normal(-0.5, 1.5, (num_images, 4))
    labels = (rng.random(true.shape) < 1 / (1 + np.exp(-true))).astype(np.int8)
    labels[:, without] = 0
    names = ["cat", "dog", "cow", "yak"]
    return ScoreFile(
        (2 * true + 1).astype(np.float32),
        labels,
        np.arange(num_images).astype(str),
        names,
        split="val",
        extra={"step": 7},
    )


def test_a_class_without_positives_takes_the_overall_threshold():
    scores = scores_of()
    fit = thresholds.fit(scores, "m", shrink=0.0)
    found = fit.thresholds
    assert found.fallback == ["yak"] and found.values[3] == found.overall and np.isnan(fit.own[3])
    at_zero, fitted = found.numbers["at logit 0"], found.numbers["fitted"]
    assert fitted["CF1_mean"] > at_zero["CF1_mean"]
    wanted = metrics.evaluate(scores.scores, scores.labels, threshold=found.values)
    assert fitted["CF1_mean"] == wanted["CF1_mean"] and fitted["OR"] == wanted["OR"]
    assert (found.step, found.split, found.model) == (7, "val", "m")


def test_held_out_numbers_are_of_images_that_were_not_fitted_on():
    """With nothing to learn, thresholds look better than they are on their own images only."""
    rng = np.random.default_rng(0)
    noise = dataclasses.replace(
        scores_of(num_images=120),
        scores=rng.normal(size=(120, 4)).astype(np.float32),
        labels=(rng.random((120, 4)) < 0.1).astype(np.int8),
    )
    numbers = thresholds.fit(noise, "m", shrink=0.0).thresholds.numbers
    assert numbers["fitted"]["CF1_mean"] > numbers["held out"]["CF1_mean"] + 0.03


@pytest.mark.parametrize("calibrate", thresholds.CALIBRATIONS)
def test_calibration_lowers_the_error_and_leaves_decisions_alone(calibrate):
    scores = scores_of(num_images=400)
    fit = thresholds.fit(scores, "m", calibrate=calibrate)
    found = fit.thresholds
    if calibrate == "none":
        np.testing.assert_array_equal(found.calibrated(scores.scores), scores.scores)
        assert fit.after.ece == fit.before.ece
    else:
        assert fit.after.ece < fit.before.ece and found.numbers["ECE held out"] < fit.before.ece
        assert (found.scale > 0).all()  # so that ranks within a class stay
    np.testing.assert_array_equal(found.values, thresholds.fit(scores, "m", calibrate="none").thresholds.values)


def test_goals():
    scores = scores_of(num_images=300)
    fit = thresholds.fit(scores, "m", objective="precision=0.8", shrink=0.0)
    wanted = metrics.evaluate(scores.scores, scores.labels, threshold=fit.thresholds.values)
    assert (wanted["P"][:3] >= 0.8).all() and fit.unreached == ["yak"]  # it has the overall one
    for text, count in (("count", scores.labels.sum(axis=1).mean()), ("count=2.2", 2.2)):
        for per_class in (True, False):
            fit = thresholds.fit(scores, "m", objective=text, per_class=per_class, shrink=0.0)
            found = fit.thresholds.numbers["fitted"]["labels an image"]
            yak = (scores.scores[:, 3] >= fit.thresholds.values[3]).mean() if per_class else 0.0
            assert found - yak == pytest.approx(count, abs=0.02)


def test_kept_and_read(tmp_path):
    found = thresholds.fit(scores_of(), "m", calibrate="platt").thresholds
    thresholds.save(tmp_path, found)
    read = thresholds.load(tmp_path)
    for field in dataclasses.fields(found):
        np.testing.assert_array_equal(getattr(read, field.name), getattr(found, field.name))
    assert json.loads((tmp_path / "thresholds.json").read_text())["unit"] == "logit"
    assert thresholds.find(tmp_path, 7, "m", found.class_names)[1] == ""
    assert "step 9 is in use now" in thresholds.find(tmp_path, 9, "m", found.class_names)[1]
    assert "step 7 is another model now" in thresholds.find(tmp_path, 7, "n", found.class_names)[1]
    with pytest.raises(UserError, match="different classes"):
        thresholds.find(tmp_path, 7, "m", ["cat", "dog", "cow", "elk"])
    stored = json.loads((tmp_path / "thresholds.json").read_text())
    for damage in ("{", json.dumps(stored | {"values": [1.0]}), json.dumps({"values": 1})):
        (tmp_path / "thresholds.json").write_text(damage)
        with pytest.raises(UserError, match="jaxmlic thresholds"):
            thresholds.load(tmp_path)


@pytest.fixture(scope="module")
def fitted_run(finished_run, tmp_path_factory):
    """A run with thresholds for much precision, which differ from the logit 0."""
    folder = shutil.copytree(finished_run, tmp_path_factory.mktemp("thresholds") / "run")
    assert cli.run(["thresholds", f"--workdir={folder}", "--for=precision=0.99", "--shrink=2"]) == 0
    return folder


@pytest.fixture
def photo(data_dir, tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(datasets.load("tiny", data_dir).source("test")[0]["image"])
    return str(path)


def test_the_command_fits_on_the_validation_part(fitted_run, capsys):
    assert cli.run(["thresholds", f"--workdir={fitted_run}", "--for=precision=0.99", "--shrink=2"]) == 0
    text = capsys.readouterr().out
    assert "fitted on 18 images of 'selection'" in text and "red" in text and "calibrated" in text
    assert (fitted_run / "figures" / "reliability.png").read_bytes().startswith(b"\x89PNG")
    run = jaxmlic.load(fitted_run)
    own = run.evaluate("selection").scores
    wanted = thresholds.fit(own, run.model_digest, objective="precision=0.99", shrink=2.0).thresholds
    found, why = run.fitted_thresholds()
    assert why == ""
    np.testing.assert_array_equal(found.values, wanted.values)
    assert found.data == thresholds.digest_of_images(own.ids, own.labels)


def test_evaluate_uses_them_when_asked(fitted_run, capsys):
    assert cli.run(["evaluate", f"--workdir={fitted_run}"]) == 0
    assert cli.run(["evaluate", f"--workdir={fitted_run}", "--thresholds"]) == 0
    assert "(threshold logits" in capsys.readouterr().out
    plain, fitted = (score_file.load(fitted_run / "scores" / f"{name}.npz") for name in ("test", "test.fitted"))
    found = thresholds.load(fitted_run)
    np.testing.assert_array_equal(plain.scores, fitted.scores)
    np.testing.assert_array_equal(fitted.threshold, found.values)
    assert fitted.extra["thresholds"]["objective"] == "precision=0.99"
    stored = json.loads((fitted_run / "scores" / "test.fitted.all_point.json").read_text())
    wanted = metrics.evaluate(plain.scores, plain.labels, threshold=found.values)
    assert stored["CP"] == wanted["CP"] and stored["threshold"] == found.values.tolist()
    both = [str(fitted_run / "scores" / f"{name}.npz") for name in ("test", "test.fitted")]
    compared = compare.compare(both, ["plain", "fitted"], draws=0)
    assert compared.reports["all_point"]["fitted"]["CP"] == wanted["CP"]
    assert cli.run(["evaluate", f"--workdir={fitted_run}", "--thresholds", "--protocol=top2_forced"]) == 2
    assert "decides without a threshold" in capsys.readouterr().err


def test_predict_uses_them_unless_told_not_to(fitted_run, photo, capsys):
    run = jaxmlic.load(fitted_run)
    found = thresholds.load(fitted_run)
    own = run.predict([photo])
    np.testing.assert_array_equal(own.chosen, own.scores >= found.values.astype(np.float32))
    np.testing.assert_allclose(
        own.probabilities, 1 / (1 + np.exp(-(own.scores * found.scale + found.offset))), rtol=1e-5
    )
    plain = run.predict([photo], fitted=False)
    np.testing.assert_array_equal(plain.chosen, plain.scores >= 0)
    np.testing.assert_allclose(plain.probabilities, 1 / (1 + np.exp(-plain.scores)), rtol=1e-5)
    out = fitted_run / "p"
    for argument, source in (
        ("--threshold=fitted", "a logit for each class, fitted for precision=0.99 on 'selection' at step"),
        ("--no-thresholds", "given: probability 0.5"),
        ("--threshold=0.7", "given: probability 0.7"),
    ):
        assert cli.run(["predict", f"--workdir={fitted_run}", f"--out={out}", argument, photo]) == 0
        stored = json.loads(out.with_suffix(".json").read_text())
        assert stored["threshold"]["source"].startswith(source)
        assert isinstance(stored["threshold"]["logit"], dict) == ("fitted" in argument)
        assert ("probabilities" in stored["images"][0]) == ("fitted" in argument)
    assert cli.run(["predict", f"--workdir={fitted_run}", "--no-thresholds", "--threshold=fitted", photo]) == 2


def test_stale_ones_are_said_and_not_used(fitted_run, photo, tmp_path, capsys):
    folder = shutil.copytree(fitted_run, tmp_path / "stale")
    stored = json.loads((folder / "thresholds.json").read_text())
    (folder / "thresholds.json").write_text(json.dumps(stored | {"step": 4}))
    run = jaxmlic.load(folder)
    with pytest.warns(UserWarning, match="of step 4, and step .* is in use now.*Not used"):
        found = run.predict([photo])
    np.testing.assert_array_equal(found.chosen, found.scores >= 0)
    assert cli.run(["predict", f"--workdir={folder}", photo]) == 0
    assert "threshold: probability 0.5 (logit 0), because" in capsys.readouterr().out
    for command in (["predict", "--threshold=fitted", photo], ["evaluate", "--thresholds"]):
        assert cli.run([command[0], f"--workdir={folder}", *command[1:]]) == 2
        error = capsys.readouterr().err
        assert "fit again with jaxmlic thresholds" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split=test"], "never fitted on test images: 29 of the 29 images of 'test'"),
        (["--split=train"], "not fitted on images that were trained on"),
        (["--split=vla"], "has no split 'vla'"),
        (["--for=percision=0.9"], "--for = 'percision' is unknown (did you mean 'precision'?)"),
        (["--for=precision"], "Write --for=precision=0.9"),
        (["--for=precision=1.5"], "above 0 and at most 1"),
        (["--for=count=x"], "above 0"),
        (["--for=f1=0.5"], "f1 has no goal"),
        (["--shrink=-1"], "--shrink=-1"),
        (["--per-class", "--global"], "not allowed with"),
    ],
)
def test_mistakes(finished_run, capsys, arguments, message):
    assert cli.run(["thresholds", f"--workdir={finished_run}", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1, error
    assert not (finished_run / "thresholds.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"val_fraction": 0.0}, "train with --config.data.val_fraction=0.1"),
        ({"val_split": "test"}, "never fitted on test images"),
    ],
)
def test_runs_without_images_to_fit_on(finished_run, tmp_path, capsys, changes, message):
    folder = shutil.copytree(finished_run, tmp_path / "run")
    path = folder / run_folder.CONFIG_FILE
    stored = json.loads(path.read_text())
    stored["config"]["data"] |= changes
    path.write_text(json.dumps(stored))
    assert cli.run(["thresholds", f"--workdir={folder}"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_evaluating_by_thresholds_that_are_not_there(finished_run, tmp_path, capsys):
    assert cli.run(["evaluate", f"--workdir={finished_run}", "--thresholds"]) == 2
    assert "make them with jaxmlic thresholds" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"config\.json does not exist"):
        jaxmlic.load(tmp_path)
