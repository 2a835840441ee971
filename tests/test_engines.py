"""What every vector engine does, of each engine that there is, on a real Redis."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from shared.keys import Keys
from shared.redis import OUTAGE, Redis, connect
from tests import redis8
from tests.conftest import RedisServer
from worker.search.engines import IndexName, Place
from worker.search.vset import VsetEngine, has_vector_sets
from worker.steady import steady


class Kind(NamedTuple):
    """An engine's class, which takes a client and keys, and whether it needs vector sets."""

    module: str
    cls: str
    redis8: bool


# One line for each engine; those whose module is not there yet are left out.
ENGINES = {
    name: kind
    for name, kind in {
        "vset": Kind("worker.search.vset", "VsetEngine", True),
        "exact": Kind("worker.search.exact", "ExactEngine", False),
    }.items()
    if importlib.util.find_spec(kind.module) is not None
}

COSINE = 0.02  # eight bits a component, of the query too
COMPONENT = 1 / 250  # half a step of the largest range


@pytest.fixture(scope="session")
def redis8_server(short_dir: Path) -> Iterator[RedisServer]:
    command = redis8.find()
    if command is None:
        pytest.skip(redis8.MISSING)
    server = redis8.Redis8Server(short_dir / "redis8", command)
    server.start()
    yield server
    server.stop()


@pytest.fixture(params=ENGINES)
def kind(request: pytest.FixtureRequest) -> Kind:
    return ENGINES[request.param]


@pytest.fixture
def server(kind: Kind, request: pytest.FixtureRequest) -> RedisServer:
    found: RedisServer = request.getfixturevalue("redis8_server" if kind.redis8 else "redis_server")
    return found


@pytest.fixture
def own_server(kind: Kind, short_dir: Path) -> Iterator[RedisServer]:
    """A server that this test alone may kill."""
    directory, command = short_dir / secrets.token_hex(4), redis8.find()
    if kind.redis8 and command is None:
        pytest.skip(redis8.MISSING)
    server = redis8.Redis8Server(directory, command or []) if kind.redis8 else RedisServer(directory)
    server.start()
    yield server
    server.stop()


def make(kind: Kind, client: Redis, prefix: str) -> Any:
    return getattr(importlib.import_module(kind.module), kind.cls)(client, Keys(prefix))


@pytest.fixture
async def client(server: RedisServer) -> AsyncIterator[Redis]:
    made = connect(server.url)
    yield made
    await made.aclose()


@pytest.fixture
def prefix() -> str:
    return f"t{secrets.token_hex(4)}:"


@pytest.fixture
def engine(kind: Kind, client: Redis, prefix: str) -> Any:
    return make(kind, client, prefix)


def name_of(dimensions: int = 32, **changes: Any) -> IndexName:
    return msgspec.structs.replace(IndexName("ten_1", "default", 1, dimensions), **changes)


def rows(count: int, dimensions: int = 32, seed: int = 0) -> Any:
    """Rows of length one."""
    made = np.random.default_rng([seed, count, dimensions]).standard_normal((count, dimensions)).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


async def all_of(engine: Any, index: IndexName, limit: int = 1_000) -> set[Place]:
    found = await engine.search(index, rows(1, index.dimensions, 99)[0], limit)
    places = {neighbour.place for neighbour in found}
    assert len(places) == len(found)
    return places


async def keys_of(client: Redis, prefix: str) -> set[bytes]:
    return {key async for key in client.scan_iter(f"{prefix}*", count=1_000)}


async def test_what_is_found_is_what_numpy_finds(engine: Any) -> None:
    index, vectors = name_of(256), rows(600, 256)
    for part in range(6):
        await engine.put(index, f"doc_{part}", 1, vectors[part * 100 : part * 100 + 100])
    for query in rows(20, 256, 1):
        truth = vectors @ query
        found = await engine.search(index, query, 10)
        assert len(found) == 10
        assert [hit.cosine for hit in found] == sorted((hit.cosine for hit in found), reverse=True)
        numbers = [int(hit.place.document_id[4:]) * 100 + hit.place.number for hit in found]
        assert [hit.place.revision for hit in found] == [1] * 10
        assert np.allclose([hit.cosine for hit in found], truth[numbers], atol=COSINE)
        assert truth[numbers].min() >= np.sort(truth)[-10] - COSINE


