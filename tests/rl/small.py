"""A small run: both systems with random weights, the synthetic world, and answers put into their mouths."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from omnir1_jax.config.sections import Grpo, Reward, Step
from omnir1_jax.data import pipeline
from omnir1_jax.data.clips import DecodeConfig
from omnir1_jax.data.preprocess import tokens
from omnir1_jax.data.preprocess.settings import PixelBudget, Sizes
from omnir1_jax.data.synthetic import reader
from omnir1_jax.data.synthetic.world import WorldConfig
from omnir1_jax.models import sam2
from omnir1_jax.models.qwen_omni.config import AudioConfig, TextConfig, ThinkerConfig, VisionConfig
from omnir1_jax.models.qwen_omni.sample import Completions, Sampling
from omnir1_jax.models.qwen_omni.thinker import Thinker, abstract_params
from omnir1_jax.rl import learn
from omnir1_jax.rl.config import Frozen, Models, StepConfig
from omnir1_jax.systems.grounders.protocol import GroundedBoxes, Grounder, Requests
from omnir1_jax.systems.grounders.thinker import ThinkerGrounder, ThinkerParams
from omnir1_jax.systems.segmenters.sam2 import Sam2Segmenter
from omnir1_jax.tasks import TASKS, examples
from omnir1_jax.text.bpe import bpe_tables
from omnir1_jax.text.prompt import template
from omnir1_jax.text.readers import read_boxes
from omnir1_jax.text.rules import Failure
from omnir1_jax.text.strings import Buffer
from omnir1_jax.text.vocab import byte_vocab, pack
from tests.data import qwen_oracle

GROUP, CELL, SIDE, FRAMES = 4, 28, 64, 6
# Short ones: the tokenizer is small, and most of the time goes into tokens.
TEMPLATES = {
    "vos": "Find {query}",
    "refavs": "Hear {query}",
    "refcocog": "Box {query}",
    "qa": "{query} {options}",
}
WORLD = WorldConfig(height=56, width=84, frames=FRAMES, occlusion=0.0)
FAMILIES = {
    "vos": DecodeConfig(frames=FRAMES, target="some_frame"),
    "refavs": DecodeConfig(frames=1, sampling="first", sound="required", target="first_frame"),
    "refcocog": DecodeConfig(frames=1, sampling="first"),
    "qa": DecodeConfig(frames=FRAMES, sampling="uniform"),
}


@functools.cache
def tokenizer():
    return qwen_oracle.tokenizer()


def thinker_config(**changes) -> ThinkerConfig:
    ids = tokens.token_ids(tokenizer())
    text = TextConfig(len(tokenizer()), 48, 64, 2, 4, 2, 16, 1e4, (2, 3, 3))
    vision = VisionConfig(2, 32, 48, 2, 48, (1,))
    audio = AudioConfig(16, 24, 1, 2, 32, 48, 10, 20)
    return ThinkerConfig(text, vision, audio, ids, **changes)


def sam2_config() -> sam2.Sam2Config:
    hiera = sam2.HieraConfig(
        dims=(8, 16, 32, 64), heads=(1, 1, 2, 4), blocks=(1, 1, 2, 1), windows=(8, 4, 4, 2), global_blocks=(3,)
    )
    small = dict(
        width=64, decoder_mlp=64, decoder_heads=2, iou_width=32, attention_layers=1, attention_mlp=32, fuser_mlp=32
    )
    return sam2.Sam2Config(hiera=hiera, side=SIDE, object_chunk=16, frame_chunk=8, **small)


def models(grounder: Grounder | None = None, **changes) -> Models:
    """The small models; System 2 finds boxes by the thinker, unless another grounder is given."""
    thinker, ids = Thinker(thinker_config(**changes)), tokens.token_ids(tokenizer())
    own = ThinkerGrounder(thinker, Sampling(12, ids.eos, ids.pad, temperature=0.0), 64, 256)
    return Models(thinker, Sam2Segmenter(sam2.Sam2(sam2_config())), grounder or own)


@functools.cache
def example_config(family: str) -> examples.ExampleConfig:
    config = thinker_config()
    cells = lambda n: n * CELL**2
    budget = PixelBudget(cells(1), cells(6), cells(1), cells(6))
    return examples.ExampleConfig(
        tokenizer=tokenizer(),
        sizes=Sizes.of(config),
        system="You see.",
        template=TEMPLATES[family],
        grounding=grounding(),
        policy_budget=budget,
        sharp_budget=PixelBudget(cells(4), cells(12), cells(1), cells(6)),
        text_tokens=160,
        frames=FRAMES if family in ("vos", "qa") else 1,
        objects=3,
        audio_seconds=6.0 if family == "refavs" else 0.0,
        segmenter_side=SIDE,
        max_aspect=2.0,
    )


def grounding() -> str:
    return "<|im_start|>user\n<|vision_bos|><|IMAGE|><|vision_eos|>Box {description}<|im_end|>\n<|im_start|>assistant\n"


@functools.cache
def batches(family: str, size: int, count: int = 1, seed: int = 0, **changes) -> list:
    """The first batches of a family from the synthetic world; `changes` of its example config."""
    source = reader.open(family=family, clips=8, seed=seed, config=WORLD)
    transform = functools.partial(TASKS[family].example, config=dataclasses.replace(example_config(family), **changes))
    mixture = pipeline.Family(family, (source,), size, FAMILIES[family], transform)
    settings = pipeline.PipelineConfig(seed=seed, shard_index=0, shard_count=1, max_bad_share=1.0)
    dataset = pipeline.training_dataset([mixture], settings)
    return [jax.tree.map(jnp.asarray, TASKS[family].to_batch(dataset[i].arrays)) for i in range(count)]


def randomise(tree, seed: int):
    """Weights of unit gain, nothing at zero: matrices by their fan-in, vectors around 1 (scales) or 0."""
    rng = np.random.default_rng(seed)

    def one(path, leaf):
        name = path[-1].key
        if name in ("scale",):
            return jnp.asarray(1 + 0.2 * rng.normal(size=leaf.shape), jnp.float32)
        fan = 1.0 if leaf.ndim < 2 else 4.0 / np.sqrt(np.prod(leaf.shape[:-1]))
        return jnp.asarray(0.2 * fan * rng.normal(size=leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(one, tree)


@functools.cache
def thinker_params(seed: int = 0):
    return randomise(nn.unbox(abstract_params(thinker_config())), seed)


@functools.cache
def sam2_params():
    return randomise(nn.unbox(sam2.abstract_params(sam2_config())), 1)


def frozen(params=None) -> Frozen:
    params = thinker_params() if params is None else params
    return Frozen(
        encoders={"vision": params["vision"], "audio": params["audio"]},
        reference=params["text"],
        segmenter=sam2_params(),
        vocab=byte_vocab(tokenizer()),
        bpe=bpe_tables(tokenizer()),
        grounder=ThinkerParams(template(tokenizer(), grounding())),
    )


def step_config(**changes) -> StepConfig:
    ids = thinker_config().tokens
    step = Step(group=GROUP, max_tokens=24, top_k=0, top_p=1.0, completion_bytes=512, score_chunk=64)
    base = StepConfig.of(step, Grpo(), Reward(bonus_range=(5, 500)), None, ids)
    return dataclasses.replace(base, **changes)


def optimizer(rate: float = 1e-3, eps: float = 1e-8) -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, eps=eps, weight_decay=0.01))


def state(trainable=None, made=None) -> learn.TrainState:
    trainable = thinker_params(5)["text"] if trainable is None else trainable
    return learn.init(jax.tree.map(jnp.copy, trainable), optimizer() if made is None else made)


def spoken(texts: list[list[str]], size: int) -> Completions:
    """Texts as completions that a sampler might have made; log-probs unknown."""
    ids = tokens.token_ids(tokenizer())
    shape = (len(texts), len(texts[0]))
    out = np.full((*shape, size), ids.pad, np.int32)
    lengths = np.zeros(shape, np.int32)
    for at in np.ndindex(shape):
        line = [*tokenizer()(texts[at[0]][at[1]], add_special_tokens=False)["input_ids"], ids.eos[0]][:size]
        out[at][: len(line)] = line
        lengths[at] = len(line)
    return Completions(jnp.asarray(out), jnp.asarray(lengths), jnp.zeros((*shape, size)))


class Scripted:
    """A grounder that answers with texts[(frame + g) % n] at each request."""

    host = False

    def __init__(self, texts: list[str], size: int = 256):
        self.texts = pack([text.encode() for text in texts], size)

    def load(self, config) -> None:
        return None

    def ground(self, params, frames, requests: Requests, slots: int) -> GroundedBoxes:
        which = (requests.frame + jnp.arange(requests.frame.shape[1])[:, None]) % len(self.texts.length)
        boxes = read_boxes(self.texts, slots)
        asked = requests.valid
        return GroundedBoxes(
            jnp.where(asked[..., None, None], boxes.box[which], -1.0),
            jnp.where(asked, boxes.count[which], 0),
            jnp.where(asked[..., None], boxes.failure[which], int(Failure.ABSENT)),
            asked,
            jax.tree.map(lambda x: x[which], Buffer(*self.texts)),
            frames.scale,
            jnp.zeros(which.shape[0], jnp.int32),
        )
