"""Rooms: who may import whom, files short enough to read, and a project that speaks of itself alone."""

import ast
import pathlib
import re
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "omnir1_jax"
FILES = {"errors", "json_file", "regular_file", "tags", "folders", "locks", "orbax_files"}
BASE = FILES | {"cli", "parallel"}
MAY_IMPORT = {
    "parallel": {"errors"},
    "models": BASE,
    "text": FILES,
    # The layout of media in a prompt (numpy only) is worked out once, for the model's door and for the pipeline.
    "data": FILES | {"cli", "text", "models.qwen_omni.layout"},
    "systems": BASE | {"models", "text"},
    "rl": BASE | {"models", "text", "systems", "data"},
    "evaluation": FILES | {"cli", "data"},
    "supervised": BASE | {"models", "text", "systems", "data", "rl"},
    "reporting": FILES | {"cli", "data", "evaluation"},
    "setup": BASE | {"models", "text", "systems", "data", "rl", "supervised", "settings"},
    "inference": BASE
    | {"models", "text", "systems", "data", "rl", "evaluation", "reporting", "setup", "settings", "trained"},
    "training": BASE
    | {"models", "data", "rl", "reporting", "setup", "settings"}
    | {"checkpoints", "checkpoint_steps", "rollouts", "signals"},
    "planning": BASE | {"models", "text", "systems", "data", "rl", "setup", "settings"},
}


def imports(path: pathlib.Path) -> set[str]:
    """Dotted names below `omnir1_jax` that a file imports, `from` names included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {name.removeprefix("omnir1_jax.") for name in names if name.startswith("omnir1_jax")}
    return found


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_rooms_import_only_what_they_may(room):
    allowed = MAY_IMPORT[room] | {room}
    for path in (PACKAGE / room).rglob("*.py"):
        for name in imports(path):
            assert any(f"{name}.".startswith(f"{door}.") for door in allowed), f"{path.relative_to(ROOT)}: {name}"


def test_no_module_imports_a_command():
    """A command's flags are registered on import: whoever imports it accepts them too."""
    commands = {path.stem for path in PACKAGE.glob("*.py") if "\n    cli.run(main" in path.read_text()}
    assert commands == {"bench", "convert", "evaluate", "infer", "plan", "toy", "train"}
    for path in PACKAGE.rglob("*.py"):
        imported = {name.split(".")[0] for name in imports(path)}
        assert not commands & imported, f"{path.relative_to(ROOT)}: {commands & imported}"
        defines = re.search(r"^\w+ = flags\.DEFINE_", path.read_text(), re.MULTILINE)
        assert not defines or path.stem in {*commands, "__main__"}, f"{path.relative_to(ROOT)}: defines flags"


def test_files_are_read_in_one_sitting():
    long = {str(p.relative_to(ROOT)): n for p in PACKAGE.rglob("*.py") if (n := len(p.read_text().splitlines())) > 450}
    assert not long


def tracked() -> list[pathlib.Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.splitlines() if (ROOT / name).is_file()]


def test_no_file_names_a_machine():
    pattern = re.compile(r"(^|[\s\"'`(=])/(" + "work|root|home|Users" + r")/")
    for path in tracked():
        if path.suffix in {".py", ".sh", ".md", ".toml", ".txt", ".cfg", ".json"} and path != pathlib.Path(__file__):
            found = pattern.search(path.read_text())
            assert not found, f"{path.relative_to(ROOT)}: {found.group().strip()}"
