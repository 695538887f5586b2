"""The experiment file of CNN-LSTM-RMLC against its paper: rows, starts, protocols; folds and noise on small data."""

import numpy as np
import pytest
from conftest import table_of, tiny_config
from jaxmlic.configs import cnn_lstm_rmlc as experiment

from jaxmlic import config as config_lib
from jaxmlic import losses
from jaxmlic.cli import main as cli
from jaxmlic.data.prepare import writer
from jaxmlic.errors import UserError
from jaxmlic.experiments import sweep
from jaxmlic.losses.named import check_options
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


def row_of(config, name):
    """What a paper's row is trained by, tested on and decided by."""
    optim, data = config.optim, config.data
    groups = "frozen trunk" if any(rate is None for _, rate in optim.groups) else "all"
    splits = (data.train_split, data.test_split)
    rates = (optim.name, optim.lr, optim.weight_decay, groups)
    return name, rates, splits, config.train.batch_size, data.image_size, config.eval.protocol, config.eval.metric


ADAM = ("adam", 0.005, 1e-4, "all")
TABLE_1_AND_2 = ("rml_cnn", "warp", "softmax", "cnn_lstm_rmlc")
STORED, DIVIDED = ("train", "test"), ("rmlc/train", "rmlc/test")
PINNED = [
    *((f"cifar10_{row}_random", ADAM, STORED, 64, 32, "all_point", "accuracy") for row in TABLE_1_AND_2),
    *((f"cifar10_{row}_ilsvrc", ADAM, STORED, 64, 256, "all_point", "accuracy") for row in TABLE_1_AND_2),
    *((f"stl10_{row}_random", ADAM, STORED, 64, 32, "all_point", "accuracy") for row in TABLE_1_AND_2),
    *((f"stl10_{row}_ilsvrc", ADAM, STORED, 64, 96, "all_point", "accuracy") for row in TABLE_1_AND_2),
    *(
        (f"coco2014_{row}", ADAM, ("train", "val"), 64, 448, "top3_forced", "mAP")
        for row in ("rml_cnn", "warp", "binary_relevance", "cnn_lstm_rmlc")
    ),
    *(
        (f"nus_wide_{row}", ADAM, DIVIDED, 64, 448, "top3_forced", "mAP")
        for row in ("rml_cnn", "warp", "softmax", "binary_relevance", "cnn_lstm_rmlc")
    ),
    ("voc2007_cnn_lstm_rmlc", ADAM, DIVIDED, 64, 448, "all_point", "mAP"),
]


def test_every_row_is_pinned():
    found = [row_of(config, entry.name) for entry, config in configs("cnn_lstm_rmlc").items()]
    assert sorted(found) == sorted(PINNED)


OTHERS = {
    "cifar10": ["rmlc_released_random", "rmlc_released_ilsvrc", "algorithm2", "hand_crafted"],
    "voc2007": ["rmlc_released", "path", "hand_crafted"],
    "corel5k": ["rmlc_released", "path", "hand_crafted"],
}


@pytest.mark.parametrize("dataset", OTHERS)
def test_rows_that_stand_in_no_table(dataset):
    found = {
        entry.name: (entry, config) for entry, config in configs(f"cnn_lstm_rmlc:dataset={dataset},rows=others").items()
    }
    assert list(found) == OTHERS[dataset]
    for name, (entry, config) in found.items():
        assert entry.from_scratch == (name.endswith("_random") or name in ("algorithm2", "hand_crafted"))
        if name.startswith("rmlc_released"):
            assert dict(config.loss.options) == {"s": -0.8, "k": 5.0, "leak": 0.1, "rank": "sampled"}
            assert check_options(losses.rmlc, config.loss.options)
            # SGD 0.01 with decay 1e-4 on a loss over 20: by lr g / 20 + lr d p = (lr / 20) (g + 20 d p).
            rates = (config.optim.name, config.optim.lr, config.optim.weight_decay)
            assert rates == ("sgd_nesterov", pytest.approx(5e-4), pytest.approx(2e-3))
            assert config.head == "cnn_lstm_rmlc.plain"
        elif name == "algorithm2":
            model = config.model
            assert (model.trunk, model.grey, model.edges, model.pool) == ("cifar14_algorithm2", True, 1.0, "flatten")
            assert config.head == "cnn_lstm_rmlc.positions" and config.data.image_size == 32
        elif name == "path":
            assert config.head == "cnn_lstm_rmlc.path" and config.loss.name == "rmlc"
        else:
            assert config.head == "cnn_lstm_rmlc.plain" and config.model.hidden == 0 and config.loss.regulariser > 0
            assert config.data.source == "file" and config.optim.weight_decay == config.model.dropout == 0.0
            assert all(rate is not None for _, rate in config.optim.groups)  # there is no trunk to freeze


def test_ten_draws_of_4000_labels():
    found = configs("cnn_lstm_rmlc:dataset=cifar10,draws=10,row=softmax")
    assert [(e.name, e.series, e.part, e.from_scratch) for e in found] == [
        (f"softmax_{start}_draw{i}", f"softmax_{start}", f"draw{i}", start == "random")
        for start in ("random", "ilsvrc")
        for i in range(10)
    ]
    for entry, config in found.items():
        assert config.data.train_split == f"draws10_seed0/{entry.part}" and config.data.test_split == "test"
        assert config.data.val_fraction == 0.0 and not config.data.val_split


def test_parts_of_voc_are_never_tested_on_their_own_images():
    """rmlc/test holds images of the stored train, of which folds and subsets are parts."""
    for arg in ("subset=10", "folds=10", "batches=5"):
        assert experiment.get_config(f"dataset=voc2007,{arg}").data.test_split == "test"
    assert experiment.get_config("dataset=nus_wide,subset=10").data.test_split == "rmlc/test"


def test_the_kind_of_noise_is_an_argument():
    found = configs("cnn_lstm_rmlc:dataset=cifar10,noise,noise_kind=images")
    assert {config.data.noise for config in found.values()} == {"images"} and len(found) == 18
    assert experiment.get_config("dataset=cifar10").data.noise == "random"


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
    "arg",
    [
        "row=wrap",
        "start=imagenet",
        "mode=froze",
        "folds=3,subset=10",
        "loss=warp",
        "head=none",
        "recipe=released,row=warp",
    ],
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
    # The linear scorer of hand-crafted features, a row of its own.
    argv = ["sweep", "--config=cnn_lstm_rmlc:dataset=mine,rows=others", "--only=hand_crafted"]
    fields["data.noise_rate"] = 0.0
    more = [f"--workdir={tmp_path / 'linear'}", *(f"--config.{key}={value}" for key, value in fields.items())]
    assert cli.run(argv + more) == 0
    assert float(table_of(tmp_path / "linear" / "runs.csv")[0]["accuracy"]) > 0.8
    capsys.readouterr()
    assert cli.run(["data", "split", "mine", "--folds=37", *where]) == 2
    assert "--folds=37: from 2 to the number of images, 36" in capsys.readouterr().err
