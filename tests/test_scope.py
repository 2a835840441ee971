"""Log lines say for which request or attempt they were written, also deep down; nothing passes from one to another."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import sys
import threading
import warnings
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import structlog

from shared import log as log_module
from shared import tracing
from shared.errors import InvalidInput
from shared.scope import Scope, apart, entered, note, origin, outgoing
from shared.settings import Settings
from shared.stores.tenants import DEFAULT_TENANT
from shared.trace_context import TraceContext
from tests.conftest import ADMIN_KEY, DevModel, Stack, chat
from tests.parrot import Parrot
from worker.context import JobContext
from worker.tasks import HANDLERS
from worker.tasks.chat import ChatResult

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE_ID = PARENT[3:35]
HEADERS = {"traceparent": PARENT, "tracestate": "a=1"}


class Lines:
    """What is logged, as a log file has it."""

    def __init__(self) -> None:
        self.stream = io.StringIO()

    def __call__(self, event: str) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self.stream.getvalue().splitlines()]
        return [line for line in found if line["event"] == event]


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lines]:
    """The real set-up of logs, with another stream; the suite's own is put back."""
    made = Lines()
    before = structlog.get_config()
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    for name in ("excepthook", "unraisablehook"):
        monkeypatch.setattr(sys, name, getattr(sys, name))
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setattr(sys, "stderr", made.stream)
    log_module.configure("json", "debug", "test")
    # Loggers that were made before keep what they were bound to.
    structlog.configure(cache_logger_on_first_use=False)
    yield made
    logging.captureWarnings(False)
    structlog.configure(**before)
    root.handlers, root.level = handlers, level


def deep_down(what: str) -> None:
    """Code that knows nothing of jobs."""
    structlog.get_logger().info("helper.spoke", what=what)
    logging.getLogger("redis.somewhere").warning("library for %s", what)


async def speaking(spec: Any, context: JobContext) -> ChatResult:
    """Logs in its own code, in a task, in a thread, in a callback; with others at the same time."""
    text = str(spec.messages[0].content)
    for _ in range(3):
        deep_down(text)
        await asyncio.sleep(0)
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.to_thread(deep_down, text))
        asyncio.get_running_loop().call_soon(deep_down, text)
        context.report.text(text)
        await asyncio.sleep(0.001)
    return await HANDLERS["chat"](spec, context)  # type: ignore[no-any-return]


async def test_every_line_of_an_attempt_names_it(make_stack: Any, lines: Lines) -> None:
    """Given 20 jobs at a time whose code logs deep down, in tasks and threads, also by libraries, then each line names
    the job, tenant, attempt and the request that made it, and none those of another."""
    stack: Stack = await make_stack()
    await stack.start_worker("interactive", handlers={**HANDLERS, "chat": speaking})

    async def one(number: int) -> tuple[str, str]:
        headers = {**HEADERS, "X-Request-Id": f"request-{number}"}
        job_id = await stack.submit(chat(f"word-{number}"), headers=headers)
        assert (await stack.finished(job_id))["status"] == "complete"
        return f"word-{number}", job_id

    jobs = dict(await asyncio.gather(*(one(number) for number in range(20))))
    spoken = lines("helper.spoke")
    assert len(spoken) == 20 * 9
    for line in spoken:
        number = line["what"].removeprefix("word-")
        assert (line["job"], line["request_id"], line["attempt"]) == (jobs[line["what"]], f"request-{number}", 1)
        assert (line["trace_id"], line["tenant"], line["process"]) == (TRACE_ID, DEFAULT_TENANT, "test")
    for line in lines("library.logged"):
        assert line["job"] == jobs[line["message"].removeprefix("library for ")]
    settled = {line["job"]: line for line in lines("attempt.settled")}
    assert set(settled) == set(jobs.values())
    for word, job_id in jobs.items():
        assert settled[job_id]["request_id"] == f"request-{word.removeprefix('word-')}"
        assert settled[job_id]["trace_id"] == TRACE_ID
        assert settled[job_id]["traceparent"] == PARENT


async def test_what_works_for_all_attempts_is_in_none(make_stack: Any, lines: Lines) -> None:
    """Given events and settlements that cannot be written, then the worker's writers, which came to life in the first
    attempt, do not name it: they work for all."""
    stack: Stack = await make_stack()

    async def breaks_off(_: Any, context: JobContext) -> None:
        context.report.text("a beginning")  # still to be written when the task has ended
        raise InvalidInput("no")

    engine = await stack.start_worker("interactive", handlers={**HANDLERS, "chat": breaks_off})
    append, settle = engine._scribe._store.append, engine._settler._jobs.settle
    times = {"append": 0, "settle": 0}

    async def broken(*arguments: Any, **options: Any) -> Any:
        times["append"] += 1
        if times["append"] == 1:
            raise ValueError("a defect")
        return await append(*arguments, **options)

    async def broken_settle(*arguments: Any, **options: Any) -> Any:
        times["settle"] += 1
        if times["settle"] == 1:
            raise ValueError("a defect")
        return await settle(*arguments, **options)

    engine._scribe._store.append = broken  # type: ignore[method-assign]
    engine._settler._jobs.settle = broken_settle  # type: ignore[method-assign]
    job_id = await stack.submit(chat("one two three"))
    async with asyncio.timeout(10):
        while not (lines("events.failed") and lines("settle.failed")):
            await asyncio.sleep(0.01)
    for event in ("events.failed", "settle.failed"):
        for line in lines(event):
            assert "job" not in line, line
            assert "request_id" not in line, line
    assert [line["job"] for line in lines("lease.lost")] == [job_id]


