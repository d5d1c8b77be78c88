"""Layouts: for training, for decoding, of an optimiser's state."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from omnir1_jax import parallel
from omnir1_jax.build import optimizer
from omnir1_jax.config.sections import Lora, Optimizer
from omnir1_jax.models import lora
from omnir1_jax.models.qwen_omni.decoding import axes, decoding_copy
from omnir1_jax.models.qwen_omni.thinker import Thinker
from tests.rl import small


def box(shape, *names):
    return nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, jnp.float32), names)


def test_moments_lie_as_their_parameters_do():
    mesh = parallel.make_mesh({"fsdp": 4, "tensor": 2})
    boxed = {"a": box((8, 6), "embed", "mlp"), "b": box((3,), "norm")}
    rule = optax.MultiSteps(optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.constant_schedule(1e-3))), 2)
    found = parallel.state_shardings(mesh, boxed, rule.gradient_transformation())
    state = jax.eval_shape(rule.init, nn.unbox(boxed))
    assert jax.tree.structure(found) == jax.tree.structure(state)
    shapes, shardings = jax.tree.leaves(state), jax.tree.leaves(found)
    by_shape = {x.shape: sharding.spec for x, sharding in zip(shapes, shardings, strict=True)}
    assert by_shape == {(8, 6): jax.P("fsdp", "tensor"), (3,): jax.P(None), (): jax.P()}


def test_both_factors_of_an_adapter_are_cut():
    mesh = parallel.make_mesh({"fsdp": 4, "tensor": 2})
    boxed = {"layers": {"q": {"kernel": box((3, 8, 2, 4), "layers", "embed", "heads", "head_dim")}}}
    boxed["layers"]["down"] = {"kernel": box((3, 6, 8), "layers", "mlp", "embed")}
    adapter = jax.eval_shape(lambda: lora.init(jax.random.key(0), boxed, Lora(4, 8.0, layers=("q", "down"))))
    found = jax.tree.map(lambda sharding: sharding.spec, parallel.tree_shardings(mesh, adapter))["layers"]
    assert found["q"] == {"a": jax.P(None, "fsdp", None), "b": jax.P(None, "fsdp", "tensor", None)}
    assert found["down"] == {"a": jax.P(None, "tensor", "fsdp"), "b": jax.P(None, "fsdp", None)}


def test_of_a_frozen_parameter_there_is_no_moment_to_place():
    mesh = parallel.make_mesh({"fsdp": 4, "tensor": 2})
    boxed = {"a": box((8, 6), "embed", "mlp"), "b": box((8,), "embed")}
    rule = optax.partition(
        {"trained": optax.adam(1e-3), "frozen": optax.set_to_zero()}, {"a": "trained", "b": "frozen"}
    )
    found = parallel.state_shardings(mesh, boxed, rule)
    placed = jax.jit(rule.init, out_shardings=found)({"a": jnp.ones((8, 6)), "b": jnp.ones(8)})
    moment = placed.inner_states["trained"].inner_state[0].mu["a"]
    assert moment.sharding.spec == jax.P("fsdp", "tensor") and moment.addressable_shards[0].data.shape == (2, 3)


def test_muon_steps_over_a_mesh_as_on_one_device():
    mesh = parallel.make_mesh({"fsdp": 4, "tensor": 2})
    boxed = {
        "q": {"kernel": box((2, 8, 2, 4), "layers", "embed", "heads", "head_dim")},
        "down": {"kernel": box((2, 6, 8), "layers", "mlp", "embed")},
        "norm": {"scale": box((8,), "norm")},
    }
    rule = optimizer.make(Optimizer(rule="muon", learning_rate=0.1), 4, nn.unbox(boxed))
    draw = lambda n: jax.tree.map(lambda x: jax.random.normal(jax.random.key(n), x.shape), nn.unbox(boxed))
    params, grads = draw(0), draw(1)
    wanted, _ = rule.update(grads, rule.init(params), params)

    placed, laid = parallel.state_shardings(mesh, boxed, rule), parallel.tree_shardings(mesh, boxed)
    params, grads = jax.device_put((params, grads), (laid, laid))
    state = jax.jit(rule.init, out_shardings=placed)(params)
    got, state = jax.jit(rule.update, out_shardings=(laid, placed))(grads, state, params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), got, wanted)
    specs = {x.shape: x.sharding.spec for x in jax.tree.leaves(state)}
    assert specs[2, 8, 2, 4] == laid["q"]["kernel"].spec == jax.P(None, "fsdp", "tensor", None)
    assert specs[2, 6, 8] == laid["down"]["kernel"].spec == jax.P(None, "tensor", "fsdp")


def test_rows_are_spread_and_everything_else_is_whole():
    mesh = parallel.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    tree = {"rows": jnp.zeros((8, 3)), "table": jnp.zeros((3, 8)), "scalar": jnp.zeros(())}
    with jax.set_mesh(mesh):
        placed = jax.jit(lambda tree: parallel.constrain_rows(tree, 8))(tree)
    assert placed["rows"].addressable_shards[0].data.shape == (2, 3)
    assert placed["table"].is_fully_replicated and placed["scalar"].is_fully_replicated
    again = parallel.replicate(tree, mesh)
    assert all(x.is_fully_replicated for x in jax.tree.leaves(again)) and again["rows"].shape == (8, 3)


def test_decoding_cuts_the_wide_axes_and_heads_that_do_not_divide_by_their_channels():
    mesh = parallel.make_mesh({"fsdp": 4, "tensor": 2})
    spec = lambda shape, *names: parallel.named_sharding(mesh, names, shape, parallel.DECODING_RULES).spec
    assert spec((48, 64), "embed", "mlp") == jax.P(None, ("fsdp", "tensor"))
    assert spec((48, 8, 16), "embed", "heads", "head_dim") == jax.P(None, ("fsdp", "tensor"), None)
    assert spec((48, 2, 16), "embed", "kv_heads", "head_dim") == jax.P(None, None, ("fsdp", "tensor"))


def test_the_copy_for_decoding_is_the_cast_weights_laid_out_anew():
    decoder = Thinker(small.thinker_config(dtype=jnp.bfloat16)).decoder()
    params = small.thinker_params()["text"]
    mesh = parallel.make_mesh({"fsdp": 4, "tensor": 2})
    placed = jax.device_put(params, parallel.tree_shardings(mesh, axes(decoder)))
    adapter = lora.init(jax.random.key(0), params, Lora(4, 8.0))
    with jax.set_mesh(mesh):
        both = jax.jit(lambda *trees: decoding_copy(decoder, dict(zip(("params", "lora"), trees))))(placed, adapter)
    copy, shard = both["params"], lambda x: x.addressable_shards[0].data.shape
    assert shard(copy["layers"]["gate"]["kernel"]) == (2, 48, 8)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(jnp.bfloat16)), copy, params)
    gate, down = (jax.tree.map(shard, both["lora"]["layers"][name]) for name in ("gate", "down"))
    assert (gate, down) == ({"a": (2, 48, 4), "b": (2, 4, 8)}, {"a": (2, 8, 4), "b": (2, 4, 48)})


def test_an_activation_is_left_alone_without_a_mesh():
    x = jnp.ones((4, 3))
    assert parallel.constrain(x, ("batch", None)) is x
    with jax.set_mesh(parallel.make_mesh({"data": 2, "fsdp": 4})):
        placed = jax.jit(lambda x: parallel.constrain(x, ("rows", None)))(x)
    assert placed.addressable_shards[0].data.shape == (2, 3)
