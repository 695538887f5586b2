"""Heads that are fitted at once: a whole run by the commands, against scikit-learn and plain formulas."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import COLOURS, examples, tiny_config
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge

import jaxmlic
from jaxmlic import config as config_lib
from jaxmlic import metrics
from jaxmlic.cli import main as cli
from jaxmlic.data import datasets, loader
from jaxmlic.data.prepare import writer
from jaxmlic.errors import UserError
from jaxmlic.evaluation import decision, score_file
from jaxmlic.experiments import plan, runs, sweep
from jaxmlic.kernels import nearest, tagprop
from jaxmlic.models import trunks
from jaxmlic.models.heads import contract
from jaxmlic.sharding import make_mesh
from jaxmlic.training import loop, optim
from jaxmlic.training import state as state_lib


@pytest.fixture(scope="module")
def table(data_dir):
    """{id: features [6]} that nearly give the labels away."""
    dataset, rng = datasets.load("tiny", data_dir), np.random.default_rng(0)
    found = {}
    for split in dataset.splits:
        labels = dataset.labels(split).astype(float)
        features = np.concatenate([labels + rng.normal(0, 0.5, labels.shape), rng.normal(size=labels.shape)], axis=1)
        found |= dict(zip(dataset.ids(split).tolist(), features.astype(np.float32), strict=True))
    return found


@pytest.fixture(scope="module")
def features_file(table, tmp_path_factory):
    path = tmp_path_factory.mktemp("features") / "f.npz"
    np.savez(path, features=np.stack(list(table.values())), ids=np.array(list(table)))
    return str(path)


def config_of(data_dir, arg="", **more):
    config = config_lib.load(f"kernel_ridge:dataset=tiny,smoke{arg}")
    values = {key: value for key, value in config_lib.flatten(tiny_config(data_dir)).items() if key.startswith("data.")}
    return config_lib.override(
        config, values | {"data.val_fraction": 0.0, "data.limit": 0, "train.batch_size": 8} | more
    )


def from_file(data_dir, path, arg="", **more):
    return config_of(data_dir, arg, **{"data.source": "file", "data.features_file": path} | more)


def params_of(workdir):
    return {k: np.asarray(v) for k, v in optim.flatten(jaxmlic.load(workdir)._restored.variables["params"]).items()}


@pytest.fixture(scope="module")
def ridge_run(data_dir, features_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "ridge"
    assert loop.run(from_file(data_dir, features_file), str(folder)).finished
    return folder


def distances_of(points, others, train):
    """2 - 2 cos, divided by its mean over the training images, float64."""
    unit = [x / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True) for x in (points, others, train)]
    return (2 - 2 * unit[0] @ unit[1].T) / (2 - 2 * unit[2] @ unit[2].T).mean()


def test_scores_of_a_run_are_those_of_scikit_learn(ridge_run, data_dir, table):
    dataset = datasets.load("tiny", data_dir)
    train, test = (np.stack([table[i] for i in dataset.ids(s).tolist()]) for s in ("train", "test"))
    labels, params = dataset.labels("train"), params_of(ridge_run)
    row = json.loads((ridge_run / "metrics.jsonl").read_text().splitlines()[0])
    bandwidth, alpha = row["train/bandwidth"], row["train/ridge"]
    known = labels >= 0
    mean = (labels == 1).sum(0) / known.sum(0)
    model = KernelRidge(alpha=alpha, kernel="precomputed")
    model.fit(np.exp(-bandwidth * distances_of(train, train, train)), np.where(known, (labels == 1) - mean, 0.0))
    wanted = model.predict(np.exp(-bandwidth * distances_of(test, train, train))) + mean
    found = jaxmlic.load(ridge_run).evaluate()
    np.testing.assert_allclose(found.scores.scores, params["slope"] * wanted + params["offset"], atol=1e-3)
    assert params["support"].shape == (72, 6) and params["dual"].shape == (72, 3)
    assert found.numbers["mAP"] > 0.8


def test_held_out_scores_are_kept(ridge_run, data_dir):
    held = score_file.load(ridge_run / "scores" / "train.out_of_fold.npz")
    assert held.ids.tolist() == datasets.load("tiny", data_dir).ids("train").tolist() and held.extra["held_out"]
    rows = [json.loads(line) for line in (ridge_run / "metrics.jsonl").read_text().splitlines()]
    np.testing.assert_allclose(
        rows[0]["train/out_of_fold_mAP"], metrics.evaluate(held.scores, held.labels)["mAP"], rtol=1e-3
    )
    assert rows[0]["step"] == 1 and rows[0]["epoch"] == 1.0


def test_a_complete_run_is_left_as_it_is(ridge_run, data_dir, features_file, capsys):
    assert loop.run(from_file(data_dir, features_file), str(ridge_run)) == loop.Outcome(1, True)
    assert "is complete (step 1)" in capsys.readouterr().out


def test_selection_never_sees_test_labels(ridge_run, features_file, tmp_path):
    """The same data set with the labels of its test images turned over gives the same parameters."""

    def turned():
        for example in examples("test", 29, 1):
            yield example | {"labels": np.int8(1 - np.abs(example["labels"]))}

    writer.write("tiny", tmp_path, list(COLOURS), {"train": examples("train", 72, 0), "test": turned()}, {})
    assert loop.run(from_file(tmp_path, features_file), str(tmp_path / "run")).finished
    for name, value in params_of(tmp_path / "run").items():
        np.testing.assert_array_equal(value, params_of(ridge_run)[name])


def test_a_run_that_reports_by_a_learned_protocol(data_dir, features_file, tmp_path):
    """Its rule is learned on the out-of-fold scores of the training images, before it is evaluated."""
    config = from_file(data_dir, features_file, **{"eval.protocol": "top2_learned"})
    numbers, stopped_by = runs.run_one(config, tmp_path / "run")
    rule = decision.load(tmp_path / "run")
    own = score_file.load(tmp_path / "run" / "scores" / "train.out_of_fold.npz")
    assert stopped_by is None and numbers["protocol"] == "top2_learned"
    assert rule.split == "train" and rule.ids.tolist() == own.ids.tolist()
    wanted = decision.fit(own, "cf1_at=2", images=rule.images, folds=0).choose(own.scores)
    np.testing.assert_array_equal(rule.choose(own.scores), wanted)
    assert runs.run_one(config, tmp_path / "run") == (numbers, None)
    slow = config_lib.override(
        config_lib.load("linear:dataset=tiny,smoke"), {"eval.protocol": "top2_learned", "data.val_fraction": 0.0}
    )
    assert any("learned on held-out" in line for line in plan._protocol_problems(slow, contract.Prediction(None)))


def test_several_descriptors_side_by_side(data_dir, table, features_file, tmp_path):
    """The second one, pure noise, is outweighed; the distance is the weighted mean of both."""
    config = from_file(data_dir, features_file, **{"model.parts": (3, 3), "model.weights": (8.0, 2.0)})
    assert loop.run(config, str(tmp_path)).finished
    run = jaxmlic.load(tmp_path)
    train, test = (np.stack([table[i] for i in run.dataset.ids(s).tolist()]) for s in ("train", "test"))
    wanted = sum(
        share * distances_of(test[:, part], train[:, part], train[:, part])
        for share, part in ((0.8, slice(3)), (0.2, slice(3, 6)))
    )
    points = run.image_features(loop.loader.find_view(run.config.data, run.dataset, 0, "test"))
    support = params_of(tmp_path)["support"]
    np.testing.assert_allclose(((points[:, None] - support[None]) ** 2).sum(2), wanted, atol=1e-4)
    assert run.evaluate().numbers["mAP"] > 0.7


@pytest.mark.parametrize("kernel", ["rbf", "linear"])
def test_other_kernels(kernel, data_dir, features_file, tmp_path):
    config = from_file(data_dir, features_file, **{"model.kernel": kernel, "model.folds": 0})
    assert loop.run(config, str(tmp_path)).finished
    assert jaxmlic.load(tmp_path).evaluate().numbers["mAP"] > 0.8
    assert ("weights" in params_of(tmp_path)) == (kernel == "linear")


@pytest.mark.parametrize("kernel", ["mean_distance", "linear"])
def test_landmarks_of_all_images_give_the_exact_fit(kernel, ridge_run, data_dir, features_file, tmp_path):
    own = {"model.kernel": kernel, "model.ridges": (0.3,), "model.bandwidths": (1.5,)}
    limits = {"exact": {}, "landmarks": {"model.exact_limit": 50, "model.landmarks": 72}}
    for name, more in limits.items():
        assert loop.run(from_file(data_dir, features_file, **own | more), str(tmp_path / name)).finished
    found, wanted = (jaxmlic.load(tmp_path / name).evaluate().scores.scores for name in ("landmarks", "exact"))
    np.testing.assert_allclose(found, wanted, rtol=5e-3, atol=5e-3)


def test_fewer_landmarks_are_kept(data_dir, features_file, tmp_path):
    config = from_file(data_dir, features_file, **{"model.exact_limit": 50, "model.landmarks": 20})
    assert loop.run(config, str(tmp_path)).finished
    assert params_of(tmp_path)["support"].shape == (20, 6) and params_of(tmp_path)["dual"].shape == (20, 3)
    assert jaxmlic.load(tmp_path).evaluate().numbers["mAP"] > 0.75


@pytest.mark.parametrize("form", ["rank", "distance"])
def test_tagprop(form, data_dir, features_file, tmp_path):
    config = from_file(data_dir, features_file, ",head=tagprop", **{"model.form": form, "model.neighbours": 9})
    assert loop.run(config, str(tmp_path)).finished
    run = jaxmlic.load(tmp_path)
    found, params = run.evaluate(), params_of(tmp_path)
    points = run.image_features(loop.loader.find_view(run.config.data, run.dataset, 0, "test"))
    rows, squares = nearest.nearest(params["support"], points, 9)
    learned = tagprop.TagProp(params["theta"], params["slope"], params["offset"])
    pi = np.asarray(tagprop.weights_of(learned.theta, np.asarray(squares)[..., None], form))
    x = np.einsum("nk,nkc->nc", pi, params["positive"][np.asarray(rows)])
    np.testing.assert_allclose(found.scores.scores, params["slope"] * x + params["offset"], atol=1e-3)
    assert found.numbers["mAP"] > 0.6


def test_two_pass_knn(data_dir, features_file, tmp_path):
    config = from_file(data_dir, features_file, ",head=two_pass_knn")
    assert loop.run(config, str(tmp_path)).finished
    assert jaxmlic.load(tmp_path).evaluate().numbers["mAP"] > 0.6


PHOTOGRAPHS = {"model.trunk": "small_cnn", "model.batch_norm": "train"}


def test_photographs_through_a_trunk(data_dir, tmp_path, capsys):
    """Stages of the trunk; prediction of a picture; thresholds of a validation part; another run's trunk."""
    config = config_of(data_dir, **PHOTOGRAPHS | {"data.val_fraction": 0.25, "model.stages": ("stage1", "stage2")})
    config = config_lib.override(config, {"model.weights": (1.0, 2.0)})
    assert loop.run(config, str(tmp_path / "run")).finished
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert np.isfinite(result["val/mAP"])
    runs.fit_thresholds(tmp_path / "run")
    run = jaxmlic.load(tmp_path / "run")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 30, 20, 3)).astype(np.uint8)
    assert run.predict(pixels).probabilities.shape == (2, 3)
    assert cli.run(["evaluate", f"--workdir={tmp_path / 'run'}"]) == 0


