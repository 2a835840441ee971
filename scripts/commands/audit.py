"""Who changed what."""

from __future__ import annotations

import argparse
import json
from typing import Any
from urllib.parse import urlencode

from scripts.client import Client
from scripts.commands.parsing import Commands, positive, without_none
from scripts.commands.printing import out, table


def _change_text(change: dict[str, Any]) -> str:
    old, new = (json.dumps(change[name], ensure_ascii=False) if name in change else "-" for name in ("old", "new"))
    return new if "old" not in change else f"{old} → {new}"


async def audit_list(client: Client, arguments: argparse.Namespace) -> int:
    """Changes of tenants, keys and prompts, newest first."""
    wanted = without_none(
        tenant=arguments.tenant, action=arguments.filter_action, key=arguments.key, actor=arguments.actor
    )
    page = await client.pages("/api/admin/audit", most=arguments.limit, query=urlencode(wanted))
    rows = [["AT", "ACTION", "TENANT", "KEY OR PROMPT", "BY", "CHANGES"]]
    for entry in page["data"]:
        changes = "; ".join(f"{member} {_change_text(change)}" for member, change in entry["details"].items())
        what = entry["keyId"] or entry["resource"] or ""
        rows.append([entry["at"], entry["action"], entry["tenantId"], what, entry["actor"], changes[:200]])
    out(arguments, page, table(rows))
    return 0


def register(commands: Commands) -> None:
    """`audit list`."""
    audit = commands.group("audit", "who changed which tenant or key")
    listing = commands.action(audit, "list", audit_list)
    listing.add_argument("--tenant", help="the tenant that was changed")
    listing.add_argument("--key", help="the key that was changed")
    listing.add_argument("--actor", help="id of the key that changed it, or system")
    listing.add_argument("--action", dest="filter_action", metavar="ACTION", help="for example key.revoked")
    listing.add_argument("--limit", type=positive, default=50, help="how many at most; default 50")
