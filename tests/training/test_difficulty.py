"""What is sampled of a policy at each prompt, and what the loader takes of the list."""

import dataclasses
import json

import numpy as np
import pytest

from omnir1_jax import tasks
from omnir1_jax.build import data
from omnir1_jax.build import run as setup
from omnir1_jax.data.pipeline import items
from omnir1_jax.errors import InputError
from omnir1_jax.tasks import qa
from omnir1_jax.training import difficulty
from tests import tiny
from tests.data import qwen_oracle


def test_every_prompt_is_measured_once_and_the_loader_takes_those_that_spread(tmp_path, monkeypatch):
    qwen_oracle.save_tokenizer(tmp_path / "tokenizer")
    monkeypatch.setattr(setup, "mesh_of", lambda config: None)
    monkeypatch.setitem(tasks.TASKS, "qa", dataclasses.replace(qa.TASK, reward=tiny.varied(qa.TASK.reward)))
    c = tiny.get_config(str(tmp_path / "tokenizer"))
    c.data.qa.batch_size = 3
    run, digest = difficulty.build(c)
    out = tmp_path / "list.jsonl"
    lines = difficulty.complete(out, run, digest, limit=4)
    assert len(lines) == 4
    lines = difficulty.complete(out, run, digest)
    reader = run.families[0].readers[0]
    assert sorted(line["sample_id"] for line in lines) == sorted(reader[i].sample_id for i in range(len(reader)))
    for line in lines:
        assert len(line["rewards"]) == c.step.group and line["mean"] == pytest.approx(
            np.mean(line["rewards"]), abs=1e-5
        )
        assert line["spread"] == pytest.approx(np.std(line["rewards"]), abs=1e-5)
    spreads = sorted(line["spread"] for line in lines)
    assert spreads[-1] > 0.1

    # Killed while it writes: what was written stays, and the rest comes out as before.
    whole = out.read_bytes()
    cut = whole.index(b"\n", len(whole) // 2) + 20
    for rest in (whole[:cut], whole[: whole.index(b"\n") + 1], whole[:5], whole):
        out.write_bytes(rest)
        assert difficulty.complete(out, run, digest) == lines and out.read_bytes() == whole
    with pytest.raises(InputError, match="--out: .*list.jsonl is the list of other settings, weights or data; name"):
        difficulty.complete(out, run, "another")
    for foreign in (b"mine\n", b"mine", whole + b"{}\n"):
        out.write_bytes(foreign)
        with pytest.raises(InputError, match="--out: .*list.jsonl was not written by this command; name another file"):
            difficulty.complete(out, run, digest)
        assert out.read_bytes() == foreign

    out.write_text("".join(json.dumps(line) + "\n" for line in lines[1:]))
    c.data.qa.difficulty, c.data.qa.least_spread = str(out), spreads[-1]
    (chosen,) = data.readers(c, "qa")
    kept = {chosen[i].sample_id for i in range(len(chosen))}
    # The first is in no list, so that nothing speaks against it.
    assert kept == {line["sample_id"] for line in lines[1:] if line["spread"] == spreads[-1]} | {lines[0]["sample_id"]}
    assert len(items(dataclasses.replace(run.families[0], readers=(chosen,)))) <= len(kept)

    c.data.qa.least_spread, c.data.qa.one_per_clip, c.data.qa.order = 0.0, False, "easy_first"
    (family,) = data.families(c, run.loaded.tokenizer, run.loaded.models.thinker.config)
    means = {line["sample_id"]: line["mean"] for line in lines[1:]}
    means[lines[0]["sample_id"]] = np.mean([*means.values()])
    order = [means[family.readers[0][i].sample_id] for i in family.order.epoch(np.random.default_rng(0), 0).tolist()]
    assert order == sorted(order, reverse=True)
    out.write_text(json.dumps(lines[0]) + "\n{}\n")
    with pytest.raises(InputError, match="data.qa.difficulty: .*list.jsonl, line 2 has no sample_id"):
        data.readers(c, "qa")
