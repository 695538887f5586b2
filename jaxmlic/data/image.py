"""Encoded image bytes to uint8 RGB arrays on the host, with OpenCV, and the check that every image passes once.

Read are JPEG, PNG, GIF (its first frame), WebP and BMP, known by their first bytes and never by the file's name.
What a viewer shows is what comes out: grey and CMYK become RGB, 16 bits become 8, EXIF orientation is applied, and
transparent pixels are composited over white (their hidden colour is arbitrary; an EXIF orientation in an image *with*
transparency is ignored). OpenCV releases the GIL, so threads decode in parallel. Headers are read here and not by
Pillow, which takes 10 to 25 times as long (140 us for a JPEG, as much as decoding a small one) and holds the GIL.
"""

import struct
import zlib

import cv2
import numpy as np

MAX_PIXELS = 178_956_970
"""More pixels than this are refused before decoding: PIL's limit against decompression bombs, 512 MiB as RGB."""

AREA_FROM = 1.25
"""Shrinking by less is bilinear: nearer to PIL's antialiased result than averaging over areas is, and faster."""

# A broken image is reported by this module in one line; OpenCV's own report on stderr would be a second one.
# OpenCV 5 moved the function; 0 is silent in both.
(cv2.setLogLevel if hasattr(cv2, "setLogLevel") else cv2.utils.logging.setLogLevel)(0)

_REDUCED = ((8, cv2.IMREAD_REDUCED_COLOR_8), (4, cv2.IMREAD_REDUCED_COLOR_4), (2, cv2.IMREAD_REDUCED_COLOR_2))
START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PNG = b"\x89PNG\r\n\x1a\n"
_WHAT = "not an image that can be read (JPEG, PNG, GIF, WebP or BMP)"


class ImageError(ValueError):
    """The bytes are not an image that can be used; the message is a short reason without the file's name."""


def decode_image(
    image_bytes: bytes, size: int | tuple[int, int] | None = None, out: np.ndarray | None = None
) -> np.ndarray:
    """Decode an image and, when `size` is given, squash it to exactly that size (the aspect ratio is not kept).

    Args:
      image_bytes: the encoded image (bytes, bytearray or memoryview).
      size: None for the image's own size, an int for a square, or (height, width).
      out: uint8 [H, W, 3] of exactly `size`, contiguous, to write into (a row of a batch: fresh memory for every image
        costs as much as the resizing itself).

    Returns:
      uint8 [H, W, 3], RGB. A JPEG at least 2, 4 or 8 times as large as `size` in both dimensions is decoded at that
      fraction of its size, which is faster; then shrinking averages over areas (see AREA_FROM), growing is bilinear.

    Raises:
      ImageError: empty, truncated or broken bytes, another format, or more than MAX_PIXELS pixels.
    """
    height, width, is_jpeg, has_alpha = header(image_bytes)
    flag = cv2.IMREAD_COLOR_RGB
    if has_alpha:
        flag = cv2.IMREAD_UNCHANGED
    elif size is not None and is_jpeg:
        # Before EXIF rotation height and width may be swapped: compare in the way that holds for both.
        ratio = min(height, width) / max(size if isinstance(size, tuple) else (size,))
        flag = next((reduced for factor, reduced in _REDUCED if ratio >= factor), flag)
    image = _imdecode(image_bytes, flag)
    if has_alpha:
        image = _over_white(image)
    if size is not None:
        image = resize(image, tuple(size) if isinstance(size, tuple) else (size, size), out)
    if flag != cv2.IMREAD_COLOR_RGB:
        # Reduced decoding and IMREAD_UNCHANGED know no RGB order; swapping costs least on the smallest array.
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=out)
    if out is None or image is out:
        return image
    out[...] = image
    return out


def inspect_image(image_bytes: bytes) -> tuple[int, int, str | None]:
    """Check one image by decoding it: `(height, width, None)`, or `(0, 0, reason)` when it cannot be used.

    Height and width are those that `decode` returns, that is after EXIF orientation.
    """
    try:
        height, width, is_jpeg, has_alpha = header(image_bytes)
        if not is_jpeg:
            _check_sums(bytes(image_bytes))
            decoded = _imdecode(image_bytes, cv2.IMREAD_UNCHANGED if has_alpha else cv2.IMREAD_COLOR_RGB)
            return *decoded.shape[:2], None
        if b"Exif" in bytes(image_bytes):  # the orientation may swap height and width; a profile may come first
            return *_imdecode(image_bytes, cv2.IMREAD_COLOR_RGB).shape[:2], None
        # At an eighth of the size all of the entropy-coded data is still read, and that is where files are broken.
        _imdecode(image_bytes, cv2.IMREAD_REDUCED_COLOR_8)
    except ImageError as problem:
        return 0, 0, str(problem)
    return height, width, None


