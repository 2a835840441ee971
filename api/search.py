"""A search's answer on the wire: what was found first, then the answer as it is made."""

from __future__ import annotations

from api.chat import Answer, place_of
from shared.errors import RefusedError
from shared.events import Event, one_line


class SearchReader(Answer):
    """Reads the feed of a search's job: `sources`, frames of text, `answer`."""

    def _event(self, event: Event, out: list[bytes]) -> None:
        if event.type == "attempt.restarted" and self.has_spoken:
            self.problem = RefusedError("worker_lost", "The search was begun anew; what was sent before is void.")
        if event.type not in ("search.sources", "search.answer"):
            super()._event(event, out)
            return
        self.started = True
        if self.problem is None:
            self.has_spoken = True
            name, place = event.type.partition(".")[2].encode(), place_of(self._job_id, event.seq).encode()
            out.append(b"id: %s\nevent: %s\ndata: %s\n\n" % (place, name, one_line(event.data)))
