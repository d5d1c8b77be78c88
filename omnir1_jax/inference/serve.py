"""The page of `python -m omnir1_jax.infer --serve`: a video, a query, and what both systems make of them.

It listens on loopback by default; nothing is sent or fetched elsewhere, and what a model or a user writes is shown as
text. Needs `pip install omnir1_jax[serve]` (Gradio).
"""

import collections
import contextlib
import dataclasses
import importlib
import importlib.util
import os
import pathlib
import re
import shutil
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from absl import logging

from omnir1_jax.data import media
from omnir1_jax.data.refs import BadSample, VideoFile
from omnir1_jax.errors import InputError
from omnir1_jax.inference import load, outputs, serve_guard
from omnir1_jax.inference.infer import IMAGES, Ask, Result, answer
from omnir1_jax.inference.load import Systems
from omnir1_jax.reporting import html as markup

TASKS = {"Find it": "vos", "Find it by its sound": "refavs", "Answer in text": "qa"}
QUERY_CHARACTERS = 2000
KEPT = 16  # answers whose files are kept
WAITING = 16  # requests in the queue; one runs at a time
MAX_UPLOADS = 256  # maximum number of stored files, of visitors and of answers being sent
MAX_UPLOAD_SUM = 8  # their bytes, as multiples of the largest file


class Limits(NamedTuple):
    """Limits of the page: megabytes of a file, seconds and frames of a clip."""

    megabytes: int = 200
    seconds: float = 60.0
    frames: int = 1000


class Shown(NamedTuple):
    """The parts of an answer on the page, in order; None clears a part."""

    result: str
    overlay: str | None = None
    sheet: str | None = None
    reasoning: str = ""
    plan: str = ""
    files: list[str] | None = None


def require() -> Any:
    """Gradio, or InputError where it is not installed."""
    if importlib.util.find_spec("gradio") is None:
        raise InputError("--serve: needs Gradio; pip install 'omnir1_jax[serve]'")
    return importlib.import_module("gradio")


def handler(respond: Callable[[Ask], Result], limits: Limits, folder: pathlib.Path) -> Callable[..., Shown]:
    """`(video, sound, query, task) -> Shown`; never raises. Files of the last answers are in `folder`."""
    folders: collections.deque[pathlib.Path] = collections.deque()

    def run(video: str | None, sound: str | None, query: str | None, task: str | None) -> Shown:
        try:
            ask = checked(video, sound, query, task, limits)
            result, out = respond(ask), folder / uuid.uuid4().hex
            files = outputs.write(result, out)
            folders.append(out)
            while len(folders) > KEPT:
                shutil.rmtree(folders.popleft(), ignore_errors=True)
            return shown(result, files)
        except InputError as error:
            return Shown(readable(str(error), video, sound))
        # Whatever a file or a model causes, the page keeps running and the log has the traceback.
        except Exception as error:
            logging.exception("--serve: a request failed")
            return Shown(f"Something went wrong here ({type(error).__name__}); the terminal of the page says more.")

    return run


def checked(video: str | None, sound: str | None, query: str | None, task: str | None, limits: Limits) -> Ask:
    """The query, or InputError in the page's terms."""
    query = (query or "").strip()
    if not video:
        raise InputError("Choose a video first.")
    if not query:
        raise InputError("Say what to look for, or ask a question.")
    if len(query) > QUERY_CHARACTERS:
        raise InputError(f"The query has {len(query)} characters; {QUERY_CHARACTERS} are taken at most.")
    if task not in TASKS:
        raise InputError(f"Choose one of: {', '.join(TASKS)}.")
    for name, file in (("video", video), ("sound", sound)):
        if file and (size := pathlib.Path(file).stat().st_size) > limits.megabytes * 10**6:
            raise InputError(f"The {name} has {size / 1e6:.0f} MB; {limits.megabytes} are taken at most.")
    if pathlib.Path(video).suffix.lower() not in IMAGES:
        try:
            times = media.frame_times(VideoFile(video))
        except BadSample as error:
            raise InputError(f"The video: {error.reason}") from error
        count, seconds = len(times) - 1, float(times[-1] - times[0])
        if seconds > limits.seconds or count > limits.frames:
            raise InputError(
                f"The video has {seconds:.1f} seconds and {count} frames; {limits.seconds:g} seconds and "
                f"{limits.frames} frames are taken at most."
            )
    return Ask(video, query, TASKS[task], sound or "", most_frames=limits.frames)


