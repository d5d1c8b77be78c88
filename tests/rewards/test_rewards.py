"""In-graph rewards against the oracle, from raw text to the number, on thousands of random rollouts."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omnir1_jax import rewards
from omnir1_jax.config.rewards import PRESETS
from omnir1_jax.config.sections import Reward
from omnir1_jax.errors import InputError
from omnir1_jax.rewards import boxes as box_rules
from omnir1_jax.systems import keyframes
from omnir1_jax.text import readers, rules
from omnir1_jax.text.rules import Limits
from omnir1_jax.text.vocab import Text
from tests.rewards import reward_oracle as oracle
from tests.text import host

N, T, H, W, K = 3, 10, 12, 16, 4
BYTES, BOX_BYTES = 2048, 384
ROLLOUTS = 2000
CONFIGS = {
    **PRESETS,
    "clip": Reward("authors", {"clip": True}).weights(),
    "authors_without_masks": Reward("authors", {"segmentation": 0.0}).weights(),
}


def as_text(strings, size):
    raw = [s.encode() for s in strings]
    assert max(map(len, raw)) <= size
    grid = np.zeros((len(raw), size), np.uint8)
    for row, line in zip(grid, raw):
        row[: len(line)] = list(line)
    return Text(jnp.asarray(grid), jnp.asarray([len(r) for r in raw], jnp.int32), jnp.zeros(len(raw), bool))


def spoil(rng, text, chance):
    """Now and then a letter lost or doubled."""
    if rng.random() < chance and text:
        at = rng.integers(len(text))
        text = text[:at] + rng.choice(["", "{", "}", '"', text[at] * 2]) + text[at + 1 :]
    return text


def random_plan(rng, frames):
    """A completion: mostly good pieces, some late, reversed, incomplete or broken; now and then none at all."""
    objects = []
    for _ in range(rng.integers(0, 7) if rng.random() < 0.9 else rng.integers(7, 20)):
        start = rng.integers(0, 50 * frames + 60)
        end = start + rng.choice([0, 10, 60, 200, -80], p=[0.4, 0.2, 0.2, 0.1, 0.1])
        clock = lambda cs: f"{max(cs, 0) // 6000:02d}:{max(cs, 0) // 100 % 60:02d}.{max(cs, 0) % 100:02d}"
        fields = {"start_time": clock(start), "end_time": clock(end), "description": "the red circle"}
        if rng.random() < 0.1:
            fields[rng.choice(list(fields))] = [None, 3, "1:2", ""][rng.integers(4)]
        objects.append(spoil(rng, json.dumps(fields), 0.05))
    if rng.random() < 0.05:
        objects += [rng.choice(["{}", '{"start_time": "0:0.0"}'])] * int(rng.integers(1, 30))
    text = f"<think>why</think>\n<answer> {' '.join(objects)} </answer>"
    return spoil(rng, text, 0.2)


def random_number(rng, x):
    kind = rng.random()
    return round(float(x), 2) if kind < 0.3 else (-1 if kind < 0.33 else (2e6 if kind < 0.34 else int(x)))


def random_grounding(rng, boxes, scale):
    """System 2's answer on one frame: the true boxes, shaken, shuffled, too many or too few, some unreadable."""
    groups = []
    for box in [boxes[i] for i in rng.permutation(len(boxes))] + [boxes[0]] * int(rng.integers(0, 3)):
        if rng.random() < 0.15:
            continue
        shaken = box * np.tile(scale, 2) + rng.choice([0, 2, 30]) * rng.normal(size=4)
        value = [random_number(rng, x) for x in shaken]
        value = (
            value
            if rng.random() < 0.93
            else [value[:3], None, "0, 0, 9, 9", [*value[:3], "9"], [*value, 1]][rng.integers(5)]
        )
        groups.append(spoil(rng, json.dumps({"bbox_2d": value, "label": "x"}), 0.05))
    return "[" + ", ".join(groups) + "]"


def extents(masks):
    """Inclusive pixel extents of each mask, -1 where it is empty."""
    out = np.full((*masks.shape[:2], 4), -1.0)
    for i, t in np.argwhere(masks.any(axis=(2, 3))):
        ys, xs = np.nonzero(masks[i, t])
        out[i, t] = xs.min(), ys.min(), xs.max(), ys.max()
    return out


