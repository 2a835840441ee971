"""The checker: from what clients saw, the jobs' logs, Redis's structures and the model's own count, whether anything
was lost, stuck, done twice or charged twice."""

from __future__ import annotations

from collections import Counter
from typing import Any

import redis

from scripts.havoc.history import FINAL, Seen, Violations

FINAL_EVENTS = frozenset({"job.complete", "job.failed", "job.cancelled", "job.expired"})


def check_job(seen: Seen, found: Violations) -> None:
    """One job's history: its view, its log, what its streams showed."""
    view, events, job = seen.view, seen.events, seen.job_id
    if view is None or not events:
        found.add("lost", f"{job} was acknowledged and cannot be read")
        return
    if view["status"] not in FINAL:
        found.add("stuck", f"{job} is {view['status']}")
        return
    numbers = [event["seq"] for event in events]
    if numbers != list(range(1, len(numbers) + 1)):
        found.add("log has gaps", job)
    check_log(seen, found)
    if seen.finals and seen.finals[-1] != view["status"]:
        found.add("a final state changed", f"{job}: {seen.finals} then {view['status']}")
    if seen.cancel_state in ("cancelled", "cancelling") and seen.finals[:1] != ["cancelled"]:
        found.add("an accepted cancel was ignored", f"{job}: {seen.cancel_state}, then {seen.finals}")
    if seen.gaps or seen.streamed != list(range(1, len(seen.streamed) + 1)):
        found.add("a stream repeated or lost events", job)
    if view["status"] == "failed" and view["error"]["code"] not in seen.may_fail:
        found.add("a job failed by our fault", f"{job} ({view['type']}): {view['error']}")
    if view["status"] == "complete" and "texts" in seen.body["input"]:
        check_output(seen, found)
    if view["status"] == "complete" and view["type"] == "chat" and shown_text(events) != view["result"]["text"]:
        found.add("the streamed text is not the result", job)


def check_output(seen: Seen, found: Violations) -> None:
    """A batch's output: each text's vector once, in their order, and the same for the same text."""
    texts = seen.body["input"]["texts"]
    if [line["index"] for line in seen.output] != list(range(len(texts))):
        found.add("an output is not whole", f"{seen.job_id}: {len(seen.output)} lines for {len(texts)} texts")
        return
    vectors: dict[str, Any] = {}
    for text, line in zip(texts, seen.output, strict=True):
        if "embedding" not in line or vectors.setdefault(text, line["embedding"]) != line["embedding"]:
            found.add("an output has a wrong line", f"{seen.job_id}: {str(line)[:80]}")
            return


def check_log(seen: Seen, found: Violations) -> None:
    """The order of a job's events: one owner at a time, one end per run, nothing after it but a retry."""
    job, running, ended, runs = seen.job_id, False, False, 1
    attempt = 0
    finished: Counter[str] = Counter()
    for event in seen.events:
        kind = event["type"]
        if ended:
            if kind != "job.queued" or event.get("reason") != "retry":
                found.add("an event after the end", f"{job}: {kind} at {event['seq']}")
                return
            ended, runs = False, runs + 1
            continue
        if kind == "job.started":
            if running:
                found.add("two owners at once", f"{job}: started again at {event['seq']}")
            if event["attempt"] < attempt:
                found.add("attempts went backwards", job)
            running, attempt = True, event["attempt"]
        elif kind in ("job.queued", "job.waiting"):
            running = False
        elif kind in FINAL_EVENTS:
            running, ended = False, True
        elif kind in ("delta", "job.progress") and not running:
            found.add("a write without a lease", f"{job}: {kind} at {event['seq']}")
        elif kind == "job.step" and event["state"] == "finished" and not event["reused"]:
            finished[event["step"]] += 1
    for step, count in finished.items():
        if count > 1:
            found.add("a finished step was paid again", f"{job}: {step} {count} times")
    if not ended:
        found.add("no final event", job)
    if runs > 1 + seen.retries:
        found.add("a run that nobody asked for", job)


def shown_text(events: list[dict[str, Any]]) -> str:
    """The text of a stream as a client keeps it: what `attempt.restarted` declares void is dropped."""
    kept: list[tuple[int, str]] = []
    for event in events:
        if event["type"] == "delta":
            kept.append((event["seq"], event["text"]))
        elif event["type"] == "attempt.restarted":
            kept = [(seq, text) for seq, text in kept if seq <= event["discardAfter"]]
    return "".join(text for _, text in kept)


