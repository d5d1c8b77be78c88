"""One image, any prompts: boxes, points, both, or masks."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

from omnir1_jax.errors import InputError
from omnir1_jax.models.sam2.decoder import single
from omnir1_jax.models.sam2.hiera import Features
from omnir1_jax.models.sam2.model import NO_OBJECT, Sam2
from omnir1_jax.models.sam2.pixels import usable
from omnir1_jax.models.sam2.prompt import PADDING
from omnir1_jax.models.sam2.video import AnyArray, encode_frames


class ImageMasks(NamedTuple):
    """Masks of p prompts, m each (1, or the multimasks); `scores` > 0 where the model sees the object.

    Other than `Tracks`, logits are the decoder's own whatever the score says, as in transformers' image model.
    """

    logits: Float[Array, "p m y x"]
    iou: Float[Array, "p m"]
    scores: Float[Array, " p"]


def segment_image(
    model: Sam2,
    params: Any,
    image: Num[AnyArray, "h w 3"],
    *,
    boxes: Float[AnyArray, "p 4"] | None = None,
    points: Float[AnyArray, "p n 2"] | None = None,
    labels: Int[AnyArray, "p n"] | None = None,
    masks: Float[AnyArray, "p y x"] | None = None,
    multimask: bool = False,
    size: Num[AnyArray, "2"] | None = None,
) -> ImageMasks:
    """Masks of prompts on one image. No gradient flows through it.

    Args:
      image: uint8 RGB of any size, or normalised floats at the input side.
      boxes: (x0, y0, x1, y1), in pixels of the image as is `points` (x, y).
      labels: of the points, as upstream: 1 foreground, 0 background, -10 padding. Default 1.
      masks: logits at the mask side, as a further prompt.
      multimask: return all multimasks instead of one.
      size: (height, width) that coordinates refer to; default that of `image`.

    Returns:
      `ImageMasks`. A prompt with a box that is not finite gives logits and score -1024 and iou 0; a point that is not
      finite counts as padding.
    """
    _check(model, boxes, points, masks)  # before the work
    features = encode_frames(model, params, image[None])
    size = np.array(image.shape[:2]) if size is None else size
    return prompt_image(
        model, params, features, boxes=boxes, points=points, labels=labels, masks=masks, multimask=multimask, size=size
    )


def prompt_image(
    model: Sam2,
    params: Any,
    features: Features,
    *,
    size: Num[AnyArray, "2"],
    boxes: Float[AnyArray, "p 4"] | None = None,
    points: Float[AnyArray, "p n 2"] | None = None,
    labels: Int[AnyArray, "p n"] | None = None,
    masks: Float[AnyArray, "p y x"] | None = None,
    multimask: bool = False,
) -> ImageMasks:
    """`segment_image` on features of one frame."""
    count = _check(model, boxes, points, masks)
    if points is not None and labels is None:
        labels = jnp.ones(points.shape[:2], jnp.int32)
    prompts, size = jax.tree.map(jnp.asarray, ((boxes, points, labels, masks), size))
    params, features, prompts = jax.lax.stop_gradient((params, features, prompts))
    return model.apply({"params": params}, features, prompts, size, multimask, count, method=_prompted)


def _check(model: Sam2, boxes: Any, points: Any, masks: Any) -> int:
    """The number of prompts, once their shapes are known to fit."""
    given = [x.shape[0] for x in (boxes, points, masks) if x is not None]
    if not given or len(set(given)) != 1:
        raise InputError(f"SAM 2 image: boxes, points and masks must be given for the same prompts; got {given}")
    side = model.config.mask_side
    if masks is not None and masks.shape[1:] != (side, side):
        raise InputError(f"SAM 2 image: mask prompts must be {side} x {side}, not {masks.shape[1]} x {masks.shape[2]}")
    return given[0]


def _prompted(
    model: Sam2, features: Features, prompts: tuple, size: Num[Array, "2"], multimask: bool, count: int
) -> ImageMasks:
    """Runs inside the module."""
    config, encoder = model.config, model.prompt_encoder
    boxes, points, labels, masks = prompts
    scale = config.side / size[::-1].astype(jnp.float32)
    sparse, usable_prompts = [], jnp.ones((count,), bool)
    if points is not None:
        usable_points = usable(points)
        coordinates = jnp.where(usable_points[..., None], points, 0.0) * scale
        sparse.append(encoder.points(coordinates, jnp.where(usable_points, labels, PADDING)))
        if boxes is None:
            sparse.append(encoder.nothing(count)[:, :1])
    if boxes is not None:
        usable_prompts = usable(boxes)
        sparse.append(encoder.boxes(jnp.where(usable_prompts[:, None], boxes, 0.0) * jnp.tile(scale, 2)))
    if points is None and boxes is None:
        sparse.append(encoder.nothing(count))
    dense = encoder.dense() if masks is None else encoder.masks(masks)
    features = jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape[1:])), features)
    predictions = model.look(features, model.without_memory(features.coarse), jnp.concatenate(sparse, axis=1), dense)
    if multimask:
        logits, iou = predictions.logits[:, 1:], predictions.iou[:, 1:]
    else:
        logits, iou, _ = single(predictions, config)
        logits, iou = logits[:, None], iou[:, None]
    return _blank(ImageMasks(logits, iou, predictions.score), usable_prompts)


def _blank(masks: ImageMasks, usable_prompts: Bool[Array, " p"]) -> ImageMasks:
    """Defined values for prompts that cannot be used."""
    logits = jnp.where(usable_prompts[:, None, None, None], masks.logits, NO_OBJECT)
    return ImageMasks(
        logits, jnp.where(usable_prompts[:, None], masks.iou, 0.0), jnp.where(usable_prompts, masks.scores, NO_OBJECT)
    )