def random_blobs(rng, shape):
    """Rectangles that are at times absent and at times touch the edge."""
    masks = np.zeros(shape, bool)
    for at in np.ndindex(shape[:-2]):
        if rng.random() < 0.75:
            y, x = rng.integers(0, shape[-2] - 2), rng.integers(0, shape[-1] - 2)
            masks[at][y : y + rng.integers(1, 8), x : x + rng.integers(1, 10)] = True
    return masks


@pytest.fixture(scope="module")
def rollouts():
    rng = np.random.default_rng(7)
    made = []
    for _ in range(ROLLOUTS):
        n, t = int(rng.integers(1, N + 1)), int(rng.integers(1, T + 1))
        masks = random_blobs(rng, (n, t, H, W))
        boxes = extents(masks)
        scale = rng.uniform(0.8, 3.0, 2)
        text = random_plan(rng, t)
        chosen = oracle.keyframes(oracle.read_plan(text, t)[2], K)
        frames = [frame for frame, _ in chosen] + [0] * (K - len(chosen))
        made.append(
            dict(
                text=text,
                groundings=[random_grounding(rng, boxes[:, f], scale) for f in frames],
                masks=masks,
                boxes=boxes,
                scale=scale.astype(np.float32),
                predicted=random_blobs(rng, (t, H, W)),
            )
        )
    return made


def padded(rollouts):
    """The rollouts as static arrays; padding holds garbage that must not count."""
    count = len(rollouts)
    out = dict(
        areas=np.zeros((count, N, T), np.float32),
        boxes=np.full((count, N, T, 4), -1, np.float32),
        truth=np.zeros((count, T, H, W), bool),
        predicted=np.ones((count, T, H, W), bool),
    )
    for i, r in enumerate(rollouts):
        n, t = r["masks"].shape[:2]
        out["areas"][i, :n, :t] = r["masks"].sum(axis=(2, 3))
        out["boxes"][i, :n, :t] = r["boxes"]
        out["truth"][i, :t] = r["masks"].any(axis=0)
        out["predicted"][i, :t] = r["predicted"]
    out["scale"] = np.stack([r["scale"] for r in rollouts])
    out["objects"] = np.array([r["masks"].shape[0] for r in rollouts], np.int32)
    out["frames"] = np.array([r["masks"].shape[1] for r in rollouts], np.int32)
    return jax.tree.map(jnp.asarray, out)


def plan_of(moments):
    piece = '{"start_time": "00:%02d.00", "end_time": "00:%02d.00", "description": "a"}'
    return f"<think>a</think><answer>{' '.join(piece % (second, second) for second in moments)}</answer>"


def test_pieces_are_read_as_far_as_they_are_counted():
    """Twelve good moments, one in each second of a clip of six: too many distinct frames, by the authors' count."""
    texts, frames = [plan_of(range(12)), plan_of([*range(12)] * 2)], 24
    plan = jax.jit(readers.read_plan)(as_text(texts, BYTES), jnp.full(2, frames))
    areas = jnp.ones((1, frames))
    terms = jax.vmap(lambda one: rewards.plan_terms(one, areas, jnp.int32(1), PRESETS["authors"]))(plan)
    earned = terms.structure + terms.coverage + terms.count + terms.span + terms.overlap
    np.testing.assert_allclose(earned, [0.6 + 1 - 2, 0.6 + 1 - 2 - 6], rtol=1e-5)
    # Of a plan beyond a limit of one's own nothing is counted that is not read.
    limited = jax.jit(functools.partial(readers.read_plan, limits=Limits(groups=8)))(as_text(texts, BYTES), plan.count)
    assert limited.count.tolist() == [8, 8] and limited.unread.tolist() == [4, 16]
    assert plan.count.tolist() == [12, 24] and not plan.unread.any()


