"""Holds a running stack against its own OpenAPI document, with schemathesis.

    ./scripts/run python -m scripts.conformance [--examples N] [--seed N] [--seconds S] [schemathesis options …]

Starts Redis, the development model, the API and workers, calls everything that `/openapi.json` describes with valid and
invalid requests, one by one and in chains, and stops all. No answer may be a 5xx or break the document; what a valid
request may be refused for is listed with its reason in scripts/conformance_checks.py. `/api/ws` is no HTTP call: it has
tests of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from scripts.bench.common import ADMIN_KEY
from scripts.client import Client
from scripts.stack import Stack, install_signals
from shared.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
COMMAND = (sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()", "run")
# By what_is_described_is_accepted and what_is_deleted_is_gone, which know reasons.
REPLACED = ("positive_data_acceptance", "use_after_free")


async def furnish(client: Client) -> dict[str, list[str]]:
    """Makes one of each kind, so that calls about it find something. Ids by what stands in addresses."""
    asked: dict[str, Any] = {"type": "chat", "input": {"messages": [{"role": "user", "content": "Say something."}]}}
    texts = {"type": "batch-embedding", "input": {"texts": ["one", "two"]}}
    text = {"text": "The harbour opens at nine. The ferry leaves at ten."}
    jobs = [(await client.call("POST", "/api/jobs", json=body))["jobId"] for body in (asked, texts)]
    later = (await client.call("POST", "/api/jobs", json={**asked, "delaySeconds": 3_600}))["jobId"]
    document = await client.call("POST", "/api/documents", json=text)
    for job in (*jobs, document["jobId"]):
        await client.call("GET", f"/api/jobs/{job}?wait=30")
    await client.call("DELETE", f"/api/jobs/{later}")
    search = await client.call("POST", "/api/search", json={"q": "When does the harbour open?", "minScore": 0})
    messages = [{"role": "system", "content": "Be brief."}]
    await client.call("POST", "/api/prompts", json={"name": "sample", "messages": messages, "labels": ["production"]})
    await client.call("POST", "/api/prompts/sample/versions", json={"messages": messages, "labels": ["beta"]})
    variants = {"variants": [{"version": 1}, {"version": 2}]}
    await client.call("PUT", "/api/prompts/sample/experiments/production", json=variants)
    tenant = (await client.call("POST", "/api/admin/tenants", json={"name": "sample"}))["tenantId"]
    key = (await client.call("POST", f"/api/admin/tenants/{tenant}/keys", json={}))["keyId"]
    return {
        "jobs/id": [*jobs, later], "stream/jobId": [jobs[0]], "documents/id": [document["documentId"]],
        "search/searchId": [search["searchId"]], "prompts/name": ["sample"], "labels/label": ["production", "beta"],
        "experiments/label": ["production"], "collections/name": ["default"], "versions/version": ["1"],
        "tenants/tenantId": [tenant], "keys/keyId": [key],
    }  # fmt: skip


async def hold(stack: Stack, arguments: argparse.Namespace, options: list[str]) -> int:
    """Runs schemathesis; its exit code, 1 when it took too long."""
    command = [
        *COMMAND, f"{stack.url}/openapi.json", "--header", f"Authorization: Bearer {ADMIN_KEY}",
        "--checks", "all", "--exclude-checks", ",".join(REPLACED), "--exclude-path", "/api/ws",
        "--max-examples", str(arguments.examples), "--seed", str(arguments.seed), "--request-timeout", "30",
        # These judge what is drawn, not what is answered.
        "--suppress-health-check", "too_slow,filter_too_much",
        "--continue-on-failure", "--generation-database", "none", "--no-color", *options,
    ]  # fmt: skip
    async with Client(stack.url, ADMIN_KEY) as client:
        known = json.dumps(await furnish(client))
    environment = {
        **os.environ,
        "ERRAND_KNOWN": known,
        "SCHEMATHESIS_HOOKS": "scripts.conformance_checks",
        "PYTHONPATH": str(ROOT),
    }
    with tempfile.TemporaryDirectory(prefix="errand-c-") as folder:
        process = await asyncio.create_subprocess_exec(*command, env=environment, cwd=folder)
        waiting = asyncio.create_task(process.wait())
        stopping = asyncio.create_task(stack.stopping.wait())
        await asyncio.wait([waiting, stopping], timeout=arguments.seconds, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not waiting.done():
            print(f"not done within {arguments.seconds:g} s", file=sys.stderr)
            with suppress(ProcessLookupError):
                process.kill()
            await waiting
            return 1
        return waiting.result()


async def run(arguments: argparse.Namespace, options: list[str]) -> int:
    """Starts the stack, holds it against its document, and stops it."""
    with tempfile.TemporaryDirectory(prefix="errand-c-") as folder:
        for name in ("REDIS_URL", "OPENAI_BASE_URL", "OPENAI_API_KEY"):
            os.environ.pop(name, None)  # a stack of its own, whatever else runs here
        os.environ |= {"ERRAND_DATA_DIR": folder, "ERRAND_ADMIN_KEY": ADMIN_KEY}
        stack = Stack(Settings.load(), port=0, log_dir=arguments.logs or Path(folder) / "logs")
        install_signals(stack)
        try:
            await stack.start()
            return await hold(stack, arguments, options)
        finally:
            await stack.stop()


def main() -> int:
    """The command. Returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m scripts.conformance", description=__doc__.partition("\n")[0])
    parser.add_argument("--examples", type=int, default=5, help="of each call in each phase (5)")
    parser.add_argument("--seed", type=int, default=1, help="of what is drawn (1)")
    parser.add_argument("--seconds", type=float, default=300.0, help="most that it may take (300)")
    parser.add_argument("--logs", type=Path, help="where the processes' logs go; else they are not kept")
    arguments, options = parser.parse_known_args()
    return asyncio.run(run(arguments, options))


if __name__ == "__main__":
    sys.exit(main())
