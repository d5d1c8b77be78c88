"""The full GRPO step of video segmentation against `usual_step`, stage by stage, with the same weights and inputs.

Two sizes: the toy's weights with its batch, and random weights of 60 M parameters with one prompt. Lengths are forced
(no token ends a text), and so are System 1's choices and the boxes, so that both sides do the same work, which is
checked before anything is timed. Both sides take turns in one process, each in float32 with all cores that
the process may use: pin it with `taskset -c 0` for the figures of one core. Seconds are of the CPU, over all threads,
and of the wall. Needs a checkout (configs/toy.py) and the `test` extra.
"""

import dataclasses
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from omnir1_jax.benches.sam2 import random_params, small
from omnir1_jax.build import data, models, optimizer
from omnir1_jax.config import sections
from omnir1_jax.config.settings import section
from omnir1_jax.data import clips
from omnir1_jax.errors import InputError
from omnir1_jax.inference import from_checkpoint
from omnir1_jax.models import sam2
from omnir1_jax.models.qwen_omni import pretrained
from omnir1_jax.models.qwen_omni.thinker import Thinker, abstract_params
from omnir1_jax.rl import learn, step
from omnir1_jax.rl.config import Rewards
from omnir1_jax.systems.grounders.protocol import Requests
from omnir1_jax.systems.keyframes import Keyframes
from omnir1_jax.tasks import vos
from omnir1_jax.tasks.examples import ExampleConfig
from omnir1_jax.text.strings import Buffer
from omnir1_jax.text.vocab import detokenise

STAGES = ("rollout", "read", "ground", "segment", "learn")


class Case(NamedTuple):
    """One size: the inputs of both sides.

    Attributes:
      choices: of the step, without tokens that end a text.
      frames: keyframes of each completion, [g k]. boxes: of its one object on them, in pixels of the clip, [g k 4].
    """

    config: ConfigDict
    loaded: models.LoadedModels
    choices: Any
    example: ExampleConfig
    clip: clips.DecodedClip
    rows: int
    frames: np.ndarray
    boxes: np.ndarray
    rewards: np.ndarray


