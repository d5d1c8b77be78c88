"""Pages that stand alone: no request, no script but their own, every text escaped unless it is `Html` already."""

import base64
import hashlib
import html
import re
from collections.abc import Iterable, Sequence

from etils import epath

from omnir1_jax.cli import atomic_path

_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")

STYLE = """
:root { color-scheme: light dark; --ink: #1d2330; --soft: #5d6675; --line: #d9dde4; --paper: #fff; --tint: #f4f6f9;
  --mark: #c2410c; --curve: #1f6feb; }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e7ee; --soft: #98a2b3; --line: #343b48; --paper: #14171d;
  --tint: #1d222b; --mark: #fb923c; --curve: #6ea8fe; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 28px 24px 64px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 40px 0 12px; padding-top: 12px; scroll-margin-top: 36px;
  border-top: 1px solid var(--line); }
nav { position: sticky; top: 0; z-index: 1; background: var(--paper); padding: 6px 0 8px; margin: 0 0 10px;
  white-space: nowrap; overflow-x: auto; }
nav a { color: var(--curve); margin-right: 18px; font-size: 14px; text-decoration: none; }
nav a:hover { text-decoration: underline; }
h3 { font-size: 15px; margin: 24px 0 8px; overflow-wrap: anywhere; }
p { margin: 0 0 12px; max-width: 75ch; }
.soft, figcaption, caption { color: var(--soft); font-size: 13px; }
.scroll { overflow-x: auto; margin: 0 0 18px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px; }
caption { text-align: left; padding: 0 0 6px; }
th, td { text-align: left; padding: 5px 18px 5px 0; border-bottom: 1px solid var(--line); vertical-align: top;
  overflow-wrap: anywhere; }
th { color: var(--soft); font-weight: 600; white-space: nowrap; }
td.number, th.number { text-align: right; white-space: nowrap; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)); gap: 18px; }
figure { margin: 0 0 18px; }
figure img { max-width: 100%; height: auto; border: 1px solid var(--line); background: #fff; display: block; }
svg { width: 100%; height: auto; display: block; font: 11px system-ui, "DejaVu Sans", sans-serif; }
svg text { fill: var(--soft); }
svg .axis { stroke: var(--line); stroke-width: 1; }
svg .raw { fill: none; stroke: var(--curve); stroke-width: 1; opacity: .35; }
svg .curve { fill: none; stroke: var(--curve); stroke-width: 1.8; stroke-linejoin: round; }
svg .dot, svg .bar { fill: var(--curve); }
svg .bad { stroke: var(--mark); stroke-width: 1.5; }
pre { margin: 6px 0 12px; padding: 10px 12px; background: var(--tint); border-radius: 6px; font-size: 13px;
  white-space: pre-wrap; overflow-wrap: anywhere; max-height: 340px; overflow-y: auto; }
details { margin: 0 0 10px; }
summary { cursor: pointer; overflow-wrap: anywhere; }
h4 { font-size: 14px; margin: 0 0 6px; }
.bad { color: var(--mark); }
.filter { display: flex; flex-wrap: wrap; gap: 10px 16px; align-items: end; margin: 0 0 14px; }
.filter label { display: grid; gap: 3px; color: var(--soft); font-size: 12px; }
.filter select, .filter input, .filter button { font: inherit; font-size: 14px; color: var(--ink); min-height: 34px;
  background: var(--paper); border: 1px solid var(--line); border-radius: 6px; padding: 4px 8px; max-width: 220px; }
.filter input { width: 78px; }
.filter span { display: flex; gap: 4px; }
.group { border: 1px solid var(--line); border-radius: 8px; padding: 10px 14px; }
.group[open] > summary { margin-bottom: 12px; }
.group > summary > span { display: block; margin-top: 3px; }
.group > summary > .chips { display: flex; flex-wrap: wrap; gap: 4px; }
.chip { background: var(--tint); border-radius: 4px; padding: 0 7px; font-size: 12px; line-height: 20px;
  font-variant-numeric: tabular-nums; }
.cards { display: grid; grid-auto-flow: column; grid-auto-columns: minmax(min(330px, 82vw), 1fr); gap: 14px;
  overflow-x: auto; scroll-snap-type: x proximity; padding-bottom: 8px; }
.card { border: 1px solid var(--line); border-radius: 6px; padding: 10px 12px; scroll-snap-align: start; min-width: 0; }
.card td, .card th { padding-right: 10px; font-size: 13px; overflow-wrap: break-word; }
.terms td:first-child { white-space: nowrap; }
.terms tr:nth-child(2) td { font-weight: 600; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(158px, 1fr)); gap: 10px; margin: 14px 0 0; }
.tiles div { background: var(--tint); border-radius: 8px; padding: 9px 12px; overflow-wrap: anywhere; }
.tiles dt { color: var(--soft); font-size: 12px; }
.tiles dd { margin: 1px 0 0; font-size: 15px; font-variant-numeric: tabular-nums; }
.other { opacity: .45; order: 1; }
.pages a { color: var(--curve); margin-right: 14px; }
@media (max-width: 600px) { body { padding: 16px 12px 40px; } .grid { grid-template-columns: 1fr; }
  .group { padding: 8px 10px; } nav a { display: inline-block; padding: 4px 0; } }
"""


