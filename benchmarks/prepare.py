"""Speed and memory of `jaxmlic data prepare` beside the limits of disk and JPEG decoder.

Run:  python benchmarks/prepare.py --images=VOC2007_SUBSET/JPEGImages [--repeats=3] [--times=10]

Routes, in turn, medians over the repeats: the command on a table of the images (every image is read, checked by
decoding at an eighth of its size, and written into ArrayRecord shards); reading the files; reading and checking them in
the same number of threads; copying them one by one. Then the command once on `times` as many images (the same ones
under new names), for its peak memory.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jaxmlic.data.image import inspect_image

COMMAND = """
import resource, sys
from jaxmlic.cli import main as cli
status = cli.run(sys.argv[1:])
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
sys.exit(status)
"""


def table(folder: Path, images: list[Path], times: int) -> Path:
    """A folder with train.csv and links to the images, each `times` times."""
    folder.mkdir()
    rows = ["file,labels"]
    for copy in range(times):
        for image in images:
            name = f"{copy}_{image.name}"
            try:
                (folder / name).hardlink_to(image)
            except OSError:  # another disk
                shutil.copyfile(image, folder / name)
            rows.append(f"{name},thing")
    (folder / "train.csv").write_text("\n".join(rows) + "\n")
    return folder


def prepare(source: Path, data_dir: Path) -> tuple[float, int]:
    """(seconds, peak memory in KiB) of the command, start of Python included; what it made is removed."""
    argv = ["data", "prepare", "bench", f"--source={source}", f"--data-dir={data_dir}"]
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", COMMAND, *argv], capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - start
    shutil.rmtree(data_dir)
    return seconds, int(done.stdout.rpartition("peak ")[2])


def timed(function, *args) -> float:
    """Seconds of a call."""
    start = time.perf_counter()
    function(*args)
    return time.perf_counter() - start


def read_all(paths: list[Path]) -> None:
    """Every file's bytes, one after the other."""
    for path in paths:
        path.read_bytes()


def check_all(paths: list[Path], workers: int) -> None:
    """Every file read and checked, in threads."""
    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(lambda path: inspect_image(path.read_bytes()), paths):
            pass


def copy_all(paths: list[Path], folder: Path) -> None:
    """Every file copied into one file, as the shards are."""
    with (folder / "copy").open("wb") as out:
        for path in paths:
            out.write(path.read_bytes())


def main() -> None:
    """Prints the two tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", required=True, type=Path, help="a folder of JPEG images")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--times", type=int, default=10)
    args = parser.parse_args()
    images = sorted(args.images.glob("*.jpg"))
    workers = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small, large = table(folder / "small", images, 1), table(folder / "large", images, args.times)
        paths = sorted(small.glob("*.jpg"))
        size = sum(path.stat().st_size for path in paths)
        routes = {
            "jaxmlic data prepare (with the start of Python)": lambda: prepare(small, folder / "data")[0],
            "read the files": lambda: timed(read_all, paths),
            f"read and check, {workers} threads": lambda: timed(check_all, paths, workers),
            "copy the files into one": lambda: timed(copy_all, paths, folder),
        }
        read_all(paths)  # all routes find the files in memory
        seconds = {route: [] for route in routes}
        for _ in range(args.repeats):
            for route, run in routes.items():
                seconds[route].append(run())
        print(f"{len(paths):,} images, {size / 1e6:.0f} MB, {workers} workers, {args.repeats} repeats in turn")
        for route, times in seconds.items():
            median = statistics.median(times)
            print(f"{route:50} {len(paths) / median:9,.0f} img/s {size / 1e6 / median:8,.0f} MB/s")
        for source, count in ((small, len(paths)), (large, len(paths) * args.times)):
            took, peak = prepare(source, folder / "data")
            print(f"{count:,} images: {count / took:,.0f} img/s, peak memory {peak / 1024:,.0f} MiB")


if __name__ == "__main__":
    main()
