"""Convolutions against brute force and XLA's own, norms against Flax's, gradients included."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxmlic.errors import UserError
from jaxmlic.models.layers import conv, pooling
from jaxmlic.models.layers.norm import BatchNorm, GroupNorm, check_batch_norm


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape), jnp.float32)


def brute_force(x, kernel, stride):
    """Depthwise 'SAME' convolution by its definition, in loops; the odd row of padding comes last."""
    k, (batch, height, width, channels) = kernel.shape[0], x.shape
    rows, columns = -(-height // stride), -(-width // stride)
    top = max((rows - 1) * stride + k - height, 0) // 2
    left = max((columns - 1) * stride + k - width, 0) // 2
    out = np.zeros((batch, rows, columns, channels))
    for r, c, i, j in np.ndindex(rows, columns, k, k):
        y, z = r * stride + i - top, c * stride + j - left
        if 0 <= y < height and 0 <= z < width:
            out[:, r, c] += np.asarray(x[:, y, z], np.float64) * np.asarray(kernel[i, j, 0], np.float64)
    return out


def value_and_gradients(f, stride):
    """(x, kernel, gradient of the output) -> output, gradient of x, gradient of the kernel."""

    def run(x, kernel, grad):
        y, pull = jax.vjp(lambda x, kernel: f(x, kernel, stride), x, kernel)
        return y, *pull(grad)

    return jax.jit(run)


def worst(a, b):
    """Largest difference relative to the largest value."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape
    return np.abs(a - b).max() / np.abs(b).max()


