"""The yardstick: a plain aiohttp application on uvloop whose handlers do nothing. Prints its port, then serves.

`/put` leaves the body unread; `/put-json` reads it as JSON, as every handler of a put has to.
"""

from __future__ import annotations

import asyncio

import uvloop
from aiohttp import web

_BODY = b'{"status":"OK"}'


async def do_nothing(request: web.Request) -> web.Response:
    """Answer a constant."""
    return web.Response(body=_BODY, content_type="application/json")


async def read_json(request: web.Request) -> web.Response:
    """Read the body, and answer a constant."""
    await request.json()
    return web.Response(body=_BODY, content_type="application/json")


async def main() -> None:
    """Serve until killed."""
    app = web.Application()
    app.router.add_post("/put", do_nothing)
    app.router.add_post("/put-json", read_json)
    app.router.add_get("/read/{key}", do_nothing)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop_runner:
        loop_runner.run(main())
