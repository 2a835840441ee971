"""Streams as real clients read them: httpx-sse, curl, websockets, a browser; each is cut in mid-stream and comes back;
and all of it behind a real nginx, from the example that we ship."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest
from aiohttp import web
from httpx_sse import ServerSentEvent, aconnect_sse
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as connect_socket
from websockets.exceptions import ConnectionClosed

from shared.metrics import REGISTRY
from tests.conftest import ADMIN_KEY, Stack
from tests.cutting_proxy import Cut, CuttingProxy
from tests.test_chat import HEADERS, HELLO, LONG, text_of
from tests.test_streams import frames_of

CHAT_JOB = {"type": "chat", "input": LONG}
# Well within the answer to LONG, and each within a frame as a rule.
CUTS = (Cut(2_000), Cut(2_500, reset=False))
CURL = shutil.which("curl")
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CONFIG = Path(__file__).parent.parent / "deploy" / "nginx.conf"

needs_curl = pytest.mark.skipif(CURL is None, reason="there is no curl on the PATH")
needs_nginx = pytest.mark.skipif(NGINX is None, reason="there is no nginx on the PATH or in /usr/sbin")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on the PATH")


@pytest.fixture(autouse=True)
def _loopback_is_direct(monkeypatch: pytest.MonkeyPatch) -> None:
    """These clients take a proxy from the environment; loopback needs none."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")


@pytest.fixture
async def talk(make_stack: Any, model: Any) -> Stack:
    """A stack whose answer to LONG takes some two and a half seconds."""
    await model.pace(tokensPerSecond=160)
    stack: Stack = await make_stack(workers=("interactive",))
    return stack


async def the_job(stack: Stack) -> Any:
    """The one job that there is, when it has ended."""
    (job,) = (await stack.call("GET", "/api/jobs")).json["data"]
    return await stack.finished(job["jobId"])


async def check_events(stack: Stack, model: Any, events: list[dict[str, Any]]) -> None:
    """These are the events of the one job, each once and in order, its text is its result, and it was paid once."""
    job = await the_job(stack)
    assert job["status"] == "complete"
    assert events == await stack.log(job["jobId"])
    assert "".join(event["text"] for event in events if event["type"] == "delta") == job["result"]["text"]
    assert (await model.stats())["calls"] == 1


async def check_text(stack: Stack, model: Any, text: str) -> None:
    """This is the whole answer of the one chat, which was paid once."""
    job = await the_job(stack)
    assert job["status"] == "complete"
    assert text == job["result"]["text"]
    assert (await model.stats())["calls"] == 1


async def let_go(model: Any) -> None:
    """By its own count, no call to the model is open any more, long before its answer would have ended."""
    async with asyncio.timeout(1):
        while (await model.stats())["open"]:
            await asyncio.sleep(0.02)


# -- httpx-sse


async def read_with_httpx(method: str, url: str, **request: Any) -> tuple[list[ServerSentEvent], int]:
    """All frames of a stream up to `[DONE]`, and how often the connection broke."""
    frames: list[ServerSentEvent] = []
    cuts = 0
    async with asyncio.timeout(30), httpx.AsyncClient(headers=HEADERS, timeout=20) as client:
        while True:
            headers = {"Last-Event-ID": frames[-1].id} if frames else {}
            try:
                async with aconnect_sse(client, method, url, headers=headers, **request) as source:
                    assert source.response.status_code == 200, await source.response.aread()
                    async for frame in source.aiter_sse():
                        if frame.data == "[DONE]":
                            return frames, cuts
                        frames.append(frame)
            except httpx.TransportError:
                cuts += 1
            else:
                raise AssertionError("the stream ended without [DONE]")


def numbered(frames: list[ServerSentEvent]) -> list[dict[str, Any]]:
    """The events of a job's stream, whose number and type are those of their frames."""
    events = []
    for frame in frames:
        event = json.loads(frame.data)
        assert frame.event == event["type"]
        if "seq" in event:
            assert frame.id == str(event["seq"])
            events.append(event)
    return events


