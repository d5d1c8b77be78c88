"""The files that transformers' `Qwen2_5OmniProcessor.from_pretrained` reads beside a tokenizer's.

A released checkpoint brings its own; these are for a thinker of other sizes, made from nothing but its config.
"""

import json
from collections.abc import Mapping

from omnir1_jax.files import json_file
from omnir1_jax.models.qwen_omni.config import ThinkerConfig
from omnir1_jax.models.qwen_omni.vision import MEAN, STD

HOP, FFT, SAMPLE_RATE, SECONDS = 160, 400, 16000, 300  # of the mel spectrogram; Whisper's
MIN_PIXELS, MAX_IMAGE, MAX_FRAME = 4, 16384, 768  # in cells; the released model's

# Every medium is one placeholder between its start and end; a conversation without a system message gets one.
CHAT_TEMPLATE = """\
{%- set spelled = {
    'image': '<|vision_bos|><|IMAGE|><|vision_eos|>',
    'video': '<|vision_bos|><|VIDEO|><|vision_eos|>',
    'audio': '<|audio_bos|><|AUDIO|><|audio_eos|>'} -%}
{%- if messages[0]['role'] != 'system' -%}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for item in message['content'] -%}
{{- item['text'] if item['type'] == 'text' else spelled[item['type']] -}}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def files(config: ThinkerConfig) -> dict[str, bytes]:
    """`processor_config.json` and `chat_template.jinja`, by name.

    Pixels of images and frames are limited in cells as the released model's are; pass `size` to the processor where a
    run had limits of its own.
    """
    vision, cell = config.vision, config.vision.cell_pixels**2
    pictures = dict(
        do_convert_rgb=True,
        do_normalize=True,
        do_rescale=True,
        do_resize=True,
        image_mean=[round(float(x), 8) for x in MEAN],
        image_std=[round(float(x), 8) for x in STD],
        merge_size=vision.spatial_merge_size,
        patch_size=vision.patch_size,
        resample=3,  # bicubic
        rescale_factor=1 / 255,
        temporal_patch_size=vision.temporal_patch_size,
    )
    edges = lambda max_cells: {"size": {"shortest_edge": MIN_PIXELS * cell, "longest_edge": max_cells * cell}}
    processor = dict(
        processor_class="Qwen2_5OmniProcessor",
        image_processor={"image_processor_type": "Qwen2VLImageProcessor", **pictures, **edges(MAX_IMAGE)},
        video_processor={
            "video_processor_type": "Qwen2VLVideoProcessor",
            **pictures,
            **edges(MAX_FRAME),
            "cap_pixels_per_frame": False,
            "do_sample_frames": False,
            "max_frames": 768,
            "min_frames": 4,
        },
        feature_extractor=dict(
            feature_extractor_type="WhisperFeatureExtractor",
            chunk_length=SECONDS,
            dither=0.0,
            feature_size=config.audio.num_mel_bins,
            hop_length=HOP,
            n_fft=FFT,
            n_samples=SECONDS * SAMPLE_RATE,
            nb_max_frames=SECONDS * SAMPLE_RATE // HOP,
            padding_side="right",
            padding_value=0.0,
            return_attention_mask=False,
            sampling_rate=SAMPLE_RATE,
        ),
    )
    text = json.dumps(processor, indent=2, sort_keys=True) + "\n"
    return {"processor_config.json": text.encode(), "chat_template.jinja": CHAT_TEMPLATE.encode()}


def with_processor(config: ThinkerConfig, present: Mapping[str, bytes]) -> dict[str, bytes]:
    """Files of a checkpoint, with a processor's where they have none."""
    added = files(config)
    if "processor_config.json" in present or "preprocessor_config.json" in present:
        del added["processor_config.json"]
    tokenizer = json_file.parse_object(present.get("tokenizer_config.json", b"{}"), "tokenizer_config.json")
    templated = any(name.startswith("chat_template.") for name in present) or tokenizer.get("chat_template")
    if templated:
        del added["chat_template.jinja"]
    return {**present, **added}
