"""Spans: which there are, how they hang together, and that nothing breaks, waits or grows when their collector does."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from shared import tracing
from shared.errors import ConfigurationError
from shared.metrics import REGISTRY
from shared.semconv import server_of
from shared.settings import Settings
from shared.tracing import plain_name
from tests.conftest import ADMIN_KEY, DevModel, Stack, chat
from tests.otlp_collector import Collector, Seen
from tests.parrot import Parrot
from tests.scripted_model import call

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
HEADERS = {"traceparent": PARENT, "tracestate": "a=1"}
TRACE_ID, PARENT_ID = PARENT[3:35], PARENT[36:52]
SAMPLED_NOT = PARENT[:-2] + "00"


@pytest.fixture
async def collector(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Collector]:
    made = Collector()
    await made.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", made.base)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    yield made
    await made.stop()


@pytest.fixture
def spans_on(collector: Collector) -> Iterator[None]:
    """As both processes switch them on; here they are one."""
    tracing.configure(Settings(traces="otlp"), "test-both")
    yield
    tracing.close(1.0)


@pytest.fixture
async def parrot(model: DevModel) -> AsyncIterator[Parrot]:
    server = Parrot(model.base)
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def traced(make_stack: Any, parrot: Parrot, spans_on: None) -> Stack:
    made: Stack = await make_stack(
        workers=("both",), openai_base_url=f"{parrot.base}/v1", embedding_model="errand-dev-embedding"
    )
    return made


def of_trace(collector: Collector, trace_id: str = TRACE_ID) -> dict[str, Seen]:
    return {span.name: span for span in collector.spans if span.trace_id == trace_id}


async def test_a_job_is_one_trace_from_the_client_to_the_model(
    traced: Stack, collector: Collector, parrot: Parrot
) -> None:
    """Client → request → job sent → attempt → model call, each below the one before; the model gets the last."""
    headers = {**HEADERS, "X-Request-Id": "my-request"}
    job_id = await traced.submit(chat("one two three"), headers=headers)
    assert (await traced.finished(job_id))["status"] == "complete"
    await collector.until(lambda span: span.trace_id == TRACE_ID, 4)
    spans = of_trace(collector)
    request, sent = spans["POST /api/jobs"], spans["send interactive"]
    attempt, asked = spans["process interactive"], spans["chat errand-dev-extractive"]
    assert [span.parent_id for span in (request, sent, attempt, asked)] == [
        PARENT_ID, request.span_id, sent.span_id, attempt.span_id
    ]  # fmt: skip
    assert [span.kind for span in (request, sent, attempt, asked)] == ["server", "producer", "consumer", "client"]
    assert all(span.state == "a=1" and span.status != 2 and not span.events for span in spans.values())
    assert parrot.headers[-1][1]["traceparent"] == f"00-{TRACE_ID}-{asked.span_id}-01"
    assert parrot.headers[-1][1]["tracestate"] == "a=1"
    port = int(parrot.base.rpartition(":")[2])
    usage = (await traced.call("GET", f"/api/jobs/{job_id}")).json["usage"]
    assert request.attributes == {
        "http.request.method": "POST", "http.route": "/api/jobs", "url.scheme": "http",
        "http.response.status_code": 202, "errand.request.id": "my-request",
        "errand.tenant": "ten_00000000000000000000000000",
    }  # fmt: skip
    assert sent.attributes["messaging.message.id"] == attempt.attributes["messaging.message.id"] == job_id
    assert sent.attributes["messaging.operation.type"] == "send"
    assert attempt.attributes["messaging.operation.type"] == "process"
    assert attempt.attributes["errand.job.outcome"] == "complete"
    assert attempt.attributes["errand.request.id"] == "my-request"
    assert asked.attributes == {
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "errand-dev-extractive", "gen_ai.response.model": "errand-dev-extractive",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": usage["inputTokens"], "gen_ai.usage.output_tokens": usage["outputTokens"],
        "server.address": "127.0.0.1", "server.port": port,
    }  # fmt: skip
    assert request.resource["service.name"] == "errand-test"
    assert attempt.start_ns < asked.start_ns < asked.end_ns < attempt.end_ns


async def test_tools_searches_and_embeddings_are_spans(traced: Stack, collector: Collector, parrot: Parrot) -> None:
    """Tools by their name, wrong calls as errors; a search's phases; embeddings without output tokens."""
    steps = iter([[call("calculate", {"expression": "1 + 1"}), call("calculate", {"expression": "1 +"})], "Two."])
    parrot.says_when("What is one and one", lambda _: next(steps))
    job = {"type": "agent", "input": {"goal": "What is one and one?", "tools": ["calculate"]}}
    await traced.finished(await traced.submit(job, headers=HEADERS))
    tools = await collector.until(lambda span: span.name == "execute_tool calculate", 2)
    (attempt,) = await collector.until(lambda span: span.name == "process batch")
    assert {span.parent_id for span in tools} == {attempt.span_id}
    assert sorted(span.attributes.get("error.type", "") for span in tools) == ["", "tool_failed"]
    added = await traced.call("POST", "/api/documents", {"text": "The ferry leaves at ten."}, headers=HEADERS)
    await traced.finished(added.json["jobId"])
    body = {"q": "When does the ferry leave?", "minScore": 0.0, "answer": False}
    assert (await traced.call("POST", "/api/search", body, headers=HEADERS)).status == 200
    (found,) = await collector.until(lambda span: span.name == "search.retrieve")
    (asked,) = await collector.until(lambda span: span.parent_id == found.span_id)
    assert asked.name == "embeddings errand-dev-embedding"
    assert asked.attributes["gen_ai.operation.name"] == "embeddings"
    assert asked.attributes["gen_ai.usage.input_tokens"] > 0
    assert "gen_ai.usage.output_tokens" not in asked.attributes


