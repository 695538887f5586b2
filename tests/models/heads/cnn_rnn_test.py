"""The CNN-RNN head against numpy loops over its equations, its search against re-scoring, and whole runs."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmlic import config as config_lib
from jaxmlic import decode, sharding
from jaxmlic.errors import UserError
from jaxmlic.labels import order as label_order
from jaxmlic.models import trunks
from jaxmlic.models.heads import cnn_rnn, contract

CLASSES, FEATURES = 4, 96
SMALL = {"embedding_size": 5, "recurrent_size": 6, "max_length": 3, "beam_size": 3}
LABELS = np.array([[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1], [0, -1, 0, 1], [-1, -1, -1, -1]], np.int8)


def features_of(count, seed=0):
    rng = np.random.default_rng(seed)
    return trunks.StoredMaps(rng.normal(size=(count, 1, 1, FEATURES)).astype(np.float32))


@functools.cache
def model_and_variables(num_labels=CLASSES, **fields):
    """A model and variables far from symmetric, an order of the labels that is not 0, 1, 2, ..."""
    model, rng = cnn_rnn.Model(num_labels, **(SMALL | fields)), np.random.default_rng(1)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3))))
    params = jax.tree.map(lambda x: (rng.normal(size=x.shape) * x.shape[0] ** -0.5).astype(x.dtype), shapes["params"])
    return model, {"params": params, "constants": {"order": rng.permutation(num_labels).astype(np.int32)}}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


class Numpy:
    """Eqs. 2 to 5 for one image, step by step, in float64."""

    def __init__(self, variables, features, cell="lstm"):
        params = jax.tree.map(lambda x: np.array(x, np.float64), variables["params"])
        self.decoder, self.cell = params["decoder"], cell
        self.image = np.array(features, np.float64) @ params["image_projection"]["kernel"]

    def log_probs(self, path, known=None):
        """[len(path) + 1, C + 1]: what is said before each label of the path and after it."""
        d = self.decoder
        h = c = np.zeros(d["output_kernel"].shape[0])
        said = []
        for label in (None, *path):
            w = d["start_embedding"][0] if label is None else d["label_embedding"][label]  # its last row is END
            if self.cell == "none":
                o = w @ d["cell"]["input_kernel"]
            else:
                gates = w @ d["cell"]["input_kernel"] + h @ d["cell"]["recurrent_kernel"] + d["cell"]["bias"]
                i, f, g, out = np.split(gates, 4)
                c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
                o = h = sigmoid(out) * np.tanh(c)
            x = np.maximum(o @ d["output_kernel"] + self.image, 0)
            s = d["label_embedding"] @ x
            if known is not None:
                s = np.where(known, s, -np.inf)
            said.append(s - np.log(np.sum(np.exp(s))))
        return np.array(said)


@pytest.mark.parametrize("cell", ["lstm", "none"])
def test_teacher_forced_loss_against_a_loop(cell):
    model, variables = model_and_variables(cell=cell)
    inputs = features_of(len(LABELS))
    outputs = jax.jit(model.apply)(variables, inputs, labels=jnp.asarray(LABELS))
    losses, logged = cnn_rnn.loss_fn(outputs, jnp.asarray(LABELS))
    place = np.argsort(variables["constants"]["order"])
    for b, labels in enumerate(LABELS):
        path = sorted(np.flatnonzero(labels == 1), key=lambda c: place[c])[: model.max_length]
        said = Numpy(variables, inputs.feature_map[b, 0, 0], cell).log_probs(path, np.append(labels != -1, True))
        expected = -sum(said[t, token] for t, token in enumerate([*path, CLASSES]))
        np.testing.assert_allclose(losses[b], expected, rtol=1e-4, atol=1e-6)
    assert logged["paths_cut"] == 1  # four labels, three places
    assert losses[4] == 0  # nothing is known of padding, and END is all that is left


def test_gradients_reach_every_parameter_but_the_trunk_s():
    model, variables = model_and_variables()

    def loss(params, labels):
        outputs = model.apply(
            {**variables, "params": params},
            features_of(len(LABELS)),
            train=True,
            labels=labels,
            rngs={"dropout": jax.random.key(2)},
        )
        return cnn_rnn.loss_fn(outputs, labels)[0].sum()

    grads = jax.jit(jax.grad(loss))(variables["params"], jnp.asarray(LABELS))
    for name, part in grads.items():
        for leaf in jax.tree.leaves(part):
            assert np.isfinite(leaf).all() and (name == "trunk") == (not np.any(leaf)), name


def test_dropout_scales_what_it_keeps():
    """With the images' embedding far above the rest, ReLU passes all of it: the mean over draws is what is without."""
    model, variables = model_and_variables(dropout=0.5, cell="none")
    inputs = features_of(2)
    score = variables["params"]["decoder"]["label_embedding"]

    def logits(key):
        outputs = model.apply(variables, inputs, train=True, labels=jnp.zeros((2, 4), jnp.int8), rngs={"dropout": key})
        return outputs["step_log_probs"][:, 0]

    draws = jax.jit(jax.vmap(logits))(jax.random.split(jax.random.key(0), 64))  # [64, 2, C + 1]
    assert len(np.unique(np.round(draws[:, 0, 0], 4))) > 8
    # Log-probabilities differ from the scores by one number a draw; differences of two labels do not.
    outputs = model.apply(variables, inputs)
    decoder = outputs["decoder"]
    x = jax.nn.relu(decoder.cell.project(decoder.read[-1:]) @ decoder.output_projection + outputs["image_embedding"])
    expected = (x @ score.T)[:, :1] - (x @ score.T)[:, 1:2]
    spread = np.std(draws[..., :1] - draws[..., 1:2], axis=0) / 8
    assert np.all(np.abs((draws[..., :1] - draws[..., 1:2]).mean(axis=0) - expected) < 4 * spread + 1e-6)


