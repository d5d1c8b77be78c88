"""Quantised weights: the formula, their error by bits, import, meshes, and what is refused."""

import json
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from omnir1_jax.build import models
from omnir1_jax.config import settings
from omnir1_jax.config.sections import Lora
from omnir1_jax.errors import InputError
from omnir1_jax.models import lora, quantise
from omnir1_jax.models.hf_checkpoint import Deferred
from omnir1_jax.models.qwen_omni import pretrained, store
from omnir1_jax.models.qwen_omni.decoder import Decoder
from omnir1_jax.models.qwen_omni.decoding import decoding_copy
from omnir1_jax.models.qwen_omni.thinker import Thinker, abstract_params
from omnir1_jax.parallel import make_mesh, tree_shardings
from omnir1_jax.rl import step
from omnir1_jax.rl.config import Models, Rewards
from omnir1_jax.tasks import qa
from omnir1_jax.training import export
from tests.models.test_lora import random_adapter, rows
from tests.models.text_oracle import params_of, reference, relative, text_config
from tests.rl import small

CONFIG, ALL = text_config(), Lora(rank=3, alpha=6.0)
UP = ("text", "layers", "up", "kernel")
INT8, INT4 = quantise.Format(8), quantise.Format(4, 16)


@pytest.fixture(scope="module")
def params():
    return params_of(reference(CONFIG, seed=5), CONFIG)


def quantised(params, form):
    return quantise.quantised({"text": params}, form)["text"]


def dequantised(params):
    """By hand, float32, in plain numpy."""
    flat = flatten_dict(jax.tree.map(np.asarray, params))
    for path in [path for path in flat if path[-1] == "scales"]:
        scales = flat.pop(path).astype(np.float32)
        name = next(key for key in flat if key[:-1] == path[:-1] and key[-1] in ("kernel", "embedding"))
        values = flat[name].astype(np.float32)
        if path[-2] == "embed":
            flat[name] = values * scales[:, None]
        elif flat[name].dtype == jnp.int4:
            out = values.shape[-1]
            flat[name] = np.stack([(v * s[:, None]).reshape(-1, out) for v, s in zip(values, scales)])
        else:
            broad = values.ndim - scales.ndim
            stacked = bool({*path} & {"layers", "blocks"})
            flat[name] = values * scales.reshape(*scales.shape[:stacked], *(1,) * broad, *scales.shape[stacked:])
    return unflatten_dict(flat)


@jax.jit
def logits(variables):
    tokens, positions, mask, _ = rows()
    return Decoder(CONFIG, remat="full").apply(variables, tokens, positions, mask)


@pytest.mark.parametrize("form", [INT8, INT4])
def test_logits_are_those_of_the_restored_weights(params, form):
    held, adapter = quantised(params, form), random_adapter(params, ALL)
    plain = dequantised(held)
    assert held["layers"]["gate"]["kernel"].dtype == {8: jnp.int8, 4: jnp.int4}[form.bits]
    assert relative(logits({"params": held}), logits({"params": plain})) < 1e-6
    adapted = logits(lora.adapted(held, adapter, ALL))
    assert relative(adapted, logits(lora.adapted(plain, adapter, ALL))) < 1e-6
    assert relative(adapted, logits({"params": lora.merge(held, adapter, ALL)})) < 1e-6
    fresh = lora.init(jax.random.key(0), held, ALL)
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, adapter)
    grads = jax.grad(lambda adapter, base: jnp.sum(logits(lora.adapted(base, adapter, ALL)) ** 2))
    errors = jax.tree.map(relative, grads(adapter, held), grads(adapter, plain))
    assert max(jax.tree.leaves(errors)) < 1e-4


