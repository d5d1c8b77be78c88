"""A LoRA adapter of the decoder in PEFT's layout: adapter_config.json and adapter_model.safetensors.

PEFT computes `x W^T + (lora_alpha / r) (x A^T) B^T` with A `lora_A.weight` [r, in] and B `lora_B.weight` [out, r], each
named after the linear layer that it adapts.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from omnir1_jax.config.sections import Lora
from omnir1_jax.files import folders
from omnir1_jax.models import hf_checkpoint, safetensors_file
from omnir1_jax.models.qwen_omni import weights

CONFIG, MODEL = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # PEFT's, before the names of the model that it wraps


def config_json(config: Lora, layers: Sequence[str], base: str) -> dict[str, Any]:
    """PEFT's LoraConfig.

    Args:
      layers: kinds of adapted layers in a block, such as "self_attn.q_proj".
      base: path of the weights that the adapter goes with.
    """
    kinds = "|".join(sorted(layer.replace(".", r"\.") for layer in layers))
    alpha = int(config.alpha) if float(config.alpha).is_integer() else config.alpha
    return dict(
        peft_type="LORA",
        task_type=None,
        base_model_name_or_path=base,
        r=config.rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        bias="none",
        fan_in_fan_out=False,
        use_rslora=False,
        use_dora=False,
        modules_to_save=None,
        inference_mode=True,
        # The decoder alone, of the thinker or of the whole model: encoders and talker have layers of the same names.
        target_modules=rf"(thinker\.)?model\.(language_model\.)?layers\.\d+\.({kinds})",
    )


def save(path: epath.PathLike, adapter: Mapping[str, Any], config: Lora, base: str, flag: str) -> int:
    """Writes the directory atomically.

    Args:
      adapter: of the decoder, as `lora.init` returns it.
      config, base: see `config_json`.
      flag: names `path` in messages.

    Returns:
      The number of parameters written.
    """
    names = weights.linear_layers()
    tensors = {}
    for layer, pair in adapter["layers"].items():
        a, b = (np.asarray(pair[key], np.float32) for key in "ab")
        for i in range(len(a)):
            name = PREFIX + names[layer].format(i)
            tensors[f"{name}.lora_A.weight"] = np.ascontiguousarray(a[i].reshape(-1, config.rank).T)
            tensors[f"{name}.lora_B.weight"] = np.ascontiguousarray(b[i].reshape(config.rank, -1).T)
    kinds = [names[layer].split(".layers.{}.")[1] for layer in adapter["layers"]]
    with folders.replace(path, hf_checkpoint.WEIGHTS, flag) as scratch:
        (scratch / CONFIG).write_text(json.dumps(config_json(config, kinds, base), indent=2, sort_keys=True) + "\n")
        shapes = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
        safetensors_file.write_file(scratch / MODEL, shapes, tensors.values())
    return sum(tensor.size for tensor in tensors.values())
