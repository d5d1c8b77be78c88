"""Messages to logits: our preparation and our model against transformers' processor and model, over one bucket."""

import jax
import numpy as np
import pytest
import torch

from omnir1_jax.data import preprocess
from omnir1_jax.data.preprocess import tokens
from omnir1_jax.models import qwen_omni
from omnir1_jax.models.qwen_omni.inputs import AudioInputs, ThinkerInputs, VisionInputs
from tests.data import qwen_oracle
from tests.data.test_preprocess import BUDGET, picture, theirs, wave
from tests.models.thinker_oracle import Sizes, distance, reference, relative


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """(transformers' thinker with the tokenizer's ids, ours from its checkpoint, our parameters)."""
    model = reference(Sizes(vocab=512, mel_bins=128, n_window=12))
    ids = tokens.token_ids(qwen_oracle.tokenizer())
    for config in {id(c): c for c in (model.config, model.model.config)}.values():
        for name in ("audio", "image", "video"):
            setattr(config, f"{name}_token_id", getattr(ids, name))
        for name in ("audio_start", "audio_end", "vision_start", "vision_end"):
            setattr(config, f"{name}_token_id", getattr(ids, name))
    path = tmp_path_factory.mktemp("thinker")
    model.save_pretrained(path)
    return model, *qwen_omni.load(path)


def conversations(rng, stretch):
    """Two prompts of unequal length; with `stretch` 0 no picture needs resizing."""
    clip = np.stack([picture(rng, 56 + stretch, 84 + stretch) for _ in range(7)])
    sight = picture(rng, 112 + stretch, 84)
    return [
        [{"role": "user", "content": [
            {"type": "video", "video": clip, "audio": wave(rng, 4.3), "sample_rate": 16000},
            {"type": "text", "text": "What moves?"}]}],
        [{"role": "system", "content": "Think."}, {"role": "user", "content": [
            {"type": "text", "text": "Listen:"},
            {"type": "audio", "audio": wave(rng, 1.21), "sample_rate": 16000},
            {"type": "image", "image": sight}, {"type": "text", "text": "Why?"}]}],
    ]  # fmt: skip


def ours(models, talks):
    _, model, params = models
    sizes = preprocess.Sizes.of(model.config)
    prompts = [preprocess.prepare(talk, qwen_oracle.tokenizer(), sizes=sizes, budget=BUDGET) for talk in talks]
    bucket = preprocess.bucket_for(
        text_tokens=60, images=1, video_frames=[8], audio_seconds=[4.5, 1.5], budget=BUDGET, sizes=sizes, max_aspect=2
    )
    batch = preprocess.pad_to(prompts, bucket, sizes=sizes)
    inputs = ThinkerInputs(**batch._asdict()).replace(
        vision=VisionInputs(**batch.vision._asdict()), audio=AudioInputs(**batch.audio._asdict())
    )
    logits = np.asarray(jax.jit(model.apply)({"params": params}, inputs))
    return [row[real] for row, real in zip(logits, batch.mask)]


def reference_logits(models, talks):
    out = []
    for talk in talks:
        given, sound = theirs(talk)
        given = {key: torch.tensor(value) for key, value in given.items()}
        with torch.no_grad():
            out.append(models[0](**given, use_audio_in_video=sound).logits[0].numpy())
    return out


def test_equal_pixels_equal_logits(models):
    talks = conversations(np.random.default_rng(0), 0)
    for mine, expected in zip(ours(models, talks), reference_logits(models, talks)):
        assert mine.shape == expected.shape
        assert relative(mine, expected) < 1e-4


def test_resized_pixels_cost_little(models):
    """A level more or less of 255 here and there."""
    talks = conversations(np.random.default_rng(1), 21)
    for mine, expected in zip(ours(models, talks), reference_logits(models, talks)):
        assert distance(mine, expected) < 1e-3