@pytest.mark.parametrize("form", [INT8, INT4])
def test_sums_leave_the_matrix_unit_in_the_dtype_of_activations(form):
    """Over a mesh they are parts, which pass the links: in float32 those were twice the bytes of bfloat16 weights."""
    values, scales = quantise.split(jnp.ones((48, 64), jnp.bfloat16), quantise.plan(UP, (2, 48, 64), form))
    args = jnp.ones((3, 48), jnp.bfloat16), values, scales
    with jax.set_mesh(make_mesh({"fsdp": 1}, jax.devices()[:1])):
        jaxpr = jax.make_jaxpr(lambda x, v, s: quantise.product(x, v, s, (48,), jnp.bfloat16))(*args)
    (product,) = (one for one in jaxpr.eqns if one.primitive.name == "dot_general")
    assert product.outvars[0].aval.dtype == jaxpr.out_avals[0].dtype == jnp.bfloat16


def test_error_by_bits_and_group(params):
    """Of a whole model's logits; half a step at most of each weight."""
    want = logits({"params": params})
    eight, four = (relative(logits({"params": quantised(params, form)}), want) for form in (INT8, INT4))
    assert eight < 0.03 and 3 * eight < four < 0.2, (eight, four)
    held = quantised(params, INT8)
    steps = np.abs(np.asarray(params["layers"]["o"]["kernel"] - dequantised(held)["layers"]["o"]["kernel"]))
    assert (steps <= 0.501 * np.asarray(held["layers"]["o"]["scales"])[:, None, None]).all()


def test_import_quantises_as_it_reads(tmp_path):
    """From safetensors and from a store, onto one device and onto a mesh: the same, but for ties of rounding."""

    def same(got, want):
        assert got.dtype == want.dtype
        apart = np.abs(np.asarray(got, np.float32) - np.asarray(want, np.float32))
        assert apart.max() <= 1 and np.mean(apart > 0) < 0.02

    config, form = small.thinker_config(), INT4
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), small.thinker_params())
    pretrained.save(tmp_path / "hf", Thinker(config), params)
    store.save_store(tmp_path / "store", config, params)
    want = quantise.quantised(params, form)
    mesh = make_mesh({"fsdp": 2, "tensor": 2, "data": 2})
    for folder, on in (("hf", None), ("hf", mesh), ("store", None), ("store", mesh)):
        got = pretrained.read_params(tmp_path / folder, config, mesh=on, form=form)
        jax.tree.map(same, got, want)
    shardings = flatten_dict(tree_shardings(mesh, quantise.quantised(abstract_params(config), form)))
    assert {path: x.sharding for path, x in flatten_dict(got).items()} == shardings
    assert shardings["text", "layers", "down", "scales"].spec[-1] == "fsdp"
    with jax.set_mesh(mesh):
        merged = lora.merge(got["text"], random_adapter(params["text"], ALL), ALL)
        copy = jax.jit(lambda tree: decoding_copy(Thinker(config).decoder(), {"params": tree}))(merged)
    assert copy["params"]["layers"]["up"]["kernel"].dtype == want["text"]["layers"]["up"]["kernel"].dtype


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        (("text", "embed", "embedding"), (96, 16)),
        (("text", "head", "kernel"), (16, 96)),
        (("text", "layers", "q", "kernel"), (2, 16, 4, 8)),
        (("text", "layers", "o", "kernel"), (2, 4, 8, 16)),
        (UP, (2, 48, 64)),
    ],
)
def test_pieces_are_quantised_as_the_whole(monkeypatch, path, shape):
    how = quantise.plan(path, shape, INT4)
    weight = np.random.default_rng(0).normal(size=shape).astype(jnp.bfloat16)
    layers = weight if how.stacked else [weight]
    want = [np.stack(parts) if how.stacked else parts[0] for parts in zip(*(quantise.split(x, how) for x in layers))]
    monkeypatch.setattr(quantise, "PIECE", 200)
    indices = range(len(weight)) if how.stacked else [...]
    got = Deferred(shape, weight.dtype, weight.copy, lambda: ((i, weight[i]) for i in indices)).quantised(how)
    for ours, expected in zip(got, want, strict=True):
        assert ours.dtype == expected.dtype and np.array_equal(ours, expected)


