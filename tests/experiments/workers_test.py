"""Several workers on one sweep: parts, claims, waiting, and other sweeps kept out."""

import json
import os
import subprocess
import sys
import threading

import pytest
from conftest import table_of

from jaxmlic.cli import main as cli
from jaxmlic.errors import UserError
from jaxmlic.experiments import runs, sweep
from jaxmlic.experiments.sweeps import claims, worker
from jaxmlic.experiments.sweeps.claims import Claims, Part
from jaxmlic.training import run_folder, run_states

FILE = """
from jaxmlic.config import Entry
from jaxmlic.configs import quickstart
get_config = quickstart.get_config
def sweep():
    return [Entry("second", start_from="first"), ("first", {}), ("other", {"optim.lr": 0.1}), ("last", {})]
"""


@pytest.mark.parametrize("text", ["5/4", "0/4", "1", "a/b", "-1/2", "1/0", "1/2/3", ""])
def test_parts_that_are_none(text, tmp_path, capsys):
    with pytest.raises(UserError, match="from 1/N to N/N"):
        claims.parse_part(text)
    (tmp_path / "x.py").write_text(FILE)
    assert cli.run(["sweep", f"--config={tmp_path / 'x.py'}", f"--workdir={tmp_path / 'w'}", f"--part={text}"]) == 2
    assert f"--part={text}: it is I/N" in capsys.readouterr().err and not (tmp_path / "w").exists()


def slurm(task, first, count, step=1):
    values = {"ID": task, "MIN": first, "COUNT": count, "STEP": step}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


@pytest.mark.parametrize(
    ("environment", "part"),
    [
        ({}, None),
        (slurm(0, 0, 4), Part(1, 4)),
        (slurm(4, 1, 4), Part(4, 4)),
        (slurm(30, 10, 3, 10), Part(3, 3)),
        (slurm(7, 7, 1), Part(1, 1)),  # `--array=7`, one failed task again: it shares by claims what is left
        (slurm(7, 1, 3), None),  # `--array=1,4,7`
        ({"JOB_COMPLETION_INDEX": "2", "JOB_COMPLETIONS": "3"}, Part(3, 3)),
        ({"JOB_COMPLETION_INDEX": "2"}, None),
    ],
)
def test_the_part_of_a_cluster_s_task(environment, part):
    found, line = claims.part_of_environment(environment)
    assert found == part and bool(line) == bool(environment)


def test_parts_hold_every_item_once():
    parts = [Part(number, 3) for number in (1, 2, 3)]
    assert [sum(part.has(item) for part in parts) for item in range(10)] == [1] * 10


def record_of(folder, name):
    (path,) = [path for path in (folder / claims.FOLDER).iterdir() if path.name.startswith(name)]
    return path, json.loads(path.read_text())


def test_of_many_workers_one_gets_a_run(tmp_path):
    """Also where all see the same void claim."""
    for void in (False, True):
        workers = [Claims(tmp_path, "s", "x") for _ in range(8)]
        if void:
            workers[0].take("run void")
            path, record = record_of(tmp_path, "run void")
            path.write_text(json.dumps(record | {"pid": 2**22 + 1}))
            workers[0]._own.pop("run void")
        name, won, barrier = f"run {'void' if void else 'new'}", [], threading.Barrier(8)

        def take(one, barrier=barrier, won=won, name=name):
            barrier.wait()
            won.append(one.take(name))

        threads = [threading.Thread(target=take, args=(one,)) for one in workers]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert sorted(won) == [False] * 7 + [True]
        for one in workers:
            one.__exit__()
        assert list((tmp_path / claims.FOLDER).iterdir()) == []


def test_a_claim_is_void_when_its_process_is_gone_or_its_clock_stands(tmp_path):
    with Claims(tmp_path, "s", "x") as mine:
        first = Claims(tmp_path, "s", "x")
        assert first.take("run") and not mine.take("run") and mine.is_held("run") and first.take("run")
        path, record = record_of(tmp_path, "run")
        # Another machine's, touched just now; then long ago.
        path.write_text(json.dumps(record | {"boot": "other"}))
        assert mine.is_held("run")
        now = path.stat().st_mtime
        os.utime(path, (now, now - claims.STALE_SECONDS - 60))
        assert not mine.is_held("run")
        # This machine's, of a process that is another one by now: a container's first process has the number 1 again.
        path.write_text(json.dumps(record | {"started": "12345"}))
        assert not mine.is_held("run") and mine.take("run")
        first.__exit__()
        assert mine.take("run")