async def test_httpx_sse_reads_a_job_through_cuts(talk: Stack, model: Any) -> None:
    job_id = await talk.submit(CHAT_JOB)
    async with CuttingProxy(talk.base, *CUTS) as proxy:
        frames, cuts = await read_with_httpx("GET", f"{proxy.url}/api/jobs/{job_id}/stream")
    assert (cuts, proxy.made) == (2, 2)
    assert frames[0].retry == 2_000
    await check_events(talk, model, numbered(frames))


async def test_httpx_sse_reads_a_chat_through_cuts(talk: Stack, model: Any) -> None:
    async with CuttingProxy(talk.base, *CUTS) as proxy:
        frames, cuts = await read_with_httpx("POST", f"{proxy.url}/api/chat/stream", json=LONG)
    assert (cuts, proxy.made) == (2, 2)
    assert {frame.event for frame in frames} == {"message"}
    await check_text(talk, model, "".join(frame.json()["text"] for frame in frames))


# -- curl


async def curl(url: str, *arguments: str) -> tuple[int, list[dict[str, str]]]:
    """Runs `curl -N`. Returns its exit code and the frames that came whole."""
    assert CURL is not None
    command = [CURL, "-N", "-sS", "--max-time", "30", "-H", f"Authorization: Bearer {ADMIN_KEY}", *arguments, url]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, frames_of(output.decode(errors="replace").rpartition("\n\n")[0])


def place_of(frames: list[dict[str, str]]) -> tuple[str, str]:
    """The option that resumes after these frames."""
    return "-H", "Last-Event-ID: " + [frame["id"] for frame in frames if "id" in frame][-1]


@needs_curl
@pytest.mark.parametrize("cut", CUTS, ids=["reset", "closed"])
async def test_curl_reads_a_job_through_a_cut(talk: Stack, model: Any, cut: Cut) -> None:
    """Given a curl whose connection breaks, then it says so by its exit code, and a second goes on."""
    job_id = await talk.submit(CHAT_JOB)
    async with CuttingProxy(talk.base, cut) as proxy:
        url = f"{proxy.url}/api/jobs/{job_id}/stream"
        code, first = await curl(url)
        assert code != 0
        again, rest = await curl(url, *place_of(first))
    assert (again, rest[-1], proxy.made) == (0, {"data": "[DONE]"}, 1)
    await check_events(talk, model, [json.loads(frame["data"]) for frame in first + rest if "id" in frame])


@needs_curl
@pytest.mark.parametrize("cut", CUTS, ids=["reset", "closed"])
async def test_curl_reads_a_chat_through_a_cut(talk: Stack, model: Any, cut: Cut) -> None:
    async with CuttingProxy(talk.base, cut) as proxy:
        url = f"{proxy.url}/api/chat/stream"
        code, first = await curl(url, "-H", "Content-Type: application/json", "-d", json.dumps(LONG))
        assert code != 0
        again, rest = await curl(url, "-X", "POST", *place_of(first))
    assert (again, rest[-1], proxy.made) == (0, {"data": "[DONE]"}, 1)
    await check_text(talk, model, text_of(first + rest))


# -- websockets


def socket_url(url: str) -> str:
    return url.replace("http://", "ws://") + "/api/ws"


async def ask(connection: ClientConnection, **operation: Any) -> Any:
    """The answer to an operation of a socket that follows nothing yet."""
    await connection.send(json.dumps(operation))
    answer = json.loads(await connection.recv())
    assert "ok" in answer, answer
    return answer["ok"]


