"""Every setting has a rule; what breaks it is refused by name, before anything is compiled; what keeps it builds."""

import dataclasses
import json
import math
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from omnir1_jax.build import data, models, optimizer, valid
from omnir1_jax.build.objectives import OBJECTIVES
from omnir1_jax.build.run import build
from omnir1_jax.config import schema
from omnir1_jax.config import settings as run_settings
from omnir1_jax.config.sections import Mesh, Settings, Task
from omnir1_jax.data import stream
from omnir1_jax.errors import InputError
from omnir1_jax.models import remat
from omnir1_jax.models.attention import dispatch
from omnir1_jax.models.qwen_omni.decoder import Matrix
from omnir1_jax.models.qwen_omni.score import token_logprobs
from omnir1_jax.parallel.mesh import AXES
from omnir1_jax.planning import abstract, lowering
from omnir1_jax.rl import grpo
from omnir1_jax.rl.step import MODES, make_train_step
from tests.old_run.config import get_config

ROOT = pathlib.Path(__file__).parent.parent.parent
TASK = "data.qa."
DATASET = f"{TASK}datasets.synthetic."
RULES, TASK_RULES = schema.flat(Settings), schema.flat(Task)
NAMES = [
    *RULES,
    *(TASK + name for name in TASK_RULES),
    *(DATASET + name for name in (*valid.OPTIONS, "clips", "family", "plain", "config")),
]


@pytest.fixture(autouse=True)
def checkout(monkeypatch):
    monkeypatch.chdir(ROOT)  # the config's tokenizer is relative to it


def with_value(name: str, value: object, config: ConfigDict | None = None) -> ConfigDict:
    """A small config with one setting changed, whatever its type."""
    config = get_config() if config is None else config
    path, _, key = name.rpartition(".")
    section = config
    for part in path.split(".") if path else ():
        section = section[part]
    with config.unlocked(), config.ignore_type():
        section[key] = value
    return config


def prepare(config: ConfigDict, name: str) -> None:
    """All that is done before parameters are read and the step is compiled, and one batch of the data."""
    objective = OBJECTIVES[config.objective]
    sizes = models.sizes(config)
    families = data.families(config, sizes.tokenizer, sizes.thinker, objective.example, objective.example_config)
    if name.startswith(("data", "loader", "seed")):
        batches = stream.Prefetch(
            stream.training_stream(families, data.pipeline_config(config)), depth=config.loader.prefetch
        )
        next(batches)
        batches.close()
    if name.startswith(("optimizer", "lora", "steps", "step.updates")):
        settings = run_settings.typed(config)
        parameters = nn.unbox(models.trained_axes(config, sizes))
        jax.eval_shape(
            optimizer.make(settings.optimizer, settings.steps * settings.step.updates, parameters).init, parameters
        )
    models.step_config(config, sizes.thinker.tokens)


def test_every_setting_has_a_rule_and_a_sentence():
    assert all(isinstance(rule, schema.Rule) for rule in (RULES | TASK_RULES).values())
    for kind in (Settings, Task, *(rule for rule in schema.rules(Settings).values() if isinstance(rule, type))):
        for field in dataclasses.fields(kind):
            assert isinstance(schema.rules(kind)[field.name], type) or field.metadata["doc"], field.name


REGISTERED = {
    "objective": OBJECTIVES,
    "thinker.dtype": models.DTYPES,
    "thinker.param_dtype": models.DTYPES,
    "thinker.remat": remat.POLICIES,
    "thinker.attention": dispatch.IMPLEMENTATIONS,
    "step.mode": MODES,
    "grpo.advantage": grpo.ADVANTAGES,
    "grpo.loss": grpo.LOSSES,
    "optimizer.rule": optimizer.RULES,
    "optimizer.schedule": optimizer.SCHEDULES,
}


@pytest.mark.parametrize("name", REGISTERED)
def test_choices_are_those_that_are_there(name):
    assert [*RULES[name].names] == [*REGISTERED[name]]


