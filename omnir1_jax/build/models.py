"""From a config to modules, parameters and the tokenizer: read from a directory, or of random weights."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from jaxtyping import Array, Key
from ml_collections import ConfigDict
from transformers import PreTrainedTokenizerBase

from omnir1_jax.config import sections
from omnir1_jax.config.schema import shared
from omnir1_jax.config.settings import section
from omnir1_jax.data.preprocess import tokens
from omnir1_jax.errors import InputError
from omnir1_jax.models import lora, sam2
from omnir1_jax.models.qwen_omni import pretrained, store
from omnir1_jax.models.qwen_omni.config import AudioConfig, TextConfig, ThinkerConfig, TokenIds, VisionConfig
from omnir1_jax.models.qwen_omni.sample import Sampling
from omnir1_jax.models.qwen_omni.thinker import Thinker, abstract_params
from omnir1_jax.parallel import replicate, tree_shardings
from omnir1_jax.rl.config import Frozen, Models, StepConfig
from omnir1_jax.systems import grounders, prompts
from omnir1_jax.systems.grounders.protocol import Grounder
from omnir1_jax.systems.grounders.thinker import ThinkerGrounder, ThinkerParams
from omnir1_jax.text.bpe import bpe_tables
from omnir1_jax.text.prompt import template
from omnir1_jax.text.vocab import byte_vocab

# SAM 2's random features of places, and its tokens, which have to differ from the start.
BROAD = (
    "positional",
    "image_positional",
    "object_token",
    "iou_token",
    "mask_tokens",
    "point",
    "not_a_point",
    "no_mask",
)
TRY = "to see everything run without weights of your own, try configs/toy.py"

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}


class Loaded(NamedTuple):
    """Modules with their parameters. `sam2_params` is None where `models.sam2` is; a run that trains SAM 2 itself has
    nothing else."""

    models: Models
    params: dict[str, Any] | None  # {"vision", "audio", "text"} of the thinker
    sam2_params: Any
    tokenizer: PreTrainedTokenizerBase | None


def tokenizer(config: ConfigDict) -> PreTrainedTokenizerBase:
    """The tokenizer that the config names, or that of the weights."""
    path = config.thinker.tokenizer or config.thinker.path
    if not path:
        raise InputError("thinker.tokenizer: random weights need a directory with a tokenizer")
    folder = _directory(path, "thinker.tokenizer" if config.thinker.tokenizer else "thinker.path")
    return tokens.load_tokenizer(str(folder / "files" if store.is_store(folder) else folder))


def thinker_config(own: ConfigDict | sections.Thinker, ids: TokenIds, vocab_size: int) -> ThinkerConfig:
    """Sizes of the thinker, from its directory or from `thinker.sizes`."""
    own = section(sections.Thinker, own)
    switches = dict(dtype=jnp.dtype(own.dtype), remat=own.remat, attention=own.attention)
    if own.path:
        found = pretrained.read_config(_directory(own.path, "thinker.path"), switches.pop("dtype"))
        return dataclasses.replace(found, **switches)
    sizes = dict(own.sizes)
    if not sizes:
        raise InputError(f"thinker.path: name a directory with the weights; {TRY}")
    parts = dict(
        text=_fields(TextConfig, {"vocab_size": vocab_size} | sizes.pop("text", {}), "thinker.sizes.text"),
        vision=_fields(VisionConfig, sizes.pop("vision", {}), "thinker.sizes.vision"),
        audio=_fields(AudioConfig, sizes.pop("audio", {}), "thinker.sizes.audio"),
    )
    return _fields(ThinkerConfig, {**parts, "tokens": ids, **switches, **sizes}, "thinker.sizes")


def sam2_config(own: ConfigDict | sections.Sam2) -> sam2.Sam2Config | None:
    """Sizes of the segmenter; None where the config names none."""
    own = section(sections.Sam2, own)
    options = shared(sections.Sam2Run, own)
    if own.path:
        return sam2.read_config(_directory(own.path, "sam2.path"), **options)
    sizes = dict(own.sizes)
    if not sizes:
        return None
    hiera = _fields(sam2.HieraConfig, sizes.pop("hiera", {}), "sam2.sizes.hiera")
    return _fields(sam2.Sam2Config, {"hiera": hiera, **options, **sizes}, "sam2.sizes")


class Sizes(NamedTuple):
    """What is known before any parameter is read."""

    tokenizer: PreTrainedTokenizerBase | None
    thinker: ThinkerConfig | None
    sam2: sam2.Sam2Config | None


def sizes(config: ConfigDict) -> Sizes:
    """Reads tokenizer and model configs; quick, so that a wrong setting shows before gigabytes are read."""
    if config.objective == "masks":
        return Sizes(None, None, sam2_config(config.sam2))
    words = tokenizer(config)
    ids = TokenIds(**dataclasses.asdict(tokens.token_ids(words)))
    thinker = thinker_config(config.thinker, ids, len(words))
    _check_tokens(config, thinker, ids, len(words))
    return Sizes(words, thinker, sam2_config(config.sam2))


def _check_tokens(config: ConfigDict, thinker: ThinkerConfig, ids: TokenIds, count: int) -> None:
    """InputError where the tokenizer is not one for the weights: a token past the vocabulary has no logit to learn."""
    setting = f"thinker.tokenizer: {config.thinker.tokenizer or config.thinker.path}"
    if count > thinker.text.vocab_size:
        raise InputError(f"{setting} has {count} tokens, the model's vocabulary {thinker.text.vocab_size}")
    for name, own in dataclasses.asdict(thinker.tokens).items():
        if name not in ("pad", "eos") and own != getattr(ids, name):  # these two are the tokenizer's to say
            raise InputError(f"{setting} has {name} at {getattr(ids, name)}, the model at {own}")


def load(config: ConfigDict, found: Sizes, mesh: Mesh | None = None) -> Loaded:
    """Reads or draws all parameters; onto `mesh` by their logical axes, or onto the default device."""
    key = jax.random.key(config.seed)
    thinker = params = segmenter = sam2_params = None
    if found.thinker is not None:
        thinker, dtype = Thinker(found.thinker), jnp.dtype(config.thinker.param_dtype)
        if config.thinker.path:
            params = pretrained.read_params(config.thinker.path, found.thinker, dtype=dtype, mesh=mesh)
        else:
            params = draw(abstract_params(found.thinker), jax.random.fold_in(key, 1), dtype, mesh)
    if found.sam2 is not None:
        segmenter, dtype = sam2.Sam2(found.sam2), jnp.dtype(config.sam2.dtype)
        if config.sam2.path:
            _, sam2_params = sam2.load(config.sam2.path, dtype=dtype, mesh=mesh, side=found.sam2.side)
        else:
            sam2_params = sam2.place(draw(sam2.abstract_params(found.sam2), jax.random.fold_in(key, 2), dtype, mesh))
    chosen = None if thinker is None else grounder(config, found.thinker)
    return Loaded(Models(thinker, segmenter, chosen), params, sam2_params, found.tokenizer)


def grounder(config: ConfigDict, thinker: ThinkerConfig) -> Grounder:
    """The run's grounder without its parameters. `thinker`: sizes of the run's own thinker."""
    own, ids = config.step, thinker.tokens
    sampling = Sampling(own.grounding_tokens, ids.eos, ids.pad, temperature=0.0)
    base = ThinkerGrounder(Thinker(thinker), sampling, own.description_tokens, own.grounding_bytes)
    return grounders.make(own.grounder, base)


def draw(boxed: Any, key: Key[Array, ""], dtype: Any, mesh: Mesh | None = None) -> Any:
    """Random parameters of the shapes of `boxed`: normal with the fan-in's deviation, scales 1, biases 0."""
    shapes = flatten_dict(nn.unbox(boxed))
    shardings = {} if mesh is None else flatten_dict(tree_shardings(mesh, boxed))

    def one(path: tuple[str, ...], shape: jax.ShapeDtypeStruct, key: Key[Array, ""]) -> Array:
        if path[-1] == "scale":
            return jnp.ones(shape.shape, dtype)
        if path[-1] == "bias":
            return jnp.zeros(shape.shape, dtype)
        stacked = shape.shape[1:-1] if "layers" in path else shape.shape[:-1]
        fan = 1
        for size in stacked:
            fan *= size
        deviation = 1.0 if path[-1] in BROAD else fan**-0.5 if path[-1] == "kernel" else 0.02
        return (deviation * jax.random.normal(key, shape.shape)).astype(dtype)

    def make():
        return {
            path: one(path, shape, jax.random.fold_in(key, n)) for n, (path, shape) in enumerate(sorted(shapes.items()))
        }

    return unflatten_dict(jax.jit(make, out_shardings=shardings or None)())


