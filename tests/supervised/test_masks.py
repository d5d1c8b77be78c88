"""SAM 2's training: prompts from the truth, the forward pass of inference, losses, gradients, the shipped weights."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from omnir1_jax.config.sections import Masks
from omnir1_jax.data import clips
from omnir1_jax.data.refs import BadSample
from omnir1_jax.data.synthetic import reader
from omnir1_jax.errors import InputError
from omnir1_jax.models import sam2
from omnir1_jax.rl import learn
from omnir1_jax.supervised import mask_examples, masks
from tests.rl import small

WEIGHTS = pathlib.Path(__file__).parents[2] / "configs" / "toy_weights" / "sam2"
FRAMES, OBJECTS = 6, 2
# The mask prompts and point labels have no part in boxes; two tensors are kept for export only.
UNTAUGHT = ("mask_conv", "mask_norm", "no_memory_position", "mask_downsample")


def decoded(count: int, config="toy", frames: int = FRAMES) -> list[clips.DecodedClip]:
    """Held-out clips with every shape's masks."""
    source = reader.open(split="valid", family="vos", clips=count, config=config, lessons=True, seed=77)
    how = clips.DecodeConfig(frames=frames, sampling="uniform", objects=8)
    return [clips.decode(source[i], how, np.random.default_rng(i)) for i in range(count)]


def batch_of(found: list[clips.DecodedClip], side: int, **changes) -> masks.Batch:
    shape = dict(frames=FRAMES, objects=OBJECTS) | changes
    made = [mask_examples.masks(clip, mask_examples.MaskExampleConfig(side, **shape)) for clip in found]
    return masks.to_batch({key: jnp.asarray(np.stack([m[key] for m in made])) for key in made[0]})


@pytest.fixture(scope="module")
def batch() -> masks.Batch:
    made = batch_of(decoded(2), small.SIDE)
    valid = jnp.asarray([[True] * FRAMES, [True] * (FRAMES - 1) + [False]])
    return made.replace(frame_valid=valid)


def test_prompts_lie_on_visible_frames_and_near_the_truth(batch):
    config, seen = Masks(prompts=3, jitter=0.1), np.asarray(masks.visible(batch))
    drawn = jax.vmap(lambda key: masks.draw_prompts(key, batch, config))(jax.random.split(jax.random.key(0), 200))
    boxes, frames, valid = (np.asarray(x) for x in drawn)
    n = np.arange(200)[:, None, None, None]
    at = (n * 0 + np.arange(2)[:, None, None], n * 0 + np.arange(OBJECTS)[:, None], frames)
    assert seen[at][valid].all()
    counts = valid.sum(axis=-1)
    assert np.array_equal(np.unique(counts), [1, 2, 3])
    assert all(len(set(f)) == len(f) for f in frames.reshape(-1, frames.shape[-1]))
    used = {(b, o, t) for b, o, t in zip(*(x[valid] for x in np.broadcast_arrays(*at)))}
    assert len(used) == seen.sum(), "every visible frame is drawn now and then"
    true = np.asarray(batch.boxes)[at]
    sides = np.tile(true[..., 2:] - true[..., :2] + 1, 2)
    noise = ((boxes - true) / sides)[valid]
    assert 0.03 < noise.std() < 0.08 and abs(noise.mean()) < 0.01  # 0.1 * sqrt(1 / 3)
    exact = masks.draw_prompts(jax.random.key(1), batch, Masks(jitter=0.0))
    assert jnp.array_equal(exact.boxes, jnp.take_along_axis(batch.boxes, exact.frames[..., None], axis=2))


def test_clips_are_cut_into_pieces(batch):
    pieces = masks.split_clips(batch, 2)
    assert masks.split_clips(batch, 0) is batch
    for b in range(2):
        for s in range(3):
            row, span = 3 * b + s, slice(2 * s, 2 * s + 2)
            assert jnp.array_equal(pieces.clip[row], batch.clip[b, span])
            assert jnp.array_equal(pieces.frame_valid[row], batch.frame_valid[b, span])
            assert jnp.array_equal(pieces.masks[row], batch.masks[b, :, span])
            assert jnp.array_equal(pieces.boxes[row], batch.boxes[b, :, span])
            assert jnp.array_equal(pieces.size[row], batch.size[b])
    with pytest.raises(InputError, match="masks.piece 4.*6 frames"):
        masks.split_clips(batch, 4)


