"""Settings: unknown names, wrong types, and a config that comes back as it was written."""

import json
import pathlib
import shutil
import subprocess
import sys

import pytest
from absl.testing import flagsaver

import omnir1_jax.train  # noqa: F401  (defines the command's flags)
from omnir1_jax.build import models
from omnir1_jax.build.run import build
from omnir1_jax.config import settings
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


LINES = {
    "--config.optimizer.lerning_rate=3": "learning_rate",
    "--config.optimizer.learning_rate=fast": "learning_rate",
    "--config.data.vos.framse=3": "frames",
    "--config=configs/none.py": "configs/none.py",
    "--workdri=x": "workdir",
}


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
