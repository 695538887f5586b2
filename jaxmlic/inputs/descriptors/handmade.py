"""Descriptors without weights, by OpenCV: colour and texture histograms, and oriented gradients at several scales."""

import functools
import math
from collections.abc import Callable

import cv2
import numpy as np
from ml_collections import ConfigDict

from jaxmlic.data.image import resize
from jaxmlic.inputs.descriptors.descriptor_set import DescriptorSet, Part

SIDE = 256  # what the short side of an image is resized to, its aspect kept
STRIPS = 3  # horizontal ones
# Colour spaces: conversion from RGB, the upper ends of the channels, bins of the whole image; a strip has half of them.
SPACES = {
    "rgb": (None, (256, 256, 256), (8, 8, 8)),
    "hsv": (cv2.COLOR_RGB2HSV, (180, 256, 256), (16, 6, 6)),
    "lab": (cv2.COLOR_RGB2LAB, (256, 256, 256), (8, 12, 12)),
}
PATTERNS = 256  # of eight neighbours, each darker than the centre or not
SCALES, ORIENTATIONS, CELLS, SQUARE = 4, 8, 4, 128  # of the gradients: of a square of SQUARE pixels
_NEIGHBOURS = ((-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1))


class HandmadeSet(DescriptorSet):
    """One of HANDMADE; the descriptors of an image and of its mirror image averaged where `features.mirror` says so."""

    def __init__(self, config: ConfigDict, name: str):
        self.name, self._mirror = name, config.features.mirror
        self._describe, self.parts = HANDMADE[name]

    def key_fields(self) -> dict:
        """Its name and size."""
        return {"trunk": self.name, "image_size": SIDE, "mirror": self._mirror}

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """The descriptors themselves, float32 [D]."""
        height, width = image.shape[:2]
        scale = SIDE / min(height, width)
        image = np.ascontiguousarray(resize(image, (round(scale * height), round(scale * width))))
        views = (image, np.ascontiguousarray(image[:, ::-1])) if self._mirror else (image,)
        return np.mean([self._describe(view) for view in views], axis=0, dtype=np.float32)

    def describe(self, prepared: np.ndarray, count: int) -> np.ndarray:
        """What was prepared."""
        return prepared


def colour(image: np.ndarray) -> np.ndarray:
    """Roots of the shares of joint bins, of each space the whole image's and then its strips': float32 [D]."""
    found = []
    for conversion, ends, bins in SPACES.values():
        converted = image if conversion is None else cv2.cvtColor(image, conversion)
        coarse = [n // 2 for n in bins]
        found.append(_histogram(converted, ends, bins))
        found += [_histogram(strip, ends, coarse) for strip in np.array_split(converted, STRIPS)]
    return np.concatenate(found)


def _histogram(image: np.ndarray, ends: tuple[int, ...], bins: tuple[int, ...]) -> np.ndarray:
    ranges = [bound for end in ends for bound in (0, end)]
    counts = cv2.calcHist([np.ascontiguousarray(image)], [0, 1, 2], None, list(bins), ranges).ravel()
    return np.sqrt(counts / counts.sum())


def texture(image: np.ndarray) -> np.ndarray:
    """Local binary patterns (Ojala et al., 2002) of eight neighbours: roots of their shares in each strip."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    height, width = grey.shape
    centre, pattern = grey[1:-1, 1:-1], np.zeros((height - 2, width - 2), np.uint8)
    for bit, (down, right) in enumerate(_NEIGHBOURS):
        other = grey[1 + down : height - 1 + down, 1 + right : width - 1 + right]
        pattern |= (other >= centre).astype(np.uint8) << bit
    counts = [np.bincount(strip.ravel(), minlength=PATTERNS) for strip in np.array_split(pattern, STRIPS)]
    return np.concatenate([np.sqrt(count / count.sum()) for count in counts]).astype(np.float32)


def gradient(image: np.ndarray) -> np.ndarray:
    """Energies of Gabor filters in CELLS x CELLS cells, float32 [D], in the manner of GIST (Oliva, Torralba, 2001).

    The grey image, squashed to a square, is divided by its local contrast; a scale is half as large as the one before.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    grey = cv2.resize(grey, (SQUARE, SQUARE), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    detail = grey - cv2.GaussianBlur(grey, (0, 0), 4.0)
    level = detail / (0.1 + np.sqrt(cv2.GaussianBlur(detail**2, (0, 0), 4.0)))
    found = []
    for _ in range(SCALES):
        for even, odd in _gabor_filters():
            energy = np.hypot(cv2.filter2D(level, -1, even), cv2.filter2D(level, -1, odd))
            found.append(cv2.resize(energy, (CELLS, CELLS), interpolation=cv2.INTER_AREA).ravel())
        level = cv2.pyrDown(level)
    return np.concatenate(found)


@functools.cache
def _gabor_filters() -> list[tuple[np.ndarray, np.ndarray]]:
    """(even, odd) of each orientation: a wave of 4 pixels under a Gaussian of 2, without a mean."""
    filters = []
    for angle in np.pi * np.arange(ORIENTATIONS) / ORIENTATIONS:
        even, odd = (cv2.getGaborKernel((13, 13), 2.0, angle, 4.0, 1.0, phase, cv2.CV_32F) for phase in (0, np.pi / 2))
        filters.append((even - even.mean(), odd))
    return filters


def _colour_parts() -> tuple[Part, ...]:
    found = []
    for name, (_, _, bins) in SPACES.items():
        found.append(Part(name, "colour", math.prod(bins)))
        found.append(Part(f"{name}_strips", "colour", STRIPS * math.prod(n // 2 for n in bins)))
    return tuple(found)


HANDMADE: dict[str, tuple[Callable[[np.ndarray], np.ndarray], tuple[Part, ...]]] = {
    "colour": (colour, _colour_parts()),
    "texture": (texture, (Part("patterns", "texture", STRIPS * PATTERNS),)),
    "gradient": (gradient, (Part("energies", "gradient", SCALES * ORIENTATIONS * CELLS**2, True),)),
}
