"""Every setting of a run: its type, its default, what it is and what it may be. docs/settings.md is made from here.

Names that later rooms register (`step.grounder`, a task's family, a dataset's reader) and what settings may not be
together are checked by `build/valid.py`.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from omnir1_jax.config.rewards import PRESETS, VosReward
from omnir1_jax.config.schema import Choice, Each, Fields, Number, Rising, Section, Text, Weights, Whole, setting
from omnir1_jax.text.rules import DEFAULT as LIMITS

CELL = 28 * 28  # pixels of a visual token of the released models
POSITIVE, COUNT, SHARE, AXIS = Whole(1), Whole(), Number(0, 1), Whole(1, also=-1)

Dtype = Literal["float32", "bfloat16", "float16"]
Direction = Literal["forward", "from_first_prompt", "reverse", "both"]


@dataclass(frozen=True)
class Thinker(Section):
    """The policy. Its frozen copy is the KL reference and System 2's grounder."""

    path: str = setting("", "Hugging Face directory, or what `convert import` made; empty: random weights of `sizes`")
    tokenizer: str = setting("", "directory of the tokenizer; empty: that of the weights")
    sizes: Mapping[str, Any] = setting({}, "sizes of random weights: fields of `ThinkerConfig`")
    dtype: Dtype = setting("bfloat16", "dtype of activations")
    param_dtype: Dtype = setting("bfloat16", "dtype of frozen parameters; trained ones are float32")
    frozen: Literal["float", "int8", "int4"] = setting(
        "float",
        "frozen parameters as they are, or as integers with scales: 8 bits, or 4 in the decoder's feed-forward layers "
        "and 8 elsewhere; training needs an adapter (`lora.rank`), export takes the weights of `path` again",
    )
    frozen_group: int = setting(64, "int4: neighbouring input channels that share a scale", POSITIVE)
    remat: Literal["none", "full", "attention", "dots", "dots_no_batch", "offload"] = setting(
        "full", "what the backward pass recomputes (`models/remat.py`)"
    )
    attention: Literal["auto", "xla", "splash", "cudnn"] = setting("auto", "attention kernel")


@dataclass(frozen=True)
class Grounder(Section):
    """Another thinker than the policy's as System 2's grounder; empty throughout: the policy's, before training."""

    path: str = setting("", "as `thinker.path`")
    tokenizer: str = setting("", "as `thinker.tokenizer`")
    sizes: Mapping[str, Any] = setting({}, "as `thinker.sizes`")


@dataclass(frozen=True)
class Sam2Run(Section):
    """How a SAM 2 model is run."""

    side: int = setting(1024, "side in pixels of the square that frames are stretched to", Whole(64, multiple=64))
    dtype: Literal["float32", "bfloat16"] = setting(
        "bfloat16", "dtype of activations and parameters; float32 has matrix products at highest precision"
    )
    memory_dtype: Literal["float32", "bfloat16"] = setting(
        "bfloat16", "dtype of the stored memories, which the original rounds to bfloat16 whatever the rest is"
    )
    direction: Direction = setting(
        "forward",
        "tracking from frame 0 (prompted frames ahead serve as memory too), from each object's first prompted frame, "
        "from the last frame to 0, or from the first prompted frame forward, then back from it to frame 0",
    )
    object_chunk: int = setting(4, "objects tracked at a time; memory grows with it", POSITIVE)
    frame_chunk: int = setting(1, "frames encoded at a time; memory grows with it", POSITIVE)


@dataclass(frozen=True)
class Sam2(Sam2Run):
    """The segmenter."""

    path: str = setting("", "Hugging Face directory; empty: random weights of `sizes`, or no segmenter without them")
    sizes: Mapping[str, Any] = setting({}, "sizes of random weights: fields of `Sam2Config`, with `hiera`")


