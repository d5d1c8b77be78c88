"""The smallest run of the training command: questions over two small frames, the real step without a segmenter.

As a config file: `--config tests/tiny.py:TOKENIZER_DIRECTORY[,OMNIBENCH_DIRECTORY]`. As a program it forks runs of the
command, as lines on stdin ask for them, so that the imports are paid once: {"flags": [...], "log": path, "faults": {}}
is answered with the process's id, {"wait": id} with its exit status, 128 + n after signal n.
"""

import dataclasses
import gc
import importlib
import pathlib
import resource
import sys
import zlib

import jax
import jax.numpy as jnp

import omnir1_jax
from omnir1_jax import cli, tasks
from omnir1_jax.config import settings
from omnir1_jax.config.settings import datasets, defaults, task
from omnir1_jax.tasks import qa
from omnir1_jax.training import loop
from tests import forked


def get_config(paths: str):
    tokenizer, _, omnibench = paths.partition(",")
    c = defaults()
    c.name = "tiny"
    c.steps = 200
    c.thinker.tokenizer = tokenizer
    c.thinker.sizes = dict(
        text=dict(
            hidden_size=32, intermediate_size=48, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=16,
            rope_theta=1e4, mrope_section=(2, 3, 3),
        ),
        vision=dict(
            depth=1, hidden_size=32, intermediate_size=48, num_heads=2, out_hidden_size=32,
            full_attention_blocks=(0,), patch_size=8, window_size=64,
        ),
        audio=dict(num_mel_bins=16, d_model=16, num_layers=1, num_heads=2, ffn_dim=32, output_dim=32, n_window=10),
    )  # fmt: skip
    c.thinker.dtype = c.thinker.param_dtype = "float32"
    c.thinker.remat = "none"
    cell = 16 * 16
    c.pixels.policy_image = c.pixels.policy_video = c.pixels.sharp = (cell, 6 * cell)
    c.prompts.text_tokens = 1024
    c.prompts.max_aspect = 2.0
    clips = datasets(synthetic=dict(family="qa", clips=8))
    if omnibench:
        clips = datasets(omnibench=dict(root=omnibench))
    c.data = dict(qa=task(datasets=clips, batch_size=1, frames=2, sampling="uniform"))
    c.loader.threads = 1
    c.step.group = 2
    c.step.max_tokens = 8
    c.step.completion_bytes = 64
    c.reward.bonus_range = (2, 6)
    c.optimizer.learning_rate = 1e-2
    c.checkpoint.every = 5
    c.log.tensorboard = False
    c.log.pictures_every = 10**6
    return c


def memory(stream) -> dict[str, float]:
    """Bytes of this process and of all arrays on its devices, every tenth step."""
    if stream.get_state()["next_batch"] % 10:
        return {}
    gc.collect()
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return {
        "memory/host": pages * resource.getpagesize(),
        "memory/device": sum(x.nbytes for x in jax.live_arrays()),
    }


def varied(honest):
    """Rewards that differ within a group, so that the policy gradient takes part; random texts earn nothing."""

    def reward(config, batch, completions, *rest):
        found = honest(config, batch, completions, *rest)
        return found.replace(total=jnp.cos(completions.tokens[..., 0].astype(jnp.float32)))

    return reward


def vary_rewards() -> None:
    """Training and validation tell one text from another."""
    accuracy = lambda ref, text: {"accuracy": zlib.crc32(text.encode()) / 2**32}
    tasks.TASKS["qa"] = dataclasses.replace(qa.TASK, reward=varied(qa.TASK.reward), metric=accuracy)


def run(flags: list[str], command: str = "train", version: str = "", file_bytes: int = 0, crash: int = 0) -> None:
    """The command, with what it holds in memory among its metrics, and rewards that teach something.

    Args:
      command: another one that takes a config, by its name.
      version: that the package pretends to have.
      file_bytes: largest file that the process may write.
      crash: step that raises an error.
    """
    if version:
        omnir1_jax.__version__ = version
    if file_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    vary_rewards()
    numbers = loop.data_metrics

    def measured(stream, waited):
        if stream.get_state()["next_batch"] == crash:
            raise ZeroDivisionError("planted")
        return numbers(stream, waited) | memory(stream)

    loop.data_metrics = measured
    # Imported here: a command that reads this file as its config keeps flags of its own.
    module = importlib.import_module(f"omnir1_jax.{command}")
    module.COUNTER = None  # of train, takes longer than the run
    sys.argv = [command, *flags]
    cli.run(module.main, settings.parse)


def serve() -> None:
    forked.serve(lambda order: run(order["flags"], **order["faults"]))


if __name__ == "__main__":
    serve()
