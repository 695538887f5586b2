"""Cached features: the same training as with the frozen trunk, and no cache that is not of this very config."""

import itertools
import json
import shutil
from pathlib import Path

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config

from jaxmlic import config as config_lib
from jaxmlic.cli import main as cli
from jaxmlic.cli.results import predict
from jaxmlic.data import datasets, loader
from jaxmlic.errors import UserError
from jaxmlic.experiments import runs
from jaxmlic.inputs import cache as cache_lib
from jaxmlic.inputs import compute, eval_inputs
from jaxmlic.inputs.images import ImageReader
from jaxmlic.inputs.views import Views
from jaxmlic.models import trunks
from jaxmlic.models.trunks import pretrained
from jaxmlic.training import loop
from jaxmlic.training import state as state_lib
from jaxmlic.training.checkpoint import Checkpoints
from jaxmlic.training.logs import metrics_log


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random weights of the small CNN, as a file that the importer takes."""
    path = tmp_path_factory.mktemp("weights") / "small.npz"
    path.write_bytes(b"stands for weights")
    return path


@pytest.fixture(autouse=True)
def import_small_cnn(monkeypatch):
    """The small CNN has no published weights; here a seed stands for the file's content."""

    def load(path, trunk):
        module, fields = trunks.get(trunk)
        seed = Path(path).read_bytes()[0]
        init = jax.jit(lambda: module.Trunk(**fields).init(jax.random.key(seed), jnp.zeros((1, 16, 16, 3)), False))
        return init()

    monkeypatch.setattr(pretrained, "load", load)


def config_of(data_dir, weights, **more):
    frozen = {"optim.groups": (("trunk/.*", None), (".*", 1.0)), "pretrained": str(weights), "model.pool": "avg"}
    plain = {"data.resize": 0, "augment.crop_area": (1.0, 1.0), "optim.lr": 0.01, "features.dtype": "float16"}
    return tiny_config(data_dir, **(frozen | plain | more))


def params_of(workdir, config):
    trainer = loop.Trainer(config, str(workdir))
    abstract = state_lib.abstract(
        config, trainer.model, trainer.source.example(), len(trainer.train_view), trainer.mesh
    )
    state = Checkpoints(str(workdir), read_only=True).restore(16, abstract)
    return flax.traverse_util.flatten_dict(state.params, sep="/")


@pytest.mark.parametrize(
    "more",
    [
        {},
        {
            "data.resize": 20,
            "features.store": "map",
            "model.pool": "max",
            "data.cache": True,
            "features.dtype": "bfloat16",
        },
    ],
    ids=["flips", "resized, bf16 maps in memory"],
)
def test_equal_to_training_with_the_frozen_trunk(data_dir, weights, tmp_path, monkeypatch, more):
    """Same draws, same steps; the difference is the rounding of what was stored. In memory, batches are the same."""
    config = config_of(data_dir, weights, **more)
    loop.run(config, str(tmp_path / "frozen"))
    runs.store_features(config)
    cached = config_of(data_dir, weights, **more, **{"data.source": "features"})
    loop.run(cached, str(tmp_path / "cached"))
    held, read = (loop.Trainer(cached, "unused").readers()[0] for _ in range(2))
    assert held.hold()
    monkeypatch.setattr(cache_lib, "_HELD_BYTES", 0)
    assert read.hold() == cached.data.cache
    pairs = zip(*(loader.train_iterator(reader, 8, seed=0) for reader in (held, read)), strict=True)
    for batch, other in itertools.islice(pairs, 9):
        assert all(batch[name].tobytes() == other[name].tobytes() for name in other) and batch.keys() == other.keys()
    ours, theirs = (params_of(tmp_path / name, c) for name, c in (("cached", cached), ("frozen", config)))
    assert ours.keys() == theirs.keys()
    moved = False
    for name, value in theirs.items():
        tolerance = 0 if name.startswith("trunk/") else (0.02 if more.get("features.dtype") else 2e-3)
        np.testing.assert_allclose(ours[name], value, rtol=tolerance, atol=tolerance, err_msg=name)
        moved |= not name.startswith("trunk/") and bool(np.abs(value).max() > 0.05)
    assert moved
    rows = [[row for row in metrics_log.read(tmp_path / name) if "val/mAP" in row] for name in ("cached", "frozen")]
    assert len(rows[0]) == len(rows[1]) > 1
    for row, other in zip(*rows, strict=True):
        assert row["val/mAP"] == pytest.approx(other["val/mAP"], abs=0.05)


