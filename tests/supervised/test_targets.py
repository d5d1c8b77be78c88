"""Targets read back by the host's readers, and the toy's tokenizer."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omnir1_jax.data import clips, frame_sampling
from omnir1_jax.data.clips import DecodeConfig
from omnir1_jax.data.preprocess.settings import PixelBudget, Sizes
from omnir1_jax.data.refs import BadSample
from omnir1_jax.data.synthetic import reader
from omnir1_jax.data.synthetic.world import KINDS, PRESETS
from omnir1_jax.errors import InputError
from omnir1_jax.supervised import text
from omnir1_jax.systems import prompts
from omnir1_jax.tasks import TASKS, targets
from omnir1_jax.text.bpe import bpe_tables, encode
from omnir1_jax.text.rules import Failure
from omnir1_jax.text.vocab import byte_vocab, detokenise
from omnir1_jax.toy import lessons, sight, tokenizer
from tests.text import host

CELL = 16
PIXELS = CELL**2
DECODE = {
    "vos": DecodeConfig(frames=8, target="some_frame"),
    "refavs": DecodeConfig(frames=1, sampling="first", sound="required"),
    "refcocog": DecodeConfig(frames=1, sampling="first"),
    "qa": DecodeConfig(frames=8),
}


@functools.cache
def words():
    return tokenizer.build(size=500, clips=20)


@functools.cache
def config(family="vos", count=1, tokens=160, tokenizer=None, keyframes=4):
    fields = {"system": (), "grounding": prompts.GROUNDING}
    text = {name: prompts.load(name, fields[name], str(prompts.FOLDER / f"toy_{name}.txt")) for name in fields}
    named = {"vos": "toy_vos", "refavs": "toy_refavs"}
    return targets.TargetConfig(
        tokenizer=tokenizer or words(),
        sizes=Sizes(CELL, 2, 2, 50, 20, 4),
        system=text["system"],
        template=prompts.load(family, TASKS[family].fields, str(prompts.FOLDER / f"{named.get(family, family)}.txt")),
        grounding=prompts.render(text["grounding"], system=text["system"]),
        policy_budget=PixelBudget(12 * PIXELS, 24 * PIXELS, 8 * PIXELS, 12 * PIXELS),
        sharp_budget=PixelBudget(12 * PIXELS, 24 * PIXELS, 12 * PIXELS, 24 * PIXELS),
        text_tokens=400,
        frames=8 if family in ("vos", "qa") else 1,
        objects=3,
        segmenter_side=0,
        audio_seconds=3.0 if family == "refavs" else 0.0,
        max_aspect=1.6,
        targets=count,
        target_tokens=tokens,
        keyframes=keyframes,
    )


def decoded(family, count, **options):
    """The first good clips of the toy world."""
    source, found = reader.open(family=family, clips=60, config="toy", **options), []
    for number in range(len(source)):
        try:
            found.append(clips.decode(source[number], DECODE[family], frame_sampling.generator(0, 0, number)))
        except BadSample:
            continue
        if len(found) == count:
            return found


def answers(arrays):
    """(question, answer) of every target, the answer's end token checked and taken off."""
    c = arrays["target/tokens"].shape[-1]
    out = []
    rows = (arrays["target/tokens"].reshape(-1, c), arrays["target/lengths"].ravel(), arrays["target/weights"])
    for line, length, weight in zip(rows[0], rows[1], rows[2].reshape(-1, c)):
        asked = int((weight[:length] == 0).sum())
        assert np.all(weight[asked:length] == 1) and not weight[length:].any()
        told = words().decode(line[asked:length])
        if length:
            assert told.endswith("<|im_end|>")
            out.append((words().decode(line[:asked]), told.removesuffix("<|im_end|>")))
    return out


def test_earlier_questions_of_a_target_are_learnt_with_it():
    first, last = targets.Target(" red", ". the one:"), targets.Target(" blue", ". the other:")
    made = targets.pack([dataclasses.replace(last, before=(first,)), first], config(count=2))
    rows, lengths, weights = (made[f"target/{name}"] for name in ("tokens", "lengths", "weights"))
    assert words().decode(rows[0, : lengths[0]]) == ". the one: red. the other: blue<|im_end|>"
    assert words().decode(rows[0, weights[0] > 0]) == " red blue<|im_end|>"
    assert words().decode(rows[1, weights[1] > 0]) == " red<|im_end|>"


@pytest.mark.parametrize("keyframes", [1, 4])
def test_a_plan_from_the_truth_is_valid_and_chooses_the_best_frames(keyframes):
    for clip in decoded("vos", 6):
        ((question, answer),) = answers(TASKS["vos"].supervised(clip, config(keyframes=keyframes)))
        plan = host.read_plan(answer, 8)
        assert question == "" and plan.formatted and all(piece.valid for piece in plan.pieces)
        frames = [piece.first_frame for piece in plan.pieces]
        assert frames == [piece.last_frame for piece in plan.pieces] == sorted(set(frames))
        areas = clip.masks.sum(axis=(0, 2, 3))
        assert areas[frames].min() > 0 and areas[frames].max() == areas.max()
        assert len(frames) == min(keyframes, np.count_nonzero(areas))
        assert {piece.description.decode() for piece in plan.pieces} == {clip.ref.query}


