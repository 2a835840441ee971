"""`./scripts/errand`: the command line over the HTTP API.

Exit codes: 0 done; 1 the API refused, or the job did not complete; 2 wrong usage, or no API was reached.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp

from scripts.client import ApiError, Client, UnreachableError

DEFAULT_TENANT = "ten_00000000000000000000000000"
FINAL = ("complete", "failed", "cancelled", "expired")

Command = Callable[[Client, argparse.Namespace], Awaitable[int]]


def out(arguments: argparse.Namespace, value: Any, text: str) -> None:
    """Prints JSON with --json, else the text for a person."""
    print(json.dumps(value, indent=2, ensure_ascii=False) if arguments.json else text)


def table(rows: list[list[str]]) -> str:
    """Columns of even width; the first row is the head."""
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def queue_text(queue: dict[str, Any]) -> str:
    """Where a waiting job stands, in one line."""
    parts = [f"waiting on {queue['waitingOn']}"]
    if queue["position"] is not None:
        parts.append(f"position {queue['position']}, {queue['aheadTokens']} tokens ahead")
    if queue["eta"] is not None:
        parts.append(f"starts in {queue['eta']['p50Seconds']:g} to {queue['eta']['p90Seconds']:g} s")
    return ", ".join(parts)


def job_text(job: dict[str, Any]) -> str:
    """A job in a few lines."""
    lines = [f"{job['jobId']}  {job['type']}  {job['status']}"]
    if job["progress"]:
        fraction = job["progress"]["fraction"]
        lines.append(f"  progress  {'' if fraction is None else f'{fraction:.0%} '}{job['progress']['message']}")
    if job["queue"]:
        lines.append(f"  queue     {queue_text(job['queue'])}")
    lines.append(f"  attempt   {job['attempt']} of {job['maxAttempts']}")
    lines.append(f"  times     created {job['createdAt']}, started {job['startedAt']}, finished {job['finishedAt']}")
    lines.append(f"  usage     {job['usage']['totalTokens']} tokens")
    if "error" in job:
        lines.append(f"  error     {job['error']['code']}: {job['error']['message']}")
    if "cancellation" in job:
        lines.append(f"  cancelled {json.dumps(job['cancellation'])}")
    if "result" in job:
        lines.append(json.dumps(job["result"], indent=2, ensure_ascii=False))
    return "\n".join(lines)


def read_json_argument(text: str) -> Any:
    """JSON from the argument itself, from `@file`, or from standard input (`-`)."""
    try:
        if text == "-":
            return json.load(sys.stdin)
        if text.startswith("@"):
            return json.loads(Path(text[1:]).read_text())
        return json.loads(text)
    except (ValueError, OSError) as error:
        raise SystemExit(usage_error(f"{text[:60]}: {error}")) from None


def usage_error(line: str) -> int:
    """One line, exit code 2."""
    print(f"errand: {line}", file=sys.stderr)
    return 2


def outcome_code(job: dict[str, Any]) -> int:
    """0 for a complete job, 1 for another end."""
    return 0 if job["status"] == "complete" else 1


async def jobs_submit(client: Client, arguments: argparse.Namespace) -> int:
    """Submits a job; with --wait or --tail, to its end."""
    body: dict[str, Any]
    if arguments.body is not None:
        body = read_json_argument(arguments.body)
    elif arguments.chat is not None:
        body = {"type": "chat", "input": {"messages": [{"role": "user", "content": arguments.chat}]}}
    elif arguments.analyse is not None:
        path = Path(arguments.analyse)
        if not path.is_file():
            return usage_error(f"there is no file {path}")
        document = await client.upload(path)
        tasks: list[dict[str, Any]] = [{"kind": "summary"}, {"kind": "keyPoints"}]
        if arguments.question:
            tasks.append({"kind": "questions", "questions": arguments.question})
        body = {
            "type": "document-analysis",
            "input": {"document": {"documentId": document["documentId"]}, "tasks": tasks},
        }
    else:
        return usage_error("give a body (JSON, @file or -), --chat TEXT or --analyse FILE")
    if isinstance(body, dict):
        for name, value in (
            ("priority", arguments.priority),
            ("model", arguments.model),
            ("user", arguments.user),
        ):
            if value is not None:
                body[name] = value
    headers = {"Idempotency-Key": arguments.idempotency_key} if arguments.idempotency_key else {}
    job = await client.call("POST", "/api/jobs", json=body, headers=headers)
    if arguments.tail:
        return await tail(client, arguments, job["jobId"], 0)
    if arguments.wait:
        job = await wait(client, job["jobId"])
        out(arguments, job, job_text(job))
        return outcome_code(job)
    out(arguments, job, job["jobId"])
    return 0


async def wait(client: Client, job_id: str) -> dict[str, Any]:
    """The job at its end."""
    while True:
        job: dict[str, Any] = await client.call("GET", f"/api/jobs/{quote(job_id, safe='')}?wait=30")
        if job["status"] in FINAL:
            return job


async def jobs_list(client: Client, arguments: argparse.Namespace) -> int:
    """A page of jobs, newest first."""
    names = ("limit", "after", "status", "type", "priority", "user")
    parameters = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    page = await client.call("GET", f"/api/jobs?{urlencode(parameters)}")
    rows = [["JOB", "TYPE", "STATUS", "ATTEMPT", "TOKENS", "CREATED"]]
    for job in page["data"]:
        rows.append([job["jobId"], job["type"], job["status"], f"{job['attempt']}/{job['maxAttempts']}",
                     str(job["usage"]["totalTokens"]), job["createdAt"]])  # fmt: skip
    text = table(rows) + (f"\nmore: --after {page['next']}" if page["hasMore"] else "")
    out(arguments, page, text)
    return 0


async def jobs_show(client: Client, arguments: argparse.Namespace) -> int:
    """One job."""
    job = await client.call("GET", f"/api/jobs/{quote(arguments.job, safe='')}?wait={arguments.wait or 0}")
    out(arguments, job, job_text(job))
    return 0


async def jobs_tail(client: Client, arguments: argparse.Namespace) -> int:
    """A job's events as they happen."""
    return await tail(client, arguments, arguments.job, arguments.after)