async def test_the_ten_nearest_of_clusters_are_found(engine: Any) -> None:
    """Recall of ten among 12,000 in 100 clusters: at least 0.95."""
    rng = np.random.default_rng(5)
    near = rows(100, 64)[rng.integers(0, 100, 12_000)] + rng.standard_normal((12_000, 64)).astype(np.float32) * 0.14
    near /= np.linalg.norm(near, axis=1, keepdims=True)
    index = name_of(64)
    for part in range(12):
        await engine.put(index, f"doc_{part}", 1, near[part * 1_000 : part * 1_000 + 1_000])
    hits = 0
    for query in near[rng.integers(0, 12_000, 50)]:
        truth = set(np.argsort(-(near @ query))[:10].tolist())
        found = await engine.search(index, query, 10)
        hits += len(truth & {int(hit.place.document_id[4:]) * 1_000 + hit.place.number for hit in found})
    assert hits / 500 >= 0.95


async def test_cosines_are_those_of_numpy_and_none_for_what_is_not_there(engine: Any) -> None:
    index, vectors, query = name_of(), rows(5), rows(1, seed=3)[0]
    await engine.put(index, "doc_a", 1, vectors)
    await engine.put(index, "doc_b", 2, vectors[::-1])
    places = [
        Place("doc_b", 2, 1),
        Place("doc_a", 1, 5),
        Place("doc_a", 1, 0),
        Place("doc_a", 2, 0),
        Place("doc_b", 2, 1),
    ]
    cosines = await engine.cosines(index, query, places)
    assert [cosine is None for cosine in cosines] == [False, True, False, True, False]
    truth = vectors @ query
    assert np.allclose([cosines[0], cosines[2], cosines[4]], [truth[3], truth[0], truth[3]], atol=COSINE)
    assert await engine.cosines(index, query, []) == []
    assert await engine.cosines(name_of(collection="other"), query, places[:2]) == [None, None]


async def test_vectors_come_back_within_quantisation(engine: Any) -> None:
    index, vectors = name_of(), rows(700)
    await engine.put(index, "doc_a", 3, vectors)
    found = await engine.vectors(index, "doc_a", 3, 700)
    assert found.shape == (700, 32)
    assert found.dtype == np.float32
    assert np.allclose(found, vectors, atol=COMPONENT)
    assert await engine.vectors(index, "doc_a", 3, 701) is None
    assert await engine.vectors(index, "doc_a", 2, 1) is None
    assert await engine.vectors(index, "doc_b", 3, 1) is None
    assert await engine.vectors(name_of(version=2), "doc_a", 3, 1) is None


async def test_what_comes_back_may_be_put_again(engine: Any) -> None:
    """As when a re-ingest reuses the vectors of chunks that did not change: they do not wander off."""
    index, vectors = name_of(), rows(20)
    await engine.put(index, "doc_a", 1, vectors)
    for revision in range(2, 6):
        found = await engine.vectors(index, "doc_a", revision - 1, 20)
        await engine.put(index, "doc_a", revision, found)
    assert np.allclose(await engine.vectors(index, "doc_a", 5, 20), vectors, atol=2 * COMPONENT)


async def test_put_twice_changes_nothing(engine: Any) -> None:
    index, vectors, query = name_of(), rows(40), rows(1, seed=3)[0]
    vectors[7] = 0
    await engine.put(index, "doc_a", 1, vectors)
    before = (
        await engine.search(index, query, 100),
        await engine.stats(index),
        await engine.vectors(index, "doc_a", 1, 40),
    )
    for _ in range(3):
        await engine.put(index, "doc_a", 1, vectors)
    after = (
        await engine.search(index, query, 100),
        await engine.stats(index),
        await engine.vectors(index, "doc_a", 1, 40),
    )
    assert before[:2] == after[:2]
    assert np.array_equal(before[2], after[2])


