"""Accelerators by their data sheets, and the conventions by which plans turn FLOPs and bytes into time."""

import dataclasses

# Of a device's peak: ResNet-101 at 448 px reached 0.22 to 0.25 of an H200's (docs/results/gpu.md).
UTILISATION = 0.25


@dataclasses.dataclass(frozen=True)
class Device:
    """A device by its data sheet.

    Attributes:
      title: its name.
      bfloat16, float32: dense peak in FLOP/s; float32 as JAX computes it (TF32 on a GPU, bfloat16 passes on a TPU).
      memory: bytes.
      group: devices that share the fast links: a node's GPUs, a TPU slice.
      within, between: bytes/s that one device sends inside its group and to other groups.
    """

    title: str
    bfloat16: float
    float32: float
    memory: float
    group: int
    within: float
    between: float

    def all_reduce_seconds(self, size: float, devices: int) -> float:
        """Of the sum of `size` bytes over `devices`, by rings: reduce-scatter inside each group, all-reduce of the
        shares between the groups, all-gather inside; latencies are not counted."""
        inside = min(devices, self.group)
        groups = -(-devices // self.group)
        seconds = 2 * size * (inside - 1) / inside / self.within
        return seconds + 2 * size / inside * (groups - 1) / groups / self.between


# NVLink 4: 900 GB/s in both directions, eight GPUs a node with a 400 Gb/s port each. TPU v5e: two axes of a torus of
# 256 chips, 45 GB/s a link and direction; 200 Gb/s for a host of eight chips.
DEVICES = {
    "h100": Device("NVIDIA H100 SXM", 989e12, 494e12, 80e9, 8, 450e9, 50e9),
    "h200": Device("NVIDIA H200 SXM", 989e12, 494e12, 141e9, 8, 450e9, 50e9),
    "v5e": Device("TPU v5e", 197e12, 197e12, 16e9, 256, 180e9, 3.125e9),
}
