"""Pages: everything in them, nothing but data in what came from data, nothing that leaves them."""

import base64
import hashlib
import itertools
import json
import math
import pathlib
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from omnir1_jax.errors import InputError
from omnir1_jax.reporting import charts, eval_report, html, pictures, rollouts_html, train_report
from omnir1_jax.reporting.eval_report import Row, write_eval_report
from omnir1_jax.reporting.example import Example
from omnir1_jax.reporting.log import RunLog
from omnir1_jax.reporting.train_report import write_report
from omnir1_jax.tasks.description import Clip, Keyframe

HOSTILE = (
    "</pre></td></title></style><script>alert(1)</script><img src=http://evil.example/x onerror=alert(1)>\"'&\x07\u202e"
)
VOID = {"meta", "link", "img", "input"}
SVG = {"svg", "line", "path", "circle", "rect", "text", "title"}


class Page(HTMLParser):
    """Checks what a page is made of, and keeps its words."""

    def __init__(self, document: str):
        super().__init__(convert_charrefs=True)
        self.open, self.words, self.tags, self.images = [], [], [], 0
        self.feed(document)
        self.close()
        assert self.open == [], f"never closed: {self.open}"
        self.text = " ".join(self.words)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        assert tag not in {"iframe", "object", "embed", "base", "video", "audio"}
        for name, value in attributes:
            assert not name.startswith("on")
            assert name not in {"srcset", "xlink:href", "formaction", "background"}
            assert name != "action" or value == "#rollouts"
            if name == "src":
                assert re.fullmatch(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/=]+", value)
                self.images += 1
            if name == "href":
                assert value == "data:," or re.fullmatch(r"#[a-z0-9-]+", value)
            if name == "style":
                assert "url" not in value
        # What SVG closes in place has no end of its own in this parser's eyes.
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> within {self.open}"
        self.open.pop()

    def handle_data(self, data):
        self.words.append(data)


