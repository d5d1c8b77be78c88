"""System 2 of one's own: objects and functions from files outside the package, another thinker, masks from text."""

import dataclasses
import json
import pathlib
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omnir1_jax.build import data
from omnir1_jax.build import models as build
from omnir1_jax.build import run as setup
from omnir1_jax.config import lookup
from omnir1_jax.config.settings import defaults
from omnir1_jax.data.preprocess import tokens
from omnir1_jax.data.preprocess.settings import Sizes
from omnir1_jax.errors import InputError
from omnir1_jax.models.qwen_omni.sample import Sampling
from omnir1_jax.models.qwen_omni.thinker import Thinker, abstract_params
from omnir1_jax.parallel import make_mesh
from omnir1_jax.planning import abstract
from omnir1_jax.rl import grpo, learn, step
from omnir1_jax.rl.config import Models
from omnir1_jax.systems import grounders, reasoner, segmenters
from omnir1_jax.systems.frames import HighResFrames, high_res_arrays
from omnir1_jax.systems.grounders import Requests
from omnir1_jax.systems.grounders.thinker import ThinkerGrounder, ThinkerParams
from omnir1_jax.tasks import TASKS
from omnir1_jax.tasks.description import assemble
from omnir1_jax.text.bpe import bpe_tables
from omnir1_jax.text.prompt import template
from omnir1_jax.text.strings import Buffer
from omnir1_jax.text.vocab import byte_vocab, pack
from omnir1_jax.training.loop import train
from tests.data import qwen_oracle
from tests.inference import scripted
from tests.inference import small as inference
from tests.rl import small

PLAN = '<answer>{"start_time": "00:00.00", "end_time": "00:00.90", "description": "the red one"}</answer>'
DOCS = pathlib.Path(__file__).parents[2] / "docs"
GROUNDER = lookup.load(f"{DOCS}/examples/grounder.py:GROUNDER", "test")


def requests(frame, texts) -> Requests:
    """One completion with a request for each frame, for each prompt."""
    text = pack([t.encode() for row in texts for t in row], 32)
    shape = (len(texts), 1, len(texts[0]))
    grouped = jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), Buffer(*text))
    return Requests(jnp.asarray(frame).reshape(shape), jnp.ones(shape, bool), grouped)


@pytest.fixture(scope="module")
def batch():
    return small.batches("vos", 2)[0]


def test_frames_are_images_on_a_canvas_that_takes_any(batch):
    frames = batch.sharp
    rgb = np.asarray(frames.rgb())
    for b, t in np.ndindex(2, 3):
        width, height = frames.resized[b]
        used = int(width * height) // small.CELL**2
        own = assemble(np.asarray(frames.cells[b, t, :used]), np.asarray(frames.rows_cols[b, :used]))
        np.testing.assert_array_equal(rgb[b, t, :height, :width], own)
        assert not rgb[b, t, height:].any() and not rgb[b, t, :, width:].any()
    assert rgb.shape[2] == rgb.shape[3] and rgb.any()


def test_the_example_finds_the_pixels_of_a_colour_in_the_graph_and_on_the_host(batch):
    pixels = np.asarray(batch.sharp.rgb()).astype(np.float32)
    colours = {"red": (214, 34, 40), "green": (44, 160, 54), "blue": (36, 70, 214), "yellow": (246, 222, 48)}
    frame, names = [[0, 3, 2, 5], [1, 1, 4, 0]], [["a red one", "blue", "what", "green"], ["yellow", "red", "blue", ""]]
    asked = requests(frame, names)
    found = jax.jit(GROUNDER.ground, static_argnums=3)(GROUNDER.load(None), batch.sharp, asked, 2)
    for b, k in np.ndindex(2, 4):
        value = next((v for name, v in colours.items() if name in names[b][k]), None)
        near = np.linalg.norm(pixels[b, frame[b][k]] - (value or (-999,) * 3), axis=-1) < 60
        y, x = np.nonzero(near)
        assert found.count[b, 0, k] == bool(len(y)) and not found.used[b, 0, k, 1]
        if len(y):
            np.testing.assert_array_equal(found.box[b, 0, k, 0], [x.min(), y.min(), x.max(), y.max()])
    assert 2 < found.used.sum() < 7 and found.frames_read.tolist() == [4, 3]
    host = grounders.make(f"{DOCS}/examples/grounder.py:on_host")
    again = host.ground(None, batch.sharp, asked, 2)
    jax.tree.map(np.testing.assert_array_equal, again, found)


@pytest.fixture
def speaking(monkeypatch):
    """Every completion is PLAN, and nothing is learnt: what is compiled is System 2 and the reward."""
    said = small.spoken([[PLAN] * small.GROUP] * 2, 160)
    monkeypatch.setattr(reasoner, "sample", lambda *_: said)
    monkeypatch.setattr(reasoner, "encode", lambda *_: None)
    zero = jnp.zeros(())
    learned = learn.Learned(zero, zero, zero, zero, grpo.GrpoMetrics(zero, zero, zero, zero))
    monkeypatch.setattr(learn, "learn", lambda *args: (args[3], learned))
    eos = small.step_config().sampling.eos
    return small.step_config(sampling=Sampling(160, eos, 0), completion_bytes=256, keyframes=2)


