"""Plans: what they refuse, what they find of memory, and (slow) whole compilations for a TPU."""

import importlib.util
import json
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from omnir1_jax import plan as command
from omnir1_jax.config.settings import CELL, datasets, defaults, task
from omnir1_jax.errors import InputError
from omnir1_jax.parallel import make_mesh
from omnir1_jax.planning import (
    abstract,
    batches,
    hlo,
    lowering,
    memory,
    operations,
    price,
    rates,
    report,
    scaling,
    search,
    step,
    topology,
    traffic,
    validation,
)
from omnir1_jax.planning import table as table_module
from omnir1_jax.planning.operations import Assumptions
from omnir1_jax.planning.table import table
from omnir1_jax.tasks import vos
from tests.rl import small

ROOT = pathlib.Path(__file__).parent.parent.parent


def released(**changes):
    """The paper's run as shapes, smaller where a test has no use for size."""
    c = step.paper_config()
    c.data.vos.batch_size = 8
    c.step.score_lengths = ()
    c.update_from_flattened_dict(changes)
    return c


def test_shapes_of_a_video_batch_are_those_of_the_pipeline(monkeypatch):
    """A config with the small run's sizes gives its batch, array by array."""
    config = small.example_config("vos")
    thinker = small.thinker_config()
    c = defaults()
    c.data = dict(vos=task(datasets=datasets(synthetic={}), batch_size=2, frames=small.FRAMES, objects=config.objects))
    c.prompts.text_tokens, c.prompts.max_aspect = config.text_tokens, config.max_aspect
    budget, sharp = config.policy_budget, config.sharp_budget
    c.pixels.policy_image = (budget.image_min, budget.image_max)
    c.pixels.policy_video = (budget.video_min, budget.video_max)
    c.pixels.sharp = (sharp.image_min, sharp.image_max)
    c.sam2.side = small.SIDE
    real = small.batches("vos", 2)[0]
    made = batches.batch_of(c, "vos", vos.TASK, thinker)
    # The small run's prompt of System 2 has another length.
    longer = real.sharp.tokens.shape[1] - made.sharp.tokens.shape[1]
    monkeypatch.setattr(batches, "PREFIX", batches.PREFIX + longer)
    made = batches.batch_of(c, "vos", vos.TASK, thinker)
    shape = lambda x: (x.shape, np.dtype(x.dtype))
    assert jax.tree.map(shape, made) == jax.tree.map(shape, real)


def test_the_released_sizes():
    """7B has 7,615,616,512 parameters in the decoder, head and embedding apart."""
    program = abstract.program(released())
    sizes = jax.tree.map(lambda x: int(np.prod(x.shape)), abstract.nn.unbox(program.trainable))
    assert sum(jax.tree.leaves(sizes)) == 7_615_616_512
    assert program.models.segmenter.model.config.hiera.dims == (144, 288, 576, 1152)


def test_memory_of_the_arguments_by_hand():
    """Full fine-tuning over 8 devices: four bytes a weight, eight of moments, an eighth each, but for the norms."""
    config = released()
    program = abstract.program(config)
    parts = report.resident(program, "vos", make_mesh({"fsdp": 8}))
    weights = 4 * 7_615_616_512 / 8
    assert abs(parts["weights trained"] - weights) < 0.01 * weights
    assert abs(parts["optimiser"] - 2 * weights) < 0.01 * weights
    assert abs(parts["SAM 2.1 weights"] - 2 * 224.4e6 / 8) < 0.1 * 2 * 224.4e6
    kept = report.caches(program, config, "vos", make_mesh({"fsdp": 8}))
    assert kept["cache of rollouts"] == 2 * 28 * 4 * 128 * 2 * (1850 + 8 * 768)


@pytest.mark.parametrize(
    "name, words",
    [("v7:2x2", "v4, v5e"), ("v5e", "counts"), ("v5e:²x4", "counts"), ("v5e:3x5x7x9", "no 'v5e:3x5x7x9'")],
)
def test_topologies_that_do_not_exist_are_refused(name, words):
    with pytest.raises(InputError, match=words):
        topology.devices_of(name)


