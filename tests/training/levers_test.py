"""Accumulation, rematerialisation, divided state and prefetched batches: the same numbers by other means."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config

from jaxmlic import config as config_lib
from jaxmlic import sharding
from jaxmlic.data import loader
from jaxmlic.data.prefetch import PlacedBatches
from jaxmlic.errors import UserError
from jaxmlic.inputs import open_source
from jaxmlic.models import trunks
from jaxmlic.models.heads import contract
from jaxmlic.models.trunks import remat
from jaxmlic.training import loop, optim, step
from jaxmlic.training import state as state_lib
from jaxmlic.training.checkpoint import Checkpoints

# Gradient descent by one rate: a step shows the gradient itself.
PLAIN = {
    "data.resize": 16,
    "train.batch_size": 16,
    "optim.name": "sgd",
    "optim.momentum": 0.0,
    "optim.weight_decay": 0.0,
    "optim.schedule": "constant",
    "optim.lr": 0.1,
}


def batch_of(count, seed=0, side=16):
    rng = np.random.default_rng(seed)
    mask = np.ones(count, bool)
    mask[rng.permutation(count)[:5]] = False  # micro-batches have different numbers of examples
    return {
        "image": rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8),
        "labels": rng.integers(-1, 2, (count, 3)).astype(np.int8),
        "mask": mask,
        "weight": rng.random(count).astype(np.float32),
    }


def trainer_of(data_dir, devices=8, **overrides):
    mesh = sharding.make_mesh(jax.devices()[:devices])
    return loop.Trainer(tiny_config(data_dir, **{**PLAIN, **overrides}), "unused", mesh)


def train(trainer, count=3):
    state, values = trainer.initial_state(), []
    for seed in range(count):
        state, scalars = trainer.train_step(state, sharding.put(batch_of(16, seed), trainer.mesh))
        values.append(float(scalars["loss"]))
    return state, np.array(values), {k: np.asarray(v) for k, v in optim.flatten(state.params).items()}


def bytes_on_one_device(tree):
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))


@pytest.fixture(scope="module")
def whole(data_dir):
    """Three steps without any lever, over 8 devices."""
    return train(trainer_of(data_dir))


def test_micro_batches_give_the_step_of_the_whole_batch(data_dir, whole):
    trainer = trainer_of(data_dir, 2, **{"train.accumulate": 4})
    _, losses, params = train(trainer)
    np.testing.assert_allclose(losses, whole[1], rtol=1e-6)
    for name, value in whole[2].items():
        np.testing.assert_allclose(params[name], value, atol=1e-6, err_msg=name)


def test_the_loss_of_micro_batches_is_the_mean_by_hand(data_dir):
    trainer = trainer_of(data_dir, 1, **{"train.accumulate": 4, "augment.flip": False, "augment.crop_area": (1.0, 1.0)})
    batch, state = batch_of(16), trainer.initial_state()
    logits = np.asarray(trainer.model.apply({"params": state.params}, batch["image"])["logits"], np.float64)
    labels, known = batch["labels"] == 1, batch["labels"] != -1
    entropy = np.where(known, np.logaddexp(0, np.where(labels, -logits, logits)), 0)
    expected = (entropy.mean(1) * batch["mask"] * batch["weight"]).sum() / batch["mask"].sum()
    _, scalars = trainer.train_step(state, sharding.put(batch, trainer.mesh))
    np.testing.assert_allclose(scalars["loss"], expected, rtol=1e-5)


def test_micro_batches_stay_on_their_devices(data_dir):
    """Every device has its share of each micro-batch: nothing but gradients and scalars is exchanged."""
    trainer = trainer_of(data_dir, 2, **{"train.accumulate": 4, "augment.flip": False, "augment.crop_area": (1.0, 1.0)})
    batch = sharding.put(batch_of(16), trainer.mesh)
    program = trainer.train_step.lower(trainer.initial_state(), batch).compile().as_text()
    assert "all-reduce" in program
    assert not [kind for kind in ("all-to-all", "all-gather", "collective-permute") if kind in program]


def test_a_batch_that_micro_batches_do_not_divide(data_dir):
    with pytest.raises(UserError, match=r"16 cannot be divided over 8 devices x 4 micro-batches .* can is 32"):
        trainer_of(data_dir, 8, **{"train.accumulate": 4})
    with pytest.raises(UserError, match=r"train\.accumulate"):
        trainer_of(data_dir, 8, **{"train.accumulate": 0})
    with pytest.raises(UserError, match=r"train\.remat"):
        trainer_of(data_dir, 8, **{"train.remat": "some"})


@pytest.fixture(scope="module")
def divided(data_dir):
    """The same experiment with Adam and averages, replicated and divided."""
    more = {"optim.name": "adamw", "optim.ema": 0.9, "optim.lr": 1e-3, "model.trunk": "small_cnn_wide"}
    trainers = [trainer_of(data_dir, 8, **more, **{"train.shard_state": shard}) for shard in (False, True)]
    return trainers, [train(trainer) for trainer in trainers]


def test_divided_state_takes_the_steps_of_a_replicated_one(divided):
    _, ((_, expected, expected_params), (_, losses, params)) = divided
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    for name, value in expected_params.items():
        np.testing.assert_allclose(params[name], value, atol=1e-5, err_msg=name)


def test_divided_state_takes_an_eighth_of_the_memory(divided):
    _, ((replicated, *_), (state, *_)) = divided
    for part in ("params", "opt_state", "ema"):
        before, after = bytes_on_one_device(getattr(replicated, part)), bytes_on_one_device(getattr(state, part))
        assert before / 8 <= after < before / 8 + 60_000  # norms, biases and other small arrays are replicated
    kernel = state.params["trunk"]["stage3_1_conv"]["kernel"]  # [3, 3, 256, 256]
    assert kernel.addressable_shards[0].data.shape == (3, 3, 32, 256)
    assert state.params["classifier"]["kernel"].sharding.is_fully_replicated
    assert state.step.sharding.is_fully_replicated


@pytest.mark.parametrize("saved", [0, 1])
def test_either_layout_restores_the_other(divided, tmp_path, saved):
    trainers, found = divided
    checkpoints = Checkpoints(tmp_path)
    reader = trainers[0].readers()[0]
    checkpoints.save(3, found[saved][0], loader.train_iterator(reader, 16, seed=0))
    checkpoints.wait()
    other = trainers[1 - saved]
    state = checkpoints.restore(3, other.initial_state())
    checkpoints.close()
    for before, after, place in zip(
        *(jax.tree.leaves(tree) for tree in (found[saved][0], state, other.place)), strict=True
    ):
        np.testing.assert_array_equal(before, after)
        assert after.sharding.is_equivalent_to(place, after.ndim)


def test_validation_of_divided_state(divided):
    trainers, found = divided
    numbers = [
        trainer.validate(state, trainer.readers()[1]) for trainer, (state, *_) in zip(trainers, found, strict=True)
    ]
    assert numbers[1]["val/mAP"] == pytest.approx(numbers[0]["val/mAP"], abs=1e-3)


class Sums(nn.Module):
    """A number of all of a trunk's stages."""

    trunk: str

    @nn.compact
    def __call__(self, x):
        mode = "frozen" if trunks.has_batch_norm(self.trunk) else "train"
        trunk, preprocess = trunks.build(self.trunk, dtype="float32", batch_norm=mode)
        return sum(jnp.abs(stage).mean() for stage in trunk(preprocess(x), True)[1].values())


