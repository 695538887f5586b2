"""The experiment file of CNN-LSTM-RMLC against its paper: rows, starts, protocols; folds and noise on small data."""

import numpy as np
import pytest
from conftest import table_of, tiny_config
from jaxmlic.configs import cnn_lstm_rmlc as experiment

from jaxmlic import config as config_lib
from jaxmlic.cli import main as cli
from jaxmlic.data.prepare import writer
from jaxmlic.errors import UserError
from jaxmlic.experiments import sweep
from jaxmlic.reports import noise_curves


def configs(spec):
    """{entry: its config}, as `jaxmlic sweep` makes them."""
    base = config_lib.load(spec)
    return {entry: sweep.config_of(spec, base, entry, ()) for entry in sweep.entries(spec)}


def test_every_row_of_the_tables_is_an_entry():
    found = {entry.name: config for entry, config in configs("cnn_lstm_rmlc").items()}
    assert len(found) == 26
    for name, config in found.items():
        row = next(row for row in experiment.ROWS if f"_{row}" in name)
        loss, options = experiment.ROWS[row]
        lstm, random = row == "cnn_lstm_rmlc", name.endswith("_random")
        assert (config.loss.name, tuple(config.loss.options)) == (loss, options)
        assert config.head == f"cnn_lstm_rmlc.{'positions' if lstm else 'plain'}" and config.data.name in name
        assert (config.model.trunk == "cifar14") == random and (config.model.hidden == 20) == random
        assert not lstm or (tuple(config.model.units) == (64, 32, 16)) == random
    assert found["coco2014_warp"].data.test_split == "val" and found["coco2014_warp"].eval.protocol == "top3_forced"
    assert found["stl10_warp_random"].eval.metric == "accuracy" and found["nus_wide_warp"].eval.metric == "mAP"


def test_weights_of_the_command_line_are_not_for_the_network_that_starts_at_random():
    spec, overrides = "cnn_lstm_rmlc:dataset=cifar10", ["--config.pretrained=weights.npz", "--config.optim.lr=0.5"]
    base = config_lib.load(spec, overrides)
    for entry in sweep.entries(spec):
        config = sweep.config_of(spec, base, entry, overrides)
        assert config.pretrained == ("" if entry.name.endswith("_random") else "weights.npz")
        assert config.optim.lr == 0.5


def test_the_papers_settings():
    config = config_lib.load("cnn_lstm_rmlc")
    assert (config.optim.name, config.optim.lr, config.optim.momentum) == ("adam", 0.005, 0.9)
    assert (config.optim.weight_decay, config.train.batch_size, config.model.dropout) == (1e-4, 64, 0.3)
    assert dict(config.loss.options) == {"s": -0.75, "k": 5.0}
    assert (config.model.pool, config.model.hidden, config.data.image_size) == ("flatten", 20, 32)


@pytest.mark.parametrize(
    "spec", ["dataset=voc2007_subset,noise", "dataset=cifar10,noise,batches=5", "dataset=tiny,noise"]
)
def test_noise_rows(spec):
    found = configs(f"cnn_lstm_rmlc:{spec}")
    by_rate = {}
    for entry, config in found.items():
        assert config.data.noise_rate == entry.noise_rate and entry.series in experiment.ROWS
        assert entry.name.startswith(f"{entry.series}_noise{100 * entry.noise_rate:g}")
        assert config.model.trunk != "cifar14"
        assert (config.features.store == "map") == (entry.series == "cnn_lstm_rmlc")
        by_rate.setdefault(entry.noise_rate, set()).add(entry.series)
    assert set(by_rate) == {0.0, 0.1, 0.2, 0.3, 0.4, 0.5}
    assert {entry.part for entry in found} == ({f"batch{i}" for i in range(5)} if "batches" in spec else {None})
    wanted = {"cnn_lstm_rmlc", "rml_cnn", "warp"} if "cifar10" in spec else set(experiment.ROWS)
    assert all(series == wanted for series in by_rate.values())


