"""Batch embeddings: every text once, in its order, whatever fails; nothing that was finished is paid again."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from typing import Any

import msgspec
import pytest

from shared.batch import LineTooLong
from shared.tokens import TokenCounter
from tests.conftest import ADMIN_KEY, DevModel, Stack
from worker.batch.plan import Plan, Planner
from worker.model.calls import estimate_text_tokens
from worker.model.window import FIRST
from worker.tasks.embedding import READY

MODEL = {"model": "errand-dev-embedding"}


def embedding(texts: list[str], **more: Any) -> dict[str, Any]:
    given = more.pop("input", {})
    return {"type": "batch-embedding", "input": {"texts": texts, **MODEL, **given}, **more}


async def output(stack: Stack, job_id: str) -> list[dict[str, Any]]:
    answer = await stack.call("GET", f"/api/jobs/{job_id}/output")
    assert answer.status == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


def some_texts(count: int) -> list[str]:
    return [f"Text number {number} speaks of berth {number * 7} and of ship {number * 3}." for number in range(count)]


async def upload(stack: Stack, lines: list[Any]) -> str:
    import aiohttp

    form = aiohttp.FormData()
    content = b"".join(line if isinstance(line, bytes) else msgspec.json.encode(line) + b"\n" for line in lines)
    form.add_field("file", content, filename="texts.ndjson")
    form.add_field("index", "false")
    headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
    async with stack.session.post(stack.base + "/api/documents", data=form, headers=headers) as answer:
        assert answer.status == 202, await answer.text()
        return str((await answer.json())["documentId"])


async def embedded(model: DevModel) -> list[str]:
    """The texts of all requests that the model answered."""
    calls = (await model.stats(calls=True))["list"]
    return [text for call in calls if call["status"] == 200 for text in call["body"]["input"]]


# -- a whole job -----------------------------------------------------------------------------------------------------


async def test_a_batch_gives_one_vector_per_text_in_their_order(stack: Stack) -> None:
    """Texts inline, 64 dimensions asked for; usage in embedding tokens; the output's link in result and view."""
    texts = some_texts(40)
    view = await stack.finished(await stack.submit(embedding(texts, input={"dimensions": 64})))
    assert view["status"] == "complete", view
    assert view["result"] == {
        "count": 40, "failed": 0, "dimensions": 64, "output": f"/api/jobs/{view['jobId']}/output",
    }  # fmt: skip
    assert view["links"]["output"] == view["result"]["output"]
    assert view["model"] == "errand-dev-embedding"
    assert view["usage"]["embeddingTokens"] == view["usage"]["totalTokens"] > 40
    lines = await output(stack, view["jobId"])
    assert [line["index"] for line in lines] == list(range(40))
    assert all(len(line["embedding"]) == 64 and "id" not in line for line in lines)
    assert lines[0]["embedding"] != lines[1]["embedding"]


async def test_items_keep_their_ids_and_base64_names_the_same_vectors(stack: Stack) -> None:
    """The same two texts in both encodings."""
    items = [{"id": "a", "text": "the harbour"}, {"id": "b", "text": "the river"}]
    found = {}
    for encoding in ("float", "base64"):
        job = {"type": "batch-embedding", "input": {"items": items, "encoding": encoding, **MODEL}}
        view = await stack.finished(await stack.submit(job))
        found[encoding] = await output(stack, view["jobId"])
        assert [line["id"] for line in found[encoding]] == ["a", "b"]
    for plain, packed in zip(found["float"], found["base64"], strict=True):
        content = base64.b64decode(packed["embedding"])
        assert list(struct.unpack(f"<{len(content) // 4}f", content)) == pytest.approx(plain["embedding"], abs=1e-6)