def run(quick: bool) -> dict:
    """Seconds of each stage on both sides, their ratios, and the differences of their numbers."""
    import torch

    torch.set_num_threads(1 if quick else len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    if quick:
        config = toy(batch=1, group=2, tokens=6, grounding=4, keyframes=2)
        with config.unlocked():
            config.step.temperature = 3.0  # two completions that differ, else there is no gradient to compare
        return measure(case(config), 1)
    figures = {f"toy_{name}": value for name, value in measure(case(toy()), 5).items()}
    with tempfile.TemporaryDirectory() as folder:
        config = large(pathlib.Path(folder))
        return figures | {f"60M_{name}": value for name, value in measure(case(config), 3).items()}


def toy(batch: int = 8, group: int = 8, tokens: int = 96, grounding: int = 32, keyframes: int = 4) -> ConfigDict:
    """configs/toy.py."""
    config = from_checkpoint.config_of(from_checkpoint.TOY)
    with config.unlocked():
        config.data.vos.batch_size, config.step.group, config.step.max_tokens = batch, group, tokens
        config.step.grounding_tokens, config.step.keyframes = grounding, keyframes
    return config


def large(folder: pathlib.Path) -> ConfigDict:
    """One prompt of the toy's world with larger frames, for 60 M parameters; writes their weights."""
    config, cell = toy(batch=1, grounding=40), 16 * 16
    tokenizer = config.thinker.path
    with config.unlocked():
        config.thinker.tokenizer, config.thinker.path = tokenizer, ""
        config.thinker.sizes = dict(
            text=dict(
                vocab_size=16384, hidden_size=768, intermediate_size=2048, num_layers=10, num_heads=12, num_kv_heads=2,
                head_dim=64, rope_theta=1e6, mrope_section=(12, 10, 10),
            ),
            vision=dict(
                depth=4, hidden_size=384, intermediate_size=1024, num_heads=6, out_hidden_size=768,
                full_attention_blocks=(1, 3), patch_size=8, window_size=64,
            ),
            audio=dict(num_mel_bins=16, d_model=16, num_layers=1, num_heads=2, ffn_dim=32, output_dim=768, n_window=10),
        )  # fmt: skip
        config.pixels.policy_video = config.pixels.policy_image = (120 * cell, 160 * cell)
        config.pixels.sharp = (120 * cell, 160 * cell)
        config.sam2.path, config.sam2.side = "", 256
    specs = models.thinker_sizes(config, "thinker")
    params = models.draw(abstract_params(specs.thinker), jax.random.key(0), jnp.float32)
    pretrained.save(folder / "thinker", Thinker(specs.thinker), params)
    shape = small(256)
    sam2.export(folder / "sam2", sam2.Sam2(shape), random_params(shape, np.random.default_rng(0)))
    with config.unlocked():
        config.thinker.path, config.thinker.sizes = str(folder / "thinker"), {}
        config.sam2.path = str(folder / "sam2")
    return config


def case(config: ConfigDict) -> Case:
    """A clip with the config's maximum of frames, and choices of keyframes that cover all of them."""
    entry, specs = section(sections.Task, config.data.vos), models.sizes(config)
    (reader,) = data.readers(config, "vos")
    decoded = (clips.decode(reader[n], entry, np.random.default_rng(n)) for n in range(len(reader)))
    clip = next(clip for clip in decoded if len(clip.frames) == entry.frames)
    ids = dataclasses.replace(specs.thinker.tokens, eos=())
    specs = specs._replace(thinker=dataclasses.replace(specs.thinker, tokens=ids))
    group, count = config.step.group, config.step.keyframes
    frames = np.sort((np.arange(group)[:, None] + 2 * np.arange(count)) % entry.frames, axis=1)
    height, width = clip.size
    box = np.array([0.2, 0.2, 0.6, 0.7]) * [width, height, width, height]
    boxes = box + frames[..., None] * np.tile([0.02 * width, 0.01 * height], 2)
    return Case(
        config,
        models.load(config, specs),
        models.step_config(config, ids),
        data.example_config(config, "vos", specs.tokenizer, specs.thinker),
        clip,
        config.data.vos.batch_size,
        frames,
        boxes.astype(np.float32),
        np.cos(np.arange(config.data.vos.batch_size * group, dtype=np.float32)).reshape(-1, group),
    )


def ours(case: Case) -> tuple[dict[str, Callable[[], Any]], dict[str, Any]]:
    """The stages, compiled one by one, and the dict of their outputs."""
    task, entry = vos.TASK, case.config.data.vos
    out: dict[str, Any] = {}
    arrays = task.example(case.clip, case.example)
    batch = task.to_batch({key: jnp.stack([jnp.asarray(x)] * case.rows) for key, x in arrays.items()})
    settings = section(sections.Optimizer, case.config.optimizer)
    rule = optimizer.make(dataclasses.replace(settings, schedule="constant"), 1000, case.loaded.params["text"])
    frozen = models.frozen(case.config, case.loaded)
    out["state"] = learn.init(models.trainable(case.config, case.loaded), rule)
    stages = step.make_stages(task, case.loaded.models, rule, case.choices)
    jitted = step.Stages(*map(jax.jit, stages[:-1]), update=jax.jit(stages.update, donate_argnums=0))
    rows, (g, k), n = case.rows, case.frames.shape, entry.objects
    per_row = lambda x: jnp.broadcast_to(jnp.asarray(x), (rows, *np.shape(x)))
    valid = per_row(np.ones((g, k), bool))
    text = case.clip.ref.query.encode()[: case.config.step.description_bytes]
    padded = np.zeros(case.config.step.description_bytes, np.uint8)
    padded[: len(text)] = np.frombuffer(text, np.uint8)
    query = Buffer(*(per_row(np.broadcast_to(x, (g, k, *np.shape(x)))) for x in (padded, np.int32(len(text)), False)))
    boxes = np.zeros((g, k, n, 4), np.float32)
    boxes[:, :, 0] = case.boxes
    used = np.broadcast_to(np.arange(n) == 0, (g, k, n))

    def rollout():
        out["media"] = jitted.encode(frozen, batch)
        out["completions"] = jitted.sample(out["state"], frozen, batch, out["media"], jax.random.key(1))
        return out["completions"]

    def read():
        out["reading"] = jitted.read(frozen, batch, out["completions"])._replace(
            keyframes=Keyframes(per_row(case.frames), jnp.zeros_like(per_row(case.frames)), valid),
            requests=Requests(per_row(case.frames), valid, query),
        )
        return out["reading"]

    def ground():
        out["grounding"] = jitted.ground(frozen, batch, out["reading"])
        return out["grounding"]

    def segment():
        grounding = out["grounding"]
        scaled = per_row(boxes) * jnp.tile(grounding.boxes.scale, 2)[:, None, None, None]
        fixed = grounding.matching._replace(box=scaled, prompt=per_row(used))
        out["masks"] = jitted.segment(frozen, batch, out["reading"], grounding._replace(matching=fixed))
        return out["masks"]

    def update():
        rewards = jitted.reward(batch, out["completions"], out["reading"], out["grounding"], out["masks"])
        fixed = Rewards(jnp.asarray(case.rewards), rewards.terms, rewards.failures)
        media = out["media"]
        out["state"], out["learned"] = jitted.update(out["state"], frozen, batch, media, out["completions"], fixed)
        return out["learned"]

    return dict(zip(STAGES, (rollout, read, ground, segment, update))), out


def theirs(case: Case, tokens: np.ndarray) -> tuple[dict[str, Callable[[], Any]], dict[str, Any]]:
    """The same of `usual_step`, which learns on the completions of the other side."""
    import torch

    from omnir1_jax.benches import usual_pipeline, usual_step

    config, example = case.config, case.example
    out: dict[str, Any] = {}
    settings = section(sections.Optimizer, config.optimizer)
    usual = usual_step.load(config.thinker.path, config.sam2.path, case.loaded.tokenizer, example, settings)
    (group, _), sampling = case.frames.shape, case.choices.sampling
    completions = torch.tensor(tokens.reshape(-1, tokens.shape[-1]), dtype=torch.long)
    scale = np.tile(np.divide(config.sam2.side, case.clip.size[::-1]), 2)
    objects = [dict(zip(map(int, shown), boxes * scale)) for shown, boxes in zip(case.frames, case.boxes)]
    frames = vos.truth(case.clip, example)["clip"]

    def rollout():
        text, video = usual_pipeline.system1(example, case.clip)
        prompts = usual_step.encode_prompts(usual, [text] * case.rows, [video] * case.rows, "video")
        out["prompts"] = usual_step.repeated(prompts, group)
        out["tokens"] = usual_step.generate(
            usual.policy, out["prompts"], sampling.max_tokens, usual_step.sampler(sampling)
        )

    def read():
        texts = usual.tokenizer.batch_decode(
            out["tokens"].clamp(max=len(usual.tokenizer) - 1), skip_special_tokens=True
        )
        out["plans"] = [usual_pipeline.keyframes(text, len(case.clip.frames), case.choices) for text in texts]

    def ground():
        texts, images = zip(
            *(
                usual_pipeline.system2(example, case.clip.frames[n : n + 1], case.clip.ref.query)
                for n in case.frames.ravel()
            )
        )
        prompts = usual_step.encode_prompts(usual, texts * case.rows, images * case.rows, "image")
        out["answers"] = usual_step.generate(usual.frozen, prompts, config.step.grounding_tokens, usual_step.greedy)
        usual.tokenizer.batch_decode(out["answers"].clamp(max=len(usual.tokenizer) - 1), skip_special_tokens=True)

    def segment():
        out["masks"] = np.stack([usual_step.segment(usual, frames, objects) for _ in range(case.rows)])

    def update():
        out["learned"] = usual_step.learn(
            usual, out["prompts"], completions, case.rewards, sampling, case.choices.grpo, settings.clip_norm
        )

    def scores():
        with torch.no_grad():
            return usual_step.logprobs(usual.policy, out["prompts"], completions, sampling.temperature).numpy()

    out["scores"] = scores
    return dict(zip(STAGES, (rollout, read, ground, segment, update))), out


def measure(case: Case, repeats: int) -> dict[str, Any]:
    """Medians of both sides in turns, after one step of each, whose numbers are compared."""
    our_stages, out = ours(case)
    for stage in STAGES:
        jax.block_until_ready(our_stages[stage]())
    their_stages, usual = theirs(case, np.asarray(out["completions"].tokens))
    for stage in STAGES[:-1]:
        their_stages[stage]()
    agreed = agreement(case, out, usual["scores"](), usual)
    their_stages["learn"]()
    agreed |= updated(out["learned"], usual["learned"])
    times: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for _ in range(repeats):
        for side, stages in (("", our_stages), ("_torch", their_stages)):
            for stage in STAGES:
                times.setdefault((stage, side), []).append(seconds(stages[stage]))
    figures = dict(agreed)
    for kind, name in enumerate(("cpu", "wall")):
        totals = {"": 0.0, "_torch": 0.0}
        for stage in STAGES:
            medians = {side: statistics.median(t[kind] for t in times[stage, side]) for side in totals}
            totals = {side: totals[side] + medians[side] for side in totals}
            figures |= {f"{stage}_{name}_s{side}": value for side, value in medians.items()}
            figures[f"{stage}_{name}_times_faster"] = medians["_torch"] / medians[""]
        figures |= {f"step_{name}_s{side}": value for side, value in totals.items()}
        figures[f"step_{name}_times_faster"] = totals["_torch"] / totals[""]
    return figures | {"cores": len(os.sched_getaffinity(0))}


def seconds(stage: Callable[[], Any]) -> tuple[float, float]:
    """CPU and wall seconds of a stage."""
    cpu, wall = time.process_time(), time.perf_counter()
    jax.block_until_ready(stage())
    return time.process_time() - cpu, time.perf_counter() - wall


def agreement(case: Case, out: dict[str, Any], scores: np.ndarray, usual: dict[str, Any]) -> dict[str, float]:
    """The differences between the numbers of both sides.

    Raises:
      InputError: they differ too much for a comparison of times.
    """
    completions, answers = out["completions"], out["grounding"].boxes.answer
    lengths = {int(completions.lengths.min()), completions.tokens.shape[-1], usual["tokens"].shape[1]}
    gap = float(np.abs(scores.reshape(completions.tokens.shape) - completions.logprobs).max())
    vocab = models.tokenizer_tables(case.config, case.loaded.tokenizer).vocab
    other = detokenise(vocab, jnp.asarray(usual["answers"].numpy(), jnp.int32), answers.bytes.shape[-1])[0]
    equal = np.all(np.asarray(other.bytes).reshape(answers.bytes.shape) == answers.bytes, axis=-1)
    union, masks = np.asarray(out["masks"].union), usual["masks"].reshape(out["masks"].union.shape)
    figures = {
        "logprob_gap": gap,
        "equal_answers": float(equal.mean()),
        "mask_iou": float((union & masks).sum() / max((union | masks).sum(), 1)),
    }
    if len(lengths) > 1 or gap > 1e-2 or min(figures["equal_answers"], figures["mask_iou"]) < 0.9:
        raise InputError(f"step: the two sides differ: lengths {sorted(lengths)}, {figures}")
    return figures


def updated(learned: Any, usual: tuple[float, float]) -> dict[str, float]:
    """Difference of the losses, and relative one of the gradients' norms."""
    loss, norm = usual
    return {
        "loss_gap": abs(float(learned.loss) - loss),
        "gradient_difference": abs(float(learned.grad_norm) - norm) / norm,
    }
