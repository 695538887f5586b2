"""Schedules by hand, optimizers against PyTorch's rules written in numpy, groups and frozen parameters."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxmlic.configs import common
from ml_collections import ConfigDict

from jaxmlic.errors import UserError
from jaxmlic.models import trunks
from jaxmlic.training import optim


def config(**values) -> ConfigDict:
    found = common.base()
    found.train.batch_size = 10
    with found.unlocked():
        found.optim.update(values)
    return found


def rates(config, total=100, at=(0, 10, 50, 99)):
    schedule = optim.schedule(config.optim, total, optim.steps_of(config, 100, total))
    return [float(schedule(step)) for step in at]


def test_step_schedule_with_milestones_in_epochs():
    found = rates(config(schedule="step", lr=1.0, milestones=("2 epochs", "5 epochs")), at=(0, 19, 20, 49, 50, 99))
    np.testing.assert_allclose(found, [1, 1, 0.1, 0.1, 0.01, 0.01], rtol=1e-6)


def test_milestones_count_from_the_start_of_training_also_with_warmup():
    found = rates(config(schedule="step", lr=1.0, milestones=("50 steps",), warmup="10%"), at=(0, 5, 10, 49, 50))
    np.testing.assert_allclose(found, [0, 0.5, 1, 1, 0.1], rtol=1e-6)


def test_cosine_with_warmup():
    found = rates(config(schedule="cosine", lr=2.0, warmup="10 steps"), at=(0, 5, 10, 55, 100))
    np.testing.assert_allclose(found, [0, 1, 2, 1, 0], atol=1e-6)


def test_one_cycle_rises_for_the_warmup_and_falls():
    found = rates(config(schedule="one_cycle", lr=1.0, warmup="25%"), at=(0, 25, 99))
    assert found[0] == pytest.approx(0.04) and found[1] == pytest.approx(1.0) and found[2] < 0.01


@pytest.mark.parametrize("name", ["sgd", "sgd_nesterov", "adam", "adamw", "rmsprop"])
def test_optimizers_against_their_rules_in_numpy(name):
    values = config(
        name=name, lr=0.1, schedule="constant", weight_decay=0.3, momentum=0.8, beta2=0.95, groups=((".*", 1.0),)
    )
    names = ["a/kernel", "a/bias"]
    tx = optim.make(values.optim, dict.fromkeys(names, 1.0), optax.constant_schedule(0.1))
    rng = np.random.default_rng(0)
    params = {n: rng.normal(size=3) for n in names}
    grads = [{n: rng.normal(size=3) for n in names} for _ in range(4)]
    ours = {n: jnp.float32(v) for n, v in params.items()}
    state = tx.init(ours)
    for g in grads:
        updates, state = tx.update({n: jnp.float32(v) for n, v in g.items()}, state, ours)
        ours = optax.apply_updates(ours, updates)
    for n in names:
        decay = 0.3 if n.endswith("kernel") else 0.0
        np.testing.assert_allclose(ours[n], reference(name, params[n], [g[n] for g in grads], decay), rtol=2e-4)


def reference(name, p, grads, decay, lr=0.1, momentum=0.8, beta2=0.95, eps=1e-8):
    """PyTorch's documented update rules (rmsprop with its momentum buffer)."""
    m, v, p = np.zeros(3), np.zeros(3), p.copy()
    for t, g in enumerate(grads, 1):
        if name != "adamw":
            g = g + decay * p
        if name == "sgd_nesterov":
            m = momentum * m + g
            p = p - lr * (g + momentum * m)
        elif name == "sgd":
            m = momentum * m + g
            p = p - lr * m
        elif name == "rmsprop":
            v = beta2 * v + (1 - beta2) * g * g
            m = momentum * m + g / (np.sqrt(v) + eps)
            p = p - lr * m
        else:
            m, v = momentum * m + (1 - momentum) * g, beta2 * v + (1 - beta2) * g * g
            step = (m / (1 - momentum**t)) / (np.sqrt(v / (1 - beta2**t)) + eps)
            p = p - lr * (step + (decay * p if name == "adamw" else 0))
    return p


def test_epsilon_of_rmsprop_and_adam_by_hand():
    """RMSProp's stands under the root, Adam's beside it; 1e-8 is optax's own, to the bit."""
    gradient = {"a": jnp.float32([3.0])}

    def update(name, **more):
        values = config(name=name, weight_decay=0.0, momentum=0.0, beta2=0.75, **more)
        tx = optim.make(values.optim, {"a": 1.0}, optax.constant_schedule(1.0))
        return tx.update(gradient, tx.init(gradient), gradient)[0]["a"]

    np.testing.assert_allclose(update("rmsprop", eps=1.0), -3 / np.sqrt(9 / 4 + 1), rtol=1e-6)
    np.testing.assert_allclose(update("adam", eps=1.0), -3 / (3 + 1), rtol=1e-6)
    own = optax.chain(optax.scale_by_rms(decay=0.75), optax.scale_by_learning_rate(1.0))
    np.testing.assert_array_equal(update("rmsprop"), own.update(gradient, own.init(gradient))[0]["a"])
    with pytest.raises(UserError, match=r"config\.optim\.eps = 0\.0 is not above 0"):
        update("rmsprop", eps=0.0)


def test_first_matching_group_sets_the_pace():
    names = ["trunk/conv/kernel", "trunk/norm/bias", "classifier/kernel"]
    found = optim.multipliers((("trunk/norm/.*", None), ("trunk/.*", 0.1), (".*", 1.0)), names)
    assert found == {"trunk/conv/kernel": 0.1, "trunk/norm/bias": None, "classifier/kernel": 1.0}


