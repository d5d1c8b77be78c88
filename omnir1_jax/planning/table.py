"""A plan as a table."""

from collections.abc import Sequence
from typing import Any

from omnir1_jax.planning.topology import GIB


def table(plan: dict[str, Any]) -> str:
    """The plan as text."""
    memory = plan["hbm_bytes_per_chip"]
    gib = lambda size: "?" if size is None else f"{size / GIB:.2f}"
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan["mesh"].items())
    lines = [
        f"{plan['topology']}: {plan['chips']} chips as {mesh}; {plan['batch_size']} prompts a step; "
        f"remat {plan['remat']}; {plan['parameters'] / 1e6:,.1f} M parameters trained",
        "",
        f"{'memory of a chip':<36}{'GiB':>9}",
    ]
    lines += [f"  {name:<34}{gib(size):>9}" for name, size in memory.items()]
    peaks = plan.get("temporaries_by_phase", {}) | plan.get("caches_bytes_per_chip", {})
    if peaks:
        lines += ["", f"{'temporaries, most at a time':<36}{'GiB':>9}"]
        lines += [f"  {name:<34}{gib(size):>9}" for name, size in peaks.items()]
    if not plan["fits"]:
        lines += ["", f"{'largest temporaries':<36}{'GiB':>9}"]
        buffers = plan.get("largest_temporaries", [])
        lines += [f"  {item['shape'][:33]:<34}{gib(item['bytes']):>9}  {item['path'][-70:]}" for item in buffers]
    if "operations" in plan:
        columns = ("operations", "bytes", "collective_bytes", "seconds_estimate")
        lines += ["", f"{'a step, of a chip':<20}{'TFLOP':>10}{'GB':>10}{'GB links':>10}{'seconds':>10}  (roofline)"]
        for name in ["total", *(name for name in plan["operations"] if name != "total")]:
            values = [plan[column].get(name, 0.0) for column in columns]
            if any(values):
                flop, size, links, seconds = values
                lines.append(f"  {name:<18}{flop / 1e12:>10.2f}{size / 1e9:>10.1f}{links / 1e9:>10.2f}{seconds:>10.3f}")
        trips = ", ".join(f"{name} {value}" for name, value in plan["rollout"].items())
        lines += ["", f"loops taken as: {trips}; links are {plan['collective_share']:.0%} of the time"]
    if "validation" in plan:
        lines += ["", validation(plan["validation"])]
    lines.append("fits" if plan["fits"] else f"does not fit; shrink {plan['shrink']}")
    return "\n".join(lines)


def validation(entry: dict[str, Any]) -> str:
    """A plan's validation as a line of text."""
    text = f"validation: {entry['batch_seconds']:.2f} s a batch of {entry['batch_items']} items of {entry['task']}"
    if entry["items"] is None:
        return f"{text} (roofline); how many there are is the dataset's: give validate.limit"
    text += f", {entry['seconds']:.1f} s for {entry['items']} (roofline)"
    return f"{text}; {entry['times']} times, {entry['seconds_per_step']:.2f} s a step" if entry["times"] else text


def scaling(plans: Sequence[dict[str, Any]]) -> str:
    """Weak scaling: one line per number of chips."""
    columns = (
        f"{'chips':>6}{'prompts':>9}{'GiB':>8}{'TFLOP':>10}{'of first':>10}{'GB links':>10}{'share':>8}{'seconds':>10}"
    )
    lines = [
        "a chip's memory, operations, collective bytes and their share of the estimated seconds of a step",
        columns,
    ]
    for plan in plans:
        if "operations" not in plan:
            lines.append(f"{plan['chips']:>6}{plan['batch_size']:>9}  does not fit; shrink {plan['shrink']}")
            continue
        work = plan["operations"]["total"]
        lines.append(
            f"{plan['chips']:>6}{plan['batch_size']:>9}{plan['hbm_bytes_per_chip']['total'] / GIB:>8.2f}"
            f"{work / 1e12:>10.2f}{work / plans[0]['operations']['total']:>10.4f}"
            f"{plan['collective_bytes']['total'] / 1e9:>10.2f}{plan['collective_share']:>8.1%}"
            f"{plan['seconds_estimate']['total']:>10.2f}"
        )
    stages = plans[0]["stages"]
    return "\n".join([*lines, f"stages {', '.join(stages)}, each by itself"] if stages else lines)


def summary(plans: Sequence[dict[str, Any]]) -> str:
    """Plans of several configs as a Markdown table."""
    head = ("config", "topology", "mesh", "prompts", "GiB a chip", "of", "fits", "TFLOP a chip", "links", "seconds")
    lines = [head, ("---",) * len(head)]
    for plan in plans:
        memory = plan["hbm_bytes_per_chip"]
        gib = "?" if memory["total"] is None else f"{memory['total'] / GIB:.2f}"
        costs = ("", "", "")
        if "operations" in plan:
            seconds = plan["seconds_estimate"]["total"]
            costs = f"{plan['operations']['total'] / 1e12:.0f}", f"{plan['collective_share']:.0%}", f"{seconds:.1f}"
        mesh = " x ".join(f"{axis} {size}" for axis, size in plan["mesh"].items() if size > 1) or "one chip"
        fits = "yes" if plan["fits"] else "no"
        name, prompts, capacity = plan.get("config", ""), str(plan["batch_size"]), f"{memory['capacity'] / GIB:.2f}"
        lines.append((name, plan["topology"], mesh, prompts, gib, capacity, fits, *costs))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
