"""The development model: the OpenAI HTTP API on loopback, with no key and no network.

It extracts, it does not invent: an answer is made of sentences chosen from what it was given. It is deterministic.
Its model names say what it is. It sees only what any model would see; faults, limits and the wire format of other
servers are set through `/dev/…`, apart from the requests.

    python -m scripts.dev_model --port 9100
"""

from scripts.dev_model.app import create_app

__all__ = ["create_app"]
