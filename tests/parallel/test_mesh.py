"""Meshes and the table of logical axes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from omnir1_jax import parallel
from omnir1_jax.errors import InputError


def test_a_free_axis_takes_what_is_left():
    mesh = parallel.make_mesh({"fsdp": -1, "tensor": 2})
    assert dict(mesh.shape) == {"data": 1, "fsdp": 4, "tensor": 2}


@pytest.mark.parametrize("shape, words", [({"fsdp": 3}, "8 devices"), ({"rows": 2}, "rows"), ({"data": 0}, "positive")])
def test_bad_meshes_name_the_number(shape, words):
    with pytest.raises(InputError, match=words):
        parallel.make_mesh(shape)


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
