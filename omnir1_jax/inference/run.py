"""One evaluation: runs both systems and the segmenter on every batch, writes and scores every item, makes the table."""

import dataclasses
import functools
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from concurrent import futures
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jaxtyping import Array, Key
from tqdm import tqdm

from omnir1_jax import tasks
from omnir1_jax.evaluation import predictions, score_masks
from omnir1_jax.inference import answer, host, identity, records, result_lines, samples, scores, segment
from omnir1_jax.inference.answer import Answers, EvalConfig, Query, slots
from omnir1_jax.inference.load import Systems, fingerprint, grounded_by
from omnir1_jax.inference.samples import Batch, Benchmark, Sample
from omnir1_jax.inference.store import LINES, RESULTS, TIMING, Store
from omnir1_jax.inference.tasks import Options, count_note, positions
from omnir1_jax.models import narrow, sam2
from omnir1_jax.models.qwen_omni.sample import Completions
from omnir1_jax.parallel import batch_sharding, replicate
from omnir1_jax.tasks.task import tree_of
from omnir1_jax.text.strings import Buffer

# System 1's answers to batches, from evaluations of the same systems. Options that concern what is done with an answer
# change nothing about it, and sampling takes longest.
Known = MutableMapping[tuple[Any, ...], Completions]
DONE_WITH_ANSWERS = ("keyframes", "description", "system2", "boxes", "masks", "objects", "hole_area", "scoring")


class AnsweredBatch(NamedTuple):
    """A batch being computed; its arrays may not be ready yet."""

    batch: Batch
    answers: Answers | None
    masks: Any
    completions: Completions | None = None


# Compiled once for each shape, whatever the number of evaluations in a process. Only REQUEST depends on the rules for
# keyframes and descriptions.
RESPOND = narrow.jit(answer.respond, static_argnums=(0, 1))
READ = jax.jit(answer.read, static_argnums=(0, 1))
REQUEST = jax.jit(answer.request, static_argnums=(0, 1))
GROUND = narrow.jit(answer.ground, static_argnums=(0, 1))
CONCLUDE = jax.jit(answer.conclude, static_argnums=(0, 1))
SEGMENT = jax.jit(segment.logits, static_argnums=0)


def launch(
    systems: Systems,
    eval_config: EvalConfig,
    batch: Batch,
    seed: int,
    hole_area: int = 0,
    completions: Completions | None = None,
) -> AnsweredBatch:
    """Starts the computation of a batch; with a System 2 on the host (`eval_config.host`) waits for it.

    Args:
      completions: System 1's answers, if they are known.
    """
    if batch.arrays is None:
        return AnsweredBatch(batch, None, None)
    models, mesh = systems.models, systems.mesh
    sharding = None if mesh is None else batch_sharding(mesh)
    to_devices = functools.partial(placed, sharding=sharding)
    tree, key = tree_of(to_devices(batch.arrays)), jax.random.key(seed)
    if "words" in tree:
        tree["words"] = Buffer(**tree["words"])
    query = Query(**tree)
    if jax.process_count() > 1:
        key = jax.random.wrap_key_data(replicate(jax.random.key_data(key), mesh))
    if completions is None:
        completions = RESPOND(systems.models, systems.step, systems.policy, query.policy, query.number, key)
    answers = concluded(systems, eval_config, query, completions, key)
    if batch.clips is None:
        return AnsweredBatch(batch, answers, None, completions)
    sizes = [sample.size for sample in batch.samples if sample.size is not None]
    canvas = segment.canvas(sizes)
    if eval_config.host and getattr(models.segmenter, "host", False):
        masks, boxes = host.masks(models.segmenter, jax.device_get(answers), batch.samples, canvas)
        return AnsweredBatch(batch, answers._replace(prompts=boxes), masks, completions)
    if eval_config.host:
        boxes_found = host.prompts(models.grounder, jax.device_get(answers), batch.samples, slots(eval_config))
        answers = answers._replace(prompts=to_devices(boxes_found))
    clips, valid = to_devices(batch.clips), to_devices(batch.frame_valid)
    logits = SEGMENT(models.segmenter, systems.frozen.segmenter, clips, valid, query.original, answers.prompts)
    if hole_area:
        logits = to_devices(sam2.fill_holes(np.asarray(logits), hole_area))  # on the host
    return AnsweredBatch(batch, answers, segment.lift(logits, query.original, canvas), completions)


