"""The development model's process."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys

from aiohttp import web

from scripts.dev_model.answer import CHAT_MODEL
from scripts.dev_model.app import create_app


async def serve(host: str, port: int, app: web.Application) -> None:
    """Serves until SIGINT or SIGTERM."""
    stop = asyncio.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    address = runner.addresses[0]
    print(
        f"development model {CHAT_MODEL!r} (extractive: it quotes, it does not think) on "
        f"http://{address[0]}:{address[1]}/v1",
        file=sys.stderr,
        flush=True,
    )
    await stop.wait()
    await runner.cleanup()


def main() -> int:
    """The process. Returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.dev_model",
        description="The development model: the OpenAI HTTP API on loopback, with no key and no network.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="loopback address (default %(default)s)")
    parser.add_argument("--port", type=int, default=9100, help="0 takes a free one (default %(default)s)")
    parser.add_argument("--tokens-per-second", type=float, default=0.0, help="speed of streams; 0: at once")
    parser.add_argument("--first-token-seconds", type=float, default=0.0, help="wait before the first token")
    parser.add_argument("--tokens-per-chunk", type=int, default=1, help="tokens that one chunk carries (default 1)")
    parser.add_argument("--in-flight", type=int, help="calls at a time; more are refused with 429")
    parser.add_argument("--latency-seconds", type=float, default=0.0, help="time that each call for embeddings takes")
    arguments = parser.parse_args()
    app = create_app(
        tokens_per_second=arguments.tokens_per_second,
        first_token_s=arguments.first_token_seconds,
        in_flight=arguments.in_flight,
        latency_s=arguments.latency_seconds,
        tokens_per_chunk=max(1, arguments.tokens_per_chunk),
    )
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(arguments.host, arguments.port, app))
    return 0


if __name__ == "__main__":
    sys.exit(main())