async def tail(client: Client, arguments: argparse.Namespace, job_id: str, after: int) -> int:
    """Follows a job to its end, through broken connections."""
    async for event in client.events(quote(job_id, safe=""), after):
        if arguments.json:
            print(json.dumps(event, ensure_ascii=False), flush=True)
        elif event["type"] == "delta":
            print(event["text"], end="", flush=True)
        elif event["type"] not in ("replay.end", "job.usage"):
            rest = {name: value for name, value in event.items() if name not in ("seq", "type", "at")}
            print(
                f"[{event.get('seq', '')} {event['type']}] {json.dumps(rest, ensure_ascii=False) if rest else ''}",
                flush=True,
            )
    job = await client.call("GET", f"/api/jobs/{quote(job_id, safe='')}")
    return outcome_code(job)


async def chat(client: Client, arguments: argparse.Namespace) -> int:
    """Asks the model and shows its answer as it is made."""
    message = sys.stdin.read() if arguments.message == "-" else arguments.message
    body: dict[str, Any] = {"messages": [{"role": "user", "content": message}]}
    if arguments.system:
        body["messages"].insert(0, {"role": "system", "content": arguments.system})
    if arguments.model:
        body["model"] = arguments.model
    if arguments.json:
        print(json.dumps(await client.call("POST", "/api/chat", json=body), indent=2, ensure_ascii=False))
        return 0
    async for text in client.chat(body):
        print(text, end="", flush=True)
    print()
    return 0


