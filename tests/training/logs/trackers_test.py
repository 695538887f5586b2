"""Weights & Biases and MLflow, offline."""

import json
import sys
import types

import pytest
from conftest import tiny_config

from jaxmlic.cli import main as cli
from jaxmlic.errors import UserError
from jaxmlic.training.logs import metrics_log, trackers


@pytest.fixture
def fakes(monkeypatch):
    """Stand-ins that record what they are told, for where the packages are not installed."""
    found = {"init": [], "logged": [], "finished": 0}

    class WandbRun:
        def log(self, values, step):
            found["logged"].append((step, values))

        def finish(self):
            found["finished"] += 1

    wandb = types.ModuleType("wandb")
    wandb.__spec__ = types.SimpleNamespace()
    wandb.Settings = lambda **_: None
    wandb.init = lambda **options: found["init"].append(options) or WandbRun()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    return found


def test_a_run_is_tracked_under_its_group_and_continued(fakes, data_dir, tmp_path):
    config = tiny_config(data_dir, **{"train.trackers": ("wandb",)})
    for start in (0, 5):
        log = metrics_log.MetricsLog(tmp_path, start, trackers=trackers.Trackers(config, tmp_path, "rmlc"))
        log.write(start + 5, {"train/loss": 0.5, "val/protocol": "all_point", "val/mAP": float("nan")})
        log.close()
    known = json.loads((tmp_path / trackers.RUNS_FILE).read_text())["wandb"]
    assert [(one["id"], one["group"], one["resume"]) for one in fakes["init"]] == [(known, "rmlc", "allow")] * 2
    assert fakes["init"][0]["config"]["optim"]["lr"] == config.optim.lr
    assert fakes["logged"] == [(5, {"train/loss": 0.5}), (10, {"train/loss": 0.5})] and fakes["finished"] == 2


def test_a_tracker_that_fails_does_not_end_the_run(fakes, data_dir, tmp_path):
    config = tiny_config(data_dir, **{"train.trackers": ("wandb",)})
    tracked = trackers.Trackers(config, tmp_path, "")

    def log(values, step):
        raise OSError("no network")

    tracked._open["wandb"]._run.log = log
    with pytest.warns(UserWarning, match="wandb is left out of this run: no network"):
        tracked.log(1, {"a": 1.0})
    tracked.log(2, {"a": 1.0})
    tracked.close()
    assert fakes["finished"] == 0


def test_mlflow_holds_numbers_config_and_group(data_dir, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # a data base takes seconds
    mlflow.set_tracking_uri(f"file://{tmp_path / 'store'}")
    config = tiny_config(data_dir, **{"train.trackers": ("mlflow",)})
    workdir = tmp_path / "warp" / "seed0"
    workdir.mkdir(parents=True)
    for step in (5, 10):
        tracked = trackers.Trackers(config, workdir, "warp")
        tracked.log(step, {"val/MAP@10": step / 10})
        tracked.close()
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("jaxmlic").experiment_id])
    assert run.data.params["optim.lr"] == str(config.optim.lr)
    assert run.data.tags["group"] == "warp" and run.info.run_name == "warp/seed0" and run.info.status == "FINISHED"
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "val/MAP_10")] == [
        (5, 0.5),
        (10, 1.0),
    ]


def test_wandb_offline_beside_another_run(data_dir, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    for name, value in (("WANDB_MODE", "offline"), ("WANDB_SILENT", "true"), ("WANDB_CACHE_DIR", str(tmp_path / "c"))):
        monkeypatch.setenv(name, value)
    config = tiny_config(data_dir, **{"train.trackers": ("wandb",)})
    both = []
    for seed in (0, 1):
        workdir = tmp_path / "warp" / f"seed{seed}"
        workdir.mkdir(parents=True)
        both.append(trackers.Trackers(config, workdir, "warp"))
    for tracked in both:
        tracked.log(5, {"train/loss": 0.5})
    for tracked in both:
        tracked.close()
    assert len(list(tmp_path.glob("warp/seed*/wandb/offline-run-*/*.wandb"))) == 2


def test_mistakes_show_before_anything_starts(data_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    for names, message in (
        (("wandb",), r"wandb is not installed: pip install 'jaxmlic\[trackers\]'"),
        (("wandbb",), "did you mean 'wandb'"),
        ("wandb", r"a tuple of names, such as \('wandb',\)"),
    ):
        with pytest.raises(UserError, match=message):
            trackers.check(names)
    argv = ["train", "--config=quickstart", f"--workdir={tmp_path / 'w'}", "--config.train.trackers=('mlflow',)"]
    assert cli.run(argv) == 2
    assert "mlflow is not installed" in capsys.readouterr().err and not (tmp_path / "w").exists()
    argv[0:2] = ["sweep", "--config=quickstart"]
    assert cli.run(argv) == 2
    assert "mlflow is not installed" in capsys.readouterr().err and not (tmp_path / "w").exists()
