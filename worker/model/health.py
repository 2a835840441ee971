"""What this worker knows of its model's server: from its own calls, else from a question that nobody bills."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Final

from shared.clock import monotonic_s, wall_ms
from shared.errors import BadOutput, CircuitOpen, JobError, UpstreamRateLimited, UpstreamRefused, UpstreamUnavailable
from shared.log import get_logger
from shared.redis_url import redacted
from shared.workers import ModelSeen, ModelState

log = get_logger()

QUIET_S: Final = 60.0  # without a call for so long, the server is asked
ASK_S: Final = 5.0
AWAY_SHARE: Final = 0.25  # of that while it is not reached: what was mended is soon seen
REFUSALS: Final = frozenset({401, 403, 429})  # 429 as a refusal: the quota is spent, and waiting does not help


def verdict(error: JobError) -> tuple[ModelState, str | None] | None:
    """What a failed call says of the server, and why; None when it says nothing.

    The reason never has the server's own words: these may quote the request. A server that refuses one request, or
    makes us wait, is there; one that answers 5xx is not.
    """
    if isinstance(error, UpstreamRefused):
        if error.status in REFUSALS:
            return ModelState.REFUSED, f"it answered {error.status}"
        return ModelState.REACHABLE, None
    if isinstance(error, UpstreamRateLimited | BadOutput):
        return ModelState.REACHABLE, None
    if not isinstance(error, UpstreamUnavailable) or isinstance(error, CircuitOpen):
        return None
    if error.status is None:
        return ModelState.UNREACHABLE, redacted(str(error))[:200]
    if error.status >= 500:
        return ModelState.UNREACHABLE, f"it answered {error.status}"
    return ModelState.REACHABLE, None


class Health:
    """The last that was learned. `ask` puts the question; it raises a JobError."""

    def __init__(self, ask: Callable[[], Awaitable[None]], *, quiet_s: float = QUIET_S) -> None:
        self._ask = ask
        self._quiet_s = quiet_s
        self._seen = ModelSeen(state=ModelState.UNKNOWN, checked_ms=wall_ms())
        self._learned_s = -math.inf
        self.on_known: Callable[[], None] | None = None  # called when the first is learned

    def seen(self) -> ModelSeen:
        """What is known; its time by this host's clock."""
        return self._seen

    def answered(self) -> None:
        """A call was answered."""
        self._learn(ModelState.REACHABLE, None)

    def failed(self, error: JobError) -> None:
        """A call failed."""
        if (found := verdict(error)) is not None:
            self._learn(*found)

    async def ask(self) -> ModelSeen:
        """Puts the question now. A server that has no such list (404, 405) is there."""
        try:
            async with asyncio.timeout(ASK_S):
                await self._ask()
            self.answered()
        except TimeoutError:
            self._learn(ModelState.UNREACHABLE, f"it did not answer within {ASK_S:g} s")
        except JobError as error:
            self.failed(error)
        return self._seen

    async def run(self) -> None:
        """Asks at once, and then whenever there was no call for a while; for ever."""
        asked_s = -math.inf
        while True:
            left_s = max(asked_s, self._learned_s) + self._patience_s - monotonic_s()
            if left_s > 0:
                await asyncio.sleep(left_s)
                continue
            try:
                await self.ask()
            except Exception:
                # What is known of the model is for people to read: its loss must not end anything.
                log.exception("model.asking_failed")
            asked_s = monotonic_s()

    @property
    def _patience_s(self) -> float:
        return self._quiet_s if self._seen.state is ModelState.REACHABLE else self._quiet_s * AWAY_SHARE

    def _learn(self, state: ModelState, error: str | None) -> None:
        was_unknown = self._seen.state is ModelState.UNKNOWN
        self._seen = ModelSeen(state=state, checked_ms=wall_ms(), error=error)
        self._learned_s = monotonic_s()
        if was_unknown and self.on_known is not None:
            self.on_known()
