"""Device meshes with the axes `slice`, `data`, `fsdp` and `tensor`."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from omnir1_jax.errors import InputError

# From the slowest network to the fastest: between slices, then within one. Weights are replicated over slices.
AXES = ("slice", "data", "fsdp", "tensor")
BATCH = ("slice", "data", "fsdp")  # prompts are sharded over all of these

# XLA gathers an operand of a product in pieces, one per device, and overlaps the two. It then reads or adds to what is
# not gathered once per piece: in memory-bound products up to 8 times the bytes.
_WHOLE_PRODUCTS = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}


def jit(function: Callable[..., Any], mesh: Mesh | None, **options: Any) -> Any:
    """`jax.jit(function, **options)` for programs over a mesh, or over one device without."""
    tpu = mesh is not None and mesh.size > 1 and mesh.devices.flat[0].platform == "tpu"
    return jax.jit(function, compiler_options=_WHOLE_PRODUCTS if tpu else {}, **options)


def jit_step(step: Callable[..., Any], shardings: Any, **options: Any) -> Any:
    """A training step `(state, ...) -> (state, metrics, more)`, compiled. The state is donated.

    Args:
      shardings: of the state, which it keeps from step to step; None: what the compiler chooses.
    """
    mesh = None if shardings is None else jax.tree.leaves(shardings)[0].mesh
    return jit(step, mesh, donate_argnums=0, out_shardings=mesh and (shardings, None, None), **options)


def make_mesh(shape: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over `devices` (default: all) with the axes `AXES`; neighbours in the mesh are neighbours in the network.

    Args:
      shape: size of each axis; an absent axis has size 1, and at most one may be -1 (what is left).
      devices: each TPU slice gets its own index along `slice`; other devices are split in their order.

    Raises:
      InputError: an unknown axis, a size below 1, a product that is not the number of devices, or another number of
        slices than the devices are of.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = _sizes(shape, len(devices))
    groups = _slices(devices, sizes[0])
    slice_meshes = [_arranged(group, sizes[1:]) for group in groups]
    return Mesh(np.stack(slice_meshes), AXES)


def _sizes(shape: Mapping[str, int], count: int) -> list[int]:
    unknown = set(shape) - set(AXES)
    if unknown:
        raise InputError(f"mesh: unknown axis {', '.join(sorted(unknown))}; the axes are {', '.join(AXES)}")
    sizes = {axis: shape.get(axis, 1) for axis in AXES}
    for axis, size in sizes.items():
        if size < 1 and size != -1:
            raise InputError(f"mesh.{axis}: {size} is not positive; -1 takes the devices that are left")
    open_axes = [axis for axis, size in sizes.items() if size == -1]
    if len(open_axes) > 1:
        raise InputError(f"mesh.{open_axes[0]}: only one axis may be -1, and mesh.{open_axes[1]} is too")
    left = count
    for axis, size in sizes.items():
        if size == -1:
            continue
        if left % size:
            available = (
                f"{count} devices" if left == count else f"{left} devices that the axes before it leave of {count}"
            )
            raise InputError(f"mesh.{axis}: {size} does not divide the {available}")
        left //= size
    if open_axes:
        sizes[open_axes[0]] = left
    elif left > 1:
        product = " x ".join(f"{axis} {size}" for axis, size in sizes.items())
        raise InputError(
            f"mesh.fsdp: the mesh {product} leaves devices idle, there are {count} devices; "
            f"set it to {sizes['fsdp'] * left}, or to -1 for what is left"
        )
    return list(sizes.values())


def _slices(devices: Sequence[jax.Device], count: int) -> list[list[jax.Device]]:
    """The devices of each slice; equal parts if the hardware has no slices."""
    groups: dict[int, list[jax.Device]] = {}
    for device in devices:
        number = device.slice_index if device.platform == "tpu" and hasattr(device, "slice_index") else 0
        groups.setdefault(number, []).append(device)
    if len(groups) > 1:
        if len(groups) != count:
            raise InputError(
                f"mesh.slice: {count}, but the devices are of {len(groups)} slices; set it to {len(groups)}"
            )
        return [groups[number] for number in sorted(groups)]
    size = len(devices) // count
    return [list(devices[start : start + size]) for start in range(0, len(devices), size)]


def _arranged(devices: Sequence[jax.Device], sizes: Sequence[int]) -> np.ndarray:
    if math.prod(sizes) == 1:
        return np.array(devices).reshape(sizes)
    return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of every array of a batch, along its first axis."""
    return NamedSharding(mesh, PartitionSpec(BATCH))


def batch_parts(mesh: Mesh) -> int:
    """The number of shards of a batch."""
    return math.prod(mesh.shape[axis] for axis in BATCH)


def parts_here(mesh: Mesh) -> tuple[int, ...]:
    """Indices of the batch's shards that the devices of this process hold, in order."""
    count = batch_parts(mesh)
    local_indices = batch_sharding(mesh).addressable_devices_indices_map((count,)).values()
    return tuple(sorted({(index[0].start or 0) for index in local_indices}))
