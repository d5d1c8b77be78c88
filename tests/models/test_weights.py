"""Weights and configs: real sizes, bitwise ways there and back, shardings, and one clear error for what is wrong."""

import copy
import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5OmniThinkerForConditionalGeneration

from omnir1_jax.errors import InputError
from omnir1_jax.models import qwen_omni
from omnir1_jax.models.qwen_omni import hf_config, weights
from omnir1_jax.models.qwen_omni.thinker import abstract_params, count
from omnir1_jax.parallel import DEFAULT_RULES, make_mesh, tree_shardings
from tests.models.thinker_oracle import Sizes, hf_inputs, reference, relative

# The released checkpoints' config.json, without what only the talker or training reads.
TOWERS = dict(
    vision_config=dict(model_type="qwen2_5_omni_vision_encoder", depth=32, hidden_size=1280, intermediate_size=3420),
    audio_config=dict(model_type="qwen2_5_omni_audio_encoder", d_model=1280, encoder_layers=32),
)
ROPE = dict(mrope_section=[16, 24, 24], rope_type="default", type="default")
REAL_7B = dict(
    model_type="qwen2_5_omni",
    thinker_config=dict(
        TOWERS,
        model_type="qwen2_5_omni_thinker",
        text_config=dict(model_type="qwen2_5_omni_text", rope_theta=1000000.0, rope_scaling=ROPE),
        audio_token_index=151646,
        pad_token_id=151643,
    ),
)
REAL_3B = dict(
    model_type="qwen2_5_omni_thinker",
    text_config=dict(
        hidden_size=2048,
        intermediate_size=11008,
        num_hidden_layers=36,
        num_attention_heads=16,
        num_key_value_heads=2,
        vocab_size=151936,
        rope_parameters=dict(ROPE, rope_theta=1e6),
    ),
    vision_config=dict(TOWERS["vision_config"], out_hidden_size=2048),
    audio_config=dict(TOWERS["audio_config"], output_dim=2048),
)


def test_real_configs_have_the_released_numbers_of_parameters():
    seven, three = hf_config.parse(REAL_7B), hf_config.parse(REAL_3B)
    tied = hf_config.parse({**REAL_3B, "tie_word_embeddings": True})
    assert seven.text.mrope_section == three.text.mrope_section == (16, 24, 24)
    assert (seven.text.head_dim, seven.text.rope_theta) == (128, 1e6)
    assert seven.tokens.eos == (151645,) and seven.tokens.vision_start == 151652
    assert len(weights.leaves(seven)) == 1346
    assert count(abstract_params(seven)) == 8_931_813_888
    assert count(abstract_params(three)) == 4_703_464_448
    assert count(abstract_params(tied)) == 4_703_464_448 - 151936 * 2048


def test_every_large_parameter_is_sharded_at_7b():
    boxed = abstract_params(hf_config.parse(REAL_7B))
    mesh = make_mesh({"fsdp": 2, "tensor": 4})
    shapes, shardings = nn.unbox(boxed), tree_shardings(mesh, boxed, DEFAULT_RULES)
    for path, shape in jax.tree_util.tree_leaves_with_path(shapes):
        spec = jax.tree_util.tree_map(lambda s: s, shardings)
        for key in path:
            spec = spec[key.key]
        local = np.prod(spec.shard_shape(shape.shape))
        assert local * 2 <= shape.size or shape.size < 2_000_000, (path, shape.shape, spec.spec)
    split = sum(
        s.size == 8 * np.prod(h.shard_shape(s.shape)) for s, h in zip(*map(jax.tree.leaves, (shapes, shardings)))
    )
    assert split >= 20


def bits(tensor):
    return tensor.contiguous().view(torch.uint8).numpy()


