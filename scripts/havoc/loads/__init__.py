"""The kinds of load beside jobs and chats. A further one is a class as `Load` says, and a line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from scripts.havoc.loads.approvals import Approvals
from scripts.havoc.loads.budgets import Budgets
from scripts.havoc.loads.documents import Documents
from scripts.havoc.loads.ground import Ground, Load
from scripts.havoc.loads.prompts import Prompts
from scripts.havoc.loads.sockets import Sockets
from scripts.havoc.loads.tenants import Tenants
from scripts.havoc.loads.uploads import Uploads
from scripts.havoc.loads.webhooks import Webhooks

LOADS: Final[Mapping[str, Callable[[Ground], Load]]] = {
    "documents": Documents,
    "uploads": Uploads,
    "prompts": Prompts,
    "tenants": Tenants,
    "budgets": Budgets,
    "approvals": Approvals,
    "sockets": Sockets,
    "webhooks": Webhooks,
}
KINDS: Final = ("jobs", "chats", *LOADS)