@functools.cache
def searched(count=5, **fields):
    """Everything about one batch from one program: search, prediction, and the best paths by greedy decoding."""
    model, variables = model_and_variables(**fields)
    inputs = features_of(count)

    @jax.jit
    def run(variables, inputs):
        outputs = model.apply(variables, inputs)
        decoder = outputs["decoder"]
        table, start = decoder.cell.project(decoder.read), decoder.cell.initial()

        def one(image_embedding, paths):
            step_fn = decoder.step_fn(table, image_embedding)
            rescored = jax.vmap(lambda path: decode.rescore(step_fn, start, path))(paths)
            greedy = decode.greedy(step_fn, start, num_labels=CLASSES, max_length=model.max_length)
            return rescored, step_fn(start, jnp.int32(decode.START))[1], greedy

        found = cnn_rnn.search(model, variables, inputs)
        more = jax.vmap(one)(outputs["image_embedding"], found[0])
        return found, cnn_rnn.predict_fn(model, variables, inputs), more

    found, prediction, more = jax.device_get(run(variables, inputs))
    return variables, inputs, found, prediction, more


@pytest.mark.parametrize("cell", ["lstm", "paper", "none"])
def test_search_finds_paths_whose_probability_is_the_model_s(cell):
    variables, inputs, (paths, log_probs, scores, _), prediction, (rescored, first, _) = searched(cell=cell)
    np.testing.assert_array_equal(prediction.path, paths[:, 0])
    np.testing.assert_allclose(prediction.scores, scores, rtol=1e-6)
    np.testing.assert_allclose(rescored, log_probs, rtol=1e-4)
    for image in range(5):
        for path, log_prob in zip(paths[image], log_probs[image], strict=True):
            if cell != "paper":
                labels = [int(c) for c in path if c < CLASSES]
                said = Numpy(variables, inputs.feature_map[image, 0, 0], cell).log_probs(labels)
                expected = sum(said[t, token] for t, token in enumerate([*labels, CLASSES]))
                np.testing.assert_allclose(log_prob, expected, rtol=1e-4)
        expected = decode.path_marginals(paths[image], log_probs[image], CLASSES, first[image])
        np.testing.assert_allclose(scores[image], expected, rtol=1e-3, atol=1e-4)
        assert set(np.flatnonzero(prediction.chosen[image])) == {c for c in paths[image, 0] if c < CLASSES}


def test_a_beam_of_one_is_greedy():
    _, _, (paths, log_probs, *_), _, (_, _, (path, log_prob)) = searched(beam_size=1)
    np.testing.assert_array_equal(paths[:, 0], path)
    np.testing.assert_allclose(log_probs[:, 0], log_prob, rtol=1e-5)


def test_scores_of_the_best_path_alone():
    variables, inputs, _, prediction, _ = searched(scores="max_over_steps", min_length=2)
    assert np.all((prediction.path < CLASSES).sum(axis=1) >= 2)
    for image in range(5):
        labels = [int(c) for c in prediction.path[image] if c < CLASSES]
        said = Numpy(variables, inputs.feature_map[image, 0, 0]).log_probs(labels)
        highest = np.exp(said[:, :CLASSES].max(axis=0))
        np.testing.assert_allclose(sigmoid(prediction.scores[image]), highest, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("num_labels", "beam_size", "max_length"), [(1, 5, 10), (2, 40, 1)])
