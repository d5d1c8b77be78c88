"""Seconds of a trace's operations, by hand."""

from omnir1_jax.planning.trace import Event, phase, self_seconds


def test_what_runs_within_an_operation_is_not_counted_twice():
    event = lambda name, start, end: Event(name, start * 1e9, end * 1e9, "", "")
    events = [
        event("inner", 2, 3),
        event("while", 1, 8),
        event("deep", 5.25, 5.5),
        event("inner", 5, 6),
        event("b", 8, 9),
    ]
    found = [(one.name, seconds) for one, seconds in self_seconds(events)]
    assert sorted(found) == [("b", 1.0), ("deep", 0.25), ("inner", 0.75), ("inner", 1.0), ("while", 5.0)]


def test_a_phase_is_told_by_the_trace_the_program_or_the_stage():
    assert (
        phase(Event("dot.1", 0, 1, "jit_train_step", "jit(train_step)/sample/while/decode/dot"), {}) == "sample/decode"
    )
    assert phase(Event("dot.1", 0, 1, "jit_train_step", ""), {"dot.1": "jit(train_step)/encode/dot"}) == "encode"
    assert phase(Event("dot.1", 0, 1, "jit_reward", ""), {}) == "reward"
    assert phase(Event("dot.1", 0, 1, "jit_train_step", ""), {}) == "other"
