"""Which prompts the built-in jobs say."""

from __future__ import annotations

from typing import Final

AGENT: Final = "errand/agent"
AGENT_LAST: Final = "errand/agent/last"  # when the steps are over and there is no answer yet
READ: Final = "errand/document-analysis"  # of one part of the document
MERGE: Final = "errand/document-analysis/merge"
EXTRACT: Final = "errand/document-analysis/extract"
ANSWER: Final = "errand/answer"  # of a search, from its sources
RERANK: Final = "errand/search/rerank"  # which of its sources are relevant

# By job type: the main prompt, in whose place the job's own stands, and the others.
PROMPTS: Final[dict[str, tuple[str, ...]]] = {
    "agent": (AGENT, AGENT_LAST),
    "document-analysis": (READ, MERGE, EXTRACT),
    "search": (ANSWER, RERANK),
    "chat": (),
}
