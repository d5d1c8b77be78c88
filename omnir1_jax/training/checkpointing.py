"""Checkpoints of a run: what training changes, where the data stood, and the settings it was made with.

A step lies in `<work directory>/checkpoints/<step>/`, written by orbax in the background:

    trainable/  the trained parameters, readable without the rest
    rest/       step, optimizer state, skipped updates
    run/        process_<i>.json of every process: the run's settings, a checksum of every array, the state of that
                process's data stream

Orbax writes under a name of its own and renames when all is there (on gs:// it adds a file at the end), so a run killed
at any moment leaves whole checkpoints and at most one that is not taken for one. What a disk loses afterwards is found
by reading: tensorstore keeps no checksum of the arrays' bytes, hence ours.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding
from jaxtyping import Array, UInt32

from omnir1_jax import cli
from omnir1_jax.errors import InputError
from omnir1_jax.files import json_file, orbax_files
from omnir1_jax.training.checkpoint_steps import RECORD, Manager, Score, best, finished

FOLDER = "checkpoints"
# Settings that change nothing of what is learned but its rounding. Dotted; a section covers what is below it.
MAY_DIFFER = (
    "checkpoint",
    "log",
    "mesh",
    "data_root",
    "loader",
    "name",
    "optimizer.max_skipped",
    "profile",
    "sam2.object_chunk",
    "sam2.frame_chunk",
    "step.mode",
    "step.score_chunk",
    "thinker.attention",
    "thinker.remat",
    "validate",
)
_ITEMS = ("trainable", "rest")


class Restored(NamedTuple):
    """A checkpoint read back."""

    step: int
    state: Any
    stream: dict[str, Any]


class _Damaged(Exception):
    """A checkpoint that cannot be read."""


def manager(workdir: epath.PathLike, keep: int) -> Manager:
    """Opens `<workdir>/checkpoints`, made where it is not there. Close it (or use `with`): that ends the last write.

    What a killed run left half-written is named in a warning and removed.

    Args:
      keep: newest checkpoints that stay.

    Raises:
      InputError: something is in the way that the run did not write.
    """
    if keep < 1:
        raise InputError(f"checkpoint.keep: {keep} keeps nothing to resume from; give 1 or more")
    folder = cli.absolute(workdir) / FOLDER
    orbax_files.check_path(folder, "--workdir")
    # Every process writes its own file, hence no primary host.
    record = ocp.JsonCheckpointHandler(
        _record_name(jax.process_index()), multiprocessing_options=ocp.options.MultiprocessingOptions(primary_host=None)
    )
    return Manager(folder, keep, item_names=(*_ITEMS, "run"), item_handlers={"run": record})


def save(
    manager: Manager,
    step: int,
    state: Any,
    stream: Mapping[str, Any],
    settings: Mapping[str, Any],
    *,
    wait: bool = False,
    score: Score | None = None,
) -> bool:
    """Copies the state to the host and writes it in the background; then the state may be donated.

    Called by every process. While the checkpoint before is still being written, nothing is done: the loop does not
    wait for a disk.

    Args:
      state: a TrainState.
      stream: this process's `Stream.get_state()`, JSON-able.
      settings: of the run, nested and JSON-able; `restore` compares them.
      wait: wait for the checkpoint before, and until this one is whole. For the last one of a run.
      score: of this state's validation. The checkpoint with the best one stays beside the newest.

    Returns:
      Whether the step is saved: False where the one before was not finished.

    Raises:
      What went wrong in writing the checkpoint before; OSError: its index cannot be read back.
    """
    if step in manager.all_steps():
        if wait:
            manager.wait_until_finished()
            manager.settle()
        return True
    if not wait and any_process(manager.is_saving_in_progress()):
        logging.warning("step %d is not saved: the checkpoint before is still being written", step)
        return False
    trees = _split(state)
    run = {
        "processes": jax.process_count(),
        "settings": _plain(settings),
        "checksums": _checksums(trees),
        "stream": dict(stream),
    } | ({} if score is None else {"validation": score._asdict()})
    manager.wait_until_finished()
    manager.settle()
    manager.begin(step)
    items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
    manager.save(step, args=ocp.args.Composite(**items, run=ocp.args.JsonSave(run)), force=True)
    if wait:
        manager.wait_until_finished()
        manager.settle()
    return True


def restore(
    manager: Manager,
    state: Any,
    settings: Mapping[str, Any],
    may_differ: Sequence[str] = MAY_DIFFER,
    *,
    upgrade: Callable[[Mapping[str, Any], str], Mapping[str, Any]] = lambda saved, where: saved,
    advice: Mapping[str, str] = MappingProxyType({}),
) -> Restored | None:
    """The newest good checkpoint, or None where there is none at all. Called by every process.

    One that cannot be read whole is passed over with a warning, and removed once an older one was read: the run will
    come to its step again.

    Args:
      state: a TrainState, or one of ShapeDtypeStructs with shardings: what is read lies as this does, on whatever mesh
        the checkpoint was written.
      settings: as given to `save`.
      may_differ: settings that are not compared.
      upgrade: (saved settings, where they lie) -> the same under today's names.
      advice: by setting, what to do where it differs; by default to set it back.

    Raises:
      InputError: checkpoints are there and none is good; or the newest good one is of other settings, shapes or types
        (the first difference is named).
    """
    folder, steps = manager.directory, manager.all_steps()
    if not steps:
        return None
    trees = _split(like(state))

    def check(path, run):
        saved = _plain(upgrade(run["settings"], str(path)))
        _refuse_other_settings(path, saved, _plain(settings), may_differ, advice)

    step, (run, read) = _newest(folder, steps, lambda path: _read(path, trees, check, same_dtype=True))
    for newer in (s for s in steps if s > step):
        logging.warning("%s: removed, since the run resumes from step %d", folder / str(newer), step)
        manager.delete(newer)
    return Restored(step, _joined(state, read), run["stream"])


def load_trainable(path: epath.PathLike, trainable: Any, step: int | None = None) -> Any:
    """The trained parameters of a run, without its optimizer state.

    Args:
      path: a work directory, its `checkpoints`, or one checkpoint in it.
      trainable: arrays or ShapeDtypeStructs that say shapes, types (cast to) and where to put them.
      step: None takes the newest good one.

    Raises:
      InputError: nothing (good) there, or parameters of other shapes.
    """
    return read_trainable(path, trainable, step)[1]


def read_trainable(path: epath.PathLike, trainable: Any, step: int | None = None) -> tuple[int, Any]:
    """`load_trainable` with the step that was read."""
    path = cli.absolute(path)
    if (path / "trainable").is_dir():
        folder, steps = path.parent, [path.name]
    else:
        folder = path / FOLDER if (path / FOLDER).is_dir() else path
        steps = finished(folder)
        if not steps:
            raise InputError(f"{path}: no checkpoint of a run is there; give its --workdir")
        if step is not None:
            if step not in steps:
                raise InputError(f"{folder}: no checkpoint of step {step}; there are {sorted(steps)}")
            steps = [step]
    trees = {"trainable": _named(like(trainable))}
    read = lambda at: _read(at, trees, lambda at, run: None, same_dtype=False)
    newest, (_, found) = _newest(folder, steps, read)
    return int(newest), _filled(trainable, found["trainable"])


def named_step(workdir: epath.PathLike, name: str) -> int | None:
    """The step of a run's checkpoint by its name: "best", "last" (None: the newest good one), or its number.

    Raises:
      InputError: none of these, or no checkpoint was validated.
    """
    folder = cli.absolute(workdir) / FOLDER
    if name in ("", "last"):
        return None
    if name == "best":
        found = best(folder, finished(folder))
        if found is None:
            raise InputError(f"--step=best: no checkpoint in {folder} was validated; see config.validate.every")
        return found
    if not (name.isascii() and name.isdecimal() and len(name) < 10):
        raise InputError(f"--step: {name!r} is none of best, last, or a checkpoint's number")
    return int(name)


@no_type_check
def like(tree: Any) -> Any:
    """Shapes, types and shardings of a tree of arrays or ShapeDtypeStructs.

    Arrays that were never put anywhere (a fresh step counter) go wherever the others are: over their whole mesh.
    """
    leaves = jax.tree.leaves(tree)
    named = [x.sharding for x in leaves if isinstance(getattr(x, "sharding", None), NamedSharding)]
    anywhere = NamedSharding(named[0].mesh, PartitionSpec()) if named else SingleDeviceSharding(jax.local_devices()[0])

    def one(x):
        placed = getattr(x, "sharding", None) if getattr(x, "committed", True) else None
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed or anywhere)

    return jax.tree.map(one, tree)


def _newest(folder: epath.Path, steps: Sequence[int | str], read: Callable) -> tuple[Any, Any]:
    """The newest step that `read` can read, and what it read."""
    for step in sorted(steps, reverse=True):
        try:
            return step, read(folder / str(step))
        except _Damaged as error:
            logging.warning("%s: passed over: %s", folder / str(step), error)
    raise InputError(
        f"{folder}: none of the checkpoints there can be read ({', '.join(map(str, sorted(steps)))}); put a good one "
        "back, or take another --workdir to start anew"
    )


def _read(path: epath.Path, trees: Mapping[str, Any], check: Callable, same_dtype: bool) -> tuple[Any, Any]:
    """This process's record and the arrays, after `check(path, record)`. Every process raises alike."""
    run = _agreed(_record, path)
    check(path, run)
    for name, tree in trees.items():
        _refuse_other_shapes(path, name, _agreed(_shapes, path / name), tree, same_dtype)
    read = _agreed(_arrays, path, trees)
    # The sums are made by all processes together, so only of arrays that all could read.
    sums = _checksums(read)
    _agreed(_refuse_other_sums, path, trees, sums, run["checksums"])
    return run, read


