"""The store of search indexes: collections, versions, and what each document has in them. Vectors are the engines'
business (worker.search.engines); what is in an index is decided here, in one step per document."""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Final

import msgspec

from shared.clock import rfc3339
from shared.collections import VSET, Calibration, CollectionView, Entry, IndexSpec, IndexView, VersionState
from shared.errors import InternalError, InvalidInput, LeaseLostError
from shared.keys import Keys
from shared.redis import Redis, Scripts, shielded
from shared.stores.jobs import Claimed
from shared.stores.records import being_deleted

STAGED_S: Final = 86_400  # what was written and never put into an index goes after a day
HASH_BYTES: Final = 12  # of a chunk's text
PAGE: Final = 500
MOST_CHANGES: Final = 10_000  # that an index's stream tells; index_put and index_remove trim it to no less

_spec: Final = msgspec.json.Decoder(IndexSpec).decode
_entry: Final = msgspec.json.Decoder(Entry).decode


class Packed(msgspec.Struct, array_like=True):
    """A document's chunks in an index as stored (MessagePack): arrays, little-endian, each packed with zlib."""

    count: int
    starts: bytes  # uint32
    ends: bytes  # uint32
    digests: bytes  # HASH_BYTES each
    occurrences: bytes  # uint32
    lengths: bytes  # uint32, words of each chunk
    terms: bytes  # uint32, sorted, each once
    found_in: bytes  # uint32, in how many chunks each term stands
    rows: bytes  # uint32, the chunks of each term, in order
    counts: bytes  # uint8, how often it stands there


read_packed: Final = msgspec.msgpack.Decoder(Packed).decode


def digests_of(content: bytes) -> list[bytes]:
    """The hashes of the texts of stored chunks."""
    joined = zlib.decompress(read_packed(content).digests)
    return [joined[at : at + HASH_BYTES] for at in range(0, len(joined), HASH_BYTES)]


class Collection(msgspec.Struct, frozen=True):
    """A collection as it is. `current` and the others are numbers of versions, 0 where there is none."""

    tenant: str
    name: str
    current: int
    previous: int
    building: int
    builder: str | None
    created_ms: int
    specs: dict[int, IndexSpec]
    documents: dict[int, int]
    chunks: dict[int, int]

    @property
    def spec(self) -> IndexSpec:
        """How the current version is made."""
        return self.specs[self.current]

    @property
    def view(self) -> CollectionView:
        """As the API shows it."""
        return CollectionView(
            name=self.name,
            version=self.current or None,
            documents=self.documents.get(self.current, 0),
            chunks=self.chunks.get(self.current, 0),
            versions=[self._version(self.specs[number]) for number in sorted(self.specs, reverse=True)],
            created_at=rfc3339(self.created_ms),
        )

    def _version(self, spec: IndexSpec) -> IndexView:
        states = {
            self.building: VersionState.BUILDING,
            self.previous: VersionState.PREVIOUS,
            self.current: VersionState.CURRENT,
        }
        return IndexView(
            version=spec.version,
            state=states.get(spec.version, VersionState.PREVIOUS),
            model=spec.model,
            dimensions=spec.dimensions or None,
            chunk_characters=spec.chunk_characters,
            engine=spec.engine,
            documents=self.documents.get(spec.version, 0),
            chunks=self.chunks.get(spec.version, 0),
            created_at=rfc3339(spec.created_ms),
            job_id=spec.job_id or msgspec.UNSET,
        )


class Put(msgspec.Struct, frozen=True):
    """What a document's new chunks came in place of: the revision before, and blobs that nobody needs any more (they
    are on the list of what is to be deleted, too)."""

    before: int | None
    blobs: tuple[str, ...]


class Removed(msgspec.Struct, frozen=True):
    """What a version had of a document that was removed."""

    spec: IndexSpec
    revision: int
    chunks: int


class Switched(msgspec.Struct, frozen=True):
    """What came of a switch: `done`, or the documents that the version does not have yet; `drop` is a version that
    nothing goes back to any more, `current` another one that came between, `replayed`: it was done before."""

    done: bool
    missing: tuple[str, ...] = ()
    drop: int = 0
    current: int = 0
    replayed: bool = False


