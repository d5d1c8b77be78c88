"""One TPU chip of 16 GiB: Qwen2.5-Omni-7B in 4 bits with an adapter, groups of 4, 12 frames, SAM 2.1 small.

Planned: one chip of v5e at 10.0 GiB, 5.8 s per step, 20 minutes for all of them. To expect: nothing is published for
weights in 4 bits; the paper's 7B is in docs/reproduce.md.
"""

from omnir1_jax.config.settings import CELL, datasets, defaults, task


def get_config():
    c = defaults()
    c.name = "colab_7b"
    c.steps = 200

    c.thinker.path = "weights/Qwen2.5-Omni-7B"
    c.thinker.frozen = "int4"
    c.thinker.remat = "full"
    c.lora.rank = 32
    c.lora.alpha = 64.0
    c.sam2.path = "weights/sam2.1-hiera-small"
    c.sam2.object_chunk = 2

    c.pixels.policy_video = (4 * CELL, 64 * CELL)
    c.pixels.sharp = (64 * CELL, 400 * CELL)

    c.data_root = "data"
    c.data = dict(
        vos=task(
            datasets=datasets(revos=dict(root="ReVOS", split="train")),
            batch_size=1,
            frames=12,
            target="some_frame",
        ),
    )
    c.loader.threads = 2

    c.step.group = 4
    c.step.max_tokens = 384
    c.step.grounding_tokens = 128
    c.step.score_chunk = 128
    c.reward.bonus_range = (160, 375)
    c.grpo.beta = 0.04

    c.optimizer.learning_rate = 2e-5
    c.optimizer.warmup_steps = 10
    c.optimizer.accumulate = 4
    c.checkpoint.every = 20
    c.log.pictures_every = 10
    return c
