"""`jaxmlic sweep --vmap`: runs trained in one program are the runs trained alone."""

import json
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import table_of, tiny_config

from jaxmlic import config as config_lib
from jaxmlic import distributed
from jaxmlic.cli import main as cli
from jaxmlic.config import Entry
from jaxmlic.data import datasets
from jaxmlic.experiments import runs, sweep
from jaxmlic.experiments.stacked import fit, lanes, numbers
from jaxmlic.models import trunks
from jaxmlic.models.layers.norm import Dropout
from jaxmlic.models.trunks import pretrained
from jaxmlic.training import checkpoint, restore
from jaxmlic.training.logs import metrics_log

ASYMMETRIC = {"loss.name": "asymmetric", "optim.name": "sgd", "optim.lr": 0.3}
ENTRIES = [
    ("rate", {"optim.lr": 0.02, "optim.schedule": "constant"}),
    ("warmup", {"optim.warmup": "25%"}),
    ("dropout", {"model.dropout": 0.4}),
    ("decay", {"optim.weight_decay": 0.2, "optim.momentum": 0.8}),
    ("noise", {"data.noise_rate": 0.4, "data.noise_seed": 3}),
    ("broken", {"optim.lr": 1e38}),
    ("gamma2", ASYMMETRIC | {"loss.options": (("gamma_neg", 2), ("clip", 0.1))}),
    ("gamma3", ASYMMETRIC | {"loss.options": (("gamma_neg", 3.5), ("clip", 0.0)), "optim.momentum": 0.5}),
    ("refused", ASYMMETRIC | {"loss.options": (("gamma_neg", -1.0), ("clip", 0.0))}),
    ("alone", {"model.pool": "max"}),
]
FILE = """
from jaxmlic import config
from jaxmlic.configs import quickstart
def get_config(arg=None):
    return config.override(quickstart.get_config(), {values!r})
def sweep():
    return {entries!r}
"""


@pytest.fixture(scope="module")
def values(data_dir, tmp_path_factory):
    """Fields of a run on vectors from a file, in which a label's own direction stands out of noise."""
    path = tmp_path_factory.mktemp("vectors") / "f.npz"
    dataset, rng = datasets.load("tiny", data_dir), np.random.default_rng(0)
    ids, labels = (np.concatenate([of(split) for split in ("train", "test")]) for of in (dataset.ids, dataset.labels))
    directions, noise = rng.normal(size=(3, 12)), rng.normal(size=(len(ids), 12))
    np.savez(path, features=(np.maximum(labels, 0) @ directions + noise).astype(np.float32), ids=ids)
    plain = {"data.source": "file", "data.features_file": str(path), "model.pool": "avg", "optim.schedule": "cosine"}
    flat = config_lib.flatten(tiny_config(data_dir, **plain))
    return {key: value for key, value in flat.items() if not isinstance(value, list)}


@pytest.fixture(scope="module")
def swept(values, tmp_path_factory):
    """(the folder, the experiment, the exit status) of a sweep with `--vmap` and two seeds."""
    folder = tmp_path_factory.mktemp("stacked")
    (folder / "x.py").write_text(FILE.format(values=values, entries=ENTRIES))
    status = cli.run(["sweep", f"--config={folder / 'x.py'}", f"--workdir={folder / 'runs'}", "--vmap", "--seeds=2"])
    return folder / "runs", folder / "x.py", status


