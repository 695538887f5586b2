"""Metrics of label paths by hand."""

import numpy as np

from jaxmlic import metrics
from jaxmlic.reports import ap_table

LABELS = np.array([[1, 0, 1], [0, 1, -1], [0, 0, 0], [1, 0, -1], [0, 0, 1]], np.int8)
PATHS = np.array([[2, 0, 2, 2], [3, 3, 3, 3], [0, 1, 0, 3], [2, 3, 3, 3], [2, 3, 3, 3]], np.int32)


def test_by_hand():
    """Right; END first; no label to find; an unknown label first; right: 2 of 4. Repeats: 2 + 0 + 1 of 9 labels."""
    found = metrics.path_metrics(PATHS, LABELS)
    assert found == {"top1_step": 2 / 4, "repeats": 3 / 9}


def test_nothing_to_count():
    found = metrics.path_metrics(np.full((2, 3), 3), np.array([[0, -1, 0], [0, 0, 0]], np.int8))
    assert np.isnan(found["top1_step"]) and np.isnan(found["repeats"])
    one = metrics.path_metrics(np.array([[0]]), np.array([[1]], np.int8))
    assert one == {"top1_step": 1.0, "repeats": 0.0}


def test_they_are_printed_where_there_are_paths():
    report = metrics.evaluate(np.zeros(LABELS.shape, np.float32), LABELS)
    names = ["a", "b", "c"]
    assert "paths" not in ap_table.text(report, names, LABELS)
    shown = ap_table.text(report | metrics.path_metrics(PATHS, LABELS), names, LABELS)
    assert "paths: top1_step 50.00, repeats 33.33" in shown
