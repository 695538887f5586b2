"""The Multi-order RNN head against numpy loops over its equations, and its two stages as runs."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config

from jaxmlic import config as config_lib
from jaxmlic import sharding
from jaxmlic.cli import main as cli
from jaxmlic.data import datasets
from jaxmlic.errors import UserError
from jaxmlic.experiments import runs
from jaxmlic.models import trunks
from jaxmlic.models.heads import contract, multi_order_rnn
from jaxmlic.reports import trace as trace_report
from jaxmlic.run.steps import describe
from jaxmlic.training import loop, restore

CLASSES, FEATURES, BATCH = 4, 96, 6
SMALL = {"embedding_size": 5, "recurrent_size": 6, "num_steps": 4}
LABELS = np.array([[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1], [0, -1, 0, 1], [-1, -1, -1, -1], [0, 1, 0, 0]], np.int8)
RELEASED = {"mask": "all", "output": "released"}


def features_of(count=BATCH, seed=0):
    rng = np.random.default_rng(seed)
    return trunks.StoredMaps(rng.normal(size=(count, 1, 1, FEATURES)).astype(np.float32))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@functools.cache
def model_and_variables(num_labels=CLASSES, **fields):
    model, rng = multi_order_rnn.Model(num_labels, **(SMALL | fields)), np.random.default_rng(2)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3))))

    def draw(path, x):  # large kernels and small biases, so that what is read differs between images and steps
        scale = 0.1 if "bias" in path[-1].key else 4 * x.shape[0] ** -0.5
        return (scale * rng.normal(size=x.shape)).astype(x.dtype)

    variables = {"params": jax.tree_util.tree_map_with_path(draw, shapes["params"])}
    if "batch_stats" in shapes:
        stats = jax.tree_util.tree_map_with_path(draw, shapes["batch_stats"])
        variables["batch_stats"] = jax.tree.map(lambda x: np.abs(x) + 0.5, stats)
    return model, variables


def run(model, variables, inputs, labels=None, train=False):
    """Outputs, on the host."""
    apply = jax.jit(lambda v, x, y: model.apply(v, x, train, y, mutable=["batch_stats"] if train else []))
    return jax.device_get(apply(variables, inputs, labels)[0])


def by_hand(variables, inputs, labels, *, mask, output, num_steps, train):
    """Eqs. 1 to 6 image by image in float64: step logits [B, T, C], labels read next [B, T], masks [B, T, C]."""
    p = jax.tree.map(lambda x: np.array(x, np.float64), variables["params"])
    cnn = inputs.feature_map[:, 0, 0].astype(np.float64) @ p["classifier"]["kernel"] + p["classifier"]["bias"]
    s = sigmoid(cnn)
    if output != "paper":
        stats = variables["batch_stats"]["score_norm"]
        mean, var = (s.mean(axis=0), s.var(axis=0)) if train else (stats["mean"], stats["var"])
        s = (s - mean) / np.sqrt(var + 1e-3) * p["score_norm"]["scale"] + p["score_norm"]["bias"]
    found = []
    for b in range(len(s)):
        h = np.tanh(s[b] @ p["initial_hidden"]["kernel"] + p["initial_hidden"]["bias"])
        c = np.tanh(s[b] @ p["initial_cell"]["kernel"] + p["initial_cell"]["bias"])
        x = p["label_embedding"][CLASSES]  # START
        logits, read, masks, last = [], [], [], None
        for _ in range(num_steps):
            gates = x @ p["cell"]["input_kernel"] + h @ p["cell"]["recurrent_kernel"] + p["cell"]["bias"]
            i, f, g, o = np.split(gates, 4)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
            if output == "paper":
                y = h @ p["output_kernel"] + p["output_bias"][0]
            else:
                added = x if output == "released_prev2out" else 0  # the published command has --prev2out=False
                y = np.tanh(h @ p["projection_kernel"] + p["projection_bias"][0] + added)
                y = y @ p["output_kernel"] + p["output_bias"][0]
            masked = np.zeros(CLASSES, bool)
            if mask == "last" and last is not None:
                masked[last] = True
            elif mask != "last":
                masked[read] = True
            allowed = list(range(CLASSES))
            if mask == "pool" or (mask == "all" and labels is None):
                allowed = [k for k in allowed if k not in read]
            if mask == "pool" and labels is not None:
                allowed = [k for k in allowed if labels[b, k] == 1] or allowed
            last = max(allowed, key=lambda k: y[k]) if allowed else 0
            logits.append(y)
            masks.append(masked)
            read.append(last)
            x = p["label_embedding"][last]
        found.append((logits, read, masks))
    return [np.array(part) for part in zip(*found, strict=True)], cnn


@pytest.mark.parametrize("mask", multi_order_rnn.MASKS)
@pytest.mark.parametrize("output", multi_order_rnn.OUTPUTS)
@pytest.mark.parametrize("train", [True, False])
def test_steps_against_a_loop(mask, output, train):
    model, variables = model_and_variables(mask=mask, output=output)
    inputs, labels = features_of(), LABELS if train else None
    outputs = run(model, variables, inputs, labels, train)
    (logits, read, masks), cnn = by_hand(variables, inputs, labels, mask=mask, output=output, num_steps=4, train=train)
    np.testing.assert_allclose(outputs["step_logits"], logits, atol=1e-4)
    np.testing.assert_array_equal(outputs["read_next"], read)
    np.testing.assert_array_equal(outputs["masked"], masks)
    np.testing.assert_allclose(outputs["cnn_logits"], cnn, atol=1e-4)
    np.testing.assert_allclose(outputs["logits"], logits.max(axis=1), atol=1e-4)
    if mask == "last":  # what the loop does not say: the feedback changes, or nothing was tested
        assert len({tuple(path) for path in read}) > 1


@pytest.mark.parametrize("step_loss", multi_order_rnn.STEP_LOSSES)
@pytest.mark.parametrize("cnn_weight", [0.0, 0.7])
def test_loss_against_a_loop(step_loss, cnn_weight):
    """Eq. 7 cell by cell; "released": step t counts while t < the number of labels."""
    rng = np.random.default_rng(0)
    logits, cnn = rng.normal(size=(BATCH, 4, CLASSES)), rng.normal(size=(BATCH, CLASSES))
    masked = rng.random((BATCH, 4, CLASSES)) < 0.3
    outputs = {"step_logits": jnp.float32(logits), "masked": masked, "cnn_logits": jnp.float32(cnn)}
    losses, logged = multi_order_rnn.loss_fn(outputs, LABELS, step_loss=step_loss, cnn_weight=cnn_weight)

    def cell(z, y):
        return -y * np.log(sigmoid(z)) - (1 - y) * np.log(1 - sigmoid(z))

    own = np.zeros(BATCH)
    for b in range(BATCH):
        total, count = 0.0, np.sum(LABELS[b] == 1)
        for t in range(4):
            for k in range(CLASSES):
                y = 0 if masked[b, t, k] else LABELS[b, k]
                if y >= 0 and (step_loss == "paper" or t < count):
                    total += cell(logits[b, t, k], y)
        own[b] = sum(cell(cnn[b, k], LABELS[b, k]) for k in range(CLASSES) if LABELS[b, k] >= 0)
        np.testing.assert_allclose(losses[b], total + cnn_weight * own[b], rtol=1e-5)
    np.testing.assert_allclose(logged["cnn_loss"], own.mean(), rtol=1e-5)


def test_the_order_in_which_classes_are_listed_changes_nothing():
    """Classes and all that belongs to them renumbered: the same losses, renumbered scores."""
    model, variables = model_and_variables()
    order = np.array([2, 0, 3, 1])
    p = variables["params"]
    turned = {
        **p,
        "classifier": {"kernel": p["classifier"]["kernel"][:, order], "bias": p["classifier"]["bias"][order]},
        "label_embedding": p["label_embedding"][[*order, CLASSES]],
        "output_kernel": p["output_kernel"][:, order],
        "output_bias": p["output_bias"][:, order],
    }
    for name in ("initial_hidden", "initial_cell"):
        turned[name] = {"kernel": p[name]["kernel"][order], "bias": p[name]["bias"]}
    ours = run(model, variables, features_of(), LABELS, True)
    theirs = run(model, {"params": turned}, features_of(), LABELS[:, order], True)
    np.testing.assert_allclose(theirs["logits"], ours["logits"][:, order], atol=1e-4)
    np.testing.assert_array_equal(order[theirs["read_next"]], ours["read_next"])
    losses = [multi_order_rnn.loss_fn(ours, LABELS)[0], multi_order_rnn.loss_fn(theirs, LABELS[:, order])[0]]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_gradients_reach_every_parameter_but_the_trunk_s():
    model, variables = model_and_variables(**RELEASED)

    def loss(params):
        outputs, _ = model.apply(
            {**variables, "params": params}, features_of(), True, jnp.asarray(LABELS), mutable=["batch_stats"]
        )
        return multi_order_rnn.loss_fn(outputs, jnp.asarray(LABELS))[0].sum()

    for name, part in jax.jit(jax.grad(loss))(variables["params"]).items():
        for leaf in jax.tree.leaves(part):
            assert np.isfinite(leaf).all() and (name == "trunk") == (not np.any(leaf)), name


def test_one_device_and_eight_give_the_same():
    """Loss, gradients and batch statistics with the batch divided over a mesh."""
    model, variables = model_and_variables(**RELEASED)
    labels = np.random.default_rng(3).integers(-1, 2, (8, CLASSES)).astype(np.int8)

    def step(variables, inputs, labels):
        def loss(params):
            outputs, new = model.apply({**variables, "params": params}, inputs, True, labels, mutable=["batch_stats"])
            return multi_order_rnn.loss_fn(outputs, labels, step_loss="released", cnn_weight=1.0)[0].mean(), new

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    found = []
    for count in (1, 8):
        mesh = sharding.make_mesh(jax.devices()[:count])
        place, split = sharding.replicated(mesh), sharding.split(mesh)
        arguments = jax.device_put((variables, features_of(8), labels), (place, split, split))
        found.append(jax.device_get(jax.jit(step, in_shardings=(place, split, split))(*arguments)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), *found)


def test_the_order_free_path_ends_before_the_first_improbable_label():
    model, variables = model_and_variables(mask="pool")
    predict = jax.jit(lambda v, x: (multi_order_rnn.predict_fn(model, v, x), model.apply(v, x)))
    prediction, outputs = jax.device_get(predict(variables, features_of(12)))
    lengths = set()
    for b in range(12):
        path = []
        for t, label in enumerate(outputs["read_next"][b]):
            if sigmoid(outputs["step_logits"][b, t, label]) <= 0.5:
                break
            path.append(label)
        assert list(prediction.path[b]) == path + [CLASSES] * (4 - len(path))
        assert set(np.flatnonzero(prediction.chosen[b])) == set(path) and len(set(path)) == len(path)
        lengths.add(len(path))
    assert len(lengths) > 1


@pytest.mark.parametrize("mask", multi_order_rnn.MASKS)
def test_more_steps_than_labels(mask):
    model, variables = model_and_variables(1, mask=mask)
    outputs = run(model, variables, features_of(2), np.array([[1], [0]], np.int8), True)
    assert np.isfinite(outputs["step_logits"]).all() and np.all(outputs["read_next"] == 0)
    assert np.isfinite(multi_order_rnn.loss_fn(outputs, np.array([[1], [0]], np.int8))[0]).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_steps": 0}, "config.model.num_steps = 0; it is at least 1"),
        ({"mask": "lst"}, "config.model.mask = 'lst' is unknown (did you mean 'last'?); known: last, all, pool"),
        ({"output": "code"}, "config.model.output = 'code' is unknown; known: paper, released, released_prev2out"),
        ({"pool": "mean"}, "config.model.pool = 'mean' is unknown"),
        ({"embedding_size": 0}, "config.model.embedding_size = 0"),
        ({"order": "rarest_first"}, "config.model.order = 'rarest_first' is unknown (did you mean 'rare_first'?)"),
        ({"order": "rare_first", "mask": "all"}, "config.model.mask = 'all' is for config.model.order = 'none'"),
        ({"order": "rare_first", "beam_size": 0}, "config.model.beam_size = 0; it is at least 1"),
    ],
)
def test_mistakes_in_the_model(fields, message):
    model = multi_order_rnn.Model(CLASSES, **(SMALL | fields))
    with pytest.raises(UserError) as raised:
        jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3))))
    assert message in str(raised.value)


def test_mistakes_in_the_loss():
    outputs = {
        "step_logits": jnp.zeros((1, 2, 3)),
        "masked": jnp.zeros((1, 2, 3), bool),
        "cnn_logits": jnp.zeros((1, 3)),
    }
    for options, message in [
        ({"step_loss": "code"}, "config.loss.step_loss = 'code' is unknown"),
        ({"cnn_weight": -1.0}, "config.loss.cnn_weight = -1.0; it is at least 0"),
    ]:
        with pytest.raises(UserError, match=message):
            multi_order_rnn.loss_fn(outputs, jnp.zeros((1, 3), jnp.int8), **options)


def config_of(data_dir, **more):
    flat = {
        key: value
        for key, value in config_lib.flatten(tiny_config(data_dir)).items()
        if key.split(".")[0] in ("data", "train") or key in ("optim.schedule", "optim.clip_norm")
    }
    short = {"train.duration": "6 steps", "train.eval_every": "6 steps", "train.log_every": "3 steps"}
    config = config_lib.load("multi_order_rnn:dataset=tiny,trunk=small_cnn")
    return config_lib.override(config, flat | short | {"data.source": "images"} | more)


def trained(config, folder):
    trainer = loop.Trainer(config, str(folder), sharding.make_mesh(jax.devices()[:1]))
    state = trainer.initial_state()
    assert trainer.fit().finished and trainer.train_step._cache_size() == 1
    return state


@pytest.fixture(scope="module")
def stages(data_dir, finished_run, tmp_path_factory):
    """Run folders of the linear head and of this one, which started from it, and the state that it started with."""
    folder = tmp_path_factory.mktemp("stages") / "rnn"
    small = {"model.embedding_size": 8, "model.recurrent_size": 16, "model.pool": "avg_max"}
    state = trained(config_of(data_dir, **small, start_from=str(finished_run)), folder)
    return finished_run, folder, state


def params_of(folder):
    return restore.restore(folder).variables["params"]


def test_the_second_stage_takes_over_trunk_and_scores_and_leaves_them(stages):
    cnn, rnn, state = stages
    first, start, last = params_of(cnn), state.params, params_of(rnn)
    for name in ("trunk", "classifier"):
        jax.tree.map(np.testing.assert_array_equal, start[name], first[name])
        jax.tree.map(np.testing.assert_array_equal, last[name], first[name])
    assert np.any(np.array(last["output_kernel"]) != np.array(start["output_kernel"]))
    assert first.keys() == {"trunk", "classifier"}


def test_evaluate_and_trace(stages, data_dir, tmp_path, capsys):
    run_dir = shutil.copytree(stages[1], tmp_path / "run")
    assert runs.evaluate(str(run_dir))["protocol"] == "all_point"
    source = datasets.load("tiny", data_dir).source("test")
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(2):
        (photos / f"{i}.png").write_bytes(source[i]["image"])
    capsys.readouterr()
    assert cli.run(["predict", f"--workdir={run_dir}", "--trace", "--threshold=0.3", str(photos)]) == 0
    printed = capsys.readouterr().out
    for image in json.loads((run_dir / "predictions.json").read_text())["images"]:
        steps = image["trace"]["steps"]
        assert len(steps) == 5 and "paths" not in image["trace"]
        for name, logit in image["logits"].items():
            said = [next(e for e in step["top"] if e["label"] == name) for step in steps]
            assert sigmoid(logit) == pytest.approx(max(e["probability"] for e in said), abs=1e-5)
            assert sum(e["pooled"] for e in said) == (name in image["labels"])
        for step in steps:
            assert step["taken"] == step["top"][0]["label"]
    assert printed.count("t=5") == 2
    stars = sum(len(i["labels"]) for i in json.loads((run_dir / "predictions.json").read_text())["images"])
    assert printed.count(")*") == stars > 0


def test_heads_without_steps_say_so(stages, tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(b"x")
    assert cli.run(["predict", f"--workdir={stages[0]}", "--trace", str(tmp_path / "a.png")]) == 2
    assert "the head 'linear' of" in capsys.readouterr().err


def test_figure_3_as_text():
    """The first two rows of Fig. 3, with temple and person predicted."""
    probabilities = np.array([[0.43, 0.21, 0.69, 0.02], [0.61, 0.14, 0.21, 0.03]], np.float32)
    pooled = probabilities == probabilities.max(axis=0)
    trace = contract.Trace(probabilities, np.array([2, 0]), pooled)
    names = ["person", "sky", "temple", "animal"]
    described = describe(trace, np.array([True, False, True, False]), names, shown=3)
    rows = ["  t=1  temple (0.69)*  person (0.43)  sky (0.21)", "  t=2  person (0.61)*  temple (0.21)  sky (0.14)"]
    assert trace_report.text(described) == "\n".join(rows)
    assert [step["taken"] for step in described["steps"]] == ["temple", "person"]
