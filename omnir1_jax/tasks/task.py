"""The `Task` object: everything that defines a type of question."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
from flax.traverse_util import unflatten_dict
from jaxtyping import Array, Int

from omnir1_jax.data.clips import DecodedClip
from omnir1_jax.data.refs import ClipRef
from omnir1_jax.models.qwen_omni.inputs import ThinkerInputs
from omnir1_jax.rl.config import Rewards
from omnir1_jax.systems.frames import HighResFrames
from omnir1_jax.tasks import description, examples, targets
from omnir1_jax.tasks.description import At, Clip, Description
from omnir1_jax.tasks.examples import Arrays, ExampleConfig


def nothing(*_: Any) -> None:
    """Default for the part of System 2 that a task does not use."""


def none(*_: Any) -> dict[str, Any]:
    """Default for a task without System 2's frames, ground truth, or failures."""
    return {}


def all_but_prompts(batch: Any) -> Any:
    """A batch's own fields."""
    return {name: value for name, value in vars(batch).items() if name != "policy"}


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """A task family as pure functions, each with a default where a simple task needs none.

    Attributes:
      name: name in configs, messages and logs.
      batch: the class of its batches, a flax.struct dataclass of arrays with a leading axis b, among them `policy`,
        System 1's prompts.
      prompt: (clip, config) -> System 1's prompt of a clip, by `examples.policy_arrays` or `examples.video_prompt`.
      read: (frozen, config, batch, completions) -> the parsed completions, arrays [b g ...]. With System 2 it has
        the field `requests`. Traced into the step, as all from here to `failures` are.
      reward: (config, batch, completions, reading, grounding, masks) -> `Rewards`, by `common.total`.
      ground: (models, frozen, config, batch, reading) -> System 2's results, with the field `boxes`.
      segment: (models, frozen, config, batch, reading, grounding) -> masks, with the field `union`; the batch then has
        `boxes`, those of each object, and `frame_valid`.
      failures: (batch, reading, grounding) -> how often each kind of failure happened in each completion, by name. The
        names are defined here only: metrics, logs and evaluations use them.
      template: System 1's user message, unless `config.prompts` has one of the task's name.
      fields: fields of its template, such as "query", which `prompt` fills in.
      templates: other templates of its prompt, by the names of the commands' flags.
      clips: family of the clips it takes, `ClipRef.family`; empty: any.
      extra: of a stand-in clip, where `prompt` or `truth` reads `ClipRef.extra`: a plan takes its shapes from it.
      frames: (clip, config) -> System 2's frames, by `examples.sharp_arrays`.
      truth: (clip, config) -> the other fields of the batch, those of one clip.
      target: (clip, config) -> the completion that the ground truth dictates, for supervised training.
      facts: batch -> the arrays that `describe` needs, fetched to the host for every log line.
      describe: (facts, reading, grounding, (prompt, completion)) -> the completion's content for the log. On the host,
        as `picture` is.
      picture: (batch, prompt) -> the clip to draw.
      metric: (clip, completion) -> scores in [0, 1] by name, of which an evaluation shows the means in percent; none
        where the clip has no ground truth. On the host. Masks are scored where the task has System 2; a benchmark of
        questions counts by its own rules.
      mask_rules: benchmark whose rules score the masks of a dataset without its own.
      sampling: frames that System 1 sees in an evaluation: spread evenly, 2 per second, or the first one alone.
      needs_sound: whether a clip without sound is a bad sample.
      plans: whether `read` gives a field `plan`, whose first description can be used for other frames than it chose.
      max_boxes: boxes of an answer that count in an evaluation; 0: all.
    """

    name: str
    batch: type
    prompt: Callable[[DecodedClip, ExampleConfig], Arrays]
    read: Callable[..., Any]
    reward: Callable[..., Rewards]
    ground: Callable[..., Any] = nothing
    segment: Callable[..., Any] = nothing
    failures: Callable[..., dict[str, Int[Array, "b g"]]] = none
    template: str = ""
    fields: tuple[str, ...] = ()
    templates: Mapping[str, str] = dataclasses.field(default_factory=dict)
    clips: str = ""
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    frames: Callable[[DecodedClip, ExampleConfig], Arrays] = none
    truth: Callable[[DecodedClip, ExampleConfig], Arrays] = none
    target: Callable[[DecodedClip, targets.TargetConfig], str] | None = None
    facts: Callable[[Any], Any] = all_but_prompts
    describe: Callable[[Any, Any, Any, At], Description] = lambda *_: Description()
    picture: Callable[[Any, int], Clip] = description.policy_clip
    metric: Callable[[ClipRef, str], Mapping[str, float]] | None = None
    mask_rules: Literal["mevis", "refavs"] = "mevis"
    sampling: Literal["uniform", "video", "first"] = "uniform"
    needs_sound: bool = False
    plans: bool = False
    max_boxes: int = 0

    @property
    def grounds(self) -> bool:
        """Whether the task uses System 2."""
        return self.ground is not nothing

    @property
    def scored(self) -> bool:
        """Whether an evaluation can score its answers."""
        return self.grounds or self.metric is not None

    @property
    def segments(self) -> bool:
        """Whether boxes become masks."""
        return self.segment is not nothing

    def example(self, clip: DecodedClip, config: ExampleConfig) -> Arrays:
        """The arrays of a clip, their keys paths such as "policy/vision/pixels"; runs in the pipeline's workers.

        Raises:
          BadSample: the clip does not fit.
        """
        with examples.bad_sample(clip):
            return {**self.prompt(clip, config), **self.frames(clip, config), **self.truth(clip, config)}

    def supervised(self, clip: DecodedClip, config: targets.TargetConfig) -> Arrays:
        """A prompt with its target text.

        Raises:
          BadSample: the clip does not fit.
        """
        with examples.bad_sample(clip):
            answer = self.target(clip, config)
            return {**self.prompt(clip, config), **targets.pack([targets.Target(answer)], config)}

    def to_batch(self, arrays: Mapping[str, Any]) -> Any:
        """The step's batch from the arrays of `example` (numpy, jax or shapes)."""
        return self.batch(**tree_of(arrays))


def tree_of(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a batch from flat arrays."""
    tree = unflatten_dict(dict(arrays), sep="/")
    inputs = ThinkerInputs.of(tree.pop("policy"))
    if "sharp" in tree:
        tree["sharp"] = HighResFrames(**tree["sharp"])
    return {"policy": inputs, **tree}


def grouped(tree: Any, group: int) -> Any:
    """Arrays of all completions as those of each prompt: [b * g ...] -> [b g ...]."""
    return jax.tree.map(lambda x: x.reshape(-1, group, *x.shape[1:]), tree)
