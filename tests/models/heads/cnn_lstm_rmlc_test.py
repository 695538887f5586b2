"""CNN-LSTM-RMLC against numpy transcriptions of its algorithms, counts in the paper, and whole runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmlic import losses
from jaxmlic.errors import UserError
from jaxmlic.models import trunks
from jaxmlic.models.heads import linear
from jaxmlic.models.heads.cnn_lstm_rmlc import _shared, path, plain, positions
from jaxmlic.models.layers import pixels
from jaxmlic.models.layers.peephole_lstm import PeepholeLSTM

CIFAR = {"units": (64, 32, 16), "pool": "flatten", "hidden": 20}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def drawn(tree, seed=0, scale=0.5):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * scale, leaf.dtype), tree)


def algorithm_1(params, x, g):
    """Outputs [T, H] for x [T, D]: the algorithm's own lines."""
    size = params["peepholes"].shape[1]
    w, r = (np.split(np.asarray(m, np.float64), 4, 1) for m in (params["inputs"]["kernel"], params["recurrent"]))
    b, p = np.split(np.asarray(params["inputs"]["bias"], np.float64), 4), np.asarray(params["peepholes"], np.float64)
    y, ce, outputs = np.zeros(size), np.zeros(size), []
    for fv in x:
        z = g(fv @ w[0] + y @ r[0] + b[0])
        i = sigmoid(fv @ w[1] + y @ r[1] + p[0] * ce + b[1])
        f = sigmoid(fv @ w[2] + y @ r[2] + p[1] * ce + b[2])
        ce = z * i + ce * f
        o = sigmoid(fv @ w[3] + y @ r[3] + p[2] * ce + b[3])
        y = g(ce) * o
        outputs.append(y)
    return np.array(outputs)


@pytest.mark.parametrize(("activation", "g"), [("tanh", np.tanh), ("relu", lambda x: np.maximum(x, 0))])
def test_the_lstm_is_algorithm_1(activation, g):
    x = np.random.default_rng(1).normal(size=(3, 6, 5)).astype(np.float32)
    lstm = PeepholeLSTM(4, activation)
    params = drawn(lstm.init(jax.random.key(0), x)["params"])
    outputs = lstm.apply({"params": params}, x)
    for image in range(3):
        np.testing.assert_allclose(outputs[image], algorithm_1(params, x[image], g), rtol=1e-4, atol=1e-5)
    carry = lstm.apply({"params": params}, 3, method="initial_carry")
    for t in range(6):
        carry, y = lstm.apply({"params": params}, carry, x[:, t], method="step")
        np.testing.assert_allclose(y, outputs[:, t], rtol=1e-5, atol=1e-6)


def test_a_fresh_forget_gate_is_open():
    bias = PeepholeLSTM(3).init(jax.random.key(0), jnp.zeros((1, 1, 2)))["params"]["inputs"]["bias"]
    np.testing.assert_array_equal(bias.reshape(4, 3)[2], 1)
    assert bias.sum() == 3


def test_average_of_a_dense_layer_at_each_step():
    values = np.random.default_rng(2).normal(size=(2, 2, 3, 5)).astype(np.float32)
    model = positions.Model(4, trunk="small_cnn", units=(6, 3))
    features = trunks.StoredMaps(jnp.asarray(values))
    params = drawn(jax.jit(model.init)(jax.random.key(0), features)["params"])
    outputs = jax.jit(model.apply)({"params": params}, features)
    dense = {key: np.asarray(value, np.float64) for key, value in params["classifier"].items()}
    for image in range(2):
        y = algorithm_1(params["lstm0"], values[image].reshape(6, 5), np.tanh)  # row by row
        y = algorithm_1(params["lstm1"], y, np.tanh)
        v = y @ dense["kernel"] + dense["bias"]
        np.testing.assert_allclose(outputs["step_logits"][image], v, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(outputs["logits"][image], v.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(outputs["regulariser"], (dense["kernel"] ** 2).sum() / 2, rtol=1e-5)
    highest = positions.Model(4, trunk="small_cnn", units=(6, 3), pool="max").apply({"params": params}, features)
    np.testing.assert_allclose(highest["logits"], outputs["step_logits"].max(1), rtol=1e-6)


def test_the_cifar_network_has_fourteen_layers_of_the_papers_sizes():
    """F14 has the paper's 210 parameters; F13 reads 16 x 16 here, where the paper's 320 fits no 4 x 4 grid."""
    model = positions.Model(10, **CIFAR)
    images = jnp.zeros((2, 32, 32, 3), jnp.uint8)
    outputs, variables = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), images))
    sizes = {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in variables["params"].items()}

    def lstm(d, h):
        return 4 * h * (d + h + 1) + 3 * h

    assert sizes == {
        "trunk": 640 + 36928 + 128 + 73856 + 147584 + 256 + 295168 + 295040 + 256,
        "lstm0": lstm(128, 64),
        "lstm1": lstm(64, 32),
        "lstm2": lstm(32, 16),
        "hidden": 256 * 20 + 20,
        "classifier": 210,
    }
    assert len(variables["params"]["trunk"]) + 5 == 14 and outputs["logits"].shape == (2, 10)


