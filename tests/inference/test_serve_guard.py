"""Who may ask the page, and how much may be uploaded; the whole of it is seen with Gradio in `test_page`."""

import asyncio
import os
import time

import pytest

from omnir1_jax.inference import serve_guard
from omnir1_jax.inference.serve_guard import Guard, Names, Uploads


def asked(guard, method="GET", path="/", kind="http", body=b"{}", **headers):
    """Status, headers and body of a request; None as status where the app was reached."""
    sent = []

    async def note(message):
        sent.append(message)

    async def receive():
        return {"type": "http.request", "body": body} if kind == "http" else {"type": "websocket.connect"}

    lines = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": kind, "method": method, "path": path, "headers": lines}
    asyncio.run(guard(scope, receive, note))
    return sent


def guard_of(host, folder, **changes):
    reached = []

    async def app(scope, receive, send):
        if scope["type"] == "http":
            bodies.append((await receive())["body"])
        reached.append(scope["path"])
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
            await send({"type": "http.response.body", "body": b""})

    bodies = guard_of.bodies = []
    limits = dict(max_files=4, max_bytes=1000, max_request=500) | changes
    return Guard(app, Names(host), Uploads(folder, **limits)), reached


@pytest.mark.parametrize(
    ("bound", "host", "served"),
    [
        ("127.0.0.1", "127.0.0.1:7860", True),
        ("127.0.0.1", "localhost:8080", True),  # through a tunnel
        ("127.0.0.1", "[::1]:7860", True),
        ("127.0.0.1", "LOCALHOST", True),
        ("127.0.0.1", "evil.example:7860", False),  # a name that was pointed at this machine
        ("127.0.0.1", "127.0.0.1.evil.example", False),
        ("127.0.0.1", "localhost@evil.example", False),
        ("127.0.0.1", "evil.example@localhost", False),
        ("127.0.0.1", "10.0.0.7:7860", False),
        ("127.0.0.1", "", False),
        ("127.0.0.1", "[::1", False),
        ("0.0.0.0", "10.0.0.7:7860", True),
        ("0.0.0.0", "evil.example", False),
        ("box.example", "box.example:7860", True),
    ],
)
def test_requests_under_another_name_are_refused(tmp_path, bound, host, served):
    guard, reached = guard_of(bound, tmp_path)
    for path in ("/", "/gradio_api/upload", "/config", "/gradio_api/queue/data"):
        sent = asked(guard, path=path, host=host)
        assert sent[0]["status"] == (200 if served else 403)
    assert len(reached) == (4 if served else 0)
    assert asked(guard, kind="websocket", host=host) == (
        [] if served else [{"type": "websocket.close", "code": 1008, "reason": sent[1]["body"].decode()[:100]}]
    )


@pytest.mark.parametrize(
    ("headers", "served"),
    [
        (dict(), True),  # a program
        (dict(origin="http://127.0.0.1:7860", sec_fetch_site="same-origin"), True),
        (dict(origin="http://127.0.0.1:9999"), False),  # another service of this machine
        (dict(origin="http://evil.example"), False),
        (dict(origin="null"), False),
        (dict(origin=""), False),
        (dict(origin="file://127.0.0.1:7860"), False),
        (dict(sec_fetch_site="cross-site"), False),
        (dict(sec_fetch_site="same-site"), False),
    ],
)
def test_requests_of_other_sites_are_refused(tmp_path, headers, served):
    guard, reached = guard_of("127.0.0.1", tmp_path)
    for method in ("POST", "GET", "PUT", "OPTIONS"):
        sent = asked(guard, method, "/gradio_api/queue/join", host="127.0.0.1:7860", content_length="3", **headers)
        assert sent[0]["status"] == (200 if served else 403)
    assert len(reached) == 4 * served
    link = dict(sec_fetch_site="cross-site", sec_fetch_mode="navigate", host="127.0.0.1:7860")
    assert asked(guard, "GET", **link)[0]["status"] == 200
    assert asked(guard, "POST", content_length="1", **link)[0]["status"] == 403