async def test_puts_at_the_same_time_all_arrive(engine: Any, kind: Kind, server: RedisServer, prefix: str) -> None:
    """Also of two processes, also twice the same."""
    index, other_client = name_of(), connect(server.url)
    other = make(kind, other_client, prefix)
    puts = [(each, f"doc_{number}") for number in range(12) for each in (engine, other)]
    await asyncio.gather(*(each.put(index, document, 1, rows(9, seed=int(document[4:]))) for each, document in puts))
    expected = {Place(f"doc_{document}", 1, number) for document in range(12) for number in range(9)}
    assert await all_of(engine, index) == expected
    assert await all_of(other, index) == expected
    await other_client.aclose()


async def test_what_one_process_writes_another_finds_at_once(
    engine: Any, kind: Kind, server: RedisServer, prefix: str
) -> None:
    index, other_client = name_of(), connect(server.url)
    other = make(kind, other_client, prefix)
    assert await all_of(other, index) == set()
    await engine.put(index, "doc_a", 1, rows(3))
    assert await all_of(other, index) == {Place("doc_a", 1, number) for number in range(3)}
    await engine.delete(index, "doc_a", 1, 3)
    assert await all_of(other, index) == set()
    await engine.put(index, "doc_a", 2, rows(2))
    await engine.drop(index)
    assert await all_of(other, index) == set()
    await other_client.aclose()


async def test_a_new_revision_stands_beside_the_old_one(engine: Any) -> None:
    index = name_of()
    await engine.put(index, "doc_a", 1, rows(4))
    await engine.put(index, "doc_a", 2, rows(6, seed=1))
    old, new = ({Place("doc_a", revision, number) for number in range(count)} for revision, count in ((1, 4), (2, 6)))
    assert await all_of(engine, index) == old | new
    await engine.delete(index, "doc_a", 1, 4)
    assert await all_of(engine, index) == new
    assert np.allclose(await engine.vectors(index, "doc_a", 2, 6), rows(6, seed=1), atol=COMPONENT)


async def test_delete_and_delete_again(engine: Any, client: Redis, prefix: str) -> None:
    index, vectors = name_of(), rows(70)
    vectors[3] = 0
    await engine.put(index, "doc_a", 1, vectors)
    await engine.put(index, "doc_b", 1, rows(1))
    for _ in range(2):
        await engine.delete(index, "doc_a", 1, 70)
        assert await all_of(engine, index) == {Place("doc_b", 1, 0)}
        assert await engine.vectors(index, "doc_a", 1, 70) is None
        assert (await engine.stats(index)).vectors == 1
    await engine.delete(index, "doc_c", 1, 5)
    await engine.delete(name_of(collection="none"), "doc_a", 1, 5)
    await engine.put(index, "doc_a", 1, vectors)
    assert len(await all_of(engine, index)) == 70


async def test_rows_of_zeros_are_never_found_and_come_back_as_zeros(engine: Any) -> None:
    index, vectors = name_of(), rows(6)
    vectors[[0, 4]] = 0
    await engine.put(index, "doc_a", 1, vectors)
    assert await all_of(engine, index) == {Place("doc_a", 1, number) for number in (1, 2, 3, 5)}
    assert np.allclose(await engine.vectors(index, "doc_a", 1, 6), vectors, atol=COMPONENT)
    await engine.put(index, "doc_z", 1, np.zeros((3, 32), np.float32))
    assert not {place for place in await all_of(engine, index) if place.document_id == "doc_z"}
    assert not (await engine.vectors(index, "doc_z", 1, 3)).any()
    await engine.delete(index, "doc_z", 1, 3)
    assert await engine.vectors(index, "doc_z", 1, 3) is None


async def test_nothing_is_in_an_empty_index(engine: Any, client: Redis, prefix: str) -> None:
    index = name_of()
    assert await engine.search(index, rows(1)[0], 5) == []
    assert await engine.cosines(index, rows(1)[0], [Place("doc_a", 1, 0)]) == [None]
    assert (await engine.stats(index)).vectors == 0
    assert (await engine.stats(index)).redis_bytes == 0
    await engine.put(index, "doc_a", 1, np.zeros((0, 32), np.float32))
    await engine.drop(index)
    assert await engine.search(index, rows(1)[0], 5) == []
    assert await keys_of(client, prefix) == set()


