"""A bundle of `jaxmlic export` beside the run that it was made of: size, first prediction, images a second, scores.

    python benchmarks/export.py RUN DIR [--images 128] [--rounds 3] [--python VENV/bin/python]

The photographs are the first of the test split, as files. First prediction: a process from its start to the labels of
one photograph, with nothing compiled before, and again with the programs of the first time in JAX's cache. Images a
second: `Bundle.label` and `Run.predict` in one process, reading included, compiled before; medians of interleaved
rounds, and CPU seconds, which say more where others use the machine. --python: an environment that has what the bundle
asks for (requirements.txt) and no more.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import jaxmlic
from jaxmlic.data import loader
from jaxmlic.run import Run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("bundle")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--python", default=sys.executable)
    options = parser.parse_args()
    run, bundle = jaxmlic.load(options.run), Path(options.bundle)
    with tempfile.TemporaryDirectory() as scratch:
        files = photographs(run, options.images, Path(scratch))
        ours = [sys.executable, "-m", "jaxmlic", "predict", f"--workdir={options.run}", f"--out={scratch}/found"]
        commands = {"bundle": [options.python, "-B", str(bundle / "run_bundle.py")], "jaxmlic predict": ours}
        first = {name: first_prediction([*command, files[0]], scratch) for name, command in commands.items()}
        wall, cpu, apart = speeds(run, bundle, files, options.rounds)
    size = sum(path.stat().st_size for path in bundle.iterdir() if path.is_file())
    of_run = sum(path.stat().st_size for path in (Path(options.run) / "checkpoints" / str(run.step)).rglob("*"))
    print(
        f"{run.config.head}, {run.config.data.image_size} px, {len(files)} photographs; scores apart by {apart:.2g}\n"
    )
    print(f"{'':34}{'bundle':>10}{'jaxmlic predict':>17}")
    rows = {
        "size, MB (the run: its checkpoint)": (size / 1e6, of_run / 1e6),
        "first prediction, s": [first[name][0][0] for name in commands],
        "  CPU, s": [first[name][0][1] for name in commands],
        "the same, compiled before, s": [first[name][1][0] for name in commands],
        "  CPU, s ": [first[name][1][1] for name in commands],
        "images a second": [len(files) / wall[name] for name in commands],
        "images a CPU second": [len(files) / cpu[name] for name in commands],
    }
    for name, (a, b) in rows.items():
        print(f"{name:34}{a:10.1f}{b:17.1f}")


def photographs(run: Run, count: int, folder: Path) -> list[str]:
    """Files with the first photographs of the test split."""
    view = loader.find_view(run.config.data, run.dataset, run.config.seed, run.config.data.test_split)
    source, files = view.dataset.source(view.split), []
    for number, row in enumerate(view.indices[:count]):
        files.append(str(folder / f"{number:05}.jpg"))
        Path(files[-1]).write_bytes(source[int(row)]["image"])
    return files


def first_prediction(command: list[str], scratch: str) -> list[tuple[float, float]]:
    """(wall, CPU) seconds of a command with an empty cache of compiled programs, and with what it left there."""
    found = []
    with tempfile.TemporaryDirectory(dir=scratch) as cache:
        environment = os.environ | {
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        }
        for _ in range(2):
            before, start = os.times(), time.perf_counter()
            subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            after, seconds = os.times(), time.perf_counter() - start
            used = after.children_user + after.children_system - before.children_user - before.children_system
            found.append((seconds, used))
    return found


def speeds(run: Run, bundle: Path, files: list[str], rounds: int) -> tuple[dict, dict, float]:
    """Median wall and CPU seconds of labelling the files, by name; the largest difference of a score."""
    sys.path.insert(0, str(bundle))
    import photographs as reading
    import run_bundle

    loaded = run_bundle.Bundle(str(bundle))
    ways = {"bundle": lambda: list(loaded.label(files)), "jaxmlic predict": lambda: run.predict(files)}
    for way in ways.values():
        way()
    wall, cpu = {name: [] for name in ways}, {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start, used = time.perf_counter(), time.process_time()
            way()
            wall[name].append(time.perf_counter() - start)
            cpu[name].append(time.process_time() - used)
    pixels = np.stack([reading.read(file, loaded.facts["image_size"]) for file in files[: run_bundle.BATCH]])
    apart = np.abs(loaded.predict(pixels)["scores"] - run.predict(files[: run_bundle.BATCH]).scores).max()
    return (
        {name: float(np.median(times)) for name, times in wall.items()},
        {name: float(np.median(times)) for name, times in cpu.items()},
        float(apart),
    )


if __name__ == "__main__":
    main()
