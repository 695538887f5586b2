"""`jaxmlic report`: the page of runs, score files, runs without checkpoints or photographs; mistakes in one line."""

import json
import re
import shutil

import numpy as np
import pytest
from conftest import COLOURS, examples, tiny_config

from jaxmlic.cli import main as cli
from jaxmlic.data.prepare import writer
from jaxmlic.evaluation import score_file
from jaxmlic.evaluation.score_file import ScoreFile
from jaxmlic.training import loop

NASTY = ["<b>x</b>", "a & b", 'say "hi"', "</script><script>alert(1)</script>"]


def scored(path, names, *, ids=None, seed=0, count=30, dataset="made"):
    rng = np.random.default_rng(seed)
    labels = (np.random.default_rng(9).random((count, len(names))) < 0.4).astype(np.int8)
    scores = (rng.normal(size=labels.shape) + 2 * labels - 1).astype(np.float32)
    ids = np.array([f"i{n}" for n in range(count)]) if ids is None else ids
    score_file.save(path, ScoreFile(scores, labels, ids, names, config={"data": {"name": dataset}}, split="test"))
    return str(path)


def data_of(path):
    """The JSON of the page, and the page."""
    page = path.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1]), page


@pytest.fixture(scope="module")
def scored_run(finished_run, tmp_path_factory):
    """A copy of the finished run with its scores."""
    folder = tmp_path_factory.mktemp("report") / "tiny"
    shutil.copytree(finished_run, folder)
    assert cli.run(["evaluate", f"--workdir={folder}"]) == 0
    return folder


def test_a_page_of_a_run(scored_run, tmp_path, capsys):
    out = tmp_path / "r.html"
    assert cli.run(["report", str(scored_run), f"--out={out}", "--images=5"]) == 0
    assert re.search(rf"written: {out} \(\d+\.\d MiB, \d+ s\)", capsys.readouterr().out)
    data, page = data_of(out)
    (run,) = data["runs"]
    assert data["classes"] == list(COLOURS)
    assert run["AP"] == [
        round(value, 4) for value in json.loads((scored_run / "scores/test.all_point.json").read_text())["AP"]
    ]
    assert {"train/loss", "val/mAP"} <= set(run["curves"]) and len(run["embeddings"]["classifier"]["x"]) == 3
    images = run["gallery"]["images"]
    assert [image for image in images if "src" in image] == images[:5]
    scores = score_file.load(scored_run / "scores/test.npz")
    for kind, sign in (("wrong", 0), ("missed", 1)):
        for c, entries in enumerate(run["gallery"][kind]):
            for number, score in entries:
                row = scores.ids.tolist().index(images[number]["id"])
                assert all(truth == scores.labels[row, label] for label, _, _, truth in images[number]["top"])
                assert scores.labels[row, c] == sign and score == round(float(scores.scores[row, c]), 3)
                if "src" in images[number]:
                    assert set(images[number]["class_maps"][str(c)]) == {"Grad-CAM", "gradient"}
    assert "Not played" in page and 'http-equiv="Content-Security-Policy" content="default-src \'none\'' in page


def test_names_are_text_everywhere(tmp_path):
    files = [scored(tmp_path / f"{name}.npz", NASTY, seed=k) for k, name in enumerate(["a<i>", "b&c"])]
    assert cli.run(["report", *files, f"--out={tmp_path / 'r.html'}"]) == 0
    data, page = data_of(tmp_path / "r.html")
    assert data["classes"] == NASTY and [run["name"] for run in data["runs"]] == ["a<i>.npz", "b&c.npz"]
    assert not any(name in page for name in NASTY if name != 'say "hi"') and "a<i>" not in page
    assert "a&lt;i&gt;.npz" in page and page.count("</script>") == 3


def test_a_second_run_is_put_into_the_order_of_the_first(tmp_path):
    names, ids = ["x", "y", "z"], np.array([f"i{n}" for n in range(30)])
    first = scored(tmp_path / "a.npz", names)
    own = score_file.load(first)
    moved = ScoreFile(
        own.scores[::-1, ::-1], own.labels[::-1, ::-1], ids[::-1], names[::-1], config=own.config, split="test",
        chosen=own.scores[::-1, ::-1] > 1,
    )  # fmt: skip
    score_file.save(tmp_path / "b.npz", moved)
    arguments = ["report", first, str(tmp_path / "b.npz"), f"--out={tmp_path / 'r.html'}"]
    assert cli.run(arguments) == 0
    runs = data_of(tmp_path / "r.html")[0]["runs"]
    assert runs[0]["AP"] == runs[1]["AP"] and runs[0]["gallery"] == runs[1]["gallery"]
    only = ["report", str(tmp_path / "b.npz"), "--protocol=path", f"--out={tmp_path / 'p.html'}"]
    assert cli.run(only) == 0
    assert cli.run(["report", *arguments[2:0:-1], "--protocol=path"]) == 2  # the second has no path


