"""The papers' figures: their numbers by brute force, their pictures there, their mistakes in one line."""

import csv
import itertools

import cv2
import numpy as np
import pytest
from conftest import COLOURS, picture, table_of, tiny_config
from PIL import Image

from jaxmlic import metrics, papers
from jaxmlic.cli import main as cli
from jaxmlic.data.prepare import writer
from jaxmlic.labels.neighbours import nearest
from jaxmlic.reports.figures import box_area, canvas, looks, per_class, printed
from jaxmlic.training import loop


def test_recall_by_area_by_brute_force():
    rng = np.random.default_rng(0)
    labels = rng.choice([1, 0, -1], (200, 5), p=[0.5, 0.3, 0.2]).astype(np.int8)
    predicted = rng.random((200, 5)) < 0.5
    edges = (0.0, 0.02, 0.05, 0.1, 1.0)
    boxes, wanted = [], {pair: [0, 0] for pair in itertools.pairwise(edges)}
    for truth, guess in zip(labels, predicted, strict=True):
        count = rng.integers(0, 4)
        corners = np.sort(rng.random((count, 2, 2)), axis=1).reshape(count, 4).astype(np.float32)  # y, x, y, x
        own = rng.integers(0, 5, count)
        boxes.append({"bbox": corners, "label": own, "difficult": np.zeros(count, bool)})
        for (y0, x0, y1, x1), label in zip(corners.astype(float), own, strict=True):
            if truth[label] == 1:
                area = (y1 - y0) * (x1 - x0)
                low_high = next(pair for pair in wanted if pair[0] < area <= pair[1])
                wanted[low_high][0] += 1
                wanted[low_high][1] += int(guess[label])
    found = box_area.recall_by_area(boxes, labels, predicted, edges)
    np.testing.assert_array_equal(np.stack([found.boxes, found.found], 1), list(wanted.values()))
    low, high = found.interval()
    assert (low <= found.recall).all() and (found.recall <= high).all()


def test_recall_by_area_at_the_edges():
    whole = {"bbox": np.array([[0, 0, 1, 1], [0.5, 0.5, 0.5, 0.9]], np.float32), "label": np.array([0, 0])}
    nothing = {"bbox": np.zeros((0, 4), np.float32), "label": np.zeros(0, np.int64)}
    found = box_area.recall_by_area([whole, nothing], np.ones((2, 1), np.int8), np.array([[True], [False]]))
    assert found.boxes[0] == found.boxes[-1] == 1 and found.boxes.sum() == 2
    assert np.isnan(found.recall[1])
    empty = box_area.recall_by_area([], np.zeros((0, 3), np.int8), np.zeros((0, 3), bool))
    assert empty.boxes.sum() == 0
    box_area.draw(empty)


def test_nearest_labels_by_their_cosines():
    rng = np.random.default_rng(1)
    labels, images = rng.normal(size=(9, 4)), rng.normal(size=(3, 4))
    labels[7] = 0
    order, cosines = nearest(images, labels, 3)
    for row, found, values in zip(images, order, cosines, strict=True):
        all_of = [0.0 if not v.any() else v @ row / np.sqrt((v @ v) * (row @ row)) for v in labels]
        assert found.tolist() == sorted(range(9), key=lambda i: -all_of[i])[:3]
        np.testing.assert_allclose(values, sorted(all_of, reverse=True)[:3])
    own, _ = nearest(labels, labels, 20, own=np.arange(9))
    assert own.shape == (9, 8) and not (own == np.arange(9)[:, None]).any()


def test_predicted_labels_are_those_that_metrics_count():
    rng = np.random.default_rng(2)
    scores, labels = rng.normal(size=(30, 6)).astype(np.float32), (rng.random((30, 6)) < 0.4).astype(np.int8)
    chosen = rng.random((30, 6)) < 0.3
    for protocol in ("all_point", "top3_forced", "top3_thresholded", "path"):
        predicted = metrics.predicted_labels(scores, protocol, chosen=chosen)
        numbers = metrics.evaluate(scores, labels, protocol, chosen=chosen)
        hits = (predicted & (labels == 1)).sum(axis=0)
        np.testing.assert_allclose(numbers["R"], hits / labels.sum(axis=0))
        np.testing.assert_allclose(numbers["P"], hits / np.maximum(predicted.sum(axis=0), 1))


