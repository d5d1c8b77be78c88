"""A run's page over HTTP during the run: the parts of its report, all of its rollouts, pictures."""

import contextlib
import http.server
import json
import re
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple
from urllib.parse import parse_qsl, quote, urlsplit

from omnir1_jax.errors import InputError
from omnir1_jax.files import folders, regular_file
from omnir1_jax.reporting import html, rollouts_html, train_report
from omnir1_jax.reporting.html import Html, tag
from omnir1_jax.reporting.log import PICTURES, clock
from omnir1_jax.reporting.rollouts_html import Query
from omnir1_jax.reporting.run_files import RunFiles

PROMPTS = 12  # on a page
IDLE_SECONDS = 30  # seconds before a silent connection is closed
_PICTURE = re.compile(r"/pictures/(\d{1,15})/([A-Za-z0-9][A-Za-z0-9._-]{0,120}\.png)")
# Replaces the parts that have changed, but neither open rollouts nor a filter that is being filled in.
FOLLOW = """
document.addEventListener("change", event => event.target.form && event.target.form.requestSubmit());
setInterval(async () => {
  const shown = document.getElementById("version"), lost = document.getElementById("lost");
  try {
    if (document.hidden) return;
    const [version, now] = await (await fetch("/version")).json();
    lost.hidden = true;
    document.getElementById("now").textContent = now;
    if (String(version) === shown.dataset.version) return;
    const text = await (await fetch(location.href)).text();
    const page = new DOMParser().parseFromString(text, "text/html");
    const ids = from => [...from.querySelectorAll("section")].map(part => part.id);
    if (ids(page).join() !== ids(document).join())
      return document.querySelector(".group[open]") ? undefined : location.reload();
    for (const part of document.querySelectorAll("section")) {
      const busy = part.querySelector(".group[open]") || part.contains(document.activeElement);
      const other = page.getElementById(part.id);
      if (part.id === "part-rollouts" && busy) continue;
      const open = [...part.querySelectorAll("details")].map(details => details.open);
      if (part.id !== "part-rollouts")
        other.querySelectorAll("details").forEach((details, at) => { details.open = open[at] ?? details.open; });
      part.replaceWith(document.adoptNode(other));
    }
    shown.dataset.version = version;
  } catch { lost.hidden = false; }
}, 3000);
"""


class Answer(NamedTuple):
    """The response to a request."""

    status: int
    kind: str
    body: bytes


def text(status: int, message: str) -> Answer:
    """A response of one line."""
    return Answer(status, "text/plain; charset=utf-8", message.encode("utf-8", "replace"))