@pytest.mark.parametrize("limit", [1, 3, 7, 8, 50_000])
async def test_a_limit_may_be_larger_than_the_index(engine: Any, limit: int) -> None:
    index = name_of()
    await engine.put(index, "doc_a", 1, rows(7))
    assert len(await engine.search(index, rows(1, seed=2)[0], limit)) == min(limit, 7)


async def test_chunks_of_the_same_text_are_all_found(engine: Any) -> None:
    """A thousand equal vectors, and one that is not."""
    index, pair = name_of(), rows(2)
    await engine.put(index, "doc_a", 1, np.repeat(pair[:1], 1_000, axis=0))
    await engine.put(index, "doc_b", 1, pair[1:])
    assert (await engine.search(index, pair[1], 1))[0].place == Place("doc_b", 1, 0)
    assert len(await all_of(engine, index, 2_000)) == 1_001


async def test_other_tenants_collections_and_versions_are_never_touched_or_found(engine: Any) -> None:
    names = [
        name_of(tenant=tenant, collection=collection, version=version)
        for tenant in ("ten_1", "ten_2")
        for collection in ("default", "2:default", "other")
        for version in (1, 2)
    ]
    for number, index in enumerate(names):
        await engine.put(index, f"doc_{number}", 1, rows(3, seed=number))
    for number, index in enumerate(names):
        assert await all_of(engine, index) == {Place(f"doc_{number}", 1, at) for at in range(3)}
        assert (await engine.stats(index)).vectors == 3
    for number, index in enumerate(names):
        if number % 2:
            await engine.drop(index)
        else:
            await engine.delete(index, f"doc_{number}", 1, 3)
        left = [len(await all_of(engine, other)) for other in names]
        assert left == [0] * (number + 1) + [3] * (len(names) - number - 1)


@pytest.mark.parametrize(
    "collection",
    ["a b", "a:b", "1:default", "*", "[a]?", "{tag}", "Straße 東京 🚢", "line\nbreak", "nul\0byte", "x" * 200],
)
async def test_collections_may_have_odd_names(engine: Any, collection: str) -> None:
    index, beside = name_of(collection=collection), name_of(collection="plain")
    await engine.put(beside, "doc_a", 1, rows(1))
    await engine.put(index, "doc_a", 1, rows(3))
    assert len(await all_of(engine, index)) == 3
    assert await engine.vectors(index, "doc_a", 1, 3) is not None
    await engine.drop(index)
    assert await all_of(engine, index) == set()
    assert len(await all_of(engine, beside)) == 1


@pytest.mark.parametrize("dimensions", [1, 2, 3, 7, 8, 100, 256, 1_536, 3_072])
async def test_any_dimensions(engine: Any, dimensions: int) -> None:
    index, vectors = name_of(dimensions), rows(12, dimensions)
    await engine.put(index, "doc_a", 1, vectors)
    found = await engine.search(index, vectors[4], 12)
    assert len(found) == 12
    truth = vectors @ vectors[4]
    assert np.allclose([hit.cosine for hit in found], truth[[hit.place.number for hit in found]], atol=COSINE)
    assert found[0].cosine == pytest.approx(1, abs=COSINE)
    assert np.allclose(await engine.vectors(index, "doc_a", 1, 12), vectors, atol=COMPONENT)
    assert np.allclose(await engine.cosines(index, vectors[4], [Place("doc_a", 1, 4)]), [1], atol=COSINE)


async def test_opposite_vectors_have_a_negative_cosine(engine: Any) -> None:
    index, vectors = name_of(), rows(1)
    await engine.put(index, "doc_a", 1, vectors)
    assert (await engine.search(index, -vectors[0], 1))[0].cosine == pytest.approx(-1, abs=COSINE)
    assert await engine.cosines(index, -vectors[0], [Place("doc_a", 1, 0)]) == [pytest.approx(-1, abs=COSINE)]