@pytest.mark.parametrize("size", [(8, 8), (9, 7), (1, 3)], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("k", [3, 5])
def test_depthwise_conv_and_its_gradients_are_the_convolution(k, stride, size):
    x, kernel = random(2, *size, 6), random(k, k, 1, 6)
    expected = brute_force(x, kernel, stride)
    grad = random(*expected.shape, seed=1)
    got = value_and_gradients(conv.depthwise_conv, stride)(x, kernel, grad)
    assert worst(got[0], expected) < 1e-6
    for a, b in zip(got, value_and_gradients(conv.grouped_conv, stride)(x, kernel, grad), strict=True):
        assert worst(a, b) < 1e-5


def test_bands_of_rows_cover_the_image():
    # 35 rows are five bands of seven; 37 five of eight with three spare; a wide row is a band of its own
    assert conv._num_bands(35, 1) == 5 and conv._num_bands(37, 1) == 5 and conv._num_bands(4, 2**21) == 4
    x, kernel = random(1, 37, 5, 4), random(3, 3, 1, 4)
    grad = random(1, 37, 5, 4, seed=1)
    got = value_and_gradients(conv.depthwise_conv, 1)(x, kernel, grad)
    assert worst(got[2], value_and_gradients(conv.grouped_conv, 1)(x, kernel, grad)[2]) < 1e-5


def test_depthwise_conv_under_vmap():
    x, kernel = random(3, 2, 9, 8, 4), random(3, 3, 3, 1, 4)
    grad = random(3, 2, 5, 4, 4, seed=1)
    run = value_and_gradients(conv.depthwise_conv, 2)
    for i, together in enumerate(zip(*jax.vmap(run)(x, kernel, grad), strict=True)):
        for a, b in zip(together, run(x[i], kernel[i], grad[i]), strict=True):
            assert worst(a, b) < 1e-6


def test_depthwise_conv_in_bfloat16_rounds_once():
    x, kernel, grad = (a.astype(jnp.bfloat16) for a in (random(2, 9, 8, 4), random(5, 5, 1, 4), random(2, 5, 4, 4)))
    got = value_and_gradients(conv.depthwise_conv, 2)(x, kernel, grad)
    exact = value_and_gradients(conv.grouped_conv, 2)(*(a.astype(jnp.float32) for a in (x, kernel, grad)))
    for a, b in zip(got, exact, strict=True):
        assert a.dtype == jnp.bfloat16
        assert np.all(np.abs(np.asarray(a, np.float64) - b) <= 2**-8 * np.abs(b) + 1e-5)


def test_second_derivatives():
    def curvature(f):
        def slope(x, kernel):
            return jnp.sum(jax.grad(lambda k: jnp.sum(f(x, k, 1) ** 3))(kernel) ** 2)

        return jax.jit(jax.grad(slope))(random(1, 5, 4, 2), random(3, 3, 1, 2))

    assert worst(curvature(conv.depthwise_conv), curvature(conv.grouped_conv)) < 1e-5


def test_the_platform_chooses_when_the_program_is_lowered():
    x, kernel = random(1, 8, 8, 6), random(3, 3, 1, 6)

    def program(platform, f):
        return jax.export.export(jax.jit(f), platforms=[platform])(x, kernel).mlir_module()

    def gradients(x, kernel):
        return jax.grad(lambda x, k: conv.depthwise_conv(x, k).sum(), (0, 1))(x, kernel)

    for f in (conv.depthwise_conv, gradients):
        assert "stablehlo.convolution" not in program("cpu", f)
        for platform in ("cuda", "tpu"):
            assert "feature_group_count = 6" in program(platform, f)


@pytest.mark.parametrize(("size", "stride"), [((8, 6), 1), ((8, 6), 2), ((7, 5), 2), ((7, 5), 3)])
def test_pointwise_conv_is_flax_convolution(size, stride):
    x, kernel = random(2, *size, 5), random(1, 1, 5, 3)
    rows, columns = (-(-n // stride) for n in size)
    grad = random(2, rows, columns, 3, seed=1)

    def flax(x, kernel, stride):
        return nn.Conv(3, (1, 1), stride, use_bias=False).apply({"params": {"kernel": kernel}}, x)

    expected = value_and_gradients(flax, stride)(x, kernel, grad)
    for f in (conv.pointwise_conv, conv.matrix_product, conv.strided_conv):
        for a, b in zip(value_and_gradients(f, stride)(x, kernel, grad), expected, strict=True):
            assert a.shape == b.shape and worst(a, b) < 1e-5


def test_pointwise_conv_is_a_product_on_the_cpu_alone():
    x, kernel = random(1, 8, 8, 6), random(1, 1, 6, 4)

    def gradients(x, kernel):
        return jax.grad(lambda x, k: (conv.pointwise_conv(x, k, 2) ** 2).sum(), (0, 1))(x, kernel)

    for f in (conv.pointwise_conv, gradients):
        for platform in ("cpu", "cuda", "tpu"):
            program = jax.export.export(jax.jit(f), platforms=[platform])(x, kernel).mlir_module()
            assert ("stablehlo.dot_general" in program) == (platform == "cpu")
            assert ("stablehlo.convolution" in program) == (platform != "cpu")


def test_over_a_mesh_as_on_one_device():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            y = conv.PointwiseConv(4)(x)
            y = BatchNorm(use_running_average=False, relu6=True)(y)
            return conv.DepthwiseConv(3, 2)(y)

    x = random(8, 7, 6, 3)
    variables = Block().init(jax.random.key(0), x)

    @jax.jit
    def gradients(params, x):
        def loss(params, x):
            y, updates = Block().apply({**variables, "params": params}, x, mutable="batch_stats")
            return jnp.sum(y**2), updates

        return jax.grad(loss, (0, 1), has_aux=True)(params, x)

    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    params = jax.device_put(variables["params"], NamedSharding(mesh, PartitionSpec()))
    one, many = gradients(variables["params"], x), gradients(params, spread)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-4), one, many)


def test_convolutions_have_the_parameters_of_flax():
    x = random(2, 6, 5, 4)
    pairs = [
        (conv.PointwiseConv(8, 2), nn.Conv(8, (1, 1), 2, use_bias=False)),
        (conv.DepthwiseConv(5, 2), nn.Conv(4, (5, 5), 2, use_bias=False, feature_group_count=4)),
    ]
    for ours, flax in pairs:
        variables = ours.init(jax.random.key(0), x)
        assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, flax.init(jax.random.key(0), x))
        assert worst(ours.apply(variables, x), flax.apply(variables, x)) < 1e-6
        half = ours.clone(dtype=jnp.bfloat16)
        assert half.apply(variables, x).dtype == jnp.bfloat16
        assert variables["params"]["kernel"].dtype == jnp.float32


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("top", [6.0, np.inf, None])
def test_batch_norm_is_that_of_flax(top, train):
    x = random(4, 5, 3, 6) * 4 + 2
    variables = {
        "params": {"scale": 4 * random(6, seed=1), "bias": random(6, seed=2)},
        "batch_stats": {"mean": random(6, seed=3), "var": jnp.abs(random(6, seed=4)) + 0.1},
    }
    ours = BatchNorm(not train, relu6=top == 6, relu=top == np.inf)
    flax = nn.BatchNorm(not train, momentum=0.99, epsilon=1e-3)

    def run(norm, top):
        def loss(params, x):
            y, updates = norm.apply({**variables, "params": params}, x, mutable="batch_stats")
            y = y if top is None else jnp.clip(y, 0, top)
            return jnp.sum(jnp.sin(y)), (y, updates)

        return jax.jit(jax.grad(loss, (0, 1), has_aux=True))(variables["params"], x)

    got, expected = run(ours, None), run(flax, top)
    assert np.any(np.asarray(got[1][0]) == 6) == (top == 6)  # the clipping is put to the test
    assert np.any(np.asarray(got[1][0]) < 0) == (top is None)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), got, expected)
    moved = not np.allclose(got[1][1]["batch_stats"]["mean"], variables["batch_stats"]["mean"])
    assert moved == train


