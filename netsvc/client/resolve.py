"""Looks up the addresses of a host without holding up Ctrl-C."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

__all__ = ["resolve"]

#: What `socket.getaddrinfo` tells of one address: family, kind, protocol, name, socket address.
Place = tuple[int, int, int, str, Any]


async def resolve(host: str, port: int, kind: int, look_up: Callable[..., Any] = socket.getaddrinfo) -> list[Place]:
    """Return the addresses of `host` for sockets of `kind`, in the system's order of preference.

    Raises `socket.gaierror` if there is none.
    """
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return await _in_thread(lambda: look_up(host, port, type=kind))
    return list(look_up(host, port, type=kind, flags=socket.AI_NUMERICHOST))


async def _in_thread(look_up: Callable[[], Any]) -> list[Place]:
    # The loop's own getaddrinfo runs on a thread that the loop waits for when it is closed: with a name server
    # that does not answer, Ctrl-C would take half a minute. Nobody waits for a daemon thread.
    loop = asyncio.get_running_loop()
    found: asyncio.Future[list[Place]] = loop.create_future()

    def tell(places: list[Place], error: OSError | None) -> None:
        if found.done():
            return
        if error is None:
            found.set_result(places)
        else:
            found.set_exception(error)

    def look() -> None:
        places: list[Place] = []
        failure: OSError | None = None
        try:
            places = list(look_up())
        except OSError as error:
            failure = error
        except UnicodeError:
            failure = socket.gaierror(socket.EAI_NONAME, "not a host name")
        # The loop may be closed by now: then nobody asks any more.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(tell, places, failure)

    threading.Thread(target=look, name="resolve", daemon=True).start()
    return await found