class Html(str):
    """Markup that was made here; any other string is data and is escaped."""

    __slots__ = ()


def text(value: object) -> Html:
    """A value as shown on the page: numbers to four digits, strings escaped, unprintable characters as U+FFFD."""
    match value:
        case Html():
            return value
        case None:
            return Html('<span class="soft">–</span>')
        case float():
            return Html(f"{value:.0f}" if 1e4 <= abs(value) < 1e12 else f"{value:.4g}")
    return Html(html.escape(_UNPRINTABLE.sub("\ufffd", str(value)), quote=True))


def join(parts: Iterable[object], separator: str = "\n") -> Html:
    """Parts behind each other."""
    return Html(separator.join(text(part) for part in parts))


def tag(name: str, /, *content: object, **attributes: object) -> Html:
    """An element. `class_` is the attribute `class`."""
    attribute_text = "".join(f' {key.rstrip("_")}="{text(value)}"' for key, value in attributes.items())
    return Html(f"<{name}{attribute_text}>{join(content, '')}</{name}>")


def empty(name: str, /, **attributes: object) -> Html:
    """An element without content, as `tag`."""
    return Html(tag(name, **attributes).removesuffix(f"</{name}>"))


def table(header: Sequence[object], rows: Sequence[Sequence[object]], caption: str = "") -> Html:
    """A table; numbers stand to the right. Without a header, the first column is that of names."""
    number = lambda value: isinstance(value, (int, float)) and not isinstance(value, bool)
    width = max(map(len, rows), default=0)
    numeric = [all(number(row[i]) or row[i] is None for row in rows) for i in range(width)]
    cell = lambda kind, value, i: tag(kind, value, class_="number") if numeric[i] else tag(kind, value)
    head = [tag("tr", *(cell("th", value, i) for i, value in enumerate(header)))] if header and rows else []
    first = "td" if header else "th"
    body = [tag("tr", *(cell(first if not i else "td", value, i) for i, value in enumerate(row))) for row in rows]
    head_rows = [tag("caption", caption)] if caption else []
    return tag("div", tag("table", *head_rows, *head, *body), class_="scroll")


def tiles(values: Sequence[tuple[str, object]]) -> Html:
    """A few facts by name, at a glance."""
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in values), class_="tiles")


def picture(data: bytes, alt: str, caption: object = "") -> Html:
    """An image inside the page; `data` is PNG or JPEG."""
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
    source = Html(f"data:image/{kind};base64,{base64.b64encode(data).decode()}")
    image = Html(f'<img alt="{text(alt)}" src="{source}">')
    return tag("figure", image, *([tag("figcaption", caption)] if caption else []))


def details(summary: object, *content: object, is_open: bool = False) -> Html:
    """Content that opens, or closes, on a click."""
    attributes = {"open": ""} if is_open else {}
    return tag("details", tag("summary", summary), *content, **attributes)


def heading(title: str) -> Html:
    """The title of a section, which `page` lists at its top."""
    return tag("h2", title, id=_anchor(title))


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def clipped(value: str, limit: int) -> str:
    """A truncated text, with the number of characters left out."""
    return value if len(value) <= limit else f"{value[:limit]}\n… {len(value) - limit} more characters"


def policy(script: str = "", live: bool = False) -> str:
    """The content security policy: embedded pictures, own style and script; no requests elsewhere.

    Args:
      live: whether the page may send requests to its own server.
    """
    same_origin = "'self'" if live else "'none'"
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    scripts = f"'sha256-{digest}'" if script else "'none'"
    return (
        f"default-src 'none'; img-src data:{' ' + same_origin if live else ''}; style-src 'unsafe-inline'; "
        f"script-src {scripts}; connect-src {same_origin}; base-uri 'none'; form-action {same_origin}"
    )


def page(title: str, *content: object, script: str = "", style: str = "", live: bool = False) -> str:
    """The document; the first part is above the list of sections.

    Args:
      script: written here, never data; it comes last.
      style: of this page alone, never data.
      live: see `policy`.
    """
    titles = re.findall(r'<h2 id="[^"]*">([^<]*)</h2>', join(content))
    links = [tag("a", Html(title), href=f"#{_anchor(html.unescape(title))}") for title in titles]
    navigation = [tag("nav", *links)] if links else []
    content = (*content[:1], *navigation, *content[1:], *([Html(f"<script>{script}</script>")] if script else []))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy(script, live)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n<link rel="icon" href="data:,">\n'
        f"<title>{text(title)}</title>\n<style>{STYLE}{style}</style>\n</head>\n<body>\n{join(content)}\n</body>\n</html>\n"
    )


def write(target: epath.PathLike, document: str) -> None:
    """Writes the document atomically."""
    with atomic_path(target) as scratch:
        scratch.write_text(document)
