"""Video files of every kind that people have: each frame, its time, and what is said of those that cannot be read."""

import os
import pathlib

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnir1_jax.data import frame_sampling, media, video_decoder, video_index
from omnir1_jax.data.clips import DecodeConfig, choose_frames
from omnir1_jax.data.refs import BadSample, ClipRef, VideoFile
from tests.data import films

GOP = {"g": "12", "bf": "2"}
QUIET = "log-level=none"
# name: arguments of films.write
KINDS = {
    "b_frames.mp4": dict(options=GOP, sound=films.tone(4)),
    "hevc.mkv": dict(codec="libx265", options={"x265-params": f"{QUIET}:keyint=12:open-gop=1"}),
    "open_gop.ts": dict(options={"g": "12", "bf": "3", "x264-params": "open-gop=1:scenecut=0"}),
    "ten_bit.mp4": dict(codec="libx265", pixels="yuv420p10le", options={"x265-params": QUIET}),
    "hidden_frames.webm": dict(codec="libvpx", options={"auto-alt-ref": "1", "lag-in-frames": "16", "g": "12"}),
    "vp9.webm": dict(codec="libvpx-vp9", options={"g": "12", "cpu-used": "8"}),
    "av1.mp4": dict(codec="libsvtav1", options={"preset": "12"}),
    "prores.mov": dict(codec="prores_ks", pixels="yuv422p10le"),
    "animated.gif": dict(codec="gif", pixels="rgb8"),
    "odd.mkv": dict(pixels="yuv444p", size=(65, 99)),
    "odd_sides.mkv": dict(codec="ffv1", size=(65, 99)),
    "mpeg4.avi": dict(codec="mpeg4", options=GOP),
    "mpeg2.mpg": dict(codec="mpeg2video", rate=25, options=GOP),
    "raw.h264": dict(options=GOP),
    "interlaced.mp4": dict(options={"g": "12", "x264-params": "interlaced=1"}),
    "fragments.mp4": dict(options=GOP, container={"movflags": "frag_keyframe+empty_moov"}),
    "live.webm": dict(codec="libvpx", container={"live": "1"}, ms=range(0, 1320, 33), sound=films.tone(1.3))
    | dict(sound_codec="libopus"),
    "sound_longer.mkv": dict(sound=films.tone(10)),
    "one.mp4": dict(frames=1),
    "two.mp4": dict(frames=2),
    "uneven.mp4": dict(ms=films.UNEVEN_MS, rate=30),
    "uneven.mkv": dict(ms=films.UNEVEN_MS, rate=30, options=GOP),
    "uneven.webm": dict(ms=films.UNEVEN_MS, rate=30, codec="libvpx"),
}  # fmt: skip
DERIVED = ("trimmed.mp4", "turned1.mp4", "turned2.mp4", "turned3.mp4", "joined.ts")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    root = tmp_path_factory.mktemp("films")
    for name, arguments in KINDS.items():
        films.write(root / name, **arguments)
    films.trim(str(root / "b_frames.mp4"), root / "trimmed.mp4", 1.5)
    for quarters in (1, 2, 3):
        films.turned(str(root / "b_frames.mp4"), root / f"turned{quarters}.mp4", quarters)
    # As a receiver records: from the middle of a group of pictures on.
    data = (root / "open_gop.ts").read_bytes()
    (root / "joined.ts").write_bytes(data[len(data) // 3 // 188 * 188 :])
    return root


def read(path, positions=None, **part) -> np.ndarray:
    source = VideoFile(str(path), **part)
    return media.load_frames(source, range(media.frame_count(source)) if positions is None else positions)


@pytest.mark.parametrize("name", [*KINDS, *DERIVED])
def test_frames_are_those_that_pyav_decodes(folder, name):
    path = str(folder / name)
    want = films.decoded(path)
    frames = read(path)
    assert len(frames) == len(want) and all(map(np.array_equal, frames, want))
    assert len(want) >= min(20, KINDS.get(name, {}).get("frames", 40))
    if name in KINDS:
        assert [films.number(frame) for frame in frames] == list(range(len(want)))
    for seed in range(4):
        positions = np.random.default_rng(seed).integers(0, len(want), 3)
        np.testing.assert_array_equal(read(path, positions), frames[positions])
    info = media.video_info(path)
    assert frames.shape[1:3] == (info.height, info.width) and len(info.times) == len(want) + 1


def test_sound_of_another_length_than_the_picture(tmp_path):
    """Most downloads and recordings are so: none is refused, and no frame is lost."""
    fast = {"mp4": ("libx264", "aac"), "mkv": ("libx264", "aac"), "webm": ("libvpx", "libopus")}
    refused = []
    for ending, (codec, sound_codec) in fast.items():
        options = {"preset": "ultrafast"} if codec == "libx264" else {"deadline": "realtime", "cpu-used": "8"}
        for more in np.linspace(-0.1, 0.5, 21):
            path = tmp_path / f"{more:.2f}.{ending}"
            sound = films.tone(2.4 + more)
            films.write(path, 60, codec, rate=25, options=options, sound=sound, sound_codec=sound_codec)
            try:
                assert [films.number(frame) for frame in read(path, [0, 31, 59])] == [0, 31, 59]
                assert media.frame_count(VideoFile(str(path))) == 60
                np.testing.assert_allclose(media.frame_times(VideoFile(str(path))), np.arange(61) / 25)
            except BadSample as error:
                refused.append(error.reason)
    assert not refused


@pytest.mark.parametrize("name", ["uneven.mp4", "uneven.mkv", "uneven.webm"])
def test_times_are_the_frames_own(folder, name):
    path = str(folder / name)
    times = media.frame_times(VideoFile(path))
    np.testing.assert_allclose(times[:-1], np.array(films.UNEVEN_MS) / 1000, atol=1e-3)
    assert times[-1] == pytest.approx(10.99, abs=1e-3)
    np.testing.assert_array_equal(media.uneven_times(VideoFile(path)), times[:-1])
    for part, numbers in (
        (dict(start=9.0, end=10.0), [9, 10]),
        (dict(start=3.6, end=3.9), [4]),
        (dict(end=1.2), [0, 1]),
        (dict(start=10.95), [39]),
    ):
        assert [films.number(frame) for frame in read(path, **part)] == numbers
        shown = media.frame_times(VideoFile(path, **part))
        np.testing.assert_allclose(shown, times[numbers[0] : numbers[-1] + 2])
    with pytest.raises(BadSample, match=r"no frame from 11\.0 s to None s; it has 40 frames, from 0 s to 10\.99 s"):
        read(path, start=11.0)


def test_frames_are_evenly_spaced_in_time(folder):
    ref = ClipRef("d", "s", "qa", "q", VideoFile(str(folder / "uneven.mp4")))
    seen = lambda sampling_, frames=24: choose_frames(
        ref, 40, DecodeConfig(sampling=sampling_, frames=frames), np.random.default_rng(0)
    ).tolist()
    # Two per second: each of the first ten frames stands for two moments, and the last second has two.
    assert len(seen("video")) == 22
    times = np.array(films.UNEVEN_MS) / 1000
    moments = np.linspace(0, times[-1], 22)
    assert np.abs(times[seen("video")] - moments).max() <= 0.5
    assert seen("uniform", 40) == list(range(40))
    assert seen("uniform", 12) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 39]
    assert max(np.diff(times[seen("training")])) <= 1.0 and seen("training")[-1] == 39


@settings(max_examples=30)
@given(st.integers(1, 400), st.floats(1, 60), st.integers(1, 64))
def test_even_times_change_no_choice(total, fps, n):
    """Evenly spaced in time is evenly spaced in number where the rate is constant, but for ties."""
    chosen = frame_sampling.evenly_in_time(np.arange(total) / fps, n)
    assert np.abs(chosen - np.linspace(0, total - 1, n)).max() <= 0.5 + 1e-6


def test_a_constant_rate_keeps_its_numbers(folder):
    for name, fps in (("b_frames.mp4", 10.0), ("sound_longer.mkv", 10.0), ("vp9.webm", 10.0), ("mpeg2.mpg", 25.0)):
        path = str(folder / name)
        assert media.uneven_times(VideoFile(path)) is None and media.frame_rate(VideoFile(path)) == fps
        np.testing.assert_array_equal(media.frame_times(VideoFile(path)), np.arange(41) / fps)
        assert media.frame_count(VideoFile(path, 0.44, 1.07)) == round(1.07 * fps) - round(0.44 * fps) + 1
        np.testing.assert_array_equal(media.frame_times(VideoFile(path, 1.0))[0], 1.0)


def test_a_picture_that_begins_after_the_sound(tmp_path):
    """Its times count from where the sound begins."""
    path = films.write(tmp_path / "late.mkv", frames=20, ms=[1000 + 100 * i for i in range(20)], sound=films.tone(3))
    np.testing.assert_allclose(media.frame_times(VideoFile(path)), 1 + np.arange(21) / 10, atol=0.03)
    assert [films.number(frame) for frame in read(path, start=1.5, end=1.7)] == [5, 6, 7]
    assert films.number(read(path, start=0.0)[0]) == 0
    alone = films.write(tmp_path / "alone.mkv", frames=20, ms=[1000 + 100 * i for i in range(20)])
    np.testing.assert_allclose(media.frame_times(VideoFile(alone)), np.arange(21) / 10)


def test_truncated_is_said_where_more_is_promised(tmp_path):
    front = {"movflags": "faststart"}
    for name, arguments, part in (
        ("front.mp4", dict(options=GOP, container=front), 0.8),
        ("behind.mp4", dict(options=GOP), 0.9),
        ("a.mkv", dict(options=GOP), 0.7),
        ("a.avi", dict(codec="mpeg4"), 0.7),
    ):
        data = pathlib.Path(films.write(tmp_path / f"whole_{name}", **arguments)).read_bytes()
        (tmp_path / name).write_bytes(data[: int(len(data) * part)])
        with pytest.raises(BadSample, match=rf"{name} is truncated: {int(len(data) * part)} of \d+ bytes are there"):
            media.frame_count(VideoFile(str(tmp_path / name)))
    # Nothing is promised: what is there is the film.
    whole = films.write(tmp_path / "live.webm", codec="libvpx", container={"live": "1"}, options={"g": "5"})
    (tmp_path / "part.webm").write_bytes(pathlib.Path(whole).read_bytes()[: int(os.path.getsize(whole) * 0.7)])
    count = len(films.decoded(str(tmp_path / "part.webm")))
    assert 10 < count < 40 and [films.number(f) for f in read(tmp_path / "part.webm")] == list(range(count))


def test_a_codec_that_cannot_be_decoded_is_named(folder, tmp_path):
    data = bytearray((folder / "b_frames.mp4").read_bytes())
    at = data.index(b"avc1", data.index(b"stsd"))
    data[at : at + 4] = b"zzz1"
    (tmp_path / "odd.mp4").write_bytes(data)
    with pytest.raises(BadSample, match=r"odd\.mp4 is encoded with the codec zzz1, which .* cannot decode; convert"):
        read(tmp_path / "odd.mp4")


def test_damage_is_told_of_the_frames_that_it_reaches(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (48, 24, 64, 96), np.uint8)
    with av.open(str(tmp_path / "noise.mp4"), "w") as out:
        stream = out.add_stream("libx264", rate=10, options={"g": "12", "bf": "0", "sc_threshold": "0"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for image in noise[:, 0]:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.stack([image] * 3, -1), format="rgb24")))
        out.mux(stream.encode(None))
    want = films.decoded(str(tmp_path / "noise.mp4"))
    with av.open(str(tmp_path / "noise.mp4")) as film:
        places = [(packet.pos, packet.size) for packet in film.demux(video=0) if packet.size]
    data = bytearray((tmp_path / "noise.mp4").read_bytes())
    for k in (15, 16):
        data[places[k][0] : places[k][0] + places[k][1]] = b"\x55" * places[k][1]
    (tmp_path / "bad.mp4").write_bytes(data)
    for position in (3, 14, 30, 47):
        np.testing.assert_array_equal(read(tmp_path / "bad.mp4", [position])[0], want[position])
    with pytest.raises(BadSample, match=r"bad\.mp4 is damaged: frame 20 cannot be decoded"):
        read(tmp_path / "bad.mp4", [3, 20])


