"""Every Redis key and channel, once: its form, type, lifetime, writer and reader."""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec


class KeyKind(NamedTuple):
    """One kind of key, for the generated reference."""

    form: str
    type: str
    lifetime: str
    writer: str
    reader: str
    holds: str


KEY_KINDS: Final[tuple[KeyKind, ...]] = (
    KeyKind("job:{jobId}", "hash", "until retention ends", "admit, claim, append, settle, …", "view, list",
            "the job's record; fields are those of VIEW_FIELDS, the spec, and the lease"),
    KeyKind("log:{jobId}", "stream", "as the record", "every script that emits an event", "API streams",
            "the job's events; entry id `<seq>-0`, fields t type, a ms, d JSON"),
    KeyKind("journal:{jobId}", "hash", "as the record", "begin_step, finish_step", "begin_step",
            "step name and input hash → its state and result"),
    KeyKind("open:{jobId}", "hash", "while a call is under way", "begin_step", "finish_step, settle, reap",
            "calls under way: call id → JSON of its hold; `<call id>:o` → output tokens seen so far, -1 while it waits to be sent"),
    KeyKind("output:{jobId}", "hash", "as the record", "finish_step", "API",
            "a large result: number of the part, from 0 → `<size_bytes> <blob key>`"),
    KeyKind("trash", "set", "while not empty", "sweep, retry, API", "upkeep",
            "blob keys and prefixes that are to be deleted; a member goes when its blobs are gone"),
    KeyKind("feedback:{jobId}", "list", "as the record", "feedback", "-",
            "what was said of the job's result, the newest hundred: score, comment, at, key"),
    KeyKind("jobs:{tenantId}", "zset", "as its members", "admit, sweep", "list",
            "all job ids of a tenant, score 0, so in order of creation"),
    KeyKind("gone:{jobId}", "string", "30 days", "sweep", "view", "tenant of a job whose retention is over: 410, then 404"),
    KeyKind("idem:{tenantId}:{hash}", "hash", "24 h", "admit, create", "admit, create",
            "the first answer to an Idempotency-Key: body hash and what the answer is rebuilt from"),
    KeyKind("q:{lane}:tenants", "zset", "while not empty", "queue_push, claim", "claim",
            "tenants with ready jobs; score is the virtual counter: tokens served and held, per weight"),
    KeyKind("q:{lane}:served", "hash", "for ever, small", "claim, settle", "queue_push",
            "virtual counter of every tenant that ever ran on the lane"),
    KeyKind("q:{lane}:{tenantId}", "zset", "while not empty", "queue_push, claim", "claim, view",
            "ready jobs of a tenant; score is queuedAt + class × agingSeconds, in ms"),
    KeyKind("q:{lane}:ready", "zset", "while not empty", "queue_push, claim", "fleet",
            "all ready jobs of the lane; score is 2^43 × (0 high, 1 normal, 2 low) + since when, ms"),
    KeyKind("q:{lane}:held", "hash", "while not empty", "claim, settle", "queue_push",
            "estimates of a tenant's running jobs, per weight, until they are settled"),
    KeyKind("q:{lane}:tokens", "hash", "while not empty", "queue_push, claim", "view",
            "estimated tokens of a tenant's ready jobs"),
    KeyKind("q:{lane}:parked", "set", "while not empty", "claim", "settle, reap",
            "tenants with ready jobs that are at their concurrency limit"),
    KeyKind("q:{lane}:rated", "zset", "while not empty", "claim", "claim, reap",
            "tenants with ready jobs that are over their token rate; score is when it has room, ms"),
    KeyKind("idle:{lane}", "set", "while not empty", "claim", "queue_push", "workers that sleep with a free slot"),
    KeyKind("pace:{lane}", "hash", "for ever, small", "queue_push, claim, settle, renew", "view, metrics",
            "ready and running jobs, slots of live workers, at: the last claim; n, s1, s2: decayed sums of run times in ms"),
    KeyKind("slots:{lane}", "hash", "as the workers", "renew", "renew", "slots that each live worker offers"),
    KeyKind("delayed:{lane}", "zset", "while not empty", "admit, settle", "claim",
            "scheduled jobs and jobs in backoff; score is the time they are due, ms"),
    KeyKind("slowed:{tenantId}", "set", "while not empty", "claim, settle", "change, finish_step",
            "jobs of a tenant that are put off for a token rate"),
    KeyKind("expiring", "zset", "while not empty", "admit, claim", "upkeep",
            "jobs that have not started; score is the time at which they expire, ms"),
    KeyKind("listened", "zset", "while not empty", "admit, listen", "reap",
            "chats that live while somebody listens; score is when they are cancelled unless somebody does, ms"),
    KeyKind("ticket_secret", "string", "for ever", "API", "API", "what proves stream tickets; made at the first ticket"),
    KeyKind("leases", "zset", "while not empty", "claim, renew, settle", "reap", "running jobs; score is the lease's end, ms"),
    KeyKind("retention", "zset", "while not empty", "settle", "sweep", "final jobs; score is when they are removed, ms"),
    KeyKind("upkeep", "hash", "for ever, small", "reap", "reap", "when the upkeep last ran, and until when no lease is taken back"),
    KeyKind("paused", "zset", "while not empty", "settle, update", "reap",
            "jobs that wait for a budget; score is when they are looked at again, ms (`inf`: when a limit changes)"),
    KeyKind("paused:{tenantId}", "set", "while not empty", "settle, reap", "update", "a tenant's jobs that wait for a budget"),
    KeyKind("running", "hash", "for ever, small", "claim, settle", "claim, view", "running jobs per tenant"),
    KeyKind("scheduled", "hash", "for ever, small", "admit, claim", "admit", "scheduled jobs per tenant"),
    KeyKind("workers:{lane}", "zset", "15 s a member", "renew", "readyz", "live workers; score is when they count as gone, ms"),
    KeyKind("fleet", "zset", "while not empty", "renew", "API", "worker processes; score is when their record ends, ms"),
    KeyKind("worker:{workerId}", "string", "15 s", "renew", "API",
            "what a worker says of itself (JSON): host, pid, version, slots, where its metrics are, its clock, whether it drains, whether it reaches the model"),
    KeyKind("tenants", "zset", "for ever", "create", "list", "all tenant ids, score 0"),
    KeyKind("tenant:{tenantId}", "hash", "until it is deleted", "create, change", "claim, admit, API",
            "a tenant: name, created_ms, limits (JSON) and what scripts read of them: policy, max_concurrent, max_queued, weight; "
            "revision: changes of its or its keys' limits; admin_key: of this installation; while it is deleted: since when, by "
            "which job, how much is gone"),
    KeyKind("keys:{tenantId}", "zset", "for ever", "create", "list", "key ids of a tenant, score 0"),
    KeyKind("books:{scope}", "hash", "as the tenant", "begin_step, extend, finish_step, settle, reap, rebuild",
            "the same, admit, limits, reconcile",
            "counters of a tenant, key, end user (`ten_…:u:<user>`) or prompt (`ten_…:p:<name>`): d, m: their windows; dt mt tt "
            "tokens and dn mn tn nano-USD of day, month, all time; ht, hn: reserved; ws: soft limits that were told"),
    KeyKind("ended:{tenantId}:{keyId}", "string", "90 days", "revoke", "begin_step, claim, extend",
            "limits of a revoked key, as in its record: they hold on for the jobs that came with it"),
    KeyKind("rate:{scope}", "hash", "until its buckets are full", "admit, begin_step, finish_step", "the same, claim, limits",
            "r, t: theoretical arrival time of requests and tokens (GCRA), µs; b: until when a large call lets it fill, µs"),
    KeyKind("ledger:{tenantId}", "stream", "as the tenant; never trimmed", "finish_step, settle, reap", "reconcile, rebuild",
            "one entry per settled call, never changed: a ms, c call, j job, k key, u user, ty type, s step, m model, p prompt, "
            "i o e w tokens, n nano-USD, v price version, x estimated, z correction"),
    KeyKind("usage:{tenantId}:{day}", "hash", "as the tenant", "admit, begin_step, finish_step, settle, reap, rebuild",
            "usage API, reconcile",
            "JSON `[model, type, prompt, user, key]` → `i o e r w n q x`, the sums of the day's calls; after a `#`: jobs admitted"),
    KeyKind("usagedays:{tenantId}", "zset", "as the tenant", "as the rows", "usage API, reconcile", "days with usage rows, as YYYYMMDD"),
    KeyKind("outs:{tenantId}", "hash", "as the tenant", "finish_step", "begin_step",
            "`type|model` → running 90th percentile of a call's output tokens, and how many were seen"),
    KeyKind("ratios", "hash", "for ever, 2,000 models", "finish_step", "begin_step", "model → bytes per token, learned from stated usage"),
    KeyKind("key:{keyId}", "hash", "until revoked", "create, change, rotate, used", "API, admit, begin_step",
            "an API key: tenant, hash of its secret, unused (1: nobody has come with it since its rotation), old_hash and old_until_ms of the one before, scopes, name, times, limits, policy"),
    KeyKind("schema", "string", "for ever", "schema", "API, worker",
            "the stored form of the newest release that wrote here: one that cannot read it does not start"),
    KeyKind("probe:{mark}", "string", "10 s", "API, errand doctor", "the same",
            "what a diagnosis writes to measure how long a durable write takes; it is deleted afterwards"),
    KeyKind("audit", "stream", "the newest million", "create, change, rotate, revoke, instate, prompt_…", "API",
            "who changed what: at ms, actor (key id or `system`), actor_tenant, request, action, tenant, key, resource (a prompt), details JSON"),
    KeyKind("prompts:{owner}", "zset", "as the tenant", "prompt_add, prompt_seed, prompt_archive", "API",
            "names of an owner's prompts (a tenant, or `shared`); score is when it was created, ms, and -1 for one that was archived"),
    KeyKind("prompt:{owner}:{name}", "hash", "as the tenant", "prompt_add, prompt_seed, prompt_label, prompt_archive", "API",
            "a prompt: description, created_ms, updated_ms, versions (how many), archived (1), revs (the highest of removed labels), "
            "`l:<label>` JSON `{version, rev, atMs, by, protected, past}`, `x:<label>` JSON of the experiment that runs on it"),
    KeyKind("promptversions:{owner}:{name}", "hash", "as the tenant", "prompt_add, prompt_seed", "API, worker",
            "`v:<n>` canonical JSON of version n, which its hash is over, `m:<n>` JSON of what stands beside it: sha256, note, by, atMs"),
    KeyKind("prompthist:{owner}:{name}", "stream", "as the tenant; the newest 10,000", "as the prompt", "API",
            "the entries of the audit log about this prompt"),
    KeyKind("pstats:{tenantId}:{name}:{YYYYMMDD}", "hash", "as the tenant", "settle, reap, feedback", "API",
            "a prompt's figures of a day, by version: `<v>|n` ends, f failures, t tokens, c nano-USD, u tokens without a price, b<k> jobs of 2^(k/4) ms, fn and fs feedback"),
    KeyKind("pstatdays:{tenantId}:{name}", "zset", "as the tenant", "settle, reap, feedback", "API", "the days of the above, score `YYYYMMDD`"),
    KeyKind("arms:{owner}:{experiment}", "hash", "until 90 days after its end", "admit, settle, reap, feedback", "API",
            "`<arm>|assigned` units; `<arm>|<metric>|` n, x (sum), u (units), ss, sn, nn (over units: sum², sum × n, n²)"),
    KeyKind("armunits:{owner}:{experiment}", "hash", "until 90 days after its end", "admit, settle, reap, feedback", "the same",
            "`<arm>|<metric>|<mark of a user>` → `n sum`; `assigned|<mark>` → arm"),
    KeyKind("experiments:{owner}:{name}", "list", "as the tenant", "prompt_experiment, prompt_label", "API",
            "ended experiments as JSON, the newest 100"),
    KeyKind("guarded", "set", "while not empty", "prompt_experiment", "API",
            "`<owner> <name> <label>` of running experiments that have guardrails"),
    KeyKind("docs:{tenantId}", "zset", "as its members", "create", "list", "document ids of a tenant, score 0"),
    KeyKind("doc:{documentId}", "hash", "until deleted", "create, ingest", "API, worker", "a document: names, state, blob keys; revision: of its content, next: the newest that was sent"),
    KeyKind("collections:{tenantId}", "zset", "as the tenant", "index_open", "API, worker", "names of a tenant's collections, score 0"),
    KeyKind("collection:{tenantId}:{name}", "hash", "as its documents", "index_open, index_describe, index_switch", "API, worker",
            "a collection: created_ms, versions (how many ever), current, previous, building (numbers of versions), `v:<n>` JSON of version n"),
    KeyKind("index:{tenantId}:{version}:{name}", "hash", "as the version", "index_put, index_remove", "API, worker",
            "document id → `<revision> <chunks> <JSON of what search shows of it>`"),
    KeyKind("changes:{tenantId}:{version}:{name}", "stream", "the newest 10,000", "index_put, index_remove", "worker",
            "changes of that index, so that workers follow it: d document id"),
    KeyKind("pack:{tenantId}:{documentId}:{version}:{revision}", "string", "as the entry; a day before it", "ingest", "worker",
            "a document's chunks in an index: offsets, text hashes, terms (MessagePack, packed)"),
    KeyKind("vectors:{tenantId}:{documentId}:{version}:{revision}:{name}", "string", "as the entry; a day before it", "ingest", "worker",
            "their vectors: int8 rows, and a scale for each"),
    KeyKind("vectorsof:{tenantId}:{version}:{name}", "hash", "as the version", "ingest, index_put, index_remove", "worker",
            "which of the above there are: `<document id>:<revision>`; one whose vectors went by their time goes when it is looked for"),
    KeyKind("staged:{tenantId}:{jobId}:{marks of model and prefix}", "hash", "a day", "ingest", "ingest", "vectors that a job has bought and not yet put into an index: text hash → int8 row and scale"),
    KeyKind("calibrations", "hash", "for ever, small", "ingest", "ingest", "model, dimensions and prefixes → what its cosines mean (JSON)"),
    KeyKind("chunks:{tenantId}:{marks of model and prefix}", "hash", "as the versions of these marks", "ingest", "ingest",
            "hash of a chunk's text → the document and version that have its vector: nothing is embedded twice"),
    KeyKind("searches:{tenantId}", "zset", "as its members", "search_write, search_erase", "API", "search ids of a tenant, score 0"),
    KeyKind("search:{searchId}", "hash", "until its retention ends", "search_write, search_feedback, search_erase", "API",
            "a search: record (JSON), head (what filters and figures read of it), rev (grows when something of it is erased), tenant, "
            "job, mark of its user, docs (ids); helpful, unhelpful, votes: JSON chunk id → `{r, n}`, relevant and not; `by:<hash>`: "
            "what somebody said of something; after its erasure for a day the tenant alone, so that no late worker writes it again"),
    KeyKind("searchuser:{tenantId}:{hash}", "zset", "as its members", "search_write, search_erase", "search_erase",
            "ids of the searches of a user, score 0, so that they can be erased"),
    KeyKind("searchdoc:{tenantId}:{documentId}", "zset", "as its members", "search_write, search_erase", "search_erase",
            "ids of the searches that considered a document, score 0"),
    KeyKind("vset:{tenantId}:{version}:{collection}", "vectorset", "as the index version", "redis-vset: put, delete", "redis-vset",
            "vectors of an index version: `<document id>:<revision>:<number>`, eight bits a component (Redis 8)"),
    KeyKind("vsetempty:{tenantId}:{version}:{collection}", "hash", "while not empty", "redis-vset: put, delete", "redis-vset",
            "chunks without a vector: `<document id>:<revision>` → their numbers, 32 bits each"),
    KeyKind("delivery:{tenantId}:{deliveryId}", "hash", "until its retention ends", "settle, claim, cancel, reap, …, hook_done", "hook_claim, API",
            "an event that is to be sent to a job's webhook: type, at_ms, url, job, seq, row (JSON: the job's record at the event), status, tries (of this "
            "round of the schedule), made (in all), lease, due_ms, attempts (a JSON object a line)"),
    KeyKind("deliveries:{tenantId}", "zset", "as its members", "as the delivery", "API", "ids of a tenant's deliveries, score 0"),
    KeyKind("deliveries:{tenantId}:{status}", "zset", "as its members", "as the delivery", "API, hook_replay", "those that are pending, delivered, failed or gone"),
    KeyKind("jobdeliveries:{tenantId}:{jobId}", "zset", "as its members", "as the delivery", "API", "those of a job"),
    KeyKind("undelivered", "zset", "while not empty", "as the delivery", "metrics", "`<tenant>:<delivery>` of all that are pending; score is when the event was, ms"),
    KeyKind("hookq:{tenantId}:{mark}", "zset", "while not empty", "as the delivery", "hook_claim",
            "pending deliveries of a tenant to one origin (an endpoint); score is when they are due, or their lease ends, ms"),
    KeyKind("hookbusy:{tenantId}:{mark}", "zset", "while not empty", "hook_claim", "hook_claim, hook_done",
            "those that a courier holds; score is when it counts as lost, ms"),
    KeyKind("hook:{tenantId}:{mark}", "hash", "a day", "hook_done", "hook_claim",
            "an endpoint that fails: fails (in a row), rest_ms (until when it is let alone for that), until_ms (until when it wished to be)"),
    KeyKind("hookgone:{tenantId}:{hash}", "string", "30 days", "hook_done", "hook_claim",
            "when a URL answered 410, as the time part of an id: what jobs made before it would send there ends unsent"),
    KeyKind("hooks", "zset", "while not empty", "as the delivery", "hook_claim", "endpoints `<tenant>:<mark>` with pending deliveries; score is their next turn, ms"),
    KeyKind("hooked", "zset", "while not empty", "admit, retry, settle, …", "hook_repair",
            "jobs with a webhook that are not final; score is when they are looked at: a process that knows of no webhooks may have ended them"),
    KeyKind("hooksecret:{tenantId}", "hash", "as the tenant", "hook_secret", "hook_claim, API",
            "what signs a tenant's deliveries: secret, created_ms, old_secret and old_until_ms of the one before"),
    KeyKind("hookdue", "channel", "-", "as the delivery", "workers", "`due`: an endpoint has something to do earlier than was known"),
    KeyKind("ev:{jobId}", "channel", "-", "every script that emits an event", "API", "`<seq> <ms> <type> <json>`"),
    KeyKind("ctl:{workerId}", "channel", "-", "queue_push, cancel", "one worker",
            "`wake` (a job became ready) or `cancel <jobId> <lease>`"),
    KeyKind("prompts", "channel", "-", "as the prompts", "API", "`<owner> <name>`: labels of this prompt are others now"),
    KeyKind("revoked", "channel", "-", "change, rotate, revoke, instate", "API",
            "a key id that every process must forget, and the marks of its secrets that live on (none: it was revoked)"),
)  # fmt: skip


