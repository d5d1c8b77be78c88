"""Training state on disk: bitwise round trips, what is damaged, what is refused, another mesh, several processes."""

import functools
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from omnir1_jax.errors import InputError
from omnir1_jax.files import folders
from omnir1_jax.parallel import make_mesh
from omnir1_jax.rl import learn
from omnir1_jax.training import checkpointing

# What orbax leaves behind of a read that failed.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

SETTINGS = {"seed": 3, "optimizer": {"learning_rate": 1e-3, "freeze": ("embed/*",)}, "log": {"pictures": 2}}
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.linear_schedule(1e-2, 0.0, 50)))


def make(rows: int = 24, dtype=jnp.float32) -> learn.TrainState:
    rng = np.random.default_rng(0)
    one = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
    tree = {"layers": {"q": {"kernel": one(2, rows, 16)}, "scale": one(16).astype(jnp.bfloat16)}, "head": one(16, 8)}
    return learn.init(tree, OPTIMIZER)


@functools.partial(jax.jit, donate_argnums=0)
def advance(state: learn.TrainState) -> learn.TrainState:
    """A step that moves every leaf."""
    grads = jax.tree.map(lambda x: jnp.sin(3 * x + state.step).astype(x.dtype), state.trainable)
    state, _ = learn.apply_if_finite(state, jnp.zeros(()), grads, OPTIMIZER)
    return state.replace(step=state.step + 1, skipped=state.skipped + 2)


def run(state: learn.TrainState, steps: int) -> learn.TrainState:
    for _ in range(steps):
        state = advance(state)
    return state


def same(a, b) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def write(workdir, steps: int = 3, keep: int = 5, state=None) -> None:
    state = make() if state is None else state
    with checkpointing.manager(workdir, keep) as manager:
        for step in range(1, steps + 1):
            state = advance(state)
            assert checkpointing.save(manager, step, state, {"next_batch": step}, SETTINGS, wait=True)


def read(workdir, state=None, settings=SETTINGS, keep: int = 5) -> checkpointing.Restored | None:
    with checkpointing.manager(workdir, keep) as manager:
        return checkpointing.restore(manager, make() if state is None else state, settings)


def steps_in(workdir) -> list[str]:
    return sorted(p.name for p in (workdir / "checkpoints").iterdir() if p.name != folders.MARK)


@pytest.fixture
def warned(monkeypatch) -> list[str]:
    """Warnings, but for orbax's own that a save took long."""
    lines = []
    note = lambda text, *args: lines.append(text % args) if not text.startswith("Waiting for previous save") else None
    monkeypatch.setattr(checkpointing.logging, "warning", note)
    return lines


def test_what_is_read_is_what_was_saved_though_the_loop_went_on(tmp_path):
    """The next steps overwrite the donated state while it is being written."""
    state = jax.tree.map(lambda x: jnp.tile(x, (1,) * (x.ndim - 1) + (200,)) if x.ndim else x, make())
    with checkpointing.manager(tmp_path, 3) as manager:
        for step in range(1, 4):
            state = advance(state)
            while not checkpointing.save(manager, step, state, {"n": step, "names": ["a"]}, SETTINGS):
                pass
            kept = jax.tree.map(np.array, state)
            state = run(state, 3)
    found = read(tmp_path, state)
    assert (found.step, found.stream) == (3, {"n": 3, "names": ["a"]})
    same(found.state, kept)
    assert int(found.state.step) == 9 and int(found.state.skipped) == 18


def test_a_resumed_run_is_the_same_run(tmp_path):
    write(tmp_path, steps=4)
    same(run(read(tmp_path).state, 5), run(make(), 9))


def test_nothing_there_is_a_fresh_start_and_only_the_newest_stay(tmp_path):
    assert read(tmp_path) is None
    write(tmp_path, steps=5, keep=2)
    assert steps_in(tmp_path) == ["4", "5"]
    with pytest.raises(InputError, match=r"checkpoint.keep: 0"):
        checkpointing.manager(tmp_path, 0)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"--workdir: .*file is a file; name another"):
        checkpointing.manager(tmp_path / "file", 1)


def test_a_step_is_left_out_while_the_one_before_is_being_written(tmp_path, warned):
    big = learn.init({"x": jax.random.normal(jax.random.key(0), (1 << 24,))}, optax.identity())
    with checkpointing.manager(tmp_path, 3) as manager:
        assert checkpointing.save(manager, 1, big, {}, SETTINGS)
        assert not checkpointing.save(manager, 2, big, {}, SETTINGS)
        assert warned == ["step 2 is not saved: the checkpoint before is still being written"]
        assert checkpointing.save(manager, 3, big, {}, SETTINGS, wait=True)
        assert checkpointing.save(manager, 3, big, {}, SETTINGS, wait=True)
        assert manager.all_steps() == [1, 3]


