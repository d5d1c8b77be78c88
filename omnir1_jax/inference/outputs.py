"""The directory of one answered query: the answer as JSON, masks, a video and a picture."""

import json
import pathlib
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import UInt8

from omnir1_jax.data import media
from omnir1_jax.data.audio import SAMPLE_RATE
from omnir1_jax.data.refs import BadSample, VideoFile
from omnir1_jax.errors import InputError
from omnir1_jax.files import folders
from omnir1_jax.inference.infer import Result, sections
from omnir1_jax.reporting import pictures, video
from omnir1_jax.reporting.example import Example, finite
from omnir1_jax.tasks.description import Clip, Keyframe

KIND, FLAG = "infer", "--out"
PLAN, ANSWER, SHEET, OVERLAY, MASKS = "plan.json", "answer.json", "contact_sheet.png", "overlay.mp4", "masks"
FILM_PIXELS, SMALL_PIXELS = 1280 * 720, 320 * 240  # of a frame in the video, of one in a picture
FOLDER_FPS = 6.0  # frame rate of folders of images

WORDS = {
    "completion/unended": "the answer was cut off at its greatest length",
    "plan/no_answer": "the model gave no <answer>",
    "plan/no_piece": "the answer holds no moment of the form {start_time, end_time, description}",
    "plan/over_limit": "the answer holds more moments than step.max_pieces; those beyond it were not read",
    "answer/no_answer": "the model gave no <answer>",
    "answer/empty": "the model's description is empty",
    "description/too_long": "a description is too long for System 2's prompt",
    "box/no_group": "System 2 answered without any box",
    "box/none": "System 2 gave no box that could be used",
}


class Files(NamedTuple):
    """Paths of the written files; None for a file that does not exist."""

    answer: pathlib.Path
    sheet: pathlib.Path
    overlay: pathlib.Path | None
    masks: pathlib.Path | None


def write(result: Result, out: str | pathlib.Path) -> Files:
    """Writes the directory atomically; an earlier answer there is replaced.

    Raises:
      InputError: `out` is not such a directory.
    """
    check_target(out)
    with folders.replace(out, KIND, FLAG) as scratch:
        fill(result, pathlib.Path(scratch))
    return files(result, out)


def fill(result: Result, folder: pathlib.Path) -> None:
    """Writes the files of an answer to a folder."""
    paths, frames = files(result, folder), _frames(result)
    paths.answer.write_text(json.dumps(finite(answer_json(result)), indent=2, ensure_ascii=False) + "\n", "utf-8")
    paths.sheet.write_bytes(pictures.png(pictures.draw(example(result, frames))))
    if paths.masks is not None:
        _masks(result, paths.masks)
        _film(result, frames, paths.overlay)


def files(result: Result, folder: str | pathlib.Path) -> Files:
    """Paths of an answer's files in a folder."""
    folder, segmented = pathlib.Path(folder), result.masks is not None
    answer_file = PLAN if result.ask.task.grounds else ANSWER
    optional = [folder / name if segmented else None for name in (OVERLAY, MASKS)]
    return Files(folder / answer_file, folder / SHEET, *optional)


def check_target(out: str | pathlib.Path) -> None:
    """InputError where writing would replace anything but an earlier answer. Changes nothing."""
    if "://" in str(out):
        raise InputError(f"{FLAG}: {out} is not on a local disk; name a local directory")
    folders.check_replaceable(out, KIND, FLAG)


def answer_json(result: Result) -> dict[str, Any]:
    """The content of `plan.json` or `answer.json`."""
    line = result.line
    reasoning, answer = sections(line["completion"])
    common = {
        "query": result.ask.query,
        "task": result.ask.family,
        "result": outcome(result),
        "reasoning": reasoning,
        "answer": answer,
        "failures": list(line["failures"]),
        "video": {
            "path": result.ask.video,
            "frames": result.count,
            "fps": result.fps,
            "width": result.size[1],
            "height": result.size[0],
        },
        "sound": {"file": result.ask.audio or None, "seconds_heard": result.sound.heard, "note": result.sound.note},
        "frames_seen": list(result.seen),
        "completion": line["completion"],
    }
    if not result.ask.task.grounds:
        return common | {"options": list(result.ask.options)}
    pieces = []
    for piece in line["plan"]:
        ends = piece["frames"] and [result.seen[min(t, len(result.seen) - 1)] for t in piece["frames"]]
        times = ends and _seconds(result, ends[0], ends[1] + 1)
        pieces.append(piece | {"frames": ends, "seconds_in_video": times})
    keyframes = [
        keyframe | {"seconds": (_seconds(result, keyframe["frame"]) or [None])[0]} for keyframe in line["keyframes"]
    ]
    masks = None
    if result.masks is not None:
        masks = {"folder": MASKS, "frames_with_object": int(result.masks.any(axis=(1, 2)).sum())}
    return common | {"plan": pieces, "keyframes": keyframes, "masks": masks}


