"""The assembled thinker: padding of every list, remat, real widths, and bad input at the door."""

import dataclasses
import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict

from omnir1_jax.errors import InputError
from omnir1_jax.models import qwen_omni
from omnir1_jax.models.qwen_omni import hf_config, weights
from omnir1_jax.models.qwen_omni.hf_inputs import thinker_inputs
from omnir1_jax.models.qwen_omni.inputs import ThinkerInputs
from omnir1_jax.models.qwen_omni.thinker import Thinker
from tests.models.thinker_oracle import Sizes, hf_inputs, reference, relative

WORDS, IMAGE, VIDEO = ("text", 3), ("image", (1, 10, 6)), ("video", (3, 4, 6), 1.0)
ROWS = [[WORDS, IMAGE, ("audio", 53)], [VIDEO, WORDS, ("audio", 12), ("audio", 30)], [WORDS, WORDS]]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """(reference, model, params) of one tiny thinker."""
    folder = tmp_path_factory.mktemp("tiny")
    theirs = reference(Sizes(), seed=3)
    theirs.save_pretrained(folder)
    return theirs, *qwen_omni.load(folder)


def widen(inputs: ThinkerInputs) -> ThinkerInputs:
    """More tokens on the left, more cells, windows, frames, chunks and audio tokens, all padding."""

    def pad(x, before, after, axis, value=0):
        widths = [(0, 0)] * x.ndim
        widths[axis] = (before, after)
        return np.pad(x, widths, constant_values=value)

    v, a = inputs.vision, inputs.audio
    return inputs.replace(
        tokens=pad(inputs.tokens, 5, 0, 1),
        mask=pad(inputs.mask, 5, 0, 1, False),
        positions=pad(inputs.positions, 5, 0, 2, 1),
        vision_index=pad(inputs.vision_index, 5, 0, 1, -1),
        audio_index=pad(inputs.audio_index, 5, 0, 1, -1),
        vision=v.replace(
            pixels=pad(v.pixels, 0, 7, 1, 9.0),
            rows_cols=pad(v.rows_cols, 0, 7, 1),
            windows=pad(v.windows, 0, 3, 1, -1),
            frames=pad(pad(v.frames, 0, 2, 1, -1), 0, 4, 2, -1),
        ),
        audio=a.replace(mel=pad(a.mel, 0, 2, 1, 9.0), lengths=pad(a.lengths, 0, 2, 1), pairs=pad(a.pairs, 0, 6, 1, -1)),
    )


def test_padding_does_not_matter(tiny):
    _, model, params = tiny
    apply = jax.jit(lambda params, x: model.apply({"params": params}, x))
    tight = thinker_inputs(hf_inputs(Sizes(), ROWS), model.config)
    want, got = np.asarray(apply(params, tight)), np.asarray(apply(params, widen(tight)))
    assert got.shape[1] == want.shape[1] + 5
    assert relative(got[:, 5:][tight.mask], want[tight.mask]) < 1e-5
    # Nor does the company: a row alone gives what it gives in the batch.
    alone = hf_inputs(Sizes(), ROWS)
    alone = {
        "input_ids": alone["input_ids"][:1],
        "attention_mask": alone["attention_mask"][:1],
        "pixel_values": alone["pixel_values"],
        "image_grid_thw": alone["image_grid_thw"],
        "input_features": alone["input_features"][:1],
        "feature_attention_mask": alone["feature_attention_mask"][:1],
    }
    got = np.asarray(apply(params, thinker_inputs(alone, model.config)))
    assert relative(got[0][tight.mask[0]], want[0][tight.mask[0]]) < 1e-5


def test_gradients_of_every_tensor_are_torchs(tiny):
    """Under rematerialisation, so that both it and the branch between windows and frames are differentiated."""
    theirs, model, params = tiny
    hf = hf_inputs(Sizes(), ROWS[:2])
    inputs = jax.tree.map(jnp.asarray, thinker_inputs(hf, model.config))
    weight = np.random.default_rng(0).standard_normal((*inputs.tokens.shape, 1), np.float32) * inputs.mask[..., None]
    theirs.zero_grad()
    (theirs(**hf).logits.square() * torch.from_numpy(np.array(weight))).sum().backward()

    thinker = Thinker(dataclasses.replace(model.config, remat="full"))
    loss = lambda p: jnp.sum(jnp.square(thinker.apply({"params": p}, inputs)) * weight)
    gradients = flatten_dict(jax.jit(jax.grad(loss))(params))
    want = {name: p.grad for name, p in theirs.named_parameters()}
    for leaf in weights.leaves(model.config):
        name = leaf.name if leaf.name == weights.HEAD else "model." + leaf.name.replace("model.", "language_model.")
        got = np.asarray(gradients[leaf.path])
        got = leaf.layout.to_torch(got if leaf.layer is None else got[leaf.layer])
        if leaf.path == ("audio", "bos_eos"):  # which no forward pass reads
            assert not got.any() and want[name] is None
        else:
            assert relative(got, want[name]) < 1e-3, name