@dataclass(frozen=True)
class Prompts(Section):
    """Prompt templates: names of files in systems/templates, or paths of files of your own."""

    system: str = setting("system", "System 1's system message")
    vos: str = setting("vos", "prompt of video segmentation")
    refavs: str = setting("refavs", "prompt of sounding objects")
    refcocog: str = setting("refcocog", "prompt of expressions for images")
    qa: str = setting("qa_thinking", "prompt of questions")
    grounding: str = setting("grounding", "System 2's prompt")
    text_tokens: int = setting(512, "maximum tokens of a prompt that are not media", POSITIVE)
    max_aspect: float = setting(
        3.0, "longest side of a clip over its shortest; a clip beyond it is a bad sample", Number(1)
    )


@dataclass(frozen=True)
class Pixels(Section):
    """Minimum and maximum pixels of a frame after resizing."""

    policy_image: tuple[int, int] = setting((4 * CELL, 128 * CELL), "System 1's images", Rising(1))
    policy_video: tuple[int, int] = setting((4 * CELL, 128 * CELL), "System 1's frames of a video", Rising(1))
    sharp: tuple[int, int] = setting((64 * CELL, 900 * CELL), "System 2's frames", Rising(1))


@dataclass(frozen=True)
class DecodeConfig(Section):
    """How a task's clips are read."""

    frames: int = setting(24, "maximum frames of a clip", POSITIVE)
    objects: int = setting(3, "maximum objects of a target", POSITIVE)
    sampling: Literal["training", "video", "uniform", "first"] = setting(
        "training",
        "16 to 24 frames of a longer clip; 2 per second, as System 1 sees a video file; all, or `frames` evenly "
        "spaced ones; the first",
    )
    max_frame_pixels: int = setting(1920 * 1080, "pixels beyond which a frame is shrunk on reading", POSITIVE)
    sound: Literal["ignore", "optional", "required"] = setting(
        "ignore", "whether sound is read; a clip without it is counted, or bad, as is one of pure silence"
    )
    target: Literal["anywhere", "some_frame", "first_frame"] = setting("anywhere", "where an object has to be visible")


@dataclass(frozen=True)
class Task(DecodeConfig):
    """One task of the mixture: its datasets and how their clips are read. Make it by `settings.task`."""

    family: str = setting("", "family of the datasets' clips: vos, refavs, refcocog, qa; empty: the task's own name")
    example: str = setting("", "name of what is made of a clip; empty: the family's")
    datasets: Mapping[str, Any] = setting({}, "datasets by names of your own, as `settings.datasets` makes them")
    batch_size: int = setting(1, "prompts per step, over all devices", POSITIVE)
    weight: float = setting(1.0, "share of the steps; 0 leaves the task out", Number())
    keep: float = setting(
        1.0,
        "share of a step's prompts that is learned from, those whose rewards spread most; `batch_size` times it has to "
        "be whole. 1: all",
        Number(0, 1, above=True),
    )
    audio_seconds: float = setting(0.0, "maximum seconds of sound in a prompt", Number())
    difficulty: str = setting("", "list of `python -m omnir1_jax.difficulty`, for `least_spread` and `order`")
    least_spread: float = setting(
        0.0, "standard deviation of rewards below which a prompt of the `difficulty` list is left out", Number()
    )
    order: Literal["shuffled", "weighted", "easy_first"] = setting(
        "shuffled",
        "an epoch has every item once, shuffled; or by the `difficulty` list: items in proportion to their spread; the "
        "first epoch from the highest mean reward to the lowest",
    )
    one_per_clip: bool = setting(True, "one expression per clip and epoch, drawn at random; otherwise all of them")
    targets: int = setting(0, "as `sft.targets`; 0: that one", COUNT)
    target_tokens: int = setting(0, "as `sft.target_tokens`; 0: that one", COUNT)


@dataclass(frozen=True)
class Loader(Section):
    """The input pipeline."""

    threads: int = setting(4, "threads that decode clips; 0: one clip at a time", COUNT)
    workers: int = setting(0, "processes in place of threads", COUNT)
    prefetch: int = setting(2, "batches ready on the device; 0: each is made when it is asked for", COUNT)
    rest_after: int = setting(
        0,
        "groups in a row whose rewards are all equal, after which a clip (without `one_per_clip`: a prompt) sits out "
        "an epoch, and one more for each further such group; others take its place. 0: never",
        COUNT,
    )
    max_bad_share: float = setting(0.05, "share of bad samples above which the run ends", SHARE)


