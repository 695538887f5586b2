"""Photographs as an exported run was given them: decoded and resized as OpenCV does, with numpy and Pillow alone."""

import numpy as np
from PIL import Image, ImageOps

AREA_FROM = 1.25  # shrinking by less is bilinear


def read(file, side):
    """Pixels uint8 [side, side, 3], RGB, of a path or open file; the aspect ratio is not kept."""
    image = Image.open(file)
    if image.format in ("JPEG", "MPO"):
        # Decoded at an eighth, a quarter or half of its size where that is still enough.
        factor = next(f for f in (8, 4, 2, 1) if f == 1 or min(image.size) >= f * side)
        image.draft(None, (image.width // factor, image.height // factor))
    if image.has_transparency_data:
        values = np.asarray(image.convert("RGBA")).astype(np.uint16)
        pixels, alpha = values[..., :3], values[..., 3:]
        return resize(((pixels * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8), side)  # over white
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return resize(np.asarray(ImageOps.exif_transpose(image).convert("RGB")), side)


def resize(pixels, side):
    """uint8 [H, W, 3] -> [side, side, 3]: averages over areas along axes that shrink, then bilinear, in fixed point."""
    sizes, new = pixels.shape[:2], [side if old > AREA_FROM * side else old for old in pixels.shape[:2]]
    if new != list(sizes):
        scales = [old / size for old, size in zip(sizes, new, strict=True)]
        whole, values = all(scale == int(scale) for scale in scales), pixels.astype(np.float32)
        for axis in (1, 0):
            scale, low = scales[axis], np.arange(new[axis])[:, None] * scales[axis]
            cells = np.floor(low + 1e-3).astype(int) + np.arange(int(np.ceil(scale)) + 1)
            share = np.minimum(np.minimum(low + scale, sizes[axis]), cells + 1) - np.maximum(low, cells)
            weights = share if whole else share / np.minimum(scale, sizes[axis] - low)
            values = sum(_parts(values, axis, cells[:, 0], np.where(share > 1e-3, weights, 0).astype(np.float32)))
        if whole:
            values = values * np.float32(1 / (scales[0] * scales[1]))
        pixels = (np.floor(values + 0.5) if scales == [2, 2] else np.rint(values)).astype(np.uint8)
    if new != [side, side]:
        values = pixels.astype(np.int32)
        for axis in (1, 0):
            at = ((np.arange(side) + 0.5) * (new[axis] / side) - 0.5).astype(np.float32)
            at = at.clip(0, new[1] - 1) if axis else at
            above = at - np.floor(at)
            weights = np.rint(np.stack([1 - above, above], axis=1) * 2048).astype(np.int32)
            first, second = _parts(values, axis, np.floor(at).astype(int), weights)
            values = (first + second) >> 4 if axis else ((first >> 16) + (second >> 16) + 2) >> 2
        pixels = values.astype(np.uint8)
    return pixels


def _parts(values, axis, starts, weights):
    """Of weights [n, taps]: for each tap the rows or columns from `starts` on, times its weights."""
    shape = (-1, 1, 1) if axis == 0 else (1, -1, 1)
    return [
        np.take(values, starts + tap, axis, mode="clip") * weights[:, tap].reshape(shape)
        for tap in range(weights.shape[1])
    ]
