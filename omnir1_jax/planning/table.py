"""A plan as a table."""

from typing import Any

from omnir1_jax.planning.topology import GIB


def table(plan: dict[str, Any]) -> str:
    """What a person reads."""
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
    lines.append("fits" if plan["fits"] else f"does not fit; shrink {plan['shrink']}")
    return "\n".join(lines)
