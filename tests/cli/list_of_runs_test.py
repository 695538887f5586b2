"""`jaxmlic runs`: a folder of each state made by hand, orders, CSV, and what is no run."""

import csv
import fcntl
import io
import json

import pytest

from jaxmlic.cli import main as cli
from jaxmlic.cli.analysis import runs
from jaxmlic.errors import UserError
from jaxmlic.training import run_folder, run_states

START = {"time": "2026-11-26T10:00:00+00:00", "step": 0}


def made(folder, *, starts=1, duration="10 epochs", rows=(), checkpoints=(), **files):
    """A run folder; `files` are JSON files by stem. 10 epochs of 80 images in batches of 8: 100 steps."""
    config = {
        "head": "linear",
        "data": {"name": "tiny", "test_split": "test"},
        "train": {"duration": duration, "batch_size": 8},
        "eval": {"metric": "mAP", "protocol": "voc10"},
    }
    stored = {
        "config": config,
        "class_names": ["a", "b"],
        "num_train": 80,
        "fingerprint": "x",
        "starts": [START] * starts,
    }
    folder.mkdir(parents=True)
    for name, value in ({"config": stored} | files).items():
        path = folder / f"{name.replace('__', '/')}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(value))
    if rows:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for step in checkpoints:
        (folder / "checkpoints" / str(step)).mkdir(parents=True)
    return folder


def validated(step, value):
    return {"step": step, "val/mAP": value, "val/protocol": "voc10"}


FAILURE = {"reason": "the loss is NaN at step 7", "time": 1.0}


@pytest.fixture
def folder(tmp_path):
    """One run of each state, and what is no run."""
    top = tmp_path / "runs"
    rows = [{"step": 10, "img_per_s": 90.0}, {"step": 20, "img_per_s": 110.0}, validated(20, 0.5), validated(30, 0.25)]
    clock = {
        "30": {"time": 0, "seconds": {"steps": 50, "away": 900}},
        "100": {"time": 0, "seconds": {"steps": 70, "away": 900}},
    }
    made(
        top / "sweep/linear/seed10", rows=rows, checkpoints=(30,), result={"finished": True, "step": 20}, goodput=clock
    )
    made(top / "sweep/linear/seed2", result={"finished": True, "step": 100}, **{"scores__test.voc10": {"mAP": 0.75}})
    made(top / "stopped", rows=rows, checkpoints=(10, 20))
    made(top / "killed_early")
    made(top / "running", rows=rows, checkpoints=(20,))
    made(top / "never", starts=0)
    made(top / "failed", rows=rows, checkpoints=(20,), failed=FAILURE)
    made(top / "not_evaluated", result={"finished": True, "step": 100}, failed={"reason": "disk full", "time": 1.0})
    (top / "before_config").mkdir()
    (top / "before_config/failed.json").write_text(json.dumps({"reason": "no such weights", "time": 1.0}))
    (made(top / "half_written") / "config.json").write_text('{"config": {"head": "lin')
    (top / "lost_config/checkpoints/40").mkdir(parents=True)
    made(top / "other_fields").joinpath("config.json").write_text('{"config": {}, "fingerprint": "x"}')
    (top / "foreign").mkdir()
    (top / "foreign/config.json").write_text('{"model_type": "vit"}')  # another program's
    (top / "empty").mkdir()
    return top