def test_the_other_families_answers_earn_everything():
    for clip in decoded("refavs", 2):
        ((_, answer),) = answers(TASKS["refavs"].supervised(clip, config("refavs")))
        told = host.read_answer(answer)
        assert told.formatted and told.description.decode() == clip.ref.query
    for clip in decoded("refcocog", 2):
        ((_, answer),) = answers(TASKS["refcocog"].supervised(clip, config("refcocog")))
        told = host.read_box_and_points(answer)
        batch = TASKS["refcocog"].example(clip, config("refcocog"))
        assert told.strict and told.formatted
        np.testing.assert_array_equal(told.box.box, np.trunc(batch["box"] * np.tile(batch["scale"], 2)))
        np.testing.assert_array_equal(told.points[1].box, np.trunc(batch["points"][1] * batch["scale"]))
    (clip,) = decoded("qa", 1)
    ((_, answer),) = answers(TASKS["qa"].supervised(clip, config("qa")))
    assert host.read_answer(answer).description == bytes(TASKS["qa"].example(clip, config("qa"))["gold"])


def test_what_does_not_fit_is_a_bad_sample():
    (clip,) = decoded("vos", 1)
    with pytest.raises(BadSample, match="does not fit sft.target_tokens = 20"):
        TASKS["vos"].supervised(clip, config(tokens=20))
    with pytest.raises(InputError, match="sft.targets = 1"):
        targets.pack([targets.Target("a")] * 2, config())
    odd = targets.piece(0, 3, 'a "red" {one}\\')
    assert host.read_plan(f"<answer>{odd}</answer>", 8).pieces[0].valid and json.loads(odd)


def test_grounding_lessons_are_true():
    empty = boxes = 0
    for clip in decoded("vos", 4, lessons=True):
        arrays = sight.grounding(clip, config(count=5, tokens=40))
        batch = text.to_batch("grounding", {key: value[None] for key, value in arrays.items()})
        assert batch.tokens.shape == (4, 5, 40) and batch.policy.tokens.shape[0] == 4  # every other of 8 frames
        names = clip.ref.extra["looks"]
        pixels = np.asarray(batch.policy.vision.pixels)
        rows_cols = np.asarray(batch.policy.vision.rows_cols[0])
        told = answers(arrays)
        for n in range(4):
            image = np.zeros((64, 96, 3), np.uint8)
            for (row, col), cell in zip(rows_cols, pixels[n, :, 0]):
                image[row * CELL : (row + 1) * CELL, col * CELL : (col + 1) * CELL] = cell
            t = next(t for t in range(8) if np.array_equal(clip.frames[t], image))
            for question, answer in told[5 * n : 5 * n + 5]:
                assert question.endswith("<|im_end|>\n<|im_start|>assistant\n")
                if question.startswith("What:"):
                    there = {names[i] for i in np.flatnonzero(clip.masks[:, t].any(axis=(1, 2)))}
                    assert set(answer.split(", ")) == (there or {"nothing"})
                    continue
                said = question.removeprefix("Box: the ").removeprefix("Box: ").split("<")[0]
                meant = [i for i, name in enumerate(names) if all(w in (*name.split(), "shape") for w in said.split())]
                count, found = host.read_boxes(answer, 1)
                if count == 0:
                    assert answer == "[]" and not any(clip.masks[i, t].any() for i in meant)
                    empty += 1
                else:
                    rows, cols = np.nonzero(clip.masks[meant[0], t])
                    assert len(meant) == 1 and found[0].failure == Failure.OK
                    assert found[0].box == (cols.min(), rows.min(), cols.max(), rows.max())
                    boxes += 1
    assert empty > 5 and boxes > 15


def test_the_first_lessons_ask_for_kinds_alone():
    kinds = found = 0
    for clip in decoded("vos", 3, lessons=True):
        for question, answer in answers(sight.kinds(clip, config(count=4, tokens=40))):
            if answer.startswith("[{"):
                said = question.removeprefix("Box: ").split("<")[0].removeprefix("the ")
                kinds, found = kinds + (said in KINDS), found + 1
    assert kinds == found > 8


