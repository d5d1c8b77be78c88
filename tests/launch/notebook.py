"""Runs cells of a notebook: `python -m tests.launch.notebook NAME TAG VALUES`, in JSON those of the first cell.

What the cells display is written to stdout, a line each after `>>>`. Cells tagged `real` need weights, data and a
TPU: their commands are not run but read by the command's own parser, and written after `$$$`.
"""

import importlib
import json
import pathlib
import sys
import types

import huggingface_hub
from absl import flags
from huggingface_hub.errors import LocalEntryNotFoundError

LAUNCH = pathlib.Path(__file__).parent.parent.parent / "launch"


def read(name: str) -> dict:
    return json.loads((LAUNCH / f"{name}.ipynb").read_text())


def cells(name: str, *tags: str) -> list[str]:
    """Sources of the code cells with these tags, in their order."""
    own = [cell for cell in read(name)["cells"] if cell["cell_type"] == "code"]
    return ["".join(cell["source"]) for cell in own if set(cell["metadata"]["tags"]) & set(tags)]


def tell(kind: str, **of) -> None:
    print(f"\n>>> {json.dumps([kind, of])}", flush=True)


def download(name: str, **options) -> None:
    """In place of the hub's, whose cache is empty."""
    if options.get("local_files_only"):
        raise LocalEntryNotFoundError(name)
    tell("download", name=name, **options)


def displays() -> types.ModuleType:
    """In place of IPython's: what is shown, with the size of its file."""
    size = lambda path: {"path": path, "bytes": pathlib.Path(path).stat().st_size}
    module = types.ModuleType("IPython.display")
    module.Image = lambda filename: ("image", size(filename))
    module.Video = lambda path, embed: ("video", size(path))
    module.HTML = lambda text: ("html", {"text": text[:60], "bytes": len(text)})
    module.display = lambda shown: tell(shown[0], **shown[1])
    return module


def parsed(module: str, *options: str) -> None:
    """Fails where the command would refuse its options."""
    from omnir1_jax.config import settings

    command = importlib.import_module(f"omnir1_jax.{module}" if "." not in module else f"omnir1_jax.{module}.__main__")
    flags.FLAGS.unparse_flags()
    parse = getattr(command, "parse", settings.parse)
    sys.argv = [module, *options]  # where the config flag finds its single settings
    rest = parse(sys.argv)
    assert not isinstance(rest, list) or rest == [module], rest
    print(f"\n$$$ {json.dumps([module, *options])}", flush=True)


def main(name: str, tag: str, values: str) -> None:
    sys.modules["IPython"] = types.ModuleType("IPython")
    sys.modules["IPython.display"] = displays()
    names: dict = {"__name__": "__main__"}
    for source in cells(name, "parameters"):
        exec(source, names)
    given = json.loads(values)
    assert given.keys() <= names.keys(), "the first cell has other names"
    names |= given
    for source in cells(name, "setup"):
        exec(source, names)
    if tag == "real":
        huggingface_hub.snapshot_download = download
        names |= {"python": parsed, "show_run": lambda folder: None, "show_answer": lambda folder: None}
    for source in cells(name, tag):
        exec(compile(source, name, "exec"), names)


if __name__ == "__main__":
    main(*sys.argv[1:])