def test_losses_are_those_of_their_formulas():
    rng = np.random.default_rng(0)
    logits, truth = 3 * rng.normal(size=(5, 8, 8)), rng.random((5, 8, 8))
    p = 1 / (1 + np.exp(-logits))
    entropy = -(truth * np.log(p) + (1 - truth) * np.log(1 - p))
    arrays = jnp.asarray(logits, jnp.float32), jnp.asarray(truth, jnp.float32)
    np.testing.assert_allclose(masks.focal(*arrays, 0.0), entropy.mean((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(masks.focal(*arrays, 2.0), (abs(truth - p) ** 2 * entropy).mean((1, 2)), rtol=1e-5)
    expected = 1 - (2 * (p * truth).sum((1, 2)) + 1) / (p.sum((1, 2)) + truth.sum((1, 2)) + 1)
    np.testing.assert_allclose(masks.dice(*arrays), expected, rtol=1e-5)
    a, b = logits > 0, truth >= 0.5
    np.testing.assert_allclose(masks.overlap(*arrays), (a & b).sum((1, 2)) / (a | b).sum((1, 2)), rtol=1e-6)
    assert masks.overlap(-jnp.ones((1, 4, 4)), jnp.zeros((1, 4, 4)))[0] == 1


@pytest.fixture(scope="module")
def followed(batch):
    """Prompts, and what the forward pass makes of them with random weights."""
    model, params = small.models().segmenter.model, small.sam2_params()
    prompts = masks.draw_prompts(jax.random.key(3), batch, Masks(prompts=2))
    return prompts, *jax.jit(lambda p: masks.forward(model, p, batch, prompts, False))(params)


def test_forward_is_that_of_inference(batch, followed):
    model, params = small.models().segmenter.model, small.sam2_params()
    prompts, tracks, every = followed

    def infer(clip, boxes, frames, valid, size, frame_valid, object_valid):
        return sam2.segment_video(
            model, params, clip, boxes, frames, valid, size=size, frame_valid=frame_valid, object_valid=object_valid
        )

    rest = (batch.size, batch.frame_valid, batch.object_valid)
    expected = jax.jit(jax.vmap(infer))(batch.clip, *prompts, *rest)
    for ours, theirs in zip(tracks, expected):
        np.testing.assert_allclose(ours, theirs, atol=2e-3)
    there = np.asarray(tracks.known & (tracks.scores > 0))
    assert 0 < there.sum() < there.size
    np.testing.assert_allclose(every.score[tracks.known], tracks.scores[tracks.known], atol=1e-5)
    gap = jnp.abs(every.logits - tracks.logits[..., None, :, :]).max(axis=(-2, -1)).min(axis=-1)
    assert float(gap[there].max()) < 1e-4, "the tracked mask is one of the decoder's"


def test_loss_falls_and_the_gradient_reaches_every_parameter(batch, followed):
    model = small.models().segmenter.model
    rule = optax.flatten(optax.adam(2e-3))  # one update of all tensors is compiled, not one of each
    # A step's seconds grow with its frames.
    lesson = jax.tree.map(lambda leaf: leaf[:1], masks.split_clips(batch, FRAMES // 2))
    step = masks.make_mask_step(model, rule, Masks(prompts=2, focus=0.0, mask=5.0))
    before = jax.tree.map(jnp.copy, small.sam2_params())
    # Half of the frames are held for hidden at first, so that what only they use learns too.
    bias = before["mask_decoder"]["object_head"]["proj_out"]["bias"]
    middle = jnp.median(followed[1].scores[followed[1].known])
    before["mask_decoder"]["object_head"]["proj_out"]["bias"] = bias - middle
    state, seen = learn.init(jax.tree.map(jnp.copy, before), rule), []
    for _ in range(12):
        state, metrics, rollout = step(state, None, lesson, jax.random.key(0))
        seen.append(float(metrics["loss"]))
    assert rollout is None and int(state.step) == 12 and int(state.skipped) == 0
    assert np.isfinite(seen).all() and np.mean(seen[-3:]) < 0.8 * np.mean(seen[:3])
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), before, state.trainable)
    still = [jax.tree_util.keystr(path) for path, on in jax.tree_util.tree_leaves_with_path(moved) if not on]
    assert [name for name in still if not any(part in name for part in UNTAUGHT)] == []
    assert all(any(part in name for name in still) for part in UNTAUGHT)


def test_examples_hold_coverage_and_repeat_objects():
    (clip,) = decoded(1)
    count, (height, width) = len(clip.masks), clip.size
    made = mask_examples.masks(clip, mask_examples.MaskExampleConfig(64, FRAMES + 1, count + 2))
    assert made["object_valid"].all() and np.array_equal(made["frame_valid"], np.arange(FRAMES + 1) < FRAMES)
    share = made["masks"][:, :FRAMES].mean((2, 3)) / 255
    areas = clip.masks.mean((2, 3))
    nearest = [int(np.abs(share[i] - areas).sum(axis=1).argmin()) for i in range(count + 2)]
    for i, n in enumerate(nearest):
        np.testing.assert_allclose(share[i], areas[n], atol=2e-3)
    assert set(nearest) == set(range(count)) and nearest[:2] == nearest[count:]
    assert np.array_equal(made["boxes"][..., 2] >= 0, made["masks"].any((2, 3)))
    assert made["boxes"].max() < max(height, width)
    few = mask_examples.masks(clip, mask_examples.MaskExampleConfig(64, FRAMES, count + 2, repeat=False))
    assert few["object_valid"].sum() == count and not few["masks"][count:].any()
    with pytest.raises(BadSample, match="6 frames"):
        mask_examples.masks(clip, mask_examples.MaskExampleConfig(64, 3, 3))


@functools.cache
def shipped():
    return sam2.load(WEIGHTS, memory_dtype="float32", object_chunk=16, frame_chunk=16)


def test_shipped_weights_follow_shapes_from_one_box():
    model, params = shipped()
    found, frames = decoded(4, frames=8), 8
    batch = batch_of(found, model.config.side, frames=frames, objects=3, repeat=False)
    seen = np.asarray(masks.visible(batch))
    middle = np.argmin(np.where(seen, abs(np.arange(frames) - 3.5), 99), axis=-1)[..., None]
    boxes = jnp.take_along_axis(batch.boxes, jnp.asarray(middle)[..., None], axis=2)
    prompts = masks.Prompts(boxes, jnp.asarray(middle), jnp.asarray(seen.any(-1, keepdims=True)))
    tracks, _ = jax.jit(lambda p: masks.forward(model, p, batch, prompts, False))(params)
    lifted = np.asarray(sam2.lift_masks(tracks.logits, *found[0].size)) > 0
    scores = []
    for clip, mask, known in zip(found, lifted, np.asarray(tracks.known)):
        for ours, true, real in zip(mask, clip.masks, known):
            union = (ours | true).sum((1, 2))
            scores += list(np.where(union > 0, (ours & true).sum((1, 2)) / np.maximum(union, 1), 1.0)[real])
    assert len(scores) > 40
    assert np.mean(scores) > 0.6