async def jobs_answer(client: Client, arguments: argparse.Namespace) -> int:
    """Answers a job that waits for a person."""
    path = f"/api/jobs/{quote(arguments.job, safe='')}"
    waiting = (await client.call("GET", path)).get("waiting") or {}
    try:
        value = json.loads(arguments.value)
    except ValueError:
        value = arguments.value
    request_id = arguments.request or waiting.get("requestId")
    if request_id is None:
        print(f"errand: {arguments.job} does not wait for a person", file=sys.stderr)
        return 1
    body = {"requestId": request_id, "value": value}
    job = await client.call("POST", f"{path}/input", json=body)
    out(arguments, job, job_text(job))
    return 0


async def jobs_cancel(client: Client, arguments: argparse.Namespace) -> int:
    """Cancels a job and waits for the receipt."""
    job = await client.call("DELETE", f"/api/jobs/{quote(arguments.job, safe='')}?wait=10")
    out(arguments, job, job_text(job))
    return 0


async def jobs_retry(client: Client, arguments: argparse.Namespace) -> int:
    """Retries a failed, cancelled or expired job."""
    body: dict[str, Any] = {}
    if arguments.from_start:
        body["from"] = "start"
    if arguments.model:
        body["model"] = arguments.model
    job = await client.call("POST", f"/api/jobs/{quote(arguments.job, safe='')}/retry", json=body)
    out(arguments, job, job_text(job))
    return 0


async def keys_create(client: Client, arguments: argparse.Namespace) -> int:
    """A new key; its secret is shown this once."""
    body: dict[str, Any] = {}
    if arguments.name:
        body["name"] = arguments.name
    if arguments.scopes:
        body["scopes"] = arguments.scopes.split(",")
    if arguments.expires_at:
        body["expiresAt"] = arguments.expires_at
    key = await client.call("POST", f"/api/admin/tenants/{quote(arguments.tenant, safe='')}/keys", json=body)
    out(
        arguments,
        key,
        f"{key['key']}\n(keep it: it is shown this once; id {key['keyId']}, scopes {', '.join(key['scopes'])})",
    )
    return 0


async def keys_list(client: Client, arguments: argparse.Namespace) -> int:
    """A tenant's keys."""
    page = await client.call("GET", f"/api/admin/tenants/{quote(arguments.tenant, safe='')}/keys?limit=200")
    rows = [["KEY", "NAME", "SCOPES", "CREATED", "EXPIRES"]]
    for key in page["data"]:
        rows.append(
            [
                key["keyId"],
                key["name"] or "",
                ",".join(key["scopes"]),
                key["createdAt"],
                key["expiresAt"] or "",
            ]
        )
    out(arguments, page, table(rows))
    return 0


async def keys_revoke(client: Client, arguments: argparse.Namespace) -> int:
    """Ends a key at once."""
    tenant, key = quote(arguments.tenant, safe=""), quote(arguments.key, safe="")
    await client.call("DELETE", f"/api/admin/tenants/{tenant}/keys/{key}")
    out(arguments, {"keyId": arguments.key, "revoked": True}, f"revoked {arguments.key}")
    return 0


async def tenants_create(client: Client, arguments: argparse.Namespace) -> int:
    """A new tenant."""
    body: dict[str, Any] = {"name": arguments.name}
    if arguments.limits:
        body["limits"] = read_json_argument(arguments.limits)
    tenant = await client.call("POST", "/api/admin/tenants", json=body)
    out(arguments, tenant, tenant["tenantId"])
    return 0


async def tenants_list(client: Client, arguments: argparse.Namespace) -> int:
    """All tenants."""
    page = await client.call("GET", "/api/admin/tenants?limit=200")
    rows = [["TENANT", "NAME", "LIMITS", "CREATED"]]
    for tenant in page["data"]:
        rows.append([tenant["tenantId"], tenant["name"], json.dumps(tenant["limits"]), tenant["createdAt"]])
    out(arguments, page, table(rows))
    return 0


