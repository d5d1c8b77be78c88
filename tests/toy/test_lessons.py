"""Lessons of the fleeting world: they fit their shapes, and say what is seen and heard in clips with their sound."""

import importlib.util

import numpy as np
import pytest

from omnir1_jax.build import data, models, objectives
from omnir1_jax.config import sections, settings
from omnir1_jax.data.clips import decode
from omnir1_jax.toy import lessons
from tests.runs import ROOT


def config_of(name: str, *part: str):
    given = importlib.util.spec_from_file_location(name, ROOT / f"configs/{name}.py")
    module = importlib.util.module_from_spec(given)
    given.loader.exec_module(module)
    return module.get_config(*part)


@pytest.fixture(scope="module")
def config():
    config = config_of("toy_pretrain", "cold_start")
    config.thinker.path = str(ROOT / "configs/toy_weights/thinker")
    config.data.hints = config_of("toy_pretrain", "hints").data.plans
    return config


@pytest.mark.parametrize("name", ["grounding", "questions", "plans", "hints", "sounds"])
def test_lessons_of_the_fleeting_world(config, name):
    words, thinker = models.tokenizer(config), models.sizes(config).thinker
    own = objectives._sft_config(config, name, words, thinker)
    (reader,) = data.readers(config, name)
    said, made = [], 0
    for k in range(8):
        clip = decode(reader[k], settings.section(sections.Task, config.data[name]), np.random.default_rng(k))
        if name == "sounds" and not lessons.seen(clip)[:, 0].any():
            continue
        arrays = lessons.EXAMPLES[config.data[name].example](clip, own)
        made += 1
        ids, lengths = arrays["target/tokens"], arrays["target/lengths"]
        rows = zip(ids.reshape(-1, ids.shape[-1]), lengths.reshape(-1))
        said += [words.decode(row[:length]) for row, length in rows if length]
        if name != "grounding":
            assert (arrays["policy/audio_index"] >= 0).sum() == {"sounds": 100}.get(name, 200)  # 25 a second
    assert made >= 6
    if name == "questions":
        assert any(text.startswith("Hear:") and "nothing" not in text for text in said)
        assert any(("Which:" in text and "heard" in text) or "sound" in text for text in said)
    if name == "grounding":
        for there in (True, False):
            assert any(" shape" in text for text in said if ("[]" not in text) == there)
    if name == "hints":
        assert all(text.count("start_time") == 1 for text in said)


@pytest.mark.parametrize("name, seconds", [("vos", 8), ("refavs", 4)])
def test_queries_of_the_fleeting_world_fit_their_prompts(name, seconds):
    """Both families hear: 25 audio tokens a second stand in System 1's prompt."""
    config = config_of("toy_fleeting")
    words, thinker = models.tokenizer(config), models.sizes(config).thinker
    (reader,) = data.readers(config, name)
    own, transform = data.example_config(config, name, words, thinker), data.example_of(config, name).transform
    for k in range(0, 24, 3):
        clip = decode(reader[k], settings.section(sections.Task, config.data[name]), np.random.default_rng(k))
        arrays = transform(clip, own)
        assert (arrays["policy/audio_index"] >= 0).sum() == 25 * seconds
        assert len(arrays["sharp/cells"]) == config.data[name].frames
