"""Readers of the question-answering sets and of a user's own folder."""

import json
import shutil

import numpy as np
import pytest

from omnir1_jax.data import audio, avhbench, dailyomni, folder, media, mvbench, omnibench, registry, videomme, videor1
from omnir1_jax.data.masks import decode_masks
from omnir1_jax.data.refs import AudioFile, BadSample, ImageFiles, VideoAudio, VideoFile
from omnir1_jax.data.synthetic import writers
from omnir1_jax.errors import InputError
from tests.data import trees


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    base = tmp_path_factory.mktemp("trees")
    for name in ("omnibench", "dailyomni", "videomme", "mvbench", "avhbench", "videor1", "folder"):
        trees.BUILD[name](base / name)
    return base


@pytest.fixture
def copy(root, tmp_path):
    def make(name: str):
        return shutil.copytree(root / name, tmp_path / name)

    return make


def test_omnibench(root):
    reader = omnibench.open(str(root / "omnibench"))
    refs = [reader[i] for i in range(len(reader))]
    assert [ref.extra["audio_type"] for ref in refs] == ["speech", "sound event", "music"]
    assert [ref.extra["answer_index"] for ref in refs] == [0, 3, 2]  # the gold answer by its place among the options
    for n, ref in enumerate(refs):
        c = trees.clip(10 + n)
        assert isinstance(ref.frames, ImageFiles) and isinstance(ref.audio, AudioFile) and ref.family == "qa"
        assert media.load_frames(ref.frames, [0]).shape == (1, 48, 64, 3)
        assert np.allclose(audio.load_audio(ref.audio), c.sound / 32768, atol=1e-6)


def test_videomme(root):
    reader = videomme.open(str(root / "videomme"))
    assert len(reader) == 6 and [len(group) for group in reader.clips()] == [2, 2, 2]
    ref = reader[5]
    assert ref.sample_id == "videomme/test/002-1" and ref.extra["answer"] == "D" and ref.extra["answer_index"] == 3
    assert ref.extra["duration"] == "long" and ref.extra["options"][0] == "A. One."
    assert isinstance(ref.audio, VideoAudio) and not ref.audio.required


def test_dailyomni(root):
    reader = dailyomni.open(str(root / "dailyomni"))
    first, second = reader[0], reader[1]
    assert first.extra["answer_index"] == 1 and second.extra["answer"] == "D" and second.extra["duration"] == "60s"
    assert isinstance(first.audio, VideoAudio) and isinstance(second.audio, AudioFile)  # in the track, or beside it
    assert np.allclose(audio.load_audio(second.audio), trees.clip(71).sound / 32768, atol=1e-6)
    assert media.load_frames(first.frames, [0]).shape == (1, 48, 64, 3)


def test_mvbench(root):
    reader = mvbench.open(str(root / "mvbench"))
    assert len(reader) == 40
    refs = {ref.extra["task"]: ref for ref in (reader[i] for i in range(0, 40, 2))}
    assert len(refs) == 20 and all(ref.extra["answer_index"] == 1 for ref in refs.values())
    bounded = [task for task, ref in refs.items() if ref.extra["start"] is not None]
    assert sorted(bounded) == sorted(mvbench.BOUNDED) and len(bounded) == 5
    assert refs["action_sequence"].frames == VideoFile(refs["action_sequence"].frames.path, 0.5, 2.0)
    frames = refs["episodic_reasoning"].frames  # 0.5 s to 2 s at 3 frames a second, from 1: round(1.5) to round(6)
    assert frames.names == ("00002", "00003", "00004", "00005", "00006") and frames.fps == 3.0


def test_mvbench_as_it_can_be_downloaded_today(copy):
    """Without the withdrawn videos, and with some of clevrer's and star's in a folder of their own."""
    tree = copy("mvbench")
    shutil.rmtree(tree / "video" / "nturgbd")
    for videos in ("clevrer/video_validation", "star/Charades_v1_480"):
        (tree / "video" / "data0613" / videos).mkdir(parents=True)
        for path in sorted((tree / "video" / videos).iterdir())[::2]:
            path.rename(tree / "video" / "data0613" / videos / path.name)
    reader = mvbench.open(str(tree))
    assert len(reader) == 38 and all(ref.extra["task"] != "fine_grained_pose" for ref in reader)
    assert sum("data0613" in getattr(ref.frames, "path", "") for ref in reader) == 2 * (3 + 2)
    assert {ref.sample_id.split("/")[2] for ref in reader} == set(mvbench.FOLDERS) - {"fine_grained_pose"}
    pose, total = reader.notes
    assert pose.startswith("fine_grained_pose: 2 questions left out") and pose.endswith("video/nturgbd")
    assert total == "the total is over 38 questions of 19 of 20 tasks"
    with pytest.raises(InputError, match=r"nturgbd/fine_grained_pose\.mp4 is missing"):
        mvbench.open(str(tree), tasks=("fine_grained_pose",))