async def test_drop_leaves_no_key(engine: Any, client: Redis, prefix: str) -> None:
    index, vectors = name_of(), rows(30)
    vectors[5] = 0
    await engine.put(index, "doc_a", 1, vectors)
    assert await keys_of(client, prefix)
    await engine.drop(index)
    await engine.drop(index)
    assert await keys_of(client, prefix) == set()
    assert (await engine.stats(index)).vectors == 0
    await engine.put(index, "doc_a", 1, vectors)
    assert len(await all_of(engine, index)) == 29


async def test_stats_count_vectors_and_bytes(engine: Any) -> None:
    index = name_of(256)
    await engine.put(index, "doc_a", 1, rows(100, 256))
    few = await engine.stats(index)
    await engine.put(index, "doc_b", 1, rows(900, 256))
    many = await engine.stats(index)
    assert (few.vectors, many.vectors) == (100, 1_000)
    assert 100 * 256 <= few.redis_bytes < many.redis_bytes
    assert 1_000 * 256 <= many.redis_bytes < 1_000 * 4_096


async def test_a_killed_redis_is_an_outage_and_keeps_what_was_put(
    kind: Kind, own_server: RedisServer, prefix: str
) -> None:
    index, vectors, query = name_of(), rows(200), rows(1, seed=2)[0]
    vectors[9] = 0
    client = connect(own_server.url)
    engine = make(kind, client, prefix)
    await engine.put(index, "doc_a", 1, vectors)
    await engine.put(index, "doc_b", 1, rows(3))
    await engine.delete(index, "doc_b", 1, 3)
    before = await engine.search(index, query, 5)
    own_server.kill()
    for attempt in (
        engine.put(index, "doc_c", 1, vectors),
        engine.delete(index, "doc_a", 1, 200),
        engine.drop(index),
        engine.stats(index),
        engine.vectors(index, "doc_a", 1, 200),
        engine.search(index, query, 5),
    ):
        with pytest.raises(OUTAGE):
            await attempt
    own_server.start()
    for each in (engine, make(kind, client, prefix)):
        after = await each.search(index, query, 5)
        assert [hit.place for hit in after] == [hit.place for hit in before]
        assert np.allclose(await each.vectors(index, "doc_a", 1, 200), vectors, atol=COMPONENT)
        assert {place.document_id for place in await all_of(each, index)} == {"doc_a"}
    await engine.put(index, "doc_a", 1, vectors)
    assert len(await all_of(engine, index)) == 199
    await client.aclose()


async def test_a_put_that_redis_cut_short_is_repeated(kind: Kind, own_server: RedisServer, prefix: str) -> None:
    index, vectors, client = name_of(), rows(3_000), connect(own_server.url)
    vectors[::100] = 0
    engine = make(kind, client, prefix)
    put = asyncio.create_task(engine.put(index, "doc_a", 1, vectors))
    async with asyncio.timeout(20):
        while not put.done() and not await keys_of(client, prefix):
            await asyncio.sleep(0)
    own_server.kill()
    await asyncio.wait([put])
    own_server.start()
    if put.exception() is not None:
        assert isinstance(put.exception(), OUTAGE)
    engine = steady(engine)  # as workers have it: a connection of before the kill is found out by its use
    await engine.put(index, "doc_a", 1, vectors)
    assert np.allclose(await engine.vectors(index, "doc_a", 1, 3_000), vectors, atol=COMPONENT)
    assert len(await all_of(engine, index, 5_000)) == 2_970
    await client.aclose()


async def test_a_full_redis_is_an_outage(kind: Kind, own_server: RedisServer, prefix: str) -> None:
    index, client = name_of(), connect(own_server.url)
    engine = make(kind, client, prefix)
    await engine.put(index, "doc_a", 1, rows(3))
    await client.config_set("maxmemory", "100kb")
    with pytest.raises(OUTAGE):
        await engine.put(index, "doc_b", 1, rows(3))
    assert len(await all_of(engine, index)) == 3
    await client.config_set("maxmemory", "0")
    await engine.put(index, "doc_b", 1, rows(3))
    assert len(await all_of(engine, index)) == 6
    await client.aclose()


