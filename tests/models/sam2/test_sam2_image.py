"""Images against transformers' `Sam2Model`, on several architectures and all kinds of prompts."""

import functools

import jax
import numpy as np
import pytest
import torch

from omnir1_jax.errors import InputError
from omnir1_jax.models import sam2
from omnir1_jax.models.sam2.image import prompt_image
from omnir1_jax.models.sam2.model import NO_OBJECT
from tests.models.sam2 import oracle_sam2 as oracle

BOUND = 2e-5  # of the largest logit; processors order sums differently
ARCHITECTURES = {
    "windows that pad": dict(),
    "released windows": dict(window_size_per_stage=[8, 4, 14, 7], global_attention_blocks=[5]),
    "background 14, unequal depths": dict(
        window_positional_embedding_background_size=[14, 14],
        blocks_per_stage=[2, 3, 4, 1],
        global_attention_blocks=[6, 8],
        window_size_per_stage=[8, 4, 16, 8],
    ),
    "background 5x9, one head, wide": dict(
        width=128,
        window_positional_embedding_background_size=[5, 9],
        num_attention_heads_per_stage=[1, 1, 1, 1],
        dims=(24, 40, 72, 104),
        mlp_ratio=2.5,
    ),
    "side 128, odd windows, no global block": dict(
        side=128, window_size_per_stage=[4, 7, 5, 3], global_attention_blocks=[], blocks_per_stage=[1, 1, 1, 1]
    ),
    "other decoder": dict(
        width=128,
        attention_downsample_rate=4,
        iou_head_depth=4,
        dynamic_multimask_via_stability=False,
        num_multimask_outputs=2,
        num_hidden_layers=3,
    ),
    "always unstable": dict(dynamic_multimask_stability_thresh=2.0, dynamic_multimask_stability_delta=1.0, side=192),
}


@functools.partial(jax.jit, static_argnums=0)
def everything(model, params, pixels, boxes, points, labels, masks):
    """All kinds of prompts on one image, in one program."""
    features = sam2.encode_frames(model, params, pixels[None])
    look = lambda **prompts: prompt_image(model, params, features, size=np.array(pixels.shape[:2]), **prompts)
    return {
        "boxes": look(boxes=boxes),
        "points": look(points=points, labels=labels, multimask=True),
        "points and boxes": look(points=points, labels=labels, boxes=boxes),
        "masks and boxes": look(masks=masks, boxes=boxes, multimask=True),
    }


