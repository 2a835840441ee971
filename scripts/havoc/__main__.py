"""Runs the real stack under faults, then decides from its history whether a guarantee was broken.

Two APIs, three workers (clocks ten minutes apart) and the development model on an embedded Redis. Faults, at random
from the seed: SIGKILL, SIGSTOP past the lease and SIGTERM of workers, SIGKILL of Redis and of APIs, 429, 5xx, cut and
dropped answers of the model, clients that give up, readers that stop reading. Exit code 1: a guarantee was broken.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import aiohttp
import redis.asyncio

from scripts.havoc.check import Violations, check_job, check_keys, check_structures, check_tokens
from scripts.havoc.cluster import LEASE_S, Cluster, Member
from scripts.havoc.load import Clients, all_of, model_calls
from scripts.mutants import ROOT
from shared.errors import ConfigurationError

SLOW_503_S = 6.0  # the API gives Redis one second a command; the machine may be busy
SETTLE_S = 90.0  # when the faults are over, every job must be final within this time


class Plant(NamedTuple):
    """A bug for the run to find: edits of the source in a copy."""

    says: str
    edits: tuple[tuple[str, str, str], ...]


PLANTS = {
    "unfenced": Plant(
        "the scripts take any worker for the lease's owner",
        (
            (
                "shared/lua/lib/job.lua",
                "  return row.owner == worker and row.lease == tostring(lease) and\n"
                "    (row.status == 'processing' or row.status == 'cancelling')",
                "  return true",
            ),
            (
                "shared/lua/lib/job.lua",
                "  return row[1] == worker and row[2] == tostring(lease) and "
                "(row[3] == 'processing' or row[3] == 'cancelling')",
                "  return true",
            ),
        ),
    ),
    "settles-twice": Plant(
        "settle runs twice for each job",
        (
            ("shared/lua/settle.lua", "if row.settled == tostring(job.lease) then return 'again' end", ""),
            ("shared/lua/settle.lua", "if not holds(row, a.worker, job.lease) then return 'lost' end", ""),
            (
                "shared/lua/settle.lua",
                "do states[i] = settle(job) end",
                "do settle(job); states[i] = settle(job) end",
            ),
        ),
    ),
    "no-reaper": Plant(
        "jobs of lost workers are never taken back",
        (("shared/lua/reap.lua", "do take_back(job_id) end", "do local _ = job_id end"),),
    ),
    "no-idempotency": Plant(
        "idempotency keys are forgotten",
        (
            (
                "shared/lua/lib/base.lua",
                "  redis.call('HSET', key, 'body', a.idem_body, 'reply', cmsgpack.pack(reply))\n",
                "",
            ),
        ),
    ),
    "slot-leak": Plant(
        "a tenant's slot is not given back",
        (("shared/lua/lib/job.lua", "redis.call('HINCRBY', P .. 'running', tenant, 0 - count)", "1"),),
    ),
    "amnesia": Plant(
        "finished steps are not journaled",
        (("shared/lua/finish_step.lua", "{result = a.result, tokens = total}", "{call = a.call}"),),
    ),
    "usage-lost": Plant(
        "a step's output tokens are not booked",
        (("shared/lua/finish_step.lua", "redis.call('HINCRBY', KEYS[1], 'tok_out', a.tok_out)", ""),),
    ),
}  # fmt: skip


def planted(name: str, folder: Path) -> Path:
    """A copy of the source with the bug in it. Raises ConfigurationError when the bug no longer fits the source."""
    copy = folder / "tree"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv*", ".errand", "__pycache__", "*.egg-info"))
    for file, old, new in PLANTS[name].edits:
        path = copy / file
        text = path.read_text()
        if old not in text:
            raise ConfigurationError(f"the bug {name!r} no longer fits {file}")
        path.write_text(text.replace(old, new))
    return copy


# The kinds of faults, and how often each comes beside the others.
KINDS: Final = {
    "kill_worker": 6, "freeze_worker": 2, "pause_worker": 1, "deploy_worker": 2, "kill_redis": 1, "freeze_redis": 1,
    "fill_redis": 1, "kill_api": 1, "upset_model": 5,
}  # fmt: skip


class Faults:
    """What goes wrong, and how often it did."""

    def __init__(self, cluster: Cluster, chance: random.Random, chosen: Sequence[str]) -> None:
        self.cluster = cluster
        self.chance = chance
        self.chosen = chosen
        self.done: Counter[str] = Counter()
        self._tasks: list[asyncio.Future[None]] = []

    async def run(self, enough: Callable[[], bool], pause_s: tuple[float, float]) -> None:
        """Faults at random until `enough`; several may be under way at once."""
        kinds = [(getattr(self, name), weight) for name, weight in KINDS.items() if name in self.chosen]
        # Each kind once, then by chance: also a short run has seen them all.
        first = [kind for kind, _ in kinds]
        self.chance.shuffle(first)
        while not enough():
            (fault,) = self.chance.choices([kind for kind, _ in kinds], [weight for _, weight in kinds])
            if first:
                fault = first.pop()
            task = asyncio.ensure_future(fault())
            self._tasks.append(task)
            # One that failed ends the run: its fault did not happen, or was not taken back.
            self._tasks = [task for task in self._tasks if not task.done() or task.exception() is not None]
            await asyncio.sleep(self.chance.uniform(*pause_s))
        if self._tasks:
            await asyncio.gather(*self._tasks)

    async def stop(self) -> None:
        """Ends what is under way."""
        await end_all(self._tasks)

    def _idle(self, members: list[Member]) -> Member | None:
        """One that no other fault has in hand."""
        idle = [member for member in members if not member.busy.locked()]
        return self.chance.choice(idle) if idle else None

    async def kill_worker(self) -> None:
        """SIGKILL; another comes a moment later."""
        if (member := self._idle(self.cluster.workers)) is None:
            return
        async with member.busy:
            self.done["worker SIGKILL"] += 1
            await member.end()
            await asyncio.sleep(self.chance.uniform(0.1, 0.5))
            await member.start()

    async def freeze_worker(self) -> None:
        """SIGSTOP past the lease, then SIGCONT: it wakes and finds its jobs gone."""
        if (member := self._idle(self.cluster.workers)) is None:
            return
        async with member.busy:
            self.done["worker SIGSTOP past its lease"] += 1
            member.send(signal.SIGSTOP)
            await asyncio.sleep(LEASE_S + self.chance.uniform(2.5, 4))
            member.send(signal.SIGCONT)
            await asyncio.sleep(0.5)

    async def pause_worker(self) -> None:
        """SIGSTOP for less than a lease, then SIGCONT: nothing may come of it."""
        if (member := self._idle(self.cluster.workers)) is None:
            return
        async with member.busy:
            self.done["worker SIGSTOP within its lease"] += 1
            member.send(signal.SIGSTOP)
            await asyncio.sleep(self.chance.uniform(0.5, LEASE_S))
            member.send(signal.SIGCONT)

    async def freeze_redis(self) -> None:
        """SIGSTOP for longer than a lease and than every time-out, then SIGCONT: late commands run late."""
        member = self.cluster.redis
        if member.busy.locked():
            return
        async with member.busy:
            self.done["Redis SIGSTOP"] += 1
            member.send(signal.SIGSTOP)
            await asyncio.sleep(self.chance.uniform(1, 2 * LEASE_S))
            member.send(signal.SIGCONT)
            await asyncio.sleep(1.0)

    async def fill_redis(self) -> None:
        """Redis refuses writes for want of memory."""
        member = self.cluster.redis
        if member.busy.locked():
            return
        async with member.busy:
            self.done["Redis out of memory"] += 1
            client: Any = redis.asyncio.from_url(self.cluster.redis_url)
            await client.config_set("maxmemory", "1mb")
            await asyncio.sleep(self.chance.uniform(0.5, 2 * LEASE_S))
            await client.config_set("maxmemory", "0")
            await client.aclose()

    async def deploy_worker(self) -> None:
        """SIGTERM: it drains, hands back, and a new one comes."""
        if (member := self._idle(self.cluster.workers)) is None:
            return
        async with member.busy:
            self.done["worker SIGTERM"] += 1
            await member.end(signal.SIGTERM)
            await member.start()

    async def kill_redis(self) -> None:
        """SIGKILL, and a restart from its append-only file."""
        member = self.cluster.redis
        if member.busy.locked():
            return
        async with member.busy:
            self.done["Redis SIGKILL"] += 1
            await member.end()
            await asyncio.sleep(self.chance.uniform(0.1, 1.5))
            await member.start()
            await self.cluster.until_redis_answers()
            await asyncio.sleep(1.0)

    async def kill_api(self) -> None:
        """SIGKILL."""
        if (member := self._idle(self.cluster.apis)) is None:
            return
        async with member.busy:
            self.done["API SIGKILL"] += 1
            await member.end()
            await asyncio.sleep(self.chance.uniform(0.1, 0.5))
            await member.start()

    async def upset_model(self) -> None:
        """The next calls of the model go wrong."""
        kinds: list[dict[str, Any]] = [
            {"kind": "status", "status": 429, "retryAfter": 1}, {"kind": "status", "status": 500},
            {"kind": "cut", "after": 3}, {"kind": "truncate", "after": 3}, {"kind": "drop"}, {"kind": "no_usage"},
            {"kind": "slow", "tokensPerSecond": 10},
        ]  # fmt: skip
        faults = [dict(self.chance.choice(kinds)) for _ in range(self.chance.randint(1, 6))]
        self.done["model faults"] += len(faults)
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{self.cluster.model_url}/dev/faults", json=faults),
        ):
            pass


async def end_all(tasks: Iterable[asyncio.Future[None]]) -> None:
    """Cancels tasks and waits for their ends."""
    left = [task for task in tasks if not task.done()]
    for task in left:
        task.cancel()
    if left:
        await asyncio.wait(left, timeout=5)


async def set_faults(cluster: Cluster, faults: list[dict[str, Any]]) -> None:
    """What the model's next calls come to."""
    async with aiohttp.ClientSession() as session, session.post(f"{cluster.model_url}/dev/faults", json=faults):
        pass


