"""A thinker with another layer: the same words at first, and all of it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omnir1_jax.errors import InputError
from omnir1_jax.models.qwen_omni import pretrained
from omnir1_jax.models.qwen_omni.inputs import ThinkerInputs
from omnir1_jax.models.qwen_omni.thinker import Thinker
from omnir1_jax.supervised import deepen
from tests.rl import small

TOKENS = jnp.arange(24, dtype=jnp.int32).reshape(2, 12) + 5
PLACES = jnp.broadcast_to(jnp.arange(12, dtype=jnp.int32), (2, 3, 12))
NONE = jnp.full((2, 12), -1, jnp.int32)
WORDS = ThinkerInputs(TOKENS, jnp.ones((2, 12), bool), PLACES, jnp.full(2, 12, jnp.int32), NONE, NONE)


def logits(model, params):
    return model.apply({"params": params}, WORDS, method="logits")


@pytest.mark.parametrize("after", [0, 1, 2])
def test_the_new_layer_begins_as_nothing_and_learns(tmp_path, after):
    model, params = small.models().thinker, small.thinker_params()
    want = logits(model, params)
    pretrained.save(tmp_path / "first", model, params)
    deepen.main(deepen.parse(["", str(tmp_path / "first"), str(tmp_path / "out"), f"--after={after}"]))
    deeper, made = pretrained.load(tmp_path / "out")
    assert deeper.config.text.num_layers == model.config.text.num_layers + 1
    np.testing.assert_allclose(logits(deeper, made), want, rtol=1e-5, atol=1e-5)

    grads = jax.grad(lambda p: jnp.sum(logits(deeper, p)[..., 3] ** 2))(made)["text"]["layers"]
    for name in deepen.LEAVING:
        assert all(jnp.abs(layer).max() > 0 for layer in grads[name]["kernel"])


def test_a_place_outside_the_decoder_is_refused():
    with pytest.raises(InputError, match="--after: the decoder has 2 layers, so 0 to 2, not 3"):
        deepen.deepened(Thinker(small.thinker_config()).config, small.thinker_params(), 3)
