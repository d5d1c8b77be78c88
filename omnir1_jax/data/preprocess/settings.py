"""What preprocessing needs to know about the model, and how many pixels and seconds a prompt may spend."""

import dataclasses
from typing import Any

from omnir1_jax.data import frame_sampling
from omnir1_jax.errors import InputError

CELL = 28 * 28
SAMPLE_RATE = 16000
MAX_AUDIO_SECONDS = 300


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of the thinker that shape its inputs; the defaults are Qwen2.5-Omni's.

    Attributes:
      cell_pixels: side in pixels of a visual token.
      merge: patches along a side of a cell.
      window_cells: side of an attention window in cells.
      n_window: half an audio chunk in mel frames.
      mel_bins: rows of the mel spectrogram.
      position_id_per_second: time positions in a second.
      seconds_per_chunk: length of the pieces of a video and its sound.
    """

    cell_pixels: int = 28
    merge: int = 2
    window_cells: int = 4
    n_window: int = 100
    mel_bins: int = 128
    position_id_per_second: int = 25
    seconds_per_chunk: float | int = 2.0

    @classmethod
    def of(cls, config: Any) -> "Sizes":
        """From a `ThinkerConfig`, which this room may not import."""
        vision, audio = config.vision, config.audio
        if vision.temporal_patch_size != 2:
            raise InputError(f"temporal_patch_size must be 2 (frame pairs), got {vision.temporal_patch_size}")
        return cls(
            cell_pixels=vision.cell_pixels,
            merge=vision.spatial_merge_size,
            window_cells=vision.window_cells,
            n_window=audio.n_window,
            mel_bins=audio.num_mel_bins,
            position_id_per_second=config.position_id_per_second,
            seconds_per_chunk=config.seconds_per_chunk,
        )


@dataclasses.dataclass(frozen=True)
class PixelBudget:
    """Minimum and maximum pixels of an image and of a video's frame after resizing. The defaults are the stock model's.

    `video_total`, if given, lowers the frame's limit to an even share of the clip's budget (two frames make
    one grid), though never under 1.05 times the minimum. A message's item may carry limits of its own.
    """

    image_min: int = 4 * CELL
    image_max: int = 16384 * CELL
    video_min: int = 128 * CELL
    video_max: int = 768 * CELL
    video_total: int | None = None

    def __post_init__(self):
        for kind in ("image", "video"):
            low, high = getattr(self, f"{kind}_min"), getattr(self, f"{kind}_max")
            if not 0 < low <= high:
                raise InputError(f"pixel budget: {kind}_min must be positive and at most {kind}_max, got {low}, {high}")
        if self.video_total is not None and self.video_total <= 0:
            raise InputError(f"pixel budget: video_total must be positive, got {self.video_total}")

    def frame_max(self, frames: int) -> int:
        """Maximum pixels of each of a video's frames."""
        if self.video_total is None:
            return self.video_max
        share = frame_sampling.frame_pixel_budget(
            frames, self.video_total, minimum=self.video_min, maximum=self.video_max
        )
        return int(share)


STOCK_SIZES = Sizes()
STOCK_BUDGET = PixelBudget()
