"""Perceptual hashes of images, and the search for pairs of images that look the same."""

import itertools
from collections.abc import Iterator

import cv2
import numpy as np

NEAR = 6
"""Differing bits of two 64-bit hashes. JPEG quality 30, half the size or 1 % cut off each side stay within 6 (99 % or
more of VOC 2007 and Corel-5K); so does 1 in 20 million pairs of unrelated pictures, which SAME_THUMBNAIL stops."""
MAX_NEAR = 12  # most pairs that differ in more are chance, and the search comes near to comparing all pairs
SAME_THUMBNAIL = 0.8  # correlation; pairs seen within NEAR: 0.86 and more if of one scene, 0.72 and less by chance
_BLOCK = 1 << 16  # pairs compared at once


def perceptual_hash(image: np.ndarray) -> tuple[int, np.ndarray, bool]:
    """The 64-bit DCT hash (pHash): which of the 8 x 8 lowest frequencies of 32 x 32 grey pixels exceed their median.

    Args:
      image: uint8 [H, W, 3], RGB.

    Returns:
      the hash, a grey thumbnail uint8 [256], and whether the image is of one colour, so that its hash means nothing.
    """
    grey = cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (32, 32), interpolation=cv2.INTER_AREA)
    low = cv2.dct(grey.astype(np.float32))[:8, :8]
    bits = np.packbits(low > np.median(low))
    thumbnail = cv2.resize(grey, (16, 16), interpolation=cv2.INTER_AREA).ravel()
    return int.from_bytes(bits.tobytes(), "big"), thumbnail, int(grey.max()) - int(grey.min()) <= 2


def near_pairs(hashes: np.ndarray, limit: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """All pairs of 64-bit hashes that differ in at most `limit` bits, each pair once, in blocks.

    By the pigeonhole principle such two agree wholly in one of any limit + 1 chunks of their bits, so only hashes that
    share a chunk are compared: 100,000 take a second or two at limit 6.

    Args:
      hashes: uint64 [N].
      limit: 0..MAX_NEAR.

    Yields:
      (first, second, distance): rows of the pairs, first < second, and the number of differing bits.
    """
    chunks = max(limit, NEAR) + 1  # fewer would have more values than there are hashes
    edges = [round(64 * chunk / chunks) for chunk in range(chunks + 1)]
    masks = [np.uint64((1 << high) - (1 << low)) for low, high in itertools.pairwise(edges)]
    for chunk, mask in enumerate(masks):
        keys = hashes & mask
        order = np.argsort(keys, kind="stable")
        starts = np.flatnonzero(np.diff(keys[order], prepend=~keys[order[:1]]))
        ends = np.append(starts, len(order))[1:]
        several = ends - starts > 1
        for start, end in zip(starts[several], ends[several], strict=True):
            members = order[start:end]
            step = max(1, _BLOCK // len(members))
            for at in range(0, len(members), step):
                differing = hashes[members[at : at + step], None] ^ hashes[None, members[at:]]
                first, second = np.nonzero(np.triu(np.bitwise_count(differing) <= limit, 1))
                differing = differing[first, second]
                # Pairs that agree in an earlier chunk, too, were found there.
                new = np.all([differing & earlier != 0 for earlier in masks[:chunk]], axis=0) & (first >= 0)
                if new.any():
                    yield members[at:][first[new]], members[at:][second[new]], np.bitwise_count(differing[new])


def correlations(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """float32 [K] of the rows of two uint8 [K, 256]; NaN where one is constant."""
    some, others = some.astype(np.float32), others.astype(np.float32)
    some -= some.mean(1, keepdims=True)
    others -= others.mean(1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return (some * others).sum(1) / np.sqrt((some**2).sum(1) * (others**2).sum(1))
