"""Progress: plain lines in logs, a bar on a terminal, rates and the time left."""

import io
import math
import re

import pytest

from jaxmlic import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def now(monkeypatch):
    """A clock that the test sets."""
    time = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: time[0])
    return time


def drawn(terminal):
    """What was drawn, without colours and cursor movements."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue()).replace("\r", "\n")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (63.4, "1:03"), (3599.6, "1:00:00"), (7265, "2:01:05"), (float("inf"), "?")]
)
def test_clock(seconds, text):
    assert progress.clock(seconds) == text


def test_a_log_gets_a_line_every_ten_seconds_and_one_at_the_end(now, capsys):
    with progress.Progress("decoding a/test", 5000) as bar:
        for now[0] in range(1, 26):
            bar.advance(200)
    assert capsys.readouterr().err.splitlines() == [
        "decoding a/test: 2,000/5,000 images  200 images/s  0:15 left",
        "decoding a/test: 4,000/5,000 images  200 images/s  0:05 left",
        "decoding a/test: 5,000/5,000 images  200 images/s  0:00 left",
    ]


def test_short_work_prints_nothing_in_a_log(now, capsys):
    with progress.Progress("decoding a/test", 2) as bar:
        now[0] = 9.0
        bar.advance(2)
    assert capsys.readouterr().err == ""


def test_a_report_has_rate_and_time_left_without_what_was_done_before(now, capsys):
    bar = progress.Progress("train", 1000, "img", done=200, log_seconds=math.inf)
    now[0] = 8.0
    bar.advance(400)
    bar.report("step 60/100  loss 0.5")
    bar.skip(200)
    bar.report("step 80/100")
    bar.write("a line")
    bar.close()
    assert capsys.readouterr().err.splitlines() == [
        "step 60/100  loss 0.5  50 img/s  0:08 left",
        "step 80/100  50 img/s  0:04 left",
        "a line",
    ]


def test_slow_and_unknown_rates(now, capsys):
    bar = progress.Progress("trunk", 10)
    now[0] = 10.0
    bar.report("nothing")
    bar.advance(1)
    assert capsys.readouterr().err.splitlines() == [
        "nothing  0.0 images/s  ? left",
        "trunk: 1/10 images  0.1 images/s  1:30 left",
    ]


def test_a_terminal_gets_a_bar_and_lines_that_stay_above_it(now, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    terminal = Terminal()
    with progress.Progress("train [a]", 1000, "img", file=terminal) as bar:
        now[0] = 1.0
        bar.advance(250)
        bar.report("loss 0.5")
        bar.write("validation [b] mAP 50")
        now[0] = 2.0
        bar.advance(250)
    lines = drawn(terminal).splitlines()
    assert "validation [b] mAP 50" in lines
    assert "train [a]" in lines[-1] and "500/1,000 img 250 img/s" in lines[-1] and "loss 0.5" in lines[-1]
    assert terminal.getvalue().endswith("\x1b[?25h")  # the cursor is shown again


def test_a_part_has_its_own_lines_in_a_log(now, capsys):
    training = progress.Progress("train", 100, "img", log_seconds=math.inf)
    with progress.Progress("validation", 40, within=training) as bar:
        for now[0] in (5.0, 11.0, 20.0):
            bar.advance(10)
    training.report("step 2")
    assert capsys.readouterr().err.splitlines() == [
        "validation: 20/40 images  1.8 images/s  0:11 left",
        "validation: 30/40 images  1.5 images/s  0:07 left",
        "step 2  0.0 img/s  ? left",
    ]


def test_a_part_is_drawn_below_and_goes(now, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    terminal = Terminal()
    with progress.Progress("train", 1000, "img", file=terminal) as training:
        now[0] = 1.0
        training.advance(250)
        with progress.Progress("validation", 40, within=training) as bar:
            now[0] = 2.0
            bar.advance(10)
            assert "validation" in drawn(terminal).splitlines()[-1] and "10/40 images" in drawn(terminal)
        assert [task.description for task in training.display.tasks] == ["train"]
    assert "train" in drawn(terminal).splitlines()[-1]


def test_an_unknown_total_has_a_rate_and_no_time_left(now, capsys, monkeypatch):
    with progress.Progress("propagating", None, "rounds") as bar:
        now[0] = 10.0
        bar.advance(25)
    assert capsys.readouterr().err.splitlines() == ["propagating: 25 rounds  2.5 rounds/s"]
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    with progress.Progress("propagating", None, "rounds", file=terminal) as bar:
        now[0] = 20.0
        bar.advance(25)
    assert "25 rounds" in drawn(terminal)


def test_hidden_and_second_processes_print_nothing(now, capsys, monkeypatch):
    with progress.Progress("evaluating", 10, shown=False) as bar:
        now[0] = 20.0
        bar.advance(10)
    assert bar.done == 10
    monkeypatch.setattr(progress.distributed, "is_main", lambda: False)
    with progress.Progress("evaluating", 10) as bar:
        now[0] = 40.0
        bar.advance(10)
    assert capsys.readouterr().err == ""


def test_a_dumb_terminal_gets_lines(now, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    terminal = Terminal()
    with progress.Progress("train", 10, file=terminal) as bar:
        now[0] = 11.0
        bar.advance(10)
    assert terminal.getvalue().splitlines()[0] == "train: 10/10 images  0.9 images/s  0:00 left"
