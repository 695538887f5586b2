"""Trunks of timm and torchvision beside ours: random weights through a file, features and gradients compared.

Gradients are those of one scalar: the feature map, every compared stage and the pooled vector, weighted at random.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import torch

from jaxmlic.models import trunks
from jaxmlic.models.trunks import pretrained


def randomize(model, seed=0):
    """Every parameter and statistic away from its initial value; the size of activations stays."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for norm in model.modules():
            if isinstance(norm, torch.nn.BatchNorm2d):
                norm.running_mean.copy_(0.3 * torch.randn(norm.running_mean.shape, generator=generator))
                norm.running_var.copy_(0.5 + torch.rand(norm.running_var.shape, generator=generator))
        for name, value in model.named_parameters():
            if value.ndim == 1 or name.endswith(("gamma", "layer_scale")):
                around = 1.0 if re.search(r"(norm\d?|bn\d?|downsample\.1)\.weight$|gamma$", name) else 0.0
                value.copy_(around + 0.3 * torch.randn(value.shape, generator=generator))
            else:
                fan_in = value[0].numel() if value.ndim > 1 else 1
                std = 0.5 if name.endswith(("pos_embed", "token", "latent", "table", "embedding")) else fan_in**-0.5
                value.copy_(std * torch.randn(value.shape, generator=generator))
    return model.eval()


def images(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3)).astype(np.uint8)


def ours(name, variables, image, weights, dtype="float32"):
    """({output: array}, gradient by the input, gradients by the parameters) of the trunk `name`.

    The last are None in float64: batch norm has those of its parameters in float32.
    """
    module, fields = trunks.get(name)
    trunk = module.Trunk(**fields, dtype=jnp.dtype(dtype))
    x = trunks.preprocess_of(name)(jnp.asarray(image))
    if dtype == "float64":
        variables, x = jax.tree.map(lambda value: jnp.asarray(value, dtype), (variables, x))

    def outputs(params, x):
        feature_map, stages = trunk.apply({**variables, "params": params}, x, False)
        return {"map": feature_map} | {key: stages[key] for key in weights if key != "map"}

    def scalar(params, x):
        found = outputs(params, x)
        return sum(jnp.sum(found[key].astype(weights[key].dtype) * weights[key]) for key in weights), found

    by = 1 if dtype == "float64" else (1, 0)
    run = jax.jit(jax.grad(scalar, argnums=by, has_aux=True), compiler_options={"xla_backend_optimization_level": 1})
    gradients, found = run(variables["params"], x)
    by_input, by_params = (gradients, None) if dtype == "float64" else gradients
    return found, by_input, by_params


def theirs(model, outputs_of, image, statistics, weights=None):
    """The same in PyTorch, and the weights; `outputs_of(model, x)` gives {output: tensor [B, h, w, D]}."""
    mean, deviation = (torch.tensor(v).reshape(1, 3, 1, 1) for v in statistics)
    dtype = next(model.parameters()).dtype
    x = ((torch.tensor(image).permute(0, 3, 1, 2).to(dtype) / 255 - mean) / deviation).to(dtype)
    x.requires_grad_()
    model.zero_grad()
    found = outputs_of(model, x)
    if weights is None:
        rng = np.random.default_rng(1)
        kind = str(dtype).removeprefix("torch.")
        weights = {key: rng.normal(size=value.shape).astype(kind) for key, value in found.items()}
    sum((value * torch.tensor(weights[key])).sum() for key, value in found.items()).backward()
    by_params = {name: value.grad.numpy() for name, value in model.named_parameters() if value.grad is not None}
    arrays = {key: value.detach().numpy() for key, value in found.items()}
    return arrays, x.grad.permute(0, 2, 3, 1).numpy(), by_params, weights


def relative(got, expected):
    """The largest difference over the largest value."""
    got = np.asarray(got, np.float64)
    assert got.shape == expected.shape, (got.shape, expected.shape)
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def compare(model, outputs_of, name, path, size, statistics, batch=2, dtype="float32"):
    """{"forward", "input gradient", "parameter gradients": largest relative difference} of images of a size.

    Gradients of parameters are compared where the file's names are those of timm or torchvision.

    path: where the model's state dict is written to, and read from.
    dtype: of the arithmetic; "float64" asks for `jax_enable_x64`.
    """
    torch.save(model.state_dict(), path)
    model.to(getattr(torch, dtype))
    variables = pretrained.load(path, name)
    image = images(batch, *size)
    expected, by_input, by_params, weights = theirs(model, outputs_of, image, statistics)
    found, our_input, our_params = ours(name, variables, image, weights, dtype)
    both = {
        "forward": max(relative(found[key], value) for key, value in expected.items()),
        "input gradient": relative(our_input, by_input),
    }
    if our_params is None:
        return both
    module, fields = trunks.get(name)
    names = pretrained._names(module, fields, pretrained._converted(module, fields, pretrained.read_state(path)), False)
    flat = {("params", *key): value for key, value in _flat(our_params)}
    names = {key: of_theirs for key, of_theirs in names.items() if key[0] == "params"}
    assert set(flat) == set(names)
    worst = []
    for key, theirs_name in names.items():
        value = by_params.get(theirs_name)
        if value is None:
            continue
        got = pretrained._to_flax(key, value) if value.ndim == 4 or key[-1] == "kernel" else value
        if theirs_name == "pos_embed":
            got = got.reshape(-1, got.shape[-1])[-flat[key].shape[0] :]
        worst.append(relative(flat[key], got.reshape(flat[key].shape)))
    return both | ({"parameter gradients": max(worst)} if len(worst) == len(names) else {})


def _flat(tree):
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield tuple(part.key for part in path), leaf
