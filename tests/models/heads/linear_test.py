"""The linear head against numpy, and pretrained weights on their way into a training state."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config

from jaxmlic.errors import UserError
from jaxmlic.models.heads import contract, linear
from jaxmlic.models.trunks import cifar14, efficientnet_lite, resnet, vgg
from jaxmlic.training import loop, optim


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (2, 24, 32, 3)).astype(np.uint8)


@pytest.mark.parametrize("pool", ["avg", "max", "avg_max", "avg_unit"])
def test_logits_are_a_linear_map_of_the_pooled_feature_map(images, pool):
    model = linear.Model(5, pool=pool)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    outputs = jax.jit(model.apply)(variables, images)
    grid = np.asarray(outputs["feature_map"])
    mean = grid.mean((1, 2))
    parts = {"avg": [mean], "max": [grid.max((1, 2))], "avg_unit": [mean / np.linalg.norm(mean, axis=1)[:, None]]}
    features = np.concatenate(parts.get(pool, [grid.mean((1, 2)), grid.max((1, 2))]), axis=-1)
    np.testing.assert_allclose(outputs["pooled"], features, atol=1e-5)
    classifier = variables["params"]["classifier"]
    expected = features @ np.asarray(classifier["kernel"]) + np.asarray(classifier["bias"])
    np.testing.assert_allclose(outputs["logits"], expected, atol=1e-4)
    prediction = linear.predict_fn(model, variables, images)
    np.testing.assert_allclose(prediction.scores, outputs["logits"], atol=1e-5)
    assert prediction.chosen is None and prediction.path is None


def test_added_labels_have_layers_of_their_own(images):
    """The logits of the labels before them are the same bits, and all layers together are one linear layer."""
    before, after = linear.Model(5), linear.Model(8, added_labels=(1, 2))
    variables = jax.jit(after.init)(jax.random.key(0), images)
    assert {name: layer["bias"].shape for name, layer in variables["params"].items() if "bias" in layer} == {
        "classifier": (5,),
        "added_0": (1,),
        "added_1": (2,),
    }
    params = {name: layer for name, layer in variables["params"].items() if not name.startswith("added_")}
    old = jax.jit(before.apply)({**variables, "params": params}, images)["logits"]
    new = jax.jit(after.apply)(variables, images)
    np.testing.assert_array_equal(new["logits"][:, :5], old)
    layer = linear.linear_layer(after, variables)
    np.testing.assert_allclose(
        new["logits"], np.asarray(new["pooled"]) @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"]), atol=1e-5
    )
    np.testing.assert_array_equal(linear.label_embeddings(variables)["classifier"], layer["kernel"].T)


@pytest.mark.parametrize("trunk", [name for file in (cifar14, resnet, vgg) for name in file.NAMES])
def test_every_trunk_carries_the_head(trunk):
    model = linear.Model(5, trunk=trunk, dtype="bfloat16")
    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    images = jnp.zeros((2, 40, 57, 3), jnp.uint8)
    outputs, variables = jax.eval_shape(lambda: model.init_with_output(rngs, images, train=True))
    assert outputs["logits"].shape == (2, 5) and outputs["logits"].dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float32)}


def test_dropout_acts_in_training_alone(images):
    model = linear.Model(5, dropout=0.5)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    apply = jax.jit(
        lambda key, train: model.apply(variables, images, train=train, rngs={"dropout": key}), static_argnums=1
    )
    keys = jax.random.split(jax.random.key(1))
    first, second = (apply(key, True)["logits"] for key in keys)
    assert np.abs(first - second).max() > 1e-3
    np.testing.assert_array_equal(apply(keys[0], False)["logits"], apply(keys[1], False)["logits"])


def test_unknown_heads_are_guessed():
    assert contract.find("linear") is linear
    with pytest.raises(UserError, match="did you mean 'linear'"):
        contract.find("liner")


@pytest.fixture(scope="module")
def lite(data_dir, tmp_path_factory):
    """A trainer of EfficientNet-Lite0 that starts from a weight file, and the tensors of that file."""
    names = efficientnet_lite.torch_names("lite0")
    config = tiny_config(data_dir, **{"model.trunk": "efficientnet_lite0", "optim.ema": 0.9, "data.image_size": 32})
    fresh = loop.Trainer(config, "unused").initial_state()
    rng, tensors = np.random.default_rng(0), {}
    variables = {"params": fresh.params["trunk"], "batch_stats": fresh.batch_stats["trunk"]}
    for path, name in names.items():
        shape = variables
        for key in path:
            shape = shape[key]
        value = rng.random(shape.shape, np.float32)
        depthwise = "depthwise" in name
        # HWIO to PyTorch's OIHW
        tensors[name] = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value
        assert not depthwise or value.shape[2] == 1
    path = tmp_path_factory.mktemp("weights") / "lite0.npz"
    np.savez(path, **tensors)
    with config.unlocked():
        config.pretrained = str(path)
    return loop.Trainer(config, "unused"), tensors


def test_pretrained_weights_reach_parameters_statistics_and_averages(lite):
    trainer, tensors = lite
    state = trainer.initial_state()
    for path, name in efficientnet_lite.torch_names("lite0").items():
        collection = {"params": state.params, "batch_stats": state.batch_stats}[path[0]]["trunk"]
        for key in path[1:]:
            collection = collection[key]
        expected = tensors[name].transpose(2, 3, 1, 0) if tensors[name].ndim == 4 else tensors[name]
        np.testing.assert_array_equal(collection, expected, err_msg=name)
    params = optim.flatten(state.params)
    for name, value in state.ema.items():
        np.testing.assert_array_equal(value, params[name])
        assert value is not params[name] and isinstance(value, jnp.ndarray)


def test_weights_of_another_kind_are_refused(lite, tmp_path, data_dir):
    trainer, tensors = lite
    np.savez(tmp_path / "short.npz", **dict(list(tensors.items())[:10]))
    for path, message in ((tmp_path / "short.npz", "missing"), (tmp_path / "none.npz", "none.npz")):
        with trainer.config.unlocked():
            trainer.config.pretrained = str(path)
        with pytest.raises(UserError, match=message):
            trainer.initial_state()
