"""What deploy/Dockerfile copies, installs and starts, without Docker: the wheel is built from exactly the files that it
copies and run from a directory of its own, outside of the source, with the image's environment."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from scripts.probes import free_port
from tests.conftest import ADMIN_KEY, DevModel, RedisServer, chat

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text().replace("\\\n", " ")
KEY = {"Authorization": f"Bearer {ADMIN_KEY}"}


def instructions(name: str) -> list[str]:
    return re.findall(rf"^\s*{name} (.*)$", DOCKERFILE, re.MULTILINE)


ENVIRONMENT = dict(word.split("=", 1) for word in shlex.split(instructions("ENV")[0]))
COMMAND: list[str] = json.loads(instructions("CMD")[-1])
ENTRYPOINT: list[str] = json.loads(instructions("ENTRYPOINT")[0])
HEALTHCHECK: list[str] = json.loads(instructions("HEALTHCHECK")[0].split("CMD ", 1)[1])


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory into which the package of the Dockerfile's build stage was installed."""
    context = tmp_path_factory.mktemp("context")
    for line in instructions("COPY"):
        if line.startswith("--from"):
            continue
        *sources, target = line.split()
        for source in sources:
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, context / target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / source, context / target)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    wheels, site = context / "wheels", tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [*pip, "wheel", "--no-deps", "-w", str(wheels), "."], cwd=context, capture_output=True, text=True, timeout=300
    )
    if "No matching distribution found for setuptools" in built.stderr:
        pytest.skip("the registry of packages, which the build needs, is out of reach")
    assert built.returncode == 0, built.stderr
    (wheel,) = wheels.glob("errand-*.whl")
    done = subprocess.run(
        [*pip, "install", "--no-deps", "--no-compile", "--target", str(site), str(wheel)],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return site


class Container:
    """A process with the image's environment, as it is started there; `PATH` and the installed package aside."""

    def __init__(self, site: Path, data: Path, log: Path, command: list[str], **environment: str) -> None:
        own = {name: value for name, value in ENVIRONMENT.items() if name != "PATH"}
        inherited = {
            name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH") if name in os.environ
        }
        self.environment = {
            **inherited, **own, "PYTHONPATH": str(site), "ERRAND_DATA_DIR": str(data), "HOST": "127.0.0.1",
            "ERRAND_WORKER_METRICS_HOST": "127.0.0.1", **environment,
        }  # fmt: skip
        self.data = data
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                self.command(command), env=self.environment, cwd=data, stdin=subprocess.DEVNULL, stdout=output,
                stderr=output,
            )  # fmt: skip

    def command(self, words: list[str]) -> list[str]:
        assert words[0] == "python"
        return [sys.executable, *words[1:]]

    def run(self, words: list[str]) -> int:
        """Another command in the same container; its exit code."""
        return subprocess.run(
            self.command(words), env=self.environment, cwd=self.data, capture_output=True, timeout=30
        ).returncode

    def ask(self, program: str) -> bytes:
        """What a program prints there."""
        return subprocess.run(
            self.command(["python", "-c", program]), env=self.environment, cwd=self.data, capture_output=True
        ).stdout

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(20)


