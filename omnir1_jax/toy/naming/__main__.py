"""Which shape System 2 takes, by what names it: `python -m omnir1_jax.toy.naming --checkpoint toy --preset fleeting`.

Every shape that can be recognised in a frame of held-out clips is asked for by each form that names it alone there:
colour and kind, kind, colour. Its box is another shape's where it overlaps more with that one's.
"""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from omnir1_jax import cli
from omnir1_jax.build import data
from omnir1_jax.data import canvas
from omnir1_jax.data.clips import DecodeConfig, DecodedClip, decode
from omnir1_jax.data.synthetic import reader
from omnir1_jax.data.synthetic.world import PRESETS
from omnir1_jax.errors import InputError
from omnir1_jax.inference import from_checkpoint, load
from omnir1_jax.rewards import boxes as box_rules
from omnir1_jax.systems.frames import HighResFrames
from omnir1_jax.systems.grounders.protocol import Requests
from omnir1_jax.tasks import common, examples
from omnir1_jax.text.strings import Buffer
from omnir1_jax.toy import sight

NAMES = {"colour and kind": "{colour} {kind}", "kind alone": sight.KIND, "colour alone": "{colour} shape"}
ROOM = 16  # frames of a batch
EACH = 8  # questions about a frame, the first ones
WIDE = 32  # bytes of a description
TOUCHES = 0.1  # IoU, the least with which a box is some shape's


class Question(NamedTuple):
    """About one frame. `boxes`: of all shapes that are there (n, 4), the target's first."""

    form: str
    text: str
    boxes: np.ndarray


def questions(clip: DecodedClip, t: int) -> Iterator[Question]:
    there, light, clear = clip.masks.any((2, 3))[:, t], sight.lit(clip)[:, t], sight.seen(clip)[:, t]
    names, boxes = clip.ref.extra["looks"], canvas.boxes(clip.masks[:, t : t + 1])[:, 0]
    for n in np.flatnonzero(clear & light):
        colour, kind = names[n].split()
        others = [m for m in np.flatnonzero(there) if m != n]
        for form in sight.names_alone(int(n), names, there, light):
            yield Question(form, form.format(colour=colour, kind=kind), boxes[[n, *others]])


def asked(systems: load.Systems, preset: str, clips: int, seed: int) -> Iterator[tuple[dict, list[Question]]]:
    """A frame of each clip with all that is asked about it."""
    if not systems.config.data:
        raise InputError("--checkpoint: has no config with a task; name a run's work directory, its weights or toy")
    name = next(iter(systems.config.data))
    example = data.example_config(systems.config, name, systems.tokenizer, systems.thinker)
    example = dataclasses.replace(example, frames=1)
    source = reader.open(split="valid", clips=clips, seed=seed, config=preset, lessons=True)
    decoding = DecodeConfig(frames=PRESETS[preset].frames, objects=EACH, sampling="uniform")
    for k in range(clips):
        clip = decode(source[k], decoding, np.random.default_rng(k))
        found = list(questions(clip, t := k % len(clip.frames)))
        if found:
            arrays = examples.sharp_arrays(clip.frames[t : t + 1], clip.size, example)
            sharp = {key.removeprefix("sharp/"): value for key, value in arrays.items()}
            yield sharp, [found[i] for i in np.random.default_rng(k).permutation(len(found))[:EACH]]


def requests(rows: list[list[Question]]) -> Requests:
    text, length = np.zeros((len(rows), EACH, 1, WIDE), np.uint8), np.zeros((len(rows), EACH, 1), np.int32)
    for b, row in enumerate(rows):
        for g, question in enumerate(row):
            raw = question.text.encode()
            text[b, g, 0, : len(raw)], length[b, g, 0] = list(raw), len(raw)
    words = Buffer(jnp.asarray(text), jnp.asarray(length), jnp.zeros(length.shape, bool))
    return Requests(jnp.zeros(length.shape, jnp.int32), jnp.asarray(length > 0), words)


def measure(systems: load.Systems, preset: str, clips: int, seed: int) -> str:
    """A markdown table by form: questions, mean IoU, shares of another shape's box and of no box."""
    every = list(asked(systems, preset, clips, seed))
    find = jax.jit(lambda frozen, frames, what: common.find(systems.models, frozen, frames, what, 1))
    results: dict[str, list[tuple[float, bool, bool]]] = {form: [] for form in NAMES.values()}
    for start in range(0, len(every), ROOM):
        part = every[start : start + ROOM]
        rows = [row for _, row in part] + [[]] * (ROOM - len(part))
        arrays = [sharp for sharp, _ in part] + [part[0][0]] * (ROOM - len(part))
        frames = HighResFrames(**{key: jnp.stack([one[key] for one in arrays]) for key in arrays[0]})
        found = jax.device_get(find(systems.frozen, frames, requests(rows)))
        original, used = np.asarray(found.original)[:, :, 0, 0], np.asarray(found.used)[:, :, 0, 0]
        for b, row in enumerate(rows):
            for g, question in enumerate(row):
                overlap = np.asarray(box_rules.iou(original[b, g][None], question.boxes.astype(np.float32)))
                overlap = overlap.reshape(-1) * used[b, g]
                wrong = overlap.argmax() > 0 and overlap.max() >= TOUCHES
                results[question.form].append((overlap[0], wrong, not used[b, g]))
    lines = ["| asked by | questions | mean IoU | another shape's box | no box |", "| --- | --- | --- | --- | --- |"]
    for name, form in NAMES.items():
        if results[form]:
            iou, wrong, none = np.mean(results[form], 0)
            lines.append(f"| {name} | {len(results[form])} | {iou:.2f} | {wrong:.1%} | {none:.1%} |")
    return "\n".join(lines)


_CHECKPOINT = cli.flag.string("checkpoint", from_checkpoint.TOY, "A run's work directory, weights, or toy.")
_PRESET = cli.flag.enum("preset", "fleeting", sorted(PRESETS), "World that is asked about.")
_CLIPS = cli.flag.integer("clips", 256, "Clips, one frame of each.", lower_bound=1)
_SEED = cli.flag.integer("seed", 1, "Seed of the clips.", lower_bound=0)


def main(_) -> None:
    logging.set_verbosity(logging.WARNING)  # orbax logs every step
    systems = load.load_systems(_CHECKPOINT.value)
    print(measure(systems, _PRESET.value, _CLIPS.value, _SEED.value))


if __name__ == "__main__":
    cli.run(main)