def test_folds_batches_and_subsets_name_their_splits():
    found = configs("cnn_lstm_rmlc:dataset=cifar10,row=warp,start=random,folds=10")
    assert [(c.data.train_split, c.data.val_split, c.data.test_split) for c in found.values()] == [
        (f"folds10_seed0/train{i}", f"folds10_seed0/test{i}", "test") for i in range(10)
    ]
    assert [(entry.name, entry.series, entry.noise_rate, entry.part) for entry in found] == [
        (f"warp_random_fold{i}", "warp_random", None, f"fold{i}") for i in range(10)
    ]
    found = configs("cnn_lstm_rmlc:dataset=stl10,row=warp,start=random,folds=10")
    assert [c.data.train_split for c in found.values()] == [f"folds/train{i}" for i in range(10)]
    found = configs("cnn_lstm_rmlc:dataset=cifar10_jpeg,row=warp,batches=5")
    assert [c.data.train_split for c in found.values()] == [f"batches_seed0/batch{i}" for i in range(5)]
    found = configs("cnn_lstm_rmlc:dataset=nus_wide,noise,subset=20")
    assert {c.data.train_split for c in found.values()} == {"subset20_seed0/labelled"} and len(found) == 18


@pytest.mark.parametrize(
    "arg", ["row=wrap", "start=imagenet", "mode=froze", "folds=3,subset=10", "loss=warp", "head=none"]
)
def test_argument_mistakes(arg):
    with pytest.raises(UserError):
        experiment.get_config(arg)


def test_folds_of_single_label_data_on_a_feature_file(tmp_path, capsys):
    """The ten-fold protocol by commands: split, sweep, mean accuracy with its spread; more folds than images."""
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 3, 48)
    one_hot = np.eye(3, dtype=np.int8)[classes]

    def examples(rows):
        for i in rows:
            yield {"id": f"{i:02d}", "image": b"x", "labels": one_hot[i]}

    writer.write("mine", tmp_path, ["a", "b", "c"], {"train": examples(range(36)), "test": examples(range(36, 48))}, {})
    features = one_hot + rng.normal(0, 0.2, one_hot.shape)
    np.savez(tmp_path / "f.npz", features=features, ids=[f"{i:02d}" for i in range(48)])
    where = [f"--data-dir={tmp_path}"]
    assert cli.run(["data", "split", "mine", "--folds=3", *where]) == 0
    tiny = config_lib.flatten(tiny_config(tmp_path))
    fields = {key: tiny[key] for key in ("train.batch_size", "train.eval_every", "data.dir", "data.cache")}
    fields |= {"data.source": "file", "data.features_file": str(tmp_path / "f.npz"), "eval.metric": "accuracy"}
    fields |= {"optim.lr": 0.1, "train.duration": "16 steps", "data.noise_rate": 0.1, "model.dropout": 0.0}
    argv = [
        "sweep",
        "--config=cnn_lstm_rmlc:dataset=mine,row=softmax,folds=3,start=ilsvrc",
        f"--workdir={tmp_path / 'runs'}",
    ]
    assert cli.run(argv + [f"--config.{key}={value}" for key, value in fields.items()]) == 0
    rows = table_of(tmp_path / "runs" / "runs.csv")
    assert [row["entry"] for row in rows] == [f"softmax_fold{i}" for i in range(3)]
    assert all(float(row["accuracy"]) > 0.8 for row in rows)
    capsys.readouterr()
    curves = noise_curves.read(tmp_path / "runs", "accuracy")
    assert cli.run(["noise-curves", str(tmp_path / "runs"), "--metric=accuracy"]) == 0
    mean = 100 * np.mean(curves["softmax"][0.0])
    assert f"{mean:.2f}" in capsys.readouterr().out and len(curves["softmax"][0.0]) == 3
    assert cli.run(["data", "split", "mine", "--folds=37", *where]) == 2
    assert "--folds=37: from 2 to the number of images, 36" in capsys.readouterr().err