async def test_an_upload_is_embedded_line_by_line_and_bad_lines_name_their_fault(stack: Stack, model: DevModel) -> None:
    """Strings and objects; a line that is no JSON, an empty text, an unknown member: each an error of its own line."""
    document = await upload(stack, ["one text", {"id": "x", "text": "two texts"}, *some_texts(3)])
    job = {"type": "batch-embedding", "input": {"documentId": document, **MODEL}}
    view = await stack.finished(await stack.submit(job))
    assert (view["status"], view["result"]["count"]) == ("complete", 5), view
    bad = await upload(stack, ["good", *["good too"] * 3000, b"{not json\n", {"id": "e", "text": " "}, {"txt": "x"}])
    view = await stack.finished(await stack.submit({"type": "batch-embedding", "input": {"documentId": bad, **MODEL}}))
    assert (view["status"], view["result"]["count"], view["result"]["failed"]) == ("complete", 3004, 3), view
    lines = await output(stack, view["jobId"])
    assert [line["index"] for line in lines] == list(range(3004))
    errors = [line for line in lines if "error" in line]
    assert [line["error"]["code"] for line in errors] == ["invalid_input"] * 3
    assert errors[1]["id"] == "e"


async def test_identical_texts_are_embedded_once(make_stack: Any, model: DevModel) -> None:
    """3,000 lines of seven texts, over several batches: the model is asked for seven; every line has its vector."""
    stack = await make_stack(workers=("batch",), embedding_items=16)
    texts = [f"text {number % 7} of seven" for number in range(3_000)]
    view = await stack.finished(await stack.submit(embedding(texts)))
    assert view["status"] == "complete", view
    assert sorted(await embedded(model)) == sorted(set(texts))
    lines = await output(stack, view["jobId"])
    assert [line["index"] for line in lines] == list(range(3_000))
    assert all(line["embedding"] == lines[line["index"] % 7]["embedding"] for line in lines)
    assert lines[0]["embedding"] != lines[1]["embedding"]


async def test_requests_are_packed_by_items_and_by_tokens(make_stack: Any, model: DevModel) -> None:
    """At most ten texts, and at most about 100 tokens, to a request."""
    stack = await make_stack(workers=("batch",), embedding_items=16, embedding_tokens=100)
    short, long = some_texts(32), ["word " * 60 + str(number) for number in range(4)]
    assert (await stack.finished(await stack.submit(embedding(short + long))))["status"] == "complete"
    sizes = [len(call["body"]["input"]) for call in (await model.stats(calls=True))["list"]]
    assert sum(sizes) == 36
    assert max(sizes) <= 16
    assert sizes.count(2) >= 2 or sizes.count(1) >= 2


# -- faults ----------------------------------------------------------------------------------------------------------


async def test_a_refused_request_is_split_until_the_text_is_found(make_stack: Any, model: DevModel) -> None:
    """One text of 64 is too long for the model: it alone has an error, all others their vector, each paid once."""
    stack = await make_stack(workers=("batch",))
    texts = some_texts(64)
    texts[37] = "endless " * 9_000
    view = await stack.finished(await stack.submit(embedding(texts)))
    assert (view["status"], view["result"]["failed"]) == ("complete", 1), view
    lines = await output(stack, view["jobId"])
    assert [line["index"] for line in lines if "error" in line] == [37]
    assert lines[37]["error"]["code"] == "upstream_refused"
    assert sorted(await embedded(model)) == sorted(texts[:37] + texts[38:])
    stats = await model.stats()
    assert view["usage"]["embeddingTokens"] == stats["inputTokens"]


@pytest.mark.parametrize("status", [400, 429, 500])
async def test_repeated_texts_behind_a_call_that_fails_hold_nothing_up(
    make_stack: Any, model: DevModel, status: int
) -> None:
    """Many batches wait for a text in the first one, whose first call fails: it is made all the same, and so is the
    batch of another job."""
    stack = await make_stack(workers=("batch",), embedding_items=16, model_retries=1)
    await model.faults({"kind": "status", "status": status, "path": "embeddings"})
    job = await stack.submit(embedding([f"text {number % 7} of seven" for number in range(3_000)], maxAttempts=1))
    other = await stack.submit(embedding(["another"], maxAttempts=1))
    assert (await stack.finished(other))["status"] == "complete"
    view = await stack.finished(job)
    assert (view["status"], view["result"]["failed"]) == ("complete", 0), view


