"""Recurrent cells against PyTorch and against a transcription of CNN-RNN's eq. 1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmlic.errors import UserError
from jaxmlic.models.layers import cells

BATCH, TIME, INPUT, SIZE = 3, 6, 4, 5


def weights(kind, seed=0):
    cell = cells.Cell(INPUT, SIZE, kind)
    params = cell.init(jax.random.key(seed))["params"]
    # Nothing may hide behind a bias of zeros.
    params = {name: x + 0.1 * np.random.default_rng(seed).normal(size=x.shape) for name, x in params.items()}
    return cell.apply({"params": jax.tree.map(jnp.float32, params)})


def inputs(seed=1):
    return np.random.default_rng(seed).normal(size=(TIME, BATCH, INPUT)).astype(np.float32)


def test_lstm_against_pytorch_values_and_gradients():
    torch = pytest.importorskip("torch")
    ours, x = weights("lstm"), inputs()
    theirs = torch.nn.LSTM(INPUT, SIZE)
    with torch.no_grad():
        theirs.weight_ih_l0.copy_(torch.tensor(np.array(ours.input_kernel.T)))
        theirs.weight_hh_l0.copy_(torch.tensor(np.array(ours.recurrent_kernel.T)))
        theirs.bias_ih_l0.copy_(torch.tensor(np.array(ours.bias)))
        theirs.bias_hh_l0.zero_()
    start = np.random.default_rng(2).normal(size=(2, BATCH, SIZE)).astype(np.float32)
    factors = np.random.default_rng(3).normal(size=(TIME, BATCH, SIZE)).astype(np.float32)

    def loss(ours, x, start):
        state, outputs = ours.scan((start[0], start[1]), ours.project(x))
        return jnp.sum(outputs * factors) + jnp.sum(state[0] * state[1]), (outputs, state)

    (_, (outputs, state)), (grads, grad_x, grad_start) = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(
        ours, x, start
    )
    torch_x, torch_start = torch.tensor(x, requires_grad=True), torch.tensor(start[:, None], requires_grad=True)
    found, (h, c) = theirs(torch_x, (torch_start[0], torch_start[1]))
    ((found * torch.tensor(factors)).sum() + (h * c).sum()).backward()
    for a, b in [
        (outputs, found),
        (state[0], h[0]),
        (state[1], c[0]),
        (grad_x, torch_x.grad),
        (grad_start, torch_start.grad[:, 0]),
        (grads.input_kernel, theirs.weight_ih_l0.grad.T),
        (grads.recurrent_kernel, theirs.weight_hh_l0.grad.T),
        (grads.bias, theirs.bias_ih_l0.grad),
    ]:
        np.testing.assert_allclose(a, b.detach().numpy(), atol=1e-5)


def test_paper_cell_is_equation_1():
    ours, x = weights("paper"), inputs()
    assert ours.bias is None
    u_w, u_iw, u_fw, u_ow = np.split(np.array(ours.input_kernel, np.float64), 4, axis=1)
    u_r, u_ir, u_fr, u_or = np.split(np.array(ours.recurrent_kernel, np.float64), 4, axis=1)

    def sigmoid(z):
        return 1 / (1 + np.exp(-z))

    (last,), outputs = ours.scan(ours.initial((BATCH,)), ours.project(x))
    for b in range(BATCH):
        r = np.zeros(SIZE)
        for t in range(TIME):
            w = x[t, b]
            x_t = np.maximum(r @ u_r + w @ u_w, 0)
            i_t = sigmoid(r @ u_ir + w @ u_iw)
            f_t = sigmoid(r @ u_fr + w @ u_fw)
            o_t = sigmoid(r @ u_or + w @ u_ow)
            r = f_t * r + i_t * x_t
            np.testing.assert_allclose(outputs[t, b], r * o_t, atol=1e-5)
        np.testing.assert_allclose(last[b], r, atol=1e-5)


def test_none_is_linear_and_has_no_state():
    ours, x = weights("none"), inputs()
    state, outputs = ours.scan(ours.initial((BATCH,)), ours.project(x))
    assert state == () and ours.recurrent_kernel is None
    np.testing.assert_allclose(outputs, x @ ours.input_kernel, atol=1e-6)


@pytest.mark.parametrize("kind", cells.KINDS)
def test_steps_without_a_batch_equal_the_scan(kind):
    ours, x = weights(kind), inputs()
    _, outputs = ours.scan(ours.initial((BATCH,)), ours.project(x))
    state = ours.initial()
    for t in range(TIME):
        state, output = ours.step(state, ours.project(x[t, 1]))
        np.testing.assert_allclose(output, outputs[t, 1], atol=1e-6)


def test_initial_weights():
    params = cells.Cell(INPUT, SIZE).init(jax.random.key(0))["params"]
    for block in np.split(np.array(params["recurrent_kernel"]), 4, axis=1):
        np.testing.assert_allclose(block @ block.T, np.eye(SIZE), atol=1e-5)
    np.testing.assert_array_equal(params["bias"], np.repeat([0, 1, 0, 0], SIZE))


def test_unknown_kind():
    with pytest.raises(UserError, match=r"config.model.cell = 'lstn' is unknown \(did you mean 'lstm'\?\)"):
        cells.Cell(INPUT, SIZE, "lstn").init(jax.random.key(0))
