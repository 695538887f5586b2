"""Heads on descriptor sets: whole runs, stored and computed descriptors, and every mistake in one line."""

import shutil

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import COLOURS, picture, tiny_config

import jaxmlic
from jaxmlic import config as config_lib
from jaxmlic.cli import main as cli
from jaxmlic.data import datasets, loader
from jaxmlic.data.prepare import writer
from jaxmlic.errors import UserError
from jaxmlic.evaluation import score_file
from jaxmlic.experiments import plan, runs, sweep
from jaxmlic.inputs import descriptors, eval_inputs, open_source
from jaxmlic.inputs.descriptors import handmade, stored
from jaxmlic.inputs.descriptors.trunk_set import TrunkSet
from jaxmlic.models import trunks
from jaxmlic.models.trunks import pretrained
from jaxmlic.sharding import make_mesh
from jaxmlic.training import loop

SHAPES = ((20, 30), (30, 20), (24, 24))
SETS = ("small_cnn@16", "colour")


@pytest.fixture(scope="module")
def variables():
    module, _ = trunks.get("small_cnn")
    return jax.jit(lambda: module.Trunk().init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)), False))()


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder with a file that stands for the small CNN's weights."""
    folder = tmp_path_factory.mktemp("weights")
    (folder / "small_cnn.npz").write_bytes(b"stands for weights")
    return folder


@pytest.fixture(autouse=True)
def small_cnn_has_weights(request, monkeypatch, variables):
    if "published" not in request.node.name:
        monkeypatch.setattr(pretrained, "find", lambda folder, trunk: f"{folder}/{trunk}.npz")
        monkeypatch.setattr(pretrained, "load", lambda path, trunk: variables)


@pytest.fixture(scope="module")
def shapes_dir(tmp_path_factory):
    """A data set of 36 and 9 pictures of three shapes."""

    def made(split, count, seed):
        rng = np.random.default_rng(seed)
        for i in range(count):
            labels = (rng.random(3) < 0.4).astype(np.int8)
            height, width = SHAPES[i % 3]
            image = np.resize(picture(labels, rng, 30)[:height, :width], (height, width, 3))
            yield {
                "id": f"{split}-{i}",
                "image": cv2.imencode(".png", image[:, :, ::-1])[1].tobytes(),
                "labels": labels,
            }

    folder = tmp_path_factory.mktemp("data")
    writer.write("shapes", folder, list(COLOURS), {"train": made("train", 36, 0), "test": made("test", 9, 1)}, {})
    return folder


def config_of(data_dir, weights, spec="kernel_ridge:dataset=shapes,smoke", **more):
    values = {"data.dir": str(data_dir), "data.limit": 0, "data.val_fraction": 0.0, "train.batch_size": 8}
    values |= {"data.source": "descriptors", "features.sets": SETS, "features.weights": str(weights)}
    return config_lib.override(config_lib.load(spec), values | more)


@pytest.fixture(scope="module")
def run(shapes_dir, weights, variables, tmp_path_factory):
    """A finished kernel ridge on both sets."""
    folder = tmp_path_factory.mktemp("run") / "ridge"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrained, "find", lambda folder, trunk: f"{folder}/{trunk}.npz")
        patch.setattr(pretrained, "load", lambda path, trunk: variables)
        config = config_of(shapes_dir, weights, **{"model.weights": (2.0, 1.0, 1.0)})
        runs.store_features(config)
        assert loop.run(config, str(folder)).finished
    return folder


