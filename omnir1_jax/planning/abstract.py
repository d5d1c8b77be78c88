"""A config's step with all its arguments as shapes: input for a compiler, without weights, data or devices.

If the config's weights are not on this machine, the released sizes that their directory is named after are used
("Qwen2.5-Omni-7B", "sam2.1-hiera-large"), and tokenizer tables of Qwen2.5's size.
"""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from etils import epath
from jax import ShapeDtypeStruct
from ml_collections import ConfigDict

from omnir1_jax.build import data as setup_data
from omnir1_jax.build import models as setup_models
from omnir1_jax.build import optimizer as setup_optimizer
from omnir1_jax.config.schema import shared
from omnir1_jax.config.sections import Sam2, Sam2Run
from omnir1_jax.config.settings import section, typed
from omnir1_jax.errors import InputError
from omnir1_jax.models import lora, quantise, sam2
from omnir1_jax.models.qwen_omni import hf_config
from omnir1_jax.models.qwen_omni.config import ThinkerConfig
from omnir1_jax.models.qwen_omni.thinker import abstract_params
from omnir1_jax.planning.batches import PREFIX, batch_of
from omnir1_jax.rl.config import Frozen, Models, StepConfig
from omnir1_jax.systems.grounders.thinker import ThinkerGrounder, ThinkerParams
from omnir1_jax.systems.segmenters import Sam2Segmenter
from omnir1_jax.tasks import Task
from omnir1_jax.text.bpe import AddedTokens, Bpe, bpe_tables
from omnir1_jax.text.characters import characters
from omnir1_jax.text.hashing import PairTable
from omnir1_jax.text.prompt import Template, template
from omnir1_jax.text.vocab import ByteVocab, byte_vocab

# Of the released thinkers: hidden, layers, heads, key heads, ffn, vocabulary.
THINKERS = {"7b": (3584, 28, 28, 4, 18944, 152064), "3b": (2048, 36, 16, 2, 11008, 151936)}
# Of Qwen2.5's tokenizer: tokens, merges, bytes of all tokens.
TOKENS, MERGES, TOKEN_BYTES = 151_665, 151_387, 1_100_000
# Of System 2's prompt: tokens after the frame, bytes before and after the description.
SUFFIX, BEFORE, AFTER = 5, 48, 144


class Program(NamedTuple):
    """The arguments of `make_train_step`, parameters boxed with their logical axes.

    Attributes:
      tasks, keep, batches: by entry of the mixture.
    """

    models: Models
    step: StepConfig
    optimizer: optax.GradientTransformation
    trainable: Any
    frozen: Frozen
    tasks: dict[str, Task]
    keep: dict[str, float]
    batches: dict[str, Any]


def program(config: ConfigDict) -> Program:
    """Shapes of a GRPO run.

    Raises:
      InputError: weights that are neither on this machine nor of a known name; settings that do not fit together.
    """
    if config.objective != "grpo":
        raise InputError(f"objective: {config.objective!r} cannot be planned; only 'grpo' can")
    tokenizer, grounder = _tokenizer(config, "thinker"), None
    thinker, segmenter = _thinker(config, tokenizer, "thinker"), _sam2(config)
    if config.grounder.path or config.grounder.sizes:
        grounder_tokenizer = _tokenizer(config, "grounder")
        grounder = setup_models.ModelSpecs(grounder_tokenizer, _thinker(config, grounder_tokenizer, "grounder"), None)
    models = setup_models.specs(config, setup_models.ModelSpecs(tokenizer, thinker, segmenter, grounder))
    boxed = _frozen(config, thinker)
    settings = typed(config)
    adapter = setup_models.lora_config(settings.lora)
    if adapter is None:
        trainable = _cast(boxed["text"], jnp.float32)
    else:
        trainable = jax.eval_shape(lambda: lora.init(jax.random.key(0), boxed["text"], adapter))
    frozen = Frozen(
        encoders={name: boxed[name] for name in ("vision", "audio")},
        reference=boxed["text"],
        segmenter=None if segmenter is None else _cast(sam2.abstract_params(segmenter), segmenter.dtype),
        **_tables(config, tokenizer),
    )
    if grounder is not None:
        weights = _frozen(config, grounder.thinker)
        tables = _tables(config, grounder.tokenizer)
        params = tables.pop("grounder").replace(**tables, vision=weights["vision"], text=weights["text"])
        frozen = dataclasses.replace(frozen, grounder=params)
    elif not isinstance(models.grounder, ThinkerGrounder):
        frozen = dataclasses.replace(frozen, grounder=_shapes(models.grounder.load(config)))
    if models.segmenter is not None and not isinstance(models.segmenter, Sam2Segmenter):
        frozen = dataclasses.replace(frozen, segmenter=_shapes(models.segmenter.load(config)))
    tasks = {name: setup_data.task_of(config, name) for name in config.data}
    return Program(
        models,
        setup_models.step_config(config, thinker.tokens),
        setup_optimizer.make(settings.optimizer, settings.steps * settings.step.updates, nn.unbox(trainable)),
        trainable,
        frozen,
        tasks,
        {name: entry.keep for name, entry in config.data.items()},
        {name: batch_of(config, name, task, thinker, tokenizer, grounder) for name, task in tasks.items()},
    )


