"""Middleware of the page: which requests are served, upload limits, and headers of every answer.

A page of another site can make a visitor's browser send requests here. They are recognised by `Host` (a name that
was pointed at this machine: DNS rebinding), by `Origin` and by `Sec-Fetch-Site`.
"""

import contextlib
import ipaddress
import json
import pathlib
import socket
import time
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import urlsplit

LOOPBACK = ("127.0.0.1", "localhost", "::1")
MAX_BODY = 10**6  # maximum bytes of a request that is not an upload
MIN_AGE = 60.0  # minimum seconds that a file is kept, since a waiting request may name it
# Scripts and styles of the page itself and nothing from elsewhere, whatever a component may ask for.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' blob:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)


class Refusal(NamedTuple):
    """Status and text of a request that is not served."""

    status: int
    text: str


class Names:
    """Host names under which the page may be requested.

    Args:
      host: address that the page listens at. A loopback address accepts loopback names only; another one accepts
        itself, this machine's name, and any literal address: only names can be pointed at this machine.
    """

    def __init__(self, host: str):
        self._local = host in LOOPBACK
        self._names = {*LOOPBACK} if self._local else {*LOOPBACK, host.lower(), socket.gethostname().lower()}

    def __contains__(self, name: object) -> bool:
        if name in self._names:
            return True
        if self._local:
            return False
        try:
            ipaddress.ip_address(str(name))
        except ValueError:
            return False
        return True


class Uploads:
    """The folder of uploads, bounded in number and bytes of files; the oldest are removed first.

    Args:
      folder: directory with nothing else in it.
      max_request: maximum bytes of one upload's request.
    """

    def __init__(self, folder: pathlib.Path, max_files: int, max_bytes: int, max_request: int):
        self._folder, self._files, self._bytes, self.max_request = folder, max_files, max_bytes, max_request
        self._arriving: list[int] = []

    @contextlib.contextmanager
    def admit(self, size: int) -> Iterator[bool]:
        """Whether an upload of `size` bytes is accepted; it counts while it arrives."""
        fits = self.trim(size)
        if fits:
            self._arriving.append(size)
        try:
            yield fits
        finally:
            if fits:
                self._arriving.remove(size)

    def trim(self, size: int = 0) -> bool:
        """Removes old files while there are too many; returns whether `size` bytes more fit."""
        files = []
        for path in self._folder.rglob("*"):
            with contextlib.suppress(FileNotFoundError):  # removed by the page meanwhile
                if path.is_file() and not path.is_symlink():
                    files.append((path.stat().st_mtime, path.stat().st_size, path))
        files.sort(reverse=True)
        count, total = len(files) + len(self._arriving), sum(s for _, s, _ in files) + sum(self._arriving) + size
        while files and (count >= self._files or total > self._bytes) and time.time() - files[-1][0] > MIN_AGE:
            _, removed, path = files.pop()
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # holds further files
                path.parent.rmdir()
            count, total = count - 1, total - removed
        return count < self._files and total <= self._bytes


class Guard:
    """ASGI middleware: refuses requests of other sites' pages, bounds bodies and uploads, adds the `POLICY` header."""

    def __init__(self, app: Any, names: Names, uploads: Uploads):
        self._app, self._names, self._uploads = app, names, uploads

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        refusal = foreign(scope, self._names)
        if scope["type"] == "websocket":
            if refusal is None:
                await self._app(scope, receive, send)
            else:
                await receive()
                await send({"type": "websocket.close", "code": 1008, "reason": refusal.text[:100]})
            return
        send = _with_headers(send)
        size, refusal = 0, refusal or _bare_target(scope)
        if refusal is None and scope["method"] not in ("GET", "HEAD", "OPTIONS"):
            size, refusal = body_size(scope, self._uploads.max_request if _is_upload(scope) else MAX_BODY)
        if refusal is not None:
            await _refuse(send, refusal)
        elif size and not _is_upload(scope):
            body = await _read(receive, size)
            if body is not None and fetches(body):
                await _refuse(send, Refusal(403, "This page fetches nothing from elsewhere; upload the file."))
            else:
                await self._app(scope, _replay(body, receive), send)
        elif _is_upload(scope):
            with self._uploads.admit(size) as fits:
                if fits:
                    await self._app(scope, receive, send)
                else:
                    await _refuse(send, Refusal(503, "Too many files were uploaded; try again in a minute."))
        else:
            await self._app(scope, receive, send)