def test_questions_lessons_are_true_and_plans_know_nothing():
    right = asked = 0
    for clip in decoded("vos", 12, lessons=True):
        names, clear = clip.ref.extra["looks"], sight.seen(clip)
        for question, answer in answers(lessons.questions(clip, config(count=6, tokens=48))):
            said = question.split("<")[0]
            if said.startswith("When: "):
                piece = host.read_plan(f"<answer>{answer}</answer>", 8).pieces[0]
                n = names.index(piece.description.decode())
                words_of_it = said.removeprefix("When: ").removeprefix("the ").split()
                assert set(words_of_it) <= {*names[n].split(), "shape"}
                times = np.flatnonzero(clear[n])
                assert piece.valid and (piece.first_frame, piece.last_frame) == (times[0], times[-1])
            elif said.startswith("Which: "):
                (sentence,) = (s for s in clip.ref.extra["sentences"] if s["text"] == said.removeprefix("Which: "))
                assert set(answer.split(", ")) == {names[n] for n in sentence["obj_id"]}
        for question, answer in answers(lessons.plans(clip, config(count=4, tokens=90))):
            plan = host.read_plan(answer, 8)
            assert plan.formatted and 1 <= plan.count <= 3 and all(piece.valid for piece in plan.pieces)
            (described,) = {piece.description.decode() for piece in plan.pieces}
            assert described in names or described == question.split("<")[0].removeprefix("Plan: the ")
            (sentence,) = (
                s for s in clip.ref.extra["sentences"] if s["text"] == question.split("<")[0].removeprefix("Plan: ")
            )
            if len(sentence["obj_id"]) == 1:
                asked += 1
                right += described == names[sentence["obj_id"][0]]
    assert 0.2 < right / asked < 0.65, "a shape out of two or three, whatever is asked"


def test_sound_lessons_say_who_is_heard_and_ask_first_what_takes_the_sound():
    heard, asked = set(), []
    for clip in decoded("refavs", 8, lessons=True):
        arrays = lessons.sounds(clip, config("refavs", count=6, tokens=48))
        assert np.any(arrays["policy/audio/mel"]) and (arrays["policy/audio_index"] >= 0).sum() == 75
        told = dict(answers(arrays))
        (answer,) = (a for q, a in told.items() if q.startswith("Hear:"))
        extra, there = clip.ref.extra, clip.masks[:, 0].sum((1, 2)) >= sight.CLEAR
        early = [
            (span[0], f"{tone} {look}" if clear else tone)
            for span, tone, look, clear in zip(extra["sounds"], extra["tones"], extra["looks"], there)
            if span and span[0] < 3
        ]
        assert answer == (", ".join(who for _, who in sorted(early)) or "nothing")
        heard.add(answer)
        needs = {s["text"]: s["needs"] for s in extra["sentences"]}
        kinds = [needs[q.split("<")[0].removeprefix("Which: ")] for q in told if q.startswith("Which: ")]
        assert kinds == sorted(kinds, reverse=True)  # "sound" before "image"
        asked += kinds
        for question, answer in told.items():
            if question.startswith("Listen: "):
                assert host.read_answer(answer).description.decode() in extra["looks"]
    assert len(heard) > 4 and asked.count("sound") > 8


@pytest.mark.parametrize("more", [(), tokenizer.WORDS])
def test_the_tokenizer_is_taken_by_the_graph_and_loses_nothing(more):
    own = words() if not more else tokenizer.build(size=500, clips=20, words=more)
    tables, vocab = bpe_tables(own), byte_vocab(own)
    sentences = list(tokenizer.sentences(PRESETS["toy"], 1, 5))[:24] + [
        '<think>a</think>{"start_time": "00:03.50"',
        '<think> blue star 2-5, red circles 0-12</think>", "description": "blue star"}',
        "é☃",
    ]
    data = [sentence.encode() for sentence in sentences]
    width = max(map(len, data))
    table = np.zeros((len(data), width), np.uint8)
    for row, line in zip(table, data):
        row[: len(line)] = np.frombuffer(line, np.uint8)
    lengths = np.array([len(line) for line in data], np.int32)
    made = jax.jit(encode, static_argnums=3)(tables, jnp.asarray(table), jnp.asarray(lengths), width)
    real = jnp.arange(width) < made.length[:, None]
    back = jax.jit(detokenise, static_argnums=2)(vocab, jnp.where(real, made.ids, -1), width)[0]
    for n, sentence in enumerate(sentences):
        ids = own(sentence, add_special_tokens=False)["input_ids"]
        assert np.asarray(made.ids[n, : made.length[n]]).tolist() == ids
        assert bytes(np.asarray(back.bytes[n, : back.length[n]])).decode() == sentence
    plan = targets.thought("red circle", "".join(targets.piece(t, t, "red circle") for t in range(4)))
    assert len(own(plan)["input_ids"]) < 72


def test_lessons_are_of_video_or_sound():
    with pytest.raises(InputError, match="synthetic.lessons"):
        reader.open(family="qa", lessons=True)


def test_plain_queries_are_about_one_shape_and_need_no_motion():
    source = reader.open(family="vos", clips=12, config="toy", plain=True)
    topics = {source[n].extra["topic"] for n in range(len(source))}
    assert topics <= {"look", "largest", "smallest", "same_colour", "odd_one"} and "look" in topics
    assert all(len(source[n].extra["obj_id"]) == 1 for n in range(len(source)))
    with pytest.raises(InputError, match="synthetic.plain"):
        reader.open(family="refavs", plain=True)
