"""Fetches a Redis 8 from Debian 13 for the tests of the vector engine, where the machine has an older one or none.

Debian's redis-tools holds the server; its libraries are unpacked beside it, and the server runs through their own
loader, so that the machine's libc does not matter and nothing is installed. Standard library only. What is there and
works is left as it is.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import lzma
import platform
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUITE = "trixie"
DEFAULT_MIRROR = "https://deb.debian.org/debian"
KEYRINGS = (
    Path("/usr/share/keyrings/debian-archive-keyring.gpg"),
    Path("/usr/share/keyrings/debian-archive-keyring.pgp"),
)
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
MIN_VERSION = 8
LAUNCHER = """#!/bin/sh
# Made by scripts/redis8: Debian's Redis with Debian's libraries, whatever this machine has.
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd) || exit 2
exec "$here/{loader}" --library-path "$here/{libraries}" "$here/usr/bin/redis-server" "$@"
"""


class FetchError(Exception):
    """It cannot be had; the text says why."""


def mirrors() -> list[str]:
    """Debian mirrors of apt's own configuration, then the public one."""
    found = []
    if shutil.which("apt-get"):
        listed = subprocess.run(
            ["apt-get", "indextargets", "--format", "$(ORIGIN) $(LABEL) $(REPO_URI)"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        for line in listed.stdout.splitlines():
            origin, label, uri = [*line.split(" ", 2), "", ""][:3]
            if (origin, label) == ("Debian", "Debian") and uri.startswith(("http://", "https://")):
                found.append(uri.rstrip("/"))
    return list(dict.fromkeys([*found, DEFAULT_MIRROR]))


def get(url: str) -> bytes:
    """What lies at a URL. Raises FetchError."""
    try:
        with urllib.request.urlopen(url, timeout=60) as response:  # noqa: S310 - http and https, from apt or the command line
            return bytes(response.read())
    except (urllib.error.URLError, OSError) as error:
        raise FetchError(f"{url}: {error}") from None


def signed(content: bytes) -> bool:
    """Whether Debian's keys of this machine have signed it; False also where that cannot be told."""
    gpgv, keyring = shutil.which("gpgv"), next((path for path in KEYRINGS if path.exists()), None)
    if gpgv is None or keyring is None:
        return False
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        return subprocess.run([gpgv, "--keyring", keyring, file.name], capture_output=True, check=False).returncode == 0


def packages(mirror: str, architecture: str) -> dict[str, dict[str, str]]:
    """The suite's packages: fields by name. Raises FetchError when neither a signature nor TLS vouches for them."""
    base = f"{mirror}/dists/{SUITE}"
    release = get(f"{base}/InRelease")
    if not signed(release) and not mirror.startswith("https://"):
        raise FetchError(f"{base}/InRelease: its signature cannot be checked here, and the mirror is not https")
    path = f"main/binary-{architecture}/Packages.xz"
    match = re.search(rf"^ ([0-9a-f]{{64}}) +\d+ {re.escape(path)}$", release.decode(), re.MULTILINE)
    if match is None:
        raise FetchError(f"{base}/InRelease does not name {path}")
    listing = lzma.decompress(verified(get(f"{base}/{path}"), match[1], path)).decode()
    entries = (dict(re.findall(r"^([A-Za-z0-9-]+): (.*)$", entry, re.MULTILINE)) for entry in listing.split("\n\n"))
    return {entry["Package"]: entry for entry in entries if "Package" in entry}


def verified(content: bytes, sha256: str, name: str) -> bytes:
    """The content. Raises FetchError when its hash is another."""
    if hashlib.sha256(content).hexdigest() != sha256:
        raise FetchError(f"{name} is not what the index says")
    return content


def closure(known: dict[str, dict[str, str]], first: str) -> list[str]:
    """A package and the libraries that it needs, also by way of others."""
    wanted, waiting = [], [first]
    while waiting:
        name = waiting.pop()
        if name in wanted or name not in known:
            continue
        wanted.append(name)
        needed = re.findall(r"(?:^|, )([a-z0-9.+-]+)", known[name].get("Depends", ""))
        waiting += [other for other in needed if other.startswith(("lib", "zlib"))]
    return wanted


def unpack(deb: bytes, folder: Path) -> None:
    """A package's files: a .deb is an `ar` archive that holds a tar archive."""
    at = 8
    while at + 60 <= len(deb):
        name, size = deb[at : at + 16].decode().strip().rstrip("/"), int(deb[at + 48 : at + 58])
        if name.startswith("data.tar"):
            with tarfile.open(fileobj=io.BytesIO(deb[at + 60 : at + 60 + size])) as archive:
                archive.extractall(folder, filter="tar")
            return
        at += 60 + size + size % 2
    raise FetchError("a package without files")


def install(folder: Path, mirror: str, architecture: str) -> None:
    """Downloads and unpacks into the folder, and writes the launcher. Raises FetchError."""
    known = packages(mirror, architecture)
    for name in closure(known, "redis-tools"):
        entry = known[name]
        say(f"  {name} {entry['Version']}")
        unpack(verified(get(f"{mirror}/{entry['Filename']}"), entry["SHA256"], name), folder)
    server = folder / "usr/bin/redis-server"  # the same program; it acts by its name
    server.unlink(missing_ok=True)
    server.symlink_to("redis-check-rdb")
    loader = next(folder.glob("usr/lib/*/ld-linux*.so.*"), None)
    if loader is None:
        raise FetchError("the packages hold no loader")
    launcher = folder / "redis-server"
    libraries = loader.parent.relative_to(folder)
    launcher.write_text(LAUNCHER.format(loader=libraries / loader.name, libraries=libraries))
    launcher.chmod(0o755)


def check(command: list[str]) -> str:
    """The version of a server that runs here and knows vector sets. Raises FetchError."""
    try:
        told = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FetchError(f"{shlex.join(command)} does not run: {error}") from None
    match = re.search(r"v=(\d+)(\.\S+)", told.stdout)
    if match is None or int(match[1]) < MIN_VERSION:
        raise FetchError(f"{shlex.join(command)} --version says: {(told.stdout + told.stderr).strip()[:200]}")
    with tempfile.TemporaryDirectory(prefix="errand-r8-") as directory:
        path = f"{directory}/s"
        server = subprocess.Popen(
            [*command, "--port", "0", "--unixsocket", path, "--save", "", "--dir", directory],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            answer = ask(path, b"VADD v VALUES 3 1 0 0 a\r\n")
        finally:
            server.terminate()
            server.wait(20)
    if answer != b":1\r\n":
        raise FetchError(f"{shlex.join(command)} has no vector sets: it answers {answer!r} to VADD")
    return match[1] + match[2]


def ask(path: str, command: bytes) -> bytes:
    """A server's answer to one command, once it listens."""
    for _ in range(200):
        with socket.socket(socket.AF_UNIX) as connection:
            try:
                connection.settimeout(10)
                connection.connect(path)
                connection.sendall(command)
                return connection.recv(200)
            except OSError:
                time.sleep(0.05)
    raise FetchError("the server does not listen")


def say(line: str) -> None:
    """A line of what is being done."""
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    """Prints the command line of the server."""
    parser = argparse.ArgumentParser(prog="scripts/redis8", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / ".errand" / "redis8")
    parser.add_argument("--mirror", help="a Debian mirror (default: apt's, then the public one)")
    arguments = parser.parse_args()
    folder: Path = arguments.folder.resolve()
    command = [str(folder / "redis-server")]
    if (folder / "redis-server").exists():
        try:
            say(f"Redis {check(command)} is there")
            print(shlex.join(command))
            return 0
        except FetchError as error:
            say(f"{error}; fetching it again")
    architecture = ARCHITECTURES.get(platform.machine())
    if platform.system() != "Linux" or architecture is None:
        say("only for Linux on x86-64 and arm64: give the tests a Redis 8 with ERRAND_TEST_REDIS8")
        return 2
    if folder.exists() and any(folder.iterdir()) and not (folder / "usr").is_dir():
        say(f"{folder} holds something else and is left alone")
        return 2
    folder.parent.mkdir(parents=True, exist_ok=True)
    problems = []
    for mirror in [arguments.mirror.rstrip("/")] if arguments.mirror else mirrors():
        say(f"fetching Redis 8 of Debian {SUITE} from {mirror}")
        aside = Path(tempfile.mkdtemp(prefix="redis8-", dir=folder.parent))
        try:
            install(aside, mirror, architecture)
            version = check([str(aside / "redis-server")])
            shutil.rmtree(folder, ignore_errors=True)
            aside.rename(folder)
        except (FetchError, OSError, lzma.LZMAError, tarfile.TarError, KeyError) as error:
            problems.append(f"{mirror}: {error}")
            continue
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        say(f"Redis {version} with vector sets is ready")
        print(shlex.join(command))
        return 0
    for problem in problems:
        say(problem)
    return 1


if __name__ == "__main__":
    sys.exit(main())