def test_without_a_checkpoint_the_scores_are_shown(scored_run, tmp_path, capsys):
    shutil.copytree(scored_run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    assert cli.run(["report", str(tmp_path / "run")]) == 0
    data, page = data_of(tmp_path / "run" / "report.html")
    assert "No checkpoint could be read" in page and data["runs"][0]["embeddings"] == {}
    assert not any("src" in image for image in data["runs"][0]["gallery"]["images"])
    shutil.rmtree(tmp_path / "run" / "scores")
    capsys.readouterr()
    assert cli.run(["report", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "holds no checkpoints" in error and "test.npz to report on either" in error and error.count("\n") == 1


def test_where_the_photographs_are_gone_the_page_says_so(scored_run, tmp_path):
    assert cli.run(["report", str(scored_run), f"--data-dir={tmp_path}", f"--out={tmp_path / 'r.html'}"]) == 0
    data, page = data_of(tmp_path / "r.html")
    assert "No photographs: " in page and data["runs"][0]["embeddings"]
    assert not any("src" in image for image in data["runs"][0]["gallery"]["images"])


def test_scores_are_made_where_there_are_none(finished_run, tmp_path):
    assert cli.run(["report", str(finished_run), "--images=0", f"--out={tmp_path / 'r.html'}"]) == 0
    assert "Scored for this report" in (tmp_path / "r.html").read_text(encoding="utf-8")
    assert not (finished_run / "scores").exists()


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"dataset": "other"}, "make one report for each data set"),
        ({"count": 20}, "not the images of"),
        ({"names": ["x", "y", "w"]}, "class"),
        ({"same": True}, "named twice"),
    ],
)
def test_runs_that_cannot_be_side_by_side(tmp_path, capsys, second, message):
    first = scored(tmp_path / "a.npz", ["x", "y", "z"])
    if "same" in second:
        other = first
    else:
        names = second.pop("names", ["x", "y", "z"])
        other = scored(tmp_path / "b.npz", names, **second)
    assert cli.run(["report", first, other]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(("arguments", "message"), [(["nowhere"], "does not exist"), (["x.npz"], "x.npz"), ([], "RUN")])
def test_mistakes(arguments, message, capsys):
    assert cli.run(["report", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_the_pointing_game_of_a_run(tmp_path, capsys, data_dir):
    """Four steps on pictures whose boxes are known; the page shows the numbers."""

    def with_boxes(split, count):
        for one in examples(split, count, 3):
            squares = [
                {"bbox": (0.1, 0.2, 0.6, 0.7), "label": k, "difficult": False}
                for k in np.flatnonzero(one["labels"] == 1)
            ]
            yield one | {"boxes": squares}

    splits = {"train": with_boxes("train", 16), "test": with_boxes("test", 10)}
    writer.write("tiny", tmp_path, list(COLOURS), splits, {}, has_boxes=True)
    config = tiny_config(tmp_path, **{"train.duration": "4 steps", "data.val_fraction": 0.0})
    loop.run(config, str(tmp_path / "run"))
    run = tmp_path / "run"
    assert cli.run(["pointing", f"--workdir={run}", "--count=4"]) == 0
    printed = capsys.readouterr().out
    found = json.loads((run / "scores/test.pointing.json").read_text())
    assert [form["form"] for form in found["forms"]] == ["Grad-CAM", "gradient", "guided"]
    assert found["images"] == 4 and all(
        form["centre"] == 1 and sum(form["pairs"]) == found["pairs"] for form in found["forms"]
    )
    assert "Grad-CAM" in printed and "4 images of test" in printed
    assert (run / "scores/test.pointing.csv").read_text().splitlines()[0] == "class,map,pairs,hits"
    assert cli.run(["report", str(run), "--images=2"]) == 0
    assert "does the highest point of a map lie on an object" in (run / "report.html").read_text(encoding="utf-8")
    assert cli.run(["pointing", f"--workdir={run}", f"--data-dir={data_dir}"]) == 2
    assert capsys.readouterr().err.strip() == "jaxmlic: the data set 'tiny' has no boxes"
    for argument, message in (("--count=0", "count"), ("--tolerance=-1", "tolerance")):
        assert cli.run(["pointing", f"--workdir={run}", argument]) == 2
        assert message in capsys.readouterr().err
