"""Where the time went: kinds, compilations inside them, and what a restart cost."""

import json

import jax.monitoring
import pytest

from jaxmlic.training import run_states
from jaxmlic.training.logs import goodput, metrics_log

COMPILED = "/jax/core/compile/backend_compile_duration"


class Clock:
    """A time that tests move."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now

    def time(self):
        return self.now + 1e9


@pytest.fixture
def clock(monkeypatch):
    found = Clock()
    monkeypatch.setattr(goodput, "time", found)
    return found


def seconds(spent):
    return {kind: value for kind, value in spent.row().items() if value}


def test_kinds_add_up_to_the_time_that_passed(tmp_path, clock):
    spent = goodput.Goodput(tmp_path, clock.now)
    clock.now += 3
    spent.start(0)
    with spent.span("input"):
        clock.now += 1
    clock.now += 10
    jax.monitoring.record_event_duration_secs(COMPILED, 4.0)  # of the 10 s of a step
    with spent.span("evaluation"):
        clock.now += 5
        jax.monitoring.record_event_duration_secs(COMPILED, 2.0)
        jax.monitoring.record_event_duration_secs("/jax/other", 1.0)
    clock.now += 1
    expected = {"starting": 3.0, "input": 1.0, "steps": 7.0, "evaluation": 3.0, "compiling": 6.0}
    assert seconds(spent) == {f"goodput/{kind}": value for kind, value in expected.items()}
    spent.close()
    assert spent.text() == "0:20 in all: 35.0 % steps, 5.0 % waiting for input, 15.0 % evaluation, " + (
        "30.0 % compiling, 15.0 % starting"
    )
    jax.monitoring.record_event_duration_secs(COMPILED, 4.0)  # nobody listens any more
    assert sum(seconds(spent).values()) == 20


def test_a_restart_counts_what_was_done_again_and_the_time_between(tmp_path, clock):
    first = goodput.Goodput(tmp_path, clock.now)
    first.start(0)
    log = metrics_log.MetricsLog(tmp_path, 0)
    clock.now += 10
    first.save(8)
    clock.now += 6
    log.write(14, first.row())  # the last sign of life, 6 s after the checkpoint
    log.close()
    first.close()
    clock.now += 100
    began = clock.now
    clock.now += 2  # the new process starts up
    second = goodput.Goodput(tmp_path, began)
    second.start(8)
    expected = {"steps": 10.0, "redone": 6.0, "away": 100.0, "starting": 2.0}
    assert seconds(second) == {f"goodput/{kind}": value for kind, value in expected.items()}
    second.close()
    # Killed again before anything was saved: its start was.
    clock.now += 50
    third = goodput.Goodput(tmp_path, clock.now)
    third.start(8)
    assert seconds(third)["goodput/away"] == 150
    third.close()


@pytest.mark.parametrize("text", [None, "{", "[]", '{"8": {}}', '{"8": 1}'])
def test_older_and_damaged_folders_count_from_now(tmp_path, clock, text):
    if text is not None:
        (tmp_path / run_states.GOODPUT_FILE).write_text(text)
    spent = goodput.Goodput(tmp_path, clock.now, active=False)
    spent.start(8)
    clock.now += 1
    assert seconds(spent) == {"goodput/steps": 1.0}
    spent.close()


def test_the_file_remembers_few_steps(tmp_path, clock):
    spent = goodput.Goodput(tmp_path, clock.now)
    for step in range(1, 9):
        spent.save(step)
    spent.close()
    assert list(json.loads((tmp_path / run_states.GOODPUT_FILE).read_text())) == ["5", "6", "7", "8"]