class Sealed(Container):
    """Likewise, as the first process of its own namespaces."""

    def command(self, words: list[str]) -> list[str]:
        inner = super().command(words)
        if hasattr(self, "process"):
            return inner
        entry = [str(shutil.which(Path(ENTRYPOINT[0]).name)), *ENTRYPOINT[1:]]
        return ["unshare", "-mpf", "--mount-proc", "--kill-child", "sh", "-c", SEALED, "sh", *entry, *inner]

    @property
    def first(self) -> int:
        """Its process 1, as it is numbered outside."""
        pid = self.process.pid
        (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(child)

    @property
    def has_begun(self) -> bool:
        """Whether process 1 is the entry point by now (before that it is our shell), and has started the command."""
        try:
            process = Path(f"/proc/{self.first}")
            is_entry = (process / "comm").read_text().strip() == Path(ENTRYPOINT[0]).name
            return is_entry and (process / f"task/{self.first}/children").read_text() != ""
        except (OSError, ValueError):
            return False


@pytest.fixture
def containers(
    installed: Path, own_redis: RedisServer, model: DevModel, tmp_path: Path
) -> Iterator[dict[str, Container]]:
    data = tmp_path / "data"
    data.mkdir()
    # What a working directory may hold must not be imported.
    (data / "api.py").write_text("raise SystemExit('a file of the working directory was run')")
    shared = {
        "REDIS_URL": own_redis.url, "OPENAI_BASE_URL": f"{model.base}/v1", "OPENAI_API_KEY": "none",
        "ERRAND_DEFAULT_MODEL": "errand-dev-extractive", "ERRAND_ADMIN_KEY": ADMIN_KEY,
    }  # fmt: skip
    made: dict[str, Container] = {}
    try:
        for name, command in (
            ("web", COMMAND),
            ("worker", ["python", "-m", "worker", "batch"]),
            ("interactive", ["python", "-m", "worker", "interactive"]),
        ):
            ports = {"PORT": str(free_port("127.0.0.1")), "ERRAND_WORKER_METRICS_PORT": str(free_port("127.0.0.1"))}
            made[name] = Container(installed, data, tmp_path / f"{name}.log", command, **shared, **ports)
        yield made
    finally:
        for container in made.values():
            container.stop()


async def test_the_installed_package_runs_as_the_image_starts_it(
    containers: dict[str, Container], installed: Path
) -> None:
    """Given the installed package and nothing of the source, then API and workers start, a document is read and a chat
    answered, both health checks hold, and SIGTERM ends each with exit code 0."""
    web = containers["web"]
    base = f"http://127.0.0.1:{web.environment['PORT']}"
    async with aiohttp.ClientSession(headers=KEY) as session:
        async with asyncio.timeout(60):
            while True:
                for container in containers.values():
                    assert container.process.poll() is None, container.log.read_text()
                try:
                    async with session.get(f"{base}/readyz") as response:
                        if (await response.json())["checks"]["workers"] == {"interactive": 1, "batch": 1}:
                            break
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(0.1)
        for job in (chat(), document_job(await uploaded(session, base))):
            async with session.post(f"{base}/api/jobs", json=job) as response:
                job_id = (await response.json())["jobId"]
            async with session.get(f"{base}/api/jobs/{job_id}?wait=30") as response:
                view = await response.json()
                assert view["status"] == "complete", view
    assert await asyncio.to_thread(web.run, HEALTHCHECK) == 0
    check = compose_check()
    assert await asyncio.to_thread(containers["worker"].run, check) == 0
    for container in containers.values():
        container.process.send_signal(signal.SIGTERM)
    for name, container in containers.items():
        assert await asyncio.to_thread(container.process.wait, 60) == 0, name
    assert await asyncio.to_thread(web.run, HEALTHCHECK) != 0
    assert await asyncio.to_thread(containers["worker"].run, check) != 0
    where = "import api, shared; print(api.__file__, shared.__file__)"
    said = (await asyncio.to_thread(web.ask, where)).decode()
    assert said.split() == [str(installed / "api/__init__.py"), str(installed / "shared/__init__.py")]


# In order, or by the signal, where it came before Python had its handlers.
ENDS = (0, 128 + signal.SIGTERM)
# Namespaces of its own: the command is their first process, and can write to /tmp and its data directory only.
SEALED = """
set -e
mount --make-rprivate /
mount --bind "$ERRAND_DATA_DIR" "$ERRAND_DATA_DIR"
mount -o remount,ro,bind /
cd "$ERRAND_DATA_DIR"
exec "$@"
"""


def can_seal() -> bool:
    unshare = shutil.which("unshare")
    done = unshare and subprocess.run(
        [unshare, "-mpf", "--mount-proc", "sh", "-c", "mount --make-rprivate / && mount -o remount,ro,bind /"],
        capture_output=True,
    )
    return bool(done and done.returncode == 0)


@pytest.mark.skipif(not can_seal(), reason="namespaces need unshare, and rights that this user has not")
@pytest.mark.skipif(not shutil.which("tini"), reason="the image's first process, tini, is not on this machine")
async def test_a_read_only_container_stops_on_sigterm(
    containers: dict[str, Container], installed: Path, tmp_path: Path
) -> None:
    """Given the image's entry point as process 1 and its command, on a root that is read-only, when process 1 gets a
    SIGTERM as soon as the command is healthy, and while it still loads, then it ends."""
    shared = {name: containers["web"].environment[name] for name in ("REDIS_URL", "OPENAI_BASE_URL", "OPENAI_API_KEY")}
    data = tmp_path / "sealed"
    data.mkdir()
    for command, healthy in ((COMMAND, HEALTHCHECK), (["python", "-m", "worker", "both"], compose_check())):
        ports = {"PORT": str(free_port("127.0.0.1")), "ERRAND_WORKER_METRICS_PORT": str(free_port("127.0.0.1"))}
        sealed = Sealed(installed, data, tmp_path / "sealed.log", command, **shared, **ports)
        try:
            async with asyncio.timeout(90):
                while await asyncio.to_thread(sealed.run, healthy) != 0:
                    assert sealed.process.poll() is None, sealed.log.read_text()
            os.kill(sealed.first, signal.SIGTERM)
            assert await asyncio.to_thread(sealed.process.wait, 60) in ENDS
        finally:
            sealed.stop()
    loading = Sealed(installed, data, tmp_path / "sealed.log", COMMAND, **shared, PORT="0")
    try:
        async with asyncio.timeout(10):
            while not loading.has_begun:
                await asyncio.sleep(0.001)
        os.kill(loading.first, signal.SIGTERM)
        assert await asyncio.to_thread(loading.process.wait, 20) in ENDS
    finally:
        loading.stop()
    # Without ERRAND_ADMIN_KEY the API has made one, in the only place where it could.
    assert (data / "admin.key").stat().st_mode & 0o777 == 0o600


async def uploaded(session: aiohttp.ClientSession, base: str) -> str:
    form = aiohttp.FormData()
    form.add_field("file", (ROOT / "scripts/samples/harbour-report.md").read_bytes(), filename="report.md")
    async with session.post(f"{base}/api/documents", data=form) as response:
        return str((await response.json())["documentId"])


def document_job(document_id: str) -> dict[str, Any]:
    return {
        "type": "document-analysis",
        "input": {"document": {"documentId": document_id}, "tasks": [{"kind": "summary"}]},
    }


def compose_check() -> list[str]:
    """The health check of workers in compose.yaml."""
    import yaml

    check = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["x-worker"]["healthcheck"]["test"]
    assert check[0] == "CMD"
    return list(check[1:])
