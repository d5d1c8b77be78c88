"""The paper's System 1 on ReVOS: Qwen2.5-Omni-7B, its decoder trained whole, SAM 2.1 large in the loop.

Planned: 4 chips of v5p at 41.7 GiB each, 10.3 s per step, one hour for the epoch; 8 of v6e at 21.1 GiB, 6.7 s. To
expect: the paper's nearest row (RK+RA+RG, with MeViS, without refCOCOg) has J&F 38.4 on ReVOS, the base 36.6.

Put the weights and the dataset where the paths below say, or name yours with --config.thinker.path=DIRECTORY,
--config.sam2.path=DIRECTORY and --config.data_root=DIRECTORY.
"""

from omnir1_jax.config.settings import CELL, datasets, defaults, task


def get_config():
    c = defaults()
    c.name = "revos"
    c.steps = 325  # 2,600 clips, 8 a step, one epoch

    c.thinker.path = "weights/Qwen2.5-Omni-7B"
    c.thinker.dtype = "bfloat16"
    c.thinker.param_dtype = "bfloat16"
    c.thinker.remat = "full"
    c.sam2.path = "weights/sam2.1-hiera-large"
    c.sam2.side = 1024

    # System 1 sees 24 frames of at most 128 visual tokens, System 2 a keyframe of at most 900.
    c.pixels.policy_video = (4 * CELL, 128 * CELL)
    c.pixels.sharp = (64 * CELL, 900 * CELL)

    c.data_root = "data"
    c.data = dict(
        vos=task(
            datasets=datasets(revos=dict(root="ReVOS", split="train")),
            batch_size=8,
            frames=24,
            target="some_frame",
        ),
    )

    c.step.group = 8
    c.step.max_tokens = 800
    c.step.score_lengths = (416, 576)  # most completions are far shorter than the limit
    c.step.temperature = 1.0
    c.step.top_p = 0.95
    c.step.top_k = 50
    c.grpo.beta = 0.04
    c.reward.preset = "authors"

    c.optimizer.learning_rate = 1e-6
    c.optimizer.weight_decay = 0.01
    c.optimizer.schedule = "cosine"
    c.optimizer.clip_norm = 5.0

    c.mesh.fsdp = -1
    c.checkpoint.every = 25
    c.log.pictures_every = 25
    return c
