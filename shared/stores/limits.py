"""The store of what limits say: how they stand just now."""

from __future__ import annotations

from shared.keys import Keys
from shared.limit_rows import LimitsState, state_of
from shared.limits import Standing, standing_of
from shared.redis import Redis, Scripts


class LimitsStore:
    """Reads only. Raises a member of OUTAGE when Redis is out of reach."""

    def __init__(self, client: Redis, keys: Keys) -> None:
        self.keys = keys
        self.scripts = Scripts(client, keys.prefix)

    async def standing(self, tenant: str, key: str, user: str | None = None) -> Standing | None:
        """How the limits of a tenant, a key and an end user stand; None where there are none."""
        reply = await self.scripts.run("standing", [], tenant=tenant, key=key, user=user)
        return standing_of(reply.decode())

    async def state(
        self, tenant: str, *, key: str | None = None, user: str | None = None, prompt: str | None = None
    ) -> LimitsState:
        """How all limits of a tenant, a key, an end user and a prompt (`name` or `name@version`) stand, at one
        instant."""
        reply = await self.scripts.run(
            "limits", [self.keys.tenant(tenant)], tenant=tenant, key=key, user=user, prompt=prompt
        )
        return state_of(reply)
