"""All dashboards, in the order of their links."""

from __future__ import annotations

from typing import Final

from scripts.dashboards.jobs import JOBS
from scripts.dashboards.model import MODEL
from scripts.dashboards.overview import OVERVIEW
from scripts.dashboards.search import SEARCH
from scripts.dashboards.tenants import TENANTS

DASHBOARDS: Final = (OVERVIEW, JOBS, MODEL, TENANTS, SEARCH)
