"""Splash attention on TPU behind `dispatch.attend`: masks by blocks, padding by segments, one shard per device."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from omnir1_jax.models.attention.mask import Mask, Tree, tree_allowed
from omnir1_jax.parallel.rules import DEFAULT_RULES, named_sharding

BLOCK = 512
# Queries per block if every key is attended to: all keys and values are read again for each block of queries.
FULL_BLOCK = 1024


@dataclasses.dataclass(frozen=True)
class _TreeMask(masks.Mask):
    """`Tree` for the kernel's set-up: read block by block, the full table is never built."""

    tree: Tree
    size: int  # padded

    @property
    def shape(self) -> tuple[int, int]:
        return self.size, self.size

    def __getitem__(self, index) -> np.ndarray:
        rows, columns = (np.arange(self.size)[i] for i in index)
        return tree_allowed(self.tree, rows[:, None], columns[None])


def attend(
    q: Float[Array, "b s h d"],
    k: Float[Array, "b t k d"],
    v: Float[Array, "b t k c"],
    *,
    mask: Mask,
    scale: float,
    interpret: bool = False,
) -> Float[Array, "b s h c"]:
    """See `dispatch.attend`, which has checked the shapes. Queries without a key give arbitrary finite values.

    On a mesh set with `jax.set_mesh` each device runs the kernel on its rows and heads.

    Args:
      interpret: run the kernel's program on any device, slowly: for tests.
    """
    s, t = q.shape[1], k.shape[1]
    query_block, key_block = (min(BLOCK, 128 * (n // 128)) for n in (s, t))
    if s % FULL_BLOCK == 0 and mask.tree is None and not mask.causal:
        query_block = FULL_BLOCK
    rows, columns = -(-s // query_block) * query_block, -(-t // key_block) * key_block
    if mask.tree is not None:
        # Tokens of the padding come after all others, so that no real one sees them.
        head_mask = _TreeMask(mask.tree, rows)
    elif mask.causal:
        head_mask = masks.CausalMask((rows, columns))
    else:
        head_mask = masks.FullMask((rows, columns))

    # Padding is a segment of its own. Without padding the kernel need not compare segments at all.
    segments = None
    if mask.keys is not None or mask.segments is not None or columns != t:
        segments = jnp.ones(k.shape[:2], jnp.int32) if mask.segments is None else mask.segments.astype(jnp.int32) + 1
        key_segments = segments if mask.keys is None else jnp.where(mask.keys, segments, 0)
        same_tokens = mask.tree is not None or mask.causal or mask.segments is not None  # queries are the keys' tokens
        query_segments = key_segments if same_tokens else jnp.ones(q.shape[:2], jnp.int32)
        segments = kernel.SegmentIds(_pad(query_segments, rows), _pad(key_segments, columns))

    def local(q, k, v, segments):
        blocks = kernel.BlockSizes(
            block_q=query_block,
            block_kv=key_block,
            block_kv_compute=key_block,
            block_q_dkv=min(BLOCK, query_block),
            block_kv_dkv=key_block,
            block_kv_dkv_compute=key_block,
            block_q_dq=min(BLOCK, query_block),
            block_kv_dq=key_block,
        )
        all_heads = masks.MultiHeadMask([head_mask] * q.shape[2])
        run = kernel.make_splash_mha_single_device(all_heads, block_sizes=blocks, interpret=interpret)
        # The name tells a count of the program's operations what the kernel skips and reads again.
        pairs = _pairs(head_mask, query_block, key_block)
        run = jax.named_scope(f"pairs_{pairs}_blocks_{query_block}_{key_block}")(jax.vmap(run))
        by_head = (jnp.swapaxes(_pad(x, n), 1, 2) for x, n in ((q * scale, rows), (k, columns), (v, columns)))
        out = run(*by_head, segments)
        return jnp.swapaxes(out, 1, 2)[:, :s].astype(q.dtype)

    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.are_all_axes_manual:  # the latter: already within a shard_map
        return local(q, k, v, segments)
    # Query heads of one key head stay together, so both are sharded like the key heads.
    spec = named_sharding(mesh, ("batch", None, "kv_heads", None), k.shape, DEFAULT_RULES).spec
    rows_spec = PartitionSpec(spec[0])
    specs = (spec, spec, spec, None if segments is None else kernel.SegmentIds(rows_spec, rows_spec))
    return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=spec, check_vma=False)(q, k, v, segments)


def _pad(x: Array, size: int) -> Array:
    return jnp.pad(x, [(0, 0), (0, size - x.shape[1])] + [(0, 0)] * (x.ndim - 2))


@functools.lru_cache(maxsize=64)
def _pairs(mask: masks.Mask, query_block: int, key_block: int) -> int:
    """Query-key pairs of one head in the blocks that the kernel visits."""
    rows, columns = mask.shape
    block_slice = lambda i, size: slice(i, i + size)
    blocks = [
        (block_slice(i, query_block), block_slice(j, key_block))
        for i in range(0, rows, query_block)
        for j in range(0, columns, key_block)
    ]
    return sum(bool(np.any(mask[block])) for block in blocks) * query_block * key_block
