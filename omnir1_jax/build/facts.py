"""Values, by dotted name, that must be equal in all processes of a run."""

import functools
import hashlib
import os
import pathlib
import sys
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from typing import Any

import jax
import jaxlib
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict
from transformers import PreTrainedTokenizerBase

from omnir1_jax.build import models
from omnir1_jax.config import settings
from omnir1_jax.data.pipeline import Family, items
from omnir1_jax.data.refs import BadSample, Reader

# Settings that may differ between machines: paths, whose content is compared, and options of loading.
LOCAL = (
    "data_root",
    "data.*.datasets.*.root",
    "loader.threads",
    "loader.workers",
    "loader.prefetch",
    "thinker.path",
    "thinker.tokenizer",
    "sam2.path",
    "validate.root",
    "prompts.*",
)
PACKAGE = sys.modules[__name__.partition(".")[0]]
IDS = 1000  # ids of a dataset that are compared, evenly spaced


def of_settings(config: ConfigDict) -> dict[str, Any]:
    """Settings, versions, the package's own source, and the content of paths among the settings."""
    flat = flatten_dict(settings.plain(config), sep=".")
    return {
        "package.version": PACKAGE.__version__,
        "package.source": _source(),
        "jax.version": jax.__version__,
        "jaxlib.version": jaxlib.__version__,
        **{name: value for name, value in flat.items() if not any(fnmatch(name, pattern) for pattern in LOCAL)},
        **{f"prompts.{name}": _digest([text]) for name, text in models.prompt_texts(config).items()},
        "thinker.path": _files(config.thinker.path),
        "sam2.path": _files(config.sam2.path),
    }


def of_data(
    config: ConfigDict, tokenizer: PreTrainedTokenizerBase | None, families: Sequence[Family]
) -> dict[str, Any]:
    """The tokenizer, and the datasets by count, clips and ids."""
    facts: dict[str, Any] = {}
    for family in families:
        for label, reader in zip(config.data[family.name].datasets, family.readers, strict=True):
            name = f"data.{family.name}.datasets.{label}"
            facts |= {f"{name}.count": len(reader), f"{name}.ids": _digest(_ids(reader))}
        facts[f"data.{family.name}.clips"] = len(items(family))
        facts[f"data.{family.name}.order"] = family.order and family.order.digest
    if tokenizer is not None:
        facts |= {"tokenizer.size": len(tokenizer), "tokenizer": _digest(_tokens(tokenizer))}
    return facts


def _digest(texts: Iterable[str]) -> str:
    sums = hashlib.sha256()
    for text in texts:
        sums.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return sums.hexdigest()[:12]


@functools.cache
def _source() -> str:
    root = pathlib.Path(str(PACKAGE.__file__)).parent
    return _digest(f"{path.relative_to(root)}\0{path.read_text()}" for path in sorted(root.rglob("*.py")))


def _files(path: str) -> str:
    """Names, sizes and beginnings of a folder's files; a remote folder is its address."""
    if not path or "://" in path:
        return path
    texts = []
    for folder, folders, names in os.walk(path):
        folders.sort()
        for name in sorted(names):
            file = pathlib.Path(folder, name)
            if not file.is_file():
                continue
            with file.open("rb") as stream:
                begin = hashlib.sha256(stream.read(1 << 16)).hexdigest()
            texts.append(f"{file.relative_to(path)}\0{file.stat().st_size}\0{begin}")
    return _digest(texts)


def _ids(reader: Reader) -> Iterable[str]:
    count = len(reader)
    for position in sorted({number * (count - 1) // max(IDS - 1, 1) for number in range(IDS)} if count else ()):
        try:
            ref = reader[position]
            yield f"{ref.sample_id}\0{ref.query}"
        except BadSample as error:
            yield error.sample_id


def _tokens(tokenizer: PreTrainedTokenizerBase) -> Iterable[str]:
    fast = getattr(tokenizer, "backend_tokenizer", None)
    yield repr(sorted(tokenizer.get_vocab().items())) if fast is None else fast.to_str()
    yield repr(sorted(tokenizer.special_tokens_map.items()))
