"""Writes a synthetic dataset: `python -m omnir1_jax.data.synthetic --out DIR --layout revos --clips 100 --seed 0`."""

from dataclasses import replace

from absl import flags

from omnir1_jax import cli
from omnir1_jax.data.synthetic import writers
from omnir1_jax.data.synthetic.world import PRESETS
from omnir1_jax.errors import InputError
from omnir1_jax.files import folders

_OUT = flags.DEFINE_string("out", None, "Directory to write: new, empty, or written by this command.", required=True)
_LAYOUT = flags.DEFINE_enum("layout", "revos", sorted(writers.LAYOUTS), "Whose layout to write.")
_CLIPS = flags.DEFINE_integer("clips", 64, "Training clips; each evaluation split has a fifth of that.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the world.", lower_bound=0)
_PRESET = flags.DEFINE_enum("preset", "default", sorted(PRESETS), "How hard the world is.")
_SIZE = flags.DEFINE_list("size", [], "Height and width of the frames in pixels, as 96,128.")
_FRAMES = flags.DEFINE_integer("frames", 0, "Frames per clip; 0: as many as the preset has.", lower_bound=0)
_TREE = flags.DEFINE_enum("tree", "official", ["official", "flat"], "ReVOS: with or without the JPEGImages level.")
_FORM = flags.DEFINE_enum("form", "folder", ["folder", "parquet"], "refCOCOg: how images are kept.")
_SPELLING = flags.DEFINE_enum("spelling", "tags", ["tags", "json"], "refCOCOg: how solutions are written.")


def main(_) -> None:
    config = PRESETS[_PRESET.value]
    if _SIZE.value:
        if len(_SIZE.value) != 2 or not all(part.isdecimal() for part in _SIZE.value):
            raise InputError(f"--size is height,width in pixels, not {','.join(_SIZE.value)}")
        config = replace(config, height=int(_SIZE.value[0]), width=int(_SIZE.value[1]))
    if _FRAMES.value:
        config = replace(config, frames=_FRAMES.value)
    if _LAYOUT.value == "mp4" and (config.height % 2 or config.width % 2):
        raise InputError("--size: a video's height and width are even")
    out = _OUT.value
    options = {
        "revos": {"tree": _TREE.value},
        "refcocog": {"form": _FORM.value, "spelling": _SPELLING.value},
    }.get(_LAYOUT.value, {})
    with folders.replace(out, "synthetic", "--out") as scratch:
        writers.LAYOUTS[_LAYOUT.value](scratch, config, _CLIPS.value, _SEED.value, **options)
    print(f"{out}: {_CLIPS.value} training clips in the layout of {_LAYOUT.value}")


if __name__ == "__main__":
    cli.run(main)
