"""The whole thinker against transformers through the door for its processor's dict, on fresh random weights."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from omnir1_jax.models import qwen_omni
from omnir1_jax.models.qwen_omni import hf_config
from omnir1_jax.models.qwen_omni.hf_inputs import thinker_inputs
from omnir1_jax.models.qwen_omni.sample import Sampling, generate
from tests.models import test_layout as items
from tests.models.thinker_oracle import Sizes, distance, hf_inputs, reference, relative

IMAGE, WIDE, BIG = ("image", (1, 10, 6)), ("image", (1, 4, 12)), ("image", (1, 18, 22))
VIDEO = ("video", (3, 6, 10), 0.8)
TALKING = ("sounding", (5, 4, 6), 1.0, 400)  # the last piece of sound is short
WORDS = ("text", 3)

# sizes of the model, rows of the batch, side of the padding, whether videos carry their sound
CASES = {
    "text": (Sizes(heads=4, kv_heads=1), [[WORDS, WORDS, WORDS], [WORDS]], "right", False),
    "image-partial-windows": (Sizes(), [[WORDS, IMAGE, WORDS]], "left", False),
    "image-many-windows": (
        Sizes(vision_depth=4, full_blocks=(0, 2)), [[BIG, WORDS]], "left", False),
    "several-images": (Sizes(kv_heads=4), [[IMAGE, WORDS, WIDE, IMAGE], [WORDS, WIDE]], "left", False),
    "video": (Sizes(heads=6, kv_heads=2, section=(1, 1, 2)), [[WORDS, VIDEO, WORDS]], "left", False),
    "video-before-image": (
        Sizes(full_blocks=(0, 1, 2)),
        [[WORDS, VIDEO, IMAGE, ("video", (1, 2, 2), 2.0)], [IMAGE, VIDEO]], "right", False),
    "short-audio": (Sizes(), [[("audio", 3), WORDS], [WORDS, ("audio", 20), ("audio", 6)]], "left", False),
    "audio-in-chunks": (
        Sizes(audio_layers=3), [[("audio", 53), WORDS, ("audio", 40)], [("audio", 41), WORDS]], "right", False),
    "audio-odd-chunks": (Sizes(n_window=7), [[("audio", 57), WORDS, IMAGE]], "left", False),
    "audio-in-video": (Sizes(), [[WORDS, TALKING, WORDS]], "left", True),
    "audio-in-video-batch": (
        Sizes(heads=2, kv_heads=1, section=(4, 2, 2)),
        [[TALKING, WORDS, ("audio", 70)], [WORDS, IMAGE], [("sounding", (3, 4, 4), 2.0, 260), WORDS]], "left", True),
    "everything-tied": (
        Sizes(tied=True, layers=3),
        [[WORDS, IMAGE, VIDEO, ("audio", 90)], [("audio", 9), VIDEO], [WORDS]], "left", False),
    "windows-only": (Sizes(full_blocks=(), vision_heads=4), [[BIG, VIDEO]], "left", False),
    "small-windows-and-patches": (
        Sizes(window=16, patch=4, hidden=40, ffn=52), [[WORDS, BIG, IMAGE, ("audio", 30)]], "right", False),
}  # fmt: skip
GENERATED = ("several-images", "audio-in-video-batch", "audio-in-video", "short-audio")
HALF = ("image-many-windows", "audio-in-chunks", "audio-in-video-batch", "everything-tied")


def run(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits.float().numpy()


def greedy(model, params, inputs, tokens):
    """Prefill and the compiled loop, as one program."""

    @jax.jit
    def sample(params, inputs):
        prompt = model.apply({"params": params}, inputs, method="prompt")
        text = {"params": params["text"]}
        cache = model.decoder().apply(text, prompt, method="prefill")
        settings = Sampling(max_tokens=tokens, eos=(), pad=0, temperature=0.0)
        return generate(model.decoder(), text, cache, jax.random.key(0), settings, group=1)

    return np.asarray(sample(params, thinker_inputs(inputs, model.config)).tokens[:, 0])


@pytest.mark.parametrize("name", CASES)
def test_equal_to_transformers(name, tmp_path):
    sizes, rows, side, sound = CASES[name]
    seed = list(CASES).index(name)
    theirs, inputs = reference(sizes, seed), hf_inputs(sizes, rows, side, sound, seed)
    theirs.save_pretrained(tmp_path)
    model, params = qwen_omni.load(tmp_path)
    assert model.config == hf_config.parse(theirs.config.to_dict())
    real = inputs["attention_mask"].numpy().astype(bool)

    positions, deltas = theirs.get_rope_index(
        inputs["input_ids"],
        inputs.get("image_grid_thw"),
        inputs.get("video_grid_thw"),
        inputs["attention_mask"],
        sound,
        inputs["feature_attention_mask"].sum(1) if "feature_attention_mask" in inputs else None,
        inputs.get("video_second_per_grid"),
    )
    ours = thinker_inputs(inputs, model.config)
    np.testing.assert_array_equal(ours.positions, positions.numpy().transpose(1, 0, 2))
    np.testing.assert_array_equal(ours.next_position, deltas[:, 0].numpy() + real.sum(1))

    want = run(theirs, inputs)
    got = np.asarray(qwen_omni.logits_from_hf(model, params, inputs))
    assert got.dtype == np.float32 and got.shape == want.shape
    assert relative(got[real], want[real]) < 1e-4

    if name in GENERATED:
        theirs.generation_config.eos_token_id = None
        with torch.no_grad():
            told = theirs.generate(**inputs, max_new_tokens=32, do_sample=False)
        want_tokens = told[:, inputs["input_ids"].shape[1] :].numpy()
        np.testing.assert_array_equal(greedy(model, params, inputs, 32), want_tokens)
        assert len(np.unique(want_tokens)) >= 8  # not one token over and over

    if name in HALF:
        # Truth is float32 on the rounded weights; both halves may be as far from it as rounding brings them.
        half = copy.deepcopy(theirs).to(torch.bfloat16)
        truth = run(copy.deepcopy(half).float(), inputs)
        theirs_off = distance(run(half, inputs)[real], truth[real])
        half.save_pretrained(tmp_path / "half")
        model16, params16 = qwen_omni.load(tmp_path / "half", dtype=jnp.bfloat16)
        got16 = np.asarray(qwen_omni.logits_from_hf(model16, params16, inputs))
        ours_off = distance(got16[real], truth[real])
        assert 1e-4 < theirs_off < 0.1  # a sensible yardstick
        assert ours_off < 1.5 * theirs_off


sizes_of_models = st.builds(
    Sizes,
    heads=st.sampled_from([2, 4, 6]),
    kv_heads=st.sampled_from([1, 2]),
    section=st.sampled_from([(2, 3, 3), (1, 1, 2), (4, 2, 2)]),
    layers=st.integers(1, 2),
    tied=st.booleans(),
    vision_depth=st.just(2),
    full_blocks=st.sampled_from([(), (0,), (1,), (0, 1)]),
    window=st.sampled_from([28, 56, 112]),
    audio_layers=st.just(1),
    n_window=st.sampled_from([6, 7, 10]),
)
silent = st.lists(st.one_of(items.text, items.image, items.audio, items.video), min_size=1, max_size=4)
sounding = st.lists(st.one_of(items.text, items.image, items.audio, items.sounding), min_size=1, max_size=3)


@pytest.mark.slow
@settings(max_examples=60)
@given(st.data())
def test_any_model_on_any_prompt(tmp_path_factory, data):
    sizes, side, sound = data.draw(sizes_of_models), data.draw(items.sides), data.draw(st.booleans())
    rows = data.draw(st.lists(sounding if sound else silent, min_size=1, max_size=3))
    theirs, inputs = reference(sizes), hf_inputs(sizes, rows, side, sound)
    folder = tmp_path_factory.mktemp("any")
    theirs.save_pretrained(folder)
    real = inputs["attention_mask"].numpy().astype(bool)
    got = np.asarray(qwen_omni.logits_from_hf(*qwen_omni.load(folder), inputs))
    assert relative(got[real], run(theirs, inputs)[real]) < 1e-4