class SupersededError(Exception):
    """A newer content of the document is there already."""


class VersionSwitchedError(Exception):
    """The collection has another version by now; what was made is for one that nobody asks."""


class IndexesStore:
    """Collections and indexes of all tenants. Raises a member of OUTAGE when Redis is out of reach."""

    def __init__(self, client: Redis, keys: Keys) -> None:
        self.client = client
        self.keys = keys
        self._scripts = Scripts(client, keys.prefix)

    # -- collections ---------------------------------------------------------------------------------------------

    async def open(
        self, tenant: str, name: str, spec: IndexSpec, *, job: str | None = None, building: bool = False
    ) -> Collection | str:
        """The collection, made with this version at its first use; with `building` a further version is begun by the
        job, or the id of the job that is at it already. Raises RefusedError when the tenant is being deleted."""
        described = msgspec.to_builtins(spec)
        for given in ("version", "createdMs"):
            described.pop(given, None)
        if job is not None:
            described["jobId"] = job
        reply = await self._scripts.run(
            "index_open",
            [self.keys.collection(tenant, name), self.keys.collections(tenant), self.keys.tenant(tenant)],
            name=name,
            spec=msgspec.json.encode(described).decode(),
            job=job,
            building=building,
        )
        if reply[0] == b"no_tenant":
            raise being_deleted(tenant)
        if reply[0] == b"busy":
            return str(reply[1].decode())
        return _collection(tenant, name, _pairs(reply[2]))

    async def collection(self, tenant: str, name: str) -> Collection | None:
        """A collection; None when there is none."""
        raw = await self.client.pipe.execute("HGETALL", self.keys.collection(tenant, name))
        return _collection(tenant, name, _pairs(raw)) if raw else None

    async def names(self, tenant: str, *, limit: int, after: str | None = None) -> tuple[list[str], bool]:
        """Names of collections in order, after that one; and whether there are more."""
        low = f"({after}" if after is not None else "-"
        raw = await self.client.pipe.execute(
            "ZRANGEBYLEX", self.keys.collections(tenant), low, "+", "LIMIT", 0, limit + 1
        )
        return [name.decode() for name in raw[:limit]], len(raw) > limit

    async def forget(self, tenant: str, name: str) -> None:
        """Removes an empty collection's record, after its versions were dropped."""
        await self.client.pipe.execute("UNLINK", self.keys.collection(tenant, name))
        await self.client.pipe.execute("ZREM", self.keys.collections(tenant), name)

    async def describe(self, tenant: str, name: str, spec: IndexSpec) -> None:
        """Notes what was learned of a version: its dimensions and calibration. Nothing, when it is dropped."""
        described = msgspec.json.encode(spec).decode()
        await self._scripts.run(
            "index_describe", [self.keys.collection(tenant, name)], version=spec.version, spec=described
        )

    async def switch(
        self,
        collection: Collection,
        version: int,
        claimed: Claimed | None = None,
        worker: str | None = None,
        *,
        once: str | None = None,
    ) -> Switched:
        """Makes a version the current one, if nothing is missing in it; with `once` (the digest of an idempotency key)
        not again. Raises LeaseLostError, and InvalidInput when
        there is no such version (any more)."""
        tenant, name = collection.tenant, collection.name
        reply = await self._scripts.run(
            "index_switch",
            [
                self.keys.collection(tenant, name),
                self.keys.index(tenant, collection.current, name),
                self.keys.index(tenant, version, name),
                self.keys.idem(tenant, once or "-"),
            ],
            idem_body="switch" if once else None,
            current=collection.current,
            version=version,
            worker=worker,
            lease=claimed.lease if claimed else None,
            job=claimed.job_id if claimed else None,
        )
        match [part.decode() for part in reply]:
            case ["ok", drop, *replayed]:
                return Switched(done=True, drop=int(drop or 0), replayed=bool(replayed))
            case ["missing", *documents]:
                return Switched(done=False, missing=tuple(documents))
            case ["moved", current]:
                return Switched(done=False, current=int(current))
            case ["lost"]:
                raise LeaseLostError(claimed.job_id if claimed else "")
        raise InvalidInput(f"The collection {name!r} has no version {version} (any more).")

    async def drop(self, tenant: str, name: str, version: int) -> None:
        """Removes a version: all documents' chunks and vectors in it, then its record. May be repeated."""
        index = self.keys.index(tenant, version, name)
        known = await self.collection(tenant, name)
        async for page in self._scan(index):
            if known is not None and version in known.specs:
                await self._leave_homes(known, version, page)
            doomed: list[str] = []
            for document_id, value in page:
                key = (tenant, document_id, version, int(value.split(b" ", 1)[0]))
                doomed += [self.keys.pack(*key), self.keys.vectors(*key, name)]
            await self.client.pipe.execute("UNLINK", *doomed)
        of = (tenant, version, name)
        sets = (self.keys.vector_set(*of), self.keys.vector_set_empty(*of))
        await self.client.pipe.execute("UNLINK", index, self.keys.changes(*of), self.keys.vectors_of(*of), *sets)
        await self._scripts.run("index_forget", [self.keys.collection(tenant, name)], version=version)

    async def _leave_homes(self, known: Collection, version: int, page: Sequence[tuple[str, bytes]]) -> None:
        """These documents' texts have their vectors in this version no more: what is known of them goes, or says from
        now on which other version has them."""
        tenant, name, spec = known.tenant, known.name, known.specs[version]
        others = [one for one in known.specs.values() if one.version != version and one.marks == spec.marks]

        async def leave(document_id: str, stored: bytes) -> None:
            digests = digests_of(stored)
            await self.forget_homes(tenant, spec.marks, digests, document_id, place=f"{version} {name}")
            for other in others:
                entry = await self.entry(tenant, name, other.version, document_id)
                if entry is None:
                    continue
                (theirs,) = await self.packs(tenant, other.version, [(document_id, entry.revision)])
                held = set(digests_of(theirs)) if theirs is not None else set()
                both = [digest for digest in digests if digest in held]
                await self.note_homes(tenant, spec.marks, both, document_id, name, other.version)

        wanted = [(document_id, int(value.split(b" ", 1)[0])) for document_id, value in page]
        packs = await self.packs(tenant, version, wanted)
        await asyncio.gather(
            *(leave(name, stored) for (name, _), stored in zip(wanted, packs, strict=True) if stored is not None)
        )

    async def _scan(self, index: str) -> AsyncIterator[list[tuple[str, bytes]]]:
        cursor = b"0"
        while True:
            cursor, raw = await self.client.pipe.execute("HSCAN", index, cursor, "COUNT", PAGE)
            if raw:
                yield [(name.decode(), value) for name, value in zip(raw[::2], raw[1::2], strict=True)]
            if cursor == b"0":
                return

    # -- documents in an index -----------------------------------------------------------------------------------

    async def write_pack(self, tenant: str, document_id: str, version: int, revision: int, content: bytes) -> None:
        """A document's chunks, before `put` makes them part of the index; else they go after a day."""
        key = self.keys.pack(tenant, document_id, version, revision)
        # One that is there is the same: a revision and a version never change.
        # Not on the shared connection: leases would wait behind megabytes.
        await shielded(self.client.execute_command("SET", key, content, "EX", STAGED_S, "NX"))

    async def put(
        self,
        claimed: Claimed,
        worker: str,
        *,
        collection: str,
        version: int,
        document_id: str,
        entry: Entry,
        fields: Mapping[str, str] | None,
        follows: bool,
        has_vectors: bool,
    ) -> Put:
        """Makes the chunks that were written part of the index, in one step with the `fields` of the document's record.
        With `follows` the version must be the current one; `has_vectors`: they are in Redis under a name of their own.

        Raises LeaseLostError, InvalidInput when the document or the version is gone, SupersededError,
        VersionSwitchedError, and InternalError when what was written is gone.
        """
        tenant = claimed.tenant
        key = (tenant, document_id, version)
        reply = await self._scripts.run(
            "index_put",
            [
                self.keys.job(claimed.job_id),
                self.keys.document(document_id),
                self.keys.collection(tenant, collection),
                self.keys.index(tenant, version, collection),
                self.keys.changes(tenant, version, collection),
                self.keys.pack(*key, entry.revision),
                self.keys.vectors(*key, entry.revision, collection),
            ],
            worker=worker,
            lease=claimed.lease,
            tenant=tenant,
            document=document_id,
            version=version,
            revision=entry.revision,
            entry=msgspec.json.encode(entry).decode(),
            chunks=entry.chunks,
            fields=dict(fields) if fields is not None else None,
            pack_prefix=f"{self.keys.prefix}pack:{tenant}:{document_id}:{version}:",
            collection=collection,
            follows=follows,
            vectors=has_vectors,
        )
        match reply[0]:
            case b"ok":
                return Put(int(reply[1]) if reply[1] else None, tuple(blob.decode() for blob in reply[2:]))
            case b"lost":
                raise LeaseLostError(claimed.job_id)
            case b"newer":
                raise SupersededError
            case b"switched":
                raise VersionSwitchedError
            case b"unwritten":
                raise InternalError(f"The chunks of {document_id} are gone before they were used.")
            case b"gone":
                raise InvalidInput(f"The document {document_id} was deleted while it was read.")
        raise InvalidInput(f"The collection {collection!r} has no version {version} (any more).")

    async def entry(self, tenant: str, collection: str, version: int, document_id: str) -> Entry | None:
        """A document's entry in an index; None when it has none."""
        raw = await self.client.pipe.execute("HGET", self.keys.index(tenant, version, collection), document_id)
        return read_entry(raw) if raw is not None else None

    async def entries(
        self, tenant: str, collection: str, version: int, documents: Sequence[str] | None = None
    ) -> dict[str, Entry | None]:
        """The entries of these documents (None for one that has none), or of all."""
        index = self.keys.index(tenant, version, collection)
        if documents is not None:
            raw = await self.client.pipe.execute("HMGET", index, *documents) if documents else []
            return {name: read_entry(value) if value else None for name, value in zip(documents, raw, strict=True)}
        found: dict[str, Entry | None] = {}
        async for page in self._scan(index):
            found |= {name: read_entry(value) for name, value in page}
        return found

    async def packs(self, tenant: str, version: int, wanted: Sequence[tuple[str, int]]) -> list[bytes | None]:
        """The chunks of these (document, revision), None for what is not there any more."""
        keys = [self.keys.pack(tenant, document_id, version, revision) for document_id, revision in wanted]
        found: list[bytes | None] = []
        if keys:
            found = list(await shielded(self.client.execute_command("MGET", *keys)))
        return found

    async def changed(self, tenant: str, collection: str, version: int, after: str) -> tuple[str, list[str] | None]:
        """The documents that have changed after a place in the index's changes, and the place now; None: so many that
        the changes do not tell them all any more."""
        key = self.keys.changes(tenant, version, collection)
        since = f"({after}" if after != "0" else "-"
        rows = await self.client.pipe.execute("XRANGE", key, since, "+", "COUNT", MOST_CHANGES)
        if len(rows) >= MOST_CHANGES:
            return after, None
        if not rows:
            return after, []
        if after != "0":
            # The entry at our place is still there, or nothing was trimmed behind it.
            first = await self.client.pipe.execute("XRANGE", key, "-", "+", "COUNT", 1)
            if first and _place(first[0][0]) > _place(after.encode()):
                return rows[-1][0].decode(), None
        documents = list(dict.fromkeys(fields[1].decode() for _, fields in rows))
        return rows[-1][0].decode(), documents

    async def latest_change(self, tenant: str, collection: str, version: int) -> str:
        """The place of the newest change, `0` where there was none."""
        key = self.keys.changes(tenant, version, collection)
        rows = await self.client.pipe.execute("XREVRANGE", key, "+", "-", "COUNT", 1)
        return rows[0][0].decode() if rows else "0"

    async def remove(
        self, tenant: str, document_id: str, collection: str, *, blobs: Sequence[str] = ()
    ) -> tuple[int, list[Removed]]:
        """Takes a document out of everything: chunks that could be found until now, and what each version had. In the
        same step its `blobs` are put on the list of what is to be deleted."""
        homes = await self._homes_of(tenant, document_id, collection)
        reply = await self._scripts.run(
            "index_remove",
            [
                self.keys.document(document_id),
                self.keys.documents(tenant),
                self.keys.collection(tenant, collection),
            ],
            tenant=tenant,
            document=document_id,
            collection=collection,
            blobs=list(blobs),
        )
        parts = [part.decode() if isinstance(part, bytes) else part for part in reply[1:]]
        removed = [
            Removed(_spec(parts[at + 3]), int(parts[at + 1]), int(parts[at + 2])) for at in range(0, len(parts), 4)
        ]
        for marks, digests in homes.items():
            await self.forget_homes(tenant, marks, list(digests), document_id)
        for one in removed:
            if one.spec.engine == VSET:
                await self._remove_from_set(tenant, document_id, collection, one)
        return int(reply[0]), removed

    async def _remove_from_set(self, tenant: str, document_id: str, collection: str, removed: Removed) -> None:
        """A document's elements in a vector set (worker.search.vset names them): no search finds them any more, but
        they are what was in the document."""
        name = (tenant, removed.spec.version, collection)
        for number in range(removed.chunks):
            element = f"{document_id}:{removed.revision}:{number}"
            await self.client.pipe.execute("VREM", self.keys.vector_set(*name), element)
        field = f"{document_id}:{removed.revision}"
        await self.client.pipe.execute("HDEL", self.keys.vector_set_empty(*name), field)

    async def _homes_of(self, tenant: str, document_id: str, collection: str) -> dict[str, set[bytes]]:
        """The texts that the document has in any version, by the marks of their vectors."""
        found: dict[str, set[bytes]] = {}
        named = await self.collection(tenant, collection)
        for spec in named.specs.values() if named is not None else ():
            entry = await self.entry(tenant, collection, spec.version, document_id)
            if entry is not None:
                (stored,) = await self.packs(tenant, spec.version, [(document_id, entry.revision)])
                found.setdefault(spec.marks, set()).update(digests_of(stored) if stored is not None else ())
        return found

    async def patch(self, tenant: str, document_id: str, collection: str, fields: Mapping[str, str]) -> bool:
        """Changes title or metadata (JSON) of a document, in its record and in search; False when there is none."""
        return bool(
            await self._scripts.run(
                "index_patch",
                [self.keys.document(document_id), self.keys.collection(tenant, collection)],
                tenant=tenant,
                document=document_id,
                collection=collection,
                fields=dict(fields),
            )
        )

    # -- nothing is embedded twice -------------------------------------------------------------------------------

    async def stage(self, tenant: str, job_id: str, marks: str, vectors: Mapping[bytes, bytes]) -> None:
        """Keeps vectors that a job has bought until it has put them into an index; by hash of their text. Nothing is
        kept for a job that is no more: it was erased meanwhile."""
        await self._scripts.run(
            "index_stage",
            [self.keys.staged(tenant, job_id, marks), self.keys.job(job_id)],
            *(part for pair in vectors.items() for part in pair),
            keep_s=STAGED_S,
        )

    async def staged(self, tenant: str, job_id: str, marks: str, hashes: Sequence[bytes]) -> list[bytes | None]:
        """The vectors of these texts, where the job has bought them."""
        key = self.keys.staged(tenant, job_id, marks)
        found: list[bytes | None] = []
        for first in range(0, len(hashes), PAGE):
            found += await self.client.pipe.execute("HMGET", key, *hashes[first : first + PAGE])
        return found

    async def unstage(self, tenant: str, job_id: str, marks: str) -> None:
        """All of them are in an index now."""
        await self.client.pipe.execute("UNLINK", self.keys.staged(tenant, job_id, marks))

    async def calibration(self, marks: str) -> Calibration | None:
        """What the cosines of a model mean; None when that was not measured yet."""
        raw = await self.client.pipe.execute("HGET", self.keys.calibrations, marks)
        return msgspec.json.decode(raw, type=Calibration) if raw else None

    async def note_calibration(self, marks: str, found: Calibration) -> None:
        """It was measured."""
        await self.client.pipe.execute("HSET", self.keys.calibrations, marks, msgspec.json.encode(found))

    async def homes(self, tenant: str, marks: str, hashes: Sequence[bytes]) -> list[tuple[str, str, int] | None]:
        """Which (document, collection, version) has the vector of each of these texts, as far as is known."""
        key = self.keys.chunks(tenant, marks)
        found: list[tuple[str, str, int] | None] = []
        for first in range(0, len(hashes), PAGE):
            for raw in await self.client.pipe.execute("HMGET", key, *hashes[first : first + PAGE]):
                if raw is None:
                    found.append(None)
                    continue
                document_id, version, collection = raw.decode().split(" ", 2)
                found.append((document_id, collection, int(version)))
        return found

    async def note_homes(
        self, tenant: str, marks: str, hashes: Sequence[bytes], document_id: str, collection: str, version: int
    ) -> None:
        """These texts' vectors are with that document too; who had them first stays the one that is asked, as long as
        the version is there that it stands in."""
        key, home = self.keys.chunks(tenant, marks), f"{document_id} {version} {collection}".encode()
        standing: dict[bytes, bool] = {}
        for first in range(0, len(hashes), PAGE):
            page = hashes[first : first + PAGE]
            known = await self.client.pipe.execute("HMGET", key, *page)
            for had in {one for one in known if one is not None} - standing.keys():
                standing[had] = await self._stands(tenant, had)
            flat = [
                part
                for name, had in zip(page, known, strict=True)
                if had is None or not standing[had]
                for part in (name, home)
            ]
            if flat:
                await self.client.pipe.execute("HSET", key, *flat)

    async def _stands(self, tenant: str, home: bytes) -> bool:
        """Whether the version of a home is there, and has its document."""
        document_id, version, collection = home.decode().split(" ", 2)
        index = self.keys.index(tenant, int(version), collection)
        return bool(await self.client.pipe.execute("HEXISTS", index, document_id))

    async def forget_homes(
        self, tenant: str, marks: str, hashes: Sequence[bytes], document_id: str, place: str = ""
    ) -> None:
        """That document has these texts no more, or not at this place (version and collection); what others have of
        them is theirs."""
        key, mark = self.keys.chunks(tenant, marks), f"{document_id} {place}".encode()

        def is_own(home: bytes | None) -> bool:
            return home is not None and (home == mark if place else home.startswith(mark))

        for first in range(0, len(hashes), PAGE):
            page = hashes[first : first + PAGE]
            known = await self.client.pipe.execute("HMGET", key, *page)
            own = [name for name, home in zip(page, known, strict=True) if is_own(home)]
            if own:
                await self.client.pipe.execute("HDEL", key, *own)


