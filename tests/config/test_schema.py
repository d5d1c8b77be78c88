"""Sections of settings: checked when they are made, and when a config is read into them."""

import dataclasses

import pytest

from omnir1_jax.config import schema, settings
from omnir1_jax.config.sections import DecodeConfig, Grpo, Settings, Task
from omnir1_jax.errors import InputError


def test_the_defaults_of_a_config_are_those_of_the_sections():
    assert settings.typed(settings.defaults()) == Settings()
    assert schema.read(Task, settings.task().to_dict()) == Task()


def test_a_config_is_read_as_it_was_set():
    config = settings.defaults()
    config.step.group, config.optimizer.freeze = 3, ("embed/*",)
    config.data = dict(vos=settings.task(datasets=settings.datasets(revos=dict(root="ReVOS")), frames=5))
    found = settings.typed(config)
    assert found.step.group == 3 and found.data["vos"].frames == 5
    assert found.data["vos"].datasets == {"revos": {"name": "revos", "root": "ReVOS", "split": ""}}
    saved = settings.plain(config)  # JSON has lists only
    assert saved["optimizer"]["freeze"] == ["embed/*"] and schema.read(Settings, saved) == found


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda c: c["step"].update(group=0), "step.group: 0 is not a whole number from 1"),
        (lambda c: c["step"].update(groups=1), "step.groups: no such setting; there are mode, group"),
        (lambda c: c["step"].pop("group"), "step.group: is not set"),
        (lambda c: c.update(step=3), "step: 3 is not a section of settings"),
        (lambda c: c.update(data=[]), "data: \\[\\] is not a section of tasks"),
        (lambda c: c["data"].update(vos={"frames": 1}), "data.vos: is not a task; see settings.task"),
        (lambda c: c["reward"].update(terms={"gated": 1}), "reward.terms.gated: 1 is neither True nor False"),
    ],
)
def test_what_is_invalid_is_named(change, words):
    config = settings.plain(settings.defaults())
    change(config)
    with pytest.raises(InputError, match=f"^{words}"):
        schema.read(Settings, config)


def test_a_section_checks_itself_and_stays_as_it_is():
    with pytest.raises(InputError, match="grpo.beta: -1.0 is not a finite number from 0"):
        Grpo(beta=-1.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Grpo().beta = 1.0


def test_a_dataclass_shares_the_settings_of_the_same_name():
    task = Task(frames=3, weight=0.5, target="some_frame")
    assert DecodeConfig(**schema.shared(DecodeConfig, task)) == DecodeConfig(frames=3, target="some_frame")