async def follow_with_websockets(url: str, job_id: str) -> tuple[list[dict[str, Any]], int]:
    """All events of a job to its final one, without their `jobId`, and how often the connection broke."""
    events: list[dict[str, Any]] = []
    cuts = 0
    async with asyncio.timeout(30):
        async for connection in connect_socket(socket_url(url)):
            try:
                await ask(connection, op="auth", key=ADMIN_KEY)
                await ask(connection, op="subscribe", ref=1, jobId=job_id, after=len(events))
                async for frame in connection:
                    event = json.loads(frame)
                    assert event.pop("jobId") == job_id
                    if "seq" in event:
                        events.append(event)
                    if event["type"] == "job.complete":
                        await connection.close()
                        return events, cuts
            except ConnectionClosed:
                cuts += 1
    raise AssertionError("the library gave up")


async def test_websockets_follows_a_job_through_cuts(talk: Stack, model: Any) -> None:
    job_id = await talk.submit(CHAT_JOB)
    async with CuttingProxy(talk.base, *CUTS) as proxy:
        events, cuts = await follow_with_websockets(proxy.url, job_id)
    assert (cuts, proxy.made) == (2, 2)
    await check_events(talk, model, events)


async def test_websockets_submits_and_cancels_through_cuts(talk: Stack, model: Any) -> None:
    """Given a client that submits anew after each cut, with its idempotency key, when it cancels, then there was one
    job, whose every event it has, and the model has been let go."""
    events: list[dict[str, Any]] = []
    answers: list[dict[str, Any]] = []
    cuts = 0
    async with asyncio.timeout(30), CuttingProxy(talk.base, *CUTS) as proxy:
        async for connection in connect_socket(socket_url(proxy.url)):
            try:
                await ask(connection, op="auth", key=ADMIN_KEY)
                job = await ask(connection, op="submit", ref=1, job=CHAT_JOB, idempotencyKey="once")
                await ask(connection, op="subscribe", ref=2, jobId=job["jobId"], after=len(events))
                if cuts == 2:
                    await connection.send(json.dumps({"op": "cancel", "ref": 3, "jobId": job["jobId"]}))
                async for frame in connection:
                    event = json.loads(frame)
                    if "ref" in event:
                        answers.append(event)
                    elif "seq" in event:
                        del event["jobId"]
                        events.append(event)
                    if event.get("type") == "job.cancelled":
                        break
                await connection.close()
                break
            except ConnectionClosed:
                cuts += 1
    assert [(answer["ref"], answer["ok"]["status"]) for answer in answers] == [(3, "cancelling")]
    cancelled = await the_job(talk)
    assert cancelled["status"] == "cancelled"
    assert events == await talk.log(cancelled["jobId"])
    assert (await model.stats())["calls"] == 1
    await let_go(model)


# -- a browser

COMMON_SCRIPT = """
const call = (base, path, options = {}) => fetch(base + path, {
  ...options,
  method: "POST",
  headers: {"Authorization": `Bearer ${config.key}`, "Content-Type": "application/json", ...options.headers},
});
const report = (found) => fetch("/report", {method: "POST", body: JSON.stringify(found)});
main().then(report, (error) => report({failed: String(error)}));
"""

# Follows one job twice: one reader is cut, and closes at the final event; the other is left to the server.
EVENTS_SCRIPT = """
function follow(url, closes) {
  const seen = {events: [], ids: [], other: [], opened: 0, broken: 0};
  return new Promise((resolve) => {
    const source = new EventSource(url);
    source.onopen = () => { seen.opened += 1; };
    source.onerror = () => {
      if (source.readyState === EventSource.CLOSED) resolve(seen);
      else seen.broken += 1;
    };
    source.onmessage = (event) => { seen.other.push(event.data); };
    for (const type of config.types) source.addEventListener(type, (event) => {
      const data = JSON.parse(event.data);
      if (data.type !== type) seen.other.push(event.data);
      if (data.seq === undefined) return;
      seen.events.push(data);
      seen.ids.push(event.lastEventId);
      if (closes && type === "job.complete") {
        source.close();
        resolve(seen);
      }
    });
  });
}
async function main() {
  const {jobId} = await (await call(config.api, "/api/jobs", {body: JSON.stringify(config.job)})).json();
  const {ticket} = await (await call(config.api, `/api/jobs/${jobId}/stream-ticket`)).json();
  const path = `/api/jobs/${jobId}/stream?ticket=${ticket}`;
  const [cut, left] = await Promise.all([follow(config.proxy + path, true), follow(config.api + path, false)]);
  return {cut, left};
}
"""

