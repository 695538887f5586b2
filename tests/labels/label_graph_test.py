"""Label graphs against ML-GCN's published counts and the formulas written out; word vectors of files made here."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from jaxmlic.errors import UserError
from jaxmlic.labels import graph as label_graph
from jaxmlic.labels.graph import adjacency, association, cooccurrence
from jaxmlic.labels.word_vectors import ASSETS, word_vectors

VOC = json.loads(Path(__file__).with_name("ml_gcn_voc2007.json").read_text())
COUNTS, NUM_POSITIVE = np.array(VOC["counts"]), np.array(VOC["num_positive"])


def random_labels(num_rows, num_labels, seed=0):
    return np.random.default_rng(seed).choice([1, 0, -1], (num_rows, num_labels), p=[0.3, 0.5, 0.2]).astype(np.int8)


# --- counts


def test_cooccurrence_by_pairs():
    labels = random_labels(60, 6)
    counts, num_positive = cooccurrence(labels)
    assert counts.dtype == num_positive.dtype == np.int64
    for a in range(6):
        assert num_positive[a] == sum(row[a] == 1 for row in labels)
        for b in range(6):
            assert counts[a, b] == (0 if a == b else sum(row[a] == row[b] == 1 for row in labels))
    unknown_as_absent = cooccurrence(np.where(labels == -1, 0, labels))
    np.testing.assert_array_equal(counts, unknown_as_absent[0])


def test_cooccurrence_of_many_blocks_of_none_and_of_a_wrong_shape():
    labels = random_labels(20_000, 3)
    present = (labels == 1).astype(np.int64)
    counts, num_positive = cooccurrence(labels)
    np.testing.assert_array_equal(counts + np.diag(num_positive), present.T @ present)
    assert not cooccurrence(np.zeros((0, 4), np.int8))[0].any()
    with pytest.raises(ValueError, match=r"\[N, C\]"):
        cooccurrence(np.zeros(4, np.int8))


# --- matrices


def ml_gcn_by_hand(counts, num_positive, threshold=0.4, reweight=0.25):
    """ML-GCN's gen_A and gen_adj, element by element."""
    size = len(counts)
    edge = [[float(counts[i][j] / num_positive[i] >= threshold) for j in range(size)] for i in range(size)]
    column = [sum(edge[i][j] for i in range(size)) for j in range(size)]
    a = [[edge[i][j] * reweight / (column[j] + 1e-6) + float(i == j) for j in range(size)] for i in range(size)]
    degree = [sum(row) for row in a]
    # (A D^-1/2)^T D^-1/2
    return [[a[j][i] * degree[i] ** -0.5 * degree[j] ** -0.5 for j in range(size)] for i in range(size)]


def paper_by_hand(strength, threshold, reweight, sum_of_kept):
    """Eq 8, identity and D^-1/2 A D^-1/2, element by element."""
    size = len(strength)
    a = np.eye(size)
    for i in range(size):
        total = sum(p for p in strength[i] if not sum_of_kept or p >= threshold)
        for j in range(size):
            if strength[i][j] >= threshold:
                a[i, j] += reweight * strength[i][j] / (total + 1e-6)
    degree = [sum(row) for row in a.tolist()]
    return [[a[i, j] / (degree[i] * degree[j]) ** 0.5 for j in range(size)] for i in range(size)]


def test_ml_gcns_published_counts_have_six_edges():
    edges = association(COUNTS, NUM_POSITIVE) >= 0.4
    names = {(VOC["names"][i], VOC["names"][j]) for i, j in zip(*np.nonzero(edges), strict=True)}
    of_person = {(name, "person") for name in ("bicycle", "bottle", "diningtable", "horse", "motorbike")}
    assert names == of_person | {("diningtable", "chair")}