def trainable(config: ConfigDict, loaded: Loaded) -> Any:
    """What training changes, in float32: the decoder or an adapter of it; the whole thinker, or SAM 2 itself."""
    master = lambda tree: jax.tree.map(lambda x: jnp.array(x, jnp.float32), tree)
    if config.objective == "masks":
        if loaded.sam2_params is None:
            raise InputError("sam2.sizes: objective 'masks' trains a segmenter; name its path or its sizes")
        return master(loaded.sam2_params)
    if config.objective == "sft" and config.sft.towers:
        return master(loaded.params)
    if config.lora.rank:
        return lora.init(jax.random.key(config.seed), loaded.params["text"], lora_config(config.lora))
    return master(loaded.params["text"])


def trained_axes(config: ConfigDict, found: Sizes) -> Any:
    """Shapes of what `trainable` gives, boxed with their logical axes."""
    if config.objective == "masks":
        if found.sam2 is None:
            raise InputError("sam2.sizes: objective 'masks' trains a segmenter; name its path or its sizes")
        return sam2.abstract_params(found.sam2)
    boxed = abstract_params(found.thinker)
    if config.objective == "sft" and config.sft.towers:
        return boxed
    if config.lora.rank:
        return jax.eval_shape(lambda: lora.init(jax.random.key(0), boxed["text"], lora_config(config.lora)))
    return boxed["text"]