def test_small_vocabularies_and_wide_beams(num_labels, beam_size, max_length):
    model, variables = model_and_variables(num_labels, beam_size=beam_size, max_length=max_length)
    inputs, labels = features_of(2), jnp.ones((2, num_labels), jnp.int8)

    @jax.jit
    def run(variables, inputs):
        outputs = model.apply(variables, inputs, labels=labels)
        return cnn_rnn.loss_fn(outputs, labels)[0], cnn_rnn.predict_fn(model, variables, inputs)

    losses, prediction = run(variables, inputs)
    assert np.isfinite(losses).all()
    assert prediction.path.shape == (2, max_length) and prediction.scores.shape == (2, num_labels)
    assert np.isfinite(prediction.scores).all()


@pytest.mark.parametrize("order", ["pla", "mla"])
def test_alignments_follow_the_model_and_keep_the_labels(order):
    model, variables = model_and_variables(order=order)
    inputs = features_of(len(LABELS))
    outputs = jax.jit(model.apply)(variables, inputs, labels=jnp.asarray(LABELS))
    place = np.argsort(variables["constants"]["order"])
    for b, labels in enumerate(LABELS):
        kept = sorted(np.flatnonzero(labels == 1), key=lambda c: place[c])[: model.max_length]
        assert sorted(c for c in np.array(outputs["paths"][b]) if c < CLASSES) == sorted(kept)
        # The path that the model reads: its best known label that is not on it yet, whatever the truth is.
        known, read, reference = labels != -1, [], Numpy(variables, inputs.feature_map[b, 0, 0])
        for t in range(model.max_length if known.any() else 1):
            said = reference.log_probs(read, np.append(known, True))[t]
            np.testing.assert_allclose(np.exp(outputs["step_log_probs"][b, t]), np.exp(said), atol=1e-5)
            free = [c for c in range(CLASSES) if known[c] and c not in read]
            if not free:
                break
            read.append(max(free, key=lambda c: said[c]))
        np.testing.assert_array_equal(outputs["read"][b, : len(read)], read)
        if order == "pla":  # what was read and what is pinned are one label
            for t, label in enumerate(read[: len(kept)]):
                assert (outputs["paths"][b, t] == label) == (label in kept)
    fixed = label_order.paths(jnp.asarray(LABELS), variables["constants"]["order"], model.max_length)
    unaligned = label_order.path_cross_entropy(outputs["step_log_probs"], fixed)
    aligned = label_order.path_cross_entropy(outputs["step_log_probs"], outputs["paths"])
    if order == "mla":
        assert np.all(aligned <= unaligned + 1e-5)


def test_alignments_of_a_model_that_may_repeat_itself_and_read_end():
    model, variables = model_and_variables(order="pla", repeats=True)
    inputs, labels = features_of(24, seed=3), np.tile(LABELS[[0, 2, 3]], (8, 1))
    outputs = jax.jit(model.apply)(variables, inputs, labels=jnp.asarray(labels))
    repeated = ends = 0
    for b in range(24):
        known, read, reference = np.append(labels[b] != -1, True), [], Numpy(variables, inputs.feature_map[b, 0, 0])
        for _ in range(model.max_length + 1):
            said = reference.log_probs(read, known)[-1]
            read.append(int(said.argmax()))
        np.testing.assert_array_equal(outputs["read"][b], read)
        repeated += len(set(read)) < len(read)
        ends += CLASSES in read[:-1]
        kept = {int(c) for c in outputs["paths"][b] if c < CLASSES}
        for t, label in enumerate(read[: len(kept)]):
            if label in kept and label not in read[:t]:
                assert outputs["paths"][b, t] == label
    assert repeated and ends


def test_a_search_with_repeats_finds_the_best_of_all_sequences():
    model, variables = model_and_variables(repeats=True, beam_size=1 + CLASSES + CLASSES**2, max_length=2)
    inputs = features_of(4)
    found = jax.jit(lambda v, x: cnn_rnn.search(model, v, x)[:2])(variables, inputs)
    repeated = 0
    for b in range(4):
        reference = Numpy(variables, inputs.feature_map[b, 0, 0])
        expected = {}
        for path in ((), *((a,) for a in range(CLASSES)), *itertools.product(range(CLASSES), repeat=2)):
            said = reference.log_probs(path)
            expected[path] = sum(said[t, token] for t, token in enumerate([*path, CLASSES]))
        ranked = sorted(expected, key=expected.get, reverse=True)
        paths = [tuple(int(c) for c in path if c < CLASSES) for path in found[0][b]]
        assert paths[0] == ranked[0] and set(paths) == set(ranked)
        np.testing.assert_allclose(found[1][b], [expected[path] for path in paths], rtol=1e-4)
        repeated += sum(len(set(path)) < len(path) for path in paths)
    assert repeated == 4 * CLASSES