def test_group_norm_is_that_of_flax():
    x = random(3, 5, 4, 16) * 3 + 1
    params = {"scale": random(16, seed=1), "bias": random(16, seed=2)}

    def run(norm, relu):
        def loss(params, x):
            y = norm.apply({"params": params}, x)
            y = nn.relu(y) if relu else y
            return jnp.sum(jnp.sin(y)), y

        return jax.jit(jax.grad(loss, (0, 1), has_aux=True))(params, x)

    for relu in (True, False):
        got, expected = run(GroupNorm(4, relu=relu), False), run(nn.GroupNorm(4), relu)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), got, expected)


def test_norms_of_constant_images_are_finite():
    x = jnp.full((2, 3, 3, 8), 250.0)
    for norm in (BatchNorm(False, relu6=True), GroupNorm(4, relu=True)):
        variables = norm.init(jax.random.key(0), x)
        grad = jax.jit(jax.grad(lambda x, n=norm, v=variables: n.apply(v, x, mutable="batch_stats")[0].sum()))(x)
        assert np.isfinite(grad).all()


def test_norms_keep_float32_statistics_in_bfloat16():
    x = (random(64, 16, 16, 8) + 8).astype(jnp.bfloat16)
    norm = BatchNorm(False, dtype=jnp.bfloat16)
    y, updates = norm.apply(norm.init(jax.random.key(0), x), x, mutable="batch_stats")
    exact = np.asarray(x, np.float64).mean((0, 1, 2))
    np.testing.assert_allclose(updates["batch_stats"]["mean"], 0.01 * exact, rtol=1e-5)
    assert y.dtype == jnp.bfloat16 and updates["batch_stats"]["mean"].dtype == jnp.float32


def test_mistakes_are_named():
    with pytest.raises(UserError, match="4 groups do not divide 6 channels"):
        GroupNorm(4).init(jax.random.key(0), jnp.zeros((1, 2, 2, 6)))
    with pytest.raises(UserError, match="batch_norm is 'freeze'"):
        check_batch_norm("freeze")
    assert check_batch_norm("frozen") and not check_batch_norm("train")


def test_global_pools_and_their_gradients():
    x = np.random.default_rng(0).normal(size=(3, 4, 5, 6)).astype(np.float32)
    x[0, :, :, 0] = 2.0  # ties: all positions
    np.testing.assert_allclose(pooling.global_avg_pool(x), x.mean((1, 2)), rtol=1e-5)
    np.testing.assert_array_equal(pooling.global_max_pool(x), x.max((1, 2)))
    grads = np.asarray(jax.grad(lambda x: (pooling.global_max_pool(x) * jnp.arange(1.0, 7.0)[None]).sum())(x))
    expected = np.zeros_like(x)
    for b in range(3):
        for c in range(6):
            row, column = np.unravel_index(np.argmax(x[b, :, :, c]), (4, 5))
            expected[b, row, column, c] = c + 1
    np.testing.assert_array_equal(grads, expected)


@pytest.mark.parametrize("size", [(7, 7), (14, 21), (10, 16), (3, 5), (1, 9)], ids=str)
def test_adaptive_avg_pool_is_that_of_pytorch(size):
    x = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    pool = jax.jit(pooling.adaptive_avg_pool, static_argnums=1)
    got = pool(x, (7, 6))
    expected = np.empty((2, 7, 6, 3))
    for i, j in np.ndindex(7, 6):  # the definition
        rows = slice(i * size[0] // 7, -(-(i + 1) * size[0] // 7))
        columns = slice(j * size[1] // 6, -(-(j + 1) * size[1] // 6))
        expected[:, i, j] = x[:, rows, columns].mean((1, 2), dtype=np.float64)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(pool(x, (1, 1))[:, 0, 0], pooling.global_avg_pool(x), rtol=1e-4, atol=1e-6)
    half = pool(jnp.asarray(x, jnp.bfloat16), (7, 6))
    assert half.dtype == jnp.bfloat16 and np.abs(half.astype(jnp.float32) - got).max() < 0.05
    torch = pytest.importorskip("torch")
    reference = torch.nn.AdaptiveAvgPool2d((7, 6))(torch.tensor(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    np.testing.assert_allclose(got, reference.numpy(), rtol=1e-5, atol=1e-6)


def test_images_too_small_are_named():
    pooling.check_image_size(jnp.zeros((1, 32, 40, 3)), 32)
    with pytest.raises(UserError, match="images of 40 x 31 pixels are too small"):
        pooling.check_image_size(jnp.zeros((1, 40, 31, 3)), 32)
