"""Tracking against transformers' video session."""

import dataclasses

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from omnir1_jax.errors import InputError
from omnir1_jax.models import sam2
from omnir1_jax.models.sam2 import slots as memory_slots
from omnir1_jax.models.sam2.model import NO_OBJECT
from tests.models.sam2 import oracle_sam2 as oracle

T, O, K, SIDE, WIDTH = 20, 2, 4, 64, 128
EXACT = 1e-4  # of the largest logit, with fp32 memories; 1e-6 to 3e-5 is seen, growing with the frames tracked
SEGMENT = jax.jit(sam2.segment_video, static_argnums=0)
PIXELS = np.random.default_rng(0).normal(size=(T, SIDE, SIDE, 3)).astype(np.float32)
SEVERAL = {  # frame -> boxes of both objects, two of the prompts late
    3: [[5, 7, 30, 30], [30, 33, 60, 60]],
    8: [[8, 9, 34, 30], [32, 34, 63, 60]],
    14: [[8, 19, 34, 40], [32, 20, 53, 50]],
}
EARLY = {0: [[5, 7, 30, 30], [30, 33, 60, 60]]}


@pytest.fixture(scope="module", autouse=True)
def large_memories():
    """Empty slots of the memory are left out, as they are with larger maps than those of a test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory_slots, "FEW", 0)
        yield


def slots(prompts, objects=O, k=K):
    """Our arguments for prompts by frame: boxes, frames, validity."""
    boxes, frames = np.zeros((objects, k, 4), np.float32), np.zeros((objects, k), np.int32)
    valid = np.zeros((objects, k), bool)
    for slot, (frame, given) in enumerate(prompts.items()):
        boxes[: len(given), slot], frames[:, slot], valid[: len(given), slot] = given, frame, True
    return boxes, frames, valid


def segment(model, params, boxes, frames, valid, *, pixels=PIXELS, length=None, objects=None, start=None):
    """All arguments are always given, so that one compiled program serves every case of a model."""
    t, o = len(pixels), len(boxes)
    out = SEGMENT(
        model,
        params,
        pixels,
        boxes,
        frames,
        valid,
        frame_valid=np.arange(t) < (t if length is None else length),
        object_valid=np.ones(o, bool) if objects is None else objects,
        start=start,
        size=np.array(pixels.shape[1:3]),
    )
    return jax.tree.map(np.asarray, out)


def present(params, shift):
    """What `oracle.presence` does, to our parameters."""
    flat = flatten_dict(params)
    key = ("mask_decoder", "object_head", "proj_out", "bias")
    return unflatten_dict(flat | {key: flat[key] + shift})


def compare(got, reference, bound):
    """Largest difference on the reference's frames, as a share of the largest visible logit."""
    logits = np.stack([reference[f][0] for f in sorted(reference)], axis=1)
    scores = np.stack([reference[f][1] for f in sorted(reference)], axis=1)
    ours = got.logits[:, sorted(reference)]
    scale = np.abs(logits[logits > NO_OBJECT]).max()
    assert got.known[:, sorted(reference)].all()
    assert np.abs(ours - logits).max() < bound * scale
    assert np.abs(got.scores[:, sorted(reference)] - scores).max() < 10 * bound  # scores are of order 1


@pytest.fixture(scope="module")
def torch_model():
    return oracle.video_model(2, side=SIDE, width=WIDTH)


@pytest.fixture(scope="module")
def folder(torch_model, tmp_path_factory):
    return oracle.save(torch_model, tmp_path_factory.mktemp("sam2") / "video")


@pytest.fixture(scope="module")
def exact(folder):
    """Forward tracking with fp32 memories."""
    return sam2.load(folder, memory_dtype="float32")


RUNS = {
    "forward": lambda first: [(0, False)],
    "from_first_prompt": lambda first: [(None, False)],
    "reverse": lambda first: [(T - 1, True)],
    "both": lambda first: [(first, False), (first, True)],
}


@pytest.mark.parametrize("direction", RUNS)
def test_all_frames_equal_transformers(torch_model, folder, direction):
    """Two objects, up to three prompts, past the 16 pointers, hidden and visible, frames before the first prompt."""
    model, params = sam2.load(folder, direction=direction, memory_dtype="float32")
    hidden = []
    for prompts, shift in ((SEVERAL, 0.0), (SEVERAL, 0.45), (EARLY, 0.3)):
        shifted = present(params, shift)
        got = segment(model, shifted, *slots(prompts))
        with oracle.exact_memory(), oracle.presence(torch_model, shift):
            reference = oracle.track(torch_model, PIXELS, prompts, RUNS[direction](min(prompts)))
        compare(got, reference, EXACT)
        reached = sorted(reference)
        np.testing.assert_array_equal(
            (got.logits == NO_OBJECT).all(axis=(2, 3))[:, reached], got.scores[:, reached] <= 0
        )
        hidden += list(got.scores[:, reached].flat <= 0)
        assert got.known.sum() == O * len(reached)
    assert 0.1 < np.mean(hidden) < 0.9
    assert len(reached) == T


