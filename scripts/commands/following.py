"""Jobs to their end."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

from scripts.client import Client
from scripts.commands.parsing import job_path
from scripts.commands.printing import note, outcome_code

FINAL = ("complete", "failed", "cancelled", "expired")


@contextmanager
def going_on(job_id: str, follow: str = "tail") -> Iterator[None]:
    """Ctrl-C ends the command and not the job: says which commands (`follow` among them) go on with it."""
    try:
        yield
    except asyncio.CancelledError:
        note(f"{job_id} goes on: errand jobs {follow} {job_id} follows it, errand jobs cancel {job_id} ends it")
        raise


async def wait(client: Client, job_id: str) -> dict[str, Any]:
    """The job at its end."""
    while True:
        job: dict[str, Any] = await client.call("GET", f"{job_path(job_id)}?wait=30")
        if job["status"] in FINAL:
            return job


async def tail(client: Client, arguments: argparse.Namespace, job_id: str, after: int) -> int:
    """Follows a job to its end, through broken connections."""
    with going_on(job_id):
        await _show_events(client, arguments, job_id, after)
    return outcome_code(await client.call("GET", job_path(job_id)))


async def _show_events(client: Client, arguments: argparse.Namespace, job_id: str, after: int) -> None:
    text = ""  # the last that was printed of the model's
    async for event in client.events(quote(job_id, safe=""), after):
        if arguments.json:
            print(json.dumps(event, ensure_ascii=False), flush=True)
        elif event["type"] == "delta":
            text = event["text"]
            print(text, end="", flush=True)
        elif event["type"] not in ("replay.end", "job.usage"):
            rest = {name: value for name, value in event.items() if name not in ("seq", "type", "at")}
            line = f"[{event.get('seq', '')} {event['type']}] {json.dumps(rest, ensure_ascii=False) if rest else ''}"
            print(("" if not text or text.endswith("\n") else "\n") + line.rstrip(), flush=True)
            text = ""
