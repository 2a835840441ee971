"""Analysis of a long PDF: how much of the model's concurrency is used while parts are read and notes are combined.

    ./scripts/run python -m scripts.bench.analysis [--bounds 4 16] [--rounds 2] [--pages 300] [--call-seconds 1]

Summary, key points, questions and data together, of a PDF that is made here, the same at each run. Every call of the
model takes the same time (half of it silence, then the answer in pieces); its answers are the development model's.
Efficiency is the sum of the model's own time over all calls, by ERRAND_MAP_CONCURRENCY × wall time from `job.started`
to `job.complete`. The phases are divided where the last part was read. The first round meets a model that the worker
has not asked before; `warm` are those after it. `bare limit` sends the same requests again, no more than the bound at
a time and in no order; `naive` reads in slices of the bound, each awaited whole, then combines one call after another.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
from fpdf import FPDF

from scripts.bench.common import fsync_probe, jiffies
from scripts.bench.jobs import Stack, seconds, took_s, whole_stack
from scripts.bench.models import Limits
from shared.prompt_defaults import READ_PART

SUBJECTS = "the harbour|the ferry|the northern pier|the lighthouse|the grain store|the pilot|the customs office".split(
    "|"
)
VERBS = "handled|refused|repaired|weighed|counted|delayed|sold".split("|")
THINGS = "crates of oranges|tonnes of grain|coils of rope|barrels of oil|bales of cotton|sheets of copper".split("|")
PLACES = "in the old dock|at the east quay|before the storm|after the strike|under the new rules|by night".split("|")
PAGE_CHARACTERS = 2_000
TASKS: list[dict[str, Any]] = [
    {"kind": "summary"},
    {"kind": "keyPoints"},
    {"kind": "questions", "questions": ["How many tonnes of grain did the harbour handle?", "What did the pilot delay?",
                                        "What was sold at the east quay?", "What is the price of a lighthouse?"]},
    {"kind": "extract", "schema": {"type": "object", "properties": {
        "pier": {"type": "string"}, "tonnes": {"type": "number"}}, "required": ["pier", "tonnes"]}},
]  # fmt: skip


class Figure(NamedTuple):
    """What one run showed: wall time, calls and the model's own time, whole and by phase."""

    wall_s: float
    read_s: float
    calls: int
    read_calls: int
    model_s: float
    read_model_s: float
    cpu_s: float = 0.0


def write_pdf(path: Path, pages: int) -> None:
    """A report with `pages` pages; the same at each run."""
    chance = random.Random(pages)  # noqa: S311 - a text, no secret
    document = FPDF()
    document.set_font("helvetica", size=9)
    for number in range(1, pages + 1):
        text = f"Report of week {number}."
        while len(text) < PAGE_CHARACTERS:
            parts = [chance.choice(words) for words in (SUBJECTS, VERBS, THINGS, PLACES)]
            text += f" In week {number} {parts[0]} {parts[1]} {chance.randrange(9_999)} {parts[2]} {parts[3]}."
        document.add_page()
        document.multi_cell(0, 4, text)
    document.output(str(path))


async def ours(stack: Stack, document: str, model: str) -> Figure:
    """One job."""
    before = jiffies([stack.worker.pid])
    job = {"type": "document-analysis", "model": model, "timeoutSeconds": 3_600,
           "input": {"document": {"documentId": document}, "tasks": TASKS}}  # fmt: skip
    job_id = await stack.submit(job)
    view = await stack.ended(job_id)
    cpu_s = jiffies([stack.worker.pid]) - before
    assert not view["result"]["coverage"]["failed"], view["result"]["coverage"]
    events = await stack.events(job_id)
    read_s = next(
        seconds(event["at"]) for event in events if event["type"] == "job.progress" and event["stage"] == "combine"
    ) - seconds(view["startedAt"])
    return figure(took_s(view), read_s, (await stack.books())["calls"], cpu_s)