def test_mistakes(data_dir, features_file, tmp_path):
    def fails(match, arg="", **more):
        with pytest.raises(UserError, match=match):
            loop.run(from_file(data_dir, features_file, arg, **more), str(tmp_path / "run"))

    fails("is fitted at once: set it to 'none'", **{"optim.name": "sgd"})
    fails("takes '1 steps'", **{"train.duration": "2 steps"})
    fails("learns all of its own", **{"optim.groups": ((".*", 1.0), ("mean", None))[::-1]})
    fails("averages steps", **{"optim.ema": 0.9})
    fails("ridges = .*above 0", **{"model.ridges": (0.0, 1.0)})
    fails("bandwidths = .*above 0", **{"model.bandwidths": ()})
    fails("leaves nothing to fit", **{"model.folds": 1})
    fails("solve 72 systems", **{"model.folds": 0, "model.exact_limit": 20})
    fails("2 descriptors|1 descriptors need", **{"model.weights": (1.0, 2.0)})
    fails("do not sum to the 6 numbers", **{"model.parts": (3, 2)})
    fails("group_sizes = .*above 0", ",head=two_pass_knn", **{"model.group_sizes": (0,)})
    fails("known: rank, distance", ",head=tagprop", **{"model.form": "ranks"})
    with pytest.raises(UserError, match="is trained in steps"):
        loop.Trainer(tiny_config(data_dir, **{"optim.name": "none"}), str(tmp_path / "steps"))
    with pytest.raises(UserError, match="no steps to plan"):
        plan.make(from_file(data_dir, features_file), make_mesh())


