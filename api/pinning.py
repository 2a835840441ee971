"""Which version of a prompt a job gets: resolved once, when it is submitted, and pinned on it."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import msgspec

from shared.assignment import arm_of, is_covered
from shared.clock import monotonic_s
from shared.errors import RefusedError
from shared.experiments import Experiment, StickyBy
from shared.prompt_defaults import DEFAULTS
from shared.prompt_names import PROMPTS
from shared.prompt_versions import Versions
from shared.prompts import BUILT_IN, PRODUCTION, SHARED, Content, Pin, value_problems
from shared.specs import PromptRef, Submission, type_of
from shared.stores.prompt_records import Head
from shared.stores.prompts import PromptsStore

HEAD_S: Final = 0.8  # so long a head is believed without notice: with the read, a move is seen within a second
MOST_HEADS: Final = 5_000

_experiment: Final = msgspec.json.Decoder(Experiment).decode


class Chosen(msgspec.Struct, frozen=True):
    """The prompts of a job: their pins, the main one first where `has_main`; what its content says of the model."""

    pins: tuple[Pin, ...] = ()
    has_main: bool = False
    model: str | None = None
    characters: int = 0  # of the main prompt's messages
    most_tokens: int | None = None  # `maxTokens` of its parameters
    user: str | None = None  # the unit of an experiment that is sticky by user

    @property
    def main(self) -> Pin | None:
        """The prompt that the job's view shows."""
        return self.pins[0] if self.has_main else None


NOTHING: Final = Chosen()


class BadPromptError(Exception):
    """A reference leads nowhere: `problems` are (path below the reference, sentence)."""

    def __init__(self, problems: Sequence[tuple[str, str]]) -> None:
        super().__init__(problems)
        self.problems = problems


class Pinning:
    """Heads as this process knows them: until a notice, and never for longer than HEAD_S."""

    def __init__(self, store: PromptsStore) -> None:
        self.store = store
        self.versions = Versions(store)
        self._heads: OrderedDict[tuple[str, str], tuple[float, Head | None]] = OrderedDict()

    def forget(self, owner: str, name: str) -> None:
        """A notice: a label or an experiment of the prompt has changed."""
        self._heads.pop((owner, name), None)

    async def head(self, owner: str, name: str) -> Head | None:
        """Labels and experiments of a prompt; None when there is none. Raises a member of OUTAGE."""
        until_s, known = self._heads.get((owner, name), (0.0, None))
        if until_s > monotonic_s():
            return known
        asked_s = monotonic_s()
        head = await self.store.head(owner, name)
        if head is None and owner == SHARED and name in DEFAULTS:
            await self.store.seed(DEFAULTS)
            head = await self.store.head(owner, name)
        if head is not None and head.is_archived:
            head = None
        self._heads[owner, name] = (asked_s + HEAD_S, head)
        self._heads.move_to_end((owner, name))
        while len(self._heads) > MOST_HEADS:
            self._heads.popitem(last=False)
        return head

    async def resolve(
        self,
        tenant: str,
        name: str,
        *,
        version: int | None = None,
        label: str | None = None,
        user: str | None = None,
        is_job: bool = True,
    ) -> Pin:
        """The pin of a reference. `user` is the job's end user, None for none; without a job (`is_job`) there is no arm
        but a user's. Raises BadPromptError."""
        if version is not None and label is not None:
            raise BadPromptError([("", "`version` and `label` exclude each other")])
        heads = [await self.head(tenant, name)]
        if name.startswith(BUILT_IN):
            heads.append(await self.head(SHARED, name))
        there = [head for head in heads if head is not None]
        if not there:
            raise BadPromptError([(".name", f"there is no prompt {name!r}")])
        if version is not None:
            if version > there[0].versions:
                raise BadPromptError([(".version", f"the prompt has the versions 1 to {there[0].versions}")])
            return Pin(name, version, there[0].owner)
        wanted = label or PRODUCTION
        for head in there:
            if head.version_of(wanted) is not None:
                return assigned(head, wanted, tenant, user, is_job=is_job)
        if label is None:
            raise BadPromptError([("", f"the prompt has no label `{PRODUCTION}`: name a `label` or a `version`")])
        known = ", ".join(sorted({one for head in there for one in head.labels})) or "none"
        raise BadPromptError([(".label", f"the prompt has no label {label!r}; it has {known}")])

    async def content(self, pin: Pin) -> Content:
        """What a pinned version says. Raises RefusedError `not_found`."""
        found = await self.versions.get(pin.owner, pin.name, pin.version)
        if found is None:
            raise RefusedError("not_found", f"There is no version {pin.version} of the prompt {pin.name!r}.")
        return found

    async def choose(self, tenant: str, job: Submission, ref: PromptRef | None) -> Chosen:
        """The prompts of a job of this tenant; `ref` is the one that it names. Raises BadPromptError."""
        kind = type_of(job)
        if kind not in PROMPTS:
            if ref is not None:
                raise BadPromptError([("", f"a {kind} job takes no prompt")])
            return Chosen()
        pins: list[Pin] = []
        main: Content | None = None
        if ref is not None:
            pins.append(await self.resolve(tenant, ref.name, version=ref.version, label=ref.label, user=job.user))
            main = await self.content(pins[0])
            if wrong := value_problems(main, ref.variables or {}):
                raise BadPromptError([(f".variables.{name}", text) for name, text in wrong])
        names = PROMPTS[kind]
        for name in names[1:] if ref is not None else names:
            # One whose label was taken away: workers say what was shipped.
            with suppress(BadPromptError):
                # A job is counted for its main prompt: with the others it is in no experiment.
                is_main = ref is None and name == names[0]
                pins.append(await self.resolve(tenant, name, user=job.user if is_main else None, is_job=is_main))
        if main is None and pins and pins[0].name == names[0]:
            main = await self.content(pins[0])
        if main is None:
            return Chosen(tuple(pins))
        return Chosen(
            pins=tuple(pins),
            has_main=True,
            model=main.model,
            characters=sum(len(message.content) for message in main.messages) + _length(ref),
            most_tokens=main.parameters.max_tokens if main.parameters is not None else None,
            user=job.user,
        )


def _length(ref: PromptRef | None) -> int:
    return len(msgspec.json.encode(ref.variables)) if ref is not None and ref.variables else 0


def assigned(head: Head, label: str, tenant: str, user: str | None, *, is_job: bool) -> Pin:
    """The label's version, or the arm of the experiment that runs on it. See `Pinning.resolve`."""
    raw = head.experiments.get(label)
    version = head.version_of(label) or head.versions
    if raw is None:
        return Pin(head.name, version, head.owner, label)
    running = _experiment(raw)
    # A job is its own unit: its arm is pinned, and nobody asks for it again.
    # Users of two tenants may have one name, in an experiment on a shared prompt too.
    unit = user if user is None or head.owner == tenant else f"{tenant}\0{user}"
    if running.sticky_by is StickyBy.JOB:
        unit = secrets.token_hex(16) if is_job else None
    if unit is None or not is_covered(running.salt, unit, running.coverage):
        return Pin(head.name, version, head.owner, label)
    arm = arm_of(running.salt, unit, [variant.weight for variant in running.variants])
    return Pin(head.name, running.variants[arm].version, head.owner, label, running.id, arm, running.sticky_by.value)
