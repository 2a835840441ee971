"""Prompts between the server and files: pull and push."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from scripts.client import ApiError, Client
from scripts.commands import prompt_files
from scripts.commands.parsing import Commands, prompt_path, without_none
from scripts.commands.printing import note, out, usage_error
from shared.prompts import content_of


async def pull(client: Client, arguments: argparse.Namespace) -> int:
    """Write the newest version of each prompt into a file below a folder."""
    root = Path(arguments.folder)
    query = urlencode(without_none(prefix=arguments.prefix) | ({"shared": "true"} if arguments.shared else {}))
    rows = (await client.pages("/api/prompts", query=query))["data"]
    done = []
    for row in rows:
        if row["shared"] and not arguments.shared:
            continue
        arguments.name = row["name"]
        view = await client.call("GET", prompt_path(arguments, label="latest"))
        there = [root / f"{row['name']}{suffix}" for suffix in prompt_files.SUFFIXES]
        path = next((one for one in there if one.exists()), there[0])
        text = prompt_files.written(view, path)
        changed = not path.exists() or path.read_text(encoding="utf-8") != text
        if changed:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        done.append({"name": row["name"], "version": view["version"], "file": str(path), "changed": changed})
    lines = [f"{one['file']}  version {one['version']}" for one in done if one["changed"]]
    out(arguments, done, "\n".join(lines) or f"nothing changed in {len(done)} files")
    return 0


async def push(client: Client, arguments: argparse.Namespace) -> int:
    """Make a version of each file that says something new, and point its labels there. All files are checked first."""
    root = Path(arguments.folder)
    files, bad = [], 0
    for path in prompt_files.find(root):
        try:
            files.append(prompt_files.read(path, root))
        except prompt_files.BadFileError as error:
            note(f"{path}: {error}")
            bad += 1
    if not files and not bad:
        return usage_error(f"{root} has no files of prompts ({', '.join(prompt_files.SUFFIXES)})")
    plans = []
    for file in files:
        arguments.name = file.name
        plan = await _plan(client, arguments, file)
        bad += plan["act"] == "refuse"
        plans.append((file, plan))
        if plan["act"] == "refuse":
            note(f"{file.path}: {plan['why']}")
    if bad:
        note(f"nothing was pushed: {bad} of {len(prompt_files.find(root))} files cannot be")
        return 1
    lines = []
    for file, plan in plans:
        arguments.name = file.name
        if not arguments.dry_run:
            await _carry_out(client, arguments, file, plan)
        if plan["act"] != "nothing" or plan["labels"]:
            lines.append(_plan_text(file, plan))
    shown = [{"name": file.name, "file": str(file.path), **plan} for file, plan in plans]
    verb = "would be done" if arguments.dry_run else "done"
    out(arguments, shown, "\n\n".join([*lines, f"{len(lines)} of {len(plans)} prompts: {verb}"]))
    return 0


async def _plan(client: Client, arguments: argparse.Namespace, file: prompt_files.PromptFile) -> dict[str, Any]:
    """What pushing a file does: `act` is create, add, nothing or refuse; `labels` those that move, and where to."""
    try:
        newest = await client.call("GET", prompt_path(arguments, label="latest"))
    except ApiError as error:
        if error.problem.get("code") != "not_found":
            raise
        newest = None
    if newest is not None and newest["shared"] and not arguments.shared:
        newest = None  # one's own of that name is made
    if newest is None:
        labels = dict.fromkeys(file.new.labels, 1)
        return {"act": "create", "version": 1, "labels": labels, "diff": _new_text(None, file)}
    same = newest["sha256"] == file.sha256
    to = newest["version"] + (not same)
    rows = (await client.call("GET", prompt_path(arguments, "labels")))["data"]
    known = {row["label"]: row["version"] for row in rows}
    labels = {label: to for label in file.new.labels if known.get(label) != to}
    if same:
        return {"act": "nothing", "version": to, "labels": labels, "diff": ""}
    if file.version != newest["version"] and newest["note"] != prompt_files.PUSHED and not arguments.force:
        why = (
            f"the server has version {newest['version']} of {newest['createdAt']} by {newest['createdBy']}, which this "
            "file was not pulled from; pull it, or push with --force"
        )
        return {"act": "refuse", "version": to, "labels": {}, "diff": "", "why": why}
    return {"act": "add", "version": to, "labels": labels, "diff": _new_text(newest, file)}


def _new_text(newest: dict[str, Any] | None, file: prompt_files.PromptFile) -> str:
    old = prompt_files.served_content(newest) if newest is not None else None
    return prompt_files.difference(old, content_of(file.new))


async def _carry_out(
    client: Client, arguments: argparse.Namespace, file: prompt_files.PromptFile, plan: dict[str, Any]
) -> None:
    body = prompt_files.body_of(file)
    if plan["act"] == "create":
        path = "/api/prompts" + ("?shared=true" if arguments.shared else "")
        view = await client.call(
            "POST", path, json={**body, **without_none(name=file.name, description=file.description)}
        )
    elif plan["act"] == "add":
        view = await client.call("POST", prompt_path(arguments, "versions"), json=body)
    else:
        for label, version in plan["labels"].items():
            await client.call("PUT", prompt_path(arguments, "labels", label), json={"version": version})
        view = await client.call("GET", prompt_path(arguments, label="latest"))
    plan["version"] = view["version"]
    fresh = await client.call("GET", prompt_path(arguments, version=view["version"]))
    file.path.write_text(prompt_files.written(fresh, file.path), encoding="utf-8")


def _plan_text(file: prompt_files.PromptFile, plan: dict[str, Any]) -> str:
    what = {"create": "new", "add": f"version {plan['version']}", "nothing": "as it is"}[plan["act"]]
    lines = [f"{file.name}: {what}"]
    lines += [f"  label {label} → version {version}" for label, version in plan["labels"].items()]
    lines += [f"  {line}" for line in plan["diff"].splitlines()]
    return "\n".join(lines)


def register(commands: Commands, prompts: Any) -> tuple[argparse.ArgumentParser, argparse.ArgumentParser]:
    """`prompts pull` and `prompts push`; their parsers."""
    pulling = commands.action(prompts, "pull", pull)
    pushing = commands.action(prompts, "push", push)
    for place in (pulling, pushing):
        place.add_argument("folder")
    pulling.add_argument("--prefix", help="only those in this folder of names")
    pushing.add_argument("--dry-run", action="store_true", help="show what would be done, word by word, and do nothing")
    pushing.add_argument("--force", action="store_true", help="also over versions that were made elsewhere")
    return pulling, pushing
