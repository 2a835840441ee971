"""`fetch_url`: the text of a page or file on the web, through the guarded fetcher."""

from __future__ import annotations

from typing import Any

from shared.settings import Settings
from worker.documents.web import WebPages
from worker.tools.base import Tool, ToolContext


def fetch_url(pages: WebPages, settings: Settings) -> Tool:
    """The tool over this worker's reader of pages."""

    async def run(arguments: dict[str, Any], _: ToolContext) -> str:
        extracted, url = await pages.read(arguments["url"])
        title = f"{extracted.title}\n" if extracted.title else ""
        return f"{title}{url}\n\n{extracted.text}"

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
