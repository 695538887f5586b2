"""CSRA, ML-Decoder and Query2Label against transcriptions of their authors' PyTorch code into numpy, float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmlic import config as config_lib
from jaxmlic.errors import UserError
from jaxmlic.models import trunks
from jaxmlic.models.heads import contract
from jaxmlic.models.heads.label_attention import csra, ml_decoder, query2label
from jaxmlic.models.layers import attention

BATCH, HEIGHT, WIDTH, CHANNELS, LABELS = 3, 2, 3, 8, 5
GRID = np.random.default_rng(0).normal(size=(BATCH, HEIGHT, WIDTH, CHANNELS)).astype(np.float32)
SMALL = {"hidden": 6, "num_heads": 2}


def softmax(x, axis=-1):
    x = np.exp(x - x.max(axis=axis, keepdims=True))
    return x / x.sum(axis=axis, keepdims=True)


def dense(x, layer):
    return x @ layer["kernel"] + layer["bias"]


def layer_norm(x, layer):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-5) * layer["scale"] + layer["bias"]


def multihead(layer, query, key, value, heads):
    """torch.nn.MultiheadAttention of one image: [Q, D], [N, D], [N, D] -> [Q, D] and the heads' mean weights."""
    q, k, v = dense(query, layer["query"]), dense(key, layer["key"]), dense(value, layer["value"])
    size, parts, weights = q.shape[-1] // heads, [], []
    for head in range(heads):
        own = slice(head * size, (head + 1) * size)
        weights.append(softmax(q[:, own] @ k[:, own].T / np.sqrt(size)))
        parts.append(weights[-1] @ v[:, own])
    return dense(np.concatenate(parts, axis=-1), layer["out"]), np.mean(weights, axis=0)


def feed_forward(layer, x):
    return dense(np.maximum(dense(x, layer["hidden"]), 0), layer["out"])


def csra_of(model, variables, grid):
    """`MHA` of pipeline/csra.py: a sum of heads over x [B, d, H, W]; T = 99 is max-pooling there."""
    logit, maps = 0.0, []
    for head, temperature in enumerate([*model.temperatures, *([99] if model.max_head else [])]):
        weight = variables["params"][f"classifier_{head}_kernel"].T  # [C, d]
        score = np.einsum("bhwd,cd->bchw", grid, weight)
        if model.unit_classifier:
            score = score / np.linalg.norm(weight, axis=1)[None, :, None, None]
        score = score.reshape(*score.shape[:2], -1)
        base = score.mean(axis=2)
        if temperature == 99:
            att, soft = score.max(axis=2), (score == score.max(axis=2, keepdims=True)).astype(float)
        else:
            soft = softmax(score * temperature, axis=2)
            att = (score * soft).sum(axis=2)
        logit = logit + base + model.attention_weight * att
        maps.append(soft)
    return logit, np.mean(maps, axis=0)


