"""Runs the real stack under faults, then decides from its history whether a guarantee was broken, and from what is left
whether something leaks.

Three APIs, four workers (clocks ten minutes apart) and the development model on an embedded Redis, under every kind of
work at once. Faults, at random from the seed: SIGKILL, SIGSTOP past the lease and SIGTERM of workers, SIGKILL of Redis
and of APIs, 429, 5xx, cut and dropped answers of the model, clients that give up, readers that stop reading. One API
and one worker are spared what ends a process, so that what they leak adds up. Exit code 1: a guarantee was broken, or
something leaks.
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
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import aiohttp

from scripts.havoc.check import Listing, check_books, check_structures, check_tokens
from scripts.havoc.cluster import Cluster
from scripts.havoc.faults import KINDS, Faults, end_all, set_faults
from scripts.havoc.history import Violations
from scripts.havoc.inspector import Calls, Inspector
from scripts.havoc.leaks import Aftermath, Verdict
from scripts.havoc.load import Clients, all_of, never
from scripts.havoc.loads import KINDS as LOAD_KINDS
from scripts.havoc.loads import LOADS
from scripts.havoc.loads.ground import Ground, Load
from scripts.havoc.plants import PLANTS, planted
from scripts.havoc.talks import Talks
from scripts.havoc.watch import Watch
from scripts.mutants import ROOT
from shared.errors import ConfigurationError

SLOW_503_S = 6.0  # the API gives Redis one second a command; the machine may be busy
# Limits that hold nothing up, so that every call is reserved, extended, charged to rates and settled.
LARGE: dict[str, Any] = {
    "tokensPerMinute": 10**9,
    "requestsPerMinute": 10**9,
    "budgets": [{"period": "day", "softTokens": 20_000, "hardTokens": 10**12, "hardUsd": 1_000_000}],
}
RETENTION_S = 240.0  # of jobs; long enough for the look at them
WARM_UP = 8  # of each kind of work
IDLE_S = 12.0  # so that a chat that its reader left is over too
TAKE_S, LIST_S = 10.0, 30.0  # how often the model's record is taken over, and the lists of jobs are read
SETTLE_S = 90.0  # when the faults are over, every job must be final within this time


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
        self.verdicts: list[Verdict] = []

    @property
    def is_good(self) -> bool:
        """Whether nothing was found."""
        return not self.violations and all(one.is_good is not False for one in self.verdicts)

    def print(self) -> None:
        """The table."""
        for name, value in self.rows:
            print(f"  {name:<44}{value}")
        for verdict in self.verdicts:
            print(f"  {verdict.line()}")
        for kind, details in self.violations.found.items():
            print(f"  VIOLATED: {kind} ({len(details)})")
            for detail in details[:5]:
                print(f"    {detail}")
        print("  every guarantee held" if not self.violations else "  GUARANTEES WERE BROKEN")
        if self.verdicts:
            print("  nothing leaks" if all(one.is_good is not False for one in self.verdicts) else "  SOMETHING LEAKS")
        sys.stdout.flush()


class Run:
    """One run, from its start to its report."""

    def __init__(self, arguments: argparse.Namespace, folder: Path, tree: Path) -> None:
        self._arguments = arguments
        self._chance = random.Random(arguments.seed)  # noqa: S311
        self.report = Report()
        self._cluster = Cluster(folder, tree, RETENTION_S)
        chosen = arguments.only or list(KINDS)
        self._faults = Faults(self._cluster, random.Random(arguments.seed + 1), chosen)  # noqa: S311
        self._inspector = Inspector()
        self._calls = Calls(self._cluster.model_url)
        self._clients = Clients(self._cluster.urls, self._chance, self._inspector, self.report.violations)
        self._ground = Ground(self._clients, self._calls, self._cluster.key, self._chance, folder)
        self._watch = Watch(self._cluster, self.report.violations)
        self._listing = Listing()
        self._keys: list[str] = []
        self._loads: dict[str, Load] = {}
        self._talks: Talks | None = None
        self._tasks: list[asyncio.Future[None]] = []
        self._faulty_s = 0.0

    async def run(self) -> Report:
        """All of it."""
        try:
            await self._cluster.start()
            async with self._clients:
                await self._prepare()
                aftermath = Aftermath(self._cluster, self._watch, self._ground)
                await self._warm_up(aftermath)
                loading = await self._work()
                await self._come_to_rest(loading)
                await self._check()
                self._print_rows()
                if not self._arguments.no_leaks:
                    await end_all(self._tasks)
                    await aftermath.end(len(self._clients.jobs) + len(self._talks.talks if self._talks else ()))
                    self.report.verdicts = aftermath.verdicts
                aftermath.close()
        except Exception as error:
            # What was seen until then is told all the same.
            traceback.print_exc()
            self.report.violations.add("the run broke off", f"{type(error).__name__}: {error}")
            if not self.report.rows:
                self._print_rows()
        finally:
            await end_all(self._tasks)
            await self._faults.stop()
            await self._cluster.stop()
        return self.report

    async def _prepare(self) -> None:
        """Tenants and what each kind of load needs."""
        limits: tuple[dict[str, Any], ...] = ({}, {"weight": 3, **LARGE}, {"maxConcurrentJobs": 5, **LARGE}, LARGE)
        made = [await self._ground.make_tenant(f"chaos{place}", one) for place, one in enumerate(limits)]
        *self._keys, talk_key = [api_key for _, api_key in made]
        if "chats" in self._arguments.load:
            self._talks = Talks(self._clients, talk_key, random.Random(self._arguments.seed + 2))  # noqa: S311
        self._loads = {name: make(self._ground) for name, make in LOADS.items() if name in self._arguments.load}
        for load in self._loads.values():
            await load.prepare()

    def _works(self) -> list[tuple[str, Callable[[int], Awaitable[None]], int]]:
        """Each kind, what a client of it does, and how many there are at a time."""
        works: list[tuple[str, Callable[[int], Awaitable[None]], int]] = []
        if "jobs" in self._arguments.load:
            clients = self._arguments.clients
            works.append(("jobs", lambda number: self._clients.one(number, self._keys[number % 3]), clients))
        if self._talks is not None:
            works.append(("chats", self._talks.one, max(1, self._arguments.clients // 5)))
        return works + [(name, load.one, load.AT_ONCE) for name, load in self._loads.items()]

    async def _warm_up(self, aftermath: Aftermath) -> None:
        """Some work of each kind without faults; then everything is idle, and is measured."""
        if not self._arguments.no_leaks:
            await asyncio.gather(*(all_of(work, range(WARM_UP), 4, never) for _, work, _ in self._works()))
            await self._clients.renew()
            await asyncio.sleep(IDLE_S)
            await aftermath.begin()
        self._tasks.append(asyncio.ensure_future(self._watch.run()))

    async def _work(self) -> list[asyncio.Task[None]]:
        """Load and faults until the time is over; what is still under way of the load."""
        started_s = time.monotonic()
        deadline_s = started_s + float(self._arguments.minutes) * 60
        self._inspector.each(TAKE_S, self._calls.take)
        self._inspector.each(LIST_S, self._list)
        inspecting = asyncio.ensure_future(self._inspector.run())
        numbers = range(WARM_UP, WARM_UP + self._arguments.jobs)

        def is_late() -> bool:
            return time.monotonic() > deadline_s

        loading = [
            asyncio.create_task(all_of(self._noted(name, work), numbers, at_once, is_late), name=name)
            for name, work, at_once in self._works()
        ]
        self._tasks += [inspecting, *loading]

        def is_over() -> bool:
            failed = any(task.done() and task.exception() is not None for task in (inspecting, *loading))
            return failed or all(task.done() for task in loading) or is_late()

        await self._faults.run(is_over, (0.3, 2.0))
        self._faulty_s = time.monotonic() - started_s
        await self._end_inspecting(inspecting)
        return loading

    def _noted(self, name: str, work: Callable[[int], Awaitable[None]]) -> Callable[[int], Awaitable[None]]:
        """The same; an answer that a client did not expect is a violation, and other clients go on."""

        async def one(number: int) -> None:
            try:
                await work(number)
            except AssertionError as error:
                self.report.violations.add("an answer that was not expected", f"{name} {number}: {str(error)[:300]}")

        return one

    async def _end_inspecting(self, inspecting: asyncio.Future[None]) -> None:
        if inspecting.done():
            inspecting.result()
        await end_all([inspecting])

    async def _list(self) -> None:
        for api_key in self._keys:
            self._listing.add(api_key, await self._clients.list_jobs(api_key))

    async def _come_to_rest(self, loading: list[asyncio.Task[None]]) -> None:
        """The faults are over: everything must come to its end by itself."""
        await set_faults(self._cluster, [])
        await self._cluster.until_ready()
        await asyncio.wait(loading, timeout=SETTLE_S)
        for task in loading:
            if not task.done():
                self.report.violations.add("work came to no end", task.get_name())
                task.cancel()
                await asyncio.wait([task])
            elif task.exception() is not None:
                raise task.exception() or RuntimeError
        await self._inspector.finish()
        await self._clients.look_at_rest()
        if self._talks is not None:
            await self._talks.look_at_rest()
        for load in self._loads.values():
            await load.finish()
        await self._calls.take()

    async def _check(self) -> None:
        """What only the whole shows."""
        found, calls = self.report.violations, self._calls.of
        if self._talks is not None:
            self._talks.check_tokens(calls, found)
        mine = [seen for seen in self._clients.jobs if seen.kind == "jobs"]
        self._listing.check(mine, found)
        check_structures(self._cluster.redis_url, found)
        check_books(await books(self._cluster.urls[0], self._cluster.key), found)
        if not any(seen.job_id for seen in self._clients.jobs) and self._talks is None:
            found.add("nothing was tested", "no job was acknowledged; run it for longer")
        for seconds, status, what in self._clients.refusals:
            if status == 503 and seconds > SLOW_503_S:
                found.add("503 was slow", f"{what} after {seconds:.1f} s")
        for text in self._cluster.unexpected:
            found.add("a process ended by itself", text)

    def _print_rows(self) -> None:
        """What the report tells."""
        mine = [seen for seen in self._clients.jobs if seen.job_id and seen.kind == "jobs"]
        booked, served, exact = check_tokens(mine, self._calls.of, self.report.violations)
        states = Counter(seen.view["status"] for seen in self._clients.jobs if seen.view)
        waits = sorted(seconds for seconds, status, _ in self._clients.refusals if status == 503)
        refused = f"{len(waits)}, {statistics.median(waits):.2f} / {waits[-1]:.2f} s" if waits else "none"
        lost = sum(seen.lost > 0 for seen in self._clients.jobs)
        self.report.rows = [
            ("seed, time under faults", f"{self._arguments.seed}, {self._faulty_s:.0f} s"),
            *((name, str(count)) for name, count in sorted(self._faults.done.items())),
            ("jobs acknowledged", str(sum(bool(seen.job_id) for seen in self._clients.jobs))),
            ("their states", ", ".join(f"{count} {state}" for state, count in states.most_common())),
            ("requests of unknown outcome, all repeated", str(self._clients.unknown)),
            ("503 answers, time to them p50 / max", refused),
            ("jobs that lost a worker", str(lost)),
            ("tokens booked / counted by the model", f"{booked} / {served}; {exact} jobs to the token"),
            ("streams followed through cuts", str(sum(seen.was_streamed for seen in self._clients.jobs))),
        ]
        if self._talks is not None:
            self.report.rows.append(("chats, how they ended, and cuts", self._talks.row()))
        self.report.rows += [(name, load.row()) for name, load in self._loads.items()]
        self.report.rows.append(("metrics read", f"{self._watch.scraped} times, {self._watch.missed} out of reach"))


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
    parser.add_argument("--jobs", type=int, default=1_000_000, help="stop after so many of each kind (default: none)")
    parser.add_argument("--clients", type=int, default=40, help="clients at a time (default %(default)s)")
    parser.add_argument("--seed", type=int, default=None, help="for the choice of faults and jobs (default: random)")
    parser.add_argument("--only", nargs="+", choices=KINDS, metavar="FAULT", help=f"only these of {', '.join(KINDS)}")
    parser.add_argument("--load", nargs="+", choices=LOAD_KINDS, default=list(LOAD_KINDS), metavar="KIND",
                        help=f"only these kinds of work: {', '.join(LOAD_KINDS)}")  # fmt: skip
    parser.add_argument("--no-leaks", action="store_true", help="end after the guarantees, do not look for leaks")
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
        report = asyncio.run(until_signal(Run(arguments, folder, tree).run()))
        if report is None:
            return 130
        report.print()
        return 0 if report.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
