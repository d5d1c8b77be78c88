"""Checkpoints: bitwise round trips against the safetensors library, sharded and not, and one error for bad ones."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict
from safetensors.torch import load_file, save_file

from omnir1_jax.errors import InputError
from omnir1_jax.models import hf_checkpoint as ck
from omnir1_jax.parallel import make_mesh, named_sharding

SHAPES = {
    "embed": {"embedding": (11, 6)},
    "layers": {
        "q": {"kernel": (3, 6, 2, 4), "bias": (3, 2, 4)},
        "o": {"kernel": (3, 2, 4, 6)},
        "norm": {"scale": (3, 6)},
    },
    "head": {"kernel": (6, 11)},
    "conv1d": {"kernel": (3, 4, 5)},
    "conv2d": {"kernel": (3, 2, 4, 5)},
    "up": {"kernel": (2, 2, 4, 5)},
    "patch": {"kernel": (3, 2, 2, 4)},
}
LEAVES = (
    ck.Leaf("embed.weight", ("embed", "embedding")),
    *(
        leaf
        for i in range(3)
        for leaf in (
            ck.Leaf(f"blocks.{i}.q.weight", ("layers", "q", "kernel"), i, ck.HEADS_OUT),
            ck.Leaf(f"blocks.{i}.q.bias", ("layers", "q", "bias"), i, ck.FLAT),
            ck.Leaf(f"blocks.{i}.o.weight", ("layers", "o", "kernel"), i, ck.HEADS_IN),
            ck.Leaf(f"blocks.{i}.norm.weight", ("layers", "norm", "scale"), i),
        )
    ),
    ck.Leaf("head.weight", ("head", "kernel"), layout=ck.TRANSPOSED),
    ck.Leaf("conv1d.weight", ("conv1d", "kernel"), layout=ck.CONV1D),
    ck.Leaf("conv2d.weight", ("conv2d", "kernel"), layout=ck.CONV2D),
    ck.Leaf("up.weight", ("up", "kernel"), layout=ck.CONV_TRANSPOSE2D),
    ck.Leaf("up.twin", ("up", "kernel"), layout=ck.CONV_TRANSPOSE2D),
    ck.Leaf("patch.weight", ("patch", "kernel"), layout=ck.OUT_LAST),
)


def abstract(dtype=jnp.float32):
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, dtype), SHAPES, is_leaf=lambda s: isinstance(s, tuple))


def tensors(dtype, prefix=""):
    """A random torch state dict that fits LEAVES."""
    generator, shapes, out = torch.Generator().manual_seed(0), flatten_dict(SHAPES), {}
    for leaf in LEAVES:
        shape = ck.leaf_shape(leaf, shapes[leaf.path])
        out[prefix + leaf.name] = torch.randn(shape, generator=generator).to(dtype)
    out[prefix + "up.twin"] = out[prefix + "up.weight"].clone()
    return out


def bits(tensor):
    return tensor.contiguous().view(torch.uint8).numpy()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("prefix, shard", [("", 10**9), ("thinker.", 400)])
def test_round_trip_is_bitwise(tmp_path, dtype, prefix, shard):
    state = tensors(dtype, prefix)
    save_file(state | {"talker.weight": torch.ones(3)}, tmp_path / "model.safetensors")
    params = ck.load_params(tmp_path, LEAVES, abstract(), prefixes=("", "thinker."), ignore=("talker.*",))
    # The stacked kernels really are what torch's linear computes.
    x = torch.randn(5, 6).to(dtype).float()
    ours = np.einsum("bd,dhk->bhk", x.numpy(), np.asarray(params["layers"]["q"]["kernel"][1], np.float32))
    theirs = (x @ state[prefix + "blocks.1.q.weight"].float().T).view(5, 2, 4)
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-4, atol=1e-5)
    ck.save_params(tmp_path / "out", LEAVES, params, prefix=prefix, max_shard_bytes=shard, files={"a.json": b"{}"})
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert (len(files) > 3) == (shard == 400), files
    back = {}
    for file in files:
        back |= load_file(tmp_path / "out" / file)
    assert back.keys() == state.keys()
    assert (tmp_path / "out" / "a.json").read_bytes() == b"{}"
    for name, tensor in state.items():
        assert back[name].dtype == tensor.dtype and back[name].shape == tensor.shape
        np.testing.assert_array_equal(bits(back[name]), bits(tensor), err_msg=name)
    again = ck.load_params(tmp_path / "out", LEAVES, abstract(), prefixes=(prefix,))
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_dtype_and_sharding_are_the_callers(tmp_path):
    state = tensors(torch.float32)
    save_file(state, tmp_path / "x.safetensors")
    mesh = make_mesh({"fsdp": 2, "tensor": 4})
    rules = (("embed", "fsdp"), ("heads", "tensor"))

    def sharding(path, shape):
        names = [None] * (len(shape.shape) - 1) + ["embed"]
        return named_sharding(mesh, names, shape.shape, rules)

    shardings = jax.tree_util.tree_map_with_path(sharding, abstract())
    params = ck.load_params(tmp_path / "x.safetensors", LEAVES, abstract(), dtype=jnp.bfloat16, shardings=shardings)
    kernel = params["layers"]["o"]["kernel"]
    assert kernel.dtype == jnp.bfloat16
    assert kernel.addressable_shards[0].data.shape == (3, 2, 4, 3)
    expected = state["blocks.2.o.weight"].to(torch.bfloat16).float().T.reshape(2, 4, 6)
    np.testing.assert_array_equal(np.asarray(kernel[2], np.float32), expected.numpy())


def test_one_error_names_everything_that_does_not_fit(tmp_path):
    state = tensors(torch.float32)
    del state["blocks.1.norm.weight"]
    state["blocks.0.q.weight"] = torch.ones(8, 5)
    state["head.weight"] = torch.ones(11, 6, dtype=torch.int32)
    state |= {f"extra.{i:02d}": torch.ones(1) for i in range(12)}
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(InputError) as error:
        ck.load_params(tmp_path, LEAVES, abstract())
    message = str(error.value)
    assert "missing tensors (1): blocks.1.norm.weight" in message
    assert "misshapen tensors (2): blocks.0.q.weight [8, 5] instead of [8, 6], head.weight I32" in message
    assert "unknown tensors (12): extra.00" in message and "and 4 more" in message and "extra.09" not in message
    assert "\n" not in message


def test_twins_must_agree(tmp_path):
    state = tensors(torch.float32)
    state["up.twin"] = state["up.twin"] + 1
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"up\.twin"):
        ck.load_params(tmp_path, LEAVES, abstract())


def test_broken_files_are_one_clear_error(tmp_path):
    good = tmp_path / "good"
    good.mkdir()
    save_file(tensors(torch.float32), good / "model.safetensors")
    raw = (good / "model.safetensors").read_bytes()
    header = int.from_bytes(raw[:8], "little")
    cases = {
        "empty": b"",
        "short": raw[:4],
        "header": raw[: 8 + header // 2],
        "data": raw[:-1],
        "json": raw[:8] + b"!" + raw[9:],
        "huge": (2**62).to_bytes(8, "little") + raw[8:],
        "offsets": raw.replace(b'"data_offsets":[0,', b'"data_offsets":[4,', 1),
    }
    for name, content in cases.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(content)
        with pytest.raises(InputError, match=r"model\.safetensors"):
            ck.load_params(tmp_path / name, LEAVES, abstract())
    with pytest.raises(InputError, match="no such checkpoint"):
        ck.load_params(tmp_path / "absent", LEAVES, abstract())
    (tmp_path / "bare").mkdir()
    with pytest.raises(InputError, match="holds neither"):
        ck.load_params(tmp_path / "bare", LEAVES, abstract())


@pytest.mark.parametrize(
    "index, complaint",
    [
        ({"weight_map": {"a": "../good/model.safetensors"}}, "not a file of this directory"),
        ({"weight_map": {"a": "/etc/passwd"}}, "not a file of this directory"),
        ({"weight_map": {"a": 3}}, "not a file of this directory"),
        ({"weight_map": {"a": "model-2.safetensors"}}, "model-2.safetensors is missing"),
        ({"weight_map": {"a": "model-1.safetensors"}}, "does not hold 'a'"),
        ({"weights": {}}, "not an index"),
        ([], "not a JSON object"),
    ],
)
def test_a_bad_index_is_one_clear_error(tmp_path, index, complaint):
    save_file({"b": torch.ones(1)}, tmp_path / "model-1.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=complaint):
        ck.load_params(tmp_path, LEAVES, abstract())


def test_a_failed_save_leaves_nothing(tmp_path):
    save_file(tensors(torch.float32), tmp_path / "x.safetensors")
    params = ck.load_params(tmp_path / "x.safetensors", LEAVES, abstract())

    def fails_on_data(p):
        if any(p.strides):  # not the probe for the shape
            raise RuntimeError("disk full")
        return p

    broken = ck.Layout("broken", ck.SAME.to_params, fails_on_data)
    leaves = [*LEAVES[:-1], ck.Leaf("patch.weight", ("patch", "kernel"), layout=broken)]
    before = sorted(tmp_path.iterdir())
    with pytest.raises(RuntimeError, match="disk full"):
        ck.save_params(tmp_path / "out", leaves, params)
    assert sorted(tmp_path.iterdir()) == before


def test_a_table_that_does_not_cover_the_parameters_is_refused(tmp_path):
    save_file(tensors(torch.float32), tmp_path / "x.safetensors")
    for leaves in (LEAVES[1:], LEAVES[:2] + LEAVES[3:], LEAVES[:1] + LEAVES[2:]):
        with pytest.raises(ValueError, match="the table of leaves"):
            ck.load_params(tmp_path / "x.safetensors", leaves, abstract())
