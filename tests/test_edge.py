"""The HTTP edge under attack: malformed framing, bombs, slow clients, too many connections; headers of every answer."""

from __future__ import annotations

import asyncio
import gzip
import re
import socket
import time
import zlib
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from api.doors import Doors, client_of, forwarded_client, networks
from api.keys import DOORS
from api.server import EdgeRunner
from api.websocket import FRAMES_AT_ONCE, Pace
from shared.errors import ConfigurationError
from tests.conftest import ADMIN_KEY, Stack, chat

AUTH = f"Authorization: Bearer {ADMIN_KEY}\r\n"
GET = "GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
POST = f"POST /api/jobs HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{AUTH}Content-Type: application/json\r\n"
UPLOAD = (
    f"POST /api/documents HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{AUTH}"
    "Content-Type: multipart/form-data; boundary=B\r\n"
)
FILE = b'Content-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\nhello\r\n'
BLOCKED_S = 0.3


async def open_to(base: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = base.removeprefix("http://").split(":")
    return await asyncio.open_connection(host, int(port))


async def raw(base: str, data: bytes, seconds: float = 10) -> bytes:
    """All that the server answers until it closes. Raises TimeoutError when it does not."""
    reader, writer = await open_to(base)
    answer = b""
    try:
        async with asyncio.timeout(seconds):
            writer.write(data)
            while piece := await reader.read(65_536):
                answer += piece
    except ConnectionError:
        pass  # it was answered before all was sent
    finally:
        writer.close()
    return answer


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


MALFORMED = {
    "200 headers": GET + "".join(f"X-{number}: a\r\n" for number in range(200)) + "\r\n",
    "20,000 headers": GET + "".join(f"X-{number}: a\r\n" for number in range(20_000)) + "\r\n",
    "9 kB header": GET + "X-A: " + "a" * 9_000 + "\r\n\r\n",
    "1 MB header": GET + "X-A: " + "a" * 1_000_000 + "\r\n\r\n",
    "9 kB path": "GET /" + "a" * 9_000 + " HTTP/1.1\r\nHost: a\r\n\r\n",
    "length and chunks": POST + "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": POST + "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "the same length twice": POST + "Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
    "a list of lengths": POST + "Content-Length: 2, 2\r\n\r\n{}",
    "length +2": POST + "Content-Length: +2\r\n\r\n{}",
    "length -2": POST + "Content-Length: -2\r\n\r\n{}",
    "length 1_0": POST + "Content-Length: 1_0\r\n\r\n{}",
    "unknown coding": POST + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked not last": POST + "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "two codings": POST + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "vertical tab": POST + "Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "chunks in HTTP/1.0": (POST + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n").replace("HTTP/1.1", "HTTP/1.0"),
    "folded header": GET + "X-A: b\r\n c\r\n\r\n",
    "bare LF": (GET + "\r\n").replace("\r\n", "\n"),
    "bare CR": GET + "X-A: b\rX-B: c\r\n\r\n",
    "space before colon": GET + "X-A : b\r\n\r\n",
    "NUL": GET + "X-A: a\0b\r\n\r\n",
    "no name": GET + ": b\r\n\r\n",
    "no host": "GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n",
    "two hosts": GET + "Host: b\r\n\r\n",
    "HTTP/3.7": "GET /healthz HTTP/3.7\r\nHost: a\r\n\r\n",
    "HTTP/2 preface": "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "chunks with LF": POST + "Transfer-Encoding: chunked\r\n\r\n2\n{}\n0\n\n",
    "negative chunk": POST + "Transfer-Encoding: chunked\r\n\r\n-2\r\n{}\r\n0\r\n\r\n",
    "chunk 0x2": POST + "Transfer-Encoding: chunked\r\n\r\n0x2\r\n{}\r\n0\r\n\r\n",
    "endless chunk": POST + "Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF2\r\n{}\r\n0\r\n\r\n",
    "20,000 trailers": POST + "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n" + "X-A: a\r\n" * 20_000 + "\r\n",
}