def test_mesh_axes_are_those_of_meshes():
    assert tuple(schema.rules(Mesh)) == AXES


def test_defaults_and_experiments_are_valid():
    valid.check(run_settings.defaults())
    for path in (ROOT / "configs").glob("*.py"):
        space = {"__file__": str(path), "__name__": path.stem}
        exec(compile(path.read_text(), path.stem, "exec"), space)
        for arguments in [(part,) for part in space.get("PARTS", ())] or [()]:
            valid.check(space["get_config"](*arguments))


REFUSED = {
    "objective": ("grop", "'grop' is none of grpo, sft, masks"),
    "seed": (-1, "-1 is not a whole number from 0"),
    "steps": (0, "0 is not a whole number from 1"),
    "thinker.dtype": ("float8", "none of float32, bfloat16, float16"),
    "thinker.remat": ("most", "none of none, full"),
    "thinker.attention": ("flash", "none of auto, xla, splash, cudnn"),
    "thinker.sizes": ({"text": {"num_layers": "two"}}, ".text.num_layers: 'two' is not a whole number from 1"),
    "sam2.side": (100, "100 is not a multiple of 64"),
    "sam2.sizes": ({"hiera": {"depth": 3}}, ".hiera.depth: no such setting; there are dims"),
    "sam2.direction": ("sideways", "none of forward"),
    "pixels.sharp": ((10, 5), "falls"),
    "prompts.max_aspect": (math.nan, "not a finite number from 1"),
    "loader.prefetch": (-1, "-1 is not a whole number from 0"),
    "loader.max_bad_share": (1.5, "from 0 to 1"),
    "step.grounder": ("foo", "'foo' is none of qwen_omni"),
    "step.updates": (0, "0 is not a whole number from 1"),
    "step.group": (1, "only the KL term would train"),
    "step.temperature": (0.0, "only the KL term would train"),
    "step.top_p": (0.0, "above 0 to 1"),
    "step.score_lengths": ((128, 0), "an entry that is not a whole number from 1"),
    "grpo.beta": (math.inf, "not a finite number"),
    "grpo.skip_flat_groups": (1, "neither True nor False"),
    "reward.terms": ({"aligment": 1.0}, ".aligment: no such setting; there are structure"),
    "reward.bonus_range": ((750, 320), "falls"),
    "optimizer.rule": ("adam", "'adam' is none of adamw, muon"),
    "optimizer.schedule": ("cosin", "none of cosine, linear, constant"),
    "optimizer.accumulate": (0, "0 is not a whole number from 1"),
    "optimizer.learning_rate": ("1e-3", "'1e-3' is not a finite number"),
    "optimizer.b2": (1.0, "below 1"),
    "lora.alpha": (0.0, "above 0"),
    "mesh.fsdp": (0, "0 is not a whole number from 1, or -1"),
    "checkpoint.keep": (0, "0 is not a whole number from 1"),
    "log.pictures_every": (-5, "-5 is not a whole number from 0"),
    "data.refavs.audio_seconds": (0.0, "the task is about sound"),
    "sam2.path": (3, "3 is not a text"),
    TASK + "batch_size": (0, "0 is not a whole number from 1"),
    TASK + "weight": (-1.0, "from 0"),
    TASK + "keep": (0.3, "0.3 of batch_size, "),
    TASK + "sampling": ("all", "none of training, video, uniform, first"),
    TASK + "example": ("lessons", "none of vos, refavs, refcocog, qa"),
    DATASET + "name": ("synthetical", "none of revos"),
    DATASET + "clps": (3, "no such option of synthetic"),
    DATASET + "plain": ("yes", "neither True nor False"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_value_is_refused_by_the_settings_name(name, monkeypatch):
    value, words = REFUSED[name]
    monkeypatch.setattr(models, "sizes", lambda *_: pytest.fail("models are looked at"))
    with pytest.raises(InputError) as caught:
        build(with_value(name, value))
    message = str(caught.value)
    assert message.startswith((f"{name}: ", f"{name}.")) and words in message and "\n" not in message


VALUES = st.one_of(
    st.integers(-2, 3),
    st.sampled_from([64, 2**31, 10**30]),
    st.sampled_from([math.nan, math.inf, -math.inf, -1.0, 0.0, 0.5, 1.0, 2.0]),
    st.sampled_from(["", "foo", "qa", "none", "sft", "first", "constant", "float32", "tests/old_run/tokenizer"]),
    st.sampled_from([None, True, False, (), (1,), (2, 1), (256, 1536), ("*",), ("a", 1), {}, {"text": 1}]),
)


@settings(max_examples=60)
@given(st.sampled_from(NAMES), VALUES)
@example("loader.threads", 0)
@example("loader.prefetch", 0)
@example("data.qa.weight", 0)
def test_any_value_is_refused_by_name_or_builds(name, value):
    config = with_value(name, value)
    try:
        valid.check(config)
        prepare(config, name)
    except InputError as error:
        assert "\n" not in str(error) and any(part in str(error) for part in (name, name.split(".")[0] + ".")), error


@pytest.mark.parametrize("task", ["qa", pytest.param("vos", marks=pytest.mark.slow)])
def test_the_least_values_of_all_settings_trace(task):
    """Every number of the step at the least that its rule takes: the step's program is there."""
    config = get_config()
    least = {
        name: rule.low
        for name, rule in RULES.items()
        if isinstance(rule, schema.Whole | schema.Number) and name.split(".")[0] in ("step", "grpo", "lora", "sam2")
    }
    for name, value in least.items():
        with_value(name, value, config)
    config.step.group, config.step.temperature, config.step.top_p, config.lora.alpha = 2, 0.5, 0.5, 1.0
    for name in ("frames", "objects"):
        config.data.vos[name] = TASK_RULES[name].low
    config.optimizer.clip_norm = config.optimizer.weight_decay = config.optimizer.learning_rate = 0.0
    valid.check(config)
    program = abstract.program(config)
    step = make_train_step(*lowering.step_parts(program, task), config.step.mode)
    _, metrics, _ = jax.eval_shape(step, *lowering.arguments(program, task))
    assert metrics["reward/total"].shape == ()


def test_no_chunks_are_one_chunk_of_all():
    rng = np.random.default_rng(0)
    hidden, head = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((2, 7, 4), (4, 11)))
    targets = jnp.asarray(rng.integers(0, 11, (2, 7)))
    found = [
        token_logprobs(hidden, Matrix(head, None), targets, temperature=1.0, chunk=n, dtype=jnp.float32) for n in (0, 3)
    ]
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_a_stream_without_prefetch_gives_the_same_batches_and_state():
    config = get_config()
    config.data = dict(qa=config.data.qa)
    sizes, objective = models.sizes(config), OBJECTIVES["grpo"]
    families = data.families(config, sizes.tokenizer, sizes.thinker, objective.example, objective.example_config)
    streams = [
        stream.Prefetch(stream.training_stream(families, data.pipeline_config(config)), depth=depth) for depth in (2, 0)
    ]
    for _ in range(3):
        ahead, alone = map(next, streams)
        jax.tree.map(np.testing.assert_array_equal, dict(ahead.arrays), dict(alone.arrays))
        assert json.dumps(streams[0].get_state()) == json.dumps(streams[1].get_state())
    assert streams[1]._thread is None
    for each in streams:
        each.close()


def test_a_weight_that_silences_other_terms_is_noted():
    quiet = get_config()
    quiet.reward.terms = dict(segmentation=0.0)
    (note,) = valid.notes(quiet)
    assert note.startswith("reward.terms.segmentation: 0 also silences alignment, mismatch with preset 'authors'")
    quiet.reward.preset = "authors_released"  # as the note says
    assert valid.notes(quiet) == [] and valid.notes(get_config()) == []