async def test_a_cancelled_caller_leaves_the_connection_usable(engine: Any) -> None:
    index, vectors = name_of(), rows(500)
    for delay_s in (0, 0.001, 0.01):
        task = asyncio.create_task(engine.put(index, "doc_a", 1, vectors))
        await asyncio.sleep(delay_s)
        task.cancel()
        await asyncio.wait([task])
    await engine.put(index, "doc_a", 1, vectors)
    assert len(await all_of(engine, index)) == 500


INDEXES = [name_of(8), name_of(8, tenant="ten_2"), name_of(8, version=2), name_of(8, collection="1:default")]
which = st.sampled_from(INDEXES)
document = st.sampled_from(["doc_a", "doc_b", "doc_c"])
revision = st.integers(1, 3)


def model_machine(kind: Kind, url: str) -> type[RuleBasedStateMachine]:
    """The engine beside a dict of matrices."""

    class Machine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.runner = asyncio.Runner()
            self.client = connect(url)
            self.engine = make(kind, self.client, f"m{secrets.token_hex(6)}:")
            self.model: dict[IndexName, dict[tuple[str, int], Any]] = {index: {} for index in INDEXES}

        def run(self, awaited: Any) -> Any:
            return self.runner.run(awaited)

        def teardown(self) -> None:
            for index in INDEXES:
                self.run(self.engine.drop(index))
            self.run(self.client.aclose())
            self.runner.close()

        def present(self, index: IndexName) -> dict[Place, Any]:
            return {
                Place(document, revision, number): row
                for (document, revision), matrix in self.model[index].items()
                for number, row in enumerate(matrix)
                if row.any()
            }

        @rule(index=which, document=document, revision=revision, seeds=st.lists(st.integers(0, 6), max_size=6))
        def put(self, index: IndexName, document: str, revision: int, seeds: list[int]) -> None:
            """Seed 0 is a row of zeros; equal seeds are equal rows. A revision that is there is put again as it is."""
            made = np.array([rows(1, 8, seed)[0] * (seed > 0) for seed in seeds], np.float32).reshape(-1, 8)
            matrix = self.model[index].setdefault((document, revision), made)
            self.run(self.engine.put(index, document, revision, matrix))

        @rule(index=which, document=document, revision=revision)
        def delete(self, index: IndexName, document: str, revision: int) -> None:
            gone = self.model[index].pop((document, revision), np.zeros((2, 8)))
            self.run(self.engine.delete(index, document, revision, len(gone)))

        @rule(index=which)
        def drop(self, index: IndexName) -> None:
            self.model[index].clear()
            self.run(self.engine.drop(index))

        @rule(index=which, seed=st.integers(1, 20), limit=st.integers(1, 60))
        def search(self, index: IndexName, seed: int, limit: int) -> None:
            query, present = rows(1, 8, seed)[0], self.present(index)
            found = self.run(self.engine.search(index, query, limit))
            assert len({hit.place for hit in found}) == len(found) == min(limit, len(present))
            truth = sorted((float(row @ query) for row in present.values()), reverse=True)
            for hit, best in zip(found, truth, strict=False):
                assert abs(hit.cosine - float(present[hit.place] @ query)) <= COSINE
                assert abs(hit.cosine - best) <= COSINE

        @rule(index=which, document=document, revision=revision, seed=st.integers(1, 20))
        def cosines(self, index: IndexName, document: str, revision: int, seed: int) -> None:
            query, matrix = rows(1, 8, seed)[0], self.model[index].get((document, revision), np.zeros((0, 8)))
            places = [Place(document, revision, number) for number in range(len(matrix) + 1)]
            found = self.run(self.engine.cosines(index, query, places))
            assert found[-1] is None
            for cosine, row in zip(found, matrix, strict=False):
                if row.any():
                    assert abs(cosine - float(row @ query)) <= COSINE

        @rule(index=which, document=document, revision=revision)
        def vectors(self, index: IndexName, document: str, revision: int) -> None:
            matrix = self.model[index].get((document, revision))
            found = self.run(self.engine.vectors(index, document, revision, 1 if matrix is None else len(matrix)))
            assert (found is None) == (matrix is None)
            if matrix is not None:
                assert np.allclose(found, matrix, atol=COMPONENT)

        @invariant()
        def counts(self) -> None:
            for index in INDEXES:
                if all(matrix.any(axis=1).all() for matrix in self.model[index].values()):
                    assert self.run(self.engine.stats(index)).vectors == len(self.present(index))

    return Machine


