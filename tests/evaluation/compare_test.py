"""Comparison of score files: what is put into order and said, numbers against numpy, warnings, mistakes."""

import dataclasses
import json

import numpy as np
import pytest
from conftest import table_of

from jaxmlic import metrics
from jaxmlic.cli import main as cli
from jaxmlic.evaluation import compare, score_facts, score_file
from jaxmlic.evaluation.score_file import ScoreFile

NAMES = ["cat", "dog", "cow", "hen", "yak"]
TRUTH = np.random.default_rng(0).integers(0, 2, (60, 5)).astype(np.int8)
TRUTH[:, 4] = 0  # no yak anywhere


def make(seed, noise=2.0, **changes):
    """Noisy logits of the true labels."""
    rng = np.random.default_rng(seed)
    data = {"name": "farm", "train_split": "train", "val_split": "", "val_fraction": 0.1, "test_split": "test"}
    fields = {
        "scores": (rng.normal(size=TRUTH.shape) * noise + 2 * TRUTH - 1).astype(np.float32),
        "labels": TRUTH,
        "ids": np.array([f"im{i:02d}" for i in range(len(TRUTH))]),
        "class_names": NAMES,
        "config": {"head": "linear", "data": data, "eval": {"min_positives": 1, "trained_classes_only": False}},
        "protocol": "all_point",
        "split": "test",
        "threshold": 0.0,
        "extra": {"step": 10 * seed},
    }
    return ScoreFile(**{**fields, **changes})


def with_data(score, **values):
    return dataclasses.replace(score, config=score.config | {"data": score.config["data"] | values})


@pytest.fixture
def files(tmp_path):
    def write(*members):
        paths = [str(tmp_path / f"{'ABCD'[i]}.npz") for i in range(len(members))]
        for path, member in zip(paths, members, strict=True):
            score_file.save(path, member)
        return paths

    return write


def run(paths, **options):
    return compare.compare(paths, ["A", "B", "C", "D"][: len(paths)], **({"draws": 50} | options))


def test_numbers_are_evaluate_s(files):
    a, b = make(1), make(2, noise=4.0)
    found = run(files(a, b), protocol="all")
    assert list(found.reports) == [name for name in metrics.PROTOCOLS if name != "path"]
    for name, reports in found.reports.items():
        for member, scores in zip("AB", (a, b), strict=True):
            wanted = metrics.evaluate(scores.scores, scores.labels, name, threshold=0.0)
            for key in ("mAP", "CF1", "OF1", "IF1", "top1"):
                assert reports[member][key] == pytest.approx(wanted[key], nan_ok=True)
                low, high = found.intervals[name][member][key]
                assert low <= wanted[key] <= high
    assert found.notes == []


def test_a_better_model_is_told_from_a_worse_one_and_equal_ones_are_not(files):
    paths = files(make(1, noise=0.5), make(2, noise=8.0), make(3, noise=0.5))
    for test in compare.TESTS:
        found = run(paths, draws=200, test=test, numbers=["mAP"], all_pairs=True)
        p = {(one.a, one.b): (one.p, one.p_holm) for one in found.tests}
        assert set(p) == {("A", "B"), ("A", "C"), ("B", "C")}
        assert p["A", "B"][1] < 0.05 and p["B", "C"][1] < 0.05 and p["A", "C"][0] > 0.05
        assert all(adjusted >= own for own, adjusted in p.values())
    (one,) = run(paths[:2], numbers=["mAP"], draws=200).tests
    assert one.difference == pytest.approx(one.low / 2 + one.high / 2, abs=0.1) and one.low > 0


def test_too_few_draws_for_so_many_tests_are_named(files):
    found = run(files(make(1), make(2)), draws=50)
    assert "50 draws cannot give a p below 0.039" in found.warnings[-1] and "--draws=120" in found.warnings[-1]
    assert "draws" not in run(files(make(1), make(2)), draws=120).warnings[-1]


def test_a_decoder_s_labels_of_one_file_only(files):
    a = make(1, chosen=TRUTH == 1)
    found = run(files(a, make(2)), protocol="path,all_point")
    assert list(found.reports["path"]) == ["A"] and found.reports["path"]["A"]["OF1"] == 1.0
    assert "protocol path: B: no decoder's labels in the file" in found.notes
    assert {one.protocol for one in found.tests} == {"all_point"}


