"""MSCNN-LCE-MIC's head: modules on and off, ML-GCN and the plain trunk inside it, the graph's corner cases, runs."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config

from jaxmlic import config as config_lib
from jaxmlic import sharding
from jaxmlic.cli.results import predict
from jaxmlic.data import datasets
from jaxmlic.errors import UserError
from jaxmlic.experiments import runs
from jaxmlic.labels import graph as label_graph
from jaxmlic.labels.word_vectors import word_vectors
from jaxmlic.models import trunks
from jaxmlic.models.heads import contract, linear, mscnn_lce_mic
from jaxmlic.models.heads.mscnn_lce_mic import Model
from jaxmlic.training import loop
from jaxmlic.training import state as state_lib

SMALL = {
    "trunk": "small_cnn",
    "global_dim": 8,
    "gcn_hidden": 6,
    "gcn_dim": 10,
    "word_vectors": "random",
    "word_dim": 5,
    "mfb_dim": 12,
}
NAMES = ["red", "green", "blue", "grey"]
LABELS = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, -1], [0, 1, 1, 0]], np.int8)  # no grey at all


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3)).astype(np.uint8)


def drawn(model, inputs):
    """Variables of the model's shapes, drawn by numpy, so that nothing is compiled for them and nothing is zero."""
    rng = np.random.default_rng(2)
    shapes = jax.eval_shape(model.init, jax.random.key(0), inputs)
    return jax.tree.map(lambda x: 0.3 * rng.standard_normal(x.shape, np.float32), shapes)


@pytest.fixture(scope="module")
def stages():
    """What a trunk gave for two images, so that only the head is compiled."""
    rng = np.random.default_rng(1)
    shapes = {"stage1": (2, 4, 6, 3), "stage2": (2, 2, 3, 5), "stage3": (2, 2, 2, 8)}
    return trunks.StoredMaps(None, {name: rng.random(shape, np.float32) for name, shape in shapes.items()})


def outputs_of(inputs, **fields):
    model = Model(4, **SMALL | fields)
    variables = drawn(model, inputs)
    return jax.jit(model.apply)(variables, inputs), variables


