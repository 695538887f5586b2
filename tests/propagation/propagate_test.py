"""Pseudo-labels from a run's or a frozen trunk's features, as a file, and training in rounds on such files."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import COLOURS, tiny_config

from jaxmlic import losses, propagation, run
from jaxmlic.cli import main as cli
from jaxmlic.data import datasets, loader
from jaxmlic.errors import UserError
from jaxmlic.experiments import pseudo_labels, runs, self_training
from jaxmlic.inputs.images import ImageReader
from jaxmlic.models import trunks
from jaxmlic.models.heads import contract
from jaxmlic.models.trunks import pretrained
from jaxmlic.propagation import label_file
from jaxmlic.propagation.method import DECISIONS, METHODS, Method
from jaxmlic.training import loop, run_folder

FROZEN = {"optim.groups": (("trunk/.*", None), (".*", 1.0)), "model.pool": "avg"}  # half the compiling


@pytest.fixture(scope="module")
def own_dir(data_dir, tmp_path_factory):
    """A copy of the tiny data set with the named split `few`: 18 labelled images, 54 without."""
    folder = tmp_path_factory.mktemp("own")
    shutil.copytree(data_dir / "tiny", folder / "tiny", ignore=shutil.ignore_patterns("features"))
    dataset = datasets.load("tiny", folder)
    parts = {"labelled": np.arange(0, 72, 4), "unlabelled": np.setdiff1d(np.arange(72), np.arange(0, 72, 4))}
    datasets.write_named_split(dataset, "few", {name: dataset.rows("train")[rows] for name, rows in parts.items()}, {})
    return folder


@pytest.fixture(scope="module")
def file(finished_run, own_dir, tmp_path_factory):
    """Labels that `jaxmlic propagate` wrote from a run, by the command."""
    out = tmp_path_factory.mktemp("labels") / "labels.npz"
    argv = ["propagate", f"--workdir={finished_run}", "--labelled=few/labelled", "--k=5", f"--out={out}"]
    assert cli.run([*argv, f"--data-dir={own_dir}"]) == 0
    return out


def test_the_file_is_the_propagation_of_the_runs_features(file, finished_run, own_dir):
    found = label_file.load(file)
    dataset = datasets.load("tiny", own_dir)
    view = loader.select(tiny_config(own_dir).data, dataset, "train")
    values, source = pseudo_labels.image_features(tiny_config(own_dir), view, run.load(finished_run))
    assert values.shape == (72, 192) and values.dtype == np.float32 and f"{finished_run} at step" in source
    known = np.isin(np.arange(72), np.arange(0, 72, 4))
    labels = np.where(known[:, None], dataset.labels("train"), -1).astype(np.int8)
    graph = propagation.heat_kernel_graph(*propagation.knn(values, 5, "euclidean"))
    expected = propagation.improved_label_propagation(graph, labels)
    for ours, theirs in ((found.labels, expected.labels), (found.scores, expected.scores), (found.known, known)):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(found.weights, expected.weights)
    np.testing.assert_array_equal(found.ids, dataset.ids("train"))
    assert found.class_names == list(COLOURS) and found.info["k"] == 5 and found.info["method"] == "improved"
    numbers = json.loads(file.with_suffix(".json").read_text())
    assert numbers["labelled_images"] == 18 and numbers["images"] == 72 and 0 < numbers["mAP"] <= 1


def test_methods_and_class_weights():
    rng = np.random.default_rng(0)
    centres = np.repeat(np.eye(3), (10, 20, 5), axis=0)
    values = (centres + 0.05 * rng.standard_normal(centres.shape)).astype(np.float32)
    labels = np.full((35, 3), -1, np.int8)
    labels[[0, 10, 30]] = np.eye(3, dtype=np.int8)
    for name in METHODS:
        with pytest.raises(UserError, match="--k=35: each of 35 images has 34 others"):
            Method(name, k=35, single_label=True)(values, labels)
        found = Method(name, k=4, single_label=True)(values, labels)
        np.testing.assert_array_equal(found.labels, centres)
        assert pseudo_labels.quality(found, centres.astype(np.int8), labels[:, 0] != -1, True)["error"] == 0
        weighted = Method(name, k=4, single_label=True, class_weights=True)(values, labels)
        ratio = weighted.weights / found.weights
        np.testing.assert_allclose(ratio, (35 / 3 / np.array([10, 20, 5]))[centres.argmax(1)], rtol=1e-5)


def test_balance_is_that_of_diffusion():
    rng = np.random.default_rng(0)
    values, labels = rng.standard_normal((60, 4)).astype(np.float32), np.full((60, 2), -1, np.int8)
    labels[:5], labels[5] = [1, 0], [0, 1]
    graph = propagation.cosine_graph(*propagation.knn(values, 6))
    scores = []
    for balance in (False, True):
        found = Method("diffusion", k=6, single_label=True, balance=balance)(values, labels)
        expected = propagation.diffusion(graph, labels, multi_label=False, balance=balance)
        np.testing.assert_array_equal(found.scores, expected.scores)
        scores.append(found.scores[6:, 1].mean())
    assert scores[1] > 1.5 * scores[0]  # the second class has one labelled image of six


def test_deciding_by_frequency():
    rng = np.random.default_rng(1)
    values, labels = rng.standard_normal((80, 4)), np.full((80, 3), -1, np.int8)
    labels[:20] = rng.random((20, 3)) < [0.5, 0.2, 0.05]
    labels[0] = 1
    found = {decide: Method("diffusion", k=10, decide=decide)(values, labels) for decide in DECISIONS}
    np.testing.assert_array_equal(found["half"].scores, found["frequency"].scores)
    expected = np.round((labels[:20] == 1).mean(0) * 60)
    np.testing.assert_array_equal((found["frequency"].labels[20:] == 1).sum(0), expected)
    assert ((found["half"].labels[20:] == 1).sum(0) != expected).any()
    truth = (rng.random((80, 3)) < 0.4).astype(np.int8)
    for one in found.values():  # of the labels given, by counting
        numbers = pseudo_labels.quality(one, truth, np.arange(80) < 20, False)
        given, true = one.labels[20:] == 1, truth[20:] == 1
        assert numbers["OP"] == pytest.approx((given & true).sum() / max(given.sum(), 1))
        assert numbers["OR"] == pytest.approx((given & true).sum() / true.sum())


def test_nothing_found_is_said(own_dir, tmp_path, monkeypatch):
    config = tiny_config(own_dir, **FROZEN)
    labels = np.where(np.arange(72)[:, None] < 18, 0, np.full((72, 3), -1)).astype(np.int8)
    labels[0] = 1
    found = propagation.PseudoLabels(np.maximum(labels, 0), np.zeros((72, 3), np.float32), np.ones(72, np.float32), 1)
    monkeypatch.setattr(Method, "__call__", lambda self, values, labels: found)
    monkeypatch.setattr(pseudo_labels, "image_features", lambda *_: (np.zeros((72, 2), np.float32), "nothing"))
    monkeypatch.setattr(pseudo_labels, "known_labels", lambda *_: (labels, np.arange(72) < 18))
    _, lines = pseudo_labels.propagate(config, Method(), labelled="few/labelled", out=str(tmp_path / "x.npz"))
    assert "no image got a label: no score reaches 0.5; --decide=frequency" in lines[0]


def test_training_takes_labels_and_weights_and_keeps_them(file, own_dir, tmp_path):
    stored = label_file.load(file)
    out = dataclasses.replace(stored, weights=np.where(np.arange(72) == 5, 0, stored.weights))
    path = tmp_path / "labels.npz"
    label_file.save(path, out)
    values = {"data.val_fraction": 0.0, "data.pseudo_labels": str(path), "train.duration": "4 steps"}
    config = tiny_config(own_dir, **FROZEN, **values)
    workdir = tmp_path / "run"
    trainer = loop.Trainer(config, str(workdir))
    rows = np.setdiff1d(np.flatnonzero((stored.labels != -1).any(1)), [5])
    np.testing.assert_array_equal(trainer.train_view.labels, stored.labels[rows])
    np.testing.assert_array_equal(trainer.train_view.ids, stored.ids[rows])
    batch = trainer.readers()[0](np.arange(4))
    np.testing.assert_array_equal(batch["weight"], stored.weights[rows[:4]])
    assert trainer.fit().finished
    # The run goes on without the file, and not with another one under its name.
    path.rename(tmp_path / "elsewhere.npz")
    numbers = runs.evaluate(str(workdir))
    assert np.isfinite(numbers["mAP"])
    assert loop.run(config, str(workdir)).finished
    label_file.save(path, dataclasses.replace(stored, labels=1 - np.maximum(stored.labels, 0)))
    with pytest.raises(UserError, match="other examples or labels"):
        loop.run(config, str(workdir))


def test_unknown_labels_and_weights_from_scores_reach_training(finished_run, own_dir, tmp_path):
    """By the command: labels of the band are -1 in the file, the weights the labels' scores, and no loss of either."""
    out = tmp_path / "soft.npz"
    argv = ["propagate", f"--workdir={finished_run}", "--labelled=few/labelled", f"--out={out}", "--method=soft"]
    more = ["--k=8", "--unknown-band=0.2,0.6", "--weights=scores", "--max-steps=30", f"--data-dir={own_dir}"]
    assert cli.run([*argv, *more]) == 0
    found = label_file.load(out)
    stored, hidden = datasets.load("tiny", own_dir).labels("train"), ~found.known
    scores = found.scores[hidden]
    doubtful = (scores >= 0.2) & (scores < 0.6)
    assert doubtful.any() and not doubtful.all()
    np.testing.assert_array_equal(found.labels[hidden], np.where(doubtful, -1, scores >= 0.5))
    certain = found.known[:, None] & (stored != -1)  # the unknown values of labelled images are filled in, too
    np.testing.assert_array_equal(found.labels[certain], stored[certain])
    likely = np.where(scores >= 0.5, scores, 1 - scores)
    np.testing.assert_allclose(found.weights[hidden], likely.mean(1), atol=1e-6)
    assert found.info["unknown_band"] == [0.2, 0.6] and found.info["weights"] == "scores"
    assert found.info["max_steps"] == 30
    assert json.loads(out.with_suffix(".json").read_text())["unknown"] == pytest.approx(doubtful.mean())
    values = {"data.val_fraction": 0.0, "data.pseudo_labels": str(out), "train.duration": "4 steps"}
    trainer = loop.Trainer(tiny_config(own_dir, **FROZEN, **values), str(tmp_path / "run"))
    kept = (found.labels != -1).any(1)
    np.testing.assert_array_equal(trainer.train_view.labels, found.labels[kept])
    assert (trainer.train_view.labels == -1).any() and trainer.fit().finished
    # A label that is unknown gives no gradient.
    labels, logits = jnp.asarray(found.labels[kept][:8]), jnp.full((8, 3), 0.3)
    slope = jax.grad(lambda z: losses.binary_cross_entropy(z, labels).sum())(logits)
    np.testing.assert_array_equal(np.asarray(slope) == 0, np.asarray(labels) == -1)