@pytest.mark.parametrize("threshold", [0.05, 0.4, 0.7])
@pytest.mark.parametrize("reweight", [0.0, 0.25, 1.0])
def test_ml_gcns_matrix_element_for_element(threshold, reweight):
    matrix = adjacency(COUNTS, NUM_POSITIVE, threshold, reweight, style="ml_gcn")
    assert matrix.dtype == np.float32
    by_hand = ml_gcn_by_hand(COUNTS, NUM_POSITIVE, threshold, reweight)
    np.testing.assert_allclose(matrix, by_hand, rtol=3e-7, atol=1e-9)


def test_ml_gcns_matrix_is_transposed():
    """bicycle -> person is the edge, and it is person that hears from bicycle."""
    bicycle, person = VOC["names"].index("bicycle"), VOC["names"].index("person")
    matrix = adjacency(COUNTS, NUM_POSITIVE, style="ml_gcn")
    assert matrix[person, bicycle] > 0 and matrix[bicycle, person] == 0
    matrix = adjacency(COUNTS, NUM_POSITIVE, style="paper")
    assert matrix[person, bicycle] == 0 and matrix[bicycle, person] > 0


@pytest.mark.parametrize(("style", "threshold"), [("paper", 0.4), ("paper", 0.1), ("pmi", 0.1), ("pmi", 0.3)])
def test_the_other_matrices_element_for_element(style, threshold):
    matrix = adjacency(COUNTS, NUM_POSITIVE, threshold, 0.3, style=style)
    strength = association(COUNTS, NUM_POSITIVE, style).tolist()
    by_hand = paper_by_hand(strength, threshold, 0.3, sum_of_kept=style == "pmi")
    np.testing.assert_allclose(matrix, by_hand, rtol=3e-7, atol=1e-9)
    assert np.count_nonzero(matrix) > 20


def test_conditional_probability_and_mutual_information_by_hand():
    counts, num_positive = np.array([[0, 6, 2], [6, 0, 0], [2, 0, 0]]), np.array([10, 6, 40])
    np.testing.assert_allclose(association(counts, num_positive), [[0, 0.6, 0.2], [1, 0, 0], [0.05, 0, 0]])
    pmi = association(counts, num_positive, "pmi")
    first, second = np.log((6 / 16) / (8 / 16 * 6 / 16)), np.log((2 / 16) / (8 / 16 * 2 / 16))
    expected = [first / -np.log(6 / 16), second / -np.log(2 / 16)]
    np.testing.assert_allclose(pmi, [[0, *expected], [expected[0], 0, 0], [expected[1], 0, 0]])


@pytest.mark.parametrize("style", label_graph.STYLES)
def test_classes_without_positives_or_partners_keep_their_own_embedding(style):
    labels = random_labels(50, 6)
    labels[:, 2] = 0
    labels[:, 4] = np.where(labels[:, 4] == 1, 1, -1)
    labels[labels[:, 5] == 1] = [0, 0, 0, 0, 0, 1]  # class 5 is always alone
    matrix = adjacency(*cooccurrence(labels), threshold=0.1, style=style)
    assert np.isfinite(matrix).all() and (matrix >= 0).all()
    np.testing.assert_array_equal(matrix[[2, 5]], np.eye(6)[[2, 5]])
    np.testing.assert_array_equal(matrix[:, [2, 5]], np.eye(6)[:, [2, 5]])
    np.testing.assert_array_equal(adjacency(np.zeros((3, 3)), np.zeros(3), style=style), np.eye(3))
    np.testing.assert_array_equal(adjacency(np.zeros((1, 1)), np.ones(1), style=style), np.eye(1))
    pair = adjacency(*cooccurrence(np.ones((4, 2), np.int8)), style=style)  # two classes that are never apart
    assert np.isfinite(pair).all() and (pair[0, 1] > 0) == (style != "identity")


