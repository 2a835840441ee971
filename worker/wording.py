"""What a job's prompts say: the versions that are pinned on it, filled with its values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from shared.errors import InvalidInput, RefusedError
from shared.prompt_defaults import DEFAULTS
from shared.prompt_names import PROMPTS
from shared.prompt_versions import Versions
from shared.prompts import Content, Parameters, Pin, render
from shared.specs import PromptRef


class Said(msgspec.Struct, frozen=True):
    """The messages of a prompt as a model takes them, and how it is to be asked."""

    messages: list[dict[str, Any]]
    parameters: Parameters = Parameters()

    @property
    def text(self) -> str:
        """All that it says, in one piece: for a place that takes one message only."""
        return "\n\n".join(str(message["content"]) for message in self.messages)

    def temperature(self, default: float | None) -> float | None:
        """The one to ask with."""
        return default if self.parameters.temperature is None else self.parameters.temperature


class Wording:
    """The prompts of one attempt. The same in every attempt of a run: versions never change."""

    def __init__(self, kind: str, pins: Sequence[Pin], ref: PromptRef | None, versions: Versions) -> None:
        """`ref` is the prompt that the job names, with its values."""
        self._names = PROMPTS.get(kind, ())
        self._pins = pins
        self._ref = ref
        self._versions = versions

    async def main(self) -> Said:
        """What the job's own prompt says, or the built-in one of its type; nothing where there is neither. Raises
        InvalidInput."""
        if self._ref is None:
            return await self.of(self._names[0]) if self._names else Said([])
        if not self._pins:
            raise InvalidInput(f"The prompt {self._ref.name!r} is not pinned on the job.")
        return self._fill(await self._content(self._pins[0]), self._ref.variables or {})

    async def of(self, name: str) -> Said:
        """What a built-in prompt says. A job of an older release has no pins: it gets what was shipped."""
        pin = next((pin for pin in self._pins if pin.name == name), None)
        return self._fill(await self._content(pin) if pin is not None else DEFAULTS[name], {})

    async def _content(self, pin: Pin) -> Content:
        found = await self._versions.get(pin.owner, pin.name, pin.version)
        if found is None:
            raise InvalidInput(f"The version {pin.spelled} of the job's prompt is gone.")
        return found

    @staticmethod
    def _fill(content: Content, values: dict[str, Any]) -> Said:
        try:
            messages: list[dict[str, Any]] = [dict(message) for message in render(content, values)]
        except RefusedError as error:
            raise InvalidInput(error.detail) from None
        return Said(messages, content.parameters or Parameters())
