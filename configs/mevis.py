"""As revos.py, on MeViS: expressions about motion.

Planned: the shapes are those of revos.py, so are memory and seconds. To expect: the paper's only row of Omni-R1 on
MeViS is with Sa2VA-1B as System 2, J&F 55.4 on valid_u; the base by itself has 33.6.
"""

from omnir1_jax.config.settings import CELL, datasets, defaults, task


def get_config():
    c = defaults()
    c.name = "mevis"
    c.steps = 200

    c.thinker.path = "weights/Qwen2.5-Omni-7B"
    c.sam2.path = "weights/sam2.1-hiera-large"
    c.pixels.policy_video = (4 * CELL, 128 * CELL)
    c.pixels.sharp = (64 * CELL, 900 * CELL)

    c.data_root = "data"
    c.data = dict(
        vos=task(
            datasets=datasets(mevis=dict(root="MeViS", split="train")),
            batch_size=8,
            frames=24,
            target="some_frame",
        ),
    )

    c.step.group = 8
    c.step.max_tokens = 800
    c.step.score_lengths = (416, 576)  # most completions are far shorter than the limit
    c.grpo.beta = 0.04
    c.reward.preset = "authors"

    c.optimizer.learning_rate = 1e-6
    c.optimizer.clip_norm = 5.0
    c.checkpoint.every = 25
    c.log.pictures_every = 25
    return c
