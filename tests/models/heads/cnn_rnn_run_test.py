"""Whole runs of the CNN-RNN head: training, evaluation, traces of its search."""

import json
import shutil

import jax
import numpy as np
import pytest
from conftest import tiny_config

from jaxmlic import config as config_lib
from jaxmlic import sharding
from jaxmlic.cli import main as cli
from jaxmlic.data import datasets
from jaxmlic.errors import UserError
from jaxmlic.experiments import runs
from jaxmlic.inputs import cache as cache_lib
from jaxmlic.labels import order as label_order
from jaxmlic.training import loop, restore, run_folder


def config_of(data_dir, **more):
    """The experiment file's head on the tiny data set, small."""
    flat = {
        key: value
        for key, value in config_lib.flatten(tiny_config(data_dir)).items()
        if key.split(".")[0] in ("data", "train") or key in ("optim.schedule", "optim.clip_norm")
    }
    own = {
        "model.embedding_size": 8,
        "model.recurrent_size": 16,
        "model.max_length": 2,
        "model.beam_size": 3,
        "optim.lr": 1e-3,
        "optim.groups": ((".*", 1.0),),
        "data.source": "images",
        "train.duration": "6 steps",
        "train.eval_every": "6 steps",
        "train.log_every": "3 steps",
    }
    config = config_lib.load("cnn_rnn:dataset=tiny,trunk=small_cnn")
    return config_lib.override(config, flat | own | more)


@pytest.fixture(scope="module")
def finished(data_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cnn_rnn") / "run"
    config = config_of(data_dir)
    trainer = loop.Trainer(config, str(folder), sharding.make_mesh(jax.devices()[:1]))
    assert trainer.fit().finished
    assert trainer.train_step._cache_size() == 1 and trainer.predict_step._cache_size() == 1
    return folder


def test_a_run_evaluates_and_keeps_its_order(finished, data_dir):
    numbers = runs.evaluate(str(finished))
    assert numbers["protocol"] == "path"
    assert 0 <= numbers["mAP"] <= 1
    found = run_folder.load(finished)
    variables = restore.restore(found.workdir).variables
    trainer = loop.Trainer(found.config, str(finished))
    np.testing.assert_array_equal(
        variables["constants"]["order"], label_order.frequent_first(trainer.train_view.labels)
    )
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert all("train/paths_cut" in row for row in rows if "train/loss" in row)


@pytest.fixture(scope="module")
def photos(data_dir, tmp_path_factory):
    source, folder = datasets.load("tiny", data_dir).source("test"), tmp_path_factory.mktemp("photos")
    for i in range(3):
        (folder / f"{i}.png").write_bytes(source[i]["image"])
    return folder


def test_predict_trace_shows_paths_and_steps(finished, photos, tmp_path, capsys):
    run = shutil.copytree(finished, tmp_path / "run")
    assert cli.run(["predict", f"--workdir={run}", "--trace", str(photos)]) == 0
    printed = capsys.readouterr().out
    images = json.loads((run / "predictions.json").read_text())["images"]
    assert len(images) == 3
    for image in images:
        best = image["trace"]["paths"][0]
        assert set(best["labels"]) == set(image["labels"])
        assert best["labels"] == image["path"]
        assert best["probability"] == pytest.approx(np.exp(best["log_probability"]))
        log_probs = [path["log_probability"] for path in image["trace"]["paths"]]
        assert log_probs == sorted(log_probs, reverse=True)
        steps = image["trace"]["steps"]
        assert [step["taken"] for step in steps] == [*best["labels"], "END"]
        # The probability of the best path is the product over its steps (all four tokens are among the top five).
        said = [{e["label"]: e["probability"] for e in step["top"]} for step in steps]
        product = np.prod([probs[step["taken"]] for probs, step in zip(said, steps, strict=True)])
        assert product == pytest.approx(best["probability"], rel=1e-3)
        assert all(sum(probs.values()) == pytest.approx(1, abs=1e-4) for probs in said)
        assert f"path 1  {best['probability']:.4f}" in printed
    assert printed.count("t=1") == 3


def test_cached_features_are_asked_for_in_one_line(data_dir, tmp_path, capsys):
    """The shipped CPU recipe without its cache says what to run."""
    config = config_lib.load("cnn_rnn:dataset=corel5k")
    assert config.data.source == "features" and config.model.batch_norm == "frozen"
    with pytest.raises(UserError, match=r"config\.pretrained=FILE"):
        cache_lib.check_storable(config, {"trunk/x": None})
