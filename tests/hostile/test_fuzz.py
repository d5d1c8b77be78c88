"""Hostile configs, indices, results and work directories: documented errors alone, at once, within the same memory."""

import collections
import json
import os
import pathlib
import random
import resource
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

from omnir1_jax.config import settings
from omnir1_jax.data.preprocess import tokens
from omnir1_jax.data.refs import BadSample
from omnir1_jax.errors import InputError
from omnir1_jax.inference import from_checkpoint, report, result_lines, samples, store
from omnir1_jax.models import safetensors_file, sam2
from omnir1_jax.models.qwen_omni import hf_processor, pretrained
from omnir1_jax.reporting import lines, train_report
from tests.hostile.test_linear import ROOT, at_most

DEEP = [[]]
for _ in range(300):
    DEEP = [DEEP]
JUNK = (
    *("", "x", "12", "\ud800", "a\0b", "..", "../x", "/etc/passwd", "gs://x/y", "a" * 5000, "\x1b[2J\n", "1e5"),
    *(None, True, False, 0, -1, 1, 7, 10**9, 10**12, 10**400, 0.5, 1e308, float("inf"), float("nan"), -0.0),
    *(
        "",
        "x",
        "12",
        "\ud800",
        "a\0b",
        "..",
        "../x",
        "/etc/passwd",
        "gs://x/y",
        "a" * 5000,
        "\x1b[2J\n",
        "model",
        "1e5",
    ),
    *([], {}, [None], [[]], [0] * 2000, ["x"], {"a": {}}, {"": 1}, {"position": -1}, DEEP),
)
THINKER, SAM2 = ROOT / "configs/toy_weights/thinker", ROOT / "configs/toy_weights/sam2"
SCORES = {"J": 0.5, "F": 0.25}
IDENTITY = {"options": {"benchmark": "mevis", "limit": 3}, "config": {"seed": 0, "pixels": [1, 2]}, "weights": "ab"}


def result(position):
    keyframe = {"frame": 3, "description": "a cat", "answer": "[]", "boxes": [[0.0, 1.0, 2.0, 3.5]]}
    return {
        **dict(position=position, sample_id=f"mevis/a/{position}", query="a cat", fault=None, completion="<answer>"),
        **dict(plan=[], keyframes=[keyframe], failures=["box/none"], predicted=True, scores=SCORES, type_id=None),
    }


