"""`python -m omnir1_jax.fetch model|dataset NAME [--out DIRECTORY]`: weights and data from the Hugging Face hub.

NAME is one of the list that `python -m omnir1_jax.fetch` prints, or any `org/name`. Models go into the hub's cache,
where `--checkpoint org/name` and the settings `thinker.path` and `sam2.path` find them. A dataset of the list goes into
`data/NAME`; one that is named `org/name` into the cache, where `--root org/name` and the `root` of a dataset find it.
Its archives are unpacked there. If interrupted, rerun the command to resume. Sizes are compared with the hub's.
"""

import pathlib
import tarfile
import zipfile

from absl import logging

from omnir1_jax import cli
from omnir1_jax.errors import InputError, printable
from omnir1_jax.files import hub
from omnir1_jax.files.sources import DATASETS, MODELS, Source

_OUT = cli.flag.string("out", "", "Directory to write; the hub's cache if empty, of a dataset by name data/NAME.")
_UNPACK = cli.flag.bool("unpack", True, "Unpack a dataset's archives; they stay, and may be deleted then.")

TABLES = {"model": MODELS, "dataset": DATASETS}
STAMP = ".unpacked"
OPENERS = {".zip": zipfile.ZipFile, ".tar": tarfile.open, ".tgz": tarfile.open, ".gz": tarfile.open}


def list_sources() -> str:
    """The sources that can be fetched by name, one line each."""
    lines = []
    for kind, table in TABLES.items():
        lines += [f"{kind} {name:22} {source.repo or 'by hand':36} {source.licence}" for name, source in table.items()]
    return "\n".join(lines)


def find_source(kind: str, name: str) -> Source:
    """The source of a name in the table, or of a repository's id. Raises `InputError`."""
    if kind not in TABLES:
        raise InputError(f"fetch: {kind!r} is neither model nor dataset; see python -m omnir1_jax.fetch")
    table = TABLES[kind]
    repos = [source.repo for source in table.values()]  # one may hold several datasets
    by_repo = {source.repo.lower(): source for source in table.values() if repos.count(source.repo) == 1}
    if source_found := table.get(name.lower()) or by_repo.get(name.lower()):
        return source_found
    if name.count("/") == 1:
        return Source(name, "see its page", hub.MODEL_FILES if kind == "model" else None)
    raise InputError(f"fetch {kind}: {name!r} is none of {', '.join(table)}, and no id such as org/name")


def unpack(folder: pathlib.Path) -> list[str]:
    """Unpacks the archives in `folder`, each once, beside themselves; returns the contents of those unpacked now."""
    unpacked = []
    for path in sorted(folder.rglob("*")):
        opener = OPENERS.get(path.suffix)
        stamp = path.with_name(path.name + STAMP)
        if opener is None or not path.is_file() or stamp.exists():
            continue
        try:
            with opener(path) as archive:
                # tarfile's filter keeps members inside the folder, as zipfile does of itself
                archive.extractall(path.parent, **({} if opener is zipfile.ZipFile else {"filter": "data"}))
                names = archive.namelist() if opener is zipfile.ZipFile else archive.getnames()
        except (zipfile.BadZipFile, tarfile.TarError) as error:
            raise InputError(f"{path}: not a readable archive ({error}); move it elsewhere and rerun") from error
        stamp.touch()
        entries = sorted({str(path.parent / name.removeprefix("./").split("/")[0]) for name in names})
        unpacked.append(f"{path.name}: {', '.join(entries[:3])}{', ...' if len(entries) > 3 else ''}")
    return unpacked


def main(argv: list[str]) -> None:
    if len(argv) == 1:
        print(list_sources())
        return
    if len(argv) != 3:
        raise InputError("fetch: say model or dataset, then a name; without either it lists what there is")
    logging.set_verbosity(logging.ERROR)
    kind, name = argv[1:]
    source = find_source(kind, name)
    print(printable(f"{name}: licence: {source.licence}"))
    if not source.repo:
        raise InputError(f"{name}: is not on the hub; get it by hand: {source.by_hand}")
    out = _OUT.value or (str(pathlib.Path("data", name)) if kind == "dataset" and "/" not in name else None)
    folder, size = hub.fetch(source.repo, kind, source.files, out)
    unpacked = unpack(pathlib.Path(folder)) if kind == "dataset" and _UNPACK.value else []
    for archive in unpacked:
        print(printable(f"unpacked {archive}"))
    print(printable(f"{folder}: {size / 1e9:.2f} GB, sizes as on the hub"))
    if out is None:
        uses = {"model": "--checkpoint={0} or --config.thinker.path={0} (or sam2.path)", "dataset": "--root={0}"}
        print(printable(f"use it as {uses[kind].format(source.repo)}"))


if __name__ == "__main__":
    cli.run(main)
