"""Test set-up: CPU, 8 virtual devices, a compilation cache shared by the workers, shape checks on, bounded memory.

`--durations=N` also prints the processor time and the memory of the N most expensive files.
"""

import collections
import contextlib
import ctypes
import gc
import os
import pathlib
import resource

from tests import forked
from tests.runs import CACHE, QUICK

# Platform set-up has to precede the import of jax.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{QUICK} --xla_force_host_platform_device_count=8 " + os.environ.get("XLA_FLAGS", "")
os.environ["TPU_SKIP_MDS_QUERY"] = "1"
os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import jax
import pytest
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
jax.config.update("jax_default_matmul_precision", "highest")

install_import_hook("omnir1_jax", "beartype.beartype")

settings.register_profile(
    "suite", deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
settings.load_profile("suite")

# Run first, so that no worker still has a long file to do when the other one has finished.
LONGEST = (
    "training/test_train.py",
    "training/test_two_runs.py",
    "training/test_resume.py",
    "test_docs.py",
    "supervised/test_masks.py",
    "toy/test_pretrain.py",
    "models/sam2/test_sam2_video.py",
    "parallel/test_meshes.py",
    "models/sam2/test_sam2_graph.py",
    "rl/test_step.py",
    "training/test_mesh_runs.py",
    "systems/test_own.py",
    "launch/test_notebook.py",
    "launch/test_xpk.py",
    "inference/test_evaluate_command.py",
    "text/test_aot.py",
    "test_old_run.py",
    "inference/test_evaluate.py",
    "test_drill.py",
    "models/sam2/test_sam2_image.py",
    "inference/test_infer.py",
    "training/test_checkpointing.py",
)
# Memory of this process above which compiled programs are freed before the next file.
KEPT = 5 << 28
# Of each file: processor seconds, and the most memory that its process had meanwhile.
USAGE = pytest.StashKey[dict[str, tuple[float, int]]]()


def pytest_collection_modifyitems(items):
    places = {f"tests/{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.nodeid.split("::")[0], len(places)))


def pytest_collection_finish():
    forked.collect_seldom()


def resident() -> int:
    """Bytes of memory of this process."""
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak() -> int:
    """Most bytes of memory of this process since `forget_peak`."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) << 10


def forget_peak():
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def processor_seconds() -> float:
    """Of this process and of those that it has waited for."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in both)


def free_memory():
    jax.clear_caches()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(scope="module", autouse=True)
def bounded_memory():
    """A compiled program stays for as long as its function, often for good."""
    yield
    if resident() > KEPT:
        free_memory()


@pytest.fixture
def freed_memory():
    """For a test that needs much."""
    free_memory()


@pytest.fixture(scope="module")
def commands():
    """Runs commands in processes forked from one that has imported what they need."""
    from tests.commands import Commands  # after the import hook

    with contextlib.closing(Commands()) as server:
        yield server


def pytest_configure(config):
    config.stash[USAGE] = collections.defaultdict(lambda: (0.0, 0))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    usage, name = item.config.stash[USAGE], item.nodeid.split("::")[0]
    if name not in usage:
        forget_peak()
    before = processor_seconds()
    result = yield
    usage[name] = (usage[name][0] + processor_seconds() - before, peak())
    return result


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput |= {"usage": dict(session.config.stash[USAGE])}


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """A worker's figures come to the process that prints them."""
    node.config.stash[USAGE].update(getattr(node, "workeroutput", {}).get("usage", {}))


def pytest_terminal_summary(terminalreporter, config):
    usage = sorted(config.stash[USAGE].items(), key=lambda item: -item[1][0])
    terminalreporter.section("processor time and most memory, by file")
    for name, (seconds, size) in usage[: config.option.durations or 0]:
        terminalreporter.write_line(f"{seconds:7.1f} s  {size / 2**30:5.2f} GiB  {name}")
    if usage:
        largest, (_, size) = max(usage, key=lambda item: item[1][1])
        total = sum(seconds for _, (seconds, _) in usage)
        terminalreporter.write_line(f"all files: {total:.0f} s, at most {size / 2**30:.2f} GiB ({largest})")
