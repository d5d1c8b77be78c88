"""Starts of a run that come no further are counted: a crash that comes again at the same step is not restarted."""

import errno

import pytest

from omnir1_jax.errors import InputError, Interrupted
from omnir1_jax.training import attempts


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    return attempts.epath.Path(tmp_path)


def crash(folder, step: int, error: Exception) -> None:
    with attempts.attempt(folder, None) as progress:
        progress.step = step
        raise error


def test_the_second_crash_at_a_step_ends_the_run(folder, capfd):
    with pytest.raises(Interrupted, match=r"step 7 crashed \(KeyError: 'x'\); run the same command again to resume"):
        crash(folder, 7, KeyError("x"))
    with pytest.raises(Interrupted, match="step 9 crashed"):
        crash(folder, 9, KeyError("x"))
    with pytest.raises(Interrupted):  # a stop between them is no progress
        crash(folder, 8, Interrupted("SIGTERM"))
    with pytest.raises(InputError, match=r"step 9 crashed again, as a rerun would \(ValueError: y\)"):
        crash(folder, 9, ValueError("y"))
    assert capfd.readouterr().err.count("Traceback") == 3
    with pytest.raises(Interrupted, match="step 9 crashed"):  # whoever tries again, may
        crash(folder, 9, ValueError("y"))
    with pytest.raises(Interrupted, match="the start crashed"):
        crash(folder, 0, ValueError("y"))
    with attempts.attempt(folder, None):
        pass
    assert not (folder / attempts.FILE).exists()


def test_two_processes_that_crash_in_one_step_crash_once(folder):
    with pytest.raises(Interrupted):
        crash(folder, 7, KeyError("x"))
    with pytest.raises(Interrupted):
        attempts._crashed(folder, 7, KeyError("x"))


def test_starts_that_end_without_a_word_are_counted(folder, monkeypatch):
    for _ in range(attempts.STARTS):
        attempts._count(folder)
    with pytest.raises(InputError, match="20 starts in a row came to no checkpoint after step 0"):
        crash(folder, 1, KeyError("x"))
    for _ in range(attempts.STARTS):
        attempts._count(folder)
    monkeypatch.setattr(attempts, "_newest", lambda folder: 5)
    with pytest.raises(Interrupted, match="step 6 crashed"):
        crash(folder, 6, KeyError("x"))


def test_what_a_disk_refuses_names_the_newest_checkpoint(folder, monkeypatch):
    full = OSError(errno.ENOSPC, "", str(folder / "metrics.jsonl"))
    with pytest.raises(InputError, match=r"metrics.jsonl: no space left on device \(.*; there is no checkpoint yet"):
        crash(folder, 3, full)
    with pytest.raises(InputError, match=f"^{folder}: no space left on device"):
        crash(folder, 3, OSError(errno.ENOSPC, "No space left on device"))
    monkeypatch.setattr(attempts, "_newest", lambda folder: 5)
    with pytest.raises(InputError, match="the newest complete checkpoint is of step 5"):
        crash(folder, 7, full)
