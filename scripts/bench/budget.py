"""One budget under many streams: how far it is overrun, and how much of it ends in whole answers.

    ./scripts/run python -m scripts.bench.budget [--apis 2] [--streams 100] [--share 0.5] [--tokens 300]
        [--tokens-per-chunk 8] [--model gpt-4o-mini]

Every API process has so many chats open at once, all of one tenant, until its hard limit ends them. Answers have random
lengths (log-normal, median `--tokens`); together they wish for more than the budget has. `cold` is a tenant whose calls
were never seen; `warm` has answered some. Beside it the same with holds of the worst case (`maxTokens` of 4 times the
median on each request), as a known gateway does. The upstream counts what it sent, also to closed connections and token
by token also where it joins several to a chunk; by a name of OpenAI's its tokens are that vocabulary's, else words.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import ExitStack
from typing import Any

import aiohttp
from aiohttp import web

from scripts.bench.common import durable_redis, fsync_probe, running
from scripts.bench.stream import until_ready
from scripts.dev_model.answer import input_tokens_of
from scripts.dev_model.tokens import pieces_of
from scripts.probes import free_port
from shared.ids import new_api_key

INPUT_TOKENS = 14  # of a question, about
TEXT = "The harbour opens at nine and the ferry leaves at ten, but the lighthouse is closed on all of the other days. "
INTERVAL_S = 0.005


async def upstream(port: int, median: int, per_chunk: int, seed: int) -> None:
    """A model that answers at random length, `per_chunk` tokens at a time, and counts what it sent."""
    chance, sent = random.Random(seed), Counter[str]()  # noqa: S311 - a repeatable load

    async def complete(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        length = min(max(8, round(chance.lognormvariate(0, 0.5) * median)), body.get("max_tokens") or 10**9)
        given, pieces = input_tokens_of(body), pieces_of(body["model"], TEXT * 40)
        sent["calls"] += 1
        sent["input"] += given
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        frame: dict[str, Any] = {"id": "x", "object": "chat.completion.chunk", "model": body["model"]}
        for made in range(0, length, per_chunk):
            if request.transport is None or request.transport.is_closing():
                return response
            chunk = [pieces[number % len(pieces)] for number in range(made, min(made + per_chunk, length))]
            delta = web.json_response({**frame, "choices": [{"index": 0, "delta": {"content": "".join(chunk)}}]}).body
            await response.write(b"data: " + bytes(delta) + b"\n\n")  # type: ignore[arg-type]
            sent["output"] += len(chunk)
            await asyncio.sleep(INTERVAL_S * len(chunk))
        usage = {"prompt_tokens": given, "completion_tokens": length, "total_tokens": length + given}
        last = web.json_response({**frame, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}).body
        final = web.json_response({**frame, "choices": [], "usage": usage}).body
        await response.write(b"data: " + bytes(last) + b"\n\ndata: " + bytes(final) + b"\n\ndata: [DONE]\n\n")  # type: ignore[arg-type]
        sent["whole"] += length + given
        return response

    async def count(_: web.Request) -> web.Response:
        return web.json_response(dict(sent))

    app = web.Application()
    app.router.add_post("/v1/chat/completions", complete)
    app.router.add_get("/count", count)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=1024).start()
    await asyncio.Event().wait()


async def crowd(urls: list[str], key: str, streams: int, extra: dict[str, Any], most: int) -> Counter[str]:
    """`streams` clients at each API, one chat after another until the budget is spent; how they ended."""
    ended: Counter[str] = Counter()
    left = iter(range(most))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def client(url: str) -> None:
            for number in left:
                body = {"messages": [{"role": "user", "content": f"Tell me about harbour {number}."}], **extra}
                async with session.post(
                    f"{url}/api/chat/stream", json=body, headers={"Authorization": f"Bearer {key}"}
                ) as response:
                    text = (await response.read()).decode()
                    if response.status == 402:
                        ended["refused"] += 1
                        return
                    if response.status != 200:
                        ended[f"status {response.status}"] += 1
                        continue
                    if "event: error" in text:
                        ended["cut"] += 1
                        if "budget_exhausted" not in text:
                            ended["cut for another reason"] += 1
                        return
                    ended["whole"] += 1

        await asyncio.gather(*(client(url) for url in urls for _ in range(streams)))
    return ended


async def call(url: str, key: str, method: str, path: str, body: Any = None) -> Any:
    """One request to the API."""
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, url + path, json=body, headers={"Authorization": f"Bearer {key}"}) as response,
    ):
        assert response.status < 300, await response.text()
        return await response.json()


async def round_of(
    name: str, urls: list[str], admin: str, model: str, arguments: argparse.Namespace, extra: dict[str, Any], warm: int
) -> None:
    """One tenant, its crowd, and what became of its budget."""
    streams = arguments.streams
    demand = len(urls) * streams * (arguments.tokens * 1.13 + INPUT_TOKENS)
    budget = round(demand * arguments.share)
    tenant = (await call(urls[0], admin, "POST", "/api/admin/tenants", {"name": name}))["tenantId"]
    path = f"/api/admin/tenants/{tenant}"
    key = (await call(urls[0], admin, "POST", f"{path}/keys", {}))["key"]
    if warm:
        await crowd(urls[:1], key, warm, {}, warm)
    async with aiohttp.ClientSession() as session:
        before = Counter(await (await session.get(f"{model}/count")).json())
        used = (await call(urls[0], key, "GET", "/api/usage?groupBy="))["data"]
        spent = used[0]["totalTokens"] if used else 0
        limits = {"limits": {"budgets": [{"period": "total", "hardTokens": budget + spent}]}}
        await call(urls[0], admin, "PATCH", path, limits)
        ended = await crowd(urls, key, streams, extra, 10**6)
        for _ in range(50):
            (row,) = (await call(urls[0], key, "GET", "/api/usage?groupBy="))["data"]
            after = Counter(await (await session.get(f"{model}/count")).json())
            if row["totalTokens"] - spent == after["input"] + after["output"] - before["input"] - before["output"]:
                break
            await asyncio.sleep(0.1)
    sent = after["input"] + after["output"] - before["input"] - before["output"]
    booked = row["totalTokens"] - spent
    whole = after["whole"] - before["whole"]
    open_streams = len(urls) * streams
    print(
        f"{name:<12} budget {budget:>7,}  booked {booked:>7,} (over by {max(0, booked - budget):>3}, bound "
        f"{arguments.tokens_per_chunk} for each of {open_streams} open streams)  "
        f"model sent {sent:>7,} (differs by {sent - booked:+d})  "
        f"in whole answers {whole / budget:6.1%}   {dict(ended)}"
    )


async def run(arguments: argparse.Namespace, urls: list[str], admin: str, model: str) -> None:
    """All rounds."""
    worst = {"maxTokens": arguments.tokens * 4}
    for number in range(arguments.rounds):
        await round_of(f"cold {number + 1}", urls, admin, model, arguments, {}, 0)
        await round_of(f"warm {number + 1}", urls, admin, model, arguments, {}, 20)
        await round_of(f"bounded {number + 1}", urls, admin, model, arguments, worst, 20)


def main() -> int:
    """The command. Returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m scripts.bench.budget", description=__doc__.partition("\n")[0])
    parser.add_argument("--apis", type=int, default=2, help="API processes (default %(default)s)")
    parser.add_argument("--streams", type=int, default=100, help="at once at each (default %(default)s)")
    parser.add_argument("--share", type=float, default=0.5, help="of one answer for each that the budget has")
    parser.add_argument("--tokens", type=int, default=300, help="median of an answer (default %(default)s)")
    parser.add_argument("--tokens-per-chunk", type=int, default=1, help="that the model joins (default %(default)s)")
    parser.add_argument("--model", default="bench", help="its name: tells the vocabulary (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="of each (default %(default)s)")
    parser.add_argument("--upstream", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.upstream:
        import uvloop

        uvloop.run(upstream(arguments.upstream, arguments.tokens, arguments.tokens_per_chunk, 1))
        return 0
    _, key = new_api_key(1_700_000_000_000)
    with ExitStack() as stack:
        url = stack.enter_context(durable_redis())
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        port = free_port("127.0.0.1")
        model = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "scripts.bench.budget", "--upstream", str(port)]
        command += ["--tokens", str(arguments.tokens), "--tokens-per-chunk", str(arguments.tokens_per_chunk)]
        made = subprocess.Popen(command)
        stack.callback(made.wait, 20)
        stack.callback(made.terminate)
        ours = {
            **os.environ, "REDIS_URL": url, "ERRAND_DATA_DIR": folder, "ERRAND_ADMIN_KEY": key,
            "OPENAI_BASE_URL": f"{model}/v1", "OPENAI_API_KEY": "none", "ERRAND_WORKER_SLOTS": "128",
            "ERRAND_DEFAULT_MODEL": arguments.model,
        }  # fmt: skip
        urls = []
        for _ in range(arguments.apis):
            api_port = free_port("127.0.0.1")
            stack.enter_context(running(["api"], {**ours, "PORT": str(api_port)}))
            stack.enter_context(running(["worker", "interactive"], ours))
            urls.append(f"http://127.0.0.1:{api_port}")
        for address, path in [(model, "/count"), *((one, "/healthz") for one in urls)]:
            asyncio.run(until_ready(address, path))
        print(f"{arguments.apis} API and worker processes, {arguments.streams} streams at once at each")
        asyncio.run(run(arguments, urls, key, model))
    print("goal: never over by more than one chunk per open stream; at least 75 % in whole answers")
    print(f"  {fsync_probe()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