def test_a_batch_that_does_not_divide_names_the_number():
    config = released()
    config.data.vos.batch_size = 6
    with pytest.raises(InputError, match=r"data.vos.batch_size: 6 .* = 4; take 8"):
        report.plan(config, "v5p:2x2x1")
    config.data.vos.batch_size, config.mesh.tensor = 8, 3
    with pytest.raises(InputError, match="3"):
        report.plan(config, "v5p:2x2x1")
    config.thinker.path = "weights/of-mine"
    config.mesh.tensor = 1
    with pytest.raises(InputError, match="thinker.path: 'weights/of-mine'"):
        report.plan(config, "v5p:2x2x1")


def test_a_task_of_weight_0_is_not_planned():
    """Known by the task whose batch is refused: of those that are drawn the first that segments, else the first."""
    config = released()
    families = {"question": "qa", "first": "vos", "second": "vos"}
    entry = lambda family: task(datasets=datasets(synthetic={}), batch_size=6, family=family)
    config.data = {name: entry(family) for name, family in families.items()}
    for planned in ("first", "second", "question"):
        with pytest.raises(InputError, match=rf"data.{planned}.batch_size: 6 prompts"):
            report.plan(config, "v5p:2x2x1")
        config.data[planned].weight = 0.0


def test_what_to_shrink_is_the_largest_part():
    """Of the arguments where they are most of it, else of the stage whose temporaries are largest."""
    config, mesh = released(), make_mesh({"fsdp": 8})
    advice = lambda parts, stage: report.shrink(config, "vos", mesh, parts, 32, stage)
    assert advice({"weights trained": 9, "optimiser": 20}, "sample").startswith("optimiser")
    assert "lora.rank" in advice({"weights trained": 9, "optimiser": 20}, "sample")
    assert advice({"optimiser": 3}, "sample") == "the sample stage's temporaries: step.group or step.max_tokens"
    assert "sam2.object_chunk" in advice({"optimiser": 3}, "segment")
    config.thinker.remat, config.data.vos.batch_size = "dots", 16
    assert "batch_size: now 2 prompts a chip, or thinker.remat: 'full'" in advice({"optimiser": 3}, "update")


def residuals(layers: int):
    """The gradient of a scan on a TPU: an input of 128 MiB and a product of as much kept for each layer."""
    here = jax.sharding.SingleDeviceSharding(topology.devices_of("v5e:1x1")[0])
    shape = lambda *dims: jax.ShapeDtypeStruct(dims, jnp.bfloat16, sharding=here)

    def loss(x, w):
        with jax.named_scope("update"):
            return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0].astype(jnp.float32).sum()

    with jax.default_matmul_precision("default"):
        return jax.jit(jax.grad(loss, argnums=(0, 1))).lower(shape(2**16, 1024), shape(layers, 1024, 1024))


def test_temporaries_are_told_by_phase_whether_the_program_fits_or_not():
    for layers, fits in ((4, True), (200, False)):
        seen = report.compiled(residuals(layers))
        assert seen.fits is fits
        assert seen.notes.arguments == 2**27 + layers * 2**21
        assert 0 <= seen.notes.outputs - seen.notes.arguments < 4096  # and the tuple of both
        kept = layers * 2**27
        peaks = memory.peaks(seen.notes, ("encode", "update"))
        assert peaks.keys() <= {"update", "other"} and kept <= peaks["update"] <= 4 * kept + 2**30
        assert peaks["update"] <= seen.notes.scratch <= seen.total()
        first = memory.largest(seen.notes, 3)[0]
        assert first["bytes"] == kept and f"[{layers},65536,1024]" in first["shape"] and "update" in first["path"]


def test_a_compiler_without_notes_is_named(tmp_path):
    with pytest.raises(InputError, match="leaves no notes"):
        memory.read(tmp_path)


