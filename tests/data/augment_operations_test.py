"""RandAugment's operations against Pillow and scipy, their draws, cutout by hand, and all of it over devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from scipy import ndimage

from jaxmlic import sharding
from jaxmlic.data import augment
from jaxmlic.data.augment import operations
from jaxmlic.errors import UserError

SIDE = 24


@pytest.fixture(scope="module")
def images():
    """uint8 [7, 24, 24, 3], smooth, of different brightness and contrast."""
    rng = np.random.default_rng(0)
    coarse = rng.uniform(0, 255, (7, 4, 4, 3)) * rng.uniform(0.3, 1, (7, 1, 1, 3)) + rng.uniform(0, 20, (7, 1, 1, 3))
    return np.clip(ndimage.zoom(coarse, (1, 6, 6, 1), order=1), 0, 255).astype(np.uint8)


def drawn(name, amounts):
    """One operation `name` for each of the amounts."""
    kinds = np.full((1, len(amounts)), operations.NAMES.index(name), np.int32)
    return operations.Drawn(jnp.asarray(kinds), jnp.float32([amounts]))


def sharper(image, factor):
    """ImageEnhance.Sharpness as its documentation has it, with the filter that Pillow applies by itself."""
    return Image.blend(image.filter(ImageFilter.SMOOTH), image, factor)


# By torchvision's table of RandAugment: strength a in -1..1 of 30 steps.
PILLOW = {
    "identity": lambda image, a: image,
    "rotate": lambda image, a: image,  # no colour
    "brightness": lambda image, a: ImageEnhance.Brightness(image).enhance(1 + 0.9 * a),
    "color": lambda image, a: ImageEnhance.Color(image).enhance(1 + 0.9 * a),
    "contrast": lambda image, a: ImageEnhance.Contrast(image).enhance(1 + 0.9 * a),
    "sharpness": lambda image, a: sharper(image, 1 + 0.9 * a),
    "posterize": lambda image, a: ImageOps.posterize(image, 8 - round(4 * abs(a))),
    "solarize": lambda image, a: ImageOps.solarize(image, 255 * (1 - abs(a))),
    "autocontrast": lambda image, a: ImageOps.autocontrast(image),
}


@pytest.mark.parametrize("name", PILLOW)
def test_colour_operations_equal_pillow(images, name):
    amounts = [0.1, -0.3, 0.5, -0.7, 0.9, -1.0, 1.0]
    found = np.asarray(jax.jit(operations.recolour)(images.astype(np.float32), drawn(name, amounts)))
    expected = [np.asarray(PILLOW[name](Image.fromarray(x), a)) for x, a in zip(images, amounts, strict=True)]
    exact = name in ("identity", "rotate", "posterize", "solarize")
    np.testing.assert_allclose(found, expected, atol=0 if exact else 1.6)  # Pillow rounds at every step
    assert name in ("identity", "rotate") or np.abs(found - images).max() > 5


# Where the pixel at (x, y) from the centre, in pixels, is read.
PLACES = {
    "identity": lambda x, y, a: (x, y),
    "solarize": lambda x, y, a: (x, y),  # no geometry
    "shear_x": lambda x, y, a: (x + 0.3 * a * y, y),
    "shear_y": lambda x, y, a: (x, y + 0.3 * a * x),
    "translate_x": lambda x, y, a: (x + 150 / 331 * a * SIDE, y),
    "translate_y": lambda x, y, a: (x, y + 150 / 331 * a * SIDE),
    "rotate": lambda x, y, a: (
        x * np.cos(np.radians(30 * a)) + y * np.sin(np.radians(30 * a)),
        y * np.cos(np.radians(30 * a)) - x * np.sin(np.radians(30 * a)),
    ),
}


def read(image, places):
    """Bilinear values of an image [H, W, 3] at `places` (x, y) from its centre, in pixels, the border repeated."""
    middle = [(n - 1) / 2 for n in image.shape[:2]]
    at = [places[1] + middle[0], places[0] + middle[1]]
    channels = [ndimage.map_coordinates(c.astype(float), at, order=1, mode="nearest") for c in np.moveaxis(image, 2, 0)]
    return np.stack(channels, -1)


GRID = np.meshgrid(np.arange(SIDE) - (SIDE - 1) / 2, np.arange(SIDE) - (SIDE - 1) / 2)  # x, y


@pytest.mark.parametrize("name", PLACES)
def test_geometric_operations_equal_scipy(images, name):
    amounts = [0.1, -0.3, 0.5, -0.7, 0.9, -1.0, 1.0]
    matrices = operations.matrices(drawn(name, amounts))
    found = jax.jit(lambda x, m: augment.crop_and_flip(jax.random.key(0), x, SIDE, flip=False, matrices=m))(
        images, matrices
    )
    expected = [read(x, PLACES[name](*GRID, a)) for x, a in zip(images, amounts, strict=True)]
    np.testing.assert_allclose(found, expected, atol=2e-2)


def test_matrices_are_done_in_the_order_of_the_draws_and_after_crop_and_flip(images):
    """Shear, then rotation; of the left upper part of each image, mirrored."""
    names, amounts = ("shear_x", "rotate"), (0.8, -0.6)
    kinds = np.array([[operations.NAMES.index(name)] * 7 for name in names], np.int32)
    both = operations.Drawn(jnp.asarray(kinds), jnp.float32([[a] * 7 for a in amounts]))
    boxes = jnp.tile(jnp.float32([[16, 2, -12, 12]]), (7, 1))  # left, top, width, height: x from 16 down to 4
    found = augment.geometry.resample_affine(images, boxes, operations.matrices(both), SIDE)
    x, y = (v * 12 / SIDE for v in GRID)  # of the result, in pixels of the image
    x, y = PLACES["rotate"](x, y, amounts[1])  # the last one is undone first
    x, y = PLACES["shear_x"](x, y, amounts[0])
    expected = [read(image, (10 - x - SIDE / 2, 8 + y - SIDE / 2)) for image in images]
    np.testing.assert_allclose(found, expected, atol=2e-2)


def test_identity_matrices_equal_the_plain_crop(images):
    """The same key, the same crop: the augmentation stays what it was, and operations come on top."""
    crop = {"flip": True, "crop_area": (0.3, 0.8)}
    matrices = operations.matrices(drawn("identity", [0.5] * 7))
    plain = augment.crop_and_flip(jax.random.key(4), images, 16, **crop)
    found = augment.crop_and_flip(jax.random.key(4), images, 16, matrices=matrices, **crop)
    np.testing.assert_allclose(found, plain, atol=1e-2)


def test_draws_are_uniform_and_of_the_strength_asked():
    found = operations.draw(jax.random.key(0), 13_000, 2, 12.0)
    counts = np.stack([np.bincount(kinds, minlength=13) for kinds in np.asarray(found.kinds)])
    assert counts.shape == (2, 13) and (abs(counts - 1000) < 150).all()  # five standard deviations
    assert set(np.unique(found.amounts).astype(float).round(6).tolist()) == {-0.4, 0.4}
    assert abs(np.asarray(found.amounts).mean()) < 0.02
    assert (found.kinds[0] != found.kinds[1]).mean() > 0.9  # the second is drawn anew


def test_several_colour_operations_are_done_one_after_the_other(images):
    kinds = np.array([[operations.NAMES.index(name)] * 7 for name in ("brightness", "posterize")], np.int32)
    both = operations.Drawn(jnp.asarray(kinds), jnp.float32([[-0.5] * 7, [0.8] * 7]))
    once = operations.recolour(images.astype(np.float32), drawn("brightness", [-0.5] * 7))
    twice = operations.recolour(once, drawn("posterize", [0.8] * 7))
    np.testing.assert_array_equal(operations.recolour(images.astype(np.float32), both), twice)


def test_an_image_of_one_colour_has_no_contrast_to_stretch():
    flat = jnp.full((1, 8, 8, 3), 77.0)
    for name in ("autocontrast", "contrast", "sharpness", "color"):
        np.testing.assert_allclose(operations.recolour(flat, drawn(name, [1.0])), flat, atol=0.1)


def test_cutout_covers_one_square_in_the_mean_colour(images):
    images = images.astype(np.float32)
    found = np.asarray(augment.cut_out(jax.random.key(2), images, 0.4))
    centres = np.asarray(jax.random.uniform(jax.random.key(2), (2, 7, 1)))[:, :, 0] * SIDE
    for image, result, cy, cx in zip(images, found, *centres, strict=True):
        expected = image.copy()
        for i in range(SIDE):
            for j in range(SIDE):
                if abs(i + 0.5 - cy) < 4.8 and abs(j + 0.5 - cx) < 4.8:
                    expected[i, j] = image.reshape(-1, 3).mean(0)
        np.testing.assert_allclose(result, expected, atol=1e-3)
    covered = (np.abs(found - images).max(-1) > 1e-3).sum((1, 2))
    assert len(set(covered)) > 1 and covered.max() <= 100  # at the edges less than 10 x 10


@functools.partial(jax.jit, static_argnames="more")
def augmented(key, images, labels, more):
    return augment.augment(key, images, labels, 16, jnp.int32(0), flip=True, crop_area=(0.5, 1.0), **dict(more))


def test_everything_at_once_is_the_same_on_any_number_of_devices(images):
    batch, labels = np.resize(images, (8, SIDE, SIDE, 3)), np.eye(8, 4, dtype=np.int8)
    more = (("mixup", "off"), ("ops", 2), ("magnitude", 15.0), ("cutout", 0.3))
    found = []
    for count in (1, 8):
        place = sharding.split(sharding.make_mesh(jax.devices()[:count]))
        arrays = [jax.device_put(x, place) for x in (batch, labels)]
        found.append(np.asarray(augmented(jax.random.key(7), *arrays, more)[0]))
    np.testing.assert_allclose(found[0], found[1], atol=1e-2)
    assert found[0].shape == (8, 16, 16, 3) and found[0].min() >= 0 and found[0].max() < 255.01
    other = np.asarray(augmented(jax.random.key(8), batch, labels, more)[0])
    assert (np.abs(other - found[0]).max((1, 2, 3)) > 1).all()
    # Image 7 is image 0 again, and has its own draws.
    assert np.abs(found[0][7] - found[0][0]).max() > 1


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("ops", -1, "augment.ops"),
        ("magnitude", 31.0, "magnitude = 31.0; it lies in 0 < magnitude <= 30"),
        ("magnitude", 0.0, "magnitude = 0.0"),
        ("cutout", 1.0, "share of the image's side"),
        ("cutout", -0.1, "share of the image's side"),
    ],
)
def test_mistakes(field, value, message):
    fields = {"mixup": "off", "ops": 1, "magnitude": 9.0, "cutout": 0.0} | {field: value}
    with pytest.raises(UserError, match=message):
        augment.check(**fields)


@pytest.mark.parametrize(("field", "value"), [("mixup", "every_epoch"), ("ops", 1), ("cutout", 0.2)])
def test_features_cannot_be_augmented_as_pixels(field, value):
    fields = {"mixup": "off", "ops": 0, "magnitude": 9.0, "cutout": 0.0, "flip": True}
    augment.check_no_pixels("stored features", **fields)
    with pytest.raises(UserError, match=rf"config\.augment\.{field} works on pixels, which stored features"):
        augment.check_no_pixels("stored features", **fields | {field: value})
