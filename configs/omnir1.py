"""The paper's mixture, one epoch: 2,600 clips of ReVOS and MeViS, 1,600 of Ref-AVS, 2,000 images of refCOCOg.

Planned: 4 chips of v5p at 41.7 GiB each, 10.3 s per step of `vos`, 5.4 of `refavs`, 4.5 of `refcocog`, 1.5 hours for
the epoch. To expect: J&F 44.7 on ReVOS, 47.2 and 74.2 on Ref-AVS seen and unseen, 49.3 on OmniBench, 71.9 on AVHBench;
docs/reproduce.md has all rows.
"""

from omnir1_jax.config.settings import CELL, datasets, defaults, task


def get_config():
    c = defaults()
    c.name = "omnir1"
    c.steps = 775  # 6,200 prompts, 8 a step

    c.thinker.path = "weights/Qwen2.5-Omni-7B"
    c.sam2.path = "weights/sam2.1-hiera-large"
    c.pixels.policy_video = (4 * CELL, 128 * CELL)
    c.pixels.policy_image = (64 * CELL, 900 * CELL)
    c.pixels.sharp = (64 * CELL, 900 * CELL)

    c.data_root = "data"
    c.data = dict(
        vos=task(
            datasets=datasets(revos=dict(root="ReVOS", split="train"), mevis=dict(root="MeViS", split="train")),
            batch_size=8,
            weight=2600.0,
            frames=24,
            target="some_frame",
        ),
        refavs=task(
            datasets=datasets(refavs=dict(root="RefAVS", split="train")),
            batch_size=8,
            weight=1600.0,
            frames=1,
            sampling="first",
            sound="required",
            audio_seconds=10.0,
            target="first_frame",
        ),
        refcocog=task(
            datasets=datasets(refcocog=dict(root="refCOCOg_2k_840", split="train")),
            batch_size=8,
            weight=2000.0,
            frames=1,
            sampling="first",
        ),
    )

    c.step.group = 8
    c.step.max_tokens = 800
    c.step.score_lengths = (416, 576)  # most completions are far shorter than the limit
    c.grpo.beta = 0.04
    c.reward.preset = "authors"

    c.optimizer.learning_rate = 1e-6
    c.optimizer.weight_decay = 0.01
    c.optimizer.clip_norm = 5.0
    c.checkpoint.every = 25
    c.log.pictures_every = 25
    return c
