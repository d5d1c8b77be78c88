"""The talker and token2wav of a release. No module here reads them; an export of the whole model copies them."""

import pickle
from collections.abc import Mapping
from typing import Any, NamedTuple

from etils import epath

from omnir1_jax.errors import InputError
from omnir1_jax.models import safetensors_file
from omnir1_jax.models.qwen_omni import hf_config
from omnir1_jax.models.safetensors_file import TensorInfo

SPEAKERS = "spk_dict.pt"
PARTS = ("talker", "token2wav")


class Speech(NamedTuple):
    """Config, weights and speakers of the parts that speak.

    Attributes:
      config: sections of `config.json`, by name.
      tensors: locations of the tensors, by name.
      speakers: content of spk_dict.pt, which is never unpickled.
    """

    config: dict[str, Any]
    tensors: dict[str, TensorInfo]
    speakers: bytes


def missing(path: epath.PathLike) -> list[str]:
    """What a Hugging Face directory lacks of a whole model that speaks."""
    path = epath.Path(path)
    if not (path / "model.safetensors").exists() and not (path / "model.safetensors.index.json").exists():
        return ["safetensors"]
    config, names = hf_config.read_json(path), safetensors_file.index(path)
    absent = [f"{part}_config" for part in PARTS if not isinstance(config.get(f"{part}_config"), dict)]
    absent += [f"{part}.*" for part in PARTS if not any(name.startswith(f"{part}.") for name in names)]
    return absent + ([] if (path / SPEAKERS).is_file() else [SPEAKERS])


def read(path: epath.PathLike) -> Speech:
    """The speech of a Hugging Face directory.

    Raises:
      InputError: it lacks a part.
    """
    path = epath.Path(path)
    if absent := missing(path):
        raise InputError(f"{path}: no speech, it lacks {', '.join(absent)}; name the directory of a whole release")
    config = hf_config.read_json(path)
    tensors = safetensors_file.index(path)
    return Speech(
        {f"{part}_config": config[f"{part}_config"] for part in PARTS},
        {name: info for name, info in tensors.items() if name.partition(".")[0] in PARTS},
        (path / SPEAKERS).read_bytes(),
    )


def no_speakers() -> bytes:
    """A spk_dict.pt without speakers, in torch's older format of plain pickles.

    transformers' `Qwen2_5OmniForConditionalGeneration.from_pretrained` opens the file even of a model without speech.
    """
    sizes = {"short": 2, "int": 4, "long": 4}
    header = (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": sizes})
    return b"".join(pickle.dumps(part, protocol=2) for part in (*header, {}, []))


def whole_config(config: Mapping[str, Any], speech: Speech | None) -> dict[str, Any]:
    """The whole model's `config.json` with the speech that comes with it."""
    rest = {key: value for key, value in config.items() if key not in {f"{part}_config" for part in PARTS}}
    return rest | {"enable_audio_output": speech is not None} | ({} if speech is None else speech.config)