async def replayed(stack: Stack, bodies: list[dict[str, Any]], bound: int, *, naive: bool) -> Figure:
    """The same requests again, from a bare loop."""
    reading = [body for body in bodies if body["messages"][0]["content"] == READ_PART]
    rest = [body for body in bodies if body["messages"][0]["content"] != READ_PART]
    slots = asyncio.Semaphore(bound)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def ask(body: dict[str, Any]) -> None:
            async with slots, session.post(f"{stack.upstream}/v1/chat/completions", json=body) as answer:
                await answer.read()

        started = time.perf_counter()
        if naive:
            for at in range(0, len(reading), bound):
                await asyncio.gather(*map(ask, reading[at : at + bound]))
            read_s = time.perf_counter() - started
            for body in rest:
                await ask(body)
        else:
            await asyncio.gather(*map(ask, reading + rest))
            read_s = 0.0
        return figure(time.perf_counter() - started, read_s, (await stack.books())["calls"])


def figure(wall_s: float, read_s: float, calls: list[tuple[str, float]], cpu_s: float = 0.0) -> Figure:
    """The figure of a run by the upstream's books."""
    reading = [took for kind, took in calls if kind == "read"]
    total = sum(took for _, took in calls)
    return Figure(wall_s, read_s, len(calls), len(reading), total, sum(reading), cpu_s)


def row(name: str, figures: list[Figure], bound: int) -> None:
    """Prints the medians of some runs."""
    wall_s, read_s, calls, read_calls, model_s, read_model_s, cpu_s = (
        statistics.median(map(float, column)) for column in zip(*figures, strict=True)
    )
    line = f"    {name:<16}{model_s / bound / wall_s:>6.1%} of {wall_s:6.1f} s, {calls:.0f} calls"
    if read_s:
        combine_s, combined = wall_s - read_s, model_s - read_model_s
        line += (
            f"   read {read_calls:.0f} in {read_s:5.1f} s ({read_model_s / bound / read_s:.0%}), "
            f"combine {calls - read_calls:.0f} in {combine_s:4.1f} s ({combined / bound / combine_s:.0%})"
        )
    print(line + (f"   {cpu_s:.1f} s CPU" if cpu_s else ""))


async def run(arguments: argparse.Namespace) -> None:
    """The table."""
    limits = Limits(arguments.call_seconds)
    print(
        f"a PDF of {arguments.pages} pages, four tasks, {arguments.call_seconds:g} s a call, appendfsync always: "
        "share of the bound's time in which the model worked"
    )
    for bound in arguments.bounds:
        async with whole_stack(ERRAND_MAP_CONCURRENCY=str(bound)) as (stack, _):
            file = stack.folder / "report.pdf"
            write_pdf(file, arguments.pages)
            document = await stack.upload(file, "application/pdf", index=False)
            runs = []
            for _ in range(arguments.rounds):
                await stack.limits(limits)
                runs.append(await ours(stack, document, "bench"))
            bodies = await stack.books("/bench/bodies")
            await stack.limits(limits)
            bare = await replayed(stack, bodies, bound, naive=False)
            await stack.limits(limits)
            naive = await replayed(stack, bodies, bound, naive=True)
        print(f"  bound {bound}")
        row("bare limit", [bare], bound)
        row("naive", [naive], bound)
        row("errand, cold", runs[:1], bound)
        if runs[1:]:
            row("errand, warm", runs[1:], bound)
    print(f"  goal: 80 %\n  {fsync_probe()}")


def main() -> int:
    """The command. Returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m scripts.bench.analysis", description=__doc__.partition("\n")[0])
    parser.add_argument("--bounds", type=int, nargs="+", default=[4, 16], help="calls at a time (default 4 16)")
    parser.add_argument("--rounds", type=int, default=2, help="of our job (default %(default)s)")
    parser.add_argument("--pages", type=int, default=300, help="of the PDF (default %(default)s)")
    parser.add_argument("--call-seconds", type=float, default=1.0, help="of a call of the model (default %(default)s)")
    import uvloop

    uvloop.run(run(parser.parse_args()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
