"""Checkpoints in and out, configurations, and the released sizes."""

import dataclasses
import json
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from safetensors.numpy import load_file, save_file
from transformers import Sam2Config, Sam2Model, Sam2VideoConfig, Sam2VideoModel

from omnir1_jax.errors import InputError
from omnir1_jax.models import sam2
from omnir1_jax.models.sam2.weights import leaves
from omnir1_jax.parallel import mesh as meshes
from tests.models.sam2 import oracle_sam2 as oracle


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("sam2")
    return {
        "image": oracle.save(oracle.image_model(4), root / "image"),
        "video": oracle.save(oracle.video_model(4, width=128), root / "video"),
    }


def tensors(path):
    out = {}
    for file in sorted(path.glob("*.safetensors")):
        out |= load_file(file)
    return out


@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize("shard", [1 << 40, 100_000])
def test_round_trip_is_bitwise(folders, kind, shard, tmp_path):
    model, params = sam2.load(folders[kind])
    assert model.config.video == (kind == "video")
    sam2.export(tmp_path / "out", model, params, max_shard_bytes=shard)
    before, after = tensors(folders[kind]), tensors(tmp_path / "out")
    assert len(before) == {"image": 261, "video": 369}[kind] and before.keys() == after.keys()
    for name, value in before.items():
        assert value.dtype == after[name].dtype
        np.testing.assert_array_equal(value, after[name], err_msg=name)
    assert (len(list((tmp_path / "out").glob("*.safetensors"))) > 1) == (shard == 100_000)


@pytest.mark.parametrize("kind", ["image", "video"])
def test_transformers_reads_an_export(folders, kind, tmp_path):
    """The exported configuration is complete: transformers builds the same model and finds every tensor."""
    model, params = sam2.load(folders[kind])
    sam2.export(tmp_path / "out", model, params)
    again, report = {"image": Sam2Model, "video": Sam2VideoModel}[kind].from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    before = tensors(folders[kind])
    for name, value in again.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[name], err_msg=name)
    assert sam2.read_config(tmp_path / "out") == sam2.read_config(folders[kind])


def test_bfloat16_and_the_image_part_of_a_video_checkpoint(folders, tmp_path):
    model, params = sam2.load(folders["video"], dtype=jnp.bfloat16, video=False, side=128)
    assert (model.config.dtype, model.config.side, model.config.video) == ("bfloat16", 128, False)
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    sam2.export(tmp_path / "out", model, params)
    assert len(tensors(tmp_path / "out")) == 261
    assert oracle.read_json(tmp_path / "out")["model_type"] == "sam2"
    assert sam2.load(tmp_path / "out")[0].config.dtype == "float32"


def test_parameters_are_laid_out_over_a_mesh(folders):
    mesh = meshes.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    _, params = sam2.load(folders["video"], mesh=mesh)
    kernel = params["memory_attention"]["layers"]["self_attn"]["q_proj"]["kernel"]
    assert kernel.sharding.spec == PartitionSpec(None, "fsdp", "tensor")
    assert params["image_encoder"]["block_0"]["mlp"]["proj_out"]["kernel"].sharding.spec == PartitionSpec(
        "tensor", "fsdp"
    )
    whole = sam2.load(folders["video"])[1]
    jax.tree.map(np.testing.assert_array_equal, params, whole)


def test_tensors_that_do_not_fit_are_listed(folders, tmp_path):
    values = tensors(folders["video"])
    del values["no_object_pointer"]
    values["mask_decoder.iou_token.weight"] = values["mask_decoder.iou_token.weight"][:, :5].copy()
    values["stranger"] = np.zeros(3, np.float32)
    save_file(values, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folders["video"] / "config.json").read_text())
    with pytest.raises(InputError, match=r"stranger.*no_object_pointer.*iou_token.weight \[1, 5\]"):
        sam2.load(tmp_path)


def test_config_files(folders, tmp_path):
    config = oracle.read_json(folders["video"])
    with pytest.raises(InputError, match="no such file"):
        sam2.load(tmp_path)
    for change, message in (
        ({"model_type": "sam"}, "model_type 'sam' is not sam2"),
        ({"max_cond_frame_num": 1}, "conditioning_slots 1"),
        ({"memory_fuser_hidden_act": "silu"}, "fuser_activation 'silu'"),
        ({"memory_attention_hidden_size": 64}, "memory_attention_hidden_size=64"),
        ({"num_maskmem": 0}, "num_maskmem"),
        ({"vision_config": config["vision_config"] | {"num_feature_levels": 2}}, "num_feature_levels 2"),
        ({"mask_downsampler_total_stride": 8}, "total stride"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(InputError, match=message):
            sam2.read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="config.json is not JSON"):
        sam2.read_config(tmp_path)
    for options, message in (
        ({"side": 100}, "side 100: must be a multiple of 64"),
        ({"colour": 1}, "no option colour"),
        ({"object_chunk": 0}, "object_chunk"),
    ):
        with pytest.raises(InputError, match=message):
            sam2.read_config(folders["video"], **options)
    with pytest.raises(InputError, match="float16"):
        sam2.load(folders["video"], dtype=jnp.float16)


def test_configs_survive_the_round_trip():
    """Every field that a checkpoint decides, also away from its default, and transformers' own defaults."""
    for config in (
        sam2.Sam2Config(),
        sam2.Sam2Config(video=False, hiera=sam2.SIZES["base_plus"], side=512, dynamic_multimask=False),
        sam2.Sam2Config(multimask_box=True, pointer_time=False, conditioning_slots=4, memories=5, rope_theta=500.0),
        sam2.Sam2Config(multimask_tracking=False, occlusion_embedding=False, iou_depth=4, top_down_levels=(1, 2, 3)),
        sam2.Sam2Config(multimask_tracking=False, multimask_box=True),
    ):
        assert sam2.from_hf(json.loads(json.dumps(sam2.to_hf(config)))) == config
    for kind, video in ((Sam2VideoConfig, True), (Sam2Config, False)):
        assert sam2.from_hf(kind().to_dict()) == sam2.Sam2Config(video=video)
        assert sam2.from_hf({"model_type": kind.model_type}) == sam2.Sam2Config(video=video)


PUBLISHED = {"tiny": 39.0, "small": 46.1, "base_plus": 80.9, "large": 224.4}  # million parameters


@pytest.mark.parametrize("size", PUBLISHED)
def test_released_sizes_build(size):
    """Abstractly: the published parameter counts, every tensor named once, and names as transformers has them."""
    config = sam2.Sam2Config(hiera=sam2.SIZES[size])
    boxed = sam2.abstract_params(config)
    shapes = nn.meta.unbox(boxed)
    buffers = shapes["image_positional"].size + shapes["prompt_encoder"]["positional"].size
    count = sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))
    assert round((count - buffers) / 1e6, 1) == PUBLISHED[size]
    names = [leaf.name for leaf in leaves(config)]
    blocks = {name.split(".")[3] for name in names if name.startswith("vision_encoder.backbone.blocks.")}
    assert len(names) == len(set(names)) and len(blocks) == sum(config.hiera.blocks)
    named = jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
    assert all(isinstance(x, nn.LogicallyPartitioned) for x in named)


def test_the_side_changes_no_shape(folders):
    config = dataclasses.replace(sam2.read_config(folders["video"]), side=128)
    shapes = lambda tree: jax.tree.map(lambda x: x.shape, tree)
    assert shapes(nn.meta.unbox(sam2.abstract_params(config))) == shapes(sam2.load(folders["video"])[1])
