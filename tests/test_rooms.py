"""Rooms: who may import whom, files short enough to read, and a project that speaks of itself alone."""

import ast
import pathlib
import re
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "omnir1_jax"
# A room, or a module at the top, imports only from those before it; a command from all.
ORDER = (
    "scripts", "errors", "terminal", "signals", "cli", "files", "parallel", "text", "config", "models", "data",
    "systems", "rewards", "rl", "tasks", "supervised", "toy", "build", "evaluation", "reporting", "training",
    "inference", "planning", "benches",
)  # fmt: skip
COMMANDS = ("bench", "convert", "difficulty", "evaluate", "fetch", "infer", "plan", "profile", "serve", "toy", "train")


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


def test_every_room_has_its_place():
    there = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in PACKAGE.rglob("*.py")}
    assert there == {*ORDER, *COMMANDS, "__init__"}


@pytest.mark.parametrize("room", ORDER)
def test_a_room_imports_only_from_those_before_it(room):
    before = {*ORDER[: ORDER.index(room) + 1]}
    paths = [path] if (path := PACKAGE / f"{room}.py").exists() else sorted((PACKAGE / room).rglob("*.py"))
    paths = [path for path in paths if path.name != "__main__.py"]
    for path in paths:
        later = {name.split(".")[0] for name in imports(path)} - before
        assert not later, f"{path.relative_to(ROOT)} imports {', '.join(sorted(later))}"


def test_no_module_imports_a_command():
    """A command's flags are registered on import: whoever imports it accepts them too."""
    paths = {path: path.stem for path in PACKAGE.glob("*.py")} | {
        path: f"{path.parent.name}.__main__" for path in PACKAGE.glob("*/__main__.py")
    }
    commands = {name for path, name in paths.items() if "\n    cli.run(main" in path.read_text()}
    assert {name.removesuffix(".__main__") for name in commands} == {*COMMANDS}
    for path in PACKAGE.rglob("*.py"):
        imported = {part for name in imports(path) for part in (name.split(".")[0], ".".join(name.split(".")[:2]))}
        assert not commands & imported, f"{path.relative_to(ROOT)}: {commands & imported}"
        defines = re.search(r"^\w+ = (flags\.DEFINE_|cli\.flag\.)", path.read_text(), re.MULTILINE)
        assert not defines or path.stem in {*COMMANDS, "__main__"}, f"{path.relative_to(ROOT)}: defines flags"


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
