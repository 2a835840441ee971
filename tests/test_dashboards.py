"""Dashboards and alerts: what is in deploy/ is what the code says, promtool takes it, and the runbook knows it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from scripts.dashboards.alerts import ALERTS
from scripts.dashboards.boards import DASHBOARDS
from scripts.dashboards.panels import Panel
from shared import metrics
from shared.fleet import FAMILIES

ROOT = Path(__file__).resolve().parent.parent
PROMETHEUS = ROOT / "deploy" / "prometheus"
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not here (Debian's package `prometheus`)")
EXPRESSIONS = [
    *((f"{board.uid}: {panel.title}", query.expr) for board in DASHBOARDS for panel in board.panels
      for query in panel.queries),
    *((alert.name, alert.expr) for alert in ALERTS),
]  # fmt: skip


def promtool(*arguments: str) -> str:
    """Its output; fails when it does."""
    done = subprocess.run([str(PROMTOOL), *arguments], capture_output=True, text=True, cwd=PROMETHEUS, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def names() -> set[str]:
    """Of all series that we serve."""
    found = {"up", "ALERTS", "process_cpu_seconds_total", "process_resident_memory_bytes"}
    for collector in vars(metrics).values():
        if isinstance(collector, MetricWrapperBase):
            for family in collector.describe():
                found |= {family.name + ending for ending in ("", "_total", "_info", "_bucket", "_count", "_sum")}
    return found | {family.name + ("_total" if family.kind == "counter" else "") for family in FAMILIES}


def test_the_files_are_what_the_code_says() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "scripts.dashboards", "--check"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("board", DASHBOARDS, ids=lambda board: board.uid)
def test_a_dashboard_is_whole(board: Any) -> None:
    """Given a dashboard's JSON, then no two of its panels lie on each other, and each has a query and a sentence."""
    found = json.loads((ROOT / "deploy" / "grafana" / "dashboards" / f"{board.uid}.json").read_text())
    places: set[tuple[int, int]] = set()
    for panel in found["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & places, panel["title"]
        assert at["x"] + at["w"] <= 24
        places |= cells
        if panel["type"] not in ("row", "text"):
            assert panel["description"]
            assert panel["targets"]
    assert len({panel["id"] for panel in found["panels"]}) == len(found["panels"])
    titles = [panel.title for row in board.rows for panel in row.panels if isinstance(panel, Panel)]
    assert len(titles) == len(set(titles))


def test_every_expression_is_about_metrics_that_there_are() -> None:
    known = names()
    for where, expr in EXPRESSIONS:
        used = set(re.findall(r"\b(?:errand|gen_ai|process)_[a-z_]+(?=[{\[) ]|$)", expr))
        labels = set(metrics.LABELS)
        assert used - labels <= known, f"{where}: {used - labels - known}"


def test_every_label_of_an_expression_is_one_of_ours() -> None:
    """Given the matchers and groupings of all expressions, and what legends quote, then each label exists: one that
    does not would show nothing, or 0, for ever."""
    known = set(metrics.LABELS) | {"le", "job", "instance", "version"}
    panels = [panel for board in DASHBOARDS for panel in board.panels]
    legends = [(panel.title, query.legend) for panel in panels for query in panel.queries]
    for where, text in [*EXPRESSIONS, *legends]:
        used = set(re.findall(r"{{(\w+)}}", text)) | set(re.findall(r"(\w+)(?:!=|=~|!~|=)\"", text))
        for group in re.findall(r"\b(?:by|on) \(([\w, ]*)\)", text):
            used |= {label.strip() for label in group.split(",") if label.strip()}
        assert used <= known, f"{where}: {used - known}"


@needs_promtool
def test_promtool_takes_the_configuration_and_the_rules() -> None:
    promtool("check", "rules", "alerts.yml")
    promtool("check", "config", "--syntax-only", "prometheus.yml")


@needs_promtool
def test_each_alert_fires_and_stays_quiet() -> None:
    assert "SUCCESS" in promtool("test", "rules", "alerts_test.yml")


@needs_promtool
def test_promtool_takes_every_expression(tmp_path: Path) -> None:
    """Given all expressions of all panels, as rules, then promtool finds nothing wrong with them."""
    rules = [
        {"record": f"test:{number}", "expr": expr.replace("$__rate_interval", "1m")}
        for number, (_, expr) in enumerate(EXPRESSIONS)
    ]
    path = tmp_path / "all.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", str(path))


def test_the_runbook_has_a_section_for_each_alert_and_no_other() -> None:
    text = (ROOT / "docs" / "runbook.md").read_text()
    alerts = text.partition("## Alerts")[2].partition("\n## ")[0]
    assert re.findall(r"^### (\w+)$", alerts, re.MULTILINE) == [alert.name for alert in ALERTS]
    for rule in yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"][0]["rules"]:
        assert rule["annotations"]["runbook_url"].endswith(f"docs/runbook.md#{rule['alert'].lower()}")
