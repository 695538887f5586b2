"""A decoder's bundle: labels and their order as the run's, thresholds that only calibrate, other decoding found."""

import io
import re
import shutil
import sys

import numpy as np
import pytest
from bundle_facts import sign

import jaxmlic
from jaxmlic import export
from jaxmlic.cli import main as cli
from jaxmlic.data import datasets
from jaxmlic.errors import UserError
from jaxmlic.experiments import decisions, runs


@pytest.fixture(scope="module")
def run(path_run, tmp_path_factory):
    """A run whose probabilities are calibrated."""
    folder = shutil.copytree(path_run, tmp_path_factory.mktemp("paths") / "run")
    runs.fit_thresholds(folder)
    return jaxmlic.load(folder)


def test_a_bundle_emits_the_run_s_paths(run, bundle, data_dir, monkeypatch):
    monkeypatch.syspath_prepend(bundle)
    for name in ("run_bundle", "photographs", "decisions"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import photographs
    import run_bundle

    source = datasets.load("tiny", data_dir).source("test")
    encoded = [source[i]["image"] for i in range(10)]
    expected = run.predict(encoded)
    assert len(np.unique(expected.path, axis=0)) > 2 and (expected.chosen != (expected.scores >= 0)).any()
    loaded = run_bundle.Bundle(str(bundle))
    assert loaded.facts["decision"] == "decoder" and loaded.facts["calibration"] == "temperature"
    pixels = np.stack([photographs.read(io.BytesIO(data), 16) for data in encoded])
    for count in (1, 10):
        found = loaded.predict(pixels[:count])
        np.testing.assert_array_equal(found["path"], expected.path[:count])
        np.testing.assert_array_equal(found["chosen"], expected.chosen[:count])
        np.testing.assert_allclose(found["scores"], expected.scores[:count], atol=1e-4)
        np.testing.assert_allclose(found["probabilities"], expected.probabilities[:count], atol=1e-4)
    files = [io.BytesIO(data) for data in encoded]
    assert [[name for name, _ in labels] for _, labels in loaded.label(files)] == expected.labels


def test_a_bundle_of_paths_is_verified(run, bundle, capsys):
    assert cli.run(["verify-export", str(run.workdir), str(bundle)]) == 0
    printed = capsys.readouterr().out
    assert "top1_step" in printed and "0 labels decided otherwise" in printed
    assert printed.endswith("; 0 images with another path\n")


def test_other_decoding_is_found(run, copy, capsys):
    """The same labels and the same first label, so that no metric tells the paths from the run's."""
    file = copy / "run_bundle.py"
    code = file.read_text()
    assert code.count("**found,") == 1
    shorter = '"path": np.where(np.arange(3) == 1, 3, found["path"])'
    file.write_text(code.replace("**found,", f"**(found | {{{shorter}}}),"))
    sign(copy, "run_bundle.py")
    assert cli.run(["verify-export", str(run.workdir), str(copy)]) == 2
    printed = capsys.readouterr().err
    assert re.search(r"on 29 images of 'test': \d+ images have another path$", printed) and printed.count("\n") == 1


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda found: {}, None),
        (lambda found: {"path": None}, r"its paths have the shape \(\), and \(29, 3\)"),
        (lambda found: {"path": found["path"][:, :2]}, r"its paths have the shape \(29, 2\), and \(29, 3\)"),
        (lambda found: {"path": found["path"][::-1]}, "images have another path"),
        (lambda found: {"chosen": found["scores"] >= 0}, "CF1 is"),
    ],
)
def test_other_answers_of_the_bundle_s_process_are_found(run, bundle, other, message, monkeypatch):
    class Told:
        """In the place of the process; it answers what it is told."""

        def __init__(self, *_):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def send(self, images):
            pass

        def result(self):
            predicted = run.predict_pixels(run.pictures(split="test", rows=np.arange(29)).pixels)
            found = {name: np.asarray(value) for name, value in vars(predicted).items()}
            given = found | {"crc": np.zeros(29, np.uint32)} | other(found)
            return {name: value for name, value in given.items() if value is not None}

    monkeypatch.setattr(sys.modules["jaxmlic.export.verify"], "_Process", Told)
    if message is None:
        export.verify(run, export.read(bundle)).check(bundle)
        return
    with pytest.raises(UserError, match=message):
        export.verify(run, export.read(bundle)).check(bundle)


def test_a_rule_beside_a_decoder_stays_with_the_run(path_run, tmp_path):
    folder = shutil.copytree(path_run, tmp_path / "run")
    decisions.learn(folder, "cf1_at=2", folds=0)
    bundle = export.write(jaxmlic.load(folder), tmp_path / "bundle")
    assert bundle.facts["decision"] == "decoder" and bundle.facts["decided_by"] is None
    assert not (bundle.folder / "decision.json").exists()
    assert "the decoder chooses the labels: decision.json is left out" in bundle.notes
