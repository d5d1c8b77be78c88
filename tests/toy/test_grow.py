"""A larger thinker computes what the smaller one did, and its new numbers are learnt from the first step on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from omnir1_jax.errors import InputError
from omnir1_jax.models import qwen_omni
from omnir1_jax.models.qwen_omni import pretrained
from omnir1_jax.toy import grow
from tests.models.thinker_oracle import Sizes, hf_inputs, reference, relative

ROWS = [[("text", 3), ("image", (1, 10, 6)), ("audio", 53)], [("video", (3, 4, 6), 1.0), ("text", 40)]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    small, large = (tmp_path_factory.mktemp("grow") / name for name in ("small", "large"))
    reference(Sizes(), seed=3).save_pretrained(small)
    grow.main(["grow", str(small), str(large), "24", "5"])
    return small, large


def test_it_computes_the_same(folders):
    (small, params), (large, grown) = (qwen_omni.load(folder) for folder in folders)
    assert (large.config.text.head_dim, large.config.text.num_layers) == (24, 5)
    inputs = hf_inputs(Sizes(), ROWS)
    mask = np.asarray(inputs["attention_mask"], bool)
    before = np.asarray(pretrained.logits_from_hf(small, params, inputs))[mask]
    after = np.asarray(pretrained.logits_from_hf(large, grown, inputs))[mask]
    assert relative(after, before) < 1e-5


def test_what_is_new_is_learnt(folders):
    large, grown = qwen_omni.load(folders[1])
    inputs = hf_inputs(Sizes(), ROWS)
    grads = jax.grad(lambda params: jnp.square(pretrained.logits_from_hf(large, params, inputs)).mean())(grown)
    layers = flatten_dict(grads["text"]["layers"])
    new = {"k": layers["k", "kernel"][:2, ..., 8:12], "o": layers["o", "kernel"][:2, :, 8:12]}
    assert all(np.abs(part).max(axis=(1, 2, 3)).min() > 0 for part in new.values())
    assert np.abs(layers["down", "kernel"][2:]).max(axis=(1, 2)).min() > 0


def test_smaller_is_refused(folders, tmp_path):
    with pytest.raises(InputError, match="HEAD_DIM LAYERS: an even width of at least 16 and at least 2 layers"):
        grow.main(["grow", str(folders[0]), str(tmp_path / "x"), "8", "2"])


def test_what_could_not_be_read_again_is_not_written(folders, tmp_path):
    with pytest.raises(InputError, match="x/config.json: text_config.rope_theta is 1e.18"):
        grow.main(["grow", str(folders[0]), str(tmp_path / "x"), "48", "2"])
    assert not (tmp_path / "x").exists()