def _seconds(result: Result, *frames: int) -> list[float] | None:
    """When frames of the clip appear in the video; None where that is not known."""
    return None if result.times is None else [float(result.times[t]) for t in frames]


def outcome(result: Result) -> str:
    """The result in one sentence."""
    line, failures = result.line, result.line["failures"]
    if not result.ask.task.grounds:
        _, answer = sections(line["completion"])
        if not answer:
            return "no answer: the model said nothing between its answer tags"
        return "answered; " + WORDS["completion/unended"] if failures else "answered"
    if result.masks is None:
        causes = [WORDS.get(kind, kind.replace("_", " ").replace("/", ": ")) for kind in failures]
        return "nothing was found: " + ("; ".join(causes) or "no box")
    seen = int(result.masks.any(axis=(1, 2)).sum())
    return f"found in {seen} of {result.count} frames"


def example(result: Result, frames: UInt8[np.ndarray, "t h w 3"]) -> Example:
    """The answer as an example for pictures."""
    line = result.line
    keyframes = tuple(
        Keyframe(
            keyframe["frame"],
            keyframe["description"],
            keyframe["answer"],
            tuple(tuple(box) for box in keyframe["boxes"]),
        )
        for keyframe in line["keyframes"]
    )
    times = None if result.times is None else tuple(round(float(t), 2) for t in result.times[:-1])
    clip = Clip(frames, result.size[::-1], None, result.masks, seconds=times)
    answer = None if result.ask.task.plans else sections(line["completion"])[1]
    name = pathlib.Path(result.ask.video).name
    return Example(
        f"{name}: {outcome(result)}",
        result.ask.query,
        line["completion"],
        result.ask.family,
        keyframes=keyframes,
        answer=answer,
        failures=tuple(line["failures"]),
        clip=clip,
    )


def _frames(result: Result) -> UInt8[np.ndarray, "t h w 3"]:
    """All frames at the size of the video that will be shown."""
    max_pixels = FILM_PIXELS if result.ask.task.grounds else SMALL_PIXELS
    try:
        return media.load_frames(
            result.ref.frames, range(result.count), size=media.within(max_pixels), sample_id="infer"
        )
    except BadSample as error:
        raise InputError(f"--video: {error.reason}") from error


def _masks(result: Result, folder: pathlib.Path) -> None:
    """A PNG of 0 and 255 for each frame, named as the folder's images are, or by number."""
    source = result.ref.frames
    names = [f"{t:05d}" for t in range(result.count)] if isinstance(source, VideoFile) else source.names
    folder.mkdir()
    for name, mask in zip(names, result.masks, strict=True):
        encoded = cv2.imencode(".png", mask.astype(np.uint8) * np.uint8(255))[1]
        (folder / f"{name}.png").write_bytes(encoded.tobytes())


def _film(result: Result, frames: np.ndarray, target: pathlib.Path) -> None:
    """The clip with its masks: each frame when it appears, beside the sound of that moment."""
    fps, wave, times = result.fps or FOLDER_FPS, result.sound.samples, None
    seconds = result.count / fps
    if result.times is not None:
        # The sound begins at the requested start of the clip; its first frame is the one nearest to that.
        start, first = result.ask.start or 0.0, float(result.times[0])
        times = np.maximum(result.times - (first if abs(first - start) < 0.5 / fps else start), 0.0)
        seconds = float(times[-1])
        times = None if np.allclose(times, np.arange(len(times)) / fps, atol=1e-6) else times[:-1]
    if wave is not None:
        wave = wave[: round(seconds * SAMPLE_RATE)]
    video.write(target, video.overlay(frames, result.masks), fps, wave, SAMPLE_RATE, times=times)
