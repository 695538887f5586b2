"""`jaxmlic data graph`: what it prints, draws and saves, and what it refuses."""

import json

import cv2
import numpy as np
import pytest

from jaxmlic.cli.data import commands, graph
from jaxmlic.data import datasets
from jaxmlic.data.prepare import writer
from jaxmlic.errors import UserError
from jaxmlic.labels import graph as label_graph
from jaxmlic.reports import graph_report

NAMES = ["horse", "person", "sea $and$ sand", "unseen"]
PIXEL = cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))[1].tobytes()


def dataset(folder, labels, names=NAMES, name="small"):
    """A prepared data set with these training labels int8 [N, C], and a test split of their first row."""

    def examples(split, rows):
        return [{"id": f"{split}{i}", "image": PIXEL, "labels": row} for i, row in enumerate(rows)]

    splits = {"train": examples("train", labels), "test": examples("test", labels[:1])}
    writer.write(name, folder, names, splits, {}, overwrite=True)
    return datasets.load(name, folder)


LABELS = np.array([[1, 1, 0, 0]] * 6 + [[0, 1, 1, 0]] * 2 + [[0, 1, -1, 0]] * 12 + [[1, -1, 0, 0]], np.int8)


def command(folder, *options):
    return commands.main(["graph", "small", f"--data-dir={folder}", *options])


def test_the_strongest_pairs_are_printed_and_all_is_saved(tmp_path, capsys):
    made = dataset(tmp_path, LABELS)
    assert command(tmp_path, "--threshold=0.5", "--reweight=0.3", f"--out={tmp_path / 'out'}") == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0] == "small/train: 21 images, 4 classes; style paper, threshold 0.5, reweight 0.3"
    assert lines[1] == "edges: 2; classes without an edge: 1, without a positive: 1"
    counts, num_positive = label_graph.cooccurrence(LABELS)
    matrix = label_graph.adjacency(counts, num_positive, 0.5, 0.3)
    rows = [line.split() for line in lines if line.startswith("  ")]
    assert rows[1] == ["sea", "$and$", "sand", "person", "1.000", "2", "2", f"{matrix[2, 1]:.4f}"]
    assert rows[2] == ["horse", "person", "0.857", "6", "7", f"{matrix[0, 1]:.4f}"]
    assert rows[3] == ["person", "horse", "0.300", "6", "20", "-"] and len(rows) == 5
    with np.load(tmp_path / "out" / "graph.npz", allow_pickle=False) as file:
        assert file["names"].tolist() == NAMES
        np.testing.assert_array_equal(file["counts"], counts)
        np.testing.assert_array_equal(file["num_positive"], num_positive)
        np.testing.assert_array_equal(file["matrix"], matrix)
        np.testing.assert_array_equal(file["association"], label_graph.association(counts, num_positive))
        options = {"split": "train", "num_images": 21, "style": "paper", "threshold": 0.5, "reweight": 0.3}
        assert json.loads(str(file["options"])) == {"dataset": "small", **options}
    picture = cv2.imread(str(tmp_path / "out" / "graph.png"))
    assert picture is not None and picture.std() > 10
    assert datasets.load("small", tmp_path).splits == made.splits


def test_the_default_folder_is_the_data_sets_own(tmp_path, capsys):
    path = dataset(tmp_path, LABELS).path
    assert command(tmp_path, "--split=test", "--style=identity") == 0
    assert (path / "graph" / "graph.npz").is_file() and "small/test: 1 images" in capsys.readouterr().out
    assert datasets.load("small", tmp_path).splits == {"train": 21, "test": 1}  # its folder within is no damage


@pytest.mark.parametrize("style", label_graph.STYLES)
def test_every_style_has_its_matrix_and_threshold(tmp_path, capsys, style):
    made = graph.build(dataset(tmp_path, LABELS), "train", style)
    assert made["threshold"] == {"paper": 0.4, "ml_gcn": 0.4, "pmi": 0.1, "identity": None}[style]
    off = made["matrix"] - np.diag(made["matrix"].diagonal())
    edges = made["edges"].T if style == "ml_gcn" else made["edges"]
    np.testing.assert_array_equal(off > 0, edges)
    assert edges.any() == (style != "identity")
    weights = {line.split()[-1] for line in graph_report.text(made).splitlines() if line.startswith("  ")}
    assert {f"{weight:.4f}" for weight in off[off > 0]} == weights - {"-", "weight"}


@pytest.mark.parametrize("num_classes", [1, 20, 130])
def test_pictures_and_tables_of_any_size(tmp_path, num_classes):
    labels = (np.random.default_rng(0).random((40, num_classes)) < 0.3).astype(np.int8)
    names = [f"$class_{c}$ {'x' * c}" for c in range(num_classes)]
    made = graph.build(dataset(tmp_path, labels, names), "train", "identity" if num_classes == 20 else "paper")
    assert len(graph_report.text(made).splitlines()) <= 26
    graph_report.plot(tmp_path / "graph.png", made)
    assert max(cv2.imread(str(tmp_path / "graph.png")).shape) < 2800


def test_labels_that_never_meet_are_no_error(tmp_path, capsys):
    dataset(tmp_path, np.eye(4, dtype=np.int8))
    assert command(tmp_path) == 0
    assert "no two classes occur together" in capsys.readouterr().out
    dataset(
        tmp_path,
        np.array([[1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], np.int8),
    )
    assert command(tmp_path, "--threshold=0.9") == 0
    assert "a lower --threshold makes edges" in capsys.readouterr().out


def test_mistakes_are_one_line(tmp_path):
    dataset(tmp_path, LABELS)
    (tmp_path / "file").write_text("")
    for options, match in (
        (["--split=tran"], "no split 'tran' .did you mean 'train'"),
        (["--threshold=0"], "--threshold 0"),
        (["--reweight=2"], "--reweight 2"),
        (["--style=identity", "--threshold=0.4"], "--threshold changes nothing"),
        ([f"--out={tmp_path / 'file'}"], "--out=DIR"),
    ):
        with pytest.raises(UserError, match=match) as caught:
            command(tmp_path, *options)
        assert "\n" not in str(caught.value)
