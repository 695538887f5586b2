"""What every descriptor set offers."""

import abc
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Part:
    """One descriptor of a set; see `trunks.Descriptor`.

    Attributes:
      kind: its name within the set.
      size: D, its numbers.
    """

    kind: str
    group: str
    size: int
    standardise: bool = False


class DescriptorSet(abc.ABC):
    """One or more descriptors of an image, computed in one pass.

    Attributes:
      name: as in `config.features.sets`.
      parts: its descriptors, which lie side by side in the vector of an image.
    """

    name: str
    parts: tuple[Part, ...]

    @property
    def size(self) -> int:
        """Numbers of an image's vector."""
        return sum(part.size for part in self.parts)

    @abc.abstractmethod
    def key_fields(self) -> dict:
        """All that the values depend on beside image and kind, in plain values. UserError where weights are missing."""

    @abc.abstractmethod
    def prepare(self, image: np.ndarray) -> np.ndarray:
        """What `describe` takes of an image uint8 [H, W, 3]; of one shape for images that go through together.

        Called by several threads at the same time.
        """

    @abc.abstractmethod
    def describe(self, prepared: np.ndarray, count: int) -> np.ndarray:
        """float32 [B, D] of prepared images [B, ...] of one shape, computed as a batch of `count`, B or more."""
