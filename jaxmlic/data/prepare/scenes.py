"""`scenes`: the data set that comes with the package: small pictures composed from emoji, labelled like VOC 2007.

Each picture takes the label set of one real VOC 2007 picture, so that label counts and co-occurrence are VOC's, and
shows one or two glyphs of every label on a generated background: varied in size, place, angle, direction and colour,
and allowed to cover each other in part. Nothing is downloaded. A picture depends on (seed, split, index) only, never
on how many others are made, in which order, or by how many processes.

The glyphs are Noto Emoji (Apache-2.0) and Twemoji (CC BY 4.0): see `scenes_assets/ATTRIBUTION.md`.
"""

import contextlib
import functools
import itertools
import math
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from jaxmlic.errors import UserError, did_you_mean

CLASS_NAMES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
SPLITS = {"train": 10_000, "test": 4_800}
SIDE = 48
ASSETS = Path(__file__).with_name("scenes_assets")
SOURCE = (
    "Composed by jaxmlic.data.scenes from Noto Emoji (Apache-2.0, github.com/googlefonts/noto-emoji) and Twemoji"
    " (CC BY 4.0, github.com/jdecked/twemoji), changed; label sets of PASCAL VOC 2007"
)

MIN_VISIBLE = 0.6  # no glyph keeps less than this share of its area after the ones drawn over it
MAX_OBJECTS = 6  # second copies stop here; a picture with more labels still shows all of them
SECOND_COPY = {"person": 0.4, "chair": 0.4, "bottle": 0.4, "sheep": 0.4}  # classes that VOC shows in groups
SECOND_COPY_ELSE = 0.15
SIZES = (0.48, 0.78)  # longer side of a lone glyph in picture sides; times (number of glyphs) ** SHRINK
SHRINK = -0.3
MAX_ANGLE = 25.0  # degrees
CANVAS = 2  # glyphs are drawn at this many times the picture's side, then averaged down
PLAN_SIDE = 48  # overlaps are judged on this grid whatever the side, so that the side does not change the layout
ATTEMPTS = 80
GRID = 5  # knots of the background's blotches along each axis
NOISE = np.float32(0.025)  # of each pixel, either way
CHUNK = 64  # pictures a worker process sends at a time
# Matrices from premultiplied RGBA to RGB: as it is, and its grey value.
SAME = np.eye(3, 4)
GREY = np.array([[0.299, 0.587, 0.114, 0.0]] * 3)


@dataclass(frozen=True)
class Placed:
    """One glyph of a layout. `centre` (y, x) and `size` (longer side) are in picture sides, `angle` in degrees.

    `colour` is the float [3, 4] matrix from its premultiplied RGBA to the RGB that is painted.
    """

    label: int
    glyph: int
    centre: tuple[float, float]
    size: float
    angle: float
    flip: bool
    colour: np.ndarray


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
def glyphs() -> tuple[tuple[tuple[np.ndarray, ...], ...], ...]:
    """Every glyph as [class][glyph][level]: float32 [h, w, 4] RGBA, premultiplied, 0..1; each level half the last."""
    return tuple(tuple(_load(path) for path in sorted((ASSETS / name).glob("*.png"))) for name in CLASS_NAMES)