async def test_a_text_that_the_server_falls_over_is_found_too(make_stack: Any, model: DevModel) -> None:
    """500 for one text of 64, always: it alone has an error. 500 for all: the model is out of order."""
    stack = await make_stack(workers=("batch",), embedding_items=16, model_breaker_failures=100)
    texts = some_texts(64)
    await model.faults({"kind": "status", "status": 500, "times": 1_000, "match": texts[37], "path": "embeddings"})
    view = await stack.finished(await stack.submit(embedding(texts, maxAttempts=1)))
    assert (view["status"], view["result"]["failed"]) == ("complete", 1), view
    lines = await output(stack, view["jobId"])
    assert [line["index"] for line in lines if "error" in line] == [37]
    await model.faults({"kind": "status", "status": 500, "times": 10_000, "path": "embeddings"})
    view = await stack.finished(await stack.submit(embedding(texts, maxAttempts=1)))
    assert (view["status"], view["error"]["code"]) == ("failed", "upstream_unavailable"), view


async def test_bad_texts_at_the_head_do_not_condemn_the_others(make_stack: Any, model: DevModel) -> None:
    """Ten refused texts before ten good ones: another is tried before the job is given up."""
    stack = await make_stack(workers=("batch",), embedding_items=32)
    texts = [f"bad text {number}" for number in range(10)] + some_texts(10)
    await model.faults({"kind": "status", "status": 400, "times": 1_000, "match": "bad text", "path": "embeddings"})
    view = await stack.finished(await stack.submit(embedding(texts)))
    assert (view["status"], view["result"]["failed"]) == ("complete", 10), view


async def test_nothing_more_is_asked_after_a_fatal_error(make_stack: Any, model: DevModel) -> None:
    """401 for one call of fifty, two at a time: the twenty that wait for a place are not made any more."""
    stack = await make_stack(workers=("batch",), embedding_items=16)
    texts = some_texts(800)
    await model.limits(inFlight=2, latencySeconds=0.02, paths=["embeddings"])
    await model.faults({"kind": "status", "status": 401, "match": texts[400], "path": "embeddings"})
    view = await stack.finished(await stack.submit(embedding(texts)))
    assert (view["status"], view["error"]["code"]) == ("failed", "upstream_refused"), view
    assert (await model.stats())["calls"] <= 36


async def test_a_deploy_hands_back_a_batch_of_repeats(make_stack: Any, model: DevModel) -> None:
    """Batches that wait for another's text are stopped like all others: no failure, the next worker goes on."""
    stack = await make_stack(embedding_items=16)
    first = await stack.start_worker("batch")
    await model.limits(latencySeconds=0.5)
    texts = [f"text {number % 7} of seven" for number in range(1_000)]
    job = await stack.submit(embedding(texts, maxAttempts=1))
    async with asyncio.timeout(10):
        while not (await model.stats())["open"]:
            await asyncio.sleep(0.01)
    await stack.stop_worker(first)
    await model.limits()
    await stack.start_worker("batch")
    view = await stack.finished(job)
    assert (view["status"], view["attempt"]) == ("complete", 1), view


async def test_a_job_whose_every_request_is_refused_fails_soon(make_stack: Any, model: DevModel) -> None:
    """Whatever it is that the model refuses: not one request per text is made to find that out."""
    stack = await make_stack(workers=("batch",))
    view = await stack.finished(await stack.submit(embedding(some_texts(500), input={"dimensions": 4_096})))
    assert (view["status"], view["error"]["code"]) == ("failed", "upstream_refused"), view
    assert "dimensions" in view["error"]["message"]
    await model.faults({"kind": "status", "status": 400, "times": 10_000, "path": "embeddings"})
    view = await stack.finished(await stack.submit(embedding(some_texts(500))))
    assert (view["status"], view["error"]["code"]) == ("failed", "upstream_refused"), view
    assert (await model.stats())["calls"] < 250  # of a thousand that splitting to the end would take


async def test_a_job_without_one_good_text_fails_and_its_output_says_why(stack: Stack) -> None:
    """Each line has its error all the same."""
    view = await stack.finished(await stack.submit(embedding([" ", "  "])))
    assert (view["status"], view["error"]["code"]) == ("failed", "invalid_input"), view
    assert [line["error"]["message"] for line in await output(stack, view["jobId"])] == ["the text is empty"] * 2


