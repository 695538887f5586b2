"""What every head module offers under the contract, and every row of the shipped experiments as a model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmlic import config as config_lib
from jaxmlic.errors import UserError
from jaxmlic.experiments import sweep
from jaxmlic.models import trunks
from jaxmlic.models.heads import cnn_rnn, contract, linear, mscnn_lce_mic, multi_order_rnn
from jaxmlic.models.heads.cnn_lstm_rmlc import path, plain, positions
from jaxmlic.models.trunks import vgg

CLASSES = 20
MAPS = trunks.StoredMaps(
    jnp.zeros((1, 2, 2, 96)), {name: jnp.zeros((1, 2, 2, 8)) for name in ("stage1", "stage2", "stage3")}
)
MSCNN = {"trunk": "small_cnn", "global_dim": 4, "gcn_hidden": 6, "gcn_dim": 5, "word_vectors": "random", "word_dim": 3}


def test_heads_are_found_by_name_and_in_folders():
    found = contract.names()
    assert found == sorted(found) and {"linear", "cnn_lstm_rmlc.path", "cnn_lstm_rmlc.plain"} < set(found)
    assert not {"contract", "__init__", "cnn_lstm_rmlc"} & set(found)
    for name in found:
        head = contract.find(name)
        learns = (head.fit_fn, head.describe_fn) if contract.has_closed_form(head) else (head.loss_fn,)
        assert all(map(callable, (*learns, head.predict_fn, head.reads)))
    for name in ("cnn_lstm_rmlc", "cnn_lstm_rmlc._shared", "contract"):
        with pytest.raises(UserError, match=r"is unknown.*known: cnn_lstm_rmlc\.path"):
            contract.find(name)


@pytest.mark.parametrize(
    ("head", "fields", "stores"),
    [
        (linear, {}, {"pooled", "map"}),
        (linear, {"pool": "avg_max"}, {"map"}),
        (cnn_rnn, {"pool": "max"}, {"pooled", "map"}),
        (multi_order_rnn, {}, {"pooled", "map"}),
        (positions, {}, {"map"}),
        (path, {}, {"pooled", "map"}),
        (plain, {"pool": "flatten"}, {"map"}),
        (mscnn_lce_mic, {"stages": ("stage3",), "map_size": 3}, {"stages"}),
    ],
)
def test_reads_decides_what_may_be_stored(head, fields, stores):
    reads = head.reads(head.Model(CLASSES, **fields))
    for store in ("pooled", "map", "stages"):
        if store in stores:
            reads.check_store(store)
        else:
            with pytest.raises(UserError, match=r"set (it to|config.features.store=)"):
                reads.check_store(store)
    assert (reads.stages, reads.map_size) == ((("stage3",), 3) if head is mscnn_lce_mic else (None, 0))


def drawn(model, seed=0):
    """Variables of random numbers, for MAPS."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), MAPS))
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), shapes)


def test_label_embeddings_of_cnn_rnn_are_the_rows_that_it_reads():
    model = cnn_rnn.Model(CLASSES, embedding_size=5, recurrent_size=6)
    variables = drawn(model)
    tables = cnn_rnn.label_embeddings(variables)
    decoder = jax.jit(model.apply)(variables, MAPS)["decoder"]
    np.testing.assert_array_equal(decoder.read[:-1], tables["label_embedding"])
    np.testing.assert_array_equal(decoder.read[-1:], tables["label_embedding_start"])
    np.testing.assert_array_equal(decoder.score[-1:], tables["label_embedding_end"])


def test_label_embeddings_of_multi_order_rnn_and_of_paths():
    tables = multi_order_rnn.label_embeddings(drawn(multi_order_rnn.Model(CLASSES, embedding_size=5)))
    assert {name: x.shape for name, x in tables.items()} == {
        "label_embedding": (CLASSES, 5),
        "label_embedding_start": (1, 5),
        "output": (CLASSES, 512),
        "classifier": (CLASSES, MAPS.feature_map.shape[-1]),
    }
    variables = drawn(path.Model(CLASSES, trunk="small_cnn", embedding=5, units=3))
    tables = path.label_embeddings(variables)
    own = variables["params"]["path"]
    np.testing.assert_array_equal(
        np.concatenate([tables["label_embedding"], tables["label_embedding_end"]]), own["labels"]
    )
    np.testing.assert_array_equal(tables["label_embedding_start"][0], own["start"])


