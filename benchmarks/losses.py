"""Cost of each loss, value and gradient, at C = 80, 1,000 and 10,000 classes and B = 256, beside plain PyTorch.

    python benchmarks/losses.py [--classes 80 1000 10000] [--batch 256] [--rounds 5] [--memory-gib 7]
                                [--losses warp rmlc ...]

Beside the pairwise losses stand plain PyTorch ones that form every pair, [B, C, C]; beside the others their plain
formulas. Each runs in a process of its own, so that its peak memory is its own: what the process held at most, less
what it held after importing and making the inputs. A process that needs more memory than --memory-gib, or is killed
for it, counts as out of memory. About 3 labels of an image are present. Times are medians; run on an idle machine.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np

PAIRWISE = ("warp", "rmlc", "lsep")
ELEMENTWISE = ("binary_cross_entropy", "softmax_cross_entropy", "asymmetric", "focal", "weighted_cross_entropy")
RMLC = {"s": -0.75, "k": 5.0}


def inputs(batch: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(batch, classes)).astype(np.float32)
    return logits, (rng.random((batch, classes)) < 3 / classes).astype(np.int8)


def ours(name: str, logits: np.ndarray, labels: np.ndarray):
    """A function that computes the mean loss and its gradient, and waits for them."""
    import jax
    import jax.numpy as jnp

    from jaxmlic import losses

    step = jax.jit(jax.value_and_grad(lambda z, y: jnp.mean(getattr(losses, name)(z, y))))
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)  # both arguments: nothing of the labels is known before
    compiled = step.lower(logits, labels).compile()  # the compiler's own memory and time are not the loss's
    return lambda: jax.block_until_ready(compiled(logits, labels))


def plain(name: str, logits: np.ndarray, labels: np.ndarray):
    """The same in PyTorch, written down as the formula has it."""
    import torch

    logits, y = torch.tensor(logits, requires_grad=True), torch.tensor(labels).float()
    harmonic = torch.cat([torch.zeros(1), torch.cumsum(1 / torch.arange(1.0, labels.shape[1] + 1), 0)])
    log = torch.nn.functional.logsigmoid

    def pairs(z, penalty):
        margin = z[:, :, None] - z[:, None, :]  # [B, C, C], z_j - z_k
        valid = y[:, :, None] * (1 - y)[:, None, :]
        rank = ((margin.detach() < 1) * valid).sum(2).long()  # negatives above z_j - 1
        return (harmonic[rank][:, :, None] * valid * penalty(margin)).sum((1, 2))

    def ramp(t):
        return torch.clamp(1 - t, 0, 1 - RMLC["s"])

    def loss(z):
        if name == "warp":
            return pairs(z, lambda t: torch.clamp(1 - t, min=0))
        if name == "rmlc":
            return pairs(z, ramp) + RMLC["k"] * ramp((2 * y - 1) * z).sum(1)
        if name == "lsep":
            valid = y[:, :, None] * (1 - y)[:, None, :]
            return torch.log1p((torch.exp(z[:, None, :] - z[:, :, None]) * valid).sum((1, 2)))
        if name == "binary_cross_entropy":
            return torch.nn.functional.binary_cross_entropy_with_logits(z, y, reduction="none").mean(1)
        if name == "softmax_cross_entropy":
            return -(torch.log_softmax(z, 1) * y).sum(1) / y.sum(1).clamp(min=1)
        if name == "focal":
            towards = torch.where(y == 1, z, -z)
            return -((1 - torch.sigmoid(towards)) ** 2 * log(towards)).mean(1)
        if name == "asymmetric":
            p = torch.sigmoid(z)
            low = (p - 0.05).clamp(min=0)
            return -(y * log(z) + (1 - y) * low**4 * torch.log((1 - low).clamp(min=1e-8))).mean(1)
        positive, negative = y.sum(), (1 - y).sum()
        total = positive + negative + 1
        return -(y * total / (positive + 1) * log(z) + (1 - y) * total / (negative + 1) * log(-z)).sum(1)

    def step():
        logits.grad = None
        value = loss(logits).mean()
        value.backward()
        return value.detach(), logits.grad

    return step


def child(library: str, name: str, batch: int, classes: int, rounds: int, limit_gib: float) -> None:
    """Measures one and prints a line of JSON: value, sum of the gradient's magnitudes, seconds, mebibytes."""
    logits, labels = inputs(batch, classes)
    step = {"jaxmlic": ours, "PyTorch": plain}[library](name, logits, labels)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    used = int(before * 1024 + limit_gib * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (used, used))
    value, gradient = step()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    found = {"value": float(value), "gradient": float(np.abs(np.asarray(gradient)).sum())}
    print(json.dumps(found | {"seconds": float(np.median(times)), "mib": peak / 1024}))


def measure(library: str, name: str, classes: int, options: argparse.Namespace) -> dict | None:
    """What `child` prints, or None when memory ran out."""
    command = [sys.executable, __file__, "--child", library, name, str(classes)]
    command += ["--batch", str(options.batch), "--rounds", str(options.rounds), "--memory-gib", str(options.memory_gib)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    out_of_memory = done.returncode < 0 or any(
        sign in done.stderr for sign in ("MemoryError", "memory", "RESOURCE_EXHAUSTED", "bad_alloc")
    )
    if not out_of_memory:
        raise SystemExit(f"{library} {name} failed: {done.stderr[-2000:]}")
    return None


def describe(found: dict | None) -> str:
    return "     out of memory     " if found is None else f"{1e3 * found['seconds']:9.2f} ms {found['mib']:8.1f} MiB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, nargs="+", default=[80, 1000, 10_000])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory-gib", type=float, default=7.0)
    parser.add_argument("--losses", nargs="+", choices=(*PAIRWISE, *ELEMENTWISE), default=(*PAIRWISE, *ELEMENTWISE))
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        library, name, classes = options.child
        child(library, name, options.batch, int(classes), options.rounds, options.memory_gib)
        return
    try:
        import torch  # noqa: F401

        libraries = ("jaxmlic", "PyTorch")
    except ImportError:
        print("PyTorch is not installed: jaxmlic alone")
        libraries = ("jaxmlic",)
    for classes in options.classes:
        print(f"C = {classes:,}, B = {options.batch}")
        for name in options.losses:
            found = {library: measure(library, name, classes, options) for library in libraries}
            line = f"  {name:24s}" + "   ".join(f"{library} {describe(found[library])}" for library in libraries)
            if all(found.values()) and len(found) == 2:
                one, other = found["jaxmlic"], found["PyTorch"]
                for what in ("value", "gradient"):
                    np.testing.assert_allclose(one[what], other[what], rtol=1e-3, err_msg=f"{name}: {what}")
                line += f"   {other['seconds'] / one['seconds']:6.1f} times"
            print(line, flush=True)


if __name__ == "__main__":
    main()
