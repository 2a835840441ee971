"""`./scripts/errand`: the command line over the HTTP API.

Exit codes: 0 done; 1 the API refused, or the job did not complete; 2 wrong usage, or no API was reached.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys

import aiohttp

from scripts.client import ApiError, Client, UnreachableError
from scripts.commands import (
    admin,
    asking,
    audit,
    doctor,
    documents,
    embedding,
    erasure,
    experiments,
    jobs,
    prompts,
    search,
    usage,
    webhooks,
)
from scripts.commands.parsing import Commands
from scripts.commands.printing import usage_error


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print JSON")
    common.add_argument("--url", help="the API (default: ERRAND_URL, else http://127.0.0.1:8080)")
    top = argparse.ArgumentParser(
        prog="errand",
        description="The command line over Errand's HTTP API.",
        epilog="The key is taken from ERRAND_KEY, else from the data directory's admin.key.",
    )
    commands = Commands(top.add_subparsers(dest="group", required=True, metavar="COMMAND"), common)
    for subject in (
        asking,
        embedding,
        jobs,
        documents,
        prompts,
        experiments,
        search,
        usage,
        webhooks,
        admin,
        erasure,
        audit,
        doctor,
    ):
        subject.register(commands)
    return top


async def run(arguments: argparse.Namespace) -> int:
    """Runs the chosen command. Returns the exit code."""
    try:
        async with Client(arguments.url) as client:
            return int(await arguments.run(client, arguments))
    except ApiError as error:
        if arguments.json:
            print(json.dumps(error.problem, indent=2))
        print(f"errand: {error}", file=sys.stderr)
        for entry in error.problem.get("errors", []):
            line = f"{entry['path']}: {entry['message']}"
            if line != str(error):  # the only one is the message itself
                print(f"  {line}", file=sys.stderr)
        return 1
    except UnreachableError as error:
        return usage_error(str(error))
    except aiohttp.InvalidURL as error:
        return usage_error(f"{str(error)!r} is no address of an API; ERRAND_URL or --url has the form http://HOST:PORT")


def main() -> int:
    """The command. Returns its exit code."""
    arguments = parser().parse_args()
    try:
        return asyncio.run(run(arguments))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
