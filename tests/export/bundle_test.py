"""Bundles: written, run without the library, verified against the run, and mistakes in one line."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from bundle_facts import change_facts, sign
from PIL import Image

import jaxmlic
from jaxmlic import export
from jaxmlic.cli import main as cli
from jaxmlic.data import datasets
from jaxmlic.evaluation import decision, thresholds
from jaxmlic.evaluation.score_file import ScoreFile
from jaxmlic.experiments import decisions, runs
from jaxmlic.export import decisions as bundled


@pytest.fixture(scope="module")
def run(finished_run, tmp_path_factory):
    """A run with metrics and fitted thresholds."""
    folder = shutil.copytree(finished_run, tmp_path_factory.mktemp("exported") / "run")
    runs.evaluate(folder)
    runs.fit_thresholds(folder)
    return jaxmlic.load(folder)


def test_a_bundle_says_where_it_came_from(run, bundle):
    facts = json.loads((bundle / "bundle.json").read_text())
    assert facts["format"] == 1 and facts["class_names"] == run.class_names and facts["image_size"] == 16
    assert facts["run"]["step"] == run.step and facts["run"]["model"] == run.model_digest
    assert facts["run"]["data"]["name"] == "tiny" and len(facts["run"]["data"]["fingerprint"]) == 16
    assert facts["run"]["metrics"]["mAP"] == pytest.approx(run.evaluate().numbers["mAP"])
    assert facts["decision"] == "thresholds" and facts["calibration"] == "temperature"
    assert {"jax", "jaxmlic"} <= set(facts["versions"]) and facts["platforms"] == ["cpu", "cuda", "tpu"]
    assert set(facts["files"]) | {"bundle.json"} == {path.name for path in bundle.iterdir()}
    assert thresholds.load(bundle).values.tolist() == thresholds.load(run.workdir).values.tolist()
    assert len((bundle / "run_bundle.py").read_text().splitlines()) <= 65
    with np.load(bundle / "weights.npz", allow_pickle=False) as weights:
        assert "params/classifier/kernel" in weights.files


BLOCKED = """
import sys
for name in ("jaxmlic", "flax", "cv2", "orbax", "ml_collections"):
    sys.modules[name] = None
