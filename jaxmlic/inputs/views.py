"""Which views of a training image are stored in place of the config's augmentation."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxmlic.data import augment
from jaxmlic.errors import UserError


@dataclass(frozen=True)
class Views:
    """What is stored of a training image. View 0 is the image as evaluation sees it.

    Attributes:
      crops: random crops, each mirrored or not by chance; 0 when the config has no cropping.
      flips: whether the mirrored image is stored (without crops).
      resampled: whether training sees the uncropped image through another resize than evaluation, so that it is a view
        of its own.
    """

    crops: int = 0
    flips: bool = False
    resampled: bool = False

    @classmethod
    def of(cls, config: ConfigDict) -> "Views":
        """The views that stand for the config's augmentation."""
        if tuple(config.augment.crop_area) == (1.0, 1.0):
            return cls(flips=config.augment.flip, resampled=config.data.resize not in (0, config.data.image_size))
        if config.features.crops < 1:
            raise UserError(
                f"config.features.crops = {config.features.crops}: config.augment.crop_area asks for random crops, so "
                "at least 1 has to be stored"
            )
        return cls(crops=config.features.crops)

    @property
    def count(self) -> int:
        """Views of a training image, view 0 among them."""
        return 1 + self.crops + int(self.flips) + int(self.resampled)

    def draw(self, key: jax.Array, batch: int) -> jax.Array:
        """int32 [B], the view that each image shows in a training step.

        Without crops it is the same draw as `augment.crop_and_flip` makes from this key, so a run from features takes
        the steps of the run with the frozen trunk.
        """
        if self.crops:
            return jax.random.randint(key, (batch,), 1, 1 + self.crops)
        return augment.draw_flips(key, batch, self.flips).astype(jnp.int32) + int(self.resampled)
