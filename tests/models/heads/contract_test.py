"""What a head may ask of the trainer beside its loss: constants from the training split, and weighted targets."""

import dataclasses
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config

from jaxmlic.data import loader
from jaxmlic.inputs.images import ImageReader
from jaxmlic.models.heads import contract, linear
from jaxmlic.training import loop, restore, run_folder
from jaxmlic.training import state as state_lib
from jaxmlic.training import step as step_lib


class ModelWithConstants(linear.Model):
    """Binary relevance whose logits start from the labels' frequencies, which are not trained."""

    @nn.compact
    def __call__(self, images, train=False, labels=None, frozen_trunk=False):
        prior = self.variable("constants", "prior", jnp.zeros, (self.num_labels,), jnp.float32)
        outputs = super().__call__(images, train, labels, frozen_trunk)
        return outputs | {"logits": outputs["logits"] + prior.value[None]}


def constants(config, statistics):
    positive = (statistics.labels == 1).sum(axis=0)
    negative = (statistics.labels == 0).sum(axis=0)
    return {"prior": np.log(positive / negative).astype(np.float32)}, ["a note on the prior"]


@pytest.fixture
def head_with_constants(monkeypatch):
    head = types.SimpleNamespace(
        Model=ModelWithConstants, loss_fn=linear.loss_fn, predict_fn=linear.predict_fn, constants=constants
    )
    monkeypatch.setattr(contract, "find", lambda name: head)
    return head


def test_constants_come_from_the_training_split_and_stay(head_with_constants, data_dir, tmp_path, capsys):
    config = tiny_config(data_dir, **{"train.duration": "4 steps"})
    trainer = loop.Trainer(config, str(tmp_path / "run"))
    statistics = contract.LabelStatistics(trainer.train_view.labels, ["red", "green", "blue"])
    wanted = constants(config, statistics)[0]["prior"]
    np.testing.assert_array_equal(trainer.initial_state().constants["prior"], wanted)
    assert "a note on the prior\n" in capsys.readouterr().out
    assert trainer.fit().finished
    variables = restore.restore(tmp_path / "run", trainer.mesh).variables
    np.testing.assert_array_equal(variables["constants"]["prior"], wanted)
    # Evaluation reads them from the checkpoint: scores with them and without differ by the prior.
    images = jnp.zeros((2, 16, 16, 3), jnp.uint8)
    with_prior = head_with_constants.predict_fn(trainer.model, variables, images).scores
    none = {**variables, "constants": {"prior": jnp.zeros(3)}}
    without = head_with_constants.predict_fn(trainer.model, none, images).scores
    np.testing.assert_allclose(with_prior - without, np.broadcast_to(wanted, (2, 3)), rtol=1e-5)


def test_constants_of_another_shape_are_a_programming_error(head_with_constants, data_dir, tmp_path):
    head_with_constants.constants = lambda config, statistics: ({"prior": np.zeros(4, np.float32)}, [])
    with pytest.raises(ValueError, match="constants"):
        loop.Trainer(tiny_config(data_dir), str(tmp_path / "run")).initial_state()


def test_targets_replace_labels_and_weigh_losses(data_dir, tmp_path):
    trainer = loop.Trainer(tiny_config(data_dir), str(tmp_path / "run"))
    view = trainer.train_view
    labels = 1 - np.maximum(view.labels, 0)
    targets = loader.Targets(labels, np.linspace(0, 1, len(view), dtype=np.float32))
    other = dataclasses.replace(view, targets=targets)
    assert run_folder.fingerprint(other) != run_folder.fingerprint(view)
    batch = ImageReader(other, 16)(np.arange(8))
    np.testing.assert_array_equal(batch["labels"], labels[:8])
    np.testing.assert_array_equal(batch["weight"], targets.weights[:8])
    assert "weight" not in ImageReader(view, 16)(np.arange(8))

    state, key = trainer.initial_state(), jax.random.key(0)
    arguments = (trainer.head, trainer.model, trainer.config, trainer.multipliers, state)
    mean = jax.jit(lambda weight: step_lib.loss_and_grads(*arguments, batch["image"], {**batch, "weight": weight}, key))
    plain = jax.jit(lambda b: step_lib.loss_and_grads(*arguments, b["image"], b, key))(
        {k: v for k, v in batch.items() if k != "weight"}
    )
    half, _, _, half_grads = mean(np.full(8, 0.5, np.float32))
    np.testing.assert_allclose(half, plain[0] / 2, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b / 2, rtol=1e-4, atol=1e-7), half_grads, plain[3])
    # Each example alone, summed with its weight, over their number.
    alone = [mean(np.eye(8, dtype=np.float32)[i])[0] for i in range(8)]
    np.testing.assert_allclose(mean(batch["weight"])[0], np.dot(alone, batch["weight"]), rtol=1e-5)


def test_states_without_constants_are_as_before(data_dir, tmp_path):
    trainer = loop.Trainer(tiny_config(data_dir), str(tmp_path / "run"))
    assert trainer.initial_state().constants == {}
    assert state_lib.eval_variables(trainer.initial_state())["constants"] == {}
