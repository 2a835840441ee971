"""Search and ingest: times, memory, recall, beside the bare limits of the same run.

    ./scripts/run python -m scripts.bench.search [--chunks 1000 10000 100000] [--clients 1 20] [--queries 300]

The stack is that of `scripts/start` (Redis with `appendfsync always`, an API, one worker of both lanes), the embedding
model is the development model (256 dimensions) in a process of its own; the texts are made of words as rare as those of
natural language. `ingest` is from the first upload to the last job's end; `bare model` sends texts of the same length
to the same model, 16 requests at a time, and throws the vectors away. `errand` is `POST /api/search` with
`answer: false`, from the client's side; `bare` is the query's vector from the same model and a product with the float32
matrix in one process: what a search in vector mode cannot be below. Recall is of the ten best by vectors against that
product.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import time
from typing import Any

import aiohttp
import numpy as np
import redis

from scripts.bench.common import fsync_probe, percentile
from scripts.bench.embedding import resident_mb
from scripts.bench.jobs import Stack, whole_stack
from scripts.bench.stream import process
from scripts.dev_model.embedder import Embedder
from scripts.probes import free_port
from worker.search.chunks import cut

PER_DOCUMENT = 50  # chunks, about
UPLOADS = 16  # at a time
AT_ONCE = 16  # requests of the bare loop
BATCH = 128
DIMENSIONS = 256
MODES = ("hybrid", "vector", "keyword")


class Corpus:
    """Documents and queries, the same in each run."""

    def __init__(self) -> None:
        import wordllama

        folder = wordllama.__file__.rsplit("/", 1)[0]
        model = wordllama.WordLlama.load(cache_dir=folder, disable_download=True)
        vocabulary = [word.lstrip("▁").lstrip("Ġ").lower() for word in model.tokenizer.get_vocab()]
        self._words = sorted({word for word in vocabulary if word.isascii() and word.isalpha() and len(word) > 3})
        self._draw = random.Random(7)  # noqa: S311 - the same words in each run
        self._draw.shuffle(self._words)
        self._weights = [1 / (rank + 5) for rank in range(len(self._words))]

    def words(self, count: int) -> str:
        """Words by Zipf's law."""
        return " ".join(self._draw.choices(self._words, self._weights, k=count))

    def document(self, chunks: int) -> str:
        """A text of about so many chunks."""
        return "\n\n".join(f"{self.words(55).capitalize()}. {self.words(55).capitalize()}." for _ in range(chunks))


