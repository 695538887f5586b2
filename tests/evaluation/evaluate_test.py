"""Evaluation from a run folder alone: padding, devices, files written, mistakes."""

import json
import shutil

import jax
import numpy as np
import pytest
from conftest import examples, table_of, tiny_config

from jaxmlic import metrics, progress, sharding
from jaxmlic.cli import main as cli
from jaxmlic.data import datasets, loader
from jaxmlic.data.prepare import writer
from jaxmlic.errors import UserError
from jaxmlic.evaluation import score_file, scoring
from jaxmlic.experiments import runs
from jaxmlic.inputs.images import ImageReader
from jaxmlic.models.heads import contract
from jaxmlic.training import checkpoint, loop, restore, run_folder, targets
from jaxmlic.training import state as state_lib


@pytest.fixture
def run(finished_run, tmp_path):
    """A copy of the finished run to write into."""
    return shutil.copytree(finished_run, tmp_path / "run")


def test_scores_do_not_depend_on_batch_size_or_devices(finished_run, data_dir):
    trainer = loop.Trainer(tiny_config(data_dir), "unused")
    view = loader.select(trainer.config.data, trainer.dataset, "test")
    found, bar = [], progress.Progress("evaluating", 3 * len(view), shown=False)
    for batch_size, devices in ((8, 8), (32, 1), (1, 1)):
        mesh = sharding.make_mesh(jax.devices()[:devices])
        variables = restore.restore(finished_run, mesh).variables
        step = scoring.make_predict_step(trainer.head, trainer.model, mesh)
        reader = ImageReader(view, 16)
        found.append(scoring.score(step, variables, reader, mesh, batch_size=batch_size, threads=2, bar=bar))
        assert step._cache_size() == 1
    assert bar.done == 3 * 29
    for prediction, labels, ids in found:
        assert prediction.scores.shape == (29, 3) and prediction.scores.dtype == np.float32
        np.testing.assert_allclose(prediction.scores, found[0][0].scores, atol=1e-5)
        np.testing.assert_array_equal(labels, view.labels)
        np.testing.assert_array_equal(ids, view.ids)


def test_the_command_writes_scores_numbers_and_pictures(run, capsys):
    assert cli.run(["evaluate", f"--workdir={run}"]) == 0
    printed = capsys.readouterr().out
    scores = score_file.load(run / "scores" / "test.npz")
    numbers = json.loads((run / "scores" / "test.all_point.json").read_text())
    expected = metrics.evaluate(scores.scores, scores.labels, threshold=0.0)
    assert numbers["mAP"] == pytest.approx(expected["mAP"]) and numbers["protocol"] == "all_point"
    assert f"{100 * expected['mAP']:.2f}" in printed and "all_point" in printed
    assert (
        scores.class_names == ["red", "green", "blue"] and scores.extra["step"] == run_folder.result(run)["best_step"]
    )
    rows = table_of(run / "scores" / "test.all_point.csv")
    assert {"red", "green", "blue"} <= {cell for row in rows for cell in row.values()}
    assert (run / "scores" / "test.all_point.png").read_bytes().startswith(b"\x89PNG")


def test_validation_metrics_can_be_had_again(run):
    found = runs.evaluate(str(run), split="val")
    assert found["mAP"] == pytest.approx(run_folder.result(run)["val/mAP"], abs=1e-9)
    assert found["num_examples"] == 18


def test_protocols(run, capsys):
    found = runs.evaluate(str(run), protocol="voc07_11pt+top1_forced")
    assert found["protocol"] == "voc07_11pt+top1_forced"
    assert (run / "scores" / "test.voc07_11pt+top1_forced.json").exists()
    assert cli.run(["evaluate", f"--workdir={run}", "--protocol=all_pint"]) == 2
    assert "did you mean 'all_point'" in capsys.readouterr().err


def test_only_trained_classes_and_a_minimum_of_positives(data_dir):
    config = tiny_config(data_dir, **{"eval.trained_classes_only": True, "eval.min_positives": 2})
    dataset = datasets.load("tiny", data_dir)
    # Of the first two training examples, see which classes are present at all.
    view = loader.View(dataset, "train", np.array([0, 1]))
    present = (view.labels == 1).any(0)
    assert 0 < present.sum() < 3
    labels = dataset.labels("test")
    prediction = contract.Prediction(np.random.default_rng(0).normal(size=labels.shape).astype(np.float32))
    found = scoring.report(config, prediction, labels, targets.trained_classes(view))
    np.testing.assert_array_equal(np.isnan(found["AP"]), ~present)


def test_class_names_that_differ_are_refused(run, tmp_path, capsys):
    writer.write("tiny", tmp_path / "other", ["red", "blue", "green"], {"train": examples("train", 72, 0)}, {})
    assert cli.run(["evaluate", f"--workdir={run}", f"--data-dir={tmp_path / 'other'}"]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "green" in message and "blue" in message


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: (run / "config.json").unlink(), "config.json does not exist"),
        (lambda run: (run / "config.json").write_text("{"), "config.json is damaged"),
        (lambda run: shutil.rmtree(run / "checkpoints"), "holds no checkpoints"),
    ],
)
def test_damaged_run_folders(run, spoil, message, capsys):
    spoil(run)
    assert cli.run(["evaluate", f"--workdir={run}"]) == 2
    assert message in capsys.readouterr().err


def test_a_checkpoint_of_another_model_is_refused(run, finished_run, data_dir):
    stored = json.loads((run / "config.json").read_text())
    stored["config"]["model"]["trunk"] = "efficientnet_lite0"
    (run / "config.json").write_text(json.dumps(stored))
    with pytest.raises(UserError, match="does not fit this model"):
        runs.evaluate(str(run))
    # Fewer labels, same layers: shapes differ.
    trainer = loop.Trainer(tiny_config(data_dir), "unused")
    smaller = trainer.head.Model(2, **trainer.config.model)
    abstract = state_lib.abstract(trainer.config, smaller, trainer.source.example(), 54, trainer.mesh)
    with pytest.raises(UserError, match="does not fit this model"):
        checkpoint.Checkpoints(finished_run, read_only=True).restore(16, abstract)