CHAT_SCRIPT = """
async function main() {
  const found = {texts: [], jobs: [], cuts: 0};
  let place = null;
  while (true) {
    const headers = place === null ? {} : {"Last-Event-ID": place};
    const response = await call(config.proxy, "/api/chat/stream", {body: JSON.stringify(config.chat), headers});
    found.jobs.push(response.headers.get("X-Job-Id"));
    const reader = response.body.getReader();
    const decoder = new TextDecoder();
    let rest = "";
    try {
      while (true) {
        const {value, done} = await reader.read();
        if (done) return {failed: "the stream ended without [DONE]"};
        const blocks = (rest + decoder.decode(value, {stream: true})).split("\\n\\n");
        rest = blocks.pop();
        for (const block of blocks) {
          const field = (name) => block.split("\\n").find((line) => line.startsWith(name))?.slice(name.length);
          if (field("data: ") === "[DONE]") return found;
          found.texts.push(JSON.parse(field("data: ")).text);
          place = field("id: ");
        }
      }
    } catch (error) {
      if (!(error instanceof TypeError)) throw error;
      found.cuts += 1;
    }
  }
}
"""

BLOCKED_SCRIPT = """
const outcome = (attempt) => attempt.then((response) => `answered ${response.status}`, (error) => error.name);
async function main() {
  const stream = new Promise((resolve) => {
    const source = new EventSource(config.api + config.path);
    source.onopen = () => resolve("opened");
    source.onerror = () => resolve(source.readyState === EventSource.CLOSED ? "closed" : "trying again");
  });
  return {
    submit: await outcome(call(config.api, "/api/jobs", {body: JSON.stringify(config.job)})),
    chat: await outcome(call(config.api, "/api/chat/stream", {body: JSON.stringify(config.chat)})),
    read: await outcome(fetch(config.api + "/healthz")),
    stream: await stream,
  };
}
"""

EVENT_TYPES = (
    "job.queued", "job.started", "job.progress", "job.step", "delta", "tool.call", "tool.result", "job.usage",
    "job.warning", "job.waiting", "attempt.restarted", "gap", "replay.end",
    "job.complete", "job.failed", "job.cancelled", "job.expired",
)  # fmt: skip


class Pages:
    """A web site on two origins, whose page runs a script and reports what it found."""

    def __init__(self) -> None:
        self.allowed = ""
        self.other = ""
        self._page = ""
        self._reports: asyncio.Queue[Any] = asyncio.Queue()

    async def start(self) -> web.AppRunner:
        app = web.Application()
        app.router.add_get("/", self._show)
        app.router.add_post("/report", self._report)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
        await runner.setup()
        for _ in range(2):
            await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.allowed, self.other = (f"http://{host}:{port}" for host, port in runner.addresses)
        return runner

    async def _show(self, _: web.Request) -> web.Response:
        return web.Response(text=self._page, content_type="text/html")

    async def _report(self, request: web.Request) -> web.Response:
        self._reports.put_nowait(await request.json())
        return web.Response(status=204)

    async def run(self, origin: str, script: str, **config: Any) -> Any:
        """What the script found when a browser ran it on a page of this origin."""
        config |= {"key": ADMIN_KEY}
        self._page = f"<!doctype html><script>const config = {json.dumps(config)};{script}{COMMON_SCRIPT}</script>"
        async with browser(origin), asyncio.timeout(40):
            found = await self._reports.get()
        assert "failed" not in found, found
        return found


@pytest.fixture
async def pages() -> AsyncIterator[Pages]:
    made = Pages()
    runner = await made.start()
    yield made
    await runner.cleanup()


