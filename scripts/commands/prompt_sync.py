"""Prompts between the server and files: pull and push."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from scripts.client import ApiError, Client, UnreachableError
from scripts.commands import prompt_files
from scripts.commands.parsing import Commands, prompt_path, without_none
from scripts.commands.printing import note, out, usage_error
from shared.prompts import content_of

Plan = dict[str, Any]
"""What pushing a file does: `act` is create, add, nothing or refuse (`why`), `version` the one that then says what the
file says, `labels` those that move and where to, `diff` the difference to the server's newest version."""


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
        try:
            changed = _write(path, prompt_files.written(view, path))
        except OSError as error:
            return usage_error(f"{path} cannot be written: {error.strerror}")
        done.append({"name": row["name"], "version": view["version"], "file": str(path), "changed": changed})
    lines = [f"{one['file']}  version {one['version']}" for one in done if one["changed"]]
    out(arguments, done, "\n".join(lines) or f"nothing changed in {len(done)} files")
    return 0


def _write(path: Path, text: str) -> bool:
    """Makes a file say this; whether it did not before. Raises OSError."""
    content = text.encode()
    if path.exists() and path.read_bytes() == content:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return True


async def push(client: Client, arguments: argparse.Namespace) -> int:
    """Make a version of each file that says something new, and point its labels there. All files are checked first."""
    root = Path(arguments.folder)
    if arguments.exit_code and not arguments.dry_run:
        return usage_error("--exit-code goes with --dry-run")
    paths = prompt_files.find(root)
    if not paths:
        return usage_error(f"{root} has no files of prompts ({', '.join(prompt_files.SUFFIXES)})")
    files, wrong = _read(paths, root)
    plans = [(file, await _plan(client, arguments, file)) for file in files]
    wrong |= {file.path: plan["why"] for file, plan in plans if plan["act"] == "refuse"}
    if wrong:
        for path in sorted(wrong):
            note(f"{path}: {wrong[path]}")
        note(f"nothing was pushed: {len(wrong)} of {len(paths)} files cannot be")
        return 1
    if not arguments.dry_run:
        await _carry_out_all(client, arguments, plans)
    lines = [_plan_text(file, plan) for file, plan in plans if _does_something(plan)]
    shown = [{"name": file.name, "file": str(file.path), **plan} for file, plan in plans]
    verb = "would be done" if arguments.dry_run else "done"
    out(arguments, shown, "\n\n".join([*lines, f"{len(lines)} of {len(plans)} prompts: {verb}"]))
    return 1 if lines and arguments.exit_code else 0


def _read(paths: list[Path], root: Path) -> tuple[list[prompt_files.PromptFile], dict[Path, str]]:
    """The prompts in these files, and what is wrong with those that hold none."""
    files, wrong = [], prompt_files.doubles(paths, root)
    for path in paths:
        try:
            file = prompt_files.read(path, root)
        except prompt_files.BadFileError as error:
            wrong[path] = str(error)
        else:
            if path not in wrong:
                files.append(file)
    return files, wrong


async def _plan(client: Client, arguments: argparse.Namespace, file: prompt_files.PromptFile) -> Plan:
    arguments.name = file.name
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
    known = {row["label"]: row for row in rows}
    labels = {label: to for label in file.new.labels if label not in known or known[label]["version"] != to}
    moved = [known[label] for label in labels if label in known] if same else []
    if why := _objection(newest, moved, file, is_forced=arguments.force, same=same):
        return {"act": "refuse", "version": to, "labels": {}, "diff": "", "why": why}
    if same:
        return {"act": "nothing", "version": to, "labels": labels, "diff": ""}
    return {"act": "add", "version": to, "labels": labels, "diff": _new_text(newest, file)}


def _objection(
    newest: dict[str, Any], moved: list[dict[str, Any]], file: prompt_files.PromptFile, *, is_forced: bool, same: bool
) -> str | None:
    """Why a file is not pushed onto the server's newest version; None when it may be. `moved` are the labels that would
    come back to a version that is there already."""
    if file.description is not None and file.description != (newest["description"] or ""):
        return "the description of a prompt is set once, when it is made; pull writes what it is"
    if is_forced:
        return None
    if not same and file.version != newest["version"]:
        return (
            f"the server has version {newest['version']} of {newest['createdAt']} by {newest['createdBy']}, which this "
            "file was not pulled from; pull it, or push with --force"
        )
    for label in moved:
        # Else the next push of an untouched file would undo a rollback.
        if label["changedAt"] > newest["createdAt"]:
            return (
                f"the label {label['label']!r} was put on version {label['version']} at {label['changedAt']} by "
                f"{label['changedBy']}, after version {newest['version']} was made; pull it, or push with --force"
            )
    return None


def _new_text(newest: dict[str, Any] | None, file: prompt_files.PromptFile) -> str:
    old = prompt_files.served_content(newest) if newest is not None else None
    return prompt_files.difference(old, content_of(file.new))


def _does_something(plan: Plan) -> bool:
    return plan["act"] != "nothing" or bool(plan["labels"])


async def _carry_out_all(
    client: Client, arguments: argparse.Namespace, plans: list[tuple[prompt_files.PromptFile, Plan]]
) -> None:
    """Carries all out, in order. What fails says what was done before it, and pushing again goes on there."""
    done: list[str] = []
    for file, plan in plans:
        try:
            await _carry_out(client, arguments, file, plan)
        except (ApiError, UnreachableError, OSError) as error:
            note(f"{file.path}: this one failed; pushed before it: {', '.join(done) or 'none'}")
            if isinstance(error, OSError):
                raise SystemExit(usage_error(f"{file.path} cannot be written: {error.strerror}")) from None
            raise
        if _does_something(plan):
            done.append(file.name)


async def _carry_out(client: Client, arguments: argparse.Namespace, file: prompt_files.PromptFile, plan: Plan) -> None:
    arguments.name = file.name
    body = prompt_files.body_of(file)
    if plan["act"] == "create":
        path = "/api/prompts" + ("?shared=true" if arguments.shared else "")
        made = {**body, **without_none(name=file.name, description=file.description)}
        plan["version"] = (await client.call("POST", path, json=made))["version"]
    elif plan["act"] == "add":
        plan["version"] = (await client.call("POST", prompt_path(arguments, "versions"), json=body))["version"]
    else:
        for label, version in plan["labels"].items():
            await client.call("PUT", prompt_path(arguments, "labels", label), json={"version": version})
    plan["labels"] = dict.fromkeys(plan["labels"], plan["version"])
    fresh = await client.call("GET", prompt_path(arguments, version=plan["version"]))
    _write(file.path, prompt_files.written(fresh, file.path))


def _plan_text(file: prompt_files.PromptFile, plan: Plan) -> str:
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
    pushing.add_argument("--exit-code", action="store_true", help="with --dry-run: 1 when there is something to do")
    pushing.add_argument("--force", action="store_true", help="also over what was changed on the server meanwhile")
    return pulling, pushing