def test_bodies_have_a_declared_size_within_bounds(tmp_path):
    guard, reached = guard_of("127.0.0.1", tmp_path)
    status = lambda path, **headers: asked(guard, "POST", path, host="localhost", **headers)[0]["status"]
    assert status("/run") == 411 and status("/run", content_length="-1") == 411
    assert status("/run", content_length="5", transfer_encoding="chunked") == 411
    assert status("/run", content_length=str(serve_guard.MAX_BODY + 1)) == 413
    assert status("/run", content_length="9" * 5000) == 413 and status("/upload", content_length="501") == 413
    assert reached == [] and status("/upload", content_length="500") == status("/run", content_length="5") == 200
    assert asked(guard, path="/gradio_api/file=http://elsewhere/x", host="localhost")[0]["status"] == 404


def test_uploads_are_bounded_in_number_and_bytes_and_the_oldest_go_first(tmp_path):
    guard, _ = guard_of("127.0.0.1", tmp_path)
    old = time.time() - 2 * serve_guard.MIN_AGE
    for n in range(3):
        (tmp_path / str(n)).mkdir()
        (tmp_path / str(n) / "clip.mp4").write_bytes(bytes(300))
        os.utime(tmp_path / str(n) / "clip.mp4", (old + n, old + n))
    upload = lambda size: asked(guard, "POST", "/gradio_api/upload", host="localhost", content_length=str(size))
    assert upload(100)[0]["status"] == 200 and sorted(p.name for p in tmp_path.iterdir()) == ["0", "1", "2"]
    assert upload(400)[0]["status"] == 200 and sorted(p.name for p in tmp_path.iterdir()) == ["1", "2"]
    for n in (3, 4):  # new, and so not removed
        (tmp_path / str(n)).mkdir()
        (tmp_path / str(n) / "clip.mp4").write_bytes(bytes(300))
    assert upload(500)[0]["status"] == 503 and sorted(p.name for p in tmp_path.iterdir()) == ["3", "4"]
    assert upload(400)[0]["status"] == 200
    uploads = Uploads(tmp_path, max_files=4, max_bytes=1000, max_request=500)
    with uploads.admit(300) as first, uploads.admit(300) as second:  # what arrives counts
        assert first and not second
    few = Uploads(tmp_path, max_files=2, max_bytes=10**6, max_request=500)
    with few.admit(1) as fits:
        assert not fits


def test_nothing_is_fetched_from_elsewhere(tmp_path):
    guard, reached = guard_of("127.0.0.1", tmp_path)
    post = lambda body: asked(guard, "POST", "/run", host="localhost", body=body, content_length=str(len(body)))
    for path in ("http://evil.example/x.mp4", "https://evil.example", "ftp://evil.example", "\\u0068ttp://evil"):
        assert (
            post(f'{{"data": [{{"path": "{path}", "meta": {{"_type": "gradio.FileData"}}}}]}}'.encode())[0]["status"]
            == 403
        )
    assert post(b'{"data": ' + b"[" * 100_000 + b"]" * 100_000 + b"}")[0]["status"] == 403
    assert reached == []
    fine = b'{"data": [{"path": "clip.mp4"}, "see http://a.b"]}'
    assert post(fine)[0]["status"] == 200 and post(b"no json")[0]["status"] == 200
    assert guard_of.bodies == [fine, b"no json"]


def test_the_policy_is_sent_with_every_answer(tmp_path):
    guard, _ = guard_of("127.0.0.1", tmp_path)
    for host in ("localhost", "evil.example"):
        headers = dict(asked(guard, host=host)[0]["headers"])
        assert b"default-src 'self'" in headers[b"content-security-policy"]
        assert b"http" not in headers[b"content-security-policy"] and headers[b"x-content-type-options"] == b"nosniff"
    assert dict(asked(guard, host="localhost")[0]["headers"])[b"a"] == b"b"
