"""A text encoder's file of label vectors: both kinds of file, names, and what is wrong with one."""

import json
import pickle

import numpy as np
import pytest
from conftest import tiny_config
from safetensors.numpy import save_file

from jaxmlic import config as config_lib
from jaxmlic.errors import UserError
from jaxmlic.labels import text_vectors
from jaxmlic.labels.word_vectors import word_vectors
from jaxmlic.training import loop

NAMES = ["Traffic Light", "cat", "T-shirt"]
VECTORS = np.arange(12, dtype=np.float32).reshape(3, 4) + 1


def npz(path, **arrays):
    np.savez(path, **{"names": np.array(NAMES), "vectors": VECTORS} | arrays)
    return path


def tensors(path, arrays, names=None):
    save_file(arrays, path, metadata=None if names is None else {"names": json.dumps(names)})
    return path


@pytest.fixture(params=["npz", "a tensor a name", "vectors"])
def file(request, tmp_path):
    """The same rows in each form, with scale 100 and bias -2."""
    numbers = {"logit_scale": np.float32(np.log(100)), "logit_bias": np.float32(-2)}
    if request.param == "npz":
        return npz(tmp_path / "w", **numbers).with_suffix(".npz")
    numbers = {name: np.array([value]) for name, value in numbers.items()}
    if request.param == "vectors":
        return tensors(tmp_path / "w.bin", {"vectors": VECTORS} | numbers, NAMES)
    return tensors(tmp_path / "w.bin", {**dict(zip(NAMES, VECTORS, strict=True)), **numbers})


def test_labels_are_found_by_their_names(file):
    found = text_vectors.read(file)
    vectors = found.of(["cat", "traffic_light", "t shirt", "trafficlight"])
    np.testing.assert_array_equal(vectors, VECTORS[[1, 0, 2, 0]])
    assert vectors.dtype == np.float32 and found.bias == -2
    assert found.scale == pytest.approx(100, rel=1e-6)
    np.testing.assert_allclose(np.linalg.norm(text_vectors.unit(vectors), axis=1), 1, rtol=1e-6)


def test_a_label_that_is_missing_is_an_error_and_not_a_random_vector(file):
    """Through the door of the words, too."""
    line = r"no vector for 2 of 3 labels: 'cta', 'dog' \(did you mean 'cat'\?\); encode their names with the same text"
    for call in (
        lambda: text_vectors.read(file).of(["cta", "cat", "dog"]),
        lambda: word_vectors(["cta", "cat", "dog"], file),
    ):
        with pytest.raises(UserError, match=line) as caught:
            call()
        assert str(caught.value).startswith(f"{file}: ")
    vectors, lookup = word_vectors(["t-shirt", "cat"], file)
    np.testing.assert_array_equal(vectors, VECTORS[[2, 1]])
    assert not lookup.missing and not lookup.partial and "2 of 2 names" in str(lookup)


def test_an_npz_of_words_keeps_its_random_vectors(tmp_path):
    path = tmp_path / "w.npz"
    np.savez(path, words=np.array(["light", "cat"]), vectors=VECTORS[:2])
    vectors, lookup = word_vectors(["traffic light", "cat", "dog"], path)
    np.testing.assert_array_equal(vectors[:2], VECTORS[:2])
    assert lookup.missing == ("dog",) and lookup.partial == {"traffic light": ("traffic",)}


def test_whole_names_alone_count(tmp_path):
    """ "light" is another label than "traffic light", whose mean with nothing it would be."""
    with pytest.raises(UserError, match="no vector for 1 of 1 labels: 'cat light'"):
        word_vectors(["cat light"], npz(tmp_path / "w.npz", names=np.array(["light", "cat", "shirt"])))


@pytest.mark.parametrize(
    ("arrays", "line"),
    [
        ({"names": np.array(["cat", "cat", "dog"])}, "'cat' has 2 vectors"),
        ({"vectors": VECTORS * np.nan}, "the vector of 'cat' is not finite"),
        ({"vectors": VECTORS * 0}, "the vector of 'cat' is zero"),
        ({"vectors": VECTORS[:2]}, r"names \(3,\) and vectors \(2, 4\)"),
        (
            {"logit_scale": np.float32(100)},
            r"logit_scale is 100: it is the natural logarithm of the scale \(of 100: 4.6",
        ),
        ({"logit_bias": np.zeros(3)}, "logit_bias is not one finite number"),
        ({"names": np.array([{}, {}, {}], object)}, "array of objects"),
    ],
)
def test_what_is_wrong_with_an_npz(arrays, line, tmp_path):
    with pytest.raises(UserError, match=line) as caught:
        text_vectors.read(npz(tmp_path / "w.npz", **arrays)).of(["cat"])
    assert "w.npz: " in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_wrong_with_other_files(tmp_path):
    def refusal(path):
        with pytest.raises(UserError) as caught:
            text_vectors.read(path)
        assert str(path) in str(caught.value)
        return str(caught.value)

    wide = tensors(tmp_path / "a", {"cat": VECTORS[0], "dog": VECTORS[0, :3]})
    assert "one vector [D] a label is wanted" in refusal(wide)
    assert "'rows' is [3, 4]" in refusal(tensors(tmp_path / "b", {"rows": VECTORS}))
    assert "names (2,) and vectors (3, 4)" in refusal(tensors(tmp_path / "c", {"vectors": VECTORS}, ["a", "b"]))
    assert "holds no vectors" in refusal(tensors(tmp_path / "d", {"logit_scale": np.ones(1, np.float32)}))
    cut = tmp_path / "e"
    cut.write_bytes(wide.read_bytes()[:-5])
    assert "damaged or unreadable" in refusal(cut)
    (tmp_path / "f").write_bytes(pickle.dumps(dict(zip(NAMES, VECTORS, strict=True))))
    assert "neither an .npz with names and vectors nor a .safetensors" in refusal(tmp_path / "f")
    assert "cannot be read (No such file" in refusal(tmp_path / "gone")


def test_the_graph_takes_them_as_its_word_vectors(data_dir, tmp_path):
    """MSCNN-LCE-MIC's constants are the file's rows in the order of the classes; a class without one is an error."""
    config = config_lib.load("mscnn_lce_mic:dataset=tiny")
    tiny = tiny_config(data_dir)
    config.data.update(tiny.data)
    config.train.update(tiny.train)
    config.data.image_size = 32
    config.model.trunk, config.model.stages = "small_cnn", ("stage1", "stage2")
    config.model.gcn_dim = config.model.gcn_hidden = config.model.global_dim = 4
    config.model.word_dim, config.model.word_vectors = 4, str(tmp_path / "w.npz")
    npz(tmp_path / "w.npz", names=np.array(["blue", "green", "red"]))
    state = loop.Trainer(config, str(tmp_path / "run")).initial_state()
    np.testing.assert_array_equal(state.constants["word_vectors"], VECTORS[::-1])
    npz(tmp_path / "w.npz", names=np.array(["blue", "grey", "red"]))
    with pytest.raises(UserError, match="no vector for 1 of 3 labels: 'green'"):
        loop.Trainer(config, str(tmp_path / "run")).initial_state()
