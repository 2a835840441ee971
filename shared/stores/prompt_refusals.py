"""What the scripts of prompts refuse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from shared.errors import RefusedError
from shared.prompts import BUILT_IN, MAX_ARCHIVED, MAX_LABELS, MAX_PROMPTS, MAX_VERSIONS, SHARED, Label
from shared.stores.jobs import mismatch
from shared.stores.records import being_deleted

_FULL: Final = {
    "prompts": f"There are {MAX_PROMPTS:,} prompts already (or {MAX_ARCHIVED:,} with those that were deleted).",
    "versions": f"The prompt has {MAX_VERSIONS:,} versions already.",
    "labels": f"A prompt has at most {MAX_LABELS} labels.",
}


def no_prompt(name: str) -> RefusedError:
    """There is none of this name."""
    return RefusedError("not_found", f"There is no prompt {name[:128]!r}.")


def refusal(owner: str, name: str, reply: Sequence[str]) -> RefusedError:
    """The refusal that a script of prompts replied."""
    match reply:
        case ["mismatch"]:
            return mismatch()
        case ["no_tenant"]:
            return RefusedError("unauthenticated", "The key's tenant does not exist any more.")
        case ["deleting", tenant]:
            return being_deleted(tenant)
        case ["full", what]:
            return RefusedError("conflict", _FULL[what])
        case ["protected", label]:
            return RefusedError(
                "scope_missing", f"The label {label!r} is protected, or would be: this takes the scope 'promote'."
            )
        case ["experiment"]:
            return RefusedError("conflict", "An experiment runs on it: promote one of its versions, or stop it first.")
    if owner != SHARED and name.startswith(BUILT_IN):
        return RefusedError(
            "not_found",
            f"You have no prompt {name!r} of your own: POST /api/prompts makes one. The one that all tenants have is "
            "changed with ?shared=true and the scope 'admin'.",
        )
    return no_prompt(name)


def stale(label: str, now: Label | None) -> RefusedError:
    """The label is not what the caller expects; `now` is what it is."""
    if now is None:
        return RefusedError("precondition_failed", f"There is no label {label!r}.")
    return RefusedError(
        "precondition_failed",
        f'The label {label!r} points at version {now.version}, and its ETag is "{now.rev}".',
        headers={"ETag": f'"{now.rev}"'},
    )
