"""What a run's clients saw of each job: the history that is checked."""

from __future__ import annotations

from typing import Any

import msgspec

FINAL = frozenset({"complete", "failed", "cancelled", "expired"})
# What the faults of a run may bring a job to: the model's own, and three lost workers.
EXPECTED_ERRORS = frozenset({"upstream_unavailable", "upstream_rate_limited", "worker_lost"})


class Violations:
    """What was found, by kind; the first few of each with their job."""

    def __init__(self) -> None:
        self.found: dict[str, list[str]] = {}

    def add(self, kind: str, detail: str) -> None:
        """One violation."""
        self.found.setdefault(kind, []).append(detail)

    def __bool__(self) -> bool:
        return bool(self.found)


class Seen(msgspec.Struct):
    """One job as its client saw it. What only its check needs goes when it was checked."""

    ref: str
    key: str
    api_key: str
    body: dict[str, Any]
    kind: str = "jobs"  # of load
    job_id: str = ""
    cancel_state: str = ""  # the status that the answer to DELETE showed
    retries: int = 0
    may_fail: frozenset[str] = EXPECTED_ERRORS
    finals: list[str] = []  # final states that were shown, in order
    streamed: list[int] = []  # event numbers, as they came, over all reconnects
    was_streamed: bool = False
    gaps: int = 0
    view: dict[str, Any] | None = None  # at the end
    events: list[dict[str, Any]] = []  # at the end
    output: list[dict[str, Any]] = []  # of a batch, at the end
    is_checked: bool = False
    lost: int = 0  # times that its worker was lost
    size: int = 0  # characters of its input

    def shrink(self) -> None:
        """Keeps of it what the last look at all jobs needs."""
        self.is_checked, self.was_streamed = True, bool(self.streamed)
        self.lost = sum(event.get("reason") == "workerLost" for event in self.events)
        self.size = len(str(self.body.get("input", "")))
        self.body = {"type": self.body["type"]}
        self.events, self.output, self.streamed = [], [], []
        if self.view is not None:
            self.view = {name: self.view.get(name) for name in ("status", "type", "usage")}
