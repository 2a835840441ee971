"""What we rely on in others, and what our own documentation promises."""

from __future__ import annotations

import argparse
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import arq.worker
import openai
import pytest

from scripts import cli
from shared.keys import KEY_KINDS
from shared.redis import script_source
from worker.model.client import RAW

ROOT = Path(__file__).parent.parent


def test_the_parts_of_arq_that_the_engine_stands_on() -> None:
    worker = arq.worker.Worker
    parameters = inspect.signature(worker.__init__).parameters
    for name in ("functions", "redis_pool", "queue_name", "max_jobs", "job_completion_wait", "handle_signals"):
        assert name in parameters
    for name in ("run", "async_run", "main", "close", "handle_sig", "handle_sig_wait_for_completion"):
        assert callable(getattr(worker, name))
    source = inspect.getsource(worker)
    assert "self.loop.create_task(self.main())" in source
    assert "self.tasks: dict" in source
    assert "self.functions: dict" in source

    async def task(_: object) -> None: ...

    assert arq.worker.func(task, name="x").coroutine is task


async def test_the_sdk_still_hands_out_its_answer_raw(model: Any) -> None:
    """Given the header that worker/model/client.py sends, then the SDK gives bytes, over aiohttp, and closes it."""
    client = openai.AsyncOpenAI(api_key="x", base_url=f"{model.base}/v1", http_client=openai.DefaultAioHttpClient())
    body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "Say one."}]}
    response = await client.post(
        "/chat/completions", body=body, cast_to=object, options={"headers": RAW}, stream=True,
        stream_cls=openai.AsyncStream[object],
    )  # fmt: skip
    received = b"".join([piece async for piece in response.iter_bytes()])
    assert received.startswith(b"data: {")
    assert received.rstrip().endswith(b"data: [DONE]")
    await response.close()
    await client.close()


SCRIPTS = sorted(path.stem for path in (ROOT / "shared/lua").glob("*.lua"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_has_its_head_block(name: str) -> None:
    text = (ROOT / f"shared/lua/{name}.lua").read_text()
    head = text[: text.index("--@include")]
    assert head.startswith(f"-- {name}: ")
    for part in ("KEYS", "ARGV", "Returns"):
        assert re.search(rf"^-- {part} ", head, re.MULTILINE), part
    assert "redis.call('EVAL" not in script_source(name)


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_name_only_known_keys(name: str) -> None:
    """Every key built in Lua is one of the catalogue's."""
    forms = {re.sub(r"\{\w+\}", "*", kind.form).split("*")[0].rstrip(":") for kind in KEY_KINDS}
    for built in re.findall(r"P \.\. '([a-z:]+)'", script_source(name)):
        assert built.rstrip(":") in forms, built


def test_the_reference_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "scripts.reference", "--check"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_proof_names_tests_that_exist() -> None:
    text = (ROOT / "docs/proof.md").read_text()
    named = set(re.findall(r"`(tests/test_\w+\.py)::(test_\w+)`", text))
    assert len(named) > 40
    for file, test in named:
        assert f"def {test}(" in (ROOT / file).read_text(), f"{file}::{test}"
    for script in set(re.findall(r"`(?:python -m )?scripts[./]bench[./](\w+)`", text)):
        assert (ROOT / f"scripts/bench/{script}.py").exists(), script


def test_the_documents_link_to_files_that_exist() -> None:
    for page in [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} → {target}"


def leaves(parser: argparse.ArgumentParser, name: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Each command of the command line by its whole name."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not below:
        yield name.strip(), parser
    for action in below:
        for word, found in action.choices.items():
            yield from leaves(found, f"{name} {word}")


COMMANDS = dict(leaves(cli.parser()))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_is_documented(name: str) -> None:
    """docs/command-line.md has each command in its first table, and in a row of the second that names it (or its whole
    group) each of its options."""
    text = (ROOT / "docs/command-line.md").read_text()
    first, second = text.partition("## Options")[::2]
    group, _, action = name.partition(" ")
    rows = [row for row in first.splitlines() if row.startswith(f"| `{group}")]
    assert any(re.search(rf"`{name}[ `]|`{action}[ `]" if action else rf"`{name}[ `]", row) for row in rows), name
    mine = [row for row in second.splitlines() if row.startswith("| `") and f"`{name}`" in row.split(" | ")[0]]
    mine += [row for row in second.splitlines() if row.startswith(f"| `{group} …`")]
    for option in COMMANDS[name]._actions:
        longest = max(option.option_strings, key=len, default="")
        if longest not in ("", "--help", "--json", "--url"):
            assert any(f"`{longest}" in row for row in mine), (name, longest)


def test_no_option_is_documented_that_is_not_there() -> None:
    known = {flag for parser in COMMANDS.values() for option in parser._actions for flag in option.option_strings}
    text = (ROOT / "docs/command-line.md").read_text().partition("## Options")[2]
    told = set(re.findall(r"`(--?[a-z][a-z-]*)", text))
    assert told
    assert told <= known
