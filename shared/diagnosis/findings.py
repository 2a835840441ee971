"""What a diagnosis says: one check by subject, with its state, what was found, and what to do."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Final

import msgspec

from shared.workers import WorkerRecord


class State(StrEnum):
    """How a check ended. `warn`: it works, and should be looked at. `fail`: jobs are lost, refused, or do not run."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class Subject(StrEnum):
    """What is looked at. The last five only `errand doctor` itself looks at."""

    REDIS = "redis"
    DURABILITY = "durability"
    PERSISTENCE = "persistence"
    MEMORY = "memory"
    CLIENTS = "clients"
    REPLICATION = "replication"
    LATENCY = "latency"
    FSYNC = "fsync"
    CLOCK = "clock"
    BLOBS = "blobs"
    WORKERS = "workers"
    VERSIONS = "versions"
    MODEL = "model"
    API = "api"
    KEY = "key"
    SETTINGS = "settings"
    PORT = "port"
    PYTHON = "python"


class Check(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One check. `found` in a sentence; `advice`: what to do, each the exact setting or command, empty when `ok`;
    `figures` by name, the unit in it (`p99Ms`, `freeBytes`)."""

    check: Subject
    state: State
    found: str
    advice: tuple[str, ...] = ()
    figures: dict[str, float] = {}


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """All checks of one instant. `state` is the worst of them; `version` the API process's; `workers` all that are
    alive, also those that drain, as they told of themselves."""

    state: State
    version: str
    checks: tuple[Check, ...]
    workers: tuple[WorkerRecord, ...]


class Timing(msgspec.Struct, frozen=True):
    """Times of calls made one after the other, milliseconds: median, and 99th percentile by nearest rank (of fifty
    calls that is the slowest)."""

    p50_ms: float
    p99_ms: float


_ORDER: Final = (State.OK, State.WARN, State.FAIL)


def worst(states: Iterable[State]) -> State:
    """The worst of these; `ok` of none."""
    return max(states, key=_ORDER.index, default=State.OK)


def timing(seconds: Sequence[float]) -> Timing:
    """The percentiles of at least one measurement, in seconds."""
    ranked = sorted(seconds)

    def at(share: float) -> float:
        return round(ranked[max(0, math.ceil(share * len(ranked)) - 1)] * 1000, 3)

    return Timing(at(0.5), at(0.99))


def bytes_text(size: float) -> str:
    """A size for a person: `1.5 GiB`."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
