"""Sampled ranks from a config: the step's key decides them, an image's place folds it, devices change nothing."""

import jax
import numpy as np
from conftest import tiny_config
from definitions import example_batch

from jaxmlic import sharding
from jaxmlic.models.heads import contract, linear
from jaxmlic.training import loop
from jaxmlic.training import step as step_lib

SAMPLED = {"name": "warp", "options": (("rank", "sampled"),)}


def apply(logits, labels, key):
    return contract.apply_loss(linear, {"logits": logits}, labels, SAMPLED, key)[0]


def test_the_key_reaches_the_loss_and_an_image_s_place_decides_its_draws():
    logits, labels = (np.tile(x, (8, 1)) for x in example_batch(1))
    loss = jax.jit(apply)
    found, again, other = (np.asarray(loss(logits, labels, jax.random.key(i))) for i in (0, 0, 1))
    np.testing.assert_array_equal(found, again)
    assert (found != other).mean() > 0.2
    same_image = found.reshape(8, 8)[:, 3:]  # eight copies of an image, each with draws of its own
    assert (same_image != same_image[:1]).any()
    np.testing.assert_array_equal(jax.jit(apply)(logits[:40], labels[:40], jax.random.key(0)), found[:40])


def test_ranks_have_the_distribution_of_drawing_until_one_violates():
    """n is geometric with the violators' share of the negatives, r = floor((m - 1) / n) for m = 7 known labels."""
    logits = np.float32([[0.0, 0.4, -0.5, -4.0, -5.0, -6.0, -7.0]] * 200)
    labels = np.array([[1, 0, 0, 0, 0, 0, 0]] * 200, np.int8)
    found = np.asarray(jax.jit(apply)(logits, labels, jax.random.key(3)))
    harmonic = np.concatenate([[0], np.cumsum(1 / np.arange(1, 8))])
    ranks = np.array([np.argmin(abs(harmonic - value / (1.4 + 0.5))) for value in found])
    np.testing.assert_allclose(found, harmonic[ranks] * 1.9, rtol=1e-5)
    share = 2 / 6  # of the negatives that violate the margin
    expected = {6 // n: 0.0 for n in range(1, 8)}
    for n in range(1, 60):
        expected[6 // n] += (1 - share) ** (n - 1) * share
    for rank, probability in expected.items():
        spread = np.sqrt(probability * (1 - probability) / 200)
        assert abs((ranks == rank).mean() - probability) < 4 * spread, rank
    assert set(ranks) <= set(expected)


def test_one_device_and_eight_draw_the_same():
    logits, labels = (np.tile(x, (2, 1)) for x in example_batch(1))
    found = []
    for count in (1, 8):
        mesh = sharding.make_mesh(jax.devices()[:count])
        place, split = sharding.replicated(mesh), sharding.split(mesh)
        arguments = jax.device_put((logits, labels, jax.random.key(0)), (split, split, place))
        found.append(jax.device_get(jax.jit(apply, in_shardings=(split, split, place))(*arguments)))
    np.testing.assert_array_equal(*found)


def test_a_step_draws_anew_and_the_same_step_the_same(data_dir, tmp_path):
    options = {"loss.name": "rmlc", "loss.options": (("rank", "sampled"), ("leak", 0.1))}
    trainer = loop.Trainer(tiny_config(data_dir, **options), str(tmp_path / "run"))
    state = trainer.initial_state()
    # One of two negatives violates the margin of every positive, so that each of them draws.
    bias = np.float32([0.0, 3.0, -3.0])
    classifier = {"kernel": np.zeros_like(state.params["classifier"]["kernel"]), "bias": bias}
    state = state.replace(params={**state.params, "classifier": classifier})
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (8, 16, 16, 3)).astype(np.uint8),
        "labels": np.tile(np.array([[1, 0, 0]], np.int8), (8, 1)),
        "mask": np.ones(8, bool),
    }
    arguments = (trainer.head, trainer.model, trainer.config, trainer.multipliers)
    run = jax.jit(lambda key: step_lib.loss_and_grads(*arguments, state, batch["image"], batch, key)[0])
    losses = [float(run(jax.random.key(i))) for i in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]
