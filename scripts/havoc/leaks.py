"""What is left when a run is over: tasks, open files, threads, connections, keys and memory against what there was when
all was idle after the warm-up. One verdict for each."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Final

import aiohttp
import msgspec

from scripts.havoc.cluster import Cluster, Member
from scripts.havoc.leftovers import Leftovers
from scripts.havoc.loads.ground import Ground
from scripts.havoc.slopes import Point, second_half, theil_sen
from scripts.havoc.watch import MEASURABLE, Sample, Watch
from shared.blobs.local import INCOMING
from shared.upkeep import UNFINISHED_S

IDLE_S: Final = 60.0  # connections that nobody uses are closed by then
SWEPT_S: Final = 150.0
GOES_S: Final = 30.0  # a chat that has ended is looked for until its reader might have gone
# What may differ between two idle moments of one process: a connection of a pool that was not needed before (a pool
# never shrinks), a request that is being answered.
FILES: Final = 24  # an API of a short run had 15 more, each a connection that some moment had needed
TASKS: Final = 1
THREADS: Final = 12  # of asyncio's and the documents' executors, which grow to their bound with the load
CLIENTS: Final = 4  # of Redis, for each process, all processes together
CHANNELS: Final = 0
BARE_MB: Final = 8.0  # Redis's buffers
# Growth in the second half of the run. What really leaks does so with each job, and a job that leaks 1 kB is a defect.
JUDGED_MIN: Final = 4.0  # shorter runs are all warm-up
MB_PER_10_MINUTES: Final = 3.0
KB_PER_JOB: Final = 1.0


class Verdict(msgspec.Struct, frozen=True):
    """One check; `is_good` None: the run was too short, or the platform does not tell."""

    what: str
    is_good: bool | None
    says: str

    def line(self) -> str:
        """As it is printed."""
        word = {True: "ok", False: "LEAK", None: "not judged"}[self.is_good]
        return f"{self.what:<44}{word}: {self.says}"


class Baseline(msgspec.Struct, frozen=True):
    """All idle, after the warm-up."""

    processes: dict[str, Sample]
    clients: int
    channels: int
    bare_bytes: int


class Aftermath:
    """Looks for leaks, before a run and after it."""

    def __init__(self, cluster: Cluster, watch: Watch, ground: Ground) -> None:
        self._cluster = cluster
        self._watch = watch
        self._ground = ground
        self._left = Leftovers(cluster.redis_url)
        self.verdicts: list[Verdict] = []
        self._baseline: Baseline | None = None

    def close(self) -> None:
        """Ends the connection."""
        self._left.close()

    async def settle(self) -> Baseline:
        """The state of all processes now, when nothing runs."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=4)) as session:
            await self._watch.look(session)
        latest = {member.name: self._watch.latest(member) for member in self._cluster.members}
        now = self._watch.redis[-1]
        processes = {name: sample for name, sample in latest.items() if sample is not None}
        return Baseline(processes, now.clients, now.channels, await asyncio.to_thread(self._left.bare_bytes))

    async def begin(self) -> None:
        """Notes the baseline."""
        self._baseline = await self.settle()

    async def end(self, jobs: int) -> None:
        """All verdicts. `jobs`: how many the run made. Everything is over; the tenants are erased here."""
        await self._sweep("all that is over is removed")
        await self._judge_keys("keys of tenants that are idle")
        tenants = list(self._ground.tenants)
        for start in range(0, len(tenants), 3):
            await asyncio.gather(*(self._ground.erase_tenant(tenant) for tenant in tenants[start : start + 3]))
        await self._sweep("the erasures' own jobs are removed")
        await self._judge_keys("keys without a tenant")
        await self._judge_traces()
        await self._judge_idle()
        self._judge_memory(jobs)

    def _add(self, what: str, is_good: bool | None, says: str) -> None:
        self.verdicts.append(Verdict(what, is_good, says))

    async def _sweep(self, what: str) -> None:
        """Lets the time of all that is final be over, and of what killed writers left."""
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        await asyncio.to_thread(self._left.hasten)
        incoming = self._ground.folder / "blobs" / INCOMING
        await asyncio.to_thread(_age, incoming)
        is_swept = False
        while not is_swept and loop.time() < started_s + SWEPT_S:
            await asyncio.sleep(0.5)
            is_swept = await asyncio.to_thread(self._left.is_swept) and not any(incoming.glob("*"))
        self._add(what, is_swept, f"after {loop.time() - started_s:.0f} s")

    async def _judge_keys(self, what: str) -> None:
        deadline_s = asyncio.get_running_loop().time() + GOES_S
        while wrong := await asyncio.to_thread(self._left.wrong):
            if asyncio.get_running_loop().time() > deadline_s:
                break
            await asyncio.sleep(1)
        counts = await asyncio.to_thread(self._left.counts)
        self._add(what, not wrong, "; ".join(wrong) if wrong else f"{counts.total()} of {len(counts)} kinds that stay")

    async def _judge_traces(self) -> None:
        erased = self._ground.erased
        traces = await asyncio.to_thread(self._left.traces, erased)
        blobs = [str(path) for path in (self._ground.folder / "blobs").rglob("*") if path.is_file()]
        traces += [path for path in blobs if any(tenant in path for tenant in erased)]
        self._add(f"nothing of {len(erased)} erased tenants", not traces, "; ".join(traces[:5]) or "no key, no blob")
        self._add("blobs without an owner", not blobs, "; ".join(blobs[:3]) or "none")

    async def _judge_idle(self) -> None:
        """Counts are back where they were; connections need a while."""
        assert self._baseline is not None
        await self._ground.clients.renew()
        deadline_s = asyncio.get_running_loop().time() + IDLE_S
        while True:
            verdicts = self._compare(self._baseline, await self.settle())
            if all(one.is_good is not False for one in verdicts) or asyncio.get_running_loop().time() > deadline_s:
                break
            await asyncio.sleep(2)
        self.verdicts += verdicts

    def _compare(self, before: Baseline, now: Baseline) -> list[Verdict]:
        found = []
        for what, name, bound in (
            ("tasks", "tasks", TASKS), ("open files", "files", FILES), ("threads", "threads", THREADS)
        ):  # fmt: skip
            pairs = {
                member: (getattr(sample, name), getattr(now.processes[member], name))
                for member, sample in before.processes.items()
                if member in now.processes
            }
            if name == "files" and (redis := self._cluster.redis.name) in pairs:
                # Its clients' connections have a verdict of their own.
                was, there = pairs[redis]
                pairs[redis] = was - before.clients, there - now.clients
            bad = {member: pair for member, pair in pairs.items() if pair[1] > pair[0] + bound}
            shown = ", ".join(f"{member} {was}→{there}" for member, (was, there) in (bad or pairs).items() if there)
            measured = name == "tasks" or MEASURABLE
            found.append(Verdict(f"{what}, at most {bound} more", not bad if measured else None, shown))
        clients = now.clients - before.clients
        bound = CLIENTS * (len(self._cluster.apis) + len(self._cluster.workers))
        found.append(Verdict("Redis connections", clients <= bound, f"{before.clients}→{now.clients}"))
        channels = f"{before.channels}→{now.channels}"
        found.append(Verdict("subscribed channels", now.channels <= before.channels + CHANNELS, channels))
        bare_mb = (now.bare_bytes - before.bare_bytes) / 1e6
        found.append(Verdict("Redis memory beside its keys", bare_mb <= BARE_MB, f"{bare_mb:+.1f} MB"))
        return found

    def _judge_memory(self, jobs: int) -> None:
        """Growth of the processes that no fault killed, in the second half of the run."""
        for member in self._cluster.spared:
            self._judge_growth(f"memory of {member.name}", rss_of(self._watch.samples[member.name], member), jobs)
        bare = [(one.at_s, one.used_mb) for one in self._watch.redis]
        slope = theil_sen(second_half(bare)) * 600
        self._add("memory of Redis, second half", None, f"{slope:+.1f} MB in 10 minutes, keys that stay included")

    def _judge_growth(self, what: str, points: list[Point], jobs: int) -> None:
        half = second_half(points)
        if not MEASURABLE or not half:
            self._add(what, None, "this platform does not tell it")
            return
        slope = theil_sen(half)
        lasted_s = points[-1][0] - points[0][0]
        in_ten_mb, each_kb = slope * 600, slope * lasted_s * 1000 / max(jobs, 1)
        grown = f"second half {in_ten_mb:+.1f} MB in 10 minutes, {each_kb:+.2f} kB a job"
        says = f"{points[0][1]:.0f}→{points[-1][1]:.0f} MB; {grown}"
        is_good = None if lasted_s < JUDGED_MIN * 60 else in_ten_mb <= MB_PER_10_MINUTES or each_kb <= KB_PER_JOB
        self._add(what, is_good, says)


def _age(incoming: Path) -> None:
    """As if nobody had written there for a long time."""
    for path in incoming.glob("*"):
        long_ago_s = time.time() - 2 * UNFINISHED_S
        os.utime(path, (long_ago_s, long_ago_s))


def rss_of(samples: list[Sample], member: Member) -> list[Point]:
    """Memory of a process over time, as it runs now."""
    pid = member.process.pid if member.process is not None else 0
    return [(one.at_s, one.rss_mb) for one in samples if one.pid == pid]
