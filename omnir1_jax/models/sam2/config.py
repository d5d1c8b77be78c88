"""Shape of a SAM 2.1 model and the options of a run."""

import dataclasses
from typing import Literal, get_args

from omnir1_jax.config.sections import Direction, Sam2Run
from omnir1_jax.errors import InputError

ACTIVATIONS = ("gelu", "relu")


@dataclasses.dataclass(frozen=True)
class BlockSpec:
    """One Hiera block. `window` 0 is global attention; `pool` halves height and width of the queries."""

    stage: int
    dim_in: int
    dim: int
    heads: int
    window: int
    pool: bool


@dataclasses.dataclass(frozen=True)
class Run:
    """`count` consecutive equal blocks starting at block `first`; a run of several is one scanned module."""

    first: int
    count: int
    spec: BlockSpec
    ends_stage: bool

    @property
    def name(self) -> str:
        return f"block_{self.first}" if self.count == 1 else f"blocks_{self.first}_{self.first + self.count - 1}"


@dataclasses.dataclass(frozen=True)
class HieraConfig:
    """The image backbone, one entry per stage where a field is a tuple."""

    dims: tuple[int, ...] = (96, 192, 384, 768)
    heads: tuple[int, ...] = (1, 2, 4, 8)
    blocks: tuple[int, ...] = (1, 2, 7, 2)
    windows: tuple[int, ...] = (8, 4, 14, 7)
    global_blocks: tuple[int, ...] = (5, 7, 9)
    background: tuple[int, int] = (7, 7)
    pool_stages: int = 3
    patch_kernel: int = 7
    patch_stride: int = 4
    patch_padding: int = 3
    mlp_ratio: float = 4.0
    activation: str = "gelu"
    eps: float = 1e-6

    def specs(self) -> tuple[BlockSpec, ...]:
        """Every block in order. A stage's first block has the previous stage's width in and window."""
        out = []
        for stage, count in enumerate(self.blocks):
            for block in range(count):
                before = stage - 1 if stage > 0 and block == 0 else stage
                window = 0 if len(out) in self.global_blocks else self.windows[before]
                pool = block == 0 and 0 < stage <= self.pool_stages
                out.append(BlockSpec(stage, self.dims[before], self.dims[stage], self.heads[stage], window, pool))
        return tuple(out)

    def runs(self) -> tuple[Run, ...]:
        """Blocks grouped into runs of equal neighbours of one stage."""
        specs, out = self.specs(), []
        for index, spec in enumerate(specs):
            last = index + 1 == len(specs) or specs[index + 1].stage != spec.stage
            if out and out[-1].spec == spec:
                out[-1] = dataclasses.replace(out[-1], count=out[-1].count + 1, ends_stage=last)
            else:
                out.append(Run(index, 1, spec, last))
        return tuple(out)


# Layers, heads and the like, which are iterated over or divided by; every other size may be zero and larger.
_COUNTS = (
    *("decoder_layers", "decoder_heads", "decoder_downsample", "multimasks", "attention_layers", "attention_heads"),
    *("attention_downsample", "mask_kernel", "mask_stride", "fuser_kernel", "point_embeddings", "memory_channels"),
)
_MAX_COUNT, _MAX_SIZE, _MAX_LAYERS = 1024, 1 << 16, 512


