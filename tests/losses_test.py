"""Losses against numpy in float64, by hand, and their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmlic import losses


def reference(logits, labels):
    """Straight from the definition, a loop over cells in float64."""
    values = np.zeros(logits.shape[:-1])
    for index in np.ndindex(labels.shape):
        z, y = float(logits[index]), int(labels[index])
        if y != -1:
            p = 1 / (1 + np.exp(-z))
            values[index[:-1]] -= np.log(p if y == 1 else 1 - p) / labels.shape[-1]
    return values


def test_binary_cross_entropy_equals_a_loop():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(6, 7)) * 3, rng.integers(-1, 2, (6, 7)).astype(np.int8)
    found = losses.binary_cross_entropy(jnp.float32(logits), jnp.asarray(labels))
    np.testing.assert_allclose(found, reference(np.float32(logits), labels), rtol=1e-5)


def test_by_hand():
    found = losses.binary_cross_entropy(jnp.zeros((1, 4)), jnp.array([[1, 0, -1, -1]]))
    np.testing.assert_allclose(found, [2 * np.log(2) / 4], rtol=1e-6)


def test_extreme_logits_are_finite_and_linear():
    found = losses.binary_cross_entropy(jnp.array([[1e4, -1e4]]), jnp.array([[0, 1]]))
    np.testing.assert_allclose(found, [1e4])
    grads = jax.grad(lambda z: losses.binary_cross_entropy(z, jnp.array([[0, 1]])).sum())(jnp.array([[1e4, -1e4]]))
    np.testing.assert_allclose(grads, [[0.5, -0.5]])


def test_gradient_is_probability_minus_label_and_zero_where_unknown():
    z = jnp.array([[0.3, -2.0, 1.5]])
    grads = jax.grad(lambda z: losses.binary_cross_entropy(z, jnp.array([[1, 0, -1]])).sum())(z)
    p = 1 / (1 + np.exp(-np.asarray(z)))
    np.testing.assert_allclose(grads, [[(p[0, 0] - 1) / 3, p[0, 1] / 3, 0.0]], rtol=1e-5)


def test_bfloat16_logits_are_summed_in_float32():
    z = jnp.linspace(-4, 4, 1001, dtype=jnp.bfloat16)[None]
    labels = (jnp.arange(1001) % 2)[None]
    found = losses.binary_cross_entropy(z, labels)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, reference(np.asarray(z, np.float64), np.asarray(labels)), rtol=1e-5)


def test_shapes_must_agree():
    with pytest.raises(AssertionError):
        losses.binary_cross_entropy(jnp.zeros((2, 3)), jnp.zeros((2, 1), jnp.int8))
