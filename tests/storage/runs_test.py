"""Runs, data sets, weights and score files in buckets, against emulators of S3 and Google Cloud Storage."""

import contextlib
import dataclasses
import json
import os
import shutil

import buckets
import grain
import jax
import numpy as np
import pytest
from conftest import tiny_config

import jaxmlic
from jaxmlic import storage
from jaxmlic.cli import main as cli
from jaxmlic.data import datasets
from jaxmlic.evaluation import score_file
from jaxmlic.inputs import feature_file
from jaxmlic.models.weights.weight_files import read_state
from jaxmlic.propagation import label_file
from jaxmlic.training import loop, run_states
from jaxmlic.training.checkpoint import Checkpoints
from jaxmlic.training.logs import metrics_log


class Crash(Exception):
    pass


@dataclasses.dataclass
class Bucket:
    url: str
    run: str
    folder: object


@pytest.fixture(scope="module", params=["s3", "gs"])
def bucket(request, data_dir, tmp_path_factory):
    """A bucket with the data set `tiny` and a run that crashed after step 8, where it was saved, and went on."""
    folder = tmp_path_factory.mktemp(request.param)
    before = os.getcwd()
    os.chdir(folder)  # a path taken for a local one would make a folder here
    try:
        with getattr(buckets, f"{request.param}_bucket")(str(folder / "cache")) as url:
            storage.send_folder(data_dir, f"{url}/data")
            config = tiny_config(f"{url}/data")
            trainer = loop.Trainer(config, f"{url}/runs/tiny")
            jitted = trainer.train_step

            def step(state, batch):
                if int(state.step) == 11:
                    raise Crash
                return jitted(state, batch)

            trainer.train_step = step
            with pytest.raises(Crash):
                trainer.fit()
            trainer.train_step = jitted
            assert trainer.fit() == loop.Outcome(16, True)
            yield Bucket(url, f"{url}/runs/tiny", folder)
            assert sorted(os.listdir(folder)) == ["cache"]
    finally:
        os.chdir(before)


def test_a_crashed_run_goes_on_and_equals_a_local_one(bucket, finished_run):
    here, there = jaxmlic.load(finished_run), jaxmlic.load(bucket.run)
    jax.tree.map(np.testing.assert_array_equal, here._restored.variables, there._restored.variables)
    rows = [
        [
            {k: v for k, v in row.items() if k != "img_per_s" and not k.startswith("goodput/")}
            for row in metrics_log.read(workdir)
        ]
        for workdir in (finished_run, bucket.run)
    ]
    assert rows[0] == rows[1]
    assert storage.read_json(f"{bucket.run}/result.json") == json.loads((finished_run / "result.json").read_text())
    assert there.step == here.step and len(there.history()) == 8


def test_both_starts_left_their_tensorboard_events(bucket):
    assert len(list((storage.to_path(bucket.run) / "tensorboard").glob("events*"))) == 2


def files_of(folder):
    for path in folder.iterdir():  # epath's glob knows no "**"
        yield from files_of(path) if path.is_dir() else [path]


def test_what_replaces_a_damaged_checkpoint_gets_into_the_bucket(bucket):
    """As for one that gets its score later: the bucket has another of this step, under the same names."""
    folder = f"{bucket.url}/runs/damaged"
    values = [{"x": jax.numpy.full(8, float(number))} for number in range(4)]
    iterator = iter(grain.MapDataset.range(100).to_iter_dataset())

    def opened():
        return contextlib.closing(Checkpoints(folder))

    with opened() as checkpoints:
        checkpoints.save(1, values[1], iterator, {"mAP": 0.5})
        checkpoints.save(2, values[2], iterator)
    for path in files_of(storage.to_path(folder) / "checkpoints" / "2" / "state"):
        path.write_bytes(b"x" * path.stat().length)
    with opened() as checkpoints:
        step, state = checkpoints.restore_latest(values[0], iterator)
        assert (step, state["x"][0]) == (1, 1.0)
        checkpoints.save(2, values[3], iterator)
    with opened() as checkpoints:
        assert checkpoints.restore_latest(values[0], iterator)[1]["x"][0] == 3.0 and not checkpoints.has_score(2)
        checkpoints.save(2, values[3], iterator, {"mAP": 0.75})
    with opened() as checkpoints:
        assert checkpoints.has_score(2) and checkpoints.best() == 2 and checkpoints.restore(2, values[0])["x"][0] == 3.0


def test_a_complete_run_is_left_as_it_is(bucket, capsys):
    assert loop.run(tiny_config(f"{bucket.url}/data"), bucket.run) == loop.Outcome(16, True)
    assert "is complete" in capsys.readouterr().out