def gradients(name, level):
    """The lowered gradients of `Sums` by the parameters, and parameters to run them on."""
    images = jnp.asarray(batch_of(2, side=32)["image"][:2])
    variables = jax.eval_shape(Sums(name).init, jax.random.key(0), images)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: jnp.asarray(0.1 * rng.normal(size=x.shape) + 0.02, x.dtype), variables)

    def total(params):
        return Sums(name).apply({**variables, "params": params}, images)

    with remat.level(level):
        return jax.jit(jax.value_and_grad(total)).lower(variables["params"]), variables["params"]


def same_gradients(name, levels):
    results = [lowered.compile()(params) for lowered, params in (gradients(name, level) for level in levels)]
    for other in results[1:]:
        assert jax.tree.structure(other) == jax.tree.structure(results[0])
        for before, after in zip(jax.tree.leaves(results[0]), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(after, before, atol=1e-5 * float(jnp.abs(before).max()))


def test_a_rematerialised_trunk_has_the_same_gradients():
    same_gradients("small_cnn", remat.LEVELS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "vgg16_bn", "cifar14", "efficientnet_lite0"])
def test_rematerialised_trunks_have_the_same_gradients(name):
    same_gradients(name, ("none", "full"))


@pytest.mark.parametrize(
    "name", ["resnet18", "vgg16_bn", "cifar14", pytest.param("efficientnet_lite0", marks=pytest.mark.slow)]
)
def test_trunks_compute_blocks_again(name):
    counts = [gradients(name, level)[0].as_text().count("optimization_barrier") for level in remat.LEVELS]
    assert counts[0] == 0 < counts[1] < counts[2]


@pytest.mark.parametrize("level", ["blocks", "full"])
def test_rematerialisation_takes_less_memory(data_dir, whole, level):
    trainer = trainer_of(data_dir, 1, **{"train.remat": level})
    plain = trainer_of(data_dir, 1)
    state, batch = trainer.initial_state(), sharding.put(batch_of(16), trainer.mesh)
    sizes = [t.train_step.lower(state, batch).compile().memory_analysis().temp_size_in_bytes for t in (plain, trainer)]
    assert sizes[1] < 0.9 * sizes[0]
    np.testing.assert_allclose(train(trainer)[1], whole[1], rtol=1e-5)