class Listing:
    """The lists of jobs that the API shows, read again and again: no job of a run is in none of them."""

    def __init__(self) -> None:
        self.known: dict[str, dict[str, set[str]]] = {}  # by API key: ref → job ids
        self.last: dict[str, str] = {}  # job id → status in the last list that had it

    def add(self, api_key: str, rows: list[tuple[str, str, str]]) -> None:
        """One list: job ids, refs, statuses."""
        known = self.known.setdefault(api_key, {})
        for job_id, ref, status in rows:
            known.setdefault(ref, set()).add(job_id)
            self.last[job_id] = status

    def check(self, jobs: list[Seen], found: Violations) -> None:
        """One job per idempotency key, no job that nobody submitted, and none that changed after its end."""
        submitted = {seen.ref: seen for seen in jobs}
        for api_key, refs in self.known.items():
            for ref, ids in refs.items():
                if len(ids) > 1:
                    found.add("a submission made two jobs", f"{ref}: {len(ids)} jobs")
                if ref not in submitted or submitted[ref].api_key != api_key:
                    found.add("a job from nowhere", ref)
        for seen in jobs:
            if seen.api_key not in self.known or not seen.job_id:
                continue
            if seen.job_id not in self.known[seen.api_key].get(seen.ref, ()):
                found.add("lost", f"{seen.job_id} is not listed")
                continue
            status, last = seen.view["status"] if seen.view is not None else None, self.last[seen.job_id]
            if status is not None and status != last and last in FINAL:
                found.add("a final state changed", f"{seen.job_id}: {status}, {last}")


def check_structures(url: str, found: Violations) -> None:
    """When nothing runs, nothing may be held: no lease, no slot, no call, no ready job."""
    client: Any = redis.Redis.from_url(url, decode_responses=True)
    for name in ("leases", "running", "scheduled", "expiring"):
        if left := client.execute_command("ZRANGE" if name in ("leases", "expiring") else "HGETALL", f"errand:{name}",
                                          *((0, -1) if name in ("leases", "expiring") else ())):  # fmt: skip
            found.add("something is still held", f"{name}: {str(left)[:100]}")
    for lane in ("interactive", "batch"):
        pace = client.hmget(f"errand:pace:{lane}", "ready", "running")
        if [value for value in pace if value not in (None, "0")]:
            found.add("counters are off", f"pace:{lane} ready, running = {pace}")
        for name in client.scan_iter(f"errand:q:{lane}:*", count=1_000):
            if not name.endswith(":served"):
                found.add("something is still held", name)
        if client.exists(f"errand:delayed:{lane}"):
            found.add("something is still held", f"delayed:{lane}")
    for pattern in ("errand:open:*", "errand:paused*"):
        if left := next(client.scan_iter(pattern, count=10_000), None):
            found.add("something is still held", left)
    for name in client.scan_iter("errand:books:*", count=10_000):
        if reserved := [value for value in client.hmget(name, "ht", "hn") if value not in (None, "0")]:
            found.add("tokens are still reserved", f"{name}: {reserved}")
    client.close()


def check_books(answer: dict[str, Any], found: Violations) -> None:
    """Ledger, counters, usage rows and the jobs' own figures say the same, to the token."""
    for tenant in answer["tenants"]:
        for one in tenant["differences"]:
            found.add("the books differ", f"{tenant['tenantId']} {one['what']} {one['id']} {one['member']}: "
                      f"{one['stored']}, by the ledger {one['ledger']}")  # fmt: skip


def tokens_of(call: dict[str, Any]) -> int:
    """Tokens of one call by the model's own count."""
    return int(call["inputTokens"]) + int(call["outputTokens"])


def check_tokens(jobs: list[Seen], calls: dict[str, list[dict[str, Any]]], found: Violations) -> tuple[int, int, int]:
    """The jobs' usage against the model's own count: equal where every call ended and its end was written; where
    calls were cut or their worker was lost, off by no more than these calls. Returns (booked, served, exact jobs)."""
    booked_sum = served_sum = exact = 0
    rest_booked, rest_served = 0, sum(tokens_of(call) for call in calls.get("", ()))
    rest_slack = rest_served
    for seen in jobs:
        if seen.view is None:
            continue
        usage, mine = seen.view["usage"], calls.get(seen.ref, [])
        booked, served = usage["totalTokens"], sum(map(tokens_of, mine))
        booked_sum, served_sum = booked_sum + booked, served_sum + served
        cut, lost = sum(call["ended"] != "done" for call in mine), seen.lost
        # Of a lost call the estimate of its input stands; also of one that had not reached the model yet.
        doubtful = sorted(map(tokens_of, mine), reverse=True)[: cut + lost + 1]
        estimate = seen.size // 4 + 300
        slack = sum(doubtful) + (cut + lost + 1) * estimate
        if seen.body["type"] != "chat":
            rest_booked, rest_served = rest_booked + booked, rest_served + served
            rest_slack += slack * 3 if usage["estimated"] else 0
        elif not usage["estimated"]:
            exact += 1
            if booked != served:
                found.add("tokens differ", f"{seen.job_id}: booked {booked}, the model counted {served}")
        elif abs(booked - served) > slack:
            found.add("tokens out of bound", f"{seen.job_id}: booked {booked}, the model counted {served}")
    if abs(rest_booked - rest_served) > rest_slack:
        found.add("tokens out of bound", f"longer jobs: booked {rest_booked}, the model counted {rest_served}")
    return booked_sum, served_sum + sum(tokens_of(call) for call in calls.get("", ())), exact
