"""Every setting of a run with its default. The files in `configs/` start from here and say what they change.

`defaults()` is locked: a name that is not here is refused, with the nearest one that is.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict, config_flags

from omnir1_jax.errors import InputError
from omnir1_jax.files import json_file

CELL = 28 * 28  # pixels of a visual token of the released models
# Of the names of settings; saved configs without one are of version 1. RENAMED[v - 1]: names of version v, with
# slashes, that version v + 1 calls otherwise.
VERSION = 2
RENAMED: tuple[dict[str, str], ...] = ({},)


def defaults() -> ConfigDict:
    """The paper's training of System 1 where it says how, sane values elsewhere."""
    c = ConfigDict()
    c.name = ""  # of the experiment, in reports
    c.objective = "grpo"  # "grpo"; "sft": supervised on plans from the truth; "masks": SAM 2 itself
    c.seed = 0
    c.steps = 1000

    # The policy. Its frozen copy is the KL reference and System 2's grounder.
    c.thinker = ConfigDict()
    c.thinker.path = ""  # Hugging Face directory, or what `convert import` made; empty: random weights of `sizes`
    c.thinker.tokenizer = ""  # directory; empty: that of the weights
    c.thinker.sizes = ConfigDict()  # for random weights: text, vision, audio as in models/qwen_omni/config.py
    c.thinker.dtype = "bfloat16"  # of activations
    c.thinker.param_dtype = "bfloat16"  # of what is frozen; trained parameters are float32
    c.thinker.remat = "full"  # none, full, attention, dots, dots_no_batch, offload
    c.thinker.attention = "auto"  # auto, xla, splash, cudnn

    c.sam2 = ConfigDict()
    c.sam2.path = ""  # Hugging Face directory; empty: random weights of `sizes`, or no segmenter without them
    c.sam2.sizes = ConfigDict()  # for random weights: fields of Sam2Config, with hiera
    c.sam2.side = 1024  # of the square that frames are stretched to
    c.sam2.dtype = "bfloat16"
    c.sam2.memory_dtype = "bfloat16"
    c.sam2.direction = "forward"  # forward, reverse, both
    c.sam2.object_chunk = 4  # objects tracked at a time
    c.sam2.frame_chunk = 1  # frames encoded at a time

    # Names of files in systems/templates, or paths of your own.
    c.prompts = ConfigDict()
    c.prompts.system = "system"
    c.prompts.vos = "vos"
    c.prompts.refavs = "refavs"
    c.prompts.refcocog = "refcocog"
    c.prompts.qa = "qa_thinking"
    c.prompts.grounding = "grounding"
    c.prompts.text_tokens = 512  # most tokens of a prompt that are not media
    c.prompts.max_aspect = 3.0  # longest side of a clip over its shortest; beyond it a clip is a bad sample

    # Least and most pixels of a frame after resizing.
    c.pixels = ConfigDict()
    c.pixels.policy_image = (4 * CELL, 128 * CELL)
    c.pixels.policy_video = (4 * CELL, 128 * CELL)
    c.pixels.sharp = (64 * CELL, 900 * CELL)

    c.data_root = "data"  # relative roots of datasets lie below it
    c.data = ConfigDict()  # task -> `task(...)`

    c.loader = ConfigDict()
    c.loader.threads = 4  # 0: clips are decoded one by one
    c.loader.workers = 0  # processes in place of threads
    c.loader.prefetch = 2  # batches ready on the device; 0: each is made when it is asked for
    c.loader.max_bad_share = 0.05  # of samples; more end the run

    c.step = ConfigDict()
    c.step.mode = "fused"  # one program; "staged": one a stage, for debugging and profiling
    c.step.group = 8
    c.step.max_tokens = 800  # of a completion
    c.step.temperature = 1.0
    c.step.top_k = 50  # 0: all tokens
    c.step.top_p = 0.95  # 1: all tokens
    c.step.grounding_tokens = 256  # of System 2's answer, which is greedy
    c.step.keyframes = 4
    c.step.max_pieces = 0  # objects of a plan that are read and counted; 0: all that fit in completion_bytes
    c.step.description_bytes = 256
    c.step.completion_bytes = 4096
    c.step.grounding_bytes = 1024
    c.step.description_tokens = 160
    c.step.updates = 1  # on each rollout
    c.step.score_chunk = 256  # tokens whose logits exist at a time; 0: all
    c.step.score_lengths = ()  # shorter completions that learning is compiled for too; each costs compile time
    c.step.grounder = "qwen_omni"
    c.step.segmenter = "sam2"

    c.grpo = ConfigDict()
    c.grpo.advantage = "normalised"  # normalised, centred, leave_one_out
    c.grpo.ratio = "token"  # token, sequence
    c.grpo.clip_low = 0.2
    c.grpo.clip_high = 0.2
    c.grpo.beta = 0.04  # 0: no KL term
    c.grpo.reduce = "completion"  # completion, token, constant
    c.grpo.skip_flat_groups = False

    c.reward = ConfigDict()
    c.reward.preset = "authors"  # authors, authors_released, paper
    c.reward.terms = ConfigDict()  # weights and rules that differ from the preset: fields of VosReward
    c.reward.bonus_range = (320, 750)  # lengths in tokens that earn the length bonus

    c.optimizer = ConfigDict()
    c.optimizer.rule = "adamw"  # adamw, muon
    c.optimizer.learning_rate = 1e-6
    c.optimizer.schedule = "cosine"  # cosine, linear, constant
    c.optimizer.warmup_steps = 0
    c.optimizer.final_share = 0.0  # of the learning rate that is left at the last step
    c.optimizer.b1 = 0.9
    c.optimizer.b2 = 0.999
    c.optimizer.eps = 1e-8
    c.optimizer.weight_decay = 0.01  # of matrices
    c.optimizer.clip_norm = 5.0  # 0: no clipping
    c.optimizer.accumulate = 1  # rollouts whose gradients are averaged for one update
    c.optimizer.max_skipped = 10  # updates in a row that are not finite and end the run; 0: it never ends for them
    c.optimizer.freeze = ()  # shell patterns of trained parameters' paths, such as "embed/*"

    c.lora = ConfigDict()
    c.lora.rank = 0  # 0: full fine-tuning of the decoder
    c.lora.alpha = 64.0
    c.lora.layers = ("*",)

    c.sft = ConfigDict()
    c.sft.targets = 1  # target texts of each prompt, packed behind it
    c.sft.target_tokens = 256
    c.sft.towers = False  # train the towers too

    c.masks = ConfigDict()
    c.masks.prompts = 4  # most boxed frames of an object
    c.masks.jitter = 0.1  # noise on boxes, as a share of their sides
    c.masks.piece = 0  # frames tracked in one go; 0: whole clips, 1: images
    c.masks.focus = 2.0  # exponent of the focal loss; 0 is plain cross-entropy
    c.masks.mask = 20.0  # weight of the focal loss; those of dice, quality and visibility are 1
    c.masks.remat = True  # recompute instead of keeping what the backward pass needs

    c.mesh = ConfigDict()  # devices along each axis; -1 takes what is left. The batch is cut over the first three
    c.mesh.slice = 1  # TPU slices, joined by the data centre's network; each has whole weights
    c.mesh.data = 1  # copies of the weights within a slice
    c.mesh.fsdp = -1  # weights, moments and batch are cut
    c.mesh.tensor = 1  # heads and widths are cut

    c.checkpoint = ConfigDict()
    c.checkpoint.every = 50  # steps; 0: only the last one, or that of a stop
    c.checkpoint.keep = 2

    c.log = ConfigDict()
    c.log.rollouts_every = 1  # steps; 0: never
    c.log.pictures_every = 50  # steps, and at the last one; 0: never
    c.log.pictures = 2  # completions of each pictured batch
    c.log.tensorboard = True
    c.lock()
    return c


