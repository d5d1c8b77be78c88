"""The toy's weights from nothing but the synthetic world, on two CPU cores and 5 GiB.

The thinker's two runs take an hour, the segmenter's two 40 minutes of one core, `frames` and `cold_start` half an hour
each. To expect: J&F 51.4 of `vos` and 73.4 of `refavs`, before any reward.

`thinker_kinds`, then `thinker` make a cold start: it sees, hears and grounds well and answers in System 1's format, but
does not know yet what to choose. `sam2_images`, then `sam2` make the segmenter. What lies in configs/toy_weights/ came
of them, as it says there.

`frames` and `cold_start`, `sam2_fleeting_images` and `sam2_fleeting` teach them the fleeting world (docs/toy_world.md).
"""

import pathlib

from omnir1_jax.config.settings import datasets, defaults, task

WEIGHTS = pathlib.Path(__file__).parent / "toy_weights"
CELL = 16 * 16  # pixels of a visual token
PARTS = (
    *("thinker_kinds", "thinker", "sam2_images", "sam2"),
    *("frames", "stories", "cold_start", "sam2_fleeting_images", "sam2_fleeting"),
)


def get_config(part="thinker"):
    return {name: globals()[name] for name in PARTS}[part]()


def thinker_kinds():
    """The thinker from random weights: boxes by kind alone, for who learns colours first never needs kinds."""
    c = thinker()
    c.name = "toy_thinker_kinds"
    c.steps = 4000
    c.thinker.path = ""
    c.thinker.tokenizer = str(WEIGHTS / "thinker")  # made by omnir1_jax.toy.tokenizer
    c.thinker.sizes = dict(
        text=dict(
            hidden_size=96, intermediate_size=256, num_layers=4, num_heads=4, num_kv_heads=2, head_dim=24,
            rope_theta=5.0, mrope_section=(4, 4, 4), tie_word_embeddings=True,
        ),
        vision=dict(
            depth=3, hidden_size=64, intermediate_size=128, num_heads=4, out_hidden_size=96,
            full_attention_blocks=(1, 2), patch_size=8, window_size=32, rope_theta=100.0,
        ),
        audio=dict(num_mel_bins=20, d_model=32, num_layers=1, num_heads=2, ffn_dim=64, output_dim=96, n_window=50),
        position_id_per_second=4,
    )  # fmt: skip
    c.data = dict(grounding=c.data.grounding)
    c.data.grounding.example = "lessons_kinds"
    c.optimizer.warmup_steps = 100
    c.optimizer.final_share = 0.5
    return c


def thinker():
    """All that it is taught. `thinker.path` is what `thinker_kinds` left in WORKDIR/weights."""
    c = defaults()
    c.name = "toy_thinker"
    c.objective = "sft"
    c.steps = 19_000  # some 40 minutes of two cores
    c.sft.encoders = True
    c.thinker.path = "runs/toy_thinker_kinds/weights"

    c.thinker.dtype = c.thinker.param_dtype = "float32"
    prompts(c)

    world = dict(config="toy", clips=100_000, lessons=True)
    video = dict(datasets=datasets(synthetic=world | dict(family="vos")), family="vos", frames=8)
    c.data = dict(
        grounding=task(example="lessons_grounding", batch_size=2, weight=0.45, targets=4, target_tokens=26, **video),
        questions=task(example="lessons_questions", batch_size=4, weight=0.13, targets=6, target_tokens=28, **video),
        plans=task(example="lessons_plans", batch_size=4, weight=0.12, targets=2, target_tokens=76, **video),
        sounds=task(
            datasets=datasets(synthetic=world | dict(family="refavs")), family="refavs", example="lessons_sounds",
            batch_size=4, weight=0.30, targets=6, target_tokens=30,
            frames=1, sampling="first", sound="required", audio_seconds=4.0,
        ),
    )  # fmt: skip
    c.loader.threads = 1
    c.loader.max_bad_share = 0.2  # recordings that begin with nothing to see are passed over

    c.optimizer.rule = "muon"
    c.optimizer.learning_rate = 2e-3
    c.optimizer.warmup_steps = 300
    c.optimizer.final_share = 0.03
    c.optimizer.b2 = 0.98
    c.optimizer.clip_norm = 1.0
    c.checkpoint.every = 500
    c.log.tensorboard = False
    return c


