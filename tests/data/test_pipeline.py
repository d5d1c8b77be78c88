"""The pipeline on readers in memory: epochs, shards, mixtures, bad samples, exact state."""

import dataclasses
import functools
import json

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnir1_jax.data import batching, canvas, clips, difficulty, pipeline, resting, rle, stream
from omnir1_jax.data.frame_sampling import Draw
from omnir1_jax.data.reader import make_reader
from omnir1_jax.data.refs import BadSample, ClipRef, ImageBytes, RleMasks
from omnir1_jax.errors import InputError

HEIGHT, WIDTH = 6, 8
ONE_HOST = {"shard_index": 0, "shard_count": 1, "threads": 0}


def make_clip(family, sample_id, row):
    """Frames whose pixels tell the row and the frame; `bad` rows cannot be decoded."""
    number, bad = row
    length = 1 + number % 20 if family == "vos" else 1
    blobs = [
        cv2.imencode(".png", np.full((HEIGHT, WIDTH, 3), (number, t, 0), np.uint8))[1].tobytes() for t in range(length)
    ]
    if bad:
        blobs = [b[:-20] for b in blobs]
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[1:4, 2 : 3 + number % 5] = True
    tracks = ((rle.encode(mask),) * length,) * (1 + number % 4)
    masks = RleMasks(tracks, (HEIGHT, WIDTH)) if family != "qa" else None
    names = tuple(str(t) for t in range(length))
    return ClipRef("mem", sample_id, family, f"query {number}", ImageBytes(tuple(blobs), names), masks=masks)


def reader(family, clip_count, per_clip=1, bad=()):
    rows = [(f"{c}.{e}", c, (c * per_clip + e, c in bad)) for c in range(clip_count) for e in range(per_clip)]
    return make_reader("mem", "train", rows, functools.partial(make_clip, family), "mem")


def family(name="vos", count=7, batch=2, per_clip=2, bad=(), weight=1.0, **decode):
    element = functools.partial(canvas.element, config=canvas.DetailConfig(canvas=(8, 8), mask_size=(4, 4)))
    config = clips.DecodeConfig(**decode)
    return pipeline.Family(name, (reader(name, count, per_clip, bad),), batch, config, element, weight)


def config(**changes):
    return pipeline.PipelineConfig(**{**ONE_HOST, **changes})


def fingerprint(batch):
    """Everything in a batch, comparable."""
    arrays = {key: np.asarray(value).tobytes() for key, value in batch.arrays.items()}
    return batch._replace(arrays=arrays)


def take(source, n):
    return [fingerprint(next(source)) for _ in range(n)]


def same(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b):
        assert x == y


def test_an_epoch_has_every_clip_once_in_a_new_order():
    source = stream.training_stream([family(count=7, batch=1)], config())
    batches = take(source, 28)
    orders = [[b.draws[0].clip for b in batches[7 * e : 7 * e + 7]] for e in range(4)]
    assert all(sorted(order) == list(range(7)) for order in orders)
    assert len({tuple(order) for order in orders}) > 1
    assert [b.draws[0][:2] for b in batches[5:9]] == [(0, 5), (0, 6), (1, 0), (1, 1)]
    # Over the epochs a clip shows different expressions.
    assert {b.sample_ids[0] for b in batches if b.draws[0].clip == 3} == {"mem/train/3.0", "mem/train/3.1"}
    other = stream.training_stream([family(count=7, batch=1)], config(seed=1))
    assert [b.draws for b in take(other, 14)] != [b.draws for b in batches[:14]]


def test_rows_as_items():
    rows = pipeline.Family(**{**vars(family(count=3, batch=1)), "one_per_clip": False})
    batches = take(stream.training_stream([rows], config()), 6)
    assert sorted(b.sample_ids[0] for b in batches) == sorted(rows.readers[0].ids)