@pytest.mark.parametrize("form", MALFORMED)
async def test_malformed_framing_is_one_problem_and_the_end_of_the_connection(edge: Stack, form: str) -> None:
    """Given requests on whose end two servers may disagree (smuggling), or whose header is over the bounds, then the
    answer is a single 400 problem, and nothing that follows on the connection is read as a request."""
    answer = await raw(edge.base, MALFORMED[form].encode("latin1") + b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n")
    assert status_of(answer) == 400
    assert answer.count(b"HTTP/1.") == 1
    assert b"application/problem+json" in answer
    assert b'"code":"malformed_request"' in answer
    assert b"nosniff" in answer


class Lag:
    """The longest time for which the event loop stood still meanwhile."""

    async def __aenter__(self) -> Lag:
        self.worst_s = 0.0
        self._task = asyncio.create_task(self._watch())
        await asyncio.sleep(0)
        return self

    async def _watch(self) -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.01)
            self.worst_s = max(self.worst_s, time.monotonic() - before - 0.01)

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()


def packed(encoding: str) -> bytes:
    content = b" " * 300_000_000
    return gzip.compress(content, 9) if encoding == "gzip" else zlib.compress(content, 9)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_a_packed_bomb_is_refused_without_a_stop(edge: Stack, encoding: str) -> None:
    """Given 300 MB of blanks in 300 kB, then the answer is 413 and the loop goes on meanwhile."""
    body = await asyncio.to_thread(packed, encoding)
    head = f"{POST}Content-Encoding: {encoding}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    async with Lag() as lag:
        answer = await raw(edge.base, head + body)
    assert status_of(answer) == 413
    assert b'"code":"too_large"' in answer
    assert lag.worst_s < BLOCKED_S


@pytest.mark.parametrize("head", [UPLOAD, POST.replace(AUTH, "")], ids=["upload", "no key"])
async def test_a_packed_bomb_that_nobody_reads_is_not_unpacked(edge: Stack, head: str) -> None:
    body = await asyncio.to_thread(packed, "gzip")
    async with Lag() as lag:
        answer = await raw(
            edge.base, f"{head}Content-Encoding: gzip\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        )
    assert status_of(answer) == (415 if head is UPLOAD else 401)
    assert lag.worst_s < BLOCKED_S


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [
        ("gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", lambda data: zlib.compress(data)[2:-4]),
        ("identity", bytes),
    ],
)
async def test_packed_bodies_are_read(edge: Stack, encoding: str, pack: Any) -> None:
    body = pack(b'{"type": "chat", "input": {"messages": [{"role": "user", "content": "x"}]}}')
    for sent, status in ((body, 202), (body[:-9], 400)):
        answer = await raw(
            edge.base, f"{POST}Content-Encoding: {encoding}\r\nContent-Length: {len(sent)}\r\n\r\n".encode() + sent
        )
        assert status_of(answer) == status


@pytest.mark.parametrize("encoding", ["foo", "gzip, gzip", "compress"])
async def test_other_packings_are_refused(edge: Stack, encoding: str) -> None:
    answer = await raw(edge.base, f"{POST}Content-Encoding: {encoding}\r\nContent-Length: 2\r\n\r\n{{}}".encode())
    assert (status_of(answer), b"unsupported_media_type" in answer) == (415, True)


async def test_a_body_in_chunks_is_bounded(make_stack: Any) -> None:
    edge: Stack = await make_stack(max_body_bytes=10_000)
    chunk = b"1000\r\n" + b" " * 4_096 + b"\r\n"
    answer = await raw(edge.base, f"{POST}Transfer-Encoding: chunked\r\n\r\n".encode() + chunk * 50 + b"0\r\n\r\n")
    assert (status_of(answer), b'"too_large"' in answer) == (413, True)


