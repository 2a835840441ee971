"""A real Prometheus scrapes a running stack by the shipped configuration; every panel and every alert is answered."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.dashboards.alerts import ALERTS
from scripts.dashboards.boards import DASHBOARDS
from scripts.probes import free_port
from tests.conftest import ADMIN_KEY, DevModel, Stack, analysis, chat
from tests.receiver import Receiver

DEPLOY = Path(__file__).resolve().parent.parent / "deploy" / "prometheus"
PROMETHEUS = shutil.which("prometheus")
TOKEN = "token-of-prometheus"
LOAD_S = 8.0
# What is 0 in this scene, and idle when it is looked at; tests/test_metrics.py sees these figures move.
MAY_BE_ZERO = {
    "Requests that failed", "gaps", "fallback", "breaker opened", "Workers lost", "Tools that failed",  # failures
    "Quotes that do not stand in the text", "Tokens without a price", "Waits for limits",
    "Experiments ended by a guardrail",
    "Jobs that are ready", "Ready jobs", "Oldest of them", "Longest wait, interactive",  # what waits just now
    "Put off", "Tenants held back", "Jobs that wait for a budget",
    "running {{lane}}", "Slots in use", "Open streams", "blobs",  # what goes on just now
}  # fmt: skip
MOST_LINES = 6_000  # of one process: what labels there are is bounded
ID = re.compile(r'"[^"]*\b(?:job|ten|key|doc|req|srch|dlv)_[0-7][0-9A-HJKMNP-TV-Z]{8,}')
pytestmark = pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is not here (Debian's package of that name)")


async def expositions(stack: Stack) -> list[tuple[str, str]]:
    """(address, text) of the metrics of all processes."""
    async with stack.session.get(f"{stack.base}/metrics/sd") as answer:
        found = [f"http://{group['targets'][0]}/metrics" for group in await answer.json()]
    texts = []
    for url in (f"{stack.base}/metrics", *found):
        async with stack.session.get(url) as answer:
            texts.append((url, await answer.text()))
    return texts


def promtool_on(exposition: str) -> list[str]:
    """What `promtool check metrics` has to say."""
    said = subprocess.run(
        ["promtool", "check", "metrics"], input=exposition, capture_output=True, text=True, timeout=30
    )
    return (said.stdout + said.stderr).splitlines()


class Prometheus:
    """A server that scrapes what the shipped configuration says, each second."""

    def __init__(self, folder: Path, api: str) -> None:
        self.folder = folder
        self.port = free_port("127.0.0.1")
        (folder / "token").write_text(TOKEN)
        text = (DEPLOY / "prometheus.yml").read_text()
        text = text.replace("web:8080", api.removeprefix("http://")).replace("/run/secrets/metrics-token", "token")
        settings = yaml.safe_load(text)
        settings["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        for job in settings["scrape_configs"]:
            for found in job.get("http_sd_configs", ()):
                found["refresh_interval"] = "1s"
        (folder / "prometheus.yml").write_text(yaml.safe_dump(settings))
        shutil.copy(DEPLOY / "alerts.yml", folder)
        self.process = subprocess.Popen(
            [str(PROMETHEUS), "--config.file=prometheus.yml", f"--storage.tsdb.path={folder / 'data'}",
             f"--web.listen-address=127.0.0.1:{self.port}", "--log.level=warn"],
            cwd=folder, stdout=subprocess.DEVNULL, stderr=(folder / "log").open("w"),
        )  # fmt: skip

    async def get(self, stack: Stack, path: str, **query: str) -> Any:
        """What its API answers. Raises aiohttp.ClientError while it starts."""
        async with stack.session.get(f"http://127.0.0.1:{self.port}/api/v1/{path}", params=query) as answer:
            return await answer.json()

    def stop(self) -> None:
        """Ends it."""
        self.process.terminate()
        self.process.wait(20)


@pytest.fixture
async def scraped(make_stack: Any, tmp_path: Path) -> AsyncIterator[tuple[Stack, Prometheus]]:
    """API and workers in processes of their own, and a Prometheus."""
    stack: Stack = await make_stack(
        api=False,
        embedding_model="errand-dev-embedding",
        metrics_token=TOKEN,
        log_level="warning",
        rerank="model",
        model_retries=2,
        fetch_private_hosts="127.0.0.1",
        prices='{"errand-dev*": {"input": 1, "output": 2}}',
    )
    stack.base = await stack.spawn_api()
    for lane in ("interactive", "batch"):
        await stack.spawn_worker(lane)
    folder = tmp_path / "prometheus"
    folder.mkdir()
    prometheus = Prometheus(folder, stack.base)
    try:
        yield stack, prometheus
    finally:
        prometheus.stop()


async def work(stack: Stack) -> None:
    """Some of everything, once."""
    text = "The harbour opens at nine. The ferry leaves at ten, and the tides rise twice a day. " * 5
    document = (await stack.call("POST", "/api/documents", {"text": text, "title": "Harbour"})).json
    await stack.finished(document["jobId"])
    agent = {"type": "agent", "input": {"goal": "Calculate 12 * 7.", "tools": ["calculate"], "maxSteps": 3}}
    embedding = {"type": "batch-embedding", "input": {"texts": ["the harbour", "the river"]}}
    jobs = [await stack.submit(job) for job in (chat(), agent, embedding, analysis(text))]
    await stack.call("POST", "/api/chat/stream", {"messages": [{"role": "user", "content": "Hello!"}]})
    await stack.call("POST", "/api/search", {"q": "When does the harbour open?", "minScore": 0})
    await stack.call("POST", "/api/search", {"q": "zqx", "minScore": 1, "mode": "keyword", "answer": False})
    await stack.call("POST", "/api/jobs", {"type": "chat", "input": {"messages": []}})
    for job in jobs:
        await stack.finished(job)


async def trouble(stack: Stack, model: DevModel, receiver: Receiver) -> None:
    """What happens seldom, once: a model that fails, limits, a judgement, a webhook, a re-ranking, a socket."""
    await model.faults({"kind": "status", "status": 429, "retryAfter": 0.05})
    repeated = await stack.finished(await stack.submit(chat(webhook={"url": receiver.url()})))
    assert repeated["status"] == "complete", repeated
    await model.faults({"kind": "status", "status": 400})
    failed = await stack.finished(await stack.submit(chat(maxAttempts=1)))
    assert failed["status"] == "failed", failed
    judged = await stack.call("POST", f"/api/jobs/{repeated['jobId']}/feedback", {"score": 1})
    assert judged.status < 300, judged.text
    _, soft = await stack.tenant(budgets=[{"period": "day", "softTokens": 1}])
    await stack.finished(await stack.submit(chat(), key=soft), key=soft)
    _, spent = await stack.tenant(budgets=[{"period": "day", "hardTokens": 0}])
    refused = await stack.call("POST", "/api/jobs", chat(), key=spent)
    assert refused.status == 402, refused.text
    _, slow = await stack.tenant(requestsPerMinute=1, requestsBurst=1)
    await stack.submit(chat(), key=slow)
    assert (await stack.call("POST", "/api/jobs", chat(), key=slow)).status == 429
    found = await stack.call("POST", "/api/search", {"q": "When does the harbour open?", "minScore": 0, "rerank": True})
    assert found.status == 200, found.text
    async with stack.session.ws_connect(f"{stack.base}/api/ws", headers={"Authorization": f"Bearer {ADMIN_KEY}"}):
        await asyncio.sleep(0.1)


async def test_every_panel_and_alert_is_answered_with_data(
    scraped: tuple[Stack, Prometheus], model: DevModel, receiver: Receiver
) -> None:
    """Given a stack under load, then each panel's expression has data, no alert's has an error, that of the crossed
    soft limit is the only one to fire, and both kinds of target are up."""
    stack, prometheus = scraped
    loop = asyncio.get_running_loop()
    began = loop.time()
    while loop.time() - began < LOAD_S:
        await work(stack)
        await trouble(stack, model, receiver)
    async with asyncio.timeout(20):
        while True:
            with suppress(OSError):
                targets = (await prometheus.get(stack, "targets"))["data"]["activeTargets"]
                up = [target["labels"]["job"] for target in targets if target["health"] == "up"]
                if sorted(up) == ["errand-api", "errand-workers", "errand-workers"]:
                    break
            await asyncio.sleep(0.2)
    await work(stack)
    await trouble(stack, model, receiver)
    await asyncio.sleep(3)  # three scrapes: rates need two
    wrong = []
    for board in DASHBOARDS:
        for panel in board.panels:
            for query in panel.queries:
                expr = query.expr.replace("$__rate_interval", "30s")
                said = await prometheus.get(stack, "query", query=expr)
                if said["status"] != "success" or not said["data"]["result"]:
                    wrong.append((board.uid, panel.title, expr, said))
                    continue
                # 0 may be what `or vector(0)` makes of a name that does not exist.
                may_be_zero = not MAY_BE_ZERO.isdisjoint({panel.title, query.legend})
                if not may_be_zero and not any(float(one["value"][1]) > 0 for one in said["data"]["result"]):
                    wrong.append((board.uid, panel.title, expr, "nothing but 0"))
    assert not wrong, "\n".join(map(str, wrong))
    for alert in ALERTS:
        said = await prometheus.get(stack, "query", query=alert.expr)
        assert said["status"] == "success", (alert.name, said)
    for _, text in await expositions(stack):
        assert len(text.splitlines()) < MOST_LINES
        assert not ID.search(text), ID.search(text)
        advice = promtool_on(text)
        assert not advice, advice
    rules = (await prometheus.get(stack, "rules"))["data"]["groups"][0]["rules"]
    assert [rule["health"] for rule in rules] == ["ok"] * len(ALERTS)
    firing = [rule["name"] for rule in rules if rule["state"] == "firing"]
    assert firing == ["ErrandSoftLimits"], firing
