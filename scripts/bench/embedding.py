"""Batch embedding against an upstream that takes L requests at a time: our share of what L allows; memory; a kill.

    ./scripts/run python -m scripts.bench.embedding [--limits 4 16 32] [--seconds 8] [--rounds 3] [--retry-after 1]
    ./scripts/run python -m scripts.bench.embedding --texts 1000000        memory of each process, all along
    ./scripts/run python -m scripts.bench.embedding --kill                 a SIGKILL of the worker in the middle

The upstream answers each request after the same time and refuses what is above L with 429 at once. `errand` is a
`batch-embedding` job by HTTP, default settings, timed from `job.started` to `job.complete`, its output durable; each
round names another model, so that none knows the bound of the one before; `bound known` is the same job again. `bare
limit` is a loop of exactly L tasks that send requests of the same size and throw the answers away. `naive` is what is
usually written: `AsyncOpenAI`, the batches in order behind a semaphore of 50, vectors kept in memory; with its default
of two retries, after which a batch is lost (counted here; a loop without a handler ends there), and with as many as it
takes. Rounds alternate; medians.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import msgspec
import openai

from scripts.bench.common import fsync_probe, jiffies
from scripts.bench.jobs import Stack, took_s, whole_stack
from scripts.bench.models import Limits
from shared.settings import Settings
from worker.batch.plan import Plan

AT_ONCE = 50  # of the naive loop
CHARACTERS = 200  # of a text
PATIENT = 1_000  # retries
INLINE = 10_000  # the most texts that a submission may hold


class Figure(NamedTuple):
    """What one round showed. `cpu`: cores that the worker used; `lost`: batches without vectors."""

    rate: float
    refused: int
    most: int
    cpu: float = 0
    lost: int = 0


def text(number: int) -> str:
    """One of many texts that differ."""
    return (f"Text {number} speaks of berth {number * 7} and of ship {number * 3}. " * 8)[:CHARACTERS]


def write_texts(path: Path, count: int) -> None:
    """A batch file."""
    with path.open("wb") as file:
        file.writelines(msgspec.json.encode(text(number)) + b"\n" for number in range(count))


def job(model: str, dimensions: int, **texts: Any) -> dict[str, Any]:
    """A job over texts."""
    given = {"model": model, "dimensions": dimensions, **texts}
    return {"type": "batch-embedding", "timeoutSeconds": 3_600, "input": given}


async def ours(stack: Stack, limits: Limits, submission: dict[str, Any]) -> Figure:
    """One job."""
    await stack.limits(limits)
    before = jiffies([stack.worker.pid])
    view = await stack.ended(await stack.submit(submission))
    assert view["result"]["failed"] == 0, view["result"]
    books = await stack.books()
    cpu = (jiffies([stack.worker.pid]) - before) / took_s(view)
    return Figure(view["result"]["count"] / took_s(view), books["refused"], books["most"], cpu)


async def bare(stack: Stack, limits: Limits, items: int, dimensions: int, requests: int) -> Figure:
    """Exactly as many tasks as the upstream takes."""
    await stack.limits(limits)
    given = {"model": "bench", "input": [text(number) for number in range(items)], "dimensions": dimensions}
    body, kind = msgspec.json.encode(given), {"Content-Type": "application/json"}
    left = requests

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def work() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                async with session.post(f"{stack.upstream}/v1/embeddings", data=body, headers=kind) as answer:
                    assert answer.status == 200
                    async for _ in answer.content.iter_any():
                        pass

        started = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(limits.in_flight)))
        took = time.perf_counter() - started
    books = await stack.books()
    return Figure(books["texts"] / took, books["refused"], books["most"])


async def naive(
    stack: Stack, limits: Limits, items: int, dimensions: int, requests: int, retries: int | None
) -> Figure:
    """The loop that is usually written; `retries` None leaves the SDK's default."""
    await stack.limits(limits)
    more = {} if retries is None else {"max_retries": retries}
    client = openai.AsyncOpenAI(api_key="none", base_url=f"{stack.upstream}/v1", **more)  # type: ignore[arg-type]
    slots, lost = asyncio.Semaphore(AT_ONCE), 0

    async def embed(batch: list[str]) -> list[list[float]]:
        nonlocal lost
        async with slots:
            try:
                answer = await client.embeddings.create(model="bench", input=batch, dimensions=dimensions)
            except openai.RateLimitError:
                lost += 1
                return []
            return [entry.embedding for entry in answer.data]

    started = time.perf_counter()
    found = await asyncio.gather(
        *(embed([text(number) for number in range(at, at + items)]) for at in range(0, requests * items, items))
    )
    took = time.perf_counter() - started
    await client.close()
    books = await stack.books()
    return Figure(sum(map(len, found)) / took, books["refused"], books["most"], lost=lost)


