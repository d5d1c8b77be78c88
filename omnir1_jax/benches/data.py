"""Decoding of a film, ours (PyAV, by the film's own timestamps) beside OpenCV's reader of the same film.

A H.264 film of the synthetic world, 480 x 854 (quick: small): all its frames, and 24 spread over it, by one thread,
the film opened anew each time. Rounds of both are interleaved; a figure is the median of them.
"""

import pathlib
import statistics
import tempfile
import time
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import UInt8

from omnir1_jax.data import media
from omnir1_jax.data.refs import VideoFile
from omnir1_jax.data.synthetic import encode
from omnir1_jax.data.synthetic.scenes import make_clip
from omnir1_jax.data.synthetic.world import WorldConfig


def by_opencv(path: str, indices: Sequence[int]) -> UInt8[np.ndarray, "t h w 3"]:
    """Frames as OpenCV users read them: every frame grabbed in order, the wanted ones retrieved."""
    capture, frames, wanted = cv2.VideoCapture(path), [], set(indices)
    for index in range(max(indices) + 1):
        capture.grab()
        if index in wanted:
            frames.append(cv2.cvtColor(capture.retrieve()[1], cv2.COLOR_BGR2RGB))
    capture.release()
    return np.stack(frames)


def run(quick: bool) -> dict:
    """Milliseconds of processor time per frame of the film for both, and how many times faster ours is."""
    world = WorldConfig(height=96, width=128, frames=20) if quick else WorldConfig(height=480, width=854, frames=240)
    threads, figures = cv2.getNumThreads(), {}
    cv2.setNumThreads(1)
    try:
        with tempfile.TemporaryDirectory() as root:
            path = pathlib.Path(root) / "film.mp4"
            path.write_bytes(encode.mp4(make_clip(world, 0).frames, 30.0))
            sparse = np.linspace(0, world.frames - 1, min(24, world.frames), dtype=int).tolist()
            for name, indices in (("all", list(range(world.frames))), ("sparse", sparse)):
                sides = {
                    "ours": lambda indices=indices: media.load_frames(VideoFile(str(path)), indices),
                    "opencv": lambda indices=indices: by_opencv(str(path), indices),
                }
                difference = np.abs(sides["ours"]().astype(int) - sides["opencv"]())
                if difference.mean() > 1:  # the two round colours differently
                    raise AssertionError(f"the frames of both differ by {difference.mean():.2f} levels")
                seconds = {side: [] for side in sides}
                for _ in range(2 if quick else 9):
                    for side, read in sides.items():
                        start = time.process_time()
                        read()
                        seconds[side].append(time.process_time() - start)
                ms = {side: 1e3 * statistics.median(values) / world.frames for side, values in seconds.items()}
                figures |= {f"film_{name}_ms_per_frame.{side}": value for side, value in ms.items()}
                figures[f"film_{name}_times_faster"] = ms["opencv"] / ms["ours"]
    finally:
        cv2.setNumThreads(threads)
    return figures