def test_options_of_the_method_reach_the_functions():
    rng = np.random.default_rng(0)
    values, labels = rng.standard_normal((60, 4)).astype(np.float32), np.full((60, 2), -1, np.int8)
    labels[::6] = rng.random((10, 2)) < 0.5
    labels[0] = 1
    near = propagation.knn(values, 6, "euclidean")
    for name in METHODS:
        limited = Method(name, k=6, max_steps=2)(values, labels)
        assert limited.num_rounds == 2
        weighed = Method(name, k=6, weights="one")(values, labels)
        np.testing.assert_array_equal(weighed.weights, (weighed.labels != -1).mean(1))
    soft = Method("soft", k=6)(values, labels)
    expected = propagation.soft_label_propagation(propagation.heat_kernel_graph(*near), labels)
    np.testing.assert_array_equal(soft.scores, expected.scores)


def test_mistakes_in_files(file, own_dir, tmp_path):
    view = loader.select(tiny_config(own_dir).data, datasets.load("tiny", own_dir), "train")
    stored = label_file.load(file)
    cases = [
        ({"class_names": ["red", "green", "grey"]}, "class"),
        (
            {"ids": np.char.add(stored.ids, "x")},
            r"no labels for 72 of 72 images of split 'train'.*made for split 'train'",
        ),
        ({"labels": np.full_like(stored.labels, -1)}, "no image of .* has a label of any weight"),
        ({"ids": stored.ids[:5]}, "damaged, 5 ids"),
    ]
    for change, message in cases:
        label_file.save(tmp_path / "bad.npz", dataclasses.replace(stored, **change))
        with pytest.raises(UserError, match=message):
            label_file.attach(view, tmp_path / "bad.npz")
    (tmp_path / "bad.npz").write_bytes(b"no zip")
    for name in ("bad.npz", "none.npz"):
        with pytest.raises(UserError, match=rf"{name}: .*file of pseudo-labels.*`jaxmlic propagate` makes one"):
            label_file.attach(view, tmp_path / name)
    order = np.random.default_rng(0).permutation(72)  # the order of a file does not matter
    shuffled = {name: getattr(stored, name)[order] for name in ("ids", "labels", "weights", "scores", "known")}
    label_file.save(tmp_path / "shuffled.npz", dataclasses.replace(stored, **shuffled))
    np.testing.assert_array_equal(
        label_file.attach(view, tmp_path / "shuffled.npz").labels, label_file.attach(view, file).labels
    )
    with pytest.raises(UserError, match=r"config\.data\.val_fraction would measure"):
        loop.Trainer(tiny_config(own_dir, **{"data.pseudo_labels": str(file)}), str(tmp_path / "run"))


