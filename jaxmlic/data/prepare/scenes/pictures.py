"""Draws scenes: backgrounds, glyphs and boxes, JPEG bytes, and many pictures at once in child processes."""

import contextlib
import functools
import itertools
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from jaxmlic.data.prepare.scenes import layout
from jaxmlic.data.prepare.scenes.layout import Placed, labels_of, lay_out, split_number, warp
from jaxmlic.errors import UserError

SIDE = 48
CANVAS = 2  # glyphs are drawn at this many times the picture's side, then averaged down
GRID = 5  # knots of the background's blotches along each axis
NOISE = np.float32(0.025)  # of each pixel, either way
CHUNK = 64  # pictures a worker process sends at a time


@dataclass(frozen=True)
class Example:
    """image: uint8 [side, side, 3] RGB. labels: int8 [20], 1 or 0. boxes: one dict a glyph, first drawn first.

    A box is {"bbox": float32 [4] (ymin, xmin, ymax, xmax in 0..1), "label": int, "difficult": False}: the extent of
    the glyph inside the picture before others cover it.
    """

    image: np.ndarray
    labels: np.ndarray
    boxes: list[dict]


@functools.cache
def _spline(side: int) -> np.ndarray:
    """Weights of smooth interpolation from GRID knots to `side` pixels, float32 [side, GRID]; every row sums to 1."""
    knots = np.eye(GRID, dtype=np.float32)
    return cv2.resize(knots, (GRID, side), interpolation=cv2.INTER_CUBIC)


def _background(rng: np.random.Generator, side: int) -> np.ndarray:
    """Two soft colours, one above the other, with broad blotches: float32 [side, side, 3] in about 0..1."""
    ends = rng.uniform(0.25, 0.85, (2, 1, 1)) + rng.uniform(-0.15, 0.15, (2, 1, 3))  # [top and bottom, 1, RGB]
    fade = np.linspace(0, 1, GRID)[:, None, None]
    blotches = rng.normal(0, 0.07, (GRID, GRID, 1)) + rng.normal(0, 0.03, (GRID, GRID, 3))
    grid = ((1 - fade) * ends[0] + fade * ends[1] + blotches).astype(np.float32)
    across = _spline(side) @ grid.transpose(1, 0, 2).reshape(GRID, GRID * 3)  # [side (x), GRID (y) * RGB]
    across = across.reshape(side, GRID, 3).transpose(1, 0, 2).reshape(GRID, side * 3)
    return (_spline(side) @ across).reshape(side, side, 3)


def paint(objects: Sequence[Placed], seed: Sequence[int], side: int = SIDE) -> tuple[np.ndarray, list[dict]]:
    """Draws a layout: uint8 [side, side, 3] RGB, and the boxes of `Example`. `seed` fixes background and noise."""
    rng = np.random.default_rng([*seed, 1])
    canvas_side = CANVAS * side
    canvas = _background(rng, canvas_side)
    boxes = []
    for placed in objects:
        patch, top, left = warp(placed, canvas_side)
        opaque = cv2.extractChannel(patch, 3)  # [h, w]
        alpha = cv2.cvtColor(opaque, cv2.COLOR_GRAY2RGB)  # [h, w, 3]
        colour = np.minimum(cv2.transform(patch, placed.colour), alpha)  # premultiplied: never above alpha
        under = canvas[top : top + patch.shape[0], left : left + patch.shape[1]]
        under *= 1 - alpha
        under += colour
        bbox = _extent(opaque, top, left, canvas_side)
        boxes.append({"bbox": bbox, "label": placed.label, "difficult": False})
    image = cv2.resize(canvas, (side, side), interpolation=cv2.INTER_AREA)
    image += NOISE * (2 * rng.random(image.shape, np.float32) - 1)
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8), boxes


def _extent(alpha: np.ndarray, top: int, left: int, side: int) -> np.ndarray:
    x, y, width, height = cv2.boundingRect((alpha > 1 / 255).view(np.uint8))
    box = [top + y, left + x, top + y + height, left + x + width]
    return np.array(box, np.float32) / side


def render(split: str, index: int, seed: int = 0, side: int = SIDE) -> Example:
    """One picture of a split. The same arguments give the same pixels. Raises as `labels_of`."""
    image, boxes = paint(lay_out(split, index, seed), (seed, split_number(split), index), side)
    return Example(image, labels_of(split, index, seed), boxes)


def encode(image: np.ndarray) -> bytes:
    """JPEG of quality 95 without colour subsampling, which would blur glyphs of a dozen pixels."""
    sampling = (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)
    options = [cv2.IMWRITE_JPEG_QUALITY, 95, *sampling]
    return cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)[1].tobytes()


def _record(split: str, index: int, seed: int, side: int) -> dict:
    example = render(split, index, seed, side)
    image = encode(example.image)
    return {"id": f"{split}-{index:06d}", "image": image, "labels": example.labels, "boxes": example.boxes}


def examples(
    split: str, count: int | None = None, seed: int = 0, side: int = SIDE, workers: int | None = None
) -> Iterator[dict]:
    """The first `count` (all) pictures in order: {id: "train-000123", image: JPEG bytes, labels: int8 [20], boxes}.

    `boxes` is as in `Example`. `workers` processes draw (one a core, none for a few pictures).
    Raises UserError for an unknown split or a count outside 1..SPLITS[split], before the first picture is drawn.
    """
    split_number(split)
    most = layout.SPLITS[split]
    if count is not None and not 1 <= count <= most:
        raise UserError(f"scenes/{split} has {most} pictures: count is {count}, use 1 to {most}")
    count = most if count is None else count
    if workers is None:
        workers = min(os.cpu_count() or 1, count // 500)  # a process takes half a second to start: 500 pictures' time
    if workers <= 1:
        return (_record(split, index, seed, side) for index in range(count))
    return _drawn_by_processes(workers, split, count, seed, side)


def _drawn_by_processes(workers: int, split: str, count: int, seed: int, side: int) -> Iterator[dict]:
    """Worker k draws every `workers`-th chunk from the k-th on; chunks are read in turn, so the order is kept.

    Plain child processes: threads gain nothing on such small pictures, and multiprocessing would either fork, which
    JAX forbids, or run the caller's script again, which scripts without a `__main__` guard do not survive.
    A full pipe makes a worker wait, so that memory stays flat however slow the reader is.
    """
    code = f"import sys; from {__name__} import _work; _work(sys.argv[1], *map(int, sys.argv[2:]))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    with contextlib.ExitStack() as stack:
        pipes = []
        for worker in range(workers):
            arguments = [split, *map(str, (worker, workers, count, seed, side))]
            command = [sys.executable, "-P", "-c", code, *arguments]
            process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, env=environment))
            stack.callback(process.kill)  # runs before the wait above: a reader may stop early
            pipes.append(process.stdout)
        for start, pipe in zip(range(0, count, CHUNK), itertools.cycle(pipes), strict=False):
            try:
                yield from pickle.load(pipe)
            except (EOFError, pickle.UnpicklingError):
                message = f"a process drawing {split} pictures from number {start} on ended early; see above"
                raise RuntimeError(message) from None


def _work(split: str, worker: int, workers: int, count: int, seed: int, side: int) -> None:
    """What a child process runs: writes its chunks, pickled, to standard output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C the parent ends this process
    for start in range(worker * CHUNK, count, workers * CHUNK):
        chunk = range(start, min(start + CHUNK, count))
        pickle.dump([_record(split, index, seed, side) for index in chunk], sys.stdout.buffer)
        sys.stdout.buffer.flush()
