"""The paper's RefAID: the whole sound and the first frame of a Ref-AVS clip; the answer is a description.

System 2 grounds it in that frame and the box's overlap is the reward, so no segmenter runs.

Planned: 4 chips of v5p at 41.0 GiB each, 5.4 s per step, 18 minutes for the epoch. To expect: the paper's model of all
data has J&F 47.2 on seen and 74.2 on unseen clips; trained on these 1,600 alone it has 60.8 on AVHBench.
"""

from omnir1_jax.config.settings import CELL, datasets, defaults, task


def get_config():
    c = defaults()
    c.name = "refavs"
    c.steps = 200  # 1,600 clips, 8 a step

    c.thinker.path = "weights/Qwen2.5-Omni-7B"
    c.pixels.policy_image = (64 * CELL, 900 * CELL)
    c.pixels.sharp = (64 * CELL, 900 * CELL)

    c.data_root = "data"
    c.data = dict(
        refavs=task(
            datasets=datasets(refavs=dict(root="RefAVS", split="train")),
            batch_size=8,
            frames=1,
            sampling="first",
            sound="required",
            audio_seconds=10.0,
            target="first_frame",
        ),
    )

    c.step.group = 8
    c.step.max_tokens = 800
    c.step.score_lengths = (416, 576)  # most completions are far shorter than the limit
    c.grpo.beta = 0.04

    c.optimizer.learning_rate = 1e-6
    c.optimizer.clip_norm = 5.0
    c.checkpoint.every = 25
    c.log.pictures_every = 25
    return c
