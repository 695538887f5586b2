"""Device augmentation against OpenCV, by hand, and over routes."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmlic.data import augment


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (5, 6, 7, 3), np.uint8)
    return np.stack([cv2.resize(x, (40, 32), interpolation=cv2.INTER_CUBIC) for x in small])


def test_whole_image_equals_opencv_resize(images):
    n = len(images)
    zero, height, width = jnp.zeros(n), jnp.full(n, 32.0), jnp.full(n, 40.0)
    found = augment.resample(images, zero, zero, height, width, 48)
    expected = [cv2.resize(x.astype(np.float32), (48, 48), interpolation=cv2.INTER_LINEAR) for x in images]
    np.testing.assert_allclose(found, expected, atol=1e-2)  # OpenCV interpolates with rounded coefficients


def test_crop_equals_opencv_on_the_cut_out(images):
    # Away from its border, the crop is OpenCV's resize of the cut-out; at the border ours sees the pixels beyond.
    box = (jnp.full(5, 4.0), jnp.full(5, 8.0), jnp.full(5, 20.0), jnp.full(5, 24.0))
    found = augment.resample(images, *box, 60)
    expected = [cv2.resize(x[4:24, 8:32].astype(np.float32), (60, 60)) for x in images]
    np.testing.assert_allclose(found[:, 3:-3, 3:-3], np.stack(expected)[:, 3:-3, 3:-3], atol=1e-2)


def test_negative_width_mirrors(images):
    zero, height, width = jnp.zeros(5), jnp.full(5, 32.0), jnp.full(5, 40.0)
    plain = augment.resample(images, zero, zero, height, width, 24)
    mirrored = augment.resample(images, zero, width, height, -width, 24)
    np.testing.assert_allclose(mirrored, plain[:, :, ::-1], atol=1e-3)


def test_flip_alone_gives_the_image_or_its_mirror_about_half_the_time():
    images = np.arange(64 * 8 * 8 * 3, dtype=np.uint32).reshape(64, 8, 8, 3).astype(np.uint8)
    found = np.asarray(augment.crop_and_flip(jax.random.key(3), images, 8, flip=True))
    same = (found == images).all((1, 2, 3))
    mirrored = (found == images[:, :, ::-1]).all((1, 2, 3))
    assert (same | mirrored).all()
    assert 16 < mirrored.sum() < 48  # 6 standard deviations around 32


def test_nothing_asked_changes_nothing(images):
    square = images[:, :, :32]
    found = augment.crop_and_flip(jax.random.key(0), square, 32, flip=False)
    np.testing.assert_array_equal(found, square)
    assert found.dtype == jnp.float32


def test_boxes_lie_inside_and_cover_the_area_asked():
    y, x, h, w = (np.asarray(v) for v in augment.random_boxes(jax.random.key(1), 4000, (0.3, 0.6), (0.9, 1.1)))
    assert (y >= 0).all() and (x >= 0).all() and (y + h <= 1 + 1e-6).all() and (x + w <= 1 + 1e-6).all()
    area = h * w  # shapes this close to square are never shortened
    assert 0.3 - 1e-6 <= area.min() < 0.31 and 0.59 < area.max() <= 0.6 + 1e-6
    ratio = w / h
    assert 0.9 - 1e-5 <= ratio.min() < 0.92 and 1.08 < ratio.max() <= 1.1 + 1e-5
    assert abs(np.log(ratio).mean()) < 0.005


def test_every_image_gets_its_own_draw_and_a_key_always_the_same(images):
    batch = np.repeat(images[:1], 6, axis=0)
    draw = jax.jit(lambda key: augment.crop_and_flip(key, batch, 16, flip=True, crop_area=(0.2, 0.9)))
    first, again, other = draw(jax.random.key(0)), draw(jax.random.key(0)), draw(jax.random.key(1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1
    assert min(np.abs(first[i] - first[0]).max() for i in range(1, 6)) > 1


def test_jit_equals_no_jit(images):
    def draw(x):
        return augment.crop_and_flip(jax.random.key(5), x, 20, flip=True, crop_area=(0.2, 0.9))

    with jax.disable_jit():
        plain = draw(jnp.asarray(images))
    np.testing.assert_allclose(jax.jit(draw)(images), plain, atol=1e-3)
