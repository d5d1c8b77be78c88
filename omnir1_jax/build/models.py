"""Modules, parameters and the tokenizer from a config: read from a directory, or with random weights."""

import dataclasses
import functools
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
from omnir1_jax.models import lora, quantise, sam2
from omnir1_jax.models.qwen_omni import pretrained, store
from omnir1_jax.models.qwen_omni.config import AudioConfig, TextConfig, ThinkerConfig, TokenIds, VisionConfig
from omnir1_jax.models.qwen_omni.sample import Sampling
from omnir1_jax.models.qwen_omni.thinker import Thinker, abstract_params
from omnir1_jax.parallel import replicate, tree_shardings
from omnir1_jax.rl import terms
from omnir1_jax.rl.config import Frozen, Models, StepConfig
from omnir1_jax.systems import grounders, prompts, segmenters
from omnir1_jax.systems.grounders.thinker import ThinkerGrounder, ThinkerParams
from omnir1_jax.systems.segmenters.sam2 import Sam2Segmenter
from omnir1_jax.tasks import TASKS
from omnir1_jax.text.bpe import bpe_tables
from omnir1_jax.text.prompt import template
from omnir1_jax.text.vocab import byte_vocab

# SAM 2's random position features, and its tokens, which have to differ from the start.
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


class LoadedModels(NamedTuple):
    """Models with their parameters; a run that trains SAM 2 has only the segmenter.

    Attributes:
      grounder_params: the grounder's parameters; None if it is the run's thinker.
      trainable, step: trained parameters of a checkpoint of a run, not yet merged into the others, and its step.
    """

    models: Models
    params: dict[str, Any] | None  # {"vision", "audio", "text"} of the thinker
    segmenter_params: Any
    tokenizer: PreTrainedTokenizerBase | None
    grounder_params: Any = None
    trainable: Any = None
    step: int | None = None


def tokenizer(config: ConfigDict, name: str = "thinker") -> PreTrainedTokenizerBase:
    """The tokenizer that the section `name` names, or that of its weights."""
    settings = config[name]
    path = settings.tokenizer or settings.path
    if not path:
        raise InputError(f"{name}.tokenizer: random weights need a directory with a tokenizer")
    folder = _directory(path, f"{name}.tokenizer" if settings.tokenizer else f"{name}.path")
    return tokens.load_tokenizer(str(folder / "files" if store.is_store(folder) else folder))


def thinker_config(
    settings: ConfigDict | sections.Thinker | sections.Grounder,
    ids: TokenIds,
    vocab_size: int,
    name: str = "thinker",
    run: ConfigDict | None = None,
) -> ThinkerConfig:
    """Sizes of a thinker, from its directory or from the section's `sizes`.

    Args:
      name: of the section.
      run: the section with dtype, remat and attention, where `settings` has none.
    """
    run = section(sections.Thinker, settings if run is None else run)
    settings = run if name == "thinker" else section(sections.Grounder, settings)
    switches = dict(dtype=jnp.dtype(run.dtype), remat=run.remat, attention=run.attention)
    if settings.path:
        stored_config = pretrained.read_config(_directory(settings.path, f"{name}.path"), switches.pop("dtype"))
        return dataclasses.replace(stored_config, **switches)
    sizes, setting = dict(settings.sizes), f"{name}.sizes"
    if not sizes:
        raise InputError(f"{name}.path: name a directory with the weights; {TRY}")
    parts = dict(
        text=_fields(TextConfig, {"vocab_size": vocab_size} | sizes.pop("text", {}), f"{setting}.text"),
        vision=_fields(VisionConfig, sizes.pop("vision", {}), f"{setting}.vision"),
        audio=_fields(AudioConfig, sizes.pop("audio", {}), f"{setting}.audio"),
    )
    return _fields(ThinkerConfig, {**parts, "tokens": ids, **switches, **sizes}, setting)