def task(**changes: Any) -> ConfigDict:
    """One task of `config.data`: its datasets and how their clips are read.

    datasets: name -> dict(name=..., root=..., split=..., further options of that reader).
    """
    c = ConfigDict()
    c.family = ""  # vos, refavs, refcocog, qa: of the datasets' clips; empty: the task's own name
    c.example = ""  # what is made of a clip; empty: the family's
    c.datasets = ConfigDict()
    c.batch_size = 1  # prompts a step, over all devices
    c.weight = 1.0  # share of steps; 0 leaves the task out
    c.frames = 24
    c.objects = 3
    c.sampling = "training"  # training, video, uniform, first
    c.sound = "ignore"  # ignore, optional, required
    c.audio_seconds = 0.0  # most sound that is heard
    c.target = "anywhere"  # anywhere, some_frame, first_frame: where an object has to be seen
    c.one_per_clip = True
    c.targets = 0  # sft: as in `config.sft` where 0
    c.target_tokens = 0
    c.lock()
    for key, value in changes.items():
        c[key] = ConfigDict(value) if key == "datasets" else value
    return c


def datasets(**entries: dict[str, Any]) -> ConfigDict:
    """Datasets by a name of one's own; `dict(name=...)` says the reader, by default the same name."""
    return ConfigDict({key: {"name": key, "root": "", "split": ""} | entry for key, entry in entries.items()})


