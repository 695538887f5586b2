"""What scenes are composed of: the glyphs of each class and the label sets of VOC 2007, from the folder assets/."""

import functools
from pathlib import Path

import cv2
import numpy as np

from jaxmlic.data.prepare.voc import CLASS_NAMES

ASSETS = Path(__file__).with_name("assets")


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
