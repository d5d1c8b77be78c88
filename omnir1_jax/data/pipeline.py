"""The input pipeline: readers -> shuffled, sharded, decoded, batched, mixed by family, on grain.

Every batch is a pure function of (seed, its number, shard): draws are seeded by (seed, epoch, index) and a bad sample
is replaced by another draw of the same generator's. So a stream is the same for any number of workers, and its state
is a batch number and the counts of skipped samples: small, JSON, exact.
"""

import functools
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import cv2
import grain
import numpy as np
from absl import flags

from omnir1_jax.config.sections import DecodeConfig, Loader
from omnir1_jax.data import batching, frame_sampling
from omnir1_jax.data.batching import Batch, Fault, Item
from omnir1_jax.data.clips import DecodedClip, Unsuitable, decode
from omnir1_jax.data.difficulty import Order
from omnir1_jax.data.frame_sampling import Draw
from omnir1_jax.data.refs import FAMILIES, BadSample, Reader
from omnir1_jax.errors import InputError

# Draws of a training stream: below what grain's lengths, which pass through floats, hold exactly.
_ENDLESS = 2**44
ANY = "any"

Transform = Callable[[DecodedClip], Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Family:
    """One task family of a mixture; its batches hold nothing else.

    readers are concatenated. batch_size counts samples of one host. transform gives the batch's arrays for one clip
    (picklable: a function of a module, or a partial of one). weight: share of batches among families. one_per_clip: an
    item is a clip and a random one of its expressions (video segmentation); otherwise every row is an item.
    family: family of the readers' clips, if it differs from `name` (unique in a mixture); ANY for clips of any family.
    order: order of the items in an epoch; None shuffles them.
    """

    name: str
    readers: tuple[Reader, ...] = field(repr=False)
    batch_size: int
    decode: DecodeConfig
    transform: Transform = field(repr=False)
    weight: float = 1.0
    one_per_clip: bool = True
    family: str = ""
    order: Order | None = field(default=None, repr=False)

    @property
    def kind(self) -> str:
        """The family of the readers' clips."""
        return self.family or self.name


@dataclass(frozen=True)
class PipelineConfig(Loader):
    """worker_buffer: batches ready in each worker.

    A run stops when more than max_bad_share of at least min_samples samples were bad, or max_attempts in a row.
    shard_index, shard_count: which host this is, by default jax.process_index() and jax.process_count().
    parts: in training, which of the `shard_count` equal parts of every batch this host loads, by default the one of its
    index.
    """

    seed: int = 0
    worker_buffer: int = 1
    min_samples: int = 100
    max_attempts: int = 20
    shard_index: int | None = None
    shard_count: int | None = None
    parts: tuple[int, ...] | None = None


def training_dataset(
    families: Sequence[Family],
    config: PipelineConfig,
    resting: Mapping[str, Mapping[int, tuple[int, ...]]] = MappingProxyType({}),
) -> grain.MapDataset:
    """The endless mixture of batches of this host, random access by number.

    An epoch of a family visits each of its items once in a new order, or as its `order` says. A batch is split into
    parts, and every host loads its own: together they are the batch that a single host would load. Families alternate
    by weight in the same order on every host.

    Args:
      resting: items of a family that sit out an epoch; others take their places, each once before any twice.
    """
    _check(families, config)
    mixture = []
    for family in families:
        load = _Loader(family, items(family), config.seed, config.max_attempts)
        resting_items = dict(resting.get(family.name, {}))
        seed = (config.seed, zlib.crc32(family.name.encode()))
        draw = functools.partial(_draw, seed, len(load.items), family.order, resting_items)
        locate = functools.partial(_place, *_parts(config), family.batch_size)
        loaded = grain.MapDataset.range(_ENDLESS).map(locate).map(draw).map(load)
        mixture.append(loaded.batch(family.batch_size, batch_fn=functools.partial(batching.collate, family.name)))
    mixed = grain.MapDataset.mix(mixture, [f.weight for f in families]) if len(mixture) > 1 else mixture[0]
    return mixed.map_with_index(_number)


def shard(config: PipelineConfig) -> tuple[int, int]:
    """(shard_index, shard_count), from jax where the config leaves them open."""
    if config.shard_index is None or config.shard_count is None:
        import jax

        return jax.process_index(), jax.process_count()
    return config.shard_index, config.shard_count


def _parts(config: PipelineConfig) -> tuple[tuple[int, ...], int]:
    """Which parts of a batch this host loads, and how many there are."""
    index, count = shard(config)
    return config.parts or (index,), count


def _place(parts: tuple[int, ...], count: int, rows: int, index: int) -> int:
    """Number among all draws of this host's draw `index`, where it has `rows` rows of every batch."""
    size = rows // len(parts)
    batch, row = divmod(int(index), rows)
    return (batch * count + parts[row // size]) * size + row % size


def items(family: Family) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """The items of an epoch: (reader, positions); one of the positions is drawn."""
    if not family.one_per_clip:
        return tuple((r, (p,)) for r, reader in enumerate(family.readers) for p in range(len(reader)))
    return tuple((r, tuple(group)) for r, reader in enumerate(family.readers) for group in reader.clips())


def _check(families: Sequence[Family], config: PipelineConfig) -> None:
    index, count = shard(config)
    if not 0 <= index < count:
        raise InputError(f"data: shard {index} of {count}; expected an index below the count")
    if not families:
        raise InputError("data: a mixture needs at least one family")
    if len({f.name for f in families}) != len(families):
        raise InputError("data: a family is named twice; give it all its readers at once")
    for family in families:
        if family.kind not in (*FAMILIES, ANY):
            raise InputError(f"data: no family is called {family.kind!r}; there are {', '.join(FAMILIES)}")
        if family.batch_size < 1 or not family.weight > 0:
            raise InputError(f"data: family {family.name}: batch_size and weight have to be positive")
        if not any(len(reader) for reader in family.readers):
            raise InputError(f"data: family {family.name} has no items")
        parts, _ = _parts(config)
        if family.batch_size % len(parts) or not all(0 <= part < count for part in parts):
            raise InputError(f"data: family {family.name}: {family.batch_size} rows are not parts {parts} of {count}")


def _draw(
    seed: tuple[int, ...], n: int, order: Order | None, resting: Mapping[int, tuple[int, ...]], index: int
) -> Draw:
    epoch, position = divmod(int(index), n)
    return Draw(epoch, position, int(_order(seed, n, order, epoch, resting.get(epoch, ()))[position]))


@functools.lru_cache(maxsize=16)
def _order(seed: tuple[int, ...], n: int, order: Order | None, epoch: int, resting: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng((*seed, epoch))
    permutation = rng.permutation(n) if order is None else order.epoch(rng, epoch)
    out = np.isin(permutation, resting)
    if out.any() and not out.all():
        permutation[out] = np.resize(rng.permutation(permutation[~out]), np.count_nonzero(out))
    return permutation


def reach(families: Mapping[str, Sequence[Any]], batch: Batch) -> range:
    """Epochs that the rows of a batch belong to, over all hosts.

    Args:
      families: of `fingerprint`.
    """
    count, rows = families[batch.family][:2]
    first = min(draw.epoch * count + draw.index for draw in batch.draws) // rows * rows
    return range(first // count, (first + rows - 1) // count + 1)


def _number(index: int, batch: Batch) -> Batch:
    return batch._replace(step=int(index))


@dataclass(frozen=True)
class _Loader:
    """From a draw to an item; runs in the workers."""

    family: Family
    items: tuple[tuple[int, tuple[int, ...]], ...] = field(repr=False)
    seed: int
    max_attempts: int

    def __call__(self, draw: Draw) -> Item:
        faults: list[Fault] = []
        for attempt in range(self.max_attempts):
            rng = frame_sampling.generator(self.seed, draw.epoch, draw.index, attempt)
            clip = draw.clip if attempt == 0 else int(rng.integers(len(self.items)))
            reader, positions = self.items[clip]
            position = positions[int(rng.integers(len(positions)))]
            try:
                return self.load(draw._replace(clip=clip), reader, position, rng, tuple(faults))
            except BadSample as error:
                faults.append(fault(error))
        last = "; ".join(f"{f.sample_id}: {f.reason}" for f in faults[-3:])
        raise InputError(f"data: {self.max_attempts} samples of family {self.family.name} in a row are bad: {last}")

    def load(
        self, draw: Draw, reader: int, position: int, rng: np.random.Generator, faults: tuple[Fault, ...] = ()
    ) -> Item:
        ref = self.family.readers[reader][position]
        if self.family.kind not in (ref.family, ANY):
            raise InputError(f"data: {ref.sample_id} is of family {ref.family}, its mixture says {self.family.kind}")
        clip = decode(ref, self.family.decode, rng)
        arrays = dict(self.family.transform(clip))
        return Item(draw, ref.sample_id, ref.query, arrays, faults, clip.without_sound)


def fault(error: BadSample) -> Fault:
    return Fault(error.sample_id, error.reason, "dropped" if isinstance(error, Unsuitable) else "bad")


def fingerprint(families: Sequence[Family], config: PipelineConfig) -> dict[str, Any]:
    """What must be equal for a saved state to resume the same stream. Numbers of workers and hosts may differ."""
    parts, count = _parts(config)
    global_batch_size = lambda family: family.batch_size // len(parts) * count
    order_digest = lambda family: [family.order.digest] if family.order else []
    return {
        "seed": config.seed,
        "families": {
            f.name: [len(items(f)), global_batch_size(f), f.weight, f.one_per_clip, *order_digest(f)] for f in families
        },
    }


def _single_thread(index: int, count: int) -> None:
    del index, count
    cv2.setNumThreads(1)


def iterate(dataset: grain.MapDataset, start: int, config: PipelineConfig) -> grain.DatasetIterator:
    """The dataset's batches from number `start` on, prefetched by threads or worker processes."""
    rest = dataset.slice(slice(start, None))
    if config.workers == 0:
        return iter(rest.to_iter_dataset(grain.ReadOptions(config.threads, 2 * config.threads)))
    if not flags.FLAGS.is_parsed():
        # Grain reads its own flags here. A command has parsed them; a notebook never does.
        flags.FLAGS.mark_as_parsed()
    # One batch at a time in each worker: memory is what limits how many there can be.
    sequential = rest.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    options = grain.MultiprocessingOptions(config.workers, config.worker_buffer)
    return iter(sequential.mp_prefetch(options, worker_init_fn=_single_thread))
