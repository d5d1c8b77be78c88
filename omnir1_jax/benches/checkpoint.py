"""Host memory and time of importing a sharded checkpoint, ours and transformers', each in a process of its own."""

import dataclasses
import json
import pathlib
import subprocess
import sys
import tempfile

import flax.linen as nn
import jax
import ml_dtypes
import numpy as np

from omnir1_jax.models import hf_checkpoint, safetensors_file
from omnir1_jax.models.qwen_omni import hf_config, weights
from omnir1_jax.models.qwen_omni.thinker import abstract_params

# Resident memory just before the load, its peak, and seconds. The load itself is put in for {load}.
_CHILD = """
import resource, sys, time
import numpy as np
{imports}
path = sys.argv[1]
rss = lambda: int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
before, start = rss(), time.perf_counter()
kept = {load}
seconds = time.perf_counter() - start
# Not ru_maxrss: a child starts with that of the process that forked it.
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(before, peak * 1024, seconds)
"""
_OURS = _CHILD.format(
    imports="import jax, jax.numpy as jnp\nfrom omnir1_jax.models.qwen_omni import load\njnp.zeros(1) + 1",
    load="jax.block_until_ready(load(path, dtype=jnp.bfloat16)[1])",
)
_THEIRS = _CHILD.format(
    imports="import torch\nfrom transformers import Qwen2_5OmniThinkerForConditionalGeneration as M",
    load="[p.sum() for p in M.from_pretrained(path, dtype=torch.bfloat16).parameters()]",
)


def _config(quick: bool):
    """The 3B's proportions, with few layers and a small vocabulary."""
    raw = dict(
        model_type=hf_config.THINKER,
        text_config=dict(
            hidden_size=512 if quick else 1024,
            intermediate_size=2752 if quick else 5504,
            num_hidden_layers=8 if quick else 24,
            num_attention_heads=8,
            num_key_value_heads=2,
            head_dim=128,
            vocab_size=8192,
            pad_token_id=0,
            eos_token_id=2,
            rope_parameters=dict(rope_type="default", rope_theta=1e6, mrope_section=[16, 24, 24]),
        ),
        vision_config=dict(depth=8, hidden_size=640, num_heads=8, intermediate_size=1712),
        audio_config=dict(encoder_layers=8, d_model=640, encoder_attention_heads=10, encoder_ffn_dim=2560),
    )
    raw["vision_config"]["out_hidden_size"] = raw["audio_config"]["output_dim"] = raw["text_config"]["hidden_size"]
    return hf_config.parse(raw)


def _measure(code: str, folder: str) -> dict[str, float]:
    done = subprocess.run([sys.executable, "-c", code, folder], stdout=subprocess.PIPE, text=True, check=True)
    before, peak, seconds = map(float, done.stdout.split()[-3:])
    return {"growth": (peak - before) / 2**20, "seconds": seconds}


def run(quick: bool) -> dict:
    """Peak growth of resident memory in MiB; `overhead` is what is left of it beside the parameters themselves."""
    config = _config(quick)
    shapes = nn.unbox(abstract_params(config))
    # Random bits under the mantissa of 1.0: nothing compresses, no page is shared.
    noise = np.random.default_rng(0).integers(0x3F80, 0x3FFF, 1 << 20, np.uint16).view(ml_dtypes.bfloat16)
    params = jax.tree.map(lambda s: np.resize(noise, s.shape), shapes)
    with tempfile.TemporaryDirectory() as scratch:
        folder = str(pathlib.Path(scratch) / "model")
        text = json.dumps(hf_config.to_json(dataclasses.replace(config)) | {"dtype": "bfloat16"})
        files = {"config.json": text.encode()}
        total = sum(p.nbytes for p in jax.tree.leaves(params))
        hf_checkpoint.save_params(folder, weights.leaves(config), params, max_shard_bytes=total // 5, files=files)
        tensors = safetensors_file.index(folder).values()
        sizes = [info.end - info.start for info in tensors]
        largest = max(p.nbytes for p in jax.tree.leaves(params))
        del params
        runs = [(_measure(_OURS, folder), _measure(_THEIRS, folder)) for _ in range(1 if quick else 3)]
    median = lambda side, key: float(np.median([pair[side][key] for pair in runs]))
    ours, theirs = median(0, "growth"), median(1, "growth")
    size = total / 2**20
    return {
        "shards": len({info.file for info in tensors}),
        "checkpoint_mib": size,
        "largest_tensor_mib": max(sizes) / 2**20,
        "largest_parameter_mib": largest / 2**20,
        "import_peak_mib": ours,
        "import_overhead_mib": ours - size,
        "import_peak_over_checkpoint": ours / size,
        "transformers_peak_mib": theirs,
        "transformers_overhead_mib": theirs - size,
        "transformers_peak_over_ours": theirs / ours,
        "import_seconds": median(0, "seconds"),
        "transformers_seconds": median(1, "seconds"),
    }