async def test_429s_slow_a_batch_down_and_do_not_fail_it(make_stack: Any, model: DevModel) -> None:
    """Eight refusals on the way: one attempt, all vectors, nothing paid for a refusal."""
    stack = await make_stack(workers=("batch",), embedding_items=16)
    await model.faults({"kind": "status", "status": 429, "times": 8, "path": "embeddings"})
    view = await stack.finished(await stack.submit(embedding(some_texts(400))))
    assert (view["status"], view["attempt"], view["result"]["failed"]) == ("complete", 1, 0), view
    assert view["usage"]["wastedTokens"] == 0
    assert view["usage"]["embeddingTokens"] == (await model.stats())["inputTokens"]


async def test_what_was_finished_before_a_failure_is_kept_and_not_asked_again(make_stack: Any, model: DevModel) -> None:
    """The fifth request and all after it fail; a retry asks for the missing texts only, and the output is whole."""
    stack = await make_stack(workers=("batch",), embedding_items=16, model_max_in_flight=1)
    texts = some_texts(160)
    await model.faults(*[{"kind": "no_usage", "path": "embeddings"}] * 4,
                       {"kind": "status", "status": 500, "times": 1000, "path": "embeddings"})  # fmt: skip
    job = await stack.submit(embedding(texts, maxAttempts=1))
    view = await stack.finished(job)
    assert (view["status"], view["error"]["code"]) == ("failed", "upstream_unavailable"), view
    assert [line["index"] for line in await output(stack, job)] == list(range(64))
    await model.faults()
    await stack.call("POST", f"/api/jobs/{job}/retry")
    view = await stack.finished(job)
    assert (view["status"], view["result"]["count"]) == ("complete", 160), view
    assert sorted(await embedded(model)) == sorted(texts)
    assert view["usage"]["reusedTokens"] > 0
    assert [line["index"] for line in await output(stack, job)] == list(range(160))


async def test_a_killed_worker_costs_at_most_what_was_under_way(make_stack: Any, model: DevModel) -> None:
    """Killed in the middle: the second worker reuses every journaled batch, and the output has each line once."""
    stack = await make_stack(embedding_items=16, model_max_in_flight=2, lease_seconds=1)
    first = await stack.spawn_worker("batch")
    texts = some_texts(800)
    await model.pace(firstTokenSeconds=0)
    job = await stack.submit(embedding(texts))
    async with asyncio.timeout(20):
        while len(await stack.client.hgetall(stack.keys.output(job))) < 10:  # type: ignore[misc]
            await asyncio.sleep(0.005)
    first.kill()
    finished = len(await stack.client.hgetall(stack.keys.output(job)))  # type: ignore[misc]
    await stack.start_worker("batch")
    view = await stack.finished(job)
    assert (view["status"], view["result"]["count"], view["result"]["failed"]) == ("complete", 800, 0), view
    assert [line["index"] for line in await output(stack, job)] == list(range(800))
    counts: dict[str, int] = {}
    for text in await embedded(model):
        counts[text] = counts.get(text, 0) + 1
    assert set(counts) == set(texts)
    assert sum(count - 1 for count in counts.values()) <= 2 * 16
    assert all(counts[text] == 1 for text in texts[: (finished - 2) * 16]) or finished < 3
    reused = [event for event in await stack.log(job) if event["type"] == "job.step" and event["reused"]]
    assert len(reused) >= finished


async def test_a_retry_asks_again_only_for_items_that_the_model_refused(make_stack: Any, model: DevModel) -> None:
    """All texts refused, then a retry without the fault: all are embedded; a bad line stays bad and is not asked."""
    stack = await make_stack(workers=("batch",))
    await model.faults({"kind": "status", "status": 400, "times": 1000, "path": "embeddings"})
    job = await stack.submit(embedding(["one", "two", " "]))
    view = await stack.finished(job)
    assert (view["status"], view["error"]["code"]) == ("failed", "upstream_refused"), view
    await model.faults()
    await stack.call("POST", f"/api/jobs/{job}/retry")
    view = await stack.finished(job)
    assert (view["status"], view["result"]["failed"]) == ("complete", 1), view
    lines = await output(stack, job)
    assert ["error" in line for line in lines] == [False, False, True]
    assert sorted(await embedded(model)) == ["one", "two"]