@dataclass(frozen=True)
class Step(Section):
    """The GRPO step: sampling, System 2, reading, and how the update is computed."""

    mode: Literal["fused", "staged"] = setting("fused", "one program, or one program per stage, to debug and profile")
    group: int = setting(8, "completions per prompt", POSITIVE)
    max_tokens: int = setting(800, "maximum tokens of a completion", POSITIVE)
    temperature: float = setting(1.0, "sampling temperature; 0 takes the most probable token", Number())
    top_k: int = setting(50, "most probable tokens that are sampled from; 0: all", COUNT)
    top_p: float = setting(0.95, "probability mass that is sampled from; 1: all", Number(0, 1, above=True))
    grounding_tokens: int = setting(256, "maximum tokens of System 2's answer, which is greedy", POSITIVE)
    keyframes: int = setting(4, "maximum frames of a completion that System 2 looks at", POSITIVE)
    max_pieces: int = setting(
        LIMITS.groups,
        "maximum objects of a plan that are read and counted; 0: all that fit in `completion_bytes`",
        COUNT,
    )
    description_bytes: int = setting(LIMITS.description, "maximum bytes of a description", POSITIVE)
    completion_bytes: int = setting(4096, "maximum bytes of a completion that is read", POSITIVE)
    grounding_bytes: int = setting(1024, "maximum bytes of System 2's answer", POSITIVE)
    description_tokens: int = setting(160, "maximum tokens of the description in System 2's prompt", POSITIVE)
    updates: int = setting(1, "optimizer updates on each rollout", POSITIVE)
    score_chunk: int = setting(256, "tokens whose logits exist at a time; 0: all", COUNT)
    score_lengths: tuple[int, ...] = setting(
        (),
        "shorter completion lengths that learning is compiled for too; the shortest that holds all completions of a "
        "step is used. Each costs compile time",
        Each(POSITIVE),
    )
    grounder: str = setting("qwen_omni", "System 2's grounder")
    segmenter: str = setting("sam2", "System 2's segmenter")


@dataclass(frozen=True)
class Grpo(Section):
    """The policy's objective; rl/grpo.py says which values make which published variant."""

    advantage: str = setting(
        "normalised",
        "(r - mean) / (std + 1e-4), r - mean, r - mean of the others, or each weighted term of the reward normalised "
        "by itself, their sum then over the batch",
        Choice(("normalised", "centred", "leave_one_out", "per_term"), user_defined=True),
    )
    loss: str = setting("clipped", "clipped surrogate with KL term", Choice(("clipped",), user_defined=True))
    ratio: Literal["token", "sequence"] = setting(
        "token", "importance ratio of each token, or of the sequence (geometric mean over its tokens)"
    )
    clip_low: float = setting(0.2, "width below 1 within which the importance ratio counts", SHARE)
    clip_high: float = setting(0.2, "width above 1 within which the importance ratio counts", Number())
    beta: float = setting(0.04, "weight of the k3 estimate of KL(policy || reference); 0: no KL term", Number())
    reduce: Literal["completion", "token", "constant"] = setting(
        "completion",
        "mean over each completion, then over completions; mean over all tokens; or sum over tokens divided by the "
        "constant length of the completion buffer, which favours no length",
    )
    overlong: int = setting(
        0,
        "last tokens of `step.max_tokens` in which a reward term `overlong` falls from 0 to -1; 0: no such term",
        COUNT,
    )
    skip_flat_groups: bool = setting(
        False, "leave groups whose rewards are all equal out of the loss (they hold no preference, only KL)"
    )