def _agreed(read: Callable, *args: Any) -> Any:
    """`read(*args)`; where it fails in any process, all raise _Damaged."""
    result, why = None, None
    try:
        result = read(*args)
    except (MemoryError, jax.errors.JaxRuntimeError):
        raise
    # A damaged file can make anything of orbax and tensorstore fail; arrays raise a plain Exception.
    except Exception as error:
        why = f"{type(error).__name__}: {str(error).strip()[:200]}".replace("\n", " ")
    if any_process(why is not None):
        raise _Damaged(why or "another process cannot read it")
    return result


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process. Called by all of them."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def _record(path: epath.Path) -> dict[str, Any]:
    """This process's record; those of the others are read too, so that all processes judge alike.

    An additional process takes the first one's: the stream stands at the same batch in all of them.
    """
    first = json_file.read(path / "run" / _record_name(0))
    runs = [json_file.read(path / "run" / _record_name(i)) for i in range(first["processes"])]
    return runs[jax.process_index()] if jax.process_index() < len(runs) else first


def _record_name(process: int) -> str:
    return RECORD.format(process)


@no_type_check
def _shapes(path: epath.Path) -> dict[str, jax.ShapeDtypeStruct]:
    handler = ocp.StandardCheckpointHandler()
    tree = handler.metadata(path).tree
    handler.close()
    return {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in _flat(tree).items()}


