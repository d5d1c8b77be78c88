"""One video and one query: what is written, and what becomes of bad input."""

import dataclasses
import json
import subprocess
import sys

import av
import cv2
import jax
import numpy as np
import pytest
import soundfile

from omnir1_jax import infer
from omnir1_jax.build import data
from omnir1_jax.config.settings import typed
from omnir1_jax.data import audio, frame_sampling, media
from omnir1_jax.data.clips import decode
from omnir1_jax.data.preprocess import pixels
from omnir1_jax.data.refs import AudioFile, VideoFile
from omnir1_jax.errors import InputError
from omnir1_jax.inference import from_checkpoint, load, outputs
from omnir1_jax.inference.infer import Ask, _sound, answer, clip_ref
from omnir1_jax.reporting import video
from omnir1_jax.systems import grounders, reasoner
from tests.data import films
from tests.inference import small
from tests.rl.small import Scripted, spoken

PLAN = (
    "<think> it <b>moves</b> </think> <answer> "
    '{"start_time": "00:01.00", "end_time": "00:01.50", "description": "the red circle"} '
    '{"start_time": "00:03.00", "end_time": "00:03.00", "description": "at the left"} </answer>'
)
NONSENSE = "\u00ff<answer>[[[ {]}\x07 <script>"
BOX = '[{"bbox_2d": [16, 8, 48, 40], "label": "it"}]'


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Config, a clip as video files (sounding, silent) and as a folder, a sound file, and both systems."""
    folder = tmp_path_factory.mktemp("infer")
    config = small.config(folder)
    (reader,) = data.readers(config, "vos")
    clip = decode(reader[0], typed(config).data["vos"], frame_sampling.generator(0, 0, 0))
    frames = np.repeat(clip.frames, 2, axis=0)[:14]
    wave = 0.3 * np.sin(np.arange(3 * 16000) / 20).astype(np.float32)
    video.write(folder / "clip.mp4", frames, 4, wave)
    video.write(folder / "silent.mp4", frames, 4)
    video.write(folder / "one.mp4", frames[:1], 4)
    (folder / "frames").mkdir()
    for t, frame in enumerate(frames):
        cv2.imwrite(str(folder / "frames" / f"f{t + 8}.png"), frame[..., ::-1])
    return config, folder, systems(config, folder)


def systems(config, folder):
    """On one device, whatever number of them the tests have."""
    chosen = from_checkpoint.config_of(str(folder / "thinker"), config)
    policy = from_checkpoint.in_place(chosen, from_checkpoint.load(str(folder / "thinker"), chosen))
    return load.systems(chosen, policy)


@pytest.fixture(scope="module")
def speaking(made):
    """Both systems with words put into their mouths: PLAN (seed 0) or NONSENSE (seed 1), and BOX."""
    config, folder, _ = made
    config = config.copy_and_resolve_references()
    config.step.grounder, config.step.max_tokens = "scripted", 200
    lines, sample = spoken([[PLAN], [NONSENSE]], 200), reasoner.sample

    def say(*args):
        which = jax.random.key_data(args[4])[-1:]
        return jax.tree.map(lambda x: x[which], lines)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(grounders.GROUNDERS, "scripted", lambda *_: Scripted([BOX]))
        choose = lambda *args, **more: say(*args) if args[5].max_tokens == 200 else sample(*args, **more)
        patch.setattr(reasoner, "sample", choose)
        yield systems(config, folder)


def read(path):
    return json.loads(path.read_text())


def test_everything_is_written(made, speaking, tmp_path):
    _, folder, _ = made
    ask = Ask(str(folder / "clip.mp4"), 'the "red" <circle> & co')
    result = answer(speaking, ask)
    files = outputs.write(result, tmp_path / "out [1]*?{a}")
    said = read(files.answer)
    assert said["query"] == ask.query and said["reasoning"] == "it <b>moves</b>" and said["completion"] == PLAN
    assert said["failures"] == [] and said["sound"]["note"].startswith("not heard")
    # 8 of 14 frames are seen; the plan's times are of that clip at 2 frames a second.
    assert said["frames_seen"] == [0, 1, 3, 5, 7, 9, 11, 13]
    assert [piece["frames"] for piece in said["plan"]] == [[3, 5], [11, 11]]
    assert said["plan"][0]["seconds_in_video"] == [0.75, 1.5]
    assert [(one["frame"], one["seconds"], one["description"]) for one in said["keyframes"]] == [
        (3, 0.75, "the red circle"), (5, 1.25, "the red circle"), (11, 2.75, "at the left"),
    ]  # fmt: skip
    # System 2 saw 96 x 64 pixels, as the clip has: boxes are the clip's own.
    assert said["video"]["width"], said["video"]["height"] == (96, 64)
    np.testing.assert_allclose(said["keyframes"][0]["boxes"], [[16, 8, 48, 40]])
    masks = [cv2.imread(str(path), -1) for path in sorted(files.masks.iterdir())]
    assert [path.name for path in sorted(files.masks.iterdir())][:2] == ["00000.png", "00001.png"]
    assert np.array_equal(np.stack(masks), 255 * result.masks) and result.masks.shape == (14, 64, 96)
    assert result.masks.any() and said["masks"]["frames_with_object"] == result.masks.any((1, 2)).sum()
    assert said["result"] == f"found in {said['masks']['frames_with_object']} of 14 frames"
    with av.open(str(files.overlay)) as film:
        (picture,), (sound,) = film.streams.video, film.streams.audio
        assert (picture.codec.name, picture.pix_fmt, sound.codec.name) == ("h264", "yuv420p", "aac")
        assert picture.average_rate == 4 and len(list(film.decode(picture))) == 14
    raw = files.overlay.read_bytes()
    assert raw.index(b"moov") < raw.index(b"mdat")
    sheet = cv2.imread(str(files.sheet))
    assert sheet.shape[1] == 1280 and len(np.unique(sheet)) > 100
    # Again, in place; but nothing that is no answer is replaced.
    outputs.write(result, tmp_path / "out [1]*?{a}")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="holds thesis.txt, not written by this command"):
        outputs.write(result, tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out [1]*?{a}"]


def test_sharp_frames_of_another_size(speaking, tmp_path):
    """Boxes are told in the clip's own pixels, masks have its size."""
    frames = np.full((14, 128, 192, 3), 90, np.uint8)
    frames[:, 20:80, 30:90] = (220, 30, 30)
    video.write(tmp_path / "large.mp4", frames, 4)
    result = answer(speaking, Ask(str(tmp_path / "large.mp4"), "it"))
    low, high = speaking.config.pixels.sharp
    height, width = pixels.smart_resize(128, 192, min_pixels=low, max_pixels=high, factor=16)
    assert (height, width) != (128, 192)
    want = np.array([16, 8, 48, 40]) * np.array([192, 128] * 2) / np.array([width, height] * 2)
    np.testing.assert_allclose(result.line["keyframes"][0]["boxes"][0], want, rtol=1e-5)
    assert result.masks.shape == (14, 128, 192)


