"""Sweeps: skipping, continuing, tables by hand, failures."""

import json
import shutil
import signal

import numpy as np
import pytest
from conftest import table_of, tiny_config

from jaxmlic import config as config_lib
from jaxmlic.cli import main as cli
from jaxmlic.experiments import sweep
from jaxmlic.training import loop, metrics_log

FILE = """
from jaxmlic import config
from jaxmlic.configs import quickstart
def get_config(arg=None):
    return config.override(quickstart.get_config(), {values!r})
def sweep():
    return [("plain", {{}}), ("pooled", {{"model.pool": "max"}})]
"""


@pytest.fixture(scope="module")
def experiment(data_dir, tmp_path_factory):
    from jaxmlic import config

    flat = config.flatten(tiny_config(data_dir, **{"train.duration": "4 steps", "data.cache": True}))
    values = {k: v for k, v in flat.items() if not isinstance(v, list)}
    path = tmp_path_factory.mktemp("sweep") / "experiment.py"
    path.write_text(FILE.format(values=values))
    return path


@pytest.fixture(scope="module")
def finished_sweep(experiment):
    folder = experiment.parent / "runs"
    assert cli.run(["sweep", f"--config={experiment}", f"--workdir={folder}", "--seeds=2"]) == 0
    return folder


def test_table_holds_mean_and_spread_of_the_runs(finished_sweep):
    runs = table_of(finished_sweep / "runs.csv")
    assert [(r["entry"], r["seed"]) for r in runs] == [("plain", "0"), ("plain", "1"), ("pooled", "0"), ("pooled", "1")]
    for row in runs:
        path = finished_sweep / row["entry"] / f"seed{row['seed']}" / "scores" / "test.all_point.json"
        assert float(row["mAP"]) == json.loads(path.read_text())["mAP"]
    for row in table_of(finished_sweep / "sweep.csv"):
        values = [float(r["mAP"]) for r in runs if r["entry"] == row["entry"]]
        assert float(row["mAP mean"]) == pytest.approx(sum(values) / 2)
        assert float(row["mAP std"]) == pytest.approx(abs(values[0] - values[1]) / 2**0.5)


def test_finished_runs_are_skipped(finished_sweep, experiment, monkeypatch, capsys):
    monkeypatch.setattr(loop, "run", lambda *_: pytest.fail("trained again"))
    command = ["sweep", f"--config={experiment}", f"--workdir={finished_sweep}", "--seeds=2", "--only=pooled"]
    before = [(finished_sweep / name).read_text() for name in ("runs.csv", "sweep.csv")]
    assert cli.run(command) == 0
    assert "plain" not in capsys.readouterr().out
    # What a call leaves out by --only stays in the tables.
    assert [(finished_sweep / name).read_text() for name in ("runs.csv", "sweep.csv")] == before


def test_another_config_in_a_finished_entry_is_refused(finished_sweep, experiment, capsys):
    command = [
        "sweep",
        f"--config={experiment}",
        f"--workdir={finished_sweep}",
        "--config.optim.lr=0.5",
        "--only=plain",
    ]
    assert cli.run(command) == 2
    assert "optim.lr: 0.004 there, 0.5 now" in capsys.readouterr().err


def test_tables_hold_no_run_of_another_config(finished_sweep, experiment, tmp_path):
    shutil.copytree(finished_sweep, tmp_path / "runs")
    command = ["sweep", f"--config={experiment}", f"--workdir={tmp_path / 'runs'}", "--only=pooled"]
    shutil.rmtree(tmp_path / "runs" / "pooled")
    assert cli.run([*command, "--config.optim.lr=0.5"]) == 0
    assert [(r["entry"], r["seed"]) for r in table_of(tmp_path / "runs" / "runs.csv")] == [("pooled", "0")]


def test_an_interrupted_sweep_stops_and_continues(experiment, tmp_path, monkeypatch, capsys):
    real, stops = loop.run, [loop.Outcome(2, False, signal.SIGTERM)]
    monkeypatch.setattr(loop, "run", lambda *args: stops.pop() if stops else real(*args))
    command = ["sweep", f"--config={experiment}", f"--workdir={tmp_path}", "--only=plain"]
    assert cli.run(command) == 0
    assert "stopped in plain, seed 0" in capsys.readouterr().out and not (tmp_path / "sweep.csv").exists()
    assert cli.run(command) == 0
    assert (tmp_path / "sweep.csv").exists()
    assert [row["step"] for row in metrics_log.read(tmp_path / "plain" / "seed0") if "val/mAP" in row] == [4]


