"""What is kept of each image of a prepared data set for its check: digests, hash, thumbnail, and what is unusual."""

import dataclasses
import hashlib
import io
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import ExifTags, Image, JpegImagePlugin

from jaxmlic import progress
from jaxmlic.data import datasets
from jaxmlic.data.check.duplicates import perceptual_hash
from jaxmlic.data.image import ImageError, decode_image, header

EXTREME_ASPECT, TINY_SIDE = 4, 32  # long to short side; pixels
ODD = ("uniform", "grey", "palette", "transparent", "CMYK", "16-bit", "rotated by EXIF", "extreme aspect", "tiny")


@dataclasses.dataclass(slots=True)
class ImageFacts:
    """What is kept of one image; an unreadable one has a reason, and nothing from `pixels` on."""

    split: str
    id: str
    file: bytes  # digest of the encoded bytes
    why: str | None = None
    pixels: bytes = b""  # digest of the decoded pixels and their shape
    hash: int = 0
    thumbnail: np.ndarray | None = None  # uint8 [256]
    height: int = 0
    width: int = 0
    format: str = ""
    odd: tuple[str, ...] = ()
    num_boxes: int = 0
    num_difficult: int = 0
    num_stray_boxes: int = 0  # their class is absent from the image's labels, or none of the data set's

    @property
    def name(self) -> str:
        return f"{self.split}/{self.id}"


def inspect_all(dataset: datasets.Dataset, workers: int) -> list[ImageFacts]:
    """The facts of all images, in the order of splits and records; `workers` threads decode."""
    images = []
    with (
        warnings.catch_warnings(),
        ThreadPoolExecutor(workers) as pool,
        progress.Progress(f"checking {dataset.name}", sum(dataset.splits.values())) as bar,
    ):
        warnings.filterwarnings("ignore", module=r"PIL\.")  # damaged EXIF; OpenCV passes over it, too
        for split, count in dataset.splits.items():
            source = dataset.source(split, boxes=dataset.has_boxes)
            # In blocks: an interrupt need not wait for all that was asked for.
            for start in range(0, count, 256):
                block = range(start, min(start + 256, count))
                for facts in pool.map(lambda index: inspect_record(split, source[index]), block):  # noqa: B023 - used up here
                    images.append(facts)
                    bar.advance()
    return images


def inspect_record(split: str, record: dict) -> ImageFacts:
    """The facts of one record of a split."""
    data = record["image"]
    facts = ImageFacts(split, record["id"], hashlib.sha256(data).digest())
    if "boxes" in record:
        classes, difficult = record["boxes"]["label"], record["boxes"]["difficult"]
        known = classes < len(record["labels"])
        facts.num_boxes, facts.num_difficult = len(classes), int(difficult.sum())
        facts.num_stray_boxes = int(np.sum(~known) + np.sum(record["labels"][classes[known]] == 0))
    try:
        image = decode_image(data)
    except ImageError as problem:
        facts.why = str(problem)
        return facts
    facts.height, facts.width = image.shape[:2]
    digest = hashlib.blake2b(image, digest_size=32)  # sha256 would take as long as decoding
    digest.update(repr(image.shape).encode())
    facts.pixels = digest.digest()
    facts.hash, facts.thumbnail, uniform = perceptual_hash(image)
    facts.format, odd = _encoding(data)
    long, short = max(image.shape[:2]), min(image.shape[:2])
    odd |= {"uniform": uniform, "extreme aspect": long > EXTREME_ASPECT * short, "tiny": short < TINY_SIDE}
    facts.odd = tuple(kind for kind in ODD if odd.get(kind))
    return facts


def _encoding(data: bytes) -> tuple[str, dict[str, bool]]:
    """The format and what is unusual about how the pixels are stored, of bytes that could be decoded."""
    if data[:2] == b"\xff\xd8":
        return "JPEG", _jpeg_encoding(data)
    if data[:4] == b"\x89PNG":
        depth, colour = data[24:26]
        odd = {"grey": colour in (0, 4), "palette": colour == 3, "16-bit": depth == 16}
        return "PNG", odd | {"transparent": header(data)[3]}
    if data[:3] == b"GIF":
        return "GIF", {"palette": True}
    if data[:4] == b"RIFF":
        return "WebP", {"transparent": header(data)[3]}
    return "BMP", {"palette": data[14] > 12 and data[28] <= 8}  # header's length, bits a pixel


def _jpeg_encoding(data: bytes) -> dict[str, bool]:
    try:
        # Not Image.open, which warns of many pixels: decode_image has its own limit.
        image = JpegImagePlugin.JpegImageFile(io.BytesIO(data))
        odd = {"grey": image.mode == "L", "CMYK": image.mode == "CMYK"}
    except (SyntaxError, OSError, ValueError):  # libjpeg takes more than Pillow
        return {}
    try:
        exif = Image.Exif()  # not image.getexif(), which asks XMP as well; OpenCV does not
        exif.load(image.info.get("exif", b""))
        orientation = exif.get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF ends in almost any exception
        orientation = 1
    return odd | {"rotated by EXIF": orientation in range(2, 9)}
