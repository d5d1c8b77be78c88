"""Files, folders and texts that a user names: special files, broken tokenizers, bytes that are not UTF-8."""

import io
import os
import shutil

import pytest

from omnir1_jax import terminal
from omnir1_jax.config import settings
from omnir1_jax.data import audio, media
from omnir1_jax.data.preprocess import tokens
from omnir1_jax.data.refs import AudioFile, BadSample, ImageFiles, VideoAudio, VideoFile
from omnir1_jax.errors import InputError
from omnir1_jax.evaluation import predictions
from omnir1_jax.inference import samples
from omnir1_jax.models import safetensors_file, sam2
from omnir1_jax.models.qwen_omni import hf_config, store
from omnir1_jax.reporting import lines, train_report
from omnir1_jax.systems import prompts
from tests.hostile.test_linear import ROOT, at_most

TOKENIZER = ROOT / "configs/toy_weights/thinker"


def fifo(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)
    return path


OPENED = {
    "boxes": ("boxes.jsonl", lambda path: samples.read_boxes(str(path))),
    "weights": ("model.safetensors", lambda path: safetensors_file.index(path.parent)),
    "one file of weights": ("x.safetensors", safetensors_file.index),
    "index": ("model.safetensors.index.json", lambda path: safetensors_file.index(path.parent)),
    "thinker": ("config.json", lambda path: hf_config.read_json(path.parent)),
    "segmenter": ("config.json", lambda path: sam2.read_config(path.parent)),
    "run": ("config.json", settings.read),
    "metrics": ("metrics.jsonl", lambda path: train_report.write_report(path.parent)),
    "log": ("metrics.jsonl", lambda path: lines.truncate(path, 3)),
    "prediction": ("v/e/00000.png", lambda path: predictions.read(str(path.parent.parent.parent), "v", "e", ["00000"])),
    "prompt": ("vos.txt", lambda path: prompts.load("vos", ("query",), str(path))),
    "tokenizer": ("tokenizer.json", lambda path: tokens.load_tokenizer(path.parent)),
    "merges": ("merges.txt", lambda path: tokens.load_tokenizer(path.parent)),
    "sound": ("x.wav", lambda path: audio.load_audio(AudioFile(str(path)))),
    "track": ("x.mp4", lambda path: audio.load_audio(VideoAudio(str(path)))),
    "video": ("x.mp4", lambda path: media.frame_count(VideoFile(str(path)))),
    "image": ("x.png", lambda path: media.load_frames(ImageFiles((str(path),), ("x",)), [0])),
}


@pytest.mark.parametrize("kind", OPENED)
def test_a_fifo_in_place_of_a_file_is_refused_at_once(kind, tmp_path):
    name, read = OPENED[kind]
    path = fifo(tmp_path / "folder" / name)
    with at_most(10), pytest.raises((InputError, BadSample)) as error:
        read(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_special_files_beside_a_tokenizer_are_not_opened(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "b.json").mkdir()
    fifo(tmp_path / "c.json")
    with at_most(10):
        assert store.text_files(tmp_path) == {"a.json": b"{}"}


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b"{", b"\xff", b"[" * 10**5, b'{"model": 3}', b'{"model": {"type": "BPE"}}', b'"' * 3, b"null"],
)
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_broken_tokenizer_is_one_line(name, content, tmp_path):
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / file, tmp_path)
    (tmp_path / name).write_bytes(content)
    if name == "tokenizer_config.json" and content.startswith(b"{") and content.endswith(b"}"):
        tokens.load_tokenizer(tmp_path)  # all of its keys are optional
        return
    with pytest.raises(InputError) as error:
        tokens.load_tokenizer(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_a_tokenizer_with_byte_order_marks_is_refused_or_read(tmp_path):
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / file).write_bytes(b"\xef\xbb\xbf" + (TOKENIZER / file).read_bytes())
    try:
        tokens.load_tokenizer(tmp_path)
    except InputError as error:
        assert "\n" not in str(error)


def test_texts_that_are_not_utf8_are_one_line():
    for text in ("caf\udce9", "\ud800"):
        with pytest.raises(InputError, match="not UTF-8 at character"):
            list(tokens.items([{"role": "user", "content": text}]))


@pytest.mark.parametrize(
    "row",
    [
        "[]", "3", "null", '"x"', "{}", '{"sample_id": 3, "boxes": {}}', '{"sample_id": "a", "boxes": []}',
        '{"sample_id": "a", "boxes": {"x": []}}', '{"sample_id": "a", "boxes": {"-1": []}}',
        '{"sample_id": "a", "boxes": {"1": [1, 2, 3, 4]}}', '{"sample_id": "a", "boxes": {"1": [[1, 2, 3]]}}',
        '{"sample_id": "a", "boxes": {"1": [[1, 2, 3, NaN]]}}',
        '{"sample_id": "a", "boxes": {"1": [[1, 2, 3, 1e400]]}}',
        '{"sample_id": "a", "boxes": {"1": [["1", 2, 3, 4]]}}', '{"sample_id": "a", "boxes": {"1": null}}',
        '{"sample_id": "a", "boxes": {"1": [[1, 2, 3, 4]]', "[" * 100_000, "\x00",
        f'{{"sample_id": "a", "boxes": {{"1": [[1, 2, 3, {"9" * 400}]]}}}}',
        f'{{"sample_id": "a", "boxes": {{"{"9" * 20}": []}}}}',
    ],
)  # fmt: skip
def test_boxes_of_another_shape_name_the_line(row, tmp_path):
    path = tmp_path / "boxes.jsonl"
    path.write_text('\ufeff{"sample_id": "b", "boxes": {"3": [[0, 1, 2, 3.5]], "4": []}}\n\n')
    assert samples.read_boxes(str(path)) == {"b": {3: ((0, 1, 2, 3.5),), 4: ()}}
    with path.open("a") as file:
        file.write(row + "\n")
    with pytest.raises(InputError, match=r"--boxes: .*boxes\.jsonl line 3") as error:
        samples.read_boxes(str(path))
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_what_a_terminal_would_obey_is_escaped():
    raw = io.BytesIO()
    output = terminal._Text(io.BufferedWriter(raw), "utf-8", "backslashreplace")
    print("a\x1b[2J\x07\u202eb\x9b\tü中\udcff", end="\r\n", file=output, flush=True)
    assert raw.getvalue() == rb"a\x1b[2J\x07\u202eb\x9b" + "\tü中".encode() + b"\\udcff\r\n"


def test_reasons_and_names_of_bad_samples_are_on_one_line():
    error = BadSample("a\nb\x1b[1m", "x\ny\u202e")
    assert str(error) == r"a\nb\x1b[1m: x\ny\u202e" and error.sample_id == "a\nb\x1b[1m"