def lora_config(own: ConfigDict | sections.Lora) -> sections.Lora | None:
    """The adapter that is trained, if one is."""
    own = section(sections.Lora, own)
    return own if own.rank else None


def prompt_texts(config: ConfigDict) -> dict[str, str]:
    """The run's templates by name, System 1's system message filled into System 2's prompt."""
    named = {name: config.prompts[name] for name in ("system", "vos", "refavs", "refcocog", "qa", "grounding")}
    found = {}
    for name, chosen in named.items():
        own = (prompts.FOLDER / f"{chosen}.txt").is_file()
        found[name] = prompts.load(name, str(prompts.FOLDER / f"{chosen}.txt") if own else chosen)
    found["grounding"] = prompts.render(found["grounding"], system=found["system"])
    return found


def frozen(config: ConfigDict, loaded: Loaded, mesh: Mesh | None = None) -> Frozen | None:
    """Everything that the step reads and does not change; nothing where SAM 2 itself is trained.

    Args:
      mesh: that of the parameters, on whose devices the tables are put too.
    """
    words = loaded.tokenizer
    if words is None:
        return None
    tables = byte_vocab(words), bpe_tables(words), template(words, prompt_texts(config)["grounding"])
    vocab, bpe, prompt = tables if mesh is None else replicate(tables, mesh)
    return Frozen(
        towers={"vision": loaded.params["vision"], "audio": loaded.params["audio"]},
        reference=loaded.params["text"],
        sam2=loaded.sam2_params,
        vocab=vocab,
        bpe=bpe,
        grounder=ThinkerParams(prompt),
    )


def step_config(config: ConfigDict, ids: TokenIds) -> StepConfig:
    """The step's choices."""
    step, grpo = section(sections.Step, config.step), section(sections.Grpo, config.grpo)
    return StepConfig.of(step, grpo, section(sections.Reward, config.reward), lora_config(config.lora), ids)


def _fields(kind: Callable[..., Any], values: Mapping[str, Any], name: str) -> Any:
    """A dataclass of a section's values; lists become tuples."""
    known = {field.name for field in dataclasses.fields(kind)}
    needed = {f.name for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING}
    if unknown := sorted(values.keys() - known):
        raise InputError(f"{name}.{unknown[0]}: no such setting; there are {', '.join(sorted(known))}")
    if lacking := sorted(needed - values.keys()):
        raise InputError(f"{name}.{lacking[0]}: has to be set")
    tuples = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return kind(**tuples)


def _directory(path: str, setting: str) -> epath.Path:
    folder = epath.Path(path)
    if not folder.is_dir():
        raise InputError(f"{setting}: {path} is not a directory; set --config.{setting} to the weights, or {TRY}")
    return folder
