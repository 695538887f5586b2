"""One program for any number of images gives what the head gives, whatever the head."""

import jax
import jax.export
import numpy as np
import pytest

from jaxmlic.export import program
from jaxmlic.models.heads import contract

SIDE = 16
RECURRENT = {"trunk": "small_cnn", "embedding_size": 6, "recurrent_size": 7, "max_length": 4, "beam_size": 3}
MSCNN = {"trunk": "small_cnn", "global_dim": 4, "gcn_hidden": 6, "gcn_dim": 5, "word_vectors": "random", "word_dim": 3}
ML_GCN = {"fusion": "dot", "gcn_dim": 0, "adjacency": "ml_gcn", "attention": False, "pool": "max"}
HEADS = {
    "linear": ("linear", {"trunk": "small_cnn"}),
    "linear, labels added twice": ("linear", {"trunk": "small_cnn", "added_labels": (1, 2)}),
    # its depthwise convolutions are another program on the CPU than elsewhere
    "linear on EfficientNet": ("linear", {"trunk": "efficientnet_lite0"}),
    "cnn_rnn, a beam": ("cnn_rnn", RECURRENT),
    "multi_order_rnn, steps": ("multi_order_rnn", RECURRENT | {"num_steps": 3}),
    "multi_order_rnn, a beam": ("multi_order_rnn", RECURRENT | {"order": "frequent_first"}),
    "mscnn_lce_mic": ("mscnn_lce_mic", MSCNN),
    "mscnn_lce_mic as ML-GCN": ("mscnn_lce_mic", MSCNN | ML_GCN),
    "cnn_lstm_rmlc.positions": ("cnn_lstm_rmlc.positions", {"trunk": "small_cnn", "units": (7,)}),
    "cnn_lstm_rmlc.path": ("cnn_lstm_rmlc.path", {"trunk": "small_cnn", "units": 7, "embedding": 6, "max_length": 4}),
    "kernel_ridge": ("kernel_ridge", {"trunk": "small_cnn", "num_train": 9}),
    "tagprop": ("tagprop", {"trunk": "small_cnn", "num_train": 9}),
    "two_pass_knn": ("two_pass_knn", {"trunk": "small_cnn", "num_train": 9}),
}


def drawn(model):
    """Variables of random numbers; variances and scales stay above 0."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), np.zeros((1, SIDE, SIDE, 3), np.uint8)))

    def draw(path, x):
        if path[0].key == "constants" and x.dtype == np.int32:
            return np.arange(x.size, dtype=np.int32).reshape(x.shape)  # an order of the labels
        values = rng.normal(0, 0.3, x.shape).astype(x.dtype)
        return np.abs(values) + 0.5 if path[-1].key in ("var", "scale") else values

    return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.mark.parametrize("name", list(HEADS))
def test_a_program_gives_what_its_head_gives(name):
    module, fields = HEADS[name]
    head = contract.find(module)
    model = head.Model(5, **fields)
    variables = drawn(model)
    weights = program.arrays_of(variables)
    assert {value.dtype.kind for value in weights.values()} <= set("fiub")  # kinds that an .npz holds without pickles

    def predict(variables, images):
        return head.predict_fn(model, variables, images)

    exported = jax.export.deserialize(bytearray(program.export_program(predict, weights, SIDE)))
    assert exported.platforms == ("cpu", "cuda", "tpu") and exported.nr_devices == 1
    pixels = np.random.default_rng(1).integers(0, 256, (8, SIDE, SIDE, 3)).astype(np.uint8)
    expected = jax.jit(predict)(variables, pixels)
    run = jax.jit(exported.call)
    for batch in (1, 3, 8):
        found = run(weights, pixels[:batch])
        assert set(found) == {key for key, value in vars(expected).items() if value is not None}
        largest = max(1.0, float(np.abs(expected.scores).max()))
        np.testing.assert_allclose(found["scores"], expected.scores[:batch], rtol=0, atol=2e-4 * largest)
        for key in set(found) - {"scores"}:
            np.testing.assert_array_equal(found[key], getattr(expected, key)[:batch])
