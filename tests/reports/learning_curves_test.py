"""The learning curves in run folders: drawn at the end and when stopped, never the end of a run themselves."""

import json

import cv2
import pytest
from conftest import tiny_config

from jaxmlic.errors import UserError
from jaxmlic.experiments import runs
from jaxmlic.reports.figures import learning_curves
from jaxmlic.training import loop, run_folder
from jaxmlic.training.logs import metrics_log


def claim(folder):
    stored = {"config": tiny_config(folder).to_dict(), "class_names": ["a"], "num_train": 8, "fingerprint": ""}
    (folder / "config.json").write_text(json.dumps(stored))


def row(step, loss):
    return json.dumps({"step": step, "train/loss": loss, "train/lr": 0.1}) + "\n"


def test_drawn_after_a_failure_when_stopped_and_at_the_end(tmp_path, monkeypatch):
    claim(tmp_path)
    pictures = []

    def fit(loss, end=None):
        """`runs.fit` with a training that logs a loss and raises or returns `end`, None for a complete run."""

        def trains(config, workdir, *rest):
            if end is not None:
                with (tmp_path / "metrics.jsonl").open("a") as file:
                    file.write(row(len(pictures) + 1, loss))
            if isinstance(end, Exception):
                with run_folder.noting_failure(workdir):
                    raise end
            if end is not None and end.finished:
                (tmp_path / "result.json").write_text("{}")
            return end or loop.Outcome(16, True)

        monkeypatch.setattr(runs.loop, "run", trains)
        try:
            return runs.fit(tiny_config(tmp_path), tmp_path)
        finally:
            pictures.append((tmp_path / learning_curves.NAME).read_bytes())

    with pytest.raises(UserError, match="NaN"):
        fit(9.0, UserError("the loss is NaN at step 8"))
    assert fit(3.0, loop.Outcome(9, False, 15)) == loop.Outcome(9, False, 15)
    assert fit(1.0, loop.Outcome(16, True)).finished
    assert len(set(pictures)) == 3 and cv2.imread(str(tmp_path / learning_curves.NAME)).shape[1] > 600
    monkeypatch.setattr(learning_curves, "write", None)  # of a complete run it is there already
    assert fit(0.0).finished and pictures[2] == pictures[3]


def test_the_best_checkpoint_is_marked_and_gaps_are_left_out(tmp_path, monkeypatch):
    claim(tmp_path)
    rows = [
        {"step": 4, "train/loss": 2.0, "train/lr": 0.1, "img_per_s": 5.0},
        {"step": 4, "val/mAP": 0.5, "val/protocol": "all_point"},
        {"step": 8, "train/loss": None, "train/lr": 0.1},
        {"step": 8, "val/mAP": None, "val/protocol": "all_point"},
        {"step": 12, "val/mAP": 0.5, "val/protocol": "all_point"},
        {"step": 16, "val/mAP": 0.25, "val/protocol": "all_point"},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    drawn = {}
    monkeypatch.setattr(learning_curves.canvas, "save", lambda figure, path: drawn.update({path.name: figure}))
    learning_curves.write(tmp_path)
    loss, rate, score = drawn[learning_curves.NAME].axes
    assert [axes.get_ylabel() for axes in (loss, rate, score)] == ["loss", "learning rate", "mAP, % (validation)"]
    assert loss.lines[0].get_xydata().tolist() == [[4, 2]]
    assert score.lines[0].get_xydata().tolist() == [[4, 50], [12, 50], [16, 25]]
    assert score.lines[-1].get_xydata().tolist() == [[12, 50]]  # of equals the later one, as checkpoints are kept
    assert loss.get_title().endswith("best checkpoint, mAP 50.00 (all_point) at step 12")
    assert metrics_log.best(rows[:1], "mAP") is None


def test_without_rows_nothing_is_drawn_and_a_failure_is_a_line(tmp_path, monkeypatch):
    claim(tmp_path)
    assert learning_curves.write(tmp_path) is None
    lines = []

    def broken(workdir):
        raise UserError("no space left on device")

    monkeypatch.setattr(learning_curves, "write", broken)
    runs.draw_curves(tmp_path, lines.append)
    assert lines == [f"{tmp_path}: the learning curves are not drawn (no space left on device)"]
