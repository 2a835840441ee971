"""Plants one bug at a time in a copy of the source and runs the test that must notice it.

    ./scripts/run python -m scripts.mutants [NAME …]

Prints a line per bug; exit code 1 when a test stayed green. `docs/proof.md` says when each was last seen to fail.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class Mutant(NamedTuple):
    """A bug: `old` becomes `new` in `file`, and `test` (a pytest -k expression in `tests`) must fail."""

    name: str
    file: str
    old: str
    new: str
    tests: str
    test: str


MUTANTS = (
    Mutant("append-unfenced", "shared/lua/append.lua", "if row[1] ~= a.worker or row[2] ~= tostring(job.lease) or (row",
           "if (row", "test_worker", "only_the_owner_of_the_lease"),
    Mutant("settle-unfenced", "shared/lua/settle.lua", "if not holds(row, a.worker, job.lease) then return 'lost' end",
           "", "test_worker", "only_the_owner_of_the_lease"),
    Mutant("settle-twice", "shared/lua/settle.lua", "if row.settled == tostring(job.lease) then return 'again' end",
           "", "test_worker", "settlement_that_is_repeated"),
    Mutant("append-twice", "shared/lua/append.lua", "== mark then return seq", "== 'x' then return seq", "test_worker", "event_batch_that_is_repeated"),
    Mutant("usage-twice", "shared/lua/finish_step.lua", "if mark == 'exact' then return {2, '[]'} end", "", "test_worker", "usage_is_booked_once"),
    Mutant("estimate-kept", "shared/lua/finish_step.lua", "a.tok_in - booked.i, a.tok_out - booked.o", "a.tok_in, a.tok_out", "test_worker", "usage_is_booked_once"),
    Mutant("journal-lost", "shared/lua/finish_step.lua", "{result = a.result, tokens = total - a.wasted}", "{call = a.call}",
           "test_worker", "journaled_step or usage_is_booked_once"),
    Mutant("idempotency-off", "shared/lua/lib/base.lua", "if not a.idem_body then return nil end\n  local body", "do return nil end\n  local body",
           "test_jobs_api", "idempotency_key"),
    Mutant("mismatch-off", "shared/lua/lib/base.lua", "if body ~= a.idem_body then return {'mismatch'} end", "", "test_jobs_api", "idempotency_key"),
    Mutant("queue-unbounded", "shared/lua/admit.lua", "if waiting >= bound and not a.erases then", "if false then", "test_jobs_api", "queue_is_bounded"),
    Mutant("scheduled-uncounted", "shared/lua/admit.lua", "redis.call('HINCRBY', P .. 'scheduled', a.tenant, 1)", "", "test_jobs_api", "queue_is_bounded"),
    Mutant("class-ignored", "shared/lua/admit.lua", "local score = due + a.class_ms", "local score = due", "test_worker", "priority_orders"),
    Mutant("tenants-unfair", "shared/lua/claim.lua", "tenant.score, tenant.held = bounded(tenant.score + held), tenant.held + held", "tenant.held = tenant.held + held",
           "test_worker", "tenants_take_turns"),
    Mutant("concurrency-unbounded", "shared/lua/claim.lua", "if row[1] then room =", "if false then room =", "test_worker", "concurrency_is_bounded"),
    Mutant("slot-leaked", "shared/lua/lib/job.lua", "redis.call('HINCRBY', P .. 'running', tenant, 0 - count) <= 0", "false", "test_worker", "settlement_that_is_repeated or concurrency"),
    Mutant("handback-counts", "shared/lua/claim.lua", "+ (handed_back and 0 or 1)", "+ 1", "test_worker", "hands_its_job_back"),
    Mutant("poison-spreads", "shared/lua/reap.lua", "lost >= a.max_lost", "false", "test_worker", "kills_three_workers"),
    Mutant("expiry-off", "shared/lua/reap.lua", "(row.status ~= 'queued' and row.status ~= 'scheduled')", "true", "test_worker", "does_not_start_expires"),
    Mutant("restart-untold", "shared/lua/claim.lua", "elseif row[3] and row[3] ~= '' then", "elseif false then", "test_worker", "lost_worker or cut_stream"),
    Mutant("cancel-lost", "shared/lua/lib/job.lua", "redis.call('PUBLISH', P .. 'ctl:' .. row.owner, 'cancel ' .. job_id .. ' ' .. row.lease)", "", "test_worker", "closes_the_models_connection"),
    Mutant("cancel-net-off", "shared/lua/renew.lua", "== 'cancelling' and 2 or 1", "== 'x' and 2 or 1", "test_worker", "found_by_the_heartbeat"),
    Mutant("other-tenants-shown", "shared/lua/view.lua", "if row[1] ~= a.tenant then return {'none'} end", "", "test_jobs_api", "another_tenants_job"),
    Mutant("tombstone-off", "shared/lua/sweep.lua", "redis.call('SET', P .. 'gone:' .. job_id, tenant, 'EX', a.gone_s)", "", "test_worker", "removed_jobs"),
    Mutant("retry-anything", "shared/lua/retry.lua", "then return {'state', row[2]} end", "then end", "test_jobs_api", "retry_is_refused"),
    Mutant("wake-lost", "shared/lua/lib/queue.lua", "  return wake(lane)\nend\n\n-- What follows", "  return false\nend\n\n-- What follows",
           "test_worker", "woken_at_once"),
    Mutant("live-gap", "api/live.py", "if event.seq != self._cursor + 1:", "if False:", "test_streams", "message_that_is_lost"),
    Mutant("behind-unread", "api/live.py", "if self._must_read or live.behind:", "if self._must_read:", "test_streams", "fell_behind"),
    Mutant("reconnect-forgets", "api/live.py", "                for reader in channel.readers:\n                    reader.fall_behind()\n            channel.ready", "            channel.ready", "test_streams", "subscriber_was_away"),
    Mutant("stream-unending", "api/sse.py", "await stream.send(DONE)", "pass", "test_streams", "live_stream or finished_job"),
    Mutant("revocation-slow", "api/app.py", "hub.on_revoked(lambda key_id, _: forget(app[keys.PRINCIPALS], key_id))", "", "test_admin_ops", "revoked_key"),
    Mutant("secret-stored", "shared/stores/tenant_records.py", '"hash": hash_secret(secret)', '"hash": hash_secret(secret), "secret": secret', "test_admin_ops", "tenant_and_its_key"),
    Mutant("hold-leaked", "shared/lua/lib/books.lua", "reserve(hold, 0 - (hold.ht or 0), 0 - (hold.hn or 0))", "", "test_books_model", "as_the_model"),
    Mutant("hold-outlives-worker", "shared/lua/lib/job.lua", "let_go(hold, sent and total or 0, job.tenant)", "", "test_exact", "killed_workers_calls"),
    Mutant("correction-whole", "shared/lua/finish_step.lua", "a.tok_in - booked.i, a.tok_out - booked.o", "a.tok_in, a.tok_out", "test_exact", "only_frozen"),
    Mutant("chunk-is-a-token", "worker/model/calls.py", "self.made += max(1, self._count(text))", "self._counted += 1", "test_exact", "longer_than_any_before"),
    Mutant("stream-closed-late", "worker/limits.py", "if made > self._bound:", "if made > self._bound + 16:", "test_exact", "longer_than_any_before"),
    Mutant("window-stale", "shared/lua/lib/limits.lua", "if row[1] ~= WINDOW.d then book.dt, book.dn = 0, 0 end", "", "test_spending", "window_has_turned"),
    Mutant("slow-start-off", "shared/lua/lib/books.lua", "if calls < KNOWN_CALLS then return 4 end", "", "test_books_model", "as_the_model"),
    Mutant("extend-over", "shared/lua/extend.lua", "local left = hard.limit - hard.used - hard.reserved", "local left = hard.limit - hard.used", "test_books_model", "as_the_model"),
    Mutant("user-uncounted", "shared/lua/lib/books.lua", "for _, scope in ipairs(scopes) do count(scope.id, total, n or 0) end", "count(job.tenant, total, n or 0)", "test_books_model", "as_the_model"),
    Mutant("correction-free", "shared/lua/finish_step.lua", "if a.cost_nano then nano = a.cost_nano - (booked.n or 0) end", "if a.cost_nano then nano = a.cost_nano end", "test_books_model", "as_the_model"),
    Mutant("seen-forgotten", "shared/lua/lib/job.lua", "seen[call_id] or 0", "0", "test_spending", "under_way_is_booked_once"),
    Mutant("soft-again", "shared/lua/lib/books.lua", "if not string.find(',' .. book.ws .. ',', ',' .. crossed.mark .. ',', 1, true) then", "if true then", "test_spending", "soft_limit_warns_once"),
    Mutant("rate-generous", "shared/lua/lib/limits.lua", "return math.max(0, after - NOW_US - most - 0.5), after", "return math.max(0, after - NOW_US - 2 * most), after", "test_rates", "no_span_of_time"),
    Mutant("refusal-spends", "shared/lua/lib/limits.lua", "  if slow then return {'rate', cjson.encode(slow)} end\n  if patience_ms", "  if slow then rate_write(writes) return {'rate', cjson.encode(slow)} end\n  if patience_ms", "test_rates", "charges_none"),
    Mutant("slowed-asleep", "shared/lua/lib/queue.lua", "redis.call('SADD', P .. 'slowed:' .. tenant, job_id)", "", "test_rates", "wakes_what_was_put_off"),
    Mutant("raise-missed", "shared/lua/extend.lua", "why.revision = redis.call", "local _ = redis.call", "test_spending", "while_a_stream_is_closed"),
    Mutant("erases-others", "shared/lua/erase.lua", "if id == T or string.sub(id or '', 1, #T + 1) == T .. ':' or OF_LANES[rest] then", "if string.find(rest, T, 1, true) then", "test_erasure", "same_name"),
    Mutant("scope-unchecked", "api/auth.py", "if scope not in principal.scopes:", "if False:", "test_jobs_api", "without_the_scope"),
    Mutant("quotes-unproven", "worker/documents/cite.py", "        if at < 0:\n            return None\n        return self.places", "        return self.places",
           "test_pure", "quote or citation"),
    Mutant("offset-lost", "worker/documents/cite.py", "self._offset + start, self._offset + end, page)", "start, end, page)", "test_analysis", "all_four_tasks"),
    Mutant("coverage-lies", "worker/tasks/analysis.py", "failed.append((part, error.message))", "pass", "test_analysis", "refuses_is_named"),
    Mutant("fence-open", "worker/fencing.py", r"\n{inside}\n", r"\n{text}\n", "test_analysis", "instructions_inside"),
    Mutant("map-unbounded", "worker/tasks/analysis.py", "Bounded(context, context.deps.settings.map_concurrency, said)", "Bounded(context, 99, said)", "test_analysis", "parallel_within"),
    Mutant("bad-json-kept", "worker/context.py", "            if accept is not None:\n                accept(answer.text)\n", "", "test_analysis", "half_an_answer"),
    Mutant("usage-zero", "worker/model/client.py", "progress.dispatched = True\n", "progress.dispatched = False\n", "test_regressions", "never_zero"),
    Mutant("budget-at-start-only", "worker/context.py", "            self.check_budget(0, keep_back)\n\n", "\n", "test_regressions", "stops_a_running_stream"),
    Mutant("cut-taken-for-whole", "worker/model/client.py", "if not answer.finish_reason:", "if False:", "test_worker", "faults_of_the_model"),
    Mutant("retry-after-ignored", "worker/model/discipline.py", "    if error.retry_after_s is not None:", "    if False:", "test_worker or test_pure", "429_is_retried or backoff"),
    Mutant("loop-unwatched", "worker/upkeep.py", "if silent_s > self.BLOCKED_S + self.TICK_S", "if False", "test_watch", "blocked_loop"),
    Mutant("open-calls-forgotten", "shared/lua/lib/job.lua", "    book_open_calls(job_id, key, load_more(key, row))\n", "    load_more(key, row)\n", "test_review", "in_flight_is_booked"),
    Mutant("begin-counts-twice", "shared/lua/begin_step.lua", "'reused:' .. a.call, 1) == 1 then", "'reused:' .. a.call, 1) >= 0 then", "test_review", "beginning_a_step"),
    Mutant("refusal-is-a-defect", "shared/redis.py", "if not isinstance(error, OUTAGE) and _REFUSALS.search(str(error)[:500]):", "if False:", "test_review", "refuses_writes"),
    Mutant("cancel-any-lease", "worker/engine.py", "and str(attempt.claimed.lease) == lease:", "and True:", "test_review", "late_cancel"),
    Mutant("merge-stops", "worker/tasks/merging.py", "if len(groups) == 1:\n            return merged", "return merged", "test_review", "every_part"),
    Mutant("unreserved", "worker/context.py", "self.tokens_reserved + ahead > budget", "self.tokens + ahead > budget", "test_review", "parallel_calls"),
    Mutant("hub-deaf", "shared/subscriber.py", "names, self._connection = list(self._channels), connection", "names, self._connection = [], connection", "test_review or test_worker", "hub_connects or woken_at_once"),
    Mutant("batch-starved", "shared/lua/claim.lua", "> a.patience_ms then", "> 1e15 then", "test_queue_faults", "never_starved"),
    Mutant("orphans-left", "worker/engine.py", "                    await self._disown()\n", "", "test_queue_faults", "not_answered"),
    Mutant("older-unreachable", "worker/engine.py", "            older.lose()", "            pass", "test_queue_faults", "older_attempt"),
    Mutant("impatient-reaper", "shared/lua/reap.lua", "quiet, unheard = now < quiet_until,", "quiet, unheard = false,", "test_queue_faults", "was_away"),
    Mutant("expired-unbounded", "shared/lua/claim.lua", "local MOST_EXPIRED = 200", "local MOST_EXPIRED = 1e9", "test_queue_faults", "many_expired"),
    Mutant("wake-unchained", "shared/lua/claim.lua", "if not asleep and redis.call('EXISTS', P .. 'q:' .. lane[1] .. ':tenants') == 1 then wake(lane[1]) end", "", "test_queue_faults", "free_at_once"),
    Mutant("dead-slots-counted", "shared/lua/reap.lua", "  count_slots(lane)\n", "", "test_queue_faults", "no_eta"),
    Mutant("cancel-missed", "worker/engine.py", "            self._heart.hurry()", "            pass", "test_queue_faults", "subscriber_is_away"),
    Mutant("bookings-forgotten", "shared/lua/retry.lua", "if string.sub(name, 1, 5) ~= 'call:' then redis.call('HDEL', KEYS[2], name) end", "redis.call('HDEL', KEYS[2], name)", "test_lua_model", "retry_from_the_start"),
    Mutant("newcomers-behind", "shared/lua/lib/queue.lua", "  for _, served in ipairs(redis.call('HMGET', all, unpack(first))) do\n    floor = math.min(floor, tonumber(served or '0'))\n  end", "  floor = tonumber(redis.call('ZRANGE', tenants, 0, 0, 'WITHSCORES')[2] or '0') + 1", "test_queue", "newcomer_does_not"),
    Mutant("weights-ignored", "shared/lua/lib/queue.lua", "math.max(1, tokens) * 1000 / weight", "math.max(1, tokens) * 1000", "test_queue", "share_tokens_by_weight"),
    Mutant("credit-saved-up", "shared/lua/lib/queue.lua", "if floor > value then", "if false then", "test_queue", "idleness"),
    Mutant("parked-for-ever", "shared/lua/lib/job.lua", "    unpark(tenant)\n", "", "test_queue", "parked_tenant"),
    Mutant("aging-off", "shared/lua/admit.lua", "local score = due + a.class_ms", "local score = due + a.class_ms * 1000", "test_queue", "aging_bound"),
    Mutant("nothing-reserved", "worker/engine.py", "settings.worker_slots - reserved\n", "settings.worker_slots\n", "test_queue", "serves_both_lanes"),
    Mutant("everybody-woken", "shared/lua/lib/queue.lua", "'wake') > 0 then return true end", "'wake') < 0 then return true end", "test_queue", "wakes_one_worker"),
    Mutant("wake-net-off", "shared/lua/reap.lua", "  if redis.call('EXISTS', P .. 'q:' .. lane .. ':tenants') == 1 then wake(lane) end", "", "test_queue", "dying_worker"),
    Mutant("drain-woken", "worker/upkeep.py", "self._leaving = True\n", "self._leaving = False\n", "test_queue", "draining_worker"),
    Mutant("eta-dreamt", "shared/lua/lib/pace.lua", "local turns = ahead - free + 1", "local turns = 1", "test_queue", "place_tokens_and_eta"),
    Mutant("told-twice", "shared/lua/tell.lua", "redis.call('HSET', key, 'told', (rank + 1) .. ' ' .. waiting)", "", "test_queue", "told_of_its_place"),
    Mutant("upkeep-by-workers-only", "api/app.py", 'asyncio.create_task(app[keys.UPKEEP].run(), name="upkeep"),', "", "test_queue", "without_any_worker"),
    Mutant("batch-broken", "shared/lua/settle.lua", "if not sound(row) then return 'broken' end", "", "test_queue", "harms_nobody_else"),
    Mutant("etag-of-time", "api/handlers/jobs.py", "etag = f\"W/{etag_of(msgspec.json.encode(timeless))}\"", "pass", "test_queue", "what_a_job_waits_for"),
    Mutant("full-queue-guessed", "shared/lua/lib/pace.lua", "if middle < 0 then return 5 end", "if true then return 5 end", "test_queue", "retry_after_of_a_full_queue"),
    Mutant("retry-unbounded", "shared/lua/retry.lua", "if waiting >= bound then", "if false then", "test_review", "retry_needs_room"),
    Mutant("replay-checked-first", "api/handlers/jobs.py", "if not await request.app[JOBS].was_answered(request[PRINCIPAL].tenant, *idempotency(request, body)):", "if True:", "test_review", "replay_is_answered"),
    Mutant("busy-swept", "api/server.py", "        self.header_since = None\n        return finished", "        return finished", "test_review", "busy_connection"),
    Mutant("unsent-wait", "shared/pipe.py", "unsent = list(self._waiting)\n        self._sent.clear()\n        self._waiting.clear()", "unsent = []\n        self._sent.clear()", "test_review", "wait_behind"),
    Mutant("replies-shifted", "shared/pipe.py", "if not future.done():\n                    future.set_result(reply)", "future.set_result(reply)", "test_review", "replies_reach"),
    Mutant("half-venv-kept", "scripts/bootstrap.py", "MARKER.read_text() == COMPLETE", "True", "test_stack", "interrupted_while"),
    Mutant("durability-unchecked", "shared/redis.py", "if found.wrong and not allow_volatile:", "if False:", "test_admin_ops", "volatile_redis"),
    Mutant("bomb-inflated", "worker/documents/extract.py", "if inflated > MAX_INFLATED_BYTES or", "if False and", "test_documents", "cannot_be_read"),
    Mutant("pages-forgotten", "worker/documents/extract.py", 'return Extracted("application/pdf", "".join(texts), starts', 'return Extracted("application/pdf", "".join(texts), []', "test_documents", "pdf_is_read"),
    Mutant("file-left", "api/handlers/documents.py", '{f"texts/{tenant}/{row[\'id\']}", row["file_blob"], row.get("text_blob", "")}', "set()", "test_documents", "gone_with_its_files"),
    Mutant("leftovers-ignored", "scripts/children.py", "if born_at and born(pid) == born_at:", "if False:", "test_stack", "hard_kill"),
    Mutant("no-restart", "scripts/stack.py", "                await child.start(output)\n            if self.stopping.is_set():", "                pass\n            if self.stopping.is_set():", "test_stack", "starts_again or started_again"),
    Mutant("chat-restarts", "shared/lua/lib/job.lua", "return not (row[1] and row[1] ~= '' and row[2] and row[2] ~= '')", "return true",
           "test_chat", "lost_worker_after_text or deploy_after_text or cut_after_text"),
    Mutant("chat-immortal", "shared/lua/reap.lua", "{job_id, cancel(job_id, key, row)}", "{job_id, row.status}", "test_chat", "let_go_when_nobody"),
    Mutant("outage-abandons", "shared/lua/reap.lua", "if not unheard then", "if true then", "test_chat", "cut_off_by_an_outage or sits_out"),
    Mutant("listener-unrenewed", "api/presence.py", "await self._jobs.listen(jobs[start : start + BATCH])", "pass", "test_chat", "kind_of_listener or comes_back"),
    Mutant("hang-up-unnoticed", "api/server.py", "for callback in list(self.on_lost):", "for callback in ():", "test_chat", "goes_before_the_first_text"),
    Mutant("chat-starts-late", "api/handlers/jobs.py", 'timing["expires_in_ms"] = round((START_S + EXPIRY_S) * 1000)', "pass", "test_chat", "never_started_later"),
    Mutant("place-ignored", "api/handlers/chat.py", 'row.number("grace_ms"), after=after', 'row.number("grace_ms"), after=0', "test_chat", "resumes_after_each"),
    Mutant("resume-pays", "api/handlers/chat.py", "    if _place(request) is not None:\n        await read_body", "    if False:\n        await read_body", "test_chat", "resumes_after_each"),
    Mutant("separators-kept", "shared/events.py", 'if b"\\xe2\\x80" in data or b"\\xc2\\x85" in data:', "if False:", "test_chat", "text_of_every_kind"),
    Mutant("ticket-any-job", "shared/stores/tickets.py", 'f"{key_id} {job_id}"', 'f"{key_id}"', "test_sockets", "this_one_stream"),
    Mutant("ticket-for-ever", "shared/stores/tickets.py", "return row.is_final and row.now_ms >", "return False and row.now_ms >", "test_sockets", "five_minutes"),
    Mutant("sessions-unended", "api/presence.py", "for end in list(self._ends.get(presented, ())):", "for end in ():", "test_sockets", "revoked_key or without_notice"),
    Mutant("key-net-off", "api/presence.py", "for presented in await self._access.ended(list(self._ends)):", "for presented in list[tuple[str, str]]():", "test_sockets", "without_notice"),
    Mutant("cors-any", "api/cors.py", "return origin if origin in allowed else None", "return origin", "test_sockets", "pages_of_named_origins"),
    Mutant("budget-unshared", "api/live.py", "budget.messages < 0 or budget.size_bytes < 0", "False", "test_sockets", "bounded_together"),
    Mutant("gap-takes-the-end", "api/live.py", "cursor = live.newest - PAGE", "cursor = live.newest", "test_sockets", "does_not_read"),
    Mutant("rounds-off", "worker/scribe.py", "ROUND_S + ROUND_PER_STREAM_S * self._streams", "0.0", "test_scribe", "in_rounds or more_streams"),
    Mutant("round-never-hurried", "worker/report.py", "self._put(urgent=True)\n\n    def progress", "self._put(urgent=False)\n\n    def progress", "test_scribe", "do_not_wait"),
    Mutant("ticket-cancels", "api/chat.py", 'if grace_ms and not answer.has_spoken and "ticket" not in request.query:', "if not answer.has_spoken:", "test_chat", "never_cancels_it"),
    Mutant("retry-abandoned", "shared/lua/retry.lua", "redis.call('ZREM', P .. 'listened', a.job)", "", "test_chat", "cut_off_by_an_outage or retried_chat"),
    Mutant("left-speaks", "api/websocket.py", "                if self._members.get(member.job_id) is not member:\n                    return  # left", "                if False:\n                    return  # left", "test_sockets", "left_or_joined"),
    Mutant("refused-for-ever", "shared/lua/admit.lua", "and row[2] == '0') or row[3] then again = nil end", "and false then again = nil end", "test_chat", "come_again"),
    Mutant("void-text-sent", "api/chat.py", "for event in frame if self.has_spoken else _last_run(frame):", "for event in frame:", "test_chat", "last_run"),
    Mutant("silent-chat", "api/chat.py", "                    await stream.heartbeat()", "                    pass", "test_chat", "never_silent"),
    Mutant("garbage-is-ours", "worker/model/failures.py", '"httpcore2", "aiohttp"})', '"httpcore2"})', "test_chat", "speak_http"),
    Mutant("answer-forgotten", "shared/lua/input.lua", "redis.call('HSET', KEYS[2], 'answer:' .. a.request, a.value)", "", "test_sockets", "waits_for_a_person"),
    Mutant("answer-any-question", "shared/lua/input.lua", "or cjson.decode(asked[2]).requestId ~= a.request", "", "test_sockets", "waits_for_a_person_without"),
    # Tenants, keys, audit
    Mutant("patch-over-patch", "shared/lua/change.lua", "~= value then return 'stale' end", "~= value and false then return 'stale' end", "test_tenants", "same_time or overtaken"),
    Mutant("null-kept", "shared/stores/tenant_records.py", "            merged.pop(name, None)", "            pass", "test_tenants", "merges_into"),
    Mutant("scripts-read-old-limits", "shared/lua/change.lua", "redis.call('HDEL', KEYS[1], field)", "", "test_tenants", "scripts_read"),
    Mutant("revision-stands", "shared/lua/change.lua", "redis.call('HINCRBY', KEYS[2], 'revision', 1)", "", "test_tenants", "revision_counts"),
    Mutant("change-unnoticed", "shared/lua/change.lua", "  limits_changed(a.tenant)\n", "", "test_tenants", "raised"),
    Mutant("key-limits-unread", "shared/stores/tenant_records.py", '"policy": encode_policy(limits) or ""', '"policy": ""', "test_keys", "limits_of_its_own"),
    Mutant("old-secret-cached", "api/auth.py", "min(CACHE_S, found.left_ms / 1000)", "CACHE_S", "test_keys", "both_secrets_live"),
    Mutant("old-secret-for-ever", "shared/stores/access.py", "ends.append(int(row[\"old_until_ms\"]))", "pass", "test_keys", "both_secrets_live"),
    Mutant("three-secrets", "shared/stores/access.py", "                if old_hash and int(old_until_ms) > now_ms:", "                if old_hash:", "test_keys", "came_with"),
    Mutant("rotation-ends-all", "api/presence.py", "if not live or (presented[1] and presented[1] not in live):", "if presented:", "test_keys", "came_with or rotated_away"),
    Mutant("rotation-ends-none", "api/presence.py", "if not live or (presented[1] and presented[1] not in live):", "if not live:", "test_keys", "another_secret"),
    Mutant("secret-unlooked-at", "shared/stores/access.py", " or not is_live:", ":", "test_keys", "lost_notice"),
    Mutant("rotated-anew", "shared/lua/rotate.lua", "remember(KEYS[3], reply)", "", "test_keys", "replayed_rotation"),
    Mutant("admin-key-lost", "shared/lua/lib/keys.lua", "return redis.call('HGET', tenant_record, 'admin_key') == id", "return false", "test_keys", "admin_key_cannot"),
    Mutant("use-revives", "shared/lua/used.lua", "if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end", "", "test_keys", "brings_a_revoked"),
    Mutant("use-always-written", "shared/stores/access.py", "> now_s - USED_S:", "> now_s:", "test_keys", "was_used"),
    Mutant("use-fails-requests", "shared/stores/access.py", "        except OUTAGE:\n            self._used.pop", "        except ValueError:\n            self._used.pop", "test_keys", "cannot_be_noted"),
    Mutant("idle-change-audited", "shared/stores/tenants.py", "            if not fields and \"deleting\" not in row:\n", "            if fields is None:\n", "test_audit", "changes_nothing"),
    Mutant("replay-audited", "shared/lua/create.lua", "if again then\n", "if again then\n  audit(a.audit)\n", "test_audit", "changes_nothing"),
    Mutant("start-audited-again", "shared/lua/instate.lua", "if row[2] ~= a.hash then", "if row[2] then", "test_audit", "starts_are"),
    Mutant("page-skips", "shared/stores/audit.py", "return found, found[-1].id", "return found, raw_id.decode()", "test_audit", "in_pages"),
    Mutant("lost-answer-locks-out", "shared/lua/rotate.lua", "elseif not is_replaced then", "else", "test_keys", "lost_answer"),
    Mutant("use-unmarked", "shared/lua/used.lua", "redis.call('HDEL', KEYS[1], 'unused')", "return 1", "test_keys", "taken_for_lost"),
    Mutant("first-use-throttled", "shared/stores/access.py", "if first_of is None and self._used", "if self._used", "test_keys", "taken_for_lost"),
    Mutant("no-look-without-notice", "api/presence.py", "                    self._end(presented)\n", "                    pass\n", "test_keys", "without_any_notice"),
    Mutant("pages-by-size", "api/handlers/usage.py", 'parameters.get("order", Order.NAME)', 'parameters.get("order", Order.TOKENS)', "test_usage", "while_calls"),
    Mutant("formula-in-csv", "shared/usage.py", "return \"'\" + text if", "return text if", "test_usage", "formula"),
    Mutant("week-taken-for-day", "shared/usage.py", "if not _DAY.match(text):", "if len(text) < 10:", "test_usage", "bad_parameter"),
    Mutant("ratios-unbounded", "shared/lua/finish_step.lua", "if before or redis.call('HLEN', P .. 'ratios') < MOST_KINDS then", "if true then", "test_usage", "so_many_models"),
    Mutant("more-left-than-quota", "shared/limits.py", "quota = max(rate.limit, rate.burst)", "quota = rate.limit", "test_rates", "never_more_than"),
    Mutant("deletion-unsaid", "shared/lua/create.lua", "if parent[2] then return {'deleting', parent[1]} end", "", "test_tenants", "changed_no_more"),
    Mutant("deletion-rotates", "shared/lua/rotate.lua", "if redis.call('HEXISTS', KEYS[2], 'deleting') == 1 then return {'deleting'} end", "", "test_tenants", "changed_no_more"),
    # Upstream discipline
    Mutant("breaker-never-opens", "worker/model/breaker.py", "self._in_a_row >= self._failures:", "False:", "test_upstream", "left_alone or breaker"),
    Mutant("probes-in-crowds", "worker/model/breaker.py", "if left_s > 0 or self._is_probing:", "if left_s > 0:", "test_upstream", "breaker"),
    Mutant("fallback-skipped", "worker/model/discipline.py", "if self._at + 1 < len(self._models):", "if False:", "test_upstream", "fallback"),
    Mutant("shown-text-repeated", "worker/context.py", "if shown or not await", "if not await", "test_upstream", "was_shown"),
    Mutant("pause-ignored", "worker/model/window.py", " and monotonic_s() >= self._paused_until_s", "", "test_upstream", "wished_for"),
    Mutant("window-collapses", "worker/model/window.py", "self.limit = max(self._floor, min(", "self.limit = max(1.0, min(", "test_upstream", "halves_at_most"),
    Mutant("jobs-queue-up", "worker/model/window.py", "self._waiting.setdefault(owner, deque())", 'self._waiting.setdefault("", deque())', "test_upstream", "take_turns"),
    Mutant("place-leaks", "worker/model/window.py", "                    self._leave()  # the place was given in the same moment", "                    pass", "test_upstream", "no_place_leaks or gives_it_back"),
    Mutant("thoughts-free", "worker/model/stream.py", "max(made, _count(self.total_tokens) - given)", "made", "test_upstream", "normalised"),
    Mutant("calls-run-together", "worker/model/stream.py", "piece.id != found.id:", "False:", "test_upstream", "put_together"),
    Mutant("part-unfenced", "shared/lua/finish_step.lua", "if not holds then return {0, warned} end", "if a.part then redis.call('HSET', KEYS[4], int(a.part), a.part_value) end\nif not holds then return {0, warned} end", "test_output", "kept_with_its_result"),
    Mutant("gap-served", "api/handlers/output.py", "parts = contiguous(parts)", "pass", "test_output", "no_gap"),
    Mutant("short-output", "api/handlers/output.py", "        if left:\n            raise BlobMissingError(part.blob)", "", "test_output", "missing_or_short"),
    Mutant("validator-too-early", "api/handlers/output.py", "if row.is_final else None\n    if etag", "if row else None\n    if etag", "test_output", "no_gap"),
    Mutant("if-range-ignored", "api/handlers/output.py", 'request.headers.get("If-Range", etag) == etag', "True", "test_output", "validator"),
    Mutant("blobs-outlive", "shared/lua/sweep.lua", "with_all('SADD', P .. 'trash', trash)", "", "test_output", "die_with_their_job"),
    Mutant("prefix-dropped-at-retry", "shared/lua/retry.lua", "string.match(value, '%S+$')", "string.match(value, '(outputs/[^/]+/[^/]+)')", "test_output", "from_the_start_drops"),
    Mutant("trash-forgotten", "shared/upkeep.py", "                return  # said in the log where it happened", "                gone = keys", "test_output", "keeps_the_list"),
    Mutant("prefix-too-wide", "shared/blobs/s3.py", '[entry["path"] for entry in page]', '[entry["path"] for entry in page] + [prefix + "2/0"]', "test_blobs", "prefix_is_deleted"),
    Mutant("upload-unfinished", "shared/blobs/s3.py", "await writer.__aexit__(type(error), error, error.__traceback__)", "await writer.__aexit__(None, None, None)", "test_blobs", "too_large_or_cut"),
    Mutant("document-unbounded", "api/handlers/documents.py", "if self._size > limit:\n                    raise", "if False:\n                    raise", "test_batch", "has_its_limit"),
    Mutant("line-unbounded", "shared/batch.py", "        else:\n            pieces.clear()", "        else:\n            pieces.append(piece)", "test_batch", "endless_line"),
    Mutant("batch-read-whole", "worker/documents/library.py", 'if row.get("media_type") == MEDIA_TYPE:\n                raise', "if False:\n                raise", "test_batch", "no_document_to_analyse"),
    Mutant("factorial-unbounded", "worker/tools/calculate.py", "if not 0 <= n <= 400:", "if n < 0:", "test_tools", "refused_at_once"),
    Mutant("tool-unbounded", "worker/tools/base.py", "asyncio.timeout(tool.timeout_s)", "asyncio.timeout(None)", "test_tools", "takes_too_long"),
    Mutant("scope-ignored", "worker/tools/documents.py", "    if asked in named or (not named and context.collection is None):", "    if asked:", "test_tools", "named_only"),
    Mutant("deleted-still-found", "worker/documents/passages.py", "            if not listed:", "            if False:", "test_tools", "found_no_more"),
    Mutant("search-unbounded", "worker/documents/passages.py", "characters > self._limit:", "characters > 10**9:", "test_tools", "search_is_bounded"),
    Mutant("names-unchecked", "worker/fetch.py", "if not private and not all(", "if not private and address and not all(", "test_fetch", "private_address_is_refused"),
    Mutant("one-good-is-enough", "worker/fetch.py", "not all((found := literal(text))", "not any((found := literal(text))", "test_fetch", "among_public"),
    Mutant("resolved-twice", "worker/fetch.py", "resolver=_Pinned(addresses)", "resolver=_Pinned(await self._resolve(url.raw_host or '', 0))", "test_fetch", "that_was_checked"),
    Mutant("wrapping-unseen", "worker/fetch.py", "            return is_public(ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF))", "            return True", "test_fetch", "any_wrapping"),
    Mutant("redirects-unchecked", "worker/fetch.py", "allow_redirects=False", "allow_redirects=True", "test_fetch", "redirect_is_checked"),
    Mutant("downgrade-allowed", "worker/fetch.py", 'if url.scheme == "https" and answer.scheme == "http":', "if False:", "test_fetch", "from_https"),
    Mutant("bomb-unpacked", "worker/fetch.py", "or len(content) > self._bytes:", "or len(content) > 10**9:", "test_fetch", "bombs_are_not"),
    Mutant("body-endless", "worker/fetch.py", "if received > self._bytes or len(content) > self._bytes:", "if received > 10**9:", "test_fetch", "endless or bombs"),
    Mutant("proxy-trusted", "worker/fetch.py", "trust_env=False", "trust_env=True", "test_fetch", "proxy"),
    Mutant("any-port-open", "worker/fetch.py", "if not private and port not in PORTS:", "if False:", "test_fetch", "no_plain_web_address"),
    Mutant("mcp-left-running", "worker/engine.py", "        await self._deps.tools.close()\n", "", "test_mcp", "takes_its_servers"),
    Mutant("mcp-not-restarted", "worker/tools/mcp.py", "if self._connection is None or self._connection.broken:\n            self._connection = C", "if self._connection is None:\n            self._connection = C", "test_mcp", "started_again or idle"),
    Mutant("mcp-death-unseen", "worker/tools/mcp_connection.py", "                    on_end()\n", "", "test_mcp", "idle"),
    Mutant("mcp-environment-ours", "worker/tools/mcp_connection.py", "env=server.env)", "env={**os.environ, **server.env})", "test_mcp", "none_of_our_keys"),
    Mutant("mcp-noise-unread", "worker/tools/mcp_connection.py", "        while piece := await reader.read(4_096):", "        while piece := await asyncio.sleep(60, b''):", "test_mcp", "noisy"),
    Mutant("mcp-error-hidden", "worker/tools/mcp.py", "is_error=result.is_error)", "is_error=False)", "test_mcp", "told_to_the_model"),
    Mutant("mcp-secret-told", "worker/tools/mcp_connection.py", 'cannot be run."', 'cannot be run: {server.command}."', "test_mcp", "cannot_be_used"),
    # The three jobs
    Mutant("texts-paid-twice", "worker/batch/plan.py", "if added.rowcount == 0:", "if False:", "test_embedding", "identical_texts"),
    Mutant("split-gives-up", "worker/batch/asking.py", "return error.status in SPLITTABLE", "return False", "test_embedding", "split_until"),
    Mutant("splits-for-ever", "worker/batch/asking.py", "self._refused >= GIVE_UP_AFTER", "False", "test_embedding", "fails_soon"),
    Mutant("refused-not-asked-again", "worker/tasks/embedding.py", "while reused and done.again and done.run < context.job.run:", "while False:", "test_embedding", "only_for_items"),
    Mutant("models-mixed", "api/handlers/jobs.py", "isinstance(job, StoredEmbeddingJob) and", "False and", "test_embedding", "never_mixed"),
    Mutant("order-of-arrival", "worker/model/vectors.py", "at = place if entry.index is None else entry.index", "at = place", "test_upstream", "do_not_fit"),
    Mutant("plan-by-chance", "worker/batch/plan.py", "digest = hashlib.sha256(msgspec.json.encode([self.number, more]))", "digest = hashlib.sha256(bytes(id(self)))", "test_journal", "killed and embedding"),
    Mutant("table-closed-at-work", "worker/batch/plan.py", "            if self._is_closed:\n                return done\n", "", "test_embedding", "closed_under"),
    Mutant("input-orphaned", "api/handlers/jobs.py", "if made is not None and admitted.replayed:", "if False:", "test_embedding", "no_second_input"),
    Mutant("calls-one-by-one", "worker/agent/acting.py", "AT_A_TIME: Final = 8", "AT_A_TIME: Final = 1", "test_agent", "side_by_side"),
    Mutant("repeats-made", "worker/agent/acting.py", "if same and not may_repeat:", "if False:", "test_agent", "repeated_call"),
    Mutant("no-reserve", "worker/tasks/agent.py", "self._reserve = 0 if budget is None", "self._reserve = 0 if True", "test_agent", "token_budget"),
    Mutant("no-time-reserve", "worker/tasks/agent.py", "context.ends_s - min(MOST_TIME_S, context.job.timeout_s * TIME_SHARE)", "context.ends_s + 60", "test_agent", "short_of_time"),
    Mutant("approval-skipped", "worker/agent/acting.py", "(waiting if self._needs_approval(tool) else ready)", "ready", "test_agent", "needs_approval"),
    Mutant("done-twice", "shared/lua/begin_step.lua", "if a.once and entry.call", "if false and entry.call", "test_agent", "must_not_happen_twice"),
    Mutant("doubt-forgotten", "shared/lua/finish_step.lua", "elseif not a.keep_mark then", "else", "test_agent", "stays_in_doubt"),
    Mutant("folds-the-newest", "worker/agent/conversation.py", "for place, message in enumerate(found):", "for place, message in reversed(list(enumerate(found))):", "test_agent", "folded or folding"),
    Mutant("broken-arguments-sent", "worker/agent/conversation.py", 'return msgspec.json.encode({"invalid": arguments}).decode()', "return arguments", "test_agent", "malformed"),
    Mutant("page-fetched-again", "worker/tasks/analysis.py", "extracted = await _fetch(source.url, context)", "extracted, _ = await context.deps.tools.pages.read(source.url)", "test_analysis", "fetched_once"),
    Mutant("feedback-twice", "shared/lua/feedback.lua", "local again = replay(KEYS[3])", "local again = nil", "test_estimates", "counted_and_shown"),
    # What a tester found
    Mutant("replay-charged", "worker/context.py", "            # Here, not before: what is in the journal costs nothing more.\n", "            pass\n        self._check_budget(progress.input_tokens, keep_back)\n        if True:\n            pass\n\n        async def call(step: Step) -> bytes:\n", "test_agent", "not_charged_again"),
    Mutant("alike-made-twice", "worker/agent/acting.py", "        same.append(_Time(step))  # at once", "        same[:0] = [] # at once", "test_agent", "two_alike"),
    Mutant("bad-calls-for-ever", "worker/agent/acting.py", "is_error=True, repeated=len(times) > 1)", "is_error=True)", "test_agent", "no_way_to_go_on"),
    Mutant("approval-cut", "worker/agent/acting.py", "with {written}. Approve?", "with {written[:2000]}. Approve?", "test_agent", "shown_in_full"),
    Mutant("folds-known-by", "worker/tasks/agent.py", "                        known_by=whole,\n", "", "test_agent", "fold_otherwise"),
    Mutant("last-once", "worker/tasks/agent.py", "            except (ContextTooLong, BudgetExhausted, BadOutput):\n                if number == len(calls):", "            except (ContextTooLong, BudgetExhausted, BadOutput):\n                if True:", "test_agent", "made_to_fit"),
    Mutant("batches-cancel-batches", "worker/tasks/embedding.py", "await self._ended[number].wait()", "await asyncio.sleep(3_600)", "test_embedding", "hold_nothing_up"),
    Mutant("server-fall-ends-all", "worker/batch/asking.py", "frozenset({400, 413, 422, 500})", "frozenset({400, 413, 422})", "test_embedding", "falls_over"),
    Mutant("no-probe", "worker/batch/asking.py", "await self._request([probe])  # raises", "raise error  # raises", "test_embedding", "do_not_condemn"),
    Mutant("pays-on", "worker/batch/asking.py", "            if self._verdict.error is not None:\n                place.left()\n                raise self._verdict.error\n", "", "test_embedding", "after_a_fatal"),
    Mutant("third-run-pays", "worker/tasks/embedding.py", "identity + msgspec.json.encode(done), done)", "identity + str(context.job.run).encode(), done)", "test_embedding", "second_run_mended"),
    Mutant("errors-read-whole", "worker/model/client.py", "            if len(content) > MAX_ERROR_BYTES:\n                break\n", "", "test_upstream", "only_the_beginning"),
    Mutant("never-waits", "worker/report.py", "return self._owed > MOST_OWED", "return False", "test_scribe", "model_waits"),
    Mutant("nan-passes", "worker/model/vectors.py", "if not math.isfinite(sum(numbers)):", "if False:", "test_upstream", "no_number"),
    Mutant("chunks-are-tokens", "worker/model/calls.py", "1 if len(text) <= CHUNK_CHARACTERS else len(text) // CHARACTERS_PER_TOKEN", "1", "test_upstream", "many_tokens"),
    Mutant("never-fits-unsaid", "shared/lua/lib/limits.lua", "local never = requested and requested > hard.limit or hard.limit <= 0", "local never = false", "test_limits_hold", "needs_more or cut_with"),
    Mutant("vocabulary-unused", "worker/model/calls.py", "if self._count is not None:", "if False:", "test_limits_hold", "models_vocabulary"),
    Mutant("unsent-is-charged", "shared/lua/lib/job.lua", "local sent = seen[call_id] ~= -1", "local sent = true", "test_embedding", "only_what_was_sent"),
    Mutant("sent-is-free", "worker/model/client.py", "        progress.sending()\n", "", "test_embedding", "only_what_was_sent"),
    Mutant("large-starves", "shared/lua/begin_step.lua", "then let_fill(slow) end", "then local _ = 0 end", "test_limits_hold", "starved"),
    Mutant("revoked-is-free", "shared/lua/revoke.lua", "keep_limits(KEYS[1], a.tenant, a.id)\n", "", "test_limits_hold", "revoked_key"),
    Mutant("mended-asleep", "shared/lua/finish_step.lua", "if total < booked.i + booked.o + booked.e then budget_freed(job.tenant) end", "", "test_limits_hold", "mended_wake"),
    Mutant("rebuilt-asleep", "shared/lua/rebuild.lua", "budget_freed(a.tenant)\n", "", "test_limits_hold", "mended_wake"),
    Mutant("put-off-is-started", "api/chat.py", "self.started = False  # a worker", "pass  # a worker", "test_refusals", "test_a_chat"),
    Mutant("late-refusal-spends", "shared/lua/settle.lua", "    refund_request(scopes_of(", "    local _ = (scopes_of(", "test_refusals", "no_room_in_time"),
    Mutant("give-up-spends", "shared/lua/cancel.lua", "tokens_of(load_more(key, row)) == 0 then refund_request(scopes) end", "false then local _ = 0 end", "test_refusals", "nobody_began"),
    Mutant("late-refusal-replayed", "shared/lua/admit.lua", " or row[3] then again = nil end", " then again = nil end", "test_refusals", "no_room_in_time"),
    Mutant("held-is-spent", "worker/outcome.py", "if error.delay_s is not None and (", "if False and (", "test_refusals", "only_reserved"),
    Mutant("held-fails", "shared/lua/settle.lua", "policy.fail and not job.held", "policy.fail", "test_refusals", "held_up_not_failed"),
    Mutant("put-off-for-old-limits", "shared/lua/settle.lua", "    if limits_moved(row.tenant, job.revision) then due = NOW end\n    redis.call('HSET', key, 'status', 'queued'", "    redis.call('HSET', key, 'status', 'queued'", "test_refusals", "moved_before"),
    Mutant("texts-unreserved", "shared/lua/extend.lua", "  hold.i = hold.i + more\n", "", "test_limits_hold", "texts_of_a_step"),
    Mutant("label-unguarded", "shared/lua/prompt_label.lua", "  return a.revs ~= nil\n", "  return false\n", "test_prompts", "from_what_was_read or one_reading"),
    Mutant("etag-again", "shared/lua/lib/prompts.lua", "redis.call('HSET', record, 'revs', int(math.max(revs, it.rev)))", "", "test_prompts", "no_etag_comes_again"),
    Mutant("protection-off", "shared/lua/prompt_label.lua", "if (is_protected or protects) and not a.promotes then return {'protected', a.label} end", "", "test_prompts", "takes_the_scope"),
    Mutant("past-forgotten", "shared/lua/lib/prompts.lua", "    it.past[#it.past + 1] = it.version\n", "    it.past = {it.version}\n", "test_prompts", "rolled_back"),
    Mutant("past-unbounded", "shared/lua/lib/prompts.lua", "if #it.past > a.most_past then table.remove(it.past, 1) end", "", "test_prompts", "a_hundred_moves"),
    Mutant("label-half-made", "shared/lua/prompt_add.lua", "before[label].protected and not a.promotes", "false", "test_prompts", "whole_or_not"),
    Mutant("idle-move-told", "shared/lua/prompt_label.lua", "if not moves and not protects and not adopts then", "if false then", "test_prompts", "changes_nothing"),
    Mutant("prompt-untold", "shared/lua/lib/prompts.lua", "redis.call('PUBLISH', P .. 'prompts', a.owner .. ' ' .. a.name)", "", "test_prompts", "every_change_is_told"),
    Mutant("rollback-twice", "shared/lua/prompt_label.lua", "  remember(KEYS[2], reply)\n", "", "test_prompts", "rolls_back_once"),
    Mutant("archive-restarts", "shared/lua/lib/prompts.lua", "local number = int(count + 1)", "local number = int(stands and count + 1 or 1)", "test_prompts", "leaves_its_versions or never_change"),
    Mutant("dead-tenant-writes", "shared/lua/lib/prompts.lua", "if tenant[2] then return {'deleting', tenant[1]} end", "", "test_prompts", "writes_no_prompt"),
    Mutant("shared-by-anybody", "api/prompts.py", "    require(request[PRINCIPAL], Scope.ADMIN)\n", "", "test_prompts", "by_administrators_only"),
    Mutant("operator-named", "api/prompts.py", "return owner == SHARED and Scope.ADMIN not in request[PRINCIPAL].scopes", "return False", "test_prompts", "by_administrators_only"),
    Mutant("shadow-lost", "api/prompts.py", "        owners.append(SHARED)\n", "        owners.insert(0, SHARED)\n", "test_prompts", "goes_before_the_shared"),
    Mutant("shared-doubled", "api/handlers/prompt_lists.py", "for ms, name in await store.names(SHARED) if name not in names]", "for ms, name in await store.names(SHARED)]", "test_prompts", "goes_before_the_shared"),
    Mutant("operator-overridden", "shared/lua/prompt_seed.lua", "(not before or before.by == 'system')", "true", "test_prompt_defaults", "overrides_no_operator"),
    Mutant("default-not-adopted", "shared/lua/prompt_label.lua", "before.by == 'system' and a.audit.actor ~= 'system'", "false", "test_prompt_defaults", "put or overrides_no_operator"),
    Mutant("default-stays", "shared/lua/prompt_seed.lua", "(not before or before.by == 'system')", "not before", "test_prompt_defaults", "nobody_touched"),
    Mutant("default-again", "shared/lua/prompt_seed.lua", "if beside.sha256 == a.sha256 then return 'known' end", "", "test_prompt_defaults", "shipped_prompts or at_once or nobody_touched"),
    Mutant("seeded-once-only", "api/app.py", "            await asyncio.sleep(SEED_S)\n            continue\n", "            return\n", "test_prompt_defaults", "redis_is_back"),
    Mutant("value-expanded", "shared/templates.py", "            parts += (values[name], text)\n        return \"\".join(parts)", "            parts += (values[name], text)\n        return re.sub(r\"{{(\\w+)}}\", lambda m: values.get(m[1], m[0]), \"\".join(parts))", "test_prompt_templates", "no_value_is_expanded"),
    Mutant("diff-roundabout", "shared/diff.py", "before[place - 1] < before[place]", "before[place - 1] > before[place]", "test_prompt_templates", "the_shortest"),
    Mutant("diff-all-or-nothing", "shared/diff.py", "for pieces in (_WORDS, _LINES):", "for pieces in (_WORDS,):", "test_prompt_templates", "compared_by_lines"),
    Mutant("folder-by-letters", "shared/stores/prompt_records.py", 'name.startswith(folder + "/")', "name.startswith(folder)", "test_prompts", "listed_and_found"),
    Mutant("name-with-line-break", "shared/prompts.py", "[A-Za-z0-9._-]*)*$(?!\\n)", "[A-Za-z0-9._-]*)*$", "test_prompt_templates", "test_names"),
    Mutant("refund-of-the-past", "shared/lua/lib/books.lua", "local back = math.min(0 - more * each, still)", "local back = 0 - more * each", "test_rates", "flowed_in"),
    Mutant("handback-is-put-off", "api/chat.py", " and b'\"rateLimit\"' in event.data:", ":", "test_refusals", "handed_back_late"),
    Mutant("held-replayed", "shared/lua/settle.lua", "held_up = outcome == 'failed' and job.held", "held_up = false", "test_refusals", "only_reserved"),
    Mutant("batch-over-its-budget", "worker/batch/asking.py", "            context.check_budget(more)\n", "", "test_embedding", "repeats_keep_to"),
    Mutant("rollback-for-some", "shared/lua/prompt_label.lua", "if stored then end_experiment(", "if false then end_experiment(", "test_experiments", "rollback_ends"),
    Mutant("guard-forgotten", "shared/lua/erase.lua", "found = found + redis.call('SREM', name, member)", "found = found", "test_experiments", "leaves_no_guard"),
    Mutant("retry-uncounted", "shared/lua/retry.lua", "    assigned(a.record, a.tenant)\n", "", "test_experiments", "leaves_figures_apart"),
    Mutant("label-at-run", "api/admission.py", '"pins": spelled_pins(chosen.pins),\n        "prompt"', '"prompt"', "test_prompt_jobs", "says_its_prompt_first"),
    Mutant("retry-resolves-anew", "api/handlers/jobs.py", "if wish.prompt is None:\n        return record", "if job.prompt is None:\n        return record", "test_prompt_jobs", "keeps_the_version"),
    Mutant("head-for-ever", "api/pinning.py", "asked_s + HEAD_S", "asked_s + 3_600", "test_prompt_propagation", "believed or without_its_notice"),
    Mutant("notice-unheard", "api/app.py", "hub.on_prompt(app[keys.PINNING].forget)", "", "test_prompt_propagation", "everywhere_at_once"),
    Mutant("shadow-hides-all", "api/pinning.py", "if head.version_of(wanted) is not None:", "if head is there[0] and head.version_of(wanted) is not None:", "test_prompt_jobs", "without_a_deployment"),
    Mutant("coverage-shrinks", "shared/stores/experiments.py", "if coverage < known.coverage:", "if False:", "test_experiments", "coverage_grows"),
    Mutant("coverage-moves-arms", "shared/assignment.py", '_share(salt, "arm", unit)', '_share(salt, "coverage", unit)', "test_experiments", "stays_in_and_keeps"),
    Mutant("arm-by-chance", "api/pinning.py", "unit = user if user is None or head.owner == tenant else", "unit = secrets.token_hex(8) if user else", "test_experiments", "users_keep"),
    Mutant("tenants-share-users", "api/pinning.py", "user is None or head.owner == tenant else", "True else", "test_experiments", "of_one_name"),
    Mutant("judged-often", "shared/lua/feedback.lua", " or string.sub(redis.sha1hex(KEYS[1]), 1, 20)", "", "test_experiments", "one_unit"),
    Mutant("all-won-is-certain", "shared/evidence.py", "if bounds is not None:", "if False:", "test_evidence", "high_share"),
    Mutant("heavy-users-tell", "shared/evidence.py", "return sums.n**2 / sums.nn if sums.nn > 0 else 0.0", "return sums.units", "test_evidence", "heavy_users"),
    Mutant("users-counted-as-jobs", "shared/lua/lib/outcomes.lua", "if unit then\n    local units", "if false then\n    local units", "test_experiments", "summed_by_user"),
    Mutant("run-told-twice", "shared/lua/lib/outcomes.lua", "total - tonumber(job.told_tok or job.base_tok or '0')", "total", "test_experiments", "own_ends"),
    Mutant("guardrail-hasty", "shared/figures.py", "(difference.low if metric in COSTS else -difference.high)", "(difference.high if metric in COSTS else -difference.low)", "test_experiments", "guardrail_is_crossed"),
    Mutant("peeking-is-free", "shared/evidence.py", "math.sqrt(variance * (1 + share) * (math.log1p(1 / share) - 2 * math.log(alpha)))", "1.96 * math.sqrt(variance)", "test_evidence", "equal_arms"),
    Mutant("jobs-are-independent", "shared/evidence.py", "spread = sums.ss - 2 * ratio * sums.sn + ratio * ratio * sums.nn", "spread = sums.x - ratio * sums.x", "test_evidence", "users_jobs"),
    Mutant("ratio-one-look", "shared/evidence.py", "math.lgamma(1 + count) - count * math.log(weight / total)", "0.5 * math.lgamma(1 + count) * 0 + (count - sum(counts) * weight / total) ** 2 / (2 * sum(counts) * weight / total)", "test_evidence", "shared_out_wrongly"),
    Mutant("odd-breaks-folded", "scripts/commands/prompt_files.py", "style = '\"' if _ODD_BREAKS.search(value) else ", "style = ", "test_cli_prompts", "any_text"),
    Mutant("empty-dropped", "scripts/commands/prompt_files.py", 'if view[member] is not None and (member != "variables" or view[member]):', "if view[member]:", "test_cli_prompts", "empty_and_there"),
    Mutant("dry-run-mute", "scripts/commands/prompt_sync.py", "return 1 if lines and arguments.exit_code else 0", "return 0", "test_cli_prompts", "by_its_code"),
    Mutant("rollback-pushed-over", "scripts/commands/prompt_sync.py", 'if label["changedAt"] > newest["createdAt"]:', "if False:", "test_cli_prompts", "undoes_no_rollback"),
    Mutant("said-twice", "scripts/commands/prompt_source.py", "if key.value in seen:", "if False:", "test_cli_prompts", "line_and_fault"),
    Mutant("aliases-read", "scripts/commands/prompt_source.py", "if self.check_event(yaml.AliasEvent):", "if False:", "test_cli_prompts", "line_and_fault"),
    Mutant("ramp-unguards", "scripts/commands/experiments.py", "kept if arguments.guardrails is None", "[] if arguments.guardrails is None", "test_cli_prompts", "more_are_let_in"),
    Mutant("start-changes", "scripts/commands/experiments.py", 'headers = {"If-None-Match": "*"}', "headers: dict[str, str] = {}", "test_cli_prompts", "from_the_command_line"),
    Mutant("values-unfilled", "worker/wording.py", "self._ref.variables or {}", "{}", "test_prompt_jobs", "says_its_prompt_first"),
    Mutant("parameters-dropped", "worker/tasks/chat.py", "parameters.temperature if spec.temperature is None else spec.temperature", "spec.temperature", "test_prompt_jobs", "says_its_prompt_first"),
    Mutant("index-unfenced", "shared/lua/index_put.lua", "if row[1] ~= a.worker or row[2] ~= tostring(a.lease) or", "if false and", "test_search", "lost_its_lease"),
    Mutant("old-content-wins", "shared/lua/index_put.lua", "if a.fields and tonumber(doc[2] or '0') > a.revision then return {'newer'} end", "", "test_search", "newer_content"),
    Mutant("old-packs-left", "shared/lua/index_put.lua", "if had and tonumber(had) ~= a.revision then redis.call('UNLINK'", "if false then redis.call('UNLINK'", "test_search", "only_changed_chunks"),
    Mutant("change-untold", "shared/lua/index_put.lua", "redis.call('XADD', KEYS[5], 'MAXLEN', '~', 10000, '*', 'd', a.document)", "", "test_search", "two_workers_find"),
    Mutant("removal-untold", "shared/lua/index_remove.lua", "redis.call('XADD', P .. 'changes:'", "redis.call('XLEN', P .. 'x') redis.call('XADD', P .. 'other:'", "test_search", "two_workers_find or delete_removes"),
    Mutant("vectors-left", "shared/lua/index_remove.lua", "redis.call('UNLINK', P .. 'pack:' .. tail, vectors_of(a.tenant, a.document, version, revision, a.collection))", "", "test_search", "delete_removes"),
    Mutant("switch-half-built", "shared/lua/index_switch.lua", "if #missing > 1 then return missing end", "", "test_collections", "while_a_version_is_built or rollback_is_one"),
    Mutant("patch-unindexed", "shared/lua/index_patch.lua", "if a.fields.metadata then entry.metadata", "if false then entry.metadata", "test_search", "metadata_and_title"),
    Mutant("others-forgotten", "worker/search/indexer.py", "rows |= await self._from_others(spec, missing)", "pass", "test_search", "same_content"),
    Mutant("cuts-by-count", "worker/search/chunks.py", "% ONE_IN == 0", "% ONE_IN == ONE_IN", "test_search_pure", "alike_in_length"),
    Mutant("zero-is-near", "worker/search/ranker.py", "np.where(segment.has_vector, segment.matrix @ query, np.nan)", "segment.matrix @ query", "test_search", "refused_chunk"),
    Mutant("dead-found", "worker/search/segment.py", "other.alive[document.first : document.first + document.count] = False", "pass", "test_search", "two_workers_find"),
    Mutant("rows-shifted", "worker/search/segment.py", "rows.append(to[segment._postings.rows[keep]].astype(np.uint32))", "rows.append(segment._postings.rows[keep])", "test_search_pure", "merged_segment"),
    Mutant("filter-ignored", "worker/search/searcher.py", "matches(wanted, one.entry.metadata) for place", "True for place", "test_search", "filters_and_collections"),
    Mutant("least-ignored", "worker/tasks/search.py", "if one.score < self._min_score:", "if False:", "test_search", "below_min_score"),
    Mutant("degraded-silently", "worker/search/searcher.py", 'self._warnings.append(f"The embedding model did not answer', 'str(f"The embedding model did not answer', "test_search", "without_the_embedding_model"),
    Mutant("forged-source", "worker/search/marks.py", "if number in self._sources and number not in kept:", "if number not in kept:", "test_answering", "what_is_shown or proven"),
    Mutant("quote-believed", "worker/search/marks.py", "number = named if quote is None else self._prove(quote, named)", "number = named", "test_answering", "proven"),
    Mutant("image-shown", "worker/search/marks.py", 'return self._replaced(_IMAGE, _IMAGING, text, is_whole, out)', 'return self._replaced(_LINK, _LINKING, text, is_whole, out)', "test_search_attacks", "attacks_stay"),
    Mutant("address-shown", "worker/search/marks.py", "return _bare(address) in self._addresses or", "return True or", "test_search_attacks", "attacks_stay"),
    Mutant("label-forged", "worker/fencing.py", 'text = _LABEL.sub(', '_LABEL.sub(', "test_search_attacks", "attacks_stay"),
    Mutant("role-forged", "worker/fencing.py", "return _ROLE.sub(lambda match: match[0] + \" \", text)", "return text", "test_search_attacks", "attacks_stay"),
    Mutant("rerank-fatal", "worker/search/rerank.py", "except RerankError as error:", "except ZeroDivisionError as error:", "test_search_rerank", "broken_service"),
    Mutant("rerank-endless", "worker/search/rerank.py", "asyncio.timeout(seconds)", "asyncio.timeout(None)", "test_search_rerank", "broken_service"),
    Mutant("unseen-shown", "worker/fencing.py", 'text = UNSEEN.sub("", text)', "pass", "test_search_attacks", "attacks_stay"),
)  # fmt: skip


def run(mutant: Mutant, copy: Path) -> str:
    """Plants a bug, runs its test, takes the bug out. `noticed`, `STAYED GREEN` or `not planted`."""
    path = copy / mutant.file
    text = path.read_text()
    if mutant.old not in text:
        return "not planted"
    path.write_text(text.replace(mutant.old, mutant.new))
    files = [f"tests/{name}.py" for name in mutant.tests.split(" or ")]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *files, "-k", mutant.test]
    try:
        done = subprocess.run(
            command, cwd=copy, capture_output=True, text=True, timeout=180, check=False,
            env={**os.environ, "PYTHONPATH": str(copy)},
        )  # fmt: skip
        code = done.returncode
    except subprocess.TimeoutExpired:
        code = 1
    path.write_text(text)
    end_strays(copy)
    return {0: "STAYED GREEN", 5: "no such test"}.get(code, "noticed")


def end_strays(copy: Path) -> None:
    """Ends what a planted bug left running: processes whose environment names the copy."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if str(copy).encode() in (entry / "environ").read_bytes() and int(entry.name) != os.getpid():
                os.kill(int(entry.name), signal.SIGKILL)
        except (OSError, ValueError):
            continue


def main() -> int:
    """The command. Returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m scripts.mutants", description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="only these")
    names = parser.parse_args().names
    bad = 0
    with tempfile.TemporaryDirectory(prefix="errand-m-") as folder:
        copy = Path(folder) / "errand"
        ignored = shutil.ignore_patterns(".git", ".venv*", ".errand", "__pycache__", ".*_cache", ".hypothesis")
        shutil.copytree(ROOT, copy, ignore=ignored)
        for mutant in MUTANTS:
            if names and mutant.name not in names:
                continue
            outcome = run(mutant, copy)
            bad += outcome != "noticed"
            print(f"{mutant.name:<24} {outcome}", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