@pytest.mark.parametrize("style", label_graph.STYLES)
def test_order_of_classes_does_not_matter(style):
    order = np.random.default_rng(1).permutation(20)
    permuted = adjacency(COUNTS[np.ix_(order, order)], NUM_POSITIVE[order], 0.1, style=style)
    expected = adjacency(COUNTS, NUM_POSITIVE, 0.1, style=style)[np.ix_(order, order)]
    np.testing.assert_allclose(permuted, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"threshold": 0}, "threshold"),
        ({"threshold": 1.1}, "threshold"),
        ({"threshold": float("nan")}, "threshold"),
        ({"reweight": -0.1}, "reweight"),
        ({"style": "gcn"}, "paper, ml_gcn, pmi, identity"),
        ({"counts": COUNTS[:5]}, "not \\[C, C\\]"),
        ({"counts": -COUNTS}, "negative"),
        ({"num_positive": NUM_POSITIVE // 10}, "more often than one of the two"),
    ],
)
def test_adjacency_refuses(changes, match):
    with pytest.raises(ValueError, match=match):
        adjacency(**{"counts": COUNTS, "num_positive": NUM_POSITIVE} | changes)


# --- word vectors


def write(path, text):
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


WORDS = "the 0 0 0\ncat 1 2 3\ndining 2 0 0\ntable 0 2 0\ncell-phone 5 5 5\nlight 1 1 1\ncat 9 9 9\n"


def test_names_are_found_whole_and_by_their_words(tmp_path):
    path = write(tmp_path / "glove.txt", WORDS)
    names = [
        "Cat",
        "diningtable",
        "dining_table",
        "Dining Table",
        "cell phone",
        "traffic light",
        "unicorn",
        "LIGHT/CAT",
    ]
    vectors, found = word_vectors(names, path)
    assert vectors.dtype == np.float32 and vectors.shape == (8, 3)
    known = [[1, 2, 3], [1, 1, 0], [1, 1, 0], [1, 1, 0], [5, 5, 5], [1, 1, 1], [1, 1.5, 2]]
    np.testing.assert_array_equal(vectors[[0, 1, 2, 3, 4, 5, 7]], known)
    assert found.words["diningtable"] == ("dining", "table") and found.words["cell phone"] == ("cell-phone",)
    assert found.partial == {"traffic light": ("traffic",)} and found.missing == ("unicorn",)
    assert str(found) == (
        f"word vectors from {path}: 7 of 8 names; found in part: traffic light (without traffic); random for unicorn"
    )
    with pytest.raises(UserError, match=r"none of the 2 label names"):
        word_vectors(["unicorn", "yeti"], path)


def test_a_random_vector_belongs_to_its_name_and_seed(tmp_path):
    path = write(tmp_path / "glove.txt", WORDS)
    one = word_vectors(["cat", "light", "unicorn"], path)[0]
    other = word_vectors(["unicorn", "yeti", "cat", "light"], path)[0]
    np.testing.assert_array_equal(one[[2, 0]], other[[0, 2]])
    assert not np.array_equal(one[2], word_vectors(["cat", "light", "unicorn"], path, seed=1)[0][2])
    vectors, found = word_vectors(["a", "b", "a"], "random", dim=400)
    assert vectors.shape == (3, 400) and abs(vectors.std() - 1) < 0.1 and str(found) == "word vectors: random"
    np.testing.assert_array_equal(vectors[0], vectors[2])
    np.testing.assert_array_equal(vectors[1], word_vectors(["b"], "random", dim=400)[0][0])


