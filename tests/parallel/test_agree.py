"""Processes compare what they were started with before they compute; each failure is one line in all of them."""

import contextlib
import json
import threading
import time

import jax
import pytest

import omnir1_jax
from omnir1_jax.build import data, facts, models
from omnir1_jax.errors import AGAIN, INVALID, Ending, InputError, Interrupted
from omnir1_jax.parallel import agree
from tests import tiny
from tests.data import qwen_oracle


class Store:
    """The key-value store of one run, as jax.distributed's client gives it."""

    def __init__(self, count: int):
        self.values, self.changed = {}, threading.Condition()
        self.barrier = threading.Barrier(count)

    def key_value_set(self, key: str, value: str) -> None:
        with self.changed:
            if key in self.values:
                raise jax.errors.JaxRuntimeError(f"ALREADY_EXISTS: {key}")
            self.values[key] = value
            self.changed.notify_all()

    def key_value_try_get(self, key: str) -> str:
        if key not in self.values:
            raise jax.errors.JaxRuntimeError(f"NOT_FOUND: {key}")
        return self.values[key]

    def blocking_key_value_get(self, key: str, timeout_in_ms: int) -> str:
        with self.changed:
            if not self.changed.wait_for(lambda: key in self.values, timeout_in_ms / 1000):
                raise jax.errors.JaxRuntimeError(f"DEADLINE_EXCEEDED: {key}")
            return self.values[key]

    def wait_at_barrier(self, barrier_id: str, timeout_in_ms: int) -> None:
        try:
            self.barrier.wait(timeout_in_ms / 1000)
        except threading.BrokenBarrierError:
            raise jax.errors.JaxRuntimeError(f"DEADLINE_EXCEEDED: {barrier_id}") from None


