"""A user's folder: video files and one jsonl of questions and expressions about them.

`<split>.jsonl` (or the only jsonl at the root), one object per line:
    video       path of a video file within the folder (required)
    question    what to ask; with `options` and `answer` if it can be scored          } one of the two
    expression  what to find and segment, with `masks` if it can be scored             } is required
    options     list of 2 to 10 answers to choose from
    answer      the right option: its letter, or its text in full; without options, any text
    id          a name, unique in the file; by default the line's number
    audio       path of a sound file within the folder, or null for a clip to be taken as silent; by default the
                video's own track
    masks       path of a json file within the folder: a list of objects, each a list of COCO run lengths (or null),
                one for every frame of the video; not together with start and end
    start, end  seconds, where only a part of the video is meant
"""

import functools
from typing import Any

from omnir1_jax.data import metadata, paths, qa, rle, vos_json
from omnir1_jax.data.reader import TableReader
from omnir1_jax.data.refs import AudioFile, ClipRef, RleMasks, VideoAudio, VideoFile
from omnir1_jax.errors import InputError

KEYS = ("video", "question", "expression", "options", "answer", "id", "audio", "masks", "start", "end")


def open(root: str, split: str = "train", family: str = "") -> TableReader:
    """`extra` of a question: options, answer, answer_index; of all: start, end. Raises `InputError`.

    Args:
      family: "vos" takes the lines with an expression, "qa" those with a question; by default all.
    """
    if family not in ("", "vos", "qa"):
        raise InputError(f"folder: family is vos or qa, not {family!r}")
    metadata.require_root(root)
    path = _table(root, split)
    rows = []
    ids: set[str] = set()
    for number, row in enumerate(metadata.load_rows(path), 1):
        record = _check(row, f"{path} item {number}", number)
        if record["id"] in ids:
            raise InputError(f"{path} item {number}: the id {record['id']!r} is used twice")
        ids.add(record["id"])
        if family in ("", record["family"]):
            rows.append((record["id"], record))
    return qa.checked("folder", split, path, rows, functools.partial(_media, root), functools.partial(_clip, root))


def _table(root: str, split: str) -> str:
    if split.isidentifier() and paths.exists(f"{root}/{split}.jsonl"):
        return paths.inside(root, f"{split}.jsonl", "folder")
    files = paths.matching(root, "*.jsonl")
    if len(files) != 1:
        raise InputError(f"folder: {root} has no {split}.jsonl, and {len(files)} other jsonl files; name one so")
    return files[0]


def _check(row: dict[str, Any], location: str, number: int) -> dict[str, Any]:
    if unknown := [key for key in row if key not in KEYS]:
        raise InputError(f"{location}: unknown key '{unknown[0]}'; the keys are {', '.join(KEYS)}")
    if ("question" in row) == ("expression" in row):
        raise InputError(f"{location}: give one of the keys 'question' and 'expression'")
    kind = "question" if "question" in row else "expression"
    options = qa.get_options(row, "options", location) if row.get("options") is not None else ()
    answer = metadata.get(row, "answer", str, location) if "answer" in row else ""
    index = None
    if options and answer:
        by_letter = len(answer.strip()) == 1 and answer not in options
        index = (qa.letter_index if by_letter else qa.answer_index)(options, answer, location)
    times = {key: metadata.get_number(row, key, location) for key in ("start", "end") if key in row}
    if not 0 <= times.get("start", 0.0) < times.get("end", float("inf")):
        raise InputError(f"{location}: expected 0 <= start < end")
    audio = metadata.get(row, "audio", str, location) if row.get("audio") is not None else None
    masks = metadata.get(row, "masks", str, location) if row.get("masks") is not None else None
    if masks is not None and (times or kind == "question"):
        raise InputError(f"{location}: 'masks' goes with an expression about the whole video")
    return {
        "video": metadata.get(row, "video", str, location),
        "family": "qa" if kind == "question" else "vos",
        "query": metadata.get(row, kind, str, location),
        "options": options,
        "answer": answer,
        "answer_index": index,
        "id": str(metadata.get(row, "id", (str, int), location)) if "id" in row else str(number),
        "audio": audio,
        "masks": masks,
        "silent": "audio" in row and audio is None,
        "start": times.get("start"),
        "end": times.get("end"),
        "where": location,
    }


def _media(root: str, row: dict[str, Any]) -> tuple[str, str | None, str | None]:
    optional = (
        qa.media_file(root, [row[key]], row["where"]) if row[key] is not None else None for key in ("audio", "masks")
    )
    return qa.media_file(root, [row["video"]], row["where"]), *optional


def _clip(root: str, sample_id: str, row: dict[str, Any]) -> ClipRef:
    video, sound, masks = _media(root, row)
    start, end = row["start"], row["end"]
    audio = AudioFile(sound) if sound else None if row["silent"] else VideoAudio(video, start, end)
    extra = {"start": start, "end": end}
    if row["family"] == "qa":
        extra |= {key: row[key] for key in ("options", "answer", "answer_index")}
    tracks = _masks(masks) if masks else None
    frames = VideoFile(video, start, end)
    return ClipRef("folder", sample_id, row["family"], row["query"], frames, audio, tracks, extra=extra)


def _masks(path: str) -> RleMasks:
    tracks = metadata.check(metadata.load_json(path), list, path)
    if not tracks or any(not isinstance(track, list) for track in tracks):
        raise InputError(f"{path}: expected a list of objects, each a list of run lengths")
    tracks = [vos_json.check_track(track, len(tracks[0]), f"{path}[{n}]") for n, track in enumerate(tracks)]
    first = next((entry for track in tracks for entry in track if entry is not None), None)
    try:
        return RleMasks(tuple(tracks), rle.mask_size(first))
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error
