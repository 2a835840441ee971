"""Prompts with values in them. Nothing is spent."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from api.handlers.prompts import version_in
from api.keys import SETTINGS, TOKENS
from api.prompts import candidates, choose, length_of, name_of, off_loop
from api.wire import answer, query, read_json
from shared.prompts import Rendered, RenderRequest, render


async def render_prompt(request: web.Request) -> web.Response:
    """POST /api/prompts/{name}/render."""
    parameters = query(request, ("shared",))
    wanted, body = await read_json(request, RenderRequest)
    heads = await candidates(request, name_of(request), parameters)
    head, number, label = choose(heads, wanted.label, wanted.version)
    version = await version_in(request, head, number)
    messages: list[dict[str, Any]] = await off_loop(len(body) + length_of(version), render, version, wanted.variables)
    model = wanted.model or version.model or request.app[SETTINGS].default_model
    return answer(
        Rendered(
            name=head.name,
            version=number,
            label=label,
            messages=messages,
            model=model,
            tokens=await request.app[TOKENS].chat(model, messages),
        )
    )