def assert_same_run(ours, alone, tolerance=1e-6):
    """Parameters, step, log, result, test scores and files of two run folders."""
    found, expected = restore.restore(ours), restore.restore(alone)
    assert found.step == expected.step
    for a, b in zip(jax.tree.leaves(found.variables), jax.tree.leaves(expected.variables), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
    rows = metrics_log.read(ours), metrics_log.read(alone)
    assert len(rows[0]) == len(rows[1]) > 4
    results = [json.loads((path / "result.json").read_text()) for path in (ours, alone)]
    for row, other in [*zip(*rows, strict=True), results]:
        assert list(row) == list(other)
        for key, value in other.items():
            if key != "img_per_s" and not key.startswith("goodput/"):  # times
                assert row[key] == (pytest.approx(value, rel=1e-5, abs=1e-6) if isinstance(value, float) else value)
    scores = [np.load(path / "scores" / "test.npz") for path in (ours, alone)]
    np.testing.assert_allclose(scores[0]["scores"], scores[1]["scores"], rtol=1e-5, atol=1e-5)
    assert scores[0]["ids"].tolist() == scores[1]["ids"].tolist()
    configs = [json.loads((path / "config.json").read_text()) for path in (ours, alone)]
    assert configs[0]["config"] == configs[1]["config"] and configs[0]["fingerprint"] == configs[1]["fingerprint"]

    def files(folder):
        """Without checkpoints, of which a run alone may keep an older one, and the log of TensorBoard's own name."""
        names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        names.discard("learning_curves.png")  # not drawn for a run of a test alone (conftest)
        return {name for name in names if not name.startswith(("checkpoints", "tensorboard"))}

    assert files(ours) == files(alone)
    assert [checkpoint.Checkpoints(path, read_only=True).latest() for path in (ours, alone)] == [16, 16]


@pytest.mark.parametrize(
    ("name", "seed"),
    [
        ("rate", 0),
        ("warmup", 1),
        ("dropout", 1),
        ("decay", 0),
        ("noise", 1),
        ("gamma2", 0),
        ("gamma3", 1),
    ],
)
def test_a_run_trained_with_others_equals_the_run_alone(swept, tmp_path, name, seed):
    workdir, experiment, _ = swept
    config = config_lib.load(str(experiment), [f"--config.seed={seed}"])
    runs.run_one(sweep.config_of(str(experiment), config, Entry(name, dict(ENTRIES)[name]), ()), tmp_path / "alone")
    assert_same_run(workdir / name / f"seed{seed}", tmp_path / "alone")


def test_a_run_that_fails_has_its_reason_and_the_others_go_on(swept):
    workdir, _, status = swept
    assert status == 2
    rows = {row["entry"]: row for row in table_of(workdir / "runs.csv") if row["seed"] == "1"}
    assert rows.keys() == dict(ENTRIES).keys()
    assert "training stopped: at step" in rows["broken"]["failed"] and rows["broken"]["mAP"] == ""
    assert "gamma_neg = -1.0 is not 0 or more" in rows["refused"]["failed"]
    assert [name for name, row in rows.items() if row["failed"]] == ["broken", "refused"]
    assert all(float(row["mAP"]) > 0 for row in rows.values() if not row["failed"])
    for name in ("broken", "refused"):
        folder = workdir / name / "seed0"
        assert not (folder / "result.json").exists() and (folder / "config.json").exists()
    page = (workdir / "sweep.html").read_text()
    assert "training stopped: at step" in page and "noise/seed0" in page and "http" not in page


def test_afterwards_a_run_evaluates_as_any_other(swept):
    workdir, *_ = swept
    scores = workdir / "dropout" / "seed0" / "scores" / "test.npz"
    before = np.load(scores)["scores"]
    assert cli.run(["evaluate", f"--workdir={workdir / 'dropout' / 'seed0'}"]) == 0
    np.testing.assert_allclose(np.load(scores)["scores"], before, rtol=1e-5, atol=1e-5)


def test_complete_runs_are_left_and_failed_ones_tried_again(swept, monkeypatch):
    workdir, experiment, _ = swept
    trained = []
    monkeypatch.setattr(runs, "run_one", lambda config, folder, *_: trained.append(folder.parent.name) or (None, 2))
    sweep.run(str(experiment), workdir, seeds=2, only=["rate", "broken"])
    assert trained == ["broken"]  # and the second one not, since a signal stopped the first


def opened(values, folder, entries, mesh):
    base = config_lib.override(config_lib.load("quickstart"), values)
    return [
        lanes.open_lane(name, config_lib.override(base, fields), Path(folder) / name, name, mesh)[0]
        for name, fields in entries
    ]


@pytest.fixture
def mesh():
    return jax.make_mesh((1,), ("data",), devices=jax.devices()[:1], axis_types=(jax.sharding.AxisType.Auto,))


def test_runs_that_differ_in_more_than_numbers_are_divided(values, tmp_path, mesh):
    """By structure; by numbers that a rule reads (`beta2`, an option that is compared); by the number of steps."""
    entries = [
        ("a", {}),
        ("b", {"optim.lr": 0.5, "optim.milestones": (), "optim.groups": ((".*", 0.5),)}),
        ("c", {"optim.beta2": 0.99}),
        ("d", {"optim.ema": 0.9}),
        ("e", {"train.duration": "8 steps"}),
        ("f", {"loss.name": "rmlc", "loss.options": (("s", -0.5), ("k", 2.0), ("leak", 0.1))}),
        ("g", {"loss.name": "rmlc", "loss.options": (("s", -0.6), ("k", 3.0), ("leak", 0.1))}),
        ("h", {"loss.name": "rmlc", "loss.options": (("s", -0.5), ("k", 2.0), ("leak", 0.2))}),
        ("i", {"loss.name": "rmlc", "loss.options": (("s", None), ("k", 2.0), ("leak", 0.0))}),
    ]
    found = opened(values, tmp_path, entries, mesh)
    groups = numbers.divide(found)
    assert ["".join(lane.title for lane in group) for group in groups] == ["ab", "c", "d", "e", "fg", "h", "i"]
    for lane in found:
        lane.close()


def test_a_stopped_group_continues_to_the_same_bits(values, tmp_path, mesh, monkeypatch):
    entries = [("a", {}), ("b", {"seed": 2, "optim.lr": 0.05})]

    def train(folder):
        found = opened(values, folder, entries, mesh)
        group = fit.Group(found, print)
        stopped = group.fit()
        for lane in found:
            lane.close()
        return stopped

    assert train(tmp_path / "whole") is None

    asked = iter(range(1000))  # once before the first step, then after each

    def now(stop):
        stop.signal = 15 if next(asked) == 9 else None
        return stop.signal is not None

    with monkeypatch.context() as patch:
        patch.setattr(distributed.Stop, "now", now)
        assert train(tmp_path / "parts") == 15
    assert not (tmp_path / "parts" / "a" / "result.json").exists()
    assert train(tmp_path / "parts") is None
    for name, _ in entries:
        ours, theirs = (restore.restore(tmp_path / folder / name) for folder in ("parts", "whole"))
        assert ours.step == theirs.step
        for a, b in zip(jax.tree.leaves(ours.variables), jax.tree.leaves(theirs.variables), strict=True):
            np.testing.assert_array_equal(a, b)
        rows = [metrics_log.read(tmp_path / folder / name) for folder in ("parts", "whole")]
        assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]


