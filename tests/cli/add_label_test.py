"""`jaxmlic add-label`: the scores of the labels before stay the same bits, and the new ones are worth something."""

import json
import shutil

import cv2
import numpy as np
import pytest
from conftest import COLOURS, examples, tiny_config

from jaxmlic import run as run_lib
from jaxmlic.cli import main as cli
from jaxmlic.data import datasets, loader
from jaxmlic.data.prepare import writer
from jaxmlic.evaluation import score_file
from jaxmlic.kernels import linear
from jaxmlic.training import loop

TEXT = {"head": "linear", "model.pool": "avg_unit"}


def added(argv, capsys):
    """What the command prints, as lines."""
    capsys.readouterr()
    assert cli.run(["add-label", *map(str, argv)]) == 0, capsys.readouterr().err
    return capsys.readouterr().out.splitlines()


def refused(argv, capsys):
    capsys.readouterr()
    assert cli.run(["add-label", *map(str, argv)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("jaxmlic: ") and captured.err.count("\n") == 1
    return captured.err


@pytest.fixture(scope="module")
def two_labels(tmp_path_factory):
    """(run of red and green alone, folder of data sets): `two` as `tiny` without blue, `tiny` with it."""
    folder = tmp_path_factory.mktemp("data")
    splits = {"train": lambda: examples("train", 72, 0), "test": lambda: examples("test", 29, 1)}
    writer.write("tiny", folder, list(COLOURS), {name: make() for name, make in splits.items()}, {})
    less = {name: ({**one, "labels": one["labels"][:2]} for one in make()) for name, make in splits.items()}
    writer.write("two", folder, ["red", "green"], less, {})
    run = tmp_path_factory.mktemp("runs") / "two"
    loop.run(tiny_config(folder, **{"data.name": "two", "train.duration": "40 steps"}), str(run))
    return run, folder


@pytest.fixture(scope="module")
def photos(two_labels, tmp_path_factory):
    """Folder of the pictures with blue, and a table of all training pictures."""
    folder = tmp_path_factory.mktemp("photos")
    dataset = datasets.load("tiny", two_labels[1])
    source = dataset.source("train")
    (folder / "blue").mkdir()
    rows = ["file,labels"]
    for i, labels in enumerate(dataset.labels("train")):
        (folder / f"{i}.png").write_bytes(source[i]["image"])
        rows.append(f"{i}.png,{'blue' if labels[2] == 1 else 'none'}")
        if labels[2] == 1:
            shutil.copy(folder / f"{i}.png", folder / "blue")
    (folder / "all.csv").write_text("\n".join(rows) + "\n")
    return folder


def same_before(old, new, count):
    """Scores of the test split before and after; the files of `evaluate`."""
    for folder in (old, new):
        assert cli.run(["evaluate", f"--workdir={folder}"]) == 0
    scores = [score_file.load(folder / "scores" / "test.npz") for folder in (old, new)]
    np.testing.assert_array_equal(scores[0].scores, scores[1].scores[:, :count])
    assert scores[1].class_names[:count] == scores[0].class_names
    np.testing.assert_array_equal(scores[0].labels, scores[1].labels[:, :count])
    return scores[1]


def test_a_column_of_a_data_set(two_labels, photos, tmp_path, capsys):
    """Evaluated on the data set that has the label; predicted from photographs; exported; the unit is that of `fit`."""
    run, folder = two_labels
    lines = added([run, "--label=blue", "--positives=tiny", "--data=tiny", f"--workdir={tmp_path / 'new'}"], capsys)
    assert lines[0].startswith("blue: ") and "held-out AP" in lines[0] and "blue added" in lines[1]
    found = same_before(run, tmp_path / "new", 2)
    assert found.class_names == ["red", "green", "blue"]
    assert set(np.unique(found.labels[:, 2])) == {-1, 0, 1}
    new = run_lib.load(tmp_path / "new")
    assert new.evaluate().numbers["AP"][2] > 0.45  # at random a third
    before = run_lib.load(run)
    view = loader.train_and_val(before.config.data, before.dataset, 0)[0]
    labels = datasets.load("tiny", folder).labels("train")[view.indices, 2]
    unit = linear.fit(before.image_features(view), labels)
    layer = new._restored.variables["params"]["added_0"]
    np.testing.assert_array_equal(layer["kernel"][:, 0], unit.kernel)
    assert cli.run(["predict", f"--workdir={tmp_path / 'new'}", str(photos / "0.png")]) == 0
    predicted = json.loads((tmp_path / "new" / "predictions.json").read_text())["images"][0]["logits"]
    assert list(predicted) and set(predicted) == {"red", "green", "blue"}
    assert cli.run(["thresholds", str(tmp_path / "new")]) == 0
    assert cli.run(["export", str(tmp_path / "new"), f"--out={tmp_path / 'bundle'}"]) == 0
    assert cli.run(["verify-export", str(tmp_path / "new"), str(tmp_path / "bundle")]) == 0
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    assert [one["name"] for one in config["added_labels"]] == ["blue"] and len(config["starts"]) == 2


def test_a_folder_and_a_table_of_photographs(two_labels, photos, tmp_path, capsys):
    """The run's own data set does not have the label: it is unknown there, and its average precision not a number."""
    run, _ = two_labels
    for name, where in (("folder", photos / "blue"), ("table", photos / "all.csv")):
        lines = added([run, "--label=blue", f"--positives={where}", f"--workdir={tmp_path / name}"], capsys)
        assert ("taken as without 'blue': the 54 training images of 'two'" in lines[0]) == (name == "folder")
        found = same_before(run, tmp_path / name, 2)
        assert (found.labels[:, 2] == -1).all()
        numbers = run_lib.load(tmp_path / name).evaluate().numbers
        assert np.isnan(numbers["AP"][2]) and np.isfinite(numbers["mAP"])


def test_text_vectors_and_a_second_addition(data_dir, tmp_path, capsys):
    """One after the other, each in a layer of its own; a run can start from the result."""
    config = tiny_config(data_dir, **TEXT)
    loop.run(config, str(tmp_path / "run"))
    vectors = np.random.default_rng(0).normal(size=(3, 96))
    np.savez(tmp_path / "v.npz", names=["pink", "black", "white"], vectors=vectors, logit_scale=np.log(20.0))
    more = ["--label=pink", "--label=black", f"--vectors={tmp_path / 'v.npz'}", "--bias=-2"]
    lines = added([tmp_path / "run", *more, f"--workdir={tmp_path / 'five'}"], capsys)
    assert lines[0].endswith("v.npz: 20 * cosine -2")
    found = same_before(tmp_path / "run", tmp_path / "five", 3)
    run = run_lib.load(tmp_path / "run")
    features = run.image_features(loader.find_view(run.config.data, run.dataset, 0, "test"))
    unit = vectors[:2] / np.linalg.norm(vectors[:2], axis=1)[:, None]
    np.testing.assert_allclose(found.scores[:, 3:], 20 * features @ unit.T - 2, atol=1e-4)
    added([tmp_path / "five", "--label=white", *more[2:], f"--workdir={tmp_path / 'six'}"], capsys)
    six = same_before(tmp_path / "five", tmp_path / "six", 5)
    assert six.class_names == ["red", "green", "blue", "pink", "black", "white"]
    # A run on a data set with all six classes starts from them as one layer.
    splits = {
        name: ({**one, "labels": np.resize(one["labels"], 6)} for one in examples(name, 40, 2))
        for name in ("train", "test")
    }
    writer.write("six", tmp_path / "data", six.class_names, splits, {})
    start = {"data.name": "six", "start_from": str(tmp_path / "six"), "train.duration": "0 steps"}
    loop.run(tiny_config(tmp_path / "data", **TEXT, **start), str(tmp_path / "whole"))
    test = loader.find_view(run.config.data, run.dataset, 0, "test")
    pixels = run.pictures(split="test", rows=np.arange(len(test))).pixels
    whole = run_lib.load(tmp_path / "whole").predict_pixels(pixels).scores
    np.testing.assert_allclose(whole, six.scores, atol=1e-4)


def test_mistakes_end_in_one_line_and_status_2(two_labels, photos, tmp_path, capsys):
    run, _ = two_labels
    np.savez(tmp_path / "v.npz", names=["blue"], vectors=np.ones((1, 96)))
    new, blue, column = f"--workdir={tmp_path / 'new'}", "--label=blue", "--positives=tiny"

    def line(*argv):
        return refused(argv, capsys)

    assert f"{run} has the label 'red' already, one of 2" in line(run, "--label=red", column, new)
    assert "--label=blue is given twice" in line(run, blue, blue, column, new)
    assert "(did you mean 'blue'?)" in line(run, "--label=bleu", column, new)
    assert f"{tmp_path / 'none'}: no run is there" in line(tmp_path / "none", blue, column, new)
    assert f"{run} exists; name a new folder with --workdir" in line(run, blue, column, f"--workdir={run}")
    assert "text vectors are compared by direction" in line(run, blue, f"--vectors={tmp_path / 'v.npz'}", new)
    assert "no folder, no table and no prepared data set" in line(run, blue, "--positives=tyni", new)
    assert "a folder of photographs has one label" in line(
        run, blue, "--label=b", f"--positives={photos / 'blue'}", new
    )
    assert "all.csv has no label 'b'" in line(run, "--label=b", f"--positives={photos / 'all.csv'}", new)
    assert "one of the arguments --vectors --positives is required" in line(run, blue, new)
    assert "--scale and --bias go with --vectors" in line(run, blue, column, "--scale=3", new)
    assert "data set 'two' has no label 'blue'" in line(run, blue, column, "--data=two", new)
    (tmp_path / "one").mkdir()
    cv2.imwrite(str(tmp_path / "one" / "a.png"), np.zeros((9, 9, 3), np.uint8))
    assert "1 images with 'blue' and 54 without; give 2" in line(run, blue, f"--positives={tmp_path / 'one'}", new)
    (tmp_path / "one" / "b.png").write_bytes(b"no picture")
    assert "1 images could not be read, such as" in line(run, blue, f"--positives={tmp_path / 'one'}", new)
    assert not (tmp_path / "new").exists()


def test_another_head_is_refused(data_dir, tmp_path, capsys):
    config = tiny_config(data_dir, **{"train.duration": "1 steps"})
    with config.unlocked():
        config.head, config.model.hidden = "cnn_lstm_rmlc.plain", 0
    loop.run(config, str(tmp_path / "run"))
    line = refused([tmp_path / "run", "--label=b", "--positives=tiny", f"--workdir={tmp_path / 'new'}"], capsys)
    assert "the head 'cnn_lstm_rmlc.plain' has no layer 'classifier' on the image's vector alone" in line
