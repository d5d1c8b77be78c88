"""Layers that take another way than the library's, against it."""

import jax
import numpy as np
import pytest
from flax import linen as nn

from omnir1_jax.models.sam2.layers import Conv


@pytest.mark.parametrize("kernel, stride, padding, side", [(3, 4, 1, 32), (3, 5, 1, 17), (3, 3, 2, 11), (2, 4, 0, 10)])
def test_convolution_of_patches_apart(kernel, stride, padding, side):
    """Its result and gradients are those of the convolution; `side` leaves rows over, or lacks some, at the end."""
    conv = Conv(5, kernel, stride, padding, "float32")
    same = nn.Conv(5, (kernel, kernel), stride, ((padding, padding),) * 2, precision="highest")
    x = jax.random.normal(jax.random.key(0), (2, side, side, 3))
    params = nn.unbox(conv.init(jax.random.key(1), x)["params"])["conv"]
    loss = lambda y: (y**2).sum()
    ours = jax.value_and_grad(lambda p, x: loss(conv.apply({"params": {"conv": p}}, x)), (0, 1))(params, x)
    want = jax.value_and_grad(lambda p, x: loss(same.apply({"params": p}, x)), (0, 1))(params, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), ours, want)
