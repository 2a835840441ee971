"""Keys, tenants, and the doctor."""

from __future__ import annotations

import argparse
import json
from typing import Any
from urllib.parse import quote

from scripts.client import ApiError, Client, UnreachableError
from scripts.commands.parsing import Commands, read_json_argument
from scripts.commands.printing import out, table

DEFAULT_TENANT = "ten_00000000000000000000000000"


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


def register(commands: Commands) -> None:
    """`keys`, `tenants` and `doctor`."""
    keys = commands.group("keys", "API keys of a tenant")
    create = commands.action(keys, "create", keys_create)
    create.add_argument("--name")
    create.add_argument("--scopes", help="comma-separated; default: all but admin")
    create.add_argument("--expires-at", metavar="TIME", help="RFC 3339")
    revoke = commands.action(keys, "revoke", keys_revoke)
    revoke.add_argument("key")
    for place in (create, revoke, commands.action(keys, "list", keys_list)):
        place.add_argument("--tenant", default=DEFAULT_TENANT, help="default: the tenant `default`")

    tenants = commands.group("tenants", "tenants and their limits")
    new = commands.action(tenants, "create", tenants_create)
    new.add_argument("name")
    new.add_argument("--limits", help="JSON, @file or -")
    commands.action(tenants, "list", tenants_list)

    commands.action(commands.top, "doctor", doctor, "check the API, its Redis, its workers and the key")
