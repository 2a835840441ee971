"""Cells behind one address: a real nginx from deploy/cells.nginx.conf, two installations that know nothing of each
other."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from scripts.probes import free_port
from tests.conftest import ADMIN_KEY, RedisServer, Stack, chat

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
EXAMPLE = Path(__file__).parents[1] / "deploy" / "cells.nginx.conf"

pytestmark = pytest.mark.skipif(NGINX is None, reason="there is no nginx on the PATH or in /usr/sbin")


@pytest.fixture
async def cells(make_stack: Any, own_redis: RedisServer) -> tuple[Stack, Stack]:
    """Two installations, each with its own Redis."""
    a: Stack = await make_stack(workers=("interactive",))
    b: Stack = await make_stack(workers=("interactive",), redis_url=own_redis.url)
    return a, b


@pytest.fixture
async def edge(cells: tuple[Stack, Stack]) -> AsyncIterator[str]:
    """The address of the nginx in front of both."""
    port = free_port("127.0.0.1")
    with tempfile.TemporaryDirectory(prefix="errand-cells-") as folder:
        text = EXAMPLE.read_text().replace("/var/log/nginx/error.log", f"{folder}/error.log")
        text = text.replace("listen 80;", f"listen 127.0.0.1:{port};")
        for cell, name in zip(cells, ("cell_a", "cell_b"), strict=True):
            address = cell.base.removeprefix("http://")
            text = re.sub(rf"(upstream {name} {{\s*server )[\d.:]+;", rf"\g<1>{address};", text)
        paths = [f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")]
        text = f"daemon off;\npid {folder}/pid;\n" + text.replace("http {", "http {\n" + "\n".join(paths))
        (Path(folder) / "nginx.conf").write_text(text)
        log = (Path(folder) / "said").open("wb")
        server = subprocess.Popen([str(NGINX), "-c", f"{folder}/nginx.conf", "-p", folder], stderr=log)  # noqa: ASYNC220
        try:
            async with asyncio.timeout(10):
                while True:
                    try:
                        _, writer = await asyncio.open_connection("127.0.0.1", port)
                        writer.close()
                        break
                    except OSError:
                        assert server.poll() is None, (Path(folder) / "said").read_text()
                        await asyncio.sleep(0.02)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(10)
            log.close()


async def test_a_host_name_leads_to_its_cell(cells: tuple[Stack, Stack], edge: str) -> None:
    """Given two tenants in two cells, then each one's calls, streams and sockets reach its own, a key of one is unknown
    in the other, and a host name that is in no table goes to the cell for new tenants."""
    a, b = cells
    _, key = await a.tenant()

    async def call(method: str, path: str, host: str, key: str, body: Any = None) -> tuple[int, Any]:
        headers = {"Host": host, "Authorization": f"Bearer {key}"}
        async with a.session.request(method, edge + path, headers=headers, json=body) as response:
            kind = response.headers.get("Content-Type", "")
            return response.status, await response.json() if "json" in kind else await response.text()

    status, job = await call("POST", "/api/jobs", "acme.errand.example", key, chat())
    assert status == 202
    status, stream = await call("GET", f"/api/jobs/{job['jobId']}/stream", "acme.errand.example", key)
    assert (status, stream.rstrip().endswith("[DONE]")) == (200, True)
    assert await a.client.exists(a.keys.job(job["jobId"]))
    assert not await b.client.exists(b.keys.job(job["jobId"]))
    assert (await call("GET", f"/api/jobs/{job['jobId']}", "zenith.errand.example", key))[0] == 401
    status, job = await call("POST", "/api/jobs", "new.errand.example", ADMIN_KEY, chat())
    assert status == 202
    assert await b.client.exists(b.keys.job(job["jobId"]))
    assert (await call("GET", "/metrics", "acme.errand.example", key))[0] == 404
    # The key travels in the socket's first frame: only the host name can say where it belongs.
    for host, holds in (("acme.errand.example", True), ("zenith.errand.example", False)):
        async with a.session.ws_connect(f"{edge}/api/ws", headers={"Host": host}) as socket:
            await socket.send_json({"op": "auth", "ref": "1", "key": key})
            try:
                answer = await socket.receive_json(timeout=5)
            except (TypeError, aiohttp.ClientError):
                answer = {}
            assert ("ok" in answer) is holds, answer
