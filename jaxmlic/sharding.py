"""Data parallelism: jit over a mesh with the one axis `data`."""

import os
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxmlic import distributed
from jaxmlic.errors import UserError

SMALL = 1 << 14  # values; what is smaller costs more to gather than to keep


def cores() -> int:
    """Cores that this process may use, which in a container are fewer than the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_cpu_devices(wanted: int, batch_size: int) -> None:
    """Divides this machine's CPU into devices before JAX starts: `wanted`, or for 0 one per core.

    The largest number that divides `batch_size` is taken. Other platforms are not touched, and a number chosen already
    (by $JAX_NUM_CPU_DEVICES, by a test) stays.
    """
    if wanted < 0:
        raise UserError(f"config.train.cpu_devices = {wanted}; it is 0 (one per core) or a number of devices")
    if jax.config.jax_num_cpu_devices > 0:
        return
    limit, hosts = wanted or cores(), distributed.count()
    fitting = (n for n in range(limit, 0, -1) if batch_size % (n * hosts) == 0)
    jax.config.update("jax_num_cpu_devices", next(fitting, 1))


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """All devices (or the given ones) on one axis `data`, those of a process side by side, so that its part of a batch
    is one piece. Auto axes: Linen's Embed fails under Explicit ones."""
    devices = jax.devices() if devices is None else devices
    if distributed.count() > 1 and devices[0].platform == "cpu":
        _compile_alike()
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(ordered), ("data",), axis_types=(AxisType.Auto,))


def _compile_alike() -> None:
    """Turns the compilation cache off where CPUs of several processes compute.

    JAX writes it on process 0 alone, and a CPU's key names its process: process 0 would find its programs while the
    others still compile theirs, and Gloo gives up on those that come 30 s later.
    """
    if jax.config.jax_enable_compilation_cache:
        jax.config.update("jax_enable_compilation_cache", False)
        compilation_cache.reset_cache()  # which else remembers that there was one


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """The leading axis is divided over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def divided(tree: Any, mesh: Mesh) -> Any:
    """A sharding for every array of a tree (or its shape): the longest axis that the devices divide is divided.

    Arrays of fewer than SMALL values, and those without such an axis, are replicated.
    """

    def place(leaf: Any) -> NamedSharding:
        axes = [axis for axis, size in enumerate(leaf.shape) if size and size % mesh.size == 0]
        if not axes or np.prod(leaf.shape) < SMALL:
            return replicated(mesh)
        longest = max(axes, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*(None,) * longest, "data"))

    return jax.tree.map(place, tree)


def put(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This host's part of a batch as global arrays divided over `data`; ids and other text stay behind."""
    sharding = split(mesh)
    numeric = {k: v for k, v in batch.items() if v.dtype.kind not in "OUS"}
    if jax.process_count() == 1:
        return jax.device_put(numeric, sharding)  # all at once
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in numeric.items()}


def put_for_jit(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array | np.ndarray]:
    """As `put`, for a jitted function of this mesh: where one CPU is all devices, it takes numpy itself, in a fifth of
    the time."""
    if mesh.size > 1 or mesh.devices.flat[0].platform != "cpu":
        return put(batch, mesh)
    return {k: v for k, v in batch.items() if v.dtype.kind not in "OUS"}


def place(value: jax.typing.ArrayLike, sharding: NamedSharding) -> jax.Array:
    """An array that every host has whole, as a global one."""
    value = np.asarray(value)
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def gather(array: jax.Array) -> np.ndarray:
    """A global array as numpy on every host."""
    if jax.process_count() == 1:
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)


def gather_text(values: np.ndarray) -> np.ndarray:
    """Every host's text array [N] joined in host order, in the row order that `gather` gives."""
    if jax.process_count() == 1:
        return values
    width = max(1, int(multihost_utils.process_allgather(np.int32(values.dtype.itemsize // 4)).max()))
    codes = values.astype(f"U{width}").view(np.uint32).reshape(len(values), width)
    return gather(codes).astype(np.uint32).view(f"U{width}").reshape(-1)
