"""Frames and sound: exact frames of videos with B-frames, and a named BadSample for whatever is damaged."""

import io
import os
import sys

import av
import cv2
import librosa
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from omnir1_jax.data import audio, media, video_index
from omnir1_jax.data.refs import AudioBytes, AudioFile, BadSample, ImageBytes, ImageFiles, VideoAudio, VideoFile
from tests.data import films

FRAMES, HEIGHT, WIDTH, BITS = 50, 64, 96, 6
RATE = 44_100


def numbered_frame(number):
    """The frame's number as black and white bars: survives lossy coding."""
    bars = [255 * ((number >> b) & 1) for b in range(BITS)]
    return np.repeat(np.array(bars, np.uint8), WIDTH // BITS)[None, :, None].repeat(HEIGHT, 0).repeat(3, 2)


def read_number(frame):
    centres = frame[HEIGHT // 2, WIDTH // BITS // 2 :: WIDTH // BITS, 0]
    return sum(1 << b for b in range(BITS) if centres[b] > 127)


def tone(seconds, rate, frequency=440.0):
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate).astype(np.float32)


def write_video(path, sound=None, layout="stereo"):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"bf": "3", "g": "25", "b-adapt": "0"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        track = container.add_stream("aac", rate=RATE, layout=layout) if sound is not None else None
        for i in range(FRAMES):
            for packet in stream.encode(av.VideoFrame.from_ndarray(numbered_frame(i), format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
        if track is not None:
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound), format="fltp", layout=layout)
            frame.sample_rate = RATE
            frame.pts = 0
            for packet in track.encode(frame) + track.encode():
                container.mux(packet)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("media")
    sound = np.stack([tone(5, RATE), np.zeros(5 * RATE, np.float32)])
    write_video(root / "sound.mp4", sound)
    write_video(root / "silent.mp4")
    rng = np.random.default_rng(0)
    for i in range(4):
        cv2.imwrite(str(root / f"{i}.jpg"), rng.integers(0, 255, (40, 60, 3), np.uint8))
        cv2.imwrite(str(root / f"{i}.png"), rng.integers(0, 255, (40, 60, 3), np.uint8))
    cv2.imwrite(str(root / "other.jpg"), np.zeros((40, 61, 3), np.uint8))
    soundfile.write(root / "a.wav", tone(2, RATE), RATE)
    soundfile.write(root / "stereo16.wav", np.stack([tone(1, 16000), tone(1, 16000, 880)], 1), 16000)
    return root


def images(folder, ending="jpg", n=4):
    names = tuple(str(i) for i in range(n))
    return ImageFiles(tuple(str(folder / f"{i}.{ending}") for i in names), names)


def test_the_video_has_b_frames(folder):
    with av.open(str(folder / "sound.mp4")) as container:
        kinds = {av.video.frame.PictureType(frame.pict_type).name for frame in container.decode(video=0)}
    assert kinds == {"I", "P", "B"}


def test_info(folder):
    source = VideoFile(str(folder / "sound.mp4"))
    info = media.video_info(source.path)
    assert (info.count, info.fps, info.constant, info.height, info.width) == (FRAMES, 10.0, True, HEIGHT, WIDTH)
    np.testing.assert_array_equal(info.times, np.arange(FRAMES + 1) / 10)
    assert media.frame_count(source) == FRAMES and media.frame_rate(source) == 10.0
    part = VideoFile(source.path, 1.0, 2.0)
    assert media.frame_count(part) == 11
    np.testing.assert_array_equal([read_number(f) for f in media.load_frames(part, [0, 10])], [10, 20])
    assert media.frame_count(images(folder)) == 4 and media.frame_rate(images(folder)) is None


@settings(max_examples=20)
@given(indices=st.lists(st.integers(0, FRAMES - 1), min_size=1, max_size=8))
def test_video_frames_are_exact(folder, indices):
    frames = media.load_frames(VideoFile(str(folder / "sound.mp4")), indices)
    assert frames.dtype == np.uint8 and [read_number(f) for f in frames] == indices


def test_image_frames(folder):
    source = images(folder, "png")
    frames = media.load_frames(source, [2, 0, 2])
    for frame, name in zip(frames, (2, 0, 2)):
        np.testing.assert_array_equal(frame[..., ::-1], cv2.imread(str(folder / f"{name}.png")))
    blobs = tuple((folder / f"{i}.png").read_bytes() for i in range(4))
    np.testing.assert_array_equal(media.load_frames(ImageBytes(blobs, source.names), [2, 0, 2]), frames)
    assert media.load_frames(source, np.array([1]), size=(20, 30)).shape == (1, 20, 30, 3)
    half = media.load_frames(source, [1], size=(20, 30))[0]
    blocks = media.load_frames(source, [1])[0].reshape(20, 2, 30, 2, 3).mean((1, 3))
    assert np.abs(half - blocks).max() <= 1


def test_orientation_is_as_stored():
    encoded = cv2.imencode(".jpg", np.zeros((20, 40, 3), np.uint8))[1].tobytes()
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    rotated = encoded[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + encoded[2:]
    assert cv2.imdecode(np.frombuffer(rotated, np.uint8), cv2.IMREAD_COLOR).shape == (40, 20, 3)
    assert media.decode_image(rotated, "x").shape == (20, 40, 3)
    assert media.decode_image(rotated, "x", upright=True).shape == (40, 20, 3)


def test_any_cut_of_an_image_is_seen(folder):
    for name in ("0.jpg", "0.png"):
        data = (folder / name).read_bytes()
        for cut in np.random.default_rng(0).integers(0, len(data) - 2, 60):
            # Older OpenCV fills the missing part with gray, so it is not left to find a cut within the pixels.
            what = "truncated" if cut > len(data) // 2 else "(truncated|empty|not a readable image)"
            with pytest.raises(BadSample, match=f"s7: here is {what}"):
                media.decode_image(data[:cut], "here", "s7")


def test_the_end_of_a_thumbnail_is_not_the_images_end():
    small, large = (cv2.imencode(".jpg", np.full((n, n, 3), 9, np.uint8))[1].tobytes() for n in (8, 64))
    embedded = large[:2] + b"\xff\xe1" + (len(small) + 2).to_bytes(2, "big") + small + large[2:]
    assert media.decode_image(embedded, "x").shape == (64, 64, 3)
    with pytest.raises(BadSample, match="truncated"):
        media.decode_image(embedded[:-20], "x")


def test_bad_images_are_named(folder, tmp_path):
    with pytest.raises(BadSample, match=r"s: .*9\.jpg is missing"):
        media.load_frames(ImageFiles((str(folder / "9.jpg"),), ("9",)), [0], sample_id="s")
    with pytest.raises(BadSample, match=r"other\.jpg is 40x61 in a clip of 40x60"):
        media.load_frames(ImageFiles((str(folder / "0.jpg"), str(folder / "other.jpg")), ("0", "1")), [0, 1])
    with pytest.raises(BadSample, match="frame 4 of 4"):
        media.load_frames(images(folder), [4])
    with pytest.raises(BadSample, match="cannot be read"):
        media.load_frames(ImageFiles((str(tmp_path),), ("0",)), [0])
    with pytest.raises(BadSample, match="no frame"):
        media.load_frames(images(folder), [])


def test_bad_videos_are_named(folder, tmp_path):
    whole = (folder / "sound.mp4").read_bytes()
    cases = {"cut.mp4": whole[: len(whole) // 2], "noise.mp4": bytes(1000), "empty.mp4": b""}
    cases["list.mp4"] = b"#EXTM3U\n#EXTINF:1,\n" + str(folder / "sound.mp4").encode()
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(BadSample, match=rf"s: .*{name}"):
            media.load_frames(VideoFile(str(tmp_path / name)), [FRAMES - 1], sample_id="s")
        with pytest.raises(BadSample, match=rf"s: .*{name}"):
            audio.load_audio(VideoAudio(str(tmp_path / name)), sample_id="s")
    with pytest.raises(BadSample, match="is missing"):
        media.load_frames(VideoFile(str(tmp_path / "no.mp4")), [0])
    with pytest.raises(BadSample, match="no frame from 9"):
        media.frame_count(VideoFile(str(folder / "sound.mp4"), 9.0))
    with pytest.raises(BadSample, match="local disk"):
        media.frame_count(VideoFile("gs://bucket/a.mp4"))


def test_a_video_that_ends_early_is_seen(folder, tmp_path):
    # The index lies in front, so that the cut file still opens and declares all its frames.
    with (
        av.open(str(folder / "silent.mp4")) as source,
        av.open(str(tmp_path / "front.mp4"), "w", options={"movflags": "faststart"}) as target,
    ):
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    whole = (tmp_path / "front.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: int(len(whole) * 0.8)])
    size = int(len(whole) * 0.8)
    with pytest.raises(BadSample, match=rf"cut\.mp4 is truncated: {size} of {len(whole)} bytes are there"):
        media.frame_count(VideoFile(str(tmp_path / "cut.mp4")))


def test_wav_is_librosas(folder):
    for name in ("a.wav", "stereo16.wav"):
        ours = audio.load_audio(AudioFile(str(folder / name)))
        theirs, _ = librosa.load(folder / name, sr=16000, mono=True)
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
        np.testing.assert_array_equal(audio.load_audio(AudioBytes((folder / name).read_bytes())), ours)
    assert ours.dtype == np.float32 and len(ours) == 16000


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_sound_is_resampled_alike_without_librosa(rate, monkeypatch):
    samples = np.random.default_rng(rate).normal(size=rate // 2 + 7).astype(np.float32)
    theirs = audio._resample(samples, rate)
    monkeypatch.setitem(sys.modules, "librosa", None)
    np.testing.assert_array_equal(audio._resample(samples, rate), theirs)


def test_track_of_a_video(folder):
    source = VideoAudio(str(folder / "sound.mp4"))
    sound = audio.load_audio(source)
    expected = tone(5, 16000) / 2  # the other channel is silent
    assert abs(len(sound) - len(expected)) < 1600
    n = min(len(sound), len(expected)) - 4000
    # AAC is lossy, but the tone's place in time and its loudness are right.
    assert np.corrcoef(sound[2000:n], expected[2000:n])[0, 1] > 0.99
    assert np.abs(sound[2000:n]).max() == pytest.approx(0.25, abs=0.02)
    part = audio.load_audio(VideoAudio(source.path, 1.0, 2.5))
    assert len(part) == 24000
    assert np.corrcoef(part, sound[16000:40000])[0, 1] > 0.99


@pytest.mark.parametrize(
    "name, codec, picture",
    [("a.m4a", "aac", None), ("a.mp4", "aac", "libx264"), ("a.mkv", "libopus", "libx264"), ("a.aac", "aac", None)]
    + [("a.webm", "libopus", "libvpx"), ("a.mov", "pcm_s16le", "libx264"), ("a.avi", "pcm_s16le", "mpeg4")],
)
def test_sound_files_are_films_too(tmp_path, name, codec, picture):
    path = tmp_path / name
    if picture is None:
        with av.open(str(path), "w") as out:
            track = out.add_stream(codec, rate=48_000, layout="mono")
            frame = av.AudioFrame.from_ndarray(films.tone(2, channels=1), "fltp", "mono")
            frame.sample_rate, frame.pts = 48_000, 0
            out.mux(track.encode(frame))
            out.mux(track.encode(None))
    else:
        films.write(path, 20, picture, sound=films.tone(2), sound_codec=codec)
    wave = audio.load_audio(AudioFile(str(path)))
    np.testing.assert_array_equal(audio.load_audio(AudioBytes(path.read_bytes())), wave)
    assert abs(len(wave) - 32_000) < 2_000
    spectrum = np.abs(np.fft.rfft(wave[2000:18_000]))
    assert spectrum.argmax() == 440 and spectrum.max() / 8000 == pytest.approx(0.4, abs=0.02)
    if picture is not None:
        np.testing.assert_array_equal(audio.load_audio(VideoAudio(str(path))), wave)


def test_a_film_without_a_track_is_no_sound(folder, tmp_path):
    with pytest.raises(BadSample, match=r"silent\.mp4 has no audio track"):
        audio.load_audio(AudioFile(str(folder / "silent.mp4")))
    (tmp_path / "list.m3u8").write_bytes(b"#EXTM3U\n#EXTINF:1,\n" + str(folder / "sound.mp4").encode())
    with pytest.raises(BadSample, match=r"list\.m3u8 is not a readable sound file"):
        audio.load_audio(AudioFile(str(tmp_path / "list.m3u8")))
    os.mkfifo(tmp_path / "pipe.wav")
    with pytest.raises(BadSample, match=r"pipe\.wav cannot be read"):
        audio.load_audio(AudioFile(str(tmp_path / "pipe.wav")))


def test_no_track_is_said_not_dropped(folder):
    with pytest.raises(BadSample, match=r"s: .*silent\.mp4 has no audio track"):
        audio.load_audio(VideoAudio(str(folder / "silent.mp4")), sample_id="s")
    assert audio.load_audio(VideoAudio(str(folder / "silent.mp4"), required=False)) is None


def test_bad_sounds_are_named(folder, tmp_path):
    data = (folder / "a.wav").read_bytes()
    with pytest.raises(BadSample, match=r"s: .*no\.wav is missing"):
        audio.load_audio(AudioFile(str(tmp_path / "no.wav")), sample_id="s")
    for cut in np.random.default_rng(0).integers(0, len(data) - 2, 40):
        with pytest.raises(BadSample, match=r"truncated|not a readable"):
            audio.load_audio(AudioBytes(data[:cut]))
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(0, np.float32), 16000, format="WAV")
    with pytest.raises(BadSample, match="no sound"):
        audio.load_audio(AudioBytes(buffer.getvalue()))
    buffer = io.BytesIO()
    soundfile.write(buffer, np.array([0, np.nan], np.float32), 16000, format="WAV", subtype="FLOAT")
    with pytest.raises(BadSample, match="not numbers"):
        audio.load_audio(AudioBytes(buffer.getvalue()))
    piped = bytearray(data)
    piped[4:8] = b"\xff\xff\xff\xff"
    assert len(audio.load_audio(AudioBytes(bytes(piped)))) == 32000


@pytest.mark.parametrize("name", ["sound.mp4", "a.wav", "0.jpg", "0.png"])
def test_random_damage_is_never_more_than_a_bad_sample(folder, tmp_path, name):
    whole = (folder / name).read_bytes()
    rng = np.random.default_rng(5)
    path = tmp_path / name
    good = bad = 0
    for _ in range(120):
        data = bytearray(whole)
        # Containers keep their tables at the end or the beginning: that is where damage is worst.
        low, high = [(0, len(data)), (0, 200), (max(0, len(data) - 6000), len(data))][int(rng.integers(3))]
        for _ in range(int(rng.integers(1, 30))):
            data[int(rng.integers(low, min(high, len(data))))] = int(rng.integers(256))
        path.write_bytes(data[: int(rng.integers(len(data)))] if rng.random() < 0.2 else data)
        readers = []
        if name.endswith(("mp4", "wav")):
            source = VideoAudio(str(path)) if name.endswith("mp4") else AudioFile(str(path))
            readers.append(lambda source=source: audio.load_audio(source, sample_id="s"))
        if not name.endswith("wav"):
            frames = VideoFile(str(path)) if name.endswith("mp4") else ImageFiles((str(path),), ("0",))
            readers.append(lambda frames=frames: media.load_frames(frames, [0], sample_id="s"))
        for read in readers:
            video_index._read.cache_clear()
            try:
                read()
                good += 1
            except BadSample as error:
                assert str(error).startswith("s: ") and name in error.reason
                bad += 1
    assert bad > 10 and good + bad in (120, 240)
