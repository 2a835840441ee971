"""Keys and tenants."""

from __future__ import annotations

import argparse
import json
from typing import Any
from urllib.parse import quote

from scripts.client import Client
from scripts.commands.parsing import Commands, positive, read_json_argument, without_none
from scripts.commands.printing import out, table, usage_error

DEFAULT_TENANT = "ten_00000000000000000000000000"


def _tenant_path(tenant: str) -> str:
    return f"/api/admin/tenants/{quote(tenant, safe='')}"


def _key_path(arguments: argparse.Namespace) -> str:
    return f"{_tenant_path(arguments.tenant)}/keys/{quote(arguments.key, safe='')}"


def _limits(arguments: argparse.Namespace) -> Any:
    return None if arguments.limits is None else read_json_argument(arguments.limits)


def _scopes(arguments: argparse.Namespace) -> list[str] | None:
    return None if arguments.scopes is None else arguments.scopes.split(",")


def _tenant_text(tenant: dict[str, Any]) -> str:
    lines = [f"{tenant['tenantId']}  {tenant['name']}", f"  created   {tenant['createdAt']}"]
    if deletion := tenant["deletion"]:
        lines.append(f"  deletion  since {deletion['since']}, by {deletion['jobId']}")
    return "\n".join([*lines, *_limits_lines(tenant["limits"])])


def _limits_lines(limits: dict[str, Any]) -> list[str]:
    if not limits:
        return ["  limits    none"]
    return [f"  {'limits' if not at else '':<9} {name} {json.dumps(limits[name])}" for at, name in enumerate(limits)]


def _key_text(key: dict[str, Any]) -> str:
    lines = [
        f"{key['keyId']}  {key['name'] or ''}".rstrip(),
        f"  scopes    {', '.join(key['scopes'])}",
        f"  created   {key['createdAt']}, expires {key['expiresAt'] or 'never'}, "
        f"last used {key['lastUsedAt'] or 'never'}",
        *_limits_lines(key["limits"]),
    ]
    if "previousExpiresAt" in key:
        lines.append(f"  rotated   the secret before this one works until {key['previousExpiresAt']}")
    return "\n".join(lines)


def _secret_text(key: dict[str, Any]) -> str:
    return f"{key['key']}\n(keep it: it is shown this once; id {key['keyId']}, scopes {', '.join(key['scopes'])})"


async def keys_create(client: Client, arguments: argparse.Namespace) -> int:
    """A new key; its secret is shown this once."""
    body = without_none(
        name=arguments.name, scopes=_scopes(arguments), expiresAt=arguments.expires_at, limits=_limits(arguments)
    )
    key = await client.call("POST", f"{_tenant_path(arguments.tenant)}/keys", json=body)
    out(arguments, key, _secret_text(key))
    return 0


async def keys_list(client: Client, arguments: argparse.Namespace) -> int:
    """A tenant's keys."""
    page = await client.pages(f"{_tenant_path(arguments.tenant)}/keys")
    rows = [["KEY", "NAME", "SCOPES", "CREATED", "EXPIRES", "LAST USED"]]
    for key in page["data"]:
        rows.append(
            [
                key["keyId"],
                key["name"] or "",
                ",".join(key["scopes"]),
                key["createdAt"],
                key["expiresAt"] or "",
                key["lastUsedAt"] or "",
            ]
        )
    out(arguments, page, table(rows))
    return 0


async def keys_show(client: Client, arguments: argparse.Namespace) -> int:
    """A key, without its secret."""
    key = await client.call("GET", _key_path(arguments))
    out(arguments, key, _key_text(key))
    return 0


async def keys_change(client: Client, arguments: argparse.Namespace) -> int:
    """Changes a key's name, scopes, expiry or limits."""
    body = without_none(name=arguments.name, scopes=_scopes(arguments), limits=_limits(arguments))
    if arguments.expires_at is not None:
        body["expiresAt"] = None if arguments.expires_at == "never" else arguments.expires_at
    if not body:
        return usage_error("nothing to change: give --name, --scopes, --expires-at or --limits")
    key = await client.call("PATCH", _key_path(arguments), json=body)
    out(arguments, key, _key_text(key))
    return 0