def frames():
    """Many frames of the fleeting world, on from the weights that ship: their shapes in a row, and boxes."""
    c = thinker()
    c.name = "toy_frames"
    c.steps = 1500
    c.thinker.path = str(WEIGHTS / "thinker")
    world = dict(config="fleeting", clips=100_000, lessons=True)
    clips = dict(datasets=datasets(synthetic=world | dict(family="vos")), family="vos", frames=16, objects=6)
    c.data = dict(
        grounding=task(example="lessons_named", batch_size=6, targets=2, target_tokens=28, **clips),
    )  # fmt: skip
    c.optimizer.learning_rate = 1e-3  # at 2e-3 grounding gets worse, from 0.43 to 0.50 in 600 steps
    c.optimizer.schedule = "linear"
    c.optimizer.warmup_steps = 100
    c.optimizer.final_share = 0.3
    return c


def stories():
    """To look words and seconds up in a text, with nothing to see or hear; then `cold_start` asks for all of it."""
    c = frames()
    c.name = "toy_stories"
    c.steps = 1500
    c.thinker.path = "runs/toy_grown"  # wider heads, more layers and words, made by omnir1_jax.toy.grow
    c.data.grounding.weight = 0.2
    c.data.update(texts(0.25, 0.55))
    c.optimizer.learning_rate = 2e-3
    c.optimizer.warmup_steps = 30
    return c


def texts(recalls, stories):
    """Tasks without a medium, by their weights. The clips are those of `cold_start`."""
    clips = dict(
        datasets=datasets(synthetic=dict(config="fleeting", clips=100_000, lessons=True, family="vos")),
        family="vos", frames=16, objects=6,
    )  # fmt: skip
    return dict(
        recalls=task(example="lessons_recalls", batch_size=4, weight=recalls, targets=12, target_tokens=72, **clips),
        stories=task(example="lessons_stories", batch_size=8, weight=stories, targets=4, target_tokens=96, **clips),
    )


def cold_start():
    """Clips with their sound: their timelines, and plans that tell them and name any shape."""
    c = frames()
    c.name = "toy_cold_start"
    c.steps = 2600
    c.thinker.path = "runs/toy_stories/weights"
    world = dict(config="fleeting", clips=100_000, lessons=True)
    video = dict(
        datasets=datasets(synthetic=world | dict(family="vos")), family="vos", frames=16, objects=6,
        sound="required", audio_seconds=8.0,
    )  # fmt: skip
    c.data = dict(
        **texts(0.01, 0.07),
        grounding=c.data.grounding.to_dict() | dict(batch_size=2, weight=0.22, targets=4),
        timelines=task(example="lessons_timelines", batch_size=7, weight=0.5, targets=2, target_tokens=112, **video),
        plans=task(example="lessons_habits", batch_size=3, weight=0.1, targets=3, target_tokens=96, **video),
        recordings=task(
            datasets=datasets(synthetic=world | dict(family="refavs")), family="refavs", example="lessons_recordings",
            batch_size=4, weight=0.1, targets=5, target_tokens=52, objects=6,
            frames=1, sampling="first", sound="required", audio_seconds=4.0,
        ),
    )  # fmt: skip
    c.optimizer.learning_rate = 2e-3
    c.optimizer.warmup_steps = 30
    c.optimizer.final_share = 0.0
    return c


def prompts(c):
    """Short prompts and small frames: 24 visual tokens of a frame for System 2, of a pair of frames for System 1."""
    c.prompts.system = "toy_system"
    c.prompts.vos = "toy_vos"
    c.prompts.refavs = "toy_refavs"
    c.prompts.grounding = "toy_grounding"
    c.prompts.text_tokens = 40
    c.prompts.max_aspect = 1.6
    c.pixels.policy_video = c.pixels.policy_image = c.pixels.sharp = (12 * CELL, 24 * CELL)