def shown(result: Result, files: outputs.Files) -> Shown:
    """An answer as parts of the page."""
    fields = outputs.answer_json(result)
    text = fields["result"]
    if fields["task"] == "qa" and fields["answer"]:
        text = f"{fields['answer']}\n({text})"
    text += f"\nSound: {fields['sound']['note']}."
    downloads = [str(files.answer)]
    if files.masks is not None:
        downloads.append(shutil.make_archive(str(files.masks), "zip", files.masks))
    overlay = None if files.overlay is None else str(files.overlay)
    return Shown(text, overlay, str(files.sheet), fields["reasoning"], plan(fields), downloads)


def plan(fields: dict[str, Any]) -> str:
    """Plan and keyframes as tables; all text in them is escaped."""
    if fields["task"] == "qa":
        return ""
    time = lambda value: "" if value is None else f"{value:.2f} s"
    boxes = lambda frame_boxes: (
        ", ".join("(" + " ".join(f"{x:.0f}" for x in box) + ")" for box in frame_boxes) or "none"
    )
    pieces = [
        (
            f"{piece['start']:g} to {piece['end']:g} s",
            "" if piece["frames"] is None else "{} to {}".format(*piece["frames"]),
            piece["description"],
            piece["failure"] or "none",
        )
        for piece in fields["plan"]
    ]
    frames = [
        (str(keyframe["frame"]), time(keyframe["seconds"]), keyframe["description"], boxes(keyframe["boxes"]))
        for keyframe in fields["keyframes"]
    ]
    parts = []
    if pieces:
        parts.append(markup.tag("h4", "Plan"))
        parts.append(markup.table(("said", "frames", "description", "failure"), pieces))
    if frames:
        parts.append(markup.tag("h4", "Keyframes"))
        parts.append(markup.table(("frame", "at", "asked for", "boxes (pixels)"), frames))
    if fields["failures"]:
        parts.append(markup.tag("p", "failures: " + ", ".join(fields["failures"])))
    return str(markup.join(parts))


def readable(message: str, *files: str | None) -> str:
    """An error of the command in the page's terms: files by their names, without flags."""
    for file in files:
        if file:
            message = message.replace(file, pathlib.Path(file).name)
    return re.sub(r"^--(\w+): ", lambda match: f"{match[1].capitalize()}: ", message)