def test_one_layer_is_held_while_a_stack_is_quantised():
    layers, shape = 32, (512, 512)
    make = lambda: ((i, np.full(shape, i, np.float32)) for i in range(layers))
    stack = Deferred((layers, *shape), np.dtype(np.float32), lambda: np.empty(0), make)
    how = quantise.plan(UP, stack.shape, INT8)
    tracemalloc.start()
    values, _ = stack.quantised(how)
    most = tracemalloc.get_traced_memory()[1] - values.nbytes
    tracemalloc.stop()
    assert most < 8 * np.prod(shape) * 4, "float32 copies of one layer, not the stack"


def test_refused(params, tmp_path):
    with pytest.raises(InputError, match="frozen_group: 32 does not divide the 80 input channels of text/layers/down"):
        quantised(params, quantise.Format(4, 32))
    pretrained.save(tmp_path / "hf", Thinker(small.thinker_config()), small.thinker_params())
    path = tmp_path / "hf" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(
        InputError, match=r"config.json: the weights are quantised already \(gptq\); use the unquantised"
    ):
        pretrained.read_config(tmp_path / "hf")


def test_export_merges_into_the_original_weights(tmp_path):
    """Of a run with quantised weights: what `lora.merge` makes of the weights of thinker.path, from either kind."""
    config, base = small.thinker_config(), jax.tree.map(lambda x: x.astype(jnp.bfloat16), small.thinker_params())
    pretrained.save(tmp_path / "hf", Thinker(config), base)
    store.save_store(tmp_path / "store", config, base)
    run = settings.defaults()
    run.thinker.frozen, run.thinker.frozen_group, run.lora.rank, run.lora.alpha = "int4", 16, ALL.rank, ALL.alpha
    adapter = random_adapter(base["text"], ALL)
    want = base | {"text": lora.merge(base["text"], adapter, ALL)}
    for folder in ("hf", "store"):
        run.thinker.path = str(tmp_path / folder)
        params = pretrained.read_params(run.thinker.path, config, form=models.frozen_format(run))
        loaded = models.LoadedModels(Models(Thinker(config), None), params, None, small.tokenizer())
        export.save(tmp_path / f"from_{folder}", run, loaded, adapter)
        got = pretrained.read_params(tmp_path / f"from_{folder}", config)
        jax.tree.map(np.testing.assert_array_equal, got, want)


def test_a_step_of_training_is_that_of_the_restored_weights():
    """Encoders, sampling, reference and update, with an adapter that is not zero."""
    lines, cap = small.batches("qa", 2)[0], 24
    config = small.step_config(lora=ALL)
    reward = jnp.asarray(np.random.default_rng(0).normal(size=(2, small.GROUP)), jnp.float32)
    rewards = Rewards(reward, {"accuracy": reward}, {})
    stages = step.make_stages(qa.TASK, small.models(), small.optimizer(eps=1e-4), config)
    encode, sample, update = map(jax.jit, (stages.encode, stages.sample, stages.update))
    held, found = quantise.quantised(small.thinker_params(), INT4), []
    for params in (held, dequantised(held)):
        frozen, state = small.frozen(params), small.state(random_adapter(small.thinker_params()["text"], ALL))
        media = encode(frozen, lines)
        completions = sample(state, frozen, lines, media, jax.random.key(1))
        found.append((completions.tokens, *update(state, frozen, lines, media, completions, rewards)))
    (tokens, state, metrics), (other, wanted, expected) = found
    assert tokens.shape[-1] == cap and metrics.grad_norm > 0
    np.testing.assert_array_equal(tokens, other)
    assert metrics.grpo.kl > 0
    for got, want in zip(jax.tree.leaves(metrics), jax.tree.leaves(expected)):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), state.trainable, wanted.trainable)
