"""The page over HTTP, as a browser and a program see it. Needs the extra `serve`, hence deselected by default."""

import importlib
import pathlib
import urllib.request

import numpy as np
import pytest

from omnir1_jax import serve
from omnir1_jax.errors import InputError
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
