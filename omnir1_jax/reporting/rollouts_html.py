"""Rollouts as HTML: the filter form, and the completions of a prompt side by side."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from omnir1_jax.reporting import html
from omnir1_jax.reporting.html import Html, tag
from omnir1_jax.reporting.run_files import Group, RunFiles
from omnir1_jax.tasks.description import Number

CHARACTERS = 4000  # of a completion
ANY, NONE = "*", "-"  # failures
ORDERS = {
    "newest": lambda group: -group.step,
    "oldest": lambda group: group.step,
    "best reward": lambda group: -max(group.known(), default=-math.inf),
    "worst reward": lambda group: min(group.known(), default=math.inf),
    "widest spread": lambda group: -group.spread(),
}

# `Query` in a report, which has no server: shows and orders the prompts that are in it.
FILTER = """
const form = document.querySelector("form.filter");
const groups = [...document.querySelectorAll(".group")];
function show() {
  const asked = Object.fromEntries(new FormData(form));
  const within = (value, name) => (asked[name + "_from"] === "" || value >= +asked[name + "_from"])
    && (asked[name + "_to"] === "" || value <= +asked[name + "_to"]);
  const rewards = new Map();
  for (const group of groups) {
    const there = (!asked.task || asked.task === group.dataset.task) && within(+group.dataset.step, "step");
    let shown = false;
    const known = [];
    for (const card of group.querySelectorAll(".card")) {
      const failures = JSON.parse(card.dataset.failures), reward = parseFloat(card.dataset.reward);
      const any = failures.length ? "*" : "-", kind = ["", any, ...failures].includes(asked.failure);
      const good = there && kind && within(reward, "reward");
      card.classList.toggle("other", !good);
      shown = shown || good;
      if (!isNaN(reward)) known.push(reward);
    }
    group.hidden = !shown;
    const low = Math.min(...known), high = Math.max(...known);
    rewards.set(group, [low, high, known.length ? high - low : 0]);
  }
  const key = {
    "newest": group => -group.dataset.step, "oldest": group => +group.dataset.step,
    "best reward": group => -rewards.get(group)[1], "worst reward": group => rewards.get(group)[0],
    "widest spread": group => -rewards.get(group)[2],
  }[asked.order];
  const parent = groups[0].parentNode;
  for (const group of [...groups].sort((a, b) => key(a) - key(b))) parent.append(group);
}
form.addEventListener("submit", event => { event.preventDefault(); show(); });
form.addEventListener("change", show);
"""

# The picture of a step by its name, with a caption; None where there is no room for it.
Picture = Callable[[int, str, str], Html | None]


@dataclasses.dataclass(frozen=True)
class Query:
    """A filter of rollouts. An empty task or failure, and None, select everything.

    Attributes:
      failure: a kind, ANY or NONE.
    """

    task: str = ""
    failure: str = ""
    step_from: Number | None = None
    step_to: Number | None = None
    reward_from: Number | None = None
    reward_to: Number | None = None
    order: str = "newest"

    @classmethod
    def parse(cls, values: Mapping[str, str]) -> "Query":
        """Parses the fields of a URL; an invalid value leaves the default."""
        fields: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            value = values.get(field.name, "")
            if field.default is None:
                try:
                    number = float(value)
                except ValueError:
                    continue
                fields |= {field.name: number} if math.isfinite(number) else {}
            elif value and (field.name != "order" or value in ORDERS):
                fields[field.name] = value
        return cls(**fields)

    def matches(self, group: Group) -> list[bool]:
        """Whether each completion matches."""
        low, high = self.reward_from, self.reward_to
        if self.task not in ("", group.task) or not _within(group.step, self.step_from, self.step_to):
            return [False] * len(group.rewards)
        return [
            (_within(reward, low, high) if reward is not None else low is high is None)
            and (not self.failure or self.failure in failures or self.failure == (ANY if failures else NONE))
            for reward, failures in zip(group.rewards, group.failures)
        ]

    def select(self, groups: Sequence[Group]) -> list[Group]:
        """The groups with a matching completion, in order."""
        return sorted((group for group in groups if any(self.matches(group))), key=ORDERS[self.order])

    def link(self, **changes: object) -> str:
        """The address of the page that shows it."""
        parameters = {k: v for k, v in dataclasses.asdict(self).items() if v not in ("", None)} | changes
        return f"?{urlencode(parameters)}#rollouts"


def _within(value: Number, low: Number | None, high: Number | None) -> bool:
    return (low is None or value >= low) and (high is None or value <= high)


def form(query: Query, groups: Sequence[Group]) -> Html:
    """The filter, with the tasks and failures that there are."""
    tasks = sorted({group.task for group in groups})
    kinds = sorted({kind for group in groups for failures in group.failures for kind in failures})
    pairs = lambda names: [(name, name) for name in names]
    return tag(
        "form",
        _choice("Task", "task", query.task, [("", "all"), *pairs(tasks)]),
        _range("Step", "step", query),
        _range("Reward", "reward", query),
        _choice("Failure", "failure", query.failure, [("", "all"), (ANY, "any"), (NONE, "none"), *pairs(kinds)]),
        _choice("Order", "order", query.order, pairs(ORDERS)),
        tag("button", "Show"),
        class_="filter",
        action="#rollouts",
    )


def _choice(label: str, name: str, value: str, options: Sequence[tuple[str, str]]) -> Html:
    option_tags = [
        tag("option", caption, value=key, **({"selected": ""} if key == value else {})) for key, caption in options
    ]
    return tag("label", label, tag("select", *option_tags, name=name))


def _range(label: str, name: str, query: Query) -> Html:
    fields = []
    for end in ("from", "to"):
        value = getattr(query, f"{name}_{end}")
        attributes = {"value": f"{value:.12g}"} if value is not None else {}
        fields.append(
            html.empty("input", type="number", step="any", name=f"{name}_{end}", placeholder=end, **attributes)
        )
    return tag("label", label, tag("span", *fields))


def group(run: RunFiles, chosen: Group, query: Query, picture: Picture) -> Html:
    """A prompt with its completions side by side; those that do not match are pale."""
    rows, matching = run.rollouts(chosen), query.matches(chosen)
    names = {row.get("picture"): index for index, row in enumerate(rows)}
    pictures = []
    for name in run.pictures(chosen):
        index = names.get(name)
        caption = (
            f"completion {index + 1}, reward {html.text(rows[index].get('reward'))}" if index is not None else name
        )
        pictures.append(picture(chosen.step, name, f"step {chosen.step}, {caption}"))
    rewards = chosen.known()
    facts = [f"step {chosen.step}", chosen.task, chosen.sample_id]
    facts += [f"reward {min(rewards):.3g} to {max(rewards):.3g}"] if rewards else []
    facts += ["pictures"] if pictures else []
    head = [
        tag("b", html.clipped(str(rows[0].get("query", "")), 600) or "(no query)"),
        tag("span", " · ".join(fact for fact in facts if fact), class_="soft"),
        tag("span", *map(_chip, chosen.rewards, chosen.failures), class_="chips"),
    ]
    cards = [_card(index, row, matches) for index, (row, matches) in enumerate(zip(rows, matching), 1)]
    content = [*filter(None, pictures), _terms(rows), tag("div", *cards, class_="cards")]
    data = {"data-step": chosen.step, "data-task": chosen.task}
    return tag("details", tag("summary", *head), *content, class_="group", **data)


def _chip(reward: Number | None, failures: Sequence[str]) -> Html:
    caption = html.text(reward) if reward is None else f"{reward:.3g}"
    return tag("span", caption, class_="chip bad" if failures else "chip", title=", ".join(failures) or "no failure")


def _terms(rows: Sequence[Mapping[str, Any]]) -> Html:
    """Reward, advantage and every reward term, a column for each completion; adding 0.0 turns -0.0 into 0."""
    names = list(dict.fromkeys(name for row in rows for name in row.get("rewards") or {}))
    values = [(name, [row.get(name) for row in rows]) for name in ("reward", "advantage")]
    values += [(name, [(row.get("rewards") or {}).get(name) for row in rows]) for name in names]
    cells = [(name, *(None if value is None else value + 0.0 for value in row_values)) for name, row_values in values]
    return tag("div", html.table(("", *(f"#{number}" for number in range(1, len(rows) + 1))), cells), class_="terms")


def _card(number: int, row: Mapping[str, Any], matches: bool) -> Html:
    """One completion: its text, the parsed plan, System 2's boxes."""
    reward, failures = row.get("reward"), [str(kind) for kind in row.get("failures") or ()]
    head = [f"#{number}"] + ([f"reward {reward:.4g}"] if reward is not None else [])
    text = lambda value, limit: html.clipped(str(value), limit)
    parts = [tag("h4", " · ".join(head))]
    parts += [tag("p", ", ".join(failures), class_="bad")] if failures else []
    parts.append(tag("pre", text(row.get("completion", ""), CHARACTERS)))
    parts += [tag("p", f"Read as: {text(row['answer'], 400)}")] if row.get("answer") is not None else []
    parts += [tag("p", f"Right: {text(row['gold'], 400)}")] if row.get("gold") is not None else []
    if plan := row.get("plan"):
        pieces = [(_span(p), _frames(p.get("frames")), _fault(p.get("description"), p.get("failure"))) for p in plan]
        parts.append(html.table(("seconds", "frames", "description"), pieces, "Plan"))
    if keyframes := row.get("keyframes"):
        table_rows = [(k.get("frame"), text(k.get("description", ""), 300), _found(k)) for k in keyframes]
        parts.append(html.table(("frame", "description", "System 2's boxes"), table_rows, "Keyframes"))
    data = {"data-reward": "" if reward is None else repr(float(reward)), "data-failures": json.dumps(failures)}
    return tag("article", *parts, class_="card" if matches else "card other", **data)


def _span(piece: Mapping[str, Any]) -> str:
    return f"{html.clipped(str(piece.get('start')), 20)} to {html.clipped(str(piece.get('end')), 20)}"


def _frames(frames: Any) -> str | None:
    return html.clipped("–".join(dict.fromkeys(map(str, frames))), 40) if isinstance(frames, list) else None


def _fault(piece_text: Any, failure: Any) -> Html:
    """A text with its failure."""
    parts = [html.clipped(str(piece_text or ""), 300), tag("span", html.clipped(str(failure or ""), 300), class_="bad")]
    return html.join(parts, " ")


def _found(keyframe: Mapping[str, Any]) -> Html:
    """Corners in pixels of the clip, or the answer in which there was no box."""
    number = lambda value: f"{value:.0f}" if isinstance(value, float) else str(value)
    boxes = keyframe.get("boxes")
    corners = [",".join(map(number, box)) for box in boxes if isinstance(box, list)] if isinstance(boxes, list) else []
    if corners:
        return html.text(html.clipped("; ".join(corners), 400))
    return _fault("", f"no box in: {keyframe.get('answer', '')}")
