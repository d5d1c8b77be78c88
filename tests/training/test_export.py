"""A run's state exported: transformers loads it and says, word for word, what the JAX model says."""

import dataclasses
import pathlib
import shutil

import jax
import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen2_5OmniThinkerForConditionalGeneration

from omnir1_jax import convert
from omnir1_jax.build import data, models
from omnir1_jax.config import shipped
from omnir1_jax.config.settings import typed
from omnir1_jax.data import frame_sampling
from omnir1_jax.data.clips import decode
from omnir1_jax.data.preprocess import pixels, tokens
from omnir1_jax.errors import InputError
from omnir1_jax.inference import from_checkpoint
from omnir1_jax.models.qwen_omni.thinker import Thinker
from omnir1_jax.systems import prompts, reasoner
from omnir1_jax.tasks import TASKS
from omnir1_jax.tasks.task import tree_of
from omnir1_jax.training import checkpointing
from tests.data import qwen_oracle
from tests.inference import small

torch.set_num_threads(1)
CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


def export(*args):
    convert.main(convert.parse(["convert", "export", *map(str, args)]))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A work directory of an adapter's training with two states, and its export."""
    folder = tmp_path_factory.mktemp("run")
    config = small.config(folder, lora_rank=4)
    config.data.vos.audio_seconds = 2.0
    workdir, states = small.workdir(folder / "run", config, (1, 2))
    export(workdir, folder / "hf")
    return config, workdir, states, folder / "hf"


def clips(config, count):
    """Decoded clips; every other one has sound."""
    config = config.copy_and_resolve_references()
    config.data.vos.datasets.synthetic.clips = count
    (reader,) = data.readers(config, "vos")
    found = []
    for n, group in enumerate(reader.clips()):
        rng = frame_sampling.generator(0, 0, n)
        clip = decode(reader[group[0]], typed(config).data["vos"], rng)
        wave = 0.2 * rng.standard_normal(16000 + 4000 * (n % 3)).astype(np.float32)
        found.append(dataclasses.replace(clip, audio=wave if n % 2 and config.data.vos.audio_seconds else None))
    return found


def ours(config, found, workdir):
    """Greedy answers of the trained JAX model, as text."""
    loaded = from_checkpoint.in_place(config, from_checkpoint.load(str(workdir), config, segmenter=False))
    step = models.step_config(config, loaded.models.thinker.config.tokens)
    greedy = dataclasses.replace(step.sampling, temperature=0.0)
    thinker = Thinker(loaded.models.thinker.config)
    made = data.example_config(config, "vos", loaded.tokenizer, thinker.config)

    @jax.jit
    def say(params, inputs):
        media = reasoner.encode(thinker, params, inputs)
        done = reasoner.sample(thinker, {"params": params["text"]}, inputs, media, jax.random.key(0), greedy, 1)
        return done.tokens[0, 0], done.lengths[0, 0]

    texts = []
    for clip in found:
        arrays = {key: value[None] for key, value in TASKS["vos"].prompt(clip, made).items()}
        line, length = say(loaded.params, tree_of(arrays)["policy"])
        texts.append(loaded.tokenizer.decode(line[:length]))
    return texts


def theirs(config, found, folder):
    """Greedy answers of the exported model by transformers alone; frames are resized before, where they have to be."""
    templates = models.prompt_texts(config)
    processor = qwen_oracle.load_processor(folder)
    model = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    low, high = config.pixels.policy_video
    height, width = pixels.smart_resize(*found[0].size, min_pixels=low, max_pixels=high, factor=16)
    texts = []
    for clip in found:
        words = prompts.render(templates["vos"], query=clip.ref.query)
        content = [{"type": "video"}, {"type": "text", "text": words}]
        messages = [{"role": "system", "content": templates["system"]}, {"role": "user", "content": content}]
        text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        heard = clip.audio is not None
        sound = dict(load_audio_from_video=True, audio_from_video_indices=[0]) if heard else {}
        inputs = processor(
            text=[text],
            videos=[np.stack([pixels.resize(frame, height, width) for frame in clip.frames])],
            audio=[clip.audio] if heard else None,
            return_tensors="pt",
            videos_kwargs=dict(size={"shortest_edge": low, "longest_edge": high}, fps=2.0),
            **sound,
        )
        with torch.no_grad():
            line = model.generate(
                **inputs, use_audio_in_video=heard, do_sample=False, max_new_tokens=config.step.max_tokens
            )
        texts.append(processor.tokenizer.decode(line[0, inputs["input_ids"].shape[1] :]))
    return texts


def agree(config, workdir, folder, count):
    found = clips(config, count)
    mine, other = ours(config, found, workdir), theirs(config, found, folder)
    assert mine == other
    return mine


def test_says_the_same(run):
    config, workdir, _, folder = run
    texts = agree(config, workdir, folder, 6)
    assert len(set(texts)) > 3 and max(map(len, texts)) > 8


@pytest.mark.slow
def test_says_the_same_on_fifty_clips(run):
    config, workdir, _, folder = run
    assert len(agree(config, workdir, folder, 50)) == 50


@pytest.mark.slow
def test_toy_plans_the_same_on_fifty_clips(tmp_path):
    """With weights that have learned to plan."""
    config = shipped.config("toy", "this test")
    thinker = CONFIGS / "toy_weights" / "thinker"
    config = from_checkpoint.config_of(str(thinker), config)
    export(thinker, tmp_path / "hf", "--dtype", "float32")
    plans = agree(config, thinker, tmp_path / "hf", 50)
    assert sum("<answer>{" in plan for plan in plans) > 40 and len(set(plans)) > 20