def ml_decoder_of(model, variables, grid):
    """`MLDecoder` of ml_decoder.py, image by image and group by group."""
    params, logits, maps = variables["params"], [], []
    queries = params["query_embedding"] if model.queries == "learned" else variables["constants"]["queries"]
    factor = int(np.ceil(LABELS / len(queries)))
    for image in grid:
        memory = np.maximum(dense(image.reshape(-1, CHANNELS), params["project"]), 0)
        tgt = queries
        for number in range(model.layers):
            layer = params[f"decoder_{number}"]
            tgt = layer_norm(tgt + tgt, layer["norm_self"])  # dropout of evaluation
            found, weights = multihead(layer["cross_attention"], tgt, memory, memory, model.num_heads)
            tgt = layer_norm(tgt + found, layer["norm_cross"])
            tgt = layer_norm(tgt + feed_forward(layer["feed_forward"], tgt), layer["norm_out"])
        out = np.zeros((len(queries), factor))
        for i in range(len(queries)):  # GroupFC
            out[i] = tgt[i] @ params["group_kernel"][i]
        logits.append(out.flatten()[:LABELS] + params["group_bias"])
        maps.append([weights[label // factor] for label in range(LABELS)])
    return np.array(logits), np.array(maps)


def positions_of(height, width, channels):
    """`PositionEmbeddingSine(normalize=True)`, cell by cell."""
    half, found = channels // 2, np.zeros((height, width, channels))
    for y in range(height):
        for x in range(width):
            for offset, place, count in ((0, y, height), (half, x, width)):
                embed = (place + 1) / (count + 1e-6) * 2 * np.pi
                for i in range(half):
                    angle = embed / 10000 ** (2 * (i // 2) / half)
                    found[y, x, offset + i] = np.sin(angle) if i % 2 == 0 else np.cos(angle)
    return found.reshape(-1, channels)


def query2label_of(model, variables, grid):
    """`Qeruy2Label` and `Transformer` (post-norm) of the authors, image by image."""
    params, logits, maps = variables["params"], [], []
    for image in grid:
        memory = image.reshape(-1, CHANNELS)
        if model.embedding:
            memory = dense(memory, params["project"])
        pos = positions_of(HEIGHT, WIDTH, memory.shape[-1]) if model.positions == "sine" else 0.0
        for number in range(model.encoder_layers):
            layer = params[f"encoder_{number}"]
            found, _ = multihead(layer["self_attention"], memory + pos, memory + pos, memory, model.num_heads)
            memory = layer_norm(memory + found, layer["norm_self"])
            memory = layer_norm(memory + feed_forward(layer["feed_forward"], memory), layer["norm_out"])
        query = params["query_embedding"]
        tgt = np.zeros_like(query)
        for number in range(model.decoder_layers):
            layer = params[f"decoder_{number}"]
            if model.self_attention == "all" or (model.self_attention == "later" and number):
                found, _ = multihead(layer["self_attention"], tgt + query, tgt + query, tgt, model.num_heads)
                tgt = layer_norm(tgt + found, layer["norm_self"])
            found, weights = multihead(layer["cross_attention"], tgt + query, memory + pos, memory, model.num_heads)
            tgt = layer_norm(tgt + found, layer["norm_cross"])
            tgt = layer_norm(tgt + feed_forward(layer["feed_forward"], tgt), layer["norm_out"])
        tgt = layer_norm(tgt, params["norm_out"])
        logits.append((params["classifier_kernel"] * tgt).sum(-1) + params["classifier_bias"])  # GroupWiseLinear
        maps.append(weights)
    return np.array(logits), np.array(maps)


CASES = {
    "csra": (csra, {}, csra_of),
    "csra four heads": (csra, {"temperatures": (1.0, 2.0, 4.0), "max_head": True, "attention_weight": 0.5}, csra_of),
    "csra max as printed": (csra, {"temperatures": (), "max_head": True, "unit_classifier": False}, csra_of),
    "ml_decoder": (ml_decoder, {"embedding": 4, **SMALL}, ml_decoder_of),
    "ml_decoder groups": (
        ml_decoder,
        {"embedding": 4, "groups": 3, "queries": "learned", "layers": 2, **SMALL},
        ml_decoder_of,
    ),
    "query2label": (query2label, SMALL, query2label_of),
    "query2label labels attend": (query2label, {"embedding": 4, "self_attention": "later", **SMALL}, query2label_of),
    "query2label without": (
        query2label,
        {"positions": "none", "self_attention": "all", "encoder_layers": 0, "decoder_layers": 1, **SMALL},
        query2label_of,
    ),
}
PLAIN = ("csra four heads", "ml_decoder groups", "query2label labels attend")


def drawn(name):
    """A case's model and variables of random numbers."""
    head, fields, _ = CASES[name]
    model, rng = head.Model(LABELS, **fields), np.random.default_rng(1)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), trunks.StoredMaps(jnp.asarray(GRID))))
    return model, jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), shapes)