def test_what_is_no_video_is_named(folder, tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "notes.txt").write_text("one more line\n" * 400)
    (tmp_path / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    (tmp_path / "noise.mkv").write_bytes(np.random.default_rng(0).bytes(3000))
    with av.open(str(tmp_path / "voice.m4a"), "w") as out:
        track = out.add_stream("aac", rate=48_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(films.tone(1, channels=1), "fltp", "mono")
        frame.sample_rate, frame.pts = 48_000, 0
        out.mux(track.encode(frame))
        out.mux(track.encode(None))
    for name, reason in (
        ("pipe.mp4", "is not a regular file"),
        ("notes.txt", "is a text, not a video"),
        ("photo.heic", "is a HEIF picture, not a video; convert it to JPEG or PNG"),
        ("noise.mkv", "is not a readable video"),
        ("voice.m4a", "has no picture, only sound"),
        (".", "is not a regular file"),
    ):
        with pytest.raises(BadSample) as caught:
            read(tmp_path / name)
        assert caught.value.reason.endswith(reason)


def test_a_name_with_a_colon_and_a_file_that_changes(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("12:30.mp4").write_bytes((folder / "two.mp4").read_bytes())
    assert [films.number(frame) for frame in read("12:30.mp4")] == [0, 1]
    pathlib.Path("12:30.mp4").write_bytes((folder / "b_frames.mp4").read_bytes())
    assert len(read("12:30.mp4")) == 40


def test_distant_frames_are_reached_without_decoding_all(tmp_path, monkeypatch):
    path = films.write(tmp_path / "long.mkv", 200, options={"g": "10", "preset": "ultrafast"})
    index = video_index.read(path)
    fed, packets = [], video_index.packets
    monkeypatch.setattr(video_index, "packets", lambda *args: (fed.append(p) or p for p in packets(*args)))
    assert [films.number(frame) for frame in read(path, [7, 113, 195])] == [7, 113, 195]
    assert len(fed) < 60
    # A table of keyframes that leads astray is not believed.
    astray = index.keyframes._replace(pts=index.keyframes.pts + 1)
    for keyframes in (astray, index.keyframes._replace(packet=index.keyframes.packet + 30)):
        wrong = index._replace(keyframes=keyframes)
        monkeypatch.setattr(video_decoder.video_index, "read", lambda path, wrong=wrong: wrong)
        assert [films.number(frame) for frame in read(path, [7, 113, 195])] == [7, 113, 195]