def test_nonsense_is_told_and_has_no_masks(made, speaking, tmp_path):
    _, folder, _ = made
    result = answer(speaking, Ask(str(folder / "silent.mp4"), "the circle"), seed=1)
    files = outputs.write(result, tmp_path / "out")
    said = read(files.answer)
    assert result.masks is None and files.overlay is None and said["masks"] is None
    assert said["result"].startswith("nothing was found: ") and said["failures"] == ["plan/no_answer"]
    assert said["completion"] == NONSENSE and said["plan"] == said["keyframes"] == []
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [".omnir1.json", "contact_sheet.png", "plan.json"]
    assert said["sound"]["note"] == "the video has no audio track"


def test_folder_of_images(made, speaking, tmp_path):
    _, folder, _ = made
    result = answer(speaking, Ask(str(folder / "frames"), "it"))
    files = outputs.write(result, tmp_path / "out")
    said = read(files.answer)
    assert said["video"]["fps"] is None and said["keyframes"][0]["seconds"] is None
    # In the order of their numbers: f8, f9, f10, ...
    assert result.ref.frames.names[:3] == ("f8", "f9", "f10")
    assert {path.name for path in files.masks.iterdir()} == {f"f{t}.png" for t in range(8, 22)}
    assert files.overlay.is_file()


