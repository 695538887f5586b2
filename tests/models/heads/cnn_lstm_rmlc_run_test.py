"""Whole runs of the CNN-LSTM-RMLC heads, on images and stored maps, and run folders of their one forerunner."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config

from jaxmlic import config as config_lib
from jaxmlic import sharding
from jaxmlic.cli import main as cli
from jaxmlic.data import datasets
from jaxmlic.experiments import runs
from jaxmlic.models import trunks
from jaxmlic.models.heads import contract
from jaxmlic.models.trunks import pretrained
from jaxmlic.training import loop

FORMS = {
    "positions": {"units": (8, 4), "hidden": 0},
    "path": {"units": 8, "embedding": 6, "max_length": 3, "beam_size": 2},
}


def run_config(data_dir, head, **overrides):
    values = config_lib.flatten(tiny_config(data_dir))
    config = config_lib.load(f"cnn_lstm_rmlc:smoke,head={head}")
    values = {key: value for key, value in values.items() if key.split(".")[0] in ("data", "train")}
    model = {
        "trunk": "small_cnn",
        "pool": "avg",
        "dropout": 0.1,
        **FORMS[head],
    }
    more = {"optim.lr": 0.01, "pretrained": "", "eval.metric": "mAP", "optim.groups": (("trunk/.*", None), (".*", 1.0))}
    values |= {f"model.{key}": value for key, value in model.items()} | more | overrides
    return config_lib.override(config, values)


@pytest.mark.parametrize("head", ["positions", "path"])  # without LSTM: feature_file_test
def test_train_evaluate_predict(head, data_dir, tmp_path, capsys):
    config = run_config(data_dir, head, **{"train.duration": "6 steps", "train.eval_every": "6 steps"})
    trainer = loop.Trainer(config, str(tmp_path / "run"), sharding.make_mesh(jax.devices()[:1]))
    assert trainer.fit().finished
    assert trainer.train_step._cache_size() == 1
    protocol = "path" if head == "path" else "all_point"
    assert 0 < runs.evaluate(str(tmp_path / "run"), protocol=protocol)["mAP"] <= 1
    (tmp_path / "a.png").write_bytes(datasets.load("tiny", data_dir).source("test")[0]["image"])
    capsys.readouterr()
    assert cli.run(["predict", f"--workdir={tmp_path / 'run'}", str(tmp_path / "a.png")]) == 0
    assert ("the decoder chose" in capsys.readouterr().out) == (head == "path")


def test_the_lstm_reads_stored_feature_maps(data_dir, tmp_path, monkeypatch):
    """Positions of a cached map are its time steps, and the LSTM learns from them."""

    def load(path, trunk):
        module, fields = trunks.get(trunk)
        return jax.jit(lambda: module.Trunk(**fields).init(jax.random.key(7), jnp.zeros((1, 16, 16, 3)), False))()

    monkeypatch.setattr(pretrained, "load", load)
    (tmp_path / "w.npz").write_bytes(b"stands for the weights of seed 7")
    stored = {"pretrained": str(tmp_path / "w.npz"), "data.source": "features", "features.store": "map"}
    config = run_config(data_dir, "positions", **stored, **{"data.resize": 0})
    runs.store_features(config)
    trainer = loop.Trainer(config, "unused", sharding.make_mesh(jax.devices()[:1]))
    batch = trainer.readers()[0](np.arange(8))
    assert batch["features"].shape == (8, 2, 2, 2, 96)  # two views of 2 x 2 positions
    before = trainer.initial_state()
    old = jax.device_get(before.params["lstm0"]["recurrent"])
    state, scalars = trainer.train_step(before, sharding.put(batch, trainer.mesh))
    assert np.isfinite(scalars["loss"]) and np.abs(state.params["lstm0"]["recurrent"] - old).max() > 1e-3


@pytest.mark.parametrize("head", ["positions", pytest.param("path", marks=pytest.mark.slow)])
def test_one_device_equals_eight(head, data_dir):
    config = run_config(data_dir, head, **{"model.dropout": 0.0, "optim.name": "sgd"})
    trainers = [loop.Trainer(config, "unused", sharding.make_mesh(jax.devices()[:n])) for n in (1, 8)]
    batch = trainers[0].readers()[0](np.arange(8))
    ends = []
    for trainer in trainers:
        state, scalars = trainer.train_step(trainer.initial_state(), sharding.put(batch, trainer.mesh))
        ends.append((jax.device_get(state.params), float(scalars["grad_norm"])))
    assert ends[0][1] == pytest.approx(ends[1][1], rel=1e-4) and ends[0][1] > 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), ends[0][0], ends[1][0])


OLD = {
    "trunk": "small_cnn",
    "recurrent": "positions",
    "units": (6,),
    "activation": "tanh",
    "pool": "avg",
    "hidden": 0,
    "embedding": 5,
    "order": "frequent_first",
    "max_length": 3,
    "beam_size": 2,
    "dropout": 0.3,
    "grey": False,
    "edges": 0.0,
    "batch_norm": "train",
    "dtype": "float32",
}


PARAMETERS = {
    "positions": {"trunk", "lstm0", "classifier"},
    "path": {"trunk", "path"},
    "none": {"trunk", "classifier"},
}


@pytest.mark.parametrize("recurrent", PARAMETERS)
def test_folders_of_the_one_head_open_as_one_of_the_three(recurrent):
    """Their config.json has the head "cnn_lstm_rmlc" and a field `recurrent`; the names of parameters are the same."""
    values = config_lib.load("cnn_lstm_rmlc").to_dict()
    values |= {"head": "cnn_lstm_rmlc", "model": OLD | {"recurrent": recurrent}}
    config = config_lib.from_dict(values)
    assert config.head == "cnn_lstm_rmlc." + {"none": "plain"}.get(recurrent, recurrent)
    model = contract.find(config.head).Model(3, **config.model)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3))))
    assert set(shapes["params"]) == PARAMETERS[recurrent] and ("constants" in shapes) == (recurrent == "path")
