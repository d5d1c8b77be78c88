"""Checkpoints of a run: the training state, the state of the data stream, and the run's settings.

A step is stored in `<work directory>/checkpoints/<step>/`, written by orbax in the background:

    trainable/  the trained parameters, readable without the rest
    rest/       step, optimizer state, skipped updates
    run/        process_<i>.json of every process: the run's settings, a checksum of every array, the state of that
                process's data stream

Orbax writes under a temporary name and renames at the end (on gs:// it adds a file), so a run killed at any moment
leaves complete checkpoints and at most one that is recognised as incomplete. Later damage is found by reading:
tensorstore keeps no checksum of the arrays' bytes, hence ours.
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
# Settings that affect only the rounding of what is learned. Dotted; a section covers what is below it.
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
    """Opens `<workdir>/checkpoints`, creating it if needed. Close it (or use `with`): that ends the last write.

    What a killed run left half-written is named in a warning and removed.

    Args:
      keep: number of newest checkpoints that stay.

    Raises:
      InputError: something that the run did not write is in the way.
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

    Called by every process. Does nothing while the previous checkpoint is still being written: the loop does not wait
    for a disk.

    Args:
      state: a TrainState.
      stream: this process's `Stream.get_state()`, JSON-able.
      settings: of the run, nested and JSON-able; `restore` compares them.
      wait: wait for the previous checkpoint, and until this one is complete. For the last one of a run.
      score: of this state's validation. The checkpoint with the best one stays beside the newest.

    Returns:
      Whether the step is saved: False if the previous one was not finished.

    Raises:
      The error of writing the previous checkpoint; OSError: its index cannot be read back.
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
    record = {
        "processes": jax.process_count(),
        "settings": _plain(settings),
        "checksums": _checksums(trees),
        "stream": dict(stream),
    } | ({} if score is None else {"validation": score._asdict()})
    manager.wait_until_finished()
    manager.settle()
    manager.begin(step)
    items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
    manager.save(step, args=ocp.args.Composite(**items, run=ocp.args.JsonSave(record)), force=True)
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
    """The newest good checkpoint, or None if there is none at all. Called by every process.

    A damaged one is skipped with a warning, and removed once an older one was read: the run will reach its step again.

    Args:
      state: a TrainState, or one of ShapeDtypeStructs with shardings: what is read is sharded like this, whatever mesh
        the checkpoint was written on.
      settings: as given to `save`.
      may_differ: settings that are not compared.
      upgrade: (saved settings, their path) -> the same under today's names.
      advice: by setting, what to do if it differs; by default to set it back.

    Raises:
      InputError: there are checkpoints and none is good; or the newest good one has other settings, shapes or types
        (the first difference is named).
    """
    folder, steps = manager.directory, manager.all_steps()
    if not steps:
        return None
    trees = _split(like(state))

    def check_settings(path, run):
        saved = _plain(upgrade(run["settings"], str(path)))
        _refuse_other_settings(path, saved, _plain(settings), may_differ, advice)

    step, (run, read) = _newest(folder, steps, lambda path: _read(path, trees, check_settings, same_dtype=True))
    for newer in (s for s in steps if s > step):
        logging.warning("%s: removed, since the run resumes from step %d", folder / str(newer), step)
        manager.delete(newer)
    return Restored(step, _joined(state, read), run["stream"])


def load_trainable(path: epath.PathLike, trainable: Any, step: int | None = None) -> Any:
    """The trained parameters of a run, without its optimizer state.

    Args:
      path: a work directory, its `checkpoints`, or one checkpoint in it.
      trainable: arrays or ShapeDtypeStructs with the shapes, the types to cast to and the shardings.
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
    read = lambda checkpoint: _read(checkpoint, trees, lambda checkpoint, run: None, same_dtype=False)
    newest, (_, trees_read) = _newest(folder, steps, read)
    return int(newest), _filled(trainable, trees_read["trainable"])


def named_step(workdir: epath.PathLike, name: str) -> int | None:
    """The step of a run's checkpoint by its name: "best", "last" (None: the newest good one), or its number.

    Raises:
      InputError: none of these, or no checkpoint was validated.
    """
    folder = cli.absolute(workdir) / FOLDER
    if name in ("", "last"):
        return None
    if name == "best":
        best_step = best(folder, finished(folder))
        if best_step is None:
            raise InputError(f"--step=best: no checkpoint in {folder} was validated; see config.validate.every")
        return best_step
    if not (name.isascii() and name.isdecimal() and len(name) < 10):
        raise InputError(f"--step: {name!r} is none of best, last, or a checkpoint's number")
    return int(name)


@no_type_check
def like(tree: Any) -> Any:
    """Shapes, types and shardings of a tree of arrays or ShapeDtypeStructs.

    Uncommitted arrays (a new step counter) are replicated on the mesh of the others.
    """
    leaves = jax.tree.leaves(tree)
    named = [x.sharding for x in leaves if isinstance(getattr(x, "sharding", None), NamedSharding)]
    default = NamedSharding(named[0].mesh, PartitionSpec()) if named else SingleDeviceSharding(jax.local_devices()[0])

    def abstract(x):
        sharding = getattr(x, "sharding", None) if getattr(x, "committed", True) else None
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding or default)

    return jax.tree.map(abstract, tree)


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
    """This process's record and the arrays, after `check(path, record)`. All processes raise the same errors."""
    run = _agreed(_record, path)
    check(path, run)
    for name, tree in trees.items():
        _refuse_other_shapes(path, name, _agreed(_shapes, path / name), tree, same_dtype)
    read = _agreed(_arrays, path, trees)
    # The sums are computed by all processes together, so only of arrays that all could read.
    sums = _checksums(read)
    _agreed(_refuse_other_sums, path, trees, sums, run["checksums"])
    return run, read