def test_memories_rounded_to_bfloat16_equal_transformers(torch_model, folder):
    """The default, as upstream. Rounding magnifies the last bits of fp32, hence the wider bound."""
    model, params = sam2.load(folder)
    got = segment(model, params, *slots(SEVERAL))
    compare(got, oracle.track(torch_model, PIXELS, SEVERAL, [(0, False)]), 1e-3)


def test_every_memory_parameter_matters(exact):
    """The comparisons above would see any of these missing: each moves tracked logits by far more than the bound."""
    model, params = exact
    flats = [flatten_dict(present(params, shift)) for shift in (0.2, 0.8)]  # prompted frames hidden, visible
    cases = [(flat, segment(model, unflatten_dict(flat), *slots(SEVERAL))) for flat in flats]
    scale = np.abs(cases[1][1].logits[cases[1][1].logits > NO_OBJECT]).max()
    tracked = np.setdiff1d(np.arange(T), list(SEVERAL))
    for path in (
        "memory_time",
        "no_object_pointer",
        "occlusion",
        "no_memory",
        "pointer_time/kernel",
        "pointer_time/bias",
        "pointer_proj/proj_out/kernel",
        "memory_encoder/fuser_0/scale",
        "memory_encoder/fuser_1/scale",
        "memory_encoder/mask_0/conv/kernel",
        "memory_attention/layers/cross_attn/o_proj/kernel",
        "image_encoder/position",
        "image_encoder/window_position",
        "image_positional",
        "prompt_encoder/positional",
    ):
        key, moved = tuple(path.split("/")), []
        for flat, whole in cases:
            without = segment(model, unflatten_dict(flat | {key: flat[key] * 0}), *slots(SEVERAL))
            both = (without.logits > NO_OBJECT) & (whole.logits > NO_OBJECT)
            moved.append(np.where(both, np.abs(without.logits - whole.logits), 0)[:, tracked].max())
        assert max(moved) > 20 * EXACT * scale, (path, moved)
    apart = np.abs(cases[1][1].logits[0] - cases[1][1].logits[1]).max(axis=(1, 2))[tracked]
    assert np.median(apart) > 20 * EXACT * scale


def test_objects_with_their_own_prompts_are_independent(torch_model, exact):
    """Different frames an object: each equals a session that holds it alone."""
    model, params = exact
    prompts = [{2: [[5, 7, 30, 30]], 11: [[8, 9, 34, 30]]}, {7: [[30, 33, 60, 60]]}]
    first, second = (slots(p, objects=1) for p in prompts)
    got = segment(model, params, *(np.concatenate(pair) for pair in zip(first, second, strict=True)))
    for i, given in enumerate(prompts):
        with oracle.exact_memory():
            reference = oracle.track(torch_model, PIXELS, given, [(0, False)])
        compare(sam2.Tracks(*(x[i : i + 1] for x in got)), reference, EXACT)


def test_padded_frames_equal_a_shorter_clip(torch_model, exact):
    """9 of 20 frames: pointers then reach 8 frames back; padding, and prompts on padding, change nothing."""
    model, params = exact
    boxes, frames, valid = slots({f: b for f, b in SEVERAL.items() if f < 9})
    frames[:, 3], valid[:, 3] = 12, True
    got = segment(model, params, boxes, frames, valid, length=9)
    with oracle.exact_memory():
        reference = oracle.track(torch_model, PIXELS[:9], {f: SEVERAL[f] for f in (3, 8)}, [(0, False)])
    compare(got, reference, EXACT)
    assert not got.known[:, 9:].any() and (got.logits[:, 9:] == NO_OBJECT).all() and (got.iou[:, 9:] == 0).all()


def test_padded_objects_and_slots_and_repeats(exact):
    """An object that is padding is unknown and leaves the other alone; of two boxes on a frame the later counts."""
    model, params = exact
    boxes, frames, valid = slots(SEVERAL)
    whole = segment(model, params, boxes, frames, valid)
    junk = boxes.copy()
    junk[:, 3] = 13.0
    half = segment(model, params, junk, frames, valid, objects=np.array([True, False]))
    np.testing.assert_array_equal(half.logits[0], whole.logits[0])
    assert not half.known[1].any() and (half.logits[1] == NO_OBJECT).all() and (half.scores[1] == NO_OBJECT).all()
    order = [3, 0, 1, 2]  # the unused slot first, now a repeat of a frame that a later slot prompts
    junk, again, real = junk[:, order], frames[:, order].copy(), valid[:, order].copy()
    again[:, 0], real[:, 0] = 8, True
    np.testing.assert_allclose(segment(model, params, junk, again, real).logits, whole.logits, atol=2e-3)


