"""A larger thinker computes what the smaller one did, and its new numbers are learnt from the first step on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from omnir1_jax.data.preprocess import tokens
from omnir1_jax.errors import InputError
from omnir1_jax.models import qwen_omni
from omnir1_jax.models.qwen_omni import pretrained
from omnir1_jax.toy import grow, tokenizer
from tests.models.thinker_oracle import Sizes, hf_inputs, reference, relative
from tests.runs import ROOT

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


def test_new_words_begin_as_what_their_text_was(tmp_path):
    small = ROOT / "configs/toy_weights/thinker"
    tokenizer.main(["tokenizer", str(tmp_path / "words"), "words"])
    grow.main(["grow", str(small), str(tmp_path / "large"), "24", "4", str(tmp_path / "words")])
    (_, before), (model, after) = (qwen_omni.load(folder) for folder in (small, tmp_path / "large"))
    before, after = (np.asarray(params["text"]["embed"]["embedding"], np.float32) for params in (before, after))
    words = tokens.load_tokenizer(tmp_path / "large")
    assert model.config.text.vocab_size == len(words) == len(after) == 640 + 49 + 36
    np.testing.assert_array_equal(after[:640], before)
    blue, star, look = (words.convert_tokens_to_ids(token) for token in ("\u0120blue", "\u0120star", " blue star"))
    np.testing.assert_allclose(after[look], (before[blue] + before[star]) / 2, rtol=1e-6)
    assert words.encode(" blue star 2-5") == [look, words.convert_tokens_to_ids(" 2-5")]


def test_a_tokenizer_with_other_ids_is_refused(tmp_path):
    tokenizer.save(tmp_path / "other", size=500, clips=5)
    with pytest.raises(InputError, match="TOKENIZER has another id for "):
        grow.main(
            ["grow", str(ROOT / "configs/toy_weights/thinker"), str(tmp_path / "x"), "24", "4", str(tmp_path / "other")]
        )
    assert not (tmp_path / "x").exists()
