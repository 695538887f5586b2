"""Label vectors: neighbours by brute force, agreement and drift against scipy, communities, maps and their pictures."""

import io

import numpy as np
import pytest
from scipy import spatial, stats

from jaxmlic.errors import UserError
from jaxmlic.labels import graph
from jaxmlic.reports import embeddings
from jaxmlic.reports.embeddings.communities import greedy

RNG = np.random.default_rng(0)
NAMES = [f"label {i}" for i in range(12)]
TABLES = {"a": RNG.normal(size=(12, 5)), "b": RNG.normal(size=(12, 9))}
TABLES["c"] = 3 * TABLES["a"] + 0.2 * RNG.normal(size=(12, 5))


def cosine_pairs(table):
    """Of all pairs i < j in a row, by scipy."""
    return 1 - spatial.distance.pdist(table, "cosine")


def brute_neighbours(table, k):
    found = []
    for i, row in enumerate(table):
        others = [(1 - spatial.distance.cosine(row, other), j) for j, other in enumerate(table) if j != i]
        found.append([j for _, j in sorted(others, key=lambda pair: (-pair[0], pair[1]))[:k]])
    return found


def test_nearest_labels_by_brute_force():
    table = TABLES["a"]
    found = embeddings.nearest_labels(table, table, NAMES, 4, own=np.arange(12))
    assert [[name for name, _ in row] for row in found] == [
        [NAMES[j] for j in row] for row in brute_neighbours(table, 4)
    ]
    first, cosine = found[3][0]
    assert cosine == pytest.approx(1 - spatial.distance.cosine(table[3], table[NAMES.index(first)]))
    images = RNG.normal(size=(2, 5))
    near = embeddings.nearest_labels(images, table, NAMES, 12)
    assert len(near) == 2 and {name for name, _ in near[0]} == set(NAMES)
    expected = sorted(1 - spatial.distance.cdist(images, table, "cosine")[1])[::-1]
    np.testing.assert_allclose([c for _, c in near[1]], expected)


def test_agreement_of_heads():
    found = embeddings.agreement(TABLES, 3)
    assert found.names == ["a", "b", "c"] and found.chance == pytest.approx(3 / 11)
    for i, first in enumerate(TABLES.values()):
        for j, second in enumerate(TABLES.values()):
            expected = stats.spearmanr(cosine_pairs(first), cosine_pairs(second)).statistic
            assert found.correlation[i, j] == pytest.approx(expected)
            rows = zip(brute_neighbours(first, 3), brute_neighbours(second, 3), strict=True)
            assert found.overlap[i, j] == pytest.approx(np.mean([len({*a} & {*b}) / 3 for a, b in rows]))
    assert found.correlation[0, 2] > 0.9 > abs(found.correlation[0, 1])
    with pytest.raises(UserError, match="tables of 11, 12 labels"):
        embeddings.agreement({"a": TABLES["a"], "b": TABLES["b"][1:]})


def test_agreement_does_not_know_rotation_or_scale():
    rotation = np.linalg.qr(RNG.normal(size=(5, 5)))[0]
    assert embeddings.rank_correlation(TABLES["a"], 7 * TABLES["a"] @ rotation) == pytest.approx(1)
    assert embeddings.neighbour_overlap(TABLES["a"], 7 * TABLES["a"] @ rotation).mean() == 1
    assert np.isnan(embeddings.rank_correlation(np.zeros((12, 2)), TABLES["a"]))


def test_vectors_beside_the_data():
    """Vectors made of the data agree with it, but for two pairs that are moved."""
    labels = (RNG.random((400, 6)) < 0.15).astype(np.int8)
    labels[:200, 1] |= labels[:200, 0]  # 0 and 1 together, 2 and 3 together
    labels[200:, 3] |= labels[200:, 2]
    labels[:9, 5] = -1
    names = NAMES[:6]
    association = graph.association(*graph.cooccurrence(labels), "pmi")
    values, basis = np.linalg.eigh(association + 2 * np.eye(6))
    vectors = basis * np.sqrt(values)  # cosines in the order of the association
    found = embeddings.beside_data(vectors, labels, names)
    upper = np.triu_indices(6, 1)
    assert found.correlation == pytest.approx(
        stats.spearmanr(cosine_pairs(vectors).round(9), association[upper]).statistic
    )
    assert found.correlation > 0.99
    moved = vectors.copy()
    moved[1], moved[3] = vectors[3], vectors[1]
    found = embeddings.beside_data(moved, labels, names, count=2)
    assert {row[:2] for row in found.further} == {("label 0", "label 1"), ("label 2", "label 3")}
    assert {row[:2] for row in found.closer} == {("label 0", "label 3"), ("label 1", "label 2")}
    with pytest.raises(UserError, match="2 labels occur"):
        embeddings.beside_data(vectors, np.eye(2, 6, dtype=np.int8), names)


