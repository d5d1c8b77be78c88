"""A small tokenizer of the Qwen2.5-Omni family and transformers' own processor around it.

The processor's image and video classes want torchvision, of which they use a resize and a normalise. They get a
stand-in for these, written with what torchvision itself calls (`torch.nn.functional.interpolate` on uint8, bicubic,
antialiased).
"""

import enum
import functools
import importlib
import json
import sys
import types

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, Qwen2_5OmniProcessor, Qwen2Tokenizer, WhisperFeatureExtractor

SPECIAL = ("<|im_start|>", "<|im_end|>")
NAMED = dict(
    image_token="<|IMAGE|>", audio_token="<|AUDIO|>", video_token="<|VIDEO|>", vision_bos_token="<|vision_bos|>",
    vision_eos_token="<|vision_eos|>", audio_bos_token="<|audio_bos|>", audio_eos_token="<|audio_eos|>",
)  # fmt: skip
TEXT = (
    "system user assistant You are a helpful assistant. What is in the video? Find the red circle that moves left.",
    "Der Hund läuft schnell; 穿红色外套的人站在左边。 JSON {\"keyframes\": [1, 2], 'object': \"the man\"}\n\n",
)  # fmt: skip


@functools.cache
def tokenizer(size=400):
    """Byte-level BPE with the special tokens of Qwen2.5-Omni, `size` tokens before them."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trained.train_from_iterator(
        TEXT * 4, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    )
    model = json.loads(trained.to_str())["model"]
    built = Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(pair) for pair in model["merges"]],
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        extra_special_tokens=NAMED,
    )
    built.add_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return built


def save_tokenizer(path):
    """The tokenizer as a directory in the style of a checkpoint; returns the path."""
    tokenizer().save_pretrained(str(path))
    return str(path)


class _Interpolation(enum.Enum):
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    LANCZOS = "lanczos"


def _resize(image, size, interpolation=None, antialias=True):
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    flat = image.reshape(-1, *image.shape[-3:])
    out = torch.nn.functional.interpolate(flat, size=list(size), mode=interpolation.value, antialias=antialias)
    return out.reshape(*image.shape[:-2], *size)


def _normalize(image, mean, std, inplace=False):
    column = lambda values: torch.as_tensor(values, dtype=image.dtype).view(-1, 1, 1)
    return (image - column(mean)) / column(std)


@functools.cache
def vision_classes():
    """transformers' (Qwen2VLImageProcessor, Qwen2VLVideoProcessor)."""
    stand_in = types.ModuleType("torchvision.transforms.v2.functional")
    stand_in.InterpolationMode = _Interpolation
    stand_in.resize, stand_in.normalize = _resize, _normalize
    stand_in.grayscale_to_rgb = lambda video: video if video.shape[-3] == 3 else video.repeat_interleave(3, dim=-3)
    names = ("torchvision", "torchvision.transforms", "torchvision.transforms.v2")
    sys.modules.update({name: types.ModuleType(name) for name in names})
    sys.modules["torchvision.transforms.v2"].functional = stand_in
    sys.modules[stand_in.__name__] = stand_in
    try:
        home = "transformers.models.qwen2_vl"
        images = importlib.import_module(f"{home}.image_processing_qwen2_vl")
        videos = importlib.import_module(f"{home}.video_processing_qwen2_vl")
    finally:
        for name in (*names, stand_in.__name__):
            del sys.modules[name]
    for name in ("transformers.image_processing_backends", "transformers.video_processing_utils"):
        importlib.import_module(name).tvF = stand_in
    backends = importlib.import_module("transformers.image_processing_backends")
    backends.pil_torch_interpolation_mapping = {3: _Interpolation.BICUBIC}
    return images.Qwen2VLImageProcessor, videos.Qwen2VLVideoProcessor


class _Processor(Qwen2_5OmniProcessor):
    def check_argument_for_proper_class(self, argument_name, argument):
        """Without torchvision the names of the proper classes lead to placeholders."""


@functools.cache
def processor():
    """Qwen2_5OmniProcessor with the stock settings."""
    image_class, video_class = vision_classes()
    return _Processor(
        image_processor=image_class(size={"shortest_edge": 4 * 784, "longest_edge": 16384 * 784}),
        video_processor=video_class(
            size={"shortest_edge": 128 * 784, "longest_edge": 768 * 784}, cap_pixels_per_frame=False
        ),
        feature_extractor=WhisperFeatureExtractor(
            feature_size=128, sampling_rate=16000, hop_length=160, chunk_length=300, n_fft=400
        ),
        tokenizer=tokenizer(),
    )


def load_processor(path):
    """`Qwen2_5OmniProcessor.from_pretrained`, part by part: as a whole it asks for torchvision before anything else."""
    image_class, video_class = vision_classes()
    loaded = AutoTokenizer.from_pretrained(path)
    return _Processor(
        image_processor=image_class.from_pretrained(path),
        video_processor=video_class.from_pretrained(path),
        feature_extractor=WhisperFeatureExtractor.from_pretrained(path),
        tokenizer=loaded,
        chat_template=loaded.chat_template,
    )
