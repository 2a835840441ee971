"""The `/dev/…` endpoints: how tests set what happens, and read what did, apart from the requests."""

from __future__ import annotations

import collections
from typing import Any

import msgspec
from aiohttp import web

from scripts.dev_model.profiles import PROFILES
from scripts.dev_model.state import PACE, PATHS, STATE, Faults, Limits


def _refused(message: str) -> web.Response:
    return web.json_response({"error": {"message": message}}, status=400)


async def set_faults(request: web.Request) -> web.Response:
    """POST /dev/faults: a list of faults for the next calls; replaces what was set."""
    faults = await request.json()
    for fault in faults:
        if fault.get("kind") not in Faults.KINDS:
            return _refused(f"kind must be one of {', '.join(Faults.KINDS)}")
        if fault.get("path") not in (None, *PATHS):
            return _refused(f"path must be one of {', '.join(PATHS)}")
    request.app[STATE].faults.queue = faults
    return web.json_response({"faults": len(faults)})


async def pace(request: web.Request) -> web.Response:
    """POST /dev/pace: `tokensPerSecond` (0: at once), `firstTokenSeconds` and `tokensPerChunk` (there are servers that
    join what they have made since the last chunk) of all chats."""
    wanted = await request.json()
    if not set(wanted) <= set(PACE) or wanted.get("tokensPerChunk", 1) < 1:
        return _refused(f"pace must be of {', '.join(PACE)}, and tokensPerChunk at least 1")
    request.app[STATE].pace.update(wanted)
    return web.json_response(request.app[STATE].pace)


async def limits(request: web.Request) -> web.Response:
    """GET /dev/limits; POST replaces them, what it does not name is without limit."""
    state = request.app[STATE]
    if request.method == "POST":
        try:
            wanted = msgspec.json.decode(await request.read(), type=Limits)
        except msgspec.DecodeError as error:
            return _refused(str(error))
        if not set(wanted.paths) <= set(PATHS):
            return _refused(f"paths must be of {', '.join(PATHS)}")
        state.set_limits(wanted)
    return web.json_response(msgspec.to_builtins(state.limits))


async def profile(request: web.Request) -> web.Response:
    """GET /dev/profile; POST chooses the server whose way of speaking is taken on."""
    state = request.app[STATE]
    if request.method == "POST":
        name = (await request.json()).get("profile")
        if name not in PROFILES:
            return _refused(f"profile must be one of {', '.join(PROFILES)}")
        state.profile = PROFILES[name]
    return web.json_response({"profile": state.profile.name})


async def stats(request: web.Request) -> web.Response:
    """GET /dev/stats: the count of calls and tokens; `?calls` lists them. DELETE clears it; `?calls` lists what it has
    cleared."""
    books = request.app[STATE].books
    cleared = books.clear() if request.method == "DELETE" else None
    ended = collections.Counter(call["ended"] for call in books.calls)
    summary: dict[str, Any] = {
        "calls": len(books.calls),
        "open": books.open.total(),
        "mostOpen": books.most_open,
        "refused": books.refused,
        "ended": dict(ended),
        "inputTokens": sum(call["inputTokens"] for call in books.calls),
        "outputTokens": sum(call["outputTokens"] for call in books.calls),
    }
    if "calls" in request.query:
        summary["list"] = books.calls if cleared is None else cleared
    return web.json_response(summary)