def test_runs_are_listed_there(bucket, capsys):
    """A bucket has no locks: what is not complete is stopped or running."""
    for name in ("config.json", "metrics.jsonl"):
        copy = storage.to_path(f"{bucket.url}/runs/begun/{name}")
        copy.write_text((storage.to_path(bucket.run) / name).read_text())
    assert cli.run(["runs", f"{bucket.url}/runs"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    begun, tiny = lines["begun"], lines["tiny"]  # other tests leave other folders there
    assert begun.split()[:5] == ["begun", "linear", "tiny", "unfinished", "0/16"]
    assert tiny.split()[:5] == ["tiny", "linear", "tiny", "finished", "16/16"] and "validation)" in tiny
    (one,) = run_states.find(bucket.run)
    assert (one.name, one.state, one.step) == (".", "finished", 16)
    assert cli.run(["runs", f"{bucket.url}/nowhere"]) == 2
    assert capsys.readouterr().err == f"jaxmlic: {bucket.url}/nowhere: nothing is there\n"


def test_another_config_in_the_run_folder_is_refused(bucket):
    with pytest.raises(jaxmlic.errors.UserError, match=r"optim\.lr: 0\.\d+ there, 0\.5 now"):
        loop.run(tiny_config(f"{bucket.url}/data", **{"optim.lr": 0.5}), bucket.run)


def test_evaluate_and_ensemble_write_and_read_score_files_there(bucket, finished_run, capsys):
    assert cli.run(["evaluate", f"--workdir={bucket.run}"]) == 0
    found = score_file.load(f"{bucket.run}/scores/test.npz")
    np.testing.assert_array_equal(found.scores, jaxmlic.load(finished_run).evaluate().scores.scores)
    other = dataclasses.replace(found, scores=found.scores + 1)
    score_file.save(f"{bucket.url}/other.npz", other)
    files = [f"{bucket.run}/scores/test.npz", f"{bucket.url}/other.npz"]
    assert cli.run(["ensemble", *files, f"--out={bucket.url}/fused.npz"]) == 0
    np.testing.assert_allclose(score_file.load(f"{bucket.url}/fused.npz").scores, found.scores + 0.5, atol=1e-5)
    names = {path.name for path in storage.to_path(bucket.url).glob("fused*")}
    assert names == {"fused.npz", *(f"fused.all_point.{kind}" for kind in ("json", "csv", "png"))}
    assert f"written: {bucket.url}/fused.npz" in capsys.readouterr().out


def test_predict_reads_photographs_and_writes_its_table_there(bucket, data_dir, capsys):
    record = datasets.load("tiny", data_dir).source("test")[0]
    photograph = storage.to_path(f"{bucket.url}/photographs/one.png")
    photograph.write_bytes(record["image"])
    assert cli.run(["predict", f"--workdir={bucket.run}", f"{bucket.url}/photographs"]) == 0
    assert "one.png" in capsys.readouterr().out
    written = storage.read_json(f"{bucket.run}/predictions.json")
    assert [one["file"] for one in written["images"]] == [f"{bucket.url}/photographs/one.png"]


def test_start_from_a_run_there(bucket, data_dir, tmp_path):
    config = tiny_config(data_dir, **{"start_from": bucket.run, "train.duration": "1 steps"})
    state = loop.Trainer(config, str(tmp_path)).initial_state()
    source = jaxmlic.load(bucket.run)._restored.variables["params"]
    jax.tree.map(np.testing.assert_array_equal, state.params, source)


def test_weights_features_and_pseudo_labels_are_read_there(bucket, data_dir):
    rng = np.random.default_rng(0)
    arrays = {"conv.weight": rng.random((2, 3)).astype(np.float32)}
    storage.save_npz(f"{bucket.url}/weights.npz", arrays)
    np.testing.assert_array_equal(read_state(f"{bucket.url}/weights.npz")["conv.weight"], arrays["conv.weight"])
    path = f"{bucket.url}/features.npz"
    for features in (rng.random((3, 4)), rng.random((3, 4))):  # a changed file is read anew
        storage.save_npz(path, {"features": features, "ids": np.array(list("abc"))})
        np.testing.assert_array_equal(feature_file.load(path)[0][:, 0, 0], features.astype(np.float32))
    dataset = datasets.load("tiny", data_dir)
    ids, labels = dataset.ids("train"), np.maximum(dataset.labels("train"), 0)
    weights, known = np.ones(len(ids), np.float32), np.ones(len(ids), bool)
    file = label_file.PseudoLabelFile(ids, labels, weights, labels * 1.0, known, list(dataset.class_names), {})
    label_file.save(f"{bucket.url}/labels.npz", file)
    every = np.concatenate([dataset.ids(split) for split in dataset.splits])
    storage.save_npz(path, {"features": rng.random((len(every), 4)), "ids": every})
    overrides = {
        "data.pseudo_labels": f"{bucket.url}/labels.npz",
        "data.source": "file",
        "data.features_file": path,
        "data.val_fraction": 0.0,
        "train.duration": "2 steps",
    }
    assert loop.run(tiny_config(data_dir, **overrides), f"{bucket.url}/runs/file").finished
    kept = label_file.load(f"{bucket.url}/runs/file/pseudo_labels.npz")
    np.testing.assert_array_equal(kept.labels, labels)
    assert jaxmlic.load(f"{bucket.url}/runs/file").evaluate().scores.scores.shape == (29, 3)


def test_a_missing_object_is_one_line(bucket, capsys):
    for argv, message in (
        (["evaluate", f"--workdir={bucket.url}/nothing"], f"{bucket.url}/nothing/config.json does not exist"),
        (["ensemble", f"{bucket.url}/a.npz", f"{bucket.url}/b.npz"], f"{bucket.url}/a.npz: no such score file"),
        (["data", "check", "tiny", f"--data-dir={bucket.url}"], f"no data set 'tiny' in {bucket.url}"),
    ):
        assert cli.run(argv) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(jaxmlic.errors.UserError, match=r"no such object in the bucket"):
        read_state(f"{bucket.url}/no.pth")


def test_a_data_set_is_copied_once_and_anew_when_it_changes(bucket, data_dir, monkeypatch):
    copied = []
    monkeypatch.setattr(storage.copies, "_fetch", _counting(storage.copies._fetch, copied))
    found, local = datasets.load("tiny", f"{bucket.url}/data"), datasets.load("tiny", data_dir)
    assert copied == []  # the run's training did it
    assert found.source("test")[3]["image"] == local.source("test")[3]["image"]
    np.testing.assert_array_equal(found.labels("train"), local.labels("train"))
    # Another preparation under the same name.
    path = storage.to_path(f"{bucket.url}/data/tiny/1.0.0/labels-test.npz")
    content = path.read_bytes()
    storage.save_npz(path, {"ids": local.ids("test"), "labels": 1 - np.maximum(local.labels("test"), 0)})
    changed = datasets.load("tiny", f"{bucket.url}/data")
    assert [name for name, fetched in copied if fetched] == ["labels-test.npz"]
    np.testing.assert_array_equal(changed.labels("test"), 1 - np.maximum(local.labels("test"), 0))
    path.write_bytes(content)
    # One cut short on the way here.
    shard = next(changed.path.glob("tiny-test*"))
    shard.write_bytes(shard.read_bytes()[:-1])
    copied.clear()
    assert datasets.load("tiny", f"{bucket.url}/data").source("test")[3]["id"] == local.source("test")[3]["id"]
    assert {name for name, _ in copied} == {shard.name, "labels-test.npz"}


def _counting(fetch, copied):
    def counted(path, local, version, **options):
        copied.append((path.name, True))
        return fetch(path, local, version, **options)

    return counted


def test_a_named_split_goes_into_the_bucket(bucket, capsys):
    argv = ["data", "split", "tiny", f"--data-dir={bucket.url}/data", "--folds=2", "--from=train", "--as=halves"]
    assert cli.run(argv) == 0, capsys.readouterr().err
    assert storage.to_path(f"{bucket.url}/data/tiny/1.0.0/splits/halves.npz").exists()
    shutil.rmtree(bucket.folder / "cache")  # another machine
    assert datasets.load("tiny", f"{bucket.url}/data").count("halves/test1") == 36


def test_what_is_stored_beside_a_data_set_is_there_on_another_machine(bucket):
    dataset = datasets.load("tiny", f"{bucket.url}/data")
    folder = dataset.path / "features" / "key"
    folder.mkdir(parents=True)
    for name, content in (("train.array_record", b"1"), ("manifest.json", b"{}")):
        (folder / name).write_bytes(content)
        dataset.publish(folder / name)
    shutil.rmtree(bucket.folder / "cache")
    again = datasets.load("tiny", f"{bucket.url}/data", records=False)
    assert not list(again.path.glob("*.array_record*")) and not (again.path / "features").exists()
    again.fetch(folder)
    assert (folder / "train.array_record").read_bytes() == b"1" and (folder / "manifest.json").exists()
    assert list(datasets.load("tiny", f"{bucket.url}/data").path.glob("*.array_record*"))
