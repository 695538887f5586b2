"""Learned decision rules: judged on other images, kept, under their own protocols, never from test labels."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from scipy.special import expit

import jaxmlic
from jaxmlic import metrics
from jaxmlic.cli import main as cli
from jaxmlic.data import datasets
from jaxmlic.errors import UserError
from jaxmlic.evaluation import compare, decision, ensemble, score_facts, score_file
from jaxmlic.evaluation.score_file import ScoreFile
from jaxmlic.experiments import decisions

NAMES = [f"word{i}" for i in range(20)]


def scores_of(seed=0, num_images=300, split="train", extra=None, test_split="test"):
    """Words of very different frequency."""
    rng = np.random.default_rng(seed)
    true = rng.normal(0, 2, (num_images, 20)) + np.linspace(-6, 0, 20)
    labels = (rng.random(true.shape) < expit(true)).astype(np.int8)
    return ScoreFile(
        (true + rng.normal(0, 0.5, true.shape)).astype(np.float32),
        labels,
        np.array([f"{split}{i}" for i in range(num_images)]),
        NAMES,
        {"data": {"train_split": "train", "test_split": test_split}},
        split=split,
        extra={"step": 1, "held_out": True} if extra is None else extra,
    )


@pytest.fixture(scope="module")
def rule():
    return decision.fit(scores_of(), "cf1_at=3", images=100)


def test_it_is_worth_more_on_images_that_it_was_not_learned_on(rule):
    numbers = rule.numbers
    assert numbers[decision.LEARNED]["CF1"] > numbers[decision.CALIBRATED]["CF1"]
    assert numbers[decision.LEARNED]["CF1"] > numbers[decision.POWER]["CF1"] - 0.01
    assert {row["labels an image"] for row in numbers.values()} == {3.0}
    test = scores_of(1, 100, "test")
    worth = {
        name: metrics.evaluate(test.scores, test.labels, f"top3_{name}", chosen=chosen)
        for name, chosen in (
            ("forced", None),
            ("learned", rule.choose(test.scores)),
            ("transductive", rule.choose_batch(test.scores)),
        )
    }
    assert worth["forced"]["CF1"] < worth["learned"]["CF1"] and worth["forced"]["CF1"] < worth["transductive"]["CF1"]
    assert worth["learned"]["protocol"] == rule.protocol == "top3_learned"


def test_parts_are_judged_by_fits_on_the_others():
    """With scores that say nothing, a rule that saw the labels would look good."""
    noise = dataclasses.replace(scores_of(), scores=np.random.default_rng(3).normal(size=(300, 20)).astype(np.float32))
    numbers = decision.fit(noise, "cf1_at=3", folds=3).numbers
    found = np.mean([metrics.evaluate(noise.scores, noise.labels, "top3_forced")["CF1"]])
    assert numbers[decision.LEARNED]["CF1"] < found + 0.05


def test_each_metric_is_served_best_by_its_own_rule():
    scores = scores_of(num_images=600)
    found = {name: decision.fit(scores, name, folds=3) for name in ("cf1", "of1", "utility=2")}
    own = {name: one.numbers[decision.LEARNED] for name, one in found.items()}
    assert own["cf1"]["CF1"] > max(own["of1"]["CF1"], found["cf1"].numbers[decision.PLAIN]["CF1"])
    assert own["of1"]["OF1"] > max(own["cf1"]["OF1"], found["of1"].numbers[decision.CALIBRATED]["OF1"])
    assert own["utility=2"]["utility"] >= found["utility=2"].numbers[decision.CALIBRATED]["utility"]
    assert found["of1"].protocol == "learned" and decision.BATCH not in found["of1"].numbers
    with pytest.raises(UserError, match="no transductive form"):
        found["of1"].choose_for("transductive", scores.scores)
    p = found["utility=2"].calibration.probabilities(scores.scores)
    np.testing.assert_array_equal(found["utility=2"].choose(scores.scores), p > 2 / 3)


def test_kept_and_read(rule, tmp_path):
    decision.save(tmp_path, rule)
    read = decision.load(tmp_path)
    test = scores_of(1, 50, "test").scores
    np.testing.assert_array_equal(read.choose(test), rule.choose(test))
    np.testing.assert_array_equal(read.choose_batch(test), rule.choose_batch(test))
    assert (read.numbers, read.power, read.facts(), read.images) == (rule.numbers, rule.power, rule.facts(), 100)
    assert decision.find(tmp_path, 1, "", NAMES)[1] == ""
    assert "of step 1, and that of step 2 is in use" in decision.find(tmp_path, 2, "", NAMES)[1]
    with pytest.raises(UserError, match="different classes"):
        decision.find(tmp_path, 1, "", [*NAMES[:-1], "cat"])
    stored = json.loads((tmp_path / "decision.json").read_text())
    for damage in ("{", json.dumps(stored | {"rule": {}}), json.dumps({"rule": 1}), json.dumps(stored | {"ids": None})):
        (tmp_path / "decision.json").write_text(damage)
        with pytest.raises(UserError, match="jaxmlic thresholds"):
            decision.load(tmp_path)
    assert decision.load(tmp_path / "nowhere") is None


def test_a_rule_for_k_labels_is_not_used_under_another_k(rule):
    with pytest.raises(UserError, match=r"learned for cf1_at=3; learn another with .* --for=cf1_at=5"):
        rule.choose_for("top5_learned", scores_of().scores)
    with pytest.raises(UserError, match="--for=cf1"):
        rule.choose_for("learned", scores_of().scores)


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ("cf1_at", "K labels"),
        ("cf1_at=2.5", "K labels"),
        ("cf1_at=0", "K labels"),
        ("cf1=3", "write --for=cf1 alone"),
        ("utility=-1", "COST"),
        ("utility=x", "COST"),
        ("cf2", "did you mean"),
    ],
)
def test_wrong_objectives(objective, message):
    with pytest.raises(UserError, match=message):
        decision.fit(scores_of(), objective)


@pytest.mark.parametrize(("labels", "k"), [(1, 1), (1, 5), (3, 5)])
def test_few_labels(labels, k):
    whole = scores_of(num_images=60)
    few = dataclasses.replace(
        whole,
        scores=np.round(whole.scores[:, -labels:]),  # ties
        labels=whole.labels[:, -labels:].copy(),
        class_names=NAMES[-labels:],
    )
    few.labels[::7] = -1
    found = decision.fit(few, f"cf1_at={k}")
    assert (found.choose(few.scores).sum(axis=1) == min(k, labels)).all()
    numbers = metrics.evaluate(few.scores, few.labels, found.protocol, chosen=found.choose(few.scores))
    assert numbers["protocol"] == f"top{k}_learned"
    with pytest.raises(UserError, match="no positive label"):
        decision.fit(dataclasses.replace(few, labels=np.zeros_like(few.labels)), f"cf1_at={k}")


def test_protocols_of_rules():
    for name, plain in (
        ("top5_learned", "top5_forced"),
        ("transductive", "all_point"),
        ("voc07_11pt+top2_transductive+unknown_wrong", "voc07_11pt+top2_forced+unknown_wrong"),
        ("path", "path"),
    ):
        protocol = metrics.get_protocol(name)
        assert protocol.name == name and protocol.plain == plain and protocol.needs_chosen
    assert not metrics.get_protocol("top5_forced").needs_chosen
    scores, labels = np.zeros((2, 3), np.float32), np.ones((2, 3), np.int8)
    with pytest.raises(ValueError, match="learned rule chose"):
        metrics.evaluate(scores, labels, "top2_learned")
    with pytest.raises(ValueError, match="needs 2 chosen labels"):
        metrics.evaluate(scores, labels, "top2_learned", chosen=np.ones((2, 3), bool))
    assert metrics.evaluate(scores, labels, "top5_learned", chosen=np.ones((2, 3), bool))["OR"] == 1.0


def test_score_files_learn_and_apply(tmp_path, capsys):
    train, test = scores_of(), scores_of(1, 60, "test", {"step": 1})
    score_file.save(tmp_path / "train.npz", train)
    score_file.save(tmp_path / "test.npz", test)
    command = ["thresholds", str(tmp_path / "train.npz"), "--for=cf1_at=3", f"--apply={tmp_path / 'test.npz'}"]
    assert cli.run(command) == 0
    text = capsys.readouterr().out
    assert "for batches of 60" in text and "learned rule" in text and "test.top3_learned" in text
    rule = decision.load(tmp_path / "train.decision.json")
    decided = score_file.load(tmp_path / "test.top3_learned.npz")
    np.testing.assert_array_equal(decided.chosen, rule.choose(test.scores))
    wanted = metrics.evaluate(test.scores, test.labels, "top3_learned", chosen=decided.chosen)
    assert json.loads((tmp_path / "test.top3_learned.json").read_text())["CF1"] == wanted["CF1"]
    assert cli.run([*command, "--protocol=top3_transductive", "--folds=0"]) == 0
    batch = score_file.load(tmp_path / "test.top3_transductive.npz")
    np.testing.assert_array_equal(batch.chosen, rule.choose_batch(test.scores))
    # Other commands on these files: own protocols, and no mistaking of a rule's labels for a decoder's.
    both = [str(tmp_path / f"test{name}.npz") for name in ("", ".top3_learned", ".top3_transductive")]
    found = compare.compare(both, ["plain", "rule", "batch"], protocol="top3_learned,path,top3_forced", draws=0).reports
    assert list(found["top3_learned"]) == ["rule"] and len(found["top3_forced"]) == 3 and "path" not in found
    with pytest.raises(UserError, match="fused scores have no rule's choice"):
        ensemble.common_protocol(both[1:2], [decided], None)
    assert "its rule was learned on" in str(
        score_facts.selected_on(dataclasses.replace(decided, split="train", config={}))
    )


def test_a_fusion_of_held_out_scores_is_learned_on(tmp_path):
    """Where only trained classes count: of held-out training images these are the classes with a positive."""
    config = {"data": {"train_split": "train"}, "eval": {"trained_classes_only": True}}
    first = dataclasses.replace(scores_of(), config=config, protocol="top3_forced")
    first.labels[:, 0] = 0
    second = dataclasses.replace(first, scores=first.scores + 0.1 * first.scores**2)
    paths = [str(tmp_path / f"{i}.npz") for i in range(2)]
    for path, one in zip(paths, (first, second), strict=True):
        score_file.save(path, one)
    fused = ensemble.combine(paths).scores
    assert fused.extra["untrained_classes"] == ["word0"]
    score_file.save(tmp_path / "fused.npz", fused)
    rule, _ = decisions.learn_on_scores(tmp_path / "fused.npz", "cf1_at=3", folds=0)
    assert (rule.choose(fused.scores).sum(axis=1) == 3).all()
    score_file.save(paths[1], dataclasses.replace(second, extra={"untrained_classes": []}))
    score_file.save(tmp_path / "fused.npz", ensemble.combine(paths).scores)
    with pytest.raises(UserError, match="trained on"):
        decisions.learn_on_scores(tmp_path / "fused.npz", "cf1_at=3")


def test_garbage_test_labels_change_nothing(tmp_path):
    train, test = scores_of(), scores_of(1, 60, "test", {"step": 1})
    garbage = dataclasses.replace(test, labels=1 - test.labels)
    stored = []
    for name, one in (("true", test), ("garbage", garbage)):
        (tmp_path / name).mkdir()
        score_file.save(tmp_path / name / "train.npz", train)
        score_file.save(tmp_path / name / "test.npz", one)
        files = [str(tmp_path / name / f"{split}.npz") for split in ("train", "test")]
        rule, path = decisions.learn_on_scores(files[0], "cf1_at=3", images=decisions.num_images(files[1]))
        decisions.apply(rule, files[1], "top3_transductive")
        chosen = score_file.load(tmp_path / name / "test.top3_transductive.npz").chosen
        stored.append((path.read_text(), chosen, rule.choose(one.scores)))
    for true, other in zip(*stored, strict=True):
        np.testing.assert_array_equal(true, other)


def test_wrong_score_files(tmp_path, capsys):
    for name, scores in (
        ("test", scores_of(split="test")),
        ("fitted", scores_of(extra={"step": 1})),
        ("held_out", scores_of()),
    ):
        score_file.save(tmp_path / f"{name}.npz", scores)
    rule = f"--for=cf1_at=3 --folds=0 --apply={tmp_path / 'held_out.npz'}".split()
    for arguments, message in (
        ([str(tmp_path / "test.npz"), "--for=cf1_at=3"], "scores of the test split 'test'"),
        ([str(tmp_path / "fitted.npz"), "--for=cf1"], "images that were trained on"),
        ([str(tmp_path / "held_out.npz"), *rule], "the rule was learned on 300 of its 300 images"),
        ([str(tmp_path / "held_out.npz"), "--for=cf1", "--shrink=1"], "belong to thresholds"),
        ([str(tmp_path / "held_out.npz"), "--images=5"], "belong to rules"),
        ([str(tmp_path / "held_out.npz"), "--for=cf1", "--split=val"], "belong to a run folder"),
        ([str(tmp_path / "held_out.npz"), "--for=cf1", "--folds=1"], "--folds=1: 0, or from 2"),
        ([str(tmp_path / "held_out.npz"), "--for=cf1", "--images=-1"], "at least one"),
        (["--for=cf1"], "name one run folder or score file"),
    ):
        assert cli.run(["thresholds", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, (arguments, error)


@pytest.fixture(scope="module")
def ruled_run(finished_run, tmp_path_factory):
    """A run with thresholds first, then a rule in their place."""
    folder = shutil.copytree(finished_run, tmp_path_factory.mktemp("decision") / "run")
    assert cli.run(["thresholds", str(folder)]) == 0
    assert cli.run(["thresholds", str(folder), "--for=cf1_at=2", "--folds=2"]) == 0
    return folder


def test_a_run_evaluates_and_predicts_with_it(ruled_run, data_dir, tmp_path, capsys):
    assert not (ruled_run / "thresholds.json").exists()
    rule = decision.load(ruled_run)
    run = jaxmlic.load(ruled_run)
    assert rule.images == len(run.dataset.rows("test")) and rule.split == "selection"
    for arguments, name in (
        (["--thresholds"], "top2_learned"),
        (["--protocol=top2_learned"], "top2_learned"),
        (["--protocol=top2_transductive"], "top2_transductive"),
    ):
        assert cli.run(["evaluate", str(f"--workdir={ruled_run}"), *arguments]) == 0
        scores = score_file.load(ruled_run / "scores" / f"test.{name}.npz")
        np.testing.assert_array_equal(scores.chosen, rule.choose_for(name, scores.scores))
        stored = json.loads((ruled_run / "scores" / f"test.{name}.json").read_text())
        assert stored["protocol"] == scores.protocol == name and scores.extra["rule"]["objective"] == "cf1_at=2"
    assert cli.run(["evaluate", f"--workdir={ruled_run}", "--protocol=top2_forced"]) == 0  # the plain one stays
    assert score_file.load(ruled_run / "scores" / "test.npz").chosen is None
    assert cli.run(["evaluate", f"--workdir={ruled_run}", "--protocol=top1_learned"]) == 2
    assert "--for=cf1_at=1" in capsys.readouterr().err
    photo = tmp_path / "photo.png"
    photo.write_bytes(datasets.load("tiny", data_dir).source("test")[0]["image"])
    found = run.predict([str(photo)])
    np.testing.assert_array_equal(found.chosen, rule.choose(found.scores))
    np.testing.assert_allclose(found.probabilities, rule.calibration.probabilities(found.scores), rtol=1e-5)
    assert len(found.labels[0]) == 2
    np.testing.assert_array_equal(run.predict([str(photo)], fitted=False).chosen, found.scores >= 0)
    assert cli.run(["predict", f"--workdir={ruled_run}", f"--out={tmp_path / 'p'}", str(photo)]) == 0
    assert "rule for cf1_at=2 (2 labels an image)" in capsys.readouterr().out
    assert json.loads((tmp_path / "p.json").read_text())["threshold"]["logit"] is None


def test_a_rule_of_another_checkpoint_is_not_used(ruled_run, data_dir, tmp_path, capsys):
    folder = shutil.copytree(ruled_run, tmp_path / "stale")
    stored = json.loads((folder / "decision.json").read_text())
    (folder / "decision.json").write_text(json.dumps(stored | {"step": 4}))
    pixels = np.zeros((1, 8, 8, 3), np.uint8)
    run = jaxmlic.load(folder)
    with pytest.warns(UserWarning, match="of step 4, and that of step .* Not used"):
        found = run.predict(pixels)
    np.testing.assert_array_equal(found.chosen, found.scores >= 0)
    with pytest.raises(UserError, match="learn it again"):
        run.evaluate(protocol="top2_learned")
    (folder / "decision.json").unlink()
    with pytest.raises(UserError, match="has no learned rule: make one with jaxmlic thresholds"):
        run.evaluate(protocol="top2_learned")


def test_thresholds_take_the_place_of_a_rule(ruled_run, tmp_path):
    folder = shutil.copytree(ruled_run, tmp_path / "run")
    assert cli.run(["thresholds", f"--workdir={folder}"]) == 0
    assert (folder / "thresholds.json").exists() and not (folder / "decision.json").exists()
