"""Error of a decoder's logits by the format of its frozen weights.

Random weights in bfloat16, used in float32, so that only the format makes a difference. They have no outliers; real
weights do, and then groups help more.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from omnir1_jax.models import quantise
from omnir1_jax.models.qwen_omni.config import TextConfig
from omnir1_jax.models.qwen_omni.decoder import Decoder

SIZES = ((256, 4), (512, 8))  # width, layers
FORMATS = (quantise.Format(8), *(quantise.Format(4, group) for group in (32, 64, 128)))


def run(quick: bool) -> dict:
    """Root mean square of the logits' error over that of the logits, and bits per weight of the layers."""
    figures = {}
    for width, layers in SIZES[:1] if quick else SIZES:
        config = TextConfig(1000, width, 4 * width, layers, width // 64, 2, 64, 1e6, (8, 12, 12))
        decoder = Decoder(config)
        tokens = jnp.asarray(np.random.default_rng(0).integers(0, 1000, (4, 64)), jnp.int32)
        inputs = tokens, jnp.broadcast_to(jnp.arange(64), (4, 3, 64)), jnp.ones((4, 64), bool)
        params = nn.unbox(jax.jit(decoder.init)(jax.random.key(width), *inputs)["params"])
        params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
        logits = jax.jit(lambda params, decoder=decoder, inputs=inputs: decoder.apply({"params": params}, *inputs))
        reference = logits(params)
        rms = lambda x: float(jnp.sqrt(jnp.mean(jnp.square(x))))
        for form in FORMATS:
            narrow = jax.jit(lambda params, form=form: quantise.quantised({"text": params}, form)["text"])(params)
            bits = sum(
                x.size * (4 if x.dtype == jnp.int4 else 8 * x.itemsize) for x in jax.tree.leaves(narrow["layers"])
            )
            name = f"{width}x{layers}_int{form.bits}" + (f"_group_{form.group}" if form.bits == 4 else "")
            figures[f"{name}_error"] = rms(logits(narrow) - reference) / rms(reference)
            figures[f"{name}_bits"] = bits / sum(x.size for x in jax.tree.leaves(params["layers"]))
    return figures
