"""Overlay videos, decoded again: the frames that went in, their number, their time, the sound beside them."""

from fractions import Fraction

import av
import numpy as np
import pytest

from omnir1_jax.errors import InputError
from omnir1_jax.reporting import draw, video

COLOURS = np.array([[200, 40, 40], [40, 180, 60], [40, 60, 200], [120, 120, 120], [230, 230, 230]], np.uint8)


def flat(count: int, height: int = 97, width: int = 131) -> np.ndarray:
    """Frames of one colour each."""
    return np.broadcast_to(COLOURS[np.arange(count) % 5, None, None], (count, height, width, 3)).copy()


def decoded(path) -> tuple[list[np.ndarray], dict]:
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        facts = {
            "codec": stream.codec_context.name,
            "format": stream.codec_context.pix_fmt,
            "rate": stream.average_rate,
            "seconds": float(stream.duration * stream.time_base),
            "audio": [(s.codec_context.name, s.rate, float(s.duration * s.time_base)) for s in file.streams.audio],
        }
        return [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)], facts


def test_frames_come_back_in_number_time_and_colour(tmp_path):
    frames = flat(12)
    path = video.write(tmp_path / "a.mp4", iter(frames), 2.0)
    back, facts = decoded(path)
    assert facts == {"codec": "h264", "format": "yuv420p", "rate": 2, "seconds": 6.0, "audio": []}
    assert len(back) == 12 and back[0].shape == (98, 132, 3)  # sides made even
    for one, other in zip(frames, back):
        assert np.abs(other.astype(int) - one[0, 0]).max() <= 6
    data = path.read_bytes()
    assert 0 < data.find(b"moov") < data.find(b"mdat")  # plays before it is all there
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize("channels", [1, 2])
def test_the_sound_is_there_and_is_the_sound(tmp_path, channels):
    seconds, rate, pitch = 3.0, 16000, 440
    wave = (0.5 * np.sin(2 * np.pi * pitch * np.arange(int(seconds * rate)) / rate)).astype(np.float32)
    sound = wave if channels == 1 else np.stack([wave, 0 * wave])
    path = video.write(tmp_path / "a.mp4", flat(75), 25, sound, rate)
    back, facts = decoded(path)
    assert len(back) == 75 and facts["seconds"] == 3.0
    assert facts["audio"] == [("aac", rate, pytest.approx(seconds, abs=0.1))]
    with av.open(str(path)) as file:
        heard = np.concatenate([frame.to_ndarray() for frame in file.decode(audio=0)], axis=1)
    assert len(heard) == channels
    spectrum = np.abs(np.fft.rfft(heard[0][:rate]))
    assert spectrum.argmax() == pytest.approx(pitch, abs=2)
    assert np.abs(heard[0]).max() == pytest.approx(0.5, abs=0.1)
    assert channels == 1 or np.abs(heard[1]).max() < 0.02


def test_fractional_rates_keep_their_time(tmp_path):
    _, facts = decoded(video.write(tmp_path / "a.mp4", flat(30, 64, 64), Fraction(30000, 1001)))
    assert facts["rate"] == Fraction(30000, 1001) and facts["seconds"] == pytest.approx(1.001, abs=1e-3)
    back, facts = decoded(video.write(tmp_path / "a.mp4", flat(1, 1, 1), 0.5))
    assert len(back) == 1 and facts["seconds"] == 2.0


def test_an_overlay_marks_the_masks_and_enlarges_small_frames(tmp_path):
    frames = np.full((4, 60, 120, 3), 120, np.uint8)
    masks = np.zeros((4, 30, 30), bool)
    masks[:, 10:20, 5:15] = True
    shown = list(video.overlay(frames, masks))
    assert [f.shape for f in shown] == [(240, 480, 3)] * 4  # four times
    expected = np.round((1 - draw.FILL) * 120 + draw.FILL * np.array(draw.PREDICTED))
    np.testing.assert_array_equal(shown[0][120, 160], expected)
    back, _ = decoded(video.write(tmp_path / "a.mp4", shown, 2.0))
    assert np.abs(back[0][120, 160].astype(int) - expected).max() <= 8
    large = np.full((1, 480, 854, 3), 120, np.uint8)
    assert next(iter(video.overlay(large, masks))).shape == (480, 854, 3)


def test_what_cannot_be_written_is_said_and_leaves_nothing(tmp_path, monkeypatch):
    target = tmp_path / "a.mp4"
    two = [np.zeros((8, 8, 3), np.uint8), np.zeros((8, 10, 3), np.uint8)]
    quiet = np.zeros((3, 160), np.float32)
    for words, call in (
        ("at least one frame", lambda: video.write(target, [], 2.0)),
        ("frame 1 is", lambda: video.write(target, two, 2.0)),
        ("is not a valid rate", lambda: video.write(target, two[:1], 0.0)),
        ("3 channels", lambda: video.write(target, two[:1], 2.0, quiet)),
        ("no 12345 Hz", lambda: video.write(target, two[:1], 2.0, quiet[0], 12345)),
        ("no H.264 encoder", lambda: video.h264_encoder(("libnone",))),
    ):
        with pytest.raises(InputError, match=words):
            call()
    monkeypatch.setattr(video, "ENCODERS", ("libnone",))
    with pytest.raises(InputError, match="no H.264 encoder"):
        video.write(target, two[:1], 2.0)
    assert not list(tmp_path.iterdir())
