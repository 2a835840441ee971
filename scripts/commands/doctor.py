"""`errand doctor`: what works and what does not, with what mends it.

Exit codes: 0 nothing fails (warnings may be there); 1 something fails; 2 nothing was reached.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import Any, Final

import msgspec

from scripts.client import ApiError, Client, UnreachableError
from scripts.commands.doctor_local import local_checks
from scripts.commands.parsing import Commands
from scripts.commands.printing import out
from shared.diagnosis.findings import Check, Diagnosis, State, Subject, worst
from shared.redis_url import redacted
from shared.version import our_version
from shared.workers import WorkerRecord

API_S: Final = 5.0
DIAGNOSIS_S: Final = 60.0
REACHES: Final = frozenset({Subject.API, Subject.REDIS, Subject.MODEL})
"""Subjects that are something elsewhere: when none of these was reached, nothing was."""


class Report(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What the command found. `source`: `api`, or `local` where no API told it."""

    state: State
    source: str
    checks: tuple[Check, ...]
    workers: tuple[WorkerRecord, ...] = ()


async def doctor(client: Client, arguments: argparse.Namespace) -> int:
    """Checks the installation. Returns the exit code."""
    checks = [await _api(client)]
    workers: tuple[WorkerRecord, ...] = ()
    is_there, is_told = checks[0].state is State.OK, False
    if is_there:
        told, diagnosis = await _diagnosis(client)
        checks.extend(told)
        if diagnosis is not None:
            is_told, workers = True, diagnosis.workers
            checks.extend(diagnosis.checks)
    if not is_told:
        checks.extend(await local_checks(client.url, is_there=is_there))
    report = Report(
        state=worst(check.state for check in checks),
        source="api" if is_told else "local",
        checks=tuple(checks),
        workers=workers,
    )
    out(arguments, msgspec.to_builtins(report), text_of(report))
    if not any(check.check in REACHES and check.state is not State.FAIL for check in checks):
        return 2
    return 1 if report.state is State.FAIL else 0


def text_of(report: Report) -> str:
    """One line for each check, and below one that is not `ok` what to do."""
    width = max(len(check.check) for check in report.checks)
    lines = []
    for check in report.checks:
        lines.append(f"{check.state:<4}  {check.check:<{width}}  {check.found}")
        lines.extend(f"{'':<{width + 6}}  → {advice}" for advice in check.advice)
    for worker in report.workers:
        slots = ", ".join(f"{lane} {count}" for lane, count in sorted(worker.slots.items()))
        model = worker.model.state if worker.model else "unknown"
        state = ", draining" if worker.draining else ""
        lines.append(
            f"      worker {worker.id} on {worker.host}: {worker.version}, slots {slots}, model {model}{state}"
        )
    counts = [f"{sum(check.state is state for check in report.checks)} {state}" for state in State]
    return "\n".join([*lines, ", ".join(counts)])


async def _api(client: Client) -> Check:
    """Whether an Errand answers."""
    url = redacted(client.url)
    try:
        async with asyncio.timeout(API_S):
            said = await client.call("GET", "/healthz")
    except UnreachableError as error:
        return _no_api(redacted(str(error)), "Start it with ./scripts/start, or let ERRAND_URL name where it runs.")
    except TimeoutError:
        return _no_api(
            f"what listens at {url} does not answer within {API_S:g} s",
            "Look at the API's log; a process that hangs is ended by its supervisor, or by hand.",
        )
    except (ApiError, ValueError):
        said = None
    if not isinstance(said, dict) or said.get("status") != "ok":
        return _no_api(
            f"something else than Errand answers at {url}", "Let PORT name another port, or ERRAND_URL where Errand is."
        )
    return Check(check=Subject.API, state=State.OK, found=f"answers at {url}")


async def _diagnosis(client: Client) -> tuple[list[Check], Diagnosis | None]:
    """What the API says of itself; when it does not tell this key, why, and what it tells everybody."""
    try:
        async with asyncio.timeout(DIAGNOSIS_S):
            diagnosis = msgspec.convert(await client.call("GET", "/api/admin/diagnosis"), Diagnosis)
    except ApiError as error:
        return [_refused(error), *await _readiness(client)], None
    except (UnreachableError, TimeoutError, msgspec.ValidationError) as error:
        found = f"the API did not end its diagnosis: {str(error)[:200] or type(error).__name__}"
        advice = ("Look at its log. Are the API and this command of one release?",)
        return [Check(check=Subject.API, state=State.FAIL, found=found, advice=advice)], None
    key = Check(check=Subject.KEY, state=State.OK, found="is valid and has the scope admin")
    if diagnosis.version == our_version():
        return [key], diagnosis
    version = Check(
        check=Subject.VERSIONS,
        state=State.WARN,
        found=f"this command is of {our_version()}, the API of {diagnosis.version}",
        advice=("Use the command of the API's release.",),
    )
    return [key, version], diagnosis


def _refused(error: ApiError) -> Check:
    status = error.problem.get("status")
    if status == 401:
        return Check(
            check=Subject.KEY,
            state=State.FAIL,
            found="the API does not know this key",
            advice=("Set ERRAND_KEY to the admin key: that in ERRAND_ADMIN_KEY, or in the API's data directory, file "
                    "admin.key.",),
        )  # fmt: skip
    if status == 403:
        return Check(
            check=Subject.KEY,
            state=State.FAIL,
            found="the key has not the scope admin",
            advice=("Set ERRAND_KEY to an admin key, or: errand keys change KEY --scopes admin,jobs,…",),
        )
    if status in (404, 405):
        return Check(
            check=Subject.VERSIONS,
            state=State.WARN,
            found=f"the API is of a release that has no diagnosis; this command is of {our_version()}",
            advice=("Upgrade the API (docs/upgrading.md), or use the command of its release.",),
        )
    return Check(
        check=Subject.API,
        state=State.FAIL,
        found=f"the API cannot say how it is: {error}",
        advice=("Look at its log; mostly its Redis is away.",),
    )


async def _readiness(client: Client) -> list[Check]:
    """What `/readyz` tells, which needs no key."""
    try:
        async with asyncio.timeout(API_S):
            said: Any = await client.call("GET", "/readyz")
        return [Check(check=Subject.API, state=State.OK, found=f"says that a job would run: {_shown(said)}")]
    except ApiError as error:
        return [
            Check(
                check=Subject.API,
                state=State.FAIL,
                found=f"says that no job would run: {_shown(error.problem)}",
                advice=("Mend what it names; with an admin key in ERRAND_KEY this command says how.",),
            )
        ]
    except (UnreachableError, TimeoutError):
        return []


def _shown(said: Any) -> str:
    checks = said.get("checks", said) if isinstance(said, dict) else said
    return redacted(json.dumps(checks, ensure_ascii=False))[:500]


def _no_api(found: str, advice: str) -> Check:
    return Check(check=Subject.API, state=State.FAIL, found=found, advice=(advice,))


def register(commands: Commands) -> None:
    """`doctor`."""
    commands.action(commands.top, "doctor", doctor, "check the installation, and say what mends it")