def test_precision_and_recall_of_a_class_left_out_are_undefined():
    labels = np.array([[1, 0], [0, 0]], np.int8)
    numbers = metrics.evaluate(np.array([[1.0, 1], [-1, -1]]), labels)
    np.testing.assert_array_equal(numbers["P"], [1, np.nan])
    np.testing.assert_array_equal(numbers["R"], [1, np.nan])


def test_pictures_of_extremes(tmp_path):
    nan = np.array([np.nan, 0.0, 1.0])
    canvas.save(per_class.draw(nan, nan, ["a $", "b", "c"]), tmp_path / "a.png")
    canvas.save(per_class.draw(np.full(2, np.nan), np.full(2, np.nan), ["a", "b"]), tmp_path / "b.png")
    many = np.linspace(0, 1, 260)
    canvas.save(per_class.draw(many, many, [f"word {i}" for i in range(260)]), tmp_path / "c.png")
    pixels = np.zeros((1, 8, 8, 3), np.uint8)
    canvas.save(looks.draw_heat(pixels, [[np.zeros((3, 3))]], [["nothing"]]), tmp_path / "d.png")
    canvas.save(looks.draw_annotations(pixels, [[]], [[]]), tmp_path / "e.png")
    for name in "abcde":
        with Image.open(tmp_path / f"{name}.png") as image:
            assert image.width > 200


def test_printed_tables_have_every_number():
    for name in papers.names():
        for table in papers.load(name).tables:
            figure = printed.draw(printed.find(f"{name}/{table.number}"))
            assert len(figure.axes) >= 1
    heights = {round(bar.get_height(), 2) for bar in printed.draw(printed.find("mscnn_lce_mic/V")).axes[0].patches}
    assert heights == {79.1, 81.5, 84.3, 78.5, 80.6, 81.8, 77.8, 80.1, 81.4}


def test_our_numbers_are_bars_beside_the_printed_ones():
    table = printed.find("mscnn_lce_mic/V")[0]
    columns = len({column for row in table.rows for column in row.numbers})

    def ours(of, row, column):
        assert of is table and column in row.numbers
        return row.numbers[column] - 10 if row is table.rows[0] else np.nan

    axes = printed.draw([table], ours=ours).axes[0]
    assert len(axes.patches) == 2 * columns * len(table.rows)
    first = [bar for bar in axes.patches if round(bar.get_x() + bar.get_width() / 2) == 0]
    heights = [bar.get_height() for bar in sorted(first, key=lambda bar: bar.get_x())]
    assert np.allclose(np.subtract(heights[::2], heights[1::2]), 10)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of four steps on ten pictures with a box for each square, and its data set's folder."""
    folder = tmp_path_factory.mktemp("boxes")
    rng = np.random.default_rng(5)

    def examples(split, count):
        for i in range(count):
            labels = np.array([1, i % 2, 0], np.int8)
            image = cv2.imencode(".png", picture(labels, rng)[:, :, ::-1])[1].tobytes()
            boxes = [
                {"bbox": (0.0, 0.0, 0.5, 0.2 + 0.1 * i / count), "label": k, "difficult": False}
                for k in np.flatnonzero(labels)
            ]
            yield {"id": f"{split}-{i}", "image": image, "labels": labels, "boxes": boxes}

    splits = {"train": examples("train", 16), "test": examples("test", 10)}
    writer.write("tiny", folder, list(COLOURS), splits, {}, has_boxes=True)
    config = tiny_config(folder, **{"train.duration": "4 steps", "data.val_fraction": 0.0})
    loop.run(config, str(folder / "run"))
    return folder / "run"


def draw(run, out, name, *arguments):
    return cli.run(["figures", f"--workdir={run}", f"--figure={name}", f"--out={out}", *arguments])