async def test_a_retry_is_a_trace_of_its_own_with_a_link(
    traced: Stack, collector: Collector, model: DevModel, parrot: Parrot
) -> None:
    """The failed first attempt is an error with its code; the second has another trace, linked to where the job was
    made, and so has its model call."""
    await model.faults({"kind": "status", "status": 500})
    job_id = await traced.submit(chat(maxAttempts=2), headers=HEADERS)
    assert (await traced.finished(job_id))["status"] == "complete"
    attempts = await collector.until(lambda span: span.name == "process interactive", 2)
    first, second = sorted(attempts, key=lambda span: span.attributes["errand.job.attempt"])
    (sent,) = [span for span in collector.spans if span.name == "send interactive"]
    assert (first.trace_id, first.parent_id, first.links) == (TRACE_ID, sent.span_id, [])
    assert (first.attributes["errand.job.outcome"], first.attributes["error.type"]) == ("retry", "upstream_unavailable")
    assert first.status == 2
    assert not first.message, "texts of errors stay out"
    assert second.trace_id != TRACE_ID
    assert (second.parent_id, second.links) == ("", [(TRACE_ID, sent.span_id)])
    assert parrot.headers[-1][1]["traceparent"].startswith(f"00-{second.trace_id}-")


async def test_a_stream_is_a_span_until_it_ends(traced: Stack, collector: Collector, model: DevModel) -> None:
    """Given a chat of half a second, then its request, attempt and call are as long; a client that goes in the middle
    is no error of ours."""
    await model.pace(tokensPerSecond=20)
    body = {"messages": [{"role": "user", "content": "one two three four five six seven eight nine ten"}]}
    await traced.call("POST", "/api/chat/stream", body, headers=HEADERS)
    await collector.until(lambda span: span.name == "POST /api/chat/stream")
    await collector.until(lambda span: span.name == "process interactive")
    spans = of_trace(collector)
    for name in ("POST /api/chat/stream", "process interactive", "chat errand-dev-extractive"):
        assert 0.4 < (spans[name].end_ns - spans[name].start_ns) / 1e9 < 5, name
    answer = await traced.session.post(
        traced.base + "/api/chat/stream", json=body, headers={"Authorization": f"Bearer {ADMIN_KEY}"}
    )
    answer.close()
    (left,) = await collector.until(lambda span: span.attributes.get("http.response.status_code") == 499)
    assert "error.type" not in left.attributes