@pytest.mark.parametrize("pool", ["avg", "max"])
def test_without_lstm_it_is_the_linear_head(pool):
    values = np.random.default_rng(3).normal(size=(2, 3, 3, 5)).astype(np.float32)
    features = trunks.StoredMaps(jnp.asarray(values))
    model = plain.Model(4, trunk="small_cnn", pool=pool)
    params = drawn(jax.jit(model.init)(jax.random.key(0), features)["params"])
    assert set(params) == {"classifier"}
    wanted = linear.Model(4, trunk="small_cnn", pool=pool).apply({"params": params}, features)
    np.testing.assert_allclose(model.apply({"params": params}, features)["logits"], wanted["logits"], rtol=1e-5)


def path_model(**fields):
    return path.Model(4, trunk="small_cnn", units=6, embedding=5, max_length=3, **{"beam_size": 64, **fields})


@pytest.fixture(scope="module")
def path_run():
    features = trunks.StoredMaps(jnp.asarray(np.random.default_rng(4).normal(size=(3, 2, 2, 7)), jnp.float32))
    model = path_model()
    fresh = jax.jit(model.init)(jax.random.key(0), features)
    return (
        model,
        {"params": drawn(fresh["params"], scale=0.8), "constants": {"order": jnp.array([2, 0, 3, 1])}},
        features,
    )


def test_step_labels_by_hand():
    labels = jnp.array([[1, 0, 1, -1], [0, 0, 0, 0], [-1, -1, -1, -1], [1, 1, 1, 1]], jnp.int8)
    paths = jnp.array([[2, 0, 4], [4, 4, 4], [4, 4, 4], [3, 2, 1]])
    wanted = [
        [[1, 0, 1, -1, 0], [1, 0, -1, -1, 0], [-1, 0, -1, -1, 1], [-1] * 5],
        [[0, 0, 0, 0, 1], [-1] * 5, [-1] * 5, [-1] * 5],
        [[-1] * 5] * 4,
        [[1, 1, 1, 1, 0], [1, 1, 1, -1, 0], [1, 1, -1, -1, 0], [1, -1, -1, -1, 0]],  # cut: no END yet
    ]
    np.testing.assert_array_equal(path.step_labels(labels, paths), wanted)


