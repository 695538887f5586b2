"""What a training step costs beside its arithmetic: the loop, the devices, the levers, the input, the start.

    python benchmarks/steps.py --data-dir=DIR [--only=loop,devices,...] [--rounds=3] [--steps=30] [--photographs=NAME]
        [--weights=FILE]

DIR holds `scenes` (jaxmlic data prepare scenes). Every measurement is a process of its own, the rivals take turns in
each round, and medians over the rounds are printed.
  loop     a linear layer on features in a file: the whole loop beside the jitted call alone, in ms a step;
  devices  the same global batch of `small_cnn` on 1 and on 8 simulated devices;
  levers   prefetch, accumulation, rematerialisation, divided state: ms a step, and a device's bytes by XLA;
  input    share of the time that training waits for input: from features in a file, and from photographs;
  start    `jaxmlic train --config=quickstart:smoke` with an empty and with a warm compilation cache;
  heads    the nine heads of `yardsticks:rows=heads,dataset=NAME` on their stored features (--photographs=NAME, and
           --weights=FILE, the trunk's): ms of the jitted step, values that are trained. Not among the default ones;
  lanes    CPU time of a step of 16 linear heads in one program beside that of one, for 20 and for 260 labels, and of
           its parts (what `jaxmlic sweep --vmap` can gain): arrays alone, no files.
`gpu.py` beside this file measures a step on a GPU.
"""

import argparse
import contextlib
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LEVERS = {
    "none": {},
    "accumulate=4": {"train.accumulate": 4},
    "remat=blocks": {"train.remat": "blocks"},
    "remat=full": {"train.remat": "full"},
    "shard_state": {"train.shard_state": True},
}
SMALL = {"data.name": "scenes", "data.val_fraction": 0.0, "train.batch_size": 64, "data.cache": False}


def measure(job: dict) -> dict:
    """Runs in a process of its own: `job` has config, devices, overrides, steps, and what to measure."""
    import jax
    import numpy as np

    from jaxmlic import config as config_lib
    from jaxmlic import sharding
    from jaxmlic.data import datasets
    from jaxmlic.training import loop
    from jaxmlic.training import state as state_lib
    from jaxmlic.training.logs import metrics_log

    if job.get("devices"):
        jax.config.update("jax_num_cpu_devices", job["devices"])
    overrides = dict(job["overrides"])
    folder = tempfile.mkdtemp()
    if job.get("features"):
        ids = datasets.load(overrides["data.name"], overrides["data.dir"]).ids("train")
        rng = np.random.default_rng(0)
        np.savez(f"{folder}/f.npz", features=rng.normal(size=(len(ids), job["features"])).astype(np.float32), ids=ids)
        overrides |= {"data.source": "file", "data.features_file": f"{folder}/f.npz"}
    overrides |= {"train.duration": f"{job['steps']} steps", "train.checkpoint_every": "100%"}
    config = config_lib.override(config_lib.load(job["config"]), overrides)
    trainer = loop.Trainer(config, f"{folder}/run")
    if job["what"] == "fit":
        with contextlib.redirect_stderr(io.StringIO()):
            trainer.fit()
        row = [row for row in metrics_log.read(f"{folder}/run") if "goodput/steps" in row][-1]
        return {name: row[f"goodput/{name}"] for name in ("steps", "input", "saving", "evaluation", "compiling")}
    state, size = trainer.initial_state(), config.train.batch_size
    shapes = state_lib.parameter_shapes(trainer.model, trainer.source.example())
    trained = sum(int(np.prod(shapes[name])) for name in trainer.trainable)
    batch = sharding.put(trainer.readers()[0](np.arange(size)), trainer.mesh)
    compiled = trainer.train_step.lower(state, batch).compile()
    memory = compiled.memory_analysis()
    for _ in range(3):
        state, scalars = trainer.train_step(state, batch)
    jax.block_until_ready(scalars)
    start = time.perf_counter()
    for _ in range(job["steps"]):
        state, scalars = trainer.train_step(state, batch)
    jax.block_until_ready(scalars)
    return {
        "ms": (time.perf_counter() - start) / job["steps"] * 1e3,
        "state": memory.argument_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
        "trained": trained,
        "batch": size,
    }


