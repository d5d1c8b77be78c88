"""The usual implementation of a GRPO step: PyTorch, transformers' models and warpers, SAM 2's session.

It encodes a clip once for the group, applies the head only where logits are needed, and attends causally without
padding: all rows of a batch have one length here. Prompts are read in every row of the group, as in `generate` and in a
trainer's forward pass over prompt and completion; System 2 answers all requests in one batch.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from transformers import DynamicCache, PreTrainedTokenizerBase
from transformers.generation import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from omnir1_jax.benches import usual_pipeline
from omnir1_jax.config.sections import Grpo, Optimizer
from omnir1_jax.models.qwen_omni.sample import Sampling
from omnir1_jax.tasks.examples import ExampleConfig

MICRO_TOKENS = 2048  # of a forward and backward pass; more are slower on a CPU, whose caches are small


class Usual(NamedTuple):
    """The policy, System 2 and reference in one (both are the model before training), SAM 2 and the optimizer."""

    policy: Any
    frozen: Any
    sam2: Any
    optimizer: torch.optim.Optimizer
    tokenizer: PreTrainedTokenizerBase
    example: ExampleConfig


class Prompts(NamedTuple):
    """Prompts of one length, with the features of their media."""

    ids: Int[torch.Tensor, "n p"]
    features: Float[torch.Tensor, "m d"]
    is_media: Bool[torch.Tensor, "n p"]
    positions: Int[torch.Tensor, "3 n p"]
    next_positions: Int[torch.Tensor, "n 1"]


def load(
    thinker: str, sam2: str, tokenizer: PreTrainedTokenizerBase, example: ExampleConfig, optimizer: Optimizer
) -> Usual:
    """All models in float32; matrices decay, as in `build.optimizer`."""
    policy = usual_pipeline.load_thinker(thinker)
    frozen = copy.deepcopy(policy).requires_grad_(False)
    policy.model.visual.requires_grad_(False)
    policy.model.audio_tower.requires_grad_(False)
    trained = [p for p in policy.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": optimizer.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    rule = torch.optim.AdamW(groups, optimizer.learning_rate, (optimizer.b1, optimizer.b2), optimizer.eps)
    return Usual(policy, frozen, usual_pipeline.load_sam2(sam2), rule, tokenizer, example)


@torch.no_grad()
def encode_prompts(
    usual: Usual, texts: Sequence[str], media: Sequence[UInt8[np.ndarray, "t y x 3"]], kind: str
) -> Prompts:
    """Tokenizes the texts, and runs the encoder on their media ("video" or "image")."""
    model, sizes = usual.frozen, usual.example.sizes
    patched = [usual_pipeline.patches(frames, sizes.cell_pixels // sizes.merge, sizes.merge) for frames in media]
    values = torch.from_numpy(np.concatenate([values for values, _ in patched]))
    grids = torch.tensor([grid for _, grid in patched])
    ids = usual.tokenizer(list(texts), return_tensors="pt", add_special_tokens=False).input_ids
    if kind == "video":
        features, token = model.get_video_features(values, grids), model.config.video_token_id
        seconds = torch.ones(len(texts))
        positions, delta = model.get_rope_index(
            ids, video_grid_thw=grids, attention_mask=torch.ones_like(ids), second_per_grids=seconds
        )
    else:
        features, token = model.get_image_features(values, grids), model.config.image_token_id
        positions, delta = model.get_rope_index(ids, image_grid_thw=grids, attention_mask=torch.ones_like(ids))
    next_positions = ids.shape[1] + delta.reshape(-1, 1).long()
    return Prompts(ids, torch.cat(tuple(features.pooler_output)), ids == token, positions.long(), next_positions)


def repeated(prompts: Prompts, group: int) -> Prompts:
    """Each prompt `group` times, its features copied."""
    ids, is_media, next_positions = (
        x.repeat_interleave(group, 0) for x in (prompts.ids, prompts.is_media, prompts.next_positions)
    )
    rows = prompts.features.reshape(len(prompts.ids), -1, prompts.features.shape[-1])
    features = rows.repeat_interleave(group, 0).flatten(0, 1)
    return Prompts(ids, features, is_media, prompts.positions.repeat_interleave(group, 1), next_positions)


def embedded(model: Any, prompts: Prompts) -> Float[torch.Tensor, "n p d"]:
    x = model.model.language_model.embed_tokens(prompts.ids)
    return x.masked_scatter(prompts.is_media[..., None], prompts.features)


@torch.no_grad()
def generate(
    model: Any, prompts: Prompts, count: int, choose: Callable[[Float[torch.Tensor, "n v"]], Int[torch.Tensor, " n"]]
) -> Int[torch.Tensor, "n count"]:
    """`count` tokens per prompt: only the loop of `generate` with its cache."""
    text, cache, tokens = model.model.language_model, DynamicCache(), []
    inputs = dict(inputs_embeds=embedded(model, prompts), position_ids=prompts.positions)
    for n in range(count):
        states = text(**inputs, past_key_values=cache, use_cache=True).last_hidden_state
        tokens.append(choose(model.lm_head(states[:, -1])))
        position_ids = (prompts.next_positions + n).expand(3, -1, -1)
        inputs = dict(input_ids=tokens[-1][:, None], position_ids=position_ids)
    return torch.stack(tokens, 1)


def greedy(logits: Float[torch.Tensor, "n v"]) -> Int[torch.Tensor, " n"]:
    return logits.argmax(-1)


def sampler(sampling: Sampling) -> Callable[[Float[torch.Tensor, "n v"]], Int[torch.Tensor, " n"]]:
    """Draws with transformers' warpers."""
    warp = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
    if sampling.top_k:
        warp.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warp.append(TopPLogitsWarper(sampling.top_p))
    return lambda logits: torch.multinomial(warp(None, logits).softmax(-1), 1)[:, 0]


