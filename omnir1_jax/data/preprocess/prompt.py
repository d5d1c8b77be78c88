"""One conversation with its media as one unpadded prompt: ids, positions, cells and mel spectrograms."""

import numbers
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8
from transformers import PreTrainedTokenizerBase

from omnir1_jax.data import audio, frame_sampling, media
from omnir1_jax.data.preprocess import mel, pixels, tokens
from omnir1_jax.data.preprocess.settings import SAMPLE_RATE, STOCK_BUDGET, STOCK_SIZES, PixelBudget, Sizes
from omnir1_jax.data.refs import AudioBytes, AudioFile, ImageBytes, ImageFiles, VideoAudio, VideoFile
from omnir1_jax.errors import InputError
from omnir1_jax.models.qwen_omni import layout

DEFAULT_FPS = 2.0


class Prompt(NamedTuple):
    """One conversation as arrays, in prompt order and without padding.

    Attributes:
      tokens: ids with every placeholder expanded.
      positions: TMRoPE ids (time, height, width) of each token.
      next_position: the id of the first token after the prompt.
      cells: the images' and videos' pixels, two frames per cell.
      grids: (frame pairs, rows, columns) of each image and video in patches.
      mels: spectrogram of each audio, those of videos included.
      pad: the id to pad with.
    """

    tokens: Int[np.ndarray, " s"]
    positions: Int[np.ndarray, "3 s"]
    next_position: int
    vision_index: Int[np.ndarray, " s"]
    audio_index: Int[np.ndarray, " s"]
    cells: UInt8[np.ndarray, "n 2 cell cell 3"]
    grids: Int[np.ndarray, "m 3"]
    mels: list[Float[np.ndarray, "_ bins"]]
    pad: int


class _Seen(NamedTuple):
    """An image or a video: its cells, its grid, and the seconds from pair to pair."""

    cells: UInt8[np.ndarray, "n 2 cell cell 3"]
    grid: tuple[int, int, int]
    seconds: float


def prepare(
    messages: Sequence[tokens.Message],
    tokenizer: PreTrainedTokenizerBase,
    *,
    sizes: Sizes = STOCK_SIZES,
    budget: PixelBudget = STOCK_BUDGET,
    add_generation_prompt: bool = True,
) -> Prompt:
    """Turns a conversation into one prompt, equal to what transformers' Qwen2_5OmniProcessor makes of it.

    A message is `{"role": ..., "content": ...}`; its content is a text or a list of items:
      `{"type": "text", "text": ...}`;
      `{"type": "image", "image": array, PIL image, path or ImageFiles/ImageBytes of one}`;
      `{"type": "video", "video": frames [t, h, w, 3] or a list of them, path or source, "fps": of the frames}`, where
        a file is sampled at `fps` (2 by default; 4 to 768 frames, even) and a list of frames is used unchanged;
        with `"audio"` the video's sound is interleaved with it;
      `{"type": "audio", "audio": waveform with "sample_rate": 16000, or path or source}`.
    Images and videos may carry `min_pixels` and `max_pixels`, videos `total_pixels`, in place of the budget's.

    Raises:
      InputError: naming the message and item, for anything that cannot be used.
      BadSample: a file that cannot be decoded.
    """
    ids = tokens.token_ids(tokenizer)
    seen: dict[str, list[_Seen]] = {"image": [], "video": []}
    order, mels, audio_items, paired = [], [], [], []
    for name, item in tokens.items(messages):
        kind = item["type"]
        name = f"{name} ({kind})"
        if kind == "image":
            seen["image"].append(_image(item, name, sizes, budget))
            order.append(seen["image"][-1])
        elif kind == "video":
            seen["video"].append(_video(item, name, sizes, budget))
            order.append(seen["video"][-1])
            wave, rate = _sound(item["audio"], item, name) if item.get("audio") is not None else (None, None)
            paired.append(None if wave is None else len(mels))
            if wave is not None:
                mels.append(mel.log_mel(wave, sample_rate=rate, bins=sizes.mel_bins, name=name))
        elif kind == "audio":
            wave, rate = _sound(item["audio"], item, name)
            if wave is None:
                raise InputError(f"{name}: the video has no audio track")
            audio_items.append(len(mels))
            mels.append(mel.log_mel(wave, sample_rate=rate, bins=sizes.mel_bins, name=name))
    with_sound = any(index is not None for index in paired)
    if with_sound and None in paired:
        raise InputError(
            f"video {paired.index(None)} of the prompt has no sound while another has: the model's positions know "
            "only prompts whose videos all have sound, or none; give the sound as an audio item instead"
        )
    audio_lengths = [layout.audio_tokens(len(medium)) for medium in mels]
    count = lambda medium: layout.grid_cells(medium.grid, sizes.merge)
    runs = {
        "image": [np.full(count(medium), ids.image, np.int32) for medium in seen["image"]],
        "video": [
            np.full(count(medium), ids.video, np.int32)
            if index is None
            else _talking(medium, audio_lengths[index], ids, sizes)
            for medium, index in zip(seen["video"], paired)
        ],
        "audio": [np.full(audio_lengths[index], ids.audio, np.int32) for index in audio_items],
    }
    text = tokens.chat_text(messages, template=tokenizer, add_generation_prompt=add_generation_prompt)
    token_ids = tokens.expand(tokenizer(text)["input_ids"], ids, runs)[None]
    mask = np.ones(token_ids.shape, bool)
    grids = {kind: np.array([medium.grid for medium in seen[kind]], np.int32).reshape(-1, 3) for kind in seen}
    positions, following = layout.rope_index(
        token_ids,
        mask,
        ids=ids,
        image_grids=grids["image"],
        video_grids=grids["video"],
        seconds_per_grid=np.array([medium.seconds for medium in seen["video"]], np.float32),
        audio_lengths=np.array([len(medium) for medium in mels], np.int32),
        use_audio_in_video=with_sound,
        position_id_per_second=sizes.position_id_per_second,
        seconds_per_chunk=sizes.seconds_per_chunk,
        merge=sizes.merge,
    )
    vision_index, audio_index = layout.media_index(token_ids, mask, ids)
    no_cells = np.zeros((0, 2, sizes.cell_pixels, sizes.cell_pixels, 3), np.uint8)
    return Prompt(
        tokens=token_ids[0],
        positions=positions[0],
        next_position=int(following[0]),
        vision_index=vision_index[0],
        audio_index=audio_index[0],
        cells=np.concatenate([no_cells, *(medium.cells for medium in order)]),
        grids=np.array([medium.grid for medium in order], np.int32).reshape(-1, 3),
        mels=mels,
        pad=ids.pad,
    )