async def test_what_a_second_run_mended_is_not_asked_by_a_third(make_stack: Any, model: DevModel) -> None:
    """Run 1 refuses a text and fails elsewhere, run 2 mends it and fails elsewhere again, run 3 asks for the rest."""
    stack = await make_stack(workers=("batch",), embedding_items=16, model_max_in_flight=1)
    texts = some_texts(48)
    elsewhere = {"kind": "status", "status": 503, "times": 1_000, "match": texts[40], "path": "embeddings"}
    await model.faults(elsewhere, {"kind": "status", "status": 400, "times": 1_000, "match": texts[3],
                                   "path": "embeddings"})  # fmt: skip
    job = await stack.submit(embedding(texts, maxAttempts=1))
    assert (await stack.finished(job))["status"] == "failed"
    await model.faults(elsewhere)
    await stack.call("POST", f"/api/jobs/{job}/retry")
    assert (await stack.finished(job))["status"] == "failed"
    await model.faults()
    await stack.call("POST", f"/api/jobs/{job}/retry")
    view = await stack.finished(job)
    assert (view["status"], view["result"]["failed"]) == ("complete", 0), view
    assert sorted(await embedded(model)) == sorted(texts)


async def test_the_output_can_be_read_while_the_job_runs(make_stack: Any, model: DevModel) -> None:
    """Its first lines are there before the last request is made."""
    stack = await make_stack(workers=("batch",), embedding_items=16, model_max_in_flight=1)
    await model.faults({"kind": "no_usage", "path": "embeddings", "times": 2},
                       {"kind": "stall", "path": "embeddings", "seconds": 30})  # fmt: skip
    job = await stack.submit(embedding(some_texts(64)))
    async with asyncio.timeout(10):
        while not (lines := await output(stack, job)):
            await asyncio.sleep(0.01)
    assert lines[0]["index"] == 0
    assert (await stack.call("GET", f"/api/jobs/{job}")).json["status"] == "processing"
    answer = await stack.call("DELETE", f"/api/jobs/{job}?wait=10")
    assert answer.json["status"] == "cancelled"


async def test_only_what_was_sent_is_charged_to_a_lost_worker(make_stack: Any, model: DevModel) -> None:
    """The first calls hang: READY more are in the journal and in the books already, so that the model waits for no
    journal, and no more of them. When the worker is killed, it is charged for the calls that the model got, counted as
    the model counts, and for no other."""
    stack: Stack = await make_stack(embedding_items=16, lease_seconds=1.0)
    tenant, key = await stack.tenant(budgets=[{"period": "day", "hardTokens": 10**6}])
    await model.faults({"kind": "stall", "path": "embeddings", "seconds": 30, "times": FIRST})
    texts = [f"Text number {number:04d} speaks of a ship." for number in range(1_600)]
    (each,) = set(await TokenCounter().texts("text-embedding-3-small", texts))
    job = await stack.submit(embedding(texts, input={"model": "text-embedding-3-small"}), key=key)
    worker = await stack.spawn_worker("batch")

    async def begun() -> int:
        answer = await stack.call("GET", f"/api/jobs/{job}/events?limit=1000", key=key)
        return sum(event.get("state") == "started" for event in answer.json["data"])

    async def book() -> dict[str, int]:
        raw = await stack.client.hgetall(stack.keys.books(tenant))
        return {name.decode(): int(value) for name, value in raw.items() if name in (b"ht", b"tt")}

    async with asyncio.timeout(20):
        while await begun() < 1 + FIRST + READY:  # the plan, those at the model, those that are ready
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.3)
    assert await begun() == 1 + FIRST + READY
    assert (await book())["ht"] == each * 16 * (FIRST + READY)
    worker.kill()
    async with asyncio.timeout(10):
        while (await book())["ht"]:
            await asyncio.sleep(0.05)
    assert len((await model.stats(calls=True))["list"]) == FIRST
    assert (await book())["tt"] == each * 16 * FIRST
    check = await stack.call("POST", "/api/admin/books/check", {"tenantId": tenant})
    assert check.json["ok"], check.text


