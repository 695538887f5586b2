"""Trunks of timm and torchvision beside ours: random weights through a file, features and gradients compared.

Gradients are those of one scalar: the feature map, every compared stage and the pooled vector, weighted at random.
"""

import jax
import jax.numpy as jnp
import numpy as np
import torch

from jaxmlic.models import trunks
from jaxmlic.models.trunks import pretrained


def randomize(model, seed=0):
    """Every parameter away from its initial value; the size of activations stays."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim == 1 or name.endswith(("gamma", "layer_scale")):
                around = 1.0 if name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "gamma")) else 0.0
                value.copy_(around + 0.3 * torch.randn(value.shape, generator=generator))
            else:
                fan_in = value[0].numel() if value.ndim > 1 else 1
                std = 0.5 if name.endswith(("pos_embed", "token", "latent", "table", "embedding")) else fan_in**-0.5
                value.copy_(std * torch.randn(value.shape, generator=generator))
    return model.eval()


def images(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3)).astype(np.uint8)


def ours(name, variables, image, weights, dtype="float32"):
    """({output: array}, gradient by the input, gradients by the parameters) of the trunk `name`."""
    module, fields = trunks.get(name)
    trunk = module.Trunk(**fields, dtype=jnp.dtype(dtype))
    x = trunks.preprocess_of(name)(jnp.asarray(image))

    def outputs(params, x):
        feature_map, stages = trunk.apply({"params": params}, x, False)
        return {"map": feature_map} | {key: stages[key] for key in weights if key != "map"}

    def scalar(params, x):
        found = outputs(params, x)
        return sum(jnp.sum(found[key].astype(jnp.float32) * weights[key]) for key in weights), found

    run = jax.jit(
        jax.grad(scalar, argnums=(0, 1), has_aux=True), compiler_options={"xla_backend_optimization_level": 1}
    )
    (by_params, by_input), found = run(variables["params"], x)
    return found, by_input, by_params


def theirs(model, outputs_of, image, statistics, weights=None):
    """The same in PyTorch, and the weights; `outputs_of(model, x)` gives {output: tensor [B, h, w, D]}."""
    mean, deviation = (torch.tensor(v).reshape(1, 3, 1, 1) for v in statistics)
    x = (torch.tensor(image).permute(0, 3, 1, 2).float() / 255 - mean) / deviation
    x.requires_grad_()
    model.zero_grad()
    found = outputs_of(model, x)
    if weights is None:
        rng = np.random.default_rng(1)
        weights = {key: rng.normal(size=value.shape).astype(np.float32) for key, value in found.items()}
    sum((value * torch.tensor(weights[key])).sum() for key, value in found.items()).backward()
    by_params = {name: value.grad.numpy() for name, value in model.named_parameters() if value.grad is not None}
    arrays = {key: value.detach().numpy() for key, value in found.items()}
    return arrays, x.grad.permute(0, 2, 3, 1).numpy(), by_params, weights


def relative(got, expected):
    """The largest difference over the largest value."""
    got = np.asarray(got, np.float32)
    assert got.shape == expected.shape, (got.shape, expected.shape)
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def compare(model, outputs_of, name, path, size, statistics, batch=2):
    """{"forward", "input gradient", "parameter gradients": largest relative difference} of images of a size.

    Gradients of parameters are compared where the file's names are those of timm or torchvision.

    path: where the model's state dict is written to, and read from.
    """
    torch.save(model.state_dict(), path)
    variables = pretrained.load(path, name)
    image = images(batch, *size)
    expected, by_input, by_params, weights = theirs(model, outputs_of, image, statistics)
    found, our_input, our_params = ours(name, variables, image, weights)
    module, fields = trunks.get(name)
    names = pretrained._names(module, fields, pretrained._converted(module, fields, pretrained.read_state(path)), False)
    flat = {("params", *key): value for key, value in _flat(our_params)}
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
    forward = max(relative(found[key], value) for key, value in expected.items())
    both = {"forward": forward, "input gradient": relative(our_input, by_input)}
    return both | ({"parameter gradients": max(worst)} if len(worst) == len(names) else {})


def _flat(tree):
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield tuple(part.key for part in path), leaf
