"""What a stack asks before and while it starts: free ports, and whether its servers answer."""

from __future__ import annotations

import errno
import json
import socket
import urllib.error
import urllib.request

from shared.errors import ConfigurationError


def free_port(host: str) -> int:
    """A port that is free just now."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        try:
            probe.bind((host, 0))
        except OSError as error:
            raise ConfigurationError(f"HOST={host} cannot be listened on: {error.strerror}") from None
        return int(probe.getsockname()[1])


def require_port(host: str, port: int) -> None:
    """Raises ConfigurationError when the API could not listen there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise ConfigurationError(f"port {port} on {host} is in use; set PORT to another") from None
            if error.errno == errno.EACCES:
                raise ConfigurationError(f"port {port} needs more rights than you have; set PORT to another") from None
            raise ConfigurationError(f"HOST={host} cannot be listened on: {error.strerror}") from None
        except OverflowError:
            raise ConfigurationError(f"PORT={port} is no port") from None


# Our own loopback address is never asked through a proxy.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _fetch(url: str) -> tuple[int, bytes]:
    try:
        with _DIRECT.open(url, timeout=2) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except (OSError, ValueError):
        return 0, b""


def responds(url: str) -> bool:
    """Whether a GET of it is answered with 200."""
    return _fetch(url)[0] == 200


def all_lanes_alive(url: str) -> bool:
    """Whether `url`, a /readyz, says that a worker is alive on every lane."""
    status, body = _fetch(url)
    if status != 200:
        return False
    try:
        return all(json.loads(body)["checks"]["workers"].values())
    except (ValueError, KeyError):
        return False
