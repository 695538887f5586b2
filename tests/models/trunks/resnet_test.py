"""ResNet against PyTorch where it is installed; sizes, names and modes everywhere."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmlic.errors import UserError
from jaxmlic.models import trunks
from jaxmlic.models.trunks import pretrained, resnet

# Parameters of the published networks less those of the 1000-class layer.
PUBLISHED = {18: 11_689_512 - 513_000, 50: 23_508_032, 101: 44_549_160 - 2_049_000}


def imported(depth, folder, zipped):
    """PyTorch's network with random weights, and the same weights by way of a file."""
    torch = pytest.importorskip("torch")
    import torch_parity
    from torch_resnet import TorchResNet

    model = torch_parity.randomize(TorchResNet(depth, classes=20))
    path = folder / f"resnet{depth}.pth"
    torch.save(model.state_dict(), path, _use_new_zipfile_serialization=zipped)
    return model, pretrained.load(path, f"resnet{depth}", classifier=True)


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory):
    return imported(18, tmp_path_factory.mktemp("weights"), zipped=True)


@pytest.mark.parametrize("size", [(224, 224), (96, 160), (75, 61)], ids=str)
def test_resnet18_is_that_of_pytorch(resnet18, size):
    from torch_parity import assert_parity, runner

    assert_parity(resnet18[0], runner(resnet, resnet.Trunk(18)), resnet18[1], size, "layer4")


def test_resnet50_is_that_of_pytorch(tmp_path):
    model, variables = imported(50, tmp_path, zipped=False)
    from torch_parity import assert_parity, runner

    run = runner(resnet, resnet.Trunk(50))
    assert_parity(model, run, variables, (75, 61), "layer4", batch=2)
    assert_parity(model, run, variables, (64, 96), "layer4")


@pytest.mark.parametrize("depth", [50, 101])
def test_deep_resnets_are_those_of_pytorch_at_full_size(depth, tmp_path):
    model, variables = imported(depth, tmp_path, zipped=True)
    from torch_parity import assert_parity, runner

    run = runner(resnet, resnet.Trunk(depth))
    for size in ((224, 224), (160, 224)):
        assert_parity(model, run, variables, size, "layer4")


def test_training_mode_is_that_of_pytorch(resnet18):
    from torch_parity import assert_training_parity, images, runner

    norms = {
        "bn1": ("bn1", 8 * 32 * 32),
        "layer2_0/downsample_bn": ("layer2.0.downsample.1", 8 * 8 * 8),
        "layer4_1/bn2": ("layer4.1.bn2", 8 * 2 * 2),
    }
    model = copy.deepcopy(resnet18[0])  # the statistics move
    assert_training_parity(model, runner(resnet, resnet.Trunk(18)), resnet18[1], images(8, 64, 64), norms)


def test_frozen_batch_norm_trains_as_it_evaluates():
    """Every layer's: the first one's, too. Without PyTorch, so that it runs everywhere."""
    trunk, image = resnet.Trunk(18, batch_norm="frozen"), np.random.default_rng(1).normal(size=(2, 32, 32, 3))
    shapes = jax.eval_shape(lambda: trunk.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), True))
    rng = np.random.default_rng(0)  # positive: variances must be
    variables = jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(0, 0.2, leaf.shape), jnp.float32), shapes)
    run = jax.jit(lambda v, x, train: trunk.apply(v, x, train, mutable=["batch_stats"]), static_argnums=2)
    (trained, _), after = run(variables, np.float32(image), True)
    (evaluated, _), _ = run(variables, np.float32(image), False)
    np.testing.assert_array_equal(trained, evaluated)
    jax.tree.map(np.testing.assert_array_equal, after["batch_stats"], variables["batch_stats"])
    with pytest.raises(UserError, match="batch_norm is 'off'"):
        resnet.Trunk(18, batch_norm="off").apply(variables, jnp.zeros((1, 32, 32, 3)), True)


def test_bfloat16_is_near_float32(resnet18):
    from torch_parity import assert_near, images, runner

    image = images(2, 64, 64)
    (feature_map, stages), _ = runner(resnet, resnet.Trunk(18, dtype=jnp.bfloat16))(resnet18[1], image, False)
    assert all(leaf.dtype == jnp.bfloat16 for leaf in (feature_map, *stages.values()))
    (exact, _), _ = runner(resnet, resnet.Trunk(18))(resnet18[1], image, False)
    assert_near(feature_map, np.asarray(exact), 0.05)


@pytest.mark.parametrize("depth", PUBLISHED)
def test_variants_have_their_published_size(depth):
    module, fields = trunks.get(f"resnet{depth}")
    assert module is resnet and fields == {"depth": depth}
    trunk = module.Trunk(**fields, dtype=jnp.bfloat16)
    (feature_map, stages), variables = jax.eval_shape(
        lambda: trunk.init_with_output(jax.random.key(0), jnp.zeros((1, 224, 161, 3)), True)
    )
    assert feature_map.shape == (1, 7, 6, 512 if depth == 18 else 2048)
    assert [stages[s].shape[1] for s in ("stem", "layer1", "layer2", "layer3", "layer4")] == [112, 56, 28, 14, 7]
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == PUBLISHED[depth]
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float32)}
    names = module.torch_names(**fields)
    assert set(names) == {tuple(p.key for p in path) for path, _ in jax.tree_util.tree_leaves_with_path(variables)}


def test_torch_names_of_resnet101():
    """The names of the deepest network are those of its original; its values are compared above where PyTorch is."""
    pytest.importorskip("torch")
    from torch_resnet import TorchResNet

    state = TorchResNet(101).state_dict()
    expected = {name for name in state if not name.startswith("fc.") and not name.endswith("num_batches_tracked")}
    names = resnet.torch_names(101)
    assert len(names) == len(expected) and set(names.values()) == expected


def test_preprocess():
    x = resnet.preprocess(jnp.array([[[[0, 127, 255]]]], jnp.uint8))
    assert x.dtype == jnp.float32
    expected = (np.array([0, 127 / 255, 1]) - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(x[0, 0, 0], expected, rtol=1e-6)
