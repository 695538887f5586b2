"""Images as users give them: files, folders, bytes, arrays and PIL images, one or many."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxmlic import storage
from jaxmlic.data.image import ImageError, decode_image, resize
from jaxmlic.errors import UserError

Images = str | os.PathLike | bytes | np.ndarray | Iterable[Any]
"""A file, a folder of them, encoded bytes, an array, a PIL image, or any number of these."""

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")
_FORMS = "uint8 [H, W, 3] in 0..255, float [H, W, 3] in 0..1, or [N, H, W, 3] of either"


@dataclasses.dataclass(frozen=True)
class Given:
    """One image: its file's name, or "image 3" for the fourth that is no file; `read(side)` gives its pixels uint8
    [side, side, 3], resized as in evaluation, or of its own size for None; or raises ImageError or OSError."""

    name: str
    read: Callable[[int | None], np.ndarray]


def find_images(arguments: Sequence[str | os.PathLike]) -> list[Path]:
    """The files named, and the images directly in the folders named, in order. UserError for a missing path."""
    found = []
    for path in map(storage.to_path, arguments):
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
            if not inside:
                raise UserError(f"{path} holds no images ({', '.join(SUFFIXES)})")
            found.extend(inside)
        elif path.is_file():
            found.append(path)
        else:
            raise UserError(f"image {path} does not exist")
    return found


def as_given(images: Images) -> list[Given]:
    """The images in their order. UserError for a missing path, and for arrays that are no pixels."""
    from PIL.Image import Image

    several = images if isinstance(images, Iterable) else [images]
    if isinstance(images, str | os.PathLike | bytes | Image) or hasattr(images, "__array__"):
        several = [images]
    found: list[Given] = []
    for item in several:
        if isinstance(item, str | os.PathLike):
            found += [_file(path) for path in find_images([item])]
        elif isinstance(item, bytes):
            found.append(_encoded(f"image {len(found)}", item))
        elif isinstance(item, Image):
            found.append(_array(f"image {len(found)}", _from_pil(item)))
        elif hasattr(item, "__array__"):
            values = np.asarray(item)
            for part in values if values.ndim == 4 else [values]:
                found.append(_array(f"image {len(found)}", part))
        else:
            raise UserError(
                f"image {len(found)} is a {type(item).__name__}; give a file, encoded bytes, a PIL image or an array "
                f"({_FORMS})"
            )
    return found


def _file(path: Path) -> Given:
    def read(side: int | None) -> np.ndarray:
        try:
            return decode_image(path.read_bytes(), side)
        except OSError as error:
            raise ImageError(storage.reason(error)) from None

    return Given(str(path), read)


def _encoded(name: str, data: bytes) -> Given:
    return Given(name, lambda side: decode_image(data, side))


def _array(name: str, values: np.ndarray) -> Given:
    pixels = to_pixels(values, name)
    return Given(name, lambda side: np.ascontiguousarray(resize(pixels, (side, side)) if side else pixels))


def to_pixels(values: np.ndarray, name: str) -> np.ndarray:
    """uint8 [H, W, 3] of an array: integers 0..255 or floats 0..1, [H, W] grey, [H, W, 1 or 3], or 4 with alpha.

    Raises UserError for other shapes, and for values that nearly always are a mistake: floats beyond 1, integers of
    0 and 1 alone, floats that were divided by 255 twice.
    """
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3 or values.shape[-1] not in (1, 3, 4) or 0 in values.shape:
        last = "; move its channels to the last axis" if values.ndim == 3 and values.shape[0] in (1, 3, 4) else ""
        raise UserError(f"{name} has the shape {list(values.shape)}; give {_FORMS}{last}")
    low, high = values.min(), values.max()
    if values.dtype.kind == "f":
        if not (np.isfinite(low) and np.isfinite(high)):
            raise UserError(f"{name} has values that are no numbers (NaN or infinite)")
        if low < 0 or high > 1:
            remedy = "divide by 255, or give uint8" if low >= 0 and high <= 255 else "give pixels as they were"
            raise UserError(f"{name} is {values.dtype} from {low:g} to {high:g}, and floats are read as 0..1: {remedy}")
        if low < high <= 1 / 255:
            raise UserError(f"{name} is {values.dtype} from {low:g} to {high:g}: divided by 255 twice? Floats are 0..1")
        values = np.rint(255 * values.astype(np.float64)).astype(np.uint8)
    elif values.dtype.kind in "iu":
        if low < 0 or high > 255:
            remedy = "divide 16 bits by 257" if low >= 0 and high <= 65535 else "give uint8"
            raise UserError(f"{name} is {values.dtype} from {low} to {high}, and integers are read as 0..255: {remedy}")
        if low == 0 and high == 1:
            raise UserError(f"{name} is {values.dtype} and has 0 and 1 alone: made of floats in 0..1? Give these")
        values = values.astype(np.uint8)
    else:
        raise UserError(f"{name} is {values.dtype}; give {_FORMS}")
    if values.shape[-1] == 1:
        return np.repeat(values, 3, axis=-1)
    if values.shape[-1] == 4:  # over white, as files with transparency
        alpha = values[..., 3:].astype(np.uint16)
        return ((values[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    return values


def _from_pil(image: Any) -> np.ndarray:
    """uint8 [H, W, 3 or 4], turned as its EXIF orientation says; of 16 bits the upper ones."""
    from PIL import ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        return np.asarray(image)
    if image.mode.startswith("I"):
        values = np.asarray(image)
        return (values >> 8 if values.max() > 255 else values).astype(np.uint8)
    return np.asarray(image.convert("RGBA" if image.has_transparency_data else "RGB"))
