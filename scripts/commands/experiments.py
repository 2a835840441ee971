"""Experiments on labels of prompts."""

from __future__ import annotations

import argparse
from typing import Any
from urllib.parse import quote

from scripts.client import ApiError, Client
from scripts.commands.parsing import Commands, positive, read_json_argument, without_none
from scripts.commands.printing import note, out, table, usage_error


def _path(arguments: argparse.Namespace, *rest: str) -> str:
    base = f"/api/prompts/{quote(arguments.name, safe='')}/experiments"
    shared = "?shared=true" if arguments.shared else ""
    return "/".join([base, *(quote(one, safe="") for one in rest)]) + shared


def _interval(found: dict[str, float] | None) -> str:
    return "-" if found is None else f"{found['low']:.4g} to {found['high']:.4g}"


def experiment_text(view: dict[str, Any]) -> str:
    """An experiment for people: a row for each arm and metric."""
    over = f"ended {view['endedAt']} by {view['endedBy']}: {view['why']}" if view["endedAt"] else "runs"
    lines = [
        f"{view['id']} on {view['name']} {view['label']}, {over}",
        f"  by {view['stickyBy']}, coverage {view['coverage']:.0%}, since {view['startedAt']}",
    ]
    if view["sampleRatio"]["mismatch"]:
        lines.append("  UNEVEN: units are not shared out as the weights say; something loses some of one arm")
    rows = [["VERSION", "UNITS", "METRIC", "JOBS", "MEAN", "DIFFERENCE TO THE CONTROL", ""]]
    for arm in view["arms"]:
        name = f"{arm['version']}{' (control)' if arm['isControl'] else ''}"
        for metric, found in arm["metrics"].items():
            sure = "sure" if found["conclusive"] else ""
            difference = "" if arm["isControl"] else _interval(found["difference"])
            rows.append(
                [name, str(arm["assigned"]), metric, str(found["jobs"]), f"{found['mean']:.4g}", difference, sure]
            )
        if not arm["metrics"]:
            rows.append([name, str(arm["assigned"]), "-", "0", "-", "", ""])
    for rail in view["guardrails"]:
        crossed = f", crossed by arm {rail['crossedBy']}" if rail["crossedBy"] else ""
        lines.append(f"  guardrail {rail['metric']} worse by {rail['worseBy']:g}: {rail['action']}{crossed}")
    return "\n".join([*lines, table(rows)])


async def begin(client: Client, arguments: argparse.Namespace) -> int:
    """Begin an experiment on a label on which none runs."""
    variants = []
    for given in arguments.variant:
        version, _, weight = given.partition(":")
        try:
            variants.append({"version": int(version), "weight": float(weight or 1)})
        except ValueError:
            return usage_error(f"{given!r} is not of the form VERSION or VERSION:WEIGHT")
    body = without_none(
        variants=variants,
        stickyBy=arguments.sticky_by,
        coverage=arguments.coverage,
        guardrails=read_json_argument(arguments.guardrails) if arguments.guardrails else None,
        note=arguments.note,
    )
    # What runs is not changed by the way: a body without its guardrails would take them off.
    headers = {"If-None-Match": "*"}
    try:
        view = await client.call("PUT", _path(arguments, arguments.label), json=body, headers=headers)
    except ApiError as error:
        if error.problem.get("code") == "precondition_failed":
            note(f"one runs on {arguments.label}: `errand experiments ramp` lets more in, `stop` ends it")
        raise
    out(arguments, view, experiment_text(view))
    return 0


async def ramp(client: Client, arguments: argparse.Namespace) -> int:
    """Let more units into the experiment that runs; what is not given stays as it is."""
    view, etag = await client.tagged("GET", _path(arguments, arguments.label))
    kept = [{name: rail[name] for name in ("metric", "worseBy", "action", "leastJobs")} for rail in view["guardrails"]]
    body = without_none(
        variants=[{"version": arm["version"], "weight": arm["weight"]} for arm in view["arms"]],
        stickyBy=view["stickyBy"],
        coverage=arguments.coverage,
        guardrails=kept if arguments.guardrails is None else read_json_argument(arguments.guardrails),
        note=view["note"] if arguments.note is None else arguments.note,
    )
    view = await client.call("PUT", _path(arguments, arguments.label), json=body, headers={"If-Match": etag})
    out(arguments, view, experiment_text(view))
    return 0


async def show(client: Client, arguments: argparse.Namespace) -> int:
    """The arms of the experiment that runs on a label, with intervals that hold at every look."""
    view = await client.call("GET", _path(arguments, arguments.label))
    out(arguments, view, experiment_text(view))
    return 0


async def listing(client: Client, arguments: argparse.Namespace) -> int:
    """Experiments of a prompt that run and that are over."""
    path, _, asked = _path(arguments).partition("?")
    page = await client.pages(path, query=asked)
    out(arguments, page, "\n\n".join(map(experiment_text, page["data"])) or "no experiments")
    return 0


async def stop(client: Client, arguments: argparse.Namespace) -> int:
    """Stop an experiment; everybody gets the label's version."""
    view = await client.call("DELETE", _path(arguments, arguments.label))
    out(arguments, view, experiment_text(view))
    return 0


async def promote(client: Client, arguments: argparse.Namespace) -> int:
    """Stop an experiment and point the label at a version."""
    body = without_none(version=arguments.version, note=arguments.note)
    view = await client.call("POST", _path(arguments, arguments.label, "promote"), json=body)
    out(arguments, view, experiment_text(view))
    return 0


def register(commands: Commands) -> None:
    """`experiments …`."""
    group = commands.group("experiments", "which version of a prompt is better")
    start = commands.action(group, "start", begin)
    more = commands.action(group, "ramp", ramp)
    shown = commands.action(group, "show", show)
    ended = commands.action(group, "stop", stop)
    chosen = commands.action(group, "promote", promote)
    every = commands.action(group, "list", listing)
    for place in (start, more, shown, ended, chosen, every):
        place.add_argument("name")
        place.add_argument("--shared", action="store_true", help="a prompt that every tenant has")
    for place in (start, more, shown, ended, chosen):
        place.add_argument("label")
    chosen.add_argument("version", type=positive)
    start.add_argument("variant", nargs="+", metavar="VERSION[:WEIGHT]")
    start.add_argument("--sticky-by", choices=("user", "job"), help="which unit keeps its arm; default user")
    start.add_argument("--coverage", type=float, metavar="SHARE", help="of the units that are in, 0 to 1; default 1")
    more.add_argument("coverage", type=float, metavar="COVERAGE", help="share of the units that are in; it only grows")
    for place in (start, more):
        place.add_argument("--guardrails", metavar="JSON", help="list, @file or -: what ends it by itself")
    for place in (start, more, chosen):
        place.add_argument("--note")
