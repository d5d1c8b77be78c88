"""Whatever the mesh of 8 devices: the same samples, and three steps that are those of one device."""

import json
import subprocess
import sys

import numpy as np
import pytest

from tests.data import qwen_oracle
from tests.parallel.mesh_runs import PHASES
from tests.runs import ROOT, environment

LORA = {"lora.rank": 8, "lora.alpha": 16.0}
MESHES = (
    {"data": 8},
    {"fsdp": 8},
    {"data": 2, "fsdp": 4},
    {"fsdp": 4, "tensor": 2},
    {"data": 2, "fsdp": 2, "tensor": 2},
    {"slice": 2, "fsdp": 2, "tensor": 2},
)


def case(kind: str, changes: dict, mesh: dict | None, **more) -> dict:
    adapter = "adapter" if changes else "full"
    shape = "alone" if mesh is None else "-".join(f"{axis}{size}" for axis, size in mesh.items())
    return {"name": f"{kind}-{adapter}-{shape}", "kind": kind, "changes": changes, "mesh": mesh, **more}


def carry_out(out, cases: list[dict]):
    """The cases in a process of their own, compiled quickly."""
    tokenizer = qwen_oracle.save_tokenizer(out / "tokenizer")
    command = [sys.executable, "-m", "tests.parallel.mesh_runs", str(out), tokenizer, json.dumps(cases)]
    done = subprocess.run(command, cwd=ROOT, env=environment(devices=8), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return out


def told(out, one: dict) -> tuple[dict, np.ndarray]:
    return json.loads((out / f"{one['name']}.json").read_text()), np.load(out / f"{one['name']}.npy")


def compare(out, one: dict) -> None:
    """A case against the same on one device."""
    (got, weights), (want, wanted) = told(out, one), told(out, case(one["kind"], one["changes"], None))
    rows = 8 // int(np.prod([size for axis, size in one["mesh"].items() if axis != "tensor"]))
    for mine, other in zip(got["steps"], want["steps"], strict=True):
        assert mine["samples"] == other["samples"] and mine["data"] == other["data"]
        np.testing.assert_array_equal(mine["tokens"], other["tokens"])
        assert mine["rows"] == rows
        # Nothing but rounding itself, hence not to be compared.
        assert mine["metrics"].pop("learn/sampler_gap") < 1e-3 > other["metrics"].pop("learn/sampler_gap")
        for name, value in other["metrics"].items():
            np.testing.assert_allclose(mine["metrics"][name], value, rtol=1e-5, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(weights, wanted, rtol=0, atol=1e-5)
    assert max(step["metrics"]["learn/grad_norm"] for step in got["steps"]) > 1e-2
    assert got["cut"]
    print(one["name"], "weights differ by", np.abs(weights - wanted).max(), shares(got, want))


def shares(got: dict, want: dict) -> dict[str, float]:
    """Operations of one device of a mesh, of those of one device that does it all."""
    both = got["operations"], want["operations"]
    return {name: both[0][name] / both[1][name] for name in PHASES if both[1][name]}


def spread(out, one: dict) -> None:
    """Nothing of any weight is done by every device over again."""
    # Patches are embedded by every device of `tensor`: that product has no axis for it, and weighs much at this size.
    usual = 1.4 if "tensor" in one["mesh"] else 1.1
    room = {"update": 2.1} if one["kind"] == "toy" else {}  # its 645 tokens cannot be cut
    for name, share in shares(told(out, one)[0], told(out, case(one["kind"], one["changes"], None))[0]).items():
        assert share < room.get(name, usual) / 8, (name, share)


def resumed(out, one: dict) -> None:
    """The last step from another mesh's checkpoint against the same on this mesh alone."""
    again = np.load(out / f"{one['name']}.resumed.npy")
    np.testing.assert_allclose(again, told(out, one)[1], rtol=0, atol=1e-5)


TINY = [
    case("tiny", {}, None),
    case("tiny", {}, MESHES[4]),
    case("tiny", {}, MESHES[1], **{"from": case("tiny", {}, MESHES[4])["name"]}),
    case("tiny", LORA, None),
    case("tiny", LORA, MESHES[5]),
]
ON_MESHES = [one for one in TINY if one["mesh"]]
names = lambda one: one["name"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return carry_out(tmp_path_factory.mktemp("tiny"), TINY)


@pytest.mark.parametrize("one", ON_MESHES, ids=names)
def test_three_steps_are_those_of_one_device(tiny, one):
    compare(tiny, one)


@pytest.mark.parametrize("one", ON_MESHES, ids=names)
def test_each_device_does_its_share(tiny, one):
    spread(tiny, one)


def test_a_checkpoint_goes_on_over_another_mesh(tiny):
    resumed(tiny, next(one for one in TINY if "from" in one))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tiny", "toy"])
@pytest.mark.parametrize("changes", [{}, LORA], ids=["full", "adapter"])
def test_every_mesh(tmp_path, kind, changes):
    """The toy has both systems and the segmenter, with weights that write plans."""
    cases = [case(kind, changes, mesh) for mesh in (None, *MESHES)]
    cases[2]["from"] = cases[1]["name"]
    carry_out(tmp_path, cases)
    for one in cases[1:]:
        compare(tmp_path, one)
        spread(tmp_path, one)
    resumed(tmp_path, cases[2])
