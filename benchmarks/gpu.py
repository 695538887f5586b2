"""ResNet-101 at 448 px in bfloat16 on a GPU: images a second and share of the peak, beside PyTorch on the same GPU.

    python benchmarks/gpu.py --data-dir=DIR [--images=FOLDER] [--rounds=5] [--steps=10] [--peak=989] [--seconds=600]

DIR holds `scenes` (jaxmlic data prepare scenes); --peak is the GPU's dense bfloat16 peak in TFLOP/s. A process each,
one after the other, so that each has the whole memory:
  jaxmlic    the training step with no lever, with gradient accumulation, rematerialisation and divided state, at
             several batches; they take turns in each round, medians are printed; flips and AdamW are part of the step;
             "1 x 1 as product" has matrix products where the library has convolutions on a GPU;
  pytorch    torchvision's ResNet-101, channels last, bfloat16 autocast, fused AdamW, as it is and through
             torch.compile; images lie on the GPU already, normalised;
  again      jaxmlic without a lever once more, to see how steady the machine is;
  input      the whole loop over JPEG files (those of --images, each under several names): share of time that waits.
  systems    a training step of each published system at its paper's size, compiled for this GPU from shapes alone.
What does not fit into memory says so. --seconds: no new measurement begins after them.
"""

import argparse
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BASE = {"data.name": "scenes", "data.val_fraction": 0.0, "data.image_size": 448, "data.resize": 448}
BASE |= {"model.trunk": "resnet101", "model.dtype": "bfloat16", "augment.crop_area": (1.0, 1.0)}
BASE |= {"train.duration": "1000 steps", "train.checkpoint_every": "100%"}
PRODUCT = "1 x 1 as product"
RUNS = (  # name, batch, overrides
    ("no lever", 128, {}),
    (PRODUCT, 128, {}),
    ("remat=blocks", 128, {"train.remat": "blocks"}),
    ("accumulate=2", 256, {"train.accumulate": 2}),
    ("frozen batch norm", 128, {"model.batch_norm": "frozen"}),
    ("shard_state", 128, {"train.shard_state": True}),
    ("remat=full", 128, {"train.remat": "full"}),
    ("no lever", 256, {}),
)
FLOPS_AN_IMAGE = 3 * 2 * 31.2e9  # multiplications and additions of ResNet-101 at 448 px, forward and twice backward


def jaxmlic_steps(data_dir: str, rounds: int, steps: int, only: int, until: float) -> None:
    """Prints a row of JSON for each of RUNS (the first `only`)."""
    import jax
    import numpy as np

    from jaxmlic import config as config_lib
    from jaxmlic import sharding
    from jaxmlic.models.layers import conv
    from jaxmlic.training import loop

    convolution = conv.strided_conv

    def product_of_slice(x, kernel, stride=1):
        # XLA dies of the product if it may fuse the slice into it.
        x = jax.lax.optimization_barrier(x[:, ::stride, ::stride]) if stride > 1 else x
        return conv.matrix_product(x, kernel)

    calls, found, kept = [], [], None
    rng = np.random.default_rng(0)
    for name, batch, extra in RUNS[:only]:
        if time.time() > until:
            break
        overrides = BASE | {"data.dir": data_dir, "train.batch_size": batch} | extra
        config = config_lib.override(config_lib.load("quickstart"), overrides)
        conv.strided_conv = product_of_slice if name == PRODUCT else convolution
        trainer = loop.Trainer(config, tempfile.mkdtemp())
        row = {"name": name, "batch": batch, "seconds": []}
        found.append(row)
        try:
            kept = jax.device_get(trainer.initial_state()) if kept is None else kept
            state, start = jax.device_put(kept, jax.devices()[0]), time.perf_counter()
            shapes = trainer.source.record_shapes()
            arrays = {k: rng.integers(0, 256, (batch, *shape)).astype(kind) for k, (shape, kind) in shapes.items()}
            labels = rng.integers(0, 2, (batch, len(trainer.dataset.class_names))).astype(np.int8)
            data = sharding.put(arrays | {"labels": labels, "mask": np.ones(batch, bool)}, trainer.mesh)
            compiled = trainer.train_step.lower(state, data).compile()
            row["compile"] = time.perf_counter() - start
            row["temporaries"] = compiled.memory_analysis().temp_size_in_bytes / 2**30
            state, scalars = compiled(state, data)
            jax.block_until_ready(scalars)
            row["loss"] = float(scalars["loss"])
            calls.append((row, compiled, data))
            del state
        except Exception as error:  # of the GPU's memory, by several names
            row["failed"] = str(error).splitlines()[0][:150]
        print(f"  {name}, {batch}: {row}", file=sys.stderr, flush=True)
    for _ in range(rounds):
        for row, compiled, data in calls:
            try:
                state = jax.device_put(kept, jax.devices()[0])
                state, scalars = compiled(state, data)
                jax.block_until_ready(scalars)
                start = time.perf_counter()
                for _ in range(steps):
                    state, scalars = compiled(state, data)
                jax.block_until_ready(scalars)
                row["seconds"].append((time.perf_counter() - start) / steps)
                del state
            except Exception as error:
                row["failed"] = str(error).splitlines()[0][:150]
    print(json.dumps([jax.devices()[0].device_kind, jax.__version__, found]))


