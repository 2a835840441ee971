"""Metrics: where workers serve theirs, how Prometheus finds them, and what the fleet's say."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import pytest
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families

from api.keys import FLEET
from shared import metrics
from shared.fleet import FAMILIES
from shared.limits import SoftCrossed
from shared.semconv import provider_of
from shared.settings import Settings
from shared.stores.fleet import FRESH_S
from shared.stores.workers import WorkersStore
from shared.version import our_version
from tests.conftest import Stack, chat
from worker.model.measures import ModelNames


async def targets(stack: Stack) -> list[dict[str, Any]]:
    """What Prometheus would find."""
    return (await stack.call("GET", "/metrics/sd", key=None)).json


async def test_prometheus_finds_live_workers_and_their_metrics(edge: Stack) -> None:
    """Given worker processes, then each is listed with an address that answers, until it ends by SIGTERM."""
    member = await edge.spawn_worker("interactive")
    async with asyncio.timeout(10):
        while len(found := await targets(edge)) < 1:
            await asyncio.sleep(0.02)
    (group,) = found
    assert group["labels"]["__meta_errand_lanes"] == "interactive"
    assert f"-{member.process.pid}-" in group["labels"]["__meta_errand_worker"]
    async with edge.session.get(f"http://{group['targets'][0]}/metrics") as answer:
        assert 'errand_worker_slots{lane="interactive"}' in await answer.text()
    member.process.send_signal(signal.SIGTERM)
    await asyncio.to_thread(member.process.wait, 20)
    assert await targets(edge) == []


async def test_a_killed_worker_is_no_target_after_its_lease(make_stack: Any) -> None:
    """Given a worker that is killed, then it leaves the list with its lease."""
    stack: Stack = await make_stack(lease_seconds=1.0)
    member = await stack.spawn_worker("batch")
    async with asyncio.timeout(10):
        while not await targets(stack):
            await asyncio.sleep(0.02)
    os.kill(member.process.pid, signal.SIGKILL)
    async with asyncio.timeout(5):
        while await targets(stack):
            await asyncio.sleep(0.05)


async def test_a_worker_says_what_it_is(edge: Stack) -> None:
    """Given a worker, then its record has its slots, version and clock; while it drains the record says so."""
    engine = await edge.start_worker("both")
    store = WorkersStore(edge.client, edge.keys)
    (record,) = await store.live()
    assert (record.id, record.pid, record.version) == (engine.worker_id, os.getpid(), our_version())
    assert set(record.slots) == {"interactive", "batch"}
    assert abs(record.clock_offset_ms) < 1_000
    assert record.started_ms > 0
    assert not record.draining
    assert engine._heart is not None
    await engine._heart.leave()
    (record,) = await store.live()
    assert record.draining
    await edge.stop_worker(engine)
    assert await store.live() == []


async def test_the_list_of_workers_is_not_for_strangers(edge: Stack) -> None:
    """Given a request that came through a proxy without a key, then it is refused as `/metrics` is."""
    answer = await edge.call("GET", "/metrics/sd", key=None, headers={"X-Forwarded-For": "1.2.3.4"})
    assert answer.status == 401


def sample(text: str, name: str, **labels: str) -> float | None:
    """The value of one series of an exposition."""
    for family in text_string_to_metric_families(text):
        for one in family.samples:
            if one.name == name and one.labels == labels:
                return one.value
    return None


async def scraped(stack: Stack) -> str:
    """The exposition of the API, read anew."""
    stack._runners[-1].app[FLEET]._read_s = -FRESH_S
    return (await stack.call("GET", "/metrics", key=None)).text


async def test_the_queues_show_depth_and_age_by_lane_and_class(edge: Stack) -> None:
    """Given ready jobs of two classes, when one is taken, cancelled or finished, then depth and age follow."""
    first = await edge.submit(chat(priority="high"))
    await asyncio.sleep(0.15)
    made = [await edge.submit(chat(priority="low")) for _ in range(3)]
    text = await scraped(edge)
    assert sample(text, "errand_queue_jobs", lane="interactive", priority="high") == 1
    assert sample(text, "errand_queue_jobs", lane="interactive", priority="low") == 3
    assert sample(text, "errand_queue_jobs", lane="interactive", priority="normal") == 0
    older = sample(text, "errand_queue_oldest_seconds", lane="interactive", priority="high")
    younger = sample(text, "errand_queue_oldest_seconds", lane="interactive", priority="low")
    assert older is not None
    assert younger is not None
    assert older >= younger + 0.1
    assert sample(text, "errand_queue_oldest_seconds", lane="batch", priority="low") == 0
    claimed, _ = await edge.jobs.claim(worker="w", lanes=[("interactive", 1)], count=1, lease_ms=60_000)
    assert [job.job_id for job in claimed] == [first]
    await edge.call("DELETE", f"/api/jobs/{made[0]}")
    assert await edge.client.zcard(f"{edge.keys.prefix}q:interactive:ready") == 2
    text = await scraped(edge)
    assert sample(text, "errand_queue_jobs", lane="interactive", priority="high") == 0
    assert sample(text, "errand_queue_jobs", lane="interactive", priority="low") == 2
    assert sample(text, "errand_jobs_running", lane="interactive") == 1


async def test_what_an_older_release_left_in_the_index_of_ready_jobs_goes(edge: Stack) -> None:
    """Given a job that a worker took without knowing the index, then it does not look like one that waits for ever."""
    job_id = await edge.submit(chat())
    await edge.jobs.claim(worker="w", lanes=[("interactive", 1)], count=1, lease_ms=60_000)
    await edge.client.zadd(f"{edge.keys.prefix}q:interactive:ready", {job_id: 2**43 + 1})
    assert sample(await scraped(edge), "errand_queue_jobs", lane="interactive", priority="normal") == 0
    assert await edge.client.zcard(f"{edge.keys.prefix}q:interactive:ready") == 0


async def test_redis_shows_how_it_is(edge: Stack) -> None:
    text = await scraped(edge)
    assert sample(text, "errand_redis_up") == 1
    assert sample(text, "errand_redis_durable") == 1
    assert sample(text, "errand_redis_persistence_ok") == 1
    used, most = sample(text, "errand_redis_memory_bytes"), sample(text, "errand_redis_memory_max_bytes")
    assert used is not None
    assert most is not None
    assert 0 < used < most
    assert sample(text, "errand_redis_evicted_keys_total") == 0


async def test_a_scrape_without_redis_says_that_it_is_away(make_stack: Any, own_redis: Any) -> None:
    """Given a Redis that is gone, then the scrape is answered in time, with what this process knows by itself."""
    stack: Stack = await make_stack(redis_url=own_redis.url)
    assert sample(await scraped(stack), "errand_redis_up") == 1
    await asyncio.to_thread(own_redis.kill)
    async with asyncio.timeout(5):
        text = await scraped(stack)
    assert sample(text, "errand_redis_up") == 0
    assert sample(text, "errand_queue_jobs", lane="batch", priority="normal") is None
    assert "process_resident_memory_bytes" in text


def test_every_label_is_explained_and_every_explanation_is_used() -> None:
    used = {label for family in FAMILIES for label in family.labels}
    for collector in vars(metrics).values():
        if isinstance(collector, MetricWrapperBase):
            used.update(collector._labelnames)
    assert used == set(metrics.LABELS)


async def test_names_that_clients_choose_make_no_series(make_stack: Any) -> None:
    """Given a job for a model that never answered, and requests with odd methods and paths, then no label quotes
    them."""
    stack: Stack = await make_stack(workers=("interactive",), openai_base_url="http://127.0.0.1:9/v1")
    made = await stack.finished(await stack.submit(chat(model="no-such-model-canary", maxAttempts=1)))
    assert made["status"] == "failed"
    async with stack.session.request("PURGE", f"{stack.base}/canary/path"):
        pass
    text = await scraped(stack)
    assert "canary" not in text.lower()
    assert "PURGE" not in text
    assert 'gen_ai_request_model="other"' in text


async def test_a_chat_is_measured_by_the_genai_conventions(stack: Stack) -> None:
    """Given a chat, then duration, first chunk, tokens and the job's whole time are there."""
    before = await scraped(stack)
    await stack.finished(await stack.submit(chat("Hello")))
    text = await scraped(stack)
    labels = {"gen_ai_operation_name": "chat", "gen_ai_provider_name": "openai",
              "gen_ai_request_model": stack.settings.default_model}  # fmt: skip

    def grown(name: str, **wanted: str) -> float:
        return (sample(text, name, **wanted) or 0) - (sample(before, name, **wanted) or 0)

    assert grown("gen_ai_client_operation_duration_seconds_count", **labels, error_type="") == 1
    assert grown("gen_ai_client_operation_time_to_first_chunk_seconds_count", **labels) == 1
    assert grown("gen_ai_client_token_usage_sum", **labels, gen_ai_token_type="output") > 0
    assert grown("errand_job_seconds_count", type="chat", outcome="complete") == 1
    assert 0 < grown("errand_job_seconds_sum", type="chat", outcome="complete") < 60