def concluded(
    systems: Systems, eval_config: EvalConfig, query: Query, completions: Completions, key: Key[Array, ""]
) -> Answers:
    """Both systems' answers to a batch, all but the masks."""
    reading = boxes = None
    # All that the other programs depend on, so that they are compiled once for all rules.
    plain = dataclasses.replace(eval_config, keyframes="plan", description="plan")
    asked = dataclasses.replace(query, words=None)
    if eval_config.task.grounds:
        reading = READ(systems.step, eval_config.task, systems.frozen, asked, completions)
        if eval_config != plain:
            reading = REQUEST(systems.step, eval_config, query, reading, key)
        if not (eval_config.oracle or eval_config.host):
            boxes = GROUND(systems.models, slots(eval_config), systems.frozen, query.sharp, reading.requests)
    return CONCLUDE(systems.step, plain, asked, completions, reading, boxes)


def placed(tree: Any, sharding: jax.sharding.Sharding | None) -> Any:
    """Host arrays, equal in every process, on the devices of `sharding`."""
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    to_device = lambda x: jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])
    return jax.tree.map(lambda x: to_device(np.asarray(x)), tree)


def fetched(tree: Any) -> Any:
    """Arrays on the host, all rows of all processes."""
    gather = lambda x: x if x.is_fully_addressable else multihost_utils.process_allgather(x, tiled=True)
    return jax.device_get(jax.tree.map(gather, tree) if jax.process_count() > 1 else tree)


def on_host(systems: Systems, task: tasks.Task) -> bool:
    """Whether System 2 looks at the videos on the host."""
    return task.grounds and systems.models.on_host


def eval_config_of(systems: Systems, benchmark: Benchmark, options: Options) -> EvalConfig:
    """The choices that are compiled in.

    Raises:
      InputError: an option that the task does not have; names the flag.
    """
    boxes_given = options.system2 == "oracle" or bool(options.boxes)
    return EvalConfig(
        benchmark.task,
        options.keyframes,
        boxes_given,
        options.objects,
        host=on_host(systems, benchmark.task),
        description=options.description,
    )


def answered(
    systems: Systems,
    benchmark: Benchmark,
    options: Options,
    groups: Sequence[Sequence[int]],
    batch_size: int,
    known: Known | None = None,
) -> Iterator[AnsweredBatch]:
    """The batches of `groups` of positions, on the host, each while the next one is computed.

    Called by every process of a run.

    Args:
      batch_size: number of rows of a batch; missing rows are padded.
      known: see `evaluate`.
    """
    eval_config, previous, known = eval_config_of(systems, benchmark, options), None, {} if known is None else known
    asked = tuple(value for name, value in dataclasses.asdict(options).items() if name not in DONE_WITH_ANSWERS)
    for batch in samples.batches(benchmark, groups, batch_size, max(systems.config.loader.threads, 1)):
        key = (benchmark.name, *asked, *(sample.position for sample in batch.samples))
        current = launch(systems, eval_config, batch, options.seed, options.hole_area, known.get(key))
        if current.completions is not None:
            known[key] = current.completions
        if previous is not None:
            yield on_the_host(previous)
        previous = current
    if previous is not None:
        yield on_the_host(previous)


def batched(chosen: Sequence[int], batch_size: int) -> list[Sequence[int]]:
    """Positions by batch."""
    return [chosen[i : i + batch_size] for i in range(0, len(chosen), batch_size)]


def on_the_host(done: AnsweredBatch) -> AnsweredBatch:
    """Waits for a batch."""
    answers, masks = fetched((done.answers, done.masks))
    return done._replace(answers=answers, masks=masks)


def evaluate(
    systems: Systems,
    benchmark: Benchmark,
    options: Options,
    out: epath.PathLike,
    *,
    quiet: bool = False,
    values: Mapping[str, Any] | None = None,
    owner: str = "",
    known: Known | None = None,
) -> dict[str, Any]:
    """Runs or resumes an evaluation and writes its directory; `results.json` is also returned.

    Args:
      values: its identity, if the caller has it already.
      owner: id of the evaluation whose directory holds `out`.
      known: System 1's answers from other evaluations of these systems; those of this one are added.

    Raises:
      InputError: `out` holds an evaluation of another identity; a batch that cannot be sharded over the devices.
    """
    systems = grounded_by(systems, options.system2)
    if options.masks:
        models = dataclasses.replace(systems.models, segmenter=host.FileMasks(options.masks))
        systems = systems._replace(models=models)
    batch_size = identity.padded_batch_size(systems.mesh, options.batch_size)
    chosen = positions(benchmark, options)
    groups = batched(chosen, batch_size)
    if values is None:
        values = identity.identity(systems, benchmark, options, fingerprint(systems))
    for note in () if quiet else count_note(benchmark):
        print(f"note: {note}", file=sys.stderr)
    eval_config_of(systems, benchmark, options)  # errors show before anything is written
    started, threads = time.perf_counter(), max(systems.config.loader.threads, 1)
    with Store(out, values, owner) as store, futures.ThreadPoolExecutor(threads, "write") as pool:
        earlier = [store.lines[position] for position in chosen if position in store.lines]
        store.resume(chosen)
        names = score_masks.missing(benchmark.reader)
        result_lines.require(earlier, benchmark.task.grounds, names, store.folder / LINES)
        pending = [group for group in groups if any(position not in store.lines for position in group)]
        already = sum(position in store.lines for position in chosen)
        bar = tqdm(total=len(chosen), initial=already, unit="clip", dynamic_ncols=True, disable=True if quiet else None)
        with bar:
            for done in answered(systems, benchmark, options, pending, batch_size, known):
                finish(systems, benchmark, store, done, pool, bar)
        lines = [store.lines[position] for position in chosen]
        results = summary(systems, benchmark, options, lines, store)
        store.write_json(RESULTS, results)
        store.end()
        seconds = time.perf_counter() - started
        count = len(chosen) - already
        store.write_json(TIMING, {"items": count, "seconds": seconds, "a_minute": 60 * count / seconds})
    return results