def test_random_per_batch_draws_an_order_a_step():
    model, variables = model_and_variables(order="random_per_batch", max_length=4)
    labels = jnp.ones((3, CLASSES), jnp.int8)
    apply = jax.jit(lambda key: model.apply(variables, features_of(3), True, labels, rngs={"dropout": key})["paths"])
    seen = {tuple(np.array(apply(jax.random.key(i))[0])) for i in range(12)}
    assert len(seen) > 5 and all(sorted(path) == [0, 1, 2, 3] for path in seen)
    paths = apply(jax.random.key(0))
    assert np.all(paths == paths[:1])  # one order for the batch


STATISTICS = contract.LabelStatistics(np.array([[1, 1, 0], [1, 0, -1], [1, 1, 1], [0, 0, 1]], np.int8), ["b", "c", "a"])


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("frequent_first", [0, 1, 2]),
        ("rare_first", [1, 2, 0]),
        ("lexicographic", [2, 0, 1]),
        ("fixed_random", label_order.fixed_random(3, 7)),
        ("random_per_batch", [0, 1, 2]),
        ("mla", [0, 1, 2]),
    ],
)
def test_constants(order, expected):
    config = config_lib.override(config_lib.load("cnn_rnn"), {"model.order": order, "model.max_length": 2, "seed": 7})
    found, notes = cnn_rnn.constants(config, STATISTICS)
    np.testing.assert_array_equal(found["order"], expected)
    assert found["order"].dtype == np.int32
    assert len(notes) == 1
    assert notes[0].startswith("1 of 4 training images have more than config.model.max_length = 2 labels")
    assert cnn_rnn.constants(config_lib.override(config, {"model.max_length": 3}), STATISTICS)[1] == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"order": "frequent_frist"},
            "config.model.order = 'frequent_frist' is unknown (did you mean 'frequent_first'?)",
        ),
        ({"cell": "gru"}, "config.model.cell = 'gru' is unknown; known: lstm, paper, none"),
        ({"scores": "marginal"}, "config.model.scores = 'marginal' is unknown"),
        ({"pool": "mean"}, "config.model.pool = 'mean' is unknown"),
        ({"min_length": 4}, "config.model.min_length = 4, but a path has at most 3 labels"),
        ({"min_length": 5, "max_length": 9}, "config.model.min_length = 5, but a path has at most 4 labels"),
        ({"min_length": -1}, "config.model.min_length = -1; it is at least 0"),
        ({"max_length": 0}, "config.model.max_length = 0; it is at least 1"),
        ({"beam_size": 0}, "config.model.beam_size = 0; it is at least 1"),
        ({"length_penalty": -0.5}, "config.model.length_penalty = -0.5; it is at least 0"),
        ({"recurrent_size": 0}, "config.model.recurrent_size = 0; it is at least 1"),
    ],
)
def test_mistakes(fields, message):
    model = cnn_rnn.Model(CLASSES, **(SMALL | fields))
    with pytest.raises(UserError) as raised:
        jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3))))
    assert message in str(raised.value)


def test_one_device_and_eight_give_the_same():
    """Loss, gradients and search with the batch divided over a mesh; dropout draws the same."""
    model, variables = model_and_variables()
    labels = np.random.default_rng(3).integers(-1, 2, (8, CLASSES)).astype(np.int8)

    def run(variables, inputs, labels):
        def loss(params):
            rngs = {"dropout": jax.random.key(0)}
            outputs = model.apply({**variables, "params": params}, inputs, train=True, labels=labels, rngs=rngs)
            return cnn_rnn.loss_fn(outputs, labels)[0].mean()

        return jax.value_and_grad(loss)(variables["params"]), cnn_rnn.predict_fn(model, variables, inputs)

    found = []
    for count in (1, 8):
        mesh = sharding.make_mesh(jax.devices()[:count])
        place, split = sharding.replicated(mesh), sharding.split(mesh)
        arguments = jax.device_put((variables, features_of(8), labels), (place, split, split))
        found.append(jax.device_get(jax.jit(run, in_shardings=(place, split, split))(*arguments)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *found)
