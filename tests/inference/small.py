"""A run of the smallest models as a work directory, its state as if trained: nothing left as it was drawn."""

import json

import jax
import numpy as np
import optax

from omnir1_jax import checkpoints, settings
from omnir1_jax.rl import learn
from omnir1_jax.setup import models
from tests.data import qwen_oracle

CELL = 16 * 16
TEXTS = {"system": "You see.", "vos": "Find {query}", "qa": "{query}\n{options}", "refavs": "Hear {query}"}
GROUNDING = (
    "<|im_start|>user\n<|vision_bos|><|IMAGE|><|vision_eos|>Box {description}<|im_end|>\n<|im_start|>assistant\n"
)


def config(folder, **changes):
    """Sizes at which a program compiles in seconds; prompts and tokenizer lie in `folder`."""
    c = settings.defaults()
    c.name = "small"
    c.thinker.tokenizer = qwen_oracle.save_tokenizer(folder / "tokenizer")
    c.thinker.sizes = dict(
        text=dict(
            hidden_size=48, intermediate_size=64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16,
            rope_theta=1e4, mrope_section=(2, 3, 3),
        ),
        vision=dict(
            depth=2, hidden_size=32, intermediate_size=48, num_heads=2, out_hidden_size=48,
            full_attention_blocks=(1,), patch_size=8, window_size=64,
        ),
        audio=dict(num_mel_bins=16, d_model=24, num_layers=1, num_heads=2, ffn_dim=32, output_dim=48, n_window=10),
    )  # fmt: skip
    c.thinker.dtype = c.thinker.param_dtype = "float32"
    c.thinker.remat = "none"
    c.sam2.sizes = dict(
        hiera=dict(
            dims=(8, 16, 32, 64), heads=(1, 1, 2, 4), blocks=(1, 1, 2, 1), windows=(8, 4, 4, 2), global_blocks=(3,)
        ),
        width=64, decoder_mlp=64, decoder_heads=2, iou_width=32, attention_layers=1, attention_mlp=32, fuser_mlp=32,
    )  # fmt: skip
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
    c.step.max_tokens = 24
    c.step.grounding_tokens = 12
    c.step.completion_bytes = 512
    c.step.grounding_bytes = 256
    c.step.description_tokens = 64
    for name, value in changes.items():
        with c.unlocked():
            section, _, key = name.partition("_")
            c[section][key] = value
    return c


def workdir(folder, c, steps=(3,)):
    """A work directory whose state of each step is other noise; returns it with the newest state's parameters."""
    folder.mkdir(parents=True, exist_ok=True)
    loaded = models.load(c, models.sizes(c))
    rng = np.random.default_rng(0)
    noise = lambda leaf: leaf + 0.3 * np.asarray(leaf).std() * rng.standard_normal(leaf.shape) + 0.05 * (leaf.ndim < 2)
    with checkpoints.manager(folder, 2) as manager:
        for step in steps:
            trainable = jax.tree.map(lambda leaf: noise(leaf).astype(leaf.dtype), models.trainable(c, loaded))
            if c.lora.rank:
                trainable = jax.tree.map(lambda leaf: leaf + 0.1 * rng.standard_normal(leaf.shape), trainable)
            trainable = jax.tree.map(lambda leaf: jax.numpy.asarray(leaf, "float32"), trainable)
            state = learn.init(trainable, optax.sgd(0.1))
            checkpoints.save(manager, step, state, {}, settings.plain(c), wait=True)
    (folder / "config.json").write_text(json.dumps(settings.plain(c)))
    return folder, trainable
