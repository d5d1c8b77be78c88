"""A checkpoint's `config.json` and tensors: sizes that are none are one line that names file and key, at once."""

import copy
import json
import pathlib

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from omnir1_jax.errors import InputError
from omnir1_jax.models import hf_checkpoint, safetensors_file, sam2
from omnir1_jax.models.qwen_omni import hf_config
from tests.models import test_checkpoint

ROOT = pathlib.Path(__file__).parent.parent.parent

BAD = (
    "0",
    "-1",
    "1000000000000",
    "1000000000",
    "1e400",
    "-1e400",
    "NaN",
    '"12"',
    "true",
    "[]",
    "{}",
    "1.5",
    "9" * 4000,
)


def read_thinker(folder):
    return hf_config.parse(hf_config.read_json(folder), str(folder / "config.json"))


MODELS = {
    "thinker": (ROOT / "configs/toy_weights/thinker/config.json", read_thinker),
    "sam2": (ROOT / "configs/toy_weights/sam2/config.json", sam2.read_config),
}
# What may be no positive whole number.
ANY = {
    "0": "stability sigmoid _token_i padding blocks num_layers pt_num levels indexes",
    "-1": "stability sigmoid max_cond_frame_num",
    "1.5": "stability sigmoid layer_norm_eps rope_theta mlp_ratio seconds_per_chunk",
    "1000000000": "rope_theta",
    "1000000000000": "rope_theta",
}


def sizes(value, path=()):
    """Paths of all numbers that the file holds."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in items:
        yield from sizes(child, (*path, key))
    if type(value) in (int, float):
        yield path


def replaced(raw, path, text):
    """The file's text with the JSON `text` at `path`."""
    raw = copy.deepcopy(raw)
    part = raw
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = "HERE"
    return json.dumps(raw).replace('"HERE"', text)


@pytest.mark.parametrize("model", MODELS)
def test_sizes_that_are_none_are_named(model, tmp_path):
    source, read = MODELS[model]
    raw = json.loads(source.read_text())
    read_keys = 0
    for path in sizes(raw):
        name = ".".join(map(str, path))
        file = tmp_path / "config.json"
        file.write_text(replaced(raw, path, '"12"'))
        try:
            read(tmp_path)
        except InputError as error:
            assert str(file) in str(error) and [key for key in path if isinstance(key, str)][-1] in str(error), name
        else:
            continue  # a key that nothing here reads
        read_keys += 1
        for text in BAD:
            file.write_text(replaced(raw, path, text))
            try:
                read(tmp_path)
            except InputError as error:
                assert str(error).startswith(str(file)) and "\n" not in str(error) and len(str(error)) < 1000, name
            else:
                assert any(part in name for part in ANY.get(text, "").split()), (name, text)
    assert read_keys > 15


def test_weights_that_are_not_finite_are_named(tmp_path):
    shape = (300, 1000)  # more than a block
    for dtype in ("float16", "bfloat16", "float32", "float64"):
        values = np.ones(shape, np.dtype(safetensors_file.jnp.dtype(dtype)))
        assert safetensors_file.not_finite(values) == 0
        values[0, 0], values[-1, -1] = np.inf, np.nan
        assert safetensors_file.not_finite(values) == 2
        assert safetensors_file.not_finite(np.full_like(values, np.nan)) == values.size
    assert safetensors_file.not_finite(np.ones(3, np.int32)) == 0 == safetensors_file.not_finite(np.ones(0, np.float32))


def test_a_tensor_that_is_not_finite_is_refused_by_name_when_it_is_loaded(tmp_path):
    values = test_checkpoint.tensors(torch.bfloat16, "thinker.")
    values["thinker.blocks.1.o.weight"][0, 0] = torch.inf
    save_file(values, tmp_path / "model.safetensors")
    with pytest.raises(
        InputError, match=r"model\.safetensors: the tensor 'thinker\.blocks\.1\.o\.weight' holds 1 of 48"
    ):
        hf_checkpoint.load_params(
            tmp_path, test_checkpoint.LEAVES, test_checkpoint.abstract(), prefixes=("", "thinker.")
        )