@dataclass(frozen=True)
class Reward(Section):
    """The reward of a completion."""

    preset: str = setting("authors", "published variant, whose weights and rules the terms have", Choice(PRESETS))
    terms: Mapping[str, Any] = setting(
        {}, "weights and rules that differ from the preset; the defaults here are `authors`", Fields(VosReward)
    )
    extra: tuple[tuple[str, float], ...] = setting(
        (), 'reward terms of your own with their weights: (("file.py:term", 0.5), ...)', Weights()
    )
    bonus_range: tuple[int, int] = setting((320, 750), "lengths in tokens that earn the length bonus", Rising())

    def weights(self) -> VosReward:
        """The preset with what differs from it."""
        return dataclasses.replace(PRESETS[self.preset], **self.terms)


@dataclass(frozen=True)
class Optimizer(Section):
    """The optimizer and its learning rate."""

    rule: Literal["adamw", "muon"] = setting("adamw", "update rule")
    learning_rate: float = setting(1e-6, "peak learning rate", Number())
    schedule: Literal["cosine", "linear", "constant"] = setting("cosine", "learning rate after the warm-up")
    warmup_steps: int = setting(0, "updates in which the learning rate rises from 0", COUNT)
    final_share: float = setting(0.0, "share of the learning rate that is left at the last step", SHARE)
    b1: float = setting(0.9, "decay of the first moment", Number(0, 1, below=True))
    b2: float = setting(0.999, "decay of the second moment", Number(0, 1, below=True))
    eps: float = setting(1e-8, "added to the denominator", Number(above=True))
    weight_decay: float = setting(0.01, "weight decay of matrices", Number())
    clip_norm: float = setting(5.0, "maximum norm of the gradient; 0: no clipping", Number())
    accumulate: int = setting(1, "rollouts whose gradients are averaged for one update", POSITIVE)
    max_skipped: int = setting(10, "updates in a row that are not finite and end the run; 0: never", COUNT)
    freeze: tuple[str, ...] = setting(
        (), 'shell patterns of paths of parameters that stay as they are, such as `"embed/*"`', Each(Text(empty=False))
    )


@dataclass(frozen=True)
class Lora(Section):
    """A LoRA adapter in place of full fine-tuning of the decoder."""

    rank: int = setting(0, "rank of the adapter; 0: full fine-tuning", COUNT)
    alpha: float = setting(64.0, "numerator of its output's scale, alpha / rank", Number(above=True))
    layers: tuple[str, ...] = setting(
        ("*",),
        'shell patterns of the linear layers\' paths or of their ends, such as `"q"`, `"text/layers/*"` or `"[qv]"`',
        Each(Text(empty=False), least=1),
    )

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


@dataclass(frozen=True)
class Sft(Section):
    """Supervised training on target texts (`objective = "sft"`)."""

    targets: int = setting(1, "target texts per prompt, packed behind it", POSITIVE)
    target_tokens: int = setting(256, "maximum tokens of a target", POSITIVE)
    encoders: bool = setting(False, "train the encoders too")


@dataclass(frozen=True)
class Masks(Section):
    """Training of SAM 2 itself (`objective = "masks"`)."""

    prompts: int = setting(4, "maximum boxed frames per object", POSITIVE)
    jitter: float = setting(0.1, "maximum noise on boxes, as a share of their sides", Number())
    piece: int = setting(0, "frames tracked in one go; 0: whole clips, 1: images", COUNT)
    focus: float = setting(2.0, "exponent of the focal loss; 0: plain cross-entropy", Number())
    mask: float = setting(20.0, "weight of the focal loss", Number())
    dice: float = setting(1.0, "weight of the dice loss", Number())
    iou: float = setting(1.0, "weight of the predicted quality's loss", Number())
    score: float = setting(1.0, "weight of the visibility's loss", Number())
    remat: bool = setting(True, "recompute what the backward pass needs, instead of keeping it")


@dataclass(frozen=True)
class Mesh(Section):
    """Devices along each axis; -1 takes the devices that are left. Batches are sharded along the first three axes."""

    slice: int = setting(1, "TPU slices, joined by the data centre's network; weights are replicated over them", AXIS)
    data: int = setting(1, "replicas of the weights within a slice", AXIS)
    fsdp: int = setting(-1, "devices that weights, moments and batch are sharded over", AXIS)
    tensor: int = setting(1, "devices that heads and widths are sharded over", AXIS)


