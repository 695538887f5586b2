"""The bundle's reading of photographs is the library's, to the pixel."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from jaxmlic.data import image as library
from jaxmlic.export import photographs

RNG = np.random.default_rng(0)


def photo(height, width):
    y, x = np.mgrid[:height, :width]
    smooth = np.stack([120 * np.sin(x / 17 + y / 40), 120 * np.cos(y / 23), x * y / 700 % 250 - 125], axis=-1)
    return np.clip(127 + smooth + RNG.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)


# height, width, side: whole ratios and others, shrunk, enlarged, one axis alone, ties of rounding (15/7, 20/7).
SIZES = [
    (20, 20, 16),
    (20, 30, 10),
    (448, 448, 224),
    (448, 224, 224),
    (480, 640, 224),
    (375, 500, 224),
    (250, 187, 224),
]
SIZES += [(300, 224, 224), (17, 23, 32), (32, 32, 64), (1, 1, 8), (1, 40, 8), (7, 9, 16), (280, 281, 224)]


@pytest.mark.parametrize(("height", "width", "side"), SIZES)
def test_resizing_is_opencv_s(height, width, side):
    pixels = RNG.integers(0, 256, (height, width, 3)).astype(np.uint8)
    np.testing.assert_array_equal(photographs.resize(pixels, side), library.resize(pixels, (side, side)))


def encoded(pixels, kind, **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def files():
    yield "grey.jpg", encoded(photo(90, 70)[..., 0], "JPEG")
    for size in ((60, 50), (130, 150), (270, 300), (600, 520)):  # whole, and decoded at 1/2, 1/4, 1/8
        yield f"{size}.jpg", encoded(photo(*size), "JPEG", quality=90)
    turned = Image.Exif()
    turned[0x0112] = 6
    yield "turned.jpg", encoded(photo(140, 90), "JPEG", exif=turned)
    yield "a.png", encoded(photo(50, 80), "PNG")
    yield "a.bmp", encoded(photo(50, 80), "BMP")
    yield "grey.png", encoded(photo(50, 80)[..., 1], "PNG")
    transparent = np.dstack([photo(40, 40), RNG.integers(0, 256, (40, 40)).astype(np.uint8)])
    yield "transparent.png", encoded(transparent, "PNG")
    yield "deep.png", cv2.imencode(".png", RNG.integers(0, 65536, (40, 50)).astype(np.uint16))[1].tobytes()
    palette = io.BytesIO()
    Image.fromarray(photo(50, 60)).quantize(16).save(palette, "PNG")
    yield "palette.png", palette.getvalue()


@pytest.mark.parametrize(("name", "data"), list(files()), ids=lambda x: x if isinstance(x, str) else "")
def test_files_are_read_in_the_library_s_pixels(name, data):
    np.testing.assert_array_equal(photographs.read(io.BytesIO(data), 32), library.decode_image(data, 32))
