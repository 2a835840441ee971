"""Ends experiments whose guardrails are crossed. Every API process looks; the script lets one of them do it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import msgspec

from shared.audit import Action, Actor
from shared.errors import RefusedError
from shared.experiments import GuardrailAction
from shared.figures import crossed, experiment_view
from shared.log import get_logger
from shared.metrics import GUARDRAILS
from shared.redis import OUTAGE
from shared.stores.experiments import ExperimentsStore, running
from shared.stores.prompts import Change, PromptsStore

log = get_logger()

LOOK_S: Final = 2.0
# Not `system`: what a guardrail has done no shipped default goes over.
WATCH: Final = Change(by=Actor("guardrail"), promotes=True)


class Guardian:
    """Looks at the running experiments that have guardrails."""

    def __init__(
        self, prompts: PromptsStore, experiments: ExperimentsStore, forget: Callable[[str, str], None]
    ) -> None:
        """`forget(owner, name)`: this process must read the prompt's head again."""
        self._prompts = prompts
        self._experiments = experiments
        self._forget = forget

    async def run(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self.look()
            except OUTAGE:
                pass  # the next round
            except Exception:
                log.exception("guardian.failed")

    async def look(self) -> None:
        """Once at each. Raises a member of OUTAGE."""
        for owner, name, label in await self._experiments.guarded():
            head = await self._prompts.head(owner, name)
            experiment = running(head, label) if head is not None else None
            if head is None or experiment is None:
                continue
            sums = await self._experiments.sums(owner, experiment)
            for guardrail in experiment.guardrails:
                if not (arms := crossed(guardrail, experiment, sums)):
                    continue
                versions = ", ".join(str(experiment.variants[arm].version) for arm in arms)
                why = (
                    f"Guardrail: {guardrail.metric.value} of version {versions} is worse than the control's by more "
                    f"than {guardrail.worse_by:g}."
                )
                act = "roll_back" if guardrail.action is GuardrailAction.ROLLBACK else "stop"
                try:
                    await self._experiments.end(
                        head, label, act, WATCH, Action.GUARDRAIL_TRIPPED, why=why,
                        expected=f"{experiment.id} {experiment.rev}",
                        figures=msgspec.to_builtins(experiment_view(name, label, experiment, sums)),
                    )  # fmt: skip
                except RefusedError:
                    break  # another process, or a person, was faster
                self._forget(owner, name)
                GUARDRAILS.labels(guardrail.metric.value, guardrail.action.value).inc()
                log.warning("guardrail.crossed", owner=owner, prompt=name, label=label, experiment=experiment.id)
                break