def test_states_are_what_the_folders_hold(folder):
    with run_folder.lock(folder / "running"):
        found = {one.name: one for one in run_states.find(folder)}
    got = {name: (one.state, one.step, one.steps) for name, one in found.items()}
    assert got == {
        "before_config": ("failed", None, None),
        "failed": ("failed", 20, 100),
        "half_written": ("damaged", None, None),
        "killed_early": ("stopped", 0, 100),
        "lost_config": ("damaged", 40, None),
        "never": ("never started", 0, 100),
        "not_evaluated": ("failed", 100, 100),
        "other_fields": ("damaged", None, None),
        "running": ("running", 30, 100),
        "stopped": ("stopped", 20, 100),
        "sweep/linear/seed2": ("finished", 100, 100),
        "sweep/linear/seed10": ("finished", 100, 100),
    }
    assert list(found)[-2:] == ["sweep/linear/seed2", "sweep/linear/seed10"]
    assert {one.reason for one in found.values() if one.state == "failed"} == {
        FAILURE["reason"],
        "disk full",
        "no such weights",
    }
    assert found["half_written"].reason.startswith("config.json: cannot be read as a JSON file")
    assert "lacks what a run needs" in found["other_fields"].reason
    assert found["lost_config"].reason == "checkpoints without config.json"
    best = found["sweep/linear/seed10"]
    assert (best.metric, best.value, best.protocol, best.split) == ("mAP", 0.5, "voc10", "validation")
    assert (best.seconds, best.img_per_s, best.date, best.head, best.dataset) == (
        70,
        100.0,
        START["time"],
        "linear",
        "tiny",
    )
    tested = found["sweep/linear/seed2"]
    assert (tested.value, tested.protocol, tested.split) == (0.75, "voc10", "test")
    # Nobody holds it any more.
    assert {one.name: one.state for one in run_states.find(folder)}["running"] == "stopped"


def test_a_look_does_not_keep_a_training_out(tmp_path):
    place = made(tmp_path / "run")
    run_folder.lock(place).close()
    with (place / ".lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        with pytest.raises(UserError, match="is being trained by another process"):
            run_folder.lock(place)
    assert run_states.is_locked(place) is False
    run_folder.lock(place).close()


def test_failures_are_kept_and_forgotten_at_the_next_start(tmp_path):
    place = made(tmp_path / "run")
    with pytest.raises(ValueError, match="two\n words"), run_folder.noting_failure(place):
        raise ValueError("two\n words")
    (one,) = run_states.find(place)
    assert (one.name, one.state, one.reason) == (".", "failed", "two words")
    run_folder.note_start(place, 0)
    assert run_states.find(place)[0].state == "stopped"


def test_table_orders_and_csv(folder, capsys):
    def listed(*options):
        assert cli.run(["runs", str(folder), *options]) == 0
        return capsys.readouterr().out

    lines = listed().splitlines()
    assert len(lines) == 13 and lines[0].split()[:2] == ["run", "head"]
    (line,) = [line for line in lines if line.startswith("sweep/linear/seed10")]
    for cell in (
        "linear",
        "tiny",
        "finished",
        "100/100",
        "50.00",
        "mAP (voc10, validation)",
        "2026-11-26 10:00",
        "1:10",
        "100",
    ):
        assert cell in line
    assert next(line for line in lines if line.startswith("failed")).endswith(FAILURE["reason"])
    rows = list(csv.DictReader(io.StringIO(listed("--csv", "--sort=best"))))
    assert [row["name"] for row in rows[:2]] == ["sweep/linear/seed2", "failed"]
    assert rows[0]["value"] == "0.75" and rows[-1]["value"] == ""
    assert next(row for row in rows if row["name"] == "before_config")["reason"] == "no such weights"
    states = [row["state"] for row in csv.DictReader(io.StringIO(listed("--csv", "--sort=state")))]
    assert states == sorted(states, key=run_states.STATES.index)
    found = run_states.find(folder)
    for order in runs.ORDERS:
        assert sorted(one.name for one in runs.in_order(found, order)) == sorted(one.name for one in found)


def test_folders_without_runs_are_one_line(folder, tmp_path, capsys):
    assert cli.run(["runs", str(folder / "empty")]) == 0
    assert capsys.readouterr().out == f"{folder / 'empty'}: no runs in it or below\n"
    assert cli.run(["runs", str(folder / "empty"), "--csv"]) == 0
    assert capsys.readouterr().out.splitlines() == [",".join(run_states.RunState.__dataclass_fields__)]
    for place, why in (
        (tmp_path / "nowhere", "no such folder"),
        (folder / "foreign/config.json", "a file, not a folder"),
    ):
        assert cli.run(["runs", str(place)]) == 2
        assert capsys.readouterr().err == f"jaxmlic: {place}: {why}\n"
    assert cli.run(["runs", str(folder), "--sort=size"]) == 2