async def keys_rotate(client: Client, arguments: argparse.Namespace) -> int:
    """A new secret for a key, shown this once; the one in use works on for a while."""
    body = without_none(overlapSeconds=arguments.overlap)
    key = await client.call("POST", f"{_key_path(arguments)}/rotate", json=body)
    until = key.get("previousExpiresAt")
    ends = f"the secret in use works until {until}" if until else "no secret before it works any longer"
    out(arguments, key, f"{_secret_text(key)}\n{ends}")
    return 0


async def keys_revoke(client: Client, arguments: argparse.Namespace) -> int:
    """Ends a key at once."""
    await client.call("DELETE", _key_path(arguments))
    out(arguments, {"keyId": arguments.key, "revoked": True}, f"revoked {arguments.key}")
    return 0


async def tenants_create(client: Client, arguments: argparse.Namespace) -> int:
    """A new tenant."""
    body = without_none(name=arguments.name, limits=_limits(arguments))
    tenant = await client.call("POST", "/api/admin/tenants", json=body)
    out(arguments, tenant, tenant["tenantId"])
    return 0


async def tenants_list(client: Client, arguments: argparse.Namespace) -> int:
    """All tenants."""
    page = await client.pages("/api/admin/tenants")
    rows = [["TENANT", "NAME", "CREATED", "LIMITS"]]
    for tenant in page["data"]:
        limits = "being deleted" if tenant["deletion"] else json.dumps(tenant["limits"]) if tenant["limits"] else "none"
        rows.append([tenant["tenantId"], tenant["name"], tenant["createdAt"], limits])
    out(arguments, page, table(rows))
    return 0


async def tenants_show(client: Client, arguments: argparse.Namespace) -> int:
    """A tenant and its limits."""
    tenant = await client.call("GET", _tenant_path(arguments.tenant))
    out(arguments, tenant, _tenant_text(tenant))
    return 0


async def tenants_change(client: Client, arguments: argparse.Namespace) -> int:
    """Changes a tenant's name or limits."""
    body = without_none(name=arguments.name, limits=_limits(arguments))
    if not body:
        return usage_error("nothing to change: give --name or --limits")
    tenant = await client.call("PATCH", _tenant_path(arguments.tenant), json=body)
    out(arguments, tenant, _tenant_text(tenant))
    return 0


LIMITS_HELP = "JSON, @file or -"
PATCH_HELP = "what changes, as JSON, @file or -: a given member replaces, null removes"


def register(commands: Commands) -> None:
    """`keys` and `tenants`."""
    keys = commands.group("keys", "API keys of a tenant")
    create = commands.action(keys, "create", keys_create)
    create.add_argument("--name")
    create.add_argument("--scopes", help="comma-separated; default: all but admin")
    create.add_argument("--expires-at", metavar="TIME", help="RFC 3339")
    create.add_argument("--limits", help=LIMITS_HELP)
    show = commands.action(keys, "show", keys_show)
    change = commands.action(keys, "change", keys_change)
    rotate = commands.action(keys, "rotate", keys_rotate)
    revoke = commands.action(keys, "revoke", keys_revoke)
    for place in (show, change, rotate, revoke):
        place.add_argument("key")
    change.add_argument("--name")
    change.add_argument("--scopes", help="comma-separated")
    change.add_argument("--expires-at", metavar="TIME", help="RFC 3339, or never")
    change.add_argument("--limits", help=PATCH_HELP)
    rotate.add_argument(
        "--overlap",
        type=positive,
        metavar="SECONDS",
        help="how long the secret in use works on (default: a day; 0: not at all)",
    )
    for place in (create, show, change, rotate, revoke, commands.action(keys, "list", keys_list)):
        place.add_argument("--tenant", default=DEFAULT_TENANT, help="whose key; default: the tenant `default`")

    tenants = commands.group("tenants", "tenants and their limits")
    new = commands.action(tenants, "create", tenants_create)
    new.add_argument("name")
    new.add_argument("--limits", help=LIMITS_HELP)
    commands.action(tenants, "list", tenants_list)
    commands.action(tenants, "show", tenants_show).add_argument("tenant")
    other = commands.action(tenants, "change", tenants_change)
    other.add_argument("tenant")
    other.add_argument("--name")
    other.add_argument("--limits", help=PATCH_HELP)
