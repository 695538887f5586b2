"""Curves from a sweep's runs: names, means and spreads by hand, the picture, mistakes."""

import cv2
import numpy as np
import pytest

from jaxmlic.cli import noise_curves as command
from jaxmlic.errors import UserError
from jaxmlic.experiments import sweep
from jaxmlic.reports import noise_curves


def runs(folder, results, metric="mAP"):
    rows = {
        name: [{"seed": i, "split": "test", "protocol": "all_point", metric: value} for i, value in enumerate(values)]
        for name, values in results.items()
    }
    sweep.write(folder, rows)
    return folder


NOISY = {
    "rmlc_noise0": [0.5, 0.7],
    "rmlc_noise50": [0.4, 0.4],
    "warp_loss_noise0": [0.6, 0.6],
    "warp_loss_noise50": [0.1, 0.3],
}


def test_runs_of_seeds_folds_and_batches_come_together(tmp_path):
    results = NOISY | {"a_noise12.5_fold0": [0.1], "a_noise12.5_fold11": [0.2], "a_batch3": [0.3], "noise": [0.4]}
    curves = noise_curves.read(runs(tmp_path, results), "mAP")
    assert curves == {
        "rmlc": {0: [0.5, 0.7], 50: [0.4, 0.4]},
        "warp_loss": {0: [0.6, 0.6], 50: [0.1, 0.3]},
        "a": {12.5: [0.1, 0.2], 0: [0.3]},
        "noise": {0: [0.4]},
    }


def test_table_and_picture(tmp_path, capsys):
    command.main([str(runs(tmp_path, NOISY)), "--title=Some title"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].split("  ")[0] == "rmlc" and "60.00 +- 14.14" in lines[3] and lines[3].endswith("20.00")
    assert "20.00 +- 14.14" in lines[4] and lines[4].endswith("40.00")
    image = cv2.imread(str(tmp_path / "noise_curves.png"))
    assert image.shape[0] > 300 and len(np.unique(image.reshape(-1, 3), axis=0)) > 50


def test_folds_without_noise_are_a_table_alone(tmp_path, capsys):
    folder = runs(tmp_path, {"rmlc_fold0": [0.5], "rmlc_fold1": [0.7]}, "accuracy")
    noise_curves.run(str(folder), "accuracy")
    assert "60.00 +- 14.14" in capsys.readouterr().out and not list(tmp_path.glob("*.png"))


def test_mistakes(tmp_path):
    with pytest.raises(UserError, match="give the --workdir"):
        noise_curves.read(tmp_path, "mAP")
    runs(tmp_path, NOISY)
    with pytest.raises(UserError, match="did you mean 'mAP'"):
        noise_curves.read(tmp_path, "mPA")
    with pytest.raises(UserError, match="--out="):
        noise_curves.run(str(tmp_path), out=str(tmp_path / "none" / "x.png"))
    (tmp_path / "runs.csv").write_text("entry,seed\n")
    with pytest.raises(UserError, match="holds no runs"):
        noise_curves.read(tmp_path, "mAP")
