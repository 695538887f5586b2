"""Data parallelism: jit over a mesh with the one axis `data`."""

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """All devices (or the given ones) on one axis `data`. Auto axes: Linen's Embed fails under Explicit ones."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """The leading axis is divided over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def put(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This host's part of a batch as global arrays divided over `data`; ids and other text stay behind."""
    sharding = split(mesh)
    numeric = {k: v for k, v in batch.items() if v.dtype.kind not in "OUS"}
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in numeric.items()}


def gather(array: jax.Array) -> np.ndarray:
    """A global array as numpy on every host."""
    if jax.process_count() == 1:
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)


def gather_text(values: np.ndarray) -> np.ndarray:
    """Every host's text array [N] joined in host order, in the row order that `gather` gives."""
    if jax.process_count() == 1:
        return values
    width = int(multihost_utils.process_allgather(np.int32(values.dtype.itemsize // 4)).max())
    codes = values.astype(f"U{width}").view(np.uint32).reshape(len(values), width)
    return gather(codes).astype(np.uint32).view(f"U{width}").reshape(-1)
