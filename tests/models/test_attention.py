"""Attention against a plain NumPy table, each mask, each way of computing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from omnir1_jax.errors import InputError
from omnir1_jax.models.attention import Mask, Tree, attend, attend_shared, cudnn, splash, xla

TREE = Tree(prompt=9, group=3, length=5)
S = 24  # = 9 + 3 * 5


def table_of(mask, b, s, t):
    """The mask as a table, by loops."""
    table = np.ones((b, s, t), bool)
    for r, i, j in np.ndindex(b, s, t):
        ok = mask.keys is None or bool(mask.keys[r, j])
        ok &= mask.segments is None or bool(mask.segments[r, i] == mask.segments[r, j])
        ok &= mask.dense is None or bool(mask.dense[r % mask.dense.shape[0], i, j])
        ok &= not mask.causal or j <= i
        if mask.tree is not None:
            p, _, c = mask.tree
            ok &= j <= i and (j < p or (i - p) // c == (j - p) // c)
        table[r, i, j] = ok
    return table


def oracle(q, k, v, table, scale):
    """Keys repeated for each head of their group, softmax over the whole table."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    k, v = (np.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    scores = np.einsum("bshd,bthd->bhst", q, k) * scale
    scores = np.where(table[:, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bhst,bthd->bshd", weights / weights.sum(-1, keepdims=True), v)


def random_qkv(key, b, s, t, h, key_heads, d, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(key), 3)
    shapes = (b, s, h, d), (b, t, key_heads, d), (b, t, key_heads, d)
    return [jax.random.normal(k, shape, dtype) for k, shape in zip(keys, shapes)]


rng = np.random.default_rng(0)
KEYS = jnp.asarray(rng.random((2, S)) < 0.7).at[:, 0].set(True)
MASKS = {
    "none": Mask(),
    "causal": Mask(causal=True),
    "causal, padded": Mask(keys=KEYS, causal=True),
    "segments": Mask(segments=jnp.asarray(np.sort(rng.integers(0, 4, (2, S)), axis=1))),
    "dense of all rows": Mask(dense=jnp.asarray(rng.random((1, S, S)) < 0.5) | jnp.eye(S, dtype=bool)),
    "tree": Mask(tree=TREE),
    "tree, padded": Mask(keys=KEYS.at[:, TREE.prompt :: TREE.length].set(True), tree=TREE),
    "tree and dense": Mask(dense=jnp.asarray(rng.random((2, S, S)) < 0.5) | jnp.eye(S, dtype=bool), tree=TREE),
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("pieces", [False, True])
def test_masks(name, pieces, monkeypatch):
    if pieces:  # queries 7 at a time, the last piece short
        monkeypatch.setattr(xla, "MIN_QUERIES", 7)
        monkeypatch.setattr(xla, "MAX_SCORES", 1)
    q, k, v = random_qkv(1, 2, S, S, 6, 2, 8)
    mask = MASKS[name]
    want = oracle(q, k, v, table_of(mask, 2, S, S), 0.3)
    np.testing.assert_allclose(attend(q, k, v, mask=mask, scale=0.3), want, atol=2e-6)


def test_cross_attention_with_padded_keys():
    q, k, v = random_qkv(2, 2, 5, S, 4, 4, 8)
    want = oracle(q, k, v, table_of(Mask(keys=KEYS), 2, 5, S), 8**-0.5)
    np.testing.assert_allclose(attend(q, k, v, mask=Mask(keys=KEYS)), want, atol=2e-6)


def test_query_without_keys_is_finite():
    q, k, v = random_qkv(3, 1, 4, 4, 2, 1, 8)
    out, grads = jax.value_and_grad(lambda q: attend(q, k, v, mask=Mask(keys=jnp.zeros((1, 4), bool))).sum())(q)
    assert np.isfinite(out) and np.isfinite(grads).all()


@pytest.mark.parametrize("name", ["causal, padded", "tree, padded"])
def test_gradients_in_pieces(name, monkeypatch):
    """The gradient through pieces, against the gradient of a softmax over the whole table."""
    q, k, v = random_qkv(4, 2, S, S, 6, 2, 8)
    mask = MASKS[name]
    table = jnp.asarray(table_of(mask, 2, S, S))
    weights = jax.random.normal(jax.random.key(5), q.shape)

    def plain(q, k, v):
        k, v = (jnp.repeat(x, 3, axis=2) for x in (k, v))
        scores = jnp.where(table[:, None], jnp.einsum("bshd,bthd->bhst", q, k) / np.sqrt(8), -jnp.inf)
        return (jnp.einsum("bhst,bthd->bshd", jax.nn.softmax(scores), v) * weights).sum()

    want = jax.jit(jax.grad(plain, (0, 1, 2)))(q, k, v)
    monkeypatch.setattr(xla, "MIN_QUERIES", 7)
    monkeypatch.setattr(xla, "MAX_SCORES", 1)
    got = jax.jit(jax.grad(lambda *x: (attend(*x, mask=mask) * weights).sum(), (0, 1, 2)))(q, k, v)
    for a, b in zip(got, want):
        np.testing.assert_allclose(a, b, atol=5e-6)


def test_memory_is_bounded():
    """Long rows, forward and backward: far less than the table of all scores, which would be 1 GiB."""
    q, k, v = (jax.ShapeDtypeStruct((1, 8192, h, 8), jnp.float32) for h in (4, 2, 2))
    grad = jax.grad(lambda *x: attend(*x, mask=Mask(causal=True), implementation="xla").sum(), (0, 1, 2))
    attention_limit = xla.MAX_SCORES
    try:
        xla.MAX_SCORES = 2**23
        memory = jax.jit(grad).lower(q, k, v).compile().memory_analysis()
    finally:
        xla.MAX_SCORES = attention_limit
    assert memory.temp_size_in_bytes < 6 * 2**23 * 4


def test_bfloat16():
    q, k, v = random_qkv(6, 2, S, S, 6, 2, 8, jnp.bfloat16)
    want = oracle(q, k, v, table_of(MASKS["tree"], 2, S, S), 8**-0.5)
    out = attend(q, k, v, mask=MASKS["tree"])
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(np.float32), want, atol=0.03)


def test_shared_prompt_and_own_suffixes():
    b, g, n, h, key_heads, d, p, c = 2, 3, 4, 6, 2, 8, 7, 5
    keys = jax.random.split(jax.random.key(7), 5)
    q = jax.random.normal(keys[0], (b, g, n, h, d))
    prompt_k, prompt_v = (jax.random.normal(k, (b, key_heads, p, d)) for k in keys[1:3])
    tail_k, tail_v = (jax.random.normal(k, (b, g, key_heads, c, d)) for k in keys[3:])
    prompt_mask = jnp.asarray(rng.random((b, p)) < 0.6)
    tail_mask = jnp.asarray(rng.random((b, g, n, c)) < 0.6).at[..., 0].set(True)
    got = attend_shared(q, prompt_k, prompt_v, prompt_mask, tail_k, tail_v, tail_mask)
    for i, j in np.ndindex(b, g):
        k = np.concatenate([prompt_k[i], tail_k[i, j]], axis=1).swapaxes(0, 1)[None]
        v = np.concatenate([prompt_v[i], tail_v[i, j]], axis=1).swapaxes(0, 1)[None]
        table = np.concatenate([np.broadcast_to(prompt_mask[i], (n, p)), tail_mask[i, j]], axis=1)[None]
        np.testing.assert_allclose(got[i, j], oracle(q[i, j][None], k, v, table, d**-0.5)[0], atol=2e-6)


@pytest.mark.parametrize(
    "mask",
    [
        Mask(tree=Tree(130, 2, 60), keys=jnp.arange(250)[None] >= 3),  # left-padded prompt
        Mask(segments=(jnp.arange(250) // 70)[None]),
    ],
    ids=["tree", "segments"],
)
def test_splash_interpreted(mask):
    """The kernel's program, run without a TPU, against the plain way; padding queries left out."""
    q, k, v = random_qkv(8, 1, 250, 250, 4, 2, 128)
    want = attend(q, k, v, mask=mask, implementation="xla")
    got = splash.attend(q, k, v, mask=mask, scale=128**-0.5, interpret=True)
    real = np.ones((1, 250), bool) if mask.keys is None else np.asarray(mask.keys)
    np.testing.assert_allclose(got[real], want[real], atol=1e-5)


@pytest.mark.parametrize(("keys", "width", "value_width"), [(300, 256, 64), (1024, 72, 72)])
def test_splash_interpreted_across_with_own_value_widths(keys, width, value_width):
    """Heads and values that do not fill 128 lanes, keys that do not fill a block, most of them unseen, under `vmap`."""
    q, k, _ = random_qkv(11, 2, 1024, keys, 2, 1, width)
    v = jax.random.normal(jax.random.key(12), (2, keys, 1, value_width))
    seen = jnp.asarray(np.random.default_rng(1).random((2, keys)) < 0.3)
    k, v = (jnp.where(seen[:, :, None, None], x, 1e4) for x in (k, v))  # what is not seen may be anything
    kernel = lambda *x: splash.attend(*x[:3], mask=Mask(keys=x[3]), scale=0.1, interpret=True)
    got = jax.vmap(kernel)(*(x[:, None] for x in (q, k, v, seen)))[:, 0]
    want = attend(q, k, v, mask=Mask(keys=seen), scale=0.1, implementation="xla")
    assert got.shape == (2, 1024, 2, value_width)
    np.testing.assert_allclose(got, want, atol=1e-5)


def compile_for_tpu(tree: Tree, heads: int, key_heads: int, devices: int):
    """Forward and gradient of the tree's attention, compiled for v5e without one; two rows a device."""
    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
    mesh = Mesh(np.array(topology.devices[:devices]).reshape(devices, 1, 1), ("data", "fsdp", "tensor"))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    tokens = tree.prompt + tree.group * tree.length
    args = [
        jax.ShapeDtypeStruct((2 * devices, tokens, n, 128), jnp.bfloat16, sharding=sharding)
        for n in (heads, key_heads, key_heads)
    ]
    keys = jax.ShapeDtypeStruct((2 * devices, tokens), bool, sharding=sharding)

    def loss(q, k, v, keys):
        return attend(q, k, v, mask=Mask(keys=keys, tree=tree), implementation="auto").astype(jnp.float32).sum()

    # Mosaic has no float32 product of bfloat16 operands, which the suite's default precision would ask for.
    with jax.set_mesh(mesh), jax.default_matmul_precision("default"):
        return jax.jit(jax.grad(loss, (0, 1, 2))).lower(*args, keys).compile()


def test_splash_compiles_for_tpu_with_gradient():
    """The real tree on four chips; temporary memory holds no table of scores (28 x 8192^2 would be 7.5 GiB)."""
    compiled = compile_for_tpu(Tree(2048, 8, 768), 28, 4, devices=4)
    assert compiled.as_text().count("tpu_custom_call") >= 3  # forward, dq, dkv
    assert compiled.memory_analysis().temp_size_in_bytes < 1.5 * 2**30


def test_cudnn_predicate():
    why_not = functools.partial(cudnn.why_not, (1, 64, 8, 128), (1, 64, 2, 128), jnp.bfloat16)
    assert why_not(Mask(causal=True)) is None
    assert why_not(Mask(keys=jnp.ones((1, 64), bool), causal=True)) is None
    assert "float32" in cudnn.why_not((1, 64, 8, 128), (1, 64, 2, 128), jnp.float32, Mask())
    assert "values 64" in cudnn.why_not((1, 64, 8, 128), (1, 64, 2, 64), jnp.bfloat16, Mask())
    assert "head_dim 130" in cudnn.why_not((1, 64, 8, 130), (1, 64, 2, 130), jnp.float16, Mask())
    assert "head_dim 136" in cudnn.why_not((1, 64, 8, 136), (1, 64, 2, 136), jnp.float16, Mask())
    odd = (1, 63, 8, 128), (1, 63, 2, 128)
    assert cudnn.why_not(*odd, jnp.bfloat16, Mask(causal=True)) is None
    assert "even" in cudnn.why_not(*odd, jnp.bfloat16, Mask(segments=jnp.ones((1, 63), int)))
    long = (2, 2**14, 8, 128), (2, 2**14, 2, 128)
    assert "larger" in cudnn.why_not(*long, jnp.bfloat16, Mask(tree=Tree(2**13, 8, 2**10)))


@pytest.mark.parametrize(
    ("backend", "dtype", "want"),
    [("tpu", jnp.float32, "splash"), ("gpu", jnp.bfloat16, "cudnn"), ("gpu", jnp.float32, "xla"), ("cpu", None, "xla")],
)
def test_auto_takes_what_fits(backend, dtype, want, monkeypatch):
    taken = []
    for name, module, attribute in [
        ("splash", splash, "attend"),
        ("cudnn", jax.nn, "dot_product_attention"),
        ("xla", xla, "attend"),
    ]:
        monkeypatch.setattr(module, attribute, lambda q, *_, _name=name, **__: taken.append(_name) or q)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    attend(*random_qkv(9, 1, 128, 128, 2, 1, 128, dtype or jnp.float32), mask=Mask(causal=True))
    attend(*random_qkv(9, 1, 31, 31, 2, 1, 15, dtype or jnp.float32), mask=Mask(keys=jnp.ones((1, 31), bool)))
    assert taken == [want, "xla"]


def test_errors_name_the_dimension():
    q, k, v = random_qkv(10, 1, 24, 24, 6, 2, 8)
    with pytest.raises(InputError, match="6 query heads"):
        attend(q, k[:, :, :1].repeat(4, 2), v[:, :, :1].repeat(4, 2))
    with pytest.raises(InputError, match="24 queries and 23 keys"):
        attend(q, k[:, :23], v[:, :23], mask=Mask(causal=True))
    with pytest.raises(InputError, match="add up to 24"):
        attend(q, k, v, mask=Mask(tree=Tree(9, 3, 4)))
    with pytest.raises(InputError, match="'flash' is none of auto"):
        attend(q, k, v, implementation="flash")
    with pytest.raises(InputError, match="splash cannot be used because 24 queries and 24 keys do not fill"):
        attend(q, k, v, implementation="splash")
    with pytest.raises(InputError, match="splash cannot be used because head_dim 72"):
        attend(*random_qkv(10, 1, 128, 512, 2, 1, 72), implementation="splash")
    with pytest.raises(InputError, match="cudnn cannot be used because dtype float32"):
        attend(q, k, v, implementation="cudnn")