async def test_requests_are_named_by_their_template(traced: Stack, collector: Collector) -> None:
    """No path, no query, no invented method; a refusal is no error of ours; health checks make no span."""
    await traced.call("GET", "/api/jobs/job_nothing?wait=0", headers=HEADERS)
    await traced.call("GET", "/nowhere/at-all?x=1", headers=HEADERS)
    await traced.call("GET", "/healthz", headers=HEADERS)
    await traced.call("GET", "/metrics", headers=HEADERS)
    await collector.until(lambda span: span.trace_id == TRACE_ID, 2)
    await traced.call("GET", "/api/usage", headers=HEADERS)
    await collector.until(lambda span: span.name == "GET /api/usage")
    spans = of_trace(collector)
    assert set(spans) == {"GET /api/jobs/{id}", "GET unknown", "GET /api/usage"}
    assert spans["GET /api/jobs/{id}"].attributes["http.response.status_code"] == 404
    assert "error.type" not in spans["GET /api/jobs/{id}"].attributes


async def test_a_client_that_does_not_sample_is_not_sampled(
    traced: Stack, collector: Collector, parrot: Parrot
) -> None:
    """By the default sampler: nothing is exported, and what goes on says so too."""
    job_id = await traced.submit(chat(), headers={"traceparent": SAMPLED_NOT})
    await traced.finished(job_id)
    assert parrot.headers[-1][1]["traceparent"].startswith(f"00-{TRACE_ID}-")
    assert parrot.headers[-1][1]["traceparent"].endswith("-00")
    job_id = await traced.submit(chat(), headers=HEADERS)
    await traced.finished(job_id)
    await collector.until(lambda span: span.name == "process interactive")
    assert len([span for span in collector.spans if span.name == "POST /api/jobs"]) == 1


async def test_a_collector_that_is_away_costs_nothing_but_spans(
    make_stack: Any, monkeypatch: pytest.MonkeyPatch, collector: Collector
) -> None:
    """Given a collector that takes connections and answers nothing, and a queue of 64 spans, when 100 jobs run, then
    they all end, the loop is not held up, the queue stays within its bound, and closing takes its two seconds."""
    collector.hangs = True
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "64")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "16")
    tracing.configure(Settings(traces="otlp"), "test-both")
    try:
        stack: Stack = await make_stack(workers=("both",))
        longest, running = 0.0, True

        async def tick() -> None:
            nonlocal longest
            while running:
                before = time.monotonic()
                await asyncio.sleep(0.01)
                longest = max(longest, time.monotonic() - before)

        ticking = asyncio.create_task(tick())
        jobs = [await stack.submit(chat("Hello")) for _ in range(100)]
        for job_id in jobs:
            assert (await stack.finished(job_id))["status"] == "complete"
        running = False
        await ticking
        assert collector.requests > 0
        assert longest < 1.0, "an export held the loop up"
        (processor,) = tracing._State.tracer._provider._active_span_processor._span_processors  # type: ignore[union-attr]
        assert len(processor._batch_processor._queue) <= 64
    finally:
        started = time.monotonic()
        await asyncio.to_thread(tracing.close, 2.0)
    assert time.monotonic() - started < 3


