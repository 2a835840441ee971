"""Prompts with values in them. Nothing is spent."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from api.handlers.prompts import version_in
from api.keys import PRINCIPAL, SETTINGS, TOKENS
from api.pinning import assigned
from api.prompts import candidates, choose, length_of, name_of, off_loop
from api.wire import answer, query, read_json
from shared.jobs import ExperimentArm
from shared.prompts import Pin, Rendered, RenderRequest, render


async def render_prompt(request: web.Request) -> web.Response:
    """POST /api/prompts/{name}/render."""
    parameters = query(request, ("shared",))
    wanted, body = await read_json(request, RenderRequest)
    heads = await candidates(request, name_of(request), parameters)
    head, number, label = choose(heads, wanted.label, wanted.version)
    pin = Pin(head.name, number, head.owner)
    if label is not None:
        pin = assigned(head, label, request[PRINCIPAL].tenant, wanted.user, is_job=False)
    version = await version_in(request, head, pin.version)
    messages: list[dict[str, Any]] = await off_loop(len(body) + length_of(version), render, version, wanted.variables)
    model = wanted.model or version.model or request.app[SETTINGS].default_model
    shown = Rendered(
        name=head.name,
        version=pin.version,
        label=label,
        messages=messages,
        model=model,
        tokens=await request.app[TOKENS].chat(model, messages),
    )
    if pin.experiment is not None and pin.arm is not None:
        shown = msgspec.structs.replace(shown, experiment=ExperimentArm(id=pin.experiment, arm=pin.arm))
    return answer(shown)
