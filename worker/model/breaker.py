"""A circuit breaker: a model that fails again and again is left alone for a while, then tried with one call.

Closed, open, half-open as in Nygard, "Release It!" (2007). Only failures of the server count: a 429 or a refused
request shows that it is alive.
"""

from __future__ import annotations

from typing import Final

from shared.clock import monotonic_s
from shared.errors import CircuitOpen
from shared.log import get_logger
from shared.metrics import BREAKERS_OPENED
from shared.tracing import plain_name

log = get_logger()

LONGEST_S: Final = 300.0  # that a model is left alone


class Breaker:
    """The breaker of one model in one worker."""

    def __init__(self, model: str, *, failures: int, open_s: float) -> None:
        """Opens after `failures` in a row, for `open_s` at first."""
        self._model = model
        self._failures = failures
        self._first_open_s = open_s
        self._open_s = open_s
        self._in_a_row = 0
        self._shut_until_s: float | None = None  # monotonic; None while closed
        self._is_probing = False

    @property
    def state(self) -> str:
        """`closed`, `open` or `half-open`."""
        if self._shut_until_s is None:
            return "closed"
        return "open" if monotonic_s() < self._shut_until_s else "half-open"

    def enter(self) -> bool:
        """A call wants to begin; True when it is the probe. Each that may begin ends with `succeeded`, `failed` or
        `gave_up`. Raises CircuitOpen."""
        if self._shut_until_s is None:
            return False
        left_s = self._shut_until_s - monotonic_s()
        if left_s > 0 or self._is_probing:
            raise CircuitOpen(
                f"the model {self._model!r} failed {self._in_a_row} times in a row and is left alone for a while",
                retry_after_s=max(left_s, 1.0),
            )
        self._is_probing = True
        return True

    def succeeded(self) -> None:
        """The model answered, be it with a refusal."""
        if self._shut_until_s is not None:
            log.info("breaker.closed", model=plain_name(self._model))
        self._in_a_row = 0
        self._open_s = self._first_open_s
        self._shut_until_s = None
        self._is_probing = False

    def failed(self, *, probe: bool) -> None:
        """The model did not answer, or broke off."""
        self._in_a_row += 1
        if probe:
            self._is_probing = False
            self._open_s = min(self._open_s * 2, LONGEST_S)
            self._open()
        elif self._shut_until_s is None and self._in_a_row >= self._failures:
            self._open()

    def _open(self) -> None:
        self._shut_until_s = monotonic_s() + self._open_s
        BREAKERS_OPENED.inc()
        log.warning("breaker.opened", model=plain_name(self._model), failures=self._in_a_row, seconds=self._open_s)

    def gave_up(self, *, probe: bool) -> None:
        """The call was cancelled: that tells nothing of the model."""
        if probe:
            self._is_probing = False