def test_mistakes_in_options(finished_run, own_dir, tmp_path, capsys):
    cases = [
        (["--config=quickstart", "--labelled=a/b"], "give --workdir=RUN or --config=FILE"),
        (
            ["--labelled=a/b", "--method=difusion"],
            "--method = 'difusion' is unknown (did you mean 'diffusion'?); known: improved, soft, diffusion",
        ),
        (["--labelled=a/b", "--class-weights"], "--class-weights goes with --single-label"),
        (["--labelled=a/b", "--k=-1"], "--k=-1"),
        (["--labelled=a/b", "--alpha=0.5"], "--alpha goes with --method=diffusion"),
        (["--labelled=a/b", "--method=diffusion", "--alpha=1"], "--alpha=1.0: from 0 to 1"),
        (
            ["--labelled=a/b", "--neighbours=aproximate"],
            "--neighbours = 'aproximate' is unknown (did you mean 'approximate'?); known: exact, approximate",
        ),
        (
            ["--labelled=a/b", "--decide=frequencies"],
            "--decide = 'frequencies' is unknown (did you mean 'frequency'?); known: half, frequency",
        ),
        (["--labelled=a/b", "--decide=frequency", "--single-label"], "--decide=frequency goes with many labels"),
        (
            ["--labelled=a/b", "--balance", "--single-label"],
            "--balance goes with --method=diffusion and --single-label",
        ),
        (["--labelled=a/b", "--balance", "--method=diffusion"], "--balance goes with --method=diffusion and"),
        (["--labelled=a/b", "--max-steps=-1"], "--max-steps=-1: at least 1"),
        (["--labelled=a/b", "--unknown-band=0.5,0.3"], "--unknown-band=0.5,0.3: two scores LOW,HIGH from 0 to 1"),
        (["--labelled=a/b", "--unknown-band=0.5"], "--unknown-band=0.5: two scores LOW,HIGH"),
        (["--labelled=a/b", "--unknown-band=low,high"], "--unknown-band=low,high: two numbers LOW,HIGH"),
        (["--labelled=a/b", "--weights=score"], "--weights = 'score' is unknown (did you mean 'scores'?)"),
        (["--labelled=a/b", "--config.seed=1"], "--config.seed=1 means nothing with --workdir"),
    ]
    for argv, message in cases:
        assert cli.run(["propagate", f"--workdir={finished_run}", "--out=x.npz", *argv]) == 2
        assert message in capsys.readouterr().err
    config = tiny_config(own_dir)
    for labelled, message in (("test", "29 of its 29 images are not in"), ("train", "no image is left to be labelled")):
        with pytest.raises(UserError, match=message):
            pseudo_labels.propagate(config, Method(), labelled=labelled, out=str(tmp_path / "x.npz"))