async def documents_add(client: Client, arguments: argparse.Namespace) -> int:
    """Uploads a file."""
    path = Path(arguments.file)
    if not path.is_file():
        return usage_error(f"there is no file {path}")
    fields = {"title": arguments.title} if arguments.title else {}
    document = await client.upload(path, **fields)
    out(arguments, document, f"{document['documentId']} (read by {document['jobId']})")
    return 0


async def documents_list(client: Client, arguments: argparse.Namespace) -> int:
    """A page of documents, newest first."""
    page = await client.call("GET", "/api/documents?limit=200")
    rows = [["DOCUMENT", "STATUS", "CHARACTERS", "TITLE"]]
    for document in page["data"]:
        title = document["title"] or document["filename"] or ""
        rows.append([document["documentId"], document["status"], str(document["characters"] or ""), title])
    out(arguments, page, table(rows))
    return 0


async def documents_show(client: Client, arguments: argparse.Namespace) -> int:
    """A document's record, or its text."""
    path = f"/api/documents/{quote(arguments.document, safe='')}"
    if arguments.text:
        print(await client.call("GET", f"{path}/text"))
        return 0
    document = await client.call("GET", path)
    out(arguments, document, json.dumps(document, indent=2, ensure_ascii=False))
    return 0


async def documents_delete(client: Client, arguments: argparse.Namespace) -> int:
    """Removes a document."""
    await client.call("DELETE", f"/api/documents/{quote(arguments.document, safe='')}")
    out(arguments, {"documentId": arguments.document, "deleted": True}, f"deleted {arguments.document}")
    return 0


async def doctor(client: Client, arguments: argparse.Namespace) -> int:
    """What works and what does not, with what mends it."""
    checks: list[tuple[str, bool, str]] = []
    try:
        await client.call("GET", "/healthz")
        checks.append(("API", True, f"answers at {client.url}"))
    except (UnreachableError, ApiError) as error:
        checks.append(("API", False, f"{error}; start it with ./scripts/start, or set ERRAND_URL"))
    else:
        try:
            ready = await client.call("GET", "/readyz")
            checks.append(("ready", True, json.dumps(ready["checks"])))
        except ApiError as error:
            checks.append(("ready", False, json.dumps(error.problem.get("checks", error.problem))))
        try:
            await client.call("GET", "/api/jobs?limit=1")
            checks.append(("key", True, "is valid and may read jobs"))
        except ApiError as error:
            checks.append(("key", False, f"{error}; set ERRAND_KEY"))
    found = [{"check": name, "ok": good, "detail": detail} for name, good, detail in checks]
    out(
        arguments,
        found,
        "\n".join(f"{'ok ' if good else 'BAD'}  {name:<6} {detail}" for name, good, detail in checks),
    )
    return 0 if all(good for _, good, _ in checks) else 1


