"""The settings of the run beside this file, for the code of its time (README.md). Paths are relative to a checkout."""

from omnir1_jax.config.settings import datasets, defaults, task


def get_config():
    c = defaults()
    c.name = "old"
    c.steps = 6
    c.thinker.tokenizer = "tests/old_run/tokenizer"
    c.thinker.sizes = dict(
        text=dict(
            hidden_size=16, intermediate_size=24, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8,
            rope_theta=1e4, mrope_section=(1, 1, 2),
        ),
        vision=dict(
            depth=1, hidden_size=16, intermediate_size=24, num_heads=2, out_hidden_size=16,
            full_attention_blocks=(0,), patch_size=8, window_size=64,
        ),
        audio=dict(num_mel_bins=16, d_model=16, num_layers=1, num_heads=2, ffn_dim=16, output_dim=16, n_window=10),
    )  # fmt: skip
    c.thinker.dtype = c.thinker.param_dtype = "float32"
    c.thinker.remat = "none"
    c.sam2.sizes = dict(
        hiera=dict(
            dims=(4, 8, 16, 32), heads=(1, 1, 2, 4), blocks=(1, 1, 1, 1), windows=(8, 4, 4, 2), global_blocks=(2,),
        ),
        width=64, decoder_mlp=32, decoder_heads=2, iou_width=16, attention_layers=1, attention_mlp=16, fuser_mlp=16,
    )  # fmt: skip
    c.sam2.side = 64
    c.sam2.dtype = c.sam2.memory_dtype = "float32"
    c.sam2.object_chunk, c.sam2.frame_chunk = 16, 8
    for name in ("system", "vos", "refavs", "grounding"):
        c.prompts[name] = f"toy_{name}"
    cell = 16 * 16
    c.pixels.policy_image = c.pixels.policy_video = c.pixels.sharp = (cell, 6 * cell)
    c.prompts.text_tokens = 1024
    c.prompts.max_aspect = 2.0
    world = dict(config="toy", clips=16)
    c.data = dict(
        vos=task(datasets=datasets(synthetic=world | dict(family="vos")), frames=4, target="some_frame"),
        refavs=task(
            datasets=datasets(synthetic=world | dict(family="refavs")),
            frames=1, sampling="first", sound="required", audio_seconds=4.0, target="first_frame",
        ),
        qa=task(datasets=datasets(synthetic=world | dict(family="qa")), frames=2, sampling="uniform"),
    )  # fmt: skip
    c.loader.threads = 1
    c.step.group = 2
    c.step.max_tokens = 8
    c.step.grounding_tokens = 8
    c.step.completion_bytes = c.step.grounding_bytes = 64
    c.step.description_bytes = c.step.description_tokens = 32
    c.reward.bonus_range = (2, 6)
    # Random texts earn nothing. The decay takes the policy from its reference, so that there is something to learn.
    c.optimizer.learning_rate = 1e-2
    c.optimizer.weight_decay = 1.0
    c.optimizer.schedule = "constant"
    c.checkpoint.every = 3
    c.log.rollouts_every = 1
    c.log.tensorboard = False
    return c