@pytest.mark.parametrize("store", ["pooled", "stages"])
def test_features_of_a_frozen_trunk(own_dir, tmp_path, monkeypatch, store):
    """From the cache, and equal to what the trunk gives."""

    def load(path, trunk):
        module, fields = trunks.get(trunk)
        return jax.jit(lambda: module.Trunk(**fields).init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)), False))()

    monkeypatch.setattr(pretrained, "load", load)
    # The stages of any trunk will do; a linear head reads none.
    monkeypatch.setattr(contract.Reads, "check_store", lambda self, store: None)
    (tmp_path / "weights").write_bytes(b"weights")
    values = FROZEN | {"pretrained": str(tmp_path / "weights")}
    values |= {"features.store": store, "data.resize": 0, "augment.crop_area": (1.0, 1.0), "data.train_split": "train"}
    config = tiny_config(own_dir, **values)
    runs.store_features(config)
    view = loader.select(config.data, datasets.load("tiny", own_dir), "train")
    found, source = pseudo_labels.image_features(config, view, None)
    module, fields = trunks.get("small_cnn")
    images = ImageReader(view, 16)(np.arange(72))["image"]
    forward = jax.jit(lambda v, x: module.Trunk(**fields).apply(v, module.preprocess(x), False)[0])
    np.testing.assert_allclose(found, forward(load("", "small_cnn"), images).mean((1, 2)), rtol=2e-3, atol=2e-3)
    assert source == "small_cnn, frozen"
    pseudo_labels.propagate(config, Method("diffusion"), labelled="few/labelled", out=str(tmp_path / "labels.npz"))
    assert label_file.load(tmp_path / "labels.npz").info["k"] == 50


