"""The compiled program: gradients, batching, precision, and compilation for a TPU."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import Sam2VideoModel

from omnir1_jax.models import attention, sam2
from omnir1_jax.models.attention import splash
from omnir1_jax.models.sam2 import scan, video
from omnir1_jax.models.sam2.model import NO_OBJECT
from omnir1_jax.planning import topology
from tests.models.sam2 import oracle_sam2 as oracle

T, SIDE = 3, 64
BOXES = np.array([[[5, 7, 30, 30], [8, 9, 44, 50]], [[30, 33, 60, 60], [2, 2, 40, 30]]], np.float32)
FRAMES = np.array([[0, 2], [1, 1]], np.int32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model = oracle.video_model(2, width=128)
    with oracle.presence(model, 0.6):
        return oracle.save(model, tmp_path_factory.mktemp("sam2") / "video")


def clips(count):
    return np.random.default_rng(0).integers(0, 256, (count, T, 40, 72, 3), np.uint8)


def test_no_gradient_flows_and_the_graph_holds_no_callback(folder):
    """Inside a loss that also depends on other things, neither parameters, pixels nor boxes receive anything."""
    model, params = sam2.load(folder)
    pixels = np.random.default_rng(1).normal(size=(2, SIDE, SIDE, 3)).astype(np.float32)

    def loss(params, pixels, boxes, other):
        tracks = sam2.segment_video(model, params, pixels, boxes, FRAMES[:, :1] * 0)
        return (tracks.logits * other).sum() + tracks.iou.sum() + tracks.scores.sum()

    arguments = (params, pixels, BOXES[:, :1], jnp.float32(2.0))
    grads = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))
    lowered = grads.lower(*arguments)
    assert "callback" not in lowered.as_text()
    backward = lowered.cost_analysis()["flops"]
    forward = jax.jit(loss).lower(*arguments).cost_analysis()["flops"]
    assert backward < 1.05 * forward
    *blocked, other = grads(*arguments)
    assert all((np.asarray(g) == 0).all() for g in jax.tree.leaves(blocked))
    assert abs(float(other)) > 1


def test_clips_can_be_batched_and_objects_come_in_chunks(folder):
    """`vmap` over clips and chunks of one object give what single clips and one chunk of two give."""
    model, params = sam2.load(folder, memory_dtype="float32", direction="both", frame_chunk=2)
    narrow = sam2.load(folder, memory_dtype="float32", direction="both", object_chunk=1)[0]
    segment = jax.jit(sam2.segment_video, static_argnums=0)
    batch = clips(2)
    batched = jax.jit(jax.vmap(functools.partial(sam2.segment_video, narrow), in_axes=(None, 0, None, None)))(
        params, batch, BOXES, FRAMES
    )
    for i, clip in enumerate(batch):
        alone = segment(model, params, clip, BOXES, FRAMES)
        assert np.asarray(alone.known).all() and (np.asarray(alone.scores) > 0).any()
        for got, expected in zip(batched, alone, strict=True):
            np.testing.assert_allclose(got[i], expected, atol=5e-3, rtol=1e-4)


def test_bfloat16_is_as_near_to_float32_as_torch(folder):
    """The yardstick of what bf16 allows is transformers' own model in bf16 on the same clip; medians over objects and
    frames, since a mask chosen on a knife's edge may differ in either."""
    rng = np.random.default_rng(2)
    pixels = rng.normal(size=(T, SIDE, SIDE, 3)).astype(np.float32)
    boxes = np.sort(rng.uniform(0, SIDE, (4, 2, 2)), axis=1).reshape(4, 4).astype(np.float32)
    torch_model = Sam2VideoModel.from_pretrained(folder).eval()
    exact = oracle.track(torch_model, pixels, {0: boxes}, [(0, False)])
    half = oracle.track(torch_model.to(torch.bfloat16), pixels, {0: boxes}, [(0, False)], torch.bfloat16)
    model, params = sam2.load(folder, dtype=jnp.bfloat16)
    segment = jax.jit(sam2.segment_video, static_argnums=0)
    ours = segment(model, params, pixels, boxes[:, None], np.zeros((4, 1), np.int32)).logits
    assert ours.dtype == jnp.float32
    exact, half = (np.stack([run[f][0] for f in range(T)], axis=1) for run in (exact, half))
    off = lambda logits: np.median(np.abs(logits - exact).mean(axis=(2, 3))[(exact > NO_OBJECT).all(axis=(2, 3))])
    assert (exact > NO_OBJECT).mean() > 0.5 and off(half) > 0
    assert off(np.asarray(ours)) < 1.3 * off(half)


def test_random_parameters(folder):
    """`init` gives the tree that `load` gives, abstractly checked."""
    config = sam2.read_config(folder)
    made = jax.eval_shape(functools.partial(sam2.init, config), jax.random.key(0))
    shapes = lambda tree: jax.tree.map(lambda x: x.shape, tree)
    assert shapes(nn.meta.unbox(made)) == shapes(sam2.load(folder)[1])


