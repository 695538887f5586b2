"""The CIFAR network's convolutions: the paper's counts, and PyTorch's operations where it is installed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmlic.errors import UserError
from jaxmlic.models import trunks
from jaxmlic.models.trunks import cifar14

# Trainable parameters of each layer, CNN-LSTM-RMLC, section 3.2.4.
COUNTS = {
    "C1": 640,
    "C2": 36_928,
    "S3": 128,
    "C4": 73_856,
    "C5": 147_584,
    "S6": 256,
    "C7": 295_168,
    "C8": 295_040,
    "S9": 256,
}


def images(*shape):
    return np.random.default_rng(shape).integers(0, 256, shape).astype(np.uint8)


@pytest.fixture(scope="module")
def variables():
    rng = np.random.default_rng(0)
    fresh = jax.eval_shape(lambda: cifar14.Trunk().init(jax.random.key(0), jnp.zeros((1, 32, 32, 1)), False))

    def draw(leaf):
        spread = np.sqrt(2 / np.prod(leaf.shape[:3])) if leaf.ndim == 4 else 0.7
        return jnp.asarray(rng.normal(size=leaf.shape) * spread, jnp.float32)

    return jax.tree.map(draw, fresh)


def run(variables, image, **fields):
    return jax.jit(lambda v, x: cifar14.Trunk(**fields).apply(v, cifar14.preprocess(x), True))(variables, image)


def test_every_layer_has_the_papers_count():
    module, fields = trunks.get("cifar14")
    assert module is cifar14 and fields == {}
    (feature_map, stages), variables = jax.eval_shape(
        lambda: module.Trunk().init_with_output(
            jax.random.key(0), module.preprocess(jnp.zeros((2, 32, 32, 3), jnp.uint8)), True
        )
    )
    params = variables["params"]
    assert {name: sum(leaf.size for leaf in jax.tree.leaves(params[name])) for name in params} == COUNTS
    assert set(stages) == set(COUNTS) and feature_map.shape == (2, 4, 4, 128)
    assert stages["C1"].shape == (2, 32, 32, 64) and stages["S3"].shape == (2, 16, 16, 64)
    assert stages["C8"].shape == (2, 8, 8, 128)


@pytest.mark.parametrize("size", [(32, 32), (33, 47)], ids=str)
def test_every_layer_is_that_of_pytorch(variables, size):
    torch = pytest.importorskip("torch")
    F = torch.nn.functional
    image = images(2, *size, 1)
    feature_map, stages = run(variables, image)
    x = torch.tensor((image.astype(np.float32) - 127.5) / 64).permute(0, 3, 1, 2)
    for name in COUNTS:
        layer = {key: torch.tensor(np.asarray(value)) for key, value in variables["params"][name].items()}
        if name.startswith("C"):
            x = F.relu(F.conv2d(x, layer["kernel"].permute(3, 2, 0, 1), layer["bias"], padding=1))
        else:
            x = F.max_pool2d(x, 2) * layer["scale"][:, None, None] + layer["bias"][:, None, None]
        expected = x.permute(0, 2, 3, 1).numpy()
        assert stages[name].shape == expected.shape
        assert np.abs(stages[name] - expected).max() < 1e-4 * np.abs(expected).max(), name
    np.testing.assert_array_equal(feature_map, stages["S9"])
    assert stages["S9"].min() < 0  # no activation after sub-sampling


def test_sub_sampling_by_hand():
    x = np.arange(2 * 5 * 4 * 3, dtype=np.float32).reshape(2, 5, 4, 3)
    params = {"scale": np.array([2, -1, 0.5], np.float32), "bias": np.array([1, 2, 3], np.float32)}
    got = cifar14.SubSampling().apply({"params": jax.tree.map(jnp.asarray, params)}, jnp.asarray(x))
    assert got.shape == (2, 2, 2, 3)  # the fifth row is left over
    for b, i, j in np.ndindex(2, 2, 2):
        highest = x[b, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].max((0, 1))
        np.testing.assert_array_equal(got[b, i, j], highest * params["scale"] + params["bias"])


def test_preprocess_turns_colour_to_grey():
    grey = images(2, 3, 4, 1)
    x = cifar14.preprocess(grey)
    assert x.shape == (2, 3, 4, 1) and x.dtype == jnp.float32
    np.testing.assert_allclose(x, (grey.astype(np.float32) - 127.5) / 64)
    np.testing.assert_allclose(cifar14.preprocess(np.repeat(grey, 3, -1)), x, atol=1e-5)
    red = cifar14.preprocess(jnp.array([[[[255, 0, 0]]]], jnp.uint8))
    np.testing.assert_allclose(red, (0.299 * 255 - 127.5) / 64, rtol=1e-6)


def test_bfloat16_is_near_float32(variables):
    image = images(2, 32, 32, 3)
    (exact, _), (half, stages) = run(variables, image), run(variables, image, dtype=jnp.bfloat16)
    assert all(leaf.dtype == jnp.bfloat16 for leaf in (half, *stages.values()))
    assert np.abs(half.astype(jnp.float32) - exact).max() < 0.05 * np.abs(exact).max()


def test_images_too_small_are_refused():
    with pytest.raises(UserError, match="images of 7 x 32 pixels are too small"):
        cifar14.Trunk().init(jax.random.key(0), jnp.zeros((1, 7, 32, 1)), False)
