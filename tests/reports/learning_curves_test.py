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


def test_drawn_after_a_failure_when_stopped_and_at_the_end(data_dir, tmp_path, monkeypatch):
    folder, config = tmp_path / "run", tiny_config(data_dir)
    picture, check = folder / learning_curves.NAME, loop.check_finite

    def fails(guard, names):
        raise UserError("the loss is NaN at step 8")

    class Stop(loop.distributed.Stop):
        def at(self, step):
            if step == 4:
                monkeypatch.setattr(loop, "check_finite", fails)
            if step == 9:
                self.signal = 15
            return super().at(step)

    monkeypatch.setattr(loop.distributed, "Stop", Stop)
    with pytest.raises(UserError, match="NaN"):
        runs.fit(config, folder)
    first = picture.read_bytes()
    assert run_folder.failure(folder)["reason"] == "the loss is NaN at step 8"
    monkeypatch.setattr(loop, "check_finite", check)
    Stop.at = lambda self, step: step == 9 and setattr(self, "signal", 15) is None
    assert runs.fit(config, folder) == loop.Outcome(9, False, 15)
    second = picture.read_bytes()
    assert run_folder.failure(folder) is None and first != second
    assert cv2.imread(str(picture)).shape[1] > 600

    def ends(config, workdir, *rest):
        (folder / "result.json").write_text("{}")
        with (folder / "metrics.jsonl").open("a") as file:
            file.write('{"step": 16, "train/loss": 0.5, "train/lr": 0.1}\n')
        return loop.Outcome(16, True)

    monkeypatch.setattr(runs.loop, "run", ends)
    for _ in range(2):  # of a complete run it is there already
        assert runs.fit(config, folder) == loop.Outcome(16, True)
        assert picture.read_bytes() != second
        monkeypatch.setattr(learning_curves, "write", None)


def test_the_best_checkpoint_is_marked_and_gaps_are_left_out(finished_run, tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text((finished_run / "config.json").read_text())
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


def test_without_rows_nothing_is_drawn_and_a_failure_is_a_line(finished_run, tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text((finished_run / "config.json").read_text())
    assert learning_curves.write(tmp_path) is None
    lines = []

    def broken(workdir):
        raise UserError("no space left on device")

    monkeypatch.setattr(learning_curves, "write", broken)
    runs.draw_curves(tmp_path, lines.append)
    assert lines == [f"{tmp_path}: the learning curves are not drawn (no space left on device)"]