def largest(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip(path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(bytes(content))


def cut(path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE = {
    "array file cut": lambda step: cut(largest(step / "trainable")),
    "array file empty": lambda step: largest(step / "rest").write_bytes(b""),
    "a bit of an array": lambda step: flip(largest(step / "trainable"), 8 * 700 + 3),
    "index lost": lambda step: (step / "rest" / "manifest.ocdbt").unlink(),
    "item lost": lambda step: (step / "rest").rename(step.parent / "elsewhere"),
    "record lost": lambda step: (step / "run" / "process_0.json").unlink(),
    "record unreadable": lambda step: cut(step / "run" / "process_0.json"),
    "metadata unreadable": lambda step: cut(step / "trainable" / "_METADATA"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_by_name(tmp_path, warned, damage):
    write(tmp_path)
    step = tmp_path / "checkpoints" / "3"
    DAMAGE[damage](step)
    found = read(tmp_path)
    assert (found.step, found.stream) == (2, {"next_batch": 2})
    same(found.state, run(make(), 2))
    assert warned[0].startswith(f"{step}: passed over: ") and "\n" not in warned[0]
    assert warned[1:] == [f"{step}: removed, since the run resumes from step 2"]
    # The run comes to step 3 again.
    with checkpointing.manager(tmp_path, 5) as manager:
        assert checkpointing.save(manager, 3, advance(found.state), {"next_batch": 3}, SETTINGS, wait=True)
    assert read(tmp_path).step == 3


def test_none_good_is_an_error_and_nothing_is_removed(tmp_path, warned):
    write(tmp_path, steps=2)
    for step in ("1", "2"):
        cut(largest(tmp_path / "checkpoints" / step / "rest"))
    with pytest.raises(
        InputError, match=rf"{tmp_path}/checkpoints: none of the checkpoints there can be read \(1, 2\)"
    ):
        read(tmp_path)
    assert len(warned) == 2
    assert steps_in(tmp_path) == ["1", "2"]


def test_what_was_cut_short_in_writing_is_named_and_cleared_away(tmp_path, warned):
    write(tmp_path, steps=2)
    folder = tmp_path / "checkpoints"
    (folder / "2").rename(folder / "2.orbax-checkpoint-tmp")
    assert read(tmp_path).step == 1
    assert warned == [f"{folder}/2.orbax-checkpoint-tmp: truncated while it was written; removed"]
    write(tmp_path / "other", steps=1)
    (tmp_path / "other/checkpoints/1").rename(tmp_path / "other/checkpoints/1.orbax-checkpoint-tmp")
    assert read(tmp_path / "other") is None  # killed before it ever finished one
    assert steps_in(tmp_path / "other") == []


def test_other_settings_are_refused_by_name(tmp_path):
    write(tmp_path, steps=1)
    other = {**SETTINGS, "optimizer": {"learning_rate": 1e-4, "freeze": ("embed/*",)}}
    with pytest.raises(
        InputError, match=r"checkpoints/1: was saved with optimizer.learning_rate = 0.001, this run has"
    ):
        read(tmp_path, settings=other)
    with pytest.raises(InputError, match=r"saved with grpo.beta = not set, this run has 0.04"):
        read(tmp_path, settings={**SETTINGS, "grpo": {"beta": 0.04}})
    assert read(tmp_path, settings={**SETTINGS, "log": {"pictures": 9}}).step == 1


def test_other_shapes_are_refused_by_leaf(tmp_path):
    write(tmp_path, steps=1)
    with pytest.raises(
        InputError, match=r"trainable/layers/q/kernel was saved as \(2, 24, 16\) float32, this run has \(2, 32"
    ):
        read(tmp_path, make(rows=32))
    with pytest.raises(
        InputError, match=r"trainable/head was saved as \(16, 8\) float32, this run has \(16, 8\) bfloat16"
    ):
        read(tmp_path, make(dtype=jnp.bfloat16))
    plain = learn.init(make().trainable, optax.sgd(0.1))
    with pytest.raises(InputError, match=r"rest/opt_state/1/0/count was saved as \(\) int32, this run has nothing"):
        read(tmp_path, plain)


def placed(mesh, state):
    """The state over a mesh, all but its counters."""
    spec = lambda x: PartitionSpec(*(None,) * (x.ndim - 1), tuple(mesh.axis_names)) if x.ndim else PartitionSpec()
    return jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, spec(x))) if x.ndim else x, state)


def test_another_mesh_goes_on(tmp_path):
    wide, other = make_mesh({"data": 1, "fsdp": 8, "tensor": 1}), make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    write(tmp_path, steps=2, state=placed(wide, make()))
    want = jax.tree.map(np.asarray, run(placed(wide, make()), 4))
    for target in (placed(wide, make()), placed(other, make()), make()):
        found = read(tmp_path, target)
        for x, y in zip(jax.tree.leaves(found.state.trainable), jax.tree.leaves(target.trainable), strict=True):
            assert x.sharding.is_equivalent_to(y.sharding, x.ndim)
        same(found.state, run(placed(wide, make()), 2))
        # The counters lie over the same devices as the rest, so the step runs.
        for x, y in zip(jax.tree.leaves(run(found.state, 2)), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(np.float32(x), np.float32(y), rtol=1e-5, atol=1e-6)
    same(run(read(tmp_path, placed(wide, make())).state, 2), want)


def test_trained_parameters_without_the_rest(tmp_path):
    write(tmp_path, steps=3)
    target = jax.eval_shape(make).trainable
    for path, step, want in (
        (tmp_path, None, 3),
        (tmp_path / "checkpoints", 2, 2),
        (tmp_path / "checkpoints/1", None, 1),
    ):
        same(checkpointing.load_trainable(path, target, step), run(make(), want).trainable)
    cast = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), target)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), run(make(), 3).trainable)
    same(checkpointing.load_trainable(tmp_path, cast), half)
    cut(largest(tmp_path / "checkpoints/3/trainable"))
    same(checkpointing.load_trainable(tmp_path, target), run(make(), 2).trainable)
    with pytest.raises(InputError, match=r"no checkpoint of step 7; there are \[1, 2, 3\]"):
        checkpointing.load_trainable(tmp_path, target, 7)
    with pytest.raises(InputError, match=r"nowhere: no checkpoint of a run is there"):
        checkpointing.load_trainable(tmp_path / "nowhere", target)
    with pytest.raises(InputError, match=r"trainable/layers/q/kernel"):
        checkpointing.load_trainable(tmp_path, make(rows=32).trainable)


