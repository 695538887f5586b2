"""The linear layer over the last dimension, against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmlic.models.layers.conv import Linear


@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 3, 5), (2, 3, 4, 5), (0, 3, 5)])
def test_values_and_gradients_are_those_of_a_product_and_a_sum(shape):
    rng = np.random.default_rng(0)
    x, pull = rng.normal(size=shape).astype(np.float32), rng.normal(size=(*shape[:-1], 6)).astype(np.float32)
    layer = Linear(6, bias_init=jax.nn.initializers.normal(1.0))
    variables = layer.init(jax.random.key(0), x)
    kernel, bias = (np.asarray(variables["params"][name], np.float64) for name in ("kernel", "bias"))
    assert kernel.shape == (5, 6)

    def weighted(variables, x):
        return jnp.sum(layer.apply(variables, x) * pull)

    np.testing.assert_allclose(layer.apply(variables, x), x @ kernel + bias, rtol=1e-5, atol=1e-5)
    of_variables, of_x = jax.grad(weighted, argnums=(0, 1))(variables, x)
    flat, pulled = x.reshape(-1, 5), pull.reshape(-1, 6)
    np.testing.assert_allclose(of_variables["params"]["kernel"], flat.T @ pulled, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(of_variables["params"]["bias"], pulled.sum(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(of_x, pull @ kernel.T, rtol=1e-4, atol=1e-5)


def test_products_are_of_two_matrices():
    """What it is for: XLA writes a transposed operand of three dimensions before it multiplies."""
    x = jnp.ones((2, 3, 5))
    layer = Linear(6)
    variables = layer.init(jax.random.key(0), x)
    program = jax.make_jaxpr(jax.grad(lambda v, x: jnp.sum(layer.apply(v, x) ** 2), argnums=(0, 1)))(variables, x)
    products = [row for row in program.jaxpr.eqns if row.primitive.name == "dot_general"]
    assert len(products) == 3
    assert all(operand.aval.ndim == 2 for row in products for operand in row.invars)
