"""Whether blobs can be written, and how much room their disk has."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
from pathlib import Path
from typing import Final

from shared.blobs import Blobs, LocalBlobs
from shared.clock import monotonic_s
from shared.diagnosis.findings import Check, State, Subject, bytes_text
from shared.errors import ErrandError

PROBE_S: Final = 10.0
LITTLE_BYTES: Final = 2 * 1024**3
PLACE: Final = "probe/diagnosis"


async def check_blobs(blobs: Blobs, *, needed_bytes: int, little_bytes: int = LITTLE_BYTES) -> Check:
    """Writes, reads and deletes a small blob; of a local directory also its free space. `needed_bytes`: less is a
    failure, for an upload may take so much; `little_bytes`: less is a warning."""
    key, content = f"{PLACE}-{secrets.token_hex(8)}", secrets.token_bytes(64)
    started = monotonic_s()
    try:
        async with asyncio.timeout(PROBE_S):
            await blobs.put(key, content)
            try:
                is_same = await blobs.get(key) == content
            finally:
                await blobs.delete(key)
    except OSError as error:
        where = f"{blobs.root} " if isinstance(blobs, LocalBlobs) else "the blob store "
        return _failed(f"{where}cannot be written: {_reason(error)}")
    except (ErrandError, TimeoutError) as error:
        return _failed(str(error) or f"the blob store did not answer within {PROBE_S:g} s")
    taken_ms = round((monotonic_s() - started) * 1000, 1)
    if not is_same:
        return _failed("the blob store gave back something else than was written")
    figures = {"writeReadDeleteMs": taken_ms}
    if not isinstance(blobs, LocalBlobs):
        found = f"the blob store writes, reads and deletes ({taken_ms:g} ms)"
        return Check(check=Subject.BLOBS, state=State.OK, found=found, figures=figures)
    return await check_space(blobs.root, needed_bytes=needed_bytes, little_bytes=little_bytes, figures=figures)


async def check_space(
    folder: Path, *, needed_bytes: int, little_bytes: int = LITTLE_BYTES, figures: dict[str, float] | None = None
) -> Check:
    """The free space of the disk of `folder`, which need not exist yet, and whether we may write there."""
    there = await asyncio.to_thread(_nearest, folder)
    try:
        usage = await asyncio.to_thread(shutil.disk_usage, there)
    except OSError as error:
        return _failed(f"{there} cannot be read: {_reason(error)}")
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return _failed(f"{there} cannot be written by this user, or is no directory")
    figures = {**(figures or {}), "freeBytes": float(usage.free), "totalBytes": float(usage.total)}
    found = f"{bytes_text(usage.free)} of {bytes_text(usage.total)} free at {there}"
    advice = (
        "Make room there, or let ERRAND_DATA_DIR name a larger disk, or ERRAND_BLOBS an S3 bucket; "
        "ERRAND_RETENTION_SECONDS says how long outputs are kept.",
    )
    if usage.free < needed_bytes:
        found = f"{found}: less than one upload may take ({bytes_text(needed_bytes)})"
        return Check(check=Subject.BLOBS, state=State.FAIL, found=found, advice=advice, figures=figures)
    if usage.free < little_bytes:
        return Check(check=Subject.BLOBS, state=State.WARN, found=found, advice=advice, figures=figures)
    return Check(check=Subject.BLOBS, state=State.OK, found=found, figures=figures)


def _nearest(folder: Path) -> Path:
    """The folder, or what exists nearest above it."""
    there = folder.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    return there


def _failed(found: str) -> Check:
    return Check(
        check=Subject.BLOBS,
        state=State.FAIL,
        found=found,
        advice=(
            "Let ERRAND_DATA_DIR name a directory that the user of the API and the workers may write; for a bucket "
            "look at ERRAND_BLOBS, the AWS_… variables, and the rights to put, get and delete.",
        ),
    )


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else type(error).__name__