def test_a_failing_entry_does_not_stop_the_others(experiment, tmp_path, capsys):
    path = tmp_path / "failing.py"
    text = experiment.read_text().replace("[(", '[("broken", {"model.pool": "median"}), (')
    path.write_text(text.replace(', ("pooled", {"model.pool": "max"})', ""))
    assert cli.run(["sweep", f"--config={path}", f"--workdir={tmp_path / 'runs'}"]) == 2
    captured = capsys.readouterr()
    assert "1 of 2 runs failed: broken, seed 0: config.model.pool = 'median'" in captured.err
    rows = table_of(tmp_path / "runs" / "sweep.csv")
    assert [row["entry"] for row in rows] == ["plain"]


def test_folds_and_batches_have_a_row_together(tmp_path):
    run = {"seed": 0, "split": "test", "protocol": "all_point", "mAP": None, "CF1": float("nan")}
    results = {
        name: [{**run, "accuracy": value}]
        for name, value in {"warp_fold0": 0.1, "warp_fold10": 0.3, "warp_noise20_batch1": 0.5, "warp": 0.7}.items()
    }
    lines = sweep.table(results).splitlines()[2:]
    assert lines[0].split() == ["entry", "runs", "accuracy"]
    assert [line.split()[0] for line in lines[1:]] == [*results, "warp_fold*"]
    assert lines[-1].split() == ["warp_fold*", "2", "20.00", "+-", "14.14"]
    sweep.write(tmp_path, results)
    assert len(table_of(tmp_path / "runs.csv")) == 4
    row = table_of(tmp_path / "sweep.csv")[-1]
    assert row["entry"] == "warp_fold*" and row["runs"] == "2" and float(row["accuracy mean"]) == pytest.approx(0.2)


def test_spread():
    assert sweep.spread([0.1, 0.3]) == (pytest.approx(0.2), pytest.approx(np.sqrt(0.02)))
    assert sweep.spread([0.5])[0] == 0.5 and np.isnan(sweep.spread([0.5])[1])
    assert np.isnan(sweep.spread([None, 0.1])[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only=plian"], "did you mean 'plain'"),
        (["--seeds=0"], "--seeds=0: at least 1"),
        (["--config.optim.lrr=1"], "no such field"),
    ],
)
def test_mistakes(experiment, tmp_path, arguments, message, capsys):
    assert cli.run(["sweep", f"--config={experiment}", f"--workdir={tmp_path}", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_sweep_that_takes_it_gets_the_argument(tmp_path):
    path = tmp_path / "x.py"
    path.write_text("def sweep(arg):\n    return [(f'of {arg}', {})]\n")
    assert sweep.entries(f"{path}:side=3") == [("of side=3", {})]
    assert sweep.entries(str(path)) == [("of ", {})]


def test_an_entry_may_be_more_of_the_argument(tmp_path):
    """For entries whose heads have other fields: overrides of the command line count for them, too."""
    path = tmp_path / "x.py"
    path.write_text(
        "from jaxmlic.configs import common, quickstart\n"
        "def get_config(arg=None):\n"
        "    arg = common.parse_arg(arg, side=16, pooled='')\n"
        "    config = quickstart.get_config()\n"
        "    config.data.image_size = arg.side\n"
        "    if arg.pooled:\n"
        "        config.model.other_field = arg.pooled\n"
        "    return config\n"
    )
    overrides = ["--config.optim.lr=0.5"]
    for spec, side in ((str(path), 16), (f"{path}:side=24", 24)):
        base = config_lib.load(spec, overrides)
        found = sweep.config_of(spec, base, "pooled=max", overrides)
        assert (found.model.other_field, found.data.image_size, found.optim.lr) == ("max", side, 0.5)
        assert sweep.config_of(spec, base, {"model.pool": "max"}, overrides).model.pool == "max"


def test_files_without_a_usable_sweep(tmp_path, capsys):
    path = tmp_path / "x.py"
    for text, message in [
        ("", "has no sweep()"),
        ("def sweep():\n    return [('a', {}), ('a', {})]\n", "names 'a' twice"),
    ]:
        path.write_text("from jaxmlic.configs.quickstart import get_config\n" + text)
        assert cli.run(["sweep", f"--config={path}", f"--workdir={tmp_path}"]) == 2
        assert message in capsys.readouterr().err
