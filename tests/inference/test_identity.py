"""What an evaluation is resumed for: whatever its rows depend on, and nothing else, is named in a refusal."""

import dataclasses
import json
import sys
import types

import pytest
from absl import flags

from omnir1_jax import evaluate
from omnir1_jax.build.models import step_config
from omnir1_jax.data.preprocess import tokens
from omnir1_jax.errors import InputError
from omnir1_jax.inference import host, identity, tasks
from omnir1_jax.inference.load import Systems
from omnir1_jax.inference.store import claim
from omnir1_jax.inference.tasks import Options
from omnir1_jax.models import sam2
from omnir1_jax.models.qwen_omni.config import ThinkerConfig
from omnir1_jax.models.qwen_omni.thinker import Thinker
from omnir1_jax.rl.config import Frozen, Models
from omnir1_jax.systems.segmenters.sam2 import Sam2Segmenter
from omnir1_jax.text.bpe import bpe_tables
from omnir1_jax.text.vocab import byte_vocab
from tests.data import qwen_oracle
from tests.inference import small

IDLE = {"out", "checkpoint", "step"}  # the weights count, not where they are from
OTHER = dict(
    benchmark="mevis", split="train", root="elsewhere", tasks=("vos",), limit=3, frames=4, sampling="video", tokens=6,
    prompt="direct", audio_seconds=2.0, sound="muted", keyframes="first", system2="oracle", boxes="boxes.jsonl",
    description="query", masks="masks.jsonl", objects=3, hole_area=9, batch_size=2, seed=7,
)  # fmt: skip


def ground(frames, descriptions):
    return [[]] * len(frames)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Systems without parameters, options, and the folder of the prompts."""
    folder = tmp_path_factory.mktemp("config")
    (folder / "thinker").mkdir()
    config, tokenizer = small.config(folder), qwen_oracle.tokenizer()
    ids = tokens.token_ids(tokenizer)
    thinker = ThinkerConfig(**small.THINKER, tokens=ids)
    frozen = Frozen({}, {}, None, byte_vocab(tokenizer), bpe_tables(tokenizer), None)
    models = Models(Thinker(thinker), Sam2Segmenter(sam2.Sam2(small.SAM2)))
    step = step_config(config, ids)
    step = dataclasses.replace(step, sampling=dataclasses.replace(step.sampling, temperature=0.0))
    made = Systems(config, None, models, tokenizer, thinker, {}, frozen, step)
    return made, Options("synthetic", batch_size=3), folder


def of(made, options, weights="weights", config=None):
    made = made if config is None else made._replace(config=config)
    (task,) = tasks.benchmarks(made, options)
    return identity.identity(made, task, options, weights)


def test_every_flag_of_the_command_counts_or_is_known_to_be_idle(made):
    held = [value for value in vars(evaluate).values() if isinstance(value, flags.FlagHolder)]
    known = {holder.name for holder in held} - {"config"}
    options = {field.name for field in dataclasses.fields(Options)}
    assert known == options | {"temperature", "max_tokens"} | IDLE
    assert OTHER.keys() == options - set(identity.RESCORED)
    made, options, _ = made
    (task,) = tasks.benchmarks(made, options)
    own = identity.identity(made, task, options, "weights")
    rescored = identity.identity(made, task, dataclasses.replace(options, scoring="official"), "weights")
    assert not identity.differences(own, rescored)
    for name, value in OTHER.items():
        changed = identity.identity(made, task, dataclasses.replace(options, **{name: value}), "weights")
        described = identity.describe(identity.differences(own, changed))
        assert described == f"--{name} {json.dumps(getattr(options, name))}, this one has {json.dumps(value)}", name


def test_what_is_not_a_flag_counts_too(made, tmp_path, monkeypatch):
    made, options, folder = made
    own = of(made, options)
    sampling = dataclasses.replace(made.step.sampling, max_tokens=7, top_k=2)
    longer = of(made._replace(step=dataclasses.replace(made.step, sampling=sampling)), options)
    named = identity.describe(identity.differences(own, longer))
    assert named == "--max_tokens 24, this one has 7, and --top_k 50, this one has 2"

    def differs(changed, name):
        assert name in identity.describe(identity.differences(own, changed))

    differs(of(made, options, "other"), "other weights (--checkpoint")
    config = made.config.copy_and_resolve_references()
    config.pixels.policy_image = (1, 2)
    differs(of(made, options, config=config), "--config.pixels.policy_image")
    config = made.config.copy_and_resolve_references()
    config.data.vos.datasets.synthetic.config = "default"
    differs(of(made, options, config=config), "dataset.options.config")
    for name, text in (("vos", "Look for {query}"), ("system", "You hear."), ("grounding", "Box: {description}")):
        before = (folder / f"{name}.txt").read_text()
        (folder / f"{name}.txt").write_text(text)
        differs(of(made, options), "another text of")
        (folder / f"{name}.txt").write_text(before)
    bpe = made.frozen.bpe._replace(merged=made.frozen.bpe.merged + 1)
    differs(of(made._replace(frozen=made.frozen.replace(bpe=bpe)), options), "another tokenizer")
    module = types.ModuleType("grounder_of_a_user")
    module.__file__, module.ground = str(tmp_path / "grounder.py"), ground
    monkeypatch.setitem(sys.modules, "grounder_of_a_user", module)
    digests = []
    for source in ("a = 1", "a = 2"):
        (tmp_path / "grounder.py").write_text(source)
        digests.append(host.digest("grounder_of_a_user:ground"))
    assert len(set(digests)) == 2 and host.digest("self") is None
    assert own == of(made, options)


def test_what_changes_no_row_is_idle(made):
    made, options, _ = made
    own = of(made, options)
    config = made.config.copy_and_resolve_references()
    config.name, config.steps, config.loader.threads, config.reward.preset = "other", 3, 2, "paper"
    config.optimizer.learning_rate = 1.0
    assert of(made, options, config=config) == own


def test_an_older_folder_is_resumed_where_its_known_values_agree(made, tmp_path):
    made, options, _ = made
    own = of(made, options)
    older = {key: own[key] for key in ("options", "task", "weights", "boxes", "temperature", "config")}
    older["options"] = {key: value for key, value in own["options"].items() if key != "hole_area"}
    older["config"] = own["config"] | {"name": "small", "thinker": {"path": own["config"]["thinker"]["path"]}}
    (tmp_path / "run.json").write_text(json.dumps(older))
    claim(tmp_path / "run.json", own)
    # From now on the newer values count too.
    with pytest.raises(InputError, match=r"--out: .* holds results with --hole_area 0, this one has 4; rerun with"):
        claim(tmp_path / "run.json", of(made, dataclasses.replace(options, hole_area=4)))
    assert json.loads((tmp_path / "run.json").read_text()) == own
    (tmp_path / "run.json").write_text(json.dumps(older))
    sampling = dataclasses.replace(made.step.sampling, temperature=0.5)
    warm = made._replace(step=dataclasses.replace(made.step, sampling=sampling))
    (tmp_path / "run.json").write_text(json.dumps(older | {"temperature": 0.5}))
    with pytest.raises(InputError, match="draws of an earlier version of omnir1_jax, at --temperature above 0"):
        claim(tmp_path / "run.json", of(warm, options))
    (tmp_path / "run.json").write_text(json.dumps(older))
    with pytest.raises(InputError, match="--seed 0, this one has 2"):
        claim(tmp_path / "run.json", of(made, dataclasses.replace(options, seed=2)))
    assert json.loads((tmp_path / "run.json").read_text()) == older
