"""`fetch_url`: the text of a page or file on the web, through the guarded fetcher."""

from __future__ import annotations

from typing import Any, Final

from shared.settings import Settings
from worker.fetch import Fetcher, FetchFailedError, FetchRefusedError
from worker.tools.base import Tool, ToolContext, ToolError

_READABLE: Final = frozenset(
    (
        "application/json application/xml application/xhtml+xml application/pdf application/octet-stream "
        "application/markdown application/vnd.openxmlformats-officedocument.wordprocessingml.document"
    ).split()
)


def fetch_url(fetcher: Fetcher, settings: Settings) -> Tool:
    """The tool over this worker's fetcher."""

    async def run(arguments: dict[str, Any], context: ToolContext) -> str:
        try:
            found = await fetcher.fetch(arguments["url"])
        except (FetchRefusedError, FetchFailedError) as error:
            raise ToolError(str(error)) from None
        if found.status >= 400:
            raise ToolError(f"{found.url} answered with status {found.status}.")
        kind = found.media_type
        if not (kind.startswith("text/") or kind in _READABLE or kind.endswith(("+json", "+xml"))):
            raise ToolError(f"{found.url} is {kind[:80]}; only HTML, PDF, DOCX, Markdown, JSON and text are read.")
        extracted = await context.library.extract(found.content)
        title = f"{extracted.title}\n" if extracted.title else ""
        return f"{title}{found.url}\n\n{extracted.text}"

    return Tool(
        name="fetch_url",
        description="The text of a public web page, or of a PDF, DOCX, Markdown, JSON or text file, by its URL.",
        parameters={
            "type": "object",
            "properties": {"url": {"type": "string", "minLength": 1, "description": "An http or https URL."}},
            "required": ["url"],
            "additionalProperties": False,
        },
        run=run,
        timeout_s=settings.fetch_seconds + settings.extract_seconds + 5.0,
        output_characters=20_000,
    )
