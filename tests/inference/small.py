"""A run of the smallest models as a work directory, its state as if trained: nothing left as it was drawn."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from omnir1_jax.build import models
from omnir1_jax.config import settings
from omnir1_jax.data.preprocess import tokens
from omnir1_jax.models import sam2
from omnir1_jax.models.qwen_omni import pretrained
from omnir1_jax.models.qwen_omni.config import AudioConfig, TextConfig, ThinkerConfig, VisionConfig
from omnir1_jax.models.qwen_omni.thinker import Thinker, abstract_params
from omnir1_jax.rl import learn
from omnir1_jax.training import checkpointing
from omnir1_jax.training import export as setup_weights
from tests.data import qwen_oracle

CELL = 16 * 16
TEXTS = {"system": "You see.", "vos": "Find {query}", "qa": "{query}\n{options}", "refavs": "Hear {query}"}
GROUNDING = (
    "<|im_start|>user\n<|vision_bos|><|IMAGE|><|vision_eos|>Box {description}<|im_end|>\n<|im_start|>assistant\n"
)


THINKER = dict(
    text=TextConfig(0, 48, 64, 2, 4, 2, 16, 1e4, (2, 3, 3)),
    vision=VisionConfig(2, 32, 48, 2, 48, (1,), patch_size=8, window_size=64),
    audio=AudioConfig(16, 24, 1, 2, 32, 48, 10, 300),
)
HIERA = sam2.HieraConfig(
    dims=(8, 16, 32, 64), heads=(1, 1, 2, 4), blocks=(1, 1, 2, 1), windows=(8, 4, 4, 2), global_blocks=(3,)
)
SAM2 = sam2.Sam2Config(
    hiera=HIERA, side=64, width=64, decoder_mlp=64, decoder_heads=2, iou_width=32, attention_layers=1, attention_mlp=32,
    fuser_mlp=32,
)  # fmt: skip


def noise(boxed, seed):
    """Parameters of unit gain, nothing at zero: matrices by their fan-in, scales around 1, other vectors around 0."""
    rng = np.random.default_rng(seed)

    def one(path, leaf):
        fan = 1.0 if leaf.ndim < 2 else 4.0 / np.sqrt(np.prod(leaf.shape[:-1]))
        return np.asarray((path[-1].key == "scale") + 0.2 * fan * rng.normal(size=leaf.shape), np.float32)

    return jax.tree_util.tree_map_with_path(one, nn.unbox(boxed))


def weights(folder):
    """Directories of a thinker (its tokenizer beside it) and of a segmenter."""
    words = qwen_oracle.tokenizer()
    ids = tokens.token_ids(words)
    text = dataclasses.replace(THINKER["text"], vocab_size=len(words))
    thinker = ThinkerConfig(**{**THINKER, "text": text}, tokens=ids)
    files = setup_weights.text_files(None, words)
    pretrained.save(folder / "thinker", Thinker(thinker), noise(abstract_params(thinker), 0), files=files)
    sam2.export(folder / "sam2", sam2.Sam2(SAM2), noise(sam2.abstract_params(SAM2), 1))


def config(folder, **changes):
    """Sizes at which a program compiles in seconds; weights and prompts lie in `folder`."""
    if not (folder / "thinker").is_dir():
        weights(folder)
    c = settings.defaults()
    c.name = "small"
    c.thinker.path = str(folder / "thinker")
    c.thinker.dtype = c.thinker.param_dtype = "float32"
    c.thinker.remat = "none"
    c.sam2.path = str(folder / "sam2")
    c.sam2.side = 64
    c.sam2.frame_chunk = 8
    c.sam2.dtype = c.sam2.memory_dtype = "float32"
    for name, text in (*TEXTS.items(), ("grounding", GROUNDING)):
        (folder / f"{name}.txt").write_text(text)
        c.prompts[name] = str(folder / f"{name}.txt")
    c.prompts.text_tokens = 160
    c.prompts.max_aspect = 2.0
    c.pixels.policy_image = c.pixels.policy_video = (CELL, 24 * CELL)
    c.pixels.sharp = (24 * CELL, 48 * CELL)
    frames = dict(synthetic=dict(family="vos", clips=4, config="toy"))
    c.data = dict(vos=settings.task(datasets=settings.datasets(**frames), frames=8))
    c.loader.threads = 1
    c.step.max_tokens = 24
    c.step.grounding_tokens = 12
    c.step.completion_bytes = 512
    c.step.grounding_bytes = 256
    c.step.description_tokens = 64
    for name, value in changes.items():
        section, _, key = name.partition("_")
        c[section][key] = value
    return c


def workdir(folder, c, steps=(3,)):
    """A work directory whose state of each step is other noise; returns it with the parameters of each step."""
    folder.mkdir(parents=True, exist_ok=True)
    loaded = models.load(c, models.sizes(c)._replace(sam2=None))
    drawn = jax.tree.map(np.asarray, models.trainable(c, loaded))
    rng, made = np.random.default_rng(0), {}

    def changed(leaf):
        spread = 0.3 * leaf.std() + 0.05 * (leaf.ndim < 2) + 0.1 * bool(c.lora.rank)
        return jnp.asarray(leaf + spread * rng.standard_normal(leaf.shape), jnp.float32)

    with checkpointing.manager(folder, 2) as manager:
        for step in steps:
            made[step] = jax.tree.map(changed, drawn)
            checkpointing.save(manager, step, learn.init(made[step], optax.sgd(0.1)), {}, settings.plain(c), wait=True)
    (folder / "config.json").write_text(json.dumps(settings.plain(c)))
    return folder, made