@pytest.mark.parametrize(
    "count, start, end, first, last",
    [(90, 0.0, 3.0, 1, 9), (90, 10.0, 20.0, 30, 60), (20, 5.0, 50.0, 15, 20), (5, 9.0, 9.9, 5, 5)],
)
def test_mvbench_frames_of_a_span(count, start, end, first, last):
    assert list(mvbench.frame_span(count, start, end)) == list(range(first, last + 1))


def test_avhbench(root):
    reader = avhbench.open(str(root / "avhbench"))
    refs = [reader[i] for i in range(len(reader))]
    assert [ref.extra["task"] for ref in refs] == list(avhbench.JUDGE_TASKS)
    assert [ref.extra["answer"] for ref in refs] == ["Yes", "No", "Yes"]
    assert [ref.extra["answer_index"] for ref in refs] == [0, 1, 0]
    everything = avhbench.open(str(root / "avhbench"), captioning=True)
    assert len(everything) == 4 and everything[3].extra["options"] == ()


def test_videor1(root):
    reader = videor1.open(str(root / "videor1"))
    video, image = reader[0], reader[1]
    assert video.extra["answer"] == "B" and video.extra["answer_index"] == 1 and isinstance(video.frames, VideoFile)
    assert video.sample_id == "videor1/train/7" and video.extra["problem_type"] == "multiple choice"
    assert image.extra["answer"] == "3" and image.extra["answer_index"] is None and image.audio is None
    assert np.array_equal(media.load_frames(image.frames, [0])[0], trees.clip(51).frames[0][..., ::-1])


def test_videor1_as_published_has_two_files(copy):
    tree = copy("videor1")
    rows = json.loads((tree / "train.json").read_text())
    (tree / "train.json").unlink()
    (tree / "Video-R1-260k.json").write_text(json.dumps(rows[:1]))
    (tree / "Video-R1-COT-165k.json").write_text(json.dumps([row | {"process": "<think>x</think>"} for row in rows]))
    assert len(videor1.open(str(tree))) == 1 and len(videor1.open(str(tree), "cot")) == 2
    assert len(videor1.open(str(tree), file="Video-R1-COT-165k.json")) == 2
    with pytest.raises(
        InputError, match=r"Video-R1-COT-165k\.json, none of split 'test'; choose .*file='Video-R1-260k"
    ):
        videor1.open(str(tree), "test")
    assert len(registry.open_dataset("videor1", str(tree), "test", file="Video-R1-260k.json")) == 1
    with pytest.raises(InputError, match="videor1.file: the path '../x.json' leaves"):
        videor1.open(str(tree), file="../x.json")
    with pytest.raises(InputError, match="videor1 has no option 'table'; it has file"):
        registry.open_dataset("videor1", str(tree), table="x.json")


def test_folder_round_trip(root):
    """Masks come back exactly, sound and frames as near as the codecs leave them."""
    for split in ("train", "valid"):
        reader = folder.open(str(root / "folder"), split)
        asked = 0
        for i in range(len(reader)):
            ref = reader[i]
            number = int(ref.sample_id.split("/")[2].rsplit("_", 1)[1])
            c = trees.clip(writers.clip_seed(0, split, number))
            if ref.family == "vos":
                targets = {e.text: e.targets for e in c.expressions}[ref.query]
                found = decode_masks(ref.masks, range(media.frame_count(ref.frames)))
                assert np.array_equal(found, c.masks[list(targets)])
                frames = media.load_frames(ref.frames, range(6)).astype(int)
                assert np.abs(frames - c.frames).mean() < 8
            else:
                asked += 1
                s = c.scene.shapes[[f"the {s.colour} {s.kind}" for s in c.scene.shapes].index(ref.extra["answer"])]
                assert ref.extra["options"][ref.extra["answer_index"]] == f"the {s.colour} {s.kind}"
            heard = audio.load_audio(ref.audio)[: len(c.sound)]
            assert np.corrcoef(heard, c.sound[: len(heard)])[0, 1] > 0.98
        assert asked


