"""Settings: unknown names, wrong types, and a config that comes back as it was written."""

import dataclasses
import json
import pathlib
import shutil
import subprocess
import sys

import pytest
from absl import flags
from absl.testing import flagsaver
from flax.traverse_util import flatten_dict

import omnir1_jax.train  # noqa: F401  (defines the command's flags)
from omnir1_jax.build import models
from omnir1_jax.build.run import build
from omnir1_jax.config import schema, settings
from omnir1_jax.config.sections import Settings, Task
from omnir1_jax.errors import InputError

ROOT = pathlib.Path(__file__).parent.parent.parent
CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))


def get(name: str):
    space = {"__file__": str(ROOT / "configs" / f"{name}.py"), "__name__": name}
    exec(compile((ROOT / "configs" / f"{name}.py").read_text(), name, "exec"), space)
    return space["get_config"]()


def test_defaults_are_locked_with_the_nearest_name():
    config = settings.defaults()
    with pytest.raises(AttributeError, match="learning_rate"):
        config.optimizer.lerning_rate = 1.0
    with pytest.raises(TypeError):
        config.optimizer.learning_rate = "fast"
    with pytest.raises(KeyError, match="frames"):
        settings.task(framse=3)


@pytest.mark.parametrize("name", ["revos", "mevis", "refavs", "omnir1", "colab", "toy"])
def test_every_experiment_is_there_and_survives_json(name, tmp_path):
    config = get(name)
    plain = settings.plain(config)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(plain))
    assert settings.plain(settings.read(path)) == plain
    assert config.name == name


def test_a_broken_config_of_a_run_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="config.json"):
        settings.read(tmp_path / "config.json")


def rows(kind: type, above: str = ""):
    """Every setting that docs/settings.md lists: its name, rule and default."""
    for field in dataclasses.fields(kind):
        rule, name = schema.rules(kind)[field.name], above + field.name
        inner = rule if isinstance(rule, type) else rule.kind if isinstance(rule, schema.Fields) else None
        if inner is not None:
            yield from rows(inner, f"{name}.")
        elif not isinstance(rule, schema.Sections):
            yield name, rule, getattr(kind(), field.name)


def another(rule: schema.Rule, default: object):
    """A value that a setting may have beside its default."""
    match rule:
        case schema.Each():
            return (another(rule.rule, None),) * 2
        case schema.Weights():
            return (("file.py:term", 0.5),)
        case schema.Rising():
            return (rule.low + 1, rule.low + 2)
        case schema.Fields():
            return {"own": {"size": 3}}
        case schema.Flag():
            return not default
    values = (1, 2, 64, 128, 0, 0.25, 0.5, "text", "file.py:object", *getattr(rule, "names", ()))
    return next(value for value in values if value != default and rule.fault(value) is None)


def test_every_setting_can_be_set_by_a_flag(tmp_path, monkeypatch):
    lines = ("from omnir1_jax.config import settings", "def get_config():", " c = settings.defaults()")
    (tmp_path / "own.py").write_text("\n".join([*lines, " c.data = dict(vos=settings.task())", " return c\n"]))
    wanted = {name: another(*row) for name, *row in [*rows(Settings), *rows(Task, "data.vos.")]}
    monkeypatch.setattr(sys, "argv", ["train", f"--config={tmp_path}/own.py"])
    sys.argv += [f"--config.{name}={value}" for name, value in wanted.items()]
    space = flags.FlagValues()
    holder = settings.define(space)
    space(sys.argv)
    found = flatten_dict(
        dataclasses.asdict(settings.typed(holder.value)), is_leaf=lambda path, _: ".".join(path) in wanted
    )
    assert {".".join(path): value for path, value in found.items()} == wanted


LINES = {
    "--config.reward.terms.alignmet=3": "alignment, mismatch",
    "--config.optimizer.lerning_rate=3": "learning_rate",
    "--config.optimizer.learning_rate=fast": "learning_rate",
    "--config.data.vos.framse=3": "frames",
    "--config=configs/toy.py": "given 2 times; name one file",
    "--workdri=x": "workdir",
}


def test_a_config_that_is_not_there_is_named():
    with flagsaver.flagsaver(), pytest.raises(InputError, match="configs/none.py") as caught:
        settings.parse(["train", "--config=configs/none.py"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("arg", LINES)
def test_a_bad_argument_is_one_line(arg, monkeypatch):
    argv = ["train", f"--config={ROOT}/configs/revos.py", arg]
    monkeypatch.setattr(sys, "argv", argv)  # where the config's overrides are looked for
    with flagsaver.flagsaver(), pytest.raises(InputError, match=LINES[arg]) as caught:
        settings.parse(argv)
    assert "\n" not in str(caught.value)


def test_a_command_ends_with_one_line_and_status_2():
    command = [sys.executable, "-m", "omnir1_jax.train", "--config", "configs/revos.py", "--config.stepz=3"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 2 and "Traceback" not in run.stderr
    assert [line for line in run.stderr.splitlines() if line][-1].startswith("error: --config: 'stepz'")


@pytest.mark.parametrize(
    "change, words",
    [
        (("thinker", "path", "nowhere"), "--config.thinker.path .* configs/toy.py"),
        (("thinker", "path", ""), "configs/toy.py|tokenizer"),
    ],
)
def test_missing_weights_name_the_setting_and_the_toy(change, words):
    config = get("revos")
    config[change[0]][change[1]] = change[2]
    with pytest.raises(InputError, match=words):
        build(config)


def test_a_tokenizer_that_is_not_the_weights_own_is_refused(tmp_path):
    config = get("toy")
    words = models.tokenizer(config)
    words.add_tokens(["<|one more|>"])
    words.save_pretrained(tmp_path / "longer")
    config.thinker.tokenizer = str(tmp_path / "longer")
    with pytest.raises(InputError, match=r"longer has 641 tokens, the model's vocabulary 640"):
        models.sizes(config)

    swapped = pathlib.Path(shutil.copytree(config.thinker.path, tmp_path / "swapped"))
    own = json.loads((swapped / "tokenizer.json").read_text())
    for token in own["added_tokens"]:
        other = {"<|IMAGE|>": "<|VIDEO|>", "<|VIDEO|>": "<|IMAGE|>"}
        token["content"] = other.get(token["content"], token["content"])
    (swapped / "tokenizer.json").write_text(json.dumps(own))
    config.thinker.tokenizer = str(swapped)
    with pytest.raises(InputError, match=r"swapped has image at \d+, the model at \d+"):
        models.sizes(config)
