"""Grad-CAM against a transcription in PyTorch, and against finite differences in numpy."""

from types import SimpleNamespace

import flax.linen as nn
import jax
import numpy as np
import pytest

from jaxmlic.errors import UserError
from jaxmlic.evaluation import attribution
from jaxmlic.models.heads import cnn_rnn, linear, mscnn_lce_mic, multi_order_rnn
from jaxmlic.models.heads.cnn_lstm_rmlc import path, plain
from jaxmlic.models.heads.contract import Reads
from jaxmlic.models.trunks import StoredMaps

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)
LABELS = np.array([2, 0])


class Trunk(nn.Module):
    """A convolution, then a fully connected layer over its 4 x 4 positions: a map of one position, as VGG's fc7."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(3, (3, 3), 4, name="conv")(x / 255))
        x = nn.relu(nn.DenseGeneral(6, axis=(1, 2, 3), name="fc")(x))[:, None, None]
        return x, {"fc": x}


class Model(nn.Module):
    @nn.compact
    def __call__(self, images, train=False):
        return {"logits": nn.Dense(4, name="classifier")(Trunk(name="trunk")(images)[0][:, 0, 0])}


def test_where_the_trunk_ends_in_fully_connected_layers_the_map_is_what_they_read():
    images, labels = np.repeat(IMAGES, 4, axis=0), np.tile(np.arange(4), 2)
    model = Model()
    variables = model.init(jax.random.key(0), images[:1].astype(np.float32))
    found = attribution.grad_cam(
        SimpleNamespace(reads=lambda model: Reads(pool="avg")), model, variables, images, labels
    )
    params = jax.tree.map(np.asarray, variables["params"])
    conv = nn.Conv(3, (3, 3), 4).apply({"params": params["trunk"]["conv"]}, images.astype(np.float32) / 255)
    own = np.maximum(np.asarray(conv), 0)  # [8, 4, 4, 3]
    fc, classifier = params["trunk"]["fc"], params["classifier"]["kernel"]
    active = np.tensordot(own, fc["kernel"], 3) + fc["bias"] > 0  # [8, 6]
    slopes = np.einsum("yxdk,bk,kb->byxd", fc["kernel"], active, classifier[:, labels])
    expected = np.maximum((own * slopes.mean(axis=(1, 2), keepdims=True)).sum(axis=-1), 0)
    assert found.shape == (8, 4, 4) and expected.max() > 0
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def built(head, trunk="small_cnn", images=IMAGES, **fields):
    model = head.Model(4, trunk=trunk, **fields)
    return model, jax.jit(model.init)(jax.random.key(1), images)


def test_a_linear_head_by_finite_differences():
    """With pooled maps the head is numpy: the weights are slopes of its logit, found by moving one entry at a time."""
    model, variables = built(linear, pool="avg_max")
    images, labels = np.repeat(IMAGES, 4, axis=0), np.tile(np.arange(4), 2)
    found = attribution.grad_cam(linear, model, variables, images, labels)
    own = np.asarray(model.apply(variables, images)["feature_map"], np.float64)
    kernel = np.asarray(variables["params"]["classifier"]["kernel"], np.float64)

    def logit(own, label):
        return np.concatenate([own.mean(axis=(0, 1)), own.max(axis=(0, 1))]) @ kernel[:, label]

    for image, label in enumerate(labels):
        slopes = np.zeros_like(own[image])
        for index in np.ndindex(slopes.shape):
            above, below = own[image].copy(), own[image].copy()
            above[index] += 1e-6
            below[index] -= 1e-6
            slopes[index] = (logit(above, label) - logit(below, label)) / 2e-6
        expected = np.maximum((own[image] * slopes.mean(axis=(0, 1))).sum(axis=-1), 0)
        np.testing.assert_allclose(found[image], expected, rtol=1e-3, atol=1e-5)
    assert (found.max(axis=(1, 2)) > 0).sum() >= 3


def test_a_head_with_a_hidden_layer_in_pytorch():
    """The whole network behind the map is transcribed: max pool of the map, two dense layers with ReLU."""
    torch = pytest.importorskip("torch")
    model, variables = built(plain, pool="max", hidden=5, dropout=0.0)
    found = attribution.grad_cam(plain, model, variables, IMAGES, LABELS)
    params = variables["params"]
    own = torch.tensor(np.asarray(model.apply(variables, IMAGES)["feature_map"]), requires_grad=True)
    weights = {k: torch.tensor(np.array(params[k][p])) for k in ("hidden", "classifier") for p in ("kernel",)}
    biases = {k: torch.tensor(np.array(params[k]["bias"])) for k in ("hidden", "classifier")}
    hidden = torch.relu(own.amax(dim=(1, 2)) @ weights["hidden"] + biases["hidden"])
    logits = hidden @ weights["classifier"] + biases["classifier"]
    logits[torch.arange(2), torch.tensor(LABELS)].sum().backward()
    alpha = own.grad.mean(dim=(1, 2), keepdim=True)
    expected = torch.relu((alpha * own.detach()).sum(dim=-1)).numpy()
    assert expected.max() > 0
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("head", "fields"),
    [
        (cnn_rnn, {"embedding_size": 8, "recurrent_size": 8, "max_length": 3, "beam_size": 2, "min_length": 1}),
        (multi_order_rnn, {"embedding_size": 8, "recurrent_size": 8, "num_steps": 2}),
        (path, {"units": 8, "embedding": 8, "max_length": 2, "beam_size": 2}),
    ],
)
def test_heads_with_steps_have_one_too(head, fields):
    """Against the slopes by a stored map, which the heads take in place of images: no interception there."""
    model, variables = built(head, **fields)
    found = attribution.grad_cam(head, model, variables, IMAGES, LABELS)
    own = model.apply(variables, IMAGES)["feature_map"]
    for i, label in enumerate(LABELS):
        slopes = jax.grad(
            lambda x, label=label: attribution.label_scores(head, model, variables, StoredMaps(x))[0, label]
        )(own[i : i + 1])
        expected = np.maximum((own[i] * slopes[0].mean(axis=(0, 1), keepdims=True)).sum(axis=-1), 0)
        np.testing.assert_allclose(found[i], expected, rtol=1e-4, atol=1e-6)


def test_stages_are_those_that_the_head_reads():
    fields = {"fusion": "none", "graph": "none", "attention": False, "stages": ("stage2", "stage3")}
    model, variables = built(mscnn_lce_mic, **fields)
    assert attribution.grad_cam(mscnn_lce_mic, model, variables, IMAGES, LABELS).shape == (2, 2, 2)
    found = attribution.grad_cam(mscnn_lce_mic, model, variables, IMAGES, LABELS, "stage2")
    kernel = np.asarray(variables["params"]["classifier_stage2"]["kernel"])  # of mean pooling: slopes without positions
    _, own = attribution.trunk_maps(model, variables, IMAGES, "stage2")
    expected = [np.maximum(one @ kernel[:, label] / 2 / 16, 0) for one, label in zip(own, LABELS, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    for head, stage in ((mscnn_lce_mic, "stage1"), (linear, "stage3")):
        arguments = (head, *(built(head) if head is linear else (model, variables)), IMAGES, LABELS, stage)
        with pytest.raises(UserError, match=f"'{stage}' is unknown"):
            attribution.grad_cam(*arguments)
