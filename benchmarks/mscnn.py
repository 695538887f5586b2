"""A training step of MSCNN-LCE-MIC's head (label GCN and MFB) at 80, 1,000 and 10,000 labels: time and memory.

Run:  python benchmarks/mscnn.py [--labels=80,1000,10000] [--batch=32] [--steps=3] [--fusion=mfb,power_l2,naive,dot]

The head alone, from image vectors [B, 1432] (three stages of EfficientNet-Lite0): loss, gradients and no optimizer.
Each size runs in a process of its own, so that the peak memory is its own. `mfb` is Section E's form, `power_l2` that
with MFB's own normalisation, in blocks of labels, `naive` the same without blocks, with an array over images, labels
and units.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlic import losses
from jaxmlic.models.layers import graph_convolution

WIDTH, WORDS, EDGES = 1432, 300, 8  # image vector, word vectors, neighbours of a label


def adjacency(count: int) -> np.ndarray:
    """A label graph with EDGES neighbours a label, normalised: dense, as the head has it."""
    rng, matrix = np.random.default_rng(0), np.zeros((count, count), np.float32)
    rows = np.repeat(np.arange(count), EDGES)
    matrix[rows, rng.integers(0, count, count * EDGES)] = 0.25 / EDGES
    matrix[np.arange(count), np.arange(count)] = 1
    return matrix


def measure(count: int, batch: int, steps: int, fusion: str) -> dict[str, float]:
    """Seconds a step, the compiler's working memory and the process's peak, in MiB."""
    rng = np.random.default_rng(1)
    images = jnp.asarray(rng.standard_normal((batch, WIDTH), np.float32))
    words = jnp.asarray(rng.standard_normal((count, WORDS), np.float32))
    labels = jnp.asarray((rng.random((batch, count)) < 3 / count).astype(np.int8))
    graph = jnp.asarray(adjacency(count))
    gcn = graph_convolution.GraphConvolutions((1024, 2048 if fusion != "dot" else WIDTH))
    mfb = fusion.FactorizedBilinear(norm="none" if fusion == "mfb" else "power_l2")
    params = {"gcn": jax.jit(gcn.init)(jax.random.key(0), graph, words)}
    if fusion != "dot":
        params["mfb"] = jax.jit(mfb.init)(jax.random.key(1), images, jnp.zeros((count, 2048)))
    if fusion == "naive":
        fusion._BLOCK["cpu"] = fusion._OTHER_BLOCK = 1 << 62

    # The arrays are arguments: as constants, 400 MB of graph would be copied into the program.
    def loss(params: dict, graph: jax.Array, words: jax.Array, images: jax.Array, labels: jax.Array) -> jax.Array:
        embeddings = gcn.apply(params["gcn"], graph, words)
        logits = images @ embeddings.T if fusion == "dot" else mfb.apply(params["mfb"], images, embeddings)
        return losses.weighted_cross_entropy(logits, labels).mean()

    inputs = (params, graph, words, images, labels)
    step = jax.jit(jax.value_and_grad(loss)).lower(*inputs).compile()
    jax.block_until_ready(step(*inputs))
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        jax.block_until_ready(step(*inputs))
        times.append(time.perf_counter() - start)
    return {
        "seconds": float(np.median(times)),
        "working_mib": step.memory_analysis().temp_size_in_bytes / 2**20,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", default="80,1000,10000")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--fusion", default="mfb,power_l2,naive,dot")
    parser.add_argument("--one", action="store_true", help="measure here, and print JSON")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(int(options.labels), options.batch, options.steps, options.fusion)))
        return
    print(f"batch {options.batch}, {jax.default_backend()}")
    print(f"{'fusion':9} {'labels':>7} {'ms/step':>9} {'working MiB':>12} {'peak MiB':>9}")
    for fusion in options.fusion.split(","):
        for count in options.labels.split(","):
            argv = [sys.executable, __file__, "--one", f"--labels={count}", f"--fusion={fusion}"]
            argv += [f"--batch={options.batch}", f"--steps={options.steps}"]
            done = subprocess.run(argv, capture_output=True, text=True)
            if done.returncode:
                print(f"{fusion:9} {int(count):7,} failed: {(done.stderr.strip().splitlines() or ['killed'])[-1][:80]}")
                continue
            found = json.loads(done.stdout.splitlines()[-1])
            print(
                f"{fusion:9} {int(count):7,} {1000 * found['seconds']:9.1f} {found['working_mib']:12,.0f} "
                f"{found['peak_mib']:9,.0f}"
            )


if __name__ == "__main__":
    main()