class Keys(msgspec.Struct, frozen=True):
    """Builds the names; `prefix` sets this installation apart from others in the same Redis."""

    prefix: str

    def job(self, job_id: str) -> str:
        """The record of a job."""
        return f"{self.prefix}job:{job_id}"

    def log(self, job_id: str) -> str:
        """The event log of a job."""
        return f"{self.prefix}log:{job_id}"

    def journal(self, job_id: str) -> str:
        """The journal of a job."""
        return f"{self.prefix}journal:{job_id}"

    def open_calls(self, job_id: str) -> str:
        """The calls of a job that are under way."""
        return f"{self.prefix}open:{job_id}"

    def output(self, job_id: str) -> str:
        """The parts of a job's output."""
        return f"{self.prefix}output:{job_id}"

    @property
    def trash(self) -> str:
        """Blobs that are to be deleted."""
        return f"{self.prefix}trash"

    def feedback(self, job_id: str) -> str:
        """What was said of a job's result."""
        return f"{self.prefix}feedback:{job_id}"

    def jobs(self, tenant: str) -> str:
        """The index of a tenant's jobs."""
        return f"{self.prefix}jobs:{tenant}"

    def gone(self, job_id: str) -> str:
        """The tombstone of a removed job."""
        return f"{self.prefix}gone:{job_id}"

    def idem(self, tenant: str, digest: str) -> str:
        """The first answer to an idempotency key; `digest` hashes method, path and key."""
        return f"{self.prefix}idem:{tenant}:{digest}"

    def delayed(self, lane: str) -> str:
        """Jobs of a lane that are due later."""
        return f"{self.prefix}delayed:{lane}"

    @property
    def expiring(self) -> str:
        """Jobs that expire unless they start."""
        return f"{self.prefix}expiring"

    @property
    def leases(self) -> str:
        """Running jobs by the end of their lease."""
        return f"{self.prefix}leases"

    @property
    def listened(self) -> str:
        """Jobs that are cancelled when nobody listens, by the time of that."""
        return f"{self.prefix}listened"

    @property
    def ticket_secret(self) -> str:
        """What proves stream tickets."""
        return f"{self.prefix}ticket_secret"

    @property
    def retention(self) -> str:
        """Final jobs by the time of their removal."""
        return f"{self.prefix}retention"

    @property
    def paused(self) -> str:
        """Jobs that wait for a budget, by the time at which they are looked at again."""
        return f"{self.prefix}paused"

    def paused_of(self, tenant: str) -> str:
        """A tenant's jobs that wait for a budget."""
        return f"{self.prefix}paused:{tenant}"

    def rated(self, lane: str) -> str:
        """Tenants of a lane that are over their token rate."""
        return f"{self.prefix}q:{lane}:rated"

    @property
    def running(self) -> str:
        """Running jobs per tenant."""
        return f"{self.prefix}running"

    def workers(self, lane: str) -> str:
        """Live workers of a lane."""
        return f"{self.prefix}workers:{lane}"

    @property
    def fleet(self) -> str:
        """The index of worker processes."""
        return f"{self.prefix}fleet"

    def worker(self, worker_id: str) -> str:
        """What a worker says of itself."""
        return f"{self.prefix}worker:{worker_id}"

    @property
    def tenants(self) -> str:
        """The index of tenants."""
        return f"{self.prefix}tenants"

    def tenant(self, tenant: str) -> str:
        """A tenant's record."""
        return f"{self.prefix}tenant:{tenant}"

    def api_keys(self, tenant: str) -> str:
        """The index of a tenant's API keys."""
        return f"{self.prefix}keys:{tenant}"

    def api_key(self, key_id: str) -> str:
        """An API key's record."""
        return f"{self.prefix}key:{key_id}"

    def books(self, scope: str) -> str:
        """The counters of a scope."""
        return f"{self.prefix}books:{scope}"

    def rate(self, scope: str) -> str:
        """The rates of a scope."""
        return f"{self.prefix}rate:{scope}"

    def ledger(self, tenant: str) -> str:
        """A tenant's settled calls."""
        return f"{self.prefix}ledger:{tenant}"

    def usage(self, tenant: str, day: str) -> str:
        """A tenant's usage of one day, `YYYYMMDD`."""
        return f"{self.prefix}usage:{tenant}:{day}"

    def usage_days(self, tenant: str) -> str:
        """The days on which a tenant used something."""
        return f"{self.prefix}usagedays:{tenant}"

    def outs(self, tenant: str) -> str:
        """How long the outputs of a tenant's calls are."""
        return f"{self.prefix}outs:{tenant}"

    @property
    def ratios(self) -> str:
        """Bytes per token of the models."""
        return f"{self.prefix}ratios"

    @property
    def schema(self) -> str:
        """The stored form of what stands here."""
        return f"{self.prefix}schema"

    def probe(self, mark: str) -> str:
        """What a diagnosis writes to measure; `mark` is its own."""
        return f"{self.prefix}probe:{mark}"

    @property
    def audit(self) -> str:
        """The audit log."""
        return f"{self.prefix}audit"

    def prompts(self, owner: str) -> str:
        """The index of an owner's prompts."""
        return f"{self.prefix}prompts:{owner}"

    def prompt(self, owner: str, name: str) -> str:
        """A prompt's labels and experiments."""
        return f"{self.prefix}prompt:{owner}:{name}"

    def prompt_versions(self, owner: str, name: str) -> str:
        """A prompt's versions."""
        return f"{self.prefix}promptversions:{owner}:{name}"

    def prompt_history(self, owner: str, name: str) -> str:
        """Who changed a prompt."""
        return f"{self.prefix}prompthist:{owner}:{name}"

    def prompt_figures(self, tenant: str, name: str, day: str) -> str:
        """A prompt's figures of one day, `YYYYMMDD`."""
        return f"{self.prefix}pstats:{tenant}:{name}:{day}"

    def prompt_days(self, tenant: str, name: str) -> str:
        """The days of which a prompt has figures."""
        return f"{self.prefix}pstatdays:{tenant}:{name}"

    def arms(self, owner: str, experiment: str) -> str:
        """The sums of an experiment's arms."""
        return f"{self.prefix}arms:{owner}:{experiment}"

    def ended_experiments(self, owner: str, name: str) -> str:
        """Experiments on a prompt's labels that have ended."""
        return f"{self.prefix}experiments:{owner}:{name}"

    @property
    def guarded(self) -> str:
        """Running experiments that have guardrails."""
        return f"{self.prefix}guarded"

    @property
    def prompts_channel(self) -> str:
        """Where processes hear of prompts that were changed."""
        return f"{self.prefix}prompts"

    def documents(self, tenant: str) -> str:
        """The index of a tenant's documents."""
        return f"{self.prefix}docs:{tenant}"

    def document(self, document_id: str) -> str:
        """A document's record."""
        return f"{self.prefix}doc:{document_id}"

    def collections(self, tenant: str) -> str:
        """The names of a tenant's collections."""
        return f"{self.prefix}collections:{tenant}"

    def collection(self, tenant: str, name: str) -> str:
        """A collection and the versions of its index."""
        return f"{self.prefix}collection:{tenant}:{name}"

    def index(self, tenant: str, version: int, name: str) -> str:
        """The documents in a version of a collection's index."""
        return f"{self.prefix}index:{tenant}:{version}:{name}"

    def changes(self, tenant: str, version: int, name: str) -> str:
        """The changes of such an index."""
        return f"{self.prefix}changes:{tenant}:{version}:{name}"

    def pack(self, tenant: str, document_id: str, version: int, revision: int) -> str:
        """The chunks of a revision of a document in a version of its collection's index."""
        return f"{self.prefix}pack:{tenant}:{document_id}:{version}:{revision}"

    def vectors(self, tenant: str, document_id: str, version: int, revision: int, name: str) -> str:
        """The vectors of these chunks, in the collection of this name."""
        return f"{self.prefix}vectors:{tenant}:{document_id}:{version}:{revision}:{name}"

    def vectors_of(self, tenant: str, version: int, name: str) -> str:
        """Which documents' vectors there are in a version of a collection's index."""
        return f"{self.prefix}vectorsof:{tenant}:{version}:{name}"

    def staged(self, tenant: str, job_id: str, marks: str) -> str:
        """Vectors that a job has bought."""
        return f"{self.prefix}staged:{tenant}:{job_id}:{marks}"

    @property
    def calibrations(self) -> str:
        """What the cosines of the models mean."""
        return f"{self.prefix}calibrations"

    def chunks(self, tenant: str, marks: str) -> str:
        """Where the vectors of a tenant's texts are."""
        return f"{self.prefix}chunks:{tenant}:{marks}"

    def searches(self, tenant: str) -> str:
        """The index of a tenant's searches."""
        return f"{self.prefix}searches:{tenant}"

    def search(self, search_id: str) -> str:
        """A search and its feedback."""
        return f"{self.prefix}search:{search_id}"

    def searches_of_user(self, tenant: str, mark: str) -> str:
        """The searches of a user, who stands here as a hash."""
        return f"{self.prefix}searchuser:{tenant}:{mark}"

    def searches_of_document(self, tenant: str, document_id: str) -> str:
        """The searches that considered a document."""
        return f"{self.prefix}searchdoc:{tenant}:{document_id}"

    def vector_set(self, tenant: str, version: int, collection: str) -> str:
        """The vectors of a version of a collection's index."""
        return f"{self.prefix}vset:{tenant}:{version}:{collection}"

    def vector_set_empty(self, tenant: str, version: int, collection: str) -> str:
        """The chunks of a version of a collection's index that have no vector."""
        return f"{self.prefix}vsetempty:{tenant}:{version}:{collection}"

    def delivery(self, tenant: str, delivery_id: str) -> str:
        """A delivery to a webhook."""
        return f"{self.prefix}delivery:{tenant}:{delivery_id}"

    def deliveries(self, tenant: str, status: str | None = None) -> str:
        """A tenant's deliveries, or those of a status."""
        return f"{self.prefix}deliveries:{tenant}" + (f":{status}" if status else "")

    def deliveries_of_job(self, tenant: str, job_id: str) -> str:
        """The deliveries of a job."""
        return f"{self.prefix}jobdeliveries:{tenant}:{job_id}"

    @property
    def hooks(self) -> str:
        """Endpoints of webhooks that have something to send, by their next turn."""
        return f"{self.prefix}hooks"

    @property
    def hooked(self) -> str:
        """Jobs with a webhook that are not final."""
        return f"{self.prefix}hooked"

    @property
    def undelivered(self) -> str:
        """Deliveries that are pending, by the time of their event."""
        return f"{self.prefix}undelivered"

    def hook_secret(self, tenant: str) -> str:
        """What signs a tenant's deliveries."""
        return f"{self.prefix}hooksecret:{tenant}"

    @property
    def hooks_channel(self) -> str:
        """Where couriers hear that something is due."""
        return f"{self.prefix}hookdue"

    def events_channel(self, job_id: str) -> str:
        """Where a job's events are published."""
        return f"{self.prefix}ev:{job_id}"

    def control_channel(self, worker_id: str) -> str:
        """Where one worker is woken, and hears of cancellations."""
        return f"{self.prefix}ctl:{worker_id}"

    @property
    def revoked_channel(self) -> str:
        """Where processes hear of revoked keys."""
        return f"{self.prefix}revoked"