sys.path.insert(0, sys.argv[1])
import json, photographs, run_bundle
import numpy as np
bundle = run_bundle.Bundle(sys.argv[1])
pixels = np.stack([photographs.read(file, 16) for file in sys.argv[3:]])
parts = [bundle.predict(pixels[:n]) for n in (1, 3, 8)]
np.savez(sys.argv[2], **{f"{name}{i}": value for i, part in enumerate(parts) for name, value in part.items()})
"""


def test_a_bundle_predicts_as_the_run_where_the_library_is_not(run, bundle, data_dir, tmp_path):
    source = datasets.load("tiny", data_dir).source("test")
    files = [tmp_path / f"{i}.png" for i in range(8)]
    for i, file in enumerate(files):
        file.write_bytes(source[i]["image"])
    arguments = [str(bundle), str(tmp_path / "found.npz"), *map(str, files)]
    subprocess.run([sys.executable, "-c", BLOCKED, *arguments], check=True, cwd=tmp_path)
    expected = run.predict(files)
    found = np.load(tmp_path / "found.npz")
    for i, count in enumerate((1, 3, 8)):
        np.testing.assert_allclose(found[f"scores{i}"], expected.scores[:count], atol=1e-4)
        np.testing.assert_allclose(found[f"probabilities{i}"], expected.probabilities[:count], atol=1e-4)
        np.testing.assert_array_equal(found[f"chosen{i}"], expected.chosen[:count])


@pytest.fixture(scope="module")
def ruled(finished_run, tmp_path_factory):
    """(run with a learned rule in place of thresholds, its bundle)."""
    folder = tmp_path_factory.mktemp("ruled")
    shutil.copytree(finished_run, folder / "run")
    decisions.learn(folder / "run", "cf1_at=2", folds=0)
    return jaxmlic.load(folder / "run"), export.write(jaxmlic.load(folder / "run"), folder / "bundle")


def test_a_learned_rule_decides_in_the_bundle(ruled, data_dir, capsys):
    run, bundle = ruled
    assert bundle.facts["decision"] == "rule" and bundle.facts["decided_by"] == "decision.json"
    assert json.loads((bundle.folder / "decision.json").read_text())["ids"] == []
    found = export.verify(run, bundle)
    rated = run.evaluate(fitted=True).numbers
    assert rated["protocol"] == "top2_learned" and found.other_decisions == 0
    for name in ("CF1", "OF1"):
        assert found.bundle[f"{name} of the decisions"] == pytest.approx(rated[name], abs=1e-12)
        assert found.run[f"{name} of the decisions"] == pytest.approx(rated[name], abs=1e-12)
    assert cli.run(["verify-export", str(run.workdir), str(bundle.folder)]) == 0
    assert "0 labels decided otherwise" in capsys.readouterr().out


def test_another_rule_than_the_run_s_is_found(ruled, tmp_path, capsys):
    run, bundle = ruled
    copy = shutil.copytree(bundle.folder, tmp_path / "copy")
    stored = json.loads((copy / "decision.json").read_text())
    stored["rule"]["k"] = 1
    (copy / "decision.json").write_text(json.dumps(stored))
    sign(copy, "decision.json")
    assert cli.run(["verify-export", str(run.workdir), str(copy)]) == 2
    message = capsys.readouterr().err
    assert "of the decisions is" in message and message.count("\n") == 1


@pytest.mark.parametrize("objective", ["cf1_at=3", "cf1", "of1", "utility=0.5"])
def test_decisions_are_the_library_s(objective, tmp_path):
    rng = np.random.default_rng(0)
    true = rng.normal(0, 3, (200, 9)) + np.linspace(-5, 1, 9)
    labels = (rng.random(true.shape) < 1 / (1 + np.exp(-true))).astype(np.int8)
    ids, names = np.array([f"i{n}" for n in range(200)]), [f"word{c}" for c in range(9)]
    rule = decision.fit(ScoreFile(true.astype(np.float32), labels, ids, names), objective, folds=0)
    scores = rng.normal(0, 20, (500, 9)).astype(np.float32)  # also far outside of what was fitted on
    scores[:3] = [np.zeros(9), np.full(9, -1e30), np.full(9, 1e30)]
    stored = json.loads(decision.save(tmp_path, rule).read_text())
    logits, chosen = bundled.make(stored)(scores)
    np.testing.assert_allclose(logits, rule.calibration.logits(scores), rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(chosen, rule.choose(scores))


def test_a_bundle_is_verified(run, bundle, capsys):
    assert cli.run(["verify-export", str(run.workdir), str(bundle)]) == 0
    printed = capsys.readouterr().out
    assert "29 images of 'test'" in printed and "mAP" in printed
    assert "0 labels decided otherwise; 0 images read in other pixels" in printed


def test_a_changed_weight_is_found(run, copy, capsys):
    with np.load(copy / "weights.npz") as stored:
        weights = dict(stored)
    weights["params/classifier/bias"] = weights["params/classifier/bias"] + np.float32(0.01)
    np.savez(copy / "weights.npz", **weights)
    assert cli.run(["verify-export", str(run.workdir), str(copy)]) == 2
    assert "weights.npz is damaged: its SHA-256" in capsys.readouterr().err
    sign(copy, "weights.npz")
    assert cli.run(["verify-export", str(run.workdir), str(copy)]) == 2
    message = capsys.readouterr().err
    assert "does not predict what its run predicts" in message and message.count("\n") == 1


def test_a_bundle_that_cannot_be_run_ends_in_one_line(run, copy, capsys):
    (copy / "run_bundle.py").write_text("import cv2\n")
    sign(copy, "run_bundle.py")
    assert cli.run(["verify-export", str(run.workdir), str(copy)]) == 2
    message = capsys.readouterr().err
    assert "cannot be run" in message and "No module named 'cv2'" in message and message.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda facts: facts.update(format=2), "format 2"),
        (lambda facts: facts["run"].update(model="other"), "has another model at step"),
        (lambda facts: facts.update(decision="rule"), "decides by rule, and"),
        (lambda facts: facts.pop("class_names"), "bundle.json is damaged"),
        (lambda facts: facts["files"].pop("weights.npz"), "bundle.json is damaged"),
        (lambda facts: facts.update(files=[]), "bundle.json is damaged"),
    ],
)
def test_bundles_that_cannot_be_verified(run, copy, change, message, capsys):
    change_facts(copy, change)
    assert cli.run(["verify-export", str(run.workdir), str(copy)]) == 2
    printed = capsys.readouterr().err
    assert message in printed and printed.count("\n") == 1


def test_folders_that_are_no_bundles(run, copy, tmp_path, capsys):
    (copy / "program.jax").unlink()
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "bundle.json").write_text("{")
    for folder, message in (
        (copy, "program.jax: cannot be read"),
        (tmp_path / "empty", "is not a bundle"),
        (tmp_path / "nowhere", "is not a bundle"),
        (tmp_path / "broken", "cannot be read as a bundle.json"),
    ):
        assert cli.run(["verify-export", str(run.workdir), str(folder)]) == 2
        printed = capsys.readouterr().err
        assert message in printed and printed.count("\n") == 1


def test_runs_and_folders_that_are_not_exported(finished_run, bundle, tmp_path, capsys):
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    begun = shutil.copytree(finished_run, tmp_path / "begun", ignore=shutil.ignore_patterns("checkpoints"))
    (tmp_path / "file").write_text("mine")
    for source, out, message in (
        (finished_run, bundle, "is not empty, and nothing in it is overwritten"),
        (finished_run, tmp_path / "file", "is a file"),
        (begun, tmp_path / "out", "holds no checkpoints; train there first"),
        (tmp_path / "no run", tmp_path / "out", "must be the folder of a `jaxmlic train`"),
        (finished_run, "gs://bucket/out", "a folder of this machine"),
    ):
        assert cli.run(["export", str(source), f"--out={out}"]) == 2
        printed = capsys.readouterr().err
        assert message in printed and printed.count("\n") == 1
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before
    assert (tmp_path / "file").read_text() == "mine" and not list(tmp_path.glob("out/*"))


def test_an_export_that_fails_leaves_nothing(finished_run, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jaxmlic.export.bundle.storage.save_npz", fail)
    with pytest.raises(OSError, match="No space"):
        export.write(jaxmlic.load(finished_run), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    monkeypatch.undo()
    (tmp_path / "out").rmdir()


def test_the_loader_refuses_what_is_newer_or_damaged(copy, monkeypatch):
    monkeypatch.syspath_prepend(copy)
    for name in ("run_bundle", "photographs", "decisions"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import run_bundle

    (copy / "weights.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"weights\.npz is damaged"):
        run_bundle.Bundle(str(copy))
    (copy / "weights.npz").unlink()
    with pytest.raises(FileNotFoundError):
        run_bundle.Bundle(str(copy))
    change_facts(copy, lambda facts: facts.update(format=2))
    with pytest.raises(ValueError, match="format 2, and this file reads 1"):
        run_bundle.Bundle(str(copy))


def test_the_loader_as_a_command(bundle, copy, tmp_path):
    def label(folder, *files):
        command = [sys.executable, "-B", str(folder / "run_bundle.py"), *files]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    Image.new("RGB", (20, 20), (220, 40, 40)).save(tmp_path / "red.png")
    (tmp_path / "text.jpg").write_text("no photograph")
    found = label(bundle, "red.png", "red.png")
    assert found.returncode == 0 and [line.split("\t")[0] for line in found.stdout.splitlines()] == ["red.png"] * 2
    (copy / "program.jax").unlink()
    for folder, file, message in ((bundle, "text.jpg", "cannot identify image file"), (copy, "red.png", "program.jax")):
        found = label(folder, file)
        assert found.returncode == 1 and message in found.stderr and found.stderr.count("\n") == 1
