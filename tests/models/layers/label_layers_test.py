"""Attention, graph convolutions and bilinear fusion against loops and dense numpy written from the equations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmlic.errors import UserError
from jaxmlic.models.layers import fusion
from jaxmlic.models.layers.attention import SpatialAttention
from jaxmlic.models.layers.fusion import FactorizedBilinear
from jaxmlic.models.layers.graph_convolution import GraphConvolutions


def init(layer, *args):
    return jax.jit(layer.init)(jax.random.key(0), *args)


def apply(layer, variables, *args):
    return jax.jit(layer.apply)(variables, *args)


def perturbed(variables, scale=0.5):
    """The variables with noise, so that nothing is zero."""
    leaves, tree = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(9), len(leaves))
    return jax.tree.unflatten(
        tree, [x + scale * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    )


@pytest.fixture(scope="module")
def rng():
    return np.random.default_rng(0)


def test_attention_is_equations_3_to_5(rng):
    local, whole = rng.normal(size=(2, 3, 4, 5)).astype(np.float32), rng.normal(size=(2, 7)).astype(np.float32)
    layer = SpatialAttention()
    fresh = init(layer, local, whole)
    attended, weights = apply(layer, fresh, local, whole)
    np.testing.assert_allclose(attended, local.mean((1, 2)), atol=1e-6)  # a start from the mean
    variables = perturbed(fresh, 3.0)
    attended, weights = apply(layer, variables, local, whole)
    projection = np.asarray(variables["params"]["projection"]["kernel"])
    assert projection.shape == (7, 5) and list(variables["params"]["projection"]) == ["kernel"]
    for b in range(2):
        g = whole[b] @ projection / np.sqrt(7 * 5)
        scores = np.array([[np.dot(local[b, y, x], g) for x in range(4)] for y in range(3)])
        expected = np.exp(scores) / np.exp(scores).sum()
        np.testing.assert_allclose(weights[b], expected, rtol=2e-5)
        summed = sum(expected[y, x] * local[b, y, x] for y in range(3) for x in range(4))
        np.testing.assert_allclose(attended[b], summed, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(weights.sum((1, 2)), 1, rtol=1e-6)
    assert np.ptp(weights) > 0.05


def test_attention_does_not_overflow_on_large_or_bfloat16_maps(rng):
    local, whole = 300 * rng.normal(size=(2, 3, 3, 4)), rng.normal(size=(2, 5)).astype(np.float32)
    layer = SpatialAttention()
    variables = perturbed(init(layer, jnp.zeros((2, 3, 3, 4)), whole), 5.0)
    for dtype in (jnp.float32, jnp.bfloat16):
        attended, weights = apply(layer, variables, jnp.asarray(local, dtype), whole)
        assert attended.dtype == weights.dtype == jnp.float32
        assert np.isfinite(attended).all()
        np.testing.assert_allclose(weights.sum((1, 2)), 1, rtol=1e-5)


@pytest.mark.parametrize("widths", [(3, 8), (5, 5, 2), (4, 4, 4, 7)])
def test_graph_convolutions_are_dense_products(rng, widths):
    adjacency, vectors = rng.random((5, 5)).astype(np.float32), rng.normal(size=(5, 4)).astype(np.float32)
    layer = GraphConvolutions(widths)
    variables = init(layer, adjacency, vectors)
    x = vectors
    for i in range(len(widths)):
        kernel = np.asarray(variables["params"][f"kernel_{i}"])
        assert np.abs(kernel).max() <= widths[i] ** -0.5
        x = adjacency @ (np.where(x > 0, x, 0.2 * x) if i else x) @ kernel
    assert len(variables["params"]) == len(widths)
    np.testing.assert_allclose(apply(layer, variables, adjacency, vectors), x, rtol=1e-4, atol=1e-5)


def test_graph_convolutions_follow_a_relabelling(rng):
    adjacency, vectors = rng.random((6, 6)).astype(np.float32), rng.normal(size=(6, 3)).astype(np.float32)
    layer = GraphConvolutions((5, 4))
    variables = init(layer, adjacency, vectors)
    order = rng.permutation(6)
    np.testing.assert_allclose(
        apply(layer, variables, adjacency[np.ix_(order, order)], vectors[order]),
        apply(layer, variables, adjacency, vectors)[order],
        rtol=1e-4,
        atol=1e-5,
    )


def mfb_by_loops(params, images, labels, groups, norm):
    """A loop over images, labels and groups, in float64."""

    def linear(x, p):
        return x.astype(np.float64) @ np.asarray(p["kernel"], float) + np.asarray(p["bias"])

    left, right = linear(images, params["image"]), linear(labels, params["label"])
    kernel, bias = np.asarray(params["kernel"], float), np.asarray(params["bias"], float)
    out = np.zeros((len(images), len(labels)))
    for b in range(len(images)):
        for c in range(len(labels)):
            product = left[b] * right[c]
            pooled = np.array([product[k : k + groups].sum() for k in range(0, len(product), groups)])
            if norm == "power_l2":
                pooled = np.sign(pooled) * np.sqrt(np.abs(pooled))
                pooled *= np.sqrt(len(pooled)) / np.linalg.norm(pooled)
            out[b, c] = np.dot(pooled, kernel[c]) + bias[c]
    return out


@pytest.mark.parametrize(
    ("groups", "norm"), [(1, "none"), (2, "none"), (12, "none"), *((g, "power_l2") for g in (1, 2, 6, 12))]
)
def test_mfb_is_a_loop_over_labels_and_groups(rng, groups, norm):
    images, labels = rng.normal(size=(3, 5)).astype(np.float32), rng.normal(size=(4, 7)).astype(np.float32)
    layer = FactorizedBilinear(12, groups, norm)
    variables = perturbed(init(layer, images, labels))
    assert variables["params"]["kernel"].shape == (4, 12 // groups)
    expected = mfb_by_loops(variables["params"], images, labels, groups, norm)
    np.testing.assert_allclose(apply(layer, variables, images, labels), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("groups", "block"), [(2, 3), (6, 1), (6, 4)])
def test_blocks_of_labels_change_neither_scores_nor_gradients(rng, groups, block):
    images, labels = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((3, 12), (7, 12)))
    kernel = jnp.asarray(rng.normal(size=(7, 12 // groups)), jnp.float32)
    target = jnp.asarray(rng.normal(size=(3, 7)), jnp.float32)

    def loss(images, labels, kernel, block):
        return jnp.sum((fusion.bilinear_scores(images, labels, kernel, groups, block) - target) ** 2)

    grads = jax.jit(jax.value_and_grad(loss, (0, 1, 2)), static_argnums=3)
    whole, parts = grads(images, labels, kernel, 7), grads(images, labels, kernel, block)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), parts, whole)


def test_mfb_of_a_vector_of_zeros_is_the_bias_with_finite_gradients():
    images, labels, kernel = jnp.zeros((2, 4)), jnp.zeros((3, 4)), jnp.ones((3, 2))
    grads = jax.jit(jax.value_and_grad(lambda *args: jnp.sum(fusion.bilinear_scores(*args, 2)), (0, 1, 2)))
    assert grads(images, labels, kernel)[0] == 0
    for grad in (*grads(images, labels, kernel)[1], *grads(images.at[0].set(1e-4), labels + 1e-4, kernel)[1]):
        assert np.isfinite(grad).all()


def test_memory_does_not_grow_with_images_times_labels_times_units():
    images, labels, kernel = jnp.zeros((16, 64)), jnp.zeros((20_000, 64)), jnp.zeros((20_000, 32))
    grads = jax.grad(lambda *args: jnp.sum(fusion.bilinear_scores(*args, 2) ** 2), (0, 1, 2))
    memory = jax.jit(grads).lower(images, labels, kernel).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4 * 16 * 20_000 * 32  # what one array over all three would take


@pytest.mark.parametrize(("dim", "groups", "near"), [(358, 4, 360), (12, 5, 15), (8, 16, 16), (8, 0, 8)])
def test_groups_must_divide_the_units(dim, groups, near):
    with pytest.raises(UserError, match=f"mfb_groups = {groups} does not divide .*mfb_dim = {dim}.* {near}"):
        FactorizedBilinear(dim, groups).init(jax.random.key(0), jnp.zeros((2, 3)), jnp.zeros((2, 3)))


def test_unit_scale_brings_every_vector_to_one_length(rng):
    vectors = rng.normal(size=(3, 5)) * np.array([[0.1], [1.0], [1e6]])
    scaled = fusion.unit_scale(jnp.asarray(vectors, jnp.float32))
    np.testing.assert_allclose(scaled, vectors / np.linalg.norm(vectors, axis=1, keepdims=True) * 5**0.5, rtol=1e-2)
    assert (fusion.unit_scale(jnp.zeros((1, 4))) == 0).all()
