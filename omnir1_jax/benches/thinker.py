"""The thinker's language model against transformers on this CPU: prefill, decoding, rollout, scoring, learning.

Both sides hold the same random weights in float32, written by transformers and read by `load`; their numbers are
asserted equal before anything is timed. Transformers' side is the usual way for a group of completions: `generate`
with `num_return_sequences`, then a forward (and backward) pass over each prompt with its completion. PyTorch runs with
one thread and with one per core, and the better time counts.
"""

import functools
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from omnir1_jax.benches.timing import fewest_seconds, median_seconds
from omnir1_jax.models.qwen_omni import load
from omnir1_jax.models.qwen_omni.cache import Prompt
from omnir1_jax.models.qwen_omni.sample import Sampling, generate
from omnir1_jax.models.qwen_omni.score import score

# prompt tokens, group, completion tokens, hidden, ffn, layers, heads, key heads, vocabulary
FULL = (512, 8, 64, 768, 2048, 10, 12, 2, 16384)
QUICK = (64, 4, 8, 128, 256, 2, 4, 2, 512)


def run(quick: bool) -> dict:
    """Milliseconds of both sides and how many times faster this package is; see the module."""
    prompt, group, length, *sizes = QUICK if quick else FULL
    repeats = 2 if quick else 3
    with tempfile.TemporaryDirectory() as directory:
        reference = _reference(*sizes)
        reference.save_pretrained(directory)
        thinker, params = load(directory)
    decoder, variables = thinker.decoder(), {"params": params["text"]}
    rng = np.random.default_rng(0)
    tokens = rng.integers(8, 400, (1, prompt))
    completions = rng.integers(8, 400, (1, group, length))

    ours = _ours(decoder, variables, jnp.asarray(tokens), jnp.asarray(completions))
    theirs = _theirs(reference, tokens, completions)
    _same(ours, theirs)

    parameters = sum(x.size for x in jax.tree.leaves(params["text"]))
    figures = {"million_parameters": parameters / 1e6, "prompt": prompt, "group": group, "completion": length}
    for name in ("prefill", "rollout", "score", "learn"):
        figures |= _compare(name, _median(ours[name], repeats), _best(theirs[name], repeats))
    cache = ours["prefill"]()
    theirs["stamps"].clear()
    theirs["rollout"]()
    first, *_, last = theirs["stamps"]
    per_step = _median(lambda: ours["decode"](cache), repeats) / (length - 1)
    figures |= _compare("decode_step", per_step, (last - first) / (length - 1))
    return figures


def _compare(name: str, ours: float, theirs: float) -> dict:
    return {f"{name}_ms": ours * 1e3, f"{name}_transformers_ms": theirs * 1e3, f"{name}_times_faster": theirs / ours}


def _median(function: Callable, repeats: int) -> float:
    ready = lambda: jax.block_until_ready(function())
    ready()  # compiled, and warm
    return median_seconds([ready], repeats)[0]


def _best(function: Callable, repeats: int) -> float:
    fewest_seconds(function, repeats)
    return _median(function, repeats)


