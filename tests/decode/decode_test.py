"""Greedy and beam search against all paths and against a search over lists; scores from paths by hand."""

import itertools
from functools import cache, partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmlic import decode
from jaxmlic.decode.search import _top_k

NUM_STATES = 61
SEEDS = 6


def table_step(table, state, previous_label):
    """A model that is a table: the state is a hash of the labels so far, and what it says is the table's row."""
    state = (state * 7 + previous_label + 2) % NUM_STATES
    return state, table[state]


def tables(num_labels, kind="any", seeds=SEEDS):
    """One table per seed, float32 [seeds, states, labels + 1] of log-probabilities."""
    logits = np.random.default_rng(0).normal(0, 1.5, (seeds, NUM_STATES, num_labels + 1))
    if kind == "holes":  # a third of all steps are impossible, some of END's too
        logits[np.random.default_rng(1).random(logits.shape) < 1 / 3] = -np.inf
        logits[..., 0][np.isneginf(logits).all(-1)] = 0
    if kind == "ties":  # few values, whose sums are exact in float32
        return (np.random.default_rng(0).integers(-3, 0, logits.shape) / 4).astype(np.float32)
    return np.asarray(jax.nn.log_softmax(logits)).astype(np.float32)


class Reference:
    """The same table, read by plain Python: what comes after a tuple of labels."""

    def __init__(self, table):
        self.table, self.num_labels = table, table.shape[1] - 1

    def after(self, path):
        state = 0
        for label in (-1, *path):
            state = (state * 7 + label + 2) % NUM_STATES
        return self.table[state]

    def log_prob(self, path):
        total = np.float32(0)
        for t, token in enumerate((*path, self.num_labels)):
            total += self.after(path[:t])[token]
        return total

    def all_paths(self, max_length, min_length=0):
        """Every possible path and its log-probability, best first."""
        lengths = range(min_length, min(max_length, self.num_labels) + 1)
        paths = (path for n in lengths for path in itertools.permutations(range(self.num_labels), n))
        found = [(self.log_prob(path), path) for path in paths]
        return sorted((x for x in found if x[0] > -np.inf), key=lambda x: -x[0])

    def beam_search(self, beam_size, max_length, min_length=0, length_penalty=0.0):
        """Section 3.3 with lists, to the end: no masks and no stop rule. Python's sort is stable."""
        live, done = [((), np.float32(0))], []
        for length in range(max_length + 1):
            longer = []
            for path, total in live:
                step = self.after(path)
                allowed = [label for label in range(self.num_labels) if label not in path and length < max_length]
                allowed += [self.num_labels] if length >= min_length else []
                for label in sorted(allowed, key=lambda label: -step[label])[:beam_size]:
                    if label == self.num_labels:
                        score = (total + step[label]) / np.float32(((6 + length) / 6) ** length_penalty)
                        done.append((score, total + step[label], path))
                    else:
                        longer.append(((*path, label), total + step[label]))
            live = sorted(longer, key=lambda x: -x[1])[:beam_size]
        done = sorted((x for x in done if x[1] > -np.inf), key=lambda x: -x[0])
        return [x[1:] for x in done[:beam_size]]


@cache
def searcher(num_labels, beam_size, max_length, min_length=0, length_penalty=0.0):
    """Beam search over a batch of tables, compiled once."""

    def search(table):
        return decode.beam_search(
            partial(table_step, table),
            0,
            num_labels=num_labels,
            beam_size=beam_size,
            max_length=max_length,
            min_length=min_length,
            length_penalty=length_penalty,
        )

    return jax.jit(jax.vmap(search))


@cache
def greedy_searcher(num_labels, max_length, min_length=0):
    def search(table):
        lengths = {"num_labels": num_labels, "max_length": max_length, "min_length": min_length}
        return decode.greedy(partial(table_step, table), 0, **lengths)

    return jax.jit(jax.vmap(search))


@cache
def rescorer():
    def rescore(table, path):
        return decode.rescore(partial(table_step, table), 0, path)

    return jax.jit(jax.vmap(jax.vmap(rescore, (None, 0))))


def unpadded(paths, num_labels):
    """[beam, T] as tuples of labels; END is followed by nothing but END."""
    tuples = [tuple(int(label) for label in path if label != num_labels) for path in paths]
    for path, labels in zip(paths, tuples, strict=True):
        assert (path[len(labels) :] == num_labels).all() and len(set(labels)) == len(labels)
    return tuples


