"""The script in PyTorch of docs/infer.md says of an exported checkpoint what the JAX models say."""

import pathlib
import re
import runpy
import sys

import transformers

from omnir1_jax import convert
from omnir1_jax.config import shipped
from omnir1_jax.data import frame_sampling
from omnir1_jax.data.clips import DecodeConfig, decode
from omnir1_jax.inference import from_checkpoint, infer
from omnir1_jax.reporting import video
from tests.data import qwen_oracle
from tests.text import host
from tests.training import test_export as exported

ROOT = pathlib.Path(__file__).parent.parent.parent
SCRIPT = pathlib.Path(__file__).parent / "torch_script.py"


def test_the_page_shows_this_script():
    (shown,) = re.findall(r"<!-- torch-script -->\n```python\n(.*?)```", (ROOT / "docs/infer.md").read_text(), re.S)
    assert shown == SCRIPT.read_text()


def test_the_script_s_plan_is_ours(tmp_path, monkeypatch, capsys):
    config = shipped.config("toy", "this test")
    config = from_checkpoint.config_of(config.thinker.path, config)
    convert.main(convert.parse(["convert", "export", config.thinker.path, str(tmp_path / "hf"), "--dtype", "float32"]))
    (clip,) = exported.clips(config, 1)
    film = str(video.write(tmp_path / "clip.mp4", clip.frames, 4))
    query = clip.ref.query

    # The whole processor wants torchvision, which is not among the tests' packages: its parts are put together.
    monkeypatch.setattr(transformers.Qwen2_5OmniProcessor, "from_pretrained", qwen_oracle.load_processor)
    monkeypatch.setattr(sys, "argv", ["script", str(tmp_path / "hf"), film, query, "toy_"])
    monkeypatch.chdir(ROOT)
    capsys.readouterr()
    runpy.run_path(str(SCRIPT))
    said = capsys.readouterr().out.strip()

    ref = infer.clip_ref(infer.Ask(film, query))
    shown = decode(
        ref, DecodeConfig(frames=config.data.vos.frames, sampling="uniform"), frame_sampling.generator(0, 0, 0)
    )
    (ours,) = exported.ours(config, [shown], config.thinker.path)
    assert said == ours.removesuffix("<|im_end|>")
    assert any(piece.valid for piece in host.read_plan(said, len(shown.frames)).pieces)
