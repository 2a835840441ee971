"""Runs the real stack under faults, then decides from its history whether a guarantee was broken.

Two APIs, three workers (clocks ten minutes apart) and the development model on an embedded Redis. Faults, at random
from the seed: SIGKILL, SIGSTOP past the lease and SIGTERM of workers, SIGKILL of Redis and of APIs, 429, 5xx, cut and
dropped answers of the model, clients that give up, readers that stop reading. Exit code 1: a guarantee was broken.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import aiohttp

from scripts.havoc.check import Violations, check_books, check_job, check_keys, check_structures, check_tokens
from scripts.havoc.cluster import Cluster
from scripts.havoc.faults import KINDS, Faults, end_all, set_faults
from scripts.havoc.load import Clients, all_of, model_calls
from scripts.havoc.plants import PLANTS, planted
from scripts.havoc.talks import Talks
from scripts.mutants import ROOT
from shared.errors import ConfigurationError

SLOW_503_S = 6.0  # the API gives Redis one second a command; the machine may be busy
# Limits that hold nothing up, so that every call is reserved, extended, charged to rates and settled.
LARGE: dict[str, Any] = {
    "tokensPerMinute": 10**9,
    "requestsPerMinute": 10**9,
    "budgets": [{"period": "day", "softTokens": 20_000, "hardTokens": 10**12, "hardUsd": 1_000_000}],
}
SETTLE_S = 90.0  # when the faults are over, every job must be final within this time


async def tenant(url: str, admin_key: str, limits: dict[str, Any]) -> str:
    """A tenant's key."""
    headers = {"Authorization": f"Bearer {admin_key}"}
    async with aiohttp.ClientSession(headers=headers, raise_for_status=True) as session:
        async with session.post(f"{url}/api/admin/tenants", json={"name": "chaos", "limits": limits}) as answer:
            tenant_id = (await answer.json())["tenantId"]
        async with session.post(f"{url}/api/admin/tenants/{tenant_id}/keys", json={}) as answer:
            return str((await answer.json())["key"])


async def books(url: str, admin_key: str) -> dict[str, Any]:
    """What `errand books check` finds."""
    headers = {"Authorization": f"Bearer {admin_key}"}
    async with (
        aiohttp.ClientSession(headers=headers, raise_for_status=True) as session,
        session.post(f"{url}/api/admin/books/check", json={}) as answer,
    ):
        found: dict[str, Any] = await answer.json()
        return found


class Report:
    """What is printed at the end."""

    def __init__(self) -> None:
        self.violations = Violations()
        self.rows: list[tuple[str, str]] = []

    def print(self) -> None:
        """The table."""
        for name, value in self.rows:
            print(f"  {name:<44}{value}")
        for kind, details in self.violations.found.items():
            print(f"  VIOLATED: {kind} ({len(details)})")
            for detail in details[:5]:
                print(f"    {detail}")
        print("  every guarantee held" if not self.violations else "  GUARANTEES WERE BROKEN", flush=True)