@pytest.mark.parametrize("hidden, ffn, heads, kv_heads", [(2048, 11008, 16, 2), (3584, 18944, 28, 4)], ids=["3b", "7b"])
def test_one_layer_at_real_widths(tmp_path, freed_memory, hidden, ffn, heads, kv_heads):
    sizes = Sizes(
        hidden=hidden, ffn=ffn, heads=heads, kv_heads=kv_heads, section=(16, 24, 24), layers=1,
        vision_depth=1, vision_hidden=1280, vision_heads=16, vision_ffn=3420, full_blocks=(),
        mel_bins=128, audio_width=1280, audio_heads=20, audio_ffn=5120, audio_layers=1, n_window=100,
    )  # fmt: skip
    theirs, inputs = reference(sizes), hf_inputs(sizes, [[WORDS, IMAGE, ("audio", 230), WORDS]])
    with torch.no_grad():
        want = theirs(**inputs).logits.numpy()
    theirs.save_pretrained(tmp_path)
    del theirs
    gc.collect()  # a gigabyte; the suite collects seldom
    model, params = qwen_omni.load(tmp_path)
    assert relative(qwen_omni.logits_from_hf(model, params, inputs), want) < 1e-4


def broken(**changes):
    """The processor's dict with keys replaced by functions of their values (None removes the key)."""
    inputs = hf_inputs(Sizes(), ROWS)
    for key, new in changes.items():
        inputs[key] = new(inputs.get(key))
    return inputs


def put(at, value):
    def change(x):
        x = x.clone()
        x[at] = value
        return x

    return change


BAD = {
    "id-too-large": (broken(input_ids=put((1, 9), 128)), "input_ids[1, 9] is 128, outside the vocabulary of 128"),
    "id-negative": (broken(input_ids=put((0, 3), -1)), "input_ids[0, 3] is -1"),
    "no-ids": (broken(input_ids=lambda _: None), "input_ids is missing"),
    "ids-1d": (broken(input_ids=lambda x: x[0]), "input_ids must be integers"),
    "float-ids": (broken(input_ids=lambda x: x.float()), "input_ids must be integers"),
    "mask": (broken(attention_mask=lambda x: x[:, 1:]), "attention_mask"),
    "empty-row": (broken(attention_mask=put(2, 0)), "row 2 of attention_mask has no real token"),
    "few-pixels": (broken(pixel_values=lambda x: x[4:]), "pixel_values is (56, 1176), but image_grid_thw asks"),
    "patch-size": (broken(pixel_values=lambda x: x[:, :588]), "pixel_values is (60, 588)"),
    "no-grid": (broken(image_grid_thw=lambda _: None), "pixel_values and image_grid_thw must come together"),
    "odd-grid": (broken(image_grid_thw=lambda x: x + torch.tensor([0, 1, 0])), "multiples of 2"),
    "zero-grid": (broken(video_grid_thw=lambda x: x * 0), "must be positive"),
    "lost-placeholder": (broken(input_ids=lambda x: torch.where(x == 102, 5, x)), "image"),
    "lost-video": (
        broken(pixel_values_videos=lambda _: None, video_grid_thw=lambda _: None, video_second_per_grid=lambda _: None),
        "row 1",
    ),
    "no-seconds": (broken(video_second_per_grid=lambda _: None), "seconds_per_grid"),
    "mel-bins": (broken(input_features=lambda x: x[:, :4]), "input_features must be [audios, 8, frames]"),
    "no-mel-mask": (broken(feature_attention_mask=lambda _: None), "must come together"),
    "mel-mask": (broken(feature_attention_mask=lambda x: x[:, 1:]), "feature_attention_mask"),
    "short-audio": (broken(feature_attention_mask=put((0, slice(40, None)), 0)), "row 1 has 10 audio tokens"),
    "no-audio": (broken(feature_attention_mask=lambda x: x * 0), "audio"),
    "unknown": (broken(images=lambda _: [1]), "unknown key images"),
    "text": (broken(attention_mask=lambda _: np.array(["a"])), "attention_mask must be an array of numbers"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_clear_error(tiny, name):
    _, model, params = tiny
    inputs, complaint = BAD[name]
    with pytest.raises(InputError) as error:
        qwen_omni.logits_from_hf(model, params, inputs)
    assert complaint in str(error.value) and "\n" not in str(error.value)


def test_numpy_lists_and_torch_are_the_same(tiny):
    _, model, _ = tiny
    inputs = hf_inputs(Sizes(), ROWS)
    want = thinker_inputs(inputs, model.config)
    as_numpy = {key: value.numpy() for key, value in inputs.items()}
    as_lists = {key: value.tolist() for key, value in inputs.items()} | {"use_audio_in_video": None}
    half = inputs | {"pixel_values": inputs["pixel_values"].bfloat16()}
    for other in (as_numpy, as_lists):
        jax.tree.map(np.testing.assert_array_equal, thinker_inputs(other, model.config), want)
    np.testing.assert_allclose(thinker_inputs(half, model.config).vision.pixels, want.vision.pixels, rtol=1e-2)


def test_the_doors_are_fetched_on_demand():
    assert qwen_omni.load is not None and set(qwen_omni.__all__) >= {"load", "save", "logits_from_hf"}
    with pytest.raises(AttributeError, match="nothing_such"):
        _ = qwen_omni.nothing_such
    assert hf_config.THINKER == "qwen2_5_omni_thinker"
