"""Fixed orders inside the Multi-order RNN head, against a numpy loop over section 3.1 and all sequences of labels."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from multi_order_rnn_test import CLASSES, LABELS, features_of, model_and_variables, sigmoid

from jaxmlic import config as config_lib
from jaxmlic.errors import UserError
from jaxmlic.models.heads import contract, multi_order_rnn

ORDER = np.array([2, 0, 3, 1], np.int32)
PATHS = {"order": "rare_first", "max_length": 3}


def prepared(**fields):
    model, variables = model_and_variables(**(PATHS | fields))
    return model, {**variables, "constants": {"order": ORDER}}


class Numpy:
    """Eqs. 1 to 3 for one image in float64: s starts the LSTM, a softmax over the labels and END follows each step."""

    def __init__(self, variables, features, output="paper"):
        self.p = jax.tree.map(lambda x: np.array(x, np.float64), variables["params"])
        self.output, p = output, self.p
        s = sigmoid(np.array(features, np.float64) @ p["classifier"]["kernel"] + p["classifier"]["bias"])
        if output != "paper":
            stats = variables["batch_stats"]["score_norm"]
            s = (s - stats["mean"]) / np.sqrt(stats["var"] + 1e-3) * p["score_norm"]["scale"] + p["score_norm"]["bias"]
        self.h, self.c = (
            np.tanh(s @ p[name]["kernel"] + p[name]["bias"]) for name in ("initial_hidden", "initial_cell")
        )

    def log_probs(self, path, known=None):
        """[len(path) + 1, C + 1]: before each label of the path and after it."""
        p, h, c, found = self.p, self.h, self.c, []
        for label in (CLASSES, *path):  # START is the last row
            x = p["label_embedding"][label]
            i, f, g, o = np.split(
                x @ p["cell"]["input_kernel"] + h @ p["cell"]["recurrent_kernel"] + p["cell"]["bias"], 4
            )
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
            y = h
            if self.output != "paper":
                y = np.tanh(h @ p["projection_kernel"] + p["projection_bias"][0])
            y = y @ p["output_kernel"] + p["output_bias"][0]
            y = y if known is None else np.where(known, y, -np.inf)
            found.append(y - np.log(np.sum(np.exp(y))))
        return np.array(found)


def probability(reference, path, known=None):
    return sum(said[token] for said, token in zip(reference.log_probs(path, known), [*path, CLASSES], strict=True))


def test_teacher_forced_loss_against_a_loop():
    model, variables = prepared()
    inputs = features_of(len(LABELS))
    outputs = jax.jit(model.apply)(variables, inputs, labels=jnp.asarray(LABELS))
    losses, logged = multi_order_rnn.loss_fn(outputs, jnp.asarray(LABELS), cnn_weight=0.5)
    place = np.argsort(ORDER)
    for b, labels in enumerate(LABELS):
        path = sorted(np.flatnonzero(labels == 1), key=lambda c: place[c])[:3]
        expected = -probability(Numpy(variables, inputs.feature_map[b, 0, 0]), path, np.append(labels != -1, True))
        cnn = np.array(outputs["cnn_logits"][b], np.float64)
        expected += 0.5 * sum(np.log1p(np.exp(-cnn[c] if y == 1 else cnn[c])) for c, y in enumerate(labels) if y >= 0)
        np.testing.assert_allclose(losses[b], expected, rtol=1e-4, atol=1e-5)
    assert logged["paths_cut"] == 1
    with pytest.raises(UserError, match="step_loss = 'released' is for"):
        multi_order_rnn.loss_fn(outputs, jnp.asarray(LABELS), step_loss="released")


@pytest.mark.parametrize(("beam_size", "output"), [(1, "paper"), (50, "paper"), (1, "released")])
def test_decoding_against_all_sequences(beam_size, output):
    """A beam of all prefixes is exact; a beam of 1 takes the best token that is left at each step."""
    model, variables = prepared(beam_size=beam_size, output=output)
    inputs = features_of(6)
    prediction, trace = jax.jit(
        lambda v, x: (multi_order_rnn.predict_fn(model, v, x), multi_order_rnn.trace_fn(model, v, x))
    )(variables, inputs)
    every = [path for n in range(4) for path in itertools.permutations(range(CLASSES), n)]
    for b in range(6):
        reference = Numpy(variables, inputs.feature_map[b, 0, 0], output)
        found = tuple(int(c) for c in prediction.path[b] if c < CLASSES)
        expected = max(every, key=lambda path, reference=reference: probability(reference, path))
        if beam_size == 1:
            expected = ()
            while len(expected) < 3:
                said = reference.log_probs(expected)[-1]
                token = max((t for t in range(CLASSES + 1) if t not in expected), key=lambda t, said=said: said[t])
                if token == CLASSES:
                    break
                expected += (token,)
        assert found == expected
        assert set(np.flatnonzero(prediction.chosen[b])) == set(found)
        steps = np.exp(reference.log_probs(found))
        np.testing.assert_allclose(trace.probabilities[b, : len(found) + 1], steps, atol=1e-4)
        np.testing.assert_allclose(trace.log_probs[b, 0], probability(reference, found), rtol=1e-3)
        assert set(np.flatnonzero(prediction.scores[b] > 0)) >= (set(found) if beam_size == 1 else set())


def test_gradients_reach_every_parameter_but_the_trunk_s():
    model, variables = prepared()

    def loss(params):
        outputs = model.apply({**variables, "params": params}, features_of(), train=True, labels=jnp.asarray(LABELS))
        return multi_order_rnn.loss_fn(outputs, jnp.asarray(LABELS))[0].sum()

    for name, part in jax.jit(jax.grad(loss))(variables["params"]).items():
        for leaf in jax.tree.leaves(part):
            assert np.isfinite(leaf).all() and (name == "trunk") == (not np.any(leaf)), name


def test_one_label():
    model, variables = model_and_variables(1, **PATHS)
    variables = {**variables, "constants": {"order": np.zeros(1, np.int32)}}
    labels = jnp.array([[1], [0]], jnp.int8)

    @jax.jit
    def run(variables, inputs):
        outputs = model.apply(variables, inputs, labels=labels)
        return multi_order_rnn.loss_fn(outputs, labels)[0], multi_order_rnn.predict_fn(model, variables, inputs)

    losses, prediction = run(variables, features_of(2))
    assert np.isfinite(losses).all() and prediction.path.shape == (2, 3) and np.isfinite(prediction.scores).all()


@pytest.mark.parametrize(
    ("method", "expected"),
    [("mo_frequent_first", [0, 1, 2]), ("mo_rare_first", [1, 2, 0]), ("mo_lexicographic", [2, 0, 1])],
)
def test_constants(method, expected):
    labels = np.array([[1, 1, 0], [1, 0, -1], [1, 1, 1], [0, 0, 1]], np.int8)
    config = config_lib.load(f"multi_order_rnn:method={method}", ["--config.model.max_length=2"])
    found, notes = multi_order_rnn.constants(config, contract.LabelStatistics(labels, ["b", "c", "a"]))
    np.testing.assert_array_equal(found["order"], expected)
    assert len(notes) == 1 and notes[0].startswith("1 of 4 training images have more than config.model.max_length = 2")


def test_a_folder_from_before_optim_eps_keeps_its_output():
    """`output="released"` added what a step reads; `optim.eps` came with the change."""
    values = config_lib.load("multi_order_rnn:method=released").to_dict()
    assert config_lib.from_dict(values).model.output == "released"
    del values["optim"]["eps"]
    older = config_lib.from_dict(values)
    assert (older.model.output, older.optim.eps) == ("released_prev2out", 1e-8)