def test_every_row_can_be_made_at_its_size():
    """Shapes alone, with the words and images of Corel-5K."""
    base, seen = config_lib.load("kernel_ridge"), set()
    for entry in sweep.entries("kernel_ridge"):
        config = sweep.config_of("kernel_ridge", base, entry, ())
        model = contract.make_model(contract.find(config.head), config, 374, 4500)
        shapes = state_lib.parameter_shapes(model, trunks.StoredMaps(jnp.zeros((1, 1, 1, 1280))))
        assert shapes["weights" if config.model.get("kernel") == "linear" else "support"][-1] in (374, 1280)
        optim.multipliers(config.optim.groups, shapes)
        seen.add(repr(model))
    assert len(seen) == len(sweep.entries("kernel_ridge"))


@pytest.fixture(scope="module")
def linear_run(data_dir, tmp_path_factory):
    """Linear kernel ridge on the photographs, with a small random trunk."""
    folder = tmp_path_factory.mktemp("run") / "linear"
    assert loop.run(from_photographs(data_dir), str(folder)).finished
    return folder


def from_photographs(data_dir, **more):
    values = {"model.trunk": "small_cnn", "model.batch_norm": "train", "model.kernel": "linear"}
    return config_of(data_dir, **values | {"model.ridges": (0.1, 1.0)} | more)


