"""System 2 against itself asked one thing at a time: a batch of requests must not change any answer."""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from omnir1_jax.models import sam2
from omnir1_jax.models.qwen_omni.inputs import VisionInputs
from omnir1_jax.models.qwen_omni.sample import Sampling
from omnir1_jax.models.qwen_omni.thinker import insert_features
from omnir1_jax.systems.grounders import thinker as grounding
from omnir1_jax.systems.segmenters import Prompts
from omnir1_jax.systems.segmenters.sam2 import Sam2Segmenter
from tests.rl import small


def test_each_request_gets_the_answer_of_its_own_prompt():
    """Frames shared, repeated and missing: the tokens are those of greedy decoding without cache or company."""
    # Weights so large that the answers differ.
    thinker, params = small.models().thinker, jax.tree.map(lambda x: 4 * x, small.thinker_params(3))
    frames = small.batches("vos", 2)[0].sharp
    b, g, k, n, length = 2, 3, 2, 9, 5
    rng = np.random.default_rng(0)
    tokens = rng.integers(300, 400, (b, g, k, n)).astype(np.int32)
    lengths = rng.integers(3, n + 1, (b, g, k))
    mask = np.arange(n) < lengths[..., None]
    frame = np.array([[[0, 3], [3, 5], [0, 1]], [[2, 4], [2, 4], [2, 0]]], np.int32)
    valid = np.array([[[1, 1], [1, 0], [1, 1]], [[1, 1], [1, 1], [0, 0]]], bool)
    asked = grounding.Prompts(*map(jnp.asarray, (frame, valid, tokens, mask)))
    ask = jax.jit(grounding.answer, static_argnums=(0, 4))
    encoders = grounding.ThinkerParams(None, params["vision"], params["text"])
    found = ask(thinker, encoders, frames, asked, Sampling(length, (5,), 0, temperature=0.0))
    np.testing.assert_array_equal(found.frames_read, [3, 2])
    np.testing.assert_array_equal(found.lengths == 0, ~valid)
    with mock.patch.object(grounding, "shards", lambda *_: 2):  # frames read together, as over a mesh; 3 are 4
        together = jax.jit(functools.partial(grounding.answer, thinker), static_argnums=3)
        again = together(encoders, frames, asked, Sampling(length, (5,), 0, temperature=0.0))
    jax.tree.map(np.testing.assert_array_equal, again, found)

    decoder, text = thinker.decoder(), {"params": params["text"]}

    @jax.jit
    def following(row, at, line, real):
        """The most probable token after a prompt about one frame and a line of text, nothing kept or shared."""
        one = jax.tree.map(lambda x: x[row][None], frames)
        cells = jnp.repeat(one.cells[:, at][:, :, None], 2, axis=2)
        vision = VisionInputs(cells, one.rows_cols, one.windows, one.frames)
        seen = thinker.apply({"params": {"vision": params["vision"]}}, vision, method=lambda m, x: m.vision(x))
        before = insert_features(decoder.apply(text, one.tokens, method="embed"), seen, one.vision_index)
        own = decoder.apply(text, line[None], method="embed")
        positions = one.next_position[:, None, None] + jnp.broadcast_to(jnp.cumsum(real) - real, (1, 3, line.size))
        hidden = decoder.apply(
            text,
            jnp.concatenate([before, own], axis=1),
            jnp.concatenate([one.positions, positions], axis=2),
            jnp.concatenate([one.mask, real[None]], axis=1),
            method="hidden",
        )
        last = one.tokens.shape[1] + jnp.sum(real) - 1
        return jnp.argmax(decoder.apply(text, hidden[0, last], method="logits"))

    said = set()
    for at in [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 1), (1, 1, 0)]:
        line, size = np.zeros(n + length, np.int32), lengths[at]
        line[:n] = tokens[at]
        for i in range(found.lengths[at]):
            want = int(following(at[0], frame[at], line, np.arange(n + length) < size))
            assert found.tokens[at][i] == want, (at, i)
            line[size], size = want, size + 1
            said.add((*at, want))
    assert len({token for *_, token in said}) > 6


def test_tracks_are_those_of_each_object_alone():
    """Chunks hold whatever objects are prompted; what nobody prompted stays empty, with a score that says so."""
    model = sam2.Sam2(small.sam2_config())
    model = sam2.Sam2(type(model.config)(**{**vars(model.config), "object_chunk": 2}))
    b, g, k, n, t = 2, 2, 2, 2, 3
    rng = np.random.default_rng(1)
    clip = rng.integers(0, 256, (b, t, 64, 64, 3)).astype(np.uint8)
    frame_valid = np.array([[1, 1, 1], [1, 1, 0]], bool)
    original = np.array([[80, 48], [64, 64]], np.int32)
    low = rng.uniform(0, 30, (b, g, k, n, 2))
    boxes = np.concatenate([low, low + rng.uniform(8, 20, low.shape)], axis=-1).astype(np.float32)
    prompts = np.zeros((b, g, k, n), bool)
    prompts[0, 0, :, 0] = prompts[0, 1, 0, 1] = prompts[0, 1, 1, 0] = prompts[1, 1, 1, 1] = True
    frame = np.array([[[0, 2], [1, 2]], [[0, 1], [0, 1]]], np.int32)
    segmenter, given = Sam2Segmenter(model), (small.sam2_params(), clip, frame_valid, original)
    asked = Prompts(boxes, prompts, frame)
    found = jax.jit(segmenter.masks)(*given, asked)
    logits = jax.jit(segmenter.logits)(*given, asked)
    assert logits.shape == (b, g, n, t, 16, 16) and (logits[~prompts.any(axis=2)] < -100).all()
    real = frame_valid[:, None, :, None, None]
    np.testing.assert_array_equal(np.any(np.asarray(logits) > 0, axis=2) & real, np.asarray(found.union) & real)

    alone = jax.jit(sam2.segment_video, static_argnums=0)
    for row in range(b):
        for member in range(g):
            union = np.zeros((t, 16, 16), bool)
            for one in range(n):
                tracks = alone(
                    model, small.sam2_params(), clip[row], boxes[row, member, :, one][None], frame[row, member][None],
                    prompts[row, member, :, one][None], frame_valid=frame_valid[row], size=original[row][::-1],
                )  # fmt: skip
                np.testing.assert_allclose(found.scores[row, member, one], tracks.scores[0], atol=1e-4)
                union |= np.asarray((tracks.logits[0] > 0) & tracks.known[0][:, None, None])
            np.testing.assert_array_equal(found.union[row, member], union)
    assert found.union[0].any() and found.union[1, 1].any() and not found.union[1, 0].any()