@pytest.mark.parametrize("fields", [{}, {"gcn_layers": 3}, {"graph": "none"}, {"graph": "none", "fusion": "none"}])
def test_label_embeddings_of_the_graph_are_the_model_s(fields):
    model = mscnn_lce_mic.Model(CLASSES, **MSCNN | fields)
    variables = drawn(model)
    tables = mscnn_lce_mic.label_embeddings(variables)
    outputs = jax.jit(model.apply)(variables, MAPS)
    if "label_embeddings" not in outputs:  # the stages' own classifiers
        layers = {name: layer for name, layer in variables["params"].items() if name.startswith("classifier_")}
        assert tables.keys() == layers.keys() and layers
        for name, layer in layers.items():
            np.testing.assert_array_equal(tables[name][1], layer["kernel"][:, 1])
        return
    wanted = outputs["label_embeddings"]  # hundreds in three layers, and small where they cancel
    np.testing.assert_allclose(tables["label_embedding"], wanted, rtol=1e-5, atol=1e-6 * max(1, np.abs(wanted).max()))
    assert ("word_vectors" in tables) == (model.graph == "gcn")


@functools.cache
def small_vgg(batch_norm):
    """A linear head on VGG16 of the trunk that is patched in, and its variables."""
    model = linear.Model(2, trunk="vgg16_bn_fc", batch_norm=batch_norm)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    return model, jax.jit(model.init)(jax.random.key(0), images), images


def test_a_frozen_trunk_is_a_function(monkeypatch):
    """Its own dropout is off in training; with a batch norm that still moves it is no function, and stays as it was."""
    monkeypatch.setattr(vgg, "FC_CHANNELS", 16)
    monkeypatch.setattr(vgg, "_BLOCKS", ((4, 1),) * 5)

    @functools.partial(jax.jit, static_argnums=(0, 4, 5))
    def run(model, variables, images, key, train, frozen):
        return model.apply(
            variables, images, train, frozen_trunk=frozen, rngs={"dropout": key}, mutable=["batch_stats"]
        )

    first, second = jax.random.split(jax.random.key(1))
    model, variables, images = small_vgg("frozen")
    maps = [
        run(model, variables, images, key, train, frozen)[0]["feature_map"]
        for key, train, frozen in (
            (first, False, False),
            (first, True, True),
            (second, True, True),
            (first, True, False),
        )
    ]
    np.testing.assert_array_equal(maps[1], maps[0])
    np.testing.assert_array_equal(maps[2], maps[0])
    assert np.any(maps[3] != maps[0])
    model, variables, images = small_vgg("train")
    moved = run(model, variables, images, first, True, True)[1]["batch_stats"]
    assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (moved, variables["batch_stats"])), strict=True))


def test_trunks_say_whether_they_have_batch_norm():
    for name in ("small_cnn", "cifar14", "vgg16_fc", "vgg16_bn_fc", "resnet18", "efficientnet_lite0"):
        module, fields = trunks.get(name)
        image = jax.eval_shape(module.preprocess, jnp.zeros((1, 32, 32, 3)))
        shapes = jax.eval_shape(functools.partial(module.Trunk(**fields).init, train=False), jax.random.key(0), image)
        assert trunks.has_batch_norm(name) == ("batch_stats" in shapes), name


UNKNOWN = -np.ones((1, CLASSES), np.int8)
EXPERIMENTS = (
    "linear",
    "quickstart",
    "baseline_ensemble",
    "cnn_rnn",
    "cnn_rnn:dataset=scenes,trunk=vgg16_fc,smoke,size=48",
    "multi_order_rnn",
    "cnn_lstm_rmlc",
    "cnn_lstm_rmlc:head=path",
    "mscnn_lce_mic",
    "mscnn_lce_mic:dataset=corel5k",
    "yardsticks:dataset=scenes",
)


@pytest.mark.parametrize("spec", EXPERIMENTS)
def test_every_row_of_an_experiment_is_a_model(spec):
    """Shapes alone, on stored maps: names of trunks, batch norm, fields of heads, and what may be stored."""
    base = config_lib.load(spec)
    found = [base]
    if hasattr(config_lib.load_module(spec), "sweep"):
        found += [sweep.config_of(spec, base, entry, ()) for entry in sweep.entries(spec)]
    seen = set()
    for config in found:
        head = contract.find(config.head)
        model = head.Model(CLASSES, **config.model)
        head.reads(config.model)
        if repr(model) in seen:
            continue
        seen.add(repr(model))
        reads, stages = head.reads(config.model), {}
        if reads.stages is not None:
            stages = {stage: jnp.zeros((1, 2, 2, 8)) for stage in reads.stages or trunks.levels(config.model.trunk)}
        maps = trunks.StoredMaps(jnp.zeros((1, 2, 2, 8)), stages)
        shapes = jax.eval_shape(lambda m=model, x=maps: m.init(jax.random.key(0), x))
        outputs = jax.eval_shape(lambda v, m=model, x=maps: m.apply(v, x, labels=UNKNOWN), shapes)
        jax.eval_shape(lambda o, h=head, c=config: h.loss_fn(o, UNKNOWN, **c.loss)[0], outputs)
