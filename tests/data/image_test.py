"""Decoding against PIL, and every kind of file that must be refused."""

import io
import struct
import threading

import cv2
import numpy as np
import pytest
from PIL import Image

from jaxmlic.data import image as image_module
from jaxmlic.data.image import ImageError, decode_image, inspect_image


def photo(height=120, width=160, seed=0):
    """A smooth colour image, uint8 [height, width, 3]: JPEG keeps it nearly exact."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((width, height), Image.BICUBIC))


def encoded(image, form, **options):
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def by_pil(data):
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def assert_near(ours, theirs, mean=1.0, worst=12):
    assert ours.dtype == np.uint8 and ours.shape == theirs.shape
    difference = np.abs(ours.astype(int) - theirs.astype(int))
    assert difference.mean() <= mean and difference.max() <= worst, (difference.mean(), difference.max())


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 30}], ids=str)
def test_jpeg_equals_pil(options):
    data = encoded(photo(), "JPEG", **options)
    assert_near(decode_image(data), by_pil(data))
    assert inspect_image(data) == (120, 160, None)


@pytest.mark.parametrize("form", ["PNG", "BMP"])
def test_lossless_formats_are_exact(form):
    data = encoded(photo(), form)
    np.testing.assert_array_equal(decode_image(data), photo())
    np.testing.assert_array_equal(decode_image(memoryview(data)), photo())
    assert inspect_image(data) == (120, 160, None)


def test_webp_and_gif():
    data = encoded(photo(), "WEBP", lossless=True)
    np.testing.assert_array_equal(decode_image(data), photo())
    data = encoded(photo(), "WEBP")
    assert_near(decode_image(data), by_pil(data), mean=2)
    data = encoded(photo(), "GIF")
    np.testing.assert_array_equal(decode_image(data), by_pil(data))
    frames = encoded(photo(), "GIF", save_all=True, append_images=[Image.fromarray(255 - photo())])
    np.testing.assert_array_equal(decode_image(frames), by_pil(frames))  # PIL opens at the first frame
    for data in (encoded(photo(), "WEBP", lossless=True), encoded(photo(), "WEBP"), frames):
        assert inspect_image(data) == (120, 160, None)


def test_grey_palette_and_bilevel():
    grey = Image.fromarray(photo()).convert("L")
    for form in ("PNG", "JPEG"):
        data = encoded(grey, form)
        assert_near(decode_image(data), by_pil(data))
        assert decode_image(data).shape == (120, 160, 3)
    for image in (Image.fromarray(photo()).quantize(32), grey.convert("1")):
        data = encoded(image, "PNG")
        np.testing.assert_array_equal(decode_image(data), by_pil(data))


def test_transparent_pixels_are_white():
    rgba = np.dstack([photo(), np.zeros((120, 160), np.uint8)])
    rgba[:, 40:80, 3], rgba[:, 80:, 3] = 128, 255
    image = Image.fromarray(rgba)
    for data in (encoded(image, "PNG"), encoded(image, "WEBP", lossless=True, exact=True)):
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
        assert_near(decode_image(data), np.asarray(white.convert("RGB")), worst=1)
        np.testing.assert_array_equal(decode_image(data)[:, :40], 255)
        np.testing.assert_array_equal(decode_image(data)[:, 80:], photo()[:, 80:])
        assert inspect_image(data) == (120, 160, None)
        assert decode_image(data, 32).shape == (32, 32, 3)
    grey_alpha = encoded(image.convert("LA"), "PNG")
    np.testing.assert_array_equal(decode_image(grey_alpha)[:, :40], 255)
    palette = Image.new("P", (20, 10), 1)
    palette.putpalette([0, 0, 0, 200, 100, 50])
    palette.paste(0, (0, 0, 10, 10))
    for form in ("PNG", "GIF"):
        data = encoded(palette, form, transparency=0)
        np.testing.assert_array_equal(decode_image(data)[:, :10], np.full((10, 10, 3), 255))
        np.testing.assert_array_equal(decode_image(data)[:, 10:], np.broadcast_to([200, 100, 50], (10, 10, 3)))


def test_sixteen_bits_become_eight():
    ramp = np.linspace(0, 65535, 160).astype(np.uint16)[None].repeat(20, 0)
    got = decode_image(encoded(ramp, "PNG")).astype(int)
    np.testing.assert_array_equal(got[..., 0], got[..., 2])
    assert np.abs(got[..., 1] - ramp / 257.0).max() <= 1


def test_cmyk_jpeg_as_pil_writes_it():
    """Adobe's inverted CMYK. PIL and OpenCV turn it to RGB by slightly different formulas."""
    data = encoded(Image.fromarray(photo()).convert("CMYK"), "JPEG", quality=95)
    assert b"Adobe" in data
    assert_near(decode_image(data), by_pil(data), mean=2)
    assert decode_image(data, 50).shape == (50, 50, 3)
    assert_near(decode_image(data, 40), np.asarray(Image.fromarray(by_pil(data)).resize((40, 40), Image.BOX)), 4, 40)
    assert inspect_image(data) == (120, 160, None)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    exif = Image.Exif()
    exif[0x112] = orientation
    image = photo(96, 160)
    turned = {
        1: image,
        2: image[:, ::-1],
        3: image[::-1, ::-1],
        4: image[::-1],
        5: image.transpose(1, 0, 2),
        6: np.rot90(image, -1),
        7: np.rot90(image, 2).transpose(1, 0, 2),
        8: np.rot90(image, 1),
    }[orientation]
    data = encoded(image, "JPEG", exif=exif, quality=95, subsampling=0)
    assert_near(decode_image(data), turned, mean=2)
    assert inspect_image(data) == (*turned.shape[:2], None)
    # 2x reduction: the turned image again, in both ways of asking
    half = np.asarray(Image.fromarray(turned).resize((turned.shape[1] // 2, turned.shape[0] // 2), Image.BOX))
    assert_near(decode_image(data, half.shape[:2]), half, mean=2, worst=25)


@pytest.mark.parametrize("source", [(1200, 1600), (480, 640), (300, 400), (260, 230), (60, 50), (500, 40), (40, 500)])
@pytest.mark.parametrize("size", [224, (100, 150), (150, 100)])
def test_resize_is_near_pil(source, size):
    """Every reduction factor, none, growing, and shrinking one way while growing the other."""
    image = photo(*source)
    size_hw = (size, size) if isinstance(size, int) else size
    expected = np.asarray(Image.fromarray(image).resize(size_hw[::-1], Image.BILINEAR))
    for form, options in (("PNG", {}), ("JPEG", {"quality": 95, "subsampling": 0})):
        got = decode_image(encoded(image, form, **options), size)
        assert_near(got, expected, mean=2.5, worst=45)


def test_shrinking_averages():
    """A one-pixel chessboard shrinks to grey; picking pixels would give black, white or a moire."""
    board = (np.indices((512, 512)).sum(0) % 2 * 255).astype(np.uint8)
    got = decode_image(encoded(board, "PNG"), 100)
    assert np.abs(got.astype(int) - 128).max() <= 8


def test_size_of_the_image_is_kept_when_asked_for():
    data = encoded(photo(), "PNG")
    np.testing.assert_array_equal(decode_image(data, (120, 160)), photo())
    assert decode_image(data, 1).shape == (1, 1, 3)
    pixel = encoded(np.full((1, 1, 3), 77, np.uint8), "JPEG")
    assert_near(decode_image(pixel, 5), np.full((5, 5, 3), 77, np.uint8))
    assert inspect_image(pixel) == (1, 1, None)


def test_wide_image_decodes():
    data = encoded(np.full((10, 20_000, 3), 90, np.uint8), "JPEG")
    assert inspect_image(data) == (10, 20_000, None)
    assert_near(decode_image(data, 64), np.full((64, 64, 3), 90, np.uint8))
    assert decode_image(data).shape == (10, 20_000, 3)


def truncated():
    cases = {}
    for form, options in (("JPEG", {}), ("PNG", {}), ("GIF", {}), ("WEBP", {}), ("BMP", {})):
        data = encoded(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8), form, **options)
        cases |= {f"{form} half": data[: len(data) // 2], f"{form} header": data[:14]}
    jpeg = encoded(photo(), "JPEG")
    exif = encoded(photo(), "JPEG", exif=b"Exif\0\0" + encoded(photo(24, 32), "JPEG"))  # a thumbnail with its own end
    progressive = encoded(photo(), "JPEG", progressive=True)
    cases |= {"end marker cut": jpeg[:-2], "one byte cut": jpeg[:-1], "thumbnail": exif[: len(exif) // 2 + 1000]}
    cases |= {"progressive": progressive[: len(progressive) // 2], "progressive end": progressive[:-2]}
    return cases


@pytest.mark.parametrize("data", truncated().values(), ids=truncated())
def test_truncated_files_are_refused(data, capfd):
    with pytest.raises(ImageError) as caught:
        decode_image(data)
    assert "\n" not in str(caught.value)
    assert inspect_image(data) == (0, 0, str(caught.value))
    assert isinstance(caught.value, ValueError)
    assert capfd.readouterr().err == ""  # nothing on stderr beside the one line that the command prints


def test_bytes_behind_the_end_are_allowed():
    """Phones append previews and padding to JPEGs."""
    jpeg = encoded(photo(), "JPEG")
    for tail in (b"\0" * 100, jpeg, b"text"):
        np.testing.assert_array_equal(decode_image(jpeg + tail), decode_image(jpeg))
        assert inspect_image(jpeg + tail) == (120, 160, None)


@pytest.mark.parametrize("data", [b"", b"\xff", b"\xff\xd8", b"\xff\xd8\xff\xd9", b"hello, this is text", b"\0" * 1000])
def test_not_an_image(data):
    for size in (None, 32):
        with pytest.raises(ImageError):
            decode_image(data, size)
    height, width, why = inspect_image(data)
    assert (height, width) == (0, 0) and 5 < len(why) < 100
    assert ("0 bytes" in why) == (data == b"")


def test_too_many_pixels_are_refused_before_decoding(monkeypatch):
    """Headers that claim 200 million pixels, without the pixels: the refusal must come from the header."""
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("it was decoded"))
    png = bytearray(encoded(photo(), "PNG"))
    png[16:24] = struct.pack(">II", 20_000, 10_000)
    jpeg = bytearray(encoded(photo(), "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 10_000, 20_000)
    bmp = bytearray(encoded(photo(), "BMP"))
    bmp[18:26] = struct.pack("<ii", 20_000, -10_000)
    gif = bytearray(encoded(photo(), "GIF"))
    gif[6:10] = struct.pack("<HH", 20_000, 10_000)
    for data in (png, jpeg, bmp, gif):
        assert inspect_image(bytes(data)) == (0, 0, "20000 x 10000 pixels are more than the limit of 178,956,970")
    monkeypatch.setattr(image_module, "MAX_PIXELS", 120 * 160 - 1)
    for form in ("JPEG", "PNG", "GIF", "WEBP", "BMP"):
        assert "limit" in inspect_image(encoded(photo(), form))[2]
    assert "limit" in inspect_image(encoded(photo(), "WEBP", lossless=True))[2]
    transparent = np.dstack([photo(), photo()[..., :1]])
    assert "limit" in inspect_image(encoded(transparent, "WEBP"))[2]


def test_threads_give_the_same():
    files = [encoded(photo(seed=seed), "JPEG") for seed in range(8)]
    alone = [decode_image(data, 64) for data in files]
    together = [None] * len(files)

    def work(i):
        together[i] = decode_image(files[i], 64)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(files))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(together, alone)


def test_orientation_behind_a_large_profile():
    turned = Image.Exif()
    turned[0x0112] = 6
    data = encoded(photo(), "JPEG", exif=turned)
    data = data[:2] + b"\xff\xe2\xea\x62" + bytes(60_000) + data[2:]  # an APP2 segment before the EXIF
    assert decode_image(data).shape == (160, 120, 3) and inspect_image(data) == (160, 120, None)


@pytest.mark.parametrize("seed", range(20))
def test_a_png_with_a_changed_byte_is_broken(seed):
    data = bytearray(encoded(photo(seed=seed), "PNG"))
    assert inspect_image(bytes(data)) == (120, 160, None)
    data[np.random.default_rng(seed).integers(41, len(data) - 20)] ^= 1
    height, width, why = inspect_image(bytes(data))
    assert (height, width) == (0, 0) and "PNG" in why
