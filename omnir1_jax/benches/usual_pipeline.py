"""The evaluation of video segmentation as it is usually written: PyTorch, transformers' generate, SAM 2's session.

Both language model calls are batched: System 1 over the clips of a batch, System 2 over all their keyframes. Prompts
are padded on the left, answers read on the host.
"""

import json
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Num, UInt8
from safetensors.torch import load_file
from transformers import (
    PreTrainedTokenizerBase,
    Qwen2_5OmniThinkerForConditionalGeneration,
    Sam2VideoConfig,
    Sam2VideoModel,
)
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

from omnir1_jax.data import frame_sampling, media
from omnir1_jax.data.clips import DecodedClip, decode
from omnir1_jax.data.preprocess import pixels, tokens
from omnir1_jax.errors import InputError
from omnir1_jax.inference.samples import Benchmark
from omnir1_jax.models.qwen_omni.sample import Sampling
from omnir1_jax.models.qwen_omni.vision import MEAN, STD
from omnir1_jax.models.sam2.pixels import MEAN as SAM_MEAN
from omnir1_jax.models.sam2.pixels import STD as SAM_STD
from omnir1_jax.rl.config import StepConfig
from omnir1_jax.systems import prompts
from omnir1_jax.tasks.examples import ExampleConfig

TIED = {"prompt_encoder.shared_embedding.positional_embedding"}


class Usual(NamedTuple):
    """Both models, and the settings that both pipelines share."""

    thinker: Any
    sam2: Any
    tokenizer: PreTrainedTokenizerBase
    task: Benchmark
    step: StepConfig
    grounding: Sampling


class Answered(NamedTuple):
    """The results of one clip; boxes in pixels of the video by keyframe."""

    completion: str
    boxes: Mapping[int, Sequence[tuple[float, ...]]]
    masks: Bool[np.ndarray, "t h w"]


def load(
    thinker: str, sam2: str, tokenizer: PreTrainedTokenizerBase, task: Benchmark, step: StepConfig, grounding: Sampling
) -> Usual:
    """Both models in float32 from directories in Hugging Face layout."""
    return Usual(load_thinker(thinker), load_sam2(sam2), tokenizer, task, step, grounding)


def load_thinker(folder: str) -> Qwen2_5OmniThinkerForConditionalGeneration:
    """The thinker in float32."""
    omni = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(pathlib.Path(folder), dtype=torch.float32)
    return omni.eval()


def load_sam2(folder: str) -> Sam2VideoModel:
    """SAM 2 in float32, as `Sam2VideoModel.from_pretrained` would load it if it supported memories of other than 64
    channels, and global-attention blocks that pool (here: with one window of the frame's size)."""
    model = Sam2VideoModel(Sam2VideoConfig.from_pretrained(folder))
    for layer in model.memory_attention.layers:
        for name in ("k_proj", "v_proj"):
            old = getattr(layer.cross_attn_image, name)
            new = torch.nn.Linear(model.config.memory_encoder_output_channels, old.out_features)
            setattr(layer.cross_attn_image, name, new)
    side = model.config.image_size // 4
    for block in model.vision_encoder.backbone.blocks:
        if not block.window_size and block.query_stride:
            block.window_size = side
        side //= block.query_stride[0] if block.query_stride else 1
    mismatch = model.load_state_dict(load_file(pathlib.Path(folder, "model.safetensors")), strict=False)
    if mismatch.unexpected_keys or set(mismatch.missing_keys) - TIED:
        raise InputError(f"{folder}: not the parameters of SAM 2: {mismatch}")
    model.tie_weights()
    return model.eval()


@torch.inference_mode()
def answer(usual: Usual, positions: Sequence[int]) -> list[Answered]:
    """One batch of the task's items."""
    task, example = usual.task, usual.task.example
    clips = [decode(task.reader[p], task.decode, frame_sampling.generator(task.seed, 0, p)) for p in positions]
    asked = [system1(example, clip) for clip in clips]
    completions = _generate(
        usual, [text for text, _ in asked], [grid for _, grid in asked], "video", usual.step.sampling
    )
    plans = [keyframes(text, len(clip.frames), usual.step) for text, clip in zip(completions, clips)]
    texts, images = [], []
    for clip, plan in zip(clips, plans):
        for frame, description in plan.items():
            text, image = system2(example, clip.frames[frame : frame + 1], description)
            texts.append(text)
            images.append(image)
    answers = iter(_generate(usual, texts, images, "image", usual.grounding) if texts else ())
    results, grounded_images = [], iter(images)
    for position, clip, plan, completion in zip(positions, clips, plans, completions):
        boxes = {}
        for frame in plan:
            _, height, width, _ = next(grounded_images).shape
            scale = np.array([clip.size[1] / width, clip.size[0] / height] * 2, np.float32)
            frame_boxes = [_box(group) for group in _objects(next(answers))[: task.objects]]
            boxes[int(clip.frame_indices[frame])] = [box and tuple(np.asarray(box) * scale) for box in frame_boxes]
        results.append(Answered(completion, boxes, _masks(usual, position, clip, boxes)))
    return results