def _agreed(read: Callable, *args: Any) -> Any:
    """`read(*args)`; if it fails in any process, all raise _Damaged."""
    result, reason = None, None
    try:
        result = read(*args)
    except (MemoryError, jax.errors.JaxRuntimeError):
        raise
    # A damaged file can raise any error in orbax and tensorstore; arrays raise a plain Exception.
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).strip()[:200]}".replace("\n", " ")
    if any_process(reason is not None):
        raise _Damaged(reason or "another process cannot read it")
    return result


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process. Called by all of them."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def _record(path: epath.Path) -> dict[str, Any]:
    """This process's record; the others' are read too, so that all processes come to the same result.

    An additional process takes the first one's: the stream is at the same batch in all of them.
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
    # The handler alone: in the manager's restore the other processes would wait if one fails.
    handler = ocp.StandardCheckpointHandler()
    read = {name: handler.restore(path / name, args=ocp.args.StandardRestore(tree)) for name, tree in trees.items()}
    handler.close()
    return read


@no_type_check
def _refuse_other_sums(path: epath.Path, trees: Mapping[str, Any], sums: Mapping[str, int], saved: Mapping) -> None:
    for name, tree in trees.items():
        stored = _shapes(path / name)
        for key, leaf in _flat(tree).items():
            # Arrays that were cast cannot be compared.
            if leaf.dtype == stored[key].dtype and sums[f"{name}/{key}"] != saved[f"{name}/{key}"]:
                raise ValueError(f"{name}/{key} is not what was saved")


@jax.jit
def word_sums(leaves: list[Array]) -> UInt32[Array, "n"]:
    """A checksum of each array's bits, which any single bit changes, independent of the sharding."""

    def word_sum(x):
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

    return jnp.stack([word_sum(x) for x in leaves])


def _checksums(trees: Mapping[str, Any]) -> dict[str, int]:
    flat = _flat(trees)
    sums = word_sums(list(flat.values()))
    sums = np.asarray(sums if sums.is_fully_addressable else multihost_utils.process_allgather(sums, tiled=True))
    return dict(zip(flat, sums.tolist(), strict=True))


def covers(names: Sequence[str], setting: str) -> bool:
    """Whether a dotted setting, or a section that holds it, is among the names."""
    return any(setting == name or setting.startswith(name + ".") for name in names)


def _refuse_other_settings(
    path: epath.Path, saved: dict, current: dict, may_differ: Sequence[str], advice: Mapping[str, str]
) -> None:
    flat = lambda tree: flatten_dict(tree, keep_empty_nodes=True, sep=".")
    saved, current = flat(saved), flat(current)
    text = lambda flat, key: repr(flat[key]) if key in flat else "not set"
    for key in sorted(saved.keys() | current.keys()):
        if covers(may_differ, key):
            continue
        if text(saved, key) != text(current, key):
            raise InputError(
                f"{path}: was saved with {key} = {text(saved, key)}, this run has {text(current, key)}; "
                + advice.get(key, "set it back, or take another --workdir")
            )


def _refuse_other_shapes(path: epath.Path, name: str, saved: Mapping[str, Any], tree: Any, same_dtype: bool) -> None:
    current = _flat(tree)
    text = lambda x: "nothing" if x is None else f"{tuple(x.shape)} {np.dtype(x.dtype).name}"
    for key in sorted(saved.keys() | current.keys()):
        stored, new = saved.get(key), current.get(key)
        if stored is None or new is None or stored.shape != new.shape or (stored.dtype != new.dtype and same_dtype):
            raise InputError(
                f"{path}: {name}/{key} was saved as {text(stored)}, this run has {text(new)}; take the models and "
                "optimizer it was made with, or another --workdir"
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
    """Nested dictionaries of the leaves, so that a checkpoint does not depend on Python types."""
    return unflatten_dict(dict(zip(_names(tree), jax.tree.leaves(tree), strict=True)), sep="/")


def _filled(tree: Any, named: Mapping[str, Any]) -> Any:
    """The tree with the leaves of `_named`."""
    flat = _flat(named)
    return jax.tree.unflatten(jax.tree.structure(tree), [flat[name] for name in _names(tree)])


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings after a round trip through JSON: tuples become lists."""
    return json.loads(json.dumps(settings))