def pytorch_steps(rounds: int, steps: int, until: float) -> None:
    import torch
    import torchvision

    torch.backends.cudnn.benchmark = True
    rows = []
    for name, batch in (("eager", 128), ("compile", 128), ("eager", 256)):
        row = {"name": f"PyTorch, {name}", "batch": batch, "seconds": []}
        rows.append(row)
        if time.time() > until:
            row["failed"] = "no time left"
            continue
        try:
            torch.manual_seed(0)
            model = torchvision.models.resnet101(num_classes=20).cuda().to(memory_format=torch.channels_last)
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
            forward = torch.compile(model) if name == "compile" else model
            images = torch.randn(batch, 3, 448, 448, device="cuda").to(memory_format=torch.channels_last)
            labels = torch.randint(0, 2, (batch, 20), device="cuda").float()

            def step(forward=forward, optimizer=optimizer, images=images, labels=labels):
                with torch.autocast("cuda", torch.bfloat16):
                    logits = forward(images)
                loss = torch.nn.functional.binary_cross_entropy_with_logits(logits.float(), labels)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()

            start = time.perf_counter()
            for _ in range(3):
                step()
            torch.cuda.synchronize()
            row["compile"] = time.perf_counter() - start
            for _ in range(rounds):
                start = time.perf_counter()
                for _ in range(steps):
                    step()
                torch.cuda.synchronize()
                row["seconds"].append((time.perf_counter() - start) / steps)
            row["temporaries"] = torch.cuda.max_memory_allocated() / 2**30
        except Exception as error:
            row["failed"] = str(error).splitlines()[0][:150]
        del model, optimizer, forward, images, step
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        print(f"  {row}", file=sys.stderr, flush=True)
    print(json.dumps([torch.cuda.get_device_name(), torch.__version__, rows]))


def input_wait(images: str, steps: int) -> None:
    """Trains on JPEG files with one thread a core and prints the loop's own account of its time."""
    from jaxmlic import config as config_lib
    from jaxmlic.training import loop
    from jaxmlic.training.logs import metrics_log

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        (source / "images").mkdir(parents=True)
        files = sorted(Path(images).resolve().glob("*.jpg"))
        lines = ["file,labels"]
        for number in range(4096 + 64):
            name = f"{number}.jpg"
            (source / "images" / name).symlink_to(files[number % len(files)])
            lines.append(f"{name},{'cat' if number % 3 else 'dog'};{'car' if number % 2 else 'bird'}")
        (source / "train.csv").write_text("\n".join(lines[:-64]) + "\n")
        (source / "test.csv").write_text("\n".join([lines[0], *lines[-64:]]) + "\n")
        command = [sys.executable, "-m", "jaxmlic", "data", "prepare", "photographs", f"--source={source}"]
        subprocess.run([*command, f"--data-dir={folder}"], check=True, stdout=subprocess.DEVNULL)
        for prefetch in (2, 0):
            overrides = BASE | {"data.name": "photographs", "data.dir": folder, "data.threads": os.cpu_count()}
            overrides |= {"train.batch_size": 64, "train.prefetch": prefetch, "train.duration": f"{steps} steps"}
            config = config_lib.override(config_lib.load("quickstart"), overrides)
            trainer = loop.Trainer(config, f"{folder}/{prefetch}")
            with contextlib.redirect_stderr(io.StringIO()):
                trainer.fit()
            row = [row for row in metrics_log.read(f"{folder}/{prefetch}") if "goodput/steps" in row][-1]
            spent = {name: row[f"goodput/{name}"] for name in ("steps", "input", "compiling")}
            share = spent["input"] / (spent["steps"] + spent["input"])
            print(f"input: prefetch={prefetch}, {os.cpu_count()} threads, {steps} steps of 64: {100 * share:.1f} % of "
                  f"the training time waits; {steps * 64 / (spent['steps'] + spent['input']):.0f} img/s; {spent}",
                  flush=True)  # fmt: skip


