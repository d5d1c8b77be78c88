"""`python -m omnir1_jax.convert import|export SOURCE TARGET`: Hugging Face checkpoints to orbax directories and back.

Import reads `config.json`, safetensors (sharded or not, bare or prefixed `thinker.`; talker and token2wav are
skipped) and the tokenizer's and processor's files. Export reads the result of an import, the work directory of a run
(its newest good state, a LoRA adapter merged), or a Hugging Face directory, which it rewrites. The target is written
atomically. Layouts of an export, and what loads them:

  thinker  transformers' Qwen2_5OmniThinkerForConditionalGeneration. The smallest that answers by itself.
  omni     transformers' Qwen2_5OmniForConditionalGeneration, the architecture that vLLM's registry lists. Talker,
           token2wav and spk_dict.pt of the base are copied; a base without them gives a model that does not speak.
  peft     peft's PeftModel.from_pretrained(thinker, TARGET), on the base's thinker: a run's LoRA adapter alone.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import jax
from absl import logging
from absl.flags import argparse_flags
from etils import epath
from jax.sharding import Mesh

from omnir1_jax import cli
from omnir1_jax.build import models
from omnir1_jax.errors import InputError
from omnir1_jax.files import folders, orbax_files
from omnir1_jax.inference import from_checkpoint
from omnir1_jax.models.hf_checkpoint import MAX_SHARD_BYTES, WEIGHTS
from omnir1_jax.models.qwen_omni import hf_config, pretrained, speech, store
from omnir1_jax.models.qwen_omni.thinker import Thinker, count
from omnir1_jax.parallel import make_mesh
from omnir1_jax.training import checkpointing, export

FLAG = "target"
LAYOUTS = {  # what loads each
    "thinker": "transformers' Qwen2_5OmniThinkerForConditionalGeneration; servers may list only --layout omni",
    "omni": "transformers' Qwen2_5OmniForConditionalGeneration, the architecture in vLLM's registry",
    "peft": "peft's PeftModel.from_pretrained(thinker, directory)",
}
DTYPES = {"stored": None, **models.DTYPES}


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse_flags.ArgumentParser(
        prog="python -m omnir1_jax.convert", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    layouts = "; ".join(f"{name}: for {reader}" for name, reader in LAYOUTS.items())
    for name, summary in (
        ("import", "Hugging Face directory -> orbax directory"),
        ("export", "orbax directory, or a run's work directory -> Hugging Face directory"),
    ):
        # If the process has imported another command, this flag replaces its flag of the same name.
        command = commands.add_parser(name, help=summary, description=summary, conflict_handler="resolve")
        command.add_argument("source", help="directory to read")
        command.add_argument("target", help="directory to write; new or empty")
        command.add_argument("--dtype", choices=DTYPES, default="stored", help="of the written parameters")
        if name == "export":
            command.add_argument(
                "--mesh", default="", help="devices to shard a run's state over meanwhile, such as fsdp=4,tensor=2"
            )
            command.add_argument(
                "--step", default="", help="which checkpoint of a run: best (of those validated), last, or its number"
            )
            command.add_argument("--layout", choices=LAYOUTS, default="thinker", help=layouts)
            command.add_argument(
                "--speech",
                default="",
                help="layout omni: Hugging Face directory of a release whose talker, token2wav and spk_dict.pt are "
                "copied; by default the base's",
            )
            command.add_argument(
                "--max-shard-bytes", type=int, default=MAX_SHARD_BYTES, help="of tensors in one safetensors file"
            )
    return parser.parse_args(argv[1:])


def read_mesh(text: str) -> Mesh | None:
    """The mesh of `axis=size,axis=size`, None for an empty text."""
    if not text:
        return None
    shape = {}
    for part in text.split(","):
        axis, _, size = part.partition("=")
        if not size.removeprefix("-").isdecimal():
            raise InputError(f"--mesh: {part!r} is not of the form axis=size")
        shape[axis] = int(size)
    return make_mesh(shape)


def main(args: argparse.Namespace) -> None:
    source, target = epath.Path(args.source), cli.absolute(args.target)
    if from_checkpoint.is_run(source) and not (source / checkpointing.FOLDER).is_dir():
        source = source / "weights"
    logging.set_verbosity(logging.WARNING)  # orbax logs every step
    if not source.is_dir():
        raise InputError(f"{source}: no such directory")
    if args.command == "import" and (store.is_store(source) or from_checkpoint.is_run(source)):
        raise InputError(f"{source}: import reads a Hugging Face directory with safetensors")
    if args.command == "export" and not from_checkpoint.is_run(source) and not (source / "config.json").is_file():
        raise InputError(
            f"{source}: export reads what import made, a run's work directory, or a Hugging Face directory"
        )
    if getattr(args, "step", "") and not from_checkpoint.is_run(source):
        raise InputError(f"--step: {source} is not a work directory with checkpoints")
    kind = store.STORE if args.command == "import" else WEIGHTS
    check_target(target, kind, {"source": args.source, "--speech": getattr(args, "speech", "")})
    mesh = read_mesh(getattr(args, "mesh", ""))
    with folders.reserve(target, kind, FLAG):
        if from_checkpoint.is_run(source):
            export_run(args, source, target, mesh)
        else:
            convert(args, source, target)


def check_target(target: epath.Path, kind: str, inputs: dict[str, str]) -> None:
    """InputError if the target is not a new or empty directory, or overlaps the inputs. Changes nothing."""
    folders.check_disjoint(target, FLAG, inputs)
    if folders.check(target, kind, FLAG) is not None:
        raise InputError(f"{FLAG}: {target} exists already; name another directory")
    folders.check_replaceable(target, kind, FLAG)
    if kind == store.STORE:
        orbax_files.check_path(target, FLAG)


def convert(args: argparse.Namespace, source: epath.Path, target: epath.Path) -> None:
    """Converts a Hugging Face directory or a store to the other, or rewrites it, one parameter at a time."""
    base = hf_config.read_json(source)
    config = pretrained.read_config(source)
    params = pretrained.deferred(source, config, dtype=DTYPES[args.dtype])
    if args.command == "import":
        store.save_store(target, config, params, base=base, files=store.text_files(source), flag=FLAG)
    else:
        files = store.text_files(source)
        pretrained.save(target, Thinker(config), params, base=base, files=files, **layout(args, str(source)))
    print(f"{args.target}: {count(params):,} parameters")
    if args.command == "export":
        print_layout(args, str(source))


def layout(args: argparse.Namespace, base: str) -> dict[str, Any]:
    """Arguments of `pretrained.save`.

    Args:
      base: directory of the speech, unless a flag names another.
    """
    if args.layout == "peft":
        raise InputError("--layout peft: only a run's work directory has an adapter; export --layout thinker")
    if args.speech and args.layout != "omni":
        raise InputError("--speech: only the whole model speaks; add --layout omni")
    spoken = args.speech or (base if args.layout == "omni" and base and not speech.missing(base) else "")
    return dict(
        prefix="thinker." if args.layout == "omni" else "",
        max_shard_bytes=args.max_shard_bytes,
        speech=speech.read(spoken) if spoken else None,
        flag=FLAG,
    )


def print_layout(args: argparse.Namespace, base: str) -> None:
    print(f"{args.target}: loaded by {LAYOUTS[args.layout]}")
    if args.layout != "omni":
        return
    missing = [] if args.speech else speech.missing(base) if base else ["weights"]
    if missing:
        print(
            f"{args.target}: does not speak (enable_audio_output is false), as {base or 'the base'} lacks "
            f"{', '.join(missing)}; --speech names a release that has them"
        )
    else:
        print(f"{args.target}: talker, token2wav and {speech.SPEAKERS} are those of {args.speech or base}")


def export_run(args: argparse.Namespace, source: epath.Path, target: epath.Path, mesh: Mesh | None) -> None:
    """Exports a state of a run, by default the newest good one.

    With `--dtype=float32` trained parameters are written without rounding.
    """
    config, dtype = from_checkpoint.config_of(str(source)), DTYPES[args.dtype]
    thinker = config.objective != "masks"
    if not thinker and args.layout != "thinker":
        raise InputError(f"--layout: {source} trained a segmenter, which has one layout; leave the flag out")
    layout_options = layout(args, config.thinker.path) if thinker and args.layout != "peft" else {"flag": FLAG}
    if dtype is not None and thinker:
        config.thinker.param_dtype = args.dtype
    loaded = from_checkpoint.load(str(source), config, mesh, segmenter=False, step=args.step)
    trainable = loaded.trainable
    if args.layout == "peft":
        parameter_count = export.save_adapter(target, config, trainable, FLAG)
        print(f"{args.target}: {parameter_count:,} parameters, the adapter of {config.thinker.path}")
        print_layout(args, config.thinker.path)
        return
    if dtype is not None and not thinker:
        trainable = jax.tree.map(lambda leaf: leaf.astype(dtype), trainable)
    export.save(target, config, loaded, trainable, step=loaded.step, **layout_options)
    print(f"{args.target}: {count(loaded.params if thinker else trainable):,} parameters")
    if thinker:
        print_layout(args, config.thinker.path)


if __name__ == "__main__":
    cli.run(main, flags_parser=parse)
