"""Operations of one GRPO step at the paper's sizes, from its program, beside those of the usual implementation.

The program is the real `train_step`, lowered for one prompt without any weights; loops count with their trips. The
number of distinct keyframes of a group depends on the policy: the figures are for several.
"""

from omnir1_jax.planning import abstract, hlo, lowering, step

FRAMES = (8, 16, 24)  # distinct keyframes of the 32 requests; 24 is every frame of the clip


def run(quick: bool) -> dict:
    """TFLOP per prompt by phase, and the share of the usual sum. Nothing is run; `quick` skips one remat policy."""
    usual = sum(step.USUAL.values())
    figures = {}
    for remat in ("full",) if quick else ("full", "dots_no_batch"):
        config = step.paper_config()
        config.thinker.remat, config.thinker.attention = remat, "xla"
        program = abstract.program(config)
        module = hlo.parse(lowering.lower(program, "vos").as_text("hlo", debug_info=True))
        prefix = "" if remat == "full" else f"{remat}_"
        for frames in FRAMES:
            phases = step.by_phase(module, step.assumptions(program, step.paper_rollout(frames)))
            figures |= _table(prefix, frames, phases, usual)
    return {"usual_tflop": usual, "budget_share": step.BUDGET} | figures


def _table(prefix: str, frames: int, phases: dict[str, float], usual: float) -> dict[str, float]:
    if frames == FRAMES[0]:
        print(f"{'phase':<20}{'TFLOP':>8}   ({prefix or 'full '}remat, {frames} keyframes)")
        for name, amount in phases.items():
            print(f"{name:<20}{amount / 1e12:>8.1f}")
    stages = step.by_stage(phases)
    print(f"{'stage':<12}{'ours':>8}{'usual':>8}   TFLOP ({frames} distinct keyframes)")
    for name, amount in stages.items():
        print(f"{name:<12}{amount / 1e12:>8.1f}{step.USUAL.get(name, 0.0):>8.1f}")
    total = sum(stages.values()) / 1e12
    print(f"{'sum':<12}{total:>8.1f}{usual:>8.1f}   share {total / usual:.3f}\n", flush=True)
    return {
        f"{prefix}share_{frames}_keyframes": total / usual,
        f"{prefix}total_{frames}_keyframes_tflop": total,
    } | {f"{prefix}{name}_{frames}_keyframes_tflop": amount / 1e12 for name, amount in stages.items() if amount}
