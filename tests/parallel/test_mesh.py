"""Meshes and the table of logical axes."""

from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from omnir1_jax import parallel
from omnir1_jax.errors import InputError
from omnir1_jax.parallel import mesh as meshes


def test_a_free_axis_takes_what_is_left():
    mesh = parallel.make_mesh({"fsdp": -1, "tensor": 2})
    assert dict(mesh.shape) == {"slice": 1, "data": 1, "fsdp": 4, "tensor": 2}
    assert parallel.batch_parts(mesh) == 4 and parallel.parts_here(mesh) == (0, 1, 2, 3)


@pytest.mark.parametrize(
    "shape, words",
    [
        ({"fsdp": 3}, "mesh.fsdp: 3 does not divide the 8 devices"),
        ({"data": 4, "tensor": 4}, "mesh.tensor: 4 does not divide the 2 devices that the axes before it leave of 8"),
        ({"slice": 3, "fsdp": -1}, "mesh.slice: 3 does not divide the 8 devices"),
        ({"fsdp": 2, "tensor": 2}, "mesh.fsdp: .* there are 8 devices; set it to 4, or to -1"),
        ({"rows": 2}, "unknown axis rows; the axes are slice, data, fsdp, tensor"),
        ({"data": 0}, "mesh.data: 0 is not positive"),
        ({"data": -1, "fsdp": -1}, "mesh.data: only one axis may be -1, and mesh.fsdp is too"),
    ],
)
def test_bad_meshes_name_the_number(shape, words):
    with pytest.raises(InputError, match=words):
        parallel.make_mesh(shape)


def test_slices_of_the_hardware_lie_along_their_axis():
    devices = [mock.Mock(jax.Device, id=i, platform="tpu", slice_index=i % 2) for i in range(8)]
    assert [[d.id for d in group] for group in meshes._slices(devices, 2)] == [[0, 2, 4, 6], [1, 3, 5, 7]]
    with pytest.raises(InputError, match="mesh.slice: 4, but the devices are of 2 slices; set it to 2"):
        meshes._slices(devices, 4)
    cut = parallel.make_mesh({"slice": 2, "fsdp": -1})
    assert [d.id for d in cut.devices[1].ravel()] == [4, 5, 6, 7]


def test_rules_place_the_named_axes_and_replicate_what_does_not_divide():
    mesh = parallel.make_mesh({"fsdp": 4, "tensor": 2})
    boxed = {
        "kernel": nn.LogicallyPartitioned(jnp.zeros((8, 6)), ("embed", "mlp")),
        "odd": nn.LogicallyPartitioned(jnp.zeros((6, 3)), ("embed", "mlp")),
        "scale": jnp.zeros((5,)),
    }
    shardings = parallel.tree_shardings(mesh, boxed)
    assert shardings["kernel"].spec == jax.P("fsdp", "tensor")
    assert shardings["odd"].spec == jax.P(None, None)
    assert shardings["scale"].spec == jax.P()
    placed = jax.device_put(nn.meta.unbox(boxed)["kernel"], shardings["kernel"])
    assert placed.addressable_shards[0].data.shape == (2, 3)