@no_type_check
def _arrays(path: epath.Path, trees: Mapping[str, Any]) -> Any:
    # The handler by itself: the manager's restore would let the other processes wait where one fails.
    handler = ocp.StandardCheckpointHandler()
    read = {name: handler.restore(path / name, args=ocp.args.StandardRestore(tree)) for name, tree in trees.items()}
    handler.close()
    return read


@no_type_check
def _refuse_other_sums(path: epath.Path, trees: Mapping[str, Any], sums: Mapping[str, int], saved: Mapping) -> None:
    for name, tree in trees.items():
        stored = _shapes(path / name)
        for key, leaf in _flat(tree).items():
            # What was cast on the way can no longer be compared.
            if leaf.dtype == stored[key].dtype and sums[f"{name}/{key}"] != saved[f"{name}/{key}"]:
                raise ValueError(f"{name}/{key} is not what was saved")


@jax.jit
def word_sums(leaves: list[Array]) -> UInt32[Array, "n"]:
    """A number of each array's bits; another one where a single bit is another, wherever the array lies."""

    def one(x):
        if x.dtype in (jnp.bool_, jnp.int4):
            words = x.astype(jnp.uint32)
        else:
            size = min(x.dtype.itemsize, 4)
            words = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * size}")).astype(jnp.uint32)
        index = jnp.zeros(words.shape, jnp.uint32)
        for axis, length in enumerate(words.shape):
            index = index * np.uint32(length) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        # Odd weights keep every bit within the 32 that are summed.
        return jnp.sum(words * (2 * index + 1), dtype=jnp.uint32)

    return jnp.stack([one(x) for x in leaves])


