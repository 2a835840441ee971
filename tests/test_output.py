"""A job's output: written with its step, read from any place while it grows, deleted with its job."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest

from shared.blobs import BlobMissingError, LocalBlobs, blobs_of
from shared.errors import BlobsUnavailableError, LeaseLostError
from shared.jobs import links_of
from shared.stores.events import Begun, CallUsage, Reservation
from shared.stores.outputs import OutputsStore, Part, contiguous, output_prefix, part_key
from shared.upkeep import Disposal
from tests.conftest import ADMIN_KEY, Answer, Stack, chat
from tests.test_review import STEP, claim, lose

PARTS = [b'{"index":0}\n', b'{"index":1}\n{"index":2}\n', b'{"index":3}\n']
WHOLE = b"".join(PARTS)


async def write(stack: Stack, job_id: str, number: int, content: bytes) -> str:
    """Stores a part as a worker does; its blob key."""
    tenant = (await stack.client.hget(stack.keys.job(job_id), "tenant")).decode()
    key = part_key(tenant, job_id, number)
    await blobs_of(stack.settings).put(key, content)
    await stack.client.hset(stack.keys.output(job_id), str(number), f"{len(content)} {key}")
    return key


async def written(stack: Stack, numbers: tuple[int, ...] = (0, 1, 2), *, final: bool = False) -> str:
    job_id = await stack.submit(chat())
    for number in numbers:
        await write(stack, job_id, number, PARTS[number])
    if final:
        await stack.call("DELETE", f"/api/jobs/{job_id}")
    return job_id


async def output(stack: Stack, job_id: str, method: str = "GET", **headers: str) -> Answer:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return await stack.call(method, f"/api/jobs/{job_id}/output", headers=sent)


def disposal(stack: Stack) -> Disposal:
    return Disposal(OutputsStore(stack.client, stack.keys), blobs_of(stack.settings))


async def test_a_running_jobs_output_is_what_has_no_gap(edge: Stack) -> None:
    job_id = await written(edge, (0, 2))
    answer = await output(edge, job_id)
    assert (answer.status, answer.body) == (200, PARTS[0])
    assert answer.headers["Content-Type"] == "application/x-ndjson"
    assert answer.headers["Content-Length"] == str(len(PARTS[0]))
    assert (answer.headers["Accept-Ranges"], "ETag" in answer.headers) == ("bytes", False)
    assert int(answer.headers["Retry-After"]) >= 1
    await write(edge, job_id, 1, PARTS[1])
    assert (await output(edge, job_id)).body == WHOLE


async def test_a_final_jobs_output_is_all_there_is_and_has_a_validator(edge: Stack) -> None:
    job_id = await written(edge, (0, 2), final=True)
    answer = await output(edge, job_id)
    assert (answer.status, answer.body) == (200, PARTS[0] + PARTS[2])
    assert "Retry-After" not in answer.headers
    etag = answer.headers["ETag"]
    assert (await output(edge, job_id, If_None_Match=f'"x", {etag}')).status == 304
    assert (await output(edge, job_id, If_Range=etag, Range="bytes=1-")).status == 206
    assert (await output(edge, job_id, If_Range='"other"', Range="bytes=1-")).body == answer.body
    head = await output(edge, job_id, "HEAD", Range="bytes=1-")
    assert (head.status, head.body, head.headers["ETag"]) == (200, b"", etag)
    assert head.headers["Content-Length"] == str(len(answer.body))


@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [("0-0", 0, 1), ("5-20", 5, 21), ("11-12", 11, 13), ("30-", 30, 48), ("40-9999", 40, 48), ("-7", 41, 48),
     ("-9999", 0, 48), ("0-", 0, 48)],
)  # fmt: skip
async def test_each_range_is_cut_across_the_parts(edge: Stack, asked: str, start: int, end: int, final: bool) -> None:
    assert len(WHOLE) == 48
    answer = await output(edge, await written(edge, final=final), Range=f"bytes={asked}")
    assert (answer.status, answer.body) == (206, WHOLE[start:end])
    total = "48" if final else "*"
    assert answer.headers["Content-Range"] == f"bytes {start}-{end - 1}/{total}"
    assert answer.headers["Content-Length"] == str(end - start)


@pytest.mark.parametrize("asked", ["bytes=0-1,4-5", "lines=0-1", "bytes=9-3", "bytes=-", "bytes=x-", "bytes 0-1"])
async def test_other_ranges_are_ignored(edge: Stack, asked: str) -> None:
    answer = await output(edge, await written(edge), Range=asked)
    assert (answer.status, answer.body) == (200, WHOLE)


async def test_a_range_that_is_not_there_yet_says_when_to_ask_again(edge: Stack) -> None:
    """Given a client that has all so far, when it asks for more, then it is told to wait; at the end, that it has
    all."""
    job_id = await written(edge)
    await claim(edge)
    for asked in ("48-", "100-", "48-50"):
        answer = await output(edge, job_id, Range=f"bytes={asked}")
        assert (answer.status, answer.json["code"]) == (416, "range_not_satisfiable")
        assert (answer.headers["Content-Range"], answer.headers["Retry-After"]) == ("bytes */48", "1")
    done = await written(edge, final=True)
    for asked in ("48-", "-0"):
        answer = await output(edge, done, Range=f"bytes={asked}")
        assert (answer.status, answer.headers["Content-Range"]) == (416, "bytes */48")
        assert "Retry-After" not in answer.headers


async def test_without_an_output(edge: Stack) -> None:
    job_id = await edge.submit(chat())
    answer = await output(edge, job_id)
    assert (answer.status, answer.json["code"]) == (404, "not_found")
    assert "output" in answer.json["detail"]
    await edge.client.hset(edge.keys.job(job_id), "type", "batch-embedding")
    answer = await output(edge, job_id)
    assert (answer.status, answer.body, answer.headers["Content-Length"]) == (200, b"", "0")
    assert (await output(edge, job_id, Range="bytes=0-")).status == 416
    view = (await edge.call("GET", f"/api/jobs/{job_id}")).json
    assert view["links"]["output"] == f"/api/jobs/{job_id}/output"


async def test_only_types_with_an_output_link_to_it(edge: Stack) -> None:
    job_id = await written(edge)
    assert "output" not in (await edge.call("GET", f"/api/jobs/{job_id}")).json["links"]
    assert links_of("job_x", "batch-embedding").output == "/api/jobs/job_x/output"


async def test_another_tenants_output_is_not_found(edge: Stack) -> None:
    job_id = await written(edge)
    _, key = await edge.tenant()
    assert (await edge.call("GET", f"/api/jobs/{job_id}/output", key=key)).status == 404


async def test_a_part_that_is_missing_or_short_cuts_the_answer(edge: Stack) -> None:
    """Given a part whose blob is gone, when the output is read, then the connection is cut at once, and
    no client takes what comes for the whole."""
    job_id = await written(edge, final=True)
    store = blobs_of(edge.settings)
    parts = await OutputsStore(edge.client, edge.keys).parts(job_id)
    await store.put(parts[2].blob, b"short\n")
    with pytest.raises(aiohttp.ClientError):
        await asyncio.wait_for(output(edge, job_id), 5)
    await store.delete(parts[1].blob)
    with pytest.raises(aiohttp.ClientError):
        await asyncio.wait_for(output(edge, job_id), 5)
    await store.delete(parts[0].blob)
    answer = await output(edge, job_id)
    assert (answer.status, answer.json["code"]) == (410, "gone")


async def test_a_client_that_goes_leaves_no_file_open(edge: Stack, monkeypatch: Any) -> None:
    open_streams = 0
    stream = LocalBlobs.stream

    async def counted(self: LocalBlobs, *arguments: Any) -> Any:
        nonlocal open_streams
        open_streams += 1
        try:
            async for piece in stream(self, *arguments):
                yield piece
        finally:
            open_streams -= 1

    monkeypatch.setattr(LocalBlobs, "stream", counted)
    job_id = await edge.submit(chat())
    await write(edge, job_id, 0, bytes(64 * 1024 * 1024))
    host, port = edge.base.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        f"GET /api/jobs/{job_id}/output HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ADMIN_KEY}\r\n\r\n".encode()
    )
    await reader.read(100_000)
    assert open_streams == 1
    writer.close()
    async with asyncio.timeout(5):
        while open_streams:
            await asyncio.sleep(0.01)


# -- written with its step -------------------------------------------------------------------------------------------


async def test_a_part_is_kept_with_its_result_once(edge: Stack) -> None:
    """Given a worker that lost its lease, then its part is not kept; of the owner's the first is, also when it is
    repeated; and none without a result."""
    job_id = await edge.submit(chat())
    outputs = OutputsStore(edge.client, edge.keys)
    usage = CallUsage(10)
    old = await lose(edge, "w1")
    with pytest.raises(LeaseLostError):
        await edge.events.finish_step(
            old, "w1", call="c-w1", usage=usage, result=b"{}", part=(0, "5 outputs/t/j/0-old"), **STEP
        )
    new = await claim(edge, "w2")
    for call, result in (("c2", None), ("c3", b"{}")):
        assert isinstance(
            await edge.events.begin_step(new, "w2", call=call, reserve=Reservation("m", 10), **STEP), Begun
        )
        assert await outputs.parts(job_id) == []
        await edge.events.finish_step(
            new, "w2", call=call, usage=usage, result=result, part=(0, f"5 outputs/t/j/0-{call}"), **STEP
        )
    await edge.events.finish_step(
        new, "w2", call="c3", usage=usage, result=b"{}", part=(1, "9 outputs/t/j/1-again"), **STEP
    )
    assert await outputs.parts(job_id) == [Part(0, 5, "outputs/t/j/0-c3")]


def test_the_run_without_a_gap() -> None:
    parts = [Part(number, 1, "x") for number in (0, 1, 3, 4)]
    assert [part.number for part in contiguous(parts)] == [0, 1]
    assert contiguous(parts[2:]) == []


# -- deleted with its job --------------------------------------------------------------------------------------------


async def test_blobs_die_with_their_job(edge: Stack) -> None:
    """Given a job with an input of its own and an output, when its retention is over, then both are deleted, and what
    another job has is not."""
    kept, job_id = await written(edge), await written(edge, final=True)
    tenant = (await edge.client.hget(edge.keys.job(job_id), "tenant")).decode()
    store = blobs_of(edge.settings)
    await store.put(f"inputs/{tenant}/abc", b"x")
    await store.put(f"inputs/{tenant}/folder/deep", b"x")
    await edge.client.hset(edge.keys.job(job_id), "blobs", f"inputs/{tenant}/abc inputs/{tenant}/folder")
    await edge.client.zadd(edge.keys.retention, {job_id: 1})
    assert await edge.jobs.sweep() == 1
    assert await edge.client.exists(edge.keys.output(job_id)) == 0
    assert await edge.client.scard(edge.keys.trash) == 3
    await asyncio.gather(disposal(edge).empty(), disposal(edge).empty())
    assert await edge.client.exists(edge.keys.trash) == 0
    left = [path for path in edge.settings.data_dir.rglob("*") if path.is_file()]
    assert len(left) == 3
    assert all(kept in str(path) for path in left)
    assert (await output(edge, job_id)).status == 410


async def test_a_job_without_blobs_leaves_no_trash(edge: Stack) -> None:
    job_id = await edge.submit(chat())
    await edge.call("DELETE", f"/api/jobs/{job_id}")
    await edge.client.zadd(edge.keys.retention, {job_id: 1})
    assert await edge.jobs.sweep() == 1
    assert await edge.client.exists(edge.keys.trash) == 0


async def test_what_was_written_but_not_kept_goes_too(edge: Stack) -> None:
    """Given a batch job whose only worker died between the blob and the step, then its prefix is deleted as well."""
    job_id = await written(edge, final=True)
    await edge.client.delete(edge.keys.output(job_id))
    await edge.client.hset(edge.keys.job(job_id), "type", "batch-embedding")
    await edge.client.zadd(edge.keys.retention, {job_id: 1})
    await edge.jobs.sweep()
    await disposal(edge).empty()
    assert [path for path in edge.settings.data_dir.rglob("*") if path.is_file()] == []


async def test_a_blob_store_that_fails_keeps_the_list(edge: Stack) -> None:
    """Given a store that is away, or cannot delete, then what is left is tried again; what is no key is dropped."""
    outputs = OutputsStore(edge.client, edge.keys)
    store = blobs_of(edge.settings)
    await store.put("outputs/t/job", b"x")
    await outputs.discard("outputs/t/job", "none", "outputs/../x")

    class Away(LocalBlobs):
        async def delete_prefix(self, prefix: str) -> None:
            raise BlobsUnavailableError("away")

    class Full(LocalBlobs):
        async def delete(self, key: str) -> None:
            raise OSError("no")

    await Disposal(outputs, Away(store.root)).empty()  # type: ignore[attr-defined]
    assert await edge.client.scard(edge.keys.trash) == 3
    await Disposal(outputs, Full(store.root)).empty()  # type: ignore[attr-defined]
    assert await edge.client.sismember(edge.keys.trash, "outputs/t/job")
    await Disposal(outputs, store).empty()
    assert await edge.client.exists(edge.keys.trash) == 0
    with pytest.raises(BlobMissingError):
        await store.get("outputs/t/job")


async def test_the_upkeep_of_both_sides_empties_the_list(make_stack: Any) -> None:
    for workers in ((), ("batch",)):
        stack: Stack = await make_stack(api=not workers)
        outputs = OutputsStore(stack.client, stack.keys)
        await blobs_of(stack.settings).put("outputs/t/job/0", b"x")
        await outputs.discard("outputs/t/job")
        if workers:
            await stack.start_worker("batch")
        else:
            await stack.start_api()
        async with asyncio.timeout(10):
            while await stack.client.exists(stack.keys.trash):
                await asyncio.sleep(0.02)


async def test_a_retry_keeps_the_output_and_one_from_the_start_drops_it(edge: Stack) -> None:
    """Given a job that failed with an output, when it is retried from the start, then the old parts are deleted, and
    what the new run writes meanwhile is not."""
    job_id = await written(edge, final=True)
    tenant = (await edge.client.hget(edge.keys.job(job_id), "tenant")).decode()
    await edge.call("POST", f"/api/jobs/{job_id}/retry")
    assert (await output(edge, job_id)).body == WHOLE
    await edge.call("DELETE", f"/api/jobs/{job_id}")
    await edge.call("POST", f"/api/jobs/{job_id}/retry", {"from": "start"})
    assert await edge.client.exists(edge.keys.output(job_id)) == 0
    new = await write(edge, job_id, 0, b"new\n")
    await disposal(edge).empty()
    assert (await output(edge, job_id)).body == b"new\n"
    files = [path for path in edge.settings.data_dir.rglob("*") if path.is_file()]
    assert [str(path.relative_to(edge.settings.data_dir / "blobs")) for path in files] == [new]
    assert new.startswith(output_prefix(tenant, job_id))
