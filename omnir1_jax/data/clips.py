"""From a `ClipRef` to decoded arrays: which frames and objects are drawn, what is read, what makes a sample bad."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from omnir1_jax.config.sections import DecodeConfig
from omnir1_jax.data import audio, masks, media
from omnir1_jax.data import frame_sampling as sampling
from omnir1_jax.data.refs import BadSample, ClipRef, MaskSource, RleMasks


class Unsuitable(BadSample):
    """A sound sample that this family does not train on (no target where one is needed): dropped, not a fault."""


@dataclass(frozen=True, eq=False)
class DecodedClip:
    """What a transform gets. `frames` may be smaller than `size`, the frames' own; masks are at `size`."""

    ref: ClipRef
    frame_indices: Int[np.ndarray, " t"]
    frames: UInt8[np.ndarray, "t h w 3"]
    size: tuple[int, int]
    masks: Bool[np.ndarray, "n t hm wm"] | None
    audio: Float[np.ndarray, " samples"] | None  # 16 kHz mono
    without_sound: bool  # the clip should have had a track
    rng: np.random.Generator


def decode(ref: ClipRef, config: DecodeConfig, rng: np.random.Generator) -> DecodedClip:
    """Draws (frames first, then objects), reads and checks. Raises BadSample, or Unsuitable."""
    total = media.frame_count(ref.frames, ref.sample_id)
    indices = choose_frames(ref, total, config, rng)
    own_size: list[tuple[int, int]] = []
    shrink = media.within(config.max_frame_pixels)

    def size(height: int, width: int) -> tuple[int, int]:
        own_size[:] = [(height, width)]
        return shrink(height, width)

    # Masks before frames: they are cheaper, and may show that the frames are not needed.
    mask = None
    if ref.masks is not None:
        mask = _masks(ref, config, indices, rng)
    frames = media.load_frames(ref.frames, indices, size=size, sample_id=ref.sample_id)
    height, width = own_size[0]
    for source, expected_size in (("masks", mask.shape[-2:] if mask is not None else None), ("metadata", ref.size)):
        if expected_size is not None and tuple(expected_size) != (height, width):
            raise BadSample(
                ref.sample_id,
                f"frames of {height}x{width}, but {expected_size[0]}x{expected_size[1]} according to the {source}",
            )
    sound, missing = _sound(ref, config)
    return DecodedClip(ref, indices, frames, (height, width), mask, sound, missing, rng)


def choose_frames(ref: ClipRef, total: int, config: DecodeConfig, rng: np.random.Generator) -> Int[np.ndarray, " t"]:
    """Positions of the frames to read, at most config.frames of them. Those of a variable rate are evenly spaced in
    time, as those of a constant rate are."""
    times = media.uneven_times(ref.frames, ref.sample_id)
    match config.sampling:
        case "first":
            return np.zeros(1, np.int64)
        case "training":
            indices = sampling.training_frames(total, rng, times)
        case "video":
            fps = media.frame_rate(ref.frames, ref.sample_id)
            # A folder of frames that declares no rate is a clip sampled already.
            rate = sampling.SAMPLED_FPS if fps is None else fps
            indices = sampling.video_frame_indices(total, rate, times, maximum=max(config.frames, 2))
        case "uniform":
            indices = np.arange(total)
            if times is not None and total > config.frames:
                indices = np.unique(sampling.evenly_in_time(times, config.frames))
    if len(indices) > config.frames:
        indices = indices[np.linspace(0, len(indices) - 1, config.frames, dtype=np.int64)]
    return indices


def select_objects(source: MaskSource, chosen: Sequence[int]) -> MaskSource:
    """The mask source of some of its objects."""
    if isinstance(source, RleMasks):
        return dataclasses.replace(source, objects=tuple(source.objects[n] for n in chosen))
    return dataclasses.replace(source, values=tuple(source.values[n] for n in chosen))


def _masks(ref: ClipRef, config: DecodeConfig, indices: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    source = ref.masks
    count = len(source.objects if isinstance(source, RleMasks) else source.values)
    if config.sampling == "training":
        chosen = sampling.training_objects(count, rng, config.objects)
    elif count <= config.objects:
        chosen = np.arange(count)
    else:
        raise BadSample(ref.sample_id, f"{count} objects, room for {config.objects}; raise `objects`")
    chosen = [int(n) for n in chosen]
    mask = masks.decode_masks(select_objects(source, chosen), [int(t) for t in indices], ref.sample_id)
    if config.target == "first_frame" and not mask[:, :1].any():
        raise Unsuitable(ref.sample_id, "no target in the first frame")
    if config.target == "some_frame" and not mask.any():
        raise Unsuitable(ref.sample_id, "no target in the chosen frames")
    return mask


def _sound(ref: ClipRef, config: DecodeConfig) -> tuple[np.ndarray | None, bool]:
    """(samples or None, whether a clip that should have sound has none)."""
    if config.sound == "ignore":
        return None, False
    samples = None if ref.audio is None else audio.load_audio(ref.audio, sample_id=ref.sample_id)
    if config.sound == "required":
        if samples is None:
            raise BadSample(ref.sample_id, "no sound")
        if not samples.any():
            raise BadSample(ref.sample_id, "its sound is silent throughout")
    return samples, samples is None