def test_weak_scaling_keeps_the_prompts_of_a_chip(monkeypatch):
    def plan(config, name, **_):
        chips, size = len(topology.devices_of(name)), config.data.vos.batch_size
        said = lambda value: {"total": value}
        return {
            "chips": chips, "batch_size": size, "fits": True, "stages": ["update"], "compile_seconds": 1.0,
            "hbm_bytes_per_chip": said(2 * topology.GIB), "operations": said(1e12 * (1 + 0.01 * (chips > 4))),
            "collective_bytes": said(3e9), "collective_share": 0.25, "seconds_estimate": said(0.5),
        }  # fmt: skip

    monkeypatch.setattr(report, "plan", plan)
    plans = scaling.weak(released(), ["v5p:2x2x1", "v5p:2x2x4"], log=lambda line: None)
    assert [(one["chips"], one["batch_size"]) for one in plans] == [(4, 8), (16, 32)]
    lines = table_module.scaling(plans).splitlines()
    assert lines[3].split() == ["16", "32", "2.00", "1.01", "1.0100", "3.00", "25.0%", "0.50"]
    with pytest.raises(InputError, match="v5p:2x2x1 has 4 chips, not a multiple of .*16"):
        scaling.weak(released(), ["v5p:2x2x4", "v5p:2x2x1"], log=lambda line: None)


@pytest.mark.parametrize("name, devices", [("v4:2x2x1", 4), ("v5e:2x2", 4), ("v5p:2x2x1", 4), ("v6e:2x2", 4)])
def test_a_chip_has_the_memory_that_the_compiler_grants(name, devices):
    chips = topology.devices_of(name)
    assert len(chips) == devices  # one device per chip
    array = jax.ShapeDtypeStruct((200 * topology.GIB,), jnp.int8, sharding=SingleDeviceSharding(chips[0]))
    with pytest.raises(jax.errors.JaxRuntimeError) as refused:
        jax.jit(lambda x: x + 1).lower(array).compile()
    granted = float(re.search(r"available HBM \(([\d.]+)G\)", str(refused.value))[1])
    assert topology.chip_of(name).memory == pytest.approx(granted * topology.GIB, abs=0.011 * topology.GIB)


def test_stages_that_do_not_exist_are_refused():
    program = abstract.program(tiny())
    with pytest.raises(InputError, match="--stages: 'learn' is none of encode, sample"):
        list(lowering.lower_stages(program, "qa", make_mesh({"fsdp": 1}, jax.devices()[:1]), ["learn"]))


def test_plans_of_several_configs_make_one_table(tmp_path):
    plan = {
        "config": "colab", "topology": "v5e:1x1", "mesh": {"data": 1, "fsdp": 1}, "batch_size": 1, "fits": True,
        "hbm_bytes_per_chip": {"total": 11 * topology.GIB, "capacity": 16 * topology.GIB},
        "operations": {"total": 2.9e14}, "seconds_estimate": {"total": 8.7}, "collective_share": 0.0,
    }  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps(plan))
    (tmp_path / "list.json").write_text("[]")
    text = table_module.summary([command.read_plan(str(tmp_path / "a.json"))])
    assert text.splitlines()[-1] == "| colab | v5e:1x1 | one chip | 1 | 11.00 | 16.00 | yes | 290 | 0% | 8.7 |"
    with pytest.raises(InputError, match="no such file"):
        command.read_plan(str(tmp_path / "b.json"))
    with pytest.raises(InputError, match="is not a JSON object"):
        command.read_plan(str(tmp_path / "list.json"))


def test_meshes_divide_the_batch_and_cut_layers_last():
    config = released()
    config.data.vos.batch_size = 4
    found = search.meshes(config, 8)
    assert [tuple(one.values()) for one in found[:2]] == [(1, 4, 2), (2, 2, 2)]
    assert {tuple(one.values()) for one in found} == {(1, 4, 2), (2, 2, 2), (4, 1, 2), (1, 2, 4), (2, 1, 4)}
    changed = search.changed(config, search.fastest(found[0]))
    assert changed.thinker.remat == "dots_no_batch" and config.thinker.remat == "full"
    config.data.vos.batch_size = 3
    with pytest.raises(InputError, match="no mesh of 8 chips divides the batches; take a multiple of 8"):
        search.cheapest(config, "v5e:2x4")