def test_stored_descriptors_are_those_of_each_image(shapes_dir, weights, run, variables):
    """Of a batch of three shapes: sizes, order, names, and the values of images described alone."""
    config = jaxmlic.load(run).config
    source, dataset = open_source(config), datasets.load("shapes", shapes_dir)
    view = loader.select(config.data, dataset, "test")
    batch = source.eval_reader(view)(np.array([4, 0, 2]))
    given = eval_inputs(batch).descriptors
    names = [f"small_cnn@16 {kind}" for kind in ("avg", *["stages"] * 3)] + ["colour"] * 6
    assert [one.group for one in given] == names
    assert [one.values.shape for one in given] == [(3, n) for n in (96, 64, 128, 192, 512, 192, 576, 216, 1152, 432)]
    assert [one.standardise for one in given] == [False] + [True] * 3 + [False] * 6
    for row, i in enumerate((4, 0, 2)):
        pixels = cv2.imdecode(np.frombuffer(dataset.source("test")[i]["image"], np.uint8), cv2.IMREAD_COLOR)
        height, width = SHAPES[i % 3]
        size = (round(16 * width / min(height, width)), round(16 * height / min(height, width)))
        how = cv2.INTER_AREA if min(height, width) > 20 else cv2.INTER_LINEAR  # shrunk by more than a quarter
        small = cv2.resize(pixels[:, :, ::-1], size, interpolation=how)
        module, _ = trunks.get("small_cnn")
        views = np.stack([small, small[:, ::-1]]).astype(np.float32)
        _, stages = module.Trunk().apply(variables, (views - 127.5) / 64, False)
        maps = np.asarray(stages["stage3"], np.float64)
        np.testing.assert_allclose(given[0].values[row], maps.mean((0, 1, 2)), rtol=2e-3, atol=2e-3)
        spread = np.concatenate([maps.mean((1, 2)), maps.std((1, 2))], axis=1).mean(0)
        np.testing.assert_allclose(given[3].values[row], spread, rtol=2e-3, atol=2e-3)