async def test_a_collector_that_comes_back_gets_the_next_spans(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a collector that refuses for a while, then what was lost is counted, what comes later arrives, and the log
    says when it began and ended, once each."""

    def count(outcome: str) -> float:
        return REGISTRY.get_sample_value("errand_trace_spans_total", {"outcome": outcome}) or 0.0

    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.2")
    with structlog.testing.capture_logs() as lines:
        tracing.configure(Settings(traces="otlp"), "api")
        try:
            collector.broken, lost, exported = True, count("lost"), count("exported")
            for number in (1, 2):
                with tracing.Span("early"):
                    pass
                async with asyncio.timeout(10):
                    while count("lost") < lost + number:
                        await asyncio.sleep(0.02)
            collector.broken = False
            for _ in range(2):
                with tracing.Span("late"):
                    pass
                await collector.until(lambda span: span.name == "late")
            async with asyncio.timeout(10):
                while count("exported") < exported + 2:
                    await asyncio.sleep(0.02)
        finally:
            await asyncio.to_thread(tracing.close, 2.0)
    assert {span.name for span in collector.spans} == {"late"}
    assert [line["event"] for line in lines] == ["traces.export_failed", "traces.export_resumed"]


@pytest.mark.parametrize("state", ["answers", "hangs", "away"])
async def test_a_process_that_stops_sends_its_last_spans(
    make_stack: Any, collector: Collector, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    """Given a delay of ten minutes between exports, when API and worker get SIGTERM, then their spans arrive before
    they end; when the collector hangs or is away, they end all the same, two seconds later at most."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "600000")
    stack: Stack = await make_stack(api=False, traces="otlp")
    worker = await stack.spawn_worker("interactive")
    stack.base = await stack.spawn_api()
    await stack.finished(await stack.submit(chat(), headers=HEADERS))
    collector.hangs = state == "hangs"
    if state == "away":
        await collector.stop()
    assert not collector.spans
    for member in (worker, stack._members[1]):
        started = time.monotonic()
        member.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(member.process.wait, 20) == 0, member.log.read_text()
        assert time.monotonic() - started < 4.5
    if state == "answers":
        names = {span.name for span in collector.spans}
        assert {"POST /api/jobs", "send interactive", "process interactive", "chat errand-dev-extractive"} <= names


# -- switching them on -----------------------------------------------------------------------------------------------


def start(module: str, **environment: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", module],
        env={**os.environ, "REDIS_URL": "unix:///nonexistent", **environment},
        cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    return done.returncode, done.stderr


@pytest.mark.parametrize("module", ["api", "worker"])
def test_without_the_extra_the_start_says_so(module: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['opentelemetry.sdk'] = None\n")
    code, said = start(module, ERRAND_TRACES="otlp", PYTHONPATH=str(tmp_path))
    assert code == 2
    assert "ERRAND_TRACES=otlp needs the extra `otel`" in said


@pytest.mark.parametrize(
    ("name", "value"),
    [("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"), ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "0")],
)
def test_a_bad_variable_stops_the_start(name: str, value: str) -> None:
    code, said = start("api", ERRAND_TRACES="otlp", **{name: value})
    assert code == 2, said
    assert "OTEL_" in said


def test_off_it_imports_nothing() -> None:
    """Neither process imports OpenTelemetry's SDK unless it is switched on, and only one file names it."""
    code = "import sys, api.__main__, worker.__main__; print('opentelemetry.sdk' in sys.modules)"
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    importing = [
        path.relative_to(root).as_posix()
        for part in ("api", "worker", "shared", "scripts")
        for path in (root / part).rglob("*.py")
        if "import opentelemetry" in (text := path.read_text()) or "from opentelemetry" in text
    ]
    assert importing == ["shared/otlp.py"]


def test_it_is_off_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    tracing.configure(Settings(), "api")
    assert not tracing.is_on()
    assert tracing.begin("x", "internal", {}, parent=None) is None
    with pytest.raises(ConfigurationError):
        Settings.load({"ERRAND_TRACES": "stdout"})


async def test_the_usual_variables_hold(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    """Service name, resource, headers of the exporter, sampler."""
    monkeypatch.setenv("OTEL_SERVICE_NAME", "our-errand")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    tracing.configure(Settings(traces="otlp"), "api")
    with tracing.Span("never"):
        pass
    await asyncio.to_thread(tracing.close, 2.0)
    monkeypatch.delenv("OTEL_TRACES_SAMPLER")
    tracing.configure(Settings(traces="otlp"), "api")
    with tracing.Span("once"):
        pass
    await asyncio.to_thread(tracing.close, 2.0)
    (span,) = collector.spans
    assert (span.name, span.resource["service.name"], span.resource["deployment.environment.name"]) == (
        "once", "our-errand", "test"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("url", "provider", "port"),
    [
        ("https://api.openai.com/v1", "openai", 443),
        ("https://me.openai.azure.com/openai/v1", "azure.ai.openai", 443),
        ("https://api.groq.com/openai/v1", "groq", 443),
        ("http://vllm:8000/v1", "openai", 8000),
        ("http://notgroq.com/v1", "openai", 80),
        ("http://user:password@api.mistral.ai/v1", "mistral_ai", 80),
    ],
)
def test_a_provider_is_known_by_its_host(url: str, provider: str, port: int) -> None:
    found = server_of(url)
    assert (found["gen_ai.provider.name"], found["server.port"]) == (provider, port)
    assert "password" not in str(found)


def test_what_is_no_name_is_not_shown() -> None:
    for name in ("gpt-4o-mini", "meta-llama/Llama-3.1-8B", "ft:gpt-4o:org::id", "qwen2.5:7b"):
        assert plain_name(name) == name
    for text in ("Tell me a story", "", "sk-123", "ek_123", "a\nb", "x" * 129, "«»"):
        assert plain_name(text) == "_OTHER"
