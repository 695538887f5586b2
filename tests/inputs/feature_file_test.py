"""Features from a file: a whole run on them, the regulariser, and every way the file can be wrong."""

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
from jaxmlic.inputs import feature_file
from jaxmlic.training import loop


@pytest.fixture(scope="module")
def table(data_dir):
    """Features that give the labels away, in another order than the data set's: (features [101, 5], ids)."""
    dataset = datasets.load("tiny", data_dir)
    ids = np.concatenate([dataset.ids(split) for split in dataset.splits])
    labels = np.concatenate([dataset.labels(split) for split in dataset.splits]).astype(float)
    rng = np.random.default_rng(0)
    features = np.concatenate([labels + rng.normal(0, 0.1, labels.shape), rng.normal(size=(len(ids), 2))], axis=1)
    order = rng.permutation(len(ids))
    return features[order], ids[order]


def write(path, features, ids):
    np.savez(path, features=features, ids=ids)
    return str(path)


def config_of(data_dir, path, row="rml_cnn", **more):
    config = config_lib.load(f"cnn_lstm_rmlc:dataset=tiny,row={row},smoke")
    tiny = config_lib.flatten(tiny_config(data_dir))
    values = {key: value for key, value in tiny.items() if key.split(".")[0] in ("data", "train")}
    values |= {"data.source": "file", "data.features_file": path, "optim.lr": 0.3, "model.dropout": 0.0}
    return config_lib.override(config, values | {"train.duration": "60 steps", "train.eval_every": "60 steps"} | more)


def test_a_linear_scorer_on_features_from_a_file(data_dir, table, tmp_path, capsys):
    config = config_of(data_dir, write(tmp_path / "f.npz", *table), **{"loss.regulariser": 0.01})
    trainer = loop.Trainer(config, str(tmp_path / "run"))
    assert {name: leaf.shape for name, leaf in trainer.initial_state().params["classifier"].items()} == {
        "kernel": (5, 3),
        "bias": (3,),
    }
    assert set(trainer.initial_state().params) == {"classifier"}
    batch = trainer.readers()[0](np.arange(8))
    rows = [table[1].tolist().index(name) for name in trainer.train_view.ids[:8]]
    np.testing.assert_allclose(batch["features"][:, 0, 0, 0], table[0][rows], rtol=1e-6)
    assert trainer.fit().finished and trainer.train_step._cache_size() == 1
    assert runs.evaluate(str(tmp_path / "run"))["mAP"] > 0.95
    capsys.readouterr()
    (tmp_path / "a.png").write_bytes(b"")
    assert cli.run(["predict", f"--workdir={tmp_path / 'run'}", str(tmp_path / "a.png")]) == 2
    assert "cannot read photographs" in capsys.readouterr().err
    (tmp_path / "f.npz").unlink()
    with pytest.raises(UserError, match=r"f\.npz' cannot be read"):
        runs.evaluate(str(tmp_path / "run"))


def test_maps_from_a_file_are_read_by_the_lstm(data_dir, table, tmp_path):
    maps = np.repeat(table[0][:, None, None], 2, axis=1)
    config = config_of(data_dir, write(tmp_path / "f.npz", maps, table[1]), "cnn_lstm_rmlc", **{"model.units": (4,)})
    state = loop.Trainer(config, "unused").initial_state()
    assert state.params["lstm0"]["inputs"]["kernel"].shape == (5, 16)
    vectors = config_of(data_dir, write(tmp_path / "v.npz", *table), "cnn_lstm_rmlc")
    with pytest.raises(UserError, match="one vector an image"):
        loop.Trainer(vectors, "unused").initial_state()


def damaged(features, ids):
    """{name: (arrays, message)}"""
    nan = features.copy()
    nan[7, 2] = np.nan
    ragged = np.empty(len(ids), object)
    ragged[:] = [row[: 3 + i % 2] for i, row in enumerate(features)]
    stranger, twice = ids.copy(), ids.copy()
    stranger[4], twice[9] = "nobody", ids[3]
    return {
        "NaN": ((nan, ids), r"row 7 \('.*'\) is not finite"),
        "ragged": ((ragged, ids), "rows of different lengths"),
        "short": ((features[:-2], ids), f"row {len(ids) - 2} has no partner"),
        "stranger": ((features, stranger), "row 4 has the id 'nobody'"),
        "twice": ((features, twice), "row 9 has the id"),
        "missing": ((features[:20], ids[:20]), "no row for"),
        "flat": ((features[:, 0], ids), r"should be numbers \[N, D\]"),
        "numbers": ((features, np.arange(len(ids))), "should be text"),
        "text": ((features.astype(str), ids), "should be numbers"),
    }


KINDS = ("NaN", "ragged", "short", "stranger", "twice", "missing", "flat", "numbers", "text")


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files(kind, data_dir, table, tmp_path):
    arrays, message = damaged(*table)[kind]
    config = config_of(data_dir, write(tmp_path / "f.npz", *arrays))
    with pytest.raises(UserError, match=rf"f\.npz.*{message}"):
        loop.Trainer(config, "unused").readers()


def test_files_of_another_kind(tmp_path):
    np.savez(tmp_path / "other.npz", x=1)
    (tmp_path / "text.npz").write_text("a,b")
    np.save(tmp_path / "array.npy", np.ones(3))
    several = "an .npz of several arrays"
    for name, message in (("other.npz", "lacks features"), ("text.npz", "not an .npz"), ("array.npy", several)):
        with pytest.raises(UserError, match=message):
            feature_file.load(str(tmp_path / name))


def test_a_changed_file_is_read_anew(table, tmp_path):
    path = write(tmp_path / "f.npz", *table)
    first = feature_file.load(path)[0]
    write(tmp_path / "f.npz", table[0][:-1] * 2, table[1][:-1])
    np.testing.assert_allclose(feature_file.load(path)[0], first[:-1] * 2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data.features_file": ""}, "needs config.data.features_file"),
        ({"data.source": "images"}, "read with config.data.source='file' alone"),
        ({"pretrained": "w.npz"}, "config.pretrained is for a trunk"),
        ({"augment.mixup": "every_epoch"}, "mixup"),
        ({"augment.ops": 2}, "ops"),
        ({"data.source": "files"}, "known: images, features, descriptors, file"),
    ],
)
def test_config_mistakes(fields, message, data_dir, table, tmp_path):
    config = config_of(data_dir, write(tmp_path / "f.npz", *table), **fields)
    with pytest.raises(UserError, match=message):
        loop.Trainer(config, "unused")


def test_one_device_equals_eight(data_dir, table, tmp_path):
    config = config_of(data_dir, write(tmp_path / "f.npz", *table), **{"optim.name": "sgd"})
    ends = []
    for count in (1, 8):
        trainer = loop.Trainer(config, "unused", sharding.make_mesh(jax.devices()[:count]))
        batch = sharding.put(trainer.readers()[0](np.arange(8)), trainer.mesh)
        ends.append(jax.device_get(trainer.train_step(trainer.initial_state(), batch)[0].params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *ends)
