"""transformers' SAM 2 at small sizes with nothing left at a default, and its video session."""

import contextlib
import json

import numpy as np
import torch
from transformers import Sam2Config, Sam2Model, Sam2VideoConfig, Sam2VideoModel
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

torch.set_num_threads(1)


def hf_config(video=False, side=64, width=64, **changes):
    """A small configuration; `changes` replace fields of the backbone, prompt encoder, decoder or top by name."""
    dims = changes.pop("dims", (16, 32, 64, 128))
    back = dict(
        model_type="sam2_hiera_det_model",
        image_size=[side, side],
        hidden_size=dims[0],
        num_attention_heads=1,
        blocks_per_stage=[1, 2, 3, 2],
        embed_dim_per_stage=list(dims),
        num_attention_heads_per_stage=[1, 2, 4, 8],
        window_size_per_stage=[8, 4, 6, 2],
        global_attention_blocks=[4],
        window_positional_embedding_background_size=[7, 7],
    )
    decoder = dict(hidden_size=width, mlp_dim=64, num_attention_heads=4, iou_head_hidden_dim=48)
    top = dict(
        image_size=side,
        memory_attention_hidden_size=width,
        memory_attention_num_layers=2,
        memory_attention_feed_forward_hidden_size=96,
        memory_attention_rope_feat_sizes=[side // 16] * 2,
        memory_encoder_hidden_size=width,
        memory_encoder_output_channels=64,
        mask_downsampler_embed_dim=width,
        memory_fuser_embed_dim=width,
        memory_fuser_intermediate_dim=80,
    )
    for key, value in changes.items():
        owner = next((part for part in (back, decoder) if key in part or key.startswith(("dynamic", "iou"))), top)
        owner = decoder if key.startswith(("dynamic", "iou", "attention_downsample")) else owner
        owner[key] = value
    vision = dict(
        backbone_config=back,
        backbone_channel_list=list(dims[::-1]),
        backbone_feature_sizes=[[side // s] * 2 for s in (4, 8, 16)],
        fpn_hidden_size=width,
    )
    prompt = dict(hidden_size=width, image_size=side, patch_size=16)
    kind = Sam2VideoConfig if video else Sam2Config
    return kind(
        vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder, **(top if video else {})
    )


# So that prompts, masks, occlusion and missing memory can be told from rounding in later frames.
GAINS = {
    "mask_downsampler.final_conv.weight": 3.0,
    "no_object_pointer": 8.0,
    "no_memory_embedding": 8.0,
    "cross_attn_token_to_image.o_proj.weight": 0.2,
}


def randomise(model, seed):
    """Every parameter random, none at zero or one; sizes such that logits are of order 1 to 100."""
    generator = torch.Generator().manual_seed(seed)
    normal = lambda p: torch.randn(p.shape, generator=generator)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                p.copy_(1 + 0.2 * normal(p))
            elif p.ndim >= 2 and name.endswith("weight") and "embed.weight" not in name and "token" not in name:
                p.copy_(1.4 * normal(p) / p[0].numel() ** 0.5)
            else:
                p.copy_(0.3 * normal(p))
            p.mul_(next((gain for end, gain in GAINS.items() if name.endswith(end)), 1.0))
    return model.eval()


def image_model(seed=0, **changes):
    torch.manual_seed(seed)
    return randomise(Sam2Model(hf_config(**changes)), seed)


def video_model(seed=0, **changes):
    torch.manual_seed(seed)
    return randomise(Sam2VideoModel(hf_config(video=True, **changes)), seed)


@contextlib.contextmanager
def presence(model, shift):
    """Adds `shift` to all object scores, so that more or fewer frames are hidden."""
    bias = model.mask_decoder.pred_obj_score_head.proj_out.bias.data
    bias += shift
    try:
        yield
    finally:
        bias -= shift


def save(model, path):
    model.save_pretrained(path)
    return path


def read_json(path):
    return json.loads((path / "config.json").read_text())


@contextlib.contextmanager
def exact_memory():
    """Keeps the session's memories in fp32: rounding to bf16 turns differences of 1e-7 into ones of 1e-4."""
    to = torch.Tensor.to
    torch.Tensor.to = lambda self, *args, **kw: self if torch.bfloat16 in args else to(self, *args, **kw)
    try:
        yield
    finally:
        torch.Tensor.to = to


@torch.no_grad()
def track(model, video, prompts, runs, dtype=torch.float32):
    """The session's logits and scores by frame after `runs`, pairs of (start frame or None, reverse).

    video: [T, S, S, 3] normalised floats. prompts: frame -> boxes [objects, 4] in model pixels. Later runs overwrite.
    """
    pixels = torch.tensor(np.asarray(video)).permute(0, 3, 1, 2).to(dtype)
    side = pixels.shape[-1]
    session = Sam2VideoInferenceSession(video=pixels, video_height=side, video_width=side, dtype=dtype)
    out = {}
    for frame, boxes in prompts.items():
        names = list(range(len(boxes)))
        for name, box in zip(names, boxes, strict=True):
            coords = torch.tensor(np.asarray(box), dtype=dtype).reshape(1, 1, 2, 2)
            labels = torch.tensor([[[2, 3]]], dtype=torch.int32)
            session.add_point_inputs(session.obj_id_to_idx(name), frame, dict(point_coords=coords, point_labels=labels))
        session.obj_with_new_inputs = names
        result = model(session, frame_idx=frame)
        out[frame] = (result.pred_masks[:, 0].float().numpy(), result.object_score_logits.flatten().float().numpy())
    for start, reverse in runs:
        for result in model.propagate_in_video_iterator(session, start_frame_idx=start, reverse=reverse):
            scores = result.object_score_logits.flatten().float().numpy()
            out[result.frame_idx] = (result.pred_masks[:, 0].float().numpy().copy(), scores.copy())
    return out
