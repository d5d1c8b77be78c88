"""Device meshes with the axes `data`, `fsdp` and `tensor`."""

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from omnir1_jax.errors import InputError

AXES = ("data", "fsdp", "tensor")


def make_mesh(shape: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over `devices` (default: all) with the axes `data`, `fsdp`, `tensor`.

    Args:
      shape: size of each axis; an absent axis has size 1, and at most one may be -1 (what is left).
      devices: their order is the mesh's order.

    Raises:
      InputError: an unknown axis, a size below 1, or a product that is not the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    unknown = set(shape) - set(AXES)
    if unknown:
        raise InputError(f"mesh: unknown axis {', '.join(sorted(unknown))}; the axes are {', '.join(AXES)}")
    sizes = [shape.get(axis, 1) for axis in AXES]
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise InputError(f"mesh: sizes must be positive and at most one may be -1, got {dict(zip(AXES, sizes))}")
    if -1 in sizes:
        known = int(np.prod([size for size in sizes if size != -1]))
        sizes[sizes.index(-1)] = len(devices) // known
    if int(np.prod(sizes)) != len(devices):
        raise InputError(
            f"mesh: {' x '.join(map(str, sizes))} ({' x '.join(AXES)}) does not make {len(devices)} devices"
        )
    return Mesh(np.array(devices).reshape(sizes), AXES)
