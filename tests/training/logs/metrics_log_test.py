"""metrics.jsonl after kills, and what it holds."""

import io
import json
import time

import pytest

from jaxmlic import storage
from jaxmlic.errors import UserError
from jaxmlic.training.logs import metrics_log


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


def test_a_full_disk_is_one_line_and_closing_adds_none(tmp_path):
    log = metrics_log.MetricsLog(tmp_path, 0)
    log.file.close()
    log.file = storage.Appender("/dev/full")
    with pytest.raises(UserError, match=r"metrics.jsonl: cannot be written \(No space left on device\); free some"):
        log.write(1, {"a": 1.0})
    log.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_full_disk_under_the_events_is_one_line_and_no_wait_for_ever(tmp_path):
    """TensorBoard's thread ends with the error; its queue would fill, and the next event would wait."""
    log = metrics_log.MetricsLog(tmp_path, 0)
    log.flush()
    records = log.events.file_writer.event_writer._ev_writer._py_recordio_writer
    records._writer.close()
    records._writer = io.FileIO("/dev/full", "w")
    with pytest.raises(UserError, match=r"tensorboard: .*cannot be written.*; free some space"):
        for step in range(1000):
            log.write(step, {"a": 1.0, "b": 2.0})
            time.sleep(0.01)
    log.close()
    records._writer.close()
