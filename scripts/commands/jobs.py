"""Jobs: submitted, read, followed, answered, cancelled and retried."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from scripts.client import Client, Place
from scripts.commands.following import going_on, tail, wait
from scripts.commands.parsing import (
    Commands,
    add_prompt,
    as_answer,
    job_path,
    positive,
    prompt_ref,
    read_json_argument,
    without_none,
)
from scripts.commands.printing import (
    eta_text,
    feedback_text,
    job_text,
    note,
    out,
    outcome_code,
    sink,
    table,
    usage_error,
)

EFFECTS = {
    "refused": "it would be refused",
    "waits": "it would wait",
    "pauses": "it would pause, until there is more",
    "fails": "it would fail there",
    "stops": "it would stop there",
}


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
        document = await client.upload(path, index="false")
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
        body |= without_none(
            priority=arguments.priority, model=arguments.model, user=arguments.user, prompt=prompt_ref(arguments)
        )
        if arguments.webhook is not None:
            body["webhook"] = {"url": arguments.webhook} | without_none(events=arguments.webhook_event)
    if arguments.webhook_event and arguments.webhook is None:
        return usage_error("--webhook-event says which events a --webhook gets")
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
    job = await client.call("GET", f"{job_path(arguments.job)}?wait={arguments.wait or 0}")
    out(arguments, job, job_text(job))
    return 0


async def jobs_tail(client: Client, arguments: argparse.Namespace) -> int:
    """A job's events as they happen."""
    return await tail(client, arguments, arguments.job, arguments.after)


async def jobs_answer(client: Client, arguments: argparse.Namespace) -> int:
    """Answers a job that waits for a person."""
    path = job_path(arguments.job)
    waiting = (await client.call("GET", path)).get("waiting") or {}
    request_id = arguments.request or waiting.get("requestId")
    if request_id is None:
        note(f"{arguments.job} does not wait for a person")
        return 1
    body = {"requestId": request_id, "value": as_answer(arguments.value)}
    job = await client.call("POST", f"{path}/input", json=body)
    out(arguments, job, job_text(job))
    return 0


async def jobs_cancel(client: Client, arguments: argparse.Namespace) -> int:
    """Cancels a job and waits for the receipt."""
    job = await client.call("DELETE", f"{job_path(arguments.job)}?wait=10")
    out(arguments, job, job_text(job))
    return 0


async def jobs_retry(client: Client, arguments: argparse.Namespace) -> int:
    """Retries a failed, cancelled or expired job."""
    body: dict[str, Any] = {}
    if arguments.from_start:
        body["from"] = "start"
    if arguments.model:
        body["model"] = arguments.model
    job = await client.call("POST", f"{job_path(arguments.job)}/retry", json=body)
    out(arguments, job, job_text(job))
    return 0


async def jobs_output(client: Client, arguments: argparse.Namespace) -> int:
    """A job's large result (NDJSON); of a running job, what is there so far."""
    place = Place()
    with sink(arguments.out) as target, going_on(arguments.job, "output --follow"):
        async for piece in client.output(quote(arguments.job, safe=""), place, follow=arguments.follow):
            target.write(piece)
            target.flush()
    if not arguments.follow:
        if not place.is_whole:
            note(f"{arguments.job} has not ended; --follow waits for the rest")
        return 0
    return outcome_code(await client.call("GET", job_path(arguments.job)))


def cost_text(cost: dict[str, float]) -> str:
    """A range of US dollars."""
    return f"about {cost['expected']:.6f} USD, {cost['low']:.6f} to {cost['high']:.6f}"