def test_drift():
    tables = {30: TABLES["a"], 10: TABLES["b"][:, :5], 20: TABLES["c"]}
    found = embeddings.drift(tables, 3)
    assert found.steps == [10, 20, 30] and found.cosines.shape == (3, 12)
    np.testing.assert_allclose(found.cosines[-1], 1)
    assert found.overlap[-1] == found.correlation[-1] == pytest.approx(1)
    assert found.cosines[0, 4] == pytest.approx(1 - spatial.distance.cosine(tables[10][4], tables[30][4]))
    np.testing.assert_allclose(found.lengths[1], np.linalg.norm(TABLES["c"], axis=1))
    assert found.correlation[1] > found.correlation[0]


def blocks(sizes, inside=1.0, across=0.05):
    own = np.repeat(np.arange(len(sizes)), sizes)
    return np.where(own[:, None] == own[None], inside, across), own


def test_communities_are_the_blocks():
    weights, own = blocks([3, 5, 4])
    order = RNG.permutation(12)
    found = greedy(weights[np.ix_(order, order)])
    assert (found == np.array([2, 0, 1])[own][order]).all()  # 0 is the largest
    assert greedy(np.zeros((3, 3))).tolist() == [0, 1, 2]


@pytest.mark.parametrize("seed", range(3))
def test_no_two_communities_should_be_one(seed):
    """Modularity by its definition; of the greedy division no join of two raises it."""
    weights = np.random.default_rng(seed).random((10, 10)) ** 3
    weights += weights.T

    def by_definition(own):
        total = sum(weights[i, j] for i in range(10) for j in range(10) if i != j)
        degree = [sum(weights[i, j] for j in range(10) if i != j) for i in range(10)]
        return sum(
            (weights[i, j] * (i != j) - degree[i] * degree[j] / total) / total
            for i in range(10)
            for j in range(10)
            if own[i] == own[j]
        )

    own = greedy(weights)
    best = embeddings.modularity(weights, own)
    assert best == pytest.approx(by_definition(own))
    for a in range(own.max() + 1):
        for b in range(a):
            assert by_definition(np.where(own == a, b, own)) <= best + 1e-12
    assert best >= by_definition(np.arange(10)) and best >= by_definition(np.zeros(10))


def test_communities_of_labels():
    labels = np.zeros((60, 5), np.int8)
    labels[:20, :2], labels[20:40, 2:4], labels[40:, 4] = 1, 1, 1
    assert embeddings.communities(labels).tolist() == [0, 0, 1, 1, 2]


def test_pca_is_that_of_scikit_learn():
    from sklearn.decomposition import PCA

    points, caption = embeddings.project(TABLES["b"])
    rows = TABLES["b"] / np.linalg.norm(TABLES["b"], axis=1, keepdims=True)
    pca = PCA(2).fit(rows)
    np.testing.assert_allclose(np.abs(points), np.abs(pca.transform(rows)), atol=1e-9)
    assert caption == f"PCA, {100 * pca.explained_variance_ratio_.sum():.0f}% of the variance"
    with pytest.raises(UserError, match="a map needs three"):
        embeddings.project(TABLES["b"][:2])
    with pytest.raises(UserError, match="did you mean 'tsne'"):
        embeddings.project(TABLES["b"], "t-sne")
    assert embeddings.project(np.ones((4, 1)))[0].tolist() == [[0, 0]] * 4


@pytest.mark.parametrize("method", ["tsne", "umap"])
def test_maps_keep_groups_together(method):
    if method == "umap":
        pytest.importorskip("umap")
    centres = np.eye(3, 8)
    # Twelve of a group: with six, as many as the perplexity, t-SNE splits a group for one draw of four.
    rows = np.repeat(centres, 12, axis=0) + 0.02 * np.random.default_rng(0).normal(size=(36, 8))
    points, caption = embeddings.project(rows, method)
    again, _ = embeddings.project(rows, method)
    np.testing.assert_array_equal(points, again)
    own = np.repeat(np.arange(3), 12)
    nearest = [np.argsort(np.linalg.norm(points - point, axis=1))[1] for point in points]
    assert (own[nearest] == own).all() and caption.startswith({"tsne": "t-SNE", "umap": "UMAP"}[method])


def test_pictures_are_drawn():
    """Twelve labels and seventy, in which names are left out."""
    for count in (12, 70):
        names = [f"$ {i}" for i in range(count)]
        labels = (RNG.random((200, count)) < 0.2).astype(np.int8)
        table = RNG.normal(size=(count, 4))
        own = embeddings.communities(labels)
        found = embeddings.beside_data(table, labels, names)
        points, caption = embeddings.project(table)
        drawn = [
            embeddings.draw_map(points, names, own, caption),
            embeddings.draw_beside_data(found, names, own),
            embeddings.draw_drift(embeddings.drift({1: table, 2: table + 1}), names),
            embeddings.draw_agreement(embeddings.agreement({"x": table, "y": table + 1})),
        ]
        texts = [text.get_text() for text in drawn[0].axes[0].texts]
        assert texts == (names if count == 12 else [])
        for figure in drawn:
            figure.savefig(io.BytesIO(), format="png", dpi=30)


def test_a_map_names_its_communities():
    names = ["_a", "$b$", "c", "d", "e"]
    figure = embeddings.draw_map(np.arange(10.0).reshape(5, 2), names, np.array([0, 0, 0, 0, 1]))
    (axes,) = figure.axes
    figure.canvas.draw()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["4: _a, $b$, c, ...", "alone"]
