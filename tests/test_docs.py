"""What README and docs say is so: every block runs or is read by what it is for, every link leads somewhere.

`sh` blocks run, in one folder, in the order of PAGES. `bash` blocks are expensive or need a machine: their flags,
configs and files are read as the command would read them. `python` blocks run, with stand-ins for real weights.
"""

import ast
import concurrent.futures
import importlib
import io
import json
import pathlib
import re
import shlex
import sys
import tomllib
import types
import urllib.error
import urllib.request

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from omnir1_jax.config import settings
from omnir1_jax.files import hub
from omnir1_jax.files.sources import DATASETS, MODELS
from omnir1_jax.inference import tasks
from tests import test_rooms
from tests.commands import Commands
from tests.data import qwen_oracle
from tests.models import thinker_oracle
from tests.runs import ROOT, SMALL_TOY
from tests.test_flags import COMMANDS, in_a_process

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SHORTER = {
    "omnir1_jax.train": ["--config.steps=1", *SMALL_TOY],
    "omnir1_jax.evaluate": ["--limit=2", "--tasks=vos"],
}
MADE = ("RUN", "RESULTS", "HF_DIRECTORY", "ORBAX_DIRECTORY", "NEW_HF_DIRECTORY", "clips", "FIGURES")


def text(path: pathlib.Path) -> str:
    """A page, its comments left out."""
    return re.sub(r"<!--.*?-->\n?", "", path.read_text(), flags=re.S)


def blocks(language: str) -> list[tuple[str, str]]:
    """Name of the page and text of each block of a language."""
    return [
        (path.name, block)
        for path in PAGES
        for block in re.findall(rf"^```{language}\n(.*?)^```", text(path), re.S | re.M)
    ]


def commands(language: str) -> list[tuple[str, str]]:
    """Name of the page and each command."""
    lines = [(page, line) for page, block in blocks(language) for line in block.replace("\\\n", "").splitlines()]
    return [(page, line) for page, line in lines if line and not line.startswith("#")]


def test_every_block_is_of_a_language_that_is_tested():
    known = {"sh", "bash", "python", "json", "text"}
    said = {kind for path in PAGES for kind in re.findall(r"^```(.*)\n(?:.*\n)*?```$", text(path), re.M)}
    assert said <= known


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """Where the commands of all pages have run."""
    path = tmp_path_factory.mktemp("pages")
    thinker_oracle.reference(thinker_oracle.Sizes()).save_pretrained(path / "HF_DIRECTORY")
    qwen_oracle.save_tokenizer(path / "HF_DIRECTORY")
    server = Commands()
    for page, command in commands("sh"):
        program, option, module, *arguments = shlex.split(command)
        assert (program, option) == ("python", "-m"), command
        arguments = [str(path / word) if word in MADE else word for word in arguments]
        name = module if importlib.util.find_spec(module).origin.endswith(f"/{module.split('.')[-1]}.py") else ""
        arguments += SHORTER.get(module, [])
        log = path / "log.txt"
        status = server.wait(server.start(log, name or f"{module}.__main__", *arguments))
        assert status == 0, f"{page}: {command}\n{log.read_text()}"
    server.close()
    return path


def test_the_commands_run(folder):
    assert set(MADE) <= {path.name for path in folder.iterdir()}


# Commands that are read, not run.


def refused(module: str, lines: list[str]) -> dict[str, str]:
    """What a command says against its arguments, by line, in a process whose flags are its own."""
    for name in list(flags.FLAGS):
        delattr(flags.FLAGS, name)
    for name in {module, *(f"omnir1_jax.{command}" for command in COMMANDS)} & sys.modules.keys():
        del sys.modules[name]
    hub.cached = lambda repo: repo  # as if it were fetched
    found = {}
    for line in lines:
        sys.argv = [module, *shlex.split(line)[3:]]  # which configs are read from too
        sys.stdout = sys.stderr = said = io.StringIO()
        try:
            command = importlib.import_module(module)
            parse = getattr(command, "parse", settings.parse if hasattr(command, "_CONFIG") else flags.FLAGS)
            with flagsaver.flagsaver():
                parse(sys.argv)
        except SystemExit as end:
            found |= {line: said.getvalue()} if end.code else {}
        except Exception as error:
            found[line] = f"{type(error).__name__}: {error}"
    return found


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def check_install(words: list[str]) -> None:
    for word in words:
        named = re.search(r"\[(.*?)\]", word)
        assert named is None or set(named[1].split(",")) <= PROJECT["optional-dependencies"].keys(), word
    assert "-c" not in words or (ROOT / words[words.index("-c") + 1]).exists()


