"""Messages with text, images, video and sound to what the thinker reads, on the host and without JAX.

prompt = prepare(messages, load_tokenizer(directory), budget=PixelBudget(video_min=16 * CELL, video_max=128 * CELL))
batch = pad_to([prompt], bucket_for(text_tokens=256, video_frames=[24], audio_seconds=[10.0], ...))
"""

from omnir1_jax.data.preprocess.bucket import AudioBatch, Bucket, PromptBatch, VisionBatch, bucket_for, pad_to
from omnir1_jax.data.preprocess.mel import log_mel
from omnir1_jax.data.preprocess.pixels import smart_resize
from omnir1_jax.data.preprocess.prompt import Prompt, prepare
from omnir1_jax.data.preprocess.settings import CELL, PixelBudget, Sizes
from omnir1_jax.data.preprocess.tokens import TokenIds, load_tokenizer, token_ids

__all__ = [
    "CELL", "AudioBatch", "Bucket", "PixelBudget", "Prompt", "PromptBatch", "Sizes", "TokenIds", "VisionBatch",
    "bucket_for", "load_tokenizer", "log_mel", "pad_to", "prepare", "smart_resize", "token_ids",
]  # fmt: skip
