"""Descriptors without weights, against loops and formulas written here."""

import cv2
import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy import signal

from jaxmlic.inputs.descriptors import handmade


@pytest.fixture(scope="module")
def image():
    """Smooth colours with noise, uint8 [31, 44, 3]."""
    rng = np.random.default_rng(0)
    coarse = cv2.resize(rng.integers(0, 256, (4, 5, 3)).astype(np.uint8), (44, 31), interpolation=cv2.INTER_CUBIC)
    return np.clip(coarse + rng.normal(0, 8, coarse.shape), 0, 255).astype(np.uint8)


def histogram(pixels, ends, bins):
    """The root of the share of each joint bin, by numpy."""
    counts, _ = np.histogramdd(pixels.reshape(-1, 3), bins, [(0, end) for end in ends])
    return np.sqrt(counts.ravel() / counts.sum())


def test_colour(image):
    hsv, lab = cv2.cvtColor(image, cv2.COLOR_RGB2HSV), cv2.cvtColor(image, cv2.COLOR_RGB2LAB)
    wanted = []
    for pixels, ends, bins, half in (
        (image, (256, 256, 256), (8, 8, 8), (4, 4, 4)),
        (hsv, (180, 256, 256), (16, 6, 6), (8, 3, 3)),
        (lab, (256, 256, 256), (8, 12, 12), (4, 6, 6)),
    ):
        wanted.append(histogram(pixels, ends, bins))
        wanted += [histogram(strip, ends, half) for strip in (pixels[:11], pixels[11:21], pixels[21:])]
    found = handmade.colour(image)
    np.testing.assert_allclose(found, np.concatenate(wanted), atol=1e-6)
    parts = handmade.HANDMADE["colour"][1]
    assert [part.size for part in parts] == [512, 192, 576, 216, 1152, 432] and len(found) == 3080
    assert {part.group for part in parts} == {"colour"}


def test_texture(image):
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(int)
    counts = np.zeros((3, 256))
    for y in range(1, 30):
        for x in range(1, 43):
            around = [(-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1)]
            code = sum(2**i for i, (dy, dx) in enumerate(around) if grey[y + dy, x + dx] >= grey[y, x])
            counts[0 if y < 11 else 1 if y < 21 else 2, code] += 1  # 29 rows of patterns: 10, 10 and 9
    wanted = np.sqrt(counts / counts.sum(1, keepdims=True)).ravel()
    np.testing.assert_allclose(handmade.texture(image), wanted, atol=1e-6)


def test_gradient(image):
    """Convolutions by scipy with the formula of a Gabor filter, and means over cells by numpy."""
    grey = cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (128, 128), interpolation=cv2.INTER_AREA) / 255
    detail = grey - cv2.GaussianBlur(grey, (0, 0), 4.0)
    level = detail / (0.1 + np.sqrt(cv2.GaussianBlur(detail**2, (0, 0), 4.0)))
    y, x = np.mgrid[-6:7, -6:7]
    wanted = []
    for _ in range(4):
        for k in range(8):
            angle = np.pi * k / 8
            along = x * np.cos(angle) + y * np.sin(angle)
            window = np.exp(-(x**2 + y**2) / (2 * 2.0**2))
            even, odd = window * np.cos(2 * np.pi * along / 4), window * np.sin(2 * np.pi * along / 4)
            padded = np.pad(level, 6, mode="reflect")  # OpenCV's border: the edge itself is not repeated
            answers = [signal.fftconvolve(padded, f, mode="valid") for f in (even - even.mean(), odd)]
            energy = np.sqrt(answers[0] ** 2 + answers[1] ** 2)
            n = len(level) // 4
            wanted.append(energy.reshape(4, n, 4, n).mean((1, 3)).ravel())
        level = cv2.pyrDown(level)
    found = handmade.gradient(image)
    assert found.shape == (512,) and handmade.HANDMADE["gradient"][1][0].standardise
    np.testing.assert_allclose(found, np.concatenate(wanted), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("name", list(handmade.HANDMADE))
@pytest.mark.parametrize("mirror", [True, False])
def test_a_set_resizes_and_averages_with_the_mirror_image(image, name, mirror):
    config = ConfigDict({"features": {"mirror": mirror}})
    one = handmade.HandmadeSet(config, name)
    large = cv2.resize(image, (363, 256), interpolation=cv2.INTER_LINEAR)
    function = handmade.HANDMADE[name][0]
    wanted = function(large)
    if mirror:
        wanted = (wanted + function(np.ascontiguousarray(large[:, ::-1]))) / 2
    found = one.prepare(image)
    assert found.shape == (one.size,) and found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_one_colour():
    """No texture at all: finite numbers, one pattern, no energy."""
    plain = np.full((20, 30, 3), 77, np.uint8)
    for function, parts in handmade.HANDMADE.values():
        found = function(plain)
        assert np.isfinite(found).all() and len(found) == sum(part.size for part in parts)
    assert (handmade.texture(plain) > 0).sum() == 3
    np.testing.assert_allclose(handmade.gradient(plain), 0, atol=1e-5)