def logprobs(
    model: Any, prompts: Prompts, tokens: Int[torch.Tensor, "n c"], temperature: float
) -> Float[torch.Tensor, "n c"]:
    """Log-probs of the tokens after their prompts; the head is applied to the completions only."""
    text, count = model.model.language_model, tokens.shape[1]
    x = torch.cat([embedded(model, prompts), text.embed_tokens(tokens)], 1)
    completion_positions = (prompts.next_positions + torch.arange(count)).expand(3, -1, -1)
    positions = torch.cat([prompts.positions, completion_positions], 2)
    states = text(inputs_embeds=x, position_ids=positions, use_cache=False).last_hidden_state
    logits = model.lm_head(states[:, prompts.ids.shape[1] - 1 : -1]) / temperature
    return -torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none").view_as(tokens)


def learn(
    usual: Usual,
    prompts: Prompts,
    tokens: Int[torch.Tensor, "n c"],
    rewards: Float[np.ndarray, "b g"],
    sampling: Sampling,
    grpo: Grpo,
    clip_norm: float,
) -> tuple[float, float]:
    """One update in micro-batches: log-probs of reference and policy, the clipped loss, AdamW. Loss and gradient norm.

    Args:
      prompts: one per completion.
    """
    r = torch.from_numpy(rewards)
    advantage = ((r - r.mean(1, keepdim=True)) / (r.std(1, keepdim=True) + 1e-4)).flatten()
    usual.optimizer.zero_grad()
    rows, total = len(tokens), 0.0
    size = max(1, MICRO_TOKENS // (prompts.ids.shape[1] + tokens.shape[1]))
    features = prompts.features.reshape(rows, -1, prompts.features.shape[-1])
    for part in torch.arange(rows).split(size):
        micro_batch = Prompts(
            prompts.ids[part], features[part].flatten(0, 1), prompts.is_media[part], prompts.positions[:, part],
            prompts.next_positions[part],
        )  # fmt: skip
        with torch.no_grad():
            reference = logprobs(usual.frozen, micro_batch, tokens[part], sampling.temperature)
        current = logprobs(usual.policy, micro_batch, tokens[part], sampling.temperature)
        ratio = (current - current.detach()).exp()
        advantages, log_ratio = advantage[part, None], reference - current
        clipped_ratio = ratio.clamp(1 - grpo.clip_low, 1 + grpo.clip_high)
        kl = log_ratio.exp() - log_ratio - 1
        loss = (grpo.beta * kl - torch.minimum(ratio * advantages, clipped_ratio * advantages)).mean(1).sum() / rows
        loss.backward()
        total += loss.item()
    trained = [p for group in usual.optimizer.param_groups for p in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(trained, clip_norm or float("inf"))
    usual.optimizer.step()
    return total, norm.item()


@torch.inference_mode()
def segment(
    usual: Usual, frames: UInt8[np.ndarray, "t side side 3"], objects: Sequence[Mapping[int, Any]]
) -> Bool[np.ndarray, "o t y x"]:
    """Masks of objects boxed on some frames, at the decoder's resolution."""
    out: dict[tuple[int, int], np.ndarray] = {}
    for n, frame, logits in usual_pipeline.follow(usual.sam2, frames, objects):
        out[n, frame] = logits[0, 0].numpy() > 0
    return np.stack([np.stack([out[n, t] for t in range(len(frames))]) for n in range(len(objects))])