def test_photographs_get_the_scores_of_stored_descriptors(shapes_dir, weights, run, tmp_path, capsys):
    """predict on files of three shapes at once, and evaluate without anything stored."""
    found = runs.evaluate(str(run))
    scores = score_file.load(run / "scores" / "test.npz").scores
    source = datasets.load("shapes", shapes_dir).source("test")
    for i in range(5):
        (tmp_path / f"{i}.png").write_bytes(source[i]["image"])
    predicted = jaxmlic.load(run).predict(tmp_path)
    np.testing.assert_allclose(predicted.scores, scores[:5], atol=0.02)
    pixels = cv2.imdecode(np.frombuffer(source[1]["image"], np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    np.testing.assert_allclose(jaxmlic.load(run).predict(pixels).scores, scores[1:2], atol=0.02)
    assert cli.run(["predict", f"--workdir={run}", str(tmp_path / "0.png")]) == 0
    shutil.copytree(shapes_dir / "shapes", tmp_path / "data" / "shapes", ignore=shutil.ignore_patterns("features"))
    computed = runs.evaluate(str(run), data_dir=str(tmp_path / "data"))
    np.testing.assert_allclose(computed["AP"], found["AP"], atol=1e-3)
    (tmp_path / "bad.png").write_bytes(b"no image")
    capsys.readouterr()
    assert cli.run(["predict", f"--workdir={run}", str(tmp_path / "bad.png")]) != 0
    assert "bad.png" in capsys.readouterr().err
    file = weights / "small_cnn.npz"
    file.write_bytes(b"other weights")
    try:
        assert cli.run(["predict", f"--workdir={run}", str(tmp_path / "0.png")]) == 2
        assert cli.run(["evaluate", f"--workdir={run}"]) == 2
        assert capsys.readouterr().err.count("holds other weights than those that the run was trained with") == 2
    finally:
        file.write_bytes(b"stands for weights")
    with pytest.raises(UserError, match=r"reads descriptors of images .* no maps over pixels"):
        jaxmlic.load(run).attention(tmp_path / "0.png")
    assert cli.run(["export", str(run), f"--out={tmp_path / 'bundle'}"]) == 2
    assert "computed outside of its model" in capsys.readouterr().err and not (tmp_path / "bundle").exists()


def test_groups_share_their_weight(shapes_dir, run):
    """Squared distances of points: 1/2 of avg, 1/4 of the three stages' mean, 1/4 of the six histograms' mean."""
    opened = jaxmlic.load(run)
    source, dataset = open_source(opened.config), datasets.load("shapes", shapes_dir)
    view = loader.select(opened.config.data, dataset, "train")
    given = eval_inputs(source.train_reader(view)(np.arange(36))).descriptors
    points = opened.image_features(view)
    wanted = 0
    for one, weight in zip(given, [1 / 2] + [1 / 12] * 3 + [1 / 24] * 6, strict=True):
        x = np.asarray(one.values, np.float64)
        if one.standardise:
            x = (x - x.mean(0)) / x.std(0)
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        squares = 2 - 2 * x @ x.T
        wanted = wanted + weight * squares / squares.mean()
    found = ((points[:, None] - points[None]) ** 2).sum(2)
    np.testing.assert_allclose(found, wanted, atol=2e-3)


def test_a_further_set_or_kind_computes_no_other(shapes_dir, weights, run, monkeypatch, capsys):
    folders = sorted((shapes_dir / "shapes" / "1.0.0" / "features").iterdir())
    before = {path: path.stat().st_mtime_ns for folder in folders for path in folder.glob("*.values")}
    described = []
    monkeypatch.setattr(
        TrunkSet, "describe", lambda self, x, n, own=TrunkSet.describe: described.append(self.name) or own(self, x, n)
    )
    more = {"features.sets": ("texture", *SETS), "data.train_split": "train"}
    runs.store_features(config_of(shapes_dir, weights, **more), print)
    assert not described and capsys.readouterr().out.count("there already") == 4
    runs.store_features(config_of(shapes_dir, weights, **{"features.pools": ("avg", "max")}), print)
    assert set(described) == {"small_cnn@16"} and "test: 9 images, 192 numbers each (max)" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before
    chosen = config_of(shapes_dir, weights, **{"features.sets": ("colour", "texture")})
    view = loader.select(chosen.data, datasets.load("shapes", shapes_dir), "train")
    assert [x.group for x in eval_inputs(open_source(chosen).train_reader(view)(np.arange(2))).descriptors] == [
        *["colour"] * 6,
        "texture",
    ]


@pytest.mark.parametrize("spec", ["linear:dataset=shapes,mode=frozen,smoke", "cnn_rnn:dataset=shapes,smoke"])
def test_heads_that_train_in_steps(shapes_dir, weights, run, tmp_path, spec):
    """They read all descriptors side by side, each of mean square 1."""
    more = {"train.duration": "3 steps", "train.eval_every": "3 steps", "data.val_fraction": 0.3}
    config = config_of(shapes_dir, weights, spec, **more)
    assert loop.run(config, str(tmp_path)).finished
    opened = jaxmlic.load(tmp_path)
    assert np.isfinite(runs.evaluate(str(tmp_path))["mAP"])
    if config.head == "linear":
        pooled = opened.image_features(loader.select(config.data, opened.dataset, "test"))
        assert pooled.shape == (9, 96 + 64 + 128 + 192 + 3080)
        np.testing.assert_allclose((pooled[:, :96] ** 2).mean(1), 1, atol=1e-3)
        np.testing.assert_allclose((pooled[:, -432:] ** 2).mean(1), 1, atol=1e-3)


@pytest.mark.parametrize("head", ["two_pass_knn", "tagprop"])
def test_neighbours(shapes_dir, weights, run, tmp_path, head):
    config = config_of(shapes_dir, weights, f"kernel_ridge:dataset=shapes,head={head},smoke")
    assert loop.run(config, str(tmp_path)).finished
    assert np.isfinite(runs.evaluate(str(tmp_path))["mAP"])


def test_sweeps_and_plans(shapes_dir, weights):
    """--weights of a sweep is the folder of the sets; a plan's batch is the descriptors."""
    config = config_of(shapes_dir, weights, "linear:dataset=shapes,mode=frozen,smoke")
    given = sweep.config_of("linear", config, config_lib.Entry("row"), (), "elsewhere")
    assert given.features.weights == "elsewhere" and not given.pretrained
    assert "descriptor:0000:0:small_cnn@16 avg 1x96" in plan.make(config, make_mesh()).inputs


MISTAKES = {
    "name": ({"features.sets": ("colours",)}, r"'colours' is no set \(did you mean 'colour'\?\); known: TRUNK@SIDE"),
    "trunk": ({"features.sets": ("small_cmm@32",)}, "'small_cmm@32': trunk 'small_cmm'"),
    "side": ({"features.sets": ("small_cnn@8",)}, "a side of 16 pixels or more"),
    "none": ({"features.sets": ()}, "needs config.features.sets"),
    "twice": ({"features.sets": ("colour", "colour")}, "names a set twice"),
    "aspect": ({"features.aspect": "crop"}, "config.features.aspect = 'crop'"),
    "pools": ({"features.pools": ()}, "config.features.pools is empty"),
    "power": ({"features.gem_power": 0.0}, "config.features.gem_power = 0.0"),
    "pretrained": ({"pretrained": "w.npz"}, "weights of sets are in config.features.weights"),
    "file": ({"data.features_file": "f.npz"}, "config.data.features_file is read"),
    "mixup": ({"augment.mixup": "every_epoch"}, "mixup works on pixels"),
    "stages": ({"model.stages": ("stage1",)}, "reads stages of a trunk"),
    "parts": ({"model.parts": (3, 3)}, "sets know their sizes"),
    "source": ({"data.source": "images"}, "config.features.sets is read with config.data.source='descriptors'"),
    "weights": ({"model.weights": (1.0,)}, "3 descriptors need as many weights .*small_cnn@16 avg, small_cnn@16 st"),
    "not stored": ({"features.sets": ("gradient",)}, "no 'gradient' of split 'train' .*run `jaxmlic features`"),
    "other rules": ({"features.mirror": False}, "no 'small_cnn@16' of split 'train' .*run `jaxmlic features`"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_mistakes(shapes_dir, weights, run, tmp_path, what):
    more, message = MISTAKES[what]
    with pytest.raises(UserError, match=message) as caught:
        loop.run(config_of(shapes_dir, weights, **more), str(tmp_path))
    assert "\n" not in str(caught.value)


def test_weights_of_published_trunks(shapes_dir, tmp_path):
    """No folder, no file, the file of another trunk, a trunk that has none."""

    def fails(match, folder, name):
        with pytest.raises(UserError, match=match) as caught:
            runs.store_features(config_of(shapes_dir, folder, **{"features.sets": (name,)}))
        assert "\n" not in str(caught.value)

    fails("set config.features.weights to a folder", "", "efficientnet_lite0@32")
    fails("folder of weights .* does not exist", tmp_path / "nowhere", "efficientnet_lite0@32")
    fails("no file with the weights of efficientnet_lite0", tmp_path, "efficientnet_lite0@32")
    fails("'small_cnn' of 'small_cnn@32' has no pretrained weights", tmp_path, "small_cnn@32")
    np.savez(tmp_path / "efficientnet_lite0.npz", **{"_conv_stem.weight": np.zeros((32, 3, 3, 3), np.float32)})
    fails("not the weights of efficientnet_lite0; missing in the file", tmp_path, "efficientnet_lite0@32")
    assert not [path for path in (shapes_dir / "shapes").rglob("*.partial")]


def test_images_and_files_that_cannot_be_read(shapes_dir, weights, run, tmp_path, monkeypatch):
    shutil.copytree(shapes_dir / "shapes", tmp_path / "shapes")
    config = config_of(tmp_path, weights, **{"data.dir": str(tmp_path)})
    view = loader.select(config.data, datasets.load("shapes", tmp_path), "test")
    path = next((tmp_path / "shapes").rglob("test.rgb.values"))
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(UserError, match=r"damaged features \(test\.rgb\.values has 9,214 bytes\)"):
        open_source(config).eval_reader(view)
    monkeypatch.setattr(handmade.HandmadeSet, "describe", lambda self, x, count: x * 1e6)
    shutil.rmtree(path.parent)
    with pytest.raises(UserError, match=r"colour of .*does not fit config\.features\.dtype = 'float16'"):
        descriptors.compute(config, ["test"])
    assert not list(path.parent.glob("*"))
    record = {"id": "test-3", "image": b"GIF89a"}
    with pytest.raises(
        UserError, match=r"image 'test-3' in split 'test' .*cannot be read .*prepare the data set again"
    ):
        stored.read_image(record, view)


def test_a_model_on_images_knows_nothing_of_sets(data_dir):
    with pytest.raises(UserError, match=r"config\.features\.sets is read"):
        open_source(tiny_config(data_dir, **{"features.sets": ("colour",)}))
