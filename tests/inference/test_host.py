"""System 2 as a function on the host: any function, and Grounding DINO at a tiny size with random weights."""

import dataclasses
import json
import re

import numpy as np
import pytest
import torch
from transformers import BertTokenizer, GroundingDinoConfig, GroundingDinoForObjectDetection, GroundingDinoProcessor
from transformers.models.grounding_dino.image_processing_pil_grounding_dino import GroundingDinoImageProcessorPil

from omnir1_jax.data import media, registry, rle
from omnir1_jax.data.synthetic import writers
from omnir1_jax.data.synthetic.world import PRESETS
from omnir1_jax.errors import InputError
from omnir1_jax.inference import benchmark, load
from omnir1_jax.inference.tasks import Options
from omnir1_jax.systems import grounders, segmenters
from omnir1_jax.systems.grounders import grounding_dino
from tests.inference import scripted, small

torch.set_num_threads(1)
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "the", "red", "green", "left", "star", "circle", "one"]
CALLS = []


def ground(frames, descriptions):
    """A box that tells the frame, two where something is at the left, none of a star."""
    CALLS.append((frames.shape, list(descriptions)))
    edges = [int(frame[..., 0].mean()) % 20 for frame in frames]
    boxes = {"Star ": [], "left": [[5, 5, 40, 30], [60, 40, 90, 60]]}
    return [boxes.get(text, [[edge, edge, 60, 50]]) for edge, text in zip(edges, descriptions)]


def wrong(frames, descriptions):
    return [[[1, 2, 3]]] * len(frames)


