"""The supervised step: its loss is plain cross entropy, and it goes down."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omnir1_jax.config.sections import Lora
from omnir1_jax.data.preprocess.tokens import load_tokenizer
from omnir1_jax.errors import InputError
from omnir1_jax.models import lora
from omnir1_jax.models.qwen_omni import pretrained
from omnir1_jax.models.qwen_omni.inputs import ThinkerInputs
from omnir1_jax.models.qwen_omni.sample import Sampling, Suffixes, generate
from omnir1_jax.rl import learn
from omnir1_jax.supervised import text
from omnir1_jax.toy import sight
from tests.rewards import reward_oracle
from tests.rl import small
from tests.supervised import test_targets as small_lessons
from tests.text import host

WEIGHTS = pathlib.Path(__file__).parents[2] / "configs" / "toy_weights" / "thinker"
LORA = Lora(4, 8.0, ("*",))


@functools.cache
def batch(task="vos"):
    """Two prompts with three targets each, one of them empty, of many lengths and weights."""
    rng = np.random.default_rng(3)
    lengths = np.array([[7, 12, 1], [5, 0, 9]], np.int32)
    weights = rng.uniform(0, 2, (2, 3, 12)) * (rng.random((2, 3, 12)) < 0.7)
    drawn = rng.integers(0, len(small.tokenizer()), (2, 3, 12))
    policy = small.batches("refavs", 2)[0].policy
    as_jax = lambda x, kind: jnp.asarray(x, kind)
    return text.Batch(
        policy, as_jax(drawn, jnp.int32), as_jax(lengths, jnp.int32), as_jax(weights, jnp.float32), task=task
    )


@jax.jit
def logits_of(params, inputs):
    return small.models().thinker.apply({"params": params}, inputs, method="logits")


def plain(params, made):
    """(weighted mean cross entropy, weighted accuracy), each target in a row of its own behind its prompt."""
    total = hits = mass = 0.0
    p, c = made.policy, made.tokens.shape[2]
    for g in range(made.tokens.shape[1]):
        behind = lambda x, value: jnp.concatenate([x, jnp.broadcast_to(value, (*x.shape[:-1], c)).astype(x.dtype)], -1)
        inputs = ThinkerInputs(
            tokens=jnp.concatenate([p.tokens, made.tokens[:, g]], 1),
            mask=jnp.concatenate([p.mask, jnp.arange(c) < made.lengths[:, g, None]], 1),
            positions=behind(p.positions, p.next_position[:, None, None] + jnp.arange(c)),
            next_position=p.next_position,
            vision_index=behind(p.vision_index, -1),
            audio_index=behind(p.audio_index, -1),
            vision=p.vision,
            audio=p.audio,
        )
        logits = np.asarray(logits_of(params, inputs), np.float64)[:, p.tokens.shape[1] - 1 :]
        for b in range(len(logits)):
            assert bool(p.mask[b, -1]), "prompts are padded on the left"
            for i in range(int(made.lengths[b, g])):
                row, token, weight = logits[b, i], int(made.tokens[b, g, i]), float(made.weights[b, g, i])
                total += weight * (np.log(np.exp(row - row.max()).sum()) + row.max() - row[token])
                hits += weight * (row.argmax() == token)
                mass += weight
    return total / mass, hits / mass


def test_loss_is_plain_cross_entropy_by_weight():
    made, params = batch(), small.thinker_params()
    # Some tokens that the model itself would say, so that the accuracy is not 0.
    thinker = small.models().thinker
    said = logits_of(params, made.policy)[:, -1].argmax(-1)
    made = made.replace(
        tokens=made.tokens.at[:, 0, 0].set(said), weights=made.weights.at[:, 0, 0].set(jnp.asarray([1.5, 0.5]))
    )
    loss, accuracy = plain(params, made)
    assert 0 < accuracy < 0.5
    frozen = small.frozen()
    for config, trainable in (
        (text.SftConfig(True, None, 256), params),
        (text.SftConfig(False, None, 7), params["text"]),
    ):
        found = jax.jit(functools.partial(text.loss, thinker, config))(trainable, frozen, made)
        np.testing.assert_allclose(np.asarray(found), (loss, accuracy), rtol=2e-5)


@pytest.mark.parametrize("kind", ["decoder", "encoders", "lora"])
def test_steps_reduce_the_loss_and_train_what_they_should(kind):
    config = text.SftConfig(kind == "encoders", LORA if kind == "lora" else None, 256)
    frozen, params = small.frozen(), small.thinker_params()
    trainable = {"decoder": params["text"], "encoders": params}.get(kind)
    if kind == "lora":
        trainable = lora.init(jax.random.key(0), params["text"], LORA)
    rule = small.optimizer(3e-3)
    state, before = small.state(trainable, rule), jax.tree.map(np.asarray, trainable)
    step, losses = text.make_sft_step(small.models(), rule, config), []
    for _ in range(8):
        state, metrics, rollout = step(state, frozen, batch(), jax.random.key(0))
        losses.append(float(metrics["sft/loss"]))
    assert rollout is None and losses[-1] < losses[0] - 0.5, losses
    assert metrics["sft/loss/vos"] == metrics["sft/loss"] and metrics["sft/accuracy/vos"] == metrics["sft/accuracy"]
    assert int(state.step) == 8 and float(metrics["learn/skipped"]) == 0 and step._cache_size() == 1
    moved = jax.tree.map(lambda a, b: bool(np.any(np.asarray(a) != b)), state.trainable, before)
    if kind == "encoders":
        assert all(jax.tree.leaves(moved["vision"])) and moved["audio"]["conv1"]["kernel"]
    if kind == "decoder":
        # The same tree as in GRPO: a run there can go on from this state.
        assert jax.tree.structure(state) == jax.tree.structure(learn.init(params["text"], rule))

    poor = batch().replace(weights=batch().weights.at[0, 0, 0].set(jnp.nan))
    kept = jax.tree.map(np.asarray, (state.trainable, state.opt_state))
    state, metrics, _ = step(state, frozen, poor, jax.random.key(0))
    assert float(metrics["learn/skipped"]) == 1 and int(state.step) == 9
    jax.tree.map(np.testing.assert_array_equal, (state.trainable, state.opt_state), kept)


def test_the_toy_s_cold_start_grounds():
    """The shipped weights on frames of clips that they were not trained on, as System 2 is asked."""
    model, params = pretrained.load(WEIGHTS)
    words = load_tokenizer(WEIGHTS)
    asked = functools.partial(sight.grounding, config=small_lessons.config("vos", 4, 26, words))
    clips = small_lessons.decoded("vos", 12, lessons=True, split="valid")
    arrays = [asked(clip) for clip in clips]
    made = text.to_batch("grounding", {key: jnp.asarray(np.stack([a[key] for a in arrays])) for key in arrays[0]})
    questions = (made.weights == 0) & (jnp.arange(26) < made.lengths[..., None])
    ids = model.config.tokens
    settings = Sampling(16, ids.eos, ids.pad, temperature=0.0)

    @jax.jit
    def answer(policy, suffixes):
        decoder, variables = model.decoder(), {"params": params["text"]}
        prompt = model.apply({"params": params}, policy, method="prompt")
        cache = decoder.apply(variables, prompt, method="prefill")
        return generate(decoder, variables, cache, jax.random.key(0), settings, suffixes=suffixes)

    said = answer(made.policy, Suffixes(made.tokens, questions))
    found = []
    for at in np.ndindex(made.lengths.shape):
        length, own = int(made.lengths[at]), int(questions[at].sum())
        count, truth = host.read_boxes(words.decode(made.tokens[at][own:length]), 1)
        if count and "Box" in words.decode(made.tokens[at][:own]):
            count, boxes = host.read_boxes(words.decode(said.tokens[at][: said.lengths[at]]), 1)
            found.append(reward_oracle.box_iou(boxes[0].box, truth[0].box) if count else 0.0)
    assert len(found) > 60 and np.mean(found) > 0.4, np.mean(found)


def test_encoders_and_an_adapter_exclude_each_other():
    with pytest.raises(InputError, match="sft.encoders"):
        text.SftConfig(True, LORA, 256)