def test_rounds(own_dir, tmp_path):
    """Two runs and a file between them; again, nothing is done; with another method, nothing is mixed."""
    config = tiny_config(own_dir, **FROZEN, **{"data.val_fraction": 0.0, "train.duration": "4 steps"})
    workdir, method = tmp_path / "rounds", Method("improved", 5)
    assert self_training.run(config, str(workdir), method, labelled="few/labelled") == 0
    first, second = (run_folder.load(workdir / f"round{i}") for i in (0, 1))
    assert first.num_train == 18 and first.config.data.train_split == "few/labelled"
    file = label_file.load(workdir / "labels1.npz")
    assert second.num_train == ((file.labels != -1).any(1) & (file.weights > 0)).sum() > 18
    assert second.config.start_from == str(workdir / "round0") and (workdir / "sweep.csv").exists()
    before = (workdir / "labels1.npz").stat().st_mtime_ns
    lines = []
    assert self_training.run(config, str(workdir), method, labelled="few/labelled", report=lines.append) == 0
    text = "\n".join(lines)
    assert "round1" in text and "step" not in text and (workdir / "labels1.npz").stat().st_mtime_ns == before
    with pytest.raises(UserError, match=r"labels1\.npz was made in another way \(k: 5 there, 7 now\)"):
        self_training.run(config, str(workdir), Method("improved", 7), labelled="few/labelled")
    with pytest.raises(UserError, match="--rounds=0"):
        self_training.run(config, str(workdir), method, labelled="few/labelled", rounds=0)
