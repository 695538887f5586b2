"""What a scene shows: its label set and, for every glyph, place, size, angle, direction and colour."""

import functools
import math
from dataclasses import dataclass

import cv2
import numpy as np

from jaxmlic.data.prepare.scenes.glyphs import glyphs, label_sets
from jaxmlic.data.prepare.voc import CLASS_NAMES
from jaxmlic.errors import unknown

SPLITS = {"train": 10_000, "test": 4_800}
MIN_VISIBLE = 0.6  # no glyph keeps less than this share of its area after the ones drawn over it
MAX_OBJECTS = 6  # second copies stop here; a picture with more labels still shows all of them
SECOND_COPY = {"person": 0.4, "chair": 0.4, "bottle": 0.4, "sheep": 0.4}  # classes that VOC shows in groups
SECOND_COPY_ELSE = 0.15
SIZES = (0.48, 0.78)  # longer side of a lone glyph in picture sides; times (number of glyphs) ** SHRINK
SHRINK = -0.3
MAX_ANGLE = 25.0  # degrees
PLAN_SIDE = 48  # overlaps are judged on this grid whatever the side, so that the side does not change the layout
ATTEMPTS = 80
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


@functools.cache
def _drawn_sets(split: str, count: int, seed: int) -> np.ndarray:
    """Which label set each of the `count` pictures of a split takes, int64 [count].

    Whole shuffled rounds: no set is used twice before every set is used once.
    """
    rng = np.random.default_rng([seed, split_number(split)])
    rounds = -(-count // len(label_sets(split)))
    order = [rng.permutation(len(label_sets(split))) for _ in range(rounds)]
    return np.concatenate(order)[:count]


def split_number(split: str) -> int:
    """The place of a split in SPLITS; UserError if there is none of that name."""
    if split not in SPLITS:
        raise unknown("split of scenes", split, SPLITS)
    return list(SPLITS).index(split)


def labels_of(split: str, index: int, seed: int = 0) -> np.ndarray:
    """The label set of one picture, int8 [20] of 1 and 0. Raises UserError (split) or IndexError (index)."""
    split_number(split)
    if not 0 <= index < SPLITS[split]:
        raise IndexError(f"scenes/{split} has {SPLITS[split]} pictures: there is no picture {index}")
    return label_sets(split)[_drawn_sets(split, SPLITS[split], seed)[index]]


def lay_out(split: str, index: int, seed: int = 0) -> tuple[Placed, ...]:
    """What one picture shows, in drawing order: every label once or twice, none covered below MIN_VISIBLE."""
    labels = np.flatnonzero(labels_of(split, index, seed))
    rng = np.random.default_rng([seed, split_number(split), index])
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


def warp(placed: Placed, side: int) -> tuple[np.ndarray, int, int]:
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
    patch, top, left = warp(placed, PLAN_SIDE)
    mask = np.zeros((PLAN_SIDE, PLAN_SIDE), bool)
    mask[top : top + patch.shape[0], left : left + patch.shape[1]] = patch[..., 3] > 0.5
    return mask
