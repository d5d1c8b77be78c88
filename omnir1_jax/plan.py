"""`python -m omnir1_jax.plan --config CONFIG --topology TOPOLOGY`: does a run fit, and how long is a step?

Compiles the real step with the TPU compiler, on a machine without a TPU and without the weights.
"""

import os

# Platform set-up has to precede the import of jax: libtpu only compiles, arrays made by tracing are on the CPU.
os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")

from typing import Any

from omnir1_jax import cli
from omnir1_jax.config import settings
from omnir1_jax.errors import InputError
from omnir1_jax.files import json_file, output_file
from omnir1_jax.planning import price, report, scaling, search, table, validation

_CONFIG = settings.define()
_TOPOLOGY = cli.flag.string(
    "topology",
    "v5p:2x2x1",
    "Chips to plan for, as v5e:2x4, v5p:2x2x1 or v6e:4x4; several, with commas: weak scaling from the first on.",
)
_HBM = cli.flag.float("hbm", None, "GiB of memory of a chip, in place of the chip's own.", lower_bound=0.1)
_SEARCH = cli.flag.bool("search", False, "Try meshes, rematerialisation and chunks; the cheapest that fits.")
_TRIES = cli.flag.integer("tries", 12, "Plans that --search compiles at most.", lower_bound=1)
_STAGES = cli.flag.list(
    "stages",
    [],
    "Only these stages of the step, each compiled by itself, as sample,update; validate: a validation's programs.",
)
_EFFORT = cli.flag.float(
    "effort",
    0.0,
    "The compiler's, from -1 (quick; the program may be larger) to 1; training's is 0.",
    lower_bound=-1.0,
    upper_bound=1.0,
)
_PRICE = cli.flag.float("price", None, "USD of a chip and hour: also what the config's steps cost.", lower_bound=0.0)
_SUMMARY = cli.flag.list("summary", [], "Only print plans that --json wrote to these files as one Markdown table.")
_JSON = cli.flag.string("json", None, "Also write the plan to this file.")
_COMPLETION = cli.flag.integer("completion", None, "Tokens of the longest completion; default the limit.")
_ANSWER = cli.flag.integer("answer", None, "Tokens of System 2's longest answer; default the limit.")
_FRAMES = cli.flag.integer("keyframes", None, "Distinct keyframes of a group; default as many as there can be.")


def main(_: Any) -> int:
    if _SUMMARY.value:
        print(table.summary([read_plan(path) for path in _SUMMARY.value]))
        return 0
    cli.need(config=_CONFIG)
    if _JSON.value:
        output_file.check(_JSON.value, "--json", is_output)
    expected = report.Expected(_COMPLETION.value, _ANSWER.value, _FRAMES.value)
    if _COMPLETION.value is not None and _COMPLETION.value < 1:
        raise InputError("--completion: must be at least 1")
    options = dict(hbm=_HBM.value, expected=expected, stages=_STAGES.value, effort=_EFFORT.value)
    config, topologies, log = _CONFIG.value, _TOPOLOGY.value.split(","), lambda line: print(line, flush=True)
    if validation.STAGE in _STAGES.value and (_SEARCH.value or len(topologies) > 1):
        raise InputError("--stages: validate takes one --topology, and no --search")
    if _PRICE.value is not None and _STAGES.value == [validation.STAGE]:
        raise InputError("--price: needs the step's seconds; name stages of it beside validate")
    if len(topologies) > 1:
        for flag, value in (("search", _SEARCH.value), ("price", _PRICE.value is not None)):
            if value:
                raise InputError(f"--{flag}: takes one --topology")
        plans = scaling.weak(config, topologies, **options, log=log)
        result, text, fits = plans, table.scaling(plans), all(plan["fits"] for plan in plans)
    else:
        if _SEARCH.value:
            result = search.cheapest(config, topologies[0], **options, log=log, tries=_TRIES.value)
        else:
            result = report.plan(config, topologies[0], **options)
        result = {"config": config.name} | result
        text, fits = table.table(result), result["fits"]
        if _PRICE.value is not None:
            result |= {"run": price.run(result, config, _PRICE.value)}
            text += "\n" + price.line(result["run"], result, config)
    print(text, flush=True)
    if _JSON.value:
        output_file.write(_JSON.value, "--json", result, is_output)
    return 0 if fits else 1


def is_output(value: Any) -> bool:
    """Whether a file's content is what `--json` writes: a plan, or plans for several topologies."""
    plans = value if isinstance(value, list) else [value]
    return bool(plans) and all(isinstance(plan, dict) and "hbm_bytes_per_chip" in plan for plan in plans)


def read_plan(path: str) -> dict[str, Any]:
    """A plan written by `--json`."""
    plan = json_file.read_object(path, "--summary")
    if "hbm_bytes_per_chip" not in plan:
        raise InputError(f"--summary: {path} is not a plan of one topology")
    return plan


if __name__ == "__main__":
    cli.run(main, flags_parser=settings.parse)
