"""Curves from a sweep's runs: series, means and spreads by hand, the picture, mistakes."""

import csv

import cv2
import numpy as np
import pytest

from jaxmlic.cli import main as cli
from jaxmlic.errors import UserError
from jaxmlic.reports import noise_curves


def runs(folder, results, metric="mAP"):
    """A sweep's runs.csv of {(series, noise rate, part): values by seed}."""
    with (folder / "runs.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*noise_curves.RUN_COLUMNS, metric])
        for (series, rate, part), values in results.items():
            name = f"entry of {series} {rate} {part}"
            writer.writerows([name, series, rate, part, i, "test", "all_point", "", v] for i, v in enumerate(values))
    return folder


NOISY = {
    ("rmlc", 0.0, ""): [0.5, 0.7],
    ("rmlc", 0.5, ""): [0.4, 0.4],
    ("warp_loss", 0.0, ""): [0.6, 0.6],
    ("warp_loss", 0.5, ""): [0.1, 0.3],
}


def test_runs_of_seeds_folds_and_batches_come_together(tmp_path):
    parts = {("a", 0.125, "fold0"): [0.1], ("a", 0.125, "fold11"): [0.2], ("a", "", "batch3"): [0.3]}
    curves = noise_curves.read(runs(tmp_path, NOISY | parts | {("", 0.07, ""): [0.4]}), "mAP")
    assert curves == {
        "rmlc": {0: [0.5, 0.7], 50: [0.4, 0.4]},
        "warp_loss": {0: [0.6, 0.6], 50: [0.1, 0.3]},
        "a": {12.5: [0.1, 0.2], 0: [0.3]},
        "entry of  0.07 ": {7: [0.4]},
    }
    line = noise_curves.text(curves, "mAP").splitlines()[4]
    assert line.split() == ["warp_loss", "60.00", "+-", "0.00", "-", "-", "20.00", "+-", "14.14", "2", "40.00"]


def test_runs_that_failed_are_left_out(tmp_path):
    path = runs(tmp_path, NOISY) / "runs.csv"
    with path.open("a") as file:
        file.write("x,x,0,,0,,,NaN at step 3,\n")
    assert noise_curves.read(tmp_path, "mAP").keys() == {"rmlc", "warp_loss"}


def test_table_and_picture(tmp_path, capsys):
    assert cli.run(["noise-curves", str(runs(tmp_path, NOISY)), "--title=Some title"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].split("  ")[0] == "rmlc" and "60.00 +- 14.14" in lines[3] and lines[3].endswith("20.00")
    assert "20.00 +- 14.14" in lines[4] and lines[4].endswith("40.00")
    image = cv2.imread(str(tmp_path / "noise_curves.png"))
    assert image.shape[0] > 300 and len(np.unique(image.reshape(-1, 3), axis=0)) > 50


def test_folds_without_noise_are_a_table_alone(tmp_path, capsys):
    folder = runs(tmp_path, {("rmlc", "", "fold0"): [0.5], ("rmlc", "", "fold1"): [0.7]}, "accuracy")
    assert cli.run(["noise-curves", str(folder), "--metric=accuracy"]) == 0
    assert "60.00 +- 14.14" in capsys.readouterr().out and not list(tmp_path.glob("*.png"))


def test_mistakes(tmp_path, capsys):
    with pytest.raises(UserError, match="give the --workdir"):
        noise_curves.read(tmp_path, "mAP")
    runs(tmp_path, NOISY)
    with pytest.raises(UserError, match=r"did you mean 'mAP'.*it has mAP$"):
        noise_curves.read(tmp_path, "mPA")
    assert cli.run(["noise-curves", str(tmp_path), f"--out={tmp_path / 'runs.csv' / 'x.png'}"]) == 2
    assert "x.png: cannot be written" in capsys.readouterr().err
    table = tmp_path / "runs.csv"
    table.write_text(table.read_text().replace("0.7", "high"))
    with pytest.raises(UserError, match=r"runs\.csv, line 3: .*'high'"):
        noise_curves.read(tmp_path, "mAP")
    table.write_text("entry,seed,mAP\na_noise50,0,0.5\n")
    with pytest.raises(UserError, match="no column series, noise_rate: run `jaxmlic sweep` again"):
        noise_curves.read(tmp_path, "mAP")
    table.write_text("entry,seed\n")
    with pytest.raises(UserError, match="holds no complete runs"):
        noise_curves.read(tmp_path, "mAP")
