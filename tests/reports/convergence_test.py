"""Convergence curves: what is read from runs, how runs are named, the picture and the table."""

import shutil

import cv2
import numpy as np
import pytest
from conftest import table_of

from jaxmlic.cli import main as cli
from jaxmlic.errors import UserError
from jaxmlic.reports import convergence
from jaxmlic.training.logs import metrics_log


def test_a_curve_is_the_validation_rows(finished_run):
    rows = [row for row in metrics_log.read(finished_run) if "val/mAP" in row]
    epochs, values = convergence.curve(finished_run)
    np.testing.assert_allclose(values, [row["val/mAP"] for row in rows])
    np.testing.assert_allclose(epochs, [row["step"] * 8 / 54 for row in rows])  # 54 of 72 images, batches of 8
    with pytest.raises(UserError, match="no val/nothing"):
        convergence.curve(finished_run, "nothing")


def test_names_tell_runs_apart():
    assert convergence.names_of(["runs/a/seed0", "runs/b/seed0"]) == ["a", "b"]
    assert convergence.names_of(["runs/a/seed0", "runs/a/seed1"]) == ["seed0", "seed1"]
    assert convergence.names_of(["runs/a/seed0", "runs/b/seed1"]) == ["a/seed0", "b/seed1"]
    assert convergence.names_of(["runs/only"]) == ["only"]


def test_the_command_draws_and_tabulates(finished_run, tmp_path, capsys):
    shutil.copytree(finished_run, tmp_path / "other", ignore=shutil.ignore_patterns("checkpoints"))
    out = tmp_path / "pictures" / "curves.png"
    assert cli.run(["convergence", str(finished_run), str(tmp_path / "other"), f"--out={out}"]) == 0
    assert "best" in capsys.readouterr().out
    assert cv2.imread(str(out)).std() > 5
    rows = table_of(out.with_suffix(".csv"))
    assert len(rows) == 2 * len(convergence.curve(finished_run)[0]) and set(rows[0]) == {"run", "epoch", "mAP"}


def test_mistakes(finished_run, tmp_path, capsys):
    assert cli.run(["convergence", str(finished_run), str(finished_run), f"--out={tmp_path / 'x.png'}"]) == 2
    assert "named twice" in capsys.readouterr().err
    shutil.copytree(finished_run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "metrics.jsonl"))
    assert cli.run(["convergence", str(tmp_path / "run"), f"--out={tmp_path / 'x.png'}"]) == 2
    assert "no validation scores" in capsys.readouterr().err
    assert cli.run(["convergence", str(tmp_path), f"--out={tmp_path / 'x.png'}"]) == 2
    assert "does not exist" in capsys.readouterr().err
