"""How the commands speak: JSON for programs, lines for people."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from scripts.results import result_text


def out(arguments: argparse.Namespace, value: Any, text: str) -> None:
    """Prints JSON with --json, else the text for a person."""
    print(json.dumps(value, indent=2, ensure_ascii=False) if arguments.json else text)


def note(line: str) -> None:
    """A line beside the output."""
    print(f"errand: {line}", file=sys.stderr, flush=True)


def usage_error(line: str) -> int:
    """One line, exit code 2."""
    note(line)
    return 2


@contextmanager
def sink(out: str | None) -> Iterator[BinaryIO]:
    """The file that is written to, or standard output. Ends the command with 2 when it cannot be opened."""
    if out is None or out == "-":
        yield sys.stdout.buffer
        return
    with ExitStack() as stack:
        try:
            file = stack.enter_context(Path(out).open("wb"))
        except OSError as error:
            raise SystemExit(usage_error(f"{out} cannot be written: {error.strerror}")) from None
        yield file


def table(rows: list[list[str]]) -> str:
    """Columns of even width; the first row is the head."""
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def eta_text(eta: dict[str, Any]) -> str:
    """When a job will probably start."""
    if eta["p90Seconds"] == 0:
        return "starts at once"
    return f"starts in {eta['p50Seconds']:g} to {eta['p90Seconds']:g} s"


def queue_text(queue: dict[str, Any]) -> str:
    """Where a waiting job stands, in one line."""
    parts = [f"waiting on {queue['waitingOn']}"]
    if queue["position"] is not None:
        parts.append(f"position {queue['position']}, {queue['aheadTokens']} tokens ahead")
    if queue["eta"] is not None:
        parts.append(eta_text(queue["eta"]))
    return ", ".join(parts)


def job_text(job: dict[str, Any]) -> str:
    """A job in a few lines, and its result."""
    lines = [f"{job['jobId']}  {job['type']}  {job['status']}"]
    if job["progress"]:
        fraction = job["progress"]["fraction"]
        lines.append(f"  progress  {'' if fraction is None else f'{fraction:.0%} '}{job['progress']['message']}")
    if job["queue"]:
        lines.append(f"  queue     {queue_text(job['queue'])}")
    waiting = job.get("waiting", {})
    if "question" in waiting:
        lines.append(f"  question  {waiting['question']}")
        lines.append(f"            answer it: errand jobs answer {job['jobId']} ANSWER")
    elif waiting:
        lines.append(f"  waiting   {waiting['kind']}")
    lines.append(f"  attempt   {job['attempt']} of {job['maxAttempts']}")
    lines.append(f"  times     created {job['createdAt']}, started {job['startedAt']}, finished {job['finishedAt']}")
    lines.append(f"  usage     {job['usage']['totalTokens']} tokens")
    if "feedback" in job:
        lines.append(f"  feedback  {feedback_text(job['feedback'])}")
    if "output" in job["links"]:
        lines.append(f"  output    {job['links']['output']}  (errand jobs output {job['jobId']})")
    if "error" in job:
        lines.append(f"  error     {job['error']['code']}: {job['error']['message']}")
    if "cancellation" in job:
        lines.append(f"  cancelled {json.dumps(job['cancellation'])}")
    if "result" in job:
        lines.append(result_text(job))
    return "\n".join(lines)


def feedback_text(feedback: dict[str, Any]) -> str:
    """The mean score, and of how many."""
    return f"{feedback['score']:+.2f}, the mean of {feedback['count']}"


def failure_text(job: dict[str, Any]) -> str:
    """Why a job did not complete, in one line."""
    error = job.get("error")
    return f"{job['jobId']} is {job['status']}" + (f": {error['message']} ({error['code']})" if error else "")


def outcome_code(job: dict[str, Any]) -> int:
    """0 for a complete job, 1 for another end."""
    return 0 if job["status"] == "complete" else 1
