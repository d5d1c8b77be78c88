"""TPU topologies without a TPU: their devices for the compiler, and the peak rates of their chips and of GPUs."""

import dataclasses
import re
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from omnir1_jax.errors import InputError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip: bfloat16 operations per second, bytes per second of its memory and of its links, bytes of memory.

    Rates are from Google's system architecture pages (cloud.google.com/tpu/docs); links are all those of a chip, one
    way. The memory is what the compiler allows a program, a little less than the chip has.
    """

    operations: float
    memory_rate: float
    link_rate: float
    memory: int


CHIPS = {
    "v4": Chip(275e12, 1228e9, 300e9, int(30.75 * GIB)),
    "v5e": Chip(197e12, 819e9, 200e9, int(15.75 * GIB)),
    "v5p": Chip(459e12, 2765e9, 600e9, int(95.74 * GIB)),
    "v6e": Chip(918e12, 1640e9, 400e9, int(31.25 * GIB)),
}


# JAX's names of their devices.
DEVICE_KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
}


# Dense operations per second in bfloat16 (V100 and T4, which have none: float16) of NVIDIA's data sheets, which give
# twice as many "with sparsity" from Ampere on. By the name that JAX gives a device, the longest that it begins with.
GPUS = {
    "Tesla V100-SXM2": 125e12,
    "Tesla V100-PCIE": 112e12,
    "Tesla T4": 65e12,
    "NVIDIA A10": 125e12,
    "NVIDIA A10G": 70e12,
    "NVIDIA A30": 165e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40": 181e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H200 NVL": 835e12,
    "NVIDIA GH200": 989e12,
    "NVIDIA B200": 2250e12,
}


def peak_of(kind: str) -> float | None:
    """Operations per second of a device of this `device_kind`, if known."""
    if kind in DEVICE_KINDS:
        return CHIPS[DEVICE_KINDS[kind]].operations
    # A model ends with its name or at a space or dash: an "NVIDIA A1000" is not an A100.
    return GPUS.get(max((name for name in GPUS if re.match(rf"{name}\b", kind)), key=len, default=""))


def chip_of(topology: str) -> Chip:
    """Rates of a topology's chips, such as "v5p:2x2x1"."""
    kind = topology.split(":")[0]
    if kind not in CHIPS:
        raise InputError(f"--topology: {topology!r} is of no known chip; there are {', '.join(CHIPS)}, as in v5p:2x2x1")
    return CHIPS[kind]


def devices_of(topology: str) -> Sequence[jax.Device]:
    """Devices to compile for.

    Raises:
      InputError: no such topology.
    """
    chip_of(topology)
    _, _, shape = topology.partition(":")
    if not shape or not all(part.isdecimal() and int(part) > 0 for part in shape.split("x")):
        raise InputError(f"--topology: {topology!r} is not a chip and its counts, as in v5e:2x4 or v5p:2x2x1")
    single_chip = all(part == "1" for part in shape.split("x"))
    options = {"chips_per_host_bounds": (1, 1, 1)} if single_chip else {}
    if topology.startswith("v4:"):  # both cores of a chip as one device, as on TPU VMs
        options["chip_config_name"] = "megacore"
    try:
        description = topologies.get_topology_desc(platform="tpu", topology_name=topology, **options)
    except (jax.errors.JaxRuntimeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"--topology: the TPU compiler knows no {topology!r} ({reason})") from error
    return description.devices
