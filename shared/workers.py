"""What a live worker says of itself: for Prometheus's discovery, for operators, and for `errand doctor`."""

from __future__ import annotations

import socket
from enum import StrEnum
from typing import Final

import msgspec

from shared.settings import Settings

WILDCARDS: Final = ("0.0.0.0", "::", "")  # noqa: S104 - compared, not bound


class ModelState(StrEnum):
    """What a worker last knew of its model's server. `refused`: it answers, and takes our key or quota no more."""

    REACHABLE = "reachable"
    REFUSED = "refused"
    UNREACHABLE = "unreachable"
    UNKNOWN = "unknown"


class ModelSeen(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """The same with its time, by Redis's clock in ms, and why where it is not reachable. Never what the server says of
    a request: that may quote it."""

    state: ModelState
    checked_ms: int
    error: str | None = None


class WorkerRecord(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """One worker process, as its last heartbeat left it.

    `slots` by lane; `metrics` is `host:port` of its own metrics, None where it serves none; `started_ms` by Redis's
    clock, `clock_offset_ms` how far the host's clock is ahead of that; `draining`: it takes no more jobs; `model`:
    what it last knew of its model, None in a release before that was written.
    """

    id: str
    host: str
    pid: int
    version: str
    slots: dict[str, int]
    started_ms: int
    metrics: str | None = None
    clock_offset_ms: int = 0
    draining: bool = False
    model: ModelSeen | None = None


def advertised(settings: Settings, port: int) -> str:
    """Where others find the metrics of this worker: `host:port`. One that listens on all addresses names its host."""
    host = settings.worker_metrics_advertise or settings.worker_metrics_host
    if host in WILDCARDS:
        host = socket.gethostname()
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
