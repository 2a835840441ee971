"""What a dashboard is made of, and how Grafana wants it written (schema version 39, Grafana 11)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, Literal

import msgspec

SCHEMA: Final = 39
WIDTH: Final = 24  # columns of Grafana's grid
RATE: Final = "$__rate_interval"
RUNBOOK: Final = "https://github.com/errand/errand/blob/main/docs/runbook.md"  # yours to change: where you keep it
SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}

Kind = Literal["timeseries", "stat", "text"]


class Query(msgspec.Struct, frozen=True):
    """A PromQL expression, and what its lines are called (`{{label}}` stands for a label's value)."""

    expr: str
    legend: str = ""


class Panel(msgspec.Struct, frozen=True, kw_only=True):
    """One panel. `says` is what an operator reads at its (i): what it shows, and what to do when it is not as it should
    be. `unit` as Grafana names units. `warn` and `bad` colour it from these values on. `text`: Markdown in place of
    queries. `is_rare`: it shows nothing in a healthy installation, or 0."""

    title: str
    says: str
    queries: tuple[Query, ...] = ()
    kind: Kind = "timeseries"
    unit: str = "short"
    width: int = 8
    height: int = 8
    warn: float | None = None
    bad: float | None = None
    text: str = ""
    is_rare: bool = False
    stacked: bool = False


class Row(msgspec.Struct, frozen=True):
    """Panels below a heading."""

    title: str
    panels: tuple[Panel, ...]


class Dashboard(msgspec.Struct, frozen=True, kw_only=True):
    """One page."""

    uid: str
    title: str
    says: str
    rows: tuple[Row, ...]

    @property
    def panels(self) -> list[Panel]:
        """All of them."""
        return [panel for row in self.rows for panel in row.panels]


def grafana(dashboard: Dashboard, others: Sequence[Dashboard]) -> dict[str, Any]:
    """The dashboard as Grafana's JSON, with links to the others."""
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.says,
        "tags": ["errand"],
        "schemaVersion": SCHEMA,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": [{
            "name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus", "hide": 0,
            "current": {}, "options": [], "regex": "", "multi": False, "includeAll": False, "refresh": 1,
        }]},
        "annotations": {"list": [{
            "name": "Alerts", "enable": True, "hide": False, "iconColor": "red", "datasource": SOURCE,
            "expr": 'ALERTS{alertname=~"Errand.*", alertstate="firing"}', "titleFormat": "{{alertname}}",
            "step": "60s",
        }]},
        "links": [
            {"title": other.title, "type": "link", "url": f"/d/{other.uid}", "keepTime": True, "icon": "dashboard",
             "tags": [], "targetBlank": False, "asDropdown": False, "includeVars": True, "tooltip": other.says}
            for other in others if other.uid != dashboard.uid
        ] + [
            {"title": "Runbook", "type": "link", "url": RUNBOOK, "keepTime": False, "icon": "doc", "tags": [],
             "targetBlank": True, "asDropdown": False, "includeVars": False, "tooltip": "What to do when an alert fires."}
        ],
        "panels": list(_placed(dashboard)),
    }  # fmt: skip


def _placed(dashboard: Dashboard) -> Iterator[dict[str, Any]]:
    """Rows one below the other, their panels from left to right."""
    number, y = 1, 0
    for row in dashboard.rows:
        yield {"id": number, "type": "row", "title": row.title, "collapsed": False, "panels": [],
               "gridPos": {"h": 1, "w": WIDTH, "x": 0, "y": y}}  # fmt: skip
        number, y, x, lowest = number + 1, y + 1, 0, 0
        for panel in row.panels:
            if x + panel.width > WIDTH:
                y, x, lowest = y + lowest, 0, 0
            yield _panel(panel, number, x, y)
            number, x, lowest = number + 1, x + panel.width, max(lowest, panel.height)
        y += lowest


def _panel(panel: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    place = {"h": panel.height, "w": panel.width, "x": x, "y": y}
    common = {"id": number, "type": panel.kind, "title": panel.title, "description": panel.says, "gridPos": place}
    if panel.kind == "text":
        return {**common, "options": {"mode": "markdown", "content": panel.text}}
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if panel.warn is not None:
        steps.append({"color": "orange", "value": panel.warn})
    if panel.bad is not None:
        steps.append({"color": "red", "value": panel.bad})
    custom = {"fillOpacity": 30 if panel.stacked else 8, "showPoints": "never", "lineWidth": 1,
              "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
              "thresholdsStyle": {"mode": "line" if len(steps) > 1 else "off"}}  # fmt: skip
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0, "thresholds": {"mode": "absolute", "steps": steps}}
    options: dict[str, Any]
    if panel.kind == "timeseries":
        defaults["custom"] = custom
        defaults["color"] = {"mode": "palette-classic"}
        options = {"legend": {"displayMode": "table", "placement": "bottom", "calcs": ["mean", "max"]},
                   "tooltip": {"mode": "multi", "sort": "desc"}}  # fmt: skip
    else:
        defaults["color"] = {"mode": "thresholds"}
        options = {"colorMode": "value", "graphMode": "area", "textMode": "auto", "justifyMode": "auto",
                   "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}}  # fmt: skip
    targets = [
        {"refId": chr(65 + place), "datasource": SOURCE, "expr": query.expr, "legendFormat": query.legend or "__auto",
         "editorMode": "code", "range": True}
        for place, query in enumerate(panel.queries)
    ]  # fmt: skip
    return {**common, "datasource": SOURCE, "targets": targets, "options": options,
            "fieldConfig": {"defaults": defaults, "overrides": []}}  # fmt: skip
