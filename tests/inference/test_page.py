"""The page over HTTP, as a browser and a program see it. Needs the extra `serve`, hence deselected by default."""

import importlib
import itertools
import os
import pathlib
import urllib.error
import urllib.request

import numpy as np
import pytest

from omnir1_jax.errors import InputError
from omnir1_jax.inference import serve, serve_guard
from omnir1_jax.reporting import video
from tests.inference.test_serve import answered

LIMITS = serve.Limits(megabytes=1, seconds=4.0, frames=40)


def respond(ask):
    if ask.query == "boom":
        raise ZeroDivisionError
    if ask.query == "bad":
        raise InputError(f"--video: {ask.video} is no good")
    return answered(ask)


@pytest.mark.slow
def test_page_over_http(tmp_path):
    client = importlib.import_module("gradio_client")
    frames = np.random.default_rng(0).integers(0, 255, (8, 64, 64, 3), np.uint8)
    clip = str(video.write(tmp_path / "clip.mp4", frames, 4))
    (tmp_path / "big.mp4").write_bytes(bytes(1_100_000))
    (tmp_path / "kept").mkdir()
    run = serve.handler(respond, LIMITS, tmp_path / "kept")
    with serve.opened(serve.require(), run, LIMITS, str(tmp_path / "kept"), "127.0.0.1", 0) as address:
        assert address.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(address) as answer:
            policy = answer.headers["content-security-policy"]
            assert "connect-src 'self'" in policy and "http" not in policy
            page = answer.read().decode()
        # Nothing that a browser would fetch by itself lies elsewhere.
        assert (
            "fonts.googleapis" not in page
            and 'src="http' not in page
            and '<link rel="stylesheet" href="http' not in page
        )
        refused = {"host": "evil.example"}, {"origin": "http://evil.example"}, {"sec-fetch-site": "cross-site"}
        for headers, path in itertools.product(refused, ("", "config", "gradio_api/info", "gradio_api/upload", "run")):
            with pytest.raises(urllib.error.HTTPError, match="403"):
                urllib.request.urlopen(urllib.request.Request(address + path, headers=headers))
        asked = client.Client(address, verbose=False)
        ask = lambda file, query: asked.predict(client.handle_file(file), None, query, "Find it", api_name="/run")
        assert ask(clip, "x" * 10_000)[0] == "The query has 10000 characters; 2000 are taken at most."
        assert ask(clip, "boom")[0].startswith("Something went wrong here (ZeroDivisionError)")
        assert ask(clip, "bad")[0] == "Video: clip.mp4 is no good"
        with pytest.raises(ValueError, match="maximum file size"):
            ask(str(tmp_path / "big.mp4"), "q")
        result, overlay, sheet, reasoning, plan, files = ask(clip, "<b>it</b>")
        assert result.startswith("found in 6 of 8 frames") and reasoning == "hm" and "<table>" in plan
        overlay = overlay["video"] if isinstance(overlay, dict) else overlay
        assert all(pathlib.Path(file).stat().st_size for file in (overlay, sheet, *files))
        uploads = pathlib.Path(os.environ["GRADIO_TEMP_DIR"])
        kept = [path for path in uploads.rglob("*") if path.is_file()]
        assert {path.name for path in kept} >= {"clip.mp4", "overlay.mp4", "plan.json"}
        assert uploads.stat().st_mode & 0o777 == 0o700
        serve_guard.Uploads(uploads, 0, 0, 0).trim()  # nothing is old enough to go
        assert all(path.exists() for path in kept)
    assert not uploads.exists()