def test_the_claim_of_a_killed_process_is_taken_over(tmp_path):
    code = f"""
import os
from jaxmlic.experiments.sweeps.claims import Claims
Claims({str(tmp_path)!r}, "s", "x").take("run")
os._exit(9)
"""
    subprocess.run([sys.executable, "-c", code], timeout=120, check=False)
    assert record_of(tmp_path, "run")[1]["pid"] != os.getpid()
    with Claims(tmp_path, "s", "x") as mine:
        assert mine.take("run")


def test_a_sweep_of_another_config_is_refused_while_one_is_at_work(tmp_path, capsys):
    (tmp_path / "x.py").write_text(FILE)
    command = ["sweep", f"--config={tmp_path / 'x.py'}", f"--workdir={tmp_path / 'w'}"]
    with Claims(tmp_path / "w", "another", "cnn_rnn:smoke"):
        assert cli.run(command) == 2
        assert (
            f"w is in use by a sweep of another config (cnn_rnn:smoke, process {os.getpid()}" in capsys.readouterr().err
        )


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    """A sweep whose runs take no time: (its file, its folder, the runs in their order)."""
    (tmp_path / "x.py").write_text(FILE)
    made = []

    def run_one(config, folder, report, group):
        made.append(f"{group} {config.seed}")
        (folder / "scores").mkdir(parents=True)
        (folder / "result.json").write_text("{}")
        numbers = {"split": "test", "protocol": "all_point", "mAP": 0.5}
        (folder / "scores" / "test.all_point.json").write_text(json.dumps(numbers))
        (folder / "config.json").write_text(
            json.dumps({"config": config.to_dict(), "class_names": [], "num_train": 1, "fingerprint": ""})
        )
        return numbers, None

    monkeypatch.setattr(runs, "run_one", run_one)
    monkeypatch.setattr(worker, "_WAIT_SECONDS", 0.05)
    return str(tmp_path / "x.py"), tmp_path / "w", made


def test_parts_make_all_runs_once_and_second_stages_go_with_their_first(experiment):
    path, folder, made = experiment
    for number in (1, 2, 3):
        sweep.run(path, folder, seeds=2, part=Part(number, 3))
        assert ("second 0" in made) == ("first 0" in made) and ("second 1" in made) == ("first 1" in made)
    assert len(made) == len(set(made)) == 8
    assert len(table_of(folder / "runs.csv")) == 8


def test_a_worker_waits_for_what_others_hold_and_takes_over_what_they_leave(experiment):
    """`other` is another worker's until it is left undone; `first` until it is complete, and `second` waits for it."""
    path, folder, made = experiment
    theirs = Claims(folder, sweep_digest(path), path)
    theirs.take("first, seed 0")
    theirs.take("other, seed 0")
    lines = []

    def report(line):
        lines.append(line)
        if line.startswith("waiting for other workers, 3 left"):
            theirs.release("other, seed 0")
        elif line.startswith("waiting for other workers, 2 left"):
            config = sweep.config_lib.load(path)
            runs.run_one(config, folder / "first" / "seed0", None, "first by another worker")
            theirs.release("first, seed 0")

    outcome = sweep.run(path, folder, report=report)
    theirs.__exit__()
    assert made == ["last 0", "other 0", "first by another worker 0", "second 0"]
    assert [row["entry"] for row in outcome.rows] == ["first", "other", "last", "second"] and not outcome.failures


def sweep_digest(path):
    base = sweep.config_lib.load(path)
    found = sweep.entries(path)
    return sweep._digest([(entry, sweep.config_of(path, base, entry, ())) for entry in sweep.in_order(found, found)])


