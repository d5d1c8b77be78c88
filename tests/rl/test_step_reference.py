"""The whole of learning against torch and transformers, written the usual way: G copies of the prompt, loops, AdamW.

Sound, a picture and text in the prompts (RefAVS); only the sampled tokens and the rewards come from the step itself.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from omnir1_jax.config.sections import Grpo, Lora
from omnir1_jax.data.preprocess import tokens
from omnir1_jax.models import qwen_omni
from omnir1_jax.models.lora import init as init_adapter
from omnir1_jax.models.qwen_omni import weights
from omnir1_jax.rl import learn, step
from omnir1_jax.rl.config import Models
from omnir1_jax.tasks import refavs
from tests.models import thinker_oracle
from tests.rl import small

MEAN, STD = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
RATE, DECAY, CLIP, BETA = 1e-2, 0.1, 0.5, 0.3
EPSILON = 1e-3  # large, or the first step of Adam would only look at the gradient's sign
BOXES = ['[{"bbox_2d": [10, 10, 60, 50]}]', '{"bbox_2d": [5, 0, 70, 55]}', "nothing", '{"bbox_2d": [30, 20, 50, 40]}']


@pytest.fixture(scope="module")
def torch_models(tmp_path_factory):
    """A policy and a reference whose weights differ, and ours read from their files."""
    ids = tokens.token_ids(small.tokenizer())
    sizes = thinker_oracle.Sizes(
        vocab=len(small.tokenizer()), vision_depth=2, vision_ffn=48, full_blocks=(1,), mel_bins=16,
        audio_heads=2, audio_ffn=32, audio_layers=1,
    )  # fmt: skip
    made = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(thinker_oracle, "IDS", ids)
        for seed in (0, 1):
            model = thinker_oracle.reference(sizes, seed=seed)
            if made:  # the encoders are shared
                model.model.visual.load_state_dict(made[0][0].model.visual.state_dict())
                model.model.audio_tower.load_state_dict(made[0][0].model.audio_tower.state_dict())
            path = tmp_path_factory.mktemp(f"model{seed}")
            model.save_pretrained(path)
            made.append((model, *qwen_omni.load(path)))
    return made


def torch_inputs(batch):
    """The prompts as the processor would hand them over, from the cells and mel chunks of ours."""
    policy = jax.tree.map(np.asarray, batch.policy)
    pixels, grids = [], []
    for row in range(len(policy.tokens)):
        used = policy.vision_index[row].max() + 1
        cells = policy.vision.pixels[row, :used].reshape(used, 2, 2, 14, 2, 14, 3)
        values = (cells / 255 - MEAN) / STD
        pixels.append(values.transpose(0, 2, 4, 6, 1, 3, 5).reshape(used * 4, -1))
        rows, columns = policy.vision.rows_cols[row, :used].max(axis=0) + 1
        grids.append([1, 2 * rows, 2 * columns])
    lengths = policy.audio.lengths.sum(axis=1)
    mels = np.zeros((len(lengths), policy.audio.mel.shape[-1], lengths.max()))
    for row, n in enumerate(lengths):
        mels[row, :, :n] = policy.audio.mel[row].reshape(-1, mels.shape[1])[:n].T
    return {
        "pixel_values": torch.tensor(np.concatenate(pixels), dtype=torch.float32),
        "image_grid_thw": torch.tensor(grids),
        "input_features": torch.tensor(mels, dtype=torch.float32),
        "feature_attention_mask": torch.tensor(np.arange(lengths.max()) < lengths[:, None]).long(),
    }


def torch_logprobs(model, batch, completions, grad):
    """Log-probs of every completion from a forward pass over prompt and completion, one completion at a time."""
    media = torch_inputs(batch)
    prompt, mask = np.asarray(batch.policy.tokens), np.asarray(batch.policy.mask)
    patches = media["image_grid_thw"].prod(dim=1).cumsum(0).tolist()
    out = {}
    with torch.set_grad_enabled(grad):
        for b, g in np.ndindex(completions.lengths.shape):
            n = int(completions.lengths[b, g])
            own = np.asarray(completions.tokens[b, g, :n])
            line = torch.tensor(np.concatenate([prompt[b][mask[b]], own]))[None].long()
            start = 0 if b == 0 else patches[b - 1]
            logits = model(
                input_ids=line,
                attention_mask=torch.ones_like(line),
                pixel_values=media["pixel_values"][start : patches[b]],
                image_grid_thw=media["image_grid_thw"][b : b + 1],
                input_features=media["input_features"][b : b + 1],
                feature_attention_mask=media["feature_attention_mask"][b : b + 1],
            ).logits[0, -n - 1 : -1]
            out[b, g] = torch.log_softmax(logits, dim=-1)[torch.arange(n), torch.tensor(own).long()]
    return out


def test_loss_gradient_and_new_weights_equal_torch(torch_models, monkeypatch):
    (policy_torch, thinker, policy), (reference_torch, _, reference) = torch_models
    batch = small.batches("refavs", 2)[0]
    config = small.step_config(grpo=Grpo(beta=BETA))
    optimizer = optax.chain(optax.clip_by_global_norm(CLIP), optax.adamw(RATE, eps=EPSILON, weight_decay=DECAY))
    frozen = small.frozen({**policy, "text": reference["text"]})
    state = learn.init(jax.tree.map(jnp.copy, policy["text"]), optimizer)
    # Random weights earn next to nothing, so a made-up function of the length is rewarded instead.
    real = step.learn.learn

    def with_rewards(*args):
        *most, _ = args
        lengths = args[7].lengths.astype(jnp.float32)
        return real(*most, jnp.sin(7.0 * lengths + jnp.arange(small.GROUP)))

    monkeypatch.setattr(step.learn, "learn", with_rewards)
    train_step = step.make_train_step(
        refavs.TASK, Models(thinker, None, small.Scripted(BOXES)), optimizer, config, "staged"
    )
    state, metrics, rollout = train_step(state, frozen, batch, jax.random.key(11))
    completions = rollout.completions
    rewards = np.sin(7.0 * np.asarray(completions.lengths, np.float32) + np.arange(small.GROUP))

    mine = torch_logprobs(policy_torch, batch, completions, True)
    base = torch_logprobs(reference_torch, batch, completions, False)
    for (b, g), logprobs in mine.items():  # the sampler saw the same
        got = np.asarray(completions.logprobs[b, g, : len(logprobs)])
        np.testing.assert_allclose(got, logprobs.detach().numpy(), atol=1e-4)
    advantage = (rewards - rewards.mean(1, keepdims=True)) / (rewards.std(1, ddof=1, keepdims=True) + 1e-4)
    losses, kls = [], []
    for (b, g), logprobs in mine.items():
        ahead = base[b, g] - logprobs
        kl = torch.exp(ahead) - ahead - 1
        ratio = torch.exp(logprobs - logprobs.detach())
        losses.append(-(ratio * float(advantage[b, g]) - BETA * kl).mean())
        kls.append(kl.detach())
    loss = torch.stack(losses).mean()
    assert float(metrics["learn/loss"]) == pytest.approx(loss.item(), rel=1e-3)
    assert float(metrics["learn/kl"]) == pytest.approx(torch.cat(kls).mean().item(), rel=1e-3)

    names = {leaf.name: leaf for leaf in weights.leaves(thinker.config) if leaf.path[0] == "text"}
    own = lambda name: name if name.startswith("lm_head") else name.replace("model.language_model.", "model.", 1)
    trained = {own(name): p for name, p in policy_torch.named_parameters() if own(name) in names}
    assert trained.keys() == names.keys()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(trained.values(), CLIP)
    assert float(metrics["learn/grad_norm"]) == pytest.approx(norm.item(), rel=1e-3)
    assert norm > CLIP  # the clipping bites
    before = {name: p.detach().clone() for name, p in trained.items()}
    torch.optim.AdamW(trained.values(), lr=RATE, eps=EPSILON, weight_decay=DECAY).step()

    moved, wanted = [], []
    for name, leaf in names.items():
        value = state.trainable
        for key in leaf.path[1:]:
            value = value[key]
        value = np.asarray(value if leaf.layer is None else value[leaf.layer])
        new = leaf.layout.to_torch(value)
        np.testing.assert_allclose(new, trained[name].detach().numpy(), rtol=1e-3, atol=1e-3 * RATE + 1e-5)
        moved.append((new - before[name].numpy()).ravel())
        wanted.append((trained[name] - before[name]).detach().numpy().ravel())
    moved, wanted = np.concatenate(moved), np.concatenate(wanted)
    assert np.linalg.norm(moved - wanted) < 1e-3 * np.linalg.norm(wanted)


def test_an_adapter_learns_and_leaves_the_base():
    lora = Lora(rank=2, alpha=4.0, layers=("q", "v", "down"))
    config = dataclasses.replace(small.step_config(), lora=lora)
    frozen = small.frozen()
    adapter = init_adapter(jax.random.key(1), frozen.reference, lora)
    train_step = step.make_train_step(
        refavs.TASK, Models(small.models().thinker, None, small.Scripted(BOXES)), small.optimizer(), config, "staged"
    )
    batch = small.batches("refavs", 2)[0]
    state = small.state(adapter)
    state, metrics, _ = train_step(state, frozen, batch, jax.random.key(0))
    assert metrics["learn/kl"] == pytest.approx(0, abs=1e-6)  # a fresh adapter is the reference
    state, metrics, _ = train_step(state, frozen, batch, jax.random.key(0))
    assert state.trainable.keys() == adapter.keys() and metrics["learn/skipped"] == 0
