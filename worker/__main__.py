"""`python -m worker [batch|interactive|both]`: runs jobs until SIGINT or SIGTERM. Exit code 2 when a setting or Redis
is wrong."""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys
from collections.abc import Mapping, Sequence

from prometheus_client import start_http_server

from shared import tracing
from shared.blobs import blobs_of
from shared.collections import VSET
from shared.errors import ConfigurationError
from shared.keys import Keys
from shared.log import configure, get_logger
from shared.metrics import REGISTRY, count_tasks
from shared.prices import PriceBook
from shared.prompt_versions import Versions
from shared.redis import connect, wait_until_durable
from shared.settings import Settings
from shared.specs import Lane
from shared.stores.documents import DocumentsStore
from shared.stores.erasure import ErasureStore
from shared.stores.indexes import IndexesStore
from shared.stores.prompts import PromptsStore
from shared.stores.schema import require_readable
from shared.stores.searches import SearchesStore
from shared.tokens import TokenCounter
from shared.workers import advertised
from worker.context import Deps
from worker.documents.library import Library
from worker.engine import Engine
from worker.execution import Handler
from worker.model.client import Model
from worker.search.exact import ExactEngine
from worker.search.replica import Replicas
from worker.search.rerank import reranker_of
from worker.search.texts import Texts
from worker.search.vset import VsetEngine
from worker.steady import steady
from worker.tasks import HANDLERS
from worker.tools.registry import Toolbox

log = get_logger()


def build(
    settings: Settings,
    lanes: Sequence[str],
    *,
    handlers: Mapping[str, Handler] = HANDLERS,
    handle_signals: bool = True,
    metrics: str | None = None,
) -> Engine:
    """An engine with its connections; call it inside the loop that will run it. `handlers` by job type; `metrics`:
    where this process serves its own, `host:port`."""
    client = connect(settings.redis_url)
    blobs = blobs_of(settings)
    keys = Keys(settings.redis_prefix)
    documents = steady(DocumentsStore(client, keys))
    library = Library(settings, documents, blobs)
    indexes, exact = steady(IndexesStore(client, keys)), steady(ExactEngine(client, keys))
    deps = Deps(
        settings=settings,
        model=Model(settings),
        blobs=blobs,
        documents=documents,
        erasures=steady(ErasureStore(client, keys)),
        library=library,
        tools=Toolbox(settings, library),
        counter=TokenCounter(),
        prices=PriceBook(settings.prices, settings.openai_base_url),
        versions=Versions(steady(PromptsStore(client, keys))),
        indexes=indexes,
        engines={exact.name: exact, VSET: steady(VsetEngine(client, keys))},
        texts=Texts(blobs),
        reranker=reranker_of(settings),
        searches=steady(SearchesStore(client, keys)),
        replicas=Replicas(indexes, exact, settings.search_memory_mb * 1024 * 1024),
    )
    return Engine(
        handlers,
        lanes=lanes,
        settings=settings,
        client=client,
        subscriber=connect(settings.redis_url, timeout_s=None),
        deps=deps,
        handle_signals=handle_signals,
        metrics=metrics,
    )


def main(handlers: Mapping[str, Handler] = HANDLERS) -> int:
    """The process, with `handlers` by job type. Returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m worker",
        description="Run jobs of one lane, or of both: then interactive jobs go first, and "
        "ERRAND_RESERVED_INTERACTIVE_SLOTS of the ERRAND_WORKER_SLOTS are kept for them. On SIGTERM: finish within "
        "ERRAND_DRAIN_SECONDS, hand the rest back.",
    )
    parser.add_argument("lane", nargs="?", default="batch", choices=[*(lane.value for lane in Lane), "both"])
    lane = parser.parse_args().lane
    lanes = [Lane.INTERACTIVE.value, Lane.BATCH.value] if lane == "both" else [lane]
    try:
        settings = Settings.load()
    except ConfigurationError as error:
        sys.stderr.write(f"errand: {error}\n")
        return 2
    configure(settings.log_format, settings.log_level, f"worker-{lane}")
    try:
        tracing.configure(settings, f"worker-{lane}")
    except ConfigurationError as error:
        sys.stderr.write(f"errand: {error}\n")
        return 2
    try:
        import uvloop

        loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    except ImportError:  # no wheel for this platform: asyncio's own loop does the same, more slowly
        loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    count_tasks(loop)
    try:
        found = loop.run_until_complete(wait_until_durable(settings.redis_url, allow_volatile=settings.allow_volatile))
        loop.run_until_complete(require_readable(settings))
    except ConfigurationError as error:
        sys.stderr.write(f"errand: {error}\n")
        return 2
    for text in (*found.unknown, *found.wrong):
        log.warning("redis.durability_doubted", detail=text)
    try:
        server, _ = start_http_server(
            settings.worker_metrics_port, addr=settings.worker_metrics_host, registry=REGISTRY
        )
    except OSError as error:
        sys.stderr.write(
            f"errand: the worker cannot serve its metrics on {settings.worker_metrics_host}:"
            f"{settings.worker_metrics_port}: {error.strerror}. Each worker on a host needs a port of its own: set "
            "ERRAND_WORKER_METRICS_PORT to 0, and Prometheus finds it by GET /metrics/sd\n"
        )
        return 2
    log.info("metrics.serving", address=advertised(settings, server.server_port))

    async def make() -> Engine:
        return build(settings, lanes, handlers=handlers, metrics=advertised(settings, server.server_port))

    try:
        engine = loop.run_until_complete(make())
    except ConfigurationError as error:
        sys.stderr.write(f"errand: {error}\n")
        return 2
    # What stands now stays: the collector need not walk through the libraries again and again (a fifth of the CPU of
    # a worker with many small jobs).
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    try:
        engine.run()
    finally:
        tracing.close(tracing.CLOSE_S)
    return 0


if __name__ == "__main__":
    sys.exit(main())