def _objects(text: str) -> list[dict[str, Any]]:
    """The `{...}` groups of a text as JSON; an empty object for a malformed one."""
    objects = []
    for group in re.findall(r"\{.*?\}", text, re.DOTALL):
        try:
            objects.append(json.loads(group))
        except ValueError:
            objects.append({})
    return objects


def _box(group: Mapping[str, Any]) -> list[float] | None:
    box = group.get("bbox_2d")
    valid = isinstance(box, list) and len(box) == 4 and all(type(value) in (int, float) for value in box)
    return box if valid else None


def keyframes(text: str, frames: int, step: StepConfig) -> dict[int, str]:
    """The first frames that a plan covers, each with the first description for it."""
    covered: dict[int, str] = {}
    answer = re.search(r"<answer>(.*?)</answer>", text, re.DOTALL)
    for group in _objects(answer[1] if answer else "")[: step.limits.groups or None]:
        times = [re.match(r"(\d+):(\d+)\.(\d+)", str(group.get(key))) for key in ("start_time", "end_time")]
        if not all(times) or not isinstance(group.get("description"), str):
            continue
        start, end = ((int(time[1]) * 60 + int(time[2])) * 100 + int(time[3]) for time in times)  # centiseconds
        if start <= end <= 50 * frames:
            for frame in range(min(start // 50, frames - 1), min(end // 50, frames - 1) + 1):
                covered.setdefault(frame, group["description"])
    return {frame: covered[frame] for frame in sorted(covered)[: step.keyframes]}


def system1(example: ExampleConfig, clip: DecodedClip) -> tuple[str, UInt8[np.ndarray, "t h w 3"]]:
    """System 1's prompt and its frames."""
    frames = sized(clip.frames, example.policy_budget.video_min, example.policy_budget.video_max, example)
    text = prompts.render(example.template, query=clip.ref.query)
    content = [{"type": "video", "video": None}, {"type": "text", "text": text}]
    messages = [{"role": "system", "content": example.system}, {"role": "user", "content": content}]
    return tokens.chat_text(messages).replace("<|VIDEO|>", "<|VIDEO|>" * _cells(frames, example)), frames


def system2(
    example: ExampleConfig, frame: UInt8[np.ndarray, "1 h w 3"], description: str
) -> tuple[str, UInt8[np.ndarray, "1 y x 3"]]:
    """System 2's prompt and its frame."""
    image = sized(frame, example.sharp_budget.image_min, example.sharp_budget.image_max, example)
    text = example.grounding.replace("{description}", description.strip().lower())
    return text.replace("<|IMAGE|>", "<|IMAGE|>" * _cells(image, example)), image


def sized(
    frames: UInt8[np.ndarray, "t h w 3"], low: int, high: int, example: ExampleConfig
) -> UInt8[np.ndarray, "t y x 3"]:
    """Frames as the processor resizes them, within `low` to `high` pixels."""
    factor = example.sizes.cell_pixels
    height, width = pixels.smart_resize(*frames.shape[1:3], min_pixels=low, max_pixels=high, factor=factor)
    return np.stack([pixels.resize(frame, height, width) for frame in frames])


def _cells(frames: UInt8[np.ndarray, "t y x 3"], example: ExampleConfig) -> int:
    factor = example.sizes.cell_pixels
    return -(-len(frames) // 2) * (frames.shape[1] // factor) * (frames.shape[2] // factor)


def patches(frames: UInt8[np.ndarray, "t y x 3"], patch: int, merge: int) -> tuple[Float[np.ndarray, "n d"], list[int]]:
    """Patches in the order of transformers' processor, and their grid."""
    clip = (np.concatenate([frames, frames[-1:]]) if len(frames) % 2 else frames).astype(np.float32)
    clip = (clip / 255 - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    grid = [len(clip) // 2, clip.shape[1] // patch, clip.shape[2] // patch]
    t, rows, columns = grid
    pixels_by_patch = clip.reshape(t, 2, rows // merge, merge, patch, columns // merge, merge, patch, 3)
    pixels_by_patch = pixels_by_patch.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)
    return pixels_by_patch.reshape(t * rows * columns, -1), grid


def _generate(
    usual: Usual, texts: Sequence[str], media_of: Sequence[np.ndarray], kind: str, sampling: Any
) -> list[str]:
    """Greedy answers, all prompts in one batch."""
    sizes = usual.task.example.sizes
    patched = [patches(frames, sizes.cell_pixels // sizes.merge, sizes.merge) for frames in media_of]
    values = torch.from_numpy(np.concatenate([values for values, _ in patched]))
    grids = torch.tensor([grid for _, grid in patched])
    inputs = usual.tokenizer(
        list(texts), padding=True, padding_side="left", return_tensors="pt", add_special_tokens=False
    )
    if kind == "video":
        media_inputs = dict(
            pixel_values_videos=values, video_grid_thw=grids, video_second_per_grid=torch.ones(len(texts))
        )
    else:
        media_inputs = dict(pixel_values=values, image_grid_thw=grids)
    token_ids = usual.thinker.generate(
        input_ids=inputs.input_ids,
        attention_mask=inputs.attention_mask,
        **media_inputs,
        use_audio_in_video=False,
        do_sample=False,
        max_new_tokens=sampling.max_tokens,
        eos_token_id=list(sampling.eos),
        pad_token_id=sampling.pad,
    )
    return usual.tokenizer.batch_decode(token_ids[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)


def _masks(
    usual: Usual, position: int, clip: DecodedClip, boxes: Mapping[int, Sequence[Any]]
) -> Bool[np.ndarray, "t h w"]:
    """Masks of boxes tracked through every frame; objects share the frames' features."""
    source, side = usual.task.reader[position].frames, usual.task.side
    count = media.frame_count(source)
    out = np.zeros((count, *clip.size), bool)
    objects = max((len(listed) for listed in boxes.values()), default=0)
    if not any(box is not None for listed in boxes.values() for box in listed):
        return out
    frames = media.load_frames(source, range(count), size=(side, side))
    scale = np.array([side / clip.size[1], side / clip.size[0]] * 2)
    scaled = {frame: [box and np.asarray(box) * scale for box in listed] for frame, listed in boxes.items()}
    object_boxes = [
        {frame: listed[n] for frame, listed in scaled.items() if n < len(listed) and listed[n] is not None}
        for n in range(objects)
    ]
    for _, frame, logits in follow(usual.sam2, frames, object_boxes):
        raised = torch.nn.functional.interpolate(logits, clip.size, mode="bilinear")
        out[frame] |= (raised[0, 0] > 0).numpy()
    return out


def follow(
    sam2: Sam2VideoModel, frames: Num[np.ndarray, "t side side 3"], objects: Sequence[Mapping[int, Any]]
) -> Iterator[tuple[int, int, Float[torch.Tensor, "1 1 y x"]]]:
    """Mask logits as (object, frame, logits) of objects that are boxed on some frames, in pixels of the input; objects
    share the frames' features. One without a box is left out."""
    count, side = frames.shape[:2]
    video = (frames.astype(np.float32) / 255 - np.array(SAM_MEAN, np.float32)) / np.array(SAM_STD, np.float32)
    video, cache = torch.from_numpy(video).permute(0, 3, 1, 2), None
    for n, boxes in enumerate(objects):
        if not boxes:
            continue
        session = Sam2VideoInferenceSession(
            video=video, video_height=side, video_width=side, dtype=torch.float32, max_vision_features_cache_size=count
        )
        cache = session.cache = cache or session.cache
        for frame, box in boxes.items():
            corners = torch.tensor(box, dtype=torch.float32).reshape(1, 1, 2, 2)
            labels = torch.tensor([[[2, 3]]], dtype=torch.int32)
            session.add_point_inputs(session.obj_id_to_idx(0), frame, dict(point_coords=corners, point_labels=labels))
            session.obj_with_new_inputs = [0]
            sam2(session, frame_idx=frame)
        for output in sam2.propagate_in_video_iterator(session, start_frame_idx=0):
            yield n, output.frame_idx, output.pred_masks.float()
