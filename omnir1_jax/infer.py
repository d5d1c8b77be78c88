"""One video, one query: `python -m omnir1_jax.infer --checkpoint K --video FILE --query TEXT --out DIR`.

OUT gets `plan.json` (reasoning, keyframes, descriptions, boxes, and what failed), `masks/`, `overlay.mp4` and
`contact_sheet.png`. With --question the answer is text: `answer.json`. The video may be a file, an image, or a folder
of frames. With --serve a page on this machine asks for video and query instead.
"""

import dataclasses
import pathlib

from absl import flags, logging

from omnir1_jax import cli
from omnir1_jax.build.run import keep_compiled
from omnir1_jax.config import settings
from omnir1_jax.errors import InputError, printable
from omnir1_jax.files import folders
from omnir1_jax.inference import from_checkpoint, load, outputs
from omnir1_jax.inference.infer import FAMILIES, Ask, answer

CACHE = pathlib.Path("~/.cache/omnir1_jax/jax")

_CONFIG = settings.define()
_CHECKPOINT = cli.flag.string(
    "checkpoint", None, "Work directory of a run, directory of weights, or toy for the weights of configs/toy.py."
)
_VIDEO = cli.flag.string("video", None, "Video file, image, or folder of frames.")
_AUDIO = cli.flag.string("audio", "", "Sound file in place of the video's own track.")
_QUERY = cli.flag.string("query", None, "What to find, or the question.")
_STEP = cli.flag.string("step", "", "Which checkpoint of a run: best (of those validated), last, or its number.")
_OUT = cli.flag.string("out", None, "Directory to write; an earlier answer there is replaced.")
_QUESTION = cli.flag.bool("question", False, "Answer in text; the same as --task=qa.")
_TASK = cli.flag.enum("task", "vos", FAMILIES, "vos: by sight; refavs: by sound and first frame; qa: in text.")
_OPTIONS = cli.flag.multi_string("option", [], "Of a question, to choose from; once for each.")
_START = cli.flag.float("start", None, "Seconds; where the part of a video file begins.", lower_bound=0.0)
_END = cli.flag.float("end", None, "Seconds; where it ends.", lower_bound=0.0)
_FRAMES = cli.flag.integer("frames", 0, "Maximum frames that System 1 sees; 0: as in training.", lower_bound=0)
_AUDIO_SECONDS = cli.flag.float("audio_seconds", -1.0, "Maximum seconds of sound; 0: none, -1: as in training.")
_MOST = cli.flag.integer("most_frames", 1000, "A longer video is refused.", lower_bound=1)
_OBJECTS = cli.flag.integer("objects", 8, "Maximum objects of an answer.", lower_bound=1)
_SYSTEM2 = cli.flag.string(
    "system2",
    "self",
    "Who finds boxes: self (the checkpoint), grounding_dino:DIRECTORY, or a grounder of your own, MODULE:OBJECT.",
)
_SEED = cli.flag.integer("seed", 0, "Of sampling.")
_TEMPERATURE = cli.flag.float("temperature", 0.0, "Of System 1; 0 is greedy.", lower_bound=0.0)
_MAX_TOKENS = cli.flag.integer("max_tokens", 0, "Of System 1's answer; 0: the config's.", lower_bound=0)
_SERVE = cli.flag.bool("serve", False, "Open a page instead; needs pip install omnir1_jax[serve].")
_HOST = cli.flag.string("host", "127.0.0.1", "Address of the page; others than this machine only if you say so.")
_PORT = cli.flag.integer("port", 7860, "Of the page; 0 takes a free one.", lower_bound=0, upper_bound=65535)
_MEGABYTES = cli.flag.integer("max_megabytes", 200, "Largest upload of the page.", lower_bound=1)
_CLIP = cli.flag.float("max_seconds", 60.0, "Longest clip of the page.", lower_bound=0.1)


def ask_from_flags() -> Ask:
    if _QUESTION.value and _TASK.present and _TASK.value != "qa":
        raise InputError(f"--question: goes with --task=qa, not with --task={_TASK.value}")
    if _OPTIONS.value and not (_QUESTION.value or _TASK.value == "qa"):
        raise InputError("--option: only a question has options; add --question")
    given = {"family": "qa" if _QUESTION.value else _TASK.value, "options": tuple(_OPTIONS.value)}
    return Ask(**given, **{f.name: flags.FLAGS[f.name].value for f in dataclasses.fields(Ask) if f.name not in given})


def main(_) -> None:
    cli.need(checkpoint=_CHECKPOINT)
    if not _SERVE.value:
        cli.need(video=_VIDEO, query=_QUERY, out=_OUT)
    logging.set_verbosity(logging.ERROR)
    keep_compiled(CACHE.expanduser())
    decoding = dict(temperature=_TEMPERATURE.value, max_tokens=_MAX_TOKENS.value, step=_STEP.value)
    if _SERVE.value:
        from omnir1_jax.inference import serve  # optional at import

        page = serve.require()
        systems = load.load_systems(_CHECKPOINT.value, _CONFIG.value, **decoding)
        limits = serve.Limits(_MEGABYTES.value, _CLIP.value, _MOST.value)
        serve.launch(page, systems, limits, system2=_SYSTEM2.value, host=_HOST.value, port=_PORT.value)
        return
    ask, out = ask_from_flags(), _OUT.value
    outputs.check_target(out)
    inputs = from_checkpoint.inputs(_CHECKPOINT.value, _CONFIG.value)
    folders.check_disjoint(out, outputs.FLAG, inputs | {"--video": ask.video, "--audio": ask.audio})
    with folders.replace(out, outputs.KIND, outputs.FLAG) as scratch:
        result = answer(load.load_systems(_CHECKPOINT.value, _CONFIG.value, **decoding), ask, _SEED.value)
        outputs.fill(result, pathlib.Path(scratch))
    files = outputs.files(result, out)
    fields = outputs.answer_json(result)
    print(printable(f"{fields['result']}: {fields['answer']}" if not ask.task.grounds else fields["result"]))
    print(printable(f"{out}: ") + ", ".join(path.name for path in files if path is not None))


if __name__ == "__main__":
    cli.run(main, settings.parse)
