"""The convert command: Hugging Face directory -> orbax directory -> Hugging Face directory."""

import os
import subprocess
import sys
import time
import weakref

import jax
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from omnir1_jax import convert
from omnir1_jax.errors import InputError
from omnir1_jax.models import qwen_omni, safetensors_file
from omnir1_jax.models.hf_checkpoint import Deferred
from tests.models.thinker_oracle import Sizes, reference


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A bfloat16 checkpoint with a tokenizer's file."""
    folder = tmp_path_factory.mktemp("hf")
    reference(Sizes(vision_depth=1, full_blocks=(0,), layers=1, audio_layers=1)).to(torch.bfloat16).save_pretrained(
        folder
    )
    (folder / "tokenizer.json").write_text("{}")
    (folder / "spk_dict.pt").write_bytes(b"pickle")
    return folder


def run(*args):
    convert.main(convert.parse(["convert", *map(str, args)]))


def command(*args):
    env = {**os.environ, "XLA_FLAGS": ""}
    line = [sys.executable, "-m", "omnir1_jax.convert", *map(str, args)]
    return subprocess.run(line, capture_output=True, text=True, env=env)


def same(got, want):
    got, want = load_file(got), load_file(want)
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        assert got[name].dtype == tensor.dtype
        assert torch.equal(got[name].view(torch.uint8), tensor.view(torch.uint8)), name


def test_there_and_back(source, tmp_path):
    done = command("import", source, tmp_path / "orbax")
    assert done.returncode == 0, done.stderr
    parameters = sum(tensor.numel() for tensor in load_file(source / "model.safetensors").values())
    assert done.stdout == f"{tmp_path / 'orbax'}: {parameters:,} parameters\n"
    run("export", tmp_path / "orbax", tmp_path / "back [1]*?{a}")
    same(tmp_path / "back [1]*?{a}" / "model.safetensors", source / "model.safetensors")
    names = sorted(path.name for path in (tmp_path / "back [1]*?{a}").iterdir())
    assert names == [".omnir1.json", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]
    _, stored = qwen_omni.load(tmp_path / "orbax")
    _, original = qwen_omni.load(source)
    assert stored["text"]["norm"]["scale"].dtype == np.float32
    jax.tree.map(np.testing.assert_array_equal, stored, original)


def test_one_parameter_at_a_time(source, tmp_path, monkeypatch):
    """Import and export, with another dtype and layout: the memory of each parameter is free when the next is made."""
    make, alive, made = Deferred.__array__, [], []

    def watched(self, dtype=None, copy=None):
        waited = time.monotonic() + 5  # a thread of tensorstore's may be about to let go
        while any(owner() is not None for owner in alive):
            assert time.monotonic() < waited
        array = owner = make(self)
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        alive[:] = [weakref.ref(owner)]
        made.append(array.shape)
        return array

    monkeypatch.setattr(Deferred, "__array__", watched)
    run("import", source, tmp_path / "orbax", "--dtype", "float32")
    imported = len(made)
    run("export", tmp_path / "orbax", tmp_path / "back", "--dtype", "bfloat16", "--layout", "omni")
    assert len(made) == 2 * imported > 80
    got, want = load_file(tmp_path / "back" / "model.safetensors"), load_file(source / "model.safetensors")
    assert got.keys() == {"thinker." + name for name in want}
    for name, tensor in want.items():
        assert torch.equal(got["thinker." + name], tensor), name


def test_bad_input_is_one_line_and_leaves_nothing(source, tmp_path, monkeypatch):
    done = command("import", tmp_path / "absent", tmp_path / "out")
    assert (done.returncode, done.stderr) == (2, f"error: {tmp_path / 'absent'}: no such directory\n")
    run("import", source, tmp_path / "orbax")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text((source / "config.json").read_text())
    (broken / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes()[:-7])
    for name in ("empty", "foreign", "run[1]"):
        (tmp_path / name).mkdir()
    (tmp_path / "foreign" / "thesis.txt").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    before = sorted(tmp_path.iterdir())
    for args, complaint in (
        (("import", broken, tmp_path / "out"), "truncated"),
        (("import", tmp_path / "orbax", tmp_path / "out"), "import reads"),
        (("export", tmp_path / "empty", tmp_path / "out"), "export reads"),
        (("import", source, tmp_path / "orbax"), "exists already; name another directory"),
        (("import", source, tmp_path / "foreign"), "target: .*foreign holds thesis.txt, not written by this command"),
        (("export", source, tmp_path / "link"), "target: .*link is a symbolic link"),
        (("export", source, tmp_path / "foreign" / "thesis.txt"), "thesis.txt is a file"),
        (("export", source, tmp_path / "foreign" / "thesis.txt" / "out"), "thesis.txt is a file"),
        (("export", source, source / "out"), "is in the input"),
        (("import", source, source.parent), "contains the input"),
        (("export", source, "."), "target: .* holds "),
        (("export", tmp_path / "orbax", source / "out", "--layout", "omni", "--speech", source), "input .*--speech"),
        (("import", source, tmp_path / "run[1]"), r"has \[ \] in it"),
        (("export", source, tmp_path / "out", "--mesh", "fsdp"), "axis=size"),
        (("export", source, tmp_path / "out", "--mesh", "fsdp=²"), "axis=size"),
        (("export", source, tmp_path / "out", "--mesh", "fsdp=3"), "mesh"),
    ):
        with pytest.raises(InputError, match=complaint):
            run(*args)
        assert sorted(tmp_path.iterdir()) == before
    write = safetensors_file.write_file

    def write_half(path, tensors, values):
        write(path, tensors, values)
        os.truncate(path, path.stat().length - 7)

    with monkeypatch.context() as patch:  # what a disk lost is not called written
        patch.setattr(safetensors_file, "write_file", write_half)
        with pytest.raises(OSError, match="cannot be read back after it was written"):
            run("export", source, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before
    (tmp_path / "orbax" / "params" / "_METADATA").unlink()
    with pytest.raises(InputError, match="orbax"):
        run("export", tmp_path / "orbax", tmp_path / "out")
    assert not (tmp_path / "out").exists()
