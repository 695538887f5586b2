"""This process's place among those of a job."""

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jax


@dataclasses.dataclass(frozen=True)
class Place:
    """Number of this process, and how many there are."""

    index: int = 0
    count: int = 1


_place = Place()


def take(place: Place) -> None:
    """This process has found its place."""
    global _place
    _place = place


def index() -> int:
    """This process's number, from 0. Unlike `jax.process_index()` it does not initialise JAX's devices."""
    return _place.index


def count() -> int:
    """The number of processes."""
    return _place.count


def is_main() -> bool:
    """Whether this process writes and prints for all."""
    return _place.index == 0


def client() -> "jax._src.lib._jax.DistributedRuntimeClient":
    """Of the service in which processes leave words for each other; it needs no device."""
    from jax._src import distributed

    return distributed.global_state.client