def _check_ranges(config: "Sam2Config") -> None:
    """InputError where a size is invalid, before blocks are iterated over or anything is divided by it."""
    in_range = lambda value, low, high: type(value) is int and low <= value <= high
    for name in _COUNTS:
        if not in_range(getattr(config, name), 1, _MAX_COUNT):
            raise InputError(f"SAM 2 config: {name} {getattr(config, name)!r} must be from 1 to {_MAX_COUNT}")
    for name in ("memories", "pointers", "fuser_layers", "mask_layers", "fuser_padding", "mask_padding"):
        if not in_range(getattr(config, name), 0, _MAX_COUNT):
            raise InputError(f"SAM 2 config: {name} {getattr(config, name)!r} must be from 0 to {_MAX_COUNT}")
    if not in_range(config.iou_depth, 2, _MAX_COUNT):
        raise InputError(f"SAM 2 config: iou_depth {config.iou_depth!r} must be from 2 to {_MAX_COUNT}")
    for name in ("width", "mask_channels", "decoder_mlp", "iou_width", "attention_mlp", "fuser_mlp", "side"):
        if not in_range(getattr(config, name), 1, _MAX_SIZE):
            raise InputError(f"SAM 2 config: {name} {getattr(config, name)!r} must be from 1 to {_MAX_SIZE}")
    for name in ("prompt_eps", "rope_theta"):
        if not getattr(config, name) > 0:
            raise InputError(f"SAM 2 config: {name} {getattr(config, name)!r} must be above 0")
    hiera = config.hiera
    for name, low, high in (("dims", 1, _MAX_SIZE), ("heads", 1, _MAX_COUNT), ("blocks", 1, _MAX_LAYERS)):
        if not all(in_range(value, low, high) for value in getattr(hiera, name)):
            raise InputError(f"SAM 2 config: backbone {name} {getattr(hiera, name)} must be from {low} to {high}")
    for name in ("windows", "background"):
        if not all(in_range(value, 1, _MAX_COUNT) for value in getattr(hiera, name)):
            raise InputError(f"SAM 2 config: backbone {name} {getattr(hiera, name)} must be from 1 to {_MAX_COUNT}")
    if len(hiera.background) != 2 or not all(in_range(level, 0, 3) for level in config.top_down_levels):
        raise InputError("SAM 2 config: the background has a height and a width, top_down_levels are from 0 to 3")
    if not in_range(hiera.patch_kernel, 1, 64) or not in_range(hiera.patch_padding, 0, 64) or hiera.patch_stride != 4:
        raise InputError(
            f"SAM 2 config: patch_kernel {hiera.patch_kernel}, patch_stride (only 4) or patch_padding is invalid"
        )
    if not 0 < hiera.mlp_ratio <= 64 or not hiera.eps > 0:
        raise InputError(f"SAM 2 config: mlp_ratio {hiera.mlp_ratio} must be from 0 to 64, layer_norm_eps above 0")


