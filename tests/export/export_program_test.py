"""One program for any number of images gives what the head gives, whatever the head and its trunk."""

import jax
import jax.export
import numpy as np
import pytest

from jaxmlic.export import program
from jaxmlic.models.heads import contract
from jaxmlic.models.trunks import convnext, swin, vit

SIDE = 16
SMALL_ATTENTION = {"trunk": "small_cnn", "embedding": 8, "num_heads": 2, "hidden": 6}
RECURRENT = {"trunk": "small_cnn", "embedding_size": 6, "recurrent_size": 7, "max_length": 4, "beam_size": 3}
MSCNN = {"trunk": "small_cnn", "global_dim": 4, "gcn_hidden": 6, "gcn_dim": 5, "word_vectors": "random", "word_dim": 3}
ML_GCN = {"fusion": "dot", "gcn_dim": 0, "adjacency": "ml_gcn", "attention": False, "pool": "max"}
HEADS = {
    "linear": ("linear", {"trunk": "small_cnn"}),
    "linear, labels added twice": ("linear", {"trunk": "small_cnn", "added_labels": (1, 2)}),
    # its depthwise convolutions are another program on the CPU than elsewhere
    "linear on EfficientNet": ("linear", {"trunk": "efficientnet_lite0"}),
    # position embeddings of another grid than the image's are interpolated in the program
    "linear on a ViT": ("linear", {"trunk": "vit_exported"}),
    "linear on a ViT with registers": ("linear", {"trunk": "vit_exported_registers"}),
    "linear on ConvNeXt": ("linear", {"trunk": "convnext_exported"}),
    "linear on Swin": ("linear", {"trunk": "swin_exported"}),
    "csra": ("label_attention.csra", {"trunk": "small_cnn", "temperatures": (1.0, 2.0), "max_head": True}),
    "ml_decoder, groups": ("label_attention.ml_decoder", SMALL_ATTENTION | {"groups": 3}),
    "query2label": ("label_attention.query2label", SMALL_ATTENTION | {"self_attention": "later"}),
    "cnn_rnn, a beam": ("cnn_rnn", RECURRENT),
    "multi_order_rnn, steps": ("multi_order_rnn", RECURRENT | {"num_steps": 3}),
    "multi_order_rnn, a beam": ("multi_order_rnn", RECURRENT | {"order": "frequent_first"}),
    "mscnn_lce_mic": ("mscnn_lce_mic", MSCNN),
    "mscnn_lce_mic as ML-GCN": ("mscnn_lce_mic", MSCNN | ML_GCN),
    "cnn_lstm_rmlc.plain": ("cnn_lstm_rmlc.plain", {"trunk": "small_cnn", "hidden": 6, "grey": True, "edges": 0.5}),
    "cnn_lstm_rmlc.positions": ("cnn_lstm_rmlc.positions", {"trunk": "small_cnn", "units": (7,)}),
    "cnn_lstm_rmlc.path": ("cnn_lstm_rmlc.path", {"trunk": "small_cnn", "units": 7, "embedding": 6, "max_length": 4}),
    "kernel_ridge": ("kernel_ridge", {"trunk": "small_cnn", "num_train": 9}),
    "tagprop": ("tagprop", {"trunk": "small_cnn", "num_train": 9}),
    "two_pass_knn": ("two_pass_knn", {"trunk": "small_cnn", "num_train": 9}),
}
# Small networks of the three families; the strides of the last two need a larger image.
VIT = {"width": 16, "depth": 2, "heads": 2, "patch": 4, "grid": 3}
TRUNKS = {
    "vit_exported": (vit, VIT | {"form": "augreg", "registers": 0}),
    "vit_exported_registers": (vit, VIT | {"form": "dinov2", "registers": 2}),
    "convnext_exported": (convnext, {"depths": (1, 1, 1, 1), "widths": (8, 8, 16, 16)}),
    "swin_exported": (swin, {"width": 8, "depths": (2, 1, 1, 1), "heads": (1, 2, 2, 4), "window": 3}),
}
ABOVE_ZERO = ("var", "scale", "slope", "factor", "bandwidth", "theta")
SIDES = {"convnext_exported": 32, "swin_exported": 32}


@pytest.fixture(autouse=True)
def small_trunks(monkeypatch):
    for name, (family, fields) in TRUNKS.items():
        monkeypatch.setitem(family.NAMES, name, fields)


def drawn(model, side):
    """Variables of random numbers; variances and scales stay above 0, and the training images are near the others."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), np.zeros((1, side, side, 3), np.uint8)))

    def draw(path, x):
        if path[0].key == "constants" and x.dtype == np.int32:
            return np.arange(x.size, dtype=np.int32).reshape(x.shape)  # an order of the labels
        values, name = rng.normal(0, 0.3, x.shape).astype(x.dtype), path[-1].key
        if name == "group_size":
            return np.full_like(values, 2)
        if name == "support":
            return values / np.linalg.norm(values, axis=1, keepdims=True)
        return np.abs(values) + 0.5 if name in ABOVE_ZERO else values

    return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.mark.parametrize("name", list(HEADS))
def test_a_program_gives_what_its_head_gives(name):
    module, fields = HEADS[name]
    head = contract.find(module)
    model, side = head.Model(5, **fields), SIDES.get(fields["trunk"], SIDE)
    variables = drawn(model, side)
    weights = program.arrays_of(variables)
    assert {value.dtype.kind for value in weights.values()} <= set("fiub")  # kinds that an .npz holds without pickles

    def predict(variables, images):
        return head.predict_fn(model, variables, images)

    exported = jax.export.deserialize(bytearray(program.export_program(predict, weights, side)))
    assert exported.platforms == ("cpu", "cuda", "tpu") and exported.nr_devices == 1
    rng = np.random.default_rng(1)
    tints = rng.uniform(0, 1, (8, 1, 1, 3))  # images that differ in their means, which is what pooling leaves of noise
    pixels = (rng.integers(0, 256, (8, side, side, 3)) * tints).astype(np.uint8)
    expected = jax.jit(predict)(variables, pixels)
    tolerance = 2e-4 * max(1.0, float(np.abs(expected.scores).max()))
    assert np.ptp(expected.scores, axis=0).max() > 10 * tolerance  # else any image's scores would do
    run = jax.jit(exported.call)
    for batch in (1, 3, 8):
        found = run(weights, pixels[:batch])
        assert set(found) == {key for key, value in vars(expected).items() if value is not None}
        np.testing.assert_allclose(found["scores"], expected.scores[:batch], rtol=0, atol=tolerance)
        for key in set(found) - {"scores"}:
            np.testing.assert_array_equal(found[key], getattr(expected, key)[:batch])


def test_every_head_is_exported_here():
    assert {module for module, _ in HEADS.values()} == set(contract.names())
