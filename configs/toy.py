"""Everything at the size of two CPU cores: the synthetic world, small models of the same code, both video families."""

from omnir1_jax.settings import datasets, defaults, task


def get_config():
    c = defaults()
    c.name = "toy"
    c.steps = 200

    c.thinker.sizes = dict(
        text=dict(
            hidden_size=64, intermediate_size=128, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16,
            rope_theta=1e4, mrope_section=(2, 3, 3),
        ),
        vision=dict(
            depth=2, hidden_size=32, intermediate_size=64, num_heads=2, out_hidden_size=64,
            full_attention_blocks=(1,), patch_size=8, window_size=64,
        ),
        audio=dict(num_mel_bins=16, d_model=32, num_layers=1, num_heads=2, ffn_dim=64, output_dim=64, n_window=10),
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
    c.sam2.object_chunk = 16
    c.sam2.frame_chunk = 8
    c.sam2.dtype = c.sam2.memory_dtype = "float32"

    cell = 16 * 16
    c.pixels.policy_image = c.pixels.policy_video = (cell, 24 * cell)
    c.pixels.sharp = (24 * cell, 48 * cell)
    c.prompts.text_tokens = 1024
    c.prompts.max_aspect = 2.0

    c.data = dict(
        vos=task(
            datasets=datasets(synthetic=dict(family="vos", clips=64)), batch_size=2, frames=8, target="some_frame"
        ),
        refavs=task(
            datasets=datasets(synthetic=dict(family="refavs", clips=64)), batch_size=2,
            frames=1, sampling="first", sound="required", audio_seconds=6.0, target="first_frame",
        ),
    )  # fmt: skip
    c.loader.threads = 1

    c.step.group = 4
    c.step.max_tokens = 64
    c.step.grounding_tokens = 24
    c.step.completion_bytes = 512
    c.step.grounding_bytes = 256
    c.step.description_tokens = 64
    c.reward.bonus_range = (16, 60)

    c.optimizer.learning_rate = 1e-3
    c.checkpoint.every = 20
    c.log.pictures_every = 20
    return c
