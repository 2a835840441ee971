"""Time to first token, CPU and throughput of streamed chats, beside a direct call and a bare relay in the same run.

    ./scripts/run python -m scripts.bench.stream [--streams 1 20 100] [--rounds 5]

All streams of a round begin at once. The upstream makes 50 tokens a second for each. `direct` calls it; `relay` is an
aiohttp server that copies bytes; `errand` is one API process and one interactive worker as `scripts/start` runs them
(authentication, queue, journal, events that resume, accounting, `appendfsync always`), called at `/api/chat/stream`.
Added times are medians over rounds of the difference to the direct call of the same round. CPU is that of all processes
between client and upstream, Redis included, per 1,000 tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import aiohttp

from scripts.bench.common import durable_redis, fsync_probe, jiffies, running
from scripts.probes import free_port
from shared.ids import new_api_key
from shared.redis import connect

RELAY = """
import os, uvloop, aiohttp
from aiohttp import web
async def main():
    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
    async def relay(request):
        body = await request.read()
        kind = {"Content-Type": "application/json"}
        async with session.post(os.environ["UPSTREAM"], data=body, headers=kind) as answer:
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            async for piece in answer.content.iter_any():
                await response.write(piece)
            await response.write_eof()
            return response
    app = web.Application()
    app.router.add_post("/v1/chat/completions", relay)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", int(os.environ["PORT"]), backlog=1024).start()
    import asyncio
    await asyncio.Event().wait()
uvloop.run(main())
"""
MESSAGES = [{"role": "user", "content": "Tell me about the harbour."}]


class Target:
    """Something to stream from. `mark` is what stands before each piece of text; `pids` whose CPU counts."""

    def __init__(self, name: str, url: str, mark: bytes, pids: list[int], headers: dict[str, str], body: Any) -> None:
        self.name, self.url, self.mark, self.pids, self.headers, self.body = name, url, mark, pids, headers, body
        self.first_ms: list[float] = []
        self.added_ms: list[float] = []
        self.rates: list[float] = []
        self.cpu_ms: list[float] = []


async def one_stream(session: aiohttp.ClientSession, target: dict[str, Any]) -> tuple[float, float, bool]:
    """(seconds to the first text, seconds to the end, whether it was whole)."""
    started = time.perf_counter()
    first, rest, mark = 0.0, b"", target["mark"].encode()
    async with session.post(target["url"], json=target["body"], headers=target["headers"]) as response:
        assert response.status == 200, await response.text()
        async for piece in response.content.iter_any():
            if not first:
                rest += piece
                if mark in rest:
                    first = time.perf_counter() - started
            rest = (rest + piece)[-64:] if first else rest
    return first, time.perf_counter() - started, b"[DONE]" in rest


async def load(target: dict[str, Any], streams: int) -> tuple[list[float], float]:
    """(seconds to first text of each stream, seconds until all were at their end)."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        started = time.perf_counter()
        found = await asyncio.gather(*(one_stream(session, target) for _ in range(streams)))
        took = time.perf_counter() - started
    assert all(whole for _, _, whole in found), "a stream was cut"
    return [first for first, _, _ in found], took


def round_of(target: Target, streams: int, tokens: int) -> float:
    """One round from a process of its own; notes what it found. Returns the median time to first text, ms."""
    before = jiffies(target.pids) if target.pids else 0.0
    described = {"url": target.url, "mark": target.mark.decode(), "headers": target.headers, "body": target.body}
    done = subprocess.run(
        [sys.executable, "-m", "scripts.bench.stream", "--load", str(streams)],
        input=json.dumps(described), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr)
    firsts, took = json.loads(done.stdout)
    target.first_ms += [first * 1000 for first in firsts]
    target.rates.append(streams * tokens / took)
    if target.pids:
        time.sleep(0.3)  # what is written after the end counts too
        target.cpu_ms.append((jiffies(target.pids) - before) * 1000 / (streams * tokens / 1000))
    return float(statistics.median(firsts)) * 1000


