"""The small network against one written in numpy, and its shapes at any size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmlic.models import trunks
from jaxmlic.models.trunks import small_cnn


def conv(x, kernel, stride):
    """3 x 3 convolution of one image [H, W, I], zeros around it, the odd row of padding last."""
    height, width = x.shape[:2]
    rows, columns = -(-height // stride), -(-width // stride)
    top = max((rows - 1) * stride + 3 - height, 0) // 2
    left = max((columns - 1) * stride + 3 - width, 0) // 2
    padded = np.zeros((height + 4, width + 4, x.shape[2]))
    padded[top : top + height, left : left + width] = x
    out = np.empty((rows, columns, kernel.shape[3]))
    for r, c in np.ndindex(rows, columns):
        out[r, c] = np.einsum("ijc,ijco->o", padded[r * stride : r * stride + 3, c * stride : c * stride + 3], kernel)
    return out


def norm_relu(x, scale, bias):
    grouped = x.reshape(*x.shape[:2], 8, -1)
    mean, var = grouped.mean((0, 1, 3), keepdims=True), grouped.var((0, 1, 3), keepdims=True)
    return np.maximum(((grouped - mean) / np.sqrt(var + 1e-6)).reshape(x.shape) * scale + bias, 0)


@pytest.fixture(scope="module")
def narrow():
    trunk = small_cnn.Trunk(widths=(8, 16, 24))
    variables = jax.eval_shape(lambda: trunk.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)), False))
    leaves, tree = jax.tree.flatten(variables)
    rng = np.random.default_rng(0)
    leaves = [rng.normal(0.1, 0.4, leaf.shape).astype(np.float32) for leaf in leaves]
    return trunk, jax.tree.unflatten(tree, leaves)


def test_equals_numpy(narrow):
    trunk, variables = narrow
    image = np.random.default_rng(1).integers(0, 256, (2, 13, 18, 3)).astype(np.uint8)
    feature_map, stages = jax.jit(trunk.apply, static_argnums=2)(variables, small_cnn.preprocess(image), False)
    params = jax.tree.map(lambda p: np.asarray(p, np.float64), variables["params"])
    for i in range(2):
        x = (image[i] - 127.5) / 64
        for stage, convolutions in (("stage1", 1), ("stage2", 2), ("stage3", 3)):
            for j in range(convolutions):
                x = conv(x, params[f"{stage}_{j}_conv"]["kernel"], 2 if j == 0 else 1)
                x = norm_relu(x, **params[f"{stage}_{j}_norm"])
            np.testing.assert_allclose(stages[stage][i], x, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(feature_map, stages["stage3"])


def test_training_is_evaluation_and_images_do_not_meet(narrow):
    trunk, variables = narrow
    x = small_cnn.preprocess(jax.random.randint(jax.random.key(1), (3, 16, 16, 3), 0, 256))
    run = jax.jit(trunk.apply, static_argnums=2)
    together = run(variables, x, True)[0]
    np.testing.assert_array_equal(together, run(variables, x, False)[0])
    np.testing.assert_allclose(together[1], run(variables, x[1:2], False)[0][0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "width"), [("small_cnn", 96), ("small_cnn_wide", 256)])
@pytest.mark.parametrize("size", [(48, 48), (33, 50), (1, 1)])
def test_shapes(name, width, size):
    module, fields = trunks.get(name)
    assert module is small_cnn
    trunk = module.Trunk(**fields, dtype=jnp.bfloat16)
    images = jax.ShapeDtypeStruct((2, *size, 3), jnp.uint8)
    (feature_map, stages), variables = jax.eval_shape(
        lambda x: trunk.init_with_output(jax.random.key(0), module.preprocess(x), False), images
    )
    assert feature_map.shape == (2, *(-(-s // module.STRIDE) for s in size), width)
    assert feature_map.dtype == jnp.bfloat16 and list(stages) == ["stage1", "stage2", "stage3"]
    assert set(variables) == {"params"}
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))


def test_preprocess_takes_bytes_and_floats():
    image = np.array([[[[0, 127, 255]]]])
    expected = np.array([[[[-127.5, -0.5, 127.5]]]], np.float32) / 64
    for dtype in (np.uint8, np.float32):
        x = small_cnn.preprocess(jnp.asarray(image, dtype))
        assert x.dtype == jnp.float32
        np.testing.assert_array_equal(x, expected)
