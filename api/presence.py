"""Who is there: connections that are ended when their client goes or their key is revoked, and jobs that live only
while somebody listens to them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

from aiohttp import web

from api.keys import PRINCIPAL, SESSIONS
from api.server import EdgeHandler
from shared.errors import RefusedError
from shared.log import get_logger
from shared.redis import OUTAGE
from shared.scope import apart
from shared.stores.access import AccessStore, Presented
from shared.stores.jobs import JobsStore
from shared.upkeep import Upkeep

log = get_logger()

CHECK_S: Final = 2.0  # a key that ended without notice (it expired, or the notice was lost) is found by this
RENEW_S: Final = 2.0
BATCH: Final = 500


class Sessions:
    """The open streams and sockets of each key: they end with it, or with the secret that they came with."""

    def __init__(self, access: AccessStore) -> None:
        self._access = access
        self._ends: dict[Presented, set[Callable[[], None]]] = {}

    @contextmanager
    def open(self, presented: Presented, end: Callable[[], None]) -> Iterator[None]:
        """While this lasts, `end()` is called when the key or its secret ends."""
        self._ends.setdefault(presented, set()).add(end)
        try:
            yield
        finally:
            ends = self._ends.get(presented, set())
            ends.discard(end)
            if not ends:
                self._ends.pop(presented, None)

    def revoked(self, key_id: str, live: frozenset[str]) -> None:
        """The key was changed: only the secrets with these marks live on; a ticket does while there are any."""
        for presented in [one for one in self._ends if one[0] == key_id]:
            if not live or (presented[1] and presented[1] not in live):
                self._end(presented)

    def _end(self, presented: Presented) -> None:
        for end in list(self._ends.get(presented, ())):
            end()

    async def run(self) -> None:
        """Looks for ever whether the keys still stand."""
        while True:
            await asyncio.sleep(CHECK_S)
            try:
                for presented in await self._access.ended(list(self._ends)):
                    log.info("sessions.ended", key=presented[0])
                    self._end(presented)
            except OUTAGE:
                pass  # nobody is cut off because Redis is away
            except Exception:
                log.exception("sessions.failed")


@contextmanager
def until_hang_up(request: web.Request) -> Iterator[Callable[[], None]]:
    """While the client is there and its key stands. Otherwise the handler is stopped where it waits: not only at its
    next write, which may be minutes away. Yields what to call when the answer is complete: then the client may go.

    Raises ConnectionResetError, or RefusedError `unauthenticated` when the key ended before the answer began.
    """
    task = asyncio.current_task()
    assert task is not None
    hung_up = key_ended = complete = False

    def end() -> None:
        nonlocal hung_up
        if not hung_up and not complete:
            hung_up = True
            task.cancel()

    def end_key() -> None:
        nonlocal key_ended
        key_ended = True
        if (transport := request.transport) is not None and transport.get_write_buffer_size():
            transport.abort()  # it does not read: a regular end would wait for it
        end()

    def done() -> None:
        nonlocal complete
        complete = True

    handler = request.protocol
    assert isinstance(handler, EdgeHandler)
    if handler.transport is None or handler.transport.is_closing():
        raise ConnectionResetError("the client went away")
    handler.on_lost.add(end)
    try:
        with request.app[SESSIONS].open(request[PRINCIPAL].presented, end_key):
            yield done
    except asyncio.CancelledError:
        if hung_up and task.uncancel() == 0:
            if key_ended and not request.writer.output_size:
                raise RefusedError("unauthenticated", "The key was revoked or rotated, or has expired.") from None
            raise ConnectionResetError("the client went away, or its key ended") from None
        raise
    finally:
        handler.on_lost.discard(end)


class Audience:
    """Keeps the jobs alive that somebody in this process listens to; when the last listener goes, the grace begins."""

    def __init__(self, jobs: JobsStore, upkeep: Upkeep) -> None:
        self._jobs = jobs
        self._upkeep = upkeep
        self._listeners: Counter[str] = Counter()
        self._grace_ms: dict[str, int] = {}
        self._wake = asyncio.Event()
        self._pause_s = RENEW_S
        self._leaving: set[asyncio.Task[None]] = set()

    @contextmanager
    def listener(self, job_id: str, grace_ms: int) -> Iterator[None]:
        """While somebody listens to the job; nothing for a job that needs no listener (`grace_ms` 0)."""
        if not grace_ms:
            yield
            return
        self._listeners[job_id] += 1
        self._grace_ms[job_id] = grace_ms
        if grace_ms / 3000 < self._pause_s:
            self._wake.set()  # it cannot wait for the next round
        try:
            yield
        finally:
            self._listeners[job_id] -= 1
            if self._listeners[job_id] <= 0:
                del self._listeners[job_id], self._grace_ms[job_id]
                task = asyncio.create_task(self._left(job_id, grace_ms), name="listener-left", context=apart())
                self._leaving.add(task)
                task.add_done_callback(self._leaving.discard)

    async def _left(self, job_id: str, grace_ms: int) -> None:
        with suppress(*OUTAGE):  # its time runs from the last renewal then
            await self._jobs.listen([(job_id, grace_ms)])
        self._upkeep.look_in(grace_ms / 1000 + 0.02)

    async def run(self) -> None:
        """Renews for ever, at least three times within each job's grace."""
        while True:
            self._wake.clear()
            jobs = list(self._grace_ms.items())
            try:
                for start in range(0, len(jobs), BATCH):
                    await self._jobs.listen(jobs[start : start + BATCH])
            except OUTAGE:
                pass  # after an outage nobody is cut off before all have had time to renew
            except Exception:
                log.exception("audience.failed")
            shortest_s = min((grace_ms for _, grace_ms in jobs), default=60_000) / 3000
            self._pause_s = min(RENEW_S, shortest_s)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._pause_s):
                    await self._wake.wait()