@settings(max_examples=60)
@given(st.sampled_from(["float32", "bfloat16", "int32", "uint8", "bool"]), st.integers(0, 1 << 30), st.booleans())
def test_a_checksum_tells_any_bit_and_any_two_places(dtype, seed, swap):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 2, 35).astype(bool) if dtype == "bool" else rng.bytes(35 * jnp.dtype(dtype).itemsize)
    x = np.frombuffer(x, jnp.dtype(dtype)).reshape(5, 7).copy() if dtype != "bool" else x.reshape(5, 7)
    y = x.copy()
    flat, i, j = y.reshape(-1), *rng.choice(35, 2, replace=False)
    if swap:
        flat[[i, j]] = flat[[j, i]]
    elif dtype == "bool":
        flat[i] ^= True
    else:
        raw = flat.view(np.uint8)
        raw[rng.integers(raw.size)] ^= np.uint8(1 << rng.integers(8))
    sums = [checkpointing._checksums({"a": {"x": jnp.asarray(v)}})["a/x"] for v in (x, y)]
    assert (sums[0] == sums[1]) == (x.tobytes() == y.tobytes())


@pytest.mark.slow
def test_no_damage_to_any_file_goes_unseen(tmp_path, warned):
    """Each file lost, emptied, cut, zeroed, and with bits flipped: either the state is exact or it is passed over."""
    write(tmp_path, steps=2)
    folder = tmp_path / "checkpoints" / "2"
    contents = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    want = {step: jax.tree.map(np.asarray, run(make(), step)) for step in (1, 2)}
    manager, passed = checkpointing.manager(tmp_path, 5), 0
    for path, whole in contents.items():
        bits = random.Random(0).sample(range(8 * len(whole)), 5)
        flipped = [whole[: b // 8] + bytes([whole[b // 8] ^ 1 << b % 8]) + whole[b // 8 + 1 :] for b in bits]
        for damaged in (None, b"", whole[: len(whole) // 2], whole[:-1], bytes(len(whole)), *flipped):
            path.unlink() if damaged is None else path.write_bytes(damaged)
            read = lambda at: checkpointing._read(at, checkpointing._split(make()), lambda *_: None, same_dtype=True)
            step, (_, found) = checkpointing._newest(epath.Path(folder.parent), [1, 2], read)
            same(checkpointing._joined(make(), found), want[step])
            passed += step == 1
            path.write_bytes(whole)
    manager.close()
    assert passed == len(warned) > len(contents)


def contents(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_copies_beside_the_steps_stay_and_are_no_steps(tmp_path, warned):
    write(tmp_path, steps=2, keep=2)
    folder = tmp_path / "checkpoints"
    copies = ("2.backup", "2.orbax-checkpoint-tmp.old", "step_7", "07", "backup_9", "2²")
    for name in copies:
        shutil.copytree(folder / "2", folder / name)
    (folder / "2.backup/notes.txt").write_text("mine")
    before = {name: contents(folder / name) for name in copies}
    with checkpointing.manager(tmp_path, 2) as manager:
        assert manager.all_steps() == [1, 2]
        for step in (3, 4):
            checkpointing.save(manager, step, run(make(), step), {}, SETTINGS, wait=True)
        assert manager.all_steps() == [3, 4]
    assert steps_in(tmp_path) == sorted({"3", "4", *copies})
    assert {name: contents(folder / name) for name in copies} == before and not warned
    assert int(checkpointing.load_trainable(tmp_path, make().trainable)["head"].size) == 128


@pytest.mark.parametrize("name", ["7", "7.orbax-checkpoint-tmp"])
def test_a_foreign_step_is_one_line_no_restore_and_no_removal(tmp_path, name):
    write(tmp_path, steps=2)
    folder = tmp_path / "checkpoints"
    shutil.copytree(folder / "2", folder / name)
    before = contents(folder)
    with pytest.raises(InputError, match=f"--workdir: {folder}/{name} was not written by this run; move it elsewhere"):
        read(tmp_path)
    assert contents(folder) == before
    same(checkpointing.load_trainable(tmp_path, make().trainable), run(make(), 2).trainable)


def test_a_step_that_the_user_put_something_into_stays(tmp_path, warned):
    write(tmp_path, steps=2, keep=2)
    notes = tmp_path / "checkpoints/1/trainable/notes.txt"
    notes.write_text("mine")
    with checkpointing.manager(tmp_path, 1) as manager:
        checkpointing.save(manager, 3, run(make(), 3), {}, SETTINGS, wait=True)
    assert steps_in(tmp_path) == ["1", "3"] and notes.read_text() == "mine"
    assert warned == [f"{tmp_path}/checkpoints/1: stays, since it holds trainable/notes.txt, not written by this run"]
    own = tmp_path / "checkpoints/3"
    (own / "notes.txt").write_text("mine")
    cut(largest(own / "trainable"))
    with pytest.raises(InputError, match=f"{own} cannot be read and holds notes.txt, not written by this run; move"):
        read(tmp_path)
    assert (own / "notes.txt").read_text() == "mine"


def test_a_step_of_the_run_put_back_is_its_own(tmp_path):
    write(tmp_path, steps=1)
    (tmp_path / "checkpoints/1").rename(tmp_path / "elsewhere")
    with checkpointing.manager(tmp_path, 1) as manager:
        for step in (2, 3):
            checkpointing.save(manager, step, run(make(), step), {}, SETTINGS, wait=True)
    (tmp_path / "elsewhere").rename(tmp_path / "checkpoints/1")
    with checkpointing.manager(tmp_path, 1) as manager:
        assert manager.all_steps() == [1, 3]


def test_a_step_counts_once_its_index_was_read_back(tmp_path, monkeypatch):
    write(tmp_path, steps=2, keep=1)
    with checkpointing.manager(tmp_path, 1) as manager:
        checkpointing.save(manager, 3, run(make(), 3), {}, SETTINGS)
        manager.wait_until_finished()
        (tmp_path / "checkpoints/3/rest/manifest.ocdbt").unlink()
        with pytest.raises(OSError, match="3/rest: .* arrays cannot be read back after they were written"):
            checkpointing.save(manager, 4, run(make(), 4), {}, SETTINGS)
    assert read(tmp_path).step == 2  # not removed for a step that cannot be read


@pytest.mark.parametrize("character", "[]*?{}\\")
def test_a_path_in_which_orbax_loses_arrays_is_refused(tmp_path, character):
    workdir = tmp_path / f"run{character}1" / "a"
    with pytest.raises(InputError, match=r"--workdir: .* in it, with which arrays cannot be stored; name a folder"):
        checkpointing.manager(workdir, 1)
    assert not workdir.parent.exists()