def test_rare_classes_that_do_not_count_are_named(files):
    a = make(1)
    rare = a.labels.copy()
    rare[:, 0] = 0
    rare[:3, 0] = 1
    rules = {"eval": {"min_positives": 5, "trained_classes_only": False}}
    found = run(files(make(1, labels=rare, config=a.config | rules)), draws=0)
    assert "1 of 5 classes have fewer positives than the run's config.eval.min_positives" in "\n".join(found.warnings)
    assert found.reports["all_point"]["A"]["num_left_out"] == 2


def test_tests_of_the_same_rule_are_made_once(files):
    found = run(files(make(1), make(2)), protocol="all_point,top3_forced,voc10", numbers=["mAP", "top1"])
    assert [(one.protocol, one.number) for one in found.tests] == [
        ("all_point", "mAP"),
        ("all_point", "top1"),
        ("voc10", "mAP"),
    ]


def test_classes_and_images_are_put_into_one_order(files):
    a, b = make(1), make(2)
    rows, columns = np.random.default_rng(0).permutation(60)[:45], [3, 1, 0, 2, 4]
    chosen = b.scores > 1
    moved = dataclasses.replace(
        b,
        scores=b.scores[np.ix_(rows, columns)],
        labels=b.labels[np.ix_(rows, columns)],
        ids=b.ids[rows],
        class_names=[NAMES[c] for c in columns],
        chosen=chosen[np.ix_(rows, columns)],
        threshold=np.arange(5.0)[columns],
    )
    found = run(files(a, moved))
    common = found.members[1].common
    kept = np.sort(rows)
    np.testing.assert_array_equal(common.scores, b.scores[kept])
    np.testing.assert_array_equal(common.chosen, chosen[kept])
    np.testing.assert_array_equal(common.threshold, np.arange(5.0))
    assert found.num_images == 45
    notes = "\n".join(found.notes)
    assert "B: its classes are in another order; 3 columns are put into that of A" in notes
    assert "A: 60 images, 45 of them in all files" in notes and "the threshold differs" in notes
    wanted = metrics.evaluate(b.scores[kept], b.labels[kept], threshold=np.arange(5.0))
    assert found.reports["all_point"]["B"]["CF1"] == wanted["CF1"]


def test_why_numbers_differ(files):
    other = TRUTH.copy()
    other[0, :2] = -1
    a = make(1)
    b = with_data(make(2, labels=other, protocol="top3_forced", split="val2"), name="barn")
    b = dataclasses.replace(b, scores=b.scores.astype(np.float16).astype(np.float32), threshold=1.5)
    notes = "\n".join(run(files(a, b)).notes)
    for part in (
        "B: 2 labels (0.67%) differ from those of A",
        "the data set differs: farm: A; barn: B",
        "the split differs: test: A; val2: B",
        "the protocol that the file reports by differs: all_point: A; top3_forced: B",
        "the threshold differs: logit 0: A; logit 1.5: B",
        "the scores' precision differs: float32 logits: A; float16 logits: B",
    ):
        assert part in notes
    assert run(files(a, make(3))).notes == []


@pytest.mark.parametrize(
    ("change", "precision"),
    [
        (lambda x: x, "float32 logits"),
        (lambda x: x.astype(np.float16), "float16 logits"),
        (lambda x: np.round(x, 2), "logits of 2 decimals"),
        (lambda x: np.round(1 / (1 + np.exp(-x)), 3), "probabilities of 3 decimals"),
        (lambda x: 1 / (1 + np.exp(-x)), "float32 probabilities"),
        (lambda x: (x.view(np.int32) & np.int32(-65536)).view(np.float32), "bfloat16 logits"),
    ],
)
def test_precision_of_scores(change, precision):
    scores = np.random.default_rng(0).normal(size=(100, 7)).astype(np.float32)
    assert score_facts.precision_of(change(scores).astype(np.float32)) == precision


def test_warnings(files):
    selected = with_data(make(1), val_split="test")
    trained = with_data(make(2), train_split="test")
    fitted = make(3, extra={"thresholds": {"split": "test"}})
    tied = make(4)
    tied = dataclasses.replace(tied, scores=np.round(tied.scores / 3))
    found = run(files(selected, trained, fitted, tied), draws=0)
    text = "\n".join(found.warnings)
    assert "A: its checkpoint was selected on the split that is scored ('test')" in text
    assert "B: it was trained on the split that is scored" in text
    assert "C: its thresholds were fitted on the split" in text
    assert "1 of 5 classes have no positive in these images and are in no mean: yak" in text
    assert "D: " in text and "share their score with a negative" in text and "A: 0" not in text
    assert found.tests == [] and found.intervals == {}
    carved = score_facts.selected_on(make(5, split="val"))
    assert carved == ["these images selected its checkpoint: the numbers are too high"]
    assert score_facts.selected_on(with_data(make(5, split="val"), test_split="val")) == []
    mixed = make(6, config={"ensemble": {"members": [{"config": selected.config}]}})
    assert "its checkpoint was selected on" in score_facts.selected_on(mixed)[0]