def _limits(item: tokens.Item, name: str, low: int, high: int) -> tuple[int, int]:
    low, high = item.get("min_pixels", low), item.get("max_pixels", high)
    _positive(name, min_pixels=low, max_pixels=high)
    if low > high:
        raise InputError(f"{name}: min_pixels must be at most max_pixels, got {low} and {high}")
    return low, high


def _positive(name: str, **values: Any) -> None:
    for key, value in values.items():
        if not isinstance(value, numbers.Real) or not 0 < value < float("inf"):
            raise InputError(f"{name}: {key} must be a positive number, got {value!r}")


def _image(item: tokens.Item, name: str, sizes: Sizes, budget: PixelBudget) -> _Seen:
    source = item["image"]
    if isinstance(source, str):
        source = ImageFiles((source,), (source,))
    if isinstance(source, ImageFiles | ImageBytes):
        if len(source) != 1:
            raise InputError(f"{name}: an image is one picture, got {len(source)}; give them as a video")
        source = media.load_frames(source, [0], sample_id=name)[0]
    low, high = _limits(item, name, budget.image_min, budget.image_max)
    return _see([pixels.rgb(source, name)], name, sizes, low, high, 0.0)


def _video(item: tokens.Item, name: str, sizes: Sizes, budget: PixelBudget) -> _Seen:
    source, fps = item["video"], item.get("fps", DEFAULT_FPS)
    _positive(name, fps=fps)
    if isinstance(source, str):
        source = VideoFile(source)
    if isinstance(source, VideoFile):
        total, rate = media.frame_count(source, name), media.frame_rate(source, name)
        times = media.uneven_times(source, name)
        indices = frame_sampling.video_frame_indices(total, rate, times, sampled_fps=fps)
        source = media.load_frames(source, indices, sample_id=name)
    elif isinstance(source, ImageFiles | ImageBytes):
        source = media.load_frames(source, range(len(source)), sample_id=name)
    if not isinstance(source, np.ndarray | list | tuple) or (
        isinstance(source, np.ndarray) and source.ndim not in (3, 4)
    ):
        raise InputError(f"{name}: a video is [frames, height, width, 3], a list of frames or a file")
    if not len(source):
        raise InputError(f"{name} has no frames")
    frames = [pixels.rgb(frame, f"{name}, frame {i}") for i, frame in enumerate(source)]
    shapes = {frame.shape[:2] for frame in frames}
    if len(shapes) > 1:
        raise InputError(f"{name}: its frames differ in size ({', '.join(f'{h} x {w}' for h, w in sorted(shapes))})")
    low, high = _limits(item, name, budget.video_min, budget.video_max)
    total = item.get("total_pixels", budget.video_total)
    if total is not None:
        _positive(name, total_pixels=total)
    limits = PixelBudget(video_min=low, video_max=high, video_total=total)
    return _see(frames, name, sizes, low, limits.frame_max(len(frames)), 2 / fps)


def _see(frames: list[np.ndarray], name: str, sizes: Sizes, low: int, high: int, seconds: float) -> _Seen:
    height, width = pixels.smart_resize(
        *frames[0].shape[:2], min_pixels=low, max_pixels=high, factor=sizes.cell_pixels, name=name
    )
    cells = pixels.cells([pixels.resize(frame, height, width) for frame in frames], sizes.cell_pixels)
    patch = sizes.cell_pixels // sizes.merge
    return _Seen(cells, ((len(frames) + 1) // 2, height // patch, width // patch), seconds)


def _sound(source: Any, item: tokens.Item, name: str) -> tuple[np.ndarray | None, int | None]:
    """(waveform, sampling rate); no waveform for a video file without a track that does not need one."""
    if isinstance(source, str):
        source = AudioFile(source)
    if isinstance(source, AudioFile | AudioBytes | VideoAudio):
        return audio.load_audio(source, sample_id=name), SAMPLE_RATE
    if not isinstance(source, np.ndarray):
        raise InputError(f"{name}: audio must be a waveform [samples] with its sample_rate, or a file")
    return source, item.get("sample_rate")


def _talking(video: _Seen, audio_length: int, ids: tokens.TokenIds, sizes: Sizes) -> Int[np.ndarray, " s"]:
    """Ids of a video with its sound: pieces of 2 s of each in turn, between the sound's start and end tokens."""
    pairs = video.grid[0]
    cells = layout.grid_cells(video.grid, sizes.merge)
    times = np.repeat(np.arange(pairs), cells // pairs) * video.seconds * sizes.position_id_per_second
    size = int(sizes.position_id_per_second * sizes.seconds_per_chunk)
    pieces = layout.interleave(times, np.arange(audio_length), size)
    kinds = [np.full(end - first, ids.audio if sound else ids.video) for sound, first, end in pieces]
    return np.concatenate([[ids.audio_start], *kinds, [ids.audio_end]]).astype(np.int32)