async def test_requests_of_one_connection_have_nothing_in_common(make_stack: Any, lines: Lines) -> None:
    """Given requests one after another on one connection, then each line has its own request id, trace and tenant."""
    stack: Stack = await make_stack()
    await stack.call("GET", "/api/jobs", headers={**HEADERS, "X-Request-Id": "first"})
    await stack.call("GET", "/api/jobs", key=None, headers={"X-Request-Id": "second"})
    await stack.call("GET", "/api/jobs", headers={"X-Request-Id": "sk-0123456789"})
    await stack.call("GET", "/api/jobs", headers={"X-Request-Id": "task-week_5"})
    one, two, three, four = lines("request.finished")
    host, port = stack.base.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"GET /api/jobs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ADMIN_KEY}\r\n\r\n"
    writer.write(head.encode())
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"nonsense\r\n\r\n")
    async with asyncio.timeout(5):
        await reader.read()
    writer.close()
    (unreadable,) = lines("request.unreadable")
    assert "tenant" not in unreadable, "of the request before"
    assert four["request_id"] == "task-week_5"
    assert (one["request_id"], one["trace_id"], one["tenant"]) == ("first", TRACE_ID, DEFAULT_TENANT)
    assert (two["request_id"], two.get("trace_id"), two["tenant"]) == ("second", None, None)
    assert three["request_id"].startswith("req_"), "a key in the wrong header is not shown"


async def test_a_scope_ends_where_it_ends() -> None:
    """Tasks take it along; what is made apart does not; a note is seen by all that share it."""
    seen: list[Any] = []

    async def look(name: str) -> None:
        seen.append((name, origin(), outgoing()))

    loop = asyncio.get_running_loop()
    with entered(Scope({"request_id": "r"}, TraceContext(PARENT, "a=1"))):
        inside, outside = loop.create_task(look("in")), loop.create_task(look("apart"), context=apart())
        note(tenant="t")
    await asyncio.wait([inside, outside])
    await look("after")
    assert seen == [
        ("in", {"request": "r", **HEADERS}, HEADERS),
        ("apart", {}, {}),
        ("after", {}, {}),
    ]


@pytest.mark.parametrize(
    ("name", "message", "arguments", "shown"),
    [
        ("redis.client", "reconnects to %s", ("host",), "reconnects to host"),
        ("some.library", "cannot read %r", ("a prompt",), "cannot read %r"),
        ("some.library", "cannot read: a prompt", (), "cannot read"),
        ("some.library", 'cannot read "a prompt"', (), "cannot read "),
        ("asyncio", "Task exception was never retrieved\nfuture: <Task … a prompt>", (),
         "Task exception was never retrieved"),
        ("asyncio", "x" * 200, (), "x" * 80),
        ("py.warnings", "%s", ("/a/b.py:12: UserWarning: a prompt\n  warn(prompt)\n",), "/a/b.py:12: UserWarning"),
    ],
)  # fmt: skip
def test_libraries_are_heard_without_what_they_quote(
    name: str, message: str, arguments: tuple[Any, ...], shown: str
) -> None:
    record = logging.LogRecord(name, logging.WARNING, "file.py", 1, message, arguments, None)
    assert log_module.library_text(record) == shown


def test_a_warning_goes_to_the_log(lines: Lines) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("a prompt", UserWarning, stacklevel=1)
    (line,) = lines("library.logged")
    assert line["message"].endswith("UserWarning")
    assert "a prompt" not in lines.stream.getvalue()


# -- from the client to the model ------------------------------------------------------------------------------------


@pytest.fixture
async def parrot(model: DevModel) -> AsyncIterator[Parrot]:
    """The development model behind a server that notes the headers, and a re-ranker."""
    server = Parrot(model.base)
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def traced(make_stack: Any, parrot: Parrot) -> Stack:
    made: Stack = await make_stack(
        workers=("both",), openai_base_url=f"{parrot.base}/v1", embedding_model="errand-dev-embedding", rerank="http",
        rerank_shape="vllm", rerank_url=f"{parrot.base}/v1/rerank",
    )  # fmt: skip
    return made


def seen(parrot: Parrot) -> list[tuple[Any, Any]]:
    """The trace context of each request that was made to the model or re-ranker."""
    return [(headers.get("traceparent"), headers.get("tracestate")) for _, headers, _ in parrot.headers]


async def by_job(stack: Stack) -> None:
    await stack.finished(await stack.submit(chat(), headers=HEADERS))