def chat_with(member: bytes) -> bytes:
    return b'{"type":"chat","input":{"messages":[{"role":"user","content":"x"}]},' + member + b"}"


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 1_000_000, b'{"a":' * 500_000, chat_with(b'"metadata":' + b'{"a":' * 100_000),
        chat_with(b'"tokenBudget":1' + b"0" * 400_000), chat_with(b'"delaySeconds":1e400'),
        chat_with(b'"delaySeconds":NaN'), chat_with(b'"user":"\\ud800"'), chat_with(b'"user":"\xff"'),
        '{"type":"chat"}'.encode("utf-16"), b'\xef\xbb\xbf{"type":"chat"}',
        b"{" + b",".join(b'"k%d":1' % number for number in range(100_000)) + b"}",
    ],
    ids=["arrays", "objects", "nested", "number", "1e400", "NaN", "surrogate", "not UTF-8", "UTF-16", "BOM", "keys"],
)  # fmt: skip
async def test_json_bombs_are_refused_without_a_stop(edge: Stack, body: bytes) -> None:
    async with Lag() as lag:
        answer = await raw(edge.base, f"{POST}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    assert status_of(answer) in (400, 422)
    assert b"application/problem+json" in answer
    assert lag.worst_s < BLOCKED_S


def parts(*given: bytes) -> bytes:
    return b"".join(b"--B\r\n" + part for part in given) + b"--B--\r\n"


NAMED = b'Content-Disposition: form-data; name="title"'


@pytest.mark.parametrize(
    "body",
    [
        parts(*(NAMED.replace(b"title", b"x%d" % number) + b"\r\n\r\ny\r\n" for number in range(100_000)), FILE),
        parts(*(NAMED + b"\r\n\r\ny\r\n" for _ in range(100_000)), FILE),
        parts(NAMED.replace(b"title", b"x" * 5_000_000) + b"\r\n\r\ny\r\n", FILE),
        parts(b"".join(b"X-%d: y\r\n" % number for number in range(200_000)) + FILE),
        parts(NAMED + b"\r\n\r\n" + b"y" * 9_000_000 + b"\r\n", FILE),
        parts(NAMED + b"\r\nContent-Encoding: gzip\r\n\r\n" + gzip.compress(b"y" * 100_000_000) + b"\r\n", FILE),
        parts(NAMED + b"\r\nContent-Transfer-Encoding: base64\r\n\r\n%%%\r\n", FILE),
        parts(NAMED + b"\r\nContent-Type: multipart/mixed; boundary=C\r\n\r\n--C\r\n\r\nx\r\n--C--\r\n"),
        b"--B\r\n" + FILE,
        b"x" * 3_000_000,
    ],
    ids=["parts", "repeats", "name", "headers", "field", "packed", "base64", "nested", "no end", "no boundary"],
)
async def test_multipart_bombs_are_refused_without_a_stop(edge: Stack, body: bytes) -> None:
    async with Lag() as lag:
        answer = await raw(edge.base, f"{UPLOAD}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    assert 400 <= status_of(answer) < 500
    assert lag.worst_s < BLOCKED_S
    assert (await edge.call("GET", "/api/documents")).json["data"] == []


# -- time


async def seconds_until_cut(base: str, head: bytes, drip: bytes, bound_s: float) -> float:
    """How long a client lives that sends `head` at once and then `drip`, byte for byte, for ever."""
    reader, writer = await open_to(base)
    began = time.monotonic()
    writer.write(head)

    async def trickle() -> None:
        while True:
            for byte in drip:
                writer.write(bytes([byte]))
                await asyncio.sleep(0.05)

    sending = asyncio.create_task(trickle())
    try:
        async with asyncio.timeout(bound_s):
            while await reader.read(65_536):
                pass
    except ConnectionError:
        pass
    finally:
        sending.cancel()
        writer.close()
    return time.monotonic() - began


@pytest.mark.parametrize(
    ("head", "drip"),
    [
        (b"", b""),
        (b"GET /healthz HTTP/1.1\r\nHost: a\r\n", b"X-A: b\r\n"),
        (POST.replace("Connection: close\r\n", "").encode() + b"Content-Length: 100000\r\n\r\n", b" "),
        (POST.replace("Connection: close\r\n", "").encode() + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
        (b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n", b""),
    ],
    ids=["silent", "slow header", "slow body", "slow chunks", "idle"],
)
async def test_a_slow_client_is_cut(make_stack: Any, head: bytes, drip: bytes) -> None:
    edge: Stack = await make_stack(header_seconds=0.6, body_seconds=0.6, idle_seconds=0.6)
    if not drip:
        drip_bytes = b""
        reader, writer = await open_to(edge.base)
        writer.write(head)
        async with asyncio.timeout(4):
            await reader.read(-1)
        writer.close()
        return
    drip_bytes = drip
    assert 0.4 < await seconds_until_cut(edge.base, head, drip_bytes, 5) < 4


async def connection_that_does_not_read(base: str, request: bytes) -> socket.socket:
    host, port = base.removeprefix("http://").split(":")
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    connection.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(connection, (host, int(port)))
    await loop.sock_sendall(connection, request)
    return connection


async def doors_empty(edge: Stack, others: int, seconds: float) -> bool:
    doors = edge._runners[0].app[DOORS]
    deadline = time.monotonic() + seconds
    while doors.open > others:
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.05)
    return True


async def test_a_client_that_takes_nothing_of_a_large_answer_is_cut(make_stack: Any) -> None:
    """Given clients that ask again and again on one connection and never read, then they are let go, and what waited
    for them is freed; one that reads slowly gets everything."""
    edge: Stack = await make_stack(send_seconds=0.6)
    before = edge._runners[0].app[DOORS].open
    wanted = b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n"
    stuck = [await connection_that_does_not_read(edge.base, wanted * 200) for _ in range(5)]
    await asyncio.sleep(0.1)
    assert edge._runners[0].app[DOORS].open == before + 5
    assert await doors_empty(edge, before, 6)
    for connection in stuck:
        connection.close()
    slow = await connection_that_does_not_read(edge.base, wanted.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    got, loop = 0, asyncio.get_running_loop()
    began = time.monotonic()
    while piece := await loop.sock_recv(slow, 4_096):
        got += len(piece)
        await asyncio.sleep(0.02)
    slow.close()
    assert got > len((await edge.call("GET", "/openapi.json")).body)
    assert time.monotonic() - began > 0.6, "it was slower than the bound"


# -- connections


async def test_one_connection_too_many_is_refused_and_the_others_go_on(make_stack: Any) -> None:
    """Given an API that takes ten connections, of one client three, when more come, then each hears 503 at once, those
    that are there go on, and a place that becomes free is given again."""
    edge: Stack = await make_stack(api=False)
    from api.app import create_app
    from api.keys import TENANTS

    app = create_app(edge.settings)
    await app[TENANTS].ensure_admin(ADMIN_KEY)
    doors = Doors(4, 3, exempt=networks("127.0.0.1"))
    runner = EdgeRunner(app, edge.settings, shutdown_timeout=0.2, doors=doors)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        base = f"http://127.0.0.1:{runner.addresses[0][1]}"
        port = runner.addresses[0][1]
        kept = await open_to(base)
        others = [await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.0.9", 0)) for _ in range(3)]
        while doors.open < 4:
            await asyncio.sleep(0.01)
        others[0][1].close()
        while doors.open > 3:
            await asyncio.sleep(0.01)
        others[0] = await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.0.9", 0))
        while doors.open < 4:
            await asyncio.sleep(0.01)
        refused = await raw(base, b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
        assert status_of(refused) == 503
        assert b'"code":"unavailable"' in refused
        assert b"Retry-After: 1" in refused
        others[1][1].close()
        while doors.open > 3:
            await asyncio.sleep(0.01)
        one_of_client = [await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.0.9", 0))]
        while doors.open < 4:
            await asyncio.sleep(0.01)
        others[2][1].close()
        for _ in range(3):
            kept[1].write(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
            head = await kept[0].readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            await kept[0].readexactly(int(re.search(rb"Content-Length: (\d+)", head)[1]))  # type: ignore[index]
        for _, writer in (kept, *others, *one_of_client):
            writer.close()
    finally:
        await runner.cleanup()
    assert doors.open == 0


async def test_a_process_of_its_own_refuses_and_cuts_too(make_stack: Any) -> None:
    """Given an API as it is run, on its own event loop, then one connection too many hears 503, and a client that reads
    nothing is let go, which makes room."""
    edge: Stack = await make_stack(api=False, max_connections=3, send_seconds=0.6, header_seconds=60)
    base = await edge.spawn_api()
    await edge.session.close()
    edge.session = aiohttp.ClientSession()
    wanted = b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n" * 200

    async def refused() -> bool:
        answer = await raw(base, b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        return status_of(answer) == 503

    async def becomes(wished: bool) -> None:
        async with asyncio.timeout(10):
            while await refused() != wished:
                await asyncio.sleep(0.05)

    await becomes(False)
    stuck = [await connection_that_does_not_read(base, wanted) for _ in range(3)]
    await becomes(True)
    await becomes(False)
    for connection in stuck:
        connection.close()


def test_connections_are_counted_by_client() -> None:
    doors = Doors(100, 2, "10.0.0.0/8")
    assert [doors.enter("203.0.113.7") for _ in range(3)] == ["203.0.113.7", "203.0.113.7", None]
    assert doors.enter("::ffff:203.0.113.7") is None
    assert doors.enter("198.51.100.1") == "198.51.100.1"
    assert [doors.enter(f"2001:db8:1:2::{number}") for number in (1, 2, 3)][2] is None, "one /64 is one client"
    assert [doors.enter("10.1.2.3") for _ in range(5)] == [""] * 5, "a trusted proxy has no bound of its own"
    assert [doors.enter("127.0.0.1") for _ in range(5)] == [""] * 5
    doors.leave("203.0.113.7")
    assert doors.enter("203.0.113.7") == "203.0.113.7"


def test_forwarded_addresses_are_believed_of_trusted_proxies_only() -> None:
    trusted = networks("10.0.0.0/8, fd00::/8")
    assert forwarded_client("203.0.113.7", "198.51.100.1", trusted) is None
    assert forwarded_client("10.0.0.1", "6.6.6.6, 198.51.100.1", trusted) == "198.51.100.1", "the left is the client's"
    assert forwarded_client("10.0.0.1", "6.6.6.6, 198.51.100.1, 10.0.0.2", trusted) == "198.51.100.1"
    assert forwarded_client("10.0.0.1", "198.51.100.1, nonsense", trusted) is None
    assert forwarded_client("10.0.0.1", "", trusted) is None
    assert client_of("fe80::1%eth0") == "fe80::/64"
    with pytest.raises(ConfigurationError, match="ERRAND_TRUSTED_PROXIES"):
        networks("10.0.0.0/8, proxy.example")


async def test_requests_behind_a_trusted_proxy_are_bounded_by_client(make_stack: Any) -> None:
    edge: Stack = await make_stack(trusted_proxies="127.0.0.1", max_connections_per_client=2)
    job_id = await edge.submit(chat())

    def ask(address: str) -> Any:
        return edge.call("GET", f"/api/jobs/{job_id}?wait=2", headers={"X-Forwarded-For": f"6.6.6.6, {address}"})

    answers = await asyncio.gather(*(ask("198.51.100.1") for _ in range(4)), ask("198.51.100.2"))
    assert sorted(answer.status for answer in answers[:4]) == [200, 200, 429, 429]
    assert answers[4].status == 200
    assert (await ask("198.51.100.1")).status == 200


async def test_a_socket_is_served_at_a_pace() -> None:
    pace = Pace()
    assert [pace.wait_s() for _ in range(int(FRAMES_AT_ONCE))][-1] == 0
    assert [pace.wait_s() for _ in range(200)][-1] > 0.5


async def test_a_frame_over_the_limit_ends_the_socket(make_stack: Any) -> None:
    edge: Stack = await make_stack(max_body_bytes=10_000)
    headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
    async with edge.session.ws_connect(f"{edge.base}/api/ws", headers=headers) as client:
        await client.send_str(" " * 20_000)
        message = await client.receive(5)
        assert message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)
        assert client.close_code == 1009


# -- what every answer says


@pytest.mark.parametrize("path", ["/healthz", "/api/jobs", "/nothing", "/docs", "/problems/gone", "/openapi.json"])
async def test_every_answer_is_hardened(edge: Stack, path: str) -> None:
    answer = await edge.call("GET", path)
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["X-Frame-Options"] == "DENY"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert answer.headers["Server"] == "errand"
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; frame-ancestors 'none'")
    assert ("style-src" in policy) == (path in ("/docs", "/problems/gone"))
    assert "script-src" not in policy


async def test_a_stream_is_hardened(stack: Stack) -> None:
    answer = await stack.call("POST", "/api/chat/stream", {"messages": [{"role": "user", "content": "x"}]})
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