def test_processor_fits_the_model(run):
    _, _, _, folder = run
    names = {path.name for path in folder.iterdir()}
    assert names >= {"config.json", "tokenizer.json", "tokenizer_config.json", "processor_config.json"}
    processor = qwen_oracle.load_processor(folder)
    assert processor.image_processor.patch_size == processor.video_processor.patch_size == 8
    assert processor.feature_extractor.feature_size == 16
    for messages in (
        [{"role": "user", "content": "Who { speaks }?"}],
        [
            {"role": "system", "content": "Listen."},
            {"role": "user", "content": [{"type": kind, kind: ""} for kind in ("image", "video", "audio")]},
            {"role": "assistant", "content": [{"type": "text", "text": "<b>"}]},
        ],
    ):
        for asked in (True, False):
            mine = tokens.chat_text(messages, add_generation_prompt=asked)
            assert processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=asked) == mine


def test_newest_good_state_with_its_adapter(run, tmp_path):
    """The weights are base + adapter of the newest state that can be read, and of the one before where it cannot."""
    config, workdir, states, folder = run
    base = np.asarray(
        from_checkpoint.load(str(folder.parent / "thinker"), config, segmenter=False).params["text"]["layers"]["q"][
            "kernel"
        ]
    )[1]

    def check(folder, step):
        a, b = (np.asarray(states[step]["layers"]["q"][name])[1] for name in "ab")
        want = base + 64.0 / 4 * np.einsum("dr,rhk->dhk", a, b)
        got = load_file(folder / "model.safetensors")["model.layers.1.self_attn.q_proj.weight"]
        np.testing.assert_allclose(got, want.reshape(len(want), -1).T, rtol=1e-5, atol=1e-5)

    check(folder, 2)
    broken = tmp_path / "run"
    shutil.copytree(workdir, broken)
    (broken / "checkpoints" / "2" / "run" / "process_0.json").write_text("")
    export(broken, tmp_path / "older")
    check(tmp_path / "older", 1)


def test_adapter_in_peft_s_layout(run, tmp_path, capsys):
    """PEFT puts it on the base's thinker, on nothing else, and gets the logits of the merged export."""
    config, workdir, states, folder = run
    export(workdir, tmp_path / "adapter", "--layout", "peft")
    number = sum(leaf.size for leaf in jax.tree.leaves(states[2]))
    assert f"{number:,} parameters, the adapter of {config.thinker.path}" in capsys.readouterr().out

    load = lambda path: Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(path, dtype=torch.float32).eval()
    base, merged = load(config.thinker.path), load(folder)
    ids = torch.tensor([[5, 17, 33, 80, 7]])
    logits = lambda model: model(input_ids=ids).logits.detach()
    before, want = logits(base), logits(merged)
    adapted = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
    weights = {name: p for name, p in adapted.named_parameters() if "lora_" in name}
    assert len(weights) == len(load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    assert sum(p.numel() for p in weights.values()) == number and all(p.abs().max() > 0 for p in weights.values())
    assert (want - before).abs().max() > 0.1
    torch.testing.assert_close(logits(adapted), want, rtol=1e-4, atol=1e-4)


def test_full_training_keeps_its_masters(tmp_path):
    """Trained parameters are float32, what is frozen is bfloat16: "stored" rounds them, float32 does not."""
    config = small.config(tmp_path, thinker_param_dtype="bfloat16")
    workdir, states = small.workdir(tmp_path / "run", config)
    name = "model.layers.0.mlp.up_proj.weight"
    want = torch.tensor(np.asarray(states[3]["layers"]["up"]["kernel"][0]).T)
    export(workdir, tmp_path / "stored")
    export(workdir, tmp_path / "exact", "--dtype", "float32", "--layout", "omni")
    assert torch.equal(load_file(tmp_path / "stored" / "model.safetensors")[name], want.to(torch.bfloat16))
    assert torch.equal(load_file(tmp_path / "exact" / "model.safetensors")["thinker." + name], want)
    with pytest.raises(InputError, match="no LoRA adapter"):
        export(workdir, tmp_path / "adapter", "--layout", "peft")
    # Without checkpoints what the run wrote at its end is taken; a directory of weights is written anew.
    (tmp_path / "stored").rename(workdir / "weights")
    shutil.rmtree(workdir / checkpointing.FOLDER)
    export(workdir, tmp_path / "again")
    export(workdir / "weights", tmp_path / "third")
    for folder in ("again", "third"):
        assert torch.equal(load_file(tmp_path / folder / "model.safetensors")[name], want.to(torch.bfloat16))
        assert (tmp_path / folder / "processor_config.json").is_file()


def test_bad_input(run, tmp_path):
    _, workdir, _, _ = run
    empty = tmp_path / "empty"
    (empty / checkpointing.FOLDER).mkdir(parents=True)
    shutil.copy(workdir / "config.json", empty)
    for source, complaint in ((empty, "no checkpoint of a run"), (tmp_path, "export reads")):
        with pytest.raises(InputError, match=complaint):
            export(source, tmp_path / "out")
    with pytest.raises(InputError, match="import reads"):
        convert.main(convert.parse(["convert", "import", str(workdir), str(tmp_path / "out")]))
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="not a directory"):
        from_checkpoint.config_of(str(tmp_path / "absent"))
