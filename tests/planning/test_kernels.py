"""Attention kernels of a program compiled for a TPU, counted on the pairs that they compute."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

from omnir1_jax.models.attention import Mask, Tree, splash
from omnir1_jax.parallel import jit, make_mesh
from omnir1_jax.planning import hlo, operations, traffic
from omnir1_jax.planning.topology import devices_of


def test_splash_counts_the_blocks_that_its_mask_leaves():
    """A tree of a prompt of one block and four completions of one each: 1 + 4 x 2 blocks of 25, both ways."""
    size, heads, width = 128, 2, 128
    here = SingleDeviceSharding(devices_of("v5e:1x1")[0])
    shape = jax.ShapeDtypeStruct((1, 5 * size, heads, width), jnp.bfloat16, sharding=here)
    tree = Mask(tree=Tree(size, 4, size))

    def loss(q, k, v):
        return splash.attend(q, k, v, mask=tree, scale=1.0).astype(jnp.float32).sum()

    with jax.default_matmul_precision("default"):
        text = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(shape, shape, shape).compile().as_text()
    module = hlo.parse(text)
    block = splash._pairs(splash._TreeMask(tree.tree, 5 * size), 5 * size, 5 * size)
    assert block == 25 * size * size  # one block of 640 has them all
    assert splash._pairs(splash._TreeMask(tree.tree, 5 * size), size, size) == 9 * size * size
    pairs = next(int(operations.KERNEL_PAIRS.search(path)[1]) for path in operations.by_path(module))
    forward, backward = 2 * 2, 2 * (3 + 4)
    assert operations.total(module) == (forward + backward) * heads * width * pairs


@pytest.mark.parametrize("topology", ["v4:2x2x1", "v5e:1x1", "v5p:2x2x1", "v6e:1x1"])
def test_a_kernel_over_memories_counts_its_widths_and_its_keys_for_each_block_of_queries(topology):
    """One head of 256 with values of 64, two blocks of queries, masked keys: compiled for each chip."""
    queries, keys, width, narrow = 2048, 2560, 256, 64
    here = SingleDeviceSharding(devices_of(topology)[0])
    shape = lambda *dims, dtype=jnp.bfloat16: jax.ShapeDtypeStruct((3, *dims), dtype, sharding=here)

    def attend(q, k, v, seen):
        return splash.attend(q, k, v, mask=Mask(keys=seen), scale=1.0)

    given = shape(queries, 1, width), shape(keys, 1, width), shape(keys, 1, narrow), shape(keys, dtype=bool)
    with jax.default_matmul_precision("default"):
        text = jax.jit(attend).lower(*given).compile().as_text()
    module = hlo.parse(text)
    assert operations.total(module) == 3 * 2 * queries * keys * (width + narrow)
    (run,) = (
        run for run in operations.executed(module, operations.Assumptions()) if operations.kernel(run.instruction)
    )
    again = 3 * 2 * keys * (width + narrow)  # bytes of all keys and values, of which the second reading is to come
    assert traffic._read_again(run) == again
    once = run.instruction.bytes + sum(run.computation.instructions[name].bytes for name in run.instruction.operands)
    assert traffic._touched(run) == once + again


def test_a_backward_kernel_reads_queries_and_their_sums_for_each_block_of_keys():
    """Its blocks: queries and gradients of 128 channels in bf16, and two sums in float32, each in eight sublanes."""
    tokens, heads, width = 2048, 2, 128
    here = SingleDeviceSharding(devices_of("v5p:1x1x1")[0])
    shape = jax.ShapeDtypeStruct((1, tokens, heads, width), jnp.bfloat16, sharding=here)

    def loss(q, k, v):
        mask = Mask(tree=Tree(1024, 2, 512))
        return splash.attend(q, k, v, mask=mask, scale=1.0).astype(jnp.float32).sum()

    with jax.default_matmul_precision("default"):
        text = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(shape, shape, shape).compile().as_text()
    (run,) = (
        run
        for run in operations.executed(hlo.parse(text), operations.Assumptions())
        if operations.kernel(run.instruction) == "dkv"
    )
    pairs, _, block = map(int, operations.KERNEL_PAIRS.search(run.path).groups())
    assert pairs // block >= 2 * tokens  # two blocks of keys see the average query
    row = 2 * width * 2 + 2 * 8 * 4  # bytes
    assert traffic._read_again(run) == heads * row * (pairs // block - tokens)


def test_a_scan_reads_each_layer_s_weights_once():
    """Forward over 8 stacked layers on a TPU: the stack is read once a pass, not once a layer."""
    here = SingleDeviceSharding(devices_of("v5e:1x1")[0])
    shape = lambda *dims: jax.ShapeDtypeStruct(dims, jnp.bfloat16, sharding=here)

    def forward(x, w):
        layer = lambda x, w: (jax.nn.silu(x @ w[0]) @ w[1], None)
        return jax.lax.scan(layer, x, w)[0]

    with jax.default_matmul_precision("default"):
        text = jax.jit(forward).lower(shape(8, 1024), (shape(8, 1024, 4096), shape(8, 4096, 1024))).compile().as_text()
    module = hlo.parse(text)
    weights = 2 * 2 * 8 * 1024 * 4096
    moved = traffic.by_phase(module, operations.Assumptions(), ()).memory["other"]
    assert weights <= moved < 1.5 * weights


def test_weights_are_gathered_once_beside_the_products_before():
    """A feed-forward layer of 7B on eight v5e chips: no product is cut into pieces that add to the whole result eight
    times, and a gather that goes on during a product counts once."""
    layers, tokens, width, wide = 2, 8448, 3584, 18944
    mesh = make_mesh({"fsdp": 8}, devices_of("v5e:2x4"))
    place = lambda *axes: jax.sharding.NamedSharding(mesh, jax.P(*axes))
    shape = lambda dims, *axes: jax.ShapeDtypeStruct(dims, jnp.bfloat16, sharding=place(*axes))

    def feed_forward(x, weights):
        layer = lambda x, w: (jax.lax.with_sharding_constraint(x + jax.nn.silu(x @ w[0]) @ w[1], place("fsdp")), None)
        return jax.lax.scan(layer, x, weights)[0]

    weights = shape((layers, width, wide), None, "fsdp"), shape((layers, wide, width), None, None, "fsdp")
    run = jit(feed_forward, mesh)
    with jax.default_matmul_precision("default"):
        module = hlo.parse(run.lower(shape((8, tokens, width), "fsdp"), weights).compile().as_text())
    assert {traffic._part(computation) for computation in module.computations.values()} >= {"start", "between", "done"}
    moved = traffic.by_phase(module, operations.Assumptions(), ())
    gathered, stream, hidden = (2 * layers * n for n in (2 * width * wide, tokens * width, tokens * wide))
    assert moved.links["other"] == gathered
    # Weights are cut out, gathered and read; the result of the first product is written and read.
    assert 2 * gathered + 2 * hidden <= moved.memory["other"] <= 3 * gathered + 4 * hidden + 4 * stream