def sam2_config(settings: ConfigDict | sections.Sam2) -> sam2.Sam2Config | None:
    """Sizes of the segmenter; None where the config names none."""
    settings = section(sections.Sam2, settings)
    options = shared(sections.Sam2Run, settings)
    if settings.path:
        return sam2.read_config(_directory(settings.path, "sam2.path"), **options)
    sizes = dict(settings.sizes)
    if not sizes:
        return None
    hiera = _fields(sam2.HieraConfig, sizes.pop("hiera", {}), "sam2.sizes.hiera")
    return _fields(sam2.Sam2Config, {"hiera": hiera, **options, **sizes}, "sam2.sizes")


class ModelSpecs(NamedTuple):
    """Configs of the models, before any parameter is read. `grounder`: those of a grounder that is not the policy's."""

    tokenizer: PreTrainedTokenizerBase | None
    thinker: ThinkerConfig | None
    sam2: sam2.Sam2Config | None
    grounder: "ModelSpecs | None" = None


def sizes(config: ConfigDict) -> ModelSpecs:
    """Reads tokenizer and model configs; quick, so that a wrong setting shows before gigabytes are read."""
    if config.objective == "masks":
        return ModelSpecs(None, None, sam2_config(config.sam2))
    return thinker_sizes(config, "thinker")._replace(sam2=sam2_config(config.sam2), grounder=grounder_sizes(config))


def grounder_sizes(config: ConfigDict) -> ModelSpecs | None:
    """Sizes of the thinker in section `grounder`; None if it is empty."""
    settings = config.grounder
    return thinker_sizes(config, "grounder") if settings.path or settings.sizes else None


def thinker_sizes(config: ConfigDict, name: str) -> ModelSpecs:
    """Checks that the tokenizer fits the weights (InputError): a token past the vocabulary has no logit to learn."""
    hf_tokenizer = tokenizer(config, name)
    ids, count = tokens.token_ids(hf_tokenizer), len(hf_tokenizer)
    thinker = thinker_config(config[name], ids, count, name, config.thinker)
    setting = f"{name}.tokenizer: {config[name].tokenizer or config[name].path}"
    if count > thinker.text.vocab_size:
        raise InputError(f"{setting} has {count} tokens, the model's vocabulary {thinker.text.vocab_size}")
    for token, model_id in dataclasses.asdict(thinker.tokens).items():
        if token not in ("pad", "eos") and model_id != getattr(ids, token):  # these two come from the tokenizer
            raise InputError(f"{setting} has {token} at {getattr(ids, token)}, the model at {model_id}")
    return ModelSpecs(hf_tokenizer, thinker, None)


def load(config: ConfigDict, model_sizes: ModelSpecs, mesh: Mesh | None = None) -> LoadedModels:
    """Reads or draws all parameters; onto `mesh` by their logical axes, or onto the default device."""
    models = specs(config, model_sizes)
    params = segmenter = grounder = None
    if model_sizes.thinker is not None:
        params = _thinker_params(config, "thinker", model_sizes.thinker, 1, mesh)
    if isinstance(models.segmenter, Sam2Segmenter):
        dtype = jnp.dtype(config.sam2.dtype)
        if config.sam2.path:
            _, segmenter = sam2.load(config.sam2.path, dtype=dtype, mesh=mesh, side=model_sizes.sam2.side)
        else:
            segmenter = sam2.place(draw(sam2.abstract_params(model_sizes.sam2), _key(config, 2), dtype, mesh))
    elif models.segmenter is not None:
        segmenter = replicated(models.segmenter.load(config), mesh)
    if not isinstance(models.grounder, ThinkerGrounder | None):
        grounder = replicated(models.grounder.load(config), mesh)
    elif model_sizes.grounder is not None:
        grounder_params = _thinker_params(config, "grounder", model_sizes.grounder.thinker, 3, mesh)
        tables = replicated(tokenizer_tables(config, model_sizes.grounder.tokenizer), mesh)
        grounder = tables.replace(vision=grounder_params["vision"], text=grounder_params["text"])
    return LoadedModels(models, params, segmenter, model_sizes.tokenizer, grounder)


