"""No prompt, output or key in any log line, metric, span or command line: words of chance are put in every place where
one can stand (tests/canary_places.py), in a stack of real processes with everything switched on, log level debug and
spans to a real collector; then none of them is found in what came out."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.canary_places import PLACES, Ground
from tests.conftest import DevModel, RedisServer, Stack, settings_for
from tests.otlp_collector import Collector
from tests.parrot import Parrot

pytestmark = pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="command lines are read from /proc")

MARK = "cnry"
SERVERS_OWN = ("admin key", "OPENAI_API_KEY", "key of the re-ranker", "metrics token", "password of an MCP server")


def new_word() -> str:
    """A word of chance that no splitting, cutting or change of case hides."""
    return MARK + secrets.token_hex(10)


class Output:
    """All that came out, by where: text in lower case."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.lines: list[dict[str, Any]] = []
        self.collector = Collector()
        self.commands: set[str] = set()

    def places_of(self, word: str) -> list[str]:
        """Where the word stands, cut short (12 characters are enough) or as base64, with what is around it."""
        forms = [word[:12].lower(), *(form.lower() for form in _base64_of(word))]
        found = []
        for where, text in self.texts.items():
            for form in forms:
                if (at := text.find(form)) >= 0:
                    found.append(f"{where}: …{text[max(0, at - 150) : at + 60]}…")
        return found


def _base64_of(word: str) -> Iterator[str]:
    """What of the word's base64 is the same whatever stands before and after it."""
    for shift in range(3):
        yield base64.b64encode(b"x" * shift + word.encode()).decode().rstrip("=")[2 if shift else 0 :][2:-2]


def commands_below(pid: int) -> Iterator[str]:
    """The command lines of a process and its descendants."""
    for entry in [pid, *_descendants(pid)]:
        try:
            yield Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue  # it has ended


def _descendants(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(child) for child in task.read_text().split()]
        except OSError:
            continue
        for child in children:
            yield child
            yield from _descendants(child)


async def scrape(stack: Stack, port: int) -> str:
    async with stack.session.get(f"http://127.0.0.1:{port}/metrics") as answer:
        assert answer.status == 200
        return await answer.text()


class Run:
    """The run that all tests look at."""

    def __init__(self, words: dict[str, str], failures: dict[str, BaseException], output: Output) -> None:
        self.words = words
        self.failures = failures
        self.output = output


@pytest.fixture(scope="module")
async def run(redis_server: RedisServer, model_server: DevModel, tmp_path_factory: Any) -> AsyncIterator[Run]:
    """Goes to all places; then the processes are stopped, so that all of their output is there."""
    words = {name: new_word() for name in (*PLACES, *SERVERS_OWN)}
    output, parrot = Output(), Parrot(model_server.base)
    await model_server.reset()
    await parrot.start()
    await output.collector.start()
    folder = tmp_path_factory.mktemp("canary")
    admin_key = f"ek_01M81SGW152PHX78GHNCJWQHRS_{words['admin key']}{'a' * 19}"
    noisy = {"command": sys.executable, "args": [str(Path(__file__).with_name("noisy_mcp_server.py"))],
             "env": {"PASSWORD": words["password of an MCP server"]}}  # fmt: skip
    settings = settings_for(
        redis_server.url, model_server, folder,
        openai_base_url=f"{parrot.base}/v1", openai_api_key=f"sk-{words['OPENAI_API_KEY']}", admin_key=admin_key,
        metrics_token=words["metrics token"], embedding_model="errand-dev-embedding", log_level="debug",
        log_format="json", traces="otlp", fetch_enabled=True, mcp_servers=json.dumps({"noisy": noisy}),
        fetch_private_hosts=f"127.0.0.1:{parrot.base.rpartition(':')[2]}", rerank="http", rerank_shape="vllm",
        rerank_url=f"{parrot.base}/v1/rerank", rerank_api_key=words["key of the re-ranker"], rerank_seconds=5.0,
        model_breaker_failures=3, model_breaker_seconds=0.1, retry_max_seconds=0.2,
    )  # fmt: skip
    stack = Stack(settings, redis_server.url)
    patch = pytest.MonkeyPatch()
    patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", output.collector.base)
    watching: asyncio.Task[None] | None = None
    try:
        stack.base = await stack.spawn_api()
        for lane in ("interactive", "batch"):
            stack._spawn("tests.canary_worker", lane)
        members = list(stack._members)
        async with asyncio.timeout(30):
            while any("metrics.serving" not in member.log.read_text() for member in members[1:]):
                await asyncio.sleep(0.05)

        async def watch() -> None:
            while True:
                for member in members:
                    output.commands.update(commands_below(member.process.pid))
                await asyncio.sleep(0.01)

        watching = asyncio.create_task(watch())
        ground = Ground(stack, parrot, admin_key)
        failures: dict[str, BaseException] = {}
        for name, way in PLACES.items():
            try:
                async with asyncio.timeout(60):
                    await way(ground, words[name])
            except Exception as error:
                failures[name] = error
        words.update(ground.made)
        assert all(member.process.poll() is None for member in members), "a process has ended"
        ports = [int(re.findall(r'"address":"[^"]*:(\d+)"', member.log.read_text())[0]) for member in members[1:]]
        for name, port in [
            ("API", int(stack.base.rpartition(":")[2])),
            *zip(("interactive", "batch"), ports, strict=True),
        ]:
            output.texts[f"metrics of {name}"] = (await scrape(stack, port)).lower()
        for member in members:
            member.process.send_signal(signal.SIGTERM)
        for member in members:
            await asyncio.to_thread(member.process.wait, 20)
            log = member.log.read_text()
            output.texts[f"log {member.log.name}"] = log.lower()
            output.lines += [json.loads(line) for line in log.splitlines() if line.startswith("{")]
        output.texts["spans"] = "\n".join(body.decode("latin-1") for body in output.collector.bodies).lower()
        output.texts["spans, decoded"] = "\n".join(map(repr, output.collector.spans)).lower()
        output.texts["command lines"] = "\n".join(output.commands).lower()
        yield Run(words, failures, output)
    finally:
        patch.undo()
        if watching is not None:
            watching.cancel()
        await stack.stop()
        await output.collector.stop()
        await parrot.stop()


