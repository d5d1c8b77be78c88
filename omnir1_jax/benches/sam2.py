"""SAM 2.1 tracking on this machine: our compiled program against transformers' video session, side by side.

The same small random model, 16 frames, 1 and 8 objects boxed on frame 0, features included on both sides. Torch uses
one thread or one per core, whichever is faster. Needs the `test` extra (torch).
"""

import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from omnir1_jax.benches.timing import fewest_seconds, median_seconds
from omnir1_jax.models import sam2

FRAMES, OBJECTS = 16, (1, 8)


def small(side: int) -> sam2.Sam2Config:
    """A model larger than a test's and smaller than the tiny size."""
    hiera = sam2.HieraConfig(dims=(32, 64, 128, 256), blocks=(1, 2, 5, 2), global_blocks=(4, 6))
    return sam2.Sam2Config(hiera=hiera, width=128, decoder_mlp=512, attention_mlp=512, fuser_mlp=256, side=side)


def torch_run(model: Any, video: np.ndarray, boxes: np.ndarray) -> Callable[[], np.ndarray]:
    """A full clip with transformers; returns the last frame's logits."""
    import torch
    from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

    pixels, side = torch.tensor(video).permute(0, 3, 1, 2), video.shape[1]

    def run() -> np.ndarray:
        session = Sam2VideoInferenceSession(video=pixels, video_height=side, video_width=side, dtype=torch.float32)
        for name, box in enumerate(boxes):
            points = {"point_coords": torch.tensor(box).reshape(1, 1, 2, 2)}
            points["point_labels"] = torch.tensor([[[2, 3]]], dtype=torch.int32)
            session.add_point_inputs(session.obj_id_to_idx(name), 0, points)
        session.obj_with_new_inputs = list(range(len(boxes)))
        with torch.inference_mode():
            model(session, frame_idx=0)
            *_, last = model.propagate_in_video_iterator(session, start_frame_idx=0)
        return last.pred_masks[:, 0].numpy()

    return run


def run(quick: bool) -> dict[str, float]:
    """Seconds per clip on both sides, their ratio, compile time, and the last frame's difference in logits."""
    import torch
    from transformers import Sam2VideoModel

    torch.set_num_threads(1)
    side, repeats = (64, 3) if quick else (256, 5)
    rng, figures = np.random.default_rng(0), {}
    video = rng.normal(size=(FRAMES, side, side, 3)).astype(np.float32)
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch) / "model"
        config = small(side)
        params = random_params(config, rng)
        sam2.export(folder, sam2.Sam2(config), params)
        torch_model = Sam2VideoModel.from_pretrained(folder).eval()
        model, params = sam2.load(folder, object_chunk=max(OBJECTS))
    for objects in OBJECTS:
        figures |= measure(model, params, torch_model, video, objects, repeats, rng)
    return figures


def measure(
    model: sam2.Sam2,
    params: Any,
    torch_model: Any,
    video: np.ndarray,
    objects: int,
    repeats: int,
    rng: np.random.Generator,
) -> dict[str, float]:
    """The figures for one number of objects."""
    corners = np.sort(rng.uniform(0, video.shape[1], (objects, 2, 2)), axis=1)
    boxes, slots = corners.reshape(objects, 4).astype(np.float32), np.zeros((objects, 1), np.int32)
    arguments = (params, video, boxes[:, None], slots)
    start = time.perf_counter()
    segment = jax.jit(sam2.segment_video, static_argnums=0).lower(model, *arguments).compile()
    compiled = time.perf_counter() - start
    ours = lambda: np.asarray(segment(*arguments).logits)
    theirs = torch_run(torch_model, video, boxes)
    expected, got = theirs(), ours()[:, -1]
    fewest_seconds(theirs, 2)
    jax_seconds, torch_seconds = median_seconds([ours, theirs], repeats)
    return {
        f"difference_{objects}": float(np.abs(got - expected).max() / np.abs(expected).max()),
        f"compile_s_{objects}": compiled,
        f"jax_s_{objects}": jax_seconds,
        f"torch_s_{objects}": torch_seconds,
        f"ratio_{objects}": torch_seconds / jax_seconds,
    }


def random_params(config: sam2.Sam2Config, rng: np.random.Generator) -> Any:
    """Normal values of a size that keeps logits finite and objects visible."""
    import flax.linen as nn

    shapes = nn.meta.unbox(sam2.abstract_params(config))

    def random_leaf(path: tuple, leaf: Any) -> np.ndarray:
        name = path[-1].key
        if name == "kernel":
            return (rng.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[-3:-1]))).astype(np.float32)
        return (0.1 * rng.normal(size=leaf.shape) + (name == "scale")).astype(np.float32)

    params = jax.tree_util.tree_map_with_path(random_leaf, shapes)
    params["mask_decoder"]["object_head"]["proj_out"]["bias"] += 3.0
    return params
