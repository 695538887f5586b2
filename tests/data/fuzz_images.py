"""Broken images, each made anew from its seed, and what must hold for them."""

import functools
import io
import random
import traceback

import numpy as np
from fuzz_damage import at_random, blank, cut, drop, flip, insert, repeat
from PIL import Image

from jaxmlic.data.image import decode_image, inspect_image


def jpeg(seed: int = 0, form: str = "JPEG") -> bytes:
    """A small image of noise, 10 x 12."""
    return _picture(seed % 8, form)


@functools.cache
def _picture(seed: int, form: str) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (10, 12, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


@functools.cache
def pictures() -> tuple[tuple[str, bytes], ...]:
    """(format, bytes) of valid images of every kind that the package reads."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (40, 56, 3), dtype=np.uint8)
    smooth = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((300, 260), Image.BICUBIC)
    noise, alpha = Image.fromarray(small), Image.fromarray(np.dstack([small, small[..., 0]]))
    clear = noise.convert("P")
    turned = Image.Exif()
    turned[0x0112] = 6
    frames = {"save_all": True, "append_images": [noise.rotate(90), noise.rotate(180)]}
    wide = Image.fromarray((small[..., 0].astype(np.uint16) << 8) + 7)
    made = [
        *(("JPEG", image, options) for image in (noise, smooth) for options in ({}, {"progressive": True})),
        *(
            ("JPEG", smooth, options)
            for options in ({"restart_marker_blocks": 3}, {"exif": turned}, {"optimize": True})
        ),
        ("JPEG", smooth, {"exif": turned, "icc_profile": bytes(9000)}),
        *(("JPEG", image, {}) for image in (smooth.convert("L"), noise.convert("CMYK"))),
        *(("PNG", image, {}) for image in (noise, alpha, noise.convert("L"), noise.convert("1"), wide, clear, smooth)),
        ("PNG", clear, {"transparency": 3}),
        ("PNG", noise, frames),
        *(("GIF", image, options) for image, options in ((clear, {}), (clear, {"transparency": 3}), (noise, frames))),
        *(("WEBP", noise, options) for options in ({}, {"lossless": True}, {"exif": turned}, frames)),
        *(("WEBP", alpha, options) for options in ({}, {"lossless": True})),
        *(("BMP", image, {}) for image in (noise, clear, noise.convert("1"), noise.convert("L"), alpha)),
    ]
    out = []
    for form, image, options in made:
        buffer = io.BytesIO()
        image.save(buffer, form, **options)
        out.append((form, buffer.getvalue()))
    data = next(data for form, data in out if b"Exif" in data)
    profile = b"\xff\xe2\xea\x62" + bytes(60_000)
    out.append(("JPEG", data[:2] + profile + data[2:]))  # its orientation comes late
    return tuple(out)


def _head(rng, data):
    """Damage within the first bytes, where sizes and kinds are."""
    return rng.choice((flip, flip, drop, insert, blank))(rng, data[:80]) + data[80:]


def _size(rng, data):
    """Another width, height or kind of pixels in the header."""
    at = {b"\xff\xd8": data.find(b"\xff\xc0"), b"\x89P": 16, b"GI": 6, b"RI": 20, b"BM": 14}.get(data[:2], 0)
    at = max(at, data.find(b"\xff\xc2") if data[:2] == b"\xff\xd8" else 0, 0) + rng.randrange(24)
    new = rng.choice(
        (b"\xff\xff", b"\0\0", b"\0\1", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\1", b"\3", b"\x10\0", b"\0\x30")
    )
    return (data[:at] + new + data[at + len(new) :])[: len(data)]


def _swap(rng, data):
    """The start of another format, or a piece of another image inside."""
    _, other = rng.choice(pictures())
    at = rng.choice((2, 4, 8, 12, 30, at_random(rng, data)))
    return rng.choice((other[:at] + data[at:], data[:at] + other[at_random(rng, other) :], data + other))


def _middle(rng, data):
    """A few bytes in the middle half, with start and end as they were."""
    quarter = len(data) // 4
    return (
        data[:quarter] + rng.choice((flip, drop, insert, blank, repeat))(rng, data[quarter:-quarter]) + data[-quarter:]
    )


def image(seed: int) -> tuple[str, str, bytes]:
    """(format, kind of damage, bytes) of a damaged image."""
    rng = random.Random(f"image {seed}")
    form, data = rng.choice(pictures())
    way = rng.choice((_middle, _middle, _head, _head, _size, _size, _swap, cut, flip, drop, insert, blank, repeat))
    return form, way.__name__.strip("_"), way(rng, data)


def broken_image(data: bytes) -> tuple[bool, str]:
    """(whether `inspect` takes an image, what is wrong with that)."""
    height, width, why = inspect_image(data)
    if why is not None:
        wrong = (height, width) != (0, 0) or not why or "\n" in why
        return False, f"inspect says {height, width, why!r}" if wrong else ""
    for size in (None, 16, 224, (9, 40)):
        shape = (height, width) if size is None else size if isinstance(size, tuple) else (size, size)
        outs = (None,) if size is None else (None, np.empty((*shape, 3), np.uint8))
        for out in outs:
            try:
                found = decode_image(data, size, out)
            except Exception:
                return True, f"taken as {height} x {width}, but at the size {size}:\n{traceback.format_exc()}"
            if found.shape != (*shape, 3) or found.dtype != np.uint8:
                return True, f"taken as {height} x {width}, but at the size {size} it is {found.dtype} {found.shape}"
    return True, ""