def assert_same(result, expected, num_labels):
    """Paths and log-probabilities against [(log_prob, path)], the rest being END and -inf."""
    paths, log_probs = (np.asarray(x) for x in result)
    empty = len(paths) - len(expected)
    assert unpadded(paths, num_labels) == [path for _, path in expected] + [()] * empty
    wanted = np.array([log_prob for log_prob, _ in expected] + [-np.inf] * empty, np.float32)
    np.testing.assert_array_equal(log_probs, wanted)


def number_of_paths(num_labels, max_length):
    return sum(1 for n in range(max_length + 1) for _ in itertools.permutations(range(num_labels), n))


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


def test_along_path_is_what_the_model_says():
    model = tables(4)[0]
    path = np.array([2, 0, 4])
    said = decode.along_path(partial(table_step, jnp.asarray(model)), 0, path)
    assert said.shape == (4, 5) and said.dtype == jnp.float32
    for t, prefix in enumerate([(), (2,), (2, 0)]):
        np.testing.assert_array_equal(said[t], Reference(model).after(prefix))
    one = decode.along_path(partial(table_step, jnp.asarray(model)), 0, np.array([1]))
    np.testing.assert_array_equal(one, [Reference(model).after(()), Reference(model).after((1,))])


def test_marginals_by_hand():
    paths = np.array([[0, 1, 5], [0, 2, 5], [0, 5, 5], [5, 5, 5]])
    log_probs = np.append(np.log([0.3, 0.15, 0.05]), -np.inf).astype(np.float32)
    first = np.log(np.array([0.5, 0.1, 0.1, 0.05, 0.2, 0.05], np.float32))
    scores = np.asarray(decode.path_marginals(paths, log_probs, 5, first))
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores[1:3], [np.log(0.6 / 0.4), np.log(0.3 / 0.7)], rtol=1e-5)
    np.testing.assert_allclose(scores[[0, 3, 4]], np.r_[100, -50, -50] + first[[0, 3, 4]], rtol=1e-6)
    untied = np.asarray(decode.path_marginals(paths, log_probs, 5))
    assert untied[0] > untied[1] > untied[2] > untied[3] == untied[4]
    nothing = np.asarray(decode.path_marginals(paths, np.full(4, -np.inf, np.float32), 5, first))
    np.testing.assert_allclose(nothing, first[:5] - 50, rtol=1e-6)


def test_marginals_of_all_paths_are_the_models_own():
    models = tables(4)
    paths, log_probs = searcher(4, number_of_paths(4, 4), 4)(models)
    scores = np.asarray(jax.vmap(partial(decode.path_marginals, num_labels=4))(paths, log_probs))
    for model, score in zip(models, scores, strict=True):
        found = Reference(model).all_paths(4)
        probabilities = np.exp([float(log_prob) for log_prob, _ in found])
        has = np.array([[label in path for label in range(4)] for _, path in found])
        marginals = probabilities @ has / probabilities.sum()
        np.testing.assert_allclose(1 / (1 + np.exp(-score)), marginals, rtol=1e-5)
        lengths = [len(path) for _, path in found]
        np.testing.assert_allclose(marginals.sum(), probabilities @ lengths / probabilities.sum())


def test_highest_probability_over_the_steps_until_end():
    probabilities = np.array([[0.6, 0.1, 0.3], [0.1, 0.2, 0.7], [0.01, 0.98, 0.01]], np.float32)
    score = partial(decode.max_over_steps, np.log(probabilities))
    np.testing.assert_allclose(score(np.array([0, 2])), np.log([0.6 / 0.4, 0.2 / 0.8]), rtol=1e-5)
    np.testing.assert_allclose(score(np.array([2, 2])), np.log([0.6 / 0.4, 0.1 / 0.9]), rtol=1e-5)
    np.testing.assert_allclose(score(np.array([0, 1])), np.log([0.6 / 0.4, 0.98 / 0.02]), rtol=1e-5)
    certain = decode.max_over_steps(jnp.array([[0.0, -jnp.inf, -jnp.inf]] * 2), jnp.array([2]))
    np.testing.assert_array_equal(certain, [40, -40])


@pytest.mark.parametrize("tokens", [1025, 1300])
def test_the_best_of_many_tokens(tokens):
    """Of few values, so that there are ties, in a block and between blocks; infinities too."""
    x = np.random.default_rng(0).integers(-4, 60, (6, tokens)).astype(np.float32)
    x[1, :-2], x[2] = -np.inf, -np.inf
    chex.assert_trees_all_equal(jax.jit(lambda x: _top_k(x, 5))(x), tuple(jax.lax.top_k(x, 5)))