@settings(max_examples=12)
@given(count=st.integers(1, 23), hosts=st.integers(2, 4), batch=st.integers(1, 3))
def test_the_shards_of_an_epoch_are_the_epoch(count, hosts, batch):
    steps = -(-count // (hosts * batch))
    shards = [
        pipeline.training_dataset([family(count=count, batch=batch)], config(shard_index=index, shard_count=hosts))
        for index in range(hosts)
    ]
    batches = [[d for shard in shards for d in shard[k].draws] for k in range(steps)]
    first = [d.clip for draws in batches for d in draws if d.epoch == 0]
    assert sorted(first) == list(range(count))
    # Put together, the hosts' rows are the batches of one host.
    alone = pipeline.training_dataset([family(count=count, batch=hosts * batch)], config())
    assert batches == [list(alone[k].draws) for k in range(steps)]


FLAT = {2, 5}  # clips whose completions always earn the same


def reported(source, steps):
    """Draws of each batch, reported as they are taken; the state after each."""
    seen = []
    for _ in range(steps):
        batch = next(source)
        source.report(batch, [draw.clip in FLAT for draw in batch.draws])
        seen.append((batch.draws, json.dumps(source.get_state())))
    source.close()
    return seen


def test_clips_that_teach_nothing_rest(monkeypatch):
    """The same however far ahead batches are made, and from any state on."""
    monkeypatch.setattr(resting, "LAG", 3)
    make = lambda **changes: stream.training_stream([family(count=7, batch=2)], config(rest_after=2, **changes))
    whole = reported(make(), 70)
    draws = [draw for batch, _ in whole for draw in batch]
    epochs = [[draw.clip for draw in draws if draw.epoch == epoch] for epoch in range(20)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs[:2])  # nothing is twice flat before
    missing = [{*range(7)} - {*epoch} for epoch in epochs]
    assert all(clips <= FLAT for clips in missing) and all(len(epoch) == 7 for epoch in epochs)
    turns = [epoch for epoch, clips in enumerate(missing) if 2 not in clips]
    assert turns[:2] == [0, 1] and np.diff(turns).max() >= 4 and len(turns) < 10  # ever longer rests

    ahead = reported(stream.Prefetch(make(threads=2), depth=2), 70)
    assert [batch for batch, _ in ahead] == [batch for batch, _ in whole]
    for cut in (5, 41):
        for made in (make(), stream.Prefetch(make(threads=1), depth=3)):
            made.set_state(json.loads(ahead[cut - 1][1]))
            rest = reported(made, 70 - cut)
            assert [batch for batch, _ in rest] == [batch for batch, _ in whole[cut:]]
            assert rest[-1] == ahead[-1] == whole[-1]


@pytest.mark.parametrize("how", ["weighted", "easy_first"])
def test_an_epoch_by_a_list_of_difficulties(how, monkeypatch):
    """The same on one host and on two, ahead, and from any state on; also while clips rest."""
    monkeypatch.setattr(resting, "LAG", 3)
    scores = np.array([4.0, 0.0, 1.0, 1.0, 0.5, 0.5, 7.0])
    ordered = lambda batch: dataclasses.replace(family(count=7, batch=batch), order=difficulty.Order(how, scores))
    make = lambda **changes: stream.training_stream([ordered(2)], config(rest_after=2, **changes))
    draws = [draw for batch in take(stream.training_stream([ordered(2)], config()), 140) for draw in batch.draws]
    epochs = [[draw.clip for draw in draws if draw.epoch == epoch] for epoch in range(40)]
    if how == "weighted":
        counts = np.array([np.bincount(epoch, minlength=7) for epoch in epochs])
        assert (np.abs(counts - 0.5 * scores) < 1).all()  # 7 draws an epoch, the scores' sum is 14
        np.testing.assert_allclose(counts.mean(0), 0.5 * scores, atol=0.2)
    else:
        assert epochs[0][:2] == [6, 0] and {*epochs[0][2:4]} == {2, 3} and epochs[0][6] == 1
        assert all(sorted(epoch) == list(range(7)) for epoch in epochs) and len({*map(tuple, epochs)}) > 30

    whole = reported(make(), 40)
    ahead = reported(stream.Prefetch(make(threads=2), depth=2), 40)
    assert [batch for batch, _ in ahead] == [batch for batch, _ in whole]
    resumed = make()
    resumed.set_state(json.loads(ahead[16][1]))
    assert reported(resumed, 23) == whole[17:]
    for index in (0, 1):
        half = stream.training_stream([ordered(1)], config(shard_index=index, shard_count=2))
        assert [draw for batch in take(half, 20) for draw in batch.draws] == draws[index:40:2]
    with pytest.raises(InputError, match="families = .*weighted|families = .*easy_first"):
        stream.training_stream([family(count=7, batch=2)], config(rest_after=2)).set_state(json.loads(ahead[16][1]))


def test_a_host_loads_the_parts_of_a_batch_that_its_devices_hold():
    alone = pipeline.training_dataset([family(count=23, batch=8)], config())
    here = config(shard_index=1, shard_count=4, parts=(0, 3))
    host = pipeline.training_dataset([family(count=23, batch=4)], here)
    for k in range(4):
        draws = alone[k].draws
        assert host[k].draws == (*draws[:2], *draws[6:])
    with pytest.raises(InputError, match=r"3 rows are not parts \(0, 3\) of 4"):
        pipeline.training_dataset([family(count=23, batch=3)], here)


def test_the_stream_of_one_host_goes_on_with_two():
    whole = stream.training_stream([family(count=23, batch=4)], config())
    draws = [b.draws for b in take(whole, 5)]
    state = stream.training_stream([family(count=23, batch=4)], config()).get_state() | {"next_batch": 3}
    for index, rows in enumerate((slice(0, 2), slice(2, 4))):
        half = stream.training_stream([family(count=23, batch=2)], config(shard_index=index, shard_count=2))
        half.set_state(state)
        assert [b.draws for b in take(half, 2)] == [d[rows] for d in draws[3:]]


def test_families_never_mix_and_alternate_alike_on_every_host():
    families = [family("vos", weight=0.5), family("refavs", 5, 3, weight=0.3), family("qa", 4, 1, weight=0.2)]
    streams = [stream.training_stream(families, config(shard_index=i, shard_count=2)) for i in range(2)]
    orders = []
    for source in streams:
        order = []
        for _ in range(50):
            batch = next(source)
            order.append(batch.family)
            assert len(batch.sample_ids) == {"vos": 2, "refavs": 3, "qa": 1}[batch.family]
            assert (batch.arrays["object_valid"].any()) == (batch.family != "qa")
        orders.append(order)
    assert orders[0] == orders[1]
    assert {name: orders[0].count(name) for name in ("vos", "refavs", "qa")} == {"vos": 25, "refavs": 15, "qa": 10}


def test_a_reader_of_another_family_is_refused():
    wrong = pipeline.Family(**{**vars(family("vos")), "name": "refavs"})
    with pytest.raises(InputError, match="is of family vos, its mixture says refavs"):
        next(stream.training_stream([wrong], config()))


MIXTURE = dict(bad=(1, 4), count=9, target="anywhere")


def mixture():
    return [family(**MIXTURE, weight=0.6), family("refavs", 6, 3, bad=(2,), weight=0.4)]


def test_resumed_at_fifty_points_the_stream_is_identical():
    lenient = config(max_bad_share=1.0)
    whole_stream = stream.training_stream(mixture(), lenient)
    batches, states = [], [json.dumps(whole_stream.get_state())]
    for _ in range(60):
        batches.append(fingerprint(next(whole_stream)))
        states.append(json.dumps(whole_stream.get_state()))
    assert whole_stream.counts["bad"] > 10
    points = np.random.default_rng(0).choice(58, 50, replace=False)
    again = stream.training_stream(mixture(), lenient)
    for point in points:
        again.set_state(json.loads(states[point]))
        same(take(again, 2), batches[point : point + 2])
        assert json.dumps(again.get_state()) == states[point + 2]
    fresh = stream.training_stream(mixture(), config(max_bad_share=1.0, threads=3))
    fresh.set_state(json.loads(states[17]))
    same(take(fresh, 10), batches[17:27])
    fresh.close()


def test_a_state_of_another_stream_is_refused():
    state = stream.training_stream(mixture(), config()).get_state()
    for families, changes, message in (
        (mixture(), {"seed": 5}, "seed = 0, this one has 5"),
        (mixture(), {"shard_count": 2}, "families = .*, this one has"),
        ([family()], {}, r"families = .*refavs"),
    ):
        with pytest.raises(InputError, match=message):
            stream.training_stream(families, config(**changes)).set_state(state)
    with pytest.raises(InputError, match="version 9"):
        stream.training_stream(mixture(), config()).set_state({**state, "version": 9})


def test_bad_samples_are_replaced_counted_and_named(caplog):
    source = stream.training_stream([family(count=10, batch=2, bad=(3,))], config(max_bad_share=0.5))
    batches = [next(source) for _ in range(20)]
    assert not any("mem/train/3." in s for batch in batches for s in batch.sample_ids)
    faults = [f for batch in batches for f in batch.faults]
    assert len(faults) >= 4 and {f.kind for f in faults} == {"bad"}
    assert all(f.sample_id.startswith("mem/train/3.") and "truncated" in f.reason for f in faults)
    assert source.counts == {"samples": 40 + len(faults), "bad": len(faults), "dropped": 0, "without_sound": 0}
    assert sum("bad sample mem/train/3." in r.getMessage() for r in caplog.records) == len(faults)


def test_too_many_bad_samples_stop_the_run_the_same_way_after_a_resume():
    setting = config(max_bad_share=0.2, min_samples=10)
    families = [family(count=10, batch=2, bad=(3, 5, 7))]

    def run(source):
        batches = []
        with pytest.raises(InputError) as caught:
            while True:
                batches.append(next(source))
        return len(batches), str(caught.value)

    number, message = run(stream.training_stream(families, setting))
    assert "samples are bad, more than max_bad_share = 0.2 allows" in message
    assert message.count("mem/train/") <= 5 and "truncated" in message
    resumed = stream.training_stream(families, setting)
    source = stream.training_stream(families, setting)
    for _ in range(number - 1):
        next(source)
    resumed.set_state(source.get_state())
    assert run(resumed) == (1, message)
    # Few samples say little: the same data pass as long as the minimum is not reached.
    assert len(take(stream.training_stream(families, config(max_bad_share=0.2, min_samples=10**6)), 40)) == 40


def test_nothing_but_bad_samples_stops_at_once():
    with pytest.raises(InputError, match=r"20 samples of family vos in a row are bad: mem/train/.*truncated"):
        next(stream.training_stream([family(count=3, bad=(0, 1, 2))], config()))


def test_a_bug_is_not_a_bad_sample():
    broken = pipeline.Family(**{**vars(family()), "transform": lambda clip: 1 / 0})
    with pytest.raises(ZeroDivisionError):
        next(stream.training_stream([broken], config()))


def test_unsuitable_samples_are_dropped_without_blame():
    families = [family(count=8, per_clip=1, target="first_frame")]
    source = stream.training_stream(families, config(min_samples=1, max_bad_share=0.0))
    take(source, 8)
    assert source.counts["dropped"] == 0

    def transform(clip):
        if clip.ref.sample_id.endswith("/2.0"):
            raise clips.Unsuitable(clip.ref.sample_id, "not now")
        if clip.ref.sample_id.endswith("/5.0"):
            raise BadSample(clip.ref.sample_id, "bad")
        return {"x": np.zeros(1)}

    families = [pipeline.Family(**{**vars(families[0]), "transform": transform})]
    source = stream.training_stream(families, config(min_samples=10**6))
    batches = take(source, 12)
    assert {(f.sample_id[-3:], f.kind) for b in batches for f in b.faults} == {("2.0", "dropped"), ("5.0", "bad")}
    assert source.counts["dropped"] > 0 and source.counts["bad"] > 0


@pytest.mark.parametrize(
    "families, changes, message",
    [
        ([], {}, "at least one family"),
        ([family(), family()], {}, "named twice"),
        ([family(batch=0)], {}, "batch_size and weight"),
        ([family(weight=0.0)], {}, "batch_size and weight"),
        ([family()], {"shard_index": 2, "shard_count": 2}, "shard 2 of 2"),
        ([pipeline.Family(**{**vars(family()), "name": "video"})], {}, "no family is called 'video'"),
    ],
)
def test_a_wrong_configuration_is_named(families, changes, message):
    with pytest.raises(InputError, match=message):
        stream.training_stream(families, config(**changes))


def test_one_static_shape_is_demanded():
    def item(i, **arrays):
        return batching.Item(Draw(0, i, i), f"s{i}", "", arrays, (), False)

    with pytest.raises(InputError, match=r"family qa: array 'x' is float64\[3\] for s1 and float64\[2\] for s0"):
        batching.collate("qa", [item(0, x=np.zeros(2)), item(1, x=np.zeros(3))])
    with pytest.raises(InputError, match="array 'x' is missing for s1"):
        batching.collate("qa", [item(0, x=np.zeros(2)), item(1)])
    batch = batching.collate("qa", [item(i, x=np.array(i, np.int32)) for i in range(3)])
    np.testing.assert_array_equal(batch.arrays["x"], [0, 1, 2])
