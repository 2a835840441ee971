"""What the records of the workers mean. Pure: records in, checks out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shared.diagnosis.findings import Check, State, Subject
from shared.diagnosis.redis_rules import SKEW_WARN_MS
from shared.diagnosis.redis_rules import clock as clock_check
from shared.workers import ModelState, WorkerRecord


def judge(alive: Mapping[str, int], records: Sequence[WorkerRecord], *, version: str) -> tuple[Check, ...]:
    """All checks of the workers. `alive`: how many take jobs, by lane, also those of a release that writes no record;
    `version`: of the API."""
    return (workers(alive, records), versions(alive, records, version), *clocks(records), model(records))


def workers(alive: Mapping[str, int], records: Sequence[WorkerRecord]) -> Check:
    """Whether somebody takes the jobs of each lane."""
    draining = sum(record.draining for record in records)
    told = [_lane_text(lane, count, records) for lane, count in alive.items()]
    found = "; ".join(told) + (f"; {draining} draining" if draining else "")
    figures = {f"{lane}Workers": float(count) for lane, count in alive.items()}
    if empty := [lane for lane, count in alive.items() if not count]:
        return Check(
            check=Subject.WORKERS,
            state=State.FAIL,
            found=found,
            advice=tuple(f"Jobs on this lane wait for ever: start `python -m worker {lane}`" for lane in empty),
            figures=figures,
        )
    return Check(check=Subject.WORKERS, state=State.OK, found=found, figures=figures)


def _lane_text(lane: str, count: int, records: Sequence[WorkerRecord]) -> str:
    if not count:
        return f"no worker on {lane}"
    slots = sum(record.slots.get(lane, 0) for record in records if not record.draining)
    return f"{count} on {lane}" + (f" with {slots} slots" if slots else "")


def versions(alive: Mapping[str, int], records: Sequence[WorkerRecord], version: str) -> Check:
    """Whether all processes are of one release."""
    others = sorted({record.version for record in records} - {version})
    recorded = {lane: sum(lane in record.slots and not record.draining for record in records) for lane in alive}
    silent = max((count - recorded[lane] for lane, count in alive.items()), default=0)
    if not others and silent <= 0:
        return Check(check=Subject.VERSIONS, state=State.OK, found=f"the API and all workers run {version}")
    parts = [f"{record.id} on {record.host} runs {record.version}" for record in records if record.version in others]
    if silent > 0:
        parts.append(f"{silent} worker{'s' if silent > 1 else ''} of a release before 0.2")
    return Check(
        check=Subject.VERSIONS,
        state=State.WARN,
        found=f"the API runs {version}; " + "; ".join(parts),
        advice=("Bring all processes to one release, in the order of docs/upgrading.md.",),
    )


def clocks(records: Sequence[WorkerRecord]) -> tuple[Check, ...]:
    """One check for each worker whose clock is wrong; none when all are right."""
    return tuple(
        clock_check(record.clock_offset_ms, 0.0, f"the clock of worker {record.id} on {record.host}")
        for record in records
        if abs(record.clock_offset_ms) >= SKEW_WARN_MS
    )


def model(records: Sequence[WorkerRecord]) -> Check:
    """Whether the workers reach the model: what each last knew of it."""
    states: dict[ModelState, list[WorkerRecord]] = {}
    for record in records:
        states.setdefault(record.model.state if record.model else ModelState.UNKNOWN, []).append(record)
    refused, away = states.get(ModelState.REFUSED, []), states.get(ModelState.UNREACHABLE, [])
    reached = len(states.get(ModelState.REACHABLE, []))
    figures = {state.value: float(len(states.get(state, []))) for state in ModelState}
    if not refused and not away:
        if reached:
            found = (
                f"{reached} of {len(records)} workers reach it" if reached < len(records) else "all workers reach it"
            )
            return Check(check=Subject.MODEL, state=State.OK, found=found, figures=figures)
        return Check(
            check=Subject.MODEL,
            state=State.WARN,
            found="no worker has said yet whether it reaches the model",
            advice=("Start a worker of this release; it says so within some seconds.",),
            figures=figures,
        )
    parts, advice = [], []
    if refused:
        parts.append(f"it refuses {_names(refused)} ({_errors(refused)})")
        advice.append("Set OPENAI_API_KEY to a key that this model takes, and restart the workers.")
    if away:
        parts.append(f"{_names(away)} cannot reach it ({_errors(away)})")
        advice.append(
            "Is OPENAI_BASE_URL right, with its /v1, and does the server run? Try `curl $OPENAI_BASE_URL/models` there."
        )
    return Check(
        check=Subject.MODEL,
        state=State.WARN if reached else State.FAIL,
        found="; ".join(parts) + (f"; {reached} workers reach it" if reached else ""),
        advice=tuple(advice),
        figures=figures,
    )


def _names(records: Sequence[WorkerRecord]) -> str:
    shown = ", ".join(record.id for record in records[:3])
    return shown if len(records) <= 3 else f"{shown} and {len(records) - 3} more"


def _errors(records: Sequence[WorkerRecord]) -> str:
    return "; ".join(sorted({record.model.error or "no reason given" for record in records if record.model}))
