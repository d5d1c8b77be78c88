"""Grounding DINO as grounder, in PyTorch through transformers: boxes from a detector instead of a language model.

Its name is `grounding_dino:DIRECTORY` or `grounding_dino:DIRECTORY@THRESHOLD`; the directory is a checkpoint in Hugging
Face layout (Grounding DINO or MM Grounding DINO) with its processor. Needs `pip install torch`.
"""

import importlib.util
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from omnir1_jax.errors import InputError
from omnir1_jax.files import json_file, regular_file

THRESHOLD = 0.25  # minimum score of a box; the default of transformers
FLAG = "grounding_dino"


def load(settings: str):
    """The grounder of DIRECTORY or DIRECTORY@THRESHOLD.

    Raises:
      InputError: PyTorch is not installed, or the directory does not hold such a model.
    """
    folder, _, threshold = settings.rpartition("@") if "@" in settings else (settings, "", str(THRESHOLD))
    try:
        least = float(threshold)
    except ValueError as error:
        raise InputError(f"{FLAG}: {threshold!r} after the @ is not a number") from error
    if not (pathlib.Path(folder) / "config.json").is_file():
        raise InputError(f"{FLAG}: {folder or 'no directory'} holds no config.json; name it as {FLAG}:DIRECTORY")
    if importlib.util.find_spec("torch") is None:
        raise InputError(f"{FLAG}: needs PyTorch; pip install torch")
    from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

    for file in sorted(pathlib.Path(folder).iterdir()):
        if file.suffix == ".json":
            json_file.read(file, FLAG)
        elif not file.is_dir():
            regular_file.require(file, FLAG)
    try:
        processor = AutoProcessor.from_pretrained(folder)
        model = AutoModelForZeroShotObjectDetection.from_pretrained(folder).eval()
    except (OSError, ValueError) as error:
        raise InputError(f"{FLAG}: {folder} cannot be loaded ({str(error).splitlines()[0]})") from error
    if not hasattr(processor, "post_process_grounded_object_detection"):
        raise InputError(f"{FLAG}: {folder} holds a {type(model).__name__}, which names no boxes for a description")

    def ground(frames: UInt8[np.ndarray, "n h w 3"], descriptions: Sequence[str]) -> list[Float[np.ndarray, "m 4"]]:
        return find(processor, model, least, frames, descriptions)

    return ground


def find(
    processor: Any, model: Any, least: float, frames: UInt8[np.ndarray, "n h w 3"], descriptions: Sequence[str]
) -> list[Float[np.ndarray, "m 4"]]:
    """Boxes with a score above `least`, by descending score; none for an empty description."""
    import torch

    with_text = [n for n, text in enumerate(descriptions) if text.strip(" .")]
    out = [np.zeros((0, 4), np.float32) for _ in descriptions]
    if not with_text:
        return out
    # The model reads lower case that ends in a full stop; further ones would split the description into several.
    texts = [descriptions[n].lower().replace(".", " ").strip() + "." for n in with_text]
    inputs = processor(
        images=[frames[n] for n in with_text], text=texts, return_tensors="pt", padding=True, truncation=True
    )
    with torch.inference_mode():
        output = model(**inputs)
    sizes = [tuple(frames.shape[1:3])] * len(with_text)
    detections = processor.post_process_grounded_object_detection(
        output, inputs.input_ids, threshold=least, target_sizes=sizes
    )
    for n, detection in zip(with_text, detections):
        boxes, scores = detection["boxes"].float().numpy(), detection["scores"].float().numpy()
        out[n] = boxes[np.argsort(-scores, kind="stable")]
    return out
