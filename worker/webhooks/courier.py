"""A worker's courier: takes deliveries that are due, sends them, and reports. It runs beside the jobs and takes none of
their slots; what it holds when its process is killed is given out again after the lease."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import suppress
from typing import Final

import msgspec

from shared.clock import monotonic_s
from shared.log import get_logger
from shared.metrics import (
    REDIS_OUTAGES,
    WEBHOOK_ATTEMPTS,
    WEBHOOK_LATENCY,
    WEBHOOK_SECONDS,
    WEBHOOKS_REPAIRED,
    WEBHOOKS_UNDER_WAY,
)
from shared.redis import OUTAGE
from shared.settings import Settings
from shared.stores.webhooks import REPAIR_LIMIT, Taken, WebhooksStore
from shared.webhook_payload import payload
from shared.webhook_signing import signed_headers
from shared.webhooks import Attempt, Due, Ended, host_of
from worker.webhooks.sender import Sender
from worker.webhooks.verdict import Sent, judge

log = get_logger()

NET_S: Final = 2.0  # the slow poll under the wake-up by pub/sub
RECONNECT_S: Final = 0.25
REPAIR_S: Final = 5.0
MOST_AT_ONCE: Final = 64
MOST_EACH: Final = 8  # requests under way at one endpoint, over all workers
LEASE_SLACK_S: Final = 10.0  # beyond the request's own bound: to report, also over a short outage of Redis
REPORT_S: Final = 2.0  # at the end of the process


def shares_of(concurrency: int) -> tuple[int, int]:
    """Of so many requests of a process: how many at most are one tenant's, and how many go to one endpoint of it. One
    that hangs leaves room for others of its tenant, and a tenant for other tenants."""
    share = max(1, concurrency // 2)
    return share, max(1, min(MOST_EACH, share // 4))


class Courier:
    """Sends for one worker process."""

    def __init__(self, store: WebhooksStore, sender: Sender, settings: Settings) -> None:
        self._store = store
        self._sender = sender
        self._most = settings.webhook_concurrency
        self._share, self._each = shares_of(settings.webhook_concurrency)
        self._lease_ms = round((settings.webhook_seconds + LEASE_SLACK_S) * 1000)
        self._under_way: dict[asyncio.Task[None], Due] = {}
        self._ended: list[Ended] = []
        self._reporting = asyncio.Lock()
        self._wake = asyncio.Event()
        self._stopping = False
        self._repair_at_s = 0.0
        # Redis time at a monotonic moment: stamps requests, whatever this machine's clock says.
        self._now_ms, self._at_s = 0, 0.0
        WEBHOOKS_UNDER_WAY.set_function(lambda: len(self._under_way))

    def wake(self) -> None:
        """Something is due, or a request has ended."""
        self._wake.set()

    async def run(self) -> None:
        """Rounds for ever."""
        failing = False
        while True:
            self._wake.clear()
            try:
                wait_s = await self._round()
                failing = False
            except OUTAGE as error:
                REDIS_OUTAGES.labels("worker").inc()
                if not failing:
                    log.warning("courier.held_up", error=str(error))
                failing = True
                await asyncio.sleep(RECONNECT_S)
                continue
            except Exception:
                log.exception("courier.failed")
                await asyncio.sleep(NET_S)
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()

    async def _round(self) -> float:
        """Reports, takes, and says in how many seconds it should be looked again. Raises a member of OUTAGE."""
        if self._stopping:
            await self._report()
            return NET_S
        if monotonic_s() >= self._repair_at_s:
            await self._repair()
        room = min(self._most - len(self._under_way), MOST_AT_ONCE)
        if room <= 0:
            await self._report()
            return NET_S
        # Both go out together, and are run in this order: the endpoints that were reported have room.
        reported, taken = await asyncio.gather(self._report(), self._claim(room), return_exceptions=True)
        if isinstance(taken, BaseException):
            raise taken
        self._begin(taken)
        if isinstance(reported, BaseException):
            raise reported
        if len(taken.due) == room:
            return 0.0
        return NET_S if taken.next_ms is None else min(NET_S, max(0.005, taken.next_ms / 1000))

    async def _claim(self, room: int) -> Taken:
        held = Counter(due.tenant for due in self._under_way.values())
        return await self._store.claim(
            count=room, share=self._share, each=self._each, held=held, lease_ms=self._lease_ms
        )

    def _begin(self, taken: Taken) -> None:
        self._now_ms, self._at_s = taken.now_ms, monotonic_s()
        if taken.unsent:
            WEBHOOK_ATTEMPTS.labels("unsent").inc(taken.unsent)
            log.info("webhook.ended_unsent", deliveries=taken.unsent)
        for due in taken.due:
            task = asyncio.create_task(self._send(due), name="webhook")
            self._under_way[task] = due
            task.add_done_callback(self._sent)

    async def _repair(self) -> None:
        while True:
            looked, noted = await self._store.repair()
            if noted:
                WEBHOOKS_REPAIRED.inc(noted)
                log.warning("webhook.repaired", deliveries=noted)
            if looked < REPAIR_LIMIT:
                break
        self._repair_at_s = monotonic_s() + REPAIR_S * random.uniform(0.8, 1.2)  # noqa: S311

    async def _report(self) -> None:
        """Writes what ended; what could not be written is written the next time. Raises a member of OUTAGE."""
        async with self._reporting:  # whoever closes waits for the report that is under way
            ended, self._ended = self._ended[:MOST_AT_ONCE], self._ended[MOST_AT_ONCE:]
            if not ended:
                return
            try:
                await self._store.done(ended, each=self._each)
            except BaseException:
                self._ended = ended + self._ended
                raise
            if self._ended:
                self._wake.set()

    def _sent(self, task: asyncio.Task[None]) -> None:
        due = self._under_way.pop(task)
        if task.cancelled():
            self._ended.append(Ended(due.delivery_id, due.tenant, due.mark, due.lease, "handback"))
        elif (error := task.exception()) is not None:
            # A defect: the lease runs out, and it is tried again. The error's text may have the URL.
            log.error("webhook.crashed", delivery=due.delivery_id, error=type(error).__name__)
        self._wake.set()

    async def _send(self, due: Due) -> None:
        at_ms = self._clock_ms()
        if due.tries == 0:
            WEBHOOK_LATENCY.observe(max(0, at_ms - due.at_ms) / 1000)
        keys = [key for key in (due.secret, due.old_secret) if key] or [await self._first_secret(due.tenant)]
        body = payload(due.event, due.at_ms, due.row, due.seq, due.result_bytes, due.data)
        headers = signed_headers(keys, due.delivery_id, at_ms // 1000, body)
        sent = await self._sender.post(due.url, headers, body)
        self._ended.append(self._judged(due, at_ms, sent))

    def _judged(self, due: Due, at_ms: int, sent: Sent) -> Ended:
        verdict = judge(sent, due.tries + 1, once=due.once, chance=random.random())  # noqa: S311
        WEBHOOK_ATTEMPTS.labels(verdict.outcome).inc()
        WEBHOOK_SECONDS.labels(verdict.outcome).observe(sent.ms / 1000)
        error = None if sent.error is None else sent.error.value
        say = log.warning if verdict.outcome in ("failed", "gone") else log.info
        say(
            "webhook.attempted",
            delivery=due.delivery_id,
            job=due.job_id,
            tenant=due.tenant,
            webhook_event=due.event,
            host=host_of(due.url),
            outcome=verdict.outcome,
            request=due.tries + 1,
            status=sent.status,
            error=error,
            ms=sent.ms,
        )
        return Ended(
            due.delivery_id,
            due.tenant,
            due.mark,
            due.lease,
            verdict.outcome,
            attempt=msgspec.json.encode(Attempt(at_ms, sent.status, error, sent.ms)).decode(),
            delay_ms=None if verdict.delay_s is None else round(verdict.delay_s * 1000),
            pause_ms=None if verdict.pause_s is None else round(verdict.pause_s * 1000),
        )

    async def _first_secret(self, tenant: str) -> str:
        return (await self._store.secret(tenant)).secret

    def _clock_ms(self) -> int:
        return self._now_ms + round((monotonic_s() - self._at_s) * 1000)

    def stop(self) -> None:
        """Takes no more; what is under way goes on."""
        self._stopping = True

    async def close(self, grace_s: float) -> None:
        """Waits for what is under way, at most so long, hands the rest back, and reports."""
        self.stop()
        if self._under_way:
            await asyncio.wait(list(self._under_way), timeout=grace_s)
        left = list(self._under_way)
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=REPORT_S)
        try:
            async with asyncio.timeout(REPORT_S):
                await self._report()
                while self._ended:
                    await self._report()
        except (*OUTAGE, TimeoutError) as error:
            # Their leases run out, and they are sent once more.
            log.warning("courier.unreported", deliveries=len(self._ended), error=str(error))
        await self._sender.close()
