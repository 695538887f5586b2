"""Outputs along the distinct beginnings of paths, against the plain scan over all of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmlic.models.heads import cnn_rnn
from jaxmlic.models.layers import cells, prefix_tree

CLASSES, INPUT, SIZE = 4, 3, 5
END = CLASSES
# Equal paths, beginnings shared to different depths, no label at all, and one as long as there can be.
PATHS = np.array(
    [
        [0, 1, END, END],
        [0, 1, END, END],
        [0, 1, 2, END],
        [0, 2, END, END],
        [END, END, END, END],
        [3, 2, 1, 0],
        [1, END, END, END],
    ],
    np.int32,
)


def cell_of(kind):
    arrays = {name: np.random.default_rng(0).normal(size=shape).astype(np.float32) for name, shape in (
        ("input_kernel", (INPUT, 4 * SIZE)), ("recurrent_kernel", (SIZE, 4 * SIZE)), ("bias", (4 * SIZE,))
    )}  # fmt: skip
    return cells.Weights(kind, **(arrays | ({"bias": None} if kind == "paper" else {})))


def test_nodes_are_the_distinct_beginnings():
    tree = jax.jit(lambda paths: prefix_tree.tree(paths, CLASSES, tile=2))(PATHS)
    beginnings = {tuple(path[:t]) for path in PATHS.tolist() for t in range(5) if END not in path[:t]}
    lengths = [sum(len(b) == t for b in beginnings) for t in range(5)]
    assert tree.tiles == sum(-(-n // 2) for n in lengths)  # 1, 3, 3, 2 and 1 beginnings
    parent, label, node = np.asarray(tree.parent), np.asarray(tree.label), np.asarray(tree.node)

    def read_back(i):
        return () if label[i] == -1 else (*read_back(parent[i]), int(label[i]))

    for row, path in enumerate(PATHS.tolist()):
        for t in range(5):
            if END not in path[:t]:
                assert read_back(node[t, row]) == tuple(path[:t])
                assert t == 0 or parent[node[t, row]] < node[t, row]
    assert parent[node[0, 0]] == len(parent)


@pytest.mark.parametrize(("kind", "tile"), [("lstm", 2), ("lstm", 64), ("paper", 2)])
def test_values_and_gradients_are_those_of_the_scan(kind, tile):
    read = np.random.default_rng(1).normal(size=(CLASSES + 1, INPUT)).astype(np.float32)
    factors = np.random.default_rng(2).normal(size=(5, len(PATHS), SIZE)).astype(np.float32)
    counted = np.arange(5)[:, None] <= (PATHS != END).sum(axis=1)[None]  # [T + 1, B]
    tokens = np.concatenate([np.full((1, len(PATHS)), -1), PATHS.T])

    def plain(cell, read):
        outputs = cell.scan(cell.initial((len(PATHS),)), cell.project(read[tokens]))[1]
        return jnp.sum(outputs * factors, where=counted[..., None]), outputs

    def as_tree(cell, read):
        tree = prefix_tree.tree(PATHS, CLASSES, tile)
        outputs = prefix_tree.outputs(cell, read, tree, tile)[tree.node]
        return jnp.sum(outputs * factors, where=counted[..., None]), outputs

    def run(f):
        return jax.jit(jax.value_and_grad(f, (0, 1), has_aux=True))(cell_of(kind), jnp.asarray(read))

    (_, expected), expected_grads = run(plain)
    (_, found), grads = run(as_tree)
    np.testing.assert_allclose(np.asarray(found)[counted], np.asarray(expected)[counted], rtol=1e-5, atol=1e-6)
    assert len(jax.tree.leaves(grads)) == (3 if kind == "paper" else 4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), grads, expected_grads)


@pytest.mark.parametrize("cell", ["lstm", "none"])
def test_teacher_forcing_says_the_same_either_way(cell):
    batch, width = len(PATHS), INPUT
    model = cnn_rnn.DecoderParameters(CLASSES, width, SIZE, cell)
    variables = model.init(jax.random.key(0))
    image = np.random.default_rng(3).normal(size=(batch, width)).astype(np.float32)
    keep = np.random.default_rng(4).integers(0, 2, (5, batch, width)) * 2.0
    known = np.ones((batch, CLASSES + 1), bool)

    def loss(variables, as_tree):
        steps = cnn_rnn.along_paths(model.apply(variables), image, keep, known, PATHS, as_tree)
        return cnn_rnn.loss_fn({"step_log_probs": steps, "paths": PATHS}, np.zeros((batch, CLASSES), np.int8))[0].sum()

    (one, grads), (other, others) = (
        jax.jit(jax.value_and_grad(loss), static_argnums=1)(variables, as_tree) for as_tree in (False, True)
    )
    np.testing.assert_allclose(one, other, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), grads, others)
