"""VGG16 against PyTorch where it is installed; sizes, names and modes everywhere."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxmlic.errors import UserError
from jaxmlic.models import trunks
from jaxmlic.models.trunks import pretrained, vgg

WIDE = vgg.FC_CHANNELS
NARROW = 96  # features of the fully connected layers in tests: 4096 of them would be 480 MB
PUBLISHED = {"vgg16": 14_714_688, "vgg16_bn": 14_723_136, "vgg16_fc": 134_260_544, "vgg16_bn_fc": 134_268_992}


@pytest.fixture(scope="module")
def narrow():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vgg, "FC_CHANNELS", NARROW)
        pretrained._shapes.cache_clear()  # other tests may have asked for the wide ones
        yield
    pretrained._shapes.cache_clear()


@pytest.fixture(scope="module", params=["vgg16_fc", "vgg16_bn_fc"])
def network(request, narrow, tmp_path_factory):
    """(trunk, PyTorch's network with random weights, the same weights by way of a file, that file)."""
    torch = pytest.importorskip("torch")
    import torch_parity
    from torch_vgg import TorchVGG16

    model = torch_parity.randomize(TorchVGG16(request.param == "vgg16_bn_fc", NARROW, classes=20))
    folder = tmp_path_factory.mktemp("weights")
    if request.param == "vgg16_fc":
        path = folder / "vgg16.pth"
        torch.save(model.state_dict(), path, _use_new_zipfile_serialization=False)
    else:
        arrays = {name: value.numpy() for name, value in model.state_dict().items()}
        path = folder / "vgg16_bn.safetensors"
        save_file(arrays, path)
    trunk = vgg.Trunk(**trunks.get(request.param)[1])
    return trunk, model, pretrained.load(path, request.param, classifier=True), path


@pytest.mark.parametrize("size", [(224, 224), (96, 160), (75, 61)], ids=str)
def test_every_stage_is_that_of_pytorch(network, size):
    from torch_parity import assert_parity, runner

    trunk, model, variables, _ = network
    assert_parity(model, runner(vgg, trunk), variables, size, "fc7")


@pytest.mark.parametrize("network", ["vgg16_bn_fc"], indirect=True)
def test_batch_norm_in_training_and_frozen(network):
    from torch_parity import assert_frozen_trains_as_it_evaluates, assert_training_parity, images, runner

    _, model, variables, _ = network
    image, model = images(8, 32, 48), copy.deepcopy(model)  # the statistics move
    norms = {"bn1_1": ("features.1", 8 * 32 * 48), "bn5_3": ("features.41", 8 * 2 * 3)}
    assert_training_parity(model, runner(vgg, vgg.Trunk(batch_norm="train")), variables, image, norms)
    frozen = vgg.Trunk(batch_norm="frozen")
    assert_frozen_trains_as_it_evaluates(runner(vgg, frozen), variables, image[:2])


@pytest.mark.parametrize("network", ["vgg16_fc"], indirect=True)
def test_dropout_acts_in_training(network):
    from torch_parity import images, runner

    trunk, _, variables, _ = network
    (feature_map, stages), _ = runner(vgg, trunk)(variables, images(8, 32, 48), True)
    kept = feature_map != 0  # what dropout keeps is doubled
    np.testing.assert_allclose(feature_map[kept], 2 * stages["fc7"][kept], rtol=1e-6)
    assert 0.4 < kept[stages["fc7"] > 0].mean() < 0.6


def test_the_convolutions_alone_come_from_the_same_file(network):
    trunk, _, variables, path = network
    name = "vgg16_bn" if trunk.batch_norm else "vgg16"
    alone = pretrained.load(path, name)
    expected = {k: v for k, v in variables["params"].items() if not k.startswith("fc")}
    jax.tree.map(np.testing.assert_array_equal, alone["params"], expected)
    other = "vgg16" if trunk.batch_norm else "vgg16_bn"
    with pytest.raises(UserError, match=f"not the weights of {other}; missing in the file"):
        pretrained.load(path, other)
    with pytest.raises(UserError, match=r"classifier.6.weight is \(20, 96\), wanted \(20, 512\)"):
        pretrained.load(path, name, classifier=True)


def test_timm_keeps_the_hidden_layers_as_convolutions(network, tmp_path):
    trunk, model, variables, _ = network
    renamed = {}
    for name, value in model.state_dict().items():
        name = name.replace("classifier.0", "pre_logits.fc1").replace("classifier.3", "pre_logits.fc2")
        shape = {"pre_logits.fc1.weight": (NARROW, 512, 7, 7), "pre_logits.fc2.weight": (NARROW, NARROW, 1, 1)}
        renamed[name.replace("classifier.6", "head.fc")] = value.numpy().reshape(shape.get(name, value.shape))
    np.savez(tmp_path / "timm.npz", **renamed)
    got = pretrained.load(tmp_path / "timm.npz", "vgg16_bn_fc" if trunk.batch_norm else "vgg16_fc", classifier=True)
    jax.tree.map(np.testing.assert_array_equal, got, variables)
    pretrained.load(tmp_path / "timm.npz", "vgg16_bn" if trunk.batch_norm else "vgg16")


def test_bfloat16_is_near_float32(network):
    from torch_parity import assert_near, images, runner

    trunk, _, variables, _ = network
    image = images(2, 33, 70)
    (feature_map, stages), _ = runner(vgg, trunk.clone(dtype=jnp.bfloat16))(variables, image, False)
    assert all(leaf.dtype == jnp.bfloat16 for leaf in (feature_map, *stages.values()))
    (exact, _), _ = runner(vgg, trunk)(variables, image, False)
    assert_near(feature_map, np.asarray(exact), 0.05)


@pytest.mark.parametrize("name", PUBLISHED)
def test_variants_have_their_published_size(name, monkeypatch):
    monkeypatch.setattr(vgg, "FC_CHANNELS", WIDE)
    module, fields = trunks.get(name)
    trunk = module.Trunk(**fields, dtype=jnp.bfloat16)
    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    (feature_map, stages), variables = jax.eval_shape(
        lambda: trunk.init_with_output(rngs, jnp.zeros((1, 224, 191, 3)), True)
    )
    assert feature_map.shape == ((1, 1, 1, 4096) if name.endswith("fc") else (1, 7, 5, 512))
    assert [stages[s].shape[1:3] for s in ("conv3_3", "conv4_3", "conv5_3")] == [(56, 47), (28, 23), (14, 11)]
    convolutions = sorted(s for s in stages if s.startswith("conv"))
    assert [convolutions.index(s) + 1 for s in ("conv3_3", "conv4_3", "conv5_3")] == [7, 10, 13]
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == PUBLISHED[name]
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float32)}
    paths = {tuple(p.key for p in path) for path, _ in jax.tree_util.tree_leaves_with_path(variables)}
    assert set(module.torch_names(**fields)) == set(module.timm_names(**fields)) == paths


def test_mistakes_are_named():
    with pytest.raises(UserError, match="no batch norm to freeze"):
        trunks.build("vgg16", dtype="float32", batch_norm="frozen")
    with pytest.raises(UserError, match="images of 31 x 40 pixels are too small"):
        vgg.Trunk().init(jax.random.key(0), jnp.zeros((1, 31, 40, 3)), False)
