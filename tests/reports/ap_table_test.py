"""The per-class table: right numbers in the right order in text, CSV and picture."""

import csv
import math

import numpy as np
import pytest
from PIL import Image

from jaxmlic import metrics
from jaxmlic.reports import ap_table

# Four images, columns: AP 5/6 with 2 positives, AP 1 with 1, no positive, AP 0.25 with 1 (and one unknown elsewhere).
SCORES = np.array([[2.0, 5, 1, 4], [1, 0, 1, 3], [0.5, 0, 1, 2], [-1, 0, 1, 1]])
LABELS = np.array([[1, 1, 0, 0], [0, 0, 0, 0], [1, 0, -1, 0], [0, 0, 0, 1]], np.int8)
NAMES = ["cat", "dog", "unicorn", "potted plant"]


def report(protocol="all_point"):
    return metrics.evaluate(SCORES, LABELS, protocol)


def body(table):
    return [line.rsplit(maxsplit=4) for line in table.split("\n\n")[0].splitlines()[1:]]


def test_text_has_the_best_class_first():
    rows = [
        ["dog", "1", "100.00", "25.00", "100.00"],
        ["cat", "2", "83.33", "66.67", "100.00"],
        ["potted plant", "1", "25.00", "25.00", "100.00"],
        ["unicorn", "0", "-", "-", "-"],
    ]
    assert body(ap_table.text(report(), NAMES, LABELS)) == rows


def test_text_summary_names_protocol_and_what_was_left_out():
    result = report("voc10+top3_thresholded")
    summary = ap_table.text(result, NAMES, LABELS).split("\n\n")[1]
    assert f"mAP {100 * (5 / 6 + 1 + 0.25) / 3:.2f} % over 3 classes (1 left out), 4 images" in summary
    assert (
        "protocol voc10+top3_thresholded: " in summary
        and "envelope" in summary
        and "threshold logit 0, probability 0.5" in summary
    )
    for key in ("CP", "CR", "CF1", "CF1_mean", "OP", "OR", "OF1", "IP", "IR", "IF1", "MAP@10", "top1"):
        assert f"{key} {100 * result[key]:.2f}" in summary, key
    assert "(threshold" not in ap_table.text(report("top3_forced"), NAMES, LABELS)


def test_text_without_any_positive():
    nothing = np.zeros_like(LABELS)
    table = ap_table.text(metrics.evaluate(SCORES, nothing), NAMES, nothing)
    assert "mAP undefined over 0 classes (4 left out)" in table
    assert [row[2] for row in body(table)] == ["-"] * 4


def test_csv_keeps_full_precision_and_the_protocol(tmp_path):
    names = ["cat", 'a "quoted", name', "unicorn", "Übung"]
    ap_table.write_csv(tmp_path / "ap.csv", report("voc10"), names, LABELS)
    with (tmp_path / "ap.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == names
    assert [row["positives"] for row in rows] == ["2", "1", "0", "1"]
    assert [row["protocol"] for row in rows] == ["voc10"] * 4
    ap = [float(row["AP"] or "nan") for row in rows]
    np.testing.assert_array_equal(ap, report("voc10")["AP"])
    assert math.isnan(ap[2])
    assert [row["R"] for row in rows] == ["1.0", "1.0", "", "1.0"] and float(rows[0]["P"]) == 2 / 3


def test_wrong_arguments():
    with pytest.raises(ValueError, match="do not fit"):
        ap_table.text(report(), NAMES[:3], LABELS)
    with pytest.raises(ValueError, match="do not fit"):
        ap_table.text(report(), NAMES, LABELS[:, :2])


def read(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def bars_of(path, columns=slice(None)):
    """Widths in pixels of the bars from top to bottom, read off the picture by their colour."""
    pixels = read(path)[:, columns]
    blue = (np.abs(pixels - [0x4C, 0x78, 0xA8]).sum(axis=-1) < 30).sum(axis=1)
    rows = blue > 0
    starts = np.flatnonzero(rows & ~np.roll(rows, 1))
    ends = np.flatnonzero(rows & ~np.roll(rows, -1))
    return [int(np.median(blue[a : b + 1])) for a, b in zip(starts, ends, strict=True)]


def random_report(num_classes, seed=0):
    rng = np.random.default_rng(seed)
    labels = (rng.random((300, num_classes)) < 0.1).astype(np.int8)
    labels[0] = 1
    scores = rng.normal(size=labels.shape) + labels * rng.uniform(1, 4, num_classes)
    return metrics.evaluate(scores, labels), labels


def test_plot_draws_each_class_to_scale_best_first(tmp_path):
    result, labels = random_report(20)
    ap_table.plot(tmp_path / "ap.png", result, [f"class $ {i}_{{" for i in range(20)], labels)
    widths = bars_of(tmp_path / "ap.png")
    expected = np.sort(result["AP"])[::-1]
    assert len(widths) == 20
    np.testing.assert_allclose(np.divide(widths, widths[0]), expected / expected[0], atol=0.02)


def test_plot_leaves_out_undefined_classes(tmp_path):
    ap_table.plot(tmp_path / "ap.png", report(), NAMES, LABELS)
    widths = bars_of(tmp_path / "ap.png")
    np.testing.assert_allclose(np.divide(widths, widths[0]), [1, 5 / 6, 0.25], atol=0.02)


def test_plot_of_hundreds_shows_the_best_and_the_worst_thirty(tmp_path):
    result, labels = random_report(260)
    ap_table.plot(tmp_path / "ap.png", result, [f"word {i}" for i in range(260)], labels)
    height, width = read(tmp_path / "ap.png").shape[:2]
    assert height < 1500 and width < 2000
    ranked = np.sort(result["AP"])[::-1]
    best, worst = (bars_of(tmp_path / "ap.png", half) for half in (slice(width // 2), slice(width // 2, None)))
    assert len(best) == len(worst) == 30
    np.testing.assert_allclose(np.divide(best, best[0]), ranked[:30] / ranked[0], atol=0.02)
    np.testing.assert_allclose(np.divide(worst, best[0]), ranked[-30:] / ranked[0], atol=0.03)


@pytest.mark.parametrize("num_classes", [1, 60, 61])
def test_plot_sizes(tmp_path, num_classes):
    result, labels = random_report(num_classes)
    ap_table.plot(tmp_path / "ap.png", result, ["a rather long class name that goes on"] * num_classes, labels)
    width = read(tmp_path / "ap.png").shape[1]
    if num_classes <= 60:
        assert len(bars_of(tmp_path / "ap.png")) == num_classes
    else:
        assert len(bars_of(tmp_path / "ap.png", slice(width // 2))) == 30


def test_plot_without_any_positive(tmp_path):
    nothing = np.zeros_like(LABELS)
    ap_table.plot(tmp_path / "ap.png", metrics.evaluate(SCORES, nothing), NAMES, nothing)
    assert bars_of(tmp_path / "ap.png") == []