def test_training_and_decoding_see_the_same_scores(path_run):
    model, variables, features = path_run
    labels = jnp.array([[1, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0]], jnp.int8)
    outputs = jax.jit(model.apply)(variables, features, labels=labels)
    label_path, own = path.make_path(model), {"params": variables["params"]["path"]}
    truth = [[0, 3, 1], [2], []]  # by the order 2, 0, 3, 1
    for image, labels_so_far in enumerate(truth):
        carry, used = label_path.apply(own, method="initial_carry"), jnp.zeros(5, bool)
        for t, previous in enumerate([-1, *labels_so_far]):
            used = used | (jnp.arange(5) == previous)
            carry, log_probs = label_path.apply(
                own, carry, used, jnp.int32(previous), outputs["image"][image], method="step"
            )
            scores = np.where(used, -np.inf, outputs["scale"] * outputs["step_logits"][image, t])
            np.testing.assert_allclose(log_probs, scores - np.log(np.exp(scores).sum()), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(outputs["logits"], outputs["step_logits"][:, 0, :4], rtol=1e-5)


def test_beams_equal_all_paths(path_run):
    """A beam of 64 holds every prefix of four labels: the best path and the marginals are those of an enumeration."""
    model, variables, features = path_run
    prediction = jax.jit(lambda f: path.predict_fn(model, variables, f))(features)
    image_vectors = model.apply(variables, features)["image"]
    label_path, own = path.make_path(model), {"params": variables["params"]["path"]}
    step = jax.jit(lambda *state: label_path.apply(own, *state, method="step"))
    for image in range(3):
        found = {}

        def extend(prefix, carry, log_prob, image=image, found=found):
            used = jnp.array([label in prefix for label in range(5)])
            carry, log_probs = step(carry, used, jnp.int32(prefix[-1] if prefix else -1), image_vectors[image])
            found[prefix] = log_prob + float(log_probs[4])
            for label in range(4):
                if len(prefix) < 3 and label not in prefix:
                    extend((*prefix, label), carry, log_prob + float(log_probs[label]))

        extend((), label_path.apply(own, method="initial_carry"), 0.0)
        best = max(found, key=found.get)
        assert prediction.path[image].tolist() == [*best, *[4] * (3 - len(best))]
        np.testing.assert_array_equal(prediction.chosen[image], [label in best for label in range(4)])
        total = sum(np.exp(p) for p in found.values())
        marginals = [sum(np.exp(p) for path, p in found.items() if label in path) / total for label in range(4)]
        np.testing.assert_allclose(sigmoid(np.asarray(prediction.scores[image])), marginals, rtol=1e-3)


def test_the_scale_alone_learns_from_the_softmax(path_run):
    """Far beyond the ramp nothing but the scale has a gradient; within, the loss is the mean over the path's steps."""
    model, variables, features = path_run
    labels = jnp.array([[1, 1, 0, 1], [0, 0, 1, 0], [0, -1, 0, 0]], jnp.int8)
    outputs = jax.jit(model.apply)(variables, features, labels=labels)

    def loss(scores, scale):
        given = outputs | {"step_logits": scores, "scale": scale}
        return jnp.sum(path.loss_fn(given, labels, name="rmlc")[0])

    far = jnp.where(outputs["step_labels"] == 1, -9.0, 9.0)
    of_scores, of_scale = jax.jit(jax.grad(loss, argnums=(0, 1)))(far, jnp.float32(0.5))
    np.testing.assert_array_equal(of_scores, 0)
    assert of_scale > 1  # all wrong: less sure would be better
    per_example, scalars = path.loss_fn(outputs, labels, name="binary_cross_entropy")
    right, scores = outputs["step_labels"], outputs["step_logits"]
    per_step = losses.binary_cross_entropy(scores, right)
    per_step += losses.softmax_cross_entropy(scalars["scale"] * scores, right)
    wanted = [
        np.mean([v for v, known in zip(*rows, strict=True) if known.any()])
        for rows in zip(np.asarray(per_step), np.asarray(right >= 0), strict=True)
    ]
    np.testing.assert_allclose(per_example, wanted, rtol=1e-5)


def test_padding_has_no_loss(path_run):
    model, variables, features = path_run
    labels = -jnp.ones((3, 4), jnp.int8)
    outputs = jax.jit(model.apply)(variables, features, labels=labels)
    np.testing.assert_array_equal(path.loss_fn(outputs, labels, name="rmlc")[0], 0)


def test_regulariser_is_lambda_times_half_the_trace():
    features = trunks.StoredMaps(jnp.ones((2, 1, 1, 5)))
    model = plain.Model(4, trunk="small_cnn", dropout=0.0)
    params = drawn(jax.jit(model.init)(jax.random.key(0), features)["params"])
    labels = jnp.array([[1, 0, 0, 1], [0, 0, 1, -1]], jnp.int8)

    def mean(params, regulariser):
        outputs = model.apply({"params": params}, features, train=True, rngs={"dropout": jax.random.key(0)})
        name = "binary_cross_entropy"
        return jnp.mean(plain.loss_fn(outputs, labels, name=name, regulariser=regulariser)[0])

    grad = jax.jit(jax.grad(mean), static_argnums=1)
    with_it, without = (grad(params, value)["classifier"] for value in (0.3, 0.0))
    kernel = params["classifier"]["kernel"]
    np.testing.assert_allclose(with_it["kernel"] - without["kernel"], 0.3 * kernel, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(with_it["bias"], without["bias"], atol=1e-6)
    np.testing.assert_allclose(mean(params, 0.3) - mean(params, 0.0), 0.15 * np.trace(kernel.T @ kernel), rtol=1e-4)


def test_grey_and_edges_against_numpy():
    images = np.random.default_rng(5).integers(0, 256, (2, 5, 6, 3)).astype(np.uint8)
    luma = images @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(pixels.grey(images), np.repeat(luma[..., None], 3, -1), rtol=1e-5)
    wanted = np.zeros(images.shape)
    for y in range(5):
        for x in range(6):
            near = [(max(y - 1, 0), x), (min(y + 1, 4), x), (y, max(x - 1, 0)), (y, min(x + 1, 5))]
            centre = images[:, y, x].astype(float)
            wanted[:, y, x] = centre - 0.7 * (sum(images[:, i, j].astype(float) for i, j in near) - 4 * centre)
    np.testing.assert_allclose(pixels.enhance_edges(images, 0.7), np.clip(wanted, 0, 255), rtol=1e-4, atol=1e-3)
    flat = jnp.full((1, 4, 4, 3), 200, jnp.uint8)
    np.testing.assert_array_equal(pixels.enhance_edges(flat, 3.0), flat)
    before = pixels.enhance_edges(pixels.grey(images), 0.7)
    np.testing.assert_array_equal(_shared.prepare(images, True, 0.7), before)


def test_algorithm_2_network_has_leaky_units_and_wider_kernels():
    module, fields = trunks.get("cifar14_algorithm2")
    x = jnp.asarray(np.random.default_rng(6).normal(size=(1, 8, 8, 1)), jnp.float32)
    init = jax.jit(lambda: module.Trunk(**fields).init_with_output(jax.random.key(0), x, False))
    (_, stages), variables = init()
    assert variables["params"]["C1"]["kernel"].shape == (5, 5, 1, 64)
    negative = np.asarray(stages["C1"])[np.asarray(stages["C1"]) < 0]
    kernel = variables["params"]["C1"]["kernel"]
    plain = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    np.testing.assert_allclose(np.sort(negative), np.sort(0.01 * np.asarray(plain)[np.asarray(plain) < 0]), rtol=1e-3)


@pytest.mark.parametrize(
    ("head", "fields", "message"),
    [
        (positions, {"activation": "gelu"}, "known: tanh, relu"),
        (positions, {"pool": "avg_max"}, "known: avg, max, flatten"),
        (positions, {"units": ()}, r"units = \(\)"),
        (positions, {"units": (4, 0)}, "units"),
        (positions, {"edges": -1.0}, "edges"),
        (plain, {"pool": "mean"}, "known: avg, max, avg_unit, avg_max, flatten"),
        (plain, {"hidden": -1}, "hidden = -1; it is at least 0"),
        (path, {"pool": "flatten"}, "known: avg, max, avg_unit, avg_max"),
        (path, {"units": 0}, "units = 0; it is at least 1"),
        (path, {"beam_size": 0}, "beam_size = 0; it is at least 1"),
        (path, {"order": "random_per_batch"}, "known: frequent_first"),
    ],
)
def test_model_mistakes(head, fields, message):
    model = head.Model(3, **({"trunk": "small_cnn"} | fields))
    with pytest.raises(UserError, match=message):
        jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3))))


@pytest.mark.parametrize(
    ("head", "fields", "message"), [(positions, {}, "features.store='map'"), (plain, {"grey": True}, "stored ones")]
)
def test_features_that_do_not_fit(head, fields, message):
    with pytest.raises(UserError, match=message):
        head.Model(3, **fields).init(jax.random.key(0), trunks.StoredMaps(jnp.zeros((1, 1, 1, 8))))


def test_loss_mistakes():
    outputs = {"logits": jnp.zeros((1, 3)), "regulariser": jnp.float32(0)}
    labels = jnp.zeros((1, 3), jnp.int8)
    for fields, message in (
        ({"name": "rmcl"}, "did you mean 'rmlc'"),
        ({"name": "rmlc", "options": (("s", 0.75),)}, "s = 0.75"),
        ({"name": "rmlc", "regulariser": -1.0}, "regulariser = -1.0"),
    ):
        with pytest.raises(UserError, match=message):
            plain.loss_fn(outputs, labels, **fields)