async def ingest(stack: Stack, corpus: Corpus, chunks: int) -> tuple[list[str], float]:
    """Uploads documents until there are about so many chunks; their texts and the seconds."""
    texts = [corpus.document(PER_DOCUMENT) for _ in range(max(1, chunks // PER_DOCUMENT))]
    slots = asyncio.Semaphore(UPLOADS)

    async def one(text: str) -> str:
        async with slots:
            answer = await stack.call("POST", "/api/documents", {"text": text})
            return str(answer["jobId"])

    started = time.perf_counter()
    jobs = await asyncio.gather(*(one(text) for text in texts))
    await asyncio.gather(*(stack.ended(job) for job in jobs))
    return texts, time.perf_counter() - started


async def bare_model(url: str, texts: list[str]) -> float:
    """Texts per second that the model embeds for a loop."""
    batches = [texts[at : at + BATCH] for at in range(0, len(texts), BATCH)]
    slots = asyncio.Semaphore(AT_ONCE)
    async with aiohttp.ClientSession() as session:

        async def one(batch: list[str]) -> None:
            async with slots:
                body = {"model": "errand-dev-embedding", "input": batch, "encoding_format": "base64"}
                async with session.post(f"{url}/v1/embeddings", json=body) as answer:
                    assert answer.status == 200
                    await answer.read()

        started = time.perf_counter()
        await asyncio.gather(*(one(batch) for batch in batches))
        return len(texts) / (time.perf_counter() - started)


async def search_times(stack: Stack, queries: list[str], mode: str, clients: int) -> tuple[list[float], list[Any]]:
    """Milliseconds of each search, so many at a time, and the answers."""
    times: list[float] = []
    answers: list[Any] = []
    left = iter(queries)

    async def client() -> None:
        for query in left:
            started = time.perf_counter()
            found = await stack.call("POST", "/api/search", {"q": query, "answer": False, "mode": mode, "minScore": 0})
            times.append((time.perf_counter() - started) * 1000)
            answers.append(found)

    await asyncio.gather(*(client() for _ in range(clients)))
    return times, answers


async def stages(stack: Stack) -> str:
    """What the last searches took at the worker, by the log: medians."""
    rows = (await stack.call("GET", "/api/search/log?limit=100"))["data"]
    names = ("queueMs", "embedMs", "retrieveMs", "textsMs", "tookMs")
    medians = [(name, statistics.median(row["timings"][name] for row in rows)) for name in names]
    return "at the worker, medians: " + ", ".join(f"{name} {value:.1f}" for name, value in medians)


async def bare_times(url: str, queries: list[str], matrix: Any) -> list[float]:
    """Milliseconds of the query's vector and a product with the matrix."""
    times = []
    async with aiohttp.ClientSession() as session:
        for query in queries:
            started = time.perf_counter()
            body = {"model": "errand-dev-embedding", "input": [query]}
            async with session.post(f"{url}/v1/embeddings", json=body) as answer:
                found = (await answer.json())["data"][0]["embedding"]
            cosines = matrix @ np.asarray(found, dtype=np.float32)
            np.argpartition(-cosines, min(50, len(cosines) - 1))
            times.append((time.perf_counter() - started) * 1000)
    return times


def recall(answers: list[Any], pieces: list[str], matrix: Any, embedder: Embedder) -> float:
    """Of the ten nearest chunks by the exact product, the share that the searches gave."""
    shares = []
    queries = embedder.embed([answer["query"] for answer in answers], DIMENSIONS)
    for answer, query in zip(answers, queries, strict=True):
        best = {pieces[at] for at in np.argsort(-(matrix @ query))[:10]}
        shares.append(len(best & {source["text"] for source in answer["sources"]}) / len(best))
    return statistics.mean(shares)


def line(name: str, times: list[float]) -> None:
    """Prints percentiles."""
    p50, p95 = statistics.median(times), percentile(times, 0.95)
    rate = f"{len(times) / (sum(times) / 1000):8.0f}/s one after another" if name.startswith("bare") else ""
    print(f"    {name:<28} p50 {p50:7.2f} ms   p95 {p95:7.2f} ms   {rate}")


async def measure(arguments: argparse.Namespace, url: str, chunks: int) -> None:
    """One size."""
    corpus, embedder = Corpus(), Embedder()
    async with whole_stack(lane="both", OPENAI_BASE_URL=f"{url}/v1", ERRAND_EMBEDDING_MODEL="errand-dev-embedding") as (
        stack,
        _,
    ):
        client: Any = redis.Redis.from_url(stack.redis_url)
        before_redis, before_worker = client.info("memory")["used_memory"], resident_mb(stack.worker.pid, "VmRSS")
        texts, took_s = await ingest(stack, corpus, chunks)
        pieces = [text[chunk.start : chunk.end] for text in texts for chunk in cut(text, 1_200)]
        limit = await bare_model(url, pieces[:20_000])
        print(
            f"  {len(pieces):,} chunks in {len(texts):,} documents\n    ingest {len(pieces) / took_s:8.0f} chunks/s, "
            f"{len(pieces) / took_s / limit:.0%} of the bare model ({limit:.0f} texts/s)"
        )
        await asyncio.sleep(1)
        indexed = await asyncio.to_thread(_index_bytes, client)
        await search_times(stack, [corpus.words(6)], "hybrid", 1)  # loads the index
        grown = resident_mb(stack.worker.pid, "VmRSS") - before_worker
        per = 100_000 / len(pieces) / 1e6
        print(
            f"    Redis {indexed * per:6.0f} MB of index per 100,000 chunks (all, with jobs and log: "
            f"{(client.info('memory')['used_memory'] - before_redis) * per:.0f} MB); worker {grown:.0f} MB more"
        )
        matrix = embedder.embed(pieces, DIMENSIONS)
        words = [corpus.words(6) for _ in range(arguments.queries)]
        line("bare: vector, product", await bare_times(url, words, matrix))
        for clients in arguments.clients:
            for mode in MODES:
                queries = [corpus.words(6) for _ in range(arguments.queries)]
                times, answers = await search_times(stack, queries, mode, clients)
                line(f"errand, {mode}, {clients} clients", times)
                print(f"      {await stages(stack)}")
                if mode == "vector" and clients == arguments.clients[0]:
                    print(f"      recall@10 {recall(answers, pieces, matrix, embedder):.4f}")
        client.close()


def _index_bytes(client: Any) -> int:
    """What the keys of indexes take."""
    size = 0
    for kind in ("pack", "vectors", "index", "changes", "chunks"):
        names = list(client.scan_iter(f"errand:{kind}:*", count=5_000))
        pipe = client.pipeline(transaction=False)
        for name in names:
            pipe.memory_usage(name, samples=0)
        size += sum(pipe.execute())
    return size


async def run(arguments: argparse.Namespace) -> None:
    """All sizes."""
    port = free_port("127.0.0.1")
    url = f"http://127.0.0.1:{port}"
    with process([sys.executable, "-m", "scripts.dev_model", "--port", str(port)]):
        async with aiohttp.ClientSession() as session:
            while True:
                try:
                    async with session.get(f"{url}/v1/models") as answer:
                        if answer.status == 200:
                            break
                except aiohttp.ClientConnectionError:
                    await asyncio.sleep(0.05)
        for chunks in arguments.chunks:
            await measure(arguments, url, chunks)
    print(f"  goal: 100,000 chunks, p50 without the answer at most 25 ms\n  {fsync_probe()}")


def main() -> int:
    """The command. Returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m scripts.bench.search", description=__doc__.partition("\n")[0])
    parser.add_argument("--chunks", type=int, nargs="+", default=[1_000, 10_000, 100_000], help="sizes, about")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 20], help="searches at a time (default 1 20)")
    parser.add_argument("--queries", type=int, default=300, help="of each kind (default %(default)s)")
    asyncio.run(run(parser.parse_args()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
