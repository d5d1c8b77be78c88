"""`python -m omnir1_jax.convert import|export SOURCE TARGET`: Hugging Face checkpoints to orbax directories and back.

Import reads `config.json`, safetensors (sharded or not, bare or prefixed `thinker.`; talker and token2wav are
skipped) and the tokenizer's and processor's files. Export writes a directory that transformers' `from_pretrained`
loads as it is. Tensors are streamed; the target appears whole or not at all.
"""

import argparse
from collections.abc import Sequence

import jax.numpy as jnp
from absl import logging
from absl.flags import argparse_flags
from etils import epath
from jax.sharding import Mesh

from omnir1_jax import cli
from omnir1_jax.errors import InputError
from omnir1_jax.models.checkpoint import MAX_SHARD_BYTES
from omnir1_jax.models.qwen_omni import hf_config, pretrained, store, weights
from omnir1_jax.models.qwen_omni.thinker import Thinker, count
from omnir1_jax.parallel import make_mesh

DTYPES = {"stored": None, "float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}
TEXT_FILES = (".json", ".txt", ".jinja", ".model")  # tokenizer, processor, generation settings; never pickles


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse_flags.ArgumentParser(
        prog="python -m omnir1_jax.convert", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, summary in (
        ("import", "Hugging Face directory -> orbax directory"),
        ("export", "orbax directory -> Hugging Face directory"),
    ):
        command = commands.add_parser(name, help=summary, description=summary)
        command.add_argument("source", help="directory to read")
        command.add_argument("target", help="directory to write; must not exist yet")
        command.add_argument("--dtype", choices=DTYPES, default="stored", help="of the written parameters")
        command.add_argument(
            "--mesh", default="", help="devices to spread the parameters over meanwhile, such as fsdp=4,tensor=2"
        )
        if name == "export":
            command.add_argument("--prefix", choices=weights.PREFIXES, default="", help="before every tensor's name")
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
        if not size.removeprefix("-").isdigit():
            raise InputError(f"--mesh: {part!r} is not of the form axis=size")
        shape[axis] = int(size)
    return make_mesh(shape)


def text_files(folder: epath.Path) -> dict[str, bytes]:
    """Small files that belong to the model beside its weights and its config."""
    return {
        file.name: file.read_bytes()
        for file in sorted(folder.iterdir())
        if file.suffix in TEXT_FILES and file.name != "config.json" and not file.name.endswith(".index.json")
    }


def main(args: argparse.Namespace) -> None:
    source, target = epath.Path(args.source), epath.Path(args.target)
    logging.set_verbosity(logging.WARNING)  # orbax tells of every step
    if not source.is_dir():
        raise InputError(f"{source}: no such directory")
    if (args.command == "export") != store.is_store(source):
        raise InputError(f"{source}: {args.command} reads {_READS[args.command]}")
    if target.exists():
        raise InputError(f"{target}: exists already; remove it or name another directory")
    mesh = read_mesh(args.mesh)
    base = hf_config.read_json(source)
    config = pretrained.read_config(source)
    params = pretrained.read_params(source, config, dtype=DTYPES[args.dtype], mesh=mesh)
    if args.command == "import":
        store.save_store(target, config, params, base=base, files=text_files(source))
    else:
        pretrained.save(
            target,
            Thinker(config),
            params,
            prefix=args.prefix,
            base=base,
            files=text_files(source / "files"),
            max_shard_bytes=args.max_shard_bytes,
        )
    print(f"{target}: {count(params):,} parameters")


_READS = {
    "import": "a Hugging Face directory with safetensors",
    "export": "a directory that import made",
}

if __name__ == "__main__":
    cli.run(main, flags_parser=parse)
