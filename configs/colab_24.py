"""One TPU chip of 16 GiB: Qwen2.5-Omni-3B in 8 bits with an adapter, groups of 4, the paper's 24 frames.

Planned: one chip of v5e at 7.3 GiB, 4.8 s per step, 16 minutes for all of them. To expect: nothing is published at 3B.
"""

from omnir1_jax.config.settings import CELL, datasets, defaults, task


def get_config():
    c = defaults()
    c.name = "colab_24"
    c.steps = 200

    c.thinker.path = "weights/Qwen2.5-Omni-3B"
    c.thinker.frozen = "int8"
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
            frames=24,
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