@pytest.mark.parametrize(
    ("url", "provider"),
    [
        ("https://api.openai.com/v1", "openai"),
        ("https://me.openai.azure.com/openai/v1", "azure.ai.openai"),
        ("https://api.mistral.ai/v1", "mistral_ai"),
        ("http://127.0.0.1:8000/v1", "openai"),
        ("https://notmistral.ai/v1", "openai"),
    ],
)
def test_providers_are_named_by_their_host(url: str, provider: str) -> None:
    assert provider_of(url) == provider


def test_the_models_that_are_a_label_are_few() -> None:
    """Given a thousand models that answered, then thirty of them are labels, beside those of the settings."""
    names = ModelNames(Settings(default_model="house", embedding_model="vectors", fallback_models="house=spare"))
    for number in range(1_000):
        names.answered(f"model-{number}")
    labels = {names.label(f"model-{number}") for number in range(1_000)}
    assert len(labels) == 31
    assert {names.label(name) for name in ("house", "vectors", "spare")} == {"house", "vectors", "spare"}


async def test_pending_deliveries_show_their_number_and_age(edge: Stack) -> None:
    """Given a job with a webhook that ended, and no worker that sends, then its delivery is pending and grows old."""
    text = await scraped(edge)
    assert sample(text, "errand_webhooks_pending") == 0
    assert sample(text, "errand_webhooks_oldest_seconds") == 0
    job_id = await edge.submit(chat(webhook={"url": "https://hooks.example/a"}))
    await edge.call("DELETE", f"/api/jobs/{job_id}")
    await asyncio.sleep(0.05)
    text = await scraped(edge)
    assert sample(text, "errand_webhooks_pending") == 1
    assert 0.05 <= (sample(text, "errand_webhooks_oldest_seconds") or 0) < 30


def test_a_soft_limits_owner_is_no_end_user() -> None:
    """Given a limit of an end user, then what may be logged is the tenant, not the user."""
    crossed = SoftCrossed("user", "day", "tokens", 2, 1, None, "ten_A:u:somebody@example.org")
    assert crossed.owner == "ten_A"