def edit(path, change) -> None:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    change(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_folder_keys(copy):
    tree = copy("folder")
    path = tree / "train.jsonl"
    cases = [
        ({"vidoe": "x"}, "unknown key 'vidoe'"),
        ({"question": "and?"}, "one of the keys"),
        ({"start": 1.0}, "'masks' goes with an expression about the whole video"),
        ({"masks": None, "start": 2.0, "end": 1.0}, "expected 0 <= start < end"),
        ({"video": "videos/none.mp4"}, "none.mp4 is missing"),
        ({"video": "../x.mp4"}, "leaves the dataset's root"),
        ({"audio": "/etc/passwd"}, "leaves the dataset's root"),
        ({"options": ["only one"]}, "expected 2 to 10 options"),
        ({"options": ["one", "two"], "answer": "C"}, "is not a letter of the 2 options"),
        ({"options": ["one", "two"], "answer": "three"}, "is none of the options"),
    ]
    original = path.read_bytes()
    for change, message in cases:
        path.write_bytes(original)
        edit(path, lambda rows, change=change: rows[0].update(change))
        with pytest.raises(InputError, match=message) as error:
            folder.open(str(tree))
        assert "train.jsonl item 1" in str(error.value)
    path.write_bytes(original)
    edit(path, lambda rows: rows[0].update({"audio": None}))
    assert folder.open(str(tree))[0].audio is None
    edit(path, lambda rows: rows[0].update({"id": rows[1]["id"]}))
    with pytest.raises(InputError, match="is used twice"):
        folder.open(str(tree))


def test_missing_media_are_named_and_counted(copy):
    tree = copy("videomme")
    (tree / "data" / "vid1.mp4").unlink()
    with pytest.raises(InputError, match=r"vid1\.mp4 is missing \(2 of 6 items"):
        videomme.open(str(tree))
    tree = copy("mvbench")
    reader = mvbench.open(str(tree), tasks=("episodic_reasoning",))
    frames = tree / "video" / "tvqa" / "frames_fps3_hq" / "castle_s01"
    count = len(reader[0].frames)
    (frames / "._00001.jpg").write_bytes(b"no image")  # of a system, beside a copied file
    assert len(reader[0].frames) == count
    for frame in frames.iterdir():
        frame.unlink()
    with pytest.raises(BadSample, match="holds no JPEG frames"):
        reader[0]
    (tree / "video" / "FunQA_test" / "test" / "unexpected_action.mp4").rename(tree / "video" / "one.mp4")
    edited = json.loads((tree / "json" / "unexpected_action.json").read_text())
    (tree / "video" / "FunQA_test" / "test" / "other.mp4").symlink_to(tree / "video" / "one.mp4")
    (tree / "json" / "unexpected_action.json").write_text(json.dumps([edited[0], edited[1] | {"video": "other.mp4"}]))
    with pytest.raises(InputError, match=r"unexpected_action\.mp4 is missing"):  # a part of a task is a fault
        mvbench.open(str(tree))
    (tree / "json" / "object_shuffle.json").unlink()
    with pytest.raises(InputError, match=r"object_shuffle\.json is missing"):
        mvbench.open(str(tree))
    with pytest.raises(InputError, match="no task 'nope'"):
        mvbench.open(str(tree), tasks=("nope",))


def test_tables_name_the_column_and_row(copy):
    tree = copy("omnibench")
    path = next((tree / "dataset").iterdir())
    edit(path, lambda rows: rows[1].pop("audio type"))
    with pytest.raises(InputError, match="row 2: the key 'audio type' is missing"):
        omnibench.open(str(tree))
    tree = copy("avhbench")
    rows = json.loads((tree / "QA.json").read_text())
    rows[0]["label"] = "Maybe"
    (tree / "QA.json").write_text(json.dumps(rows))
    with pytest.raises(InputError, match=r"row 0\.label: expected Yes or No, found 'Maybe'"):
        avhbench.open(str(tree))