@dataclasses.dataclass(frozen=True)
class Sam2Config(Sam2Run):
    """A SAM 2.1 model and how it is run; the first fields are the checkpoint's, the last ones options of a run.

    Options:
      video: with the memory modules (`Sam2VideoModel`) or without (`Sam2Model`: one frame only).
      conditioning_slots: maximum prompted frames attended at a time, the nearest ones; -1 is all of them. At least 2.
      score_limit: maximum attention scores (fp32 elements) alive at a time; queries are split to keep it.
    """

    hiera: HieraConfig = HieraConfig()
    width: int = 256
    top_down_levels: tuple[int, ...] = (2, 3)
    point_embeddings: int = 4
    mask_channels: int = 16
    prompt_activation: str = "gelu"
    prompt_eps: float = 1e-6
    decoder_layers: int = 2
    decoder_heads: int = 8
    decoder_mlp: int = 2048
    decoder_downsample: int = 2
    multimasks: int = 3
    iou_depth: int = 3
    iou_width: int = 256
    dynamic_multimask: bool = True
    stability_delta: float = 0.05
    stability_threshold: float = 0.98
    memories: int = 7
    memory_channels: int = 64
    memory_scale: float = 20.0
    memory_bias: float = -10.0
    occlusion_embedding: bool = True
    multimask_box: bool = False
    multimask_tracking: bool = True
    pointers: int = 16
    pointer_time: bool = True
    attention_layers: int = 4
    attention_heads: int = 1
    attention_downsample: int = 1
    attention_mlp: int = 2048
    attention_activation: str = "relu"
    rope_theta: float = 10000.0
    mask_kernel: int = 3
    mask_stride: int = 2
    mask_padding: int = 1
    mask_layers: int = 4
    mask_activation: str = "gelu"
    fuser_layers: int = 2
    fuser_mlp: int = 1024
    fuser_kernel: int = 7
    fuser_padding: int = 3
    fuser_activation: str = "gelu"
    video: bool = True
    conditioning_slots: int = -1
    score_limit: int = 1 << 26
    dtype: Literal["float32", "bfloat16"] = "float32"  # exact, unless a run says otherwise

    def __post_init__(self):
        hiera = self.hiera
        _check_ranges(self)
        if not len(hiera.dims) == len(hiera.heads) == len(hiera.blocks) == len(hiera.windows) == 4:
            raise InputError("SAM 2 config: embed dims, heads, blocks and windows per stage must each have 4 entries")
        if self.side <= 0 or self.side % 64 or (self.side // hiera.patch_stride) % hiera.windows[0]:
            raise InputError(
                f"SAM 2 side {self.side}: must be a multiple of 64 whose patch grid "
                f"({self.side // hiera.patch_stride}) is a multiple of the first window ({hiera.windows[0]})"
            )
        for spec in hiera.specs():
            if spec.dim % spec.heads:
                raise InputError(f"SAM 2 config: stage width {spec.dim} is not divisible by its {spec.heads} heads")
            if spec.pool and spec.dim == spec.dim_in:
                raise InputError(f"SAM 2 config: stage {spec.stage} pools but keeps its width {spec.dim}")
        if hiera.patch_stride != 4 or hiera.pool_stages != 3:
            raise InputError("SAM 2 config: only patch_stride 4 with num_query_pool_stages 3 is supported")
        for name in ("prompt_activation", "attention_activation", "mask_activation", "fuser_activation"):
            if getattr(self, name) not in ACTIVATIONS:
                raise InputError(f"SAM 2 config: {name} {getattr(self, name)!r} is not one of {ACTIVATIONS}")
        if hiera.activation not in ACTIVATIONS:
            raise InputError(f"SAM 2 config: backbone hidden_act {hiera.activation!r} is not one of {ACTIVATIONS}")
        heads = {"decoder_heads": (self.decoder_downsample, self.decoder_heads)}
        if self.video:
            heads["attention_heads"] = (self.attention_downsample, self.attention_heads)
        for name, (downsample, count) in heads.items():
            if self.width % (downsample * count):
                raise InputError(
                    f"SAM 2 config: width {self.width} is not a multiple of {name} {count} times its downsampling "
                    f"{downsample}"
                )
        if self.width % 8 or (self.video and self.width % self.memory_channels):
            raise InputError(
                f"SAM 2 config: width {self.width} must be a multiple of 8 and of the memory channels "
                f"{self.memory_channels}"
            )
        if self.video and (self.memories < 2 or self.pointers < 1):
            raise InputError("SAM 2 config: num_maskmem must be at least 2, max_object_pointers_in_encoder at least 1")
        if self.mask_stride**self.mask_layers != 16:
            raise InputError("SAM 2 config: the mask downsampler's total stride must be 16")
        if self.conditioning_slots != -1 and self.conditioning_slots < 2:
            raise InputError(f"SAM 2 conditioning_slots {self.conditioning_slots}: must be -1 (all) or at least 2")
        if self.direction not in get_args(Direction):
            raise InputError(f"SAM 2 direction {self.direction!r}: must be one of {', '.join(get_args(Direction))}")
        for name in ("dtype", "memory_dtype"):
            if getattr(self, name) not in ("float32", "bfloat16"):
                raise InputError(f"SAM 2 {name} {getattr(self, name)!r}: must be float32 or bfloat16")
        if min(self.object_chunk, self.frame_chunk, self.score_limit) < 1:
            raise InputError("SAM 2 object_chunk, frame_chunk and score_limit must be at least 1")

    @property
    def grid(self) -> int:
        """Height and width of the feature map the memory works on."""
        return self.side // 16

    @property
    def mask_side(self) -> int:
        """Height and width of the mask logits."""
        return self.side // 4


# The four released sizes; everything but the backbone is shared.
SIZES = {
    "tiny": HieraConfig(),
    "small": HieraConfig(blocks=(1, 2, 11, 2), global_blocks=(7, 10, 13)),
    "base_plus": HieraConfig(
        dims=(112, 224, 448, 896),
        heads=(2, 4, 8, 16),
        blocks=(2, 3, 16, 3),
        global_blocks=(12, 16, 20),
        background=(14, 14),
    ),
    "large": HieraConfig(
        dims=(144, 288, 576, 1152),
        heads=(2, 4, 8, 16),
        blocks=(2, 6, 36, 4),
        windows=(8, 4, 16, 8),
        global_blocks=(23, 33, 43),
    ),
}
