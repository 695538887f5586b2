"""Device augmentation against OpenCV, by hand, and over routes."""

import functools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmlic import sharding
from jaxmlic.data import augment
from jaxmlic.errors import UserError


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


# a OR b, by hand, for a and b in 1, 0, -1
OR = {(1, 1): 1, (1, 0): 1, (1, -1): 1, (0, 0): 0, (0, -1): -1, (-1, -1): -1}


def test_mix_is_the_mean_of_the_images_and_the_or_of_the_labels():
    pairs = np.array([(a, b) for a in (1, 0, -1) for b in (1, 0, -1)], np.int8).T  # [2, 9]
    images = np.random.default_rng(0).uniform(0, 255, (2, 4, 5, 3)).astype(np.float32)
    found, labels = augment.mix(images, jnp.asarray(pairs), jnp.array([1, 0]))
    np.testing.assert_allclose(found, np.repeat(images.mean(0, keepdims=True), 2, axis=0), rtol=1e-6)
    expected = [OR.get((a, b), OR.get((b, a))) for a, b in pairs.T.tolist()]
    assert labels.tolist() == [expected, expected] and labels.dtype == jnp.int8


@pytest.fixture(scope="module")
def batch():
    """Sixteen images of one grey each, which tells who was mixed with whom, and labels."""
    rng = np.random.default_rng(1)
    greys = (2.0 ** np.arange(16)).astype(np.float32)  # every sum of two tells the two
    return np.broadcast_to(greys[:, None, None, None], (16, 8, 8, 3)), rng.integers(-1, 2, (16, 5)).astype(np.int8)


@functools.partial(jax.jit, static_argnames="mixup")
def augmented(key, images, labels, epoch, mixup):
    return augment.augment(key, images, labels, 8, epoch, mixup=mixup, flip=False)


def run(key, batch, epoch, mixup, put=jnp.asarray):
    """Mixup alone, on arrays placed by `put`."""
    images, labels = augmented(key, *map(put, batch), jnp.int32(epoch), mixup)
    return np.asarray(images), np.asarray(labels)


def partners_in(images):
    """Who was mixed with whom, read off the greys: int [16]."""
    others = 2 * images[:, 0, 0, 0] - 2.0 ** np.arange(16)
    return np.log2(others).round().astype(int)


def test_partners_are_a_permutation_of_the_batch_that_the_key_decides(batch):
    images, labels = run(jax.random.key(0), batch, 0, "every_epoch")
    partners = partners_in(images)
    assert sorted(partners) == list(range(16)) and (partners != np.arange(16)).sum() > 8
    np.testing.assert_array_equal(images, (batch[0] + batch[0][partners]) / 2)
    for row, partner in enumerate(partners):
        expected = [OR.get((a, b), OR.get((b, a))) for a, b in zip(*batch[1][[row, partner]].tolist(), strict=True)]
        assert labels[row].tolist() == expected
    np.testing.assert_array_equal(images, run(jax.random.key(0), batch, 7, "every_epoch")[0])
    drawn = {tuple(partners_in(run(jax.random.key(seed), batch, 0, "every_epoch")[0])) for seed in range(5)}
    assert len(drawn) == 5


@pytest.mark.parametrize("epoch", [0, 1, 2, 3])
def test_every_second_epoch_is_left_alone(batch, epoch):
    images, labels = run(jax.random.key(0), batch, epoch, "every_second_epoch")
    mixed = run(jax.random.key(0), batch, epoch, "every_epoch")
    expected = mixed if epoch % 2 == 0 else batch
    np.testing.assert_array_equal(images, expected[0])
    np.testing.assert_array_equal(labels, expected[1])


def test_mixup_partners_come_from_the_whole_batch_on_any_number_of_devices(batch):
    found = []
    for count in (1, 8):
        place = sharding.split(sharding.make_mesh(jax.devices()[:count]))
        found.append(run(jax.random.key(0), batch, 0, "every_epoch", lambda x, to=place: jax.device_put(x, to)))
    for one, eight in zip(*found, strict=True):
        np.testing.assert_array_equal(one, eight)
    assert (partners_in(found[1][0]) // 2 != np.arange(16) // 2).any()  # beyond the device's own two images


def test_mixup_leaves_the_draws_of_crop_and_flip_as_they_were(images):
    labels = np.zeros((5, 3), np.int8)
    crop = {"flip": True, "crop_area": (0.2, 0.9)}
    plain = augment.crop_and_flip(jax.random.key(5), images, 16, **crop)
    off, same = augment.augment(jax.random.key(5), images, labels, 16, jnp.int32(0), mixup="off", **crop)
    np.testing.assert_array_equal(off, plain)
    np.testing.assert_array_equal(same, labels)
    idle, _ = augment.augment(jax.random.key(5), images, labels, 16, jnp.int32(1), mixup="every_second_epoch", **crop)
    np.testing.assert_array_equal(idle, plain)


def test_unknown_mixup_is_guessed():
    with pytest.raises(UserError, match="did you mean 'every_epoch'"):
        augment.check(mixup="every_epochs", ops=0, magnitude=0.0, cutout=0.0)