def read_entry(raw: bytes) -> Entry:
    """An entry as it is stored: `<revision> <chunks> <JSON>`."""
    return _entry(raw.split(b" ", 2)[2])


def _pairs(flat: Sequence[bytes]) -> dict[str, bytes]:
    return {name.decode(): value for name, value in zip(flat[::2], flat[1::2], strict=True)}


_VERSION: Final = re.compile(r"v:(\d+)")


def _collection(tenant: str, name: str, fields: Mapping[str, bytes]) -> Collection:
    specs = {int(match[1]): _spec(fields[match[0]]) for match in map(_VERSION.fullmatch, fields) if match}

    def counts(kind: str) -> dict[int, int]:
        return {number: int(fields.get(f"{kind}:{number}", 0)) for number in specs}

    builder = fields.get("builder")
    return Collection(
        tenant=tenant,
        name=name,
        current=int(fields.get("current", 0)),
        previous=int(fields.get("previous", 0)),
        building=int(fields.get("building", 0)),
        builder=builder.decode() if builder else None,
        created_ms=int(fields.get("created_ms", 0)),
        specs=specs,
        documents=counts("documents"),
        chunks=counts("chunks"),
    )


def _place(entry_id: bytes) -> tuple[int, int]:
    ms, _, number = entry_id.partition(b"-")
    return int(ms), int(number or 0)