def positive(text: str) -> int:
    """A whole number from 0 up."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 up")
    return int(text)


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print JSON")
    common.add_argument("--url", help="the API (default: ERRAND_URL, else http://127.0.0.1:8080)")
    top = argparse.ArgumentParser(
        prog="errand",
        description="The command line over Errand's HTTP API.",
        epilog="The key is taken from ERRAND_KEY, else from the data directory's admin.key.",
    )
    groups = top.add_subparsers(dest="group", required=True, metavar="COMMAND")

    def group(name: str, help_text: str) -> Any:
        return groups.add_parser(name, help=help_text).add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(place: Any, name: str, run: Command) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = place.add_parser(
            name, parents=[common], help=(run.__doc__ or "").rstrip("."), description=run.__doc__
        )
        made.set_defaults(run=run)
        return made

    asking = groups.add_parser("chat", parents=[common], help="ask the model", description=chat.__doc__)
    asking.add_argument("message", help="what to say; - reads standard input")
    asking.add_argument("--system", metavar="TEXT", help="a system message before it")
    asking.add_argument("--model")
    asking.set_defaults(run=chat)

    jobs = group("jobs", "submit, read, follow, cancel and retry jobs")
    submit = action(jobs, "submit", jobs_submit)
    submit.add_argument("body", nargs="?", help="the job as JSON, @file, or - for standard input")
    submit.add_argument("--chat", metavar="TEXT", help="a chat job with this message")
    submit.add_argument("--analyse", metavar="FILE", help="upload FILE and analyse it")
    submit.add_argument("-q", "--question", action="append", help="with --analyse: answer this too")
    submit.add_argument("--priority", choices=["high", "normal", "low"])
    submit.add_argument("--model")
    submit.add_argument("--user")
    submit.add_argument("--idempotency-key", metavar="KEY")
    submit.add_argument("--wait", action="store_true", help="wait for the end and show the job")
    submit.add_argument("--tail", action="store_true", help="show the events to the end")
    listing = action(jobs, "list", jobs_list)
    for name in ("status", "type", "priority", "user", "after", "limit"):
        listing.add_argument(f"--{name}")
    show = action(jobs, "show", jobs_show)
    show.add_argument("job")
    show.add_argument("--wait", type=int, metavar="SECONDS", help="wait so long for a final state")
    follow = action(jobs, "tail", jobs_tail)
    follow.add_argument("job")
    follow.add_argument("--after", type=positive, default=0, metavar="N", help="only events after this number")
    action(jobs, "cancel", jobs_cancel).add_argument("job")
    answering = action(jobs, "answer", jobs_answer)
    answering.add_argument("job")
    answering.add_argument("value", help="JSON, or plain text")
    answering.add_argument("--request", metavar="ID", help="the question (default: the one that it waits for)")
    retry = action(jobs, "retry", jobs_retry)
    retry.add_argument("job")
    retry.add_argument("--from-start", action="store_true", help="pay finished steps again")
    retry.add_argument("--model", help="use this model for what is left")

    keys = group("keys", "API keys of a tenant")
    create = action(keys, "create", keys_create)
    create.add_argument("--name")
    create.add_argument("--scopes", help="comma-separated; default: all but admin")
    create.add_argument("--expires-at", metavar="TIME", help="RFC 3339")
    revoke = action(keys, "revoke", keys_revoke)
    revoke.add_argument("key")
    for place in (create, revoke, action(keys, "list", keys_list)):
        place.add_argument("--tenant", default=DEFAULT_TENANT, help="default: the tenant `default`")

    tenants = group("tenants", "tenants and their limits")
    new = action(tenants, "create", tenants_create)
    new.add_argument("name")
    new.add_argument("--limits", help="JSON, @file or -")
    action(tenants, "list", tenants_list)

    documents = group("documents", "stored documents")
    add = action(documents, "add", documents_add)
    add.add_argument("file")
    add.add_argument("--title")
    action(documents, "list", documents_list)
    read = action(documents, "show", documents_show)
    read.add_argument("document")
    read.add_argument("--text", action="store_true", help="print the extracted text")
    action(documents, "delete", documents_delete).add_argument("document")

    check = groups.add_parser("doctor", parents=[common], help="check the API, its Redis, its workers and the key")
    check.set_defaults(run=doctor)
    return top


async def run(arguments: argparse.Namespace) -> int:
    """Runs the chosen command. Returns the exit code."""
    try:
        async with Client(arguments.url) as client:
            return int(await arguments.run(client, arguments))
    except ApiError as error:
        if arguments.json:
            print(json.dumps(error.problem, indent=2))
        print(f"errand: {error}", file=sys.stderr)
        for entry in error.problem.get("errors", []):
            print(f"  {entry['path']}: {entry['message']}", file=sys.stderr)
        return 1
    except UnreachableError as error:
        return usage_error(str(error))
    except aiohttp.InvalidURL as error:
        return usage_error(f"{str(error)!r} is no address of an API; ERRAND_URL or --url has the form http://HOST:PORT")


def main() -> int:
    """The command. Returns its exit code."""
    arguments = parser().parse_args()
    try:
        return asyncio.run(run(arguments))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