def _frozen(config: ConfigDict, thinker: ThinkerConfig) -> Any:
    """Shapes of a thinker's frozen parameters, boxed."""
    boxed, form = _cast(abstract_params(thinker), config.thinker.param_dtype), setup_models.frozen_format(config)
    return boxed if form is None else quantise.quantised(boxed, form)


def _cast(tree: Any, dtype: Any) -> Any:
    return jax.tree.map(lambda x: ShapeDtypeStruct(x.shape, jnp.dtype(dtype)), tree)


def _is_local(path: str) -> bool:
    return bool(path) and epath.Path(path).is_dir()


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda x: ShapeDtypeStruct(x.shape, x.dtype), tree)


def _tokenizer(config: ConfigDict, section: str) -> Any:
    """The section's tokenizer, or None if it is not on this machine."""
    settings = config[section]
    return setup_models.tokenizer(config, section) if _is_local(settings.tokenizer or settings.path) else None


def released(name: str) -> ThinkerConfig:
    """Sizes of "7b" or "3b"."""
    hidden, layers, heads, key_heads, ffn, vocabulary = THINKERS[name]
    text = dict(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        intermediate_size=ffn,
        vocab_size=vocabulary,
        rope_parameters=dict(rope_type="default", rope_theta=1e6, mrope_section=[16, 24, 24]),
    )
    vision = dict(hidden_size=1280, out_hidden_size=hidden)
    raw = dict(model_type=hf_config.THINKER, text_config=text, vision_config=vision)
    return hf_config.parse(raw | dict(audio_config=dict(output_dim=hidden)))


def _thinker(config: ConfigDict, tokenizer: Any, section: str) -> ThinkerConfig:
    settings, switches = config[section], config.thinker
    if _is_local(settings.path) or settings.sizes:
        if tokenizer is None:
            raise InputError(f"{section}.tokenizer: random weights need a directory with a tokenizer")
        return setup_models.thinker_sizes(config, section).thinker
    matches = [name for name in THINKERS if name in epath.Path(settings.path).name.lower()]
    if not matches:
        raise InputError(
            f"{section}.path: {settings.path!r} is not here, nor does its name hold one of {', '.join(THINKERS)}"
        )
    switches = dict(dtype=jnp.dtype(switches.dtype), remat=switches.remat, attention=switches.attention)
    return dataclasses.replace(released(matches[0]), **switches)


def _sam2(config: ConfigDict) -> sam2.Sam2Config | None:
    settings = section(Sam2, config.sam2)
    if not settings.path or _is_local(settings.path):
        return setup_models.sam2_config(settings)
    name = epath.Path(settings.path).name.lower().replace("-plus", "_plus").replace("+", "_plus")
    matches = [size for size in sam2.SIZES if size in name]
    if not matches:
        raise InputError(
            f"sam2.path: {settings.path!r} is not here, nor does its name hold one of {', '.join(sam2.SIZES)}"
        )
    return sam2.Sam2Config(hiera=sam2.SIZES[matches[0]], **shared(Sam2Run, settings))


def _tables(config: ConfigDict, tokenizer: Any) -> dict[str, Any]:
    if tokenizer is not None:
        prompt = template(tokenizer, setup_models.prompt_texts(config)["grounding"])
        shapes = lambda: dict(vocab=byte_vocab(tokenizer), bpe=bpe_tables(tokenizer), grounder=ThinkerParams(prompt))
        return jax.eval_shape(shapes)
    i, u = (lambda *shape: ShapeDtypeStruct(shape, jnp.int32)), (lambda *shape: ShapeDtypeStruct(shape, jnp.uint8))
    slots = 1 << (3 * MERGES - 1).bit_length()
    return dict(
        vocab=ByteVocab(u(TOKEN_BYTES), i(TOKENS + 1)),
        bpe=Bpe(
            i(256),
            PairTable(i(slots), i(MERGES), i(MERGES), i()),
            i(MERGES),
            AddedTokens(u(22, 16), i(22), i(22)),
            jax.eval_shape(characters),
        ),
        grounder=ThinkerParams(Template(i(PREFIX), u(BEFORE), u(AFTER), i(SUFFIX))),
    )