@contextmanager
def process(command: list[str], **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is stopped at the end."""
    started = subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL)
    try:
        yield started
    finally:
        started.terminate()
        started.wait(20)


async def until_ready(url: str, path: str) -> None:
    """Waits until a server answers with 200."""
    async with aiohttp.ClientSession() as session:
        while True:
            try:
                async with session.get(url + path) as response:
                    if response.status in (200, 404, 405):
                        return
            except aiohttp.ClientConnectionError:
                pass
            await asyncio.sleep(0.05)


def redis_pid(url: str) -> int:
    """The process of the benchmark's Redis."""

    async def ask() -> int:
        client = connect(url)
        try:
            return int((await client.info("server"))["process_id"])
        finally:
            await client.aclose()

    return asyncio.run(ask())


def main() -> int:
    """The command. Returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m scripts.bench.stream", description=__doc__.partition("\n")[0])
    parser.add_argument("--streams", type=int, nargs="*", default=[1, 20, 100], help="at a time (default 1 20 100)")
    parser.add_argument("--rounds", type=int, default=5, help="of each (default %(default)s)")
    parser.add_argument("--tokens", type=int, default=250, help="of an answer (default %(default)s)")
    parser.add_argument("--rate", type=float, default=50.0, help="tokens per second (default %(default)s)")
    parser.add_argument("--load", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.load:
        import uvloop

        print(json.dumps(uvloop.run(load(json.load(sys.stdin), arguments.load))))
        return 0
    _, key = new_api_key(1_700_000_000_000)
    with ExitStack() as stack:
        redis_url = stack.enter_context(durable_redis())
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        upstream_port, relay_port, api_port = (free_port("127.0.0.1") for _ in range(3))
        upstream = f"http://127.0.0.1:{upstream_port}/v1"
        stack.enter_context(
            process([sys.executable, "-m", "scripts.bench.upstream", str(upstream_port), str(arguments.tokens),
                     str(arguments.rate)])
        )  # fmt: skip
        relay_file = Path(folder) / "relay.py"
        relay_file.write_text(RELAY)
        relay = stack.enter_context(
            process([sys.executable, str(relay_file)], UPSTREAM=f"{upstream}/chat/completions", PORT=str(relay_port))
        )
        ours = {
            "REDIS_URL": redis_url, "ERRAND_DATA_DIR": folder, "ERRAND_ADMIN_KEY": key, "PORT": str(api_port),
            "OPENAI_BASE_URL": upstream, "OPENAI_API_KEY": "none", "ERRAND_WORKER_SLOTS": "128",
            "ERRAND_DEFAULT_MODEL": "bench",
        }  # fmt: skip
        api = stack.enter_context(running(["api"], ours))
        worker = stack.enter_context(running(["worker", "interactive"], ours))
        for url, path in (
            (upstream, "/"),
            (f"http://127.0.0.1:{relay_port}", "/"),
            (f"http://127.0.0.1:{api_port}", "/healthz"),
        ):
            asyncio.run(until_ready(url, path))
        completion = {"model": "bench", "messages": MESSAGES, "stream": True}
        content = b'"content": " token'

        def targets() -> tuple[Target, ...]:
            return (
                Target("direct call", f"{upstream}/chat/completions", content, [], {}, completion),
                Target("bare aiohttp relay", f"http://127.0.0.1:{relay_port}/v1/chat/completions", content,
                       [relay.pid], {}, completion),
                Target("errand", f"http://127.0.0.1:{api_port}/api/chat/stream", b'{"text": ',
                       [api.pid, worker.pid, redis_pid(redis_url)], {"Authorization": f"Bearer {key}"},
                       {"messages": MESSAGES}),
            )  # fmt: skip

        for target in targets():
            round_of(target, 2, arguments.tokens)  # warm
        print(f"streams of {arguments.tokens} tokens at {arguments.rate:g}/s each, all begun at once; medians")
        for streams in arguments.streams:
            found = targets()
            for _ in range(arguments.rounds):
                direct_ms = round_of(found[0], streams, arguments.tokens)
                for target in found[1:]:
                    target.added_ms.append(round_of(target, streams, arguments.tokens) - direct_ms)
            print(f"{streams} at a time")
            direct_rate = statistics.median(found[0].rates)
            for target in found:
                added = f"+{statistics.median(target.added_ms):6.1f} ms" if target.added_ms else " " * 10
                rate = statistics.median(target.rates)
                cpu = f"{statistics.median(target.cpu_ms):6.1f} ms CPU per 1,000 tokens" if target.cpu_ms else ""
                print(
                    f"  {target.name:<20} first text {statistics.median(target.first_ms):7.1f} ms {added}   "
                    f"{rate:7.0f} tokens/s ({rate / direct_rate:.0%} of direct)   {cpu}"
                )
    print("goals at 1, 20, 100 streams: added <= 5, 10, 25 ms; at 100: >= 95 % of direct, <= 100 ms CPU")
    print(f"  {fsync_probe()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