def doubled(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


@pytest.mark.parametrize("name", CASES)
def test_logits_and_attention_are_those_of_the_authors_code(name):
    (head, _, transcribed), (model, variables) = CASES[name], drawn(name)
    maps = trunks.StoredMaps(jnp.asarray(GRID))
    outputs = jax.jit(model.apply)(variables, maps)
    logits, weights = transcribed(model, doubled(variables), GRID.astype(np.float64))
    np.testing.assert_allclose(outputs["logits"], logits, rtol=1e-4, atol=1e-4)
    shape = (BATCH, HEIGHT, WIDTH)
    np.testing.assert_allclose(outputs["attention_mean"], weights.mean(axis=1).reshape(shape), rtol=1e-3, atol=1e-5)
    top = weights[np.arange(BATCH), logits.argmax(axis=1)].reshape(shape)
    np.testing.assert_allclose(outputs["attention_top"], top, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(outputs["pooled"], GRID.mean(axis=(1, 2)), rtol=1e-5, atol=1e-6)
    scores = head.predict_fn(model, variables, maps).scores
    np.testing.assert_allclose(scores, logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", PLAIN)
def test_gradients_are_differences_of_the_transcription(name):
    """Of the sum of all logits times random weights, along random directions of all parameters."""
    (_, _, transcribed), (model, variables) = CASES[name], drawn(name)
    rng, maps = np.random.default_rng(2), trunks.StoredMaps(jnp.asarray(GRID))
    weights = rng.normal(size=(BATCH, LABELS)).astype(np.float32)
    rest = {key: value for key, value in variables.items() if key != "params"}

    def total(params):
        return jnp.sum(model.apply({"params": params, **rest}, maps)["logits"] * weights)

    gradients, start = doubled(jax.jit(jax.grad(total))(variables["params"])), doubled(variables["params"])
    for _ in range(3):
        way = jax.tree.map(lambda x: rng.normal(size=x.shape), start)

        def ahead(step, way=way):
            moved = jax.tree.map(np.add, start, jax.tree.map(functools.partial(np.multiply, step), way))
            return np.sum(transcribed(model, {"params": moved, **doubled(rest)}, doubled(GRID))[0] * weights)

        slope = sum(np.sum(g * d) for g, d in zip(jax.tree.leaves(gradients), jax.tree.leaves(way), strict=True))
        np.testing.assert_allclose(slope, (ahead(1e-6) - ahead(-1e-6)) / 2e-6, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", PLAIN)
def test_unknown_labels_and_padding_move_nothing(name):
    """A row of unknown labels, as padding has, adds nothing to any gradient; one label known moves something."""
    (head, _, _), (model, variables) = CASES[name], drawn(name)
    rest = {key: value for key, value in variables.items() if key != "params"}
    labels = np.array([[1, 0, 0, -1, 1], [-1] * 5, [-1, -1, 1, -1, -1]], np.int8)

    @jax.jit
    def gradient(labels, grid):
        def total(params):
            outputs = model.apply({"params": params, **rest}, trunks.StoredMaps(grid), labels=labels)
            return head.loss_fn(outputs, labels, name="asymmetric")[0].sum()

        return jax.grad(total)(variables["params"])

    found, other = gradient(labels, GRID), gradient(labels, np.where(np.arange(3) == 1, 50, GRID.T).T)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, other)
    one = gradient(np.where(np.arange(3)[:, None] == 2, labels, -1).astype(np.int8), GRID)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(one)) and any(np.any(x) for x in jax.tree.leaves(one))


def test_dropout_acts_in_training_alone():
    model, variables = drawn("query2label")
    maps = trunks.StoredMaps(jnp.asarray(GRID))
    apply = jax.jit(
        lambda key, train: model.apply(variables, maps, train, rngs={"dropout": key})["logits"], static_argnums=1
    )
    keys = jax.random.split(jax.random.key(1))
    assert np.abs(apply(keys[0], True) - apply(keys[1], True)).max() > 1e-3
    np.testing.assert_array_equal(apply(keys[0], False), apply(keys[1], False))


def test_an_infinite_temperature_is_the_limit_of_large_ones():
    many, variables = drawn("csra max as printed")
    large = csra.Model(LABELS, temperatures=(1e4,), unit_classifier=False)
    maps = trunks.StoredMaps(jnp.asarray(GRID))
    found = [jax.jit(model.apply)(variables, maps)["logits"] for model in (many, large)]
    np.testing.assert_allclose(*found, rtol=1e-5)


@pytest.mark.parametrize(("height", "width", "channels"), [(1, 1, 4), (2, 3, 8), (14, 7, 12)])
def test_position_encodings(height, width, channels):
    found = attention.sine_positions(height, width, channels)
    np.testing.assert_allclose(found, positions_of(height, width, channels), atol=1e-5)


def test_fixed_queries_are_drawn_once_with_the_seed():
    config = config_lib.load("yardsticks:head=ml_decoder")
    statistics = contract.LabelStatistics(np.zeros((2, 7), np.int8), list("abcdefg"))
    first, notes = ml_decoder.constants(config, statistics)
    assert first["queries"].shape == (7, config.model.embedding) and first["queries"].dtype == np.float32 and not notes
    np.testing.assert_array_equal(first["queries"], ml_decoder.constants(config, statistics)[0]["queries"])
    other = ml_decoder.constants(config_lib.override(config, {"seed": 1}), statistics)[0]["queries"]
    assert np.abs(other - first["queries"]).max() > 1
    groups = config_lib.override(config, {"model.groups": 3})
    assert ml_decoder.constants(groups, statistics)[0]["queries"].shape[0] == 3
    assert ml_decoder.constants(config_lib.override(config, {"model.queries": "learned"}), statistics) == ({}, [])


def test_label_embeddings_are_rows_of_the_labels():
    model, variables = drawn("ml_decoder groups")
    tables = ml_decoder.label_embeddings(variables)
    assert tables.keys() == {"classifier"}  # a query of a group is no label's
    for label in range(LABELS):  # 3 groups of 2
        own = variables["params"]["group_kernel"][label // 2, :, label % 2]
        np.testing.assert_array_equal(tables["classifier"][label], own)
    model = ml_decoder.Model(LABELS, queries="learned", embedding=4, **SMALL)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), trunks.StoredMaps(jnp.asarray(GRID))))
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    assert {k: v.shape for k, v in ml_decoder.label_embeddings(zeros).items()} == {
        "classifier": (LABELS, 4),
        "label_embedding": (LABELS, 4),
    }
    _, variables = drawn("query2label")
    assert {k: v.shape for k, v in query2label.label_embeddings(variables).items()} == {
        "label_embedding": (LABELS, CHANNELS),
        "classifier": (LABELS, CHANNELS),
    }
    _, variables = drawn("csra four heads")
    assert {k: v.shape for k, v in csra.label_embeddings(variables).items()} == {
        f"classifier_{i}": (LABELS, CHANNELS) for i in range(4)
    }


