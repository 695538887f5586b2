"""Batches placed on the devices before they are needed."""

import collections
from collections.abc import Callable
from typing import Any

import grain
import jax

from jaxmlic.data.loader import Batch


class PlacedBatches(grain.DatasetIterator):
    """The batches of `iterator` as arrays on the devices, `ahead` of them waiting there.

    Its position, which checkpoints save, is behind the last batch that it gave, whatever was read ahead.

    Args:
      iterator: of a host's batches.
      place: batch -> arrays, without waiting for the copy.
      ahead: batches that wait; 0 reads a batch when it is asked for.
    """

    def __init__(self, iterator: grain.DatasetIterator, place: Callable[[Batch], dict[str, jax.Array]], ahead: int):
        super().__init__(iterator)
        self.place, self.ahead = place, ahead
        self.waiting = collections.deque()  # (arrays, position behind them)
        self.position = iterator.get_state()

    def __next__(self) -> dict[str, jax.Array]:
        while len(self.waiting) <= self.ahead:
            arrays = self.place(next(self._parent))
            self.waiting.append((arrays, self._parent.get_state()))
        arrays, self.position = self.waiting.popleft()
        return arrays

    def get_state(self) -> dict[str, Any]:
        """The position, as `iterator` has it."""
        return self.position

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a position; what was read ahead is dropped."""
        self._parent.set_state(state)
        self.waiting.clear()
        self.position = state