def row(name: str, figures: list[Figure], limit: float) -> None:
    """Prints the medians of some rounds."""
    rate, refused, most, cpu, lost = (statistics.median(map(float, column)) for column in zip(*figures, strict=True))
    more = f"   {cpu:4.0%} CPU" if cpu else f"   {lost:.0f} batches lost" if lost else ""
    print(
        f"    {name:<26}{rate:>9.0f} texts/s {rate / limit:>7.1%}   {refused:>5.0f} refused, {most:>3.0f} at most{more}"
    )


async def rates(arguments: argparse.Namespace) -> None:
    """The table: for each L, ours by upload and inline, the loops, the limit."""
    dimensions, latency_s = arguments.dimensions, arguments.latency_ms / 1000
    defaults = Settings()
    most = arguments.items or defaults.embedding_items
    items = Plan.of(dimensions, "float", most_items=most, most_tokens=defaults.embedding_tokens).items
    print(
        f"texts of {CHARACTERS} characters, {items} to a request, {dimensions} dimensions, {arguments.latency_ms:g} ms "
        "each, appendfsync always"
    )
    async with whole_stack(ERRAND_EMBEDDING_ITEMS=str(most)) as (stack, _):
        for limit in arguments.limits:
            limits = Limits(latency_s, limit, arguments.retry_after)
            requests = round(arguments.seconds * limit / latency_s)
            file = stack.folder / "texts.ndjson"
            write_texts(file, requests * items)
            document = await stack.upload(file, "application/x-ndjson", index=False)
            few, inline = requests // 3, [text(number) for number in range(min(INLINE, requests * items))]
            found: dict[str, list[Figure]] = {}
            for number in range(arguments.rounds):
                fresh, other = (f"bench-{limit}-{number}{mark}" for mark in "ab")
                for name, work in (
                    ("bare limit", bare(stack, limits, items, dimensions, requests // 2)),
                    ("errand, upload", ours(stack, limits, job(fresh, dimensions, documentId=document))),
                    ("the same, bound known", ours(stack, limits, job(fresh, dimensions, documentId=document))),
                    (f"errand, {len(inline):,} inline", ours(stack, limits, job(other, dimensions, texts=inline))),
                    ("inline, bound known", ours(stack, limits, job(other, dimensions, texts=inline))),
                    ("naive", naive(stack, limits, items, dimensions, few, None)),
                    ("naive, patient", naive(stack, limits, items, dimensions, few, PATIENT)),
                ):
                    found.setdefault(name, []).append(await work)
            after = f", Retry-After {arguments.retry_after:g} s" if arguments.retry_after else ""
            print(f"  L = {limit}{after}")
            reached = statistics.median(figure.rate for figure in found["bare limit"])
            for name, figures in found.items():
                row(name, figures, reached)
    print(f"  goal: an upload reaches 95 % of the bare limit\n  {fsync_probe()}")


async def memory(arguments: argparse.Namespace) -> None:
    """One large job and the reading of its output: RSS of each process all along."""
    async with whole_stack() as (stack, _):
        await stack.limits(Limits(arguments.latency_ms / 1000, arguments.limits[0]))
        file = stack.folder / "texts.ndjson"
        write_texts(file, arguments.texts)
        pids = {"API": stack.api.pid, "worker": stack.worker.pid}
        seen: dict[str, list[float]] = {name: [] for name in pids}

        async def watch() -> None:
            while True:
                for name, pid in pids.items():
                    seen[name].append(resident_mb(pid, "VmRSS"))
                await asyncio.sleep(0.1)

        watching = asyncio.create_task(watch())
        started = time.perf_counter()
        document = await stack.upload(file, "application/x-ndjson", index=False)
        uploaded = time.perf_counter()
        job_id = await stack.submit(job("bench", arguments.dimensions, documentId=document))
        view = await stack.ended(job_id)
        ended, lines, size = time.perf_counter(), 0, 0
        async with stack.session.get(f"{stack.base}/api/jobs/{job_id}/output") as answer:
            async for piece in answer.content.iter_any():
                size, lines = size + len(piece), lines + piece.count(b"\n")
        read = time.perf_counter()
        watching.cancel()
        peaks = {name: resident_mb(pid, "VmHWM") for name, pid in pids.items()}
        books = await stack.books()
    assert lines == view["result"]["count"] == arguments.texts, (lines, view["result"])
    print(
        f"{arguments.texts:,} texts, {arguments.dimensions} dimensions, L = {arguments.limits[0]}: "
        f"{file_mb(arguments.texts):.0f} MB uploaded in {uploaded - started:.1f} s, job {took_s(view):.1f} s "
        f"({arguments.texts / took_s(view):.0f} texts/s, {books['served']} requests), {size / 1e9:.2f} GB of output "
        f"read in {read - ended:.1f} s"
    )
    for name, samples in seen.items():
        tenths = "  ".join(f"{samples[round(share * (len(samples) - 1) / 10)]:.0f}" for share in range(11))
        print(f"  {name:<7} peak {peaks[name]:5.0f} MB   at each tenth of the time: {tenths}")
    print(f"  goal: each process below 500 MB\n  {fsync_probe()}")


async def kill(arguments: argparse.Namespace) -> None:
    """A SIGKILL of the worker in the middle of a job: what the upstream was asked for twice."""
    dimensions, latency_s = arguments.dimensions, arguments.latency_ms / 1000
    items = Plan.of(dimensions, "float", most_items=512, most_tokens=65_536).items
    print("one SIGKILL of the worker in the middle of a job")
    async with whole_stack(ERRAND_LEASE_SECONDS="2") as (stack, processes):
        for limit in arguments.limits:
            requests = round(arguments.seconds * limit / latency_s)
            file = stack.folder / "texts.ndjson"
            write_texts(file, requests * items)
            document = await stack.upload(file, "application/x-ndjson", index=False)
            await stack.limits(Limits(latency_s, limit, arguments.retry_after))
            job_id = await stack.submit(job(f"bench-{limit}", dimensions, documentId=document))
            before = await half_done(stack, requests)
            stack.worker.kill()
            stack.worker.wait()
            stack.start_worker(processes)
            view = await stack.ended(job_id)
            books = await stack.books()
            assert view["result"]["count"] == requests * items, view["result"]
            print(
                f"  L = {limit:<3} killed at {before['served']} of {requests} batches, {before['inFlight']} in flight: "
                f"{books['again']} were asked for twice   (goal: at most {limit})"
            )
    print(f"  {fsync_probe()}")


async def half_done(stack: Stack, requests: int) -> dict[str, Any]:
    """The upstream's books when half of the requests were served."""
    while True:
        books: dict[str, Any] = await stack.books()
        if books["served"] >= requests / 2:
            return books
        await asyncio.sleep(0.01)


def resident_mb(pid: int, name: str) -> float:
    """`VmRSS` of a process, or `VmHWM`, the most it ever was."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1024
    return 0.0


def file_mb(texts: int) -> float:
    """The size of a batch file."""
    return texts * (CHARACTERS + 3) / 1e6


def main() -> int:
    """The command. Returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m scripts.bench.embedding", description=__doc__.partition("\n")[0])
    parser.add_argument("--limits", type=int, nargs="+", default=[4, 16, 32], help="of the upstream (default 4 16 32)")
    parser.add_argument("--latency-ms", type=float, default=100, help="of a request (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=8, help="length of our job, about (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of each (default %(default)s)")
    parser.add_argument("--dimensions", type=int, default=256, help="of a vector (default %(default)s)")
    parser.add_argument("--items", type=int, default=0, help="ERRAND_EMBEDDING_ITEMS (default: its own)")
    parser.add_argument("--retry-after", type=float, default=0, help="seconds in a 429 (default: none)")
    parser.add_argument("--texts", type=int, help="one job of so many texts, and the memory of each process")
    parser.add_argument("--kill", action="store_true", help="SIGKILL the worker in the middle")
    arguments = parser.parse_args()
    import uvloop

    uvloop.run((memory if arguments.texts else kill if arguments.kill else rates)(arguments))
    return 0


if __name__ == "__main__":
    sys.exit(main())
