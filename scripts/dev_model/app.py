"""The server's routes."""

from __future__ import annotations

from aiohttp import web

from scripts.dev_model import controls
from scripts.dev_model.answer import CHAT_MODEL
from scripts.dev_model.chat import chat
from scripts.dev_model.embeddings import EMBEDDING_MODEL, embeddings
from scripts.dev_model.state import STATE, Limits, State


async def models(request: web.Request) -> web.Response:
    """GET /v1/models."""
    return web.json_response(
        {
            "object": "list",
            "data": [
                {"id": name, "object": "model", "created": 1_700_000_000, "owned_by": "errand-development"}
                for name in (CHAT_MODEL, EMBEDDING_MODEL)
            ],
        }
    )


async def health(request: web.Request) -> web.Response:
    """GET /healthz."""
    return web.json_response({"status": "ok", "model": CHAT_MODEL})


def create_app(
    *,
    tokens_per_second: float = 0.0,
    first_token_s: float = 0.0,
    in_flight: int | None = None,
    latency_s: float = 0.0,
    tokens_per_chunk: int = 1,
) -> web.Application:
    """The server. Speed 0 answers at once; more than `in_flight` calls are refused; embeddings take
    `latency_s`."""
    app = web.Application(client_max_size=256 * 1024 * 1024, handler_args={"handler_cancellation": True})
    app[STATE] = State(
        {"tokensPerSecond": tokens_per_second, "firstTokenSeconds": first_token_s, "tokensPerChunk": tokens_per_chunk},
        Limits(in_flight=in_flight, latency_seconds=latency_s),
    )
    app.router.add_post("/v1/chat/completions", chat)
    app.router.add_post("/v1/embeddings", embeddings)
    app.router.add_get("/v1/models", models)
    app.router.add_post("/dev/faults", controls.set_faults)
    app.router.add_post("/dev/pace", controls.pace)
    for path, handler in (("/dev/limits", controls.limits), ("/dev/profile", controls.profile)):
        app.router.add_get(path, handler)
        app.router.add_post(path, handler)
    app.router.add_get("/dev/stats", controls.stats)
    app.router.add_delete("/dev/stats", controls.stats)
    app.router.add_get("/healthz", health)
    return app
