"""Label orders and paths by hand; the alignments of PLA and MLA against all permutations."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmlic import decode
from jaxmlic.errors import UserError
from jaxmlic.labels import order as label_order

LABELS = np.array([[1, 0, 1, -1], [0, 0, 1, 1], [0, 1, 1, -1], [0, 1, 1, -1]], np.int8)  # 1, 2, 4 and 1 positives
NAMES = ["dog", "Zebra", "cat", "ant"]

mla = jax.jit(label_order.minimal_loss_alignment)
pla_of_read = jax.jit(label_order.predicted_label_alignment)


def pla(log_probs, paths):
    """Of a model that reads its most probable token, whatever it read before."""
    return pla_of_read(log_probs, paths, np.argmax(log_probs[:, :-1], axis=-1).astype(np.int32))


@pytest.mark.parametrize(
    ("name", "order"),
    [("frequent_first", [2, 1, 0, 3]), ("rare_first", [0, 3, 1, 2]), ("lexicographic", [1, 3, 2, 0])],
)
def test_orders_by_hand(name, order):
    found = label_order.order_fn(name, LABELS, NAMES, 0)(jax.random.key(0))
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, order)


def test_random_orders():
    def orders(name, seed, key):
        names = [f"{i:02d}" for i in range(30)]
        return label_order.order_fn(name, np.zeros((1, 30), np.int8), names, seed)(jax.random.key(key)).tolist()

    assert sorted(orders("fixed_random", 0, 0)) == list(range(30))
    assert orders("fixed_random", 0, 0) == orders("fixed_random", 0, 1) != orders("fixed_random", 1, 0)
    assert sorted(orders("random_per_batch", 0, 0)) == list(range(30))
    assert orders("random_per_batch", 0, 0) == orders("random_per_batch", 1, 0) != orders("random_per_batch", 0, 1)


def test_an_unknown_order_is_named():
    with pytest.raises(
        UserError, match=r"'rarest_first' is unknown \(did you mean 'rare_first'\?\); known: frequent_f"
    ):
        label_order.order_fn("rarest_first", LABELS, NAMES, 0)


def test_paths_by_hand():
    labels = np.array([[1, 1, 1, 1], [0, 0, 0, -1], [1, 0, -1, 1]], np.int8)
    to_paths = jax.jit(label_order.paths, static_argnums=2)
    order = np.array([2, 0, 3, 1])
    whole = to_paths(labels, order, 4)
    assert whole.dtype == jnp.int32
    np.testing.assert_array_equal(whole, [[2, 0, 3, 1], [4, 4, 4, 4], [0, 3, 4, 4]])
    np.testing.assert_array_equal(to_paths(labels, order, 2), [[2, 0], [4, 4], [0, 3]])
    np.testing.assert_array_equal(to_paths(labels, order, 6), np.pad(whole, ((0, 0), (0, 2)), constant_values=4))
    np.testing.assert_array_equal(label_order.is_cut(labels, 2), [True, False, False])
    np.testing.assert_array_equal(label_order.is_cut(labels, 4), [False] * 3)
    np.testing.assert_array_equal(to_paths(np.array([[1], [0]], np.int8), np.array([0]), 1), [[0], [1]])
    with pytest.raises(ValueError, match="max_length 0 is below 1"):
        label_order.paths(labels, order, 0)


def predictions(batch, max_length, num_labels, sharpness=2.0):
    """Log-probabilities [B, T + 1, C + 1] of a made-up model, and paths with 0..T labels."""
    rng = np.random.default_rng(0)
    log_probs = jax.nn.log_softmax(rng.normal(0, sharpness, (batch, max_length + 1, num_labels + 1)))
    paths = np.full((batch, max_length), num_labels, np.int32)
    for i, path in enumerate(paths):
        length = i % (max_length + 1)
        path[:length] = rng.permutation(num_labels)[:length]
    return np.asarray(log_probs, np.float32), paths


def labels_of(path, num_labels):
    return [int(label) for label in path if label != num_labels]


def test_cross_entropy_is_the_paths_probability():
    log_probs, paths = predictions(8, 3, 5)
    losses = label_order.path_cross_entropy(log_probs, paths)
    assert losses.shape == (8,) and losses.dtype == jnp.float32
    for loss, said, path in zip(losses, log_probs, paths, strict=True):
        tokens = [*labels_of(path, 5), 5]
        np.testing.assert_allclose(loss, -sum(said[t, token] for t, token in enumerate(tokens)), rtol=1e-6)
        same = decode.rescore(lambda said, _: (jnp.roll(said, -1, axis=0), said[0]), jnp.asarray(said), path)
        np.testing.assert_allclose(loss, -same, rtol=1e-6)


@pytest.mark.parametrize("sharpness", [0.5, 3.0, 60.0])
def test_minimal_loss_alignment_against_all_permutations(sharpness):
    log_probs, paths = predictions(40, 4, 6, sharpness)
    aligned = mla(log_probs, paths)
    assert aligned.dtype == jnp.int32
    losses = label_order.path_cross_entropy(log_probs, aligned)
    for loss, said, path, result in zip(losses, log_probs, paths, np.asarray(aligned), strict=True):
        labels = labels_of(path, 6)
        assert sorted(result[: len(labels)]) == sorted(labels) and (result[len(labels) :] == 6).all()
        orders = itertools.permutations(labels)
        least = min(sum((said[t, label] for t, label in enumerate(order)), 0) * -1 for order in orders)
        np.testing.assert_allclose(loss, least - said[len(labels), 6], rtol=1e-5)


def pla_by_hand(said, labels):
    """The least cross-entropy over the permutations that keep predicted labels where they are predicted first."""
    fixed = {}
    for t in range(len(labels)):
        label = int(said[t].argmax())
        if label in labels and label not in fixed.values():
            fixed[t] = label
    orders = (o for o in itertools.permutations(labels) if all(o[t] == label for t, label in fixed.items()))
    return min((-sum(said[t, label] for t, label in enumerate(order)), order) for order in orders)[1], fixed


@pytest.mark.parametrize("sharpness", [0.5, 3.0])
def test_predicted_label_alignment_against_all_permutations(sharpness):
    log_probs, paths = predictions(40, 4, 6, sharpness)
    aligned = np.asarray(pla(log_probs, paths))
    num_fixed = 0
    for said, path, result in zip(log_probs, paths, aligned, strict=True):
        labels = labels_of(path, 6)
        order, fixed = pla_by_hand(said, labels)
        num_fixed += len(fixed)
        assert tuple(labels_of(result, 6)) == tuple(order)
        assert (result[len(labels) :] == 6).all()
    assert num_fixed > 10
    free = label_order.path_cross_entropy(log_probs, mla(log_probs, paths))
    assert (np.asarray(label_order.path_cross_entropy(log_probs, aligned)) >= np.asarray(free) - 1e-4).all()


def test_a_label_predicted_twice_stays_at_the_first_step():
    said = np.log(np.array([[[0.1, 0.8, 0.1], [0.05, 0.9, 0.05], [0.3, 0.3, 0.4]]], np.float32))
    paths = np.array([[0, 1]])
    np.testing.assert_array_equal(pla(said, paths), [[1, 0]])
    np.testing.assert_array_equal(mla(said, paths), [[0, 1]])
    # Three labels: the second step is free for the label with the better sum, whatever the third step prefers.
    said = np.log(
        np.array([[[0.1, 0.8, 0.05, 0.05], [0.001, 0.8, 0.1, 0.099], [0.2, 0.1, 0.3, 0.4], [0.1, 0.1, 0.1, 0.7]]])
    )
    np.testing.assert_array_equal(pla(said.astype(np.float32), np.array([[0, 1, 2]])), [[1, 2, 0]])


def test_a_label_that_was_read_is_pinned_where_it_was_read():
    """A model that reads no label twice: where it masks a label, its most probable token is not the one it reads."""
    log_probs, paths = predictions(300, 4, 6)
    read = np.zeros(paths.shape, np.int32)
    for said, own in zip(log_probs, read, strict=True):
        for t in range(4):
            own[t] = max((label for label in range(6) if label not in own[:t]), key=lambda label, t=t: said[t, label])
    aligned, differing = np.asarray(pla_of_read(log_probs, paths, read)), 0
    for path, own, result, said in zip(paths, read, aligned, log_probs, strict=True):
        labels = labels_of(path, 6)
        assert sorted(labels_of(result, 6)) == sorted(labels)
        for t, label in enumerate(own[: len(labels)]):
            assert (result[t] == label) == (label in labels)
            differing += label in labels and label != said[t].argmax()
    assert differing > 50


@pytest.mark.parametrize("align", [mla, pla])
def test_alignment_does_not_depend_on_the_order_of_the_labels(align):
    log_probs, paths = predictions(40, 4, 6)
    backwards = np.array([labels_of(path, 6)[::-1] + [6] * (path == 6).sum() for path in paths])
    np.testing.assert_array_equal(align(log_probs, paths), align(log_probs, backwards))


def test_gradient_is_that_of_the_aligned_path():
    log_probs, paths = predictions(6, 3, 4)

    def loss(logits):
        said = jax.nn.log_softmax(logits)
        return label_order.path_cross_entropy(said, mla(said, paths)).sum()

    gradient = jax.jit(jax.grad(loss))(log_probs)
    wanted = np.zeros_like(log_probs)
    for i, path in enumerate(np.asarray(mla(log_probs, paths))):
        for t, token in enumerate([*labels_of(path, 4), 4]):
            wanted[i, t] = np.exp(log_probs[i, t])
            wanted[i, t, token] -= 1
    np.testing.assert_allclose(gradient, wanted, atol=1e-5)


def test_impossible_labels_do_not_disturb_the_others():
    said = np.array([[[0.2, 0.5, 0, 0.3], [0.3, 0.4, 0, 0.3], [0.6, 0.1, 0, 0.3], [0, 0, 0, 1]]], np.float32)
    with np.errstate(divide="ignore"):
        said = np.log(said)
    np.testing.assert_array_equal(mla(said, np.array([[2, 0, 1]])), [[1, 2, 0]])
    np.testing.assert_array_equal(mla(said, np.array([[1, 0, 2]])), [[1, 2, 0]])
    assert label_order.path_cross_entropy(said, np.array([[1, 2, 0]])) == np.inf
