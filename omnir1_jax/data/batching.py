"""Static-shape batches: stacked arrays for the device, and what a person or a log wants to know beside them."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from omnir1_jax.data.frame_sampling import Draw
from omnir1_jax.errors import InputError


class Fault(NamedTuple):
    """One sample that was skipped. "dropped" is not a fault of the data and does not count against it."""

    sample_id: str
    reason: str
    kind: Literal["bad", "dropped"]


class Item(NamedTuple):
    """One element of a stream before batching."""

    draw: Draw
    sample_id: str
    query: str
    arrays: Mapping[str, np.ndarray]
    faults: tuple[Fault, ...]
    without_sound: bool


class Batch(NamedTuple):
    """One batch of one family.

    arrays: leading axis = samples. step: the batch's number in the stream. The tuples have one entry per sample;
    `faults` are those met on the way to this batch.
    """

    family: str
    step: int
    arrays: Mapping[str, Any]
    sample_ids: tuple[str, ...]
    queries: tuple[str, ...]
    draws: tuple[Draw, ...]
    faults: tuple[Fault, ...]
    without_sound: int
    tried: int  # samples read for it, skipped ones included


def collate(family: str, items: Sequence[Item]) -> Batch:
    """Stacks the items' arrays.

    Raises InputError naming the first array whose shape or type differs between samples.
    """
    first, arrays = items[0], {}
    for key, example in first.arrays.items():
        if len(items) == 1:
            # Frames are tens of megabytes per sample: a sample alone in its batch is not copied.
            arrays[key] = np.asarray(example)[None]
            continue
        stacked = np.zeros((len(items), *example.shape), example.dtype)
        for i, item in enumerate(items):
            value = item.arrays.get(key)
            if value is None or value.shape != example.shape or value.dtype != example.dtype:
                kind = "missing" if value is None else f"{value.dtype}{list(value.shape)}"
                raise InputError(
                    f"family {family}: array {key!r} is {kind} for {item.sample_id} and {example.dtype}"
                    f"{list(example.shape)} for {first.sample_id}; its transform has to give one static shape"
                )
            stacked[i] = value
        arrays[key] = stacked
    return Batch(
        family,
        -1,
        arrays,
        tuple(item.sample_id for item in items),
        tuple(item.query for item in items),
        tuple(item.draw for item in items),
        tuple(fault for item in items for fault in item.faults),
        sum(item.without_sound for item in items),
        sum(len(item.faults) + 1 for item in items),
    )
