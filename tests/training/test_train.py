"""The training command from datasets on disk to weights that transformers loads, and all that it writes meanwhile."""

import json
import logging
import os
import re
from unittest import mock

import numpy as np
import pytest
import transformers
from ml_collections import ConfigDict

from omnir1_jax.build import run as setup
from omnir1_jax.config.sections import Lora
from omnir1_jax.config.settings import datasets, defaults, task
from omnir1_jax.data.synthetic import writers
from omnir1_jax.data.synthetic.world import WorldConfig
from omnir1_jax.errors import InputError
from omnir1_jax.inference import benchmark, load
from omnir1_jax.inference.tasks import Options
from omnir1_jax.inference.validation import Validation
from omnir1_jax.models import lora
from omnir1_jax.models.qwen_omni import pretrained
from omnir1_jax.planning import batches, trace
from omnir1_jax.reporting import rollouts_html
from omnir1_jax.reporting.lines import read
from omnir1_jax.training import checkpointing
from omnir1_jax.training.loop import summary, train
from tests.data import qwen_oracle

WORLD = WorldConfig(height=56, width=84, frames=8, occlusion=0.0)
SEGMENTER = dict(
    hiera=dict(dims=(8, 16, 32, 64), heads=(1, 1, 2, 4), blocks=(1, 1, 2, 1), windows=(8, 4, 4, 2), global_blocks=(3,)),
    width=64,
    decoder_mlp=64,
    decoder_heads=2,
    iou_width=32,
    attention_layers=1,
    attention_mlp=32,
    fuser_mlp=32,
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with the datasets and a tokenizer."""
    folder = tmp_path_factory.mktemp("root")
    writers.LAYOUTS["revos"](folder / "ReVOS", WORLD, 6, 0)
    writers.LAYOUTS["mevis"](folder / "MeViS", WORLD, 2, 0)
    writers.LAYOUTS["refavs"](folder / "RefAVS", WORLD, 6, 0)
    qwen_oracle.save_tokenizer(folder / "tokenizer")
    return folder


def config(root, *tasks: str) -> ConfigDict:
    """Both families at the smallest sizes."""
    c = defaults()
    c.name = "<both> families"
    c.steps = 2
    c.thinker.tokenizer = str(root / "tokenizer")
    c.thinker.sizes = dict(
        text=dict(
            hidden_size=32, intermediate_size=48, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=16,
            rope_theta=1e4, mrope_section=(2, 3, 3),
        ),
        vision=dict(
            depth=1, hidden_size=32, intermediate_size=48, num_heads=2, out_hidden_size=32,
            full_attention_blocks=(0,),
        ),
        audio=dict(num_mel_bins=16, d_model=16, num_layers=1, num_heads=2, ffn_dim=32, output_dim=32, n_window=10),
    )  # fmt: skip
    c.thinker.dtype = c.thinker.param_dtype = "float32"
    c.thinker.remat = "none"
    c.sam2.sizes = SEGMENTER
    c.sam2.side = 64
    c.sam2.dtype = c.sam2.memory_dtype = "float32"
    c.sam2.object_chunk, c.sam2.frame_chunk = 16, 8
    for name in ("system", "vos", "refavs", "grounding"):
        c.prompts[name] = f"toy_{name}"
    cell = 28 * 28
    c.pixels.policy_image = c.pixels.policy_video = (cell, 6 * cell)
    c.pixels.sharp = (4 * cell, 12 * cell)
    c.prompts.text_tokens = 160
    c.prompts.max_aspect = 2.0
    c.data_root = str(root)
    known = dict(
        vos=task(datasets=datasets(revos=dict(root="ReVOS", split="train")), frames=8, target="some_frame"),
        refavs=task(
            datasets=datasets(refavs=dict(root="RefAVS", split="train")),
            frames=1, sampling="first", sound="required", audio_seconds=4.0, target="first_frame",
        ),
    )  # fmt: skip
    c.data = {name: known[name] for name in tasks}
    c.loader.threads = 1
    c.step.group = 2
    c.step.max_tokens = 16
    c.step.grounding_tokens = 8
    c.step.completion_bytes, c.step.grounding_bytes = 256, 128
    c.step.description_tokens = 32
    c.reward.bonus_range = (2, 15)
    c.optimizer.learning_rate = 1e-2
    c.mesh.fsdp, c.mesh.data = 1, 1
    c.checkpoint.every = 1
    c.log.pictures_every = 2
    return c


def changed(c, **validate):
    c = c.copy_and_resolve_references()
    c.validate.update(validate)
    return c


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """These runs are of one device, whatever the suite has."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (setup, load):
            patch.setattr(module, "mesh_of", lambda config: None)
        yield


class Compilations(logging.Handler):
    """Threads in which steps were compiled."""

    def __init__(self):
        super().__init__(logging.DEBUG)
        self.threads: list[str | None] = []

    def emit(self, record):
        if record.getMessage().startswith("Finished XLA compilation of jit(train_step)"):
            self.threads.append(record.threadName)


@pytest.fixture(scope="module")
def compilations():
    logger, handler = logging.getLogger("jax._src.dispatch"), Compilations()
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield handler
    logger.setLevel(before)
    logger.removeHandler(handler)


@pytest.fixture(scope="module")
def done(root, tmp_path_factory, compilations):
    """The work directory of a finished run over both families."""
    workdir, c = tmp_path_factory.mktemp("run") / "both", config(root, "vos", "refavs")
    c.checkpoint.every, c.checkpoint.keep = 2, 1
    c.profile.start, c.profile.steps = 2, 5
    c.validate.update(every=1, benchmark="mevis", root=str(root / "MeViS"), limit=2, batch_size=2)
    with mock.patch.object(os, "cpu_count", lambda: 2):
        train(c, workdir, quiet=True, validation=Validation, shapes=batches.of_run)
    return workdir


def test_each_task_is_compiled_once_and_on_few_cores_the_first_alone(done, compilations):
    first, ahead = compilations.threads
    assert ahead.startswith("compile") and not first.startswith("compile")


def test_a_run_leaves_all_that_was_promised(done):
    made = {path.name for path in done.iterdir()}
    assert made >= {
        "config.json", "metrics.jsonl", "rollouts.jsonl", "pictures", "tensorboard", "checkpoints", "weights",
        "summary.json", "report.html",
    }  # fmt: skip
    rows = list(read((done / "metrics.jsonl").read_bytes(), "metrics"))
    assert [row["step"] for row in rows] == [0, 1, 2]
    rows = rows[1:]
    assert all(np.isfinite(row["learn/loss"]) and row["learn/sampler_gap"] < 1e-3 for row in rows)
    assert rows[-1]["data/bad"] == 0
    told = list(read((done / "rollouts.jsonl").read_bytes(), "rollouts"))
    assert {line["family"] for line in told} == {"vos", "refavs"} and len(told) == 4
    assert all({"query", "completion", "rewards", "failures"} <= line.keys() for line in told)
    assert list((done / "pictures").glob("2/*.png"))
    found = json.loads((done / "summary.json").read_text())
    assert found["steps"] == 2 and found["weights"] == {"step": 2}
    assert json.loads((done / "weights/training.json").read_text()) == {"step": 2}


def test_the_time_of_a_run_is_told_by_what_it_went_to_and_by_stage(done):
    rows = list(read((done / "metrics.jsonl").read_bytes(), "metrics"))[1:]
    for row in rows:
        # A prompt of each task, 2 completions of it.
        assert row["time/prompts_per_second"] == pytest.approx(1 / row["seconds"], rel=1e-2)
        tokens = 2 * row[f"completion/{row['task']}/length"]
        assert row["time/tokens_per_second"] == pytest.approx(tokens / row["seconds"], rel=1e-2)
    found = json.loads((done / "summary.json").read_text())["goodput"]
    assert found["compiling"] == pytest.approx(sum(row["seconds"] - row["time/data"] for row in rows), rel=1e-2)
    assert found["validating"] > 0 and found["share"] < 0.1  # each task was compiled in its only step

    (task, traced), *others = trace.read(done).items()
    assert task == rows[-1]["task"] and not others and traced.steps == 1
    assert traced.phases.keys() >= {"encode", "sample/decode", "ground/decode", "update/backward"}
    assert 0 < traced.phases["update/backward"] < sum(traced.phases.values())
    assert traced.phases.get("other", 0) < 0.2 * sum(traced.phases.values())
    assert "update/backward" in trace.table({task: traced})
    with pytest.raises(InputError, match="no trace of a run is there"):
        trace.read(done / "checkpoints")


def test_validation_is_the_evaluation_of_that_step_and_the_best_is_kept(done, root, tmp_path):
    rows = list(read((done / "metrics.jsonl").read_bytes(), "metrics"))
    scores = {row["step"]: row["validate/mevis/J&F"] for row in rows}
    best = max((1, 2), key=lambda step: (scores[step], -step))
    kept = sorted(int(path.name) for path in (done / "checkpoints").iterdir() if path.name.isdecimal())
    assert kept == sorted({best, 2})
    assert json.loads((done / "summary.json").read_text())["best"] == {"step": best, "score": scores[best]}
    c = config(root, "vos", "refavs")
    c.validate.update(every=1, benchmark="mevis", root=str(root / "MeViS"))
    validation = Validation(setup.build(c))
    with pytest.raises(InputError, match="validate.metrics: the table of mevis has none of these, but J, F, J&F"):
        Validation(validation.run._replace(config=changed(c, metrics=("j&f",))))
    with pytest.raises(InputError, match="validate.metric: the table of mevis has no 'S', but J, F"):
        Validation(validation.run._replace(config=changed(c, metric="mevis/S")))
    for name, step in (("", 2), ("best", best)):
        systems = load.load_systems(str(done), step=name)
        options = Options("mevis", root=str(root / "MeViS"), limit=2, batch_size=2)
        results = benchmark.evaluate(systems, options, tmp_path / f"out{name}", quiet=True)
        assert results[""]["table"]["J&F"] == scores[step], name
        # Models of so few steps find nothing, so that the scores alone would not tell weights apart.
        trainable = checkpointing.load_trainable(done, validation.run.state.trainable, step)
        assert load.fingerprint(validation.systems(trainable)) == load.fingerprint(systems)
    assert load.fingerprint(validation.systems(validation.run.state.trainable)) != load.fingerprint(systems)
    with pytest.raises(InputError, match="no checkpoint of step 7"):
        load.load_systems(str(done), step="7")
    with pytest.raises(InputError, match="--step: 'first' is none of best, last, or a checkpoint's number"):
        load.load_systems(str(done), step="first")


def test_the_report_asks_for_nothing_and_escapes(done):
    page = (done / "report.html").read_text()
    assert "&lt;both&gt; families" in page and "<both>" not in page
    assert not re.search(r"(src|href)=[\"'](?!data:|#)", page)
    # Its own script alone, which filters the rollouts; tests/reporting holds its hash to the page's policy.
    assert page.count("<script") == page.count(f"<script>{rollouts_html.FILTER}</script>") == 1


def test_the_weights_changed_and_transformers_loads_them(done, root):
    _, params = pretrained.load(done / "weights")
    before = setup.build(config(root, "vos")).loaded.params
    assert not np.array_equal(params["text"]["embed"]["embedding"], before["text"]["embed"]["embedding"])
    np.testing.assert_array_equal(
        np.concatenate([np.ravel(x) for x in _leaves(params["vision"])]),
        np.concatenate([np.ravel(x) for x in _leaves(before["vision"])]),
    )
    loaded = transformers.Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(str(done / "weights"))
    assert loaded.config.text_config.hidden_size == 32
    assert len(transformers.AutoTokenizer.from_pretrained(str(done / "weights"))) > 0


def _leaves(tree):
    return [leaf for _, leaf in sorted(((k, v) for k, v in _walk(tree)), key=lambda kv: kv[0])]


def _walk(tree, path=""):
    for key, value in tree.items():
        yield from _walk(value, f"{path}/{key}") if isinstance(value, dict) else [(f"{path}/{key}", value)]


def test_a_finished_run_started_again_does_nothing(done, root):
    before = (done / "metrics.jsonl").read_text()
    train(config(root, "vos", "refavs"), done, quiet=True)
    assert (done / "metrics.jsonl").read_text() == before


def test_another_config_is_refused_by_its_setting(done, root):
    other = config(root, "vos", "refavs")
    other.grpo.beta = 0.1
    with pytest.raises(InputError, match="grpo.beta"):
        train(other, done, quiet=True)


def test_an_adapter_is_merged_into_the_weights(root, tmp_path):
    c = config(root, "refavs")
    c.objective, c.steps, c.lora.rank, c.sft.target_tokens = "sft", 8, 2, 448
    state = train(c, tmp_path / "lora", quiet=True)
    told = summary(c, list(read((tmp_path / "lora/metrics.jsonl").read_bytes(), "metrics")))
    assert told["last"]["sft/refavs/loss"] < told["first"]["sft/refavs/loss"]
    assert (tmp_path / "lora/report.html").exists()
    base = setup.build(c).loaded.params
    wanted = lora.merge(base["text"], state.trainable, Lora(2, c.lora.alpha, ("*",)))
    _, found = pretrained.load(tmp_path / "lora/weights")
    for a, b in zip(_leaves(found["text"]), _leaves(wanted)):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(found["text"]["layers"]["q"]["kernel"], base["text"]["layers"]["q"]["kernel"])


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda c: c.data.vos.datasets.revos.update(root="nothing"), "data.vos.datasets.revos.root.*configs/toy.py"),
        (lambda c: c.update(objective="grop"), "objective: 'grop' is none of grpo, sft, masks"),
        (lambda c: c.reward.update(preset="paperr"), "reward.preset: 'paperr'"),
        (lambda c: c.step.update(mode="fast"), "step.mode"),
        (lambda c: c.prompts.update(text_tokens=8), "tokens do not fit"),
        (lambda c: c.data.vos.update(batch_size=0), "data.vos.batch_size"),
        (lambda c: c.sam2.update(side=100), "sam2.side: 100"),
    ],
)  # fmt: skip
def test_bad_settings_are_named(root, tmp_path, change, words):
    c = config(root, "vos")
    change(c)
    with pytest.raises(InputError, match=words):
        train(c, tmp_path / "bad", quiet=True)
