"""Score files come back as they went in, and a damaged or foreign one is refused in one clear line."""

import dataclasses
import json
import pickle
import zipfile

import numpy as np
import pytest

from jaxmlic.errors import UserError
from jaxmlic.evaluation import score_file
from jaxmlic.evaluation.score_file import ScoreFile
from jaxmlic.labels.names import check_same_classes


def make(**changes):
    rng = np.random.default_rng(0)
    fields = {
        "scores": rng.normal(size=(5, 3)).astype(np.float32),
        "labels": rng.integers(-1, 2, size=(5, 3)).astype(np.int8),
        "ids": [f"image {i}.jpg" for i in range(4)] + ["Übung_猫.png"],
        "class_names": ["cat", "dog", "potted plant"],
        "config": {"model": {"name": "cnn_rnn", "beam": 2}, "lr": 1e-4, "seed": None},
        "protocol": "top3_forced",
        "split": "test",
        "threshold": 0.1,
        "chosen": rng.random((5, 3)) < 0.5,
        "extra": {"note": "naïve", "steps": [1, 2]},
    }
    return ScoreFile(**{**fields, **changes})


def assert_equal(a, b):
    for field in dataclasses.fields(ScoreFile):
        x, y = getattr(a, field.name), getattr(b, field.name)
        assert type(x) is type(y), field.name
        if isinstance(x, np.ndarray):
            assert x.dtype == y.dtype and x.shape == y.shape, field.name
            np.testing.assert_array_equal(x, y, err_msg=field.name)
        else:
            assert x == y, field.name


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"threshold": None, "chosen": None, "config": {}, "extra": {}},
        {"scores": np.array([[np.inf], [-np.inf]]), "labels": np.ones((2, 1), int), "ids": ["a", "b"],
         "class_names": ["x"], "chosen": None},
        {"scores": np.zeros((0, 3)), "labels": np.zeros((0, 3), np.int8), "ids": [], "chosen": None},
    ],
)  # fmt: skip
def test_round_trip(tmp_path, changes):
    written = make(**changes)
    path = tmp_path / "runs" / "scores" / "test.npz"
    score_file.save(path, written)
    read = score_file.load(path)
    assert_equal(written, read)
    assert (read.scores.dtype, read.labels.dtype, read.ids.dtype.kind) == (np.float32, np.int8, "U")
    assert [p.name for p in path.parent.iterdir()] == ["test.npz"]


def test_other_tools_can_read_it(tmp_path):
    score_file.save(tmp_path / "a.npz", make())
    with np.load(tmp_path / "a.npz", allow_pickle=False) as z:
        assert z["scores"].dtype == np.float32
        assert z["class_names"].tolist() == ["cat", "dog", "potted plant"]
        assert json.loads(str(z["config"]))["model"]["beam"] == 2
        assert str(z["protocol"]) == "top3_forced"
        assert float(z["threshold"]) == 0.1


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    score_file.save(path, make(split="old"))

    def breaks(file, **arrays):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", breaks)
    with pytest.raises(UserError, match="disk full"):
        score_file.save(path, make(split="new"))
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]
    assert score_file.load(path).split == "old"


def test_a_config_json_cannot_hold_is_refused_before_writing(tmp_path):
    with pytest.raises(TypeError, match="JSON"):
        score_file.save(tmp_path / "a.npz", make(config={"f": print}))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"scores": np.zeros((5, 3), int)}, "scores must be float"),
        ({"scores": np.zeros(5)}, "scores must be float"),
        ({"scores": np.full((5, 3), np.nan)}, "NaN at row 0, column 0"),
        ({"labels": np.zeros((5, 2), np.int8)}, "labels must be int8"),
        ({"labels": np.zeros((5, 3))}, "labels must be int8"),
        ({"labels": np.full((5, 3), 2)}, "range from 2 to 2"),
        ({"ids": ["a"]}, "ids must be one for each of the 5 rows"),
        ({"class_names": ["a", "b"]}, "2 class names for 3 columns"),
        ({"class_names": ["a", "b", "a"]}, "'a' occurs twice"),
        ({"chosen": np.zeros((5, 3), np.int8)}, "chosen must be bool"),
        ({"chosen": np.zeros((5, 2), bool)}, "chosen must be bool"),
        ({"threshold": float("nan")}, "threshold is NaN"),
    ],
)
def test_wrong_fields(changes, match):
    with pytest.raises(ValueError, match=match):
        make(**changes)


def rewrite(path, **changes):
    with np.load(path) as z:
        arrays = {**{k: z[k] for k in z.files}, **changes}
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})


def test_refusals_are_one_line_naming_the_file(tmp_path):
    good = tmp_path / "good.npz"
    score_file.save(good, make())
    content = good.read_bytes()

    def written(name, data):
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    def changed(name, **changes):
        path = written(name, content)
        rewrite(path, **changes)
        return path

    flipped = bytearray(content)
    flipped[200] ^= 0xFF  # inside the scores: the checksum must tell
    np.save(tmp_path / "bare.npy", np.zeros(3))
    with zipfile.ZipFile(tmp_path / "zip.npz", "w") as z:
        z.writestr("scores.npy", b"nonsense")
    cases = [
        (tmp_path / "none.npz", "no such score file"),
        (tmp_path, "cannot be read"),
        (written("empty.npz", b""), "cannot be read"),
        (written("text.npz", b"image,cat,dog\n"), "cannot be read"),
        (written("pickle.npz", pickle.dumps({"scores": 1})), "cannot be read"),
        (written("half.npz", content[: len(content) // 2]), "cannot be read"),
        (written("flipped.npz", bytes(flipped)), "cannot be read"),
        (tmp_path / "bare.npy", "an .npz of several arrays"),
        (tmp_path / "zip.npz", "lacks labels, ids"),
        (changed("no_names.npz", class_names=None), "lacks class_names"),
        (changed("object.npz", ids=np.array([{}] * 5, dtype=object)), "cannot be read"),
        (changed("shape.npz", labels=np.zeros((4, 3), np.int8)), "labels must be int8"),
        (changed("values.npz", labels=np.full((5, 3), 7, np.int8)), "range from 7 to 7"),
        (changed("json.npz", config=np.array("{nope")), "not a valid score file"),
    ]
    for path, match in cases:
        with pytest.raises(UserError, match=match) as caught:
            score_file.load(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
        assert "jaxmlic evaluate" in str(caught.value)


def test_same_classes_pass():
    check_same_classes(["a", "b"], np.array(["a", "b"]), "x", "y")
    check_same_classes([], (), "x", "y")


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        (
            ["cat", "dog", "cow"],
            ["cat", "cow", "dog"],
            ["same 3 classes in another order", "column 1", "'dog'", "'cow'"],
        ),
        (["cat", "dog"], ["cat", "hound"], ["different classes", "column 1", "'dog' in A.npz", "'hound' in B.npz"]),
        (["cat", "dog"], ["cat"], ["A.npz has 2 classes", "B.npz has 1", "only A.npz has 'dog'"]),
        (["cat"], ["cat", "dog"], ["A.npz has 1 classes", "B.npz has 2", "only B.npz has 'dog'"]),
        (["Cat"], ["cat"], ["different classes", "column 0"]),
    ],
)
def test_other_classes_are_told_apart(a, b, words):
    with pytest.raises(UserError) as caught:
        check_same_classes(a, b, "A.npz", "B.npz")
    for word in words:
        assert word in str(caught.value)