def test_a_run_from_features_evaluates_and_predicts_on_photographs(data_dir, weights, tmp_path):
    config = config_of(data_dir, weights, **{"data.source": "features"})
    runs.store_features(config)
    workdir = tmp_path / "run"
    loop.run(config, str(workdir))
    from_features = runs.evaluate(str(workdir))
    weights_elsewhere = weights.rename(weights.with_suffix(".moved"))
    try:
        from_images = runs.evaluate(str(workdir))  # without the weights there is no key: the trunk runs
    finally:
        weights_elsewhere.rename(weights)
    np.testing.assert_allclose(from_features["AP"], from_images["AP"], atol=0.05)
    source = datasets.load("tiny", data_dir).source("test")
    (tmp_path / "a.png").write_bytes(source[0]["image"])
    assert predict.predict(str(workdir), [str(tmp_path / "a.png")]) == 0


STAGES = {
    "head": "mscnn_lce_mic",
    "model.map_size": 3,
    "model.global_dim": 8,
    "model.gcn_hidden": 6,
    "model.gcn_dim": 10,
    "model.word_vectors": "one_hot",
    "model.mfb_dim": 12,
    "features.store": "stages",
    "features.stages": ("stage3", "stage1", "stage2"),  # not in the order of their names
    "data.resize": 0,
    "augment.crop_area": (1.0, 1.0),
    "optim.groups": (("trunk/.*", None), (".*", 1.0)),
    "optim.name": "adamw",
    "optim.lr": 0.01,
}


def stages_config(data_dir, weights, **more):
    """MSCNN-LCE-MIC's experiment on the tiny data set, with a frozen small CNN."""
    tiny = config_lib.flatten(tiny_config(data_dir))
    keys = [key for key in tiny if key.split(".")[0] in ("data", "train") and not isinstance(tiny[key], list)]
    values = {key: tiny[key] for key in keys} | {"model.trunk": "small_cnn", "pretrained": str(weights)}
    return config_lib.override(config_lib.load("mscnn_lce_mic"), values | STAGES | more)


def test_stages_stand_for_the_frozen_trunk(data_dir, weights, tmp_path):
    """The outputs of the head with the trunk, drawn views, and a run from them that evaluates from photographs."""
    config = stages_config(data_dir, weights, **{"data.source": "features", "train.duration": "4 steps"})
    runs.store_features(config)
    trainer = loop.Trainer(config, str(tmp_path / "run"))
    reader = trainer.readers()[0]
    batch = reader(np.arange(4))
    stages = {key: batch[key].shape for key in batch if key.startswith("stage:")}
    assert stages == {
        "stage:stage1": (4, 2, 3, 3, 32),
        "stage:stage2": (4, 2, 3, 3, 64),
        "stage:stage3": (4, 2, 2, 2, 96),
    }
    drawn, views = (
        cache_lib.CachedSource(config).training_inputs(jax.random.key(3), batch, 0)[0],
        Views.of(config).draw(jax.random.key(3), 4),
    )
    for key, values in drawn.stages.items():
        np.testing.assert_array_equal(values, batch[f"stage:{key}"][np.arange(4), np.asarray(views)])
    variables = state_lib.eval_variables(trainer.initial_state())
    images = ImageReader(trainer.train_view, 16)(np.arange(4))["image"]
    apply = jax.jit(trainer.model.apply)
    ours, theirs = apply(variables, eval_inputs(batch)), apply(variables, images)
    for name, values in theirs.items():
        np.testing.assert_allclose(ours[name], values, rtol=2e-3, atol=2e-3, err_msg=name)
    assert trainer.fit().finished
    workdir = str(tmp_path / "run")
    from_features = runs.evaluate(workdir)
    moved = weights.rename(weights.with_suffix(".moved"))
    try:
        from_images = runs.evaluate(workdir)
    finally:
        moved.rename(weights)
    np.testing.assert_allclose(from_features["AP"], from_images["AP"], atol=0.05)


