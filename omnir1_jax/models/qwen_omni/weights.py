"""Which tensor of a Hugging Face checkpoint is which parameter of the thinker."""

from collections.abc import Iterator

from omnir1_jax.models import lora
from omnir1_jax.models.hf_checkpoint import (
    CONV1D,
    FLAT,
    HEADS_IN,
    HEADS_OUT,
    OUT_LAST,
    SAME,
    TRANSPOSED,
    Layout,
    Leaf,
)
from omnir1_jax.models.qwen_omni.config import ThinkerConfig

PREFIXES = ("", "thinker.")  # the thinker alone, or Qwen's release of the whole model
IGNORE = ("talker.*", "token2wav.*")
HEAD = "lm_head.weight"

# name on disk, parameter, layout; with {} in the first, one for each layer
_TEXT = (
    ("model.embed_tokens.weight", "embed/embedding", SAME),
    ("model.layers.{}.input_layernorm.weight", "layers/attention_norm/scale", SAME),
    ("model.layers.{}.self_attn.q_proj.weight", "layers/q/kernel", HEADS_OUT),
    ("model.layers.{}.self_attn.q_proj.bias", "layers/q/bias", FLAT),
    ("model.layers.{}.self_attn.k_proj.weight", "layers/k/kernel", HEADS_OUT),
    ("model.layers.{}.self_attn.k_proj.bias", "layers/k/bias", FLAT),
    ("model.layers.{}.self_attn.v_proj.weight", "layers/v/kernel", HEADS_OUT),
    ("model.layers.{}.self_attn.v_proj.bias", "layers/v/bias", FLAT),
    ("model.layers.{}.self_attn.o_proj.weight", "layers/o/kernel", HEADS_IN),
    ("model.layers.{}.post_attention_layernorm.weight", "layers/mlp_norm/scale", SAME),
    ("model.layers.{}.mlp.gate_proj.weight", "layers/gate/kernel", TRANSPOSED),
    ("model.layers.{}.mlp.up_proj.weight", "layers/up/kernel", TRANSPOSED),
    ("model.layers.{}.mlp.down_proj.weight", "layers/down/kernel", TRANSPOSED),
    ("model.norm.weight", "norm/scale", SAME),
    (HEAD, "head/kernel", TRANSPOSED),
)
_VISION = (
    ("visual.patch_embed.proj.weight", "patch_embed/kernel", OUT_LAST),
    ("visual.blocks.{}.norm1.weight", "blocks/attention_norm/scale", SAME),
    ("visual.blocks.{}.attn.q.weight", "blocks/q/kernel", HEADS_OUT),
    ("visual.blocks.{}.attn.q.bias", "blocks/q/bias", FLAT),
    ("visual.blocks.{}.attn.k.weight", "blocks/k/kernel", HEADS_OUT),
    ("visual.blocks.{}.attn.k.bias", "blocks/k/bias", FLAT),
    ("visual.blocks.{}.attn.v.weight", "blocks/v/kernel", HEADS_OUT),
    ("visual.blocks.{}.attn.v.bias", "blocks/v/bias", FLAT),
    ("visual.blocks.{}.attn.proj.weight", "blocks/o/kernel", HEADS_IN),
    ("visual.blocks.{}.attn.proj.bias", "blocks/o/bias", SAME),
    ("visual.blocks.{}.norm2.weight", "blocks/mlp_norm/scale", SAME),
    ("visual.blocks.{}.mlp.gate_proj.weight", "blocks/gate/kernel", TRANSPOSED),
    ("visual.blocks.{}.mlp.gate_proj.bias", "blocks/gate/bias", SAME),
    ("visual.blocks.{}.mlp.up_proj.weight", "blocks/up/kernel", TRANSPOSED),
    ("visual.blocks.{}.mlp.up_proj.bias", "blocks/up/bias", SAME),
    ("visual.blocks.{}.mlp.down_proj.weight", "blocks/down/kernel", TRANSPOSED),
    ("visual.blocks.{}.mlp.down_proj.bias", "blocks/down/bias", SAME),
    ("visual.merger.ln_q.weight", "merger_norm/scale", SAME),
    ("visual.merger.mlp.0.weight", "merger_in/kernel", TRANSPOSED),
    ("visual.merger.mlp.0.bias", "merger_in/bias", SAME),
    ("visual.merger.mlp.2.weight", "merger_out/kernel", TRANSPOSED),
    ("visual.merger.mlp.2.bias", "merger_out/bias", SAME),
)
_AUDIO = (
    ("audio_tower.audio_bos_eos_token.weight", "bos_eos", SAME),
    ("audio_tower.conv1.weight", "conv1/kernel", CONV1D),
    ("audio_tower.conv1.bias", "conv1/bias", SAME),
    ("audio_tower.conv2.weight", "conv2/kernel", CONV1D),
    ("audio_tower.conv2.bias", "conv2/bias", SAME),
    ("audio_tower.layers.{}.self_attn_layer_norm.weight", "blocks/attention_norm/scale", SAME),
    ("audio_tower.layers.{}.self_attn_layer_norm.bias", "blocks/attention_norm/bias", SAME),
    ("audio_tower.layers.{}.self_attn.q_proj.weight", "blocks/q/kernel", HEADS_OUT),
    ("audio_tower.layers.{}.self_attn.q_proj.bias", "blocks/q/bias", FLAT),
    ("audio_tower.layers.{}.self_attn.k_proj.weight", "blocks/k/kernel", HEADS_OUT),
    ("audio_tower.layers.{}.self_attn.v_proj.weight", "blocks/v/kernel", HEADS_OUT),
    ("audio_tower.layers.{}.self_attn.v_proj.bias", "blocks/v/bias", FLAT),
    ("audio_tower.layers.{}.self_attn.out_proj.weight", "blocks/o/kernel", HEADS_IN),
    ("audio_tower.layers.{}.self_attn.out_proj.bias", "blocks/o/bias", SAME),
    ("audio_tower.layers.{}.final_layer_norm.weight", "blocks/mlp_norm/scale", SAME),
    ("audio_tower.layers.{}.final_layer_norm.bias", "blocks/mlp_norm/bias", SAME),
    ("audio_tower.layers.{}.fc1.weight", "blocks/fc1/kernel", TRANSPOSED),
    ("audio_tower.layers.{}.fc1.bias", "blocks/fc1/bias", SAME),
    ("audio_tower.layers.{}.fc2.weight", "blocks/fc2/kernel", TRANSPOSED),
    ("audio_tower.layers.{}.fc2.bias", "blocks/fc2/bias", SAME),
    ("audio_tower.ln_post.weight", "post_norm/scale", SAME),
    ("audio_tower.ln_post.bias", "post_norm/bias", SAME),
    ("audio_tower.proj.weight", "proj/kernel", TRANSPOSED),
    ("audio_tower.proj.bias", "proj/bias", SAME),
)


def leaves(config: ThinkerConfig) -> list[Leaf]:
    """The table for `hf_checkpoint.load_params` and `save_params`: 1,346 tensors at 7B."""
    parts = (
        ("text", _TEXT, config.text.num_layers),
        ("vision", _VISION, config.vision.depth),
        ("audio", _AUDIO, config.audio.num_layers),
    )
    return [
        leaf
        for part, table, depth in parts
        for name, path, layout in table
        if name != HEAD or not config.text.tie_word_embeddings
        for leaf in _layers(name, (part, *path.split("/")), layout, depth)
    ]


def linear_layers() -> dict[str, str]:
    """Modules on disk of a block's linear layers, with {} for the block, by their names in `models.lora`."""
    kernels = {path.split("/")[1]: name for name, path, _ in _TEXT if path.startswith("layers/")}
    return {layer: kernels[layer].rpartition(".")[0] for layer in lora.INPUT_AXES}


def _layers(name: str, path: tuple[str, ...], layout: Layout, depth: int) -> Iterator[Leaf]:
    if "{}" not in name:
        yield Leaf(name, path, None, layout)
        return
    for layer in range(depth):
        yield Leaf(name.format(layer), path, layer, layout)