def checked(path) -> Page:
    document = pathlib.Path(path).read_text()
    assert len(document) < 5_000_000
    policy = re.search(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', document)[1]
    scripts = re.findall(r"<script>(.*?)</script>", document, re.DOTALL)
    assert document.count("<script") == len(scripts) <= 1 and scripts in ([], [rollouts_html.FILTER])
    assert policy == html.policy(*scripts) and "img-src data:; " in policy and "connect-src 'none'" in policy
    assert policy.startswith("default-src 'none'; ") and "form-action 'none'" in policy
    if scripts:
        digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
        assert f"script-src 'sha256-{digest}'; " in policy
    style = re.search(r"<style>(.*?)</style>", document, re.DOTALL)[1]
    assert "url(" not in style and "@import" not in style
    assert document.index("Content-Security-Policy") < document.index("<style>")
    return Page(document)


def example(noise: bool = False, **changes) -> Example:
    frames = np.random.default_rng(0).integers(0, 255, (8, 120, 214, 3), np.uint8) if noise else np.zeros((2, 9, 16, 3))
    clip = Clip(frames.astype(np.uint8), (16, 9))
    looked = (Keyframe(0, "the disc", "a box", ((1, 1, 5, 5),)),)
    base = Example("clip", "which?", "<think>so</think>", keyframes=looked, reward=0.5, rewards={"a": 1.0}, clip=clip)
    return base._replace(**changes)


def a_run(folder, steps: int, hostile: str = "plain") -> None:
    with RunLog(folder, steps, quiet=True, tensorboard=False) as log:
        for n in range(1, steps + 1):
            bad = math.nan if n % 7 == 0 else 0.1 * n
            log.step(n, {"reward/total": n / steps, "learn/kl": bad, f"x/{hostile}": 1.0, "failure/a/b": n % 2}, 1.0)
        said = [
            example(
                sample_id=hostile, query=hostile, completion=hostile * 9, failures=(hostile,), rewards={hostile: 1.0}
            )._replace(reward=float(k), clip=example().clip if k in (3, 7) else None)
            for k in range(15)
        ]
        said[3] = said[3]._replace(keyframes=(Keyframe(0, hostile, hostile),), answer=hostile, gold=hostile)
        log.rollouts(steps, said)
        log.pictures(steps, said)
    (folder / "config.json").write_text(json.dumps({"name": hostile, "steps": steps, "objective": hostile}))
    (folder / "summary.json").write_text(
        json.dumps({"before": {"J&F": 40.0, "r": None}, "after": {"J&F": 50.5}, hostile: hostile, "n": [1, [2]]})
    )


def test_a_training_report_has_it_all(tmp_path):
    a_run(tmp_path, 40)
    page = checked(write_report(tmp_path))
    for words in (
        "40 of 40", "0:00:40", "0.0375 → 0.9875", "reward/total: last 1", "learn/kl: last 4", "5 not finite", "a/b",
        "1 of the 1 prompts, 15 of the 15 rollouts.", "the disc", "reward 14", "reward 0 to 14", "0:00:40",
        "Every setting of the run", "50.5", "step 40, completion 4, reward 3",
    ):  # fmt: skip
        assert words in page.text, words
    assert page.images == 2 and page.tags.count("svg") == 4
    assert [w for w in page.tags if w == "h2"] == ["h2"] * 5


def test_whatever_the_data_says_it_stays_data(tmp_path):
    a_run(tmp_path, 3, HOSTILE)
    page = checked(write_report(tmp_path))
    assert page.text.count("<script>alert(1)</script>") >= 15
    assert "\x07" not in page.text and "\u202e" not in page.text


def test_one_step_of_nothing_finite_is_a_report(tmp_path):
    with RunLog(tmp_path, 9, quiet=True, tensorboard=False) as log:
        log.step(1, {"reward/total": math.nan, "learn/loss": math.inf}, 2.0)
    page = checked(write_report(tmp_path))
    assert "never finite, 1 not finite" in page.text and "numbers that were not finite" in page.text


def test_ten_thousand_steps_and_large_pictures_stay_small(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(10_000, 40))
    with (tmp_path / "metrics.jsonl").open("w") as file:
        for n, row in enumerate(values, 1):
            named = {f"reward/term_{k}": round(float(v), 6) for k, v in enumerate(row)}
            file.write(json.dumps({"step": n, "seconds": 1.0, **named}) + "\n")
    with RunLog(tmp_path, 10_000, 10_000, quiet=True, tensorboard=False) as log:
        for step in (9_000, 10_000):
            log.pictures(step, [example(noise=True)] * 8)
    said = {"sample_id": "clip", "query": "q", "completion": "w" * 100_000}
    short, long = (json.dumps({"step": step} | said) + "\n" for step in (9_000, 10_000))
    (tmp_path / "rollouts.jsonl").write_text(short + long * 60)
    path = write_report(tmp_path)
    page = checked(path)
    assert page.images >= 4 and page.tags.count("svg") == 41
    assert "96000 more characters" in page.text


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"metrics\.jsonl is missing"):
        write_report(tmp_path)
    RunLog(tmp_path, 9, quiet=True).close()
    with pytest.raises(InputError, match=r"metrics\.jsonl is empty"):
        write_report(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "seconds": 1}\n{"step": 2')  # cut short by a kill
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(InputError, match=r"summary\.json is not JSON"):
        write_report(tmp_path)
    (tmp_path / "summary.json").unlink()
    write_report(tmp_path)
    (tmp_path / "pictures" / "1").mkdir(parents=True)
    (tmp_path / "pictures" / "1" / "00_a.png").write_bytes(b"\x89PNG" + b"x" * 70_000)
    (tmp_path / "rollouts.jsonl").write_text('{"step": 1, "sample_id": "a"}\n')
    with pytest.raises(InputError, match=r"00_a\.png is not a picture"):
        write_report(tmp_path)
    assert not [p for p in tmp_path.iterdir() if p.name.endswith(".part")]


def test_an_evaluation_report_has_it_all(tmp_path):
    scores = [None, *np.linspace(0, 1, 21)]
    rows = [
        Row(f"s{n}", HOSTILE if n == 3 else f"q{n}", v, v, ("plan/no_answer", "x") if n % 5 == 0 else ())
        for n, v in enumerate(scores)
    ]
    pick = eval_report.chosen([row.mean for row in rows], 2)
    assert pick == {"best": [21, 20], "median": [12, 11], "worst": [1, 2]}
    for i in itertools.chain(*pick.values()):
        rows[i] = rows[i]._replace(picture=pictures.png(pictures.draw(example())), note=HOSTILE)
    results = [{"method": "trained", "J&F": 61.25}, {"method": HOSTILE, "J&F": None, "F": 3}]
    path = write_eval_report(tmp_path / "report.html", HOSTILE, rows, results, {"checkpoint": HOSTILE, "n": 22}, 2)
    page = checked(path)
    for words in ("22 samples", "61.25", "trained", "21 values, mean 50", "5 of 22 samples failed", "22.73", "All 22"):
        assert words in page.text, words
    assert page.images == 6
    assert [t for t in re.findall(r"(Best|Median|Worst) clips", path.read_text()) if t] == [
        "Best",
        "Median",
        "Worst",
    ] * 2


def test_few_samples_and_none():
    assert eval_report.chosen([]) == {"best": [], "median": [], "worst": []}
    assert eval_report.chosen([0.5]) == {"best": [0], "median": [], "worst": []}
    assert eval_report.chosen([0.5, None, 0.1], 3) == {"best": [0], "median": [], "worst": [2]}
    for n in range(1, 30):
        picked = [*itertools.chain(*eval_report.chosen(list(np.random.default_rng(n).random(n)), 3).values())]
        assert len(picked) == len(set(picked)) == min(n, 9) or n % 3


def test_a_report_of_samples_without_scores(tmp_path):
    page = checked(write_eval_report(tmp_path / "r.html", "t", [Row("a", "q", None, None, ("bad",))]))
    assert "1 of 1 samples failed" in page.text and "Distribution" not in page.text
    with pytest.raises(InputError, match="without a sample"):
        write_eval_report(tmp_path / "s.html", "t", [])


def test_thinned_curves_keep_their_extremes():
    y = np.random.default_rng(0).normal(size=10_000)
    y[1234], y[77], y[5000:5100] = 50.0, -50.0, math.nan
    x, kept = charts.thin(np.arange(10_000.0), y)
    assert len(x) <= charts.POINTS and np.nanmax(kept) == 50.0 and np.nanmin(kept) == -50.0
    assert (np.diff(x) > 0).all() and (kept[np.isfinite(kept)] == y[x[np.isfinite(kept)].astype(int)]).all()
    np.testing.assert_allclose(charts.smooth(np.array([1.0, math.nan, 3.0]), 3), [1.0, 2.0, 3.0])


@pytest.mark.parametrize("low, high", [(0.0, 1.0), (-3.2, 1e-3), (1e30, 1.1e30), (5.0, 5.0001), (0.0, 1e-9)])
def test_ticks_are_round_and_within(low, high):
    found = charts.ticks(low, high)
    assert 2 <= len(found) <= 9 and all(low - 1e-9 * abs(low) <= t <= high * (1 + 1e-9) for t in found)


@pytest.mark.parametrize("y", [[0.0], [1e300, -1e300], [5.0, 5.0], [None, None], [1.0, None, 2.0], []])
def test_any_numbers_make_a_chart(y):
    drawn = charts.curve("c", list(range(1, len(y) + 1)), y)
    assert drawn.count("<svg") == 1 and "nan" not in drawn and "inf" not in drawn.replace("infinite", "")


def test_only_markup_made_here_is_markup():
    assert html.tag("p", "<b>", html.tag("i", "&")) == "<p>&lt;b&gt;<i>&amp;</i></p>"
    assert html.tag("p", class_='"x"') == '<p class="&quot;x&quot;"></p>'
    assert html.text("a\ud800\x00b") == "a\ufffd\ufffdb"
    assert [html.text(v) for v in (12345.6, 1.23456, 7)] == ["12346", "1.235", "7"]
    assert train_report.clock(59.6) == "0:01:00"