def weighed(config, name, *, hbm, **_):
    """A plan by formula: what the settings would take."""
    update = {"dots_no_batch": 30, "attention": 12, "full": 5}[config.thinker.remat]
    peaks = {
        "sample": 2,
        "segment": 3 * config.sam2.object_chunk,
        "update": update + config.step.score_chunk / 64,
    }
    peaks = {stage: int(size * topology.GIB) for stage, size in peaks.items()}
    peaks["other"] = peaks["update"]  # what is of no stage runs beside one
    held = int(16 * topology.GIB * config.mesh.data / (8 / config.mesh.tensor))
    total, capacity = held + max(peaks.values()), int(hbm * topology.GIB)
    return {
        "fits": total <= capacity, "temporaries_by_phase": peaks,
        "seconds_estimate": {"total": 10 * config.mesh.tensor - config.mesh.data + 1 / update},
        "hbm_bytes_per_chip": {"total": total, "capacity": capacity, "temporaries": max(peaks.values())},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("hbm", "tries", "chosen", "count"),
    [
        (40.0, 12, {"remat": "dots_no_batch", "score_chunk": 256, "object_chunk": 4, "data": 2}, 9),
        (16.0, 12, {"remat": "full", "score_chunk": 256, "object_chunk": 4, "data": 2}, 11),
        (9.0, 3, {"remat": "full", "score_chunk": 256, "object_chunk": 1, "data": 1}, 3),
    ],
)
def test_search_makes_smaller_what_is_too_large_and_then_compares_meshes(monkeypatch, hbm, tries, chosen, count):
    monkeypatch.setattr(report, "plan", weighed)
    config, told = released(), []
    found = search.cheapest(config, "v5e:2x4", hbm=hbm, log=told.append, tries=tries)
    choice = found["choice"]
    assert found["fits"] == (hbm > 9) and len(told) == count
    assert choice | {"data": choice["mesh"]["data"]} == choice | chosen
    assert choice["mesh"]["tensor"] == 1


def test_traffic_of_a_loop_over_a_sharded_product():
    """Each trip gathers w and reads it: bytes over links and of memory by hand."""
    mesh = make_mesh({"fsdp": 8})
    place = lambda *axes: jax.sharding.NamedSharding(mesh, jax.P(*axes))

    def loop(x, w):
        with jax.named_scope("turn"):
            step = lambda x, _: (jnp.tanh(x @ w), None)
            return jax.lax.scan(step, x, None, length=5)[0]

    shapes = jax.ShapeDtypeStruct((64, 256), jnp.float32), jax.ShapeDtypeStruct((256, 256), jnp.float32)
    program = jax.jit(loop, in_shardings=(place("fsdp"), place()), out_shardings=place("fsdp")).lower(*shapes)
    module = hlo.parse(program.compile().as_text())
    moved = traffic.by_phase(module, Assumptions(), ("turn",))
    assert moved.links == {"turn": 0, "other": 0}
    w, x = 4 * 256 * 256, 4 * 8 * 256
    assert 5 * (w + 2 * x) <= moved.memory["turn"] <= 5 * (w + 8 * x)
    reduced = jax.jit(lambda x: x.sum(0), in_shardings=place("fsdp"), out_shardings=place()).lower(shapes[1])
    moved = traffic.by_phase(hlo.parse(reduced.compile().as_text()), Assumptions(), ())
    assert moved.links["other"] == 2 * 4 * 256


def test_traffic_of_a_sort_is_a_pass_for_each_doubling():
    rows = jax.ShapeDtypeStruct((4, 1000), jnp.float32)
    moved = traffic.by_phase(hlo.parse(jax.jit(jnp.sort).lower(rows).compile().as_text()), Assumptions(), ())
    assert moved.memory["other"] == 10 * 2 * 4 * 4 * 1000


def tiny(**changes):
    """Questions about short clips: the smallest program with sampling and learning in it."""
    c = defaults()
    c.thinker.path, c.sam2.path = "Qwen2.5-Omni-3B", ""
    c.lora.rank = 8
    c.pixels.policy_video = (4 * CELL, 8 * CELL)
    c.data = dict(qa=task(datasets=datasets(videor1={}), batch_size=4, frames=4))
    c.prompts.text_tokens, c.step.max_tokens, c.step.group = 64, 32, 2
    c.update_from_flattened_dict(changes)
    return c