@pytest.mark.parametrize(
    "data",
    [
        WORDS.encode(),
        gzip.compress(WORDS.encode(), mtime=0),
        ("7 3\n" + WORDS).encode(),  # word2vec, fastText
        WORDS.replace("\n", " \n").encode(),  # word2vec ends its rows with a space
        WORDS.replace("\n", "\r\n").encode(),
        (WORDS + "at name@domain.com 7 7 7\n\xa0 1 2 3\n").encode() + b"\xff\xfe 1 2 3",  # rows of GloVe 840B
    ],
    ids=["plain", "gzip", "header", "trailing space", "crlf", "odd words"],
)
def test_text_forms(tmp_path, data):
    np.testing.assert_array_equal(word_vectors(["cat"], write(tmp_path / "w", data))[0], [[1, 2, 3]])


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (WORDS + "dog 1 2\n", r"w:8: 2 numbers, not 3"),
        (WORDS + "dog 1 2 3 4\n", r"w:8: 4 numbers, not 3"),
        ("2 4\ncat 1 2 3\n", r"w:2: 3 numbers, not 4"),
        ("the 1 2 3\n\ncat 1 2 3\n", r"w:2: 0 numbers, not 3"),
        ("the 0 0 0\ncat 1 x 3\n", r"w:2: the row of 'cat' holds something"),
        ("the 0 0 0\ncat 1 nan 3\n", r"w:2: the vector of 'cat' is not finite"),
        ("cat\n", r"w:1: 0 numbers, not a word and its vector"),
        ("", r"w: an empty file"),
        (gzip.compress(WORDS.encode(), mtime=0)[:-9], r"w: cannot be read"),
        (b"\x1f\x8b not gzip at all", r"w: cannot be read"),
        (b"PK\x03\x04 not a zip", r"w: cannot be read as a npz with names and vectors .*unpack other archives"),
    ],
)
def test_damaged_files_are_one_line(tmp_path, data, match):
    with pytest.raises(UserError, match=match) as caught:
        word_vectors(["cat"], write(tmp_path / "w", data))
    assert "\n" not in str(caught.value)


def test_npz(tmp_path):
    path = tmp_path / "w.npz"
    names, vectors = np.array(["dog", "cat"]), np.arange(4.0).reshape(2, 2)
    np.savez(path, names=names, vectors=vectors)
    np.testing.assert_array_equal(word_vectors(["cat", "dog"], path)[0], [[2, 3], [0, 1]])
    np.savez(path, names=names, vectors=vectors[:1])
    with pytest.raises(UserError, match=r"names \(2,\) and vectors \(1, 2\)"):
        word_vectors(["cat"], path)
    np.savez(path, names=names, vectors=vectors * np.nan)
    with pytest.raises(UserError, match="the vector of 'cat' is not finite"):
        word_vectors(["cat"], path)
    np.savez(path, names=names)
    with pytest.raises(UserError, match="no npz with names and vectors"):
        word_vectors(["cat"], path)
    with pytest.raises(UserError, match=r"gone.txt: cannot be read \(No such file"):
        word_vectors(["cat"], tmp_path / "gone.txt")


def test_the_table_of_the_package():
    vectors, found = word_vectors(VOC["names"])
    assert vectors.shape == (20, 100) and not found.partial and not found.missing
    near = vectors @ vectors.T / np.outer(np.linalg.norm(vectors, axis=1), np.linalg.norm(vectors, axis=1))
    np.fill_diagonal(near, 0)
    assert VOC["names"][near[VOC["names"].index("cat")].argmax()] == "dog"
    with np.load(ASSETS / "glove100.npz") as file:
        assert file["vectors"].shape == (467, 100) and np.abs(file["vectors"]).max(1).min() > 0
    others = ["traffic light", "tvmonitor", "tv", "Hot_Dog", "swimmers", "kauai"]  # VOC's, COCO's, NUS-WIDE's, Corel's
    assert not word_vectors(others)[1].missing


def test_one_hot_and_bad_arguments():
    vectors, found = word_vectors(["a", "b"], "one_hot")
    np.testing.assert_array_equal(vectors, np.eye(2))
    assert vectors.dtype == np.float32 and str(found) == "word vectors: one_hot"
    for arguments in ({"names": []}, {"names": ["a"], "dim": 0}):
        with pytest.raises(ValueError, match="names"):
            word_vectors(**arguments)
