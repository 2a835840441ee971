"""What was used, how the limits stand, and whether the books are right."""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

from scripts.client import Client
from scripts.commands.parsing import Commands, without_none
from scripts.commands.printing import note, out, table

MEMBERS = ("day", "tenant", "model", "type", "prompt", "user", "key")
FIGURES = (
    ("JOBS", "jobs"),
    ("INPUT", "inputTokens"),
    ("OUTPUT", "outputTokens"),
    ("EMBEDDED", "embeddingTokens"),
    ("TOTAL", "totalTokens"),
    ("REUSED", "reusedTokens"),
    ("WASTED", "wastedTokens"),
)


async def usage(client: Client, arguments: argparse.Namespace) -> int:
    """What was used: tokens and cost, by day unless --group-by says otherwise."""
    wanted = without_none(
        **{"from": arguments.start, "to": arguments.end, "groupBy": arguments.group_by, "tenant": arguments.tenant}
    )
    if arguments.csv:
        text = await client.call("GET", "/api/usage", params=wanted, headers={"Accept": "text/csv"})
        print(text, end="")
        return 0
    page = await client.call("GET", "/api/usage", params={**wanted, "order": "tokens", "limit": "10000"})
    out(arguments, page, usage_text(page["data"]))
    if page["hasMore"]:
        note("there is more; --csv prints all")
    return 0


def usage_text(rows: list[dict[str, Any]]) -> str:
    """Usage rows as a table."""
    if not rows:
        return "nothing was used"
    members = [name for name in MEMBERS if name in rows[0]]
    lines = [[*(name.upper() for name in members), *(head for head, _ in FIGURES), "USD"]]
    for row in rows:
        names = [row[name] if row[name] is not None else "-" for name in members]
        lines.append([*names, *(f"{row[name]:,}" for _, name in FIGURES), cost_text(row)])
    return table(right(lines, len(members)))


def right(rows: list[list[str]], first: int) -> list[list[str]]:
    """The columns from `first` on, set to the right."""
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    return [row[:first] + [cell.rjust(widths[first + at]) for at, cell in enumerate(row[first:])] for row in rows]


def cost_text(row: dict[str, Any]) -> str:
    """Dollars; `+` where some tokens have no known price, `~` where some were estimated."""
    if row["costUsd"] is None:
        return "unknown" if row["totalTokens"] else "-"
    return f"{'~' if row['estimated'] else ''}{row['costUsd']:,.6f}{'+' if row['unpricedTokens'] else ''}"


async def limits(client: Client, arguments: argparse.Namespace) -> int:
    """How every limit of the key stands; * marks the one that has the least left."""
    path = "/api/limits"
    if arguments.tenant:
        path = f"/api/admin/tenants/{quote(arguments.tenant, safe='')}/limits"
    found = await client.call("GET", path, params=without_none(user=arguments.user, prompt=arguments.prompt))
    lines = [["", "LIMIT", "OF", "PERIOD", "USED", "RESERVED", "LEFT", "SOFT", "HARD", "RESETS"]]
    for row in found["data"]:
        owner = row["scope"] if row["scope"] == "tenant" else f"{row['scope']} {row['id']}"
        lines.append(
            [
                "*" if row["binds"] else "",
                row["name"],
                owner,
                row["period"] or "-",
                *(_amount(row, name) for name in ("used", "reserved", "remaining", "soft", "hard")),
                row["resetAt"] or "-",
            ]
        )
    out(arguments, found, table(lines))
    for row in found["warnings"]:
        note(
            f"the soft limit of {_amount(row, 'soft')} {row['unit']} ({row['period']}) of the {row['scope']} is crossed"
        )
    return 0


def _amount(row: dict[str, Any], name: str) -> str:
    value = row[name]
    if value is None:
        return "-"
    return f"{value:,.6f}" if row["unit"] == "usd" else f"{value:,.0f}"


async def books_check(client: Client, arguments: argparse.Namespace) -> int:
    """Whether counters, reservations, usage and jobs are what the ledger says; 1 when not."""
    return await _books(client, arguments, "check")


async def books_rebuild(client: Client, arguments: argparse.Namespace) -> int:
    """Makes counters, reservations and usage anew from the ledger; what differed is listed."""
    return await _books(client, arguments, "rebuild")


async def _books(client: Client, arguments: argparse.Namespace, action: str) -> int:
    ok, tenants = True, []
    async for tenant in _tenants(client, arguments.tenant):
        found = await client.call("POST", f"/api/admin/books/{action}", json={"tenantId": tenant})
        ok = ok and found["ok"]
        for one in found["tenants"]:
            tenants.append(one)
            if not arguments.json:
                print(books_text(one, "mended" if action == "rebuild" and found["ok"] else "DIFFERENT"), flush=True)
    if arguments.json:
        out(arguments, {"ok": ok, "tenants": tenants}, "")
    return 0 if ok else 1


def books_text(one: dict[str, Any], what: str) -> str:
    """A tenant's books in a line, and what differs in a table."""
    cost = "cost unknown" if one["costUsd"] is None else f"{one['costUsd']:,.6f} USD"
    state = "ok" if not one["found"] else f"{one['found']} {what}"
    spent = f"{one['calls']:,} calls, {one['tokens']:,} tokens, {cost}" if one["calls"] else "no calls"
    line = f"{one['tenantId']}  {spent}: {state}"
    if not one["differences"]:
        return line
    rows = [["  WHAT", "OF", "MEMBER", "STORED", "LEDGER"]]
    for row in one["differences"]:
        rows.append([f"  {row['what']}", row["id"], row["member"], f"{row['stored']:,}", f"{row['ledger']:,}"])
    more = one["found"] - len(one["differences"])
    return f"{line}\n{table(right(rows, 3))}" + (f"\n  and {more:,} more" if more else "")


async def _tenants(client: Client, chosen: str | None) -> AsyncIterator[str]:
    """One by one: each is a call of its own, which may take long."""
    if chosen is not None:
        yield chosen
        return
    wanted = {"limit": "200"}
    while True:
        page = await client.call("GET", "/api/admin/tenants", params=wanted)
        for tenant in page["data"]:
            yield tenant["tenantId"]
        if not page["hasMore"]:
            return
        wanted["after"] = page["next"]


def register(commands: Commands) -> None:
    """`usage`, `limits` and `books`."""
    used = commands.action(commands.top, "usage", usage, "tokens and cost by day, model, type, prompt, user, key")
    used.add_argument("--from", dest="start", metavar="DAY", help="first UTC day, YYYY-MM-DD; default: 29 days ago")
    used.add_argument("--to", dest="end", metavar="DAY", help="last UTC day, included; default: today")
    used.add_argument(
        "--group-by", metavar="LIST", help=f"of {', '.join(MEMBERS)}; default: day; '': one row of totals"
    )
    used.add_argument("--tenant", help="another tenant, or '*' for all (scope admin)")
    used.add_argument("--csv", action="store_true", help="print CSV, all rows")

    stand = commands.action(commands.top, "limits", limits, "how every limit stands")
    stand.add_argument("--user", help="an end user's too")
    stand.add_argument("--prompt", help="a prompt's too: name or name@version")
    stand.add_argument("--tenant", help="those of another tenant (scope admin)")

    books = commands.group("books", "check the books against the ledger, and mend them (scope admin)")
    for name, run in (("check", books_check), ("rebuild", books_rebuild)):
        commands.action(books, name, run).add_argument("--tenant", help="default: all tenants, one by one")