def test_objects_that_are_too_short_to_be_pieces_take_no_slots_from_those_that_are():
    """As many pieces as the buffer holds, behind hundreds of empty objects; the host reads the same."""
    shortest = '{"start_time":"0:0.0","end_time":"0:0.0","description":""}'
    assert len(shortest) == rules.MIN_PIECE_BYTES
    dense, sparse = (BYTES - 17) // len(shortest), (BYTES - 17 - 1000) // len(shortest)
    texts = [f"<answer>{body}</answer>" for body in (shortest * dense, "{}" * 500 + shortest * sparse)]
    plan = jax.jit(readers.read_plan)(as_text(texts, BYTES), jnp.full(2, 24))
    for i, (pieces, short) in enumerate(((dense, 0), (sparse, 500 - rules.SHORT_SLOTS))):
        assert plan.valid[i].sum() == pieces and plan.short[i] == short
        told = host.read_plan(texts[i], 24)
        assert (told.count, told.short, told.unread) == (plan.count[i], short, 0)
        assert [piece.failure for piece in told.pieces] == plan.failure[i, : plan.slots_used[i]].tolist()


@pytest.fixture(scope="module")
def read(rollouts):
    """Texts read in the graph, once for all presets."""
    clips = padded(rollouts)
    plan = jax.jit(readers.read_plan)(as_text([r["text"] for r in rollouts], BYTES), clips["frames"])
    texts = as_text([g for r in rollouts for g in r["groundings"]], BOX_BYTES)
    return clips, plan, jax.jit(readers.read_boxes, static_argnums=1)(texts, N)