def build(kind: str, folder: pathlib.Path) -> None:
    """Files as they should be."""
    match kind:
        case "thinker":
            for name in ("config.json", "model.safetensors"):
                shutil.copy(THINKER / name, folder)
        case "sam2":
            for name in ("config.json", "model.safetensors"):
                shutil.copy(SAM2 / name, folder)
        case "index":
            for part in (1, 2):
                tensors = {f"t{part}{n}": np.ones((n + 1, 3), np.float32) for n in range(3)}
                save_file(tensors, folder / f"model-{part}.safetensors")
            where = {f"t{part}{n}": f"model-{part}.safetensors" for part in (1, 2) for n in range(3)}
            index = {"metadata": {"total_size": 144}, "weight_map": where}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        case "results":
            with store.Store(folder, IDENTITY) as opened:
                for position in range(3):
                    opened.add(result(position))
        case "run":
            shutil.copy(ROOT / "tests/old_run/run/config.json", folder)
            (folder / "weights").mkdir()
        case "report":
            for name in ("config.json", "metrics.jsonl", "rollouts.jsonl"):
                shutil.copy(ROOT / "tests/old_run/run" / name, folder)
            (folder / "summary.json").write_text(json.dumps({"steps": 3, "seconds": 1.5, "metrics": {"loss": [1, 2]}}))
        case "boxes":
            rows = ({"sample_id": f"s{n}", "boxes": {"3": [[0, 1, 2, 3]]}} for n in range(3))
            (folder / "boxes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        case "tokenizer":
            for name in ("tokenizer.json", "tokenizer_config.json"):
                shutil.copy(THINKER / name, folder)


def use(kind: str, folder: pathlib.Path) -> None:
    """Reads the folder as the commands do."""
    match kind:
        case "thinker":
            pretrained.load(folder)
        case "sam2":
            sam2.load(folder)
        case "index":
            for info in safetensors_file.index(folder).values():
                safetensors_file.not_finite(safetensors_file.read_tensor(info))
        case "results":
            with store.Store(folder, IDENTITY) as opened:
                result_lines.require(opened.lines.values(), True, SCORES, folder / store.LINES)
                collections.Counter(kind for line in opened.lines.values() for kind in line["failures"])
                for line in opened.lines.values():
                    report._row(line)
                    [k["frame"] + 1 for k in line["keyframes"] if [tuple(box) for box in k["boxes"]]]
        case "run":
            settings.read(folder / "config.json")
            from_checkpoint.config_of(str(folder))
        case "report":
            lines.truncate(folder / "metrics.jsonl", 2)
            train_report.write_report(folder)
        case "boxes":
            samples.read_boxes(str(folder / "boxes.jsonl"))
        case "tokenizer":
            tokens.load_tokenizer(folder)
            hf_processor.with_processor(trained_config(), {p.name: p.read_bytes() for p in folder.glob("*.json")})


def trained_config():
    return pretrained.read_config(THINKER)


CHEAP = ("index", "results", "run", "report", "boxes", "tokenizer")
KINDS = (*CHEAP * 3, "thinker", "sam2")  # a model is traced, in seconds, where its config is accepted


def changed(value, rng: random.Random):
    """The JSON value with one place in it replaced, added or missing."""
    if isinstance(value, dict | list) and value and rng.random() < 0.85:
        key = rng.choice(sorted(value)) if isinstance(value, dict) else rng.randrange(len(value))
        out = value.copy()
        if rng.random() < 0.15:
            del out[key]
        else:
            out[key] = changed(value[key], rng)
        return out
    if type(value) in (int, float) and rng.random() < 0.3:
        return rng.choice((value + 1, -value, 2 * value, float(value), str(value)))
    return rng.choice(JUNK)


def damaged_text(data: bytes, rng: random.Random) -> bytes:
    match rng.choice(("cut", "flip", "nan", "huge", "deep", "mark", "twice", "bytes", "empty", "spaces")):
        case "cut":
            return data[: rng.randrange(len(data) + 1)]
        case "flip":
            out = bytearray(data or b"x")
            for _ in range(rng.choice((1, 10, 100))):
                out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
            return bytes(out)
        case "nan":
            return data.replace(b": ", rng.choice((b": NaN, ", b": -Infinity ", b": 1e400", b': "')), 1)
        case "huge":
            return data.replace(b"1", b"1" * rng.choice((30, 400, 5000)), 1)
        case "deep":
            depth = rng.choice((70, 900, 100_000))
            return rng.choice((b"[" * depth, b'{"a":' * depth + b"1" + b"}" * depth, b"[" * depth + b"]" * depth))
        case "mark":
            return b"\xef\xbb\xbf" + data
        case "twice":
            return data.replace(b"{", b'{"position": [], "position": 1, "thinker": {"path": 1}, ', 1)
        case "bytes":
            return rng.randbytes(rng.choice((1, 8, 300)))
        case "empty":
            return b""
    return b" " * 100_000 + data


def damage(folder: pathlib.Path, rng: random.Random) -> str:
    """Breaks one file of the folder; says how."""
    path = rng.choice(sorted(path for path in folder.iterdir() if path.is_file()))
    data, how = path.read_bytes(), rng.choice(("json", "json", "json", "json", "text", "text", "file"))
    path.unlink()
    if path.suffix == ".safetensors" and how == "json":
        length = int.from_bytes(data[:8], "little")
        header, rest = json.dumps(changed(json.loads(data[8 : 8 + length]), rng)).encode(), data[8 + length :]
        length = rng.choice((len(header), len(header), 0, 1 << 62))
        path.write_bytes(length.to_bytes(8, "little") + header + rest)
    elif path.suffix == ".json" and how == "json":
        path.write_text(json.dumps(changed(json.loads(data), rng)))
    elif how == "json":
        rows = data.split(b"\n")
        number = rng.randrange(len(rows) - 1)
        rows[number] = json.dumps(changed(json.loads(rows[number]), rng)).encode()
        path.write_bytes(b"\n".join(rows))
    elif how == "text":
        path.write_bytes(damaged_text(data, rng))
    else:
        match rng.choice(("fifo", "folder", "missing", "dangling", "device", "loop")):
            case "fifo":
                os.mkfifo(path)
            case "folder":
                path.mkdir()
            case "dangling":
                path.symlink_to("none")
            case "device":
                path.symlink_to("/dev/zero")
            case "loop":
                path.symlink_to(path)
    return f"{how} {path.name}"


def fuzz(folder: pathlib.Path, cases, kinds=KINDS) -> dict[str, collections.Counter]:
    """Breaks and uses; the outcomes by kind."""
    outcomes = collections.defaultdict(collections.Counter)
    for case in cases:
        rng, kind = random.Random(case), kinds[case % len(kinds)]
        where = folder / str(case)
        where.mkdir()
        build(kind, where)
        what = damage(where, rng)
        try:
            with at_most(30):
                use(kind, where)
            outcomes[kind]["accepted"] += 1
        except (InputError, BadSample) as error:
            assert "\n" not in str(error) and 10 < len(str(error)) < 3000, f"case {case}, {kind}: {what}: {error}"
            outcomes[kind]["refused"] += 1
        except Exception as error:
            raise AssertionError(f"case {case}, {kind}: {what}: {type(error).__name__}: {error}") from error
        shutil.rmtree(where)
    return outcomes


def megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def test_hostile_folders_end_in_documented_errors(tmp_path):
    outcomes = fuzz(tmp_path, range(150), CHEAP)
    assert all(outcomes[kind]["refused"] >= 5 for kind in CHEAP), outcomes


@pytest.mark.slow
def test_many_hostile_folders_end_in_documented_errors(tmp_path):
    fuzz(tmp_path, range(100_000, 100_080))
    before = megabytes()
    outcomes = fuzz(tmp_path, range(2000))
    print(dict(outcomes), f"{megabytes():.0f} MiB at most, {before:.0f} before")
    assert all(outcomes[kind]["refused"] >= 50 for kind in KINDS), outcomes
    assert megabytes() - before < 300
