"""metrics.jsonl after kills, the clock, and the line reports."""

import json

import pytest

from jaxmlic import progress
from jaxmlic.training import metrics_log


def test_rows_after_the_resumed_step_and_cut_off_lines_are_dropped(tmp_path):
    rows = [{"step": 4, "a": 1.0}, {"step": 8, "a": 2.0}, {"step": 12, "a": 3.0}]
    text = "".join(json.dumps(row) + "\n" for row in rows) + '{"step": 16, "a"'
    (tmp_path / "metrics.jsonl").write_text(text)
    assert metrics_log.read(tmp_path) == rows
    log = metrics_log.MetricsLog(tmp_path, 8)
    log.write(12, {"a": 9.0})
    log.close()
    assert metrics_log.read(tmp_path) == [*rows[:2], {"step": 12, "a": 9.0}]


def test_undefined_numbers_are_null_and_text_is_kept(tmp_path):
    log = metrics_log.MetricsLog(tmp_path, 0)
    log.write(1, {"mAP": float("nan"), "protocol": "all_point"})
    log.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "mAP": null, "protocol": "all_point"}\n'


def test_an_inactive_log_writes_nothing(tmp_path):
    log = metrics_log.MetricsLog(tmp_path, 0, active=False)
    log.write(1, {"a": 1.0})
    log.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (63.4, "1:03"), (3599.6, "1:00:00"), (7265, "2:01:05"), (float("inf"), "?")]
)
def test_clock(seconds, text):
    assert progress.clock(seconds) == text


def test_reports_tell_rate_and_time_left(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    bar = progress.Bar(total_steps=100, batch_size=10, first_step=20)
    now[0] = 8.0
    bar.report(60, "loss 0.5")
    assert capsys.readouterr().err == "step 60/100  loss 0.5  50 img/s  0:08 left\n"