# Multiply-accumulates of a token in a 3B decoder: its layers, its head.
LINEAR = 36 * (2 * 2048 * 2048 + 2 * 2048 * 256 + 3 * 2048 * 11008)
HEAD = 2048 * 151936


def test_operations_of_a_released_model_by_formula():
    """3B on short prompts: passes over the decoder's weights, phase by phase, within 3 percent."""
    program = abstract.program(tiny(**{"thinker.attention": "xla"}))
    module = hlo.parse(lowering.lower(program, "qa").as_text("hlo", debug_info=True))
    rollout = step.longest(program, "qa")
    found = step.by_phase(module, step.assumptions(program, rollout))
    text = program.models.thinker.config.text
    prompt = program.batches["qa"].policy.tokens.shape[1]
    assert text.num_layers == 36 and prompt == 82
    tokens = 4 * (prompt + 2 * 32)
    assert found["sample/decode"] == pytest.approx(2 * 4 * 2 * 31 * (LINEAR + HEAD), rel=0.03)
    assert found["update/reference"] == pytest.approx(2 * (tokens * LINEAR + 4 * 64 * HEAD), rel=0.03)
    assert found["update"] == pytest.approx(2 * (tokens * LINEAR + 4 * 64 * HEAD), rel=0.03)  # and a small adapter
    total = operations.total(module, step.assumptions(program, rollout))
    assert found["other"] == 0 and total > 0
    # What a run counts of its steps: each decoded token is a pass over the weights for each of 4 x 2 completions.
    count = rates.counted(program, "qa", module)
    assert count({}) == count({"completion/longest": 32}) == pytest.approx(total)
    ten = count({"completion/longest": 22}) - count({"completion/longest": 12})
    assert ten == pytest.approx(2 * 4 * 2 * 10 * (LINEAR + HEAD), rel=0.03)


def test_a_validation_is_lowered_for_the_mesh_of_the_run():
    """Three questions at a time over eight devices are eight rows of one answer each, as long as the policy's."""
    config = tiny(**{"validate.batch_size": 3, "thinker.attention": "xla"})
    program, mesh = abstract.program(config), make_mesh({"data": 2, "fsdp": 4})
    (lowered,) = validation.lower(program, config, "qa", mesh)
    assert lowered.out_info.tokens.shape == (8, 1, 32)
    answering = validation.answering(program)
    assumed = validation.assumptions(answering, config, "qa", step.longest(answering, "qa"))
    found = step.by_phase(hlo.parse(lowered.as_text("hlo", debug_info=True)), assumed)
    assert found["sample/decode"] == pytest.approx(2 * 8 * 31 * (LINEAR + HEAD), rel=0.03) and found["other"] == 0
    config.validate.every, config.validate.limit, config.steps = 50, 100, 325
    found = validation.seconds(config, "qa", mesh, 2.0)  # 13 batches of 8 items
    assert (found["seconds"], found["seconds_per_step"], found["times"]) == (26.0, 0.52, 8)
    assert "26.0 s for 100 (roofline); 8 times, 0.52 s a step" in table_module.validation(found)
    config.validate.limit, config.validate.benchmark, config.validate.split = 0, "refavs", "elsewhere"
    assert "give validate.limit" in table_module.validation(validation.seconds(config, "qa", mesh, 2.0))


