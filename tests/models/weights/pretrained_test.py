"""Weights by name into a trunk's variables; files of another network are refused with both lists."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmlic.errors import UserError
from jaxmlic.models import trunks
from jaxmlic.models.trunks import efficientnet_lite, pretrained


@pytest.fixture(scope="module")
def state():
    """A state dict of Lite0 with PyTorch's names and shapes, classifier and counters included."""
    rng = np.random.default_rng(0)
    arrays = {}
    for key, shape in shapes("efficientnet_lite0").items():
        name = efficientnet_lite.torch_names("lite0")[key]
        shape = (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else shape
        arrays[name] = rng.normal(size=shape).astype(np.float32)
        if name.endswith("running_var"):
            arrays[name.replace("running_var", "num_batches_tracked")] = np.array(7)
    arrays["_fc.weight"] = rng.normal(size=(1000, 1280)).astype(np.float32)
    arrays["_fc.bias"] = rng.normal(size=1000).astype(np.float32)
    return arrays


def shapes(trunk):
    """Shapes of a trunk's variables by path."""
    module, fields = trunks.get(trunk)
    image = jnp.zeros((1, module.STRIDE, module.STRIDE, 3))
    variables = jax.eval_shape(lambda: module.Trunk(**fields).init(jax.random.key(0), image, False))
    return {key: leaf.shape for key, leaf in flax.traverse_util.flatten_dict(variables).items()}


def save(path, arrays):
    np.savez(path, **arrays)
    return path


def refusal(path, trunk="efficientnet_lite0", **kwargs):
    """The one line `load` refuses the file with."""
    with pytest.raises(UserError) as caught:
        pretrained.load(path, trunk, **kwargs)
    line = str(caught.value)
    assert str(path) in line and "\n" not in line
    return line


def test_every_array_goes_to_its_place(state, tmp_path):
    variables = pretrained.load(save(tmp_path / "lite0.npz", state), "efficientnet_lite0")
    flat = flax.traverse_util.flatten_dict(variables)
    assert {key: leaf.shape for key, leaf in flat.items()} == shapes("efficientnet_lite0")
    assert {leaf.dtype for leaf in flat.values()} == {np.dtype(np.float32)}
    params, stats = variables["params"], variables["batch_stats"]
    stem = state["_conv_stem.weight"]  # output, input, height, width
    assert params["conv_stem"]["kernel"][2, 1, 0, 5] == stem[5, 0, 2, 1]
    depthwise = state["_blocks.3._depthwise_conv.weight"]
    assert params["blocks_3"]["depthwise_conv"]["kernel"][4, 1, 0, 9] == depthwise[9, 0, 4, 1]
    np.testing.assert_array_equal(
        params["blocks_15"]["project_conv"]["kernel"][0, 0], state["_blocks.15._project_conv.weight"][:, :, 0, 0].T
    )
    np.testing.assert_array_equal(params["blocks_1"]["bn0"]["scale"], state["_blocks.1._bn0.weight"])
    np.testing.assert_array_equal(params["bn1"]["bias"], state["_bn1.bias"])
    np.testing.assert_array_equal(stats["bn0"]["mean"], state["_bn0.running_mean"])
    np.testing.assert_array_equal(stats["blocks_7"]["bn2"]["var"], state["_blocks.7._bn2.running_var"])


def test_half_precision_weights_become_float32(state, tmp_path):
    halves = {name: array.astype(np.float16) for name, array in state.items()}
    variables = pretrained.load(save(tmp_path / "half.npz", halves), "efficientnet_lite")
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float32)}


def test_wrong_weights_are_refused_with_both_lists(state, tmp_path):
    changed = dict(state)
    changed["_bn1.scale"] = changed.pop("_bn1.weight")
    line = refusal(save(tmp_path / "names.npz", changed))
    assert "missing in the file (1): _bn1.weight;" in line and "unexpected in the file (1): _bn1.scale" in line

    line = refusal(save(tmp_path / "lite0.npz", state), "efficientnet_lite2")
    assert "not the weights of efficientnet_lite2; missing in the file (" in line and " more;" in line

    shapes = state | {"_bn0.bias": np.zeros(33, np.float32), "_conv_stem.weight": np.zeros((32, 4, 3, 3), np.float32)}
    line = refusal(save(tmp_path / "shapes.npz", shapes))
    assert "_bn0.bias is (33,), wanted (32,)" in line
    assert "_conv_stem.weight is (32, 4, 3, 3), wanted (32, 3, 3, 3)" in line

    line = refusal(save(tmp_path / "integers.npz", state | {"_bn0.bias": np.zeros(32, np.int32)}))
    assert "_bn0.bias is int32, wanted a float" in line