def _load(path: Path) -> tuple[np.ndarray, ...]:
    # imdecode, because imread cannot open every path on Windows.
    image = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    image = cv2.cvtColor(image, cv2.COLOR_BGRA2RGBA).astype(np.float32) / 255
    seen = image[..., 3] > 0.03
    (rows,), (columns,) = np.nonzero(seen.any(1)), np.nonzero(seen.any(0))
    image = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    spare = [-n % 4 for n in image.shape[:2]]  # so that both halvings below are whole
    image = np.pad(image, [(n // 2, n - n // 2) for n in spare] + [(0, 0)])
    image[..., :3] *= image[..., 3:]
    levels = [image]
    for _ in range(2):
        height, width = levels[-1].shape[:2]
        levels.append(cv2.resize(levels[-1], (width // 2, height // 2), interpolation=cv2.INTER_AREA))
    return tuple(levels)


@functools.cache
def label_sets(split: str) -> np.ndarray:
    """Label sets of VOC 2007 (train: all of its trainval; test: its test), int8 [pictures, 20] of 1 and 0."""
    with np.load(ASSETS / "label_sets.npz") as file:
        return np.unpackbits(file[split], axis=1, count=len(CLASS_NAMES)).astype(np.int8)


@functools.cache
def _drawn_sets(split: str, count: int, seed: int) -> np.ndarray:
    """Which label set each of the `count` pictures of a split takes, int64 [count].

    Whole shuffled rounds: no set is used twice before every set is used once.
    """
    rng = np.random.default_rng([seed, _split_number(split)])
    rounds = -(-count // len(label_sets(split)))
    order = [rng.permutation(len(label_sets(split))) for _ in range(rounds)]
    return np.concatenate(order)[:count]


def _split_number(split: str) -> int:
    if split not in SPLITS:
        raise UserError(f"scenes has no split {split!r}{did_you_mean(split, SPLITS)}: use {' or '.join(SPLITS)}")
    return list(SPLITS).index(split)


def _checked_count(split: str, count: int | None) -> int:
    _split_number(split)
    if count is not None and not 1 <= count <= SPLITS[split]:
        raise UserError(f"scenes/{split} has {SPLITS[split]} pictures: count is {count}, use 1 to {SPLITS[split]}")
    return SPLITS[split] if count is None else count


def labels_of(split: str, index: int, seed: int = 0) -> np.ndarray:
    """The label set of one picture, int8 [20] of 1 and 0. Raises UserError (split) or IndexError (index)."""
    _split_number(split)
    if not 0 <= index < SPLITS[split]:
        raise IndexError(f"scenes/{split} has {SPLITS[split]} pictures: there is no picture {index}")
    return label_sets(split)[_drawn_sets(split, SPLITS[split], seed)[index]]


def lay_out(split: str, index: int, seed: int = 0) -> tuple[Placed, ...]:
    """What one picture shows, in drawing order: every label once or twice, none covered below MIN_VISIBLE."""
    labels = np.flatnonzero(labels_of(split, index, seed))
    rng = np.random.default_rng([seed, _split_number(split), index])
    chances = [SECOND_COPY.get(CLASS_NAMES[label], SECOND_COPY_ELSE) for label in labels]
    second = labels[rng.random(len(labels)) < chances][: max(MAX_OBJECTS - len(labels), 0)]
    shown = rng.permutation(np.concatenate([labels, second]))
    scale = len(shown) ** SHRINK
    placed: list[Placed] = []
    areas: list[int] = []
    visible: list[np.ndarray] = []
    for label in shown:
        size = scale * float(rng.uniform(*SIZES))
        for attempt in range(ATTEMPTS):
            # Crowded pictures need smaller glyphs: after every few places tried in vain the glyph shrinks.
            candidate = _propose(rng, int(label), size * 0.8 ** (attempt // 8))
            mask = _cover(candidate)
            left = [shape & ~mask for shape in visible]
            if all(np.count_nonzero(a) >= MIN_VISIBLE * b for a, b in zip(left, areas, strict=True)):
                break
        placed.append(candidate)
        areas.append(np.count_nonzero(mask))
        visible = [*left, mask]
    return tuple(placed)


def _propose(rng: np.random.Generator, label: int, size: float) -> Placed:
    y, x, angle, saturation, brightness, red, green, blue, flip = rng.random(9).tolist()
    margin = 0.42 * size  # at most 8 % of the glyph's size lies outside
    saturation, brightness = 0.7 + 0.4 * saturation, 0.75 + 0.4 * brightness
    tint = brightness * np.array([0.88 + 0.24 * red, 0.88 + 0.24 * green, 0.88 + 0.24 * blue])
    return Placed(
        label=label,
        glyph=int(rng.integers(len(glyphs()[label]))),
        centre=(margin + (1 - 2 * margin) * y, margin + (1 - 2 * margin) * x),
        size=size,
        angle=MAX_ANGLE * (2 * angle - 1),
        flip=flip < 0.5,
        colour=tint[:, None] * (saturation * SAME + (1 - saturation) * GREY),
    )


def _warp(placed: Placed, side: int) -> tuple[np.ndarray, int, int]:
    """The glyph as it lies in a picture of that side: float32 [h, w, 4], and the y and x of its first pixel."""
    levels = glyphs()[placed.label][placed.glyph]
    scale = placed.size * side / max(levels[0].shape[:2])
    level = next((n for n in range(len(levels)) if scale * 2**n > 0.6), len(levels) - 1)
    image, scale = levels[level], scale * 2**level
    height, width = image.shape[:2]
    sine, cosine = math.sin(math.radians(placed.angle)) * scale, math.cos(math.radians(placed.angle)) * scale
    mirror = -1 if placed.flip else 1
    half_h = (abs(sine) * width + abs(cosine) * height) / 2 + 1
    half_w = (abs(cosine) * width + abs(sine) * height) / 2 + 1
    y, x = placed.centre[0] * side, placed.centre[1] * side
    top, left = max(int(y - half_h), 0), max(int(x - half_w), 0)
    bottom, right = min(int(y + half_h) + 1, side), min(int(x + half_w) + 1, side)
    middle_x, middle_y = (width - 1) / 2, (height - 1) / 2  # goes to (x, y)
    shift_x = x - 0.5 - left - mirror * cosine * middle_x + sine * middle_y
    shift_y = y - 0.5 - top - mirror * sine * middle_x - cosine * middle_y
    matrix = np.array([[mirror * cosine, -sine, shift_x], [mirror * sine, cosine, shift_y]])
    return cv2.warpAffine(image, matrix, (right - left, bottom - top), flags=cv2.INTER_LINEAR), top, left


def _cover(placed: Placed) -> np.ndarray:
    """Where a glyph is opaque, bool [PLAN_SIDE, PLAN_SIDE]."""
    patch, top, left = _warp(placed, PLAN_SIDE)
    mask = np.zeros((PLAN_SIDE, PLAN_SIDE), bool)
    mask[top : top + patch.shape[0], left : left + patch.shape[1]] = patch[..., 3] > 0.5
    return mask


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
        patch, top, left = _warp(placed, canvas_side)
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
    image, boxes = paint(lay_out(split, index, seed), (seed, _split_number(split), index), side)
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
    count = _checked_count(split, count)
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
    code = "import sys; from jaxmlic.data.prepare import scenes; scenes._work(sys.argv[1], *map(int, sys.argv[2:]))"
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


def contact_sheet(
    path: str | os.PathLike,
    split: str = "test",
    count: int = 40,
    columns: int = 8,
    seed: int = 0,
    side: int = SIDE,
    zoom: int = 3,
    boxes: bool = False,
) -> None:
    """Writes a PNG grid of a split's first `count` pictures, `zoom` times enlarged, each above its label names.

    `boxes` outlines every glyph. Raises UserError as `examples`, OSError if the file cannot be written.
    """
    edge, line = side * zoom, 14
    tiles = []
    for index in range(_checked_count(split, count)):
        example = render(split, index, seed, side)
        names = [CLASS_NAMES[label] for label in np.flatnonzero(example.labels)]
        tile = np.full((edge + line * max(3, len(names)) + 6, edge + 6, 3), 255, np.uint8)
        tile[:edge, :edge] = cv2.resize(example.image, (edge, edge), interpolation=cv2.INTER_CUBIC)
        for box in example.boxes if boxes else []:
            ymin, xmin, ymax, xmax = (int(v) for v in np.round(box["bbox"] * (edge - 1)))
            cv2.rectangle(tile, (xmin, ymin), (xmax, ymax), (255, 0, 0), 1)
        for row, name in enumerate(names):
            place = (2, edge + line * (row + 1) - 2)
            cv2.putText(tile, name, place, cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
        tiles.append(tile)
    sheet = _grid(tiles, columns)
    if not cv2.imwrite(os.fspath(path), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR)):
        raise OSError(f"could not write {os.fspath(path)}")


def _grid(tiles: list[np.ndarray], columns: int) -> np.ndarray:
    """Tiles of one width and several heights as rows of `columns`, on white."""
    rows = []
    for start in range(0, len(tiles), columns):
        row = tiles[start : start + columns]
        height, width = max(t.shape[0] for t in row), row[0].shape[1]
        row += [np.full((height, width, 3), 255, np.uint8)] * (columns - len(row))
        rows.append(np.hstack([np.pad(t, ((0, height - len(t)), (0, 0), (0, 0)), constant_values=255) for t in row]))
    return np.vstack(rows)