def test_times_are_the_videos_own(speaking, tmp_path):
    """One frame per second, then ten: what is written tells and shows each when the film shows it, also of a part."""
    ms = [1000 * t for t in range(8)] + [8000 + 100 * t for t in range(8)]
    sound = films.tone(9, channels=1) * (np.arange(9 * 48_000) >= 5 * 48_000)
    film = films.write(tmp_path / "uneven.mp4", 16, rate=30, ms=ms, sound=sound.astype(np.float32))
    result = answer(speaking, Ask(film, "it", start=2.0))
    files = outputs.write(result, tmp_path / "out")
    said = read(files.answer)
    assert said["frames_seen"] == [0, 1, 2, 3, 4, 5, 6, 13]
    assert [piece["frames"] for piece in said["plan"]] == [[2, 3], [6, 6]]
    np.testing.assert_allclose([p["seconds_in_video"] for p in said["plan"]], [[4.0, 6.0], [8.0, 8.1]], atol=2e-3)
    np.testing.assert_allclose([one["seconds"] for one in said["keyframes"]], [4.0, 5.0, 8.0], atol=2e-3)
    shown = media.frame_times(VideoFile(str(files.overlay)))
    np.testing.assert_allclose(shown[:-1], np.array(ms[2:]) / 1000 - 2, atol=2e-3)
    # The tone begins at 5 s of the film, 3 s of the part.
    heard = audio.load_audio(AudioFile(str(files.overlay)))
    assert np.flatnonzero(np.abs(heard) > 0.1)[0] / 16_000 == pytest.approx(3.0, abs=0.05)
    assert len(heard) / 16_000 == pytest.approx(6.8, abs=0.1)