@dataclass(frozen=True)
class Checkpoint(Section):
    """Checkpoints of the training state."""

    every: int = setting(50, "steps from one to the next; 0: only the last one, or that of a stop", COUNT)
    keep: int = setting(2, "newest checkpoints that are kept", POSITIVE)


@dataclass(frozen=True)
class Validate(Section):
    """Validation during a run: greedy plans on held-out items, as `evaluate` makes them with flags of these names."""

    every: int = setting(0, "steps from one validation to the next, and at the last step; 0: no validation", COUNT)
    at_start: bool = setting(True, "validate before the first step too")
    benchmark: str = setting("synthetic", "benchmark; synthetic: the config's own tasks of that world, held out")
    root: str = setting("", "directory of the benchmark; empty: that of the config's dataset of this name")
    split: str = setting("", "split; empty: the benchmark's usual one")
    tasks: tuple[str, ...] = setting((), "tasks of the config that are held out (synthetic); empty: all")
    limit: int = setting(0, "maximum items per task, the first ones; 0: all (synthetic: 64 clips)", COUNT)
    batch_size: int = setting(4, "items at a time, over all devices", POSITIVE)
    system2: Literal["self", "frozen"] = setting(
        "self", "whose weights find boxes: the trained ones, or those from before training"
    )
    metrics: tuple[str, ...] = setting(
        ("J&F", "overall/J&F", "accuracy", "all/accuracy"),
        "entries of the benchmark's table that are logged as `validate/<task>/<entry>`, those that a task has",
        Each(Text(empty=False), least=1),
    )
    metric: str = setting(
        "",
        "entry by which the best checkpoint is chosen, the largest, as `vos/J&F`; empty: the mean over tasks of the "
        "first of `metrics` that each has",
    )


@dataclass(frozen=True)
class Profile(Section):
    """A trace of some steps in `profile/` of the work directory; `python -m omnir1_jax.profile` reads it."""

    start: int = setting(0, "first step that is traced, better one after all tasks were compiled; 0: none", COUNT)
    steps: int = setting(3, "steps that are traced", POSITIVE)


@dataclass(frozen=True)
class Log(Section):
    """What a run leaves to look at beside its metrics."""

    rollouts_every: int = setting(1, "steps from one logged rollout to the next; 0: never", COUNT)
    pictures_every: int = setting(50, "steps from one picture to the next, and at the last one; 0: never", COUNT)
    pictures: int = setting(2, "completions per pictured batch", COUNT)
    tensorboard: bool = setting(True, "write TensorBoard events")
    trackers: tuple[str, ...] = setting(
        (),
        "experiment trackers that get the same numbers, each an extra to install",
        Each(Choice(("wandb", "trackio"))),
    )


@dataclass(frozen=True)
class Settings(Section):
    """The run."""

    name: str = setting("", "name of the experiment, in reports")
    objective: Literal["grpo", "sft", "masks"] = setting(
        "grpo", "GRPO; supervised training on plans from the ground truth; training of SAM 2 itself"
    )
    seed: int = setting(0, "seed of all random numbers", COUNT)
    steps: int = setting(1000, "rollouts of the run", POSITIVE)
    data_root: str = setting("data", "directory that relative roots of datasets are in", Text())
    thinker: Thinker = Thinker()
    grounder: Grounder = Grounder()
    sam2: Sam2 = Sam2()
    prompts: Prompts = Prompts()
    pixels: Pixels = Pixels()
    data: Mapping[str, Task] = setting({}, "the tasks of the mixture")
    loader: Loader = Loader()
    step: Step = Step()
    grpo: Grpo = Grpo()
    reward: Reward = Reward()
    optimizer: Optimizer = Optimizer()
    lora: Lora = Lora()
    sft: Sft = Sft()
    masks: Masks = Masks()
    mesh: Mesh = Mesh()
    checkpoint: Checkpoint = Checkpoint()
    validate: Validate = Validate()
    profile: Profile = Profile()
    log: Log = Log()
