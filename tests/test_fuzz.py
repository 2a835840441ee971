"""Whatever comes in by the two ways that the OpenAPI document does not describe to the byte, a WebSocket's frames and
the parts of an upload, is answered or refused; nothing breaks, and nothing is left behind."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from typing import Any, Final

import aiohttp
import pytest
from aiohttp import WSMsgType
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from api.keys import SOCKETS
from shared.metrics import STREAMS_OPEN
from tests.conftest import ADMIN_KEY, Stack, chat
from tests.test_embedding import embedding

# The stack draws numbers on its own thread while examples are drawn on another.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")

EXAMPLES: Final = int(os.environ.get("FUZZ_EXAMPLES", "150"))
PHASES: Final = (Phase.explicit, Phase.generate, Phase.shrink)
ANSWER_S: Final = 10.0


async def for_each(strategy: st.SearchStrategy[Any], check: Callable[[Any], Awaitable[None]]) -> None:
    """Draws examples in a thread, and checks each here, on the loop where the stack is."""
    loop = asyncio.get_running_loop()

    @settings(max_examples=EXAMPLES, deadline=None, database=None, derandomize=True, phases=PHASES,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(strategy)
    def drawn(example: Any) -> None:
        asyncio.run_coroutine_threadsafe(asyncio.wait_for(check(example), 60), loop).result()

    await asyncio.to_thread(drawn)


def tasks() -> list[str]:
    return sorted(task.get_name() for task in asyncio.all_tasks() if "socket" in task.get_name())


# -- frames ----------------------------------------------------------------------------------------------------------

JSON: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
JOB_IDS: Final = st.sampled_from(["<job>", "job_01M81SGW152PHX78GHNCJWQHRS", "", "x" * 70]) | st.text(max_size=64)
SUBMITTED: Final = st.sampled_from(
    [chat(delaySeconds=3_600), embedding(["a"], delaySeconds=3_600), {}, {"type": "chat"}]
)
OPERATION: Final = st.fixed_dictionaries(
    {"op": st.sampled_from(["submit", "subscribe", "unsubscribe", "cancel", "input", "auth"]) | JSON},
    optional={
        "ref": st.integers() | st.text(max_size=130) | JSON, "jobId": JOB_IDS | JSON, "job": SUBMITTED | JSON,
        "after": st.integers() | JSON, "requestId": st.text(max_size=10) | JSON, "value": JSON,
        "idempotencyKey": st.text(max_size=300) | JSON, "key": st.text(max_size=90) | JSON, "more": JSON,
    },
)  # fmt: skip
FRAME: Final = st.one_of(
    OPERATION.map(lambda value: (WSMsgType.TEXT, json.dumps(value).encode())),
    OPERATION.map(lambda value: (WSMsgType.BINARY, json.dumps(value).encode())),
    JSON.map(lambda value: (WSMsgType.TEXT, json.dumps(value).encode())),
    st.tuples(
        st.sampled_from([WSMsgType.TEXT, WSMsgType.BINARY, WSMsgType.PING, WSMsgType.PONG]), st.binary(max_size=100)
    ),
    st.integers(1, 5_000).map(lambda depth: (WSMsgType.TEXT, b"[" * depth)),
    st.integers(1, 2_000).map(lambda depth: (WSMsgType.TEXT, b'{"ref":1,"op":' + b"[" * depth + b"]" * depth + b"}")),
)


# Servers in the same process draw from `random` while hypothesis draws its examples in a thread.
@pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisDeprecationWarning")
async def test_any_frame_is_answered_or_the_socket_closed(stack: Stack) -> None:
    """Given frames of any kind, then none is answered as a defect of ours, the socket goes on answering or says why it
    closes, and when it is closed neither it nor a task of it is left."""
    job = await stack.submit(chat())
    await stack.finished(job)
    app = stack._runners[0].app
    open_before = STREAMS_OPEN.labels("websocket")._value.get()
    headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
    closed: set[int | None] = set()
    answered = 0

    async def check(frames: list[tuple[WSMsgType, bytes]]) -> None:
        nonlocal answered
        async with stack.session.ws_connect(f"{stack.base}/api/ws", headers=headers) as socket:
            for kind, data in frames:
                await socket.send_frame(data.replace(b"<job>", job.encode()), kind)
            await socket.send_json({"op": "unsubscribe", "ref": "last of all", "jobId": "none"})
            async with asyncio.timeout(ANSWER_S):
                while (message := await socket.receive()).type is WSMsgType.TEXT:
                    said = json.loads(message.data)
                    assert said.get("problem", {}).get("status", 0) < 500, (said, frames)
                    answered += "ref" in said
                    if said.get("ref") == "last of all":
                        return
            closed.add(socket.close_code)

    await for_each(st.lists(FRAME, min_size=1, max_size=6), check)
    assert answered > EXAMPLES
    assert closed <= {1002, 1007}, "bytes that are no text are a fault of the protocol; nothing else closes a socket"
    async with asyncio.timeout(ANSWER_S):
        while app[SOCKETS] or tasks() or STREAMS_OPEN.labels("websocket")._value.get() != open_before:
            await asyncio.sleep(0.02)


async def test_any_first_frame_is_refused(edge: Stack) -> None:
    """Given a socket without a key, then whatever its first frame is, it is told so and closed."""

    async def check(frame: tuple[WSMsgType, bytes]) -> None:
        async with edge.session.ws_connect(f"{edge.base}/api/ws") as socket:
            await socket.send_frame(*reversed(frame))
            await socket.send_json({"op": "subscribe", "ref": 1, "jobId": "none"})
            async with asyncio.timeout(ANSWER_S):
                said = [json.loads(message.data) async for message in socket if message.type is WSMsgType.TEXT]
            assert [one["problem"]["status"] in (400, 401, 403, 422) for one in said] in ([True], []), (said, frame)

    await for_each(FRAME, check)
    async with asyncio.timeout(ANSWER_S):
        while edge._runners[0].app[SOCKETS] or tasks():
            await asyncio.sleep(0.02)


# -- parts -----------------------------------------------------------------------------------------------------------

BOUNDARY: Final = b"----b"
NAME: Final = st.sampled_from(["file", "title", "collection", "metadata", "index", "other", ""]) | st.text(max_size=12)
CONTENT: Final = st.one_of(
    st.sampled_from(
        [b"", b"A text.", b"true", b"false", b'{"a":"b"}', b"{}", b'"one"\n"two"\n', b"%PDF-1.7\n", b"PK\3\4"]
    ),
    st.binary(max_size=300),
    st.integers(1, 70_000).map(lambda size: b"x" * size),
)
DISPOSITION: Final = st.one_of(
    NAME.map(lambda name: f'Content-Disposition: form-data; name="{name}"'.encode("utf-8", "replace")),
    NAME.map(lambda name: f'Content-Disposition: form-data; name="{name}"; filename="{name}.txt"').map(
        lambda text: text.encode("utf-8", "replace")
    ),
    st.sampled_from([b"Content-Disposition: form-data", b"Content-Disposition: attachment; filename*=utf-8''%FF",
                     b"X: y", b"Content-Disposition: ;;;===", b""]),
    st.binary(max_size=40),
)  # fmt: skip
HEADER: Final = st.sampled_from([
    b"Content-Type: text/plain; charset=none", b"Content-Type: multipart/mixed; boundary=i", b"Content-Type: /",
    b"Content-Transfer-Encoding: base64", b"Content-Transfer-Encoding: x", b"Content-Encoding: gzip",
    b"Content-Encoding: br", b"Content-Length: 5", b"Content-Length: -1", b"A" * 9_000, b"no colon",
])  # fmt: skip


def part_of(drawn: tuple[bytes, list[bytes], bytes]) -> bytes:
    head, more, content = drawn
    return b"\r\n".join([b"--" + BOUNDARY, head, *more, b"", content, b""])


PART: Final = st.tuples(DISPOSITION, st.lists(HEADER, max_size=2), CONTENT).map(part_of)
GOOD: Final = part_of((b'Content-Disposition: form-data; name="file"; filename="a.txt"', [], b"A text."))
END: Final = st.sampled_from(
    [b"--" + BOUNDARY + b"--\r\n", b"--" + BOUNDARY + b"--", b"", b"--" + BOUNDARY, b"\r\n--x--\r\n"]
)
BODY: Final = st.tuples(
    st.lists(PART | st.just(GOOD) | st.binary(max_size=30), max_size=4), END, st.integers(0, 1_000_000)
).map(lambda drawn: b"".join(drawn[0]) + drawn[1])
CUT: Final = st.tuples(BODY, st.integers(0, 100)).map(lambda drawn: drawn[0][: len(drawn[0]) * drawn[1] // 100])
TYPE: Final = st.sampled_from([
    "multipart/form-data; boundary=" + BOUNDARY.decode(), 'multipart/form-data; boundary="' + BOUNDARY.decode() + '"',
    "multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=" + "b" * 80,
    "multipart/form-data; boundary=\xe9", "multipart/mixed; boundary=" + BOUNDARY.decode(),
])  # fmt: skip


@pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisDeprecationWarning")
async def test_any_upload_is_stored_or_refused_and_nothing_is_left(edge: Stack) -> None:
    """Given parts of any form, cut anywhere, then the upload is 202 or refused with a problem that is no defect of
    ours; files are kept of those that were taken, and of no other."""
    usual = "multipart/form-data; boundary=" + BOUNDARY.decode()
    seen: dict[int, int] = {}

    async def check(drawn: tuple[bytes, str]) -> None:
        body, kind = drawn
        headers = {"Authorization": f"Bearer {ADMIN_KEY}", "Content-Type": kind}
        async with (
            asyncio.timeout(ANSWER_S),
            edge.session.post(f"{edge.base}/api/documents", data=body, headers=headers) as answer,
        ):
            told = await answer.json(content_type=None)
        seen[answer.status] = seen.get(answer.status, 0) + 1
        assert answer.status in (202, 400, 413, 415, 422), (told, body, kind)
        assert ("documentId" in told) == (answer.status == 202)

    await for_each(st.tuples(BODY | CUT | st.just(GOOD + b"--" + BOUNDARY + b"--\r\n"), st.just(usual) | TYPE), check)
    assert seen.get(202, 0) >= 3, seen
    assert seen.get(400, 0) >= 3, seen
    assert seen.get(422, 0) >= 3, seen
    files = [path for path in (edge.settings.data_dir / "blobs").rglob("*") if path.is_file()]
    assert len(files) == seen[202], files
    assert (await edge.call("GET", "/healthz")).status == 200


async def test_a_client_that_goes_in_the_middle_of_an_upload_leaves_nothing(edge: Stack) -> None:
    """Given clients that hang up at any byte of an upload, then no file is left of it."""
    body = GOOD + b"--" + BOUNDARY + b"--\r\n"
    host, port = edge.base.removeprefix("http://").split(":")
    head = (
        f"POST /api/documents HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {ADMIN_KEY}\r\n"
        f"Content-Type: multipart/form-data; boundary={BOUNDARY.decode()}\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()

    async def check(sent: int) -> None:
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(head + body[:sent])
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    await for_each(st.integers(0, len(body) - 30), check)
    async with asyncio.timeout(ANSWER_S):
        while files := [path for path in (edge.settings.data_dir / "blobs").rglob("*") if path.is_file()]:
            await asyncio.sleep(0.02)
    assert files == []
    async with edge.session.get(f"{edge.base}/healthz", timeout=aiohttp.ClientTimeout(5)) as answer:
        assert answer.status == 200