def sam2_images():
    """The first half of the segmenter's training: boxes to masks on single frames, from random weights."""
    c = defaults()
    c.name = "toy_sam2_images"
    c.objective = "masks"
    c.steps = 1500
    c.masks.piece = 1
    c.masks.focus, c.masks.mask = 0.0, 5.0
    c.masks.remat = False

    c.sam2.sizes = dict(
        hiera=dict(
            dims=(16, 32, 64, 96), heads=(1, 1, 2, 2), blocks=(1, 1, 2, 1), windows=(8, 4, 4, 4), global_blocks=(2, 3),
            patch_kernel=4, patch_padding=0, mlp_ratio=2.0, activation="relu",
        ),
        width=64, decoder_heads=2, decoder_downsample=1, decoder_mlp=128, iou_width=64,
        memories=4, memory_channels=16, pointers=8, attention_layers=1, attention_mlp=128, attention_downsample=2,
        mask_stride=4, mask_layers=2, fuser_layers=1, fuser_mlp=128, fuser_kernel=3, fuser_padding=1,
        dynamic_multimask=False, multimask_tracking=False,  # a box or a memory leaves nothing open here
    )  # fmt: skip
    c.sam2.side = 64
    c.sam2.object_chunk = c.sam2.frame_chunk = 64
    c.sam2.dtype = c.sam2.memory_dtype = "float32"

    shapes = lambda world, clips: dict(name="synthetic", family="vos", config=world, clips=clips, lessons=True)
    worlds = datasets(toy=shapes("toy", 80_000), default=shapes("default", 20_000))
    c.data = dict(vos=task(datasets=worlds, frames=8, objects=3, batch_size=3, target="some_frame"))
    c.loader.threads = 1

    c.optimizer.learning_rate = 8e-4
    c.optimizer.warmup_steps = 100
    c.optimizer.final_share = 0.1
    c.optimizer.b2 = 0.98
    c.optimizer.clip_norm = 1.0
    c.optimizer.freeze = ("image_positional", "prompt_encoder/positional")  # random features of places
    c.checkpoint.every = 200
    c.log.tensorboard = False
    return c


def sam2():
    """The second half: the same boxes followed through whole clips. `sam2.path` is the first half's WORKDIR/weights."""
    c = sam2_images()
    c.name = "toy_sam2"
    c.steps = 1200
    c.masks.piece = 0
    c.sam2.path = "runs/toy_sam2_images/weights"
    c.optimizer.learning_rate = 5e-4
    return c


def sam2_fleeting_images():
    """Shapes of the fleeting world on single frames of 128 pixels, on from the segmenter that ships."""
    c = sam2_images()
    c.name = "toy_sam2_fleeting_images"
    c.steps = 250
    c.sam2.path = str(WEIGHTS / "sam2")
    c.masks.score = 0.0  # each shape that is asked for is there: a score that learns so has to unlearn it
    c.sam2.side = 128  # of perfect masks at the mask side of 64 pixels, J&F over visible frames is 72
    shapes = dict(name="synthetic", family="vos", config="fleeting", clips=100_000, lessons=True)
    c.data = dict(vos=task(datasets=datasets(fleeting=shapes), frames=16, objects=6, batch_size=2, target="some_frame"))
    c.optimizer.rule = "muon"
    c.optimizer.learning_rate = 1e-3
    c.optimizer.schedule = "linear"
    c.optimizer.warmup_steps = 50
    c.optimizer.final_share = 0.5
    c.checkpoint.every = 100
    return c


def sam2_fleeting():
    """The same boxes followed from one frame in both directions; shapes are there for a part of the clip only."""
    c = sam2_fleeting_images()
    c.name = "toy_sam2_fleeting"
    c.steps = 1000
    c.masks.piece, c.masks.score = 0, 1.0
    c.masks.prompts = 1
    c.sam2.path = "runs/toy_sam2_fleeting_images/weights"
    c.sam2.direction = "both"
    c.optimizer.final_share = 0.0
    return c