def plain(value: Any) -> Any:
    """A config as JSON: dicts, lists, strings, numbers."""
    if isinstance(value, ConfigDict | dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, tuple | list) else value


def difference(old: Any, new: Any, prefix: str = "") -> str | None:
    """The first setting in which two plain configs differ, as "name: old -> new"."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            if found := difference(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key):
                return found
        return None
    return None if old == new else f"{prefix}: {json.dumps(old)} -> {json.dumps(new)}"


def define() -> flags.FlagHolder:
    """The flag `--config FILE[:argument]` with `--config.section.key=value` for single settings."""
    return config_flags.DEFINE_config_file(
        "config", None, "Experiment: a file such as configs/toy.py.", allow_override=True
    )


def parse(argv: Sequence[str]) -> Sequence[str]:
    """absl's flags parser; a file, key or value that will not do is one line."""
    try:
        rest = flags.FLAGS(list(argv))
        if "config" in flags.FLAGS and flags.FLAGS.config is not None:
            flags.FLAGS.config.keys()  # a file that could not be loaded says so only when it is used
        return rest
    except flags.UnrecognizedFlagError as error:
        if error.flagname.startswith("config.") and "config" in flags.FLAGS:
            raise InputError(f"--{error.flagname}: changes a setting of a config; name its --config=FILE too") from None
        raise InputError(_line(error)) from error
    except flags.Error as error:
        raise InputError(_line(error)) from error
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise InputError(f"--config: {_line(error)}") from error


def _line(error: Exception) -> str:
    while isinstance(error, AttributeError | KeyError) and error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    return " ".join(str(text).split())[:400]


def saved_form(config: ConfigDict) -> dict[str, Any]:
    """A config as a run saves it: plain, with the version of its names."""
    return {"version": VERSION} | plain(config)


def upgraded(saved: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Saved settings under today's names: those that are lacking take their defaults, unknown ones are ignored.

    Args:
      where: they are from, for the line on stderr that names what is ignored.

    Raises:
      InputError: a section holds something else than settings.
    """
    values = {key: value for key, value in saved.items() if key != "version"}
    version = saved.get("version", 1)
    if type(version) is not int:
        raise InputError(f"{where}: version is {version!r}, not a whole number")
    flat = flatten_dict(values, keep_empty_nodes=True, sep="/")
    for names in RENAMED[version - 1 :] if version > 0 else RENAMED:
        flat = {names.get(name, name): value for name, value in flat.items()}
    values, unknown = unflatten_dict(flat, sep="/"), []
    data = _section(values.pop("data", {}), "data", where)
    new = _filled(plain(defaults()), values, "", where, unknown)
    new["data"] = {name: _filled(plain(task()), entry, f"data.{name}", where, unknown) for name, entry in data.items()}
    if unknown:
        print(f"note: {where}: ignores {', '.join(unknown)}, which this version does not know", file=sys.stderr)
    return new


def _filled(known: dict[str, Any], saved: Any, name: str, where: str, unknown: list[str]) -> dict[str, Any]:
    """`known` with the saved values; sections without settings of their own take whatever was saved."""
    if not known:
        return _section(saved, name, where)
    new = dict(known)
    for key, value in _section(saved, name, where).items():
        full = f"{name}.{key}" if name else key
        if key not in known:
            unknown.append(full)
        elif isinstance(known[key], dict):
            new[key] = _filled(known[key], value, full, where, unknown)
        else:
            new[key] = value
    return new


def _section(value: Any, name: str, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise InputError(f"{where}: {name} is {json.dumps(value)}, not a section of settings")
    return dict(value)


def read(path: epath.PathLike) -> ConfigDict:
    """A config that a run wrote (`config.json` of its work directory), under today's names.

    Raises:
      InputError: the file is not a config.
    """
    new = upgraded(json_file.read_object(path), str(path))
    c = defaults()
    try:
        with c.unlocked():
            c.update({key: value for key, value in new.items() if key != "data"})
            c.data = ConfigDict({name: task(**entry) for name, entry in new["data"].items()})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not a config that a run wrote ({type(error).__name__}: {_line(error)})") from error
    return c
