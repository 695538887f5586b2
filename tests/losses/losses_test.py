"""Losses against numpy in float64 (plain loops over labels and pairs), by hand, and their gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from definitions import LOSSES, compiled, example_batch, single

from jaxmlic import config as config_lib
from jaxmlic import losses, sharding
from jaxmlic.errors import UserError
from jaxmlic.models.heads import linear

binary_cross_entropy = jax.jit(losses.binary_cross_entropy)


def reference(logits, labels):
    """Straight from the definition, a loop over cells in float64."""
    values = np.zeros(logits.shape[:-1])
    for index in np.ndindex(labels.shape):
        z, y = float(logits[index]), int(labels[index])
        if y != -1:
            p = 1 / (1 + np.exp(-z))
            values[index[:-1]] -= np.log(p if y == 1 else 1 - p) / labels.shape[-1]
    return values


def test_binary_cross_entropy_equals_a_loop():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(6, 7)) * 3, rng.integers(-1, 2, (6, 7)).astype(np.int8)
    found = binary_cross_entropy(jnp.float32(logits), jnp.asarray(labels))
    np.testing.assert_allclose(found, reference(np.float32(logits), labels), rtol=1e-5)


def test_by_hand():
    found = binary_cross_entropy(jnp.zeros((1, 4)), jnp.array([[1, 0, -1, -1]]))
    np.testing.assert_allclose(found, [2 * np.log(2) / 4], rtol=1e-6)


def test_extreme_logits_are_finite_and_linear():
    found = binary_cross_entropy(jnp.array([[1e4, -1e4]]), jnp.array([[0, 1]]))
    np.testing.assert_allclose(found, [1e4])
    grads = jax.grad(lambda z: binary_cross_entropy(z, jnp.array([[0, 1]])).sum())(jnp.array([[1e4, -1e4]]))
    np.testing.assert_allclose(grads, [[0.5, -0.5]])


def test_gradient_is_probability_minus_label_and_zero_where_unknown():
    z = jnp.array([[0.3, -2.0, 1.5]])
    grads = jax.grad(lambda z: binary_cross_entropy(z, jnp.array([[1, 0, -1]])).sum())(z)
    p = 1 / (1 + np.exp(-np.asarray(z)))
    np.testing.assert_allclose(grads, [[(p[0, 0] - 1) / 3, p[0, 1] / 3, 0.0]], rtol=1e-5)


def test_bfloat16_logits_are_summed_in_float32():
    z = jnp.linspace(-4, 4, 1001, dtype=jnp.bfloat16)[None]
    labels = (jnp.arange(1001) % 2)[None]
    found = binary_cross_entropy(z, labels)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, reference(np.asarray(z, np.float64), np.asarray(labels)), rtol=1e-5)


def test_asymmetric_without_asymmetry_and_focal_without_focus_are_binary_cross_entropy():
    logits, labels = example_batch(scale=20)
    values, gradients = compiled("binary_cross_entropy")(logits, labels)
    for same in (compiled("asymmetric", gamma_neg=0.0, gamma_pos=0.0, clip=0.0), compiled("focal", gamma=0.0)):
        found = same(logits, labels)
        np.testing.assert_allclose(found[0], values, rtol=1e-6)
        np.testing.assert_allclose(found[1], gradients, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("options", [(4.0, 0.0, 0.05), (4.0, 1.0, 0.05), (2.0, 0.5, 0.0), (0.5, 0.0, 0.2)])
def test_asymmetric_equals_its_formula(options):
    """In numpy float64 from probabilities, as in the paper."""
    gamma_neg, gamma_pos, clip = options
    logits, labels = example_batch(5, scale=3)
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    p_m = np.maximum(p - clip, 0)
    cells = np.where(labels == 1, -((1 - p) ** gamma_pos) * np.log(p), -(p_m**gamma_neg) * np.log(1 - p_m))
    found, _ = compiled("asymmetric", gamma_neg=gamma_neg, gamma_pos=gamma_pos, clip=clip)(logits, labels)
    np.testing.assert_allclose(found, np.where(labels == -1, 0, cells).mean(-1), rtol=1e-5)


@pytest.mark.parametrize(("gamma", "alpha"), [(2.0, None), (2.0, 0.25), (1.0, 0.9), (0.0, None)])
def test_focal_equals_optax(gamma, alpha):
    logits, labels = example_batch(6, scale=3)
    cells = jax.jit(functools.partial(optax.sigmoid_focal_loss, alpha=alpha, gamma=gamma))(
        logits, np.float32(labels == 1)
    )
    expected = np.where(labels == -1, 0, cells).mean(-1)
    np.testing.assert_allclose(compiled("focal", gamma=gamma, alpha=alpha)(logits, labels)[0], expected, rtol=1e-5)


def test_softmax_cross_entropy_by_hand():
    value, gradient = single("softmax_cross_entropy", np.log([1.0, 2.0, 5.0, 99.0]), [1, 1, 0, -1])
    np.testing.assert_allclose(value, -(np.log(1 / 8) + np.log(2 / 8)) / 2, rtol=1e-6)
    np.testing.assert_allclose(gradient, [1 / 8 - 1 / 2, 2 / 8 - 1 / 2, 5 / 8, 0], rtol=1e-5)
    assert single("softmax_cross_entropy", [1.0, 2.0], [0, 0])[0] == 0


def test_weighted_cross_entropy_is_equation_9():
    logits, labels = example_batch(7)
    num_positive, num_negative = np.sum(labels == 1), np.sum(labels == 0)
    total = num_positive + num_negative + 1
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    expected = -total / (num_positive + 1) * np.sum(np.log(p), axis=-1, where=labels == 1)
    expected -= total / (num_negative + 1) * np.sum(np.log(1 - p), axis=-1, where=labels == 0)
    np.testing.assert_allclose(compiled("weighted_cross_entropy")(logits, labels)[0], expected, rtol=1e-5)


def test_weighted_cross_entropy_counts_over_all_devices():
    """Eight shards of different balance give the gradients of one device."""
    logits, labels = example_batch(8, (16, 9))
    labels[:8] = np.where(labels[:8] == 1, 0, labels[:8])
    found = []
    for count in (1, 8):
        split = sharding.split(sharding.make_mesh(jax.devices()[:count]))
        loss = jax.jit(jax.value_and_grad(lambda z, y: losses.weighted_cross_entropy(z, y).mean()), in_shardings=split)
        found.append(loss(logits, labels))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-6)
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_unknown_labels_contribute_nothing(name):
    """Whatever their logit, NaN included; nor does a label of weight 0, nor an example without known labels."""
    logits, labels = example_batch(9)
    expected, gradients = compiled(name)(logits, labels)
    assert expected[2] == 0 and not gradients[labels == -1].any() and gradients[3:].any()
    for changed in (
        (np.where(labels == -1, np.float32(50), logits), labels),
        (np.where(labels == -1, np.float32(np.nan), logits), labels),
        (logits, np.where(labels == -1, np.int8(1), labels), labels != -1),
    ):
        found = compiled(name)(*changed)
        np.testing.assert_array_equal(found[0], expected)
        np.testing.assert_array_equal(found[1], gradients)
    logits[3] = np.nan
    assert np.isnan(compiled(name)(logits, labels)[0][3])  # known labels: the trainer's guard must see it


@pytest.mark.parametrize("name", LOSSES)
def test_one_contract(name):
    """Leading axes, vmap, other rows in the batch, weights of examples, half precision."""
    logits, labels = example_batch(10)
    expected, _ = compiled(name)(logits, labels)
    assert expected.shape == (8,) and expected.dtype == np.float32
    loss = getattr(losses, name)
    if name == "weighted_cross_entropy":  # every value depends on the whole batch, all leading axes together
        folded = jax.jit(loss)(logits.reshape(2, 4, 9), labels.reshape(2, 4, 9)).reshape(8)
    else:
        folded = jax.jit(jax.vmap(loss))(logits.reshape(2, 4, 9), labels.reshape(2, 4, 9)).reshape(8)
        others = np.concatenate([logits[:5], logits[:3] * 7]), np.concatenate([labels[:5], 1 - abs(labels[:3])])
        np.testing.assert_array_equal(compiled(name)(*others)[0][:5], expected[:5])
    np.testing.assert_allclose(folded, expected, rtol=1e-6, atol=1e-6)
    if name != "lsep":  # whose weights are within the logarithm
        weights = np.arange(1.0, 9.0)[:, None]
        found, _ = compiled(name)(logits, labels, weights)
        np.testing.assert_allclose(found, expected * weights[:, 0], rtol=1e-5, atol=1e-6)
    half = logits.astype(jnp.bfloat16)
    rounded, _ = compiled(name)(half, labels)
    np.testing.assert_array_equal(rounded, compiled(name)(half.astype(np.float32), labels)[0])
    np.testing.assert_allclose(rounded, expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("name", LOSSES)
def test_extreme_logits_in_half_precision(name):
    """Logits of +-80, labels right and wrong: finite values and gradients, and the values of float32."""
    logits = np.tile(np.array([80, -80, 0], jnp.bfloat16), (8, 3))
    labels = example_batch(11)[1]
    labels[3], labels[4] = logits[3] > 0, logits[4] < 0
    values, gradients = compiled(name)(logits, labels)
    assert gradients.dtype == jnp.bfloat16 and np.isfinite(values).all()
    assert np.isfinite(gradients.astype(np.float32)).all()
    np.testing.assert_array_equal(values, compiled(name)(logits.astype(np.float32), labels)[0])


@pytest.mark.parametrize("gamma", [0.0, 0.5, 4.0])
def test_focusing_has_finite_gradients_everywhere(gamma):
    """Powers of 0 have infinite derivatives for exponents below 1; here p is exactly 0 and 1 in float32."""
    logits = np.float32([[-1e4, -200, -3, 0, 3, 200, 1e4]] * 2)
    labels = np.repeat([[0], [1]], 7, axis=1)
    for loss in (
        compiled("focal", gamma=gamma),
        compiled("asymmetric", gamma_neg=gamma, gamma_pos=gamma),
        compiled("asymmetric", gamma_neg=gamma, gamma_pos=gamma, clip=0.0),
    ):
        values, gradients = loss(logits, labels)
        assert np.isfinite(values).all() and np.isfinite(gradients).all() and (values > 0).all()


@pytest.mark.parametrize(
    "name", ["asymmetric", "focal", "hill", "lsep", "softmax_cross_entropy", "weighted_cross_entropy"]
)
def test_smooth_gradients_equal_finite_differences(name):
    """Along random directions; central differences in float32 of the value summed over the batch."""
    logits, labels = example_batch(12)
    _, gradients = compiled(name)(logits, labels)
    for direction in np.random.default_rng(14).normal(size=(5, 8, 9)).astype(np.float32):
        ends = [compiled(name)(logits + step * direction, labels)[0].sum(dtype=np.float64) for step in (0.01, -0.01)]
        np.testing.assert_allclose(np.sum(gradients * direction), (ends[0] - ends[1]) / 0.02, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("name", [*LOSSES, "rmlc of hinges"])
def test_options_come_from_the_config(name):
    """Every option of every loss can be given on the command line, and does what it does in Python."""
    options = {
        "rmlc of hinges": {"s": None},
        "asymmetric": {"gamma_neg": 1, "gamma_pos": 0.5, "clip": 0.1},
        "focal": {"gamma": 1.0, "alpha": 0.25},
        "rmlc": {"s": -0.5, "leak": 0.1, "k": 2.0, "rank": "exact"},
        "warp": {"rank": "exact"},
        "hill": {"gamma": 1.0, "margin": 0.5, "lamb": 2.0},
        "splc": {"tau": 0.65, "gamma": 1.0, "margin": 0.5},
        "partial_asymmetric": {"mode": "selective", "gamma_unknown": 4.0, "likelihood": 1, "prior": (0.1,) * 9},
    }.get(name, {})
    name = name.split()[0]
    argv = [f"--config.loss.name={name}", f"--config.loss.options={tuple(options.items())!r}"]
    config = config_lib.from_dict(config_lib.load("quickstart", argv).to_dict())
    batch = example_batch()
    from_config = jax.make_jaxpr(lambda z, y: linear.loss_fn({"logits": z}, y, **config.loss)[0])(*batch)
    assert str(from_config) == str(jax.make_jaxpr(functools.partial(getattr(losses, name), **options))(*batch))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("focal", (("gama", 1.0),), "focal has no option 'gama' .did you mean 'gamma'.*gamma, alpha"),
        ("lsep", (("key", 1),), "its options: none"),
        ("warp", (("key", 1),), "no option 'key'"),
        ("rmlc", (("s", "low"),), "s = 'low' of rmlc is not a number"),
        ("rmlc", (("k", None),), "k = None of rmlc is not a number"),
        ("rmlc", (("rank", 1),), "rank = 1 of rmlc is not text"),
        ("rmlc", (("rank", "sampled"),), "needs a key"),
        ("warp", (("rank", "exct"),), "did you mean 'exact'"),
        ("rmlc", (("s", 0.75),), r"s = 0.75 is not in \(-1, 0\]"),
        ("rmlc", (("k", -1.0),), "k = -1.0"),
        ("focal", (("alpha", 2.0),), "alpha = 2.0"),
        ("focal", (("gamma", -1.0),), "gamma = -1.0"),
        ("asymmetric", (("clip", 1.0),), "clip = 1.0"),
        ("focal", ("gamma", 1.0), "not a tuple of"),
        ("rmcl", (), "did you mean 'rmlc'"),
        ("hill", (("lamb", 0.5),), "lamb = 0.5"),
        ("splc", (("tau", 0.0),), r"tau = 0.0 is not in \(0, 1\]"),
        ("partial_asymmetric", (("mode", "negativ"),), "did you mean 'negative'"),
        ("partial_asymmetric", (("likelihood", 1.5),), "likelihood = 1.5"),
        ("partial_asymmetric", (("prior", (0.1, 0.2)),), "of the 9 classes' length"),
        ("partial_asymmetric", (("prior", "file.npz"),), "is not a tuple of numbers"),
        ("partial_asymmetric", (("prior", (True,) * 9),), "is not a tuple of numbers"),
    ],
)
def test_option_mistakes(name, options, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(lambda z, y: linear.loss_fn({"logits": z}, y, name=name, options=options), *example_batch())


def test_a_run_from_before_the_options_has_none():
    values = config_lib.load("quickstart").to_dict()
    del values["loss"]["options"]
    assert config_lib.from_dict(values).loss.options == ()


@pytest.mark.parametrize("name", LOSSES)
def test_shapes_must_agree(name):
    with pytest.raises(AssertionError):
        getattr(losses, name)(jnp.zeros((2, 3)), jnp.zeros((2, 1), jnp.int8))


@pytest.mark.parametrize("name", LOSSES)
def test_nan_logits_are_not_hidden_unless_their_label_is_unknown(name):
    """A NaN reaches the loss, where the trainer's guard stops the run; labels that are not 1 or 0 count as unknown."""
    loss = jax.jit(getattr(losses, name))
    logits = np.array([[0.3, np.nan, -1.0, 0.2]], np.float32)
    assert np.isnan(loss(logits, np.array([[1, 0, 0, 1]], np.int8)))
    assert np.isnan(loss(logits, np.array([[1, 1, 0, 1]], np.int8)))
    assert np.isfinite(loss(logits, np.array([[1, -1, 0, 1]], np.int8)))
    unknown, outside = (loss(logits, np.array([[1, -1, value, 1]], np.int8)) for value in (-1, 7))
    np.testing.assert_array_equal(unknown, outside)
