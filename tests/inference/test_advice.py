"""Advice of the commands can be followed as it is written; a question fits the prompt of the toy."""

import sys
from unittest import mock

import pytest
from absl.testing import flagsaver

import omnir1_jax.infer  # noqa: F401  (defines the command's flags)
from omnir1_jax.build import models
from omnir1_jax.config import settings
from omnir1_jax.data.refs import ClipRef
from omnir1_jax.errors import InputError
from omnir1_jax.inference import from_checkpoint, infer, load
from omnir1_jax.inference.infer import Ask
from omnir1_jax.rl.config import Models


def asked(query: str):
    """A question to the toy, as `infer --checkpoint toy --question` asks it; nothing is loaded but its tokenizer."""
    config = from_checkpoint.config_of("toy")
    sizes = models.sizes(config)
    systems = load.Systems(config, None, Models(None, None), sizes.tokenizer, sizes.thinker, {}, None, None)
    ask = Ask("film.mp4", query, family="qa")
    entry, sound = settings.task(family="qa"), infer.Sound(None, 0.0, "")
    return ask, infer._benchmark(systems, ask, entry, mock.Mock(spec=ClipRef, sample_id="clip"), sound), systems


def test_a_question_fits_the_toys_prompt():
    infer.check_query(*asked("Which of the shapes moves to the left, and when does it stop?"))


def test_a_question_that_does_not_fit_names_flags_that_parse(monkeypatch):
    with pytest.raises(InputError, match="--config=FILE --config.prompts.text_tokens=") as caught:
        infer.check_query(*asked("Which of the shapes moves to the left? " * 40))
    given = str(caught.value).split("or take ")[1].replace("FILE", "configs/toy.py").split()
    argv = ["infer", "--checkpoint=toy", *given]
    monkeypatch.setattr(sys, "argv", argv)
    with flagsaver.flagsaver():
        settings.parse(argv)


def test_a_setting_without_its_config_says_what_lacks(monkeypatch):
    argv = ["infer", "--checkpoint=toy", "--config.prompts.text_tokens=600"]
    monkeypatch.setattr(sys, "argv", argv)
    with flagsaver.flagsaver(), pytest.raises(InputError, match="text_tokens: changes a setting of a config; name its"):
        settings.parse(argv)
