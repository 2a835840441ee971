"""What the commands' arguments have in common."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from scripts.client import Client
from scripts.commands.printing import usage_error

Command = Callable[[Client, argparse.Namespace], Awaitable[int]]


class Commands:
    """Where each module hangs its commands."""

    def __init__(self, top: Any, common: argparse.ArgumentParser) -> None:
        """`top` are the top parser's subparsers; every command has the arguments of `common`."""
        self.top = top
        self._common = common
        self._groups: dict[str, Any] = {}

    def group(self, name: str, help_text: str) -> Any:
        """A command that has commands of its own; the same again for modules that share one."""
        if name not in self._groups:
            parser = self.top.add_parser(name, help=help_text)
            self._groups[name] = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
        return self._groups[name]

    def action(self, place: Any, name: str, run: Command, help_text: str | None = None) -> argparse.ArgumentParser:
        """A command in a group, or in `top`. Its description is the docstring of `run`."""
        made: argparse.ArgumentParser = place.add_parser(
            name,
            parents=[self._common],
            help=help_text or (run.__doc__ or "").rstrip("."),
            description=run.__doc__,
        )
        made.set_defaults(run=run)
        return made


def positive(text: str) -> int:
    """A whole number from 0 up."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 up")
    return int(text)


def read_json_argument(text: str) -> Any:
    """JSON from the argument itself, from `@file`, or from standard input (`-`)."""
    try:
        if text == "-":
            return json.load(sys.stdin)
        if text.startswith("@"):
            return json.loads(Path(text[1:]).read_text())
        return json.loads(text)
    except (ValueError, OSError) as error:
        raise SystemExit(usage_error(f"{text[:60]}: {error}")) from None


def as_answer(text: str) -> Any:
    """What a person answers: JSON, or else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def job_path(job_id: str) -> str:
    """The job's path, whatever the id holds."""
    return f"/api/jobs/{quote(job_id, safe='')}"


def without_none(**members: Any) -> dict[str, Any]:
    """The members that were given."""
    return {name: value for name, value in members.items() if value is not None}


def prompt_path(arguments: argparse.Namespace, *rest: str, **query: Any) -> str:
    """The path of the prompt `arguments.name`, or of what lies below it; of the shared one with `arguments.shared`."""
    if arguments.shared:
        query["shared"] = "true"
    path = "/".join(["/api/prompts", quote(arguments.name, safe=""), *(quote(one, safe="") for one in rest)])
    given = urlencode(without_none(**query))
    return f"{path}?{given}" if given else path


def add_prompt(parser: argparse.ArgumentParser) -> None:
    """`--prompt` and `--set`, for commands that submit a job."""
    parser.add_argument("--prompt", metavar="NAME", help="a stored prompt: NAME, NAME@VERSION or NAME:LABEL")
    parser.add_argument(
        "--set", action="append", metavar="X=TEXT", help="a value of its variables; X:=JSON for other types"
    )


def prompt_ref(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """What `--prompt` and `--set` say, as a job names it. Ends the command with 2 for what cannot be read."""
    if arguments.prompt is None:
        if arguments.set:
            raise SystemExit(usage_error("--set gives values to a --prompt"))
        return None
    name, at, version = arguments.prompt.partition("@")
    name, colon, label = name.partition(":")
    if (at and not version.isdigit()) or (colon and not label) or (at and colon):
        raise SystemExit(usage_error(f"{arguments.prompt!r} is not of the form NAME, NAME@VERSION or NAME:LABEL"))
    values: dict[str, Any] = {}
    for given in arguments.set or ():
        variable, sign, text = given.partition("=")
        if not sign:
            raise SystemExit(usage_error(f"{given!r} is not of the form X=TEXT or X:=JSON"))
        values[variable.removesuffix(":")] = read_json_argument(text) if variable.endswith(":") else text
    return without_none(
        name=name, version=int(version) if at else None, label=label if colon else None, variables=values or None
    )
