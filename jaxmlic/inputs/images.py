"""Photographs: decoded and resized on the host, augmented on the device inside the training step."""

import os
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np

from jaxmlic import progress
from jaxmlic.data import augment
from jaxmlic.data.image import ImageError, decode_image
from jaxmlic.data.loader import Batch, RowReader, View
from jaxmlic.errors import UserError
from jaxmlic.inputs.source import Source


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

    def hold(self) -> bool:
        """Whether the pixels are in memory."""
        return self.pixels is not None

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
            with progress.Progress(label, len(self), transient=True) as bar:
                for _ in decoded:
                    bar.advance()
        return pixels


class ImageSource(Source):
    """Photographs of the prepared data set."""

    def train_reader(self, view: View) -> ImageReader:
        """Images at `config.data.resize`, to be cropped by `training_inputs`."""
        return self._reader(view, self.config.data.resize or self.config.data.image_size)

    def validation_reader(self, view: View) -> ImageReader:
        """Images at the model's size."""
        return self._reader(view, self.config.data.image_size)

    def eval_reader(self, view: View) -> ImageReader:
        """Images at the model's size, read once and so not kept."""
        return ImageReader(view, self.config.data.image_size)

    def training_inputs(
        self, key: jax.Array, batch: dict[str, jax.Array], epoch: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The images with the augmentation of `config.augment`."""
        size = self.config.data.image_size
        return augment.augment(key, batch["image"], batch["labels"], size, epoch, **self.config.augment)

    def _reader(self, view: View, side: int) -> ImageReader:
        return ImageReader(view, side, cache=self.config.data.cache, threads=self.config.data.threads)