def finish(
    systems: Systems, benchmark: Benchmark, store: Store, done: AnsweredBatch, pool: futures.Executor, bar: tqdm
) -> None:
    """Writes and scores the new items of a batch, in order."""
    answers, masks = done.answers, done.masks
    new = [(row, sample) for row, sample in enumerate(done.batch.samples) if sample.position not in store.lines]

    def finish_one(item: tuple[int, Sample]) -> dict[str, Any]:
        row, sample = item
        line = records.record(sample, answers, row, benchmark.task, systems.tokenizer)
        if not benchmark.task.grounds:
            return line
        predicted = None
        if sample.fault is None:
            height, width = sample.size
            predicted = masks[row, : len(sample.clip), :height, :width]
        return line | judged(benchmark, sample, predicted, store)

    if benchmark.task.grounds:
        store.begin(sample.position for _, sample in new)
    for line in pool.map(finish_one, new):
        store.add(line)
        bar.update()


def judged(benchmark: Benchmark, sample: Sample, predicted: np.ndarray | None, store: Store) -> dict[str, Any]:
    """Writes an item's prediction and scores it. An unreadable item counts as an empty prediction."""
    ref = sample.ref
    if ref is None:
        return {"predicted": False, "scores": score_masks.missing(benchmark.reader), "type_id": None}
    if predicted is None:
        predicted = scores.empty(ref)
    kind = {"type_id": ref.extra.get("type_id")}
    if predicted is None:
        return {"predicted": False, "scores": score_masks.missing(benchmark.reader)} | kind
    names, rewrite = scores.names(ref, len(predicted)), sample.position in store.interrupted
    predictions.write(store.predictions, *scores.png_folder(ref), names, predicted, rewrite=rewrite)
    clean = scores.score(ref, predicted)
    return {"predicted": True, "scores": clean, **scores.official(ref, predicted, clean)} | kind


def summary(
    systems: Systems, benchmark: Benchmark, options: Options, lines: Sequence[Mapping[str, Any]], store: Store
) -> dict[str, Any]:
    """The content of `results.json`."""
    bad = [{"sample_id": line["sample_id"], "reason": line["fault"]} for line in lines if line["fault"] is not None]
    failures = Counter(kind for line in lines for kind in line["failures"])

    def scored(scoring: str) -> dict[str, Any]:
        table = scores.table(benchmark.reader, benchmark.task, lines, store.predictions, benchmark.root, scoring)
        return {"scoring": scoring, "paper": scores.paper(benchmark.reader.name, table), "table": table}

    out = {
        "benchmark": options.benchmark,
        "task": benchmark.name,
        "split": benchmark.reader.split,
        "keyframes": options.keyframes,
        "system2": options.system2,
        "sound": options.sound,
        "items": len(lines),
        "notes": [*count_note(benchmark), *getattr(benchmark.reader, "notes", ())],
        **scored(options.scoring),
        "failures": dict(sorted(failures.items())),
        "bad": bad,
    }
    if scores.two_scorings(benchmark.reader):
        out["other_scoring"] = scored("official" if options.scoring == "clean" else "clean")
    if benchmark.task.grounds and scores.served(benchmark.reader, lines):
        target = store.path(f"{benchmark.name}_{benchmark.reader.split}.zip")
        out["archive"] = {
            "file": target.name,
            **scores.archive(benchmark.reader, lines, store.predictions, str(target)),
        }
    return out