def test_features_of_a_frozen_trunk(data_dir, tmp_path, monkeypatch):
    """Views are drawn with each run's key; the trunk is one array for all, and in every checkpoint."""
    (tmp_path / "w.npz").write_bytes(b"stands for weights")
    module, fields = trunks.get("small_cnn")
    init = jax.jit(lambda: module.Trunk(**fields).init(jax.random.key(1), jnp.zeros((1, 16, 16, 3)), False))
    monkeypatch.setattr(pretrained, "load", lambda path, trunk: init())
    plain = {"data.resize": 0, "augment.crop_area": (1.0, 1.0), "model.pool": "avg", "data.source": "features"}
    frozen = {"optim.groups": (("trunk/.*", None), (".*", 1.0)), "pretrained": str(tmp_path / "w.npz")}
    base = tiny_config(data_dir, **(plain | frozen), **{"data.cache": True})
    runs.store_features(base)
    entries = [("a", {"optim.lr": 0.05}), ("b", {"model.dropout": 0.5})]
    (tmp_path / "x.py").write_text(
        "from jaxmlic.config import from_dict\n"
        f"def get_config(arg=None):\n    return from_dict({base.to_dict()!r})\ndef sweep():\n    return {entries!r}\n"
    )
    argv = ["sweep", f"--config={tmp_path / 'x.py'}", f"--workdir={tmp_path / 'runs'}", "--vmap", "--seeds=2"]
    assert cli.run(argv) == 0
    runs.run_one(config_lib.override(base, entries[1][1] | {"seed": 1}), tmp_path / "alone")
    assert_same_run(tmp_path / "runs" / "b" / "seed1", tmp_path / "alone")


def test_dropout_of_a_traced_rate():
    x, rngs = jnp.arange(1.0, 41.0).reshape(4, 10), {"dropout": jax.random.key(3)}

    @jax.jit
    def drop(rate, x):
        return Dropout(rate, deterministic=False).apply({}, x, rngs=rngs)

    for rate in (0.0, 0.3, 1.0):
        expected = nn.Dropout(rate, deterministic=False).apply({}, x, rngs=rngs)
        np.testing.assert_array_equal(Dropout(rate, deterministic=False).apply({}, x, rngs=rngs), expected)
        np.testing.assert_allclose(drop(rate, x), expected, rtol=1e-6)
        assert np.isfinite(jax.grad(lambda x, rate=rate: drop(rate, x).sum())(x)).all()
    assert (Dropout(0.3).apply({}, x, deterministic=True) == x).all()


def test_mistakes(values, tmp_path, capsys):
    images = {"data.source": "images", "data.features_file": ""}
    (tmp_path / "x.py").write_text(FILE.format(values=values | images, entries=[("a", {}), ("b", {"optim.lr": 0.1})]))
    command = ["sweep", f"--config={tmp_path / 'x.py'}", f"--workdir={tmp_path / 'runs'}"]
    assert cli.run([*command, "--vmap"]) == 2
    assert "--vmap trains heads on stored features, and no entry reads any" in capsys.readouterr().err
    assert cli.run([*command, "--vmap=0"]) == 2
    assert "--vmap=0: at least 1" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