# By the first word: what else a page may ask a shell for.
OTHERS = {
    "git": lambda words: None,
    "cd": lambda words: None,
    "python3": lambda words: None,
    ".": lambda words: None,
    "pip": check_install,
    "mkdocs": lambda words: (ROOT / words[words.index("-f") + 1]).stat(),
    "launch/quickstart.sh": lambda words: (ROOT / words[0]).stat(),
    "launch/test.sh": lambda words: (ROOT / words[0]).stat(),
    "launch/tpu_vm.sh": lambda words: None,  # tests/launch/test_scripts.py
    "launch/xpk.sh": lambda words: None,
}


def programs() -> dict[str, list[str]]:
    """The pages' commands of this package that are only read, by module."""
    found = {}
    for _, line in commands("bash"):
        if (program := line.split()[0]) in PROJECT["scripts"]:
            line = line.replace(program, f"python -m omnir1_jax.{program.removeprefix('omnir1-')}", 1)
        if line.startswith("python -m "):
            module = line.split()[2]
            package = importlib.util.find_spec(module).submodule_search_locations is not None
            found.setdefault(f"{module}.__main__" if package else module, []).append(line)
    return found


@pytest.mark.parametrize("module", programs())
def test_flags_and_configs_of_a_command_exist(module, monkeypatch):
    monkeypatch.chdir(ROOT)
    importlib.import_module(module)  # here, so that the forked process has little to import
    assert in_a_process(refused, module, programs()[module]) == {}


def test_other_commands_are_known():
    for _, line in commands("bash"):
        for words in (shlex.split(part, comments=True) for part in line.split(" && ")):
            if words[:2] == ["python", "-c"]:
                ast.parse(words[2])
            elif words[:2] != ["python", "-m"] and words[0] not in PROJECT["scripts"]:
                OTHERS[words[0]](words)


def test_the_tests_of_a_change_are_those_of_the_readme():
    assert "\nlaunch/test.sh\n" in (ROOT / ".ci/run").read_text()


# Python.


class Model:
    """Stands for Sa2VA."""

    def __call__(self, *args, **kwargs):
        return self

    __getattr__ = __call__

    def predict_forward(self, image, text, **_):
        assert image.size == (96, 64) and text.startswith("<image>Please segment ")
        mask = np.zeros((1, 64, 96), bool)
        mask[:, 8:16, 4:12] = True
        return {"prediction_masks": [mask]}


def stand_ins(folder: pathlib.Path) -> dict[str, object]:
    """Names that the blocks take from elsewhere."""
    toy = ROOT / "configs/toy_weights"
    for name, weights in {"SAM2_DIRECTORY": toy / "sam2", "configs": ROOT / "configs", "docs": ROOT / "docs"}.items():
        if not (folder / name).exists():
            (folder / name).symlink_to(weights)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 100, (1, 8))
    return {
        "c": settings.defaults(),
        "datasets": settings.datasets,
        "hf_inputs": {"input_ids": ids, "attention_mask": np.ones_like(ids)},
        "frames": rng.integers(0, 255, (2, 64, 96, 3)).astype(np.uint8),
        "boxes": np.array([[[4.0, 8.0, 12.0, 16.0]]], np.float32),
        "box_frames": np.array([[0]], np.int32),
        "height": 64,
        "width": 96,
        "frame_of": lambda sample_id, frame: io.BytesIO(IMAGE),
    }


def image() -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (96, 64)).save(file, "PNG")
    return file.getvalue()


IMAGE = image()


# The script with sys.argv: tests/inference/test_torch_script.py.
@pytest.mark.parametrize(("page", "code"), [(page, code) for page, code in blocks("python") if "sys.argv" not in code])
def test_a_python_block_runs(page, code, folder, monkeypatch, capsys):
    if "trust_remote_code" in code:
        transformers = types.SimpleNamespace(AutoModel=Model(), AutoTokenizer=Model())
        monkeypatch.setitem(sys.modules, "transformers", transformers)
    names = stand_ins(folder)
    monkeypatch.chdir(folder)
    exec(compile(code, page, "exec"), names)
    if page == "your_own_videos.md" and "c.data" in code:
        assert tasks._held_out_dataset(names["c"].data.vos) == "folder"  # what its evaluation takes
    if page == "data.md":  # of a folder that has questions too
        assert {names["reader"][i].family for i in range(len(names["reader"]))} == {"vos"}
    if page == "README.md":  # the toy sees the cyan triangle, and its masks cover some of it in every frame
        said = capsys.readouterr().out
        assert "cyan" in said and " at ((" in said
        assert (names["result"].masks.mean(axis=(1, 2)) > 0.01).all() and (folder / "ANSWER/overlay.mp4").exists()


# Links.