def graph(read, config):
    clips, plan, boxes = read
    count = plan.count.shape[0]

    def one(plan, predicted, predictions, clip):
        member = keyframes.members(plan.valid, plan.first_frame, plan.last_frame, T)
        chosen = keyframes.select(member, K)
        first = rewards.plan_terms(plan, clip["areas"], clip["objects"], config)
        matching = rewards.match(predicted, predictions, clip["boxes"], clip["scale"], clip["objects"], chosen, config)
        similarity = rewards.region_similarity(clip["predicted"], clip["truth"], clip["frames"])
        terms = rewards.vos_terms(first, matching, similarity, clip["areas"], chosen, config)
        return terms, rewards.accuracy(terms, first.any_valid, config), matching, chosen

    predicted = boxes.box.reshape(count, K, N, 4)
    return jax.jit(jax.vmap(one))(plan, predicted, boxes.count.reshape(count, K), clips)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_term_of_every_preset_equals_the_oracle(rollouts, read, name):
    config = CONFIGS[name]
    terms, accuracy, matching, chosen = jax.tree.map(np.asarray, graph(read, config))
    seen = dict.fromkeys(terms._fields, 0)
    for i, rollout in enumerate(rollouts):
        expected, total, matched = oracle.vos(**rollout, config=config)
        for field in terms._fields:
            got = getattr(terms, field)[i]
            assert got == pytest.approx(expected[field], rel=1e-5, abs=1e-5), (i, field, rollout["text"])
            seen[field] += expected[field] != 0
        assert accuracy[i] == pytest.approx(total, rel=1e-5, abs=1e-5)
        prompts = {(int(j), int(slot)) for slot, j in np.argwhere(matching.prompt[i])}
        assert prompts == matched.keys()
        for (j, slot), box in matched.items():
            np.testing.assert_allclose(matching.box[i, slot, j], box, rtol=1e-6)
        picked = chosen.valid[i]
        expected = oracle.keyframes(oracle.read_plan(rollout["text"], rollout["masks"].shape[1])[2], K)
        assert chosen.frame[i][picked].tolist() == [frame for frame, _ in expected]
    blind = {field for field, times in seen.items() if times < ROLLOUTS // 50}
    gated = {"saliency", "alignment", "mismatch", "segmentation"} if name == "authors_without_masks" else set()
    assert blind == gated  # the rollouts exercise every term that the preset lets through


def test_refavs_is_the_iou_of_the_first_box():
    rng = np.random.default_rng(3)
    guess = rng.uniform(0, 20, (2000, 4)).astype(np.float32)
    truth = np.sort(rng.integers(0, 20, (2000, 2, 2)), axis=1).reshape(2000, 4).astype(np.float32)
    guess[::7], truth[::5] = -1, -1
    scale = rng.uniform(0.5, 2, (2000, 2)).astype(np.float32)
    got = rewards.refavs_accuracy(*map(jnp.asarray, (guess, truth, scale)))
    for i in range(2000):
        missing = np.all(guess[i] == -1) or np.all(truth[i] == -1)
        expected = 0.0 if missing else oracle.box_iou(guess[i], truth[i] * np.tile(scale[i], 2))
        assert got[i] == pytest.approx(expected, rel=1e-5, abs=1e-6)


def random_answer(rng, good):
    """The good object in the answer, with others before and behind, or in the thinking, or nowhere that counts."""
    other = '{"bbox_2d": [0, 0, 9, 9], "points_1": [1, 1], "points_2": [2, 2]}'
    inside, before, after = rng.choice([good, other, ""], 3, p=[0.6, 0.2, 0.2])
    opening, closing = rng.choice(["<answer>", ""], p=[0.9, 0.1]), rng.choice(["</answer>", ""], p=[0.9, 0.1])
    again = rng.choice([f"<answer>{other}</answer>", f"<answer>{good}</answer>", ""], p=[0.1, 0.1, 0.8])
    return f"<think>a {before}</think>{opening}{inside}{closing}{after}{again}"


def test_refcocog_terms_equal_the_oracle():
    rng = np.random.default_rng(5)
    texts, boxes, points, scales = [], [], [], []
    for _ in range(ROLLOUTS):
        box = np.concatenate([rng.integers(0, 400, 2), rng.integers(410, 840, 2)]).astype(np.float32)
        spots = np.stack([rng.uniform(box[:2], box[2:]) for _ in range(2)]).astype(np.float32)
        scale = rng.uniform(0.5, 1.0, 2).astype(np.float32)
        shake = lambda x: [
            random_number(rng, v) for v in np.ravel(x) + rng.choice([0, 5, 60]) * rng.normal(size=np.size(x))
        ]
        keys = ["bbox_2d", "points_1", "points_2"] if rng.random() < 0.8 else ["my_BBox", "Points_a", "POINTS"]
        values = [shake(box * np.tile(scale, 2)), *(shake(p * scale) for p in spots[rng.permutation(2)])]
        fields = {k: v for k, v in zip(keys, values) if rng.random() < 0.95}
        texts.append(spoil(rng, random_answer(rng, json.dumps(fields)), 0.1))
        boxes.append(box), points.append(spots), scales.append(scale)
    arrays = [jnp.asarray(np.stack(x)) for x in (boxes, points, scales)]
    answer = jax.jit(readers.read_box_and_points)(as_text(texts, 2 * BOX_BYTES))
    got = jax.tree.map(np.asarray, rewards.refcocog_terms(answer, *arrays))
    for i, text in enumerate(texts):
        expected = oracle.refcocog(text, boxes[i], points[i], scales[i])
        for name, value in expected.items():
            assert got[name][i] == pytest.approx(value, rel=1e-4, abs=1e-4), (text, name)
    assert all(np.mean(got[name] > 0) > 0.1 for name in got)
    outside = [i for i, text in enumerate(texts) if "<answer>" not in text and "{" in text]
    assert len(outside) > 50 and not any(got[name][outside].any() for name in got)


def test_ties_go_to_the_first_assignment():
    assert box_rules.assign(jnp.zeros((3, 3))).tolist() == [0, 1, 2]
    assert box_rules.assign(jnp.array([[0.1, 0.2, 0.3]] * 3)).tolist() == [0, 1, 2]
    assert box_rules.assign(jnp.array([[0.0, 1, 0], [0, 1, 0], [0, 0, 0]])).tolist() == [0, 1, 2]
    assert box_rules.assign(jnp.array([[0.0, 1, 0], [0, 0, 0], [0, 0, 0]])).tolist() == [1, 0, 2]


def test_presets_refuse_unknown_names():
    with pytest.raises(InputError, match="reward.preset"):
        Reward("best")
    with pytest.raises(InputError, match="reward.terms.alinement"):
        Reward("paper", {"alinement": 2.0})