@asynccontextmanager
async def browser(url: str) -> AsyncIterator[None]:
    """A headless browser that shows a page, with a profile and a process group of its own."""
    assert CHROMIUM is not None
    profile = tempfile.mkdtemp(prefix="errand-browser-")
    flags = (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-breakpad",
        "--disable-background-networking", "--no-first-run", "--no-proxy-server", f"--user-data-dir={profile}/profile",
    )  # fmt: skip
    process = begin_group(CHROMIUM, *flags, url, HOME=profile, XDG_CONFIG_HOME=profile, TMPDIR=profile)
    try:
        yield
    finally:
        await end_group(process)
        # Its crash handlers leave the group, and end with it.
        deadline = time.monotonic() + 5
        while (left := processes_with(profile)) and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        shutil.rmtree(profile, ignore_errors=True)
        assert not left


def begin_group(*command: str, **environment: str) -> subprocess.Popen[bytes]:
    """Starts a process in a group of its own."""
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, **environment},
    )


async def end_group(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and its group: by SIGTERM, which lets it clear up, then by SIGKILL."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        await asyncio.to_thread(process.wait, 5)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(5)


def processes_with(word: str) -> list[str]:
    """The processes whose command line has this word, on systems with /proc."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word.encode() in path.read_bytes():
                found.append(path.parent.name)
        except OSError:
            pass  # it has just ended
    return found


@needs_chromium
async def test_a_browsers_event_source_comes_back_by_itself(make_stack: Any, model: Any, pages: Pages) -> None:
    """Given a page of another origin, when its EventSource is cut, then the browser reconnects and resumes; and one
    that is not closed by the page is stopped by the 204 that follows the final event."""
    await model.pace(tokensPerSecond=130)
    stack: Stack = await make_stack(workers=("interactive",), cors_origins=pages.allowed)
    async with CuttingProxy(stack.base, Cut(2_500), marker=b"GET /api/jobs/") as proxy:
        found = await pages.run(
            pages.allowed, EVENTS_SCRIPT, api=stack.base, proxy=proxy.url, job=CHAT_JOB, types=EVENT_TYPES
        )
    assert (proxy.made, proxy.passed) == (1, 2)
    cut, left = found["cut"], found["left"]
    assert (cut["opened"], cut["broken"], cut["other"]) == (2, 1, [])
    assert cut["ids"] == [str(event["seq"]) for event in cut["events"]]
    await check_events(stack, model, cut["events"])
    assert (left["opened"], left["broken"], left["other"]) == (1, 1, ["[DONE]"])
    assert left["events"] == cut["events"]


@needs_chromium
async def test_a_browsers_fetch_reads_a_chat_through_cuts(make_stack: Any, model: Any, pages: Pages) -> None:
    await model.pace(tokensPerSecond=160)
    stack: Stack = await make_stack(workers=("interactive",), cors_origins=pages.allowed)
    async with CuttingProxy(stack.base, *CUTS, marker=b"POST /api/chat/stream") as proxy:
        found = await pages.run(pages.allowed, CHAT_SCRIPT, proxy=proxy.url, chat=LONG)
    assert (found["cuts"], proxy.made) == (2, 2)
    assert found["jobs"] == [(await the_job(stack))["jobId"]] * 3
    await check_text(stack, model, "".join(found["texts"]))


@needs_chromium
async def test_a_browser_blocks_pages_of_other_origins(make_stack: Any, model: Any, pages: Pages) -> None:
    """Given a page of an origin that is not named, then it gets no answer, and submits nothing."""
    stack: Stack = await make_stack(workers=("interactive",), cors_origins=pages.allowed)
    job_id = await stack.submit({"type": "chat", "input": HELLO})
    ticket = (await stack.call("POST", f"/api/jobs/{job_id}/stream-ticket")).json["ticket"]
    asked = {
        "api": stack.base, "path": f"/api/jobs/{job_id}/stream?ticket={ticket}",
        "job": {"type": "chat", "input": HELLO}, "chat": HELLO,
    }  # fmt: skip
    blocked = await pages.run(pages.other, BLOCKED_SCRIPT, **asked)
    assert blocked == {"submit": "TypeError", "chat": "TypeError", "read": "TypeError", "stream": "closed"}
    assert (await the_job(stack))["jobId"] == job_id
    # The same page where it is allowed: what was refused above was refused for its origin.
    free = await pages.run(pages.allowed, BLOCKED_SCRIPT, **asked)
    assert free == {"submit": "answered 202", "chat": "answered 200", "read": "answered 200", "stream": "opened"}


# -- behind nginx


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def address_of(url: str) -> str:
    return url.removeprefix("http://")


class Nginx:
    """Our own nginx, from the example that we ship: its addresses and directories are replaced, and nothing else."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.url = ""
        self.process: subprocess.Popen[bytes] | None = None

    async def start(self, *upstreams: str, replace: tuple[tuple[str, str], ...] = ()) -> str:
        """In front of these URLs, each with nginx's options of a `server`; `replace` says what else is another in the
        example. Returns its URL."""
        assert NGINX is not None
        address = f"127.0.0.1:{free_port()}"
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        text = CONFIG.read_text()
        for old, new in (
            ("listen 80;", f"listen {address};"),
            ("server 127.0.0.1:8080;", " ".join(f"server {address_of(url)};" for url in upstreams)),
            ("worker_processes auto;", "worker_processes 1;"),
            ("/var/log/nginx/", f"{self.directory}/"),
            ("http {\n", "http {\n" + "".join(f"{kind}_temp_path {self.directory}/{kind};\n" for kind in kinds)),
            *replace,
        ):
            assert old in text, old
            text = text.replace(old, new)
        config = self.directory / "nginx.conf"
        config.write_text(text)
        paths = ("-p", str(self.directory), "-c", str(config), "-e", str(self.directory / "start.log"))
        self.process = begin_group(NGINX, *paths, "-g", f"daemon off; pid {self.directory}/pid;")
        host, port = address.split(":")
        deadline = time.monotonic() + 10
        while True:
            assert self.process.poll() is None, self.logs()
            try:
                _, writer = await asyncio.open_connection(host, int(port))
            except OSError:
                assert time.monotonic() < deadline, self.logs()
                await asyncio.sleep(0.02)
            else:
                writer.close()
                self.url = f"http://{address}"
                return self.url

    def logs(self) -> str:
        """All that it has logged."""
        return "".join(path.read_text() for path in self.directory.glob("*.log"))


@pytest.fixture
async def nginx() -> AsyncIterator[Nginx]:
    directory = Path(tempfile.mkdtemp(prefix="errand-nginx-"))
    directory.chmod(0o755)  # started by root, its workers are another user
    server = Nginx(directory)
    yield server
    if server.process is not None:
        await end_group(server.process)
    shutil.rmtree(directory, ignore_errors=True)


@needs_nginx
@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_nginx_lets_tokens_pass_as_they_are_made(stack: Stack, model: Any, nginx: Nginx, version: str) -> None:
    """Given a model of ten tokens a second, then their frames come through nginx at that pace, the first at once. With
    HTTP/1.0, its default, nginx would keep the whole answer back if our header did not say otherwise."""
    await model.pace(tokensPerSecond=10)
    url = await nginx.start(stack.base, replace=(("proxy_http_version 1.1;", f"proxy_http_version {version};"),))
    words = {"messages": [{"role": "user", "content": "Repeat: " + " ".join(f"word{n}" for n in range(10)) + "."}]}
    started = time.monotonic()
    times, text = [], ""
    async with (
        httpx.AsyncClient(headers=HEADERS, timeout=20) as client,
        aconnect_sse(client, "POST", f"{url}/api/chat/stream", json=words) as source,
    ):
        async for frame in source.aiter_sse():
            if frame.data == "[DONE]":
                break
            times.append(time.monotonic() - started)
            text += frame.json()["text"]
    await check_text(stack, model, text)
    assert times[0] < 1.0
    assert times[-1] > 2.0
    # Each half of a second has its share.
    assert all(any(start <= moment < start + 0.5 for moment in times) for start in (0.0, 0.5, 1.0, 1.5))


@needs_nginx
async def test_a_reader_in_front_of_nginx_is_cut_and_comes_back(talk: Stack, model: Any, nginx: Nginx) -> None:
    job_id = await talk.submit(CHAT_JOB)
    async with CuttingProxy(await nginx.start(talk.base), *CUTS) as proxy:
        frames, cuts = await read_with_httpx("GET", f"{proxy.url}/api/jobs/{job_id}/stream")
    assert (cuts, proxy.made) == (2, 2)
    await check_events(talk, model, numbered(frames))


@needs_nginx
async def test_an_api_that_is_cut_from_nginx_is_no_end(talk: Stack, model: Any, nginx: Nginx) -> None:
    """Given a stream that breaks between nginx and the API, then its reader sees a broken connection, not an end, and
    resumes; and the ticket that it reads with stands in no log."""
    job_id = await talk.submit(CHAT_JOB)
    ticket = (await talk.call("POST", f"/api/jobs/{job_id}/stream-ticket")).json["ticket"]
    async with CuttingProxy(talk.base, *CUTS) as proxy:
        url = await nginx.start(proxy.url)
        frames, cuts = await read_with_httpx("GET", f"{url}/api/jobs/{job_id}/stream?ticket={ticket}")
    assert (cuts, proxy.made) == (2, 2)
    await check_events(talk, model, numbered(frames))
    async with asyncio.timeout(5):
        while nginx.logs().count(f"/api/jobs/{job_id}/stream") < 3:
            await asyncio.sleep(0.05)
    assert ticket not in nginx.logs()


@needs_nginx
async def test_a_batch_file_passes_nginx_as_it_is_sent(edge: Stack, nginx: Nginx) -> None:
    """Given 60 MB, more than a document may have, then nginx lets them pass; of any other call it does not."""
    url = await nginx.start(edge.base)
    content = b'"a text of a batch file"\n' * (60 * 1024 * 1024 // 25)
    async with httpx.AsyncClient(headers=HEADERS, timeout=30) as client:
        done = await client.post(f"{url}/api/documents", files={"file": content}, data={"index": "false"})
        assert done.status_code == 202, done.text
        assert (await client.post(f"{url}/api/jobs", content=content)).status_code == 413


@needs_nginx
async def test_a_websocket_passes_nginx_and_its_cuts(talk: Stack, model: Any, nginx: Nginx) -> None:
    job_id = await talk.submit(CHAT_JOB)
    async with CuttingProxy(await nginx.start(talk.base), *CUTS) as proxy:
        events, cuts = await follow_with_websockets(proxy.url, job_id)
    assert (cuts, proxy.made) == (2, 2)
    await check_events(talk, model, events)


@needs_nginx
async def test_nginx_tells_that_a_client_has_gone(stack: Stack, model: Any, nginx: Nginx) -> None:
    """Given a WebSocket and a chat whose model is silent, when their clients go, then the API closes both long before
    its next heartbeat, and lets the model go when the chat's grace is over."""

    def open_streams() -> float:
        kinds = ("sse", "websocket")
        return sum(REGISTRY.get_sample_value("errand_streams_open", {"transport": kind}) or 0 for kind in kinds)

    await model.pace(firstTokenSeconds=30)
    url = await nginx.start(stack.base)
    before = open_streams()
    connection = await connect_socket(socket_url(url))
    await ask(connection, op="auth", key=ADMIN_KEY)
    async with httpx.AsyncClient(headers=HEADERS, timeout=20) as client:
        body = {**LONG, "disconnectGraceSeconds": 1}
        async with client.stream("POST", f"{url}/api/chat/stream", json=body) as response:
            assert open_streams() == before + 2
            assert (await model.stats())["open"] == 1
    gone = time.monotonic()
    connection.transport.abort()
    while open_streams() > before:
        assert time.monotonic() - gone < 5
        await asyncio.sleep(0.02)
    await stack.until(response.headers["X-Job-Id"], "cancelled")
    assert time.monotonic() - gone > 0.9
    await let_go(model)


@needs_nginx
async def test_heartbeats_keep_a_stream_open_through_nginx(
    stack: Stack, model: Any, nginx: Nginx, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given an nginx that waits for two seconds and a model that is silent for four, when heartbeats come in between,
    then they reach the client as they come, and the streams of chat and job are whole."""
    for module in ("api.sse", "api.chat"):
        monkeypatch.setattr(f"{module}.HEARTBEAT_S", 0.4)
    await model.pace(firstTokenSeconds=4)
    url = await nginx.start(stack.base, replace=(("proxy_read_timeout 15m;", "proxy_read_timeout 2s;"),))

    async def read(method: str, path: str, body: Any = None) -> tuple[list[float], str]:
        beats, text = [], ""
        async with (
            httpx.AsyncClient(headers=HEADERS, timeout=20) as client,
            client.stream(method, url + path, json=body) as response,
        ):
            async for line in response.aiter_lines():
                text += line + "\n"
                if line.startswith(":"):
                    beats.append(time.monotonic())
        return beats, text

    job_id = await stack.submit({"type": "chat", "input": HELLO})
    streams = await asyncio.gather(read("POST", "/api/chat/stream", HELLO), read("GET", f"/api/jobs/{job_id}/stream"))
    for beats, text in streams:
        assert frames_of(text)[-1] == {"data": "[DONE]"}
        assert len(beats) >= 5
        assert beats[-1] - beats[0] > 1.5


@needs_nginx
async def test_nginx_sends_no_post_twice(edge: Stack, nginx: Nginx) -> None:
    """Given two API processes of which one goes away with the request, then a POST is not sent to the other."""
    heads: list[bytes] = []

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.transport.abort()

    async with await asyncio.start_server(swallow, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        # Both are asked in turn, and neither is left out for having failed.
        balanced = ("keepalive 64;", "random; keepalive 64;")
        url = await nginx.start(f"http://{host}:{port} max_fails=0", edge.base, replace=(balanced,))
        statuses = []
        for _ in range(40):
            job = {"type": "chat", "input": HELLO}
            async with edge.session.post(f"{url}/api/jobs", json=job, headers=HEADERS) as response:
                statuses.append(response.status)
        for _ in range(40):
            async with edge.session.get(f"{url}/api/jobs", headers=HEADERS) as response:
                assert response.status == 200
    assert set(statuses) == {202, 502}
    assert statuses.count(502) == sum(head.startswith(b"POST") for head in heads)
    assert any(head.startswith(b"GET") for head in heads)
    jobs = (await edge.call("GET", "/api/jobs?limit=100")).json["data"]
    assert len(jobs) == statuses.count(202)


@needs_nginx
async def test_nginx_takes_uploads_and_hides_metrics(edge: Stack, nginx: Nginx) -> None:
    """Given the largest file that the API takes, then nginx takes it in its form; and /metrics asks for a key of those
    who come through it."""
    url = await nginx.start(edge.base)
    size = edge.settings.max_upload_bytes
    for extra, expected in ((0, 202), (1, 413), (2 * 1024 * 1024, 413)):
        form = aiohttp.FormData({"index": "false"})
        form.add_field("file", b"text " * (size // 5) + b"." * (size % 5 + extra), filename="large.txt")
        async with edge.session.post(f"{url}/api/documents", data=form, headers=HEADERS) as response:
            assert response.status == expected
            # By the API, which knows what kind of file it is.
            assert response.content_type == ("application/problem+json" if extra else "application/json")
    async with edge.session.get(f"{url}/metrics") as response:
        assert response.status == 401
    async with edge.session.get(f"{edge.base}/metrics") as response:
        assert response.status == 200
