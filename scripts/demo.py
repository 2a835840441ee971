"""The main job, live: a document goes up, is read part by part, and its analysis comes back with citations."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path
from typing import Any

from scripts.children import say
from scripts.client import ApiError, Client, UnreachableError
from scripts.results import result_text
from scripts.stack import AlreadyRunningError, Stack, install_signals
from shared.errors import ConfigurationError
from shared.settings import Settings

SAMPLE = Path(__file__).parent / "samples" / "harbour-report.md"
QUESTIONS = {
    SAMPLE: [
        "How many ferry passengers did the harbour count?",
        "Why was the east quay closed?",
        "What does the new crane cost?",
    ]
}
DEFAULT_QUESTIONS = ["What is this document about?", "What was decided?"]


def tasks_for(path: Path, questions: list[str]) -> list[dict[str, Any]]:
    """Summary, key points and questions."""
    asked = questions or QUESTIONS.get(path, DEFAULT_QUESTIONS)
    return [{"kind": "summary"}, {"kind": "keyPoints"}, {"kind": "questions", "questions": asked}]


def show_event(event: dict[str, Any]) -> None:
    """A line per event that a person wants to see."""
    at = event.get("at", "")[11:23]
    match event["type"]:
        case "job.queued":
            print(f"  {at}  queued")
        case "job.queue":
            eta = f", starts in about {event['eta']['p50Seconds']:g} s" if event["eta"] else ""
            print(f"  {at}  position {event['position']}{eta}")
        case "job.started":
            print(f"  {at}  started, attempt {event['attempt']}, on {event['worker']}")
        case "job.progress":
            fraction = event["fraction"]
            bar = "" if fraction is None else f"{'█' * round(fraction * 24):░<24} {fraction:4.0%}  "
            print(f"  {at}  {bar}{event['message']}")
        case "job.warning":
            print(f"  {at}  ! {event['message']}")
        case "job.waiting":
            print(f"  {at}  waiting ({event['kind']})")
        case "job.complete" | "job.failed" | "job.cancelled" | "job.expired":
            print(f"  {at}  {event['type'].partition('.')[2]}")


def show_result(job: dict[str, Any]) -> None:
    """The whole result, to read, and what it took."""
    usage = job["usage"]
    print(result_text(job))
    print(f"Used {usage['totalTokens']} tokens ({usage['inputTokens']} in, {usage['outputTokens']} out).")


class Work:
    """The demo's job: submitted once, followed to its end, if need be on another stack of the same data directory."""

    def __init__(self, path: Path, questions: list[str]) -> None:
        self.path = path
        self.questions = questions
        self.job_id: str | None = None
        self.seen = 0

    async def run(self, client: Client) -> int:
        """Uploads the document, follows the job, shows the result. Returns the exit code."""
        if self.job_id is None:
            print(f"Document: {self.path} ({self.path.stat().st_size} bytes)", flush=True)
            document = await client.upload(self.path, index="false")
            source = {"documentId": document["documentId"]}
            tasks = tasks_for(self.path, self.questions)
            body = {"type": "document-analysis", "input": {"document": source, "tasks": tasks}}
            job = await client.call("POST", "/api/jobs", json=body)
            self.job_id = str(job["jobId"])
            print(f"POST /api/jobs → {self.job_id} {job['status']}", flush=True)
        async for event in client.events(self.job_id, self.seen):
            self.seen = event.get("seq", self.seen)
            show_event(event)
            sys.stdout.flush()
        job = await client.call("GET", f"/api/jobs/{self.job_id}")
        if job["status"] != "complete":
            error = job.get("error", {})
            print(f"\nThe job is {job['status']}: {error.get('message', '')} ({error.get('code', '')})")
            return 1
        show_result(job)
        return 0


async def with_signals(stack: Stack, work: Any) -> int:
    """Runs `work` until it is done or a signal comes. Returns the exit code."""
    task = asyncio.ensure_future(work)
    stopping = asyncio.create_task(stack.stopping.wait())
    await asyncio.wait([task, stopping], return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        stopping.cancel()
        return int(task.result())
    task.cancel()
    await asyncio.wait([task])
    return stack.exit_code or 130


async def run(settings: Settings, path: Path, questions: list[str]) -> int:
    """The demo on a stack of its own, or on the one that is running already. Returns the exit code."""
    port = settings.port if os.environ.get("PORT") else 0
    stack = Stack(settings, port=port, log_dir=settings.data_dir / "logs")
    install_signals(stack)
    work = Work(path, questions)
    try:
        say("starting Redis, the model, the API and two workers")
        while not await _started(stack):
            if stack.stopping.is_set():
                return stack.exit_code or 130
            try:
                return await _as_guest(stack, work)
            except UnreachableError:
                say("the stack that was used is gone; starting one to go on with the job")
        if stack.stopping.is_set():
            return stack.exit_code or 130
        if not os.environ.get("OPENAI_BASE_URL") and not os.environ.get("OPENAI_API_KEY"):
            say("no OPENAI_API_KEY: the development model answers; it only quotes what it reads")
        async with Client(stack.url) as client:
            return await with_signals(stack, work.run(client))
    except ConfigurationError as error:
        say(str(error))
        return 2
    except (ApiError, UnreachableError) as error:
        say(str(error))
        return 1
    finally:
        await stack.stop()
        if stack.fault:
            say(stack.fault)


async def _started(stack: Stack) -> bool:
    """Starts the stack; False when another one is ready to be used instead."""
    while not stack.stopping.is_set():
        try:
            await stack.start()
            return True
        except AlreadyRunningError as error:
            if error.url is not None:
                stack.guest_of = error.url
                return False
        await asyncio.sleep(0.2)
    return False


async def _as_guest(stack: Stack, work: Work) -> int:
    say(f"using the stack that is already running at {stack.guest_of}")
    async with Client(stack.guest_of) as client:
        return await with_signals(stack, work.run(client))


def main() -> int:
    """The command. Returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="./scripts/demo",
        description="Analyse a document through the whole system, live, then stop everything.",
    )
    parser.add_argument("file", nargs="?", type=Path, default=SAMPLE, help="a PDF, DOCX, HTML, Markdown or text file")
    parser.add_argument("-q", "--question", action="append", default=[], help="ask this (may be given several times)")
    arguments = parser.parse_args()
    if not arguments.file.is_file():
        say(f"there is no file {arguments.file}")
        return 2
    if arguments.file.stat().st_size == 0:
        say(f"the file {arguments.file} is empty")
        return 2
    if not os.access(arguments.file, os.R_OK):
        say(f"the file {arguments.file} cannot be read")
        return 2
    try:
        settings = Settings.load()
    except ConfigurationError as error:
        say(str(error))
        return 2
    return asyncio.run(run(settings, arguments.file, arguments.question))


if __name__ == "__main__":
    sys.exit(main())
