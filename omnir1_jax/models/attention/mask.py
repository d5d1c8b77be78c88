"""Attention masks as data: a kernel builds a mask block by block, and the full table is never materialised."""

from typing import NamedTuple

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


class Tree(NamedTuple):
    """Sequence layout `prompt + group * length`: completions see the prompt and themselves, not one another."""

    prompt: int
    group: int
    length: int


@flax.struct.dataclass
class Mask:
    """The conjunction of the given conditions.

    Attributes:
      keys: true for real keys.
      segments: segment numbers, which must be equal for query and key (needs as many queries as keys).
      dense: an arbitrary table.
      causal: whether queries see no later keys (needs as many queries as keys).
      tree: causal within the prompt and within each completion, see `Tree`.
    """

    keys: Bool[Array, "b t"] | None = None
    segments: Int[Array, "b t"] | None = None
    dense: Bool[Array, "#b s t"] | None = None
    causal: bool = flax.struct.field(pytree_node=False, default=False)
    tree: Tree | None = flax.struct.field(pytree_node=False, default=None)


def tree_allowed(tree: Tree, rows, columns):
    """Whether query `rows` may attend to `columns` of a tree; NumPy or JAX integers that broadcast."""
    offset = columns - tree.prompt
    same = (offset < 0) | (offset // tree.length == (rows - tree.prompt) // tree.length)
    return (columns <= rows) & same


def allowed(
    mask: Mask, rows: Int[Array, " s"], keys: int, *, causal: bool
) -> Bool[Array, "b_or_1 {rows.shape[0]} {keys}"] | None:
    """The table of the queries `rows`; None where everything is allowed. Without `causal` that part is left out."""
    columns, parts = jnp.arange(keys), []
    if mask.keys is not None:
        parts.append(mask.keys[:, None])
    if mask.segments is not None:
        parts.append(jnp.take(mask.segments, rows, axis=1, mode="clip")[:, :, None] == mask.segments[:, None])
    if mask.dense is not None:
        parts.append(jnp.take(mask.dense, rows, axis=1, mode="clip"))
    if mask.causal and causal:
        parts.append((columns <= rows[:, None])[None])
    if mask.tree is not None:
        parts.append(tree_allowed(mask.tree, rows[:, None], columns)[None])
    if not parts:
        return None
    table = parts[0]
    for part in parts[1:]:
        table = table & part
    return jnp.broadcast_to(table, (table.shape[0], rows.shape[0], keys))
