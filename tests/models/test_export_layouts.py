"""The whole-model layout of an export: transformers loads it, with the base's speech or told that there is none."""

import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import Qwen2_5OmniConfig, Qwen2_5OmniForConditionalGeneration

from omnir1_jax import convert
from omnir1_jax.errors import InputError
from tests.models.thinker_oracle import Sizes, hf_config, reference

SIZES = Sizes(vision_depth=1, full_blocks=(0,), layers=1, audio_layers=1)
TALKER = dict(
    embedding_size=48, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=2, head_dim=16, rope_parameters=dict(rope_type="default", mrope_section=[2, 3, 3]),
)  # fmt: skip
TOKEN2WAV = dict(
    dit_config=dict(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=1, head_dim=16, emb_dim=8, num_embeds=16, mel_dim=8,
        enc_emb_dim=8, enc_dim=8, enc_channels=[8, 8, 8, 8, 24], enc_attention_channels=4, enc_se_channels=4,
        look_ahead_layers=[0], look_backward_layers=[0], ff_mult=1,
    ),
    bigvgan_config=dict(
        mel_dim=8, upsample_initial_channel=16, resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1, 3, 5]],
        upsample_rates=[2], upsample_kernel_sizes=[4],
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """A whole model that speaks, in shards; a NaN with a payload among the talker's weights."""
    folder = tmp_path_factory.mktemp("release")
    config = Qwen2_5OmniConfig(
        thinker_config=hf_config(SIZES).to_dict(), talker_config=TALKER, token2wav_config=TOKEN2WAV
    )
    model = Qwen2_5OmniForConditionalGeneration(config).to(torch.bfloat16)
    model.token2wav.float()
    model.thinker.load_state_dict(reference(SIZES).state_dict())
    with torch.no_grad():
        model.talker.codec_head.weight.view(torch.int16)[0, 0] = 0x7FA1
    model.save_pretrained(folder, max_shard_size="300KB")
    torch.save({"Chelsie": {"cond": torch.ones(1, 4)}}, folder / "spk_dict.pt")
    return folder


@pytest.fixture(scope="module")
def store(release, tmp_path_factory):
    """What import makes of it, which has no speech."""
    folder = tmp_path_factory.mktemp("store") / "orbax"
    convert.main(convert.parse(["convert", "import", str(release), str(folder)]))
    return folder


def export(source, target, *flags):
    convert.main(convert.parse(["convert", "export", str(source), str(target), "--layout", "omni", *flags]))
    return Qwen2_5OmniForConditionalGeneration.from_pretrained(target)


def tensors(folder):
    return {
        name: tensor for file in sorted(folder.glob("model*.safetensors")) for name, tensor in load_file(file).items()
    }


@pytest.mark.parametrize("kind", ["release", "store"])
def test_speech_is_carried_byte_for_byte(kind, release, store, tmp_path, capsys):
    flags = ("--speech", str(release)) if kind == "store" else ()
    model = export(release if kind == "release" else store, tmp_path / "out", "--max-shard-bytes", "200000", *flags)
    got, want = tensors(tmp_path / "out"), tensors(release)
    assert got.keys() == want.keys() == {key for key in want if key.split(".")[0] in ("thinker", "talker", "token2wav")}
    for name, tensor in want.items():
        assert got[name].dtype == tensor.dtype and torch.equal(got[name].view(torch.uint8), tensor.view(torch.uint8))
    assert (tmp_path / "out" / "spk_dict.pt").read_bytes() == (release / "spk_dict.pt").read_bytes()
    assert model.has_talker and model.speaker_map.keys() == {"Chelsie"}
    loaded = model.state_dict()
    for name, tensor in Qwen2_5OmniForConditionalGeneration.from_pretrained(release).state_dict().items():
        assert torch.equal(loaded[name].float().nan_to_num(), tensor.float().nan_to_num()), name
    out = capsys.readouterr().out
    assert "loaded by transformers' Qwen2_5OmniForConditionalGeneration" in out
    assert f"talker, token2wav and spk_dict.pt are those of {release}" in out


def test_a_base_without_speech_gives_a_model_that_says_so(release, store, tmp_path, capsys):
    silent = tmp_path / "silent"
    reference(SIZES).to(torch.bfloat16).save_pretrained(silent)
    half = tmp_path / "half"  # a download without the speakers
    shutil.copytree(release, half)
    (half / "spk_dict.pt").unlink()
    want = load_file(silent / "model.safetensors")
    for source, lacking in (
        (silent, "talker_config, token2wav_config, talker.*, token2wav.*, spk_dict.pt"),
        (half, "spk_dict.pt"),
        (store, "safetensors"),
    ):
        target = tmp_path / f"of_{source.name}"
        model = export(source, target)
        assert not model.has_talker and not model.config.enable_audio_output and not model.speaker_map
        assert f"does not speak (enable_audio_output is false), as {source} lacks {lacking};" in capsys.readouterr().out
        with safe_open(target / "model.safetensors", "pt") as file:
            assert set(file.keys()) == {f"thinker.{name}" for name in want}
            assert all(torch.equal(file.get_tensor(f"thinker.{name}"), tensor) for name, tensor in want.items())


def test_flags_that_do_not_fit_are_refused(release, store, tmp_path):
    for flags, complaint in (
        (("--layout", "peft"), "only a run's work directory has an adapter"),
        (("--layout", "thinker", "--speech", str(release)), "add --layout omni"),
        (("--layout", "omni", "--speech", str(store)), "no speech, it lacks safetensors"),
    ):
        with pytest.raises(InputError, match=complaint):
            convert.main(convert.parse(["convert", "export", str(store), str(tmp_path / "out"), *flags]))
    assert not (tmp_path / "out").exists()