def test_what_failed_in_another_worker_is_not_tried_here(experiment):
    path, folder, made = experiment
    theirs = Claims(folder, sweep_digest(path), path)
    theirs.take("other, seed 0")

    def report(line):
        if line.startswith("waiting"):
            failed = folder / "other" / "seed0"
            failed.mkdir(parents=True)
            (failed / run_states.FAILURE_FILE).write_text(json.dumps({"reason": "the loss became NaN", "time": 1.0}))
            theirs.release("other, seed 0")

    outcome = sweep.run(path, folder, report=report)
    theirs.__exit__()
    assert "other 0" not in made and outcome.failures == ["other, seed 0: the loss became NaN"]
    (row,) = [row for row in table_of(folder / "runs.csv") if row["failed"]]
    assert (row["entry"], row["failed"], row["mAP"]) == ("other", "the loss became NaN", "")
    # A later call tries it again.
    assert not sweep.run(path, folder).failures and "other 0" in made
    assert not any(row["failed"] for row in table_of(folder / "runs.csv"))


def test_lines_name_pace_and_time_left(experiment):
    path, folder, _ = experiment
    lines = []
    sweep.run(path, folder, report=lines.append)
    assert lines[0] == "[1/4] first, seed 0" and lines[3].startswith("[4/4] second, seed 0  (0:00 a run, 0:00 left)")


def test_runs_on_stored_arrays_train_together_round_after_round(experiment, monkeypatch):
    """Two at most; the second stage is ready in the last round only, and trains beside nobody."""
    path, folder, made = experiment
    together = []

    def train(requests, report):
        together.append([request.title for request in requests])
        for request in requests:
            runs.run_one(request.config, request.workdir, report, request.group)
        return {}, None

    monkeypatch.setattr(worker.groups, "train", train)
    monkeypatch.setattr(worker, "reads_arrays", lambda config: True)
    monkeypatch.setattr(sweep, "reads_arrays", lambda config: True)
    assert not sweep.run(path, folder, seeds=2, most_at_once=3).failures
    first = [f"{name}, seed {seed}" for name in ("first", "other", "last") for seed in (0, 1)]
    assert together == [first[:3], first[3:], ["second, seed 0", "second, seed 1"]]
    assert len(made) == len(set(made)) == 8


def test_an_entry_whose_source_is_a_mistake_fails_alone_beside_runs_that_train_together(experiment, monkeypatch):
    path, folder, made = experiment

    def reads(config):
        if config.optim.lr == 0.1:
            raise UserError("no such source")
        return True

    monkeypatch.setattr(worker, "reads_arrays", reads)
    monkeypatch.setattr(sweep, "_check_stackable", lambda jobs: None)
    monkeypatch.setattr(worker.groups, "train", lambda requests, report: ({r.title: "x" for r in requests}, None))
    outcome = sweep.run(path, folder, only=["other", "last", "first"], most_at_once=8)
    assert made == ["other 0"] and len(outcome.failures) == 2


def test_a_claim_that_was_never_written_whole_becomes_void(tmp_path):
    """Its writer was killed, or its disk was full."""
    with Claims(tmp_path, "s", "x") as mine:
        path = tmp_path / claims.FOLDER / "run.0"
        for text in ("", '{"host": "no'):
            path.write_text(text)
            assert mine.is_held("run") and not mine.take("run")
            now = path.stat().st_mtime
            os.utime(path, (now, now - claims.STALE_SECONDS - 60))
            assert not mine.is_held("run")
        assert mine.take("run")


def test_a_process_of_another_container_with_this_one_s_name_is_judged_by_its_clock(tmp_path):
    with Claims(tmp_path, "s", "x") as mine, Claims(tmp_path, "s", "x") as theirs:
        theirs.take("run")
        path, record = record_of(tmp_path, "run")
        boot, _, _ = record["boot"].partition(" ")
        path.write_text(json.dumps(record | {"boot": f"{boot} pid:[1]", "pid": 2**22 + 1, "started": "5"}))
        assert mine.is_held("run")


def test_a_signal_in_the_last_step_stops_the_sweep(experiment, monkeypatch):
    path, folder, _ = experiment
    monkeypatch.undo()
    outcome = runs.loop.Outcome(4, True, 15)
    monkeypatch.setattr(runs.loop, "run", lambda *args: outcome)
    found = sweep.run(path, folder)
    assert (found.stopped_in, found.stopped_by) == ("first, seed 0", 15)


def test_a_failure_that_another_worker_is_removing_is_none(tmp_path, monkeypatch):
    (tmp_path / run_states.FAILURE_FILE).write_text("{}")
    monkeypatch.setattr(worker.storage, "read_json", lambda path: (_ for _ in ()).throw(UserError("no such file")))
    assert run_folder.failure(tmp_path) is None