async def test_repeats_keep_to_the_jobs_budget(make_stack: Any, model: DevModel) -> None:
    """Given a batch that fits its job's budget once, when the model does not answer, then it is not asked for again."""
    stack: Stack = await make_stack(workers=("batch",), model_retries=2, model_first_token_seconds=0.3)
    await model.faults({"kind": "stall", "path": "embeddings", "seconds": 30, "times": 2})
    texts = some_texts(20)
    tokens = sum(map(estimate_text_tokens, texts))
    job = await stack.submit(embedding(texts, tokenBudget=round(tokens * 1.5), maxAttempts=1))
    view = await stack.finished(job)
    assert (view["status"], view["error"]["code"]) == ("failed", "budget_exhausted"), view
    assert view["usage"]["totalTokens"] <= tokens * 1.5


async def test_a_token_budget_stops_a_batch(make_stack: Any, model: DevModel) -> None:
    """Nothing further is asked; what was made can be read."""
    stack = await make_stack(workers=("batch",), embedding_items=16, model_max_in_flight=1)
    job = await stack.submit(embedding(some_texts(200), tokenBudget=900))
    view = await stack.finished(job)
    assert (view["status"], view["error"]["code"]) == ("failed", "budget_exhausted"), view
    assert 0 < view["usage"]["totalTokens"] <= 900
    assert len(await output(stack, job)) >= 16


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ({"texts": []}, "$.input.texts"),
        ({}, "$.input"),
        ({"texts": ["a"], "items": [{"text": "b"}]}, "$.input"),
        ({"texts": ["a"], "dimensions": 0}, "$.input.dimensions"),
        ({"texts": ["a"], "encoding": "int8"}, "$.input.encoding"),
        ({"items": [{"id": "x", "txt": "b"}]}, "$.input.items[0]"),
        ({"documentId": "doc_01M81SGW152PHX78GHNCJWQHRS"}, "$.input.documentId"),
        ({"texts": ["a"] * 10_001}, "$.input.texts"),
    ],
)
async def test_a_bad_submission_is_refused_by_its_path(edge: Stack, given: dict[str, Any], path: str) -> None:
    """422, and the path of what is wrong."""
    answer = await edge.call("POST", "/api/jobs", {"type": "batch-embedding", "input": given})
    assert (answer.status, answer.json["code"]) == (422, "invalid_request"), answer.text
    assert answer.json["errors"][0]["path"].startswith(path), answer.text


async def test_a_document_that_is_no_batch_file_is_refused(edge: Stack) -> None:
    """With what to do instead; a batch file with some bad lines is one all the same."""
    made = await edge.call("POST", "/api/documents", {"text": "Just a text."})
    job = {"type": "batch-embedding", "input": {"documentId": made.json["documentId"]}}
    answer = await edge.call("POST", "/api/jobs", job)
    assert (answer.status, answer.json["errors"][0]["path"]) == (422, "$.input.documentId")
    assert "index=false" in answer.json["detail"]


async def test_no_request_has_more_tokens_than_are_set(make_stack: Any, model: DevModel) -> None:
    """By our estimate: a text that would cross the bound begins the next request."""
    stack = await make_stack(workers=("batch",), embedding_tokens=100)
    texts = ["word " * 60 + str(number) for number in range(6)] + some_texts(20)
    assert (await stack.finished(await stack.submit(embedding(texts))))["status"] == "complete"
    for called in (await model.stats(calls=True))["list"]:
        asked = called["body"]["input"]
        assert len(asked) == 1 or sum(map(estimate_text_tokens, asked)) <= 100