def test_the_classifier_is_read_on_request(state, tmp_path):
    path = save(tmp_path / "lite0.npz", state)
    assert "classifier" not in pretrained.load(path, "efficientnet_lite0")
    variables = pretrained.load(path, "efficientnet_lite0", classifier=True)
    np.testing.assert_array_equal(variables["classifier"]["kernel"], state["_fc.weight"].T)
    np.testing.assert_array_equal(variables["classifier"]["bias"], state["_fc.bias"])

    ten = state | {"_fc.weight": np.ones((10, 1280)), "_fc.bias": np.ones(10)}  # of a fine-tuned network
    variables = pretrained.load(save(tmp_path / "ten.npz", ten), "efficientnet_lite0", classifier=True)
    assert variables["classifier"]["kernel"].shape == (1280, 10)
    line = refusal(save(tmp_path / "wrong.npz", ten | {"_fc.bias": np.ones(11)}), classifier=True)
    assert "_fc.weight is (10, 1280), wanted (11, 1280)" in line
    none = {name: array for name, array in state.items() if not name.startswith("_fc")}
    assert "missing in the file (2): _fc.bias, _fc.weight;" in refusal(
        save(tmp_path / "none.npz", none), classifier=True
    )
    pretrained.load(tmp_path / "none.npz", "efficientnet_lite0")


@pytest.mark.parametrize("variant", efficientnet_lite.VARIANTS)
def test_timm_names_of_efficientnet_lite(variant):
    """Spot checks of timm's numbering, and as many different names as variables."""
    names = efficientnet_lite.timm_names(variant)
    assert set(names) == set(efficientnet_lite.torch_names(variant)) and len(set(names.values())) == len(names)
    assert names["params", "blocks_0", "project_conv", "kernel"] == "blocks.0.0.conv_pw.weight"
    assert names["batch_stats", "blocks_0", "bn2", "var"] == "blocks.0.0.bn2.running_var"
    assert names["params", "blocks_2", "expand_conv", "kernel"] == "blocks.1.1.conv_pw.weight"
    assert names["params", "blocks_2", "bn2", "bias"] == "blocks.1.1.bn3.bias"
    last = f"blocks_{len(efficientnet_lite.block_specs(variant)) - 1}"
    assert names["params", last, "project_conv", "kernel"] == "blocks.6.0.conv_pwl.weight"
    assert names["params", "bn1", "scale"] == "bn2.weight"


def test_timm_and_torchvision_names_give_the_same_variables(state, tmp_path):
    ours, theirs = efficientnet_lite.torch_names("lite0"), efficientnet_lite.timm_names("lite0")
    renamed = {theirs[key]: state[name] for key, name in ours.items()}
    renamed |= {"classifier.weight": state["_fc.weight"], "classifier.bias": state["_fc.bias"]}
    renamed["bn1.num_batches_tracked"] = np.array(7)
    path = save(tmp_path / "timm.npz", renamed)
    got = pretrained.load(path, "efficientnet_lite0", classifier=True)
    expected = pretrained.load(save(tmp_path / "lite0.npz", state), "efficientnet_lite0", classifier=True)
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    del renamed["blocks.1.0.bn3.bias"]  # a mismatch is told in the file's own names
    line = refusal(save(tmp_path / "timm.npz", renamed))
    assert "missing in the file (1): blocks.1.0.bn3.bias; unexpected in the file (0): none" in line


def test_weights_of_another_architecture_are_refused(state, tmp_path):
    path = save(tmp_path / "lite0.npz", state)
    for trunk in ("resnet50", "vgg16", "vgg16_bn_fc"):
        line = refusal(path, trunk)
        assert f"not the weights of {trunk}; missing in the file (" in line and len(line) < 1500
    with pytest.raises(UserError, match="trunk 'small_cnn' has no pretrained weights"):
        pretrained.load(path, "small_cnn")


def test_trunks_are_found_by_name():
    assert trunks.get("efficientnet_lite") == (efficientnet_lite, {})
    for name in ("efficientnet_lite9", "pretrained", "", "small"):
        with pytest.raises(UserError, match=r"efficientnet_lite0.*small_cnn"):
            trunks.get(name)
    with pytest.raises(UserError, match="did you mean 'efficientnet_lite0'"):
        trunks.get("efficientnet-lite0")


def test_the_file_of_a_trunk_is_found_by_its_name(tmp_path):
    files = {
        "vgg16": "vgg16-397923af.pth",
        "vgg16_fc": "vgg16-397923af.pth",
        "vgg16_bn_fc": "vgg16_bn-6c64b313.pth",
        "resnet101": "resnet101.safetensors",
        "efficientnet_lite0": "tf_efficientnet-lite0-0aa007d2.npz",
    }
    for name in files.values():
        (tmp_path / name).touch()
    (tmp_path / "resnet101.md").touch()
    for trunk, name in files.items():
        assert pretrained.find(tmp_path, trunk) == tmp_path / name
    assert pretrained.find(tmp_path, "small_cnn") is None
    with pytest.raises(UserError, match=r"no file with the weights of resnet50; wanted one, such as resnet50.safeten"):
        pretrained.find(tmp_path, "resnet50")
    (tmp_path / "resnet101.npz").touch()
    with pytest.raises(UserError, match=r"2 files \(resnet101.npz, resnet101.safetensors\)"):
        pretrained.find(tmp_path, "resnet101")
    with pytest.raises(UserError, match="does not exist"):
        pretrained.find(tmp_path / "none", "resnet101")
