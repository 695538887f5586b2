"""A trunk beside its PyTorch original: random weights, every stage, the logits and the statistics compared."""

import jax
import jax.numpy as jnp
import numpy as np
import torch

MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def images(*shape):
    return np.random.default_rng(shape).integers(0, 256, (*shape, 3)).astype(np.uint8)


def randomize(model):
    """Weights and statistics away from their defaults, all of them; the size of activations stays."""
    torch.manual_seed(0)
    ranges = {"weight": (0.3, 1), "bias": (-0.3, 0.5), "running_mean": (-0.5, 0.5), "running_var": (0.5, 2)}
    for name, value in model.state_dict().items():
        if value.ndim == 1:
            torch.nn.init.uniform_(value, *ranges[name.rsplit(".", 1)[1]])
        elif value.ndim > 1:
            torch.nn.init.kaiming_normal_(value, nonlinearity="relu")
    return model.eval()


def torch_outputs(model, image):
    """(logits, stages [B, h, w, D]) of an image in 0..255, as torchvision's transforms would feed it."""
    x = (image / 255 - MEAN) / DEVIATION
    with torch.no_grad():
        logits, stages = model(torch.tensor(x, dtype=torch.float32).permute(0, 3, 1, 2))
    return logits.numpy(), {name: value.permute(0, 2, 3, 1).numpy() for name, value in stages.items()}


def runner(module, trunk):
    """Jitted (variables, images, train) -> ((feature map, stages), updates)."""

    def run(variables, image, train):
        rngs = {"dropout": jax.random.key(0)}
        return trunk.apply(variables, module.preprocess(image), train, mutable="batch_stats", rngs=rngs)

    # Without optimisation, as tests have it, XLA runs these wide convolutions 10 to 40 times slower than need be.
    return jax.jit(run, static_argnums=2, compiler_options={"xla_backend_optimization_level": 1})


def assert_near(got, expected, tolerance, name=""):
    assert got.shape == expected.shape, name
    worst = np.abs(np.asarray(got, np.float32) - expected).max() / np.abs(expected).max()
    assert worst < tolerance, (name, worst)


def assert_same_stages(stages, expected, tolerance=1e-4):
    assert set(stages) == set(expected)
    for name, value in expected.items():
        assert_near(stages[name], value, tolerance, name)


def assert_parity(model, run, variables, size, last, batch=1):
    """Every stage and the logits of the imported classifier to 1e-4 of their largest value; stage `last` is the map."""
    image = images(batch, *size)
    logits, expected = torch_outputs(model, image)
    (feature_map, stages), _ = run(variables, image, False)
    assert_same_stages(stages, expected)
    np.testing.assert_array_equal(feature_map, stages[last])
    classifier = variables["classifier"]
    pooled = jnp.mean(feature_map, axis=(1, 2))
    assert_near(pooled @ classifier["kernel"] + classifier["bias"].reshape(1, -1), logits, 1e-4, "logits")


def assert_training_parity(model, run, variables, image, norms):
    """The trunk's stages by the batch's statistics, and the running ones after it.

    norms: path of a batch norm -> (its name in PyTorch, values of each channel in this batch).
    """
    expected = torch_outputs(model.train(), image)[1]
    (_, stages), updates = run(variables, image, True)
    assert_same_stages(stages, {name: expected[name] for name in stages}, 1e-3)
    state = model.eval().state_dict()
    for path, (name, samples) in norms.items():
        stats, before = updates["batch_stats"], variables["batch_stats"]
        for part in path.split("/"):
            stats, before = stats[part], before[part]
        np.testing.assert_allclose(stats["mean"], state[f"{name}.running_mean"], rtol=1e-3, atol=1e-3)
        # PyTorch moves the running variance by the unbiased estimate, Flax by the biased one
        moved = (state[f"{name}.running_var"].numpy() - 0.9 * before["var"]) * (samples - 1) / samples
        np.testing.assert_allclose(stats["var"] - 0.9 * before["var"], moved, rtol=5e-3, atol=1e-4)


def assert_frozen_trains_as_it_evaluates(run, variables, image):
    (trained, _), after = run(variables, image, True)
    (evaluated, _), _ = run(variables, image, False)
    np.testing.assert_array_equal(trained, evaluated)
    jax.tree.map(np.testing.assert_array_equal, after["batch_stats"], variables["batch_stats"])
