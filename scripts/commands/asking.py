"""Questions to the model, and goals for agents."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

from scripts.client import ApiError, Client
from scripts.commands.following import going_on, wait
from scripts.commands.live import Live
from scripts.commands.parsing import Commands, add_prompt, as_answer, job_path, positive, prompt_ref, without_none
from scripts.commands.printing import failure_text, note, out, outcome_code, usage_error
from scripts.results import agent_summary

DOCUMENT_ID = re.compile(r"doc_[0-9A-HJKMNP-TV-Z]{26}")


async def chat(client: Client, arguments: argparse.Namespace) -> int:
    """Asks the model and shows its answer as it is made."""
    message = sys.stdin.read() if arguments.message == "-" else arguments.message
    body: dict[str, Any] = {"messages": [{"role": "user", "content": message}] if message else []}
    if arguments.system:
        body["messages"].insert(0, {"role": "system", "content": arguments.system})
    body |= without_none(model=arguments.model, prompt=prompt_ref(arguments))
    if arguments.json:
        print(json.dumps(await client.call("POST", "/api/chat", json=body), indent=2, ensure_ascii=False))
        return 0
    async for text in client.chat(body):
        print(text, end="", flush=True)
    print()
    return 0


async def agent(client: Client, arguments: argparse.Namespace) -> int:
    """Has an agent work towards a goal, and shows what it does."""
    wanted = [name if DOCUMENT_ID.fullmatch(name) else Path(name) for name in arguments.document or ()]
    for path in wanted:
        if isinstance(path, Path) and not path.is_file():
            return usage_error(f"{path} is neither a file nor the id of a document")
    documents = []
    for entry in wanted:
        document_id = await _uploaded(client, entry) if isinstance(entry, Path) else entry
        if document_id is None:
            return 1
        documents.append(document_id)
    about = without_none(documents=documents or None, collection=arguments.collection)
    given = without_none(
        goal=sys.stdin.read() if arguments.goal == "-" else arguments.goal,
        tools=arguments.tool,
        approve=arguments.approve,
        maxSteps=arguments.max_steps,
        context=about or None,
    )
    limits = without_none(
        tokenBudget=arguments.token_budget,
        timeoutSeconds=arguments.timeout,
        model=arguments.model,
        prompt=prompt_ref(arguments),
    )
    job = await client.call("POST", "/api/jobs", json={"type": "agent", "input": given, **limits})
    job_id = job["jobId"]
    with going_on(job_id):
        job = await _follow(client, job_id, None if arguments.json else Live())
    if job is None:
        job = await client.call("GET", job_path(job_id))
        if arguments.json:
            out(arguments, job, "")
        note(
            f"{job_id} waits: errand jobs answer {job_id} ANSWER answers it, errand jobs tail {job_id} follows it then"
        )
        return 1
    if arguments.json:
        out(arguments, job, "")
    elif job["status"] == "complete":
        print(agent_summary(job))
    else:
        note(failure_text(job))
    return outcome_code(job)


async def _uploaded(client: Client, path: Path) -> str | None:
    """The id of a file that is stored now and has been read; None when it cannot be read."""
    document = await client.upload(path, index="false")
    read = await wait(client, document["jobId"])
    if read["status"] != "complete":
        note(f"{path}: {failure_text(read)}")
        return None
    note(f"{path} is {document['documentId']}")
    return str(document["documentId"])


async def _follow(client: Client, job_id: str, live: Live | None) -> dict[str, Any] | None:
    """The job at its end; None when it waits for an answer that nobody can give here."""
    async for event in client.events(quote(job_id, safe="")):
        if live is not None:
            live.show(event)
        if event["type"] == "job.waiting" and event["kind"] == "input":
            if live is None:
                return None
            live.line(f"? {event['question']}")
            if not (sys.stdin.isatty() and sys.stdout.isatty()) or not await _answered(client, job_id, event):
                return None
    job: dict[str, Any] = await client.call("GET", job_path(job_id))
    if live is not None:
        live.ended(job["result"]["answer"] if job["status"] == "complete" else None)
    return job


async def _answered(client: Client, job_id: str, event: dict[str, Any]) -> bool:
    """Whether the person at the terminal gave an answer, or somebody else has."""
    text = ""
    while not text:
        print("> ", end="", flush=True)
        if not (line := await typed_line()):
            print()
            return False
        text = line.strip()
    try:
        body = {"requestId": event["requestId"], "value": as_answer(text)}
        await client.call("POST", f"{job_path(job_id)}/input", json=body)
    except ApiError as error:
        if error.problem.get("code") != "conflict":
            raise
        note(str(error))
    return True


async def typed_line() -> str:
    """A line that is typed; empty at Ctrl-D. Not by `input`, which may miss a Ctrl-C."""
    loop, typed = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), typed.set)
    try:
        await typed.wait()
    finally:
        loop.remove_reader(sys.stdin.fileno())
    return os.read(sys.stdin.fileno(), 65_536).decode(errors="replace")


def register(commands: Commands) -> None:
    """`chat` and `agent`."""
    asking = commands.action(commands.top, "chat", chat, "ask the model")
    asking.add_argument("message", help="what to say; - reads standard input; empty where a --prompt says all")
    asking.add_argument("--system", metavar="TEXT", help="a system message before it")
    asking.add_argument("--model")
    add_prompt(asking)

    working = commands.action(commands.top, "agent", agent, "have an agent work towards a goal, and watch it")
    working.add_argument("goal", help="what it is to find out or do; - reads standard input")
    working.add_argument(
        "--tool",
        action="append",
        metavar="NAME",
        help="a tool that it may use, `server__*` for all of an MCP server (repeatable; default: the built-in ones)",
    )
    working.add_argument(
        "--document",
        action="append",
        metavar="ID_OR_FILE",
        help="a document that it may read; a file is uploaded first (repeatable)",
    )
    working.add_argument("--collection", metavar="NAME", help="a collection that it may search")
    working.add_argument(
        "--approve", action="append", metavar="NAME", help="a tool whose calls need your yes (repeatable)"
    )
    working.add_argument("--max-steps", type=positive, metavar="N", help="most calls of the model (default: 20)")
    working.add_argument("--token-budget", type=positive, metavar="N", help="most tokens, all attempts together")
    working.add_argument("--model")
    add_prompt(working)
    working.add_argument("--timeout", type=float, metavar="SECONDS", help="of one attempt (default: 600)")