@pytest.mark.parametrize("tied, dtype", [(False, torch.float32), (False, torch.bfloat16), (True, torch.float32)])
@pytest.mark.parametrize("prefix", ["", "thinker."])
def test_there_and_back_is_bitwise(tmp_path, tied, dtype, prefix):
    model = reference(Sizes(tied=tied)).to(dtype)
    model.save_pretrained(tmp_path / "bare")
    base = json.loads((tmp_path / "bare" / "config.json").read_text())
    source = tmp_path / "bare"
    if prefix:  # as Qwen releases it: the whole model in shards, talker and token2wav with it
        source = tmp_path / "whole"
        source.mkdir()
        state = {"thinker." + name: t for name, t in load_file(tmp_path / "bare" / "model.safetensors").items()}
        state |= {"talker.x": torch.ones(2), "token2wav.y": torch.ones(3)}
        names, where = sorted(state), {}
        for i in range(3):
            save_file({name: state[name] for name in names[i::3]}, source / f"model-{i}.safetensors")
            where |= {name: f"model-{i}.safetensors" for name in names[i::3]}
        (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
        base = {"model_type": "qwen2_5_omni", "thinker_config": base, "enable_audio_output": False, "torch_dtype": "x"}
        (source / "config.json").write_text(json.dumps(base))
    ours, params = qwen_omni.load(source, dtype={torch.float32: jnp.float32, torch.bfloat16: jnp.bfloat16}[dtype])
    assert ours.config.text.tie_word_embeddings == tied
    assert count(params) == sum(p.numel() for p in model.parameters())
    qwen_omni.save(tmp_path / "out", ours, params, prefix=prefix, base=base, max_shard_bytes=100_000)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    loaded, info = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    assert loaded.config.vision_start_token_id == model.config.vision_start_token_id
    want, got = model.state_dict(), loaded.state_dict()
    assert got.keys() == want.keys()
    for name in want:
        assert got[name].dtype == dtype
        np.testing.assert_array_equal(bits(got[name]), bits(want[name]), err_msg=name)


def test_without_the_original_json_the_config_is_written_anew(tmp_path):
    model = reference(Sizes())
    model.save_pretrained(tmp_path / "in")
    ours, params = qwen_omni.load(tmp_path / "in")
    qwen_omni.save(tmp_path / "out", ours, params)
    again, _ = qwen_omni.load(tmp_path / "out")
    assert again.config == ours.config
    loaded = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(tmp_path / "out", attn_implementation="eager")
    inputs = hf_inputs(Sizes(), [[("text", 3), ("image", (1, 4, 6)), ("audio", 30)]])
    with torch.no_grad():
        np.testing.assert_array_equal(loaded(**inputs).logits, model(**inputs).logits)


def test_a_mesh_gets_sharded_arrays_and_the_same_logits(tmp_path):
    sizes = Sizes(hidden=48, ffn=64)
    reference(sizes).save_pretrained(tmp_path)
    mesh = make_mesh({"fsdp": 4, "tensor": 2})
    model, whole = qwen_omni.load(tmp_path)
    _, params = qwen_omni.load(tmp_path, mesh=mesh)
    gate = params["text"]["layers"]["gate"]["kernel"]
    assert gate.addressable_shards[0].data.shape == (2, 12, 32)
    jax.tree.map(np.testing.assert_array_equal, params, whole)
    inputs = hf_inputs(sizes, [[("text", 3), ("image", (1, 4, 6)), ("audio", 30)]])
    got = qwen_omni.logits_from_hf(model, params, inputs)
    assert relative(got, qwen_omni.logits_from_hf(model, whole, inputs)) < 1e-5


def test_a_checkpoint_that_does_not_fit_is_one_error(tmp_path):
    model = reference(Sizes())
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    state["visual.blocks.1.attn.q.bias"] = torch.ones(3)
    state["model.layers.7.mlp.up_proj.weight"] = torch.ones(3)
    del state["lm_head.weight"], state["audio_tower.conv1.bias"]
    save_file(state, file)
    with pytest.raises(InputError) as error:
        qwen_omni.load(tmp_path)
    for part in (
        "unknown tensors (1): model.layers.7.",
        "audio_tower.conv1.bias, lm_head.weight",
        "q.bias [3] instead",
    ):
        assert part in str(error.value)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"model\.safetensors: truncated"):
        qwen_omni.load(tmp_path)


def test_a_head_on_disk_is_used_though_the_config_says_tied(tmp_path):
    model = reference(Sizes())
    model.save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**raw, "tie_word_embeddings": True}))
    ours, params = qwen_omni.load(tmp_path)
    assert not ours.config.text.tie_word_embeddings
    np.testing.assert_array_equal(params["text"]["head"]["kernel"].T, model.lm_head.weight.detach())
    # What is written says so, or transformers would tie them and lose the head.
    qwen_omni.save(tmp_path / "out", ours, params, base={**raw, "tie_word_embeddings": True})
    loaded = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    assert not torch.equal(loaded.lm_head.weight, loaded.get_input_embeddings().weight)


def change(raw, *path_and_value):
    *path, value = path_and_value
    raw = copy.deepcopy(raw)
    at = raw
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return raw


@pytest.mark.parametrize(
    "raw, complaint",
    [
        (dict(model_type="qwen2_5_vl"), "model_type 'qwen2_5_vl' is not Qwen2.5-Omni"),
        (dict(architectures=["X"]), "model_type None"),
        (dict(model_type="qwen2_5_omni"), "no thinker_config"),
        (change(REAL_3B, "vision_config", None), "vision_config is missing"),
        (change(REAL_3B, "text_config", "hidden_size", "big"), "text_config.hidden_size is 'big'"),
        (change(REAL_3B, "text_config", "num_key_value_heads", 3), "not a multiple of num_key_value_heads 3"),
        (change(REAL_3B, "text_config", "rope_parameters", "mrope_section", [16, 24]), "mrope_section"),
        (change(REAL_3B, "text_config", "rope_parameters", "rope_type", "yarn"), "rope_type is 'yarn'"),
        (change(REAL_3B, "text_config", "use_sliding_window", True), "use_sliding_window is true"),
        (change(REAL_3B, "audio_config", "activation_function", "relu"), "activation_function is 'relu'"),
        (change(REAL_3B, "audio_config", "output_dim", 77), "output_dim 77"),
        (change(REAL_3B, "vision_config", "window_size", 100), "window_size 100"),
    ],
)
def test_a_config_of_something_else_is_one_error(tmp_path, raw, complaint):
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(InputError) as error:
        qwen_omni.load(tmp_path)
    assert complaint in str(error.value) and "config.json" in str(error.value)


def test_a_missing_or_broken_config_is_one_error(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        qwen_omni.load(tmp_path)
    for text in ("{", "[]", "\xff"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(InputError, match=r"config\.json"):
            qwen_omni.load(tmp_path)


def test_old_and_new_spelling_are_one():
    old = change(REAL_3B, "text_config", "rope_parameters", None)
    old["text_config"] |= dict(rope_theta=1e6, rope_scaling=ROPE)
    old = {"model_type": "qwen2_5_omni", "thinker_config": old}
    assert hf_config.parse(old) == hf_config.parse(REAL_3B)
    written = hf_config.to_json(hf_config.parse(REAL_3B))
    assert hf_config.parse(written) == hf_config.parse(REAL_3B)
    odd = change(REAL_3B, "text_config", "eos_token_id", [7, 9])
    odd["image_token_id"] = 5  # the alias that transformers also writes
    assert hf_config.parse(odd).tokens == dataclasses.replace(hf_config.parse(REAL_3B).tokens, eos=(7, 9), image=5)
