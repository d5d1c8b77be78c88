"""Large arrays transposed on the host: what numpy's own copy gives, for every layout of a checkpoint."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnir1_jax.models import hf_checkpoint, transpose


@given(st.data())
def test_a_view_is_copied_as_numpy_copies_it(data):
    shape = data.draw(st.lists(st.sampled_from((1, 2, 3, 64, 65, 130)), min_size=1, max_size=3))
    order = data.draw(st.permutations(range(len(shape))))
    step = data.draw(st.sampled_from((1, -1, 2)))
    value = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)[::step].transpose(order)
    target = np.full(value.shape, -1, data.draw(st.sampled_from((np.float32, np.float64))))
    transpose.copy(target, value)
    np.testing.assert_array_equal(target, value)
    found = transpose.contiguous(value)
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, value)


@pytest.mark.parametrize("layout", ["TRANSPOSED", "HEADS_OUT", "HEADS_IN"])
def test_kernels_take_the_fast_way_there_and_back(layout):
    layout = getattr(hf_checkpoint, layout)
    shape = (6, 10) if layout.name == "transposed" else (6, 2, 5)
    param = np.arange(60, dtype=np.float32).reshape(shape)
    tensor = layout.to_torch(param)
    assert transpose._as_transposed(tensor) is not None
    back = layout.to_params(np.ascontiguousarray(tensor), shape)
    assert transpose._as_transposed(back) is not None
    np.testing.assert_array_equal(back, param)