def shapes_of(**fields):
    """Parameters and outputs without computing any."""
    model = Model(4, **SMALL | fields)
    images = jnp.zeros((2, 32, 32, 3), jnp.uint8)
    outputs, variables = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), images))
    shapes = {"/".join(str(k.key) for k in path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(variables)}
    return shapes, {name: x.shape for name, x in outputs.items()}


def test_the_whole_network_from_its_named_parts(stages):
    outputs, variables = outputs_of(stages)
    params = jax.tree.map(np.asarray, variables["params"])
    joined = np.concatenate([x.mean((1, 2)) for x in stages.stages.values()], -1)
    whole = joined @ params["global"]["kernel"] + params["global"]["bias"]
    attended = []
    for name, local in stages.stages.items():
        kernel = params[f"attention_{name}"]["projection"]["kernel"]
        scores = np.einsum("bhwd,bd->bhw", local, whole @ kernel / np.sqrt(kernel.size))
        expected = np.exp(scores) / np.exp(scores).sum((1, 2), keepdims=True)
        weights = outputs[f"attention_{name}"]
        np.testing.assert_allclose(weights, expected, rtol=1e-4)
        np.testing.assert_allclose(weights.sum((1, 2)), 1, rtol=1e-5)
        attended.append(np.einsum("bhw,bhwd->bd", expected, local))
    np.testing.assert_allclose(outputs["pooled"], np.concatenate(attended, -1), rtol=1e-4)
    adjacency, words = (np.asarray(variables["constants"][k]) for k in ("adjacency", "word_vectors"))
    hidden = adjacency @ words @ params["gcn"]["kernel_0"]
    embeddings = adjacency @ np.where(hidden > 0, hidden, 0.2 * hidden) @ params["gcn"]["kernel_1"]
    np.testing.assert_allclose(outputs["label_embeddings"], embeddings, rtol=1e-4, atol=1e-5)
    assert outputs["logits"].shape == (2, 4) and outputs["logits"].dtype == jnp.float32


def test_stages_come_from_the_trunk(images):
    model = Model(4, **SMALL | {"map_size": 3})
    variables = drawn(model, images)
    outputs = jax.jit(model.apply)(variables, images)
    module, fields = trunks.get("small_cnn")
    run = jax.jit(lambda v, x: module.Trunk(**fields).apply(v, module.preprocess(x), False)[1])
    kept = run({"params": variables["params"]["trunk"]}, images)
    again = jax.jit(model.apply)(variables, trunks.StoredMaps(None, {name: kept[name] for name in kept}))
    assert outputs["attention_stage1"].shape == (2, 3, 3) and outputs["attention_stage3"].shape == (2, 2, 3)
    for name in outputs:
        np.testing.assert_allclose(again[name], outputs[name], rtol=1e-3, atol=1e-4)


SWITCHES = {
    "no attention": {"attention": False},
    "one stage": {"stages": ("stage3",)},
    "smaller maps": {"map_size": 2},
    "no graph": {"graph": "none"},
    "three layers": {"gcn_layers": 3},
    "dot": {"fusion": "dot", "gcn_dim": 0},
    "g 3": {"mfb_groups": 3},
    "mfb's norm": {"mfb_norm": "none"},
    "stages of one length": {"stage_norm": True},
    "max": {"pool": "max"},
    "step 4": {"fusion": "none", "graph": "none"},
    "step 4 beside the fusion": {"stage_logits": "add"},
}


def test_every_switch_changes_the_outputs(stages):
    """From one seed, so that what a switch leaves alone is the same."""
    plain = outputs_of(stages)[0]["logits"]
    logits = [outputs_of(stages, **fields)[0]["logits"] for fields in SWITCHES.values()]
    for i, value in enumerate(logits):
        for other in (plain, *logits[:i]):
            assert np.abs(value - other).max() > 1e-3


def test_what_is_switched_off_has_no_parameters():
    of = {name: shapes_of(**fields) for name, fields in {"all": {}, **SWITCHES}.items()}
    names = {name: " ".join(params) for name, (params, _) in of.items()}
    assert all(part in names["all"] for part in ("attention_stage1", "global", "gcn", "fusion", "constants/adjacency"))
    assert "attention" not in names["no attention"] and "global" not in names["no attention"]
    assert not any(name.startswith("attention") for name in of["no attention"][1])
    assert "constants" not in names["no graph"] and "gcn" not in names["no graph"]
    assert "fusion" not in names["dot"] and of["dot"][0]["params/gcn/kernel_1"] == (6, 32 + 64 + 96)
    assert "kernel_2" in names["three layers"] and "kernel_2" not in names["all"]
    assert of["g 3"][0]["params/fusion/kernel"] == (4, 4) and of["all"][0]["params/fusion/kernel"] == (4, 6)
    assert "classifier" not in names["all"] and "classifier_stage3" in names["step 4 beside the fusion"]
    assert "gcn" not in names["step 4"] and "label_embeddings" not in of["step 4"][1]


def test_step_4_averages_a_classifier_for_each_stage(stages):
    outputs, variables = outputs_of(stages, fusion="none", graph="none")
    parts = [np.asarray(outputs[f"logits_stage{i}"]) for i in (1, 2, 3)]
    np.testing.assert_allclose(outputs["logits"], np.mean(parts, axis=0), rtol=1e-4, atol=1e-5)
    classifier = jax.tree.map(np.asarray, variables["params"]["classifier_stage1"])
    expected = np.asarray(outputs["pooled"])[:, :3] @ classifier["kernel"] + classifier["bias"]
    np.testing.assert_allclose(parts[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fields", [{}, {"fusion": "dot", "gcn_dim": 0}, {"stages": ("stage2",), "attention": False}])
def test_step_4_beside_the_fusion_is_averaged_with_it(stages, fields):
    """In plain numpy from the parameters: a classifier a stage, their mean, and the mean of that and the fusion."""
    outputs, variables = outputs_of(stages, stage_logits="add", **fields)
    params = jax.tree.map(np.asarray, variables["params"])
    read = fields.get("stages", tuple(stages.stages))
    bounds = np.cumsum([stages.stages[name].shape[-1] for name in read])[:-1]
    vectors = np.split(np.asarray(outputs["pooled"]), bounds, axis=-1)
    parts = [
        vector @ params[f"classifier_{name}"]["kernel"] + params[f"classifier_{name}"]["bias"]
        for name, vector in zip(read, vectors, strict=True)
    ]
    without = Model(4, **SMALL | fields)
    kept = {name: value for name, value in variables["params"].items() if not name.startswith("classifier_")}
    fused = without.apply({**variables, "params": kept}, stages)["logits"]
    expected = sum(parts) / len(parts) / 2 + np.asarray(fused) / 2
    np.testing.assert_allclose(outputs["logits"], expected, rtol=1e-4, atol=1e-5)
    assert np.abs(np.asarray(outputs["logits"]) - np.asarray(fused)).max() > 1e-2


def test_all_off_is_the_linear_head(stages):
    off = {"attention": False, "stages": ("stage3",), "graph": "none", "fusion": "none"}
    outputs, variables = outputs_of(stages, **off)
    linear_head = linear.Model(4)
    same = {"params": {"classifier": variables["params"]["classifier_stage3"]}}
    plain = linear_head.apply(same, trunks.StoredMaps(stages.stages["stage3"]))
    np.testing.assert_allclose(outputs["logits"], plain["logits"], rtol=1e-5, atol=1e-6)


def test_dot_with_the_maximum_over_the_last_stage_is_ml_gcn(stages):
    fields = {"attention": False, "stages": ("stage3",), "pool": "max", "fusion": "dot", "gcn_dim": 8}
    outputs, _ = outputs_of(stages, **fields)
    expected = stages.stages["stage3"].max((1, 2)) @ np.asarray(outputs["label_embeddings"]).T
    np.testing.assert_allclose(outputs["logits"], expected, rtol=1e-4, atol=1e-5)


def test_features_without_the_stages_are_refused(stages):
    with pytest.raises(UserError, match=r"no stage 'stage1' in the stored features .*features\.stages.* there: none"):
        Model(4, **SMALL).init(jax.random.key(0), trunks.StoredMaps(jnp.zeros((2, 2, 2, 8))))
    with pytest.raises(UserError, match=r"reads the feature map: set config\.features\.store='map'"):
        linear.Model(4).init(jax.random.key(0), stages)


@pytest.mark.parametrize(
    ("trunk", "width"), [("vgg16", 1280), ("resnet101", 512 + 1024 + 2048), ("efficientnet_lite0", 1432)]
)
def test_the_papers_sizes_on_other_trunks(trunk, width):
    paper = {"gcn_hidden": 1024, "gcn_dim": 2048, "word_dim": 300, "mfb_dim": 358, "global_dim": 512, "trunk": trunk}
    params, outputs = shapes_of(**paper)
    assert outputs["pooled"] == (2, width) and outputs["logits"] == (2, 4)
    assert params["params/gcn/kernel_0"] == (300, 1024) and params["params/gcn/kernel_1"] == (1024, 2048)
    assert params["params/fusion/image/kernel"] == (width, 358) and params["params/fusion/kernel"] == (4, 179)
    if trunk == "vgg16":
        assert {name for name in outputs if name.startswith("attention_")} == {
            "attention_conv3_3",
            "attention_conv4_3",
            "attention_conv5_3",
        }


def config_of(data_dir, **more):
    model = {f"model.{key}": value for key, value in SMALL.items()}
    base = config_lib.override(config_lib.load("mscnn_lce_mic"), {})
    tiny = config_lib.flatten(tiny_config(data_dir))
    keys = [key for key in tiny if key.split(".")[0] in ("data", "train", "eval") and key != "eval.protocol"]
    values = {key: tiny[key] for key in keys if not isinstance(tiny[key], list)}
    plain = {"optim.name": "adamw", "optim.lr": 3e-3, "augment.crop_area": (1.0, 1.0), "optim.milestones": ()}
    groups = {"optim.groups": (("trunk/.*", None), (".*", 1.0))}
    return config_lib.override(base, values | model | plain | groups | more)


def statistics(labels=LABELS):
    return contract.LabelStatistics(labels, NAMES)


def test_constants_are_the_label_graph_and_the_word_vectors(data_dir):
    found, notes = mscnn_lce_mic.constants(
        config_of(data_dir, **{"model.threshold": 0.5, "model.reweight": 0.3}), statistics()
    )
    counts = label_graph.cooccurrence(LABELS)
    np.testing.assert_array_equal(found["adjacency"], label_graph.adjacency(*counts, 0.5, 0.3, "paper"))
    np.testing.assert_array_equal(found["adjacency"][3], [0, 0, 0, 1])  # a label without examples keeps its own vector
    np.testing.assert_array_equal(found["word_vectors"], word_vectors(NAMES, "random", dim=5)[0])
    assert len(notes) == 1 and "word vectors" in notes[0]
    assert mscnn_lce_mic.constants(config_of(data_dir, **{"model.graph": "none"}), statistics()) == ({}, [])
    glove = config_of(data_dir, **{"model.word_vectors": "glove100", "model.word_dim": 0})
    found, notes = mscnn_lce_mic.constants(
        glove, contract.LabelStatistics(LABELS, ["cat", "dog", "tvmonitor", "nothing at all"])
    )
    assert found["word_vectors"].shape == (4, 100) and "random for nothing at all" in notes[0]


def test_isolated_labels_and_labels_without_examples_train(stages):
    """A graph without edges and classes that are never present: finite losses and gradients."""
    model = Model(4, **SMALL)
    variables = drawn(model, stages)
    labels = np.zeros((2, 4), np.int8)
    variables["constants"] |= {"adjacency": jnp.asarray(label_graph.adjacency(*label_graph.cooccurrence(labels)))}

    def loss(params):
        outputs = model.apply({**variables, "params": params}, stages, train=True)
        return mscnn_lce_mic.loss_fn(outputs, jnp.asarray(labels), name="weighted_cross_entropy")[0].sum()

    value, grads = jax.jit(jax.value_and_grad(loss))(variables["params"])
    assert np.isfinite(value) and all(np.isfinite(x).all() for x in jax.tree.leaves(grads))


MISTAKES = [
    ({"fusion": "mbf"}, r"config\.model\.fusion = 'mbf' is unknown \(did you mean 'mfb'\?\)"),
    ({"mfb_norm": "l2"}, r"config\.model\.mfb_norm = 'l2' is unknown.*known: none, power_l2"),
    ({"graph": "gat"}, r"config\.model\.graph = 'gat' is unknown"),
    ({"adjacency": "ml-gcn"}, r"config\.model\.adjacency = 'ml-gcn' is unknown \(did you mean 'ml_gcn'\?\)"),
    ({"pool": "mean"}, r"config\.model\.pool = 'mean' is unknown"),
    ({"fusion": "none"}, r"config\.model\.graph = 'gcn' makes label embeddings"),
    ({"fusion": "none", "graph": "none", "stage_logits": "add"}, r"'add' has nothing to be added to"),
    ({"stage_logits": "mean"}, r"config\.model\.stage_logits = 'mean' is unknown.*known: off, add"),
    ({"fusion": "dot"}, r"gcn_dim = 10, but the image's vector has 192 entries.*gcn_dim=0"),
    ({"mfb_groups": 5}, r"mfb_groups = 5 does not divide config\.model\.mfb_dim = 12"),
    ({"gcn_layers": 0}, r"config\.model\.gcn_layers = 0; it is at least 1"),
    ({"stages": ("stage4",)}, r"no stage 'stage4' in trunk 'small_cnn'.*there: stage1, stage2, stage3"),
    ({"word_dim": 0}, r"config\.model\.word_dim = 0: set it to the width of the vectors of 'random'"),
    ({"word_vectors": "glove100"}, r"config\.model\.word_dim = 5, but the vectors of 'glove100' have 100 numbers"),
    ({"word_vectors": "one_hot"}, r"config\.model\.word_dim = 5, but the vectors of 'one_hot' have 4 numbers"),
]


@pytest.mark.parametrize(("fields", "message"), MISTAKES, ids=[str(fields) for fields, _ in MISTAKES])
def test_mistakes_in_the_model(fields, message):
    with pytest.raises(UserError, match=message):
        shapes_of(**fields)


def test_mistakes_in_word_vectors_and_the_graph(data_dir, tmp_path):
    file = tmp_path / "vectors.txt"
    file.write_text("red 1 2 3\ngreen 1 2 3\nblue 1 2\n")
    cases = [
        ({"model.word_vectors": str(file)}, r"vectors\.txt:3: 2 numbers, not 3"),
        ({"model.word_vectors": str(tmp_path / "none.txt")}, "cannot be read"),
        ({"model.threshold": 0.0}, r"config\.model\.threshold.* 0\.0"),
        ({"model.reweight": 1.5}, r"config\.model\.reweight.*1\.5"),
    ]
    for fields, message in cases:
        with pytest.raises(UserError, match=message):
            mscnn_lce_mic.constants(config_of(data_dir, **fields), statistics())
    file.write_text("red 1 2 3\ngreen 1 2 3\n")
    with pytest.raises(UserError, match=r"word_dim = 5, but the vectors of .*vectors\.txt' have 3 numbers"):
        mscnn_lce_mic.constants(config_of(data_dir, **{"model.word_vectors": str(file)}), statistics())


def test_the_step_is_the_same_on_one_and_eight_devices(data_dir, tmp_path):
    """Eq 9 counts over the global batch: a device that counted its own part would step elsewhere."""
    config = config_of(data_dir, **{"model.stages": ("stage3",), "optim.name": "sgd", "optim.lr": 0.1})
    states, losses_of = [], []
    for count in (1, 8):
        trainer = loop.Trainer(config, str(tmp_path / str(count)), sharding.make_mesh(jax.devices()[:count]))
        reader, _ = trainer.readers()
        batch = reader(np.arange(8))
        batch["mask"][7] = False
        state, scalars = trainer.train_step(trainer.initial_state(), sharding.put(batch, trainer.mesh))
        states.append(state.params)
        losses_of.append(float(scalars["loss"]))
    assert losses_of[0] == pytest.approx(losses_of[1], rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), *map(jax.device_get, states))


def test_eq_9_by_hand():
    logits, labels = np.array([[0.5, -1.0], [2.0, 0.0]]), np.array([[1, 0], [0, 0]], np.int8)
    per_example, _ = mscnn_lce_mic.loss_fn({"logits": jnp.asarray(logits)}, labels, name="weighted_cross_entropy")
    po, ne = 1, 3
    wt_p, wt_n = (po + ne + 1) / (po + 1), (po + ne + 1) / (ne + 1)
    probability = 1 / (1 + np.exp(-logits))
    terms = np.where(labels == 1, -wt_p * np.log(probability), -wt_n * np.log(1 - probability))
    np.testing.assert_allclose(per_example, terms.sum(1), rtol=1e-5)


def test_a_run_from_start_to_prediction(data_dir, tmp_path):
    config = config_of(data_dir, **{"train.duration": "24 steps", "train.eval_every": "12 steps", "optim.lr": 0.02})
    workdir = tmp_path / "run"
    trainer = loop.Trainer(config, str(workdir))
    assert trainer.fit().finished
    assert trainer.train_step._cache_size() == 1 and trainer.predict_step._cache_size() == 1
    numbers = runs.evaluate(str(workdir))
    assert numbers["mAP"] > 0.6  # chance is 0.4
    source = datasets.load("tiny", data_dir).source("test")
    (tmp_path / "a.png").write_bytes(source[0]["image"])
    assert predict.predict(str(workdir), [str(tmp_path / "a.png")]) == 0
    state = trainer.initial_state()
    assert state.constants["adjacency"].shape == (3, 3) and "adjacency" in state_lib.eval_variables(state)["constants"]


def test_what_is_decayed():
    config = config_lib.load("mscnn_lce_mic")
    decayed = {name for name in shapes_of()[0] if re.fullmatch(config.optim.decay, name)}
    assert {"params/gcn/kernel_0", "params/gcn/kernel_1", "params/fusion/kernel", "params/global/kernel"} <= decayed
    assert not any("bias" in name for name in decayed)