def test_recall_by_area_of_a_run_is_the_evaluation_s(run, tmp_path, capsys):
    assert draw(run, tmp_path / "f.png", "box-recall") == 0
    rows = table_of(tmp_path / "f.csv")
    assert cli.run(["evaluate", f"--workdir={run}"]) == 0
    recall = {row["class"]: float(row["R"] or 0) for row in table_of(run / "scores" / "test.all_point.csv")}
    assert sum(int(row["boxes"]) for row in rows) == 15
    assert sum(int(row["found"]) for row in rows) == round(10 * recall["red"] + 5 * recall["green"])
    assert "written: " in capsys.readouterr().out


@pytest.mark.parametrize(
    "name", ["per-class", "label-neighbours", "feature-maps", "saliency", "grad-cam", "annotations"]
)
def test_figures_of_a_run(run, tmp_path, name):
    assert draw(run, tmp_path / "f.png", name, "--count=2") == 0
    with Image.open(tmp_path / "f.png") as image:
        assert image.format == "PNG" and len(set(image.convert("L").tobytes())) > 20
    if name == "annotations":
        with (tmp_path / "f.csv").open(encoding="utf-8") as file:
            rows = list(csv.reader(file))
        assert [row[:2] for row in rows[1:]] == [["test-1", "red;green"], ["test-3", "red;green"]]


def test_the_list_needs_no_run(capsys):
    assert cli.run(["figures", "--list"]) == 0
    assert "CNN-RNN Fig. 10" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--figure=salience"], "figure 'salience' is unknown (did you mean 'saliency'?)"),
        (["--figure=saliency", "--label=gren"], "label 'gren' is unknown (did you mean 'green'?)"),
        (["--figure=saliency", "BAD"], "cannot be read"),
        (["--figure=saliency", "nowhere.png"], "image nowhere.png does not exist"),
        (["--figure=saliency", "--form=guide"], "did you mean 'guided'"),
        (["--figure=step-attention"], "'linear' labels images in one step"),
        (["--figure=stage-attention"], "'linear' has no attention maps; it has feature_map"),
        (["--figure=image-neighbours"], "no space that images and labels share"),
        (["--figure=feature-maps", "--stage=conv9"], "stage 'conv9' is unknown"),
        (["--figure=grad-cam", "--stage=stage1"], "stage that the head 'linear' reads 'stage1' is unknown"),
        (["--figure=per-class", "--split=dev"], "no split 'dev'"),
        (["--figure=per-class", "--out=f.pdf"], "ends in .png"),
        (["--figure=annotations", "--count=0"], "--count=0"),
        (["--figure=printed-table", "--table=cnn_rnn/9"], "table of cnn_rnn '9' is unknown"),
        (["--figure=printed-table"], "PAPER/NUMBER"),
        ([], "--figure=NAME is missing"),
    ],
)
def test_mistakes(run, tmp_path, arguments, message, capsys):
    (tmp_path / "bad.png").write_bytes(b"no image")
    arguments = [str(tmp_path / "bad.png") if a == "BAD" else a for a in arguments]
    out = [] if any(a.startswith("--out") for a in arguments) else [f"--out={tmp_path / 'f.png'}"]
    assert cli.run(["figures", f"--workdir={run}", *out, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "f.png").exists()


def test_boxes_of_a_data_set_without(finished_run, tmp_path, capsys):
    assert draw(finished_run, tmp_path / "f.png", "box-recall") == 2
    assert capsys.readouterr().err == "jaxmlic: the data set 'tiny' has no boxes\n"


def test_a_figure_of_a_run_needs_one(tmp_path, capsys):
    assert cli.run(["figures", "--figure=saliency", f"--out={tmp_path / 'f.png'}"]) == 2
    assert "add --workdir=RUN" in capsys.readouterr().err
    assert cli.run(["figures", "--figure=printed-table", "--table=mscnn_lce_mic/V", f"--out={tmp_path / 'f.png'}"]) == 0