def foreign(scope: Any, names: Names) -> Refusal | None:
    """The refusal of a request that a page of another site may have caused."""
    hosts = _values(scope, b"host")
    try:
        name = urlsplit(f"//{hosts[0]}").hostname if len(hosts) == 1 and "@" not in hosts[0] else None
    except ValueError:
        name = None
    if name is None or name not in names:
        return Refusal(403, "The page is served under its own address; open the one that its command printed.")
    other = Refusal(403, "This page takes no requests of other sites.")
    for origin in _values(scope, b"origin"):
        scheme, _, origin_host = origin.lower().partition("://")
        if scheme not in ("http", "https") or origin_host != hosts[0].lower():
            return other
    sites, modes = _values(scope, b"sec-fetch-site"), _values(scope, b"sec-fetch-mode")
    followed = modes == ["navigate"] and scope.get("method") == "GET"  # a link to the page
    if any(site not in ("same-origin", "none") for site in sites) and not followed:
        return other
    return None


def body_size(scope: Any, limit: int) -> tuple[int, Refusal | None]:
    """Declared bytes of a request's body, which the server enforces."""
    sizes = _values(scope, b"content-length")
    if _values(scope, b"transfer-encoding") or len(sizes) != 1 or not (sizes[0].isascii() and sizes[0].isdigit()):
        return 0, Refusal(411, "Requests need one Content-Length.")
    if len(sizes[0]) > 18 or int(sizes[0]) > limit:
        return 0, Refusal(413, f"A request of this kind has at most {limit} bytes.")
    return int(sizes[0]), None


def _bare_target(scope: Any) -> Refusal | None:
    """Paths that name another address, which the page would fetch and pass on."""
    return Refusal(404, "There is no such file.") if "/file=http" in scope["path"].lower() else None


def fetches(body: bytes) -> bool:
    """Whether a request names a file by a URL, which the page would download without limit."""
    try:
        values = [json.loads(body)]
    except ValueError:
        return False  # the page says what is wrong with it
    except RecursionError:
        return True
    while values:
        value = values.pop()
        if isinstance(value, dict):
            if any(isinstance(value.get(key), str) and "://" in value[key] for key in ("path", "orig_path")):
                return True
            values.extend(value.values())
        elif isinstance(value, list):
            values.extend(value)
    return False


async def _read(receive: Any, size: int) -> bytes | None:
    """The body of a request; None where the visitor left meanwhile."""
    body = b""
    while len(body) < size:
        message = await receive()
        if message["type"] != "http.request":
            return None
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    return body


def _replay(body: bytes | None, receive: Any) -> Any:
    """A `receive` that replays the body."""
    first = {"type": "http.disconnect"} if body is None else {"type": "http.request", "body": body, "more_body": False}
    waiting = [first]

    async def replayed() -> Any:
        return waiting.pop() if waiting else await receive()

    return replayed


def _is_upload(scope: Any) -> bool:
    return scope["method"] == "POST" and scope["path"].rstrip("/").endswith("/upload")


def _values(scope: Any, name: bytes) -> list[str]:
    return [value.decode("latin-1").strip() for key, value in scope["headers"] if key.lower() == name]


def _with_headers(send: Any) -> Any:
    async def with_headers(message: Any) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *_HEADERS]}
        await send(message)

    return with_headers


async def _refuse(send: Any, refusal: Refusal) -> None:
    body = refusal.text.encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    headers.append((b"connection", b"close"))  # the rest of the body is not read
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
