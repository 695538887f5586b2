"""CNN-LSTM-RMLC against numpy transcriptions of its algorithms, counts in the paper, and whole runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config

from jaxmlic import config as config_lib
from jaxmlic import losses, sharding
from jaxmlic.cli import main as cli
from jaxmlic.data import datasets
from jaxmlic.errors import UserError
from jaxmlic.experiments import runs
from jaxmlic.models import trunks
from jaxmlic.models.heads import cnn_lstm_rmlc, linear
from jaxmlic.models.layers import pixels
from jaxmlic.models.layers.peephole_lstm import PeepholeLSTM
from jaxmlic.models.trunks import pretrained
from jaxmlic.training import loop

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
    model = cnn_lstm_rmlc.Model(4, trunk="small_cnn", units=(6, 3))
    features = trunks.Features(jnp.asarray(values))
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
    highest = cnn_lstm_rmlc.Model(4, trunk="small_cnn", units=(6, 3), pool="max").apply({"params": params}, features)
    np.testing.assert_allclose(highest["logits"], outputs["step_logits"].max(1), rtol=1e-6)


def test_the_cifar_network_has_fourteen_layers_of_the_papers_sizes():
    """F14 has the paper's 210 parameters; F13 reads 16 x 16 here, where the paper's 320 fits no 4 x 4 grid."""
    model = cnn_lstm_rmlc.Model(10, **CIFAR)
    images = jnp.zeros((2, 32, 32, 3), jnp.uint8)
    outputs, variables = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), images))
    sizes = {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in variables["params"].items()}
    lstm = lambda d, h: 4 * h * (d + h + 1) + 3 * h  # noqa: E731
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
    features = trunks.Features(jnp.asarray(values))
    model = cnn_lstm_rmlc.Model(4, trunk="small_cnn", recurrent="none", pool=pool)
    params = drawn(jax.jit(model.init)(jax.random.key(0), features)["params"])
    assert set(params) == {"classifier"}
    wanted = linear.Model(4, trunk="small_cnn", pool=pool).apply({"params": params}, features)
    np.testing.assert_allclose(model.apply({"params": params}, features)["logits"], wanted["logits"], rtol=1e-5)


def path_model(**fields):
    return cnn_lstm_rmlc.Model(
        4, trunk="small_cnn", recurrent="path", units=(6,), embedding=5, max_length=3, **{"beam_size": 64, **fields}
    )


@pytest.fixture(scope="module")
def path_run():
    features = trunks.Features(jnp.asarray(np.random.default_rng(4).normal(size=(3, 2, 2, 7)), jnp.float32))
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
    np.testing.assert_array_equal(cnn_lstm_rmlc.step_labels(labels, paths), wanted)


def test_training_and_decoding_see_the_same_scores(path_run):
    model, variables, features = path_run
    labels = jnp.array([[1, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0]], jnp.int8)
    outputs = jax.jit(model.apply)(variables, features, labels=labels)
    path, own = cnn_lstm_rmlc.make_path(model), {"params": variables["params"]["path"]}
    truth = [[0, 3, 1], [2], []]  # by the order 2, 0, 3, 1
    for image, labels_so_far in enumerate(truth):
        carry, used = path.apply(own, method="initial_carry"), jnp.zeros(5, bool)
        for t, previous in enumerate([-1, *labels_so_far]):
            used = used | (jnp.arange(5) == previous)
            carry, log_probs = path.apply(own, carry, used, jnp.int32(previous), outputs["image"][image], method="step")
            scores = np.where(used, -np.inf, outputs["scale"] * outputs["step_logits"][image, t])
            np.testing.assert_allclose(log_probs, scores - np.log(np.exp(scores).sum()), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(outputs["logits"], outputs["step_logits"][:, 0, :4], rtol=1e-5)


def test_beams_equal_all_paths(path_run):
    """A beam of 64 holds every prefix of four labels: the best path and the marginals are those of an enumeration."""
    model, variables, features = path_run
    prediction = jax.jit(lambda f: cnn_lstm_rmlc.predict_fn(model, variables, f))(features)
    image_vectors = model.apply(variables, features)["image"]
    path, own = cnn_lstm_rmlc.make_path(model), {"params": variables["params"]["path"]}
    step = jax.jit(lambda *state: path.apply(own, *state, method="step"))
    for image in range(3):
        found = {}

        def extend(prefix, carry, log_prob, image=image, found=found):
            used = jnp.array([label in prefix for label in range(5)])
            carry, log_probs = step(carry, used, jnp.int32(prefix[-1] if prefix else -1), image_vectors[image])
            found[prefix] = log_prob + float(log_probs[4])
            for label in range(4):
                if len(prefix) < 3 and label not in prefix:
                    extend((*prefix, label), carry, log_prob + float(log_probs[label]))

        extend((), path.apply(own, method="initial_carry"), 0.0)
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
        return jnp.sum(cnn_lstm_rmlc.loss_fn(given, labels, name="rmlc")[0])

    far = jnp.where(outputs["step_labels"] == 1, -9.0, 9.0)
    of_scores, of_scale = jax.jit(jax.grad(loss, argnums=(0, 1)))(far, jnp.float32(0.5))
    np.testing.assert_array_equal(of_scores, 0)
    assert of_scale > 1  # all wrong: less sure would be better
    per_example, scalars = cnn_lstm_rmlc.loss_fn(outputs, labels, name="binary_cross_entropy")
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
    np.testing.assert_array_equal(cnn_lstm_rmlc.loss_fn(outputs, labels, name="rmlc")[0], 0)


def test_regulariser_is_lambda_times_half_the_trace():
    features = trunks.Features(jnp.ones((2, 1, 1, 5)))
    model = cnn_lstm_rmlc.Model(4, trunk="small_cnn", recurrent="none", dropout=0.0)
    params = drawn(jax.jit(model.init)(jax.random.key(0), features)["params"])
    labels = jnp.array([[1, 0, 0, 1], [0, 0, 1, -1]], jnp.int8)

    def mean(params, regulariser):
        outputs = model.apply({"params": params}, features, train=True, rngs={"dropout": jax.random.key(0)})
        name = "binary_cross_entropy"
        return jnp.mean(cnn_lstm_rmlc.loss_fn(outputs, labels, name=name, regulariser=regulariser)[0])

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
    model = cnn_lstm_rmlc.Model(3, trunk="small_cnn", recurrent="none", grey=True, edges=0.7)
    before = pixels.enhance_edges(pixels.grey(images), 0.7)
    np.testing.assert_array_equal(model._prepare(images), before)


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


FORMS = {
    "positions": {"units": (8, 4)},
    "path": {"units": (8,), "embedding": 6, "max_length": 3, "beam_size": 2},
    "none": {},
}


def run_config(data_dir, recurrent, **overrides):
    values = config_lib.flatten(tiny_config(data_dir))
    config = config_lib.load("cnn_lstm_rmlc:smoke")
    values = {key: value for key, value in values.items() if key.split(".")[0] in ("data", "train")}
    model = {
        "trunk": "small_cnn",
        "recurrent": recurrent,
        "pool": "avg",
        "hidden": 0,
        "dropout": 0.1,
        **FORMS[recurrent],
    }
    more = {"optim.lr": 0.01, "pretrained": "", "eval.metric": "mAP", "optim.groups": (("trunk/.*", None), (".*", 1.0))}
    values |= {f"model.{key}": value for key, value in model.items()} | more | overrides
    return config_lib.override(config, values)


@pytest.mark.parametrize("recurrent", ["positions", "path"])  # without LSTM: feature_file_test
def test_train_evaluate_predict(recurrent, data_dir, tmp_path, capsys):
    config = run_config(data_dir, recurrent, **{"train.duration": "6 steps", "train.eval_every": "6 steps"})
    trainer = loop.Trainer(config, str(tmp_path / "run"), sharding.make_mesh(jax.devices()[:1]))
    assert trainer.fit().finished
    assert trainer.train_step._cache_size() == 1
    protocol = "path" if recurrent == "path" else "all_point"
    assert 0 < runs.evaluate(str(tmp_path / "run"), protocol=protocol)["mAP"] <= 1
    (tmp_path / "a.png").write_bytes(datasets.load("tiny", data_dir).source("test")[0]["image"])
    capsys.readouterr()
    assert cli.run(["predict", f"--workdir={tmp_path / 'run'}", str(tmp_path / "a.png")]) == 0
    assert ("the decoder chose" in capsys.readouterr().out) == (recurrent == "path")


def test_the_lstm_reads_stored_feature_maps(data_dir, tmp_path, monkeypatch):
    """Positions of a cached map are its time steps, and the LSTM learns from them."""

    def load(path, trunk):
        module, fields = trunks.get(trunk)
        return jax.jit(lambda: module.Trunk(**fields).init(jax.random.key(7), jnp.zeros((1, 16, 16, 3)), False))()

    monkeypatch.setattr(pretrained, "load", load)
    (tmp_path / "w.npz").write_bytes(b"stands for the weights of seed 7")
    stored = {"pretrained": str(tmp_path / "w.npz"), "data.source": "features", "features.store": "map"}
    config = run_config(data_dir, "positions", **stored, **{"data.resize": 0})
    runs.store_features(config)
    trainer = loop.Trainer(config, "unused", sharding.make_mesh(jax.devices()[:1]))
    batch = trainer.readers()[0](np.arange(8))
    assert batch["features"].shape == (8, 2, 2, 2, 96)  # two views of 2 x 2 positions
    before = trainer.initial_state()
    old = jax.device_get(before.params["lstm0"]["recurrent"])
    state, scalars = trainer.train_step(before, sharding.put(batch, trainer.mesh))
    assert np.isfinite(scalars["loss"]) and np.abs(state.params["lstm0"]["recurrent"] - old).max() > 1e-3


@pytest.mark.parametrize("recurrent", ["positions", pytest.param("path", marks=pytest.mark.slow)])
def test_one_device_equals_eight(recurrent, data_dir):
    config = run_config(data_dir, recurrent, **{"model.dropout": 0.0, "optim.name": "sgd"})
    trainers = [loop.Trainer(config, "unused", sharding.make_mesh(jax.devices()[:n])) for n in (1, 8)]
    batch = trainers[0].readers()[0](np.arange(8))
    ends = []
    for trainer in trainers:
        state, scalars = trainer.train_step(trainer.initial_state(), sharding.put(batch, trainer.mesh))
        ends.append((jax.device_get(state.params), float(scalars["grad_norm"])))
    assert ends[0][1] == pytest.approx(ends[1][1], rel=1e-4) and ends[0][1] > 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), ends[0][0], ends[1][0])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"recurrent": "position"}, "did you mean 'positions'"),
        ({"activation": "gelu"}, "tanh, relu"),
        ({"pool": "avg_max"}, "avg, max, flatten"),
        ({"recurrent": "path", "pool": "flatten"}, "with recurrent = 'path' it is one of avg, max\n"),
        ({"recurrent": "path", "units": (4, 4)}, "one LSTM"),
        ({"units": ()}, r"units = \(\)"),
        ({"units": (4, 0)}, "units"),
        ({"recurrent": "path", "hidden": 3}, "no hidden layer"),
        ({"recurrent": "path", "beam_size": 0}, "1 or more"),
        ({"order": "random_per_batch"}, "frequent_first"),
        ({"edges": -1.0}, "edges"),
    ],
)
def test_model_mistakes(fields, message):
    model = cnn_lstm_rmlc.Model(3, **({"trunk": "small_cnn"} | fields))
    with pytest.raises(UserError, match=message):
        jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3))))


@pytest.mark.parametrize(
    ("fields", "message"), [({}, "features.store='map'"), ({"recurrent": "none", "grey": True}, "stored ones")]
)
def test_features_that_do_not_fit(fields, message):
    with pytest.raises(UserError, match=message):
        cnn_lstm_rmlc.Model(3, **fields).init(jax.random.key(0), trunks.Features(jnp.zeros((1, 1, 1, 8))))


def test_loss_mistakes():
    outputs = {"logits": jnp.zeros((1, 3)), "regulariser": jnp.float32(0)}
    labels = jnp.zeros((1, 3), jnp.int8)
    for fields, message in (
        ({"name": "rmcl"}, "did you mean 'rmlc'"),
        ({"name": "rmlc", "options": (("s", 0.75),)}, "s = 0.75"),
        ({"name": "rmlc", "regulariser": -1.0}, "regulariser = -1.0"),
    ):
        with pytest.raises(UserError, match=message):
            cnn_lstm_rmlc.loss_fn(outputs, labels, **fields)