def run(config, models, batch, mode, frozen=None):
    """Metrics and rollout of a step."""
    frozen = frozen or small.frozen().replace(grounder=models.grounder.load(defaults()), segmenter=None)
    return step.make_train_step(TASKS["vos"], models, small.optimizer(), config, mode)(
        small.state(), frozen, batch, jax.random.key(0)
    )[1:]


def test_a_function_on_the_host_trains_stage_by_stage_with_the_same_numbers(speaking, batch):
    segmenter = segmenters.make(f"{DOCS}/examples/segmenter.py:SEGMENTER", None)
    host = grounders.make(f"{DOCS}/examples/grounder.py:on_host")
    thinker = small.models().thinker
    metrics, rollout = run(speaking, Models(thinker, segmenter, GROUNDER), batch, "staged")
    again, _ = run(speaking, Models(thinker, segmenter, host), batch, "staged")
    assert rollout.grounding.boxes.used.any() and rollout.masks.union.any()
    for name, value in metrics.items():
        np.testing.assert_allclose(again[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    with pytest.raises(InputError, match="step.mode: System 2 is on the host"):
        run(speaking, Models(thinker, segmenter, host), batch, "fused")


def test_masks_of_text_need_no_boxes(speaking, batch):
    """Nobody grounds; the boxes are those around the masks, the masks those of the function."""
    segmenter = segmenters.make(f"{DOCS}/examples/segmenter.py:from_text", None)
    metrics, rollout = run(speaking, Models(small.models().thinker, segmenter, GROUNDER), batch, "staged")
    red = np.linalg.norm(np.asarray(batch.sharp.rgb()).astype(np.float32) - [214, 34, 40], axis=-1) < 60
    for b in range(2):
        width, height = np.asarray(batch.sharp.resized[b])
        union = np.asarray(rollout.masks.union[b, 0])
        cover = red[b, :, :height, :width].mean(axis=(1, 2))
        np.testing.assert_allclose(union.mean(axis=(1, 2)), cover, atol=0.03)
        y, x = np.nonzero(red[b, 0])
        if len(y):
            want = [x.min(), y.min(), x.max(), y.max()]
            np.testing.assert_allclose(rollout.grounding.boxes.box[b, 0, 0, 0], want, atol=small.CELL // 4)
    assert rollout.masks.union.any() and rollout.grounding.boxes.used.any() and "reward/segmentation" in metrics


def test_another_thinker_grounds_as_it_does_alone(speaking, tmp_path):
    """A policy of one size, a grounder of another with another tokenizer: its words and boxes are its own."""
    c = inference.config(tmp_path)
    qwen_oracle.tokenizer(320).save_pretrained(str(tmp_path / "other"))
    # As the policy of another run, with weights that say something.
    sizes = dict(
        text=dict(
            hidden_size=32, intermediate_size=48, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=16,
            rope_theta=1e4, mrope_section=(2, 3, 3),
        ),
        vision=dict(
            depth=1, hidden_size=32, intermediate_size=48, num_heads=2, out_hidden_size=32, full_attention_blocks=(0,),
            patch_size=8, window_size=64,
        ),
        audio=dict(num_mel_bins=16, d_model=16, num_layers=1, num_heads=2, ffn_dim=32, output_dim=32, n_window=10),
    )  # fmt: skip
    for section in ("thinker", "grounder"):
        own = inference.config(tmp_path) if section == "thinker" else c
        own.step.grounding_tokens, own.step.description_tokens, own.step.grounding_bytes = 4, 24, 64
        with own.unlocked():
            own[section].update(path="", tokenizer=str(tmp_path / "other"), sizes=sizes)
        found = build.sizes(own)
        loaded = build.load(own, found)
        if section == "thinker":
            alone, params, tables = loaded, loaded.params, build.frozen(own, loaded)
            frames = high_res(own, found)
    mixed = loaded._replace(
        grounder_params=loaded.grounder_params.replace(vision=params["vision"], text=params["text"])
    )
    frozen = build.frozen(c, mixed)
    assert loaded.params["text"]["embed"]["embedding"].shape != params["text"]["embed"]["embedding"].shape
    assert frozen.grounder_params().bpe.merged.shape != frozen.bpe.merged.shape
    jax.tree.map(np.testing.assert_array_equal, high_res(c, found), frames)

    asked = requests([[0, 2]], [["the red one", "Ring"]])
    ground = lambda models, frozen: scripted.quick(models.grounder.ground, static_argnums=3)(
        frozen.grounder_params(), frames, asked, 3
    )
    own, other = ground(alone.models, tables), ground(mixed.models, frozen)
    jax.tree.map(np.testing.assert_array_equal, own, other)
    assert len({row.tobytes() for row in np.asarray(own.answer.bytes[0, 0])}) == 2

    mesh = make_mesh({"fsdp": 2}, jax.devices()[:2])
    spread = build.load(c, found, mesh).grounder_params
    assert (
        not spread.text["embed"]["embedding"].sharding.is_fully_replicated and spread.bpe.merged.sharding.mesh == mesh
    )
    planned = abstract.program(c).frozen.grounder
    shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    assert shapes(abstract.nn.unbox(planned)) == shapes(loaded.grounder_params)


def test_another_thinker_grounds_inside_the_fused_step(speaking):
    """Other widths and another tokenizer than the policy's: the step's words and boxes are those it gives alone."""
    tokenizer, base = qwen_oracle.tokenizer(320), small.thinker_config()
    sizes = dataclasses.replace(
        base,
        text=dataclasses.replace(base.text, vocab_size=len(tokenizer), hidden_size=32),
        vision=dataclasses.replace(base.vision, out_hidden_size=32),
        audio=dataclasses.replace(base.audio, output_dim=32),
        tokens=tokens.token_ids(tokenizer),
    )
    grounder = ThinkerGrounder(Thinker(sizes), Sampling(4, sizes.tokens.eos, sizes.tokens.pad, temperature=0.0), 32, 64)
    weights = small.randomise(nn.unbox(abstract_params(sizes)), 7)
    params = ThinkerParams(
        template(tokenizer, small.grounding()),
        weights["vision"],
        weights["text"],
        byte_vocab(tokenizer),
        bpe_tables(tokenizer),
    )
    frozen = small.frozen().replace(grounder=params, segmenter=None)
    assert params.bpe.merged.shape != frozen.bpe.merged.shape

    (batch,) = small.batches("vos", 2, grounder=(tokenizer, Sizes.of(sizes)))
    models = Models(small.models().thinker, segmenters.make(f"{DOCS}/examples/segmenter.py:SEGMENTER", None), grounder)
    _, rollout = run(speaking, models, batch, "fused", frozen)
    boxes, slots = rollout.grounding.boxes, rollout.grounding.boxes.used.shape[-1]
    alone = scripted.quick(grounder.ground, static_argnums=3)(params, batch.sharp, rollout.reading.requests, slots)
    for name in ("box", "count", "failure", "asked", "answer"):
        jax.tree.map(np.testing.assert_array_equal, getattr(boxes, name), getattr(alone, name))
    words = np.asarray(boxes.answer.bytes[:, 0])[np.asarray(boxes.asked[:, 0])]
    assert len({row.tobytes() for row in words}) > 1


def high_res(config, found) -> HighResFrames:
    """Frames of noise as a config's grounder sees them, in a batch of 1."""
    own = data.example_config(config, "vos", found.tokenizer, found.thinker).high_res
    frames = np.random.default_rng(0).integers(0, 256, (4, 64, 96, 3)).astype(np.uint8)
    arrays = high_res_arrays(frames, (64, 96), 4, own)
    return HighResFrames(**{name: jnp.asarray(value)[None] for name, value in arrays.items()})


def test_a_config_trains_with_both_halves_from_files(tmp_path, monkeypatch):
    """The command's loop, System 1 saying PLAN; boxes and masks are those of the files."""
    c = inference.config(tmp_path / "weights", step_group=2, step_max_tokens=96, loader_prefetch=0)
    c.step.grounder = f"{DOCS}/examples/grounder.py:GROUNDER"
    c.step.segmenter = f"{DOCS}/examples/segmenter.py:SEGMENTER"
    c.steps, c.checkpoint.every, c.log.pictures_every, c.log.tensorboard = 2, 0, 0, False
    said = small.spoken([[PLAN] * 2], 96)
    monkeypatch.setattr(reasoner, "sample", lambda *_: said)
    monkeypatch.setattr(setup, "mesh_of", lambda config: None)
    train(c, tmp_path / "run", quiet=True)
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and any(row["reward/vos/boxes"] > 0 for row in rows)
    assert all("reward/vos/segmentation" in row and np.isfinite(row["learn/loss"]) for row in rows)
    frozen = build.frozen(c, build.load(c, build.sizes(c)._replace(sam2=None)))
    assert frozen.segmenter is None and frozen.grounder_params().keys() == {"colours"}


def test_what_is_no_grounder_is_named_before_anything_is_compiled(tmp_path):
    (tmp_path / "own.py").write_text("GROUNDER = 3\n")
    for name, complaint in (
        ("absent", "step.grounder: 'absent' is none of qwen_omni, grounding_dino"),
        (f"{tmp_path}/own.py:GROUNDER", "is neither a grounder nor a function"),
        (f"{tmp_path}/own.py:OTHER", "has no 'OTHER'"),
    ):
        with pytest.raises(InputError, match=re.escape(complaint)):
            grounders.make(name)
    with pytest.raises(InputError, match="step.segmenter: .* is not a segmenter"):
        segmenters.make(f"{tmp_path}/own.py:GROUNDER", None)