def ask(side, seed):
    """Pixels and prompts for three objects; labels of every kind."""
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.uniform(0, side, (3, 2, 2)), axis=1)
    labels = np.array([[1, 0, -10], [0, 1, 1], [1, -1, -10]], np.int32)
    masks = rng.normal(scale=4, size=(3, side // 4, side // 4))
    pixels, points = rng.normal(size=(side, side, 3)), rng.uniform(0, side, (3, 3, 2))
    pixels, boxes, points, masks = (x.astype(np.float32) for x in (pixels, corners.reshape(3, 4), points, masks))
    return pixels, boxes, points, labels, masks


@torch.no_grad()
def reference(model, pixels, boxes, points, labels, masks):
    tensor = lambda x: torch.tensor(x)[None]
    embeddings = model.get_image_embeddings(torch.tensor(pixels).permute(2, 0, 1)[None])
    prompts = {
        "boxes": dict(input_boxes=tensor(boxes), multimask_output=False),
        "points": dict(input_points=tensor(points), input_labels=tensor(labels)),
        "points and boxes": dict(
            input_points=tensor(points), input_labels=tensor(labels), input_boxes=tensor(boxes), multimask_output=False
        ),
    }
    out = {kind: [model(image_embeddings=embeddings, **given)] for kind, given in prompts.items()}
    out["masks and boxes"] = [  # upstream takes one mask an image
        model(image_embeddings=embeddings, input_masks=torch.tensor(m[None, None]), input_boxes=tensor(b[None]))
        for m, b in zip(masks, boxes, strict=True)
    ]
    join = lambda parts, key: np.concatenate([getattr(part, key)[0].numpy() for part in parts])
    keys = ("pred_masks", "iou_scores", "object_score_logits")
    return {kind: [join(parts, key) for key in keys] for kind, parts in out.items()}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_prompts_equal_transformers(name, tmp_path):
    seed = list(ARCHITECTURES).index(name)
    torch_model = oracle.image_model(seed, **ARCHITECTURES[name])
    model, params = sam2.load(oracle.save(torch_model, tmp_path))
    given = ask(model.config.side, seed)
    expected = reference(torch_model, *given)
    got = jax.tree.map(np.asarray, everything(model, params, *given))
    for kind, (logits, iou, scores) in expected.items():
        assert got[kind].logits.shape == logits.shape
        np.testing.assert_allclose(got[kind].logits, logits, atol=BOUND * np.abs(logits).max(), rtol=0, err_msg=kind)
        np.testing.assert_allclose(got[kind].iou, iou, atol=BOUND, rtol=0, err_msg=kind)
        np.testing.assert_allclose(got[kind].scores, scores[:, 0], atol=10 * BOUND, rtol=0, err_msg=kind)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = oracle.save(oracle.image_model(1), tmp_path_factory.mktemp("sam2") / "image")
    return sam2.load(path)


def test_coordinates_are_scaled_from_the_image(small):
    """Boxes and points in pixels of a 100 x 40 image are those of the input stretched to 64 x 64."""
    model, params = small
    pixels, boxes, points, labels, _ = ask(64, 5)
    scale = np.array([100 / 64, 40 / 64], np.float32)
    look = jax.jit(sam2.segment_image, static_argnums=0)
    here = look(model, params, pixels, boxes=boxes, points=points, labels=labels, size=np.array([64, 64]))
    wide = dict(boxes=boxes * np.tile(scale, 2), points=points * scale, labels=labels, size=np.array([40, 100]))
    np.testing.assert_allclose(look(model, params, pixels, **wide).logits, here.logits, atol=1e-2)
    assert (
        np.abs(
            np.asarray(look(model, params, pixels, **wide | {"size": np.array([64, 64])}).logits - here.logits)
        ).max()
        > 1
    )


def test_bad_prompts(small):
    """A box that is not finite has no mask; a point that is not finite is padding; the others are not touched."""
    model, params = small
    pixels, boxes, points, labels, masks = ask(64, 6)
    ask_all = lambda: jax.tree.map(np.asarray, everything(model, params, pixels, boxes, points, labels, masks))
    good = ask_all()
    boxes[1, 2], points[0, 1] = np.nan, [np.inf, 3]
    bad = ask_all()
    labels[0, 1], points[0, 1] = -10, 0
    padded = ask_all()
    assert (bad["boxes"].logits[1] == NO_OBJECT).all() and bad["boxes"].iou[1] == 0 and bad["boxes"].scores[1] < -1000
    np.testing.assert_array_equal(bad["boxes"].logits[::2], good["boxes"].logits[::2])
    np.testing.assert_array_equal(bad["points"].logits, padded["points"].logits)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(bad))


def test_wrong_arguments(small):
    model, params = small
    pixels, boxes, _, _, masks = ask(64, 7)
    with pytest.raises(InputError, match=r"same prompts; got \[\]"):
        sam2.segment_image(model, params, pixels)
    with pytest.raises(InputError, match="16 x 16, not 8 x 16"):
        sam2.segment_image(model, params, pixels, masks=masks[:, :8])
    frames, slots = np.stack((pixels, pixels)), np.zeros((3, 1), np.int32)
    with pytest.raises(InputError, match="2 frames need the memory modules"):
        sam2.segment_video(model, params, frames, boxes[:, None], slots)


def test_an_image_is_a_clip_of_one_frame(small):
    """Also without memory modules; masks of hidden objects are blank, the others as for an image."""
    model, params = small
    pixels, boxes, points, labels, masks = ask(64, 8)
    image = everything(model, params, pixels, boxes, points, labels, masks)["boxes"]
    slots = np.zeros((3, 1), np.int32)
    got = jax.jit(sam2.segment_video, static_argnums=0)(model, params, pixels[None], boxes[:, None], slots)
    np.testing.assert_allclose(got.scores[:, 0], image.scores, atol=1e-4)
    hidden = np.asarray(image.scores)[:, None, None] <= 0
    np.testing.assert_allclose(got.logits[:, 0], np.where(hidden, NO_OBJECT, image.logits[:, 0]), atol=1e-3)