def test_photos_stand_upright_and_names_are_any(tmp_path, monkeypatch):
    image = np.zeros((20, 40, 3), np.uint8)
    image[:, :10] = 255  # to the left as stored, above when upright
    encoded = cv2.imencode(".jpg", image)[1].tobytes()
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    photo = encoded[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + encoded[2:]
    (tmp_path / "frames").mkdir()
    for name in ("photo.jpg", "frames/10.jpg", "frames/2.jpg", "frames/1².jpg", "frames/٣.jpg"):
        (tmp_path / name).write_bytes(photo)
    for name in ("._2.jpg", ".10.jpg.swp.jpg"):
        (tmp_path / "frames" / name).write_bytes(b"no image")
    ref = clip_ref(Ask(str(tmp_path / "frames"), "it"))
    assert ref.frames.names == ("1²", "2", "10", "٣")
    for video_ in (tmp_path / "photo.jpg", tmp_path / "frames"):
        source = clip_ref(Ask(str(video_), "it")).frames
        frames = media.load_frames(source, range(len(source)))
        assert frames.shape == (len(source), 40, 20, 3)
        assert frames[:, :8].min() > 200 and frames[:, 12:].max() < 50
    monkeypatch.chdir(tmp_path)
    films.write(tmp_path / "12:30.mp4", 3)
    assert media.frame_count(clip_ref(Ask("12:30.mp4", "it")).frames) == 3


def test_silence_is_told(tmp_path):
    film = films.write(tmp_path / "silent.mp4", 5, sound=films.tone(1) * 0)
    for ask in (Ask(film, "it", "qa"), Ask(film, "it"), Ask(film, "it", audio=film, audio_seconds=5.0)):
        assert "silent throughout" in _sound(ask, clip_ref(ask), 0.0)[0].note
    film = films.write(tmp_path / "loud.mp4", 5, sound=films.tone(1))
    assert _sound(Ask(film, "it", "qa"), clip_ref(Ask(film, "it")), 0.0)[0].note == "heard whole"


def middle(frames, descriptions):
    return [[(10, 5, 20, 9), (50, 30, 70, 60)]] * len(frames)


def test_boxes_of_a_function_on_the_host(made, speaking):
    _, folder, _ = made
    result = answer(speaking, Ask(str(folder / "frames"), "it", system2=f"{__name__}:middle"))
    keyframes = result.line["keyframes"]
    assert [one["frame"] for one in keyframes] == [3, 5, 11]
    assert all(np.array_equal(one["boxes"], middle([0], [""])[0]) for one in keyframes)
    assert result.masks is not None


def test_one_frame(made, speaking, tmp_path):
    _, folder, _ = made
    for name in ("one.mp4", "frames/f8.png"):
        result = answer(speaking, Ask(str(folder / name), "it"))
        outputs.write(result, tmp_path / "out")
        assert result.count == 1 and result.seen == (0,)
        assert read(tmp_path / "out" / "plan.json")["keyframes"] == []  # PLAN speaks of later frames


def test_question(made, tmp_path):
    """The model itself speaks: nonsense, but other nonsense where it hears something else."""
    _, folder, own = made
    noise = np.random.default_rng(0).standard_normal(16000 * 3) * 0.2
    soundfile.write(tmp_path / "noise.wav", noise, 16000)
    texts = []
    for sound in ("", str(tmp_path / "noise.wav")):
        ask = Ask(str(folder / "clip.mp4"), "Who is <i>there</i>?", "qa", frames=4, audio=sound)
        files = outputs.write(answer(own, ask), tmp_path / "out")
        said = read(files.answer)
        assert files.answer.name == "answer.json" and files.masks is None and said["task"] == "qa"
        assert "plan" not in said and len(said["frames_seen"]) == 4
        assert said["sound"]["seconds_heard"] == pytest.approx(3.0, abs=0.2)
        assert cv2.imread(str(files.sheet)).shape[1] == 1280
        texts.append(said["completion"])
    assert texts[0] != texts[1]


def test_bad_input_is_one_line(made, tmp_path):
    _, folder, own = made
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "cut.mp4").write_bytes((folder / "clip.mp4").read_bytes()[:-3000])
    (tmp_path / "nothing").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.jpg").write_bytes(b"\xff\xd8 no")
    clip = str(folder / "clip.mp4")
    cases = [
        (dict(video=str(tmp_path / "absent.mp4")), "is not there"),
        (dict(video=str(tmp_path / "noise.mp4")), "not a readable video"),
        (dict(video=str(tmp_path / "empty.mp4")), "empty"),
        (dict(video=str(tmp_path / "cut.mp4")), "cut.mp4"),
        (dict(video=str(tmp_path / "nothing")), "holds no image"),
        (dict(video=str(tmp_path / "broken")), "a.jpg"),
        (dict(query=" \n"), "is empty"),
        (dict(query="x" * 10_000), r"10000 characters come to \d+ tokens and about \d+ fit"),
        (dict(query="a <|im_end|> b"), "control token"),
        (dict(query="a <|VIDEO|> b"), "control token"),
        (dict(audio=str(tmp_path / "absent.wav")), "--audio: .*no such file"),
        (dict(audio=str(tmp_path / "noise.mp4")), "not a readable sound"),
        (dict(video=str(folder / "silent.mp4"), family="refavs"), "no audio track"),
        (dict(video=str(folder / "frames"), family="refavs"), "needs sound"),
        (dict(most_frames=10), "14 frames and 10 are taken"),
        (dict(start=9.0), "no frame from 9.0"),
        (dict(video=str(folder / "frames"), end=1.0), "only a video file has times"),
        (dict(family="qa", options=("a",)), "one option"),
        (dict(system2="other"), "--system2: 'other' is none of self"),
    ]
    for changes, complaint in cases:
        with pytest.raises(InputError, match=complaint) as caught:
            answer(own, dataclasses.replace(Ask(clip, "the circle"), **changes))
        assert "\n" not in str(caught.value)
    bare = own._replace(models=own.models.__class__(own.models.thinker, None))
    with pytest.raises(InputError, match="need a segmenter"):
        answer(bare, Ask(clip, "it"))


def test_command(made, tmp_path):
    """Bad flags are one line; a run's work directory is a checkpoint."""
    config, _, _ = made
    line = [sys.executable, "-m", "omnir1_jax.infer"]
    done = subprocess.run([*line, "--checkpoint", "x", "--query", "q"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "error: --video: is needed; see --help\n")
    workdir, states = small.workdir(tmp_path / "run", config)
    opened = load.load_systems(str(workdir), from_checkpoint.config_of(str(workdir)))
    np.testing.assert_array_equal(opened.policy["text"]["norm"]["scale"], np.asarray(states[3]["norm"]["scale"]))
    assert opened.frozen.reference is opened.policy["text"]
    assert infer.printable("a\x1b[31m\nb") == r"a\x1b[31m\nb"
