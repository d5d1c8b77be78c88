"""Both systems with answers put into their mouths, and a segmenter that fills boxes: an evaluation without models."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from omnir1_jax.build import models
from omnir1_jax.inference import answer, load, run, segment
from omnir1_jax.models.sam2.model import NO_OBJECT
from omnir1_jax.systems import reasoner
from tests.rl import small as rl_small

PLANS = [
    '<think>a</think><answer>{"start_time": "00:00.00", "end_time": "00:00.20", "description": "the red one"}'
    '{"start_time": "00:01.50", "end_time": "00:02.00", "description": "left"}</answer>',
    '<think>b</think><answer>{"start_time": "00:01.00", "end_time": "00:01.00", "description": "Star "}{}</answer>',
    "no answer",
]
DESCRIPTIONS = ["<answer>the loud star</answer>", "<answer> </answer>", "<answer>a ring</answer>"]
BOXES = [
    '[{"bbox_2d": [10, 10, 60, 50], "label": "x"}, {"bbox_2d": [70, 30, 90, 60]}]',
    '{"bbox_2d": [1, 2, 3]} {"bbox_2d": [40, 5, 80, 55]}',
    "none",
]

GROUNDER = rl_small.Scripted(BOXES)

# Compiled for the moment, not for speed.
quick = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)
SEGMENT = quick(segment.logits, static_argnums=0)


PROGRAMS = {"RESPOND": "respond", "READ": "read", "REQUEST": "request", "GROUND": "ground", "CONCLUDE": "conclude"}


@functools.cache
def programs(*words: str):
    """The answer's programs, compiled once for each set of `words` put into mouths: what is traced has them in it."""
    call = lambda name: lambda *args: getattr(answer, name)(*args)
    return {program: quick(call(name), static_argnums=(0, 1)) for program, name in PROGRAMS.items()}


def compile_quickly(monkeypatch, *words: str) -> None:
    for program, compiled in programs(*words).items():
        monkeypatch.setattr(run, program, compiled)


def systems(config, mesh=None) -> load.Systems:
    """Random weights that nobody asks."""
    made = load.systems(config, models.load(config, models.sizes(config), mesh), mesh=mesh)
    return made._replace(models=dataclasses.replace(made.models, grounder=GROUNDER, segmenter=Filled()))


def install(monkeypatch, answers: list[str], boxes: list[str] = BOXES) -> None:
    """Row i of every batch hears answers[i % n], frame i of a clip boxes[i % n]."""

    def sample(thinker, variables, inputs, media, key, sampling, group, **_):
        rows = len(inputs.tokens)
        return rl_small.spoken([[answers[i % len(answers)]] for i in range(rows)], 192)

    monkeypatch.setattr(reasoner, "sample", sample)
    monkeypatch.setattr(reasoner, "encode", lambda *_: reasoner.Media(None, None))
    monkeypatch.setattr(GROUNDER, "texts", rl_small.Scripted(boxes).texts)
    compile_quickly(monkeypatch, *answers, *boxes)
    monkeypatch.setattr(run, "SEGMENT", SEGMENT)


@dataclasses.dataclass(frozen=True)
class Filled:
    """A segmenter that fills the boxes."""

    side: int = 16

    def load(self, config) -> None:
        return None

    def logits(self, params, clip, frame_valid, original, prompts):
        """Of groups of 1."""
        one = [x[:, 0] for x in prompts]
        return filled(self.side, clip, frame_valid, original, *one)[:, None]


def filled(side, clips, frame_valid, original, boxes, used, frames):
    """Each slot's box, from its frame on until the next one's."""
    t = clips.shape[1]
    at = (jnp.arange(side) + 0.5) / side
    x, y = (at * original[:, axis, None] - 0.5 for axis in (0, 1))  # [b side]: in pixels of the video
    box = boxes[..., None]
    inside = lambda low, high, where: (
        (box[..., low, :] <= where[:, None, None]) & (where[:, None, None] <= box[..., high, :])
    )
    drawn = inside(1, 3, y)[..., :, None] & inside(0, 2, x)[..., None, :]  # [b k n y x]
    passed = used & (frames[..., None] <= jnp.arange(t)[:, None, None, None])  # [t b k n]
    k = jnp.arange(frames.shape[1])[:, None]
    last = jnp.max(jnp.where(passed, k, -1), axis=2)
    pick = jnp.take_along_axis(drawn[None], jnp.maximum(last, 0)[:, :, None, :, None, None], axis=2)[:, :, 0]
    pick = jnp.moveaxis(pick & (last >= 0)[..., None, None], 0, 2)
    known = used.any(axis=1)[:, :, None, None, None] & frame_valid[:, None, :, None, None]
    return jnp.where(known, jnp.where(pick, 1.0, -1.0), NO_OBJECT)
