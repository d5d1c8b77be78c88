"""The reference language model on random weights, and the same weights as a tree for the decoder."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers import Qwen2_5OmniThinkerConfig, Qwen2_5OmniThinkerForConditionalGeneration

from omnir1_jax.models.qwen_omni.config import TextConfig

torch.set_num_threads(1)


def text_config(heads=4, kv_heads=2, section=(2, 3, 3), *, vocab=128, hidden=48, ffn=80, layers=2, tied=False):
    return TextConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=2 * sum(section),
        rope_theta=1e6,
        mrope_section=section,
        tie_word_embeddings=tied,
    )


def reference(config: TextConfig, seed: int) -> Qwen2_5OmniThinkerForConditionalGeneration:
    """The reference thinker with that text model; norms, biases and all else random."""
    hf = Qwen2_5OmniThinkerConfig(
        text_config=dict(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            max_position_embeddings=4096,
            rms_norm_eps=config.rms_norm_eps,
            rope_parameters=dict(
                rope_type="default", rope_theta=config.rope_theta, mrope_section=list(config.mrope_section)
            ),
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        ),
        vision_config=dict(depth=1, hidden_size=32, intermediate_size=32, num_heads=2, out_hidden_size=48),
        audio_config=dict(
            num_mel_bins=8, d_model=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=16, output_dim=48
        ),
        audio_token_index=config.vocab_size - 1,
        image_token_index=config.vocab_size - 2,
        video_token_index=config.vocab_size - 3,
        audio_start_token_id=config.vocab_size - 4,
        audio_end_token_id=config.vocab_size - 5,
        vision_start_token_id=config.vocab_size - 6,
        vision_end_token_id=config.vocab_size - 7,
        tie_word_embeddings=config.tie_word_embeddings,
    )
    hf._attn_implementation = "eager"
    model = Qwen2_5OmniThinkerForConditionalGeneration(hf).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.copy_(1 + 0.3 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.3 * noise)
            elif "embed_tokens" in name:
                parameter.copy_(noise)
            else:
                parameter.copy_(noise / parameter.shape[-1] ** 0.5)
    return model


def params_of(model, config: TextConfig) -> dict:
    """The weights as the decoder's parameters, float32."""
    return jax.tree.map(jnp.asarray, _tree({k: v.detach() for k, v in model.named_parameters()}, config))


def gradients_of(model, config: TextConfig) -> dict:
    """The accumulated gradients in the shape of the decoder's parameters."""
    return _tree({k: v.grad for k, v in model.named_parameters() if v.grad is not None}, config)


def _tree(named, config: TextConfig) -> dict:
    h, k, d, e = config.num_heads, config.num_kv_heads, config.head_dim, config.hidden_size

    def layers(suffix, *shape):
        """Weights of all layers, transposed to [in, out] and split into `shape`."""
        weights = [named[f"model.language_model.layers.{i}.{suffix}"].numpy().T for i in range(config.num_layers)]
        return np.stack(weights).reshape(config.num_layers, *shape)

    tree = {
        "embed": {"embedding": named["model.language_model.embed_tokens.weight"].numpy()},
        "norm": {"scale": named["model.language_model.norm.weight"].numpy()},
        "layers": {
            "attention_norm": {"scale": layers("input_layernorm.weight", e)},
            "mlp_norm": {"scale": layers("post_attention_layernorm.weight", e)},
            "q": {"kernel": layers("self_attn.q_proj.weight", e, h, d), "bias": layers("self_attn.q_proj.bias", h, d)},
            "k": {"kernel": layers("self_attn.k_proj.weight", e, k, d), "bias": layers("self_attn.k_proj.bias", k, d)},
            "v": {"kernel": layers("self_attn.v_proj.weight", e, k, d), "bias": layers("self_attn.v_proj.bias", k, d)},
            "o": {"kernel": layers("self_attn.o_proj.weight", h, d, e)},
            "gate": {"kernel": layers("mlp.gate_proj.weight", e, config.intermediate_size)},
            "up": {"kernel": layers("mlp.up_proj.weight", e, config.intermediate_size)},
            "down": {"kernel": layers("mlp.down_proj.weight", config.intermediate_size, e)},
        },
    }
    if not config.tie_word_embeddings:
        tree["head"] = {"kernel": named["lm_head.weight"].numpy().T}
    return tree


def text_positions(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions [b, 3, s] and next position [b] of plain text, as the reference counts them."""
    positions = np.where(mask, np.cumsum(mask, axis=1) - 1, 1)
    return np.repeat(positions[:, None], 3, axis=1).astype(np.int32), mask.sum(1).astype(np.int32)


def relative(got, want) -> float:
    """Largest difference over the largest magnitude."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    return float(np.abs(got - want).max() / np.abs(want).max())