async def test_a_bad_first_text_that_breaks_the_server_is_found_with_the_settings_as_they_come(
    make_stack: Any, model: DevModel
) -> None:
    """500 for the first of 31 texts: the breaker stays closed, the others have their vectors."""
    stack = await make_stack(workers=("batch",), model_retries=2)
    texts = some_texts(31)
    await model.faults({"kind": "status", "status": 500, "times": 1_000, "match": texts[0], "path": "embeddings"})
    view = await stack.finished(await stack.submit(embedding(texts, maxAttempts=1)))
    assert (view["status"], view["result"]["failed"]) == ("complete", 1), view


async def test_a_repeated_submission_leaves_no_second_input(edge: Stack) -> None:
    """Same key and body: the first job again, one blob."""
    headers = {"Idempotency-Key": "once"}
    first = await edge.call("POST", "/api/jobs", embedding(["a"]), headers=headers)
    second = await edge.call("POST", "/api/jobs", embedding(["a"]), headers=headers)
    assert first.json["jobId"] == second.json["jobId"]
    inputs = [path for path in (edge.settings.data_dir / "blobs" / "inputs").rglob("*") if path.is_file()]
    assert len(inputs) == 1


async def test_vectors_of_two_models_are_never_mixed(make_stack: Any, model: DevModel) -> None:
    """A retry with another model must begin anew."""
    stack = await make_stack(workers=("batch",))
    await model.faults({"kind": "status", "status": 500, "times": 10, "path": "embeddings"})
    job = await stack.submit(embedding(["a"], maxAttempts=1))
    await stack.finished(job)
    answer = await stack.call("POST", f"/api/jobs/{job}/retry", {"model": "other"})
    assert (answer.status, answer.json["errors"][0]["path"]) == (422, "$.model")
    await model.faults()
    answer = await stack.call("POST", f"/api/jobs/{job}/retry", {"model": "other", "from": "start"})
    assert answer.status == 202
    assert (await stack.finished(job))["status"] == "complete"


# -- the plan --------------------------------------------------------------------------------------------------------


def plan_all(lines: list[bytes | LineTooLong], plan: Plan, *, chunk: int) -> list[Any]:
    planner = Planner(plan)
    batches = []
    for first in range(0, len(lines), chunk):
        batches += planner.add(lines[first : first + chunk])
    batches += planner.rest()
    planner.close()
    return batches


def test_the_same_lines_give_the_same_batches_however_they_arrive() -> None:
    """In pieces of 1, 7 or 1,000 lines; with repeats, bad lines and long ones."""
    lines: list[bytes | LineTooLong] = [
        b'"text %d"' % (number % 40) if number % 11 else b"{bad" for number in range(500)
    ]
    lines[200] = LineTooLong(5_000_000)
    plan = Plan(items=16, tokens=10_000, lines=50, answer_bytes=1)
    found = [plan_all(lines, plan, chunk=chunk) for chunk in (1, 7, 1_000)]
    assert found[0] == found[1] == found[2]
    entries = [entry for batch in found[0] for entry in batch.entries]
    assert [entry.index for entry in entries] == list(range(500))
    assert sum(len(batch.texts) for batch in found[0]) == 40
    assert all(sum(x is not None for x in (e.own, e.like, e.error)) == 1 for e in entries)
    assert len({batch.identity("m") for batch in found[0]}) == len(found[0])


def test_a_plan_keeps_answers_small() -> None:
    """Few items of many dimensions, many of few, never more than is set nor less than sixteen."""
    assert Plan.of(256, "base64", most_items=512, most_tokens=1).items == 512
    assert Plan.of(4_096, "float", most_items=512, most_tokens=1).items == 16
    assert 16 < Plan.of(1_024, "float", most_items=512, most_tokens=1).items < 64
    assert Plan.of(None, "float", most_items=8, most_tokens=1).items == 8


def test_a_table_is_not_closed_under_the_hands_of_its_thread() -> None:
    """A task that is cancelled leaves its thread at work: what comes after the closing is nothing."""
    planner = Planner(Plan(items=16, tokens=10_000, lines=50, answer_bytes=1))
    assert len(planner.add([b'"a %d"' % number for number in range(16)])) == 1
    planner.close()
    assert planner.add([b'"b"']) == []