def test_one_cache_of_stages_serves_all_heads_that_read_them(data_dir, weights):
    config, dataset = stages_config(data_dir, weights), datasets.load("tiny", data_dir)
    key = cache_lib.key_fields(config, dataset)
    for fields in ({"model.attention": False, "model.stages": ("stage3",)}, {"model.pool": "max"}):
        assert cache_lib.key_fields(stages_config(data_dir, weights, **fields), dataset) == key
    for fields in ({"model.map_size": 2}, {"features.stages": ("stage3",)}):
        assert cache_lib.key_fields(stages_config(data_dir, weights, **fields), dataset) != key
    with pytest.raises(UserError, match=r"config\.features\.stages: trunk 'small_cnn' has no 'stage9'"):
        runs.store_features(stages_config(data_dir, weights, **{"features.stages": ("stage9",)}))


def test_views_of_crops(data_dir, weights):
    config = config_of(data_dir, weights, **{"augment.crop_area": (0.3, 0.6), "data.resize": 20, "features.crops": 3})
    runs.store_features(config)
    dataset = datasets.load("tiny", data_dir)
    view = loader.select(config.data, dataset, "train")
    reader = cache_lib.CachedReader(view, config, train=True)
    batch = reader(np.arange(8))
    assert batch["features"].shape == (8, 4, 1, 1, 96) and batch["features"].dtype == np.float16
    values = np.asarray(batch["features"], np.float32)
    for i in range(4):
        for j in range(i):
            assert np.abs(values[:, i] - values[:, j]).max() > 1e-2  # the crops differ
    views = Views.of(config)
    drawn = np.asarray(views.draw(jax.random.key(0), 4000))
    assert set(drawn) == {1, 2, 3} and np.bincount(drawn)[1:].min() > 1200
    picked = cache_lib.CachedSource(config).training_inputs(jax.random.key(3), batch, 0)[0].feature_map
    chosen = np.asarray(views.draw(jax.random.key(3), 8))
    np.testing.assert_array_equal(picked, batch["features"][np.arange(8), chosen])
    plain = cache_lib.CachedReader(view, config, train=False)(np.arange(8))["features"]
    np.testing.assert_array_equal(plain, batch["features"][:, :1])


def test_view_0_is_the_trunk_on_the_image(data_dir, weights):
    config = config_of(data_dir, weights, **{"features.store": "map"})
    runs.store_features(config)
    dataset = datasets.load("tiny", data_dir)
    view = loader.select(config.data, dataset, "test")
    stored = cache_lib.CachedReader(view, config, train=False)(np.arange(5))["features"]
    images = ImageReader(view, 16)(np.arange(5))["image"]
    module, fields = trunks.get("small_cnn")
    wanted, _ = module.Trunk(**fields).apply(pretrained.load(weights, "small_cnn"), module.preprocess(images), False)
    np.testing.assert_allclose(stored[:, 0].astype(np.float32), wanted, rtol=1e-3, atol=1e-3)