def in_turns(jobs: dict[str, dict], rounds: int) -> dict[str, dict]:
    """Medians of every number of every job over the rounds."""
    found = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            done = subprocess.run([sys.executable, __file__, f"--job={json.dumps(job)}"], stdout=subprocess.PIPE)
            if done.returncode:
                sys.exit(f"{name}: failed with status {done.returncode}")
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
    return {name: {key: statistics.median(row[key] for row in rows) for key in rows[0]} for name, rows in found.items()}


def loop_overhead(data_dir: str, rounds: int, steps: int) -> None:
    job = {"config": "quickstart", "overrides": SMALL | {"data.dir": data_dir}, "features": 64, "steps": 20 * steps}
    found = in_turns({what: job | {"what": what} for what in ("call", "fit")}, rounds)
    per_step = {kind: found["fit"][kind] / (20 * steps) * 1e3 for kind in ("steps", "input")}
    whole, call = sum(per_step.values()), found["call"]["ms"]
    print(
        f"loop: {whole:.2f} ms a step (of it input {per_step['input']:.2f}), jitted call {call:.2f}, "
        f"beside it {whole - call:.2f}"
    )


def devices(data_dir: str, rounds: int, steps: int) -> None:
    job = {"config": "quickstart", "overrides": SMALL | {"data.dir": data_dir}, "what": "call", "steps": steps}
    found = in_turns({str(n): job | {"devices": n} for n in (1, 8)}, rounds)
    one, eight = found["1"]["ms"], found["8"]["ms"]
    print(f"devices: {one:.1f} ms a step on 1, {eight:.1f} on 8 simulated ({eight - one:+.1f}, {eight / one:.2f}x)")


def levers(data_dir: str, rounds: int, steps: int) -> None:
    more = {"data.dir": data_dir, "model.trunk": "small_cnn_wide", "train.batch_size": 64}
    job = {"config": "quickstart", "what": "call", "devices": 8, "steps": steps}
    found = in_turns({name: job | {"overrides": SMALL | more | extra} for name, extra in LEVERS.items()}, rounds)
    for name, row in found.items():
        mib = {key: row[key] / 2**20 for key in ("state", "temporary")}
        print(f"levers: {name:13} {row['ms']:7.1f} ms, state and batch {mib['state']:6.2f} MiB a device, "
              f"temporaries {mib['temporary']:6.1f} MiB")  # fmt: skip


def input_wait(data_dir: str, rounds: int, steps: int, photographs: str) -> None:
    base = {"data.dir": data_dir, "data.val_fraction": 0.0}
    small = {"config": "quickstart", "what": "fit"}
    features = small | {"overrides": SMALL | base | {"data.name": photographs}, "features": 2048, "steps": 20 * steps}
    images = small | {
        "overrides": SMALL | base | {"data.name": photographs, "data.image_size": 224, "data.resize": 256}
        | {"model.trunk": "efficientnet_lite0", "model.batch_norm": "frozen", "train.batch_size": 32},
        "steps": steps,
    }  # fmt: skip
    rows = {f"features of {photographs}": features, f"photographs of {photographs}": images}
    for prefetch in (0, 2):
        jobs = {
            name: job | {"overrides": job["overrides"] | {"train.prefetch": prefetch}} for name, job in rows.items()
        }
        for name, row in in_turns(jobs, rounds).items():
            share = row["input"] / (row["steps"] + row["input"])
            print(f"input: {name}, prefetch={prefetch}: {100 * share:.1f} % of the training time")


def heads(data_dir: str, rounds: int, steps: int, dataset: str, weights: str) -> None:
    from jaxmlic.configs import yardsticks

    overrides = {"data.dir": data_dir, "pretrained": str(Path(weights).resolve())}
    jobs = {
        name: {"config": f"yardsticks:rows=heads,head={name},dataset={dataset}", "overrides": overrides}
        | {"what": "call", "steps": steps}
        for name in yardsticks.EQUAL
    }
    for name, row in in_turns(jobs, rounds).items():
        print(
            f"heads: {dataset}, {name:13} {row['ms']:7.1f} ms for {row['batch']:3.0f} images "
            f"({row['ms'] / row['batch']:.2f} an image), {row['trained'] / 1e3:,.0f} thousand values trained"
        )