def test_an_engine_is_a_dict_of_matrices(kind: Kind, server: RedisServer) -> None:
    """Any order of puts, deletes and drops over tenants, versions, collections and revisions."""
    run_state_machine_as_test(
        model_machine(kind, server.url),
        settings=settings(
            max_examples=30,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


async def test_a_server_without_vector_sets_is_recognised(redis_server: RedisServer) -> None:
    client = connect(redis_server.url)
    version = str((await client.info("server"))["redis_version"])
    assert await has_vector_sets(client) is (int(version.split(".")[0]) >= 8)
    await client.aclose()


async def test_a_server_with_vector_sets_is_recognised(redis8_server: RedisServer) -> None:
    """Also where the ACL refuses COMMAND and foreign keys; not where it refuses one of the commands."""
    client = connect(redis8_server.url)
    assert await has_vector_sets(client)
    for user, rules, expected in (
        ("narrow", ("~t:*", "+@all", "-command"), True),
        ("mute", ("~*", "+@all", "-vadd"), False),
    ):
        await client.execute_command("ACL", "SETUSER", user, "reset", "on", ">pw", *rules)
        other = connect(redis8_server.url.replace("unix://", f"unix://{user}:pw@"))
        assert await has_vector_sets(other) is expected
        await other.aclose()
        await client.execute_command("ACL", "DELUSER", user)
    assert await client.exists("errand:probe") == 0
    await client.aclose()


async def test_a_redis_that_cannot_be_reached_is_an_outage_to_the_probe(tmp_path: Path) -> None:
    client = connect(f"unix://{tmp_path}/none.sock")
    with pytest.raises(OUTAGE):
        await has_vector_sets(client)
    await client.aclose()


async def test_a_vector_set_writes_only_what_has_changed(redis8_server: RedisServer, prefix: str) -> None:
    client = connect(redis8_server.url)
    engine, index, vectors, names = VsetEngine(client, Keys(prefix)), name_of(), rows(50), "doc:with:colons"
    await engine.put(index, names, 1, vectors)
    changed = vectors.copy()
    changed[3], changed[4] = vectors[7], 0
    for matrix, writes in ((vectors, 0), (changed, 1), (changed, 0), (vectors, 2)):
        await client.config_resetstat()
        await engine.put(index, names, 1, matrix)
        written = (await client.info("commandstats")).get("cmdstat_VADD", {"calls": 0})["calls"]
        assert written == writes
        assert np.allclose(await engine.vectors(index, names, 1, 50), matrix, atol=COMPONENT)
        assert await all_of(engine, index) == {Place(names, 1, at) for at in range(50) if matrix[at].any()}
    await client.aclose()


async def test_a_vector_set_refuses_rows_of_another_length(redis8_server: RedisServer, prefix: str) -> None:
    client = connect(redis8_server.url)
    engine = VsetEngine(client, Keys(prefix))
    with pytest.raises(ValueError, match="do not fit"):
        await engine.put(name_of(32), "doc_a", 1, rows(2, 31))
    await client.aclose()


async def test_a_vector_set_says_how_much_there_is_where_memory_usage_is_refused(
    redis8_server: RedisServer, prefix: str
) -> None:
    client = connect(redis8_server.url)
    engine, index = VsetEngine(client, Keys(prefix)), name_of(256)
    await engine.put(index, "doc_a", 1, rows(200, 256))
    told = await engine.stats(index)
    await client.execute_command("ACL", "SETUSER", "blind", "reset", "on", ">pw", "~*", "+@all", "-memory")
    blind = connect(f"{redis8_server.url.replace('unix://', 'unix://blind:pw@')}")
    guessed = await VsetEngine(blind, Keys(prefix)).stats(index)
    assert guessed.vectors == told.vectors == 200
    assert told.redis_bytes / 2 < guessed.redis_bytes < told.redis_bytes * 2
    await blind.aclose()
    await client.execute_command("ACL", "DELUSER", "blind")
    await client.aclose()
