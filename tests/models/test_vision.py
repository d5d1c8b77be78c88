"""The vision encoder's pieces: patches from raw pixels, padding that does not matter, gradients, remat."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from omnir1_jax.models import hf_checkpoint
from omnir1_jax.models.qwen_omni import hf_config, layout, weights
from omnir1_jax.models.qwen_omni.config import VisionConfig
from omnir1_jax.models.qwen_omni.inputs import VisionInputs
from omnir1_jax.models.qwen_omni.vision import VisionEncoder, patchify
from tests.models.thinker_oracle import Sizes, reference, relative

SIZES = Sizes(vision_depth=3, full_blocks=(1,))
GRIDS = np.array([[1, 10, 6], [2, 4, 12]])


@functools.cache
def encoders():
    """The reference's encoder, ours, and its parameters."""
    model = reference(SIZES, seed=5)
    config = hf_config.parse(model.config.to_dict())
    state = {"visual." + name: tensor.numpy() for name, tensor in model.model.visual.state_dict().items()}
    tree: dict = {}
    for leaf in weights.leaves(config):
        if leaf.path[0] == "vision":
            tree.setdefault(leaf.path[1:], []).append(leaf)
    encoder = VisionEncoder(config.vision)
    shapes = jax.eval_shape(lambda: encoder.init(jax.random.key(0), inputs(config.vision)))["params"]
    flat = {}
    for path, leaves in tree.items():
        shape = functools.reduce(lambda at, key: at[key], path, shapes).value.shape
        own = shape if leaves[0].layer is None else shape[1:]
        parts = [leaf.layout.to_params(state[leaf.name], own) for leaf in leaves]
        flat[path] = jnp.asarray(parts[0] if leaves[0].layer is None else np.stack(parts))
    return model.model.visual, encoder, hf_checkpoint.unflatten_dict(flat)


def patches(seed=0):
    count = GRIDS.prod(1).sum()
    return np.random.default_rng(seed).standard_normal((1, count // 4, 4, 3 * 2 * 14 * 14), np.float32)


def inputs(config: VisionConfig, **sizes) -> VisionInputs:
    own = layout.vision_layout(GRIDS, window=config.window_cells, **sizes)
    x = patches()
    x = np.pad(x, ((0, 0), (0, len(own.rows_cols) - x.shape[1]), (0, 0), (0, 0)), constant_values=7.0)
    return VisionInputs(jnp.asarray(x), *(jnp.asarray(part)[None] for part in own))


@pytest.mark.parametrize("height, width, frames", [(56, 84, 1), (140, 28, 3)])
def test_patches_are_the_processors(height, width, frames):
    image = np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), np.uint8)
    processor = Qwen2VLImageProcessorPil(size={"shortest_edge": 784, "longest_edge": 10**7})
    config = VisionConfig(1, 32, 32, 2, 32, ())
    for frame in image:
        want = processor(images=[frame], return_tensors="np")["pixel_values"]
        cells = np.stack([frame, frame]).reshape(2, height // 28, 28, width // 28, 28, 3).transpose(1, 3, 0, 2, 4, 5)
        got = patchify(jnp.asarray(cells.reshape(-1, 2, 28, 28, 3)), config)
        assert got.dtype == jnp.float32 and got.shape[1:] == (4, 1176)
        np.testing.assert_allclose(np.asarray(got).reshape(want.shape), want, atol=2e-6)


def test_equal_to_the_reference_and_padding_does_not_matter():
    theirs, encoder, params = encoders()
    with torch.no_grad():
        flat = torch.from_numpy(patches()).reshape(-1, 1176)
        want = theirs(flat, grid_thw=torch.from_numpy(GRIDS)).pooler_output.numpy()
    apply = jax.jit(lambda params, x: encoder.apply({"params": params}, x))
    tight = apply(params, inputs(encoder.config))[0]
    assert relative(tight, want) < 1e-5
    wide = apply(params, inputs(encoder.config, cells=45, windows=13, frames=6, frame_size=31))[0]
    assert wide.shape[0] == 45 and np.isfinite(wide).all()
    assert relative(wide[: len(want)], want) < 1e-5


def test_raw_pixels_and_their_patches_are_the_same_input():
    _, encoder, params = encoders()
    given = inputs(encoder.config)
    pixels = np.random.default_rng(1).integers(0, 256, (1, given.rows_cols.shape[1], 2, 28, 28, 3), np.uint8)
    raw = given.replace(pixels=jnp.asarray(pixels))
    ready = given.replace(pixels=patchify(raw.pixels, encoder.config))
    apply = jax.jit(lambda params, x: encoder.apply({"params": params}, x))
    assert relative(apply(params, raw), apply(params, ready)) < 1e-5
