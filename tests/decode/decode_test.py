"""Greedy and beam search against all paths and against a search over lists; scores from paths by hand."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from table_model import (
    NUM_STATES,
    SEEDS,
    Reference,
    assert_same,
    greedy_searcher,
    number_of_paths,
    rescorer,
    searcher,
    table_step,
    tables,
    unpadded,
)

from jaxmlic import decode
from jaxmlic.decode.search import _top_k


@pytest.mark.parametrize("kind", ["any", "holes"])
@pytest.mark.parametrize(("num_labels", "max_length", "min_length"), [(3, 2, 2), (4, 4, 0), (5, 3, 2)])
def test_a_beam_of_all_prefixes_is_exact(num_labels, max_length, min_length, kind):
    models = tables(num_labels, kind)
    found = searcher(num_labels, number_of_paths(num_labels, max_length), max_length, min_length)(models)
    chex.assert_type(list(found), [jnp.int32, jnp.float32])
    for model, *result in zip(models, *found, strict=True):
        assert_same(result, Reference(model).all_paths(max_length, min_length), num_labels)


@pytest.mark.parametrize("kind", ["any", "holes", "ties"])
@pytest.mark.parametrize(("beam_size", "min_length"), [(1, 0), (2, 0), (3, 0), (7, 0), (1, 2), (3, 2)])
def test_equals_a_search_over_lists_at_every_width(beam_size, min_length, kind):
    models = tables(5, kind)
    found = searcher(5, beam_size, 3, min_length)(models)
    for model, *result in zip(models, *found, strict=True):
        assert_same(result, Reference(model).beam_search(beam_size, 3, min_length), 5)


@pytest.mark.parametrize("kind", ["any", "holes", "ties"])
@pytest.mark.parametrize("min_length", [0, 2])
def test_beam_of_one_is_greedy(min_length, kind):
    models = tables(5, kind)
    paths, log_probs = searcher(5, 1, 3, min_length)(models)
    path, log_prob = greedy_searcher(5, 3, min_length)(models)
    chex.assert_type([path, log_prob], [jnp.int32, jnp.float32])
    np.testing.assert_array_equal(paths[:, 0], path)
    np.testing.assert_array_equal(log_probs[:, 0], log_prob)
    for model, *result in zip(models, paths, log_probs, strict=True):
        assert_same(result, Reference(model).beam_search(1, 3, min_length), 5)


@pytest.mark.parametrize("kind", ["any", "ties"])
def test_length_penalty_keeps_the_stop_rule_exact(kind):
    models = tables(5, kind)
    found = searcher(5, 3, 3, 0, 1.5)(models)
    for model, paths, log_probs in zip(models, *found, strict=True):
        expected = Reference(model).beam_search(3, 3, 0, 1.5)
        if kind == "any":
            assert_same((paths, log_probs), expected, 5)
        divisors = np.array([((6 + len(path)) / 6) ** 1.5 for path in unpadded(paths, 5)])
        scores = [log_prob / ((6 + len(path)) / 6) ** 1.5 for log_prob, path in expected]
        np.testing.assert_allclose(log_probs / divisors, scores, rtol=1e-6)  # equal ones in any order: a last bit
    best, best_without = found[0][:, 0], searcher(5, 3, 3)(models)[0][:, 0]
    assert (best != 5).sum() > (best_without != 5).sum()


def test_a_long_path_may_win_by_its_length_alone():
    """(0, 1) is worth less than both candidates, ended now; (0, 1, 2) is worth more than the second."""
    rows = jnp.array([[-1.0, -3, -3, -1], [-9, -2.5, -4, -0.1], [-9, -9, -0.01, -5], [-9, -9, -9, 0]])
    lengths = {"num_labels": 3, "max_length": 3, "beam_size": 2}
    search = partial(decode.beam_search, lambda t, _: (t + 1, rows[t]), **lengths, length_penalty=4.0)
    paths, log_probs = jax.jit(search)(0)
    assert unpadded(paths, 3) == [(0,), (0, 1, 2)]
    np.testing.assert_allclose(log_probs, [-1.1, -3.51], rtol=1e-6)


@pytest.mark.parametrize("kind", ["any", "holes"])
def test_log_probabilities_are_those_of_the_paths(kind):
    models = tables(5, kind)
    paths, log_probs = searcher(5, 3, 3)(models)
    rescored = np.where(np.isneginf(log_probs), -np.inf, rescorer()(models, paths))
    np.testing.assert_allclose(rescored, log_probs, rtol=1e-6)
    by_hand = Reference(models[0]).log_prob((2, 0, 4))
    np.testing.assert_allclose(rescorer()(models, np.full((SEEDS, 3, 3), [2, 0, 4]))[0, 0], by_hand, rtol=1e-6)


def test_vmapped_equals_one_by_one():
    models = tables(5)

    @jax.jit
    def search(table):
        return decode.beam_search(partial(table_step, table), 0, num_labels=5, beam_size=3, max_length=3)

    alone = [search(model) for model in models]
    chex.assert_trees_all_equal(searcher(5, 3, 3)(models), tuple(np.stack(x) for x in zip(*alone, strict=True)))


def rnn_parameters(num_labels, hidden=6):
    rng = np.random.default_rng(3)
    shapes = {
        "embed": (num_labels, hidden),
        "start": (hidden,),
        "recur": (hidden, hidden),
        "out": (hidden, num_labels + 1),
    }
    return {name: rng.normal(0, 1, shape).astype(np.float32) for name, shape in shapes.items()}


def rnn_step(params, state, previous_label):
    """A small RNN whose state is a tree; like an embedding that fills what is out of range, it answers END with NaN."""
    embedded = jnp.take(params["embed"], previous_label, axis=0, mode="fill", fill_value=jnp.nan)
    embedded = jnp.where(previous_label == decode.START, params["start"], embedded)
    hidden = jnp.tanh(state["hidden"] @ params["recur"] + embedded)
    log_probs = jax.nn.log_softmax(hidden @ params["out"])
    return {"hidden": hidden, "fixed": state["fixed"]}, log_probs.astype(jnp.bfloat16)


def rnn_log_prob(params, hidden, path, num_labels):
    """The log-probability of a path, in numpy; the step's output is rounded to bfloat16 as the model's is."""
    total = 0.0
    for previous, token in zip((-1, *path), (*path, num_labels), strict=True):
        embedded = params["start"] if previous == -1 else params["embed"][previous]
        hidden = np.tanh(hidden @ params["recur"] + embedded)
        logits = hidden @ params["out"]
        total += np.float32((logits - np.log(np.exp(logits).sum())).astype(jnp.bfloat16)[token])
    return total


def test_a_recurrent_model_with_a_tree_as_state():
    """bfloat16 steps, a state of several arrays, features that are closed over, several images: all paths, exactly."""
    num_labels, max_length = 4, 3
    params = rnn_parameters(num_labels)
    hidden = np.random.default_rng(4).normal(0, 1, (3, 6)).astype(np.float32)
    width = number_of_paths(num_labels, max_length)

    @jax.jit
    @jax.vmap
    def search(image):
        state = {"hidden": image, "fixed": (jnp.zeros((2, 3)), jnp.int32(7))}
        step = partial(rnn_step, params)
        found = decode.beam_search(step, state, num_labels=num_labels, beam_size=width + 4, max_length=max_length)
        return *found, jax.vmap(partial(decode.rescore, step, state))(found[0])

    paths, log_probs, rescored = (np.asarray(x) for x in search(hidden))
    assert (log_probs[:, width:] == -np.inf).all() and (paths[:, width:] == num_labels).all()
    assert (np.diff(log_probs[:, :width]) <= 0).all()
    np.testing.assert_allclose(rescored[:, :width], log_probs[:, :width], rtol=1e-5)
    for image, image_paths, image_log_probs in zip(hidden, paths[:, :width], log_probs[:, :width], strict=True):
        tuples = unpadded(image_paths, num_labels)
        assert len(set(tuples)) == width
        wanted = [rnn_log_prob(params, image, path, num_labels) for path in tuples]
        np.testing.assert_allclose(image_log_probs, wanted, atol=0.05)  # a last bit of bfloat16 may go either way


def constant(*probabilities):
    """A model that always says the same, in a batch of the usual size, so that the usual program serves."""
    with np.errstate(divide="ignore"):
        row = np.log(np.array(probabilities, np.float32))
    return np.broadcast_to(row, (SEEDS, NUM_STATES, len(probabilities)))


def test_a_finished_path_keeps_its_score():
    paths, log_probs = searcher(5, 3, 3)(constant(0.3, 0.1, 0, 0, 0, 0.6))
    assert unpadded(paths[0], 5) == [(), (0,), (1,)]
    np.testing.assert_allclose(np.exp(log_probs[0]), [0.6, 0.18, 0.06], rtol=1e-6)


def test_end_counts_after_the_last_label_too():
    paths, log_probs = searcher(3, 10, 2, 2)(constant(0.7, 0.2, 0, 0.1))
    assert set(unpadded(paths[0, :2], 3)) == {(0, 1), (1, 0)}
    np.testing.assert_allclose(np.exp(log_probs[0]), [0.014] * 2 + [0] * 8, rtol=1e-6)


def test_all_probability_on_end():
    paths, log_probs = searcher(5, 3, 3)(constant(0, 0, 0, 0, 0, 1))
    assert_same((paths[0], log_probs[0]), [(0.0, ())], 5)
    # The minimum length forbids the one path that the model allows.
    paths, log_probs = searcher(5, 3, 3, 2)(constant(0, 0, 0, 0, 0, 1))
    assert_same((paths[0], log_probs[0]), [], 5)
    path, log_prob = greedy_searcher(5, 3, 2)(constant(0, 0, 0, 0, 0, 1))
    assert (path == 5).all() and log_prob[0] == -np.inf


def test_no_probability_on_end():
    model = constant(0.5, 0.125, 0.125, 0.125, 0.125, 0)
    paths, log_probs = searcher(5, 3, 3)(model)
    assert_same((paths[0], log_probs[0]), [], 5)
    path, log_prob = greedy_searcher(5, 3)(model)
    assert (path == 5).all() and log_prob[0] == -np.inf


def test_one_label_and_one_step():
    found = searcher(1, 5, 3)(tables(1))  # more steps than labels
    assert found[0].shape == (SEEDS, 5, 3)
    for model, *result in zip(tables(1), *found, strict=True):
        assert_same(result, Reference(model).all_paths(1), 1)
    for model, *result in zip(tables(4), *searcher(4, 9, 1)(tables(4)), strict=True):
        assert_same(result, Reference(model).all_paths(1), 4)


def test_more_steps_than_labels():
    models = tables(3)
    paths, log_probs = searcher(3, 16, 6, 3)(models)
    assert paths.shape == (SEEDS, 16, 6)
    for model, *result in zip(models, paths, log_probs, strict=True):
        assert_same(result, Reference(model).all_paths(3, 3), 3)
    path, log_prob = greedy_searcher(3, 6, 3)(models)
    assert ((path != 3).sum(1) == 3).all() and (log_prob > -np.inf).all()


def test_equal_probabilities_go_to_the_lower_label_and_the_earlier_beam():
    same = constant(*[1 / 6] * 6)
    paths, _ = searcher(5, 3, 3, 2)(same)  # END is the last of the equal ones, and not among the best three
    assert unpadded(paths[0], 5) == [(0, 1, 2), (0, 1, 3), (0, 1, 4)]
    paths, _ = searcher(5, 7, 3)(same)
    assert unpadded(paths[0], 5)[:3] == [(), (0,), (1,)]
    path, _ = greedy_searcher(5, 3)(same)
    assert unpadded(path[:1], 5) == [(0, 1, 2)]


def test_nan_of_the_model_is_not_hidden():
    models = tables(5)
    models[0] = np.nan
    _, log_probs = searcher(5, 3, 3)(models)
    assert np.isnan(log_probs[0]).any() and not np.isnan(log_probs[1]).any()
    _, log_prob = greedy_searcher(5, 3)(models)
    assert np.isnan(log_prob[0]) and not np.isnan(log_prob[1])


def step_counter(search, **kwargs):
    """Runs a search over rows [B, T + 1, C + 1], one a step, and tells after how many labels the model was asked."""
    seen = set()

    @jax.jit
    @jax.vmap
    def run(image):
        def step(state, previous_label):
            jax.debug.callback(lambda t: seen.add(int(t)), state)
            return state + 1, image[state]

        return search(step, 0, **kwargs)

    def steps(*rows):
        seen.clear()
        jax.block_until_ready(run(np.stack(rows)))
        jax.effects_barrier()
        return sorted(seen)

    return steps


def test_the_loop_ends_as_soon_as_no_result_can_change():
    num_labels, max_length = 8, 8
    flat = np.full((max_length + 1, num_labels + 1), np.log(1 / (num_labels + 1)), np.float32)
    sure = flat.copy()
    sure[2:] = np.log(1e-6)
    sure[2:, num_labels] = np.log(1 - 8e-6)  # after two labels: END
    never = flat.copy()
    never[:, num_labels] = -np.inf
    lengths = {"num_labels": num_labels, "max_length": max_length}
    for search in (partial(decode.beam_search, beam_size=3), decode.greedy):
        steps = step_counter(search, **lengths)
        assert steps(sure, sure) == [0, 1, 2]
        assert steps(sure, never) == list(range(9))


def test_empty_places_in_the_beam_ask_nothing_strange_and_say_nothing():
    """A model that fails after an impossible label, and a vocabulary too small to fill the beam."""
    asked = set()

    def step(failed, previous_label):
        jax.debug.callback(lambda label: asked.add(int(label)), previous_label)
        failed |= previous_label == 0
        log_probs = jnp.log(jnp.array([0, 0.5, 0.25, 0.25]))
        return failed, jnp.where(failed, jnp.nan, log_probs)

    found = jax.jit(partial(decode.beam_search, step, num_labels=3, beam_size=8, max_length=3))(False)
    jax.effects_barrier()
    assert asked <= {-1, 0, 1, 2}
    assert unpadded(found[0], 3) == [(), (1,), (2,), (1, 2), (2, 1), (), (), ()]
    np.testing.assert_allclose(np.exp(found[1]), [1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 32, 0, 0, 0])


def test_one_compilation_for_all_batches_of_a_shape():
    traced = []

    @jax.jit
    @jax.vmap
    def search(table):
        traced.append(table.shape)
        return decode.beam_search(partial(table_step, table), 0, num_labels=4, beam_size=2, max_length=3)

    for kind in ("any", "holes", "ties"):
        search(tables(4, kind))
    assert len(traced) == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"min_length": 4}, "min_length 4 lies outside 0..3"),
        ({"max_length": 2, "min_length": 3}, "min_length 3 lies outside 0..2"),
        ({"min_length": -1}, "min_length -1"),
        ({"max_length": 0}, "max_length 0 is below 1"),
        ({"num_labels": 0}, "num_labels 0 is below 1"),
        ({"beam_size": 0}, "beam_size 0 is below 1"),
        ({"length_penalty": -0.1}, "length_penalty -0.1"),
    ],
)
def test_what_cannot_be_searched_is_refused(values, message):
    step = partial(table_step, jnp.asarray(tables(3)[0]))
    values = {"num_labels": 3, "max_length": 5, "beam_size": 2} | values
    with pytest.raises(ValueError, match=message):
        decode.beam_search(step, 0, **values)
    if not {"beam_size", "length_penalty"} & set(message.split()):
        del values["beam_size"]
        with pytest.raises(ValueError, match=message):
            decode.greedy(step, 0, **values)


def test_a_step_of_the_wrong_width_is_refused():
    step = partial(table_step, jnp.asarray(tables(3)[0]))
    for search in (decode.greedy, partial(decode.beam_search, beam_size=2)):
        with pytest.raises(AssertionError):
            search(step, 0, num_labels=4, max_length=2)


@pytest.mark.parametrize("tokens", [1025, 1300])
def test_the_best_of_many_tokens(tokens):
    """Of few values, so that there are ties, in a block and between blocks; infinities too."""
    x = np.random.default_rng(0).integers(-4, 60, (6, tokens)).astype(np.float32)
    x[1, :-2], x[2] = -np.inf, -np.inf
    chex.assert_trees_all_equal(jax.jit(lambda x: _top_k(x, 5))(x), tuple(jax.lax.top_k(x, 5)))