def test_features_of_a_stored_split_serve_its_parts(data_dir, weights, tmp_path, capsys):
    shutil.copytree(Path(data_dir) / "tiny", tmp_path / "tiny")
    dataset = datasets.load("tiny", tmp_path)
    chosen = np.array([50, 3, 71])
    datasets.write_named_split(
        dataset, "some", {"train0": chosen, "both": np.array([70, 75]), "test0": np.array([80])}, {}
    )
    config = config_of(str(tmp_path), weights, **{"features.store": "map"})
    runs.store_features(config)
    whole = cache_lib.CachedReader(loader.select(config.data, dataset, "train"), config, train=True)(chosen)
    view = loader.select(config.data, dataset, "some/train0")
    part = cache_lib.CachedReader(view, config, train=True)(np.array([2, 0]))
    np.testing.assert_array_equal(part["features"], whole["features"][[2, 0]])
    np.testing.assert_array_equal(part["labels"], whole["labels"][[2, 0]])
    found = cache_lib.CachedSource(config).eval_reader(loader.select(config.data, dataset, "some/test0"))
    assert isinstance(found, cache_lib.CachedReader)
    with pytest.raises(UserError, match="no features of split 'some/test0'"):  # one view, and training needs two
        cache_lib.CachedReader(loader.select(config.data, dataset, "some/test0"), config, train=True)
    with pytest.raises(UserError, match="no features of split 'some/both'"):  # it lies in two stored splits
        cache_lib.CachedReader(loader.select(config.data, dataset, "some/both"), config, train=False)
    capsys.readouterr()
    runs.store_features(
        config_lib.override(config, {"data.train_split": "some/train0", "data.test_split": "some/test0"}), print
    )
    out = capsys.readouterr().out
    assert "some/train0: there already (in 'train'), 3 images" in out and "some/test0: there already (in 'test')" in out


STALE = {
    "size": ({"data.image_size": 24}, "image_size 16, not 24"),
    "flips": ({"augment.flip": False}, "views"),
    "pool": ({"model.pool": "max"}, "pool 'avg', not 'max'"),
    "storage": ({"features.dtype": "bfloat16"}, "dtype 'float16', not 'bfloat16'"),
    "compute": ({"model.dtype": "bfloat16"}, "compute 'float32', not 'bfloat16'"),
    "trunk": ({"model.trunk": "small_cnn_wide"}, "trunk 'small_cnn'"),
}


@pytest.mark.parametrize("what", STALE)
def test_a_cache_of_another_config_is_not_used(data_dir, weights, tmp_path, what):
    runs.store_features(config_of(data_dir, weights))
    # Other tests leave caches too: only this one shall be there to compare with.
    folder = cache_lib.folder_of(*_dataset_and_key(config_of(data_dir, weights)))
    for other in folder.parent.iterdir():
        if other != folder:
            shutil.rmtree(other)
    change, why = STALE[what]
    config = config_of(data_dir, weights, **change, **{"data.source": "features"})
    with pytest.raises(UserError, match=r"no features of split 'train' .* run `jaxmlic features`") as caught:
        loop.Trainer(config, str(tmp_path / "run")).readers()
    assert why in str(caught.value)


def _dataset_and_key(config):
    dataset = datasets.load("tiny", config.data.dir)
    return dataset, cache_lib.key_fields(config, dataset)


