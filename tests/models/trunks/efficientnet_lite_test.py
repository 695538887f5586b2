"""EfficientNet-Lite against PyTorch where it is installed, and a block of it against numpy everywhere."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmlic.errors import UserError
from jaxmlic.models import trunks
from jaxmlic.models.trunks import efficientnet_lite, pretrained

STAGES = ["stem", *(f"stage{i}" for i in range(1, 8)), "head"]


def images(*shape):
    return np.random.default_rng(shape).integers(0, 256, (*shape, 3)).astype(np.uint8)


def apply(trunk):
    """Jitted (variables, images, train) -> ((feature map, stages), new statistics)."""

    def run(variables, image, train):
        return trunk.apply(variables, efficientnet_lite.preprocess(image), train, mutable="batch_stats")

    return jax.jit(run, static_argnums=2)


def random_model(variant):
    """PyTorch's network with random weights and statistics, every one of them away from its default."""
    torch = pytest.importorskip("torch")
    from torch_lite import TorchLite

    torch.manual_seed(0)
    model = TorchLite(variant)
    for name, value in model.state_dict().items():
        if value.ndim == 1:
            low, high = {"weight": (0.3, 1), "bias": (-0.5, 1), "running_mean": (-0.5, 0.5), "running_var": (0.5, 2)}[
                name.rsplit(".", 1)[1]
            ]
            torch.nn.init.uniform_(value, low, high)
        elif value.ndim == 4:
            torch.nn.init.kaiming_normal_(value, nonlinearity="relu")
    return model


def imported(model, variant, folder):
    """The same weights, by way of a file."""
    path = folder / f"lite{variant}.npz"
    np.savez(path, **{name: value.numpy() for name, value in model.state_dict().items()})
    return pretrained.load(path, f"efficientnet_lite{variant}")


@pytest.fixture(scope="module")
def torch_model():
    return random_model(0)


@pytest.fixture(scope="module")
def variables(torch_model, tmp_path_factory):
    return imported(torch_model, 0, tmp_path_factory.mktemp("weights"))


def torch_stages(model, image, train):
    """Stages by name, [B, h, w, D]."""
    import torch

    x = (torch.tensor(image, dtype=torch.float32).permute(0, 3, 1, 2) - 127) / 128
    with torch.no_grad():
        _, stages = model.train(train)(x)
    return {name: value.permute(0, 2, 3, 1).numpy() for name, value in stages.items()}


def assert_same_stages(got, expected, tolerance):
    feature_map, stages = got
    assert set(stages) == set(expected) == set(STAGES)
    for name in STAGES:
        assert stages[name].shape == expected[name].shape
        assert np.abs(stages[name] - expected[name]).max() < tolerance * np.abs(expected[name]).max(), name
    np.testing.assert_array_equal(feature_map, stages["head"])


@pytest.mark.parametrize("size", [(224, 224), (64, 96), (33, 50)], ids=str)
def test_every_stage_is_that_of_pytorch(torch_model, variables, size):
    image = images(2, *size)
    got, _ = apply(efficientnet_lite.Trunk())(variables, image, False)
    assert_same_stages(got, torch_stages(torch_model, image, False), 2e-5)
    assert got[0].shape == (2, *(-(-s // efficientnet_lite.STRIDE) for s in size), efficientnet_lite.NUM_CHANNELS)


@pytest.mark.parametrize("variant", [1, 2])
def test_every_stage_of_the_larger_variants_is_that_of_pytorch(variant, tmp_path):
    model = random_model(variant)
    variables = imported(model, variant, tmp_path)
    for size in ((224, 224), (64, 96)):
        image = images(1, *size)
        got, _ = apply(efficientnet_lite.Trunk(variant=f"lite{variant}"))(variables, image, False)
        assert_same_stages(got, torch_stages(model, image, False), 2e-5)


def test_training_mode_is_that_of_pytorch(torch_model, variables):
    image = images(8, 64, 64)
    model = copy.deepcopy(torch_model)  # the statistics move
    expected = torch_stages(model, image, True)
    got, updates = apply(efficientnet_lite.Trunk())(variables, image, True)
    assert_same_stages(got, expected, 1e-3)
    state = model.state_dict()
    for path, samples in (("bn0", 8 * 32 * 32), ("blocks_10/bn1", 8 * 4 * 4), ("bn1", 8 * 2 * 2)):
        stats, name = updates["batch_stats"], ".".join("_" + p.replace("ks_", "ks.") for p in path.split("/"))
        before = variables["batch_stats"]
        for part in path.split("/"):
            stats, before = stats[part], before[part]
        np.testing.assert_allclose(stats["mean"], state[f"{name}.running_mean"], rtol=1e-3, atol=1e-3)
        # PyTorch moves the running variance by the unbiased estimate, TensorFlow's Lite and Flax by the biased one
        moved = (state[f"{name}.running_var"].numpy() - 0.99 * before["var"]) * (samples - 1) / samples
        np.testing.assert_allclose(stats["var"] - 0.99 * before["var"], moved, rtol=5e-3, atol=1e-4)


def test_frozen_batch_norm_trains_as_it_evaluates():
    trunk = efficientnet_lite.Trunk(batch_norm="frozen")
    image = images(2, 32, 32)
    shapes = jax.eval_shape(lambda: trunk.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), True))
    rng = np.random.default_rng(0)  # positive: variances must be
    variables = jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(0, 0.2, leaf.shape), jnp.float32), shapes)
    run = apply(trunk)
    (trained, _), after = run(variables, image, True)
    (evaluated, _), _ = run(variables, image, False)
    np.testing.assert_array_equal(trained, evaluated)
    jax.tree.map(np.testing.assert_array_equal, after["batch_stats"], variables["batch_stats"])
    with pytest.raises(UserError, match="batch_norm is 'off'"):
        efficientnet_lite.Trunk(batch_norm="off").apply(variables, jnp.zeros((1, 32, 32, 3)), True)