def hbm_gib(config, chip, frames=24, objects=24, boxes=4, height=480, width=854):
    """Memory of one chip that tracking takes, with arguments; parameters in the config's dtype."""
    here = jax.sharding.SingleDeviceSharding(topology.devices_of(chip)[0])
    shape = lambda shape, dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=here)
    arguments = (
        jax.tree.map(lambda x: shape(x.shape, config.dtype), nn.meta.unbox(sam2.abstract_params(config))),
        shape((frames, height, width, 3), jnp.uint8),
        shape((objects, boxes, 4), jnp.float32),
        shape((objects, boxes), jnp.int32),
        shape((objects, boxes), jnp.bool_),
    )
    memory = jax.jit(sam2.segment_video, static_argnums=0).lower(sam2.Sam2(config), *arguments).compile()
    memory = memory.memory_analysis()
    total = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return (total - memory.alias_size_in_bytes) / 2**30


def test_a_small_model_compiles_for_tpu(folder):
    """With the TPU compiler, from this machine; the size of the outputs is exact, so the program is the whole one."""
    config = sam2.read_config(folder, dtype="bfloat16", object_chunk=2)
    assert 0 < hbm_gib(config, "v5e:1x1", frames=2, objects=2, boxes=1, height=48, width=80) < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("chip", ["v5e:1x1", "v5p:1x1x1"])
def test_large_fits_one_chip(chip, dtype):
    """24 objects through 24 frames at 1024 pixels."""
    used = hbm_gib(sam2.Sam2Config(hiera=sam2.SIZES["large"], dtype=dtype), chip)
    assert used < {"v5e:1x1": 15.5, "v5p:1x1x1": 94.0}[chip]


def test_memory_attention_through_the_fused_kernel(monkeypatch):
    """A frame recalls three memories, of which one is not there: the kernel's program against plain XLA, bfloat16."""
    options = dict(side=256, width=128, memory_channels=32, attention_layers=2, attention_mlp=64, dtype="bfloat16")
    model = sam2.Sam2(sam2.Sam2Config(**options))
    draw = lambda seed, *shape: jax.random.normal(jax.random.key(seed), shape, jnp.bfloat16)
    maps = draw(2, 2, 3, 256, 32).at[:, 1].set(1e3)  # what is not seen may be anything
    seen, pointed = jnp.array([[True, False, True]] * 2), jnp.ones((2, 1), bool)
    given = draw(1, 2, 16, 16, 128), maps, jnp.array([[6, 0, 1]]), seen, draw(3, 2, 1, 128), jnp.ones((2, 1)), pointed
    init = jax.jit(functools.partial(model.init, method=sam2.Sam2.recall))  # what recalling needs alone
    params = nn.unbox(init(jax.random.key(0), *given)["params"])
    recall = lambda: model.apply({"params": params}, *given, method=sam2.Sam2.recall).astype(jnp.float32)
    want, calls = recall(), []

    def interpreted(q, k, v, *, mask, implementation):
        calls.append((q.shape, k.shape, v.shape))
        return splash.attend(q, k, v, mask=mask, scale=q.shape[-1] ** -0.5, interpret=True)

    monkeypatch.setattr(attention, "automatic", lambda *_: "splash")
    monkeypatch.setattr(attention, "attend", interpreted)
    np.testing.assert_allclose(recall(), want, atol=0.06)
    keys = 3 * 256 + 4  # the values of the memories are as narrow as the memories are stored
    assert {*calls} == {((2, 256, 1, 128),) * 3, ((2, 256, 1, 128), (2, keys, 1, 128), (2, keys, 1, 32))}


@pytest.mark.parametrize("direction", ["forward", "reverse", "from_first_prompt", "both"])
def test_only_frames_without_a_prompt_are_steps(direction):
    """Idle steps go last, and the last word on each frame stays where it was: its step looks at that frame."""
    at, used = jnp.array([[1, 3], [2, 0], [0, 0]]), jnp.array([[True, True], [True, False], [False, False]])
    first = jnp.array([1, 2, 0])
    start = {"forward": jnp.zeros(3, int), "reverse": jnp.full(3, 4)}.get(direction, first)
    prompts = video.Prompts(jnp.zeros((3, 2, 4)), at, used, start)
    config = sam2.Sam2Config(direction=direction)
    (frames, _, active), place = video._schedule(config, 5, jnp.ones(5, bool), prompts)
    counts = active.sum(axis=0).tolist()
    assert counts == {"from_first_prompt": [2, 2, 0]}.get(direction, [3, 4, 0])
    for n, count in enumerate(counts):
        assert active[:count, n].all() and not {*frames[:count, n].tolist()} & {*at[n][used[n]].tolist()}
        found = {int(frames[place[n, t], n]): t for t in range(5) if active[place[n, t], n]}
        assert len(found) == count and all(frame == t for frame, t in found.items())


def test_a_scan_that_ends_early_takes_no_step_more():
    taken = []

    def step(total, x):
        jax.debug.callback(lambda: taken.append(1))
        return total + x, total * x

    xs = jnp.arange(1.0, 7.0)
    total, stacked = jax.jit(lambda count: scan.scan_first(step, jnp.ones(()), xs, count))(jnp.asarray(4))
    jax.effects_barrier()
    assert len(taken) == 4 and total == 11 and stacked.tolist() == [1, 4, 12, 28, 0, 0]
