"""Bugs for the chaos run to find: edits of the source in a copy, never a switch in the product."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

from scripts.mutants import ROOT
from shared.errors import ConfigurationError


class Plant(NamedTuple):
    """A bug for the run to find: edits of the source in a copy."""

    says: str
    edits: tuple[tuple[str, str, str], ...]


PLANTS = {
    "unfenced": Plant(
        "the scripts take any worker for the lease's owner",
        (
            (
                "shared/lua/lib/job.lua",
                "  return row.owner == worker and row.lease == tostring(lease) and\n"
                "    (row.status == 'processing' or row.status == 'cancelling')",
                "  return true",
            ),
            (
                "shared/lua/lib/job.lua",
                "  return row[1] == worker and row[2] == tostring(lease) and "
                "(row[3] == 'processing' or row[3] == 'cancelling')",
                "  return true",
            ),
        ),
    ),
    "settles-twice": Plant(
        "settle runs twice for each job",
        (
            ("shared/lua/settle.lua", "if row.settled == tostring(job.lease) then return 'again' end", ""),
            ("shared/lua/settle.lua", "if not holds(row, a.worker, job.lease) then return 'lost' end", ""),
            (
                "shared/lua/settle.lua",
                "do states[i] = settle(job) end",
                "do settle(job); states[i] = settle(job) end",
            ),
        ),
    ),
    "no-reaper": Plant(
        "jobs of lost workers are never taken back",
        (("shared/lua/reap.lua", "do take_back(job_id) end", "do local _ = job_id end"),),
    ),
    "no-idempotency": Plant(
        "idempotency keys are forgotten",
        (
            (
                "shared/lua/lib/base.lua",
                "  redis.call('HSET', key, 'body', a.idem_body, 'reply', cmsgpack.pack(reply))\n",
                "",
            ),
        ),
    ),
    "slot-leak": Plant(
        "a tenant's slot is not given back",
        (("shared/lua/lib/job.lua", "redis.call('HINCRBY', P .. 'running', tenant, 0 - count)", "1"),),
    ),
    "amnesia": Plant(
        "finished steps are not journaled",
        (("shared/lua/finish_step.lua", "{result = a.result, tokens = total - a.wasted}", "{call = a.call}"),),
    ),
    "usage-lost": Plant(
        "a step's output tokens are not booked",
        (("shared/lua/finish_step.lua", "a.tok_out, a.tok_embed, wasted, a", "0, a.tok_embed, wasted, a"),),
    ),
    "untold": Plant(
        "some ends of jobs are not told to their webhooks",
        (("shared/lua/lib/hooks.lua", "  at = at or now\n", "  at = at or now\n  if at % 9 == 0 then return end\n"),),
    ),
    "leak-task": Plant(
        "each attempt leaves a task behind",
        (
            (
                "worker/execution.py",
                "        self._task.add_done_callback(self._performed)\n",
                "        self._task.add_done_callback(self._performed)\n        loop.create_task(asyncio.sleep(1e6))\n",
            ),
        ),
    ),
    "leak-key": Plant(
        "the journals of removed jobs stay",
        (("shared/lua/sweep.lua", "P .. 'log:' .. job_id, P .. 'journal:' .. job_id,", "P .. 'log:' .. job_id,"),),
    ),
    "leak-connection": Plant(
        "each reading of a document's vectors keeps a connection to Redis",
        (
            (
                "worker/search/exact.py",
                "        # Not on the shared connection: leases would wait behind megabytes.\n",
                '        await self._client.connection_pool.get_connection("MGET")\n',
            ),
        ),
    ),
    "leak-memory": Plant(
        "each attempt leaves 20 kB in a dictionary",
        (
            (
                "worker/execution.py",
                "        self._task.add_done_callback(self._performed)\n",
                "        self._task.add_done_callback(self._performed)\n"
                "        sys.modules[__name__].__dict__[self.claimed.job_id] = bytearray(b'x' * 20_000)\n",
            ),
            ("worker/execution.py", "import random\n", "import random\nimport sys\n"),
        ),
    ),
}  # fmt: skip


def planted(name: str, folder: Path) -> Path:
    """A copy of the source with the bug in it. Raises ConfigurationError when the bug no longer fits the source."""
    copy = folder / "tree"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv*", ".errand", "__pycache__", "*.egg-info"))
    for file, old, new in PLANTS[name].edits:
        path = copy / file
        text = path.read_text()
        if old not in text:
            raise ConfigurationError(f"the bug {name!r} no longer fits {file}")
        path.write_text(text.replace(old, new))
    return copy
