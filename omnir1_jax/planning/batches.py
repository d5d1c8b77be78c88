"""Shapes of a task's batches, from the example that the task makes of a stand-in clip."""

import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import ShapeDtypeStruct
from ml_collections import ConfigDict
from transformers import PreTrainedTokenizerBase

from omnir1_jax.build.data import example_config, grounder_sizes, task_of
from omnir1_jax.build.models import ModelSpecs
from omnir1_jax.build.run import Run
from omnir1_jax.data.audio import SAMPLE_RATE
from omnir1_jax.data.clips import DecodedClip
from omnir1_jax.data.preprocess.tokens import SPELLING
from omnir1_jax.data.refs import BadSample, ClipRef, ImageFiles
from omnir1_jax.errors import InputError
from omnir1_jax.models.qwen_omni.config import ThinkerConfig
from omnir1_jax.tasks import Task

SIDE = 224  # pixels of the stand-in frame, which is resized as any other
PREFIX = 48  # tokens of System 2's prompt up to and with the frame's end, the frame as one, with Qwen2.5's tokenizer


class StandInTokenizer(PreTrainedTokenizerBase):
    """Stand-in for a tokenizer that is not on this machine: media tokens, and one id for all text between two."""

    name_or_path, chat_template = "stand-in", None

    def __init__(self):
        """Without the files that the base class reads."""

    def get_added_vocab(self) -> dict[str, int]:
        return {spelled: 1 + n for n, spelled in enumerate(SPELLING.values())}

    def __call__(self, text: str, add_special_tokens: bool = False) -> dict[str, list[int]]:
        special = self.get_added_vocab()
        media = re.split("(" + "|".join(map(re.escape, special)) + ")", text)
        ids = [special.get(piece, 0) for piece in media if piece]
        # System 2's prompt is kept up to its frame, with whose end no other text ends.
        missing = PREFIX - len(ids) if text.endswith(SPELLING["vision_end"]) else 0
        return {"input_ids": [0] * missing + ids}


def stand_in(task: Task, entry: ConfigDict) -> DecodedClip:
    """A clip as large as an entry of the mixture allows."""
    shape = (entry.frames, SIDE, SIDE)
    ref = ClipRef("plan", "stand-in", task.clips, "what is meant", ImageFiles((), ()), extra=task.extra)
    return DecodedClip(
        ref=ref,
        frame_indices=np.arange(entry.frames),
        frames=np.zeros((*shape, 3), np.uint8),
        size=(SIDE, SIDE),
        masks=np.ones((entry.objects, *shape), bool),
        audio=np.zeros(round(entry.audio_seconds * SAMPLE_RATE), np.float32) if entry.audio_seconds else None,
        without_sound=False,
        rng=np.random.default_rng(0),
    )


def batch_of(
    config: ConfigDict,
    name: str,
    task: Task,
    thinker: ThinkerConfig,
    tokenizer: PreTrainedTokenizerBase | None = None,
    grounder: ModelSpecs | None = None,
) -> Any:
    """Shapes of the batches of an entry of the mixture.

    Args:
      tokenizer: None if it is not on this machine.
      grounder: another thinker, which grounds System 2's frames.

    Raises:
      InputError: the task makes no example of the stand-in clip.
    """
    entry = config.data[name]
    or_stand_in = lambda tokenizer: StandInTokenizer() if tokenizer is None else tokenizer
    other = None if grounder is None else grounder._replace(tokenizer=or_stand_in(grounder.tokenizer))
    example_settings = example_config(config, name, or_stand_in(tokenizer), thinker, lambda config: other)
    try:
        arrays = task.example(stand_in(task, entry), example_settings)
    except (BadSample, LookupError) as error:
        raise InputError(
            f"data.{name}: cannot be planned; {task.name} makes no example of a stand-in clip ({error})"
        ) from error
    shape = lambda x: ShapeDtypeStruct((entry.batch_size, *np.shape(x)), np.asarray(x).dtype)
    return task.to_batch({key: shape(value) for key, value in arrays.items()})


def of_run(run: Run) -> Callable[[str], Any]:
    """For the name of a task of a GRPO run: shapes of its batches, sharded as they will be.

    Raises:
      InputError: from the function: the task makes no example of the stand-in clip.
    """

    def shapes(name: str) -> Any:
        loaded, task = run.loaded, task_of(run.config, name)
        other = grounder_sizes(run.config)
        batch = batch_of(run.config, name, task, loaded.models.thinker.config, loaded.tokenizer, other)
        return jax.tree.map(lambda x: ShapeDtypeStruct(x.shape, x.dtype, sharding=run.batch_sharding), batch)

    return shapes
