"""Webhooks: deliveries read and sent again, the secret that signs them, a test, and a receiver to develop with."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from typing import Any
from urllib.parse import quote, urlencode

from aiohttp import web

from scripts.client import Client
from scripts.commands.parsing import Commands, positive, without_none
from scripts.commands.printing import note, out, table, usage_error
from shared.webhook_signing import BadSignatureError, verify
from shared.webhooks import DeliveryStatus

DELIVERIES = "/api/webhooks/deliveries"
REPLAYABLE = ("failed", "gone", "delivered")


def _path(delivery_id: str) -> str:
    return f"{DELIVERIES}/{quote(delivery_id, safe='')}"


def _attempt_text(attempt: dict[str, Any] | None) -> str:
    if attempt is None:
        return "-"
    answer = "no answer" if attempt["statusCode"] is None else str(attempt["statusCode"])
    error = attempt["error"]
    return answer if error in (None, "status") else f"{answer} ({error})"


def _delivery_text(delivery: dict[str, Any]) -> str:
    lines = [f"{delivery['deliveryId']}  {delivery['event']}  {delivery['status']}"]
    if delivery["jobId"] is not None:
        lines.append(f"  job       {delivery['jobId']}, event {delivery['seq']}")
    lines.append(f"  url       {delivery['url']}")
    when = f"event {delivery['createdAt']}, finished {delivery['finishedAt']}, next request {delivery['nextAttemptAt']}"
    lines.append(f"  times     {when}")
    for one in delivery["history"]:
        lines.append(f"  request   {one['at']}  {_attempt_text(one)}  {one['durationMs']} ms")
    lines.append(f"  payload   {json.dumps(delivery['payload'], ensure_ascii=False)}")
    return "\n".join(lines)


async def webhooks_list(client: Client, arguments: argparse.Namespace) -> int:
    """Deliveries, newest first."""
    wanted = without_none(status=arguments.status, jobId=arguments.job)
    page = await client.pages(DELIVERIES, most=arguments.limit, query=urlencode(wanted))
    rows = [["DELIVERY", "EVENT", "JOB", "STATUS", "REQUESTS", "LAST", "NEXT", "URL"]]
    for one in page["data"]:
        rows.append(
            [
                one["deliveryId"],
                one["event"],
                one["jobId"] or "-",
                one["status"],
                str(one["attempts"]),
                _attempt_text(one["lastAttempt"]),
                one["nextAttemptAt"] or "-",
                one["url"],
            ]
        )
    out(arguments, page, table(rows))
    return 0


async def webhooks_show(client: Client, arguments: argparse.Namespace) -> int:
    """A delivery, its requests and their body."""
    delivery = await client.call("GET", _path(arguments.delivery))
    out(arguments, delivery, _delivery_text(delivery))
    return 0


async def webhooks_replay(client: Client, arguments: argparse.Namespace) -> int:
    """Sends a delivery again, or all of a status."""
    if arguments.delivery is not None:
        if arguments.status or arguments.since or arguments.until:
            return usage_error("give a delivery, or --status, --since and --until, not both")
        delivery = await client.call("POST", f"{_path(arguments.delivery)}/replay")
        out(arguments, delivery, f"{delivery['deliveryId']} is due now")
        return 0
    if arguments.status is None:
        return usage_error("give a delivery, or --status failed (gone, delivered)")
    body = without_none(status=arguments.status, since=arguments.since, until=arguments.until)
    count = 0
    while True:
        done = await client.call("POST", f"{DELIVERIES}/replay", json=body)
        count += done["replayed"]
        body["after"] = done["next"]
        if not done["hasMore"]:
            break
    out(arguments, {"replayed": count}, f"{count} deliveries are due now")
    return 0


async def webhooks_secret(client: Client, arguments: argparse.Namespace) -> int:
    """The secret that receivers verify with."""
    secret = await client.call("GET", "/api/webhooks/secret")
    out(arguments, secret, secret["secret"])
    return 0


async def webhooks_rotate(client: Client, arguments: argparse.Namespace) -> int:
    """A new secret; the one so far signs too for a while."""
    body = without_none(overlapSeconds=arguments.overlap)
    secret = await client.call("POST", "/api/webhooks/secret/rotate", json=body)
    until = secret.get("previousExpiresAt")
    ends = f"the secret before it signs too until {until}" if until else "the secret before it signs no longer"
    out(arguments, secret, f"{secret['secret']}\n{ends}")
    return 0


async def webhooks_test(client: Client, arguments: argparse.Namespace) -> int:
    """Sends a signed test to a URL now, and says what came back; 1 unless it was taken."""
    delivery = await client.call("POST", "/api/webhooks/test", json={"url": arguments.to})
    last = delivery["lastAttempt"]
    text = f"{delivery['status']}: {_attempt_text(last)}" + (f" after {last['durationMs']} ms" if last else "")
    if last is not None and last["error"] == "address_refused":
        text += "\n(an address that is not public: open its host with ERRAND_FETCH_PRIVATE_HOSTS)"
    out(arguments, delivery, text)
    return 0 if delivery["status"] == "delivered" else 1


class Listener:
    """Verifies what comes, prints it, and answers."""

    def __init__(self, secret: str, status: int, as_json: bool) -> None:
        self._secret = secret
        self._status = status
        self._as_json = as_json
        self._seen: set[str] = set()

    async def handle(self, request: web.Request) -> web.Response:
        """One delivery: 400 unless its signature holds, then the chosen status."""
        body = await request.read()
        headers = {name.lower(): value for name, value in request.headers.items()}
        try:
            delivery_id = verify(self._secret, headers, body, time.time())
        except BadSignatureError as error:
            note(f"refused {request.method} {request.path}: {error}")
            return web.Response(status=400, text=str(error))
        payload = json.loads(body)
        again = delivery_id in self._seen
        self._seen.add(delivery_id)
        if self._as_json:
            print(json.dumps({"deliveryId": delivery_id, "again": again, "payload": payload}), flush=True)
        else:
            data = payload["data"]
            what = f"{data['jobId']}  {data['status']}" if "jobId" in data else data.get("message", "")
            print(f"{payload['timestamp']}  {payload['type']}  {what}{'  (again)' if again else ''}", flush=True)
        return web.Response(status=self._status)


async def webhooks_listen(client: Client, arguments: argparse.Namespace) -> int:
    """A receiver for development: verifies each delivery and prints it, until Ctrl-C."""
    secret = (await client.call("GET", "/api/webhooks/secret"))["secret"]
    app = web.Application(client_max_size=1 << 22)
    app.router.add_post("/{path:.*}", Listener(secret, arguments.status, arguments.json).handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, arguments.host, arguments.port)
        try:
            await site.start()
        except OSError as error:
            return usage_error(f"{arguments.host}:{arguments.port} cannot be listened on: {error.strerror}")
        host, port = runner.addresses[0][:2]
        place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        print(f"listening on http://{place}/", file=sys.stderr, flush=True)
        note(f"the workers must be allowed to reach it: ERRAND_FETCH_PRIVATE_HOSTS={place}")
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()
    return 0


def register(commands: Commands) -> None:
    """`webhooks`."""
    webhooks = commands.group("webhooks", "deliveries of jobs' events, and the secret that signs them")
    listing = commands.action(webhooks, "list", webhooks_list)
    listing.add_argument("--status", choices=[status.value for status in DeliveryStatus])
    listing.add_argument("--job", metavar="JOB", help="those of one job")
    listing.add_argument("--limit", type=positive, default=50, help="how many at most; default 50")
    commands.action(webhooks, "show", webhooks_show).add_argument("delivery")
    replay = commands.action(webhooks, "replay", webhooks_replay)
    replay.add_argument("delivery", nargs="?")
    replay.add_argument("--status", choices=REPLAYABLE, help="all of this status")
    replay.add_argument("--since", metavar="TIME", help="events from then on")
    replay.add_argument("--until", metavar="TIME", help="events before then")
    commands.action(webhooks, "secret", webhooks_secret)
    rotate = commands.action(webhooks, "rotate", webhooks_rotate)
    rotate.add_argument("--overlap", type=positive, metavar="SECONDS", help="how long the secret so far signs too")
    commands.action(webhooks, "test", webhooks_test).add_argument("to", metavar="URL", help="where to")
    listen = commands.action(webhooks, "listen", webhooks_listen)
    listen.add_argument("--host", default="127.0.0.1", help="default 127.0.0.1")
    listen.add_argument("--port", type=positive, default=9_000, help="default 9000; 0 takes a free one")
    listen.add_argument("--status", type=int, default=200, help="what it answers; default 200")
