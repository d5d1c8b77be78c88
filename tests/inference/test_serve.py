"""The page: what it takes, what it says, that errors do not end it, how it ends. Gradio itself: `test_page`."""

import os
import pathlib
import signal
import sys
import threading
import types
import zipfile
from unittest import mock

import numpy as np
import pytest

from omnir1_jax import signals
from omnir1_jax.errors import InputError
from omnir1_jax.inference import infer, serve
from omnir1_jax.reporting import video

LIMITS = serve.Limits(megabytes=1, seconds=4.0, frames=40)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    frames = np.random.default_rng(0).integers(0, 255, (60, 64, 64, 3), np.uint8)
    video.write(folder / "clip.mp4", frames[:8], 4)
    video.write(folder / "long.mp4", frames[:40], 4)
    video.write(folder / "many.mp4", frames, 30)
    (folder / "noise.mp4").write_bytes(b"no video" * 100)
    (folder / "big.mp4").write_bytes(bytes(1_000_001))
    return folder


def test_what_is_taken(clips):
    clip = str(clips / "clip.mp4")
    ask = serve.checked(clip, None, " the <b>dog</b> ", "Find it by its sound", LIMITS)
    assert (ask.query, ask.family, ask.audio, ask.most_frames) == ("the <b>dog</b>", "refavs", "", 40)
    for video_file, query, task, complaint in (
        (None, "q", "Find it", "Choose a video"),
        (clip, "  ", "Find it", "Say what"),
        (clip, "x" * 10_000, "Find it", "10000 characters; 2000"),
        (clip, "q", "steal it", "Choose one of"),
        (clip, "q", None, "Choose one of"),
        (str(clips / "big.mp4"), "q", "Find it", "1 MB; 1 are taken"),
        (str(clips / "long.mp4"), "q", "Find it", "10.0 seconds and 40 frames"),
        (str(clips / "many.mp4"), "q", "Find it", "2.0 seconds and 60 frames"),
        (str(clips / "noise.mp4"), "q", "Find it", "not a readable video"),
    ):
        with pytest.raises(InputError, match=complaint):
            serve.checked(video_file, None, query, task, LIMITS)


def test_goes_on_after_any_error(clips, tmp_path):
    def fails(ask):
        raise {"inner": ZeroDivisionError, "outer": InputError}[ask.query](f"--video: {ask.video} is <odd>")

    run = serve.handler(fails, LIMITS, tmp_path)
    clip, noise = str(clips / "clip.mp4"), str(clips / "noise.mp4")
    assert run(noise, None, "q", "Find it") == serve.Shown("The video: noise.mp4 is not a readable video")
    assert run(clip, None, "inner", "Find it").result.startswith("Something went wrong here (ZeroDivisionError)")
    assert run(clip, None, "outer", "Find it").result == "Video: clip.mp4 is <odd>"


def answered(ask):
    """A result as of a model, with one box and a mask."""
    line = {
        "completion": "<think>hm</think><answer>{}</answer>",
        "plan": [],
        "keyframes": [{"frame": 1, "description": "it", "answer": "[]", "boxes": [[1.0, 2.0, 3.4, 4.0]]}],
        "failures": [],
    }
    masks = np.zeros((8, 64, 64), bool)
    masks[2:, 10:20, 10:20] = True
    ref = infer.clip_ref(ask)
    sound = infer.Sound(None, 0.0, "none")
    return infer.Result(ask, ref, 8, (64, 64), 4.0, np.arange(9) / 4, (0, 4), sound, line, masks)


def test_shows_an_answer_and_keeps_the_last_ones(clips, tmp_path, monkeypatch):
    monkeypatch.setattr(serve, "KEPT", 2)
    run = serve.handler(answered, LIMITS, tmp_path)
    made = [run(str(clips / "clip.mp4"), None, "q", "Find it") for _ in range(3)]
    assert [pathlib.Path(one.overlay).exists() for one in made] == [False, True, True]
    last = made[-1]
    assert last.result == "found in 6 of 8 frames\nSound: none." and last.reasoning == "hm" and "(1 2 3 4)" in last.plan
    assert [pathlib.Path(file).name for file in last.files] == ["plan.json", "masks.zip"]
    with zipfile.ZipFile(last.files[1]) as archive:
        assert len(archive.namelist()) == 8
    assert all(pathlib.Path(file).is_relative_to(tmp_path) for file in (last.overlay, last.sheet, *last.files))


def test_tables_escape_what_a_model_says():
    evil = "<img src=x onerror=alert(1)>"
    said = {
        "task": "vos",
        "plan": [{"start": 0.0, "end": 1.5, "frames": [2, 3], "description": evil, "failure": None},
                 {"start": 0.0, "end": 0.0, "frames": None, "description": "", "failure": "bad_time"}],
        "keyframes": [{"frame": 2, "seconds": None, "description": evil, "answer": evil, "boxes": []}],
        "failures": ["plan/bad_time"],
    }  # fmt: skip
    made = serve.plan(said)
    assert "<img" not in made and made.count("&lt;img") == 2 and "bad_time" in made


def test_every_request_has_the_page_s_grounder(monkeypatch):
    monkeypatch.setattr(serve, "answer", lambda systems, ask: (systems, ask.system2, ask.query))
    systems = mock.Mock(spec=serve.Systems)
    assert serve.answerer(systems, "a:b")(infer.Ask("film", "q")) == (systems, "a:b", "q")
    with pytest.raises(InputError, match="--system2: 'other' is none of self"):
        serve.launch(None, systems, LIMITS, system2="other")


def test_without_gradio(monkeypatch):
    monkeypatch.setattr(serve.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'omnir1_jax\[serve\]'"):
        serve.require()


def test_sigterm_ends_the_page_and_removes_what_was_uploaded(tmp_path, monkeypatch, capsys):
    """With a stand-in for Gradio, which keeps what it is sent where GRADIO_TEMP_DIR says."""
    folders, modes = [], []

    def launch(**choices):
        assert choices["app_kwargs"]["middleware"][0]["uploads"].trim(1)
        folders.extend([pathlib.Path(os.environ["GRADIO_TEMP_DIR"]), pathlib.Path(*choices["allowed_paths"])])
        (folders[0] / "upload").mkdir()
        (folders[0] / "upload" / "clip.mp4").write_bytes(b"1")
        modes.extend(folder.stat().st_mode & 0o777 for folder in folders)
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()

    page = types.SimpleNamespace(launch=launch, close=lambda: None, local_url="http://127.0.0.1:1/")
    middleware = types.SimpleNamespace(Middleware=lambda guard, **choices: choices)
    monkeypatch.setitem(sys.modules, "starlette.middleware", middleware)
    monkeypatch.setattr(serve, "page", lambda *_: page)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    with signals.interruptible():
        serve.launch(mock.Mock(), mock.Mock(spec=serve.Systems), LIMITS)
    assert "the page is at http://127.0.0.1:1/" in capsys.readouterr().out
    assert modes == [0o700, 0o700] and not any(folder.exists() for folder in folders)
    assert os.environ["GRADIO_TEMP_DIR"] == str(tmp_path)
