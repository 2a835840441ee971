"""The end of a tenant."""

from __future__ import annotations

import argparse
import sys
from typing import Any
from urllib.parse import quote

from scripts.client import Client
from scripts.commands.asking import typed_line
from scripts.commands.following import going_on
from scripts.commands.parsing import Commands, job_path
from scripts.commands.printing import failure_text, note, out, outcome_code, usage_error
from scripts.results import receipt_text


async def tenants_delete(client: Client, arguments: argparse.Namespace) -> int:
    """Erases a tenant and everything it has, and prints the receipt. Its keys end at once."""
    path = f"/api/admin/tenants/{quote(arguments.tenant, safe='')}"
    if not arguments.yes:
        if not sys.stdin.isatty():
            return usage_error("this cannot be undone: say --yes where there is no terminal to ask on")
        tenant = await client.call("GET", path)
        if not await _agreed(tenant):
            note("nothing was deleted")
            return 1
    job = await client.call("DELETE", path)
    with going_on(job["jobId"]):
        async for event in client.events(quote(job["jobId"], safe="")):
            if event["type"] == "job.progress":
                note(f"{event['fraction']:4.0%} {event['message']}")
    ended = await client.call("GET", job_path(job["jobId"]))
    if ended["status"] == "complete":
        out(arguments, ended["result"], receipt_text(ended["result"]))
    else:
        out(arguments, ended, f"{failure_text(ended)}\nThe tenant's keys have ended. Go on with: errand tenants delete "
            f"{arguments.tenant}")  # fmt: skip
    return outcome_code(ended)


async def _agreed(tenant: dict[str, Any]) -> bool:
    question = (
        f"Erase the tenant {tenant['name']} ({tenant['tenantId']}), its jobs, documents, keys and usage, for ever? "
        "Type its name to say yes: "
    )
    print(question, end="", file=sys.stderr, flush=True)
    name: str = tenant["name"]
    return (await typed_line()).strip() == name


def register(commands: Commands) -> None:
    """`tenants delete`."""
    tenants = commands.group("tenants", "tenants and their limits")
    delete = commands.action(tenants, "delete", tenants_delete)
    delete.add_argument("tenant", help="its id")
    delete.add_argument("--yes", action="store_true", help="do not ask")
