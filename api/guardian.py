"""Ends experiments whose guardrails are crossed. Every API process looks; the script lets one of them do it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from shared.audit import Action, Actor
from shared.errors import RefusedError
from shared.experiments import ArmSums, Experiment, Guardrail, GuardrailAction
from shared.figures import crossed, experiment_view
from shared.log import get_logger
from shared.metrics import GUARDRAILS
from shared.redis import OUTAGE
from shared.stores.experiments import ExperimentsStore, running
from shared.stores.prompt_records import Head
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
            try:
                await self._look_at(owner, name, label)
            except OUTAGE:
                raise
            except Exception:
                log.exception("guardian.failed", owner=owner, prompt=name, label=label)  # the others are looked at

    async def _look_at(self, owner: str, name: str, label: str) -> None:
        head = await self._prompts.head(owner, name)
        experiment = running(head, label) if head is not None else None
        if head is None or experiment is None:
            return
        sums = await self._experiments.sums(owner, experiment)
        for guardrail in experiment.guardrails:
            if arms := crossed(guardrail, experiment, sums):
                await self._end(head, label, experiment, sums, guardrail, arms)
                return

    async def _end(
        self,
        head: Head,
        label: str,
        experiment: Experiment,
        sums: Sequence[ArmSums],
        guardrail: Guardrail,
        arms: Sequence[int],
    ) -> None:
        versions = [experiment.variants[arm].version for arm in arms]
        why = (
            f"Guardrail: {guardrail.metric.value} of version {', '.join(map(str, versions))} is worse than the "
            f"control's by more than {guardrail.worse_by:g}."
        )
        # Back only from a version that is bad: the control may just have been proved good.
        rolls = guardrail.action is GuardrailAction.ROLLBACK and head.version_of(label) in versions
        try:
            await self._experiments.end(
                head, label, "roll_back" if rolls else "stop", WATCH, Action.GUARDRAIL_TRIPPED, why=why,
                expected=f"{experiment.id} {experiment.rev}",
                figures=msgspec.to_builtins(experiment_view(head.name, label, experiment, sums)),
            )  # fmt: skip
        except RefusedError:
            return  # another process, or a person, was faster
        self._forget(head.owner, head.name)
        GUARDRAILS.labels(guardrail.metric.value, guardrail.action.value).inc()
        log.warning("guardrail.crossed", owner=head.owner, prompt=head.name, label=label, experiment=experiment.id)
