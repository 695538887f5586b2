"""Saliency against finite differences, backward rules against a network written out in numpy, maps against outputs."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmlic.errors import UserError
from jaxmlic.evaluation import attribution
from jaxmlic.models.heads import cnn_rnn, linear, mscnn_lce_mic, multi_order_rnn
from jaxmlic.models.heads.cnn_lstm_rmlc import path
from jaxmlic.models.layers import norm, rectifier

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)


def built(head, **fields):
    model = head.Model(4, trunk="small_cnn", **fields)
    return model, jax.jit(model.init)(jax.random.key(1), IMAGES)


@pytest.fixture(scope="module")
def recurrent():
    return built(cnn_rnn, embedding_size=8, recurrent_size=8, max_length=3, beam_size=2, min_length=1)


def test_saliency_is_the_slope_of_the_label_s_logit():
    model, variables = built(linear)
    found = attribution.saliency(linear, model, variables, IMAGES, np.array([2, 0]))
    logits = jax.jit(lambda x: model.apply(variables, x)["logits"])
    for i, (label, y, x, c) in enumerate([(2, 3, 4, 0), (0, 6, 1, 2)]):
        step = np.zeros(IMAGES[i].shape, np.float32)
        step[y, x, c] = 2.0
        above, below = (logits(IMAGES[i].astype(np.float32)[None] + sign * step[None])[0, label] for sign in (1, -1))
        np.testing.assert_allclose(found[i, y, x, c], (above - below) / 4, rtol=0.05, atol=2e-5)
    np.testing.assert_allclose(attribution.strength(found), np.abs(found).max(-1))


def numpy_backward(x, layers, signal, rule):
    """Dense layers with ReLU between, written out: what comes back at x [D] of a signal at the output [K]."""
    activations = [x]
    for weights in layers[:-1]:
        activations.append(np.maximum(activations[-1] @ weights, 0))
    for weights, below in zip(layers[::-1], activations[::-1], strict=True):
        signal = weights @ signal
        if below is not x:
            if rule in ("gradient", "guided"):
                signal = signal * (below > 0)
            if rule in ("deconvolution", "guided"):
                signal = np.maximum(signal, 0)
    return signal


@pytest.mark.parametrize("rule", rectifier.RULES)
def test_backward_rules_equal_those_written_out(rule):
    rng = np.random.default_rng(3)
    layers = [rng.normal(size=shape).astype(np.float32) for shape in ((6, 7), (7, 5), (5, 3))]
    x, signal = rng.normal(size=6).astype(np.float32), rng.normal(size=3).astype(np.float32)

    def network(x):
        for weights in layers[:-1]:
            x = rectifier.relu(x @ weights)
        return x @ layers[-1]

    with rectifier.backward(rule):
        (found,) = jax.vjp(network, x)[1](signal)
    np.testing.assert_allclose(found, numpy_backward(x, layers, signal, rule), rtol=1e-5, atol=1e-6)
    assert rectifier.rule() == "gradient"


@pytest.mark.parametrize("rule", rectifier.RULES)
def test_a_norm_s_own_relu_has_the_rule(rule):
    layer = norm.BatchNorm(True, relu6=True)
    x = jnp.array([[-1.0, 2.0, 9.0, 3.0]])
    variables = layer.init(jax.random.key(0), x)
    grad = np.array([[1.0, 1.0, 1.0, -1.0]], np.float32)
    with rectifier.backward(rule):
        (found,) = jax.vjp(lambda x: layer.apply(variables, x), x)[1](grad)
    wanted = {"gradient": [0, 1, 0, -1], "deconvolution": [1, 1, 1, 0], "guided": [0, 1, 0, 0]}[rule]
    np.testing.assert_allclose(found[0], wanted, atol=1e-3)


def test_an_unknown_rule_is_refused():
    with pytest.raises(UserError, match="did you mean 'guided'"), rectifier.backward("guide"):
        pass


def test_gradients_of_steps_follow_the_best_path(recurrent):
    model, variables = recurrent
    found = attribution.step_attention(cnn_rnn, model, variables, IMAGES)
    trace = cnn_rnn.trace_fn(model, variables, IMAGES)
    np.testing.assert_array_equal(found.taken, trace.taken)
    own = np.take_along_axis(np.asarray(trace.probabilities), found.taken[..., None], axis=2)[..., 0]
    length = 1 + (found.taken[0] != 4).sum()
    np.testing.assert_allclose(found.probabilities[0, :length], own[0, :length], rtol=1e-4)

    def log_prob(image, step):
        logits, taken = cnn_rnn.step_logits_fn(model, variables, image[None])
        return jax.nn.log_softmax(logits)[0, step, taken[0, step]]

    wanted = jax.jit(jax.grad(log_prob), static_argnums=1)(IMAGES[0].astype(np.float32), 1)
    np.testing.assert_allclose(found.maps[0, 1], np.abs(wanted).max(-1), rtol=1e-3, atol=1e-8)


class Dense(nn.Module):
    """A head of one step: two tokens and END, of pixels through one hidden layer."""

    num_labels: int = 2

    @nn.compact
    def __call__(self, x):
        x = rectifier.relu(nn.Dense(5, use_bias=False)(x.reshape(len(x), -1) / 100))
        return nn.Dense(3, use_bias=False)(x)[:, None]


@pytest.mark.parametrize("form", ["deconvolution", "guided"])
def test_deconvolution_is_the_mean_over_nodes_weighted_by_their_softmax(form):
    model, image = Dense(), IMAGES[:1, :2, :2]
    variables = model.init(jax.random.key(0), image.astype(np.float32))
    head = type("head", (), {})
    head.step_logits_fn = staticmethod(lambda model, v, x: (model.apply(v, x), jnp.zeros((1, 1), jnp.int32)))
    found = attribution.step_attention(head, model, variables, image, form)
    layers = [np.asarray(variables["params"][f"Dense_{i}"]["kernel"]) for i in range(2)]
    x = image.reshape(-1).astype(np.float32) / 100
    logits = np.maximum(x @ layers[0], 0) @ layers[1]
    p = np.exp(logits) / np.exp(logits).sum()
    images = [numpy_backward(x, layers, p[k] * np.eye(3)[k], form) / 100 for k in range(3)]
    wanted = np.abs(np.mean(images, axis=0).reshape(2, 2, 3)).max(-1)
    np.testing.assert_allclose(found.maps[0, 0], wanted, rtol=1e-4)
    np.testing.assert_allclose(found.probabilities, [[p[0]]], rtol=1e-5)


def test_steps_of_sigmoids():
    model, variables = built(multi_order_rnn, embedding_size=8, recurrent_size=8, num_steps=2)
    logits, taken = multi_order_rnn.step_logits_fn(model, variables, IMAGES)
    np.testing.assert_allclose(
        attribution.label_scores(multi_order_rnn, model, variables, IMAGES), np.max(logits, axis=1), rtol=1e-6
    )
    found = attribution.step_attention(multi_order_rnn, model, variables, IMAGES)
    own = np.take_along_axis(np.asarray(logits), np.asarray(taken)[..., None], axis=2)[..., 0]
    np.testing.assert_allclose(found.probabilities, 1 / (1 + np.exp(-own)), rtol=1e-4)


def test_steps_of_the_path_head_have_the_search_s_log_probabilities():
    model, variables = built(path, units=8, embedding=8, max_length=3, beam_size=2)
    logits, taken = path.step_logits_fn(model, variables, IMAGES)
    log_probs = np.asarray(jax.nn.log_softmax(logits))
    maker, own = path.make_path(model), {"params": variables["params"]["path"]}
    image = model.apply(variables, IMAGES)["image"][0]
    carry, used, previous = maker.apply(own, method="initial_carry"), np.zeros(5, bool), -1
    for step, token in enumerate(np.asarray(taken[0])):
        carry, wanted = maker.apply(own, carry, jnp.asarray(used), jnp.int32(previous), image, method="step")
        np.testing.assert_allclose(log_probs[0, step, ~used], wanted[~used], rtol=1e-4, atol=1e-5)
        if token == 4:
            break
        used[token], previous = True, token


def test_scores_of_labels_end_with_the_path(recurrent):
    model, variables = recurrent
    found = np.asarray(attribution.label_scores(cnn_rnn, model, variables, IMAGES))
    logits, taken = cnn_rnn.step_logits_fn(model, variables, IMAGES)
    log_probs = np.asarray(jax.nn.log_softmax(logits))
    length = 1 + int((np.asarray(taken)[1] != 4).sum())
    np.testing.assert_allclose(found[1], log_probs[1, :length, :4].max(axis=0), rtol=1e-5)


def test_attention_maps_and_stages_are_the_model_s_own():
    model, variables = built(mscnn_lce_mic, graph="none", mfb_dim=4, gcn_dim=8, global_dim=8)
    outputs = model.apply(variables, IMAGES)
    found = attribution.attention_maps(mscnn_lce_mic, model, variables, IMAGES)
    assert list(found) == ["stage1", "stage2", "stage3"]
    for stage, maps in found.items():
        np.testing.assert_allclose(maps, outputs[f"attention_{stage}"], rtol=1e-5)
    model, variables = built(linear)
    stage, maps = attribution.trunk_maps(model, variables, IMAGES)
    assert stage == "stage3"
    np.testing.assert_allclose(maps, model.apply(variables, IMAGES)["feature_map"], rtol=1e-4, atol=1e-5)
    assert attribution.trunk_maps(model, variables, IMAGES, "stage1")[1].shape == (2, 4, 4, 32)
    with pytest.raises(UserError, match=r"stage 'stage9' is unknown.*stage1"):
        attribution.trunk_maps(model, variables, IMAGES, "stage9")


def test_joint_space(recurrent):
    model, variables = recurrent
    images, labels = attribution.joint_embedding(cnn_rnn, model, variables, IMAGES)
    outputs, params = model.apply(variables, IMAGES), variables["params"]
    np.testing.assert_allclose(
        images, np.asarray(outputs["pooled"]) @ params["image_projection"]["kernel"], rtol=1e-4, atol=1e-5
    )
    np.testing.assert_array_equal(labels, params["decoder"]["label_embedding"][:4])


def test_heads_without_them_name_what_they_have():
    model, variables = built(linear)
    arguments = (linear, model, variables, IMAGES)
    with pytest.raises(UserError, match="'linear' labels images in one step"):
        attribution.step_attention(*arguments)
    with pytest.raises(UserError, match="'linear' has no attention maps; it has feature_map, pooled, logits"):
        attribution.attention_maps(*arguments)
    with pytest.raises(UserError, match="no space that images and labels share"):
        attribution.joint_embedding(*arguments)
