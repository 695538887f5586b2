"""Scores from paths by hand, and what a model's steps are along a path."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from table_model import Reference, number_of_paths, searcher, table_step, tables

from jaxmlic import decode


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