class Page:
    """Answers the requests about one run; thread-safe."""

    def __init__(self, run: RunFiles):
        self._run, self._lock = run, threading.Lock()

    def answer(self, target: str) -> Answer:
        """The response for a path with its query.

        Raises:
          InputError: a file of the run was not written by the log.
        """
        address = urlsplit(target)
        if match := _PICTURE.fullmatch(address.path):
            return self._picture(*match.groups())
        with self._lock:
            if address.path == "/version":
                self._run.refresh()
                return Answer(200, "application/json", json.dumps([self._run.version, self._now()]).encode())
            if address.path == "/":
                self._run.refresh()
                document = self._page(dict(parse_qsl(address.query)))
                return Answer(200, "text/html; charset=utf-8", document.encode("utf-8", "replace"))
        return text(404, "There is no such page.")

    def _picture(self, step: str, name: str) -> Answer:
        path = self._run.folder / PICTURES / step / name
        if any(folders.is_link(part) for part in (path, path.parent)) or regular_file.problem(path):
            return text(404, "There is no such picture.")
        return Answer(200, "image/png", path.read_bytes())

    def _page(self, parameters: Mapping[str, str]) -> str:
        run, query = self._run, Query.parse(parameters)
        number = int(parameters["page"]) if re.fullmatch(r"[1-9]\d{0,8}", parameters.get("page", "")) else 1
        rollouts = self._rollouts(query, number) if run.groups else []
        if run.steps:
            head, *parts = train_report.parts(run, rollouts)
        else:
            head = tag("h1", train_report.title(run))
            parts = [tag("section", tag("p", "No step has been logged yet."), id="part-status")]
        status = tag("p", self._now(), class_="soft", id="now")
        no_answer = tag("p", "The server does not answer.", class_="bad", id="lost", hidden="")
        version = tag("span", id="version", **{"data-version": run.version})
        content = (head, html.join([status, no_answer, version]), *parts)
        return html.page(f"{train_report.title(run)} run", *content, script=FOLLOW, live=True)

    def _now(self) -> str:
        run = self._run
        if run.summary and run.steps and run.steps[-1]["step"] == run.config.get("steps"):
            return "The run has ended."
        since = f"Last step {clock(time.time() - run.logged_at)} ago. " if run.steps else ""
        return f"{since}This page follows the run."

    def _rollouts(self, query: Query, number: int) -> list[Html]:
        run, groups = self._run, query.select(self._run.groups)
        pages = max(-(-len(groups) // PROMPTS), 1)
        number = min(number, pages)
        page_groups = groups[(number - 1) * PROMPTS : number * PROMPTS]
        links = [("← previous", number - 1)] * (number > 1) + [("next →", number + 1)] * (number < pages)
        link_tags = [tag("a", label, href=query.link(page=page_number)) for label, page_number in links]
        label = f"{len(groups)} of the {len(run.groups)} prompts, page {number} of {pages}."
        return [
            rollouts_html.form(query, run.groups),
            tag("p", label, class_="soft"),
            *(rollouts_html.group(run, group, query, _linked) for group in page_groups),
            tag("p", *link_tags, class_="pages"),
        ]


def _linked(step: int, name: str, caption: str) -> Html:
    source = quote(f"/pictures/{step}/{name}")
    image = html.empty("img", alt=caption, src=source, loading="lazy")
    return tag("figure", tag("a", image, href=source), tag("figcaption", caption))


@contextlib.contextmanager
def opened(
    run: RunFiles, host: str, port: int, refuse: Callable[[Mapping[str, str]], str]
) -> Iterator[socketserver.TCPServer]:
    """A server for `serve_forever`, closed at the end.

    Args:
      port: TCP port; 0 for a free one.
      refuse: function from headers to the reason why a request is refused; empty if it is served.

    Raises:
      InputError: the address is in use, or not this machine's.
    """
    page = Page(run)

    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = IDLE_SECONDS
        server_version, sys_version = "omnir1_jax", ""

        def do_GET(self) -> None:
            if refusal := refuse(self.headers):
                answer = text(403, refusal)
            else:
                try:
                    answer = page.answer(self.path)
                except (InputError, OSError) as error:  # OSError: removed meanwhile, by a run that resumes
                    answer = text(500, f"error: {error}")
            self.send_response(answer.status)
            headers = {
                "Content-Type": answer.kind,
                "Content-Length": str(len(answer.body)),
                "Content-Security-Policy": f"{html.policy(FOLLOW, live=True)}; frame-ancestors 'none'",
                "X-Content-Type-Options": "nosniff",
                "Referrer-Policy": "no-referrer",
                "Cross-Origin-Resource-Policy": "same-origin",
                "Cache-Control": "no-store",
            }
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # the visitor left
                self.wfile.write(answer.body)

        def log_message(self, *_: object) -> None:
            """Keeps the terminal free for the address."""

    class Server(socketserver.ThreadingTCPServer):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        allow_reuse_address = daemon_threads = True

    try:
        server = Server((host, port), Handler)
    except OSError as error:
        raise InputError(
            f"--host {host}, --port {port}: {error.strerror or error}; name others, or --port=0"
        ) from error
    with server:
        yield server
