"""Questions about a shape among its likes: what is asked fits one shape of the frame alone, as it can be seen there."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from omnir1_jax.data import canvas
from omnir1_jax.data.clips import DecodeConfig, decode
from omnir1_jax.data.synthetic import reader
from omnir1_jax.errors import InputError
from omnir1_jax.inference import load
from omnir1_jax.toy import sight
from omnir1_jax.toy.naming import __main__ as naming


def test_forms_that_name_one_shape():
    names = ["red star", "red ring", "blue star", "blue star"]
    there, light = np.array([True, True, True, False]), np.ones(4, bool)
    assert sight.names_alone(0, names, there, light) == ["{colour} {kind}"]
    assert sight.names_alone(1, names, there, light) == ["{colour} {kind}", "{kind}"]
    assert sight.names_alone(2, names, there, light) == ["{colour} {kind}", "{colour} shape"]
    light[0] = False  # the red of the star is not seen, its kind is
    assert sight.names_alone(0, names, there, light) == []
    assert sight.names_alone(1, names, there, light) == list(sight.EVENLY)
    assert "{kind}" not in sight.names_alone(2, names, there, light)


def test_a_question_means_one_shape():
    """Judged from the pixels: the box is around the only shape in whose colour the frame is painted there."""
    source = reader.open(split="valid", clips=12, seed=2, config="fleeting", lessons=True)
    asked = {form: 0 for form in naming.NAMES.values()}
    shaded = 0
    for k in range(12):
        clip = decode(source[k], DecodeConfig(frames=16, objects=8, sampling="uniform"), np.random.default_rng(0))
        names, t = clip.ref.extra["looks"], k
        there = np.flatnonzero(clip.masks[:, t].any((1, 2)))
        hue = {n: np.ptp(clip.frames[t][clip.masks[n, t]].astype(int), axis=1).max() for n in there}
        lit = [n for n in there if hue[n] > 60]  # shadow is grey
        shaded += len(there) - len(lit)
        for question in naming.questions(clip, t):
            colour, kind = [None, *question.text.split()][-2:]
            fits = [
                n
                for n in (there if colour is None else lit)
                if (colour or "") in names[n] and (kind == "shape" or names[n].endswith(kind))
            ]
            assert len(fits) == 1, (question.text, names)
            np.testing.assert_array_equal(question.boxes[0], canvas.boxes(clip.masks[fits, t : t + 1])[0, 0])
            asked[question.form] += 1
    assert min(asked.values()) >= 5 and shaded >= 2, (asked, shaded)


def test_weights_without_a_config_are_refused():
    nothing = load.Systems(**dict.fromkeys(load.Systems._fields))._replace(config=ConfigDict({"data": {}}))
    with pytest.raises(InputError, match="--checkpoint: has no config with a task"):
        next(naming.asked(nothing, "fleeting", 1, 0))
