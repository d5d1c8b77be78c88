"""Datasets by name."""

import inspect
from collections.abc import Callable

from omnir1_jax.config import lookup
from omnir1_jax.data import (
    avhbench,
    dailyomni,
    folder,
    mevis,
    mvbench,
    omnibench,
    reasonvos,
    refavs,
    refcocog,
    refdavis,
    refytvos,
    revos,
    videomme,
    videor1,
)
from omnir1_jax.data.refs import Reader
from omnir1_jax.data.synthetic import reader as synthetic
from omnir1_jax.errors import InputError, optional


def _open_tfds(root: str, split: str = "train") -> Reader:
    optional("tensorflow_datasets", "train")  # half a second, for those who need it
    from omnir1_jax.data.tfds_builders import reader

    return reader.open(root, split)


DATASETS: dict[str, Callable[..., Reader]] = {
    "revos": revos.open,
    "mevis": mevis.open,
    "refavs": refavs.open,
    "refytvos": refytvos.open,
    "refdavis": refdavis.open,
    "refcocog": refcocog.open,
    "reasonvos": reasonvos.open,
    "omnibench": omnibench.open,
    "dailyomni": dailyomni.open,
    "videomme": videomme.open,
    "mvbench": mvbench.open,
    "avhbench": avhbench.open,
    "videor1": videor1.open,
    "folder": folder.open,
    "synthetic": synthetic.open,
    "tfds": _open_tfds,
}


def open_dataset(name: str, root: str, split: str | None = None, **options: object) -> Reader:
    """A reader of the split (the dataset's own first one by default). Raises `InputError`."""
    opener = lookup.function(name, DATASETS, "dataset")
    known = [option for option in inspect.signature(opener).parameters if option not in ("root", "split")]
    if unknown := [option for option in options if option not in known]:
        raise InputError(f"{name} has no option '{unknown[0]}'; it has {', '.join(known) or 'none'}")
    chosen = {} if split is None else {"split": split}
    return opener(root, **chosen, **options)