def test_a_block_is_that_of_numpy():
    """Expansion, 5x5 depthwise with stride 2, projection, by their definitions; then one that adds its input."""
    rng = np.random.default_rng(0)

    def norm(x, params, stats):
        return (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-3) * params["scale"] + params["bias"]

    def block(x, k, stride, params, stats):
        y = np.clip(norm(x @ params["expand_conv"]["kernel"][0, 0], params["bn0"], stats["bn0"]), 0, 6)
        rows, columns = -(-x.shape[0] // stride), -(-x.shape[1] // stride)
        top, left = (max((n - 1) * stride + k - s, 0) // 2 for n, s in ((rows, x.shape[0]), (columns, x.shape[1])))
        padded = np.pad(y, ((top, k), (left, k), (0, 0)))
        z = np.empty((rows, columns, y.shape[2]))
        for r, c in np.ndindex(rows, columns):
            window = padded[r * stride : r * stride + k, c * stride : c * stride + k]
            z[r, c] = (window * params["depthwise_conv"]["kernel"][:, :, 0]).sum((0, 1))
        z = np.clip(norm(z, params["bn1"], stats["bn1"]), 0, 6)
        z = norm(z @ params["project_conv"]["kernel"][0, 0], params["bn2"], stats["bn2"])
        return x + z if x.shape == z.shape else z

    for k, stride, features in ((5, 2, 8), (3, 1, 4)):
        x = rng.normal(size=(2, 7, 10, 4)) * 2
        module = efficientnet_lite.MBConv(k, stride, 6, features, False, jnp.float32)
        variables = jax.tree.map(
            lambda leaf: rng.uniform(0.2, 1.5, leaf.shape) * (rng.choice([-1, 1], leaf.shape) if leaf.ndim > 1 else 1),
            module.init(jax.random.key(0), jnp.asarray(x, jnp.float32), False),
        )
        narrow = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), variables)
        got = jax.jit(lambda v, x, m=module: m.apply(v, x, False))(narrow, jnp.asarray(x, jnp.float32))
        expected = np.stack([block(i, k, stride, variables["params"], variables["batch_stats"]) for i in x])
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


# Parameters in millions with the 1000-class layer, as the published models have them.
PUBLISHED = {"lite0": 4.65, "lite1": 5.42, "lite2": 6.09, "lite3": 8.20, "lite4": 13.01}


@pytest.mark.parametrize("variant", PUBLISHED)
def test_variants_have_their_published_size(variant):
    module, fields = trunks.get(f"efficientnet_{variant}")
    assert module is efficientnet_lite and fields == {"variant": variant}
    trunk = module.Trunk(**fields)
    (feature_map, _), variables = jax.eval_shape(
        lambda: trunk.init_with_output(jax.random.key(0), jnp.zeros((1, 224, 192, 3)), False)
    )
    assert feature_map.shape == (1, 7, 6, 1280)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) + 1280 * 1000 + 1000
    assert round(count / 1e6, 2) == PUBLISHED[variant]
    names = module.torch_names(**fields)
    assert set(names) == {
        tuple(part.key for part in path) for path, _ in jax.tree_util.tree_leaves_with_path(variables)
    }


def test_bfloat16_keeps_parameters_and_statistics_in_float32():
    trunk = efficientnet_lite.Trunk(dtype=jnp.bfloat16)
    (feature_map, stages), variables = jax.eval_shape(
        lambda: trunk.init_with_output(jax.random.key(0), jnp.zeros((2, 64, 64, 3)), True)
    )
    assert all(leaf.dtype == jnp.bfloat16 for leaf in (feature_map, *stages.values()))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))


def test_preprocess():
    x = efficientnet_lite.preprocess(jnp.array([[[[0, 127, 255]]]], jnp.uint8))
    assert x.dtype == jnp.float32
    np.testing.assert_array_equal(x, np.array([[[[-127, 0, 128]]]], np.float32) / 128)
