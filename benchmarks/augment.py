"""What augmentation on the device costs, as a share of the training step: medians of interleaved runs.

    python benchmarks/augment.py [--size 448] [--batch 16] [--trunk efficientnet_lite0] [--rounds 5]

M1 is the flip, M2 flip and random resized crop, M3 flip and mixup, as in configs/baseline_ensemble.py.
"""

import argparse
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxmlic.configs import common
from trunks import measure

from jaxmlic import config as config_lib
from jaxmlic.data import augment
from jaxmlic.inputs import open_source
from jaxmlic.models.heads import linear
from jaxmlic.training import state as state_lib
from jaxmlic.training import step as step_lib

CLASSES = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=448)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--trunk", default="efficientnet_lite0")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    size, batch = options.size, options.batch
    rng = np.random.default_rng(0)
    labels = jnp.asarray(rng.random((batch, CLASSES)) < 0.1, jnp.int8)
    runs = {}
    for name, side, fields in (
        ("M1", size, {}),
        ("M2", size * 8 // 7, {"crop_area": (0.08, 1.0)}),
        ("M3", size, {"mixup": "every_second_epoch"}),
    ):
        images = jnp.asarray(rng.integers(0, 256, (batch, side, side, 3), np.uint8))
        chosen = {**common.base().augment, **fields}
        one = jax.jit(functools.partial(augment.augment, size=size, **chosen))
        runs[name] = lambda one=one, images=images: jax.block_until_ready(
            one(jax.random.key(0), images, labels, epoch=jnp.int32(0))
        )
    # What follows the step pays for the memory that it gave back: a run of its own, not counted.
    runs = {"after the step": runs["M1"], **runs, "step": step(options, labels)}
    seconds = {name: np.median(times) for name, times in measure(runs, options.rounds).items()}
    print(f"{options.trunk}, {batch} images of {size} px; training step with M1: {1e3 * seconds['step']:.0f} ms")
    for name in ("M1", "M2", "M3"):
        print(f"{name} alone: {1e3 * seconds[name]:.1f} ms, {100 * seconds[name] / seconds['step']:.2f} % of that step")


def step(options: argparse.Namespace, labels: jax.Array):
    """One training step of all parameters, the same state every time."""
    values = {
        "model.trunk": options.trunk,
        "data.image_size": options.size,
        "train.batch_size": options.batch,
        "train.duration": "10 steps",
        "optim.name": "sgd",
    }
    config = config_lib.override(common.base(), values)
    model = linear.Model(CLASSES, **config.model)
    tx, multipliers, _, _ = state_lib.optimizer(config, model, open_source(config).example(), 1000)
    state = jax.jit(
        lambda: state_lib.create(config, model, open_source(config).example(), tx, multipliers, jax.random.key(0))
    )()
    run = jax.jit(step_lib.make_step_fn(linear, model, config, open_source(config), tx, multipliers, 1000))
    images = np.random.default_rng(1).integers(0, 256, (options.batch, options.size, options.size, 3), np.uint8)
    inputs = {"image": jnp.asarray(images), "labels": labels, "mask": jnp.ones(options.batch, bool)}
    return lambda: jax.block_until_ready(run(state, inputs))


if __name__ == "__main__":
    main()
