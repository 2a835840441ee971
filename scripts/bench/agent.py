"""What a step of an agent costs beside the model's own time: our job, and the smallest loops that do the same.

    ./scripts/run python -m scripts.bench.agent [--runs 9] [--steps 20] [--latency-ms 50]

A scripted upstream calls `calculate` with another expression at each step, and answers after the last. Overhead is the
wall time less the model's own time (from the last byte of a request to the last of its answer, measured there), by the
calls of the model. `errand` is an `agent` job by HTTP, from `job.started` to `job.complete`: every call of model and
tool journaled and fsynced before it begins and when it ends, every event written. `AsyncOpenAI loop` streams with the
SDK, calculates, and keeps nothing; `bare limit` is the same with aiohttp alone. Runs alternate; medians.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from typing import Any

import aiohttp
import msgspec
import openai

from scripts.bench.common import fsync_probe, jiffies, percentile
from scripts.bench.jobs import Stack, took_s, whole_stack
from scripts.bench.models import Limits
from worker.tools.calculate import calculate

GOAL = "Add up the berths of the harbour."
MODEL = "agent-bench"
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "calculate",
            "description": "Arithmetic.",
            "parameters": {"type": "object", "properties": {"expression": {"type": "string"}}},
        },
    }
]


async def ours(stack: Stack, steps: int) -> float:
    """Seconds of one job."""
    job = {"type": "agent", "model": MODEL,
           "input": {"goal": GOAL, "tools": ["calculate"], "maxSteps": steps + 5}}  # fmt: skip
    view = await stack.ended(await stack.submit(job))
    assert view["result"]["stopReason"] == "answered", view["result"]
    assert len(view["result"]["steps"]) == steps + 1, view["result"]
    return took_s(view)


async def with_sdk(client: openai.AsyncOpenAI) -> float:
    """Seconds of the loop that is usually written."""
    started = time.perf_counter()
    messages: Any = [{"role": "user", "content": GOAL}]
    while True:
        call_id, arguments = "", ""
        stream: Any = await client.chat.completions.create(model=MODEL, messages=messages, tools=TOOLS, stream=True)
        async for event in stream:
            for choice in event.choices:
                for call in choice.delta.tool_calls or ():
                    call_id, arguments = call.id or call_id, arguments + (call.function.arguments or "")
        if not call_id:
            return time.perf_counter() - started
        messages += turn(call_id, arguments)


async def bare(session: aiohttp.ClientSession, url: str) -> float:
    """Seconds of the same without the SDK."""
    started = time.perf_counter()
    messages: Any = [{"role": "user", "content": GOAL}]
    while True:
        call_id, arguments = "", ""
        body = msgspec.json.encode({"model": MODEL, "messages": messages, "tools": TOOLS, "stream": True})
        async with session.post(url, data=body, headers={"Content-Type": "application/json"}) as answer:
            async for line in answer.content:
                if not line.startswith(b"data: {"):
                    continue
                for choice in msgspec.json.decode(line[6:])["choices"]:
                    for call in choice["delta"].get("tool_calls", ()):
                        call_id = call.get("id", call_id)
                        arguments += call["function"]["arguments"]
        if not call_id:
            return time.perf_counter() - started
        messages += turn(call_id, arguments)


def turn(call_id: str, arguments: str) -> list[dict[str, Any]]:
    """A call and its result, as messages."""
    result = calculate(msgspec.json.decode(arguments)["expression"])
    call = {"id": call_id, "type": "function", "function": {"name": "calculate", "arguments": arguments}}
    return [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call_id, "content": result},
    ]


async def run(arguments: argparse.Namespace) -> None:
    """The table."""
    limits = Limits(arguments.latency_ms / 1000, steps=arguments.steps)
    calls = arguments.steps + 1
    found: dict[str, list[float]] = {}
    cpu: list[float] = []
    async with whole_stack() as (stack, _), aiohttp.ClientSession() as session:
        client = openai.AsyncOpenAI(api_key="none", base_url=f"{stack.upstream}/v1")
        for number in range(arguments.runs + 1):
            for name in ("bare limit", "AsyncOpenAI loop", "errand"):
                await stack.limits(limits)
                before = jiffies([stack.worker.pid])
                if name == "errand":
                    wall_s = await ours(stack, arguments.steps)
                elif name == "bare limit":
                    wall_s = await bare(session, f"{stack.upstream}/v1/chat/completions")
                else:
                    wall_s = await with_sdk(client)
                books = await stack.books()
                assert books["served"] == calls, books
                if not number:
                    continue  # warm
                over_s = wall_s - sum(seconds for _, seconds in books["calls"])
                found.setdefault(name, []).append(over_s * 1000 / calls)
                if name == "errand":
                    cpu.append((jiffies([stack.worker.pid]) - before) * 1000 / calls)
        await client.close()
    print(
        f"agent of {arguments.steps} steps and an answer, model {arguments.latency_ms:g} ms a call, "
        f"{arguments.runs} runs, appendfsync always: time a step beside the model's"
    )
    for name, times in found.items():
        more = f"   {statistics.median(cpu):.1f} ms CPU of the worker" if name == "errand" else ""
        print(f"  {name:<18} p50 {statistics.median(times):6.2f} ms   max {percentile(times, 1):6.2f} ms{more}")
    print(f"  goal: 10 ms a step\n  {fsync_probe()}")


def main() -> int:
    """The command. Returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m scripts.bench.agent", description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=9, help="of each (default %(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="that call a tool (default %(default)s)")
    parser.add_argument("--latency-ms", type=float, default=50, help="of a call of the model (default %(default)s)")
    import uvloop

    uvloop.run(run(parser.parse_args()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
