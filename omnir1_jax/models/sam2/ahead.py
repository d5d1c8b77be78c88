"""Compiles tracking for a TPU without one: does it fit, how much memory, how many operations.

`python -m omnir1_jax.models.sam2.ahead --chip=v5e --dtype=bfloat16` prints the figures as JSON.
"""

import json
import os
import time
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from absl import flags
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from omnir1_jax import cli
from omnir1_jax.errors import InputError
from omnir1_jax.models.sam2.config import SIZES, Sam2Config
from omnir1_jax.models.sam2.model import Sam2, abstract_params
from omnir1_jax.models.sam2.video import segment_video

# Smallest topologies and, where a host has more than one chip, the bounds that make it one.
CHIPS: Mapping[str, Mapping[str, Any]] = {
    "v5e": {"topology_name": "v5e:1x1", "chips_per_host_bounds": (1, 1, 1)},
    "v5p": {"topology_name": "v5p:1x1x1", "chips_per_host_bounds": (1, 1, 1)},
    "v6e": {"topology_name": "v6e:1x1", "chips_per_host_bounds": (1, 1, 1)},
    "v4": {"topology_name": "v4:1x1x1", "chips_per_host_bounds": (1, 1, 1)},
}


def compile_for_tpu(
    config: Sam2Config,
    chip: str,
    *,
    frames: int = 24,
    objects: int = 24,
    boxes: int = 4,
    height: int = 480,
    width: int = 854,
) -> dict[str, Any]:
    """Compiles `segment_video` for one chip ("v5e", "v5p", ...) and reports what the compiler says.

    Returns memory in GiB (arguments, outputs, temporaries, and their sum less what is shared) and seconds spent. The
    parameters are in `config.dtype`.

    Raises:
      InputError: it does not fit the chip; the message holds the compiler's figures.
    """
    if chip not in CHIPS:
        raise InputError(f"there is no chip {chip!r}; choose from {', '.join(CHIPS)}")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    topology = topologies.get_topology_desc(platform="tpu", **CHIPS[chip])
    here = SingleDeviceSharding(topology.devices[0])
    shape = lambda shape, dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=here)
    params = jax.tree.map(lambda x: shape(x.shape, config.dtype), nn.meta.unbox(abstract_params(config)))
    arguments = (
        params,
        shape((frames, height, width, 3), jnp.uint8),
        shape((objects, boxes, 4), jnp.float32),
        shape((objects, boxes), jnp.int32),
        shape((objects, boxes), jnp.bool_),
    )
    start = time.perf_counter()
    lowered = jax.jit(segment_video, static_argnums=0).lower(Sam2(config), *arguments)
    middle = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        first = " ".join(str(error).split())[:300]
        raise InputError(f"SAM 2 does not fit one {chip}: {first}; use smaller chunks or score_limit") from error
    memory = compiled.memory_analysis()
    sizes = {
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
    }
    total = sum(sizes.values()) - memory.alias_size_in_bytes
    return {
        "chip": chip,
        "dtype": config.dtype,
        "frames": frames,
        "objects": objects,
        "boxes": boxes,
        **{f"{name}_gib": round(size / 2**30, 3) for name, size in sizes.items()},
        "hbm_gib": round(total / 2**30, 3),
        "lower_s": round(middle - start, 1),
        "compile_s": round(time.perf_counter() - middle, 1),
    }


def main(_: Any) -> None:
    config = Sam2Config(
        hiera=SIZES[_SIZE.value],
        dtype=_DTYPE.value,
        direction=_DIRECTION.value,
        object_chunk=_OBJECT_CHUNK.value,
        frame_chunk=_FRAME_CHUNK.value,
        score_limit=_SCORE_LIMIT.value,
        side=_SIDE.value,
    )
    print(json.dumps(compile_for_tpu(config, _CHIP.value, frames=_FRAMES.value, objects=_OBJECTS.value)))


if __name__ == "__main__":
    _SIZE = flags.DEFINE_enum("size", "large", list(SIZES), "Model size.")
    _CHIP = flags.DEFINE_enum("chip", "v5e", list(CHIPS), "TPU to compile for.")
    _DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["bfloat16", "float32"], "Of parameters and computation.")
    _DIRECTION = flags.DEFINE_string("direction", "forward", "See Sam2Config.")
    _FRAMES = flags.DEFINE_integer("frames", 24, "Frames of the clip.")
    _OBJECTS = flags.DEFINE_integer("objects", 24, "Objects.")
    _OBJECT_CHUNK = flags.DEFINE_integer("object_chunk", Sam2Config.object_chunk, "See Sam2Config.")
    _FRAME_CHUNK = flags.DEFINE_integer("frame_chunk", Sam2Config.frame_chunk, "See Sam2Config.")
    _SCORE_LIMIT = flags.DEFINE_integer("score_limit", Sam2Config.score_limit, "See Sam2Config.")
    _SIDE = flags.DEFINE_integer("side", 1024, "Input side.")
    cli.run(main)
