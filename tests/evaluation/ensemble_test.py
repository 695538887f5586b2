"""Fusion of score files: numbers against numpy and by hand, alignment, what is written, mistakes."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from conftest import table_of
from sklearn.metrics import average_precision_score

from jaxmlic.cli import main as cli
from jaxmlic.errors import UserError
from jaxmlic.evaluation import ensemble, score_file
from jaxmlic.evaluation.score_file import ScoreFile
from jaxmlic.experiments import runs
from jaxmlic.training import run_folder

NAMES = ["cat", "dog", "cow", "hen"]
TRUTH = np.random.default_rng(0).integers(0, 2, (40, 4)).astype(np.int8)


def make(seed, **changes):
    """Noisy scores of the true labels."""
    rng = np.random.default_rng(seed)
    fields = {
        "scores": (rng.normal(size=TRUTH.shape) * 2 + 2 * TRUTH - 1).astype(np.float32),
        "labels": TRUTH,
        "ids": np.array([f"im{i:02d}" for i in range(len(TRUTH))]),
        "class_names": NAMES,
        "config": {"seed": seed, "eval": {"min_positives": 1, "trained_classes_only": False}},
        "protocol": "top3_forced",
        "split": "test",
        "extra": {"step": seed},
    }
    return ScoreFile(**{**fields, **changes})


@pytest.fixture
def files(tmp_path):
    """A function that writes score files and returns their paths."""

    def write(*members):
        paths = [tmp_path / f"{'ABC'[i]}.npz" for i in range(len(members))]
        for path, member in zip(paths, members, strict=True):
            score_file.save(path, member)
        return [str(path) for path in paths]

    return write


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def test_fuse_by_hand():
    a, b = np.array([[0.0, 4.0]], np.float32), np.array([[2.0, -2.0]], np.float32)
    np.testing.assert_allclose(ensemble.fuse([a, b], [0.5, 0.5]), [[1.0, 1.0]])
    np.testing.assert_allclose(ensemble.fuse([a, b], [0.25, 0.75]), [[1.5, -0.5]])
    found = ensemble.fuse([a, b], [0.25, 0.75], "probability")
    np.testing.assert_allclose(sigmoid(found), 0.25 * sigmoid(a) + 0.75 * sigmoid(b), rtol=1e-6)
    assert found.dtype == np.float32


def test_probabilities_next_to_0_and_1_keep_their_order():
    a = np.array([[200.0, 190.0, -200.0, -190.0]], np.float32)
    found = ensemble.fuse([a, a + 1], [0.5, 0.5], "probability")[0]
    assert np.isfinite(found).all() and found[0] > found[1] > found[3] > found[2]


def test_the_command_writes_a_score_file_and_a_report(files, tmp_path, capsys):
    members = [make(1), make(2), make(3)]
    paths = files(*members)
    out = tmp_path / "new" / "fused.npz"
    assert cli.run(["ensemble", *paths, f"--out={out}"]) == 0
    fused = score_file.load(out)
    np.testing.assert_allclose(fused.scores, np.mean([m.scores for m in members], axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(fused.labels, TRUTH)
    assert (fused.protocol, fused.split, fused.class_names) == ("top3_forced", "test", NAMES)
    sources = fused.config["ensemble"]["members"]
    assert [s["file"] for s in sources] == paths and [s["config"]["seed"] for s in sources] == [1, 2, 3]
    assert fused.config["ensemble"]["space"] == "logit"

    report = json.loads((tmp_path / "new" / "fused.top3_forced.json").read_text())
    expected = [average_precision_score(TRUTH, x, average="macro") for x in (m.scores for m in members)]
    fused_ap = average_precision_score(TRUTH, fused.scores, average="macro")
    assert report["mAP"] == pytest.approx(fused_ap) and report["protocol"] == "top3_forced"
    assert [m["mAP"] for m in report["members"]] == pytest.approx(expected)
    hits = np.take_along_axis(TRUTH, np.argsort(-fused.scores, axis=1)[:, :3], axis=1).sum()
    assert report["OP"] == pytest.approx(hits / (3 * len(TRUTH))) and report["OR"] == pytest.approx(hits / TRUTH.sum())
    rows = table_of(tmp_path / "new" / "fused.top3_forced.csv")
    assert [row["class"] for row in rows] == NAMES
    assert (tmp_path / "new" / "fused.top3_forced.png").read_bytes().startswith(b"\x89PNG")

    printed = capsys.readouterr().out
    assert all(path in printed for path in paths) and "top3_forced" in printed
    assert fused_ap > max(expected) and f"*{100 * fused_ap:.2f}" in printed
    best = paths[int(np.argmax(expected))]
    assert f"beats its best member, {best}: +{100 * (fused_ap - max(expected)):.2f} mAP" in printed


def test_an_ensemble_below_its_best_member_is_reported(files, tmp_path, capsys):
    good = make(1, scores=(6.0 * TRUTH - 3).astype(np.float32))
    bad = make(2, scores=(np.random.default_rng(2).normal(size=TRUTH.shape) * 50).astype(np.float32))
    assert cli.run(["ensemble", *files(good, bad), f"--out={tmp_path / 'x.npz'}"]) == 0
    printed = capsys.readouterr().out
    assert f"does not beat its best member, {tmp_path / 'A.npz'}: -" in printed


def test_weights_and_space(files, tmp_path):
    members = [make(1), make(2)]
    options = ["--weights=1,3", "--space=probability", f"--out={tmp_path / 'x.npz'}"]
    assert cli.run(["ensemble", *files(*members), *options]) == 0
    expected = 0.25 * sigmoid(members[0].scores) + 0.75 * sigmoid(members[1].scores)
    np.testing.assert_allclose(sigmoid(score_file.load(tmp_path / "x.npz").scores), expected, rtol=1e-4)


def test_rows_and_columns_in_another_order_are_aligned_and_noted(files, tmp_path, capsys):
    first, second = make(1), make(2)
    rows, columns = np.random.default_rng(5).permutation(40), [2, 0, 3, 1]
    moved = dataclasses.replace(
        second,
        scores=second.scores[np.ix_(rows, columns)],
        labels=second.labels[np.ix_(rows, columns)],
        ids=second.ids[rows],
        class_names=[NAMES[c] for c in columns],
    )
    straight = ensemble.combine(files(first, second))
    turned = ensemble.combine(files(first, moved))
    note = f"{tmp_path / 'B.npz'}: classes and images put into the order of {tmp_path / 'A.npz'}"
    assert (straight.notes, turned.notes) == ([], [note])
    assert straight.report["mAP"] == turned.report["mAP"]
    np.testing.assert_array_equal(straight.scores.scores, turned.scores.scores)
    assert turned.scores.class_names == NAMES and turned.scores.ids.tolist() == first.ids.tolist()
    capsys.readouterr()
    assert cli.run(["ensemble", *files(first, moved), f"--out={tmp_path / 'x.npz'}"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == note


def test_one_protocol_for_all(files, tmp_path, capsys):
    paths = files(make(1), make(2, protocol="all_point"))
    assert cli.run(["ensemble", *paths]) == 2
    assert "reports by all_point" in capsys.readouterr().err
    assert cli.run(["ensemble", *paths, f"--out={tmp_path / 'x.npz'}", "--protocol=voc07_11pt"]) == 0
    found = json.loads((tmp_path / "x.voc07_11pt.json").read_text())
    assert found["protocol"] == "voc07_11pt" and found["threshold"] == 0.0


def test_the_classes_that_count_are_those_of_the_run(files):
    rules = {"eval": {"min_positives": 1, "trained_classes_only": True}}
    members = [make(seed, config=rules, extra={"untrained_classes": ["cow"]}) for seed in (1, 2)]
    found = ensemble.combine(files(*members))
    assert np.isnan(found.report["AP"]).tolist() == [False, False, True, False]
    assert found.scores.extra["untrained_classes"] == ["cow"]
    (note,) = ensemble.combine(files(members[0], make(2))).notes
    assert "B.npz: its run counts other classes" in note
    with pytest.raises(UserError, match="does not say which classes were trained"):
        ensemble.combine(files(make(1, config=rules), make(2)))


def test_runs_of_the_trainer_fuse(finished_run, tmp_path):
    """From `jaxmlic evaluate` on: the same checkpoint under another class of metrics, and a noisy copy."""
    run = shutil.copytree(finished_run, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["config"]["eval"]["trained_classes_only"] = True
    (run / "config.json").write_text(json.dumps(config))
    alone = runs.evaluate(str(run))
    path = run / run_folder.SCORES / "test.npz"
    scores = score_file.load(path)
    assert scores.extra["untrained_classes"] == []
    noisy = dataclasses.replace(scores, scores=scores.scores + 1e-4)
    score_file.save(tmp_path / "noisy.npz", noisy)
    found = ensemble.combine([path, tmp_path / "noisy.npz"]).report
    assert found["mAP"] == pytest.approx(alone["mAP"], abs=1e-3) and found["protocol"] == "all_point"


def spoiled(**changes):
    return lambda: make(2, **changes)


def cell(value):
    scores = make(2).scores.copy()
    scores[3, 1] = value
    return scores


LABELS = TRUTH.copy()
LABELS[7, 2] = -1


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (spoiled(scores=cell(np.inf)), r"B\.npz: the score of image 'im03', class 'dog' is infinite; .*float32"),
        (spoiled(scores=sigmoid(make(2).scores)), r"B\.npz: all scores lie in 0\.\.1, as probabilities do"),
        (spoiled(class_names=["cat", "dog", "cow", "pig"]), r"'hen' in .*A\.npz but 'pig' in .*B\.npz"),
        (spoiled(ids=np.array([f"im{i:02d}" for i in range(1, 41)])), r"B\.npz: not the images of .*A\.npz.*'im00'"),
        (spoiled(ids=np.array(["im00"] * 40)), r"B\.npz: image 'im00' occurs twice"),
        (spoiled(labels=LABELS), r"B\.npz: 1 labels differ .* image 'im07', class 'cow' \(-1, not [01]\)"),
        (lambda: make(1), r"B\.npz: holds the same scores as .*A\.npz"),
        (spoiled(protocol="path"), "choose with --protocol"),
    ],
)
def test_files_that_do_not_belong_together(files, capsys, tmp_path, second, message):
    paths = files(make(1), second())
    assert cli.run(["ensemble", *paths, f"--out={tmp_path / 'x.npz'}"]) == 2
    captured = capsys.readouterr()
    with pytest.raises(UserError, match=message):
        raise UserError(captured.err)
    assert captured.err.count("\n") == 1 and captured.out == "" and not (tmp_path / "x.npz").exists()


def test_part_of_the_images(files, capsys):
    part = make(2)
    part = dataclasses.replace(part, scores=part.scores[:30], labels=part.labels[:30], ids=part.ids[:30])
    for pair, owner in (((make(1), part), "A"), ((part, make(1)), "B")):
        paths = files(*pair)
        assert cli.run(["ensemble", *paths]) == 2
        message = capsys.readouterr().err
        assert f"10 are only in {paths['AB'.index(owner)]} (first: 'im30')" in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": np.full((40, 4), np.nan, np.float32)}, "NaN at row 0, column 0"),
        ({"scores": np.ones((40, 4), np.int64)}, "scores must be float"),
    ],
)
def test_scores_that_no_score_file_may_hold(files, capsys, change, message):
    paths = files(make(1), make(2))
    with np.load(paths[1]) as archive:
        arrays = {**archive, **change}
    np.savez(paths[1], **arrays)
    assert cli.run(["ensemble", *paths]) == 2
    error = capsys.readouterr().err
    assert message in error and paths[1] in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "0 score files given; give two or more"),
        (["A"], "1 score file given"),
        (["A", "A"], "holds the same scores"),
        (["A", "none.npz"], "none.npz: no such score file"),
        (["A", "B", "--weights=1"], "--weights=1: 1 for 2 score files"),
        (["A", "B", "--weights=1,x"], "not numbers"),
        (["A", "B", "--weights=1,0"], "every weight must be positive"),
        (["A", "B", "--weights=1,nan"], "every weight must be positive"),
        (["A", "B", "--space=cosine"], "invalid choice: 'cosine'"),
        (["A", "B", "--protocol=top3_force"], "did you mean 'top3_forced'"),
        (["A", "B", "--protocol=path"], "fused scores have no decoder's path"),
        (["A", "B", "--out=fused.csv"], "a score file's name ends in .npz"),
        (["A", "B", "--out=A"], "is one of the files to fuse"),
        (["A", "B", "--out=A/x.npz"], "cannot be written"),
    ],
)
def test_mistakes_of_the_command_line(files, capsys, arguments, message):
    named = dict(zip("AB", files(make(1), make(2)), strict=True))
    argv = [named.get(a, a.replace("=A", f"={named['A']}")) for a in arguments]
    assert cli.run(["ensemble", *argv]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