def slugs(path: pathlib.Path) -> set[str]:
    """Anchors of a page's headings, as GitHub and mkdocs make them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", path.read_text(), flags=re.S | re.M), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    prose = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.S | re.M)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        goal = path.parent / file if file else path
        assert goal.exists(), f"{path.name}: {target}"
        assert not anchor or anchor in slugs(goal), f"{path.name}: {target}"


def elsewhere() -> dict[str, str]:
    """Addresses outside, of the pages and of what `fetch` knows, and where each stands."""
    sources = ROOT / "omnir1_jax/files/sources.py"
    found = {
        url.rstrip(".,"): path.name
        for path in (*PAGES, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", sources)
        for url in re.findall(r"https://[^\s)>\"',`]+", path.read_text())
    }
    repos = {one.repo for one in MODELS.values()} | {f"datasets/{one.repo}" for one in DATASETS.values() if one.repo}
    return found | {f"https://huggingface.co/{repo}": sources.name for repo in repos}


def status(url: str) -> int:
    """Of HTTP; 0 where no such host answers."""
    request = urllib.request.Request(url, headers={"User-Agent": "Mozilla/5.0"}, method="HEAD")
    try:
        return urllib.request.urlopen(request, timeout=30).status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


@pytest.mark.slow  # needs the network: launch/test.sh tests/test_docs.py -m slow
def test_links_to_elsewhere_are_alive():
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = dict(zip(elsewhere(), pool.map(status, elsewhere())))
    # What wants a login, or fewer questions, or has a bad day, is there.
    assert {url: (code, elsewhere()[url]) for url, code in answers.items() if code in (0, 404, 410)} == {}


def test_every_page_is_in_the_site_and_in_the_index():
    site = (ROOT / "docs/site/mkdocs.yml").read_text()
    listed = set(re.findall(r": (\w+\.md)$", site, re.M))
    pages = {path.name for path in PAGES[1:]}
    assert listed == pages
    linked = set(re.findall(r"\]\((\w+\.md)", (ROOT / "docs/index.md").read_text()))
    assert linked | {"index.md"} == pages


def test_the_rooms_are_listed_in_their_order():
    page = (ROOT / "docs/internals.md").read_text()
    folders = [room for room in test_rooms.ORDER if (ROOT / "omnir1_jax" / room).is_dir()]
    assert re.findall(r"^\| `(\w+)/` \|", page, re.M) == folders
    assert all(f"`{command}.py`" in page or f"`{command}/`" in page for command in test_rooms.COMMANDS)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_files_that_a_page_names_exist(path):
    for name in re.findall(r"`((?:omnir1_jax|configs|launch|docs)/[\w./]+)`", text(path)):
        assert (ROOT / name).exists(), f"{path.name}: {name}"


def test_messages_flags_and_metrics_of_the_pages_are_those_of_the_package(folder):
    source = "\n".join(path.read_text() for path in (ROOT / "omnir1_jax").rglob("*.py"))
    scripts = "\n".join(path.read_text() for path in (ROOT / "launch").glob("*.sh"))
    spans = [span for path in PAGES for span in re.findall(r"`([^`\n]+)`", text(path)) if "tensorboard" not in span]
    said = {flag for span in spans for flag in re.findall(r"(?<![\w-])--(\w[\w-]*)", span)}
    known = lambda flag: f'"{flag}"' in source or f'"--{flag}"' in source or f"--{flag}" in scripts
    assert [flag for flag in said - {"config", "help"} if not known(flag)] == []
    messages = re.findall(r"^- `(.*?)`:", (ROOT / "docs/troubleshooting.md").read_text(), re.M)
    foreign = {
        "no space left on device", "RESOURCE_EXHAUSTED", "Falling back to cpu", "Failed to find host bounds",
        "Very slow compile?",
    }  # fmt: skip
    assert messages and [message for message in messages if message not in source and message not in foreign] == []
    metrics = (ROOT / "docs/metrics.md").read_text()
    rows = [json.loads(line) for line in (folder / "RUN/metrics.jsonl").read_text().splitlines()]
    names = {name.rpartition("/")[2] for row in rows for name in row if "/" in name}
    assert len(names) > 20 and [name for name in names if f"{name}`" not in metrics] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_settings_that_a_page_names_exist(path):
    known = set(re.findall(r"^\| `([\w.<>]+)`", (ROOT / "docs/settings.md").read_text(), re.M))
    sections = {name.partition(".")[0] for name in known if "." in name}
    said = re.findall(r"`(?:--config\.)?(\w+(?:\.\w+)+)(?:=[^`\n]*)?`", text(path))
    named = {name for name in said if name.partition(".")[0] in sections and not name.endswith((".py", ".md"))}
    assert {re.sub(r"^data\.\w+\.", "data.<task>.", name) for name in named} <= known