async def by_chat(stack: Stack) -> None:
    body = {"messages": [{"role": "user", "content": "Hello"}]}
    assert (await stack.call("POST", "/api/chat", body, headers=HEADERS)).status == 200
    assert (await stack.call("POST", "/api/chat/stream", body, headers=HEADERS)).status == 200
    assert (await stack.call("GET", "/api/chat/stream?message=Hello", headers=HEADERS)).status == 200


async def by_embedding(stack: Stack) -> None:
    job = {"type": "batch-embedding", "input": {"texts": ["a", "b"]}}
    await stack.finished(await stack.submit(job, headers=HEADERS))


async def by_document(stack: Stack) -> None:
    body = {"text": "The ferry leaves at ten."}
    answer = await stack.call("POST", "/api/documents", body, headers=HEADERS)
    await stack.finished(answer.json["jobId"])


async def by_search(stack: Stack) -> None:
    await by_document(stack)
    body = {"q": "When does the ferry leave?", "minScore": 0.0, "rerank": True}
    assert (await stack.call("POST", "/api/search", body, headers=HEADERS)).status == 200


async def by_agent(stack: Stack) -> None:
    job = {"type": "agent", "input": {"goal": "What is 2 + 3?", "tools": ["calculate"]}}
    await stack.finished(await stack.submit(job, headers=HEADERS))


async def by_analysis(stack: Stack) -> None:
    text = "The ferry leaves at ten. " * 400
    tasks = [{"kind": "summary"}]
    job = {"type": "document-analysis", "input": {"document": {"text": text}, "tasks": tasks}}
    await stack.finished(await stack.submit(job, headers=HEADERS))


WAYS: dict[str, Any] = {
    "job": by_job, "chat": by_chat, "embedding": by_embedding, "document": by_document, "search": by_search,
    "agent": by_agent, "analysis": by_analysis,
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
async def test_a_trace_goes_on_to_the_model(traced: Stack, parrot: Parrot, way: str) -> None:
    """Given a client that traces and an installation that does not, then every request to a model and a re-ranker that
    comes of its request has its `traceparent` and `tracestate`, unchanged."""
    await WAYS[way](traced)
    assert parrot.headers, "the model was not asked"
    assert set(seen(parrot)) == {(PARENT, "a=1")}
    assert (way == "search") == any(path == "/v1/rerank" for path, _, _ in parrot.headers)


async def test_a_socket_carries_many_traces(traced: Stack, parrot: Parrot) -> None:
    """The socket's own headers hold, and a valid trace of a frame goes before them."""
    headers = {"Authorization": f"Bearer {ADMIN_KEY}", **HEADERS}
    other = PARENT.replace("b7ad", "c8be")
    async with traced.session.ws_connect(traced.base + "/api/ws", headers=headers) as socket:
        for more in ({}, {"traceparent": other, "tracestate": "b=2"}, {"traceparent": "nonsense"}):
            await socket.send_json({"op": "submit", "ref": 1, "job": chat(), **more})
            said = await socket.receive_json(timeout=10)
            await traced.finished(said["ok"]["jobId"])
    assert seen(parrot) == [(PARENT, "a=1"), (other, "b=2"), (PARENT, "a=1")]


async def test_no_trace_is_made_up(traced: Stack, parrot: Parrot) -> None:
    """Given a client that sends none, or one that is not valid, then none goes on."""
    await traced.finished(await traced.submit(chat()))
    await traced.finished(await traced.submit(chat(), headers={"traceparent": PARENT.upper(), "tracestate": "a=1"}))
    assert seen(parrot) == [(None, None), (None, None)]


@pytest.mark.parametrize("damaged", ["x", "ff" + PARENT[2:], "00-" + "0" * 32 + PARENT[35:], "é" * 300])
async def test_a_damaged_trace_ends_no_worker(traced: Stack, parrot: Parrot, damaged: str) -> None:
    """Given a job whose record holds nonsense for a trace, with spans on, then it runs, in a trace of its own."""
    job_id = await traced.submit(chat(delaySeconds=1))
    await traced.client.hset(traced.keys.job(job_id), mapping={"traceparent": damaged, "tracestate": "A"})  # type: ignore[misc]
    tracing.configure(Settings(traces="otlp"), "test")
    try:
        assert (await traced.finished(job_id))["status"] == "complete"
    finally:
        await asyncio.to_thread(tracing.close, 0.1)
    assert damaged not in str(seen(parrot))


async def test_a_retry_keeps_the_trace(traced: Stack, parrot: Parrot, model: DevModel, lines: Lines) -> None:
    """By itself, and by hand: the calls of later attempts have the headers of the request that made the job, and their
    lines its id."""
    await model.faults(*[{"kind": "status", "status": 500}] * 2)
    headers = {**HEADERS, "X-Request-Id": "the-first"}
    job_id = await traced.submit(chat(maxAttempts=2), headers=headers)
    assert (await traced.finished(job_id))["status"] == "failed"
    await traced.call("POST", f"/api/jobs/{job_id}/retry", headers={"X-Request-Id": "another"})
    assert (await traced.finished(job_id))["status"] == "complete"
    assert seen(parrot) == [(PARENT, "a=1")] * 3
    assert [line["request_id"] for line in lines("attempt.settled")] == ["the-first"] * 3