def _check_sums(data: bytes) -> None:
    """ImageError when a chunk of a PNG that holds its pixels differs from its CRC: OpenCV decodes that to a smear."""
    if data[:8] != _PNG:
        return
    at, kind = 8, b""
    while kind != b"IEND":
        if at + 12 > len(data):
            raise ImageError("broken or truncated PNG")
        stop = at + 8 + int.from_bytes(data[at : at + 4])
        kind = data[at + 4 : at + 8]
        # A lower-case letter first: the chunk holds a text, a date or the like.
        if not kind[0] & 0x20 and zlib.crc32(memoryview(data)[at + 4 : stop]) != int.from_bytes(data[stop : stop + 4]):
            raise ImageError(f"broken PNG: the checksum of a part ({kind.decode('latin-1')!r}) is wrong")
        at = stop + 4


def _imdecode(image_bytes, flag: int) -> np.ndarray:
    try:
        image = cv2.imdecode(np.frombuffer(image_bytes, np.uint8), flag)
    except cv2.error as error:
        raise ImageError(f"broken image ({error.err})") from None
    if image is None:
        raise ImageError("broken or truncated image")
    return image


def resize(image: np.ndarray, size: tuple[int, int], out: np.ndarray | None = None) -> np.ndarray:
    """Area averaging along the axes that shrink by more than AREA_FROM, bilinear for what is left to do."""
    shrunk = tuple(new if old > AREA_FROM * new else old for old, new in zip(image.shape[:2], size, strict=True))
    if shrunk != image.shape[:2]:
        image = cv2.resize(image, shrunk[::-1], interpolation=cv2.INTER_AREA)
    if shrunk != size:
        image = cv2.resize(image, size[::-1], dst=out, interpolation=cv2.INTER_LINEAR)
    return image


def _over_white(image: np.ndarray) -> np.ndarray:
    """BGR uint8 of what IMREAD_UNCHANGED gives: [H,W], [H,W,3] or [H,W,4] of uint8 or uint16."""
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    if image.ndim == 2:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    if image.shape[2] == 3:
        return image
    alpha = image[..., 3:].astype(np.uint16)
    return ((image[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def header(data) -> tuple[int, int, bool, bool]:
    """`(height, width, is_jpeg, has_alpha)` from the first bytes, after the checks that need no decoding."""
    if len(data) == 0:
        raise ImageError("empty file (0 bytes)")
    try:
        found = _jpeg(data) if data[:2] == b"\xff\xd8" else _other(bytes(data))
    except (struct.error, IndexError):
        raise ImageError("truncated image: it ends within its header") from None
    height, width = found[:2]
    if height < 1 or width < 1:
        raise ImageError("the image has no pixels")
    if height * width > MAX_PIXELS:
        raise ImageError(f"{width} x {height} pixels are more than the limit of {MAX_PIXELS:,}")
    return found


def _jpeg(data) -> tuple[int, int, bool, bool]:
    """Walk the segments up to the first scan, then look for the end marker behind it.

    The thumbnail inside EXIF has an end marker of its own, so a search from the front would miss a truncation; bytes
    behind the end marker (some cameras append previews) are allowed.
    """
    position, size = 2, None
    while True:
        if data[position] != 0xFF:
            raise ImageError("broken JPEG: no marker where one belongs")
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
        elif marker == 0xD9:
            raise ImageError("broken JPEG: it ends before its pixels")
        elif marker == 0x01 or 0xD0 <= marker <= 0xD7:
            position += 2
        else:
            if marker in START_OF_FRAME:
                size = struct.unpack_from(">HH", data, position + 5)
            elif marker == 0xDA:
                break
            position += 2 + (data[position + 2] << 8 | data[position + 3])
    if size is None:
        raise ImageError("broken JPEG: no frame header")
    if data[-2:] != b"\xff\xd9" and bytes(data).rfind(b"\xff\xd9", position) < 0:
        raise ImageError("truncated JPEG: the end marker is missing")
    return *size, True, False


def _other(data: bytes) -> tuple[int, int, bool, bool]:
    if data[:8] == _PNG:
        width, height, _, colour = struct.unpack_from(">IIBB", data, 16)
        if data.rfind(b"IEND") < 0:
            raise ImageError("truncated PNG: the end chunk is missing")
        alpha = colour in (4, 6) or b"tRNS" in data[: data.find(b"IDAT")]
        return height, width, False, alpha
    if data[:6] in (b"GIF87a", b"GIF89a"):
        width, height = struct.unpack_from("<HH", data, 6)
        if data.rstrip(b"\0")[-1:] != b";":
            raise ImageError("truncated GIF: the trailer is missing")
        return height, width, False, True  # whether a colour is transparent is found while decoding
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp(data)
    if data[:2] == b"BM":
        header, width, height = struct.unpack_from("<Iii", data, 14)
        if header == 12:  # the OS/2 header has 16-bit sizes
            width, height = struct.unpack_from("<HH", data, 18)
        return abs(height), width, False, False
    raise ImageError(_WHAT)


def _webp(data: bytes) -> tuple[int, int, bool, bool]:
    if len(data) < struct.unpack_from("<I", data, 4)[0] + 8:
        raise ImageError("truncated WebP: shorter than its header says")
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
        return height, width, False, bool(data[20] & 0x10)
    if kind == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1, False, bool(bits >> 28 & 1)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return height & 0x3FFF, width & 0x3FFF, False, False
    raise ImageError(_WHAT)