def test_other_weights_under_the_same_name(data_dir, tmp_path):
    path = tmp_path / "w.npz"
    path.write_bytes(b"a")
    config = config_of(data_dir, path, **{"data.source": "features"})
    runs.store_features(config)
    path.write_bytes(b"b")
    with pytest.raises(UserError, match="no features of split"):
        loop.Trainer(config, str(tmp_path / "run")).readers()
    path.unlink()
    with pytest.raises(UserError, match=r"config\.pretrained: .*w\.npz cannot be read"):
        loop.Trainer(config, str(tmp_path / "run")).readers()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"optim.groups": ((".*", 1.0),)}, "config.optim.groups trains it"),
        ({"pretrained": ""}, "set config.pretrained=FILE"),
        ({"model.pool": "avg_max"}, "set config.features.store='map'"),
        ({"features.store": "vector"}, "config.features.store"),
        ({"features.dtype": "int8"}, "config.features.dtype"),
        ({"augment.crop_area": (0.5, 1.0), "features.crops": 0}, "config.features.crops = 0"),
        ({"augment.mixup": "every_epoch"}, "config.augment.mixup"),
        ({"augment.ops": 1}, "config.augment.ops"),
        ({"augment.cutout": 0.5}, "config.augment.cutout"),
        ({"data.source": "feature"}, "config.data.source"),
        ({"model.trunk": "efficientnet_lite0"}, "config.model.batch_norm='frozen'"),
    ],
)
def test_configs_that_features_cannot_stand_for(data_dir, weights, tmp_path, change, why):
    config = config_of(data_dir, weights, **({"data.source": "features"} | change))
    with pytest.raises(UserError) as caught:
        loop.Trainer(config, str(tmp_path / "run"))
    assert why in str(caught.value)


def test_the_command_twice_and_a_damaged_cache(data_dir, weights, tmp_path, capsys):
    argv = ["features", "--config=quickstart", f"--config.data.dir={data_dir}", f"--config.pretrained={weights}"]
    argv += ["--config.data.name=tiny", "--config.data.image_size=16", "--config.train.batch_size=8"]
    argv += ["--config.optim.groups=(('trunk/.*', None), ('.*', 1.0))", "--config.features.store=map"]
    argv += ["--config.augment.crop_area=(1.0, 1.0)", "--config.data.resize=0", "--config.train.cpu_devices=1"]
    argv += ["--config.features.dtype=bfloat16"]
    assert cli.run(argv) == 0
    first = capsys.readouterr().out
    assert "train: 72 images, 2 views of 2 x 2 x 96" in first and "test: 29 images, 1 view of 2 x 2 x 96" in first
    assert cli.run(argv) == 0
    assert capsys.readouterr().out.count("there already") == 2
    folder = next(line.removeprefix("features in ") for line in first.splitlines() if line.startswith("features in"))
    manifest = tmp_path.joinpath(folder, "manifest.json")
    manifest.write_text(json.dumps({"key": 3})[:-2])
    assert cli.run(argv) == 2
    assert "damaged features" in capsys.readouterr().err


def test_two_commands_at_the_same_time_keep_each_others_splits(data_dir, weights, tmp_path, monkeypatch):
    shutil.copytree(data_dir / "tiny", tmp_path / "tiny", ignore=shutil.ignore_patterns("features"))
    dataset = datasets.load("tiny", tmp_path)
    for name in ("one", "other"):
        datasets.write_named_split(dataset, name, {"part": np.arange(4)}, {})
    monkeypatch.setattr(compute, "_make_forward", lambda config, mesh: (None, {}))

    def write(path, view, *others):
        path.write_bytes(b"")
        if view.split == "one/part":  # while this one runs, the other command begins and ends
            runs.store_features(config_of(tmp_path, weights, **{"data.train_split": "other/part"}))
        return [1, 1, 1, 1]

    monkeypatch.setattr(compute, "_write", write)
    folder = runs.store_features(config_of(tmp_path, weights, **{"data.train_split": "one/part"}))
    manifest = json.loads((folder / cache_lib.MANIFEST).read_text())
    assert set(manifest["splits"]) == {"test", "one/part", "other/part"}


def test_values_that_float16_cannot_hold(data_dir, weights, monkeypatch):
    huge = jax.tree.map(lambda x: x * 1e6, pretrained.load(weights, "small_cnn"))
    monkeypatch.setattr(pretrained, "load", lambda *_: huge)
    config = config_of(data_dir, weights, **{"data.image_size": 20})
    with pytest.raises(UserError, match=r"do not fit config\.features\.dtype = 'float16'"):
        runs.store_features(config)
    folder = cache_lib.folder_of(*_dataset_and_key(config))
    assert not list(folder.glob("*"))
