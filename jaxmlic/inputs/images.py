"""From a prepared data set to batches: split selection, host decoding, shuffling, padding; grain keeps the position.

A batch is a dict of `image` uint8 [B, S, S, 3], `labels` int8 [B, C] in {1, 0, -1}, `mask` bool [B] (False = padding),
in evaluation `id` text [B] and, where training has weighted targets, `weight` float32 [B]. B is this host's share of
the global batch.
"""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

from jaxmlic.data.image import ImageError, decode_image
from jaxmlic.data.loader import Batch, RowReader, View
from jaxmlic.errors import UserError


class ImageReader(RowReader):
    """Reads images, decoding on the way (or once, with `cache`).

    `side` is the square every image is squashed to. Thread-safe.
    """

    def __init__(self, view: View, side: int, *, cache: bool = False, threads: int = 2):
        super().__init__(view)
        self.side = side
        self.source = view.dataset.source(view.split)
        self.pixels = self._decode_all(threads) if cache else None

    def __call__(self, rows: np.ndarray) -> Batch:
        """int rows [B] of the view -> image, labels and an all-true mask."""
        if self.pixels is not None:
            images = self.pixels[rows]
        else:
            images = np.empty((len(rows), self.side, self.side, 3), np.uint8)
            for image, row in zip(images, rows, strict=True):
                self._decode(row, image)
        return self.batch(rows, image=images)

    def _decode(self, row: int, out: np.ndarray) -> None:
        record = self.source[int(self.view.indices[row])]
        try:
            decode_image(record["image"], self.side, out)
        except ImageError as error:
            raise UserError(
                f"image {record['id']!r} in {self.view.where()} cannot be read ({error}); prepare the data set again"
            ) from None

    def _decode_all(self, threads: int) -> np.ndarray:
        shape = (len(self), self.side, self.side, 3)
        need, have = np.prod(shape), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if need > 0.7 * have:
            raise UserError(
                f"config.data.cache: {self.view.where()} needs {need / 2**30:.1f} GiB of memory and the machine has "
                f"{have / 2**30:.1f}; set config.data.cache=False"
            )
        pixels = np.empty(shape, np.uint8)
        with ThreadPoolExecutor(max(1, threads)) as pool:
            decoded = pool.map(self._decode, range(len(self)), pixels)
            label = f"decoding {self.view.dataset.name}/{self.view.split}"
            for _ in tqdm(decoded, label, len(self), leave=False, unit="img", disable=None):
                pass
        return pixels
