"""`python -m omnir1_jax.plan --config CONFIG --topology TOPOLOGY`: does a run fit, and how long is a step?

Compiles the real step with the TPU compiler, on a machine without a TPU and without the weights.
"""

import os

# Platform set-up has to precede the import of jax: libtpu only compiles, what tracing makes lies on the CPU.
os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")

import json
from typing import Any

from absl import flags

from omnir1_jax import cli, settings
from omnir1_jax.errors import InputError
from omnir1_jax.planning import report, search, table

_CONFIG = settings.define()
_TOPOLOGY = flags.DEFINE_string(
    "topology", "v5p:2x2x1", "Chips to plan for, as v5e:2x4, v5p:2x2x1 or v6e:4x4.", allow_override=True
)
_HBM = flags.DEFINE_float(
    "hbm", None, "GiB of memory of a chip, in place of the chip's own.", lower_bound=0.1, allow_override=True
)
_SEARCH = flags.DEFINE_bool(
    "search", False, "Try meshes, rematerialisation and chunks; the cheapest that fits.", allow_override=True
)
_JSON = flags.DEFINE_string("json", None, "Also write the plan to this file.", allow_override=True)
_COMPLETION = flags.DEFINE_integer(
    "completion", None, "Tokens of the longest completion; default the limit.", allow_override=True
)
_ANSWER = flags.DEFINE_integer(
    "answer", None, "Tokens of System 2's longest answer; default the limit.", allow_override=True
)
_FRAMES = flags.DEFINE_integer(
    "keyframes", None, "Distinct keyframes of a group; default as many as there can be.", allow_override=True
)


def main(_: Any) -> int:
    cli.need(config=_CONFIG)
    expected = report.Expected(_COMPLETION.value, _ANSWER.value, _FRAMES.value)
    if _COMPLETION.value is not None and _COMPLETION.value < 1:
        raise InputError("--completion: must be at least 1")
    settings_ = dict(hbm=_HBM.value, expected=expected)
    if _SEARCH.value:
        found = search.cheapest(_CONFIG.value, _TOPOLOGY.value, **settings_, log=lambda line: print(line, flush=True))
    else:
        found = report.plan(_CONFIG.value, _TOPOLOGY.value, **settings_)
    print(table.table(found), flush=True)
    if _JSON.value:
        with cli.atomic_path(_JSON.value) as scratch:
            scratch.write_text(json.dumps(found, indent=2))
    return 0 if found["fits"] else 1


if __name__ == "__main__":
    cli.run(main, flags_parser=settings.parse)