def run(count: int, process) -> list[BaseException | None]:
    """`process(peers)` in as many threads; how each ended. A failure breaks the barrier, as it ends real processes."""
    store, ends = Store(count), [None] * count

    def one(index: int) -> None:
        try:
            process(agree.Peers(store, index, count))
        except BaseException as error:
            ends[index] = error
            if isinstance(error, InputError):
                store.barrier.abort()

    threads = [threading.Thread(target=one, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ends


def test_equal_processes_pass():
    assert run(3, lambda peers: agree.same(peers, "settings", lambda: {"a": 1, "b": (1, 2)})) == [None] * 3
    assert agree.joined() is None
    agree.same(None, "settings", lambda: {})


def test_a_difference_names_the_setting_both_values_and_the_processes():
    ends = run(3, lambda peers: agree.same(peers, "settings", lambda: {"a.b": 1e-6 * (1 + (peers.index == 2))}))
    assert isinstance(ends[2], InputError)
    assert str(ends[2]).startswith("process 2 of 3 differs from process 0: a.b 1e-06 -> 2e-06; start every process")


def test_a_process_that_does_not_come_is_waited_for_in_vain():
    process = lambda peers: None if peers.index else agree.same(peers, "data", lambda: {}, seconds=0.1)
    ends = run(2, process)
    assert isinstance(ends[0], Interrupted)
    assert str(ends[0]).startswith("process 0 of 2: not all processes came to compare their data within 0.1 s")


def test_a_work_directory_that_is_not_shared(monkeypatch):
    monkeypatch.setattr(agree, "SEEN", 0.1)
    folders = [{"lock": "of 0"}, {"lock": "of 0"}, {}]
    check = lambda peers: agree.one_folder(peers, "--workdir runs/a", lambda: folders[peers.index].get("lock"))
    ends = run(3, check)
    assert isinstance(ends[2], InputError)
    assert str(ends[2]).startswith("process 2 of 3 does not see what process 0 writes: --workdir runs/a has to be one")
    assert run(2, check) == [None, None]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_failure_ends_the_others_with_its_line_and_status(monkeypatch, capfd):
    """Whatever they wait for; the first failure counts; process 0 stays until the others know."""
    monkeypatch.setattr(agree, "POLL", 0.01)
    ends, exits = threading.Event(), {}

    def leave(status: int) -> None:
        exits[threading.current_thread().name] = (status, time.monotonic())
        ends.set()
        raise SystemExit

    monkeypatch.setattr(agree.os, "_exit", leave)
    monkeypatch.setattr(agree, "_LEAVING", contextlib.nullcontext())
    store = Store(2)
    peers = [agree.Peers(store, index, 2) for index in (0, 1)]
    with agree.watched(peers[0]):
        time.sleep(0.05)
        assert not exits
        end = Ending(INVALID, "process 1 of 2: data: nothing there")
        assert agree.fail(peers[1], end) == end
        assert agree.fail(peers[0], Ending(AGAIN, "process 0 of 2: lost another process")) == end
        time.sleep(0.1)
        assert not exits  # process 0 holds the store until process 1 has left
        with pytest.raises(SystemExit):
            agree.leave(peers[1], end)
        ends.clear()
        ends.wait(1)
    assert [status for status, _ in exits.values()] == [INVALID, INVALID]
    assert capfd.readouterr().err == 2 * "error: process 1 of 2: data: nothing there\n"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> str:
    return qwen_oracle.save_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def config(tokenizer):
    return tiny.get_config(tokenizer)


@pytest.mark.parametrize(
    "name, value",
    [
        ("optimizer.learning_rate", 2e-2),
        ("seed", 1),
        ("steps", 201),
        ("data.qa.batch_size", 2),
        ("reward.preset", "paper"),
        ("step.group", 4),
        ("checkpoint.every", 6),
        ("loader.max_bad_share", 0.5),
    ],
)
def test_settings_that_differ(config, name, value):
    other = config.copy_and_resolve_references()
    other.update_from_flattened_dict({name: value})
    old = config
    for part in name.split("."):
        old = old[part]
    found = agree.difference(facts.of_settings(config), facts.of_settings(other))
    assert found == f"{name} {json.dumps(old)} -> {json.dumps(value)}"


def test_what_differs_beside_the_settings(config, monkeypatch, tmp_path):
    mine, other = facts.of_settings(config), config.copy_and_resolve_references()
    other.update_from_flattened_dict({"data_root": "elsewhere", "loader.threads": 9, "thinker.tokenizer": "elsewhere"})
    assert agree.difference(mine, facts.of_settings(other)) is None
    (tmp_path / "prompt.txt").write_text("{query} {options}")
    other.prompts.qa = str(tmp_path / "prompt.txt")
    assert agree.difference(mine, facts.of_settings(other)).startswith("prompts.qa ")
    (tmp_path / "weights").mkdir()
    config.thinker.path = other.thinker.path = str(tmp_path / "weights")
    other.prompts.qa = config.prompts.qa
    mine = facts.of_settings(config)
    (tmp_path / "weights/model.safetensors").write_bytes(bytes(9))
    assert agree.difference(mine, facts.of_settings(other)).startswith("thinker.path ")
    config.thinker.path = ""
    mine = facts.of_settings(config)
    monkeypatch.setattr(omnir1_jax, "__version__", "9.9")
    assert agree.difference(mine, facts.of_settings(config)) == 'package.version "0.1.0" -> "9.9"'


def of_data(config, *added: str):
    words, sizes = models.tokenizer(config), models.sizes(config)
    words.add_tokens(list(added))
    return facts.of_data(config, words, data.families(config, words, sizes.thinker))


def test_datasets_and_tokenizers_that_differ(config):
    mine = of_data(config)
    assert mine == of_data(config)
    other = config.copy_and_resolve_references()
    other.data.qa.datasets.synthetic.clips = 9
    assert agree.difference(mine, of_data(other)) == "data.qa.datasets.synthetic.count 32 -> 36"
    other.data.qa.datasets.synthetic.clips = 8
    other.data.qa.datasets.synthetic.split = "test"
    assert agree.difference(mine, of_data(other)).startswith("data.qa.datasets.synthetic.ids ")
    size = mine["tokenizer.size"]
    assert agree.difference(mine, of_data(config, "<new>")) == f"tokenizer.size {size} -> {size + 1}"