def cold_and_warm(data_dir: str, rounds: int) -> None:
    times = {"cold": [], "warm": []}
    command = [sys.executable, "-m", "jaxmlic", "train", "--config=quickstart:smoke", f"--config.data.dir={data_dir}"]
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as home:
            environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"} | {"HOME": home}
            for name, seconds in times.items():
                start = time.perf_counter()
                done = [*command, f"--workdir={home}/{name}"]
                subprocess.run(done, env=environment, check=True, capture_output=True)
                seconds.append(time.perf_counter() - start)
    cold, warm = (statistics.median(seconds) for seconds in times.values())
    print(f"start: {cold:.1f} s with an empty cache, {warm:.1f} s with a warm one ({cold / warm:.1f}x)")


def lanes(labels: int, steps: int, count: int = 16, batch: int = 64, width: int = 1280) -> dict[str, float]:
    """CPU ms of a step and of its parts, {"step": of one, "step x16": of as many in one program, ...}."""
    import jax
    import jax.numpy as jnp
    import optax

    tx = optax.adamw(1e-3)
    x = jax.random.normal(jax.random.key(0), (batch, width))
    y = (jax.random.uniform(jax.random.key(1), (batch, labels)) < 0.05).astype(jnp.float32)

    def gradient(w, state):
        return jax.grad(lambda w: optax.sigmoid_binary_cross_entropy(x @ w, y).sum())(w), state

    def update(w, state, grad=None):
        updates, state = tx.update(w if grad is None else grad, state, w)
        return optax.apply_updates(w, updates), state

    def step(w, state):
        return update(w, state, gradient(w, state)[0])

    found = {}
    for name, part in {"step": step, "gradient": gradient, "update": update}.items():
        for suffix, lead, program in (("", (), part), (f" x{count}", (count,), jax.vmap(part))):
            w = jnp.zeros((*lead, width, labels))
            args, run = (w, (jax.vmap(tx.init) if lead else tx.init)(w)), jax.jit(program, donate_argnums=(0, 1))
            for i in range(steps + 2):
                if i == 2:  # compiled, and memory taken
                    start = time.process_time()
                args = jax.block_until_ready(run(*args))
            found[name + suffix] = (time.process_time() - start) / steps * 1e3
    return found


def print_lanes(data_dir: str, rounds: int, steps: int) -> None:
    del data_dir
    for labels, row in in_turns(
        {str(n): {"what": "lanes", "labels": n, "steps": steps} for n in (20, 260)}, rounds
    ).items():
        parts = ", ".join(
            f"{name} {row[name]:.2f} and {row[f'{name} x16']:.2f}" for name in row if not name.endswith(" x16")
        )
        print(f"lanes: {labels} labels, CPU ms of one and of 16: {parts}; {row['step x16'] / row['step']:.1f} times")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir")
    parser.add_argument("--only", default="loop,devices,levers,input,start,lanes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--photographs", default="scenes", help="a prepared data set, such as voc2007_subset")
    parser.add_argument("--weights", default="efficientnet_lite0.npz", help="for heads: the trunk's")
    parser.add_argument("--job")
    options = parser.parse_args()
    if options.job:
        job = json.loads(options.job)
        print(json.dumps(lanes(job["labels"], job["steps"]) if job["what"] == "lanes" else measure(job)))
        return
    with tempfile.TemporaryDirectory() as cache:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", cache)
        print(
            f"{platform.node()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, python {sys.version.split()[0]}"
        )
        given, only = (str(Path(options.data_dir).resolve()), options.rounds, options.steps), options.only.split(",")
        if "loop" in only:
            loop_overhead(*given)
        if "devices" in only:
            devices(*given)
        if "levers" in only:
            levers(*given)
        if "input" in only:
            input_wait(*given, options.photographs)
        if "heads" in only:
            heads(*given, options.photographs, options.weights)
        if "lanes" in only:
            print_lanes(*given)
        if "start" in only:
            cold_and_warm(*given[:2])


if __name__ == "__main__":
    main()