def test_pace_multiplies_the_update():
    values = config(name="sgd", lr=1.0, weight_decay=0.0)
    tx = optim.make(values.optim, {"a": 0.1, "b": 1.0}, optax.constant_schedule(1.0))
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    updates, _ = tx.update({"a": jnp.ones(2), "b": jnp.ones(2)}, tx.init(params), params)
    np.testing.assert_allclose(updates["a"], -0.1, rtol=1e-6)
    np.testing.assert_allclose(updates["b"], -1.0, rtol=1e-6)


def test_clipping_bounds_the_global_norm():
    values = config(name="sgd", lr=1.0, weight_decay=0.0, clip_norm=1.0)
    tx = optim.make(values.optim, {"a": 1.0, "b": 1.0}, optax.constant_schedule(1.0))
    params = {"a": jnp.zeros(2), "b": jnp.zeros(2)}
    updates, _ = tx.update({"a": jnp.full(2, 3.0), "b": jnp.full(2, 4.0)}, tx.init(params), params)
    total = np.sqrt(sum(float((u**2).sum()) for u in updates.values()))
    assert total == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ((("trunk/.*", 1.0),), "no group matches parameter classifier/kernel"),
        ((("trnk/.*", None), (".*", 1.0)), "matches no parameter"),
        ((("(", None), (".*", 1.0)), "is no regular expression"),
    ],
)
def test_group_mistakes(groups, message):
    with pytest.raises(UserError, match=message):
        optim.multipliers(groups, ["trunk/kernel", "classifier/kernel"])


@pytest.mark.parametrize(("field", "value"), [("name", "adamm"), ("schedule", "cosin")])
def test_unknown_names_are_guessed(field, value):
    values = config(**{field: value})
    with pytest.raises(UserError, match="did you mean"):
        optim.schedule(values.optim, 10, optim.steps_of(values, 100, 10))
        optim.make(values.optim, {"a": 1.0}, optax.constant_schedule(1.0))


def test_moving_average_by_hand():
    old, new = {"a": jnp.zeros(1)}, {"a": jnp.ones(1)}
    np.testing.assert_allclose(
        optim.average(old, new, 0.99, jnp.int32(0))["a"], 0.9, rtol=1e-6
    )  # decay 1 / 10 at first
    np.testing.assert_allclose(optim.average(old, new, 0.99, jnp.int32(10_000))["a"], 0.01, rtol=1e-4)


def test_stages_of_the_trunk_learn_at_their_own_paces():
    """Efficientnet's third block is of stage 2, six before its head; groups and frozen parameters stay."""
    names = ["conv_stem/kernel", "blocks_2/bn0/scale", "blocks_14/bn1/bias", "conv_head/kernel", "bn1/scale"]
    found = {f"trunk/{name}": 0.5 for name in names} | {"trunk/bn0/bias": None, "classifier/kernel": 2.0}
    paced = optim.paced(found, "efficientnet_lite0", 0.8)
    stages = dict(zip(names, (0, 2, 6, 8, 8), strict=True))
    expected = {f"trunk/{name}": 0.5 * 0.8 ** (8 - stage) for name, stage in stages.items()}
    assert paced == pytest.approx(expected | {"trunk/bn0/bias": None, "classifier/kernel": 2.0})
    assert optim.paced(found, "cifar14", 1.0) is found


@pytest.mark.parametrize(
    ("trunk", "modules"),
    [
        ("efficientnet_lite2", ("conv_stem", "blocks_0", "blocks_1", "blocks_8", "blocks_20", "conv_head", "bn1")),
        ("resnet50", ("conv1", "bn1", "layer1_0", "layer1_2", "layer3_5", "layer4_2")),
        ("vgg16_bn_fc", ("conv1_1", "bn1_2", "conv5_3", "bn5_3", "fc6", "fc7")),
        ("small_cnn_wide", ("stage1_0_conv", "stage1_0_norm", "stage3_2_norm")),
    ],
)
def test_stages_are_numbered_from_the_input(trunk, modules):
    numbers = trunks.stage_numbers(trunk, modules)
    expected = {
        "efficientnet_lite2": (0, 1, 2, 4, 7, 8, 8),
        "resnet50": (0, 0, 1, 1, 3, 4),
        "vgg16_bn_fc": (1, 1, 5, 5, 6, 7),
        "small_cnn_wide": (1, 1, 3),
    }[trunk]
    assert tuple(numbers[module] for module in modules) == expected


@pytest.mark.parametrize(
    ("rates", "trunk", "decay", "message"),
    [
        ({"trunk/bn0/bias": 1.0}, "efficientnet_lite0", 1.5, "stage_decay = 1.5; it lies in"),
        ({"trunk/bn0/bias": 1.0}, "efficientnet_lite0", 0.0, "stage_decay = 0.0; it lies in"),
        ({"trunk/bn0/bias": None, "a": 1.0}, "efficientnet_lite0", 0.5, "of which nothing learns"),
        ({"a": 1.0}, "efficientnet_lite0", 0.5, "of which nothing learns"),
        ({"trunk/C1/bias": 1.0}, "cifar14", 0.5, "'cifar14' does not number its stages"),
    ],
)
def test_mistakes_of_the_pace(rates, trunk, decay, message):
    with pytest.raises(UserError, match=message):
        optim.paced(rates, trunk, decay)