@pytest.mark.parametrize("ahead", [0, 3])
def test_the_position_is_that_of_the_batches_given(data_dir, ahead):
    reader = trainer_of(data_dir, 1).readers()[0]

    def batches():
        mesh = sharding.make_mesh(jax.devices()[:1])
        return PlacedBatches(loader.train_iterator(reader, 16, seed=0), lambda b: sharding.put(b, mesh), ahead)

    plain = loader.train_iterator(reader, 16, seed=0)
    expected = [next(plain) for _ in range(8)]
    found = batches()
    given = [next(found) for _ in range(3)]
    other = batches()
    next(other)  # what it read ahead is dropped
    other.set_state(found.get_state())
    given += [next(other) for _ in range(5)]
    for batch, right in zip(given, expected, strict=True):
        for name, value in right.items():
            np.testing.assert_array_equal(batch[name], value)


HEADS = {
    "linear": ("quickstart", {"model.pool": "avg"}),
    "cnn_rnn": ("cnn_rnn", {"model.trunk": "small_cnn"}),
    "multi_order_rnn": ("multi_order_rnn", {"model.trunk": "small_cnn", "model.batch_norm": "train"}),
    "mscnn_lce_mic": ("mscnn_lce_mic", {"model.trunk": "small_cnn", "model.word_vectors": "one_hot"}),
    "cnn_lstm_rmlc.plain": ("cnn_lstm_rmlc:head=plain", {}),
    "cnn_lstm_rmlc.positions": ("cnn_lstm_rmlc", {}),
    "cnn_lstm_rmlc.path": ("cnn_lstm_rmlc:head=path", {}),
    "label_attention.csra": ("yardsticks:dataset=scenes,head=csra", {}),
    "label_attention.ml_decoder": ("yardsticks:dataset=scenes,head=ml_decoder", {}),
    "label_attention.query2label": ("yardsticks:dataset=scenes,head=query2label", {}),
    "kernel_ridge": ("kernel_ridge", {"model.trunk": "small_cnn", "model.batch_norm": "train"}),
    "two_pass_knn": ("kernel_ridge:head=two_pass_knn", {"model.trunk": "small_cnn", "model.batch_norm": "train"}),
    "tagprop": ("kernel_ridge:head=tagprop", {"model.trunk": "small_cnn", "model.batch_norm": "train"}),
}


@pytest.mark.parametrize("head", sorted(contract.names()))
def test_bfloat16_stays_in_the_trunk(head):
    """Parameters, statistics, optimizer state, gradients, losses, logits and scores of every head are float32."""
    spec, overrides = HEADS[head]
    config = config_lib.override(config_lib.load(spec), {"model.dtype": "bfloat16", "data.image_size": 32} | overrides)
    assert config.head == head
    source = open_source(config)
    module = contract.find(head)
    model = contract.make_model(module, config, 5, num_train=7)
    tx, multipliers, _, _ = state_lib.optimizer(config, model, source.example(), 1000)
    mesh = sharding.make_mesh(jax.devices()[:1])
    state = state_lib.abstract(config, model, source.example(), 1000, mesh)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(state.params)} == {"float32"}
    batch = {
        "image": jax.ShapeDtypeStruct((4, 32, 32, 3), jnp.uint8),
        "labels": jax.ShapeDtypeStruct((4, 5), jnp.int8),
        "mask": jax.ShapeDtypeStruct((4,), jnp.bool_),
    }

    def floats(tree):
        return {str(leaf.dtype) for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)}

    def gradients(state, batch):
        return step.loss_and_grads(module, model, config, multipliers, state, batch["image"], batch, jax.random.key(0))

    if not contract.has_closed_form(module):
        found = jax.eval_shape(gradients, state, batch)
        assert floats(state) == floats(found) == {"float32"}
        after = step.make_step_fn(module, model, config, source, tx, multipliers, 1000)
        assert floats(jax.eval_shape(after, state, batch)) == {"float32"}
    variables = state_lib.eval_variables(state)
    outputs = jax.eval_shape(lambda v, x: model.apply(v, x, train=False), variables, batch["image"])
    assert floats({k: v for k, v in outputs.items() if "logits" in k or "log_probs" in k}) <= {"float32"}
    scores = jax.eval_shape(lambda v, x: module.predict_fn(model, v, x).scores, variables, batch["image"])
    assert scores.dtype == jnp.float32
    maps = [v for k, v in outputs.items() if k in ("feature_map", *trunks.levels(config.model.trunk))]
    assert "bfloat16" in floats(maps) or head.startswith(("cnn_lstm", "mscnn")) or contract.has_closed_form(module)


def test_an_unsplit_state_keeps_its_layout(data_dir):
    trainer = trainer_of(data_dir, 8)
    assert all(place.is_fully_replicated for place in jax.tree.leaves(trainer.place))
    assert isinstance(trainer.initial_state(), state_lib.TrainState)
