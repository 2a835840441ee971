"""Prompts: versions, labels, experiments, and the same as files."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from scripts.client import Client
from scripts.commands import prompt_files, prompt_source, prompt_sync
from scripts.commands.parsing import Commands, positive, prompt_path, without_none
from scripts.commands.printing import out, table, usage_error


def _body(source: str) -> Any:
    """A body from a YAML or JSON file, or from standard input (`-`). Ends the command with 2 when it is none."""
    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8")
        return prompt_source.load(text, is_json=source.endswith(".json"))
    except OSError as error:
        raise SystemExit(usage_error(f"{source}: {error.strerror}")) from None
    except (ValueError, prompt_source.BadSourceError) as error:
        raise SystemExit(usage_error(f"{source}: {error}")) from None


def _version_text(view: dict[str, Any]) -> str:
    where = ", ".join(view["labels"]) or "no label"
    lines = [f"{view['name']}@{view['version']}  ({where}; {view['latestVersion']} versions)"]
    if view["description"]:
        lines.append(f"  {view['description']}")
    lines.append(f"  by {view['createdBy']} at {view['createdAt']}" + (f": {view['note']}" if view["note"] else ""))
    for member in ("model", "parameters", "variables"):
        if view[member]:
            lines.append(f"  {member:<10} {json.dumps(view[member], ensure_ascii=False)}")
    for message in view["messages"]:
        lines.append(f"\n[{message['role']}]\n{message['content']}")
    return "\n".join(lines)


def _label_text(label: dict[str, Any]) -> str:
    before = f", before it {label['previous']}" if label["previous"] is not None else ""
    more = " (protected)" * label["protected"] + (f" (experiment {label['experiment']})" if label["experiment"] else "")
    return f"{label['label']} → version {label['version']}{before}{more}"


async def prompts_list(client: Client, arguments: argparse.Namespace) -> int:
    """Prompts, newest first."""
    wanted = without_none(prefix=arguments.prefix, search=arguments.search, label=arguments.label)
    if arguments.shared:
        wanted["shared"] = "true"
    page = await client.pages("/api/prompts", most=arguments.limit, query=urlencode(wanted))
    rows = [["NAME", "VERSIONS", "LABELS", "CHANGED", ""]]
    for row in page["data"]:
        labels = ", ".join(f"{name}={number}" for name, number in row["labelVersions"].items()) or "-"
        shared = "shared" if row["shared"] else ""
        rows.append([row["name"], str(row["latestVersion"]), labels, row["updatedAt"], shared])
    out(arguments, page, table(rows))
    return 0


async def prompts_show(client: Client, arguments: argparse.Namespace) -> int:
    """A version: where `production` points, unless a label or a number is given."""
    view = await client.call("GET", prompt_path(arguments, label=arguments.label, version=arguments.version))
    out(arguments, view, _version_text(view))
    return 0


async def prompts_versions(client: Client, arguments: argparse.Namespace) -> int:
    """Versions of a prompt, newest first."""
    path, _, query = prompt_path(arguments, "versions").partition("?")
    page = await client.pages(path, most=arguments.limit, query=query)
    rows = [["VERSION", "LABELS", "CREATED", "BY", "NOTE"]]
    for row in page["data"]:
        labels = ", ".join(row["labels"]) or "-"
        rows.append([str(row["version"]), labels, row["createdAt"], row["createdBy"], row["note"] or ""])
    out(arguments, page, table(rows))
    return 0


async def prompts_create(client: Client, arguments: argparse.Namespace) -> int:
    """Make a prompt from a file: YAML or JSON with `messages`."""
    return await _add(client, arguments, "/api/prompts" + ("?shared=true" if arguments.shared else ""), is_new=True)


async def prompts_add(client: Client, arguments: argparse.Namespace) -> int:
    """Add the next version of a prompt from a file."""
    return await _add(client, arguments, prompt_path(arguments, "versions"), is_new=False)


async def _add(client: Client, arguments: argparse.Namespace, path: str, *, is_new: bool) -> int:
    body = _body(arguments.file)
    if not isinstance(body, dict):
        return usage_error(f"{arguments.file}: it holds no object with `messages`")
    body.pop("version", None)
    if is_new:
        body["name"] = arguments.name
    else:
        body.pop("description", None)
    if arguments.label:
        body["labels"] = arguments.label
    if arguments.note is not None:
        body["note"] = arguments.note
    view = await client.call("POST", path, json=body)
    out(arguments, view, f"{view['name']}@{view['version']}")
    return 0


async def prompts_labels(client: Client, arguments: argparse.Namespace) -> int:
    """Where the labels of a prompt point."""
    page = await client.call("GET", prompt_path(arguments, "labels"))
    out(arguments, page, "\n".join(map(_label_text, page["data"])) or "no labels")
    return 0


async def prompts_label(client: Client, arguments: argparse.Namespace) -> int:
    """Point a label at a version; every process uses it within a second."""
    body = without_none(version=arguments.version, protected=arguments.protect, note=arguments.note)
    headers = {"If-Match": f'"{arguments.if_rev}"'} if arguments.if_rev is not None else {}
    label = await client.call("PUT", prompt_path(arguments, "labels", arguments.label), json=body, headers=headers)
    out(arguments, label, _label_text(label))
    return 0


async def prompts_unlabel(client: Client, arguments: argparse.Namespace) -> int:
    """Take a label away."""
    await client.call("DELETE", prompt_path(arguments, "labels", arguments.label))
    out(arguments, {"label": arguments.label}, f"{arguments.label} is gone")
    return 0


async def prompts_rollback(client: Client, arguments: argparse.Namespace) -> int:
    """Take a label back to the version that it had before."""
    body = without_none(label=arguments.label, note=arguments.note)
    label = await client.call("POST", prompt_path(arguments, "rollback"), json=body)
    out(arguments, label, _label_text(label))
    return 0


async def prompts_diff(client: Client, arguments: argparse.Namespace) -> int:
    """What differs between two versions, word by word; each by its number or a label."""
    found = await client.call("GET", prompt_path(arguments, "diff", **{"from": arguments.old, "to": arguments.new}))
    ends = [
        prompt_files.served_content(await client.call("GET", prompt_path(arguments, version=found[end])))
        for end in ("from", "to")
    ]
    out(arguments, found, prompt_files.difference(*ends) or "the same")
    return 0


async def prompts_render(client: Client, arguments: argparse.Namespace) -> int:
    """What a model would get; spends nothing. Values as NAME=VALUE."""
    view = await client.call("GET", prompt_path(arguments, label=arguments.label, version=arguments.version))
    values: dict[str, Any] = {}
    for given in arguments.value:
        name, sign, text = given.partition("=")
        if not sign:
            return usage_error(f"{given!r} is not of the form NAME=VALUE")
        kind = view["variables"].get(name, {}).get("type", "string")
        try:
            values[name] = text if kind == "string" else json.loads(text)
        except ValueError:
            return usage_error(f"{name} is of type {kind}, and {text!r} is no JSON")
    body = without_none(
        variables=values, label=arguments.label, version=arguments.version, user=arguments.user, model=arguments.model
    )
    shown = await client.call("POST", prompt_path(arguments, "render"), json=body)
    messages = [f"[{message['role']}]\n{message['content']}" for message in shown["messages"]]
    head = f"{shown['name']}@{shown['version']}: {shown['tokens']} tokens of {shown['model']}"
    out(arguments, shown, "\n\n".join([head, *messages]))
    return 0


async def prompts_audit(client: Client, arguments: argparse.Namespace) -> int:
    """Who changed a prompt, newest first."""
    path, _, query = prompt_path(arguments, "audit").partition("?")
    page = await client.pages(path, most=arguments.limit, query=query)
    rows = [["AT", "ACTION", "BY", "CHANGES"]]
    for row in page["data"]:
        rows.append([row["at"], row["action"], row["actor"], json.dumps(row["details"], ensure_ascii=False)[:200]])
    out(arguments, page, table(rows))
    return 0


async def prompts_stats(client: Client, arguments: argparse.Namespace) -> int:
    """Figures of each version, by day."""
    wanted = {"from": arguments.start, "to": arguments.end, "version": arguments.version}
    path, _, asked = prompt_path(arguments, "stats", **wanted).partition("?")
    page = await client.pages(path, query=asked)
    rows = [["DAY", "VERSION", "USES", "FAILED", "TOKENS", "USD", "P50 MS", "P95 MS", "FEEDBACK"]]
    for row in page["data"]:
        feedback = f"{row['feedback']['score']:+.2f} of {row['feedback']['count']}" if row["feedback"] else "-"
        figures = [row["uses"], row["failures"], row["totalTokens"], row["costUsd"], row["latencyP50Ms"]]
        shown = ["-" if one is None else str(one) for one in [*figures, row["latencyP95Ms"]]]
        rows.append([row["day"], str(row["version"]), *shown, feedback])
    out(arguments, page, table(rows) if page["data"] else "no job has ended with this prompt")
    return 0


async def prompts_archive(client: Client, arguments: argparse.Namespace) -> int:
    """Take a prompt out of use; jobs that are pinned on its versions go on."""
    await client.call("DELETE", prompt_path(arguments))
    out(arguments, {"name": arguments.name}, f"{arguments.name} is out of use")
    return 0


def register(commands: Commands) -> None:
    """`prompts …`."""
    prompts = commands.group("prompts", "what jobs say to models: versions, labels, experiments")
    listing = commands.action(prompts, "list", prompts_list)
    listing.add_argument("--prefix", help="only those in this folder")
    listing.add_argument("--search", help="only those with this text in name or description")
    listing.add_argument("--label", help="only those that have this label")
    listing.add_argument("--limit", type=positive, help="how many at most; default all")
    show = commands.action(prompts, "show", prompts_show)
    versions = commands.action(prompts, "versions", prompts_versions)
    create = commands.action(prompts, "create", prompts_create)
    add = commands.action(prompts, "add", prompts_add)
    labels = commands.action(prompts, "labels", prompts_labels)
    label = commands.action(prompts, "label", prompts_label)
    unlabel = commands.action(prompts, "unlabel", prompts_unlabel)
    rollback = commands.action(prompts, "rollback", prompts_rollback)
    diff = commands.action(prompts, "diff", prompts_diff)
    render = commands.action(prompts, "render", prompts_render)
    audit = commands.action(prompts, "audit", prompts_audit)
    stats = commands.action(prompts, "stats", prompts_stats)
    archive = commands.action(prompts, "archive", prompts_archive)
    named = (show, versions, create, add, labels, label, unlabel, rollback, diff, render, audit, stats, archive)
    for place in named:
        place.add_argument("name", help="folders by /, for example support/triage")
    for place in (create, add):
        place.add_argument("file", help="YAML or JSON with messages; - for standard input")
        place.add_argument("--label", action="append", help="point this label at it; may be given again")
        place.add_argument("--note", help="what is new")
    for place in (label, unlabel):
        place.add_argument("label")
    label.add_argument("version", type=positive)
    label.add_argument("--protect", action=argparse.BooleanOptionalAction, help="whether it takes the scope promote")
    label.add_argument("--if-rev", metavar="REV", help="only if this is the label's ETag still")
    rollback.add_argument("--label", help="default: production")
    for place in (label, rollback):
        place.add_argument("--note", help="why")
    diff.add_argument("old", help="a number or a label")
    diff.add_argument("new", nargs="?", default="latest", help="likewise; default: latest")
    render.add_argument("value", nargs="*", metavar="NAME=VALUE", help="values of its variables")
    render.add_argument("--user", help="what this end user would get")
    render.add_argument("--model", help="whose tokens are counted")
    for place in (show, render):
        place.add_argument("--label")
        place.add_argument("--version", type=positive)
    stats.add_argument("--from", dest="start", metavar="DAY")
    stats.add_argument("--to", dest="end", metavar="DAY")
    stats.add_argument("--version", type=positive)
    for place in (versions, audit):
        place.add_argument("--limit", type=positive, default=50, help="how many at most; default 50")
    pull, push = prompt_sync.register(commands, prompts)
    for place in (*named, listing, pull, push):
        place.add_argument("--shared", action="store_true", help="the prompts that every tenant has (errand/…)")