def test_the_command_refuses_in_one_line():
    words = [sys.executable, "-m", "omnir1_jax.plan", "--config", "configs/revos.py", "--topology", "v7:2x2"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert [line for line in done.stderr.splitlines() if line][-1].startswith("error: --topology: 'v7:2x2' is of no")


def test_the_table_says_what_the_plan_holds():
    plan = {
        "topology": "v5e:1x1", "chips": 1, "mesh": {"data": 1}, "batch_size": 1, "remat": "full",
        "parameters": 5_000_000,
        "hbm_bytes_per_chip": {"total": 3 * topology.GIB, "capacity": 16 * topology.GIB}, "fits": True,
        "operations": {"total": 2e12, "encode": 2e12}, "bytes": {"total": 5e9, "encode": 5e9},
        "collective_bytes": {"total": 0.0, "encode": 0.0}, "seconds_estimate": {"total": 0.5, "encode": 0.5},
        "collective_share": 0.25, "rollout": {"completion": 7},
    }  # fmt: skip
    text = table(plan)
    assert "5.0 M parameters" in text and text.endswith("fits") and "links are 25%" in text
    assert re.search(r"encode +2.00 +5.0 +0.00 +0.500", text) and re.search(r"total +3.00\n", text)
    largest = [{"bytes": topology.GIB, "shape": "bf16[2,3]", "path": "jit(f)/update/dot_general"}]
    large = plan | {"fits": False, "shrink": "x", "largest_temporaries": largest}
    assert table(large).endswith("does not fit; shrink x")
    assert re.search(r"bf16\[2,3\] +1.00 +jit\(f\)/update/dot_general", table(large))


@pytest.mark.slow
def test_the_one_chip_config_fits_its_chip():
    """3B with an adapter, both systems and SAM 2.1 in one program on 16 GiB, as configs/colab.py has it."""
    given = importlib.util.spec_from_file_location("colab", ROOT / "configs/colab.py")
    module = importlib.util.module_from_spec(given)
    given.loader.exec_module(module)
    with jax.default_matmul_precision("default"):
        found = report.plan(module.get_config(), "v5e:1x1", effort=-1.0)
    memory_, stages = found["hbm_bytes_per_chip"], {"sample", "ground", "segment", "update"}
    assert found["fits"] and 9 * topology.GIB < memory_["total"] < 15 * topology.GIB
    assert stages <= found["temporaries_by_phase"].keys()
    by_stage = step.by_stage({name: size for name, size in found["operations"].items() if name != "total"})
    assert all(by_stage[name] > 1e12 for name in stages) and by_stage["other"] == 0
    assert found["collective_bytes"]["total"] == 0


@pytest.mark.slow
def test_a_validation_needs_room_beside_the_training_state():
    with jax.default_matmul_precision("default"):
        found = report.plan(tiny(), "v5e:1x1", stages=["validate"], effort=-1.0)
    memory_ = found["hbm_bytes_per_chip"]
    held = sum(size for name, size in memory_.items() if "weights" in name or name in ("optimiser", "batch and tables"))
    assert memory_["total"] > held + 2 * 3e9 and "operations" not in found  # the policy's decoder in bfloat16
    assert found["validation"]["seconds"] > 0
    assert table(found).endswith("fits")


@pytest.mark.slow
def test_a_plan_for_four_chips_and_one_that_does_not_fit():
    with jax.default_matmul_precision("default"):
        found = report.plan(tiny(**{"mesh.fsdp": 4}), "v5e:2x2")
        small_chip = report.plan(tiny(**{"mesh.fsdp": 4}), "v5e:2x2", hbm=0.5)
    assert found["fits"] and 0 < found["hbm_bytes_per_chip"]["total"] < 16 * topology.GIB
    assert found["operations"]["total"] > 0 and found["seconds_estimate"]["total"] > 0
    assert found["collective_bytes"]["total"] > 0
    json.dumps(found)
    assert not small_chip["fits"] and small_chip["shrink"]


def test_what_a_run_costs():
    """8 chips, 325 steps of 35 s, 6 minutes of compilation, 13 checkpoints of 2.4 GB at 0.1 GB/s."""
    config = defaults()
    config.steps, config.checkpoint.every = 325, 25
    memory = {"weights trained": int(1e8), "optimiser": int(2e8)}
    plan = dict(chips=8, hbm_bytes_per_chip=memory, seconds_estimate={"total": 35.0}, compile_seconds=360.0)
    found = price.run(plan, config, 1.2)
    assert found["chip hours"] == pytest.approx(8 * (325 * 35 + 360 + 13 * 24) / 3600)
    assert found["dollars"] == pytest.approx(1.2 * found["chip hours"])
    assert price.line(found, plan, config).endswith("0.09 h checkpoints; 26.8 chip hours on 8 chips, 32.13 USD")
