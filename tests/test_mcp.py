"""Tools of real MCP servers, over stdio and HTTP: called, timed, broken, restarted, and gone afterwards."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shared.errors import ConfigurationError, InvalidInput, ToolFailed
from shared.settings import Settings
from tests.conftest import Stack
from worker.tools.base import ToolContext, ToolResult, call_tool, check_arguments
from worker.tools.registry import Toolbox

ROOT = Path(__file__).parent.parent
SCRIPT = str(ROOT / "tests/mcp_server.py")
NOWHERE: Any = None
CONTEXT = ToolContext(tenant="ten_x", library=NOWHERE, settings=Settings(), idempotency_key="key-1")


def settings_of(**servers: Any) -> Settings:
    return Settings(mcp_servers=json.dumps(servers))


def small(**more: Any) -> dict[str, Any]:
    return {"command": sys.executable, "args": [SCRIPT], "env": {"SHOP": "open"}, "timeoutSeconds": 20, **more}


@pytest.fixture(scope="module")
async def box() -> AsyncIterator[Toolbox]:
    made = Toolbox(settings_of(shop=small()), NOWHERE)
    yield made
    await made.close()


@pytest.fixture
async def new_box() -> AsyncIterator[Any]:
    made: list[Toolbox] = []

    def make(**servers: Any) -> Toolbox:
        made.append(Toolbox(settings_of(**servers), NOWHERE))
        return made[-1]

    yield make
    for one in made:
        await one.close()


async def call(box: Toolbox, name: str, **arguments: Any) -> ToolResult:
    (tool,) = await box.resolve([name], has_documents=False)
    return await call_tool(tool, check_arguments(tool, json.dumps(arguments)), CONTEXT)


async def process_of(box: Toolbox) -> int:
    return int((await call(box, "shop__who")).text.split("\n")[0])


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


async def gone(pid: int) -> None:
    async with asyncio.timeout(10):
        while alive(pid):
            await asyncio.sleep(0.02)


# -- what is offered -------------------------------------------------------------------------------------------------


async def test_tools_come_with_name_description_schema_and_what_may_be_repeated(box: Toolbox) -> None:
    tools = {tool.name: tool for tool in await box.resolve(["calculate", "shop__*", "shop__add"], has_documents=False)}
    assert next(iter(tools)) == "calculate"
    assert {"shop__add", "shop__pay", "shop__fail", "shop__slow"} < set(tools)
    assert not any("odd" in name for name in tools)
    add = tools["shop__add"]
    assert (add.description, add.timeout_s) == ("Adds two numbers.", 20)
    assert set(add.parameters["properties"]) == {"a", "b"}
    assert [tools[f"shop__{name}"].replay for name in ("add", "pay", "fail")] == ["safe", "keyed", "never"]


async def test_only_allowed_tools_are_offered(new_box: Any) -> None:
    box = new_box(shop=small(tools=["add"]))
    assert [tool.name for tool in await box.resolve(["shop__*"], has_documents=False)] == ["shop__add"]
    with pytest.raises(InvalidInput, match="offers no tool 'pay'"):
        await box.resolve(["shop__pay"], has_documents=False)


async def test_an_unknown_tool_of_a_server_is_refused_with_what_it_has(box: Toolbox) -> None:
    with pytest.raises(InvalidInput, match="There is no tool 'shop__sell'; shop has: shop__add, "):
        await box.resolve(["shop__sell"], has_documents=False)


# -- calls -----------------------------------------------------------------------------------------------------------


async def test_results_are_text(box: Toolbox) -> None:
    assert await call(box, "shop__add", a=2, b=3) == ToolResult("5")
    assert json.loads((await call(box, "shop__shelf")).text) == {"apples": 3}
    assert (await call(box, "shop__picture")).text == "look:\n[image image/png, 300 bytes: cannot be shown]"


async def test_a_keyed_tool_gets_the_key(box: Toolbox) -> None:
    assert (await call(box, "shop__pay", amount=5)).text == "paid 5 key-1"


async def test_an_error_of_the_tool_is_told_to_the_model(box: Toolbox) -> None:
    result = await call(box, "shop__fail")
    assert result.is_error
    assert "the shop is closed" in result.text


async def test_a_slow_tool_is_stopped_and_the_session_goes_on(box: Toolbox) -> None:
    before = await process_of(box)
    (tool,) = await box.resolve(["shop__slow"], has_documents=False)
    result = await call_tool(msgspec.structs.replace(tool, timeout_s=0.3), {}, CONTEXT)
    assert (result.is_error, "longer than 0.3 s" in result.text) == (True, True)
    assert await process_of(box) == before


async def test_calls_of_several_jobs_share_one_process(box: Toolbox) -> None:
    pids = await asyncio.gather(*(process_of(box) for _ in range(10)))
    assert len(set(pids)) == 1


async def test_a_server_gets_its_own_environment_and_none_of_our_keys(
    new_box: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    names = (await call(new_box(shop=small()), "shop__who")).text.split("\n")
    assert "SHOP" in names
    assert "OPENAI_API_KEY" not in names


async def test_a_noisy_server_does_not_block(box: Toolbox) -> None:
    assert (await call(box, "shop__shout")).text == "shouted"


# -- what breaks -----------------------------------------------------------------------------------------------------


async def test_a_server_that_dies_in_mid_call_is_started_again_for_the_next(new_box: Any) -> None:
    """Given calls under way, when the server dies, then each says so, and the next call finds a new process."""
    box = new_box(shop=small())
    before = await process_of(box)
    results = await asyncio.gather(call(box, "shop__die"), call(box, "shop__slow"))
    for result in results:
        assert result.is_error
        assert "went away during the call" in result.text
    assert not alive(before)
    assert await call(box, "shop__add", a=1, b=1) == ToolResult("2")
    assert await process_of(box) != before


async def test_a_server_that_died_while_idle_is_not_noticed_by_the_next_call(new_box: Any) -> None:
    box = new_box(shop=small())
    tools = await box.resolve(["shop__add"], has_documents=False)
    pid = await process_of(box)
    os.kill(pid, signal.SIGKILL)
    await gone(pid)
    await asyncio.sleep(0.1)
    assert await call_tool(tools[0], {"a": 1, "b": 1}, CONTEXT) == ToolResult("2")


@pytest.mark.parametrize(
    ("server", "sentence"),
    [
        ({"command": "/nonexistent/s3cret"}, "cannot be run"),
        ({"command": sys.executable, "args": ["-c", "raise SystemExit('s3cret')"]}, "could not be started"),
        ({"command": "sleep", "args": ["60"], "timeoutSeconds": 0.5}, "not ready within 0.5 s"),
        ({"command": "yes", "args": ["s3cret"], "timeoutSeconds": 1.0}, "not ready within 1 s"),
        ({"url": "http://127.0.0.1:9/s3cret"}, "could not be reached"),
    ],
)
async def test_a_server_that_cannot_be_used_is_named_within_its_time(
    new_box: Any, server: dict[str, Any], sentence: str
) -> None:
    box = new_box(shop=server)
    async with asyncio.timeout(10):
        with pytest.raises(ToolFailed) as failed:
            await box.resolve(["shop__*"], has_documents=False)
    assert sentence in failed.value.message
    assert "s3cret" not in failed.value.message
    assert failed.value.retryable


def test_without_the_extra_the_start_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "worker.tools.mcp", None)
    with pytest.raises(ConfigurationError, match=r"errand\[mcp\]"):
        Toolbox(settings_of(shop=small()), NOWHERE)
    assert Toolbox(Settings(), NOWHERE)


# -- the end ---------------------------------------------------------------------------------------------------------


async def test_no_process_is_left_after_the_close(new_box: Any) -> None:
    box = new_box(shop=small())
    pid = await process_of(box)
    hanging = asyncio.create_task(call(box, "shop__slow"))
    await asyncio.sleep(0.1)
    await box.close()
    assert not alive(pid)
    assert (await hanging).is_error
    with pytest.raises(ToolFailed):
        await box.resolve(["shop__*"], has_documents=False)


async def test_a_server_that_ignores_everything_is_killed(new_box: Any, tmp_path: Path) -> None:
    """Given a server that reads nothing and ignores SIGTERM, when its start is given up, then it is gone."""
    script = tmp_path / "deaf.py"
    script.write_text(
        "import os, pathlib, signal, sys, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))\ntime.sleep(60)\n"
    )
    server = {"command": sys.executable, "args": [str(script), str(tmp_path / "pid")], "timeoutSeconds": 1.0}
    box = new_box(shop=server)
    with pytest.raises(ToolFailed):
        await box.resolve(["shop__*"], has_documents=False)
    await box.close()
    assert not alive(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
async def test_no_server_outlives_its_worker(signum: signal.Signals, loop: str) -> None:
    """Given a process with a started server, when it is stopped softly or killed hard, then the server ends too."""
    program = textwrap.dedent("""
        import asyncio, signal, sys, uvloop
        from shared.log import configure
        from tests.test_mcp import NOWHERE, process_of, settings_of, small
        from worker.tools.registry import Toolbox

        configure("json", "error", "test")

        async def main():
            box = Toolbox(settings_of(shop=small()), NOWHERE)
            stop = asyncio.Event()
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
            print(await process_of(box), flush=True)
            await stop.wait()
            await box.close()

        (uvloop.run if sys.argv[1] == "uvloop" else asyncio.run)(main())
    """)
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, loop, stdout=asyncio.subprocess.PIPE, cwd=ROOT
    )
    assert worker.stdout is not None
    async with asyncio.timeout(30):
        pid = int(await worker.stdout.readline())
        assert alive(pid)
        worker.send_signal(signum)
        await worker.wait()
    if signum == signal.SIGTERM:
        assert worker.returncode == 0
        assert not alive(pid)
    await gone(pid)


async def test_a_worker_that_stops_takes_its_servers_with_it(make_stack: Any) -> None:
    stack: Stack = await make_stack(api=False, workers=("batch",), mcp_servers=json.dumps({"shop": small()}))
    (engine,) = stack.engines
    pid = await process_of(engine._deps.tools)
    await stack.stop_worker(engine)
    await engine.close()
    assert not alive(pid)


# -- over HTTP -------------------------------------------------------------------------------------------------------


class Remote:
    """The same server over HTTP; it may be killed and started again on its port."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/mcp"
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, SCRIPT, str(self.port), stderr=asyncio.subprocess.DEVNULL
        )
        async with asyncio.timeout(20):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                except OSError:
                    await asyncio.sleep(0.05)
                else:
                    writer.close()
                    return

    async def stop(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()


@pytest.fixture
async def remote() -> AsyncIterator[Remote]:
    made = Remote()
    yield made
    await made.stop()


async def test_a_server_over_http_is_called_and_found_again_after_it_broke(new_box: Any, remote: Remote) -> None:
    await remote.start()
    box = new_box(shop={"url": remote.url, "headers": {"Authorization": "Bearer x"}, "timeoutSeconds": 10})
    assert await call(box, "shop__add", a=2, b=3) == ToolResult("5")
    assert "the shop is closed" in (await call(box, "shop__fail")).text
    results = await asyncio.gather(*(call(box, "shop__count") for _ in range(5)))
    assert sorted(int(result.text) for result in results) == [1, 2, 3, 4, 5]
    (count,) = await box.resolve(["shop__count"], has_documents=False)
    died = await call(box, "shop__die")
    assert died.is_error
    assert "went away during the call" in died.text
    await remote.stop()
    assert (await call_tool(count, {}, CONTEXT)).is_error
    with pytest.raises(ToolFailed):
        await box.resolve(["shop__*"], has_documents=False)
    await remote.start()
    assert await call_tool(count, {}, CONTEXT) == ToolResult("1")
