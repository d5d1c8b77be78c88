"""A constant map from pairs of integers to their index, looked up in the graph: cuckoo hashing, two probes per key."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int


class PairTable(NamedTuple):
    """Pairs (left, right) in the order given; `slots` holds their indices, -1 where free."""

    slots: Int[Array, "s"]  # a power of two
    left: Int[Array, "m"]
    right: Int[Array, "m"]
    seed: Int[Array, ""]


def _slots(left, right, seed, size: int) -> list:
    """Both slots of each pair: 32-bit multiply-xorshift mixes, the same of NumPy arrays and in the graph."""
    u = np.uint32
    left, right, seed = (x.astype(u) for x in (left, right, seed))
    out = []
    for a, b in ((0x9E3779B1, 0x85EBCA77), (0xC2B2AE3D, 0x27D4EB2F)):
        h = left * u(a) ^ (right + seed) * u(b)
        h = (h ^ (h >> u(15))) * u(0x2C1B3C6D)
        h = (h ^ (h >> u(12))) * u(0x297A2D39)
        h = h ^ (h >> u(15))
        out.append((h & u(size - 1)).astype(np.int32))
    return out


def pair_table(left: np.ndarray, right: np.ndarray) -> PairTable:
    """Build the map on the host; the pairs must differ. Load at most 1/3, so that two probes always do."""
    if not len(left):
        left = right = np.array([-2])  # no id is negative
    left, right = left.astype(np.int32), right.astype(np.int32)
    m = len(left)
    size = 1 << int(np.ceil(np.log2(3 * m)))
    index = np.arange(m, dtype=np.int32)
    for seed in range(1000):
        candidates = np.stack(_slots(left, right, np.array([seed]), size))
        slots = np.full(size, -1, np.int32)
        choice = np.zeros(m, np.int32)
        for _ in range(100):
            chosen_slot = candidates[choice, index]
            loose = slots[chosen_slot] != index
            if not loose.any():
                parts = slots, left, right, np.int32(seed)
                return PairTable(*map(jax.device_put, parts))
            slots[chosen_slot[loose]] = index[loose]
            # Pairs that were overwritten, or lost a tie for the slot, move to their other slot.
            choice[slots[chosen_slot] != index] ^= 1
    raise AssertionError("no cuckoo placement; are there equal pairs?")


def find(table: PairTable, left: Int[Array, "*s"], right: Int[Array, "*s"]) -> Int[Array, "*s"]:
    """Index of each pair, -1 where it is not in the table."""
    index = jnp.full(left.shape, -1, jnp.int32)
    for slot in _slots(left, right, table.seed, table.slots.shape[0]):
        i = table.slots[slot]
        pair = jnp.maximum(i, 0)
        index = jnp.where((i >= 0) & (table.left[pair] == left) & (table.right[pair] == right), i, index)
    return index
