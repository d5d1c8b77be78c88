"""The work directory of a run: its files, its owner, and its lock."""

import contextlib
import hashlib
import re
from collections.abc import Iterator, Sequence

import jax
from etils import epath
from ml_collections import ConfigDict

from omnir1_jax.build.data import root_of
from omnir1_jax.errors import InputError
from omnir1_jax.files import folders, json_file, locks, orbax_files
from omnir1_jax.models.hf_checkpoint import WEIGHTS
from omnir1_jax.reporting.log import METRICS, PICTURES, ROLLOUT_PARTS, ROLLOUTS, TENSORBOARD, check_pictures
from omnir1_jax.training import attempts, checkpoint_steps, checkpointing, trace

KIND, FLAG = "train", "--workdir"
CONFIG, SUMMARY, REPORT, CACHE = "config.json", "summary.json", "report.html", "cache"
START = (
    attempts.FILE,
    CACHE,
    CONFIG,
    METRICS,
    ROLLOUTS,
    ROLLOUT_PARTS,
    PICTURES,
    TENSORBOARD,
    trace.FOLDER,
    checkpointing.FOLDER,
)  # written from the start on
END = (SUMMARY, REPORT)
# Contents written by an older version, without marks.
_SETTINGS = {"steps", "objective", "thinker", "data"}
_OLD_WEIGHTS = re.compile(r"[\w.-]+\.(safetensors|json|txt|jinja|model)")
_OLD_PICTURE = re.compile(r"[0-9]{2,}_[\w.-]+\.png")


@contextlib.contextmanager
def hold(path: epath.PathLike, config: ConfigDict) -> Iterator[folders.Mark | None]:
    """Locks and claims the work directory, and yields its mark; in all processes but the first does nothing (None).

    Raises:
      InputError: the path, or something in it that the run would write, is not the run's; another process uses it; it
        overlaps the config's inputs; orbax cannot store arrays there.
    """
    if jax.process_index():
        yield None
        return
    folder = epath.Path(path)
    check(folder, config)
    with contextlib.ExitStack() as stack:
        identity = ""
        if folder.exists() and folders.read(folder) is None and adopt(folder) is not None:
            stack.enter_context(locks.lock(folder, FLAG))
            identity = hashlib.sha256((folder / CONFIG).read_bytes()).hexdigest()[:32]  # the same if killed meanwhile
            _adopt_inner(folder, identity)
        mark = stack.enter_context(folders.hold(folder, KIND, FLAG, names=(*START, *END), owner=identity, adopt=adopt))
        check(folder, config)
        for name in START:
            folders.begin(folder, name, FLAG)
        yield mark


def check(folder: epath.PathLike, config: ConfigDict) -> None:
    """`InputError` as of `hold`; changes nothing."""
    folder = epath.Path(folder)
    orbax_files.check_path(folder / checkpointing.FOLDER, FLAG)
    folders.check_disjoint(folder, FLAG, inputs(config))
    mark = folders.check(folder, KIND, FLAG, names=(*START, *END), adopt=adopt)
    checkpoint_steps.check(folder / checkpointing.FOLDER)
    if mark is not None:
        check_pictures(folder, mark.id)
        folders.check_replaceable(folder / "weights", WEIGHTS, FLAG, owner=mark.id)


def inputs(config: ConfigDict) -> dict[str, str]:
    """Folders that a run reads, by the setting that names them."""
    paths = {f"{name}.path": config[name].path for name in ("thinker", "sam2")}
    paths["thinker.tokenizer"] = config.thinker.tokenizer
    for task, entry in config.data.items():
        for label, dataset in entry.datasets.items():
            if dataset.root:
                paths[f"data.{task}.datasets.{label}.root"] = str(root_of(config, dataset.root))
    return paths


def adopt(folder: epath.Path) -> Sequence[str] | None:
    """Files of a run of an older version in a folder without a mark; None if it is not a work directory."""
    if not (folder / CONFIG).is_file() or folders.is_link(folder / CONFIG):
        return None
    if not (folder / METRICS).is_file() and not (folder / checkpointing.FOLDER).is_dir():
        return None
    try:
        config = json_file.read_object(folder / CONFIG)
    except InputError:
        return None
    if not config.keys() >= _SETTINGS:
        return None
    return [name for name in (*START, *END) if (folder / name).exists() and not folders.is_link(folder / name)]


def _adopt_inner(folder: epath.Path, identity: str) -> None:
    """Marks folders inside that an older version wrote, if they hold nothing else."""
    pictures = folder / PICTURES
    steps = [path for path in pictures.iterdir() if path.name.isdecimal()] if pictures.is_dir() else []
    inner = [(path, PICTURES, _OLD_PICTURE) for path in steps]
    if (folder / SUMMARY).is_file() and (folder / "weights").is_dir():
        inner.append((folder / "weights", WEIGHTS, _OLD_WEIGHTS))
    for path, kind, pattern in inner:
        names = folders.entries(path) if path.is_dir() and not folders.is_link(path) else {"@"}
        if all(pattern.fullmatch(name) for name in names):
            folders.write(path, folders.Mark(kind, identity, tuple(sorted(names))))