def test_a_classifier_starts_from_linear_kernel_ridge(linear_run, data_dir, tmp_path):
    """Before the first step it has the logits of the run it starts from, and scikit-learn's ridge regression's."""
    config = tiny_config(data_dir, start_from=str(linear_run), **{"model.pool": "avg", "optim.ema": 0.5})
    trainer = loop.Trainer(config, str(tmp_path / "run"))
    state = trainer.initial_state()
    there, dataset = jaxmlic.load(linear_run)._restored, datasets.load("tiny", data_dir)
    rows = np.arange(len(dataset.labels("train")))
    view = loader.View(dataset, "train", rows)
    images = trainer.source.validation_reader(view)(rows)["image"]
    wanted = there.model.apply(there.variables, images)
    found = trainer.model.apply({"params": state.params}, images)
    np.testing.assert_allclose(found["logits"], wanted["logits"], atol=2e-4)
    slope, offset = (float(there.variables["params"][name]) for name in ("slope", "offset"))
    ridge_used = json.loads((linear_run / "metrics.jsonl").read_text().splitlines()[0])["train/ridge"]
    features, labels = np.asarray(found["pooled"], np.float64), dataset.labels("train")
    factor = 1 / np.sqrt(2 * features.var(0).sum())  # a mean squared distance of 1
    known = np.where(labels >= 0, labels, np.nan)
    filled = np.where(labels >= 0, labels, np.nanmean(known, 0))  # unknown labels say what the frequency says
    model = Ridge(alpha=ridge_used).fit(features * factor, filled)
    logits = slope * model.predict(features * factor) + offset
    np.testing.assert_allclose(found["logits"], logits, atol=2e-3)
    np.testing.assert_array_equal(state.ema["classifier/kernel"], state.params["classifier"]["kernel"])


def test_a_classifier_cannot_start_from_another_kernel_or_pooling(linear_run, ridge_run, data_dir, tmp_path):
    def start(folder, **more):
        config = tiny_config(data_dir, start_from=str(folder), **more)
        loop.Trainer(config, str(tmp_path / "run")).initial_state()

    with pytest.raises(UserError, match=r"config\.start_from: .* train it with config\.model\.kernel='linear'"):
        start(ridge_run, **{"model.pool": "avg"})
    with pytest.raises(UserError, match=r"config\.start_from: .* another config\.model\.pool"):
        start(linear_run, **{"model.pool": "max"})
