"""What the thinker reads: static shapes, padded, everything irregular worked out on the host.

Field names are also the keys of the host's numpy batches. A *cell* is the 2 x 2 patches (28 x 28 pixels, two
frames deep) that become one visual token of the decoder; every list of cells is in the order of the prompt's
visual tokens. Indices are -1 where there is nothing.

The fields of these classes are not checked on construction even where shape checks are on: trees of shapes, shardings
or booleans have the same classes.
"""

from collections.abc import Mapping
from typing import Any, TypeAlias, no_type_check

import flax.struct
import jax
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

Array: TypeAlias = jax.Array | np.ndarray


@no_type_check
@flax.struct.dataclass
class VisionInputs:
    """Cells of all images and videos of a row, padded to n.

    Attributes:
      pixels: RGB; axes are cell, frame of the pair, row, column, channel. An image fills both frames. Or patches
        that are normalised already, as the Hugging Face processor makes them.
      rows_cols: row and column of the cell in its frame, in cells.
      windows: cells of each attention window, -1 padded.
      frames: cells of each temporal patch (a frame pair, or an image), -1 padded.
    """

    pixels: UInt8[Array, "b n 2 cell_pixels cell_pixels 3"] | Float[Array, "b n cell_patches columns"]
    rows_cols: Int[Array, "b n 2"]
    windows: Int[Array, "b w window_cells"]
    frames: Int[Array, "b f frame_cells"]


@no_type_check
@flax.struct.dataclass
class AudioInputs:
    """Mel spectrograms of all audios of a row, cut into chunks of `2 * n_window` mel frames.

    Attributes:
      mel: zero where a chunk is short.
      lengths: mel frames of each chunk; 0 for padding.
      pairs: the two positions that each audio token averages, in the flat list of the row's
        `chunks * n_window` embedded positions; -1 padded.
    """

    mel: Float[Array, "b c chunk_frames mel_bins"]
    lengths: Int[Array, "b c"]
    pairs: Int[Array, "b a 2"]


@no_type_check
@flax.struct.dataclass
class ThinkerInputs:
    """A batch of prompts.

    Attributes:
      tokens: ids, media placeholders included.
      mask: True for real tokens; padding may stand on either side.
      positions: TMRoPE ids (time, height, width) of each token.
      next_position: the id of the first token after the prompt, on all three axes.
      vision_index: which cell of `vision` a token stands for, else -1.
      audio_index: which audio token of `audio` a token stands for, else -1.
      vision: None for a program without images or video.
      audio: None for a program without audio.
    """

    tokens: Int[Array, "b s"]
    mask: Bool[Array, "b s"]
    positions: Int[Array, "b 3 s"]
    next_position: Int[Array, " b"]
    vision_index: Int[Array, "b s"]
    audio_index: Int[Array, "b s"]
    vision: VisionInputs | None = None
    audio: AudioInputs | None = None

    @classmethod
    def of(cls, tree: Mapping[str, Any]) -> "ThinkerInputs":
        """From dicts by field, as a pipeline's flat arrays unflatten to."""
        encoders = {"vision": VisionInputs, "audio": AudioInputs}
        return cls(**{name: encoders[name](**value) if name in encoders else value for name, value in tree.items()})
