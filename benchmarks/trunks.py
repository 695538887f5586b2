"""Speed of the trunks on this CPU, beside PyTorch's where it is installed: medians of interleaved runs.

    python benchmarks/trunks.py [--rounds 7] [--batch 16] [--keep-memory]

--keep-memory tells glibc to keep freed memory in the process, for both libraries: it spares the page faults that a
large temporary costs each time it is allocated afresh. PyTorch runs in its faster layout, channels last. OpenMP, which
PyTorch uses, suffers far more than XLA when other work shares the cores: run on an idle machine.
"""

import argparse
import ctypes
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlic.models import trunks


def jax_runs(name: str, size: int, batch: int) -> dict[str, Callable[[], None]]:
    """A forward pass and a training step (gradients of all parameters) of a trunk, compiled."""
    module, fields = trunks.get(name)
    trunk = module.Trunk(**fields)
    image = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), np.uint8)
    variables = jax.jit(lambda: trunk.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), False))()

    @jax.jit
    def forward(variables, image):
        return trunk.apply(variables, module.preprocess(image), False)[0]

    @jax.jit
    def step(variables, image):
        def loss(params):
            inputs = {**variables, "params": params}
            (features, _), updates = trunk.apply(inputs, module.preprocess(image), True, mutable="batch_stats")
            return features.mean(), updates

        return jax.grad(loss, has_aux=True)(variables["params"])

    return {
        f"{name} {size} px, forward": lambda: jax.block_until_ready(forward(variables, image)),
        f"{name} {size} px, training step": lambda: jax.block_until_ready(step(variables, image)),
    }


def torch_runs(name: str, size: int, batch: int) -> dict[str, Callable[[], None]]:
    """The same in PyTorch, under the same names."""
    import torch

    sys.path.append(str(Path(__file__).parents[1] / "tests" / "models" / "trunks"))
    from torch_lite import TorchLite
    from torch_resnet import TorchResNet

    model = TorchResNet(50) if name == "resnet50" else TorchLite()
    # The classification layer is no part of what is compared.
    model.fc = torch.nn.Identity()
    model = model.to(memory_format=torch.channels_last)
    image = torch.randn(batch, 3, size, size).to(memory_format=torch.channels_last)

    def forward():
        with torch.inference_mode():
            model.eval()(image)

    def step():
        model.zero_grad()
        model.train()(image)[0].mean().backward()

    return {
        f"{name} {size} px, forward": forward,
        f"{name} {size} px, training step": step,
    }


def measure(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each in every round, after one to compile; the runs take turns, so that all meet the same machine."""
    for run in runs.values():
        run()
    times = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return times


def keep_memory() -> None:
    """glibc: one arena, no mapping of large blocks, no trimming (M_ARENA_MAX, M_MMAP_MAX, M_TRIM_THRESHOLD)."""
    for parameter, value in ((-8, 1), (-4, 0), (-1, 2**31 - 1)):
        ctypes.CDLL(None).mallopt(parameter, value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--keep-memory", action="store_true")
    options = parser.parse_args()
    if options.keep_memory:
        keep_memory()
    runs, batches = {}, {}
    compared = (("efficientnet_lite0", 224), ("efficientnet_lite0", 160), ("resnet50", 224))
    for name, size, batch in (*((*pair, 1) for pair in compared), ("small_cnn", 48, 4)):
        for title, run in jax_runs(name, size, options.batch * batch).items():
            runs["jaxmlic", title], batches[title] = run, options.batch * batch
    try:
        for name, size in compared:
            runs |= {("PyTorch", title): run for title, run in torch_runs(name, size, options.batch).items()}
    except ImportError:
        print("PyTorch is not installed: jaxmlic alone")
    seconds = {name: np.median(times) for name, times in measure(runs, options.rounds).items()}
    for title, batch in batches.items():
        ours = batch / seconds["jaxmlic", title]
        line = f"{title:42s} jaxmlic {ours:6.1f} img/s"
        if ("PyTorch", title) in seconds:
            theirs = batch / seconds["PyTorch", title]
            line += f", PyTorch {theirs:6.1f} img/s, ratio {ours / theirs:.2f}"
        print(line)


if __name__ == "__main__":
    main()