def masks(frames, descriptions, keyframes):
    """What is reddish, where anything but a star is asked for."""
    assert len(descriptions) == len(keyframes) and max(keyframes) < len(frames)
    return (descriptions != ["Star "]) & (frames[..., 0] > 100)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return scripted.systems(small.config(tmp_path_factory.mktemp("config")))


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("trees") / "mevis"
    writers.mevis(root, PRESETS["toy"], 5, 0)
    return root


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    """A directory in Hugging Face layout, nothing left at a default."""
    folder = tmp_path_factory.mktemp("dino")
    stages = dict(embed_dim=16, depths=[1] * 4, num_heads=[1, 2, 2, 2], window_size=4, image_size=64)
    text = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    sizes = {
        f"{part}_{name}": value
        for part, layers in (("encoder", 1), ("decoder", 2))
        for name, value in (("layers", layers), ("ffn_dim", 32), ("attention_heads", 2))
    }
    config = GroundingDinoConfig(
        backbone_config=dict(model_type="swin", out_features=["stage2", "stage3", "stage4"], **stages),
        text_config=dict(model_type="bert", vocab_size=len(WORDS), max_position_embeddings=64, **text),
        d_model=32, num_queries=12, max_text_len=32, **sizes,
    )  # fmt: skip
    torch.manual_seed(0)
    model = GroundingDinoForObjectDetection(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 1.5 / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 0.3
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(centre + spread * torch.randn_like(parameter))
    model.save_pretrained(folder)
    images = GroundingDinoImageProcessorPil(size=dict(shortest_edge=64, longest_edge=96))
    GroundingDinoProcessor(images, BertTokenizer(vocab={word: n for n, word in enumerate(WORDS)})).save_pretrained(
        folder
    )
    return folder, model


def evaluated(made, out, tree, **changes):
    options = Options("mevis", root=str(tree), batch_size=4, limit=7, **changes)
    (found,) = benchmark.evaluate(made, options, out, quiet=True).values()
    return found, [json.loads(row) for row in (out / "results.jsonl").read_text().splitlines()]


def pictures(out):
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*.png"))}


def test_a_function_gets_keyframes_and_descriptions_and_its_boxes_are_followed(made, tree, tmp_path, monkeypatch):
    scripted.install(monkeypatch, scripted.PLANS)
    CALLS.clear()
    found, lines = evaluated(made, tmp_path / "own", tree, system2=f"{__name__}:ground")
    assert found["system2"] == f"{__name__}:ground" and found["table"]["J"] > 0
    asked = [[one["description"] for one in line["keyframes"]] for line in lines if line["keyframes"]]
    assert [said for _, said in CALLS] == asked and {"the red one", "left", "Star "} <= {
        t for row in asked for t in row
    }
    assert all(shape == (len(said), 64, 96, 3) for shape, said in CALLS)
    boxes = {one["description"]: len(one["boxes"]) for line in lines for one in line["keyframes"]}
    assert boxes == {"the red one": 1, "left": 2, "Star ": 0}
    assert found["failures"]["box/none"] == sum(row == ["Star "] for row in asked)

    with (tmp_path / "boxes.jsonl").open("w") as file:
        for line in lines:
            own = {one["frame"]: one["boxes"] for one in line["keyframes"]}
            file.write(json.dumps({"sample_id": line["sample_id"], "boxes": own}) + "\n")
    again, _ = evaluated(made, tmp_path / "file", tree, system2="file", boxes=str(tmp_path / "boxes.jsonl"))
    assert again["table"] == found["table"] and pictures(tmp_path / "file") == pictures(tmp_path / "own")

    with pytest.raises(InputError, match="rows of .x0, y0, x1, y1. are wanted"):
        evaluated(made, tmp_path / "wrong", tree, system2=f"{__name__}:wrong")


def test_masks_of_text_need_no_boxes(made, tree, tmp_path, monkeypatch):
    """By a function, and by a file of the same masks."""
    scripted.install(monkeypatch, scripted.PLANS)
    segmenter = segmenters.make(f"{__name__}:masks", None)
    own = made._replace(models=dataclasses.replace(made.models, segmenter=segmenter))
    found, lines = evaluated(own, tmp_path / "own", tree)
    assert found["table"]["J"] > 0 and any(line["keyframes"] and line["keyframes"][0]["boxes"] for line in lines)
    refs = {ref.sample_id: ref for ref in registry.open_dataset("mevis", str(tree), "valid_u")}
    with (tmp_path / "masks.jsonl").open("w") as file:
        for line in lines:
            source = refs[line["sample_id"]].frames
            frames = media.load_frames(source, range(media.frame_count(source, "")), sample_id="")
            asked = [one["description"] for one in line["keyframes"]]
            drawn = (
                masks(frames, asked, [one["frame"] for one in line["keyframes"]] or [0] * len(asked)) if asked else []
            )
            made_of = [rle.encode(one) if one.any() else None for one in drawn] or [None] * len(frames)
            file.write(json.dumps({"sample_id": line["sample_id"], "masks": made_of}) + "\n")
    files = dict(system2="file", masks=str(tmp_path / "masks.jsonl"))
    again, _ = evaluated(made, tmp_path / "file", tree, **files)
    assert again["table"] == found["table"] and pictures(tmp_path / "file") == pictures(tmp_path / "own")
    (tmp_path / "masks.jsonl").write_text(json.dumps({"sample_id": lines[0]["sample_id"], "masks": [None]}) + "\n")
    with pytest.raises(InputError, match="has 1 masks, its video"):
        evaluated(made, tmp_path / "short", tree, **files)


def test_grounding_dino_in_an_evaluation(made, tree, dino, tmp_path, monkeypatch):
    scripted.install(monkeypatch, scripted.PLANS)
    _, lines = evaluated(made, tmp_path / "out", tree, system2=f"grounding_dino:{dino[0]}@0.0", keyframes="first")
    boxes = [one["boxes"] for line in lines for one in line["keyframes"]]
    assert boxes and all(len(found) == 8 for found in boxes) and len({str(found) for found in boxes}) > 1


def test_grounding_dino_s_boxes_are_its_model_s(dino):
    """Against the model's raw outputs; a batch says what each says alone."""
    folder, model = dino
    frames = np.random.default_rng(0).integers(0, 255, (3, 48, 80, 3), np.uint8)
    texts = ["The RED star.", " . ", "one circle at the left"]
    every = grounding_dino.load(f"{folder}@0.0")(frames, texts)
    assert [len(found) for found in every] == [12, 0, 12]
    alone = grounding_dino.load(f"{folder}@0.0")(frames[2:], texts[2:])[0]
    np.testing.assert_allclose(alone, every[2], atol=1e-2)

    processor = GroundingDinoProcessor.from_pretrained(folder)
    inputs = processor(images=[frames[0]], text=["the red star."], return_tensors="pt")
    with torch.no_grad():
        said = model(**inputs)
    scores = said.logits[0].sigmoid().max(-1).values.numpy()
    x, y, w, h = said.pred_boxes[0].numpy().T
    corners = np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 1) * [80, 48, 80, 48]
    order = np.argsort(-scores)
    assert np.ptp(scores) > 0.01
    np.testing.assert_allclose(every[0], corners[order], atol=1e-2)
    least = float(np.sort(scores)[6:8].mean())
    few = grounding_dino.load(f"{folder}@{least}")(frames[:1], texts[:1])[0]
    np.testing.assert_allclose(few, corners[order][:5], atol=1e-2)


def test_what_cannot_be_used_is_one_line(dino, tmp_path, monkeypatch):
    for name, complaint in (
        ("nothing", "is none of self, frozen, oracle, file"),
        ("no.such.module:ground", "no.such.module cannot be imported"),
        (f"{__name__}:absent", "has no 'absent'"),
        (f"{__name__}:WORDS", "is neither a grounder nor a function"),
        ("grounding_dino:", "no directory holds no config.json"),
        (f"grounding_dino:{tmp_path}", "holds no config.json"),
        (f"grounding_dino:{dino[0]}@much", "'much' after the @ is not a number"),
    ):
        with pytest.raises(InputError, match=re.escape(complaint)) as caught:
            load.load_systems("toy", None, name)
        assert "\n" not in str(caught.value) and str(caught.value).startswith(("--system2", "grounding_dino"))
    monkeypatch.setattr(grounding_dino.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="needs PyTorch; pip install torch"):
        grounders.make(f"grounding_dino:{dino[0]}@0.1")