def page(gradio: Any, run: Callable[..., Shown], limits: Limits) -> Any:
    """The page itself; `run` answers."""
    with gradio.Blocks(title="omnir1_jax", analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
        gradio.HTML("<h2>omnir1_jax</h2>")
        with gradio.Row():
            with gradio.Column(scale=1):
                video = gradio.Video(
                    label=f"Video, at most {limits.seconds:g} s and {limits.megabytes} MB",
                    sources=["upload"],
                    include_audio=True,
                    height=240,
                )
                sound = gradio.File(label="Sound in place of the video's own (optional)", file_types=["audio"])
                query = gradio.Textbox(label="Query", max_length=QUERY_CHARACTERS, lines=2, elem_id="query")
                task = gradio.Radio(list(TASKS), value=next(iter(TASKS)), label="Task")
                button = gradio.Button("Run", variant="primary", elem_id="run")
            with gradio.Column(scale=2):
                result = gradio.Textbox(label="Result", lines=2, interactive=False, elem_id="result")
                overlay = gradio.Video(
                    label="Overlay", interactive=False, include_audio=True, buttons=["download"], elem_id="overlay"
                )
                sheet = gradio.Image(
                    type="filepath", interactive=False, show_label=False, buttons=["download", "fullscreen"],
                    elem_id="sheet",
                )  # fmt: skip
                reasoning = gradio.Textbox(label="Reasoning", lines=3, interactive=False, elem_id="reasoning")
                table = gradio.HTML(elem_id="plan")
                files = gradio.File(label="Files", file_count="multiple", interactive=False)
        button.click(
            run,
            [video, sound, query, task],
            [result, overlay, sheet, reasoning, table, files],
            api_name="run",
            concurrency_limit=1,
            show_progress="minimal",
        )
    return blocks.queue(max_size=WAITING)


@contextlib.contextmanager
def opened(gradio: Any, run: Callable[..., Shown], limits: Limits, folder: str, host: str, port: int) -> Iterator[str]:
    """The page, answering at the yielded address until the body ends.

    Args:
      run: function made by `handler`, with files in `folder`.
      port: TCP port; 0 for a free one.
    """
    if host not in serve_guard.LOOPBACK:
        logging.warning("--host %s: whoever reaches this address can use the page; there is no password", host)
    sans, mono = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]  # the visitor's own, not fetched
    max_file = limits.megabytes * 10**6
    with upload_folder() as uploaded:
        blocks = page(gradio, run, limits)
        uploads = serve_guard.Uploads(uploaded, MAX_UPLOADS, MAX_UPLOAD_SUM * max_file, 2 * max_file)
        middleware = importlib.import_module("starlette.middleware").Middleware
        guard = middleware(serve_guard.Guard, names=serve_guard.Names(host), uploads=uploads)
        try:
            blocks.launch(
                server_name=host,
                server_port=port or None,
                share=False,
                prevent_thread_lock=True,
                max_file_size=max_file,
                allowed_paths=[folder],
                enable_monitoring=False,
                footer_links=[],
                run_history=False,
                ssr_mode=False,
                pwa=False,
                mcp_server=False,
                quiet=True,
                theme=gradio.themes.Default(font=sans, font_mono=mono),
                app_kwargs={"middleware": [guard]},
            )
            yield blocks.local_url
        finally:
            blocks.close()


@contextlib.contextmanager
def upload_folder() -> Iterator[pathlib.Path]:
    """A folder of this process alone (mode 0700) for Gradio's uploads; removed at the end."""
    previous, scratch = os.environ.get("GRADIO_TEMP_DIR"), tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="omnir1_jax_uploads_", ignore_cleanup_errors=True) as folder:
        os.environ["GRADIO_TEMP_DIR"] = tempfile.tempdir = folder  # the latter: for incomplete uploads
        try:
            yield pathlib.Path(folder)
        finally:
            tempfile.tempdir = scratch
            if previous is None:
                del os.environ["GRADIO_TEMP_DIR"]
            else:
                os.environ["GRADIO_TEMP_DIR"] = previous


def answerer(systems: Systems, system2: str = "self") -> Callable[[Ask], Result]:
    """Answers the page's requests, all with the same System 2."""
    return lambda ask: answer(systems, dataclasses.replace(ask, system2=system2))


def launch(
    gradio: Any,
    systems: Systems,
    limits: Limits,
    *,
    system2: str = "self",
    host: str = "127.0.0.1",
    port: int = 7860,
) -> None:
    """Opens the page, prints its address, and returns when it is stopped."""
    load.check(system2)
    with tempfile.TemporaryDirectory(prefix="omnir1_jax_page_") as folder:
        run = handler(answerer(systems, system2), limits, pathlib.Path(folder))
        with opened(gradio, run, limits, folder, host, port) as address:
            print(f"the page is at {address} (Ctrl-C stops it)", flush=True)
            with contextlib.suppress(KeyboardInterrupt):  # of SIGTERM too, see `signals.interruptible`
                threading.Event().wait()