async def tenant(url: str, admin_key: str, limits: dict[str, Any]) -> str:
    """A tenant's key."""
    headers = {"Authorization": f"Bearer {admin_key}"}
    async with aiohttp.ClientSession(headers=headers, raise_for_status=True) as session:
        async with session.post(f"{url}/api/admin/tenants", json={"name": "chaos", "limits": limits}) as answer:
            tenant_id = (await answer.json())["tenantId"]
        async with session.post(f"{url}/api/admin/tenants/{tenant_id}/keys", json={}) as answer:
            return str((await answer.json())["key"])


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
            for limits in ({}, {"weight": 3}, {"maxConcurrentJobs": 5})
        ]
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
            await faults.run(lambda: loading.done() or time.monotonic() > deadline, (0.3, 2.0))
            faulty_s = time.monotonic() - started
            # The faults are over: everything must come to its end by itself.
            await set_faults(cluster, [])
            await cluster.until_ready()
            done, _ = await asyncio.wait([loading], timeout=SETTLE_S)
            if not done:
                loading.cancel()
                await asyncio.wait([loading])
            elif loading.exception() is not None:
                raise loading.exception() or RuntimeError
            await clients.read_all()
            listed = {key: await clients.list_ids(key) for key in keys}
            async with (
                aiohttp.ClientSession() as session,
                session.get(f"{cluster.model_url}/dev/stats?calls") as answer,
            ):
                calls = model_calls(await answer.json())
        acknowledged = [seen for seen in clients.jobs if seen.job_id]
        for seen in acknowledged:
            check_job(seen, report.violations)
        check_keys(clients.jobs, listed, report.violations)
        check_structures(cluster.redis_url, report.violations)
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