@pytest.mark.parametrize("name", [*PLACES, *SERVERS_OWN])
async def test_what_stands_here_comes_out_nowhere(run: Run, name: str) -> None:
    """Given a word in this place, when all was done with it that can be done, then it is in no log, metric, span or
    command line."""
    if name in run.failures:
        raise AssertionError(f"the place was not reached: {run.failures[name]!r}") from run.failures[name]
    found = run.output.places_of(run.words[name])
    assert not found, "\n".join(found)


async def test_what_the_server_made_comes_out_nowhere(run: Run) -> None:
    """Keys and tickets that the server made stand nowhere; nor does any other word of ours."""
    made = [name for name in run.words if name not in PLACES and name not in SERVERS_OWN]
    assert len(made) >= 3, "no key was made"
    for name in made:
        assert not run.output.places_of(run.words[name]), name
    for where, text in run.output.texts.items():
        assert not re.search(MARK + "[0-9a-f]{4}", text), where


async def test_all_of_it_was_looked_at(run: Run) -> None:
    """The outputs are there and tell of the work, so that silence means something."""
    events = {line["event"] for line in run.output.lines}
    assert {"request.finished", "attempt.settled", "attempt.crashed", "library.logged", "request.unreadable",
            "thread.crashed", "exception.ignored", "thing.held", "breaker.opened", "mcp.connected",
            "search.rerank_failed", "worker.stopped", "api.stopped"} <= events, events  # fmt: skip
    settled = {(line["type"], line["outcome"]) for line in run.output.lines if line["event"] == "attempt.settled"}
    kinds = {"chat", "agent", "document-analysis", "batch-embedding", "ingest", "search", "tenant-erasure"}
    assert kinds <= {kind for kind, _ in settled}, settled
    assert {"complete", "failed", "cancelled", "retry", "input"} <= {outcome for _, outcome in settled}, settled
    spans = {(span.kind, span.name.partition(" ")[0]) for span in run.output.collector.spans}
    assert {("server", "POST"), ("producer", "send"), ("consumer", "process"), ("client", "chat"),
            ("client", "embeddings"), ("internal", "execute_tool"), ("internal", "search.retrieve"),
            ("internal", "search.rerank")} <= spans, spans  # fmt: skip
    assert all(not span.message and not span.events for span in run.output.collector.spans)
    assert any("http.response.status_code" in span.attributes for span in run.output.collector.spans)
    assert "gen_ai_client_token_usage" in run.output.texts["metrics of interactive"]
    assert "errand_trace_spans_total" in run.output.texts["metrics of API"]
    assert any("noisy_mcp_server" in command for command in run.output.commands), "children were not seen"
    assert any("extract" in command for command in run.output.commands), run.output.commands