def _checksums(trees: Mapping[str, Any]) -> dict[str, int]:
    flat = _flat(trees)
    sums = word_sums(list(flat.values()))
    sums = np.asarray(sums if sums.is_fully_addressable else multihost_utils.process_allgather(sums, tiled=True))
    return dict(zip(flat, sums.tolist(), strict=True))


def covers(names: Sequence[str], setting: str) -> bool:
    """Whether a dotted setting, or a section that holds it, is among the names."""
    return any(setting == name or setting.startswith(name + ".") for name in names)


def _refuse_other_settings(
    path: epath.Path, saved: dict, mine: dict, may_differ: Sequence[str], advice: Mapping[str, str]
) -> None:
    flat = lambda tree: flatten_dict(tree, keep_empty_nodes=True, sep=".")
    saved, mine = flat(saved), flat(mine)
    text = lambda flat, key: repr(flat[key]) if key in flat else "not set"
    for key in sorted(saved.keys() | mine.keys()):
        if covers(may_differ, key):
            continue
        if text(saved, key) != text(mine, key):
            raise InputError(
                f"{path}: was saved with {key} = {text(saved, key)}, this run has {text(mine, key)}; "
                + advice.get(key, "set it back, or take another --workdir")
            )


def _refuse_other_shapes(path: epath.Path, name: str, saved: Mapping[str, Any], tree: Any, same_dtype: bool) -> None:
    mine = _flat(tree)
    text = lambda x: "nothing" if x is None else f"{tuple(x.shape)} {np.dtype(x.dtype).name}"
    for key in sorted(saved.keys() | mine.keys()):
        a, b = saved.get(key), mine.get(key)
        same = a is not None and b is not None and a.shape == b.shape and (a.dtype == b.dtype or not same_dtype)
        if not same:
            raise InputError(
                f"{path}: {name}/{key} was saved as {text(a)}, this run has {text(b)}; take the models and optimizer "
                "it was made with, or another --workdir"
            )


def _split(state: Any) -> dict[str, Any]:
    return {"trainable": _named(state.trainable), "rest": _named(state.replace(trainable=None))}


def _joined(state: Any, read: Mapping[str, Any]) -> Any:
    rest = _filled(state.replace(trainable=None), read["rest"])
    return rest.replace(trainable=_filled(state.trainable, read["trainable"]))


def _names(tree: Any) -> list[str]:
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]


def _flat(named: Mapping[str, Any]) -> dict[str, Any]:
    return flatten_dict(named, sep="/")


def _named(tree: Any) -> dict[str, Any]:
    """Nested dictionaries of the leaves: what is saved does not depend on Python's types."""
    return unflatten_dict(dict(zip(_names(tree), jax.tree.leaves(tree), strict=True)), sep="/")


def _filled(tree: Any, named: Mapping[str, Any]) -> Any:
    """The tree with the leaves of `_named`."""
    flat = _flat(named)
    return jax.tree.unflatten(jax.tree.structure(tree), [flat[name] for name in _names(tree)])


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives it back: tuples are lists."""
    return json.loads(json.dumps(settings))