def specs(config: ConfigDict, model_sizes: ModelSpecs) -> Models:
    """The run's models without their parameters."""
    segmenter = None if model_sizes.sam2 is None else Sam2Segmenter(sam2.Sam2(model_sizes.sam2))
    if model_sizes.thinker is None:
        return Models(None, segmenter)
    grounding, step = (model_sizes.grounder or model_sizes).thinker, config.step
    sampling = Sampling(step.grounding_tokens, grounding.tokens.eos, grounding.tokens.pad, temperature=0.0)
    thinker_grounder = ThinkerGrounder(Thinker(grounding), sampling, step.description_tokens, step.grounding_bytes)
    grounder = grounders.make(step.grounder, thinker_grounder)
    return Models(Thinker(model_sizes.thinker), segmenters.make(step.segmenter, segmenter), grounder)


def _thinker_params(
    config: ConfigDict, name: str, thinker: ThinkerConfig, number: int, mesh: Mesh | None
) -> dict[str, Any]:
    """Args: number: of the model's key, by which its parameters are drawn if they are not read."""
    dtype, form = jnp.dtype(config.thinker.param_dtype), frozen_format(config)
    if config[name].path:
        return pretrained.read_params(config[name].path, thinker, dtype=dtype, mesh=mesh, form=form)
    return draw(abstract_params(thinker), _key(config, number), dtype, mesh, form)


def _key(config: ConfigDict, number: int) -> Key[Array, ""]:
    """The key of one model's parameters. Only made where they are drawn: it costs programs of its own."""
    return jax.random.fold_in(jax.random.key(config.seed), number)


def originals(config: ConfigDict, loaded: LoadedModels) -> dict[str, Any]:
    """The thinker's parameters before quantisation: those of its directory, `Deferred`."""
    if config.thinker.frozen == "float":
        return loaded.params
    dtype, thinker = jnp.dtype(config.thinker.param_dtype), loaded.models.thinker.config
    if config.thinker.path:
        return pretrained.deferred(config.thinker.path, thinker, dtype=dtype)
    return draw(abstract_params(thinker), _key(config, 1), dtype)


def frozen_format(config: ConfigDict) -> quantise.Format | None:
    """The format of the thinkers' quantised frozen parameters; None if they are not quantised."""
    settings = section(sections.Thinker, config.thinker)
    return (
        None
        if settings.frozen == "float"
        else quantise.Format(int(settings.frozen.removeprefix("int")), settings.frozen_group)
    )


def tokenizer_tables(config: ConfigDict, hf_tokenizer: PreTrainedTokenizerBase) -> ThinkerParams:
    """A grounding thinker's tokenizer and prompt as arrays."""
    prompt = template(hf_tokenizer, prompt_texts(config)["grounding"])
    return ThinkerParams(prompt, vocab=byte_vocab(hf_tokenizer), bpe=bpe_tables(hf_tokenizer))


def replicated(params: Any, mesh: Mesh | None) -> Any:
    """Parameters on the default device, or replicated over the mesh."""
    return jax.tree.map(jnp.asarray, params) if mesh is None else replicate(params, mesh)


def draw(
    boxed: Any, key: Key[Array, ""], dtype: Any, mesh: Mesh | None = None, form: quantise.Format | None = None
) -> Any:
    """Random parameters of the shapes of `boxed`: normal with the fan-in's deviation, scales 1, biases 0."""
    shapes = flatten_dict(nn.unbox(boxed))
    stored = (lambda tree: tree) if form is None else functools.partial(quantise.quantised, form=form)
    shardings = None if mesh is None else tree_shardings(mesh, stored(boxed))

    def random_leaf(path: tuple[str, ...], shape: jax.ShapeDtypeStruct, key: Key[Array, ""]) -> Array:
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
        flat = {
            path: random_leaf(path, shape, jax.random.fold_in(key, n))
            for n, (path, shape) in enumerate(sorted(shapes.items()))
        }
        return stored(unflatten_dict(flat))

    return jax.jit(make, out_shardings=shardings)()


