"""Operations of programs against sums by hand, as lowered and as compiled."""

import jax
import jax.numpy as jnp
import pytest

from omnir1_jax.errors import InputError
from omnir1_jax.planning import hlo, operations, topology
from omnir1_jax.planning.operations import Assumptions


def modules(function, *shapes):
    lowered = jax.jit(function).lower(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes))
    return hlo.parse(lowered.as_text("hlo", debug_info=True)), hlo.parse(lowered.compile().as_text())


def both(function, *shapes, assumptions=None):
    """The count, after seeing that the compiler's program has as many operations as the lowered one."""
    lowered, compiled = (
        operations.total(module, assumptions or Assumptions()) for module in modules(function, *shapes)
    )
    assert lowered == compiled
    return lowered


def test_a_product_is_two_for_each_multiplication():
    assert both(lambda a, b: a @ b, (3, 5), (5, 7)) == 2 * 3 * 5 * 7


def test_batched_products_and_contractions_of_several_axes():
    assert both(lambda a, b: jnp.einsum("bsh,bth->bst", a, b), (4, 6, 8), (4, 9, 8)) == 2 * 4 * 6 * 9 * 8
    assert both(lambda a, b: jnp.tensordot(a, b, 2), (6, 4, 8), (4, 8, 9)) == 2 * 6 * 4 * 8 * 9


@pytest.mark.parametrize(
    "stride, padding, dilation, groups, places",
    [(1, (0, 0), 1, 1, 6 * 3), (2, (1, 1), 1, 1, 4 * 3 - 1), (1, (1, 2), 1, 1, 9 * 3 - 4), (1, (0, 0), 2, 2, 4 * 3)],
)
def test_convolutions_do_nothing_in_the_padding(stride, padding, dilation, groups, places):
    """8 positions, a kernel of 3, counted pair by pair: `places` of them meet the input on each axis."""

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), (padding, padding), rhs_dilation=(dilation, dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups,
        )  # fmt: skip

    count = both(convolve, (2, 8, 8, 4), (3, 3, 4 // groups, 6))
    assert count == 2 * 2 * 6 * (4 // groups) * places**2


def test_loops_in_loops_multiply():
    def nested(x, w):
        inner = lambda x, _: (x @ w, None)
        outer = lambda x, _: (jax.lax.scan(inner, x, None, length=5)[0] @ w, None)
        return jax.lax.scan(outer, x, None, length=3)[0]

    assert both(nested, (4, 4), (4, 4)) == 2 * 64 * 3 * (5 + 1)
    halves = lambda x, w: jax.lax.fori_loop(2, 9, lambda i, x: x @ w, x)
    assert both(halves, (4, 4), (4, 4)) == 2 * 64 * 7


def test_the_gradient_of_a_rematerialised_scan_counts_four_times_the_forward_pass():
    def loss(x, w):
        layer = jax.checkpoint(lambda x, w: (jnp.sin(x @ w), None), prevent_cse=False)
        with jax.named_scope("net"):
            return jax.lax.scan(layer, x, w)[0].sum()

    lowered, _ = modules(jax.grad(loss, argnums=(0, 1)), (8, 4), (6, 4, 4))
    one = 2 * 8 * 4 * 4 * 6
    parts = operations.by_phase(operations.by_path(lowered), ("net/recompute", "net/backward", "net"))
    assert parts == {"net/recompute": one, "net/backward": 2 * one, "net": one, "other": 0}


def while_scoped(x, w):
    with jax.named_scope("search"):
        return jax.lax.while_loop(lambda x: x.sum() > 0, lambda x: x @ w, x)


def test_loops_that_end_by_the_data_take_the_trips_given():
    given = Assumptions(trips={"search": 11})
    assert both(while_scoped, (4, 4), (4, 4), assumptions=given) == 2 * 64 * 11
    with pytest.raises(InputError, match="search/while"):
        operations.total(modules(while_scoped, (4, 4), (4, 4))[0])
    idle = lambda x: jax.lax.while_loop(lambda x: x.sum() > 0, lambda x: x - 1, x)
    assert both(idle, (4, 4)) == 0  # nothing to count inside, so nobody has to say


def test_branches_count_by_their_shares_or_the_costliest():
    def choose(x, w):
        with jax.named_scope("choice"):
            return jax.lax.cond(x.sum() > 0, lambda: x @ w @ w, lambda: x @ w)

    assert both(choose, (4, 4), (4, 4)) == 2 * 64 * 2
    shares = Assumptions(shares={"choice": (0.75, 0.25)})  # the false branch comes first
    assert both(choose, (4, 4), (4, 4), assumptions=shares) == 2 * 64 * 1.25


def test_sizes_of_types():
    text = """HloModule m
ENTRY %main (p: (bf16[2,3], pred[4])) -> s4[8] {
  %p = (bf16[2,3]{1,0:T(8,128)(2,1)S(1)}, pred[4]{0}, /*index=2*/f8e4m3fn[5]{0}) parameter(0)
  ROOT %x = s4[8]{0} custom-call(%p), custom_call_target="f", frontend_attributes={kernel_metadata={
"block":"{\\"q\\": 5}"
}}, metadata={op_name="a (b) c"}
}
"""
    module = hlo.parse(text)
    p, x = module.computations["main"]
    assert p.bytes == 12 + 4 + 5 and x.bytes == 4 and x.operands == ("p",) and x.path == "a (b) c"
    with pytest.raises(InputError, match="line 3"):
        hlo.parse(text.replace("%p = ", ""))


def test_an_element_of_a_tuple_may_be_named_where_it_is_used():
    """As compilers write it since 2026: `p#1` for `get-tuple-element(p), index=1`, also of tuples within tuples."""
    module = hlo.parse(
        "ENTRY %main (p: (s32[], (f32[3,5], f32[5,7]))) -> f32[3,7] {\n"
        "  %p = (s32[]{:T(128)}, (f32[3,5]{1,0:T(8,128)}, f32[5,7]{1,0})) parameter(0)\n"
        "  ROOT %dot = f32[3,7]{1,0} dot(%p#1#0, %p#1#1), lhs_contracting_dims={1}, rhs_contracting_dims={0}\n"
        "}\n"
    )
    assert operations.total(module, Assumptions()) == 2 * 3 * 5 * 7
    one = module.computations["main"].instructions["p#1#0"]
    assert one.opcode == "get-tuple-element" and one.shape.dims == (3, 5) and one.integers("index") == (0,)
    with pytest.raises(InputError, match="p has no element 2"):
        hlo.parse("ENTRY %m () -> f32[] {\n  %p = (f32[], f32[]) parameter(0)\n  ROOT %c = f32[] copy(%p#2)\n}\n")


def test_peaks_of_devices_by_what_jax_calls_them():
    kinds = {
        "TPU v5 lite": 197e12,
        "Tesla T4": 65e12,
        "NVIDIA A100-SXM4-80GB": 312e12,
        "NVIDIA A100 80GB PCIe": 312e12,
        "NVIDIA A10G": 70e12,
        "NVIDIA H100 80GB HBM3": 989e12,
        "NVIDIA H100 PCIe": 756e12,
        "NVIDIA H200": 989e12,
        "NVIDIA L4": 121e12,
        "NVIDIA L40S": 362e12,
        "NVIDIA RTX A1000": None,
        "NVIDIA A1000": None,
        "cpu": None,
    }
    assert {kind: topology.peak_of(kind) for kind in kinds} == kinds