def _reference(hidden, ffn, layers, heads, key_heads, vocabulary):
    """transformers' thinker with the smallest possible encoders; norms and biases are random too."""
    import torch
    from transformers import Qwen2_5OmniThinkerConfig, Qwen2_5OmniThinkerForConditionalGeneration

    half = hidden // heads // 2
    media = dict(zip(("audio_token_index", "image_token_index", "video_token_index"), range(1, 4)))
    edges = ("audio_start_token_id", "audio_end_token_id", "vision_start_token_id", "vision_end_token_id")
    config = Qwen2_5OmniThinkerConfig(
        text_config=dict(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=ffn,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=key_heads,
            max_position_embeddings=4096,
            rope_parameters=dict(
                rope_type="default", rope_theta=1e6, mrope_section=[half - 2 * (half // 3), half // 3, half // 3]
            ),
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=0,
        ),
        vision_config=dict(
            depth=1, hidden_size=32, intermediate_size=32, num_heads=2, out_hidden_size=hidden,
            fullatt_block_indexes=[0],
        ),
        audio_config=dict(
            num_mel_bins=8, d_model=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=16,
            output_dim=hidden, n_window=10, max_source_positions=40,
        ),
        tie_word_embeddings=False,
        **media,
        **dict(zip(edges, range(4, 8))),
    )  # fmt: skip
    model = Qwen2_5OmniThinkerForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 1.0 if "embed_tokens" in name else parameter.shape[-1] ** -0.5
            parameter.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, scale)
    return model


def _ours(decoder, variables, tokens, completions) -> dict[str, Callable]:
    rows, length = tokens.shape
    _, group, count = completions.shape
    key, lengths = jax.random.key(0), jnp.full((rows, group), count)
    positions = jnp.broadcast_to(jnp.arange(length), (rows, 3, length))

    def prompt_of(variables):
        embeddings = decoder.apply(variables, tokens, method="embed")
        return Prompt(embeddings, positions, jnp.ones((rows, length), bool), jnp.full(rows, length))

    @jax.jit
    def prefill(variables):
        cache = decoder.apply(variables, prompt_of(variables), method="prefill")
        return cache, decoder.apply(variables, cache.last, method="logits")

    @functools.partial(jax.jit, static_argnames="temperature")
    def decode(variables, cache, temperature=1.0):
        return generate(decoder, variables, cache, key, Sampling(count, (), 0, temperature), group=group)

    @jax.jit
    def scored(variables):
        return score(decoder, variables, prompt_of(variables), completions, lengths).logprobs

    learn = jax.jit(jax.value_and_grad(lambda variables: scored(variables).sum()))
    return {
        "prefill": lambda: prefill(variables),
        "decode": lambda prefilled: decode(variables, prefilled[0]),
        "rollout": lambda: decode(variables, prefill(variables)[0]),
        "greedy": lambda: decode(variables, prefill(variables)[0], temperature=0.0),
        "score": lambda: scored(variables),
        "learn": lambda: learn(variables),
    }


def _theirs(model, tokens, completions) -> dict[str, Any]:
    import torch

    ids = torch.tensor(tokens)
    _, group, count = completions.shape
    sequences = torch.cat([ids.repeat(group, 1), torch.tensor(completions[0])], 1)

    def prefill():
        with torch.no_grad():
            out = model(input_ids=ids, use_cache=True, logits_to_keep=1)
        return out.logits[:, -1]

    stamps = []  # the time of each token of a rollout

    def stamp(tokens, scores, **_):
        stamps.append(time.perf_counter())
        return torch.zeros(len(tokens), dtype=torch.bool)

    def rollout():
        options = dict(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, stopping_criteria=[stamp])
        with torch.no_grad():
            return model.generate(input_ids=ids, max_new_tokens=count, num_return_sequences=group, **options)

    def logprobs():
        out = model.model.language_model(input_ids=sequences, use_cache=False).last_hidden_state
        logits = model.lm_head(out[:, ids.shape[1] - 1 : -1])
        return logits.log_softmax(-1).gather(-1, sequences[:, ids.shape[1] :, None])[..., 0]

    def scored():
        with torch.no_grad():
            return logprobs()

    def learn():
        model.zero_grad()
        total = logprobs().sum()
        total.backward()
        return total.item()

    return {
        "prefill": prefill,
        "rollout": rollout,
        "stamps": stamps,
        "greedy": lambda: _greedy(model, ids, count),
        "score": scored,
        "learn": learn,
    }


def _greedy(model, ids, count):
    import torch

    with torch.no_grad():
        return model.generate(input_ids=ids, max_new_tokens=count, do_sample=False)[:, ids.shape[1] :]


def _same(ours: dict[str, Callable], theirs: dict[str, Any]) -> None:
    """Asserts that both sides compute the same."""
    np.testing.assert_allclose(ours["prefill"]()[1], theirs["prefill"]().numpy(), atol=2e-3)
    np.testing.assert_allclose(ours["score"]()[0], theirs["score"]().numpy(), atol=2e-3)
    greedy = ours["greedy"]().tokens[0]
    np.testing.assert_array_equal(greedy[0], theirs["greedy"]().numpy()[0])
    np.testing.assert_array_equal(greedy[-1], greedy[0])