SYSTEMS = (
    ("cnn_rnn", "coco2014_cnn_rnn"),
    ("multi_order_rnn", "coco2014_multi_order"),
    ("cnn_lstm_rmlc", "coco2014_cnn_lstm_rmlc"),
    ("mscnn_lce_mic:dataset=coco2014", "full"),
    ("baseline_ensemble", "voc2007_resnet101_m3_448"),
    ("baseline_ensemble", "voc2007_vgg16_fc_m2_448"),
    ("linear:mode=finetune", ""),
)


def system(spec: str, name: str) -> None:
    from jaxmlic import config as config_lib
    from jaxmlic import sharding
    from jaxmlic.experiments import plan, sweep

    entries = {entry.name: entry for entry in sweep.entries(spec)}
    entry = entries[name or next(iter(entries))]
    base = config_lib.load(spec)
    config = sweep.config_of(spec, base, entry, ())
    first = sweep.config_of(spec, base, entries[entry.start_from], ()) if entry.start_from else None
    start = time.perf_counter()
    made = plan.make(config, sharding.make_mesh(), labels=20, images=5000, first_stage=first, compile_step=True)
    print(f"{spec} {entry.name}: compiled in {time.perf_counter() - start:.0f} s, batch {made.batch}")


def systems() -> None:
    """Each in a process, all at once; XLA takes the first algorithm that works, which is quick."""
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "XLA_FLAGS": "--xla_gpu_autotune_level=0"}
    jobs = [
        subprocess.Popen(
            [sys.executable, __file__, "--part=system", f"--system={spec},{name}"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for spec, name in SYSTEMS
    ]
    for (spec, name), job in zip(SYSTEMS, jobs, strict=True):
        lines = job.communicate()[0].splitlines()
        print(lines[-1] if not job.returncode and lines else f"{spec} {name}: failed\n" + "\n".join(lines[:12]))


def table(rows: list[dict], peak: float) -> None:
    for row in rows:
        title = f"{row['name']:20} batch {row['batch']:4}"
        if not row["seconds"]:
            print(f"{title}: {row.get('failed', 'not measured')}")
            continue
        rate = row["batch"] / statistics.median(row["seconds"])
        share = 100 * rate * FLOPS_AN_IMAGE / peak / 1e12
        print(f"{title}: {rate:6.0f} img/s ({row['batch'] / max(row['seconds']):.0f} to "
              f"{row['batch'] / min(row['seconds']):.0f}), {share:.0f} % of the peak, "
              f"memory {row.get('temporaries', float('nan')):.1f} GiB, compiled in {row['compile']:.0f} s")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", default="")
    parser.add_argument("--images")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--only", type=int, default=len(RUNS), help="the first of the jaxmlic runs")
    parser.add_argument("--peak", type=float, default=989)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--until", type=float, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--system", help=argparse.SUPPRESS)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part == "jaxmlic":
        return jaxmlic_steps(options.data_dir, options.rounds, options.steps, options.only, options.until)
    if options.part == "pytorch":
        return pytorch_steps(options.rounds, options.steps, options.until)
    if options.part == "system":
        return system(*options.system.split(","))
    if options.part == "systems":
        return systems()
    if options.part == "input":
        return input_wait(options.images, 100)
    until = time.time() + options.seconds
    os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] = "0.92"
    with tempfile.TemporaryDirectory() as cache:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = cache
        first = "jaxmlic", options.only
        for title, only in (first, ("pytorch", 0), ("jaxmlic", 1)) if options.only > 1 else (first,):
            if time.time() > until:
                print(f"{title}: no time left")
                continue
            command = [sys.executable, __file__, f"--part={title}", f"--only={only}", f"--until={until}"]
            command += [f"--data-dir={options.data_dir}", f"--rounds={options.rounds}", f"--steps={options.steps}"]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
            if done.returncode:
                print(f"{title}: failed with status {done.returncode}")
                continue
            device, version, rows = json.loads(done.stdout.splitlines()[-1])
            print(f"{title} {version} on {device}")
            table(rows, options.peak)
            sys.stdout.flush()
        if time.time() < until:
            subprocess.run([sys.executable, __file__, "--part=systems"])
        if options.images and time.time() < until:
            subprocess.run([sys.executable, __file__, "--part=input", f"--images={options.images}"])


if __name__ == "__main__":
    main()