def test_ties_by_trying_both_orders():
    scores, labels = np.round(make(4).scores / 3), TRUTH
    low, high, share = score_facts.tie_range(metrics.decisions(scores, labels))
    for wanted, sign in ((low, -1), (high, 1)):
        broken = scores + sign * 0.1 * labels
        assert metrics.evaluate(broken, labels)["mAP"] == pytest.approx(wanted)
    tied = [
        any(scores[i, c] == scores[j, c] and labels[j, c] == 0 for j in range(60))
        for i, c in zip(*np.nonzero(labels == 1), strict=True)
    ]
    assert share == pytest.approx(np.mean(tied))


def test_one_threshold_for_all(files):
    a, b = make(1, threshold=3.0), make(2)
    b = dataclasses.replace(b, scores=1 / (1 + np.exp(-b.scores)), threshold=None)
    found = run(files(a, b), probability=0.7)
    for name, scores in (("A", a.scores), ("B", make(2).scores)):
        wanted = metrics.evaluate(scores, TRUTH, threshold=np.log(0.7 / 0.3))
        assert found.reports["all_point"][name]["OF1"] == pytest.approx(wanted["OF1"])


def test_the_command_writes_what_it_prints(files, tmp_path, capsys):
    paths = files(make(1), make(2))
    for name in ("c.json", "c.csv"):
        assert cli.run(["compare", *paths, "--draws=40", "--protocol=all", f"--out={tmp_path / name}"]) == 0
    text = capsys.readouterr().out
    assert "protocol top3_forced" in text and "p (Holm)" in text
    stored = json.loads((tmp_path / "c.json").read_text())
    rows = table_of(tmp_path / "c.csv")
    value = next(
        r for r in rows if (r["kind"], r["protocol"], r["number"], r["file"]) == ("value", "voc10", "mAP", "B")
    )
    assert float(value["value"]) == stored["reports"]["voc10"]["B"]["mAP"]
    assert [float(value["low"]), float(value["high"])] == stored["intervals"]["voc10"]["B"]["mAP"]
    tests = [r for r in rows if r["kind"] == "difference"]
    assert [float(r["p_holm"]) for r in tests] == [one["p_holm"] for one in stored["tests"]]
    assert cli.run(["compare", paths[0], "--draws=20"]) == 0
    assert "paired tests" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no score files given"),
        (["A", "none.npz"], "none.npz: no such score file"),
        (["A", "A"], "is given twice"),
        (["A", "EMPTY"], "neither a score file nor a run folder (it has no config.json)"),
        (["A", "B", "--protocol=top3_force"], "did you mean 'top3_forced'"),
        (["A", "B", "--protocol=path"], "none of the files has a decoder's labels"),
        (["A", "B", "--numbers=mPA"], "number 'mPA' is unknown (did you mean 'mAP'?)"),
        (["A", "B", "--threshold=0"], "a probability between 0 and 1; 0.5 is logit 0"),
        (["A", "B", "--draws=-1"], "--draws"),
        (["A", "B", "--out=x.txt"], "its name ends in .json or .csv"),
        (["A", "C"], "different classes"),
        (["A", "D"], "no image is in all of them"),
    ],
)
def test_mistakes(files, tmp_path, capsys, arguments, message):
    strange = make(3, class_names=["cat", "dog", "cow", "hen", "elk"])
    elsewhere = make(4, ids=np.array([f"x{i}" for i in range(60)]))
    named = dict(zip("ABCD", files(make(1), make(2), strange, elsewhere), strict=True))
    (tmp_path / "empty").mkdir()
    named["EMPTY"] = str(tmp_path / "empty")
    assert cli.run(["compare", *(named.get(a, a) for a in arguments)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1, error


def test_an_image_twice(files, capsys):
    twice = make(1, ids=np.array(["a", *(f"im{i:02d}" for i in range(58)), "a"]))
    assert cli.run(["compare", *files(twice)]) == 2
    assert "image 'a' occurs twice" in capsys.readouterr().err
