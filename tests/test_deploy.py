"""What lies in deploy/ is held to the tools of its kind where they are here, and to our own settings and time-outs."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from api.__main__ import SHUTDOWN_S
from scripts import embedded_redis
from scripts.probes import free_port
from shared.errors import ConfigurationError
from shared.redis import wait_until_durable
from shared.redis_url import read_address
from shared.settings import Settings
from tests.test_image import ENVIRONMENT
from worker.engine import RELEASE_S

DEPLOY = Path(__file__).parents[1] / "deploy"
MANIFESTS = DEPLOY / "kubernetes"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))


def tool(name: str) -> str | None:
    """A program beside this Python or on the PATH."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)


def run(*command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


def needs(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(tool(name) is None, reason=f"{name} is not on this machine")


def variables(path: Path) -> dict[str, str]:
    """An environment file, as systemd and compose read such lines."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def objects() -> Iterator[dict[str, Any]]:
    for path in sorted(MANIFESTS.glob("*.yaml")):
        yield from yaml.safe_load_all(path.read_text())


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [found for found in objects() if found["kind"] == kind]


# -- what each kind's own tool says


@needs("hadolint")
def test_the_dockerfile_has_no_findings() -> None:
    done = run(str(tool("hadolint")), str(DEPLOY / "Dockerfile"))
    assert (done.returncode, done.stdout) == (0, "")


@needs("check-jsonschema")
def test_the_compose_file_is_one() -> None:
    done = run(str(tool("check-jsonschema")), "--builtin-schema", "vendor.compose-spec", str(DEPLOY / "compose.yaml"))
    assert done.returncode == 0, done.stdout


@needs("kubernetes-validate")
def test_the_manifests_are_what_kubernetes_takes() -> None:
    """Strictly: a member that the schema does not know is refused. Kinds of KEDA and the Prometheus Operator are not in
    these schemas; they were held to the operators' own once (docs/scaling.md)."""
    for path in sorted(MANIFESTS.glob("*.yaml")):
        done = run(str(tool("kubernetes-validate")), "--strict", "-k", "1.31", str(path))
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine on which the units are installed, as far as systemd-analyze looks."""
    system = tmp_path / "etc/systemd/system"
    system.mkdir(parents=True)
    for path in (DEPLOY / "systemd").iterdir():
        shutil.copy(path, system)
    for name in ("sysinit", "basic", "shutdown", "network-online", "multi-user"):
        (system / f"{name}.target").write_text(f"[Unit]\nDescription={name}\n")
    (system / "redis-server.service").write_text("[Service]\nExecStart=/usr/bin/env\n")
    for program in ("opt/errand/bin/python", "usr/bin/env"):
        (tmp_path / program).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / program).write_text("#!/bin/sh\n")
        (tmp_path / program).chmod(0o755)
    return tmp_path


@needs("systemd-analyze")
def test_the_units_are_what_systemd_takes(root: Path) -> None:
    analyze = str(tool("systemd-analyze"))
    for path in UNITS:
        unit = path.name.replace("@", "@1")
        done = run(analyze, "verify", "--man=no", "--recursive-errors=no", f"--root={root}", unit)
        assert (done.returncode, done.stderr) == (0, ""), unit
    broken = root / "etc/systemd/system" / UNITS[0].name
    broken.write_text(broken.read_text().replace("KillMode=", "KillMod="))
    assert "KillMod" in run(analyze, "verify", "--man=no", f"--root={root}", UNITS[0].name.replace("@", "@1")).stderr


@needs("systemd-analyze")
def test_the_units_are_hardened(root: Path) -> None:
    """`systemd-analyze security` counts exposure from 0 (sealed) to 10 (nothing is held back)."""
    for path in UNITS:
        done = run(str(tool("systemd-analyze")), "security", "--offline=true", f"--root={root}", path.name)
        exposure = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
        assert exposure is not None, done.stdout + done.stderr
        assert float(exposure[1]) <= 2.0, done.stdout


@needs("promtool")
def test_the_scaling_queries_count_the_queue_once_and_every_slot(tmp_path: Path) -> None:
    """Given three API processes that each report the same queue, and two workers, then a query gives what waits, once,
    and what runs, of all."""
    queries = [
        trigger["metadata"]["query"] for found in of_kind("ScaledObject") for trigger in found["spec"]["triggers"]
    ]
    assert len(queries) == 2
    for lane, query in zip(("batch", "interactive"), queries, strict=True):
        labels = f'namespace="errand", lane="{lane}"'
        series = [
            {"series": f'errand_queue_jobs{{{labels}, priority="{priority}", pod="web-{pod}"}}', "values": str(jobs)}
            for pod in range(3)
            for priority, jobs in (("high", 5), ("normal", 30), ("low", 0))
        ]
        series += [
            {"series": f'errand_worker_slots_busy{{{labels}, pod="{lane}-{pod}"}}', "values": "20"} for pod in range(2)
        ]
        other = f'errand_queue_jobs{{lane="{lane}", priority="low", namespace="other"}}'
        series.append({"series": other, "values": "900"})
        path = tmp_path / f"{lane}.yaml"
        expected = [{"expr": query, "eval_time": "0m", "exp_samples": [{"labels": "{}", "value": 75}]}]
        tests = {"tests": [{"interval": "1m", "input_series": series, "promql_expr_test": expected}]}
        path.write_text(json.dumps(tests))
        done = run(str(tool("promtool")), "test", "rules", str(path))
        assert done.returncode == 0, done.stdout + done.stderr


# -- what they set, held to what the code reads and how long it takes


def kubernetes_environment() -> dict[str, str]:
    (config,), (secret,) = of_kind("ConfigMap"), of_kind("Secret")
    return {**ENVIRONMENT, **config["data"], **secret["stringData"]}


def compose_environment() -> dict[str, str]:
    return {**ENVIRONMENT, **variables(DEPLOY / "compose.env.example"), **COMPOSE["x-errand"]["environment"]}


def systemd_environment() -> dict[str, str]:
    return variables(DEPLOY / "systemd" / "errand.env")


@pytest.mark.parametrize("environment", [kubernetes_environment, compose_environment, systemd_environment])
def test_every_variable_is_a_setting(environment: Any) -> None:
    """An `ERRAND_…` that is none stops the start, and a REDIS_URL must be an address."""
    settings = Settings.load(environment())
    read_address(settings.redis_url)
    with pytest.raises(ConfigurationError, match="ERRAND_WEB_PORT"):
        Settings.load({**environment(), "ERRAND_WEB_PORT": "tcp://10.0.0.1:80"})


def test_kubernetes_adds_no_variables_of_services() -> None:
    """A Service `errand-web` would put ERRAND_WEB_PORT into every pod, which the settings refuse."""
    assert [found["metadata"]["name"] for found in of_kind("Service")] == ["errand-web"]
    for found in of_kind("Deployment"):
        assert found["spec"]["template"]["spec"]["enableServiceLinks"] is False


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))


def test_everything_waits_for_the_drain() -> None:
    """Whoever sends the SIGTERM waits for the drain and the handing back, or for an API process's last requests, and
    some seconds more, before SIGKILL."""
    drain_s = Settings.load(kubernetes_environment()).drain_seconds
    for found in of_kind("Deployment"):
        pod = found["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        is_web = container["args"] == ["python", "-m", "api"]
        paused = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["sleep", "0"])
        needed_s = float(paused[1]) + (SHUTDOWN_S if is_web else drain_s + RELEASE_S)
        assert pod["terminationGracePeriodSeconds"] >= needed_s + 5, found["metadata"]["name"]
    drain_s = Settings.load(systemd_environment()).drain_seconds
    for unit in UNITS:
        stop = re.search(r"^TimeoutStopSec=(\d+)$", unit.read_text(), re.MULTILINE)
        assert stop is not None
        needed_s = SHUTDOWN_S if "web" in unit.name else drain_s + RELEASE_S
        assert float(stop[1]) >= needed_s + 5, unit.name
    drain_s = Settings.load(compose_environment()).drain_seconds
    for name in ("web", "worker", "interactive"):
        assert seconds(COMPOSE["services"][name]["stop_grace_period"]) >= drain_s + RELEASE_S + 5


def test_secrets_stand_in_no_unit_and_no_command() -> None:
    for name in ("web", "worker", "interactive"):
        service = COMPOSE["services"][name]
        assert service["env_file"] == "compose.env"
        assert not [key for key in service["environment"] if re.search("KEY|PASSWORD|TOKEN|SECRET", key)]
        assert service["read_only"] is True
    for unit in UNITS:
        text = unit.read_text()
        assert "EnvironmentFile=/etc/errand/errand.env" in text
        assert not re.search(r"^Environment=", text, re.MULTILINE)
    for found in of_kind("Deployment"):
        (container,) = found["spec"]["template"]["spec"]["containers"]
        assert container["envFrom"] == [{"configMapRef": {"name": "errand"}}, {"secretRef": {"name": "errand"}}]
    assert "secret.example.yaml" not in of_kind("Kustomization")[0]["resources"]


def test_the_kustomization_names_what_is_there() -> None:
    (found,) = of_kind("Kustomization")
    there = {path.name for path in MANIFESTS.glob("*.yaml")} - {"kustomization.yaml", "secret.example.yaml"}
    assert set(found["resources"]) == there


def test_what_points_at_pods_finds_them() -> None:
    """Services, budgets, policies, monitors and scalers each select at least one Deployment."""
    pods = {
        found["metadata"]["name"]: found["spec"]["template"]["metadata"]["labels"] for found in of_kind("Deployment")
    }

    def selected(selector: dict[str, Any]) -> list[str]:
        wanted, among = selector.get("matchLabels", selector), selector.get("matchExpressions", [])
        return [
            name
            for name, labels in pods.items()
            if wanted.items() <= labels.items() and all(labels[one["key"]] in one["values"] for one in among)
        ]

    for found in objects():
        spec = found.get("spec", {})
        if found["kind"] in ("Service", "Deployment", "PodDisruptionBudget"):
            assert selected(spec["selector"]) == [found["metadata"]["name"]]
        if found["kind"] == "NetworkPolicy":
            assert selected(spec["podSelector"]), found["metadata"]["name"]
        if found["kind"] in ("ScaledObject", "HorizontalPodAutoscaler"):
            assert spec["scaleTargetRef"]["name"] in pods
    assert selected(of_kind("PodMonitor")[0]["spec"]["selector"]) == ["errand-worker", "errand-interactive"]
    assert selected(of_kind("ServiceMonitor")[0]["spec"]["selector"]) == ["errand-web"]


def test_the_redis_of_the_compose_file_is_durable(tmp_path: Path) -> None:
    """The command of the compose file, run: the start's check finds nothing wrong with it."""
    name, *options = COMPOSE["services"]["redis"]["command"]
    assert name == "redis-server"
    port = free_port("127.0.0.1")
    server = subprocess.Popen(
        [embedded_redis.find_server(), *options, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(tmp_path)],
        stdout=subprocess.DEVNULL,
    )
    try:
        found = asyncio.run(wait_until_durable(f"redis://127.0.0.1:{port}/0", allow_volatile=False))
        assert (found.wrong, found.unknown) == ((), ())
    finally:
        server.terminate()
        server.wait(20)