def test_bad_boxes(torch_model, exact):
    """Outside or inverted boxes prompt as upstream; NaN and infinite ones are absent. Nothing is ever NaN."""
    model, params = exact
    odd = {5: [[-40, -10, 90, 200], [50, 40, 10, 4]]}
    got = segment(model, params, *slots(odd))
    with oracle.exact_memory():
        compare(got, oracle.track(torch_model, PIXELS, odd, [(0, False)]), EXACT)
    boxes, frames, valid = slots(SEVERAL)
    whole = segment(model, params, boxes, frames, valid)
    for bad in (np.nan, np.inf, -np.inf, 2e6):
        boxes[0, :3, 2], boxes[1, 3], frames[1, 3], valid[1, 3] = bad, bad, 5, True
        got = segment(model, params, boxes, frames, valid)
        assert not got.known[0].any() and (got.logits[0] == NO_OBJECT).all() and (got.iou[0] == 0).all()
        np.testing.assert_array_equal(got.logits[1], whole.logits[1])
    frames[:] = [-1, T, 1 << 20, -T]
    assert not segment(model, params, *slots({}), length=T).known.any()
    outside = segment(model, params, slots(SEVERAL)[0], frames, np.ones_like(valid))
    assert not outside.known.any() and (outside.logits == NO_OBJECT).all()
    padded = segment(model, params, *slots(SEVERAL), length=0)
    assert not padded.known.any() and (padded.logits == NO_OBJECT).all() and np.isfinite(padded.scores).all()


def test_no_objects_and_wrong_shapes(exact):
    model, params = exact
    none = SEGMENT(model, params, PIXELS, *slots({}, objects=0))
    assert none.logits.shape == (0, T, SIDE // 4, SIDE // 4) and none.known.shape == (0, T)
    with pytest.raises(InputError, match="at least one"):
        sam2.segment_video(model, params, PIXELS[:1], *slots({}, k=0))
    with pytest.raises(InputError, match="must be 64 x 64, not 32 x 64"):
        sam2.segment_video(model, params, PIXELS[:, :32], *slots(EARLY))


def test_another_architecture_in_small_chunks(tmp_path):
    """Fewer memories and pointers, several heads, no temporal encoding of pointers, no occlusion embedding, other
    head settings, 128 pixels; three objects two at a time, frames three at a time, attention in pieces."""
    torch_model = oracle.video_model(
        3,
        side=128,
        width=128,
        num_maskmem=4,
        max_object_pointers_in_encoder=5,
        memory_attention_num_attention_heads=2,
        memory_attention_downsample_rate=2,
        enable_temporal_pos_encoding_for_object_pointers=False,
        enable_occlusion_spatial_embedding=False,
        multimask_output_for_tracking=False,
        multimask_max_pt_num=2,
        window_size_per_stage=[8, 4, 14, 7],
        global_attention_blocks=[4, 7],
        memory_fuser_num_layers=1,
        memory_fuser_kernel_size=5,
        memory_fuser_padding=2,
    )
    model, params = sam2.load(
        oracle.save(torch_model, tmp_path), memory_dtype="float32", object_chunk=2, frame_chunk=3, score_limit=1 << 12
    )
    pixels = np.random.default_rng(1).normal(size=(8, 128, 128, 3)).astype(np.float32)
    prompts = {2: [[5, 7, 60, 60], [60, 66, 120, 120], [9, 80, 90, 127]]}
    got = segment(model, params, *slots(prompts, objects=3, k=1), pixels=pixels)
    with oracle.exact_memory():
        compare(got, oracle.track(torch_model, pixels, prompts, [(0, False)]), EXACT)


def test_conditioning_slots(torch_model, exact):
    """Two of four prompted frames at a time: the nearest before and after; the others serve as recent memories."""
    _, params = exact
    model = sam2.Sam2(dataclasses.replace(exact[0].config, conditioning_slots=2))
    prompts = SEVERAL | {16: [[9, 9, 34, 44], [32, 24, 53, 55]]}
    got = segment(model, params, *slots(prompts))
    torch_model.config.max_cond_frame_num = 2
    try:
        with oracle.exact_memory():
            reference = oracle.track(torch_model, PIXELS, prompts, [(0, False)])
    finally:
        torch_model.config.max_cond_frame_num = -1
    compare(got, reference, EXACT)
    everything = segment(exact[0], params, *slots(prompts))
    assert np.abs(everything.logits - got.logits).max() > 0.1


def test_given_start_equals_a_session_of_objects_with_other_prompts(torch_model, exact, folder):
    """`start` overrides the direction's own: 6 forward then back, with prompts at 3 and 8."""
    model, params = sam2.load(folder, memory_dtype="float32", direction="both")
    prompts = {f: SEVERAL[f] for f in (3, 8)}
    got = segment(model, params, *slots(prompts), start=np.array([6, 6]))
    with oracle.exact_memory():
        compare(got, oracle.track(torch_model, PIXELS, prompts, [(6, False), (6, True)]), EXACT)
