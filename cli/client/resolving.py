"""Looking up the addresses of hosts without anyone having to wait for a name server that is silent."""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import suppress
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult


class Resolver(AbstractResolver):
    """Looks each host up in a thread of its own, which ends with the process.

    A look-up cannot be broken off and may take many seconds. asyncio's own runs in the loop's pool of threads, which
    `asyncio.run` and the interpreter wait for at their end: a command would outlive its time limit by that.
    """

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The addresses of a host.

        Raises:
            OSError: there are none, or they cannot be found out.
        """
        loop = asyncio.get_running_loop()
        found: asyncio.Future[list[ResolveResult]] = loop.create_future()

        def deliver(outcome: list[ResolveResult] | Exception) -> None:
            if found.done():
                return
            if isinstance(outcome, Exception):
                found.set_exception(outcome)
            else:
                found.set_result(outcome)

        def look_up() -> None:
            outcome: list[ResolveResult] | Exception
            try:
                outcome = _addresses(host, port, family)
            except Exception as error:
                outcome = error
            # The loop may be closed by now.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(deliver, outcome)

        threading.Thread(target=look_up, name=f"look-up of {host}", daemon=True).start()
        return await found

    async def close(self) -> None:
        """Nothing is held."""


def _addresses(host: str, port: int, family: socket.AddressFamily) -> list[ResolveResult]:
    try:
        listed = socket.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    except UnicodeError:
        raise socket.gaierror(socket.EAI_NONAME, "no name that a host can have") from None
    return [_result(host, family, proto, address) for family, _, proto, _, address in listed]


def _result(host: str, family: socket.AddressFamily, proto: int, address: Any) -> ResolveResult:
    # In numbers, with the scope that an IPv6 address may have; this asks no name server.
    numeric, port = socket.getnameinfo(address, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)
    flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    return ResolveResult(hostname=host, host=numeric, port=int(port), family=family, proto=proto, flags=flags)
