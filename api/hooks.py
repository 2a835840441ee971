"""What a submission's webhook becomes: refused where its URL alone tells that nothing can be sent there, else a field
of the job's record."""

from __future__ import annotations

from msgspec import UNSET

from shared.addresses import FetchRefusedError, Target, private_hosts
from shared.jobs import WebhookView, hook_field
from shared.settings import Settings
from shared.specs import Submission, Webhook
from shared.webhooks import DEFAULT_EVENTS, aim, mark_of


def webhook_wanted(job: Submission) -> Webhook | None:
    """The webhook of a submission, if it has one."""
    return None if job.webhook is UNSET else job.webhook


def settled_url(url: str, settings: Settings) -> Target:
    """Where a webhook leads. Raises FetchRefusedError."""
    return aim(url, private_hosts(settings.fetch_private_hosts))


def problem_of_url(url: str, settings: Settings) -> str | None:
    """Why nothing can be sent to a URL, as far as no name server is needed to tell; None when something might."""
    if not settings.webhooks:
        return "webhooks are switched off on this installation (ERRAND_WEBHOOKS)"
    try:
        settled_url(url, settings)
    except FetchRefusedError as error:
        return str(error)
    return None


def webhook_problems(job: Submission, settings: Settings) -> list[tuple[str, str]]:
    """What is wrong with a submission's webhook, as (path, sentence)."""
    wanted = webhook_wanted(job)
    if wanted is None or (problem := problem_of_url(wanted.url, settings)) is None:
        return []
    return [("$.webhook.url", problem)]


def hook_of(job: Submission, settings: Settings) -> str | None:
    """The field of the record of a checked submission; None without a webhook."""
    wanted = webhook_wanted(job)
    if wanted is None:
        return None
    mark = mark_of(settled_url(wanted.url, settings))
    keep_ms = round(settings.webhook_retention_seconds * 1000)
    return hook_field(wanted.url, wanted.events or DEFAULT_EVENTS, mark, keep_ms)


def hook_view(job: Submission) -> WebhookView | None:
    """The webhook of a submission as its view shows it."""
    wanted = webhook_wanted(job)
    if wanted is None:
        return None
    return WebhookView(url=wanted.url, events=list(dict.fromkeys(wanted.events or DEFAULT_EVENTS)))