def trainable(config: ConfigDict, loaded: LoadedModels) -> Any:
    """The trained parameters in float32: the decoder or a LoRA adapter of it, the whole thinker, or SAM 2."""
    master = lambda tree: jax.tree.map(lambda x: jnp.array(x, jnp.float32), tree)
    if config.objective == "masks":
        if loaded.segmenter_params is None:
            raise InputError("sam2.sizes: objective 'masks' trains a segmenter; name its path or its sizes")
        return master(loaded.segmenter_params)
    if config.objective == "sft" and config.sft.encoders:
        return master(loaded.params)
    if config.lora.rank:
        return lora.init(jax.random.key(config.seed), loaded.params["text"], lora_config(config.lora))
    return master(loaded.params["text"])


def trained_axes(config: ConfigDict, model_sizes: ModelSpecs) -> Any:
    """Shapes of `trainable`'s result, boxed with their logical axes."""
    if config.objective == "masks":
        if model_sizes.sam2 is None:
            raise InputError("sam2.sizes: objective 'masks' trains a segmenter; name its path or its sizes")
        return sam2.abstract_params(model_sizes.sam2)
    boxed = abstract_params(model_sizes.thinker)
    if config.objective == "sft" and config.sft.encoders:
        return boxed
    if config.lora.rank:
        return jax.eval_shape(lambda: lora.init(jax.random.key(0), boxed["text"], lora_config(config.lora)))
    return boxed["text"]


def lora_config(settings: ConfigDict | sections.Lora) -> sections.Lora | None:
    """The LoRA adapter's settings; None without one."""
    settings = section(sections.Lora, settings)
    return settings if settings.rank else None


def prompt_texts(config: ConfigDict) -> dict[str, str]:
    """The run's templates by name, System 1's system message filled into System 2's prompt."""
    fields = {"system": (), **{name: task.fields for name, task in TASKS.items()}, "grounding": prompts.GROUNDING}
    texts = {}
    for name in fields:
        shipped = prompts.FOLDER / f"{config.prompts[name]}.txt"
        texts[name] = prompts.load(name, fields[name], str(shipped) if shipped.is_file() else config.prompts[name])
    texts["grounding"] = prompts.render(texts["grounding"], system=texts["system"])
    return texts


def frozen(config: ConfigDict, loaded: LoadedModels, mesh: Mesh | None = None) -> Frozen | None:
    """The inputs that the step does not change; None where SAM 2 is trained.

    Args:
      mesh: mesh of the parameters, over which the tokenizer's tables are replicated.
    """
    hf_tokenizer = loaded.tokenizer
    if hf_tokenizer is None:
        return None
    tables = replicated(tokenizer_tables(config, hf_tokenizer), mesh)
    tied = isinstance(loaded.models.grounder, ThinkerGrounder) and loaded.grounder_params is None
    text_tables = tables.replace(vocab=None, bpe=None)  # without a second copy of the run's thinker
    return Frozen(
        encoders={"vision": loaded.params["vision"], "audio": loaded.params["audio"]},
        reference=loaded.params["text"],
        segmenter=loaded.segmenter_params,
        vocab=tables.vocab,
        bpe=tables.bpe,
        grounder=text_tables if tied else loaded.grounder_params,
    )


def step_config(config: ConfigDict, ids: TokenIds) -> StepConfig:
    """The step's config."""
    step, grpo = section(sections.Step, config.step), section(sections.Grpo, config.grpo)
    reward = section(sections.Reward, config.reward)
    base = StepConfig.of(step, grpo, reward, lora_config(config.lora), ids)
    return dataclasses.replace(base, extra=terms.load(reward.extra))


def _fields(kind: Callable[..., Any], values: Mapping[str, Any], name: str) -> Any:
    """A dataclass of a section's values; lists become tuples."""
    names = {field.name for field in dataclasses.fields(kind)}
    needed = {f.name for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING}
    if unknown := sorted(values.keys() - names):
        raise InputError(f"{name}.{unknown[0]}: no such setting; there are {', '.join(sorted(names))}")
    if missing := sorted(needed - values.keys()):
        raise InputError(f"{name}.{missing[0]}: has to be set")
    tuples = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return kind(**tuples)


def _directory(path: str, setting: str) -> epath.Path:
    folder = epath.Path(path)
    if not folder.is_dir():
        raise InputError(f"{setting}: {path} is not a directory; set --config.{setting} to the weights, or {TRY}")
    return folder
