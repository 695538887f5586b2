"""Input pipelines side by side: images a second from JPEG files to batches of 448 x 448 uint8.

    python benchmarks/input.py --data-dir=DIR --name=voc2007_subset --images=FOLDER [--threads=2] [--repeats=5]

Four routes do the same job in turn, `repeats` times, and the medians are compared:
  ours     jaxmlic's pipeline over the prepared data set NAME (ArrayRecord, grain, OpenCV), with THREADS threads;
  opencv   the limit: cv2.imdecode and cv2.resize alone on bytes in memory, THREADS threads, no batches, no shuffling;
  torch    torch.utils.data.DataLoader with PIL over the files in FOLDER, THREADS worker processes, uint8 batches;
  usual    the same as it is usually written: float32, 0..1, normalised, channels first, in the workers (ours does
           that part on the device).
"""

import argparse
import platform
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from jaxmlic.cli import main as cli
from jaxmlic.data import datasets, loader
from jaxmlic.inputs.images import ImageReader


def ours(reader: ImageReader, batch_size: int, threads: int, count: int) -> float:
    iterator = loader.train_iterator(reader, batch_size, seed=0, threads=threads)
    next(iterator)  # threads are up
    start = time.perf_counter()
    for _ in range(count // batch_size):
        next(iterator)
    return count // batch_size * batch_size / (time.perf_counter() - start)


def opencv(encoded: list[np.ndarray], side: int, threads: int, count: int) -> float:
    def work(i: int) -> int:
        image = cv2.imdecode(encoded[i % len(encoded)], cv2.IMREAD_COLOR_RGB)
        return cv2.resize(image, (side, side), interpolation=cv2.INTER_LINEAR).size

    with ThreadPoolExecutor(threads) as pool:
        start = time.perf_counter()
        list(pool.map(work, range(count)))
        return count / (time.perf_counter() - start)


def torch_loader(paths: list[Path], side: int, batch_size: int, workers: int, usual: bool):
    import torch
    from PIL import Image

    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]

    class Files(torch.utils.data.Dataset):
        def __len__(self):
            return len(paths)

        def __getitem__(self, i):
            image = Image.open(paths[i]).convert("RGB").resize((side, side), Image.BILINEAR)
            pixels = torch.from_numpy(np.asarray(image).copy())
            return (pixels.permute(2, 0, 1).contiguous().float() / 255 - mean) / std if usual else pixels

    return torch.utils.data.DataLoader(
        Files(), batch_size, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=True
    )


def torch_rate(loader, batch_size: int, count: int) -> float:
    iterator, done = iter(loader), 0
    next(iterator)  # workers are up
    start = time.perf_counter()
    while done < count:
        try:
            done += len(next(iterator))
        except StopIteration:
            iterator = iter(loader)
    return done / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir")
    parser.add_argument("--name", default="voc2007_subset")
    parser.add_argument("--images", type=Path, required=True, help="the same images as files")
    parser.add_argument("--side", type=int, default=448)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--count", type=int, default=1536, help="images per measurement")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    cv2.setNumThreads(0)  # one decoding thread is one thread
    cli.keep_freed_memory()  # as every command does

    dataset = datasets.load(options.name, options.data_dir)
    view = loader.View(dataset, "train", np.arange(dataset.splits["train"]))
    reader = ImageReader(view, options.side)
    source = dataset.source("train")
    encoded = [np.frombuffer(source[i]["image"], np.uint8) for i in range(len(view))]
    paths = sorted(p for p in options.images.iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    wanted = {str(name).rpartition("/")[2] for name in view.ids}
    paths = [p for p in paths if p.name in wanted or p.stem in wanted] or paths

    routes = {
        "ours": lambda: ours(reader, options.batch_size, options.threads, options.count),
        "opencv": lambda: opencv(encoded, options.side, options.threads, options.count),
    }
    versions = {"cv2": cv2.__version__, "python": platform.python_version()}
    try:
        import torch

        for name, usual in (("torch", False), ("usual", True)):
            batches = torch_loader(paths, options.side, options.batch_size, options.threads, usual)
            routes[name] = lambda batches=batches: torch_rate(batches, options.batch_size, options.count)
        versions["torch"] = torch.__version__
    except ImportError:
        print("torch is not installed: its route is left out (pip install 'jaxmlic[torch]')")
    rates = {name: [] for name in routes}
    for _ in range(options.repeats):
        for name, route in routes.items():
            time.sleep(2)  # what the route before has prefetched must not run into this one's time
            rates[name].append(route())
    sizes = f"{options.side} px, batch {options.batch_size}, {options.threads} threads"
    print(f"{len(view)} images of {options.name}, {sizes}")
    print(", ".join(f"{k} {v}" for k, v in versions.items()))
    for name, values in rates.items():
        print(f"{name:8} {statistics.median(values):8.0f} img/s   ({min(values):.0f} to {max(values):.0f})")
    for other in list(rates)[1:]:
        ratio = statistics.median(a / b for a, b in zip(rates["ours"], rates[other], strict=True))
        print(f"ours / {other}: {ratio:.2f} (median of {options.repeats} pairs)")


if __name__ == "__main__":
    main()