async def havoc(arguments: argparse.Namespace, folder: Path, tree: Path) -> Report:
    """The run."""
    chance, report, started = random.Random(arguments.seed), Report(), time.monotonic()  # noqa: S311
    cluster = Cluster(folder, tree)
    faults = Faults(cluster, random.Random(arguments.seed + 1), arguments.only or list(KINDS))  # noqa: S311
    deadline = started + arguments.minutes * 60
    work: list[asyncio.Future[None]] = []
    try:
        await cluster.start()
        keys = [
            await tenant(cluster.urls[0], cluster.key, limits)
            for limits in ({}, {"weight": 3, **LARGE}, {"maxConcurrentJobs": 5, **LARGE}, LARGE)
        ]
        talk_key = keys.pop()
        async with Clients(cluster.urls, chance) as clients:
            loading = asyncio.ensure_future(
                all_of(
                    lambda number: clients.one(number, keys[number % len(keys)]),
                    arguments.jobs,
                    arguments.clients,
                    lambda: time.monotonic() > deadline,
                )
            )
            work.append(loading)
            talks = Talks(clients, talk_key, random.Random(arguments.seed + 2))  # noqa: S311
            talkers = max(1, arguments.clients // 5)
            talking = asyncio.ensure_future(
                all_of(talks.one, arguments.jobs, talkers, lambda: loading.done() or time.monotonic() > deadline)
            )
            work.append(talking)
            await faults.run(lambda: loading.done() or time.monotonic() > deadline, (0.3, 2.0))
            faulty_s = time.monotonic() - started
            # The faults are over: everything must come to its end by itself.
            await set_faults(cluster, [])
            await cluster.until_ready()
            await asyncio.wait([loading, talking], timeout=SETTLE_S)
            for task in (loading, talking):
                if not task.done():
                    task.cancel()
                    await asyncio.wait([task])
                elif task.exception() is not None:
                    raise task.exception() or RuntimeError
            await clients.read_all()
            await talks.read_all()
            listed = {key: await clients.list_ids(key) for key in keys}
            async with (
                aiohttp.ClientSession() as session,
                session.get(f"{cluster.model_url}/dev/stats?calls") as answer,
            ):
                calls = model_calls(await answer.json())
        acknowledged = [seen for seen in clients.jobs if seen.job_id]
        for seen in acknowledged:
            check_job(seen, report.violations)
        talks.check(calls, report.violations)
        check_keys(clients.jobs, listed, report.violations)
        check_structures(cluster.redis_url, report.violations)
        check_books(await books(cluster.urls[0], cluster.key), report.violations)
        booked, served, exact = check_tokens(acknowledged, calls, report.violations)
        if not acknowledged:
            report.violations.add("nothing was tested", "no job was acknowledged; run it for longer")
        slow = [seconds for seconds, status in clients.refusals if status == 503 and seconds > SLOW_503_S]
        if slow:
            report.violations.add("503 was slow", f"{len(slow)} answers, the slowest after {max(slow):.1f} s")
        for text in cluster.unexpected:
            report.violations.add("a process ended by itself", text)
    finally:
        await end_all(work)
        await faults.stop()
        await cluster.stop()
    states = Counter(seen.view["status"] for seen in acknowledged if seen.view)
    waits = sorted(seconds for seconds, status in clients.refusals if status == 503)
    refused = f"{len(waits)}, {statistics.median(waits):.2f} / {waits[-1]:.2f} s" if waits else "none"
    lost = sum(any(event.get("reason") == "workerLost" for event in seen.events) for seen in acknowledged)
    report.rows = [
        ("seed, time under faults", f"{arguments.seed}, {faulty_s:.0f} s"),
        *((name, str(count)) for name, count in sorted(faults.done.items())),
        ("jobs acknowledged", str(len(acknowledged))),
        ("their states", ", ".join(f"{count} {state}" for state, count in states.most_common())),
        ("requests of unknown outcome, all repeated", str(clients.unknown)),
        ("503 answers, time to them p50 / max", refused),
        ("jobs that lost a worker", str(lost)),
        ("tokens booked / counted by the model", f"{booked} / {served}; {exact} jobs to the token"),
        ("chats, how they ended, and cuts", talks.row()),
        ("streams followed through cuts", str(sum(bool(seen.streamed) for seen in acknowledged))),
    ]
    return report


async def until_signal(work: Coroutine[Any, Any, Report]) -> Report | None:
    """The report, or None when SIGINT or SIGTERM came: all processes are ended in either case."""
    task = asyncio.ensure_future(work)
    for signum in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signum, task.cancel)
    await asyncio.wait([task])
    return None if task.cancelled() else task.result()


def main() -> int:
    """The command. Returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="./scripts/chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=1.0, help="length of the faulty part (default %(default)s)")
    parser.add_argument("--jobs", type=int, default=1_000_000, help="stop after so many jobs (default: none)")
    parser.add_argument("--clients", type=int, default=40, help="clients at a time (default %(default)s)")
    parser.add_argument("--seed", type=int, default=None, help="for the choice of faults and jobs (default: random)")
    parser.add_argument("--only", nargs="+", choices=KINDS, metavar="FAULT", help=f"only these of {', '.join(KINDS)}")
    parser.add_argument("--plant", choices=sorted(PLANTS), help="plant this bug in a copy: the run must find it")
    parser.add_argument("--keep", type=Path, help="leave the processes' logs and data in this new directory")
    arguments = parser.parse_args()
    if not 0 < arguments.minutes <= 24 * 60:
        parser.error("--minutes must be above 0, and at most a day")
    if arguments.jobs < 1 or arguments.clients < 1:
        parser.error("--jobs and --clients must be at least 1")
    if arguments.seed is None:
        arguments.seed = random.SystemRandom().randrange(1_000_000)
    with tempfile.TemporaryDirectory(prefix="errand-c-") as temporary:
        folder = arguments.keep or Path(temporary) / "run"
        try:
            folder.mkdir(parents=True)
            tree = planted(arguments.plant, Path(temporary)) if arguments.plant else ROOT
        except (OSError, ConfigurationError) as error:
            sys.stderr.write(f"errand: {error}\n")
            return 2
        plant = f", with a bug: {PLANTS[arguments.plant].says}" if arguments.plant else ""
        print(f"chaos, seed {arguments.seed}{plant}", flush=True)
        report = asyncio.run(until_signal(havoc(arguments, folder, tree)))
        if report is None:
            return 130
        report.print()
        return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