@pytest.mark.parametrize(
    ("head", "fields", "message"),
    [
        (csra, {"temperatures": (1.0, 0.0)}, r"temperatures = \(1.0, 0.0\): all above 0"),
        (csra, {"temperatures": ()}, "one head or more"),
        (ml_decoder, {"queries": "random"}, "model.queries = 'random'"),
        (ml_decoder, {"embedding": 6, "num_heads": 4}, "num_heads = 4 does not divide the width 6"),
        (ml_decoder, {"layers": 0}, "model.layers = 0"),
        (query2label, {"self_attention": "some"}, "model.self_attention = 'some'"),
        (query2label, {"embedding": 6, "num_heads": 2}, "4 divides"),
    ],
)
def test_mistakes(head, fields, message):
    model = head.Model(LABELS, **fields)
    with pytest.raises(UserError, match=message):
        jax.eval_shape(lambda: model.init(jax.random.key(0), trunks.StoredMaps(jnp.asarray(GRID))))


@pytest.mark.parametrize("head", [csra, ml_decoder, query2label])
def test_maps_are_read_by_position(head):
    reads = head.reads(head.Model(LABELS))
    reads.check_store("map")
    for store in ("pooled", "stages"):
        with pytest.raises(UserError, match="set"):
            reads.check_store(store)


def test_one_label_on_one_position():
    """Softmax over one position and one query: attention is one everywhere, logits are finite."""
    for head, fields in ((csra, {"max_head": True}), (ml_decoder, {"embedding": 4, **SMALL}), (query2label, SMALL)):
        model, grid = head.Model(1, **fields), trunks.StoredMaps(jnp.asarray(GRID[:, :1, :1]))
        outputs, _ = jax.jit(lambda m=model, x=grid: m.init_with_output(jax.random.key(0), x))()
        assert np.isfinite(outputs["logits"]).all() and outputs["logits"].shape == (BATCH, 1)
        np.testing.assert_allclose(outputs["attention_top"], 1, rtol=1e-6)
