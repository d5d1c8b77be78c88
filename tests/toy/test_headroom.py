"""What the fleeting world rewards, of few clips; the oracles' frames and answers on a scene made for the purpose."""

import pathlib
import re
from dataclasses import replace

import numpy as np
import pytest

from omnir1_jax.data.synthetic import expressions, render, scenes, sound, world
from omnir1_jax.toy.headroom import __main__ as headroom
from tests.runs import ROOT

CONFIG = replace(world.PRESETS["fleeting"], occlusion=0.0, objects=(2, 2), distractors=(0, 0))


@pytest.fixture(scope="module")
def found():
    """Scores of 24 clips of each family."""
    rng = np.random.default_rng(0)
    config = world.PRESETS["fleeting"]
    out = {}
    for family, rules in (("vos", headroom.RULES), ("refavs", ("first",))):
        items = headroom.items(config, family, 24, 3)
        assert len(items) == 24
        out[family] = [(one.needs, headroom.oracles(one, 1, rules, rng)) for one in items]
    return out


def mean(scored, rule, name, needs=headroom.NEEDS, visible=False) -> float:
    """Over all frames, or over those in which the target is visible."""
    return float(np.mean([s[rule, name][int(visible)] for need, s in scored if need in needs]))


def test_frames_descriptions_and_sound_are_worth_having(found):
    vos, refavs = found["vos"], found["refavs"]
    assert mean(vos, "best", "perfect boxes") > 99
    for rule in ("uniform", "random", "first"):
        assert mean(vos, "best", "perfect boxes") - mean(vos, rule, "perfect boxes") >= 12
    words = mean(vos, "best", "query's words", visible=True)
    assert mean(vos, "best", "true look", visible=True) - words >= 20
    assert mean(vos, "best", "query's words", ("image",)) == 100
    for scored, rule in ((vos, "best"), (refavs, "first")):
        assert mean(scored, rule, "heard", ("sound",)) - mean(scored, rule, "not heard", ("sound",)) >= 15


def shape(kind: str, colour: str, present: tuple[int, int], x: int, **more) -> world.Shape:
    way = ((0.0, float(x), 32.0), (15.0, float(x), 32.0))
    return world.Shape(kind, colour, False, present, way, (9.0, 9.0), **more)


def test_oracles_on_a_scene():
    """The star is in shadow to the end of its stay, a twin is there at its middle, it is alone and lit in frame 4."""
    shapes = (
        shape("star", "red", (4, 10), 16, shadow=(7, 10)),
        shape("star", "red", (5, 12), 48),
        shape("ring", "blue", (0, 16), 80),
    )
    scene = world.Scene(CONFIG, 0, shapes, 0)
    masks = render.visible_masks(render.whole_masks(scene))
    clip = scenes.Clip(scene, render.frames(scene), masks, sound.track(scene), ())
    query = expressions.Expression("the shape that enters first", (0,), 1, "video", "enters_first", (0, 1, 2))
    one, rng = headroom.item(clip, query, recording=False), np.random.default_rng(0)
    assert headroom.frames(one, "best", 2, 0, rng) == [4]
    assert headroom.frames(one, "uniform", 2, 0, rng) == [4, 12]
    scores = headroom.oracles(one, 1, headroom.RULES, rng)
    assert scores["best", "perfect boxes"] == scores["best", "true look"] == (100, 100)
    # Frame 8 is the uniform one: the star is there without its colour, the twin is taken.
    assert scores["uniform", "perfect boxes"] == (100, 100)
    assert scores["uniform", "true look"] == pytest.approx((100 * 8 / 16, 0))  # no red star is there at 0-3, 12-15
    assert scores["first", "perfect boxes"] == pytest.approx((100 * 10 / 16, 0))
    heard = expressions.Expression("the shape that makes the low tone", (0,), 1, "sound", "low", (0, 1, 2))
    assert headroom.item(clip, heard, recording=False).deaf == (0, 1)  # blue has another voice
    assert headroom.item(clip, heard, recording=True).deaf == ()  # neither is in the first frame
    assert headroom.item(clip, replace(heard, topic="sounds"), recording=False).deaf == (0, 1, 2)


def test_small_masks_cost_most_where_the_target_is_visible():
    coarse, fine = (headroom.grained(headroom.items(CONFIG, "vos", 2, 0), side) for side in (64, 256))
    assert coarse[1] < coarse[0] < fine[1] and coarse[1] < 94 and fine[1] > 98


def test_the_page_has_what_the_command_prints(monkeypatch):
    """Its tables have this layout, and its commands these flags."""
    page = (ROOT / "docs" / "toy_world.md").read_text()
    commands = re.findall(r"python -m omnir1_jax.toy.headroom(.*)", page)
    assert commands
    for flags in commands:
        monkeypatch.setattr(headroom, "tracked", lambda *_: dict.fromkeys(headroom.RULES, (0.0, 0.0)))
        values = dict(re.findall(r"--(\w+)(?:[ =](\w+))?", flags))
        config = world.PRESETS[values.get("preset") or "fleeting"]
        sam2 = "toy" if "sam2" in values else ""
        printed = headroom.measure(config, "vos", 4, 1, int(values.get("keyframes") or 1), sam2)
        for line in printed.splitlines():
            if line.startswith("| frames") or line.startswith("| queries"):
                assert line in page, line
    for part in re.findall(r"configs/toy_pretrain.py:(\w+)", page):
        assert f"def {part}(" in pathlib.Path(ROOT / "configs" / "toy_pretrain.py").read_text()
