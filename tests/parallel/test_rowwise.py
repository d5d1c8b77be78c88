"""Rows that each device does by itself: the numbers of one device, and nothing moved but the weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from omnir1_jax.parallel import make_mesh
from omnir1_jax.parallel.mesh import BATCH
from omnir1_jax.parallel.rowwise import rowwise


def rounds(weights, x, count):
    """Each row goes through the weights as often as the largest count of its device's rows."""
    once = lambda state: (state[0] + 1, jnp.where((state[0] < count)[:, None], jnp.tanh(state[1] @ weights), state[1]))
    return jax.lax.while_loop(lambda state: state[0] < count.max(), once, (jnp.zeros((), jnp.int32), x))[1]


@pytest.mark.parametrize("shape", [{"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=str)
def test_rows_are_those_of_one_device(shape):
    keys = jax.random.split(jax.random.key(0), 2)
    weights, x = 0.2 * jax.random.normal(keys[0], (16, 16)), jax.random.normal(keys[1], (8, 16))
    count = jnp.arange(8, dtype=jnp.int32)
    want = rounds(weights, x, count)
    mesh = make_mesh(shape)
    put = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))
    with jax.set_mesh(mesh):
        run = jax.jit(lambda *args: rowwise(rounds, *args))
        args = put(weights, "fsdp"), put(x, BATCH), put(count, BATCH)
        np.testing.assert_allclose(run(*args), want, atol=1e-6)
        text = run.lower(*args).compile().as_text()
        moved = [line for line in text.splitlines() if " all-" in line or "collective-permute(" in line]
        assert len(moved) == 1 and "all-gather" in moved[0]
        # Rows that do not divide over the mesh are done as they come.
        np.testing.assert_allclose(
            jax.jit(lambda *a: rowwise(rounds, *a))(weights, x[:3], count[:3]), want[:3], atol=1e-6
        )
    np.testing.assert_array_equal(rowwise(rounds, weights, x, count), want)


@pytest.mark.parametrize("count", [4, 3])
def test_columns_are_cut_over_tensor_where_they_divide(count):
    """Of 2 x 4 devices each has one row in two and, of 4 columns, one; 3 columns stay together."""
    x, y = jax.random.normal(jax.random.key(0), (4, 5)), jax.random.normal(jax.random.key(1), (4, count, 5))
    shapes = []

    def function(scale, x, y):
        shapes.append((x.shape, y.shape))
        return {"product": scale * x[:, None] * y, "sum": (x[:, None] + y).sum(2)}

    with jax.set_mesh(make_mesh({"data": 2, "tensor": 4})):
        got = jax.jit(lambda *args: rowwise(function, *args[:2], columns=args[2:]))(2.0, x, y)
        assert shapes == [((2, 5), (2, count // 4 or count, 5))]
    jax.tree.map(np.testing.assert_allclose, got, function(2.0, x, y))