async def jobs_estimate(client: Client, arguments: argparse.Namespace) -> int:
    """What a job would use, before it is submitted; spends nothing."""
    found = await client.call("POST", "/api/jobs/estimate", json=read_json_argument(arguments.body))
    tokens, cost, eta = found["tokens"], found["costUsd"], found["eta"]
    lines = [f"tokens  about {tokens['expected']}, {tokens['low']} to {tokens['high']}"]
    lines.append("cost    " + ("no price is known" if cost is None else cost_text(cost)))
    lines.append("start   " + ("nobody knows" if eta is None else eta_text(eta).removeprefix("starts ")))
    for hit in found["limits"]:
        used = f", {hit['used']:,g} used" if "used" in hit else ""
        effect = EFFECTS.get(hit["effect"], hit["effect"])
        period = f" ({hit['period']})" if "period" in hit else ""
        lines.append(f"limit   {hit['limit']}{period} of the {hit['scope']} is {hit['value']:,g}{used}: {effect}")
    out(arguments, found, "\n".join(lines))
    return 0


async def jobs_feedback(client: Client, arguments: argparse.Namespace) -> int:
    """Says what you think of a job's result."""
    body = {"score": arguments.score} | without_none(comment=arguments.comment)
    given = await client.call("POST", f"{job_path(arguments.job)}/feedback", json=body)
    out(arguments, given, f"noted; {feedback_text(given['feedback'])}")
    return 0


def register(commands: Commands) -> None:
    """`jobs`."""
    jobs = commands.group("jobs", "submit, read, follow, cancel and retry jobs")
    _register_submit(commands.action(jobs, "submit", jobs_submit))
    listing = commands.action(jobs, "list", jobs_list)
    for name in ("status", "type", "priority", "user", "after", "limit"):
        listing.add_argument(f"--{name}")
    show = commands.action(jobs, "show", jobs_show)
    show.add_argument("job")
    show.add_argument("--wait", type=int, metavar="SECONDS", help="wait so long for a final state")
    follow = commands.action(jobs, "tail", jobs_tail)
    follow.add_argument("job")
    follow.add_argument("--after", type=positive, default=0, metavar="N", help="only events after this number")
    commands.action(jobs, "cancel", jobs_cancel).add_argument("job")
    answering = commands.action(jobs, "answer", jobs_answer)
    answering.add_argument("job")
    answering.add_argument("value", help="JSON, or plain text")
    answering.add_argument("--request", metavar="ID", help="the question (default: the one that it waits for)")
    retry = commands.action(jobs, "retry", jobs_retry)
    retry.add_argument("job")
    retry.add_argument("--from-start", action="store_true", help="pay finished steps again")
    retry.add_argument("--model", help="use this model for what is left")
    output = commands.action(jobs, "output", jobs_output)
    output.add_argument("job")
    output.add_argument("-o", "--out", metavar="FILE", help="write to FILE (default: standard output)")
    output.add_argument("--follow", action="store_true", help="go on to the job's end; 1 unless it completes")
    estimate = commands.action(jobs, "estimate", jobs_estimate)
    estimate.add_argument("body", help="the job as JSON, @file, or - for standard input")
    feedback = commands.action(jobs, "feedback", jobs_feedback)
    feedback.add_argument("job")
    feedback.add_argument("score", type=float, help="from -1 (bad) to 1 (good)")
    feedback.add_argument("--comment", metavar="TEXT")


def _register_submit(submit: argparse.ArgumentParser) -> None:
    submit.add_argument("body", nargs="?", help="the job as JSON, @file, or - for standard input")
    submit.add_argument("--chat", metavar="TEXT", help="a chat job with this message")
    submit.add_argument("--analyse", metavar="FILE", help="upload FILE and analyse it")
    submit.add_argument("-q", "--question", action="append", help="with --analyse: answer this too")
    submit.add_argument("--priority", choices=["high", "normal", "low"])
    submit.add_argument("--model")
    add_prompt(submit)
    submit.add_argument("--user")
    submit.add_argument("--idempotency-key", metavar="KEY")
    submit.add_argument("--webhook", metavar="URL", help="send the job's end there, signed")
    submit.add_argument("--webhook-event", metavar="EVENT", action="append", help="send this event (default: each end)")
    submit.add_argument("--wait", action="store_true", help="wait for the end and show the job")
    submit.add_argument("--tail", action="store_true", help="show the events to the end")
