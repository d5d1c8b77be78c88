"""Builds a TFDS dataset: `python -m omnir1_jax.data.tfds_builders --dataset revos --root DIR --out DIR`."""

from absl import flags

from omnir1_jax import cli
from omnir1_jax.errors import optional

_DATASET = flags.DEFINE_string("dataset", None, "Which dataset to build: revos, mevis or refavs.", required=True)
_ROOT = flags.DEFINE_string("root", None, "The dataset as its authors publish it.", required=True)
_OUT = flags.DEFINE_string("out", None, "Where datasets built by TFDS are kept.", required=True)


def main(_) -> None:
    optional("tensorflow_datasets", "train")
    from omnir1_jax.data.tfds_builders import builders

    print(builders.build(_DATASET.value, _ROOT.value, _OUT.value))


if __name__ == "__main__":
    cli.run(main)
