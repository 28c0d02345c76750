"""The base of a datagram protocol that answers, and must not be made to answer another server for ever."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from inspect import iscoroutinefunction
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import MessageLengthError
from twisted.internet.interfaces import IUDPTransport
from twisted.internet.protocol import DatagramProtocol

from netsvc.base.tasks import run_in_task, running_loop
from netsvc.interfaces import Context
from netsvc.plan.limits import IPV4_HEADERS, LIMITS

__all__ = [
    "ECHO_LIKE_PORTS",
    "MOST_PENDING",
    "AnsweringFunction",
    "AnsweringProtocol",
    "longest_answer",
]

#: Ports of services that answer whatever they receive: echo, daytime, qotd, chargen, time, DNS, TFTP, NTP; and 0, from
#: which no program sends. Answering a datagram forged to come from one of them would start a loop (CERT CA-1996-01).
ECHO_LIKE_PORTS = frozenset({0, 7, 13, 17, 19, 37, 53, 69, 123})
#: Coroutines that may answer datagrams of one port at a time.
MOST_PENDING = 1000


def longest_answer(size: int) -> int:
    """Return the length of the longest answer to a datagram of `size` bytes that the default of `amplify` lets through.

    Over IPv6, whose headers are longer, somewhat more passes.
    """
    return int((size + IPV4_HEADERS) * LIMITS["amplify"].default) - IPV4_HEADERS


class AnsweringProtocol(DatagramProtocol):
    """Answers each datagram with `answer(data)`, unless that could start a loop.

    An answer that the system does not take (its buffer is full, the peer is unreachable) is dropped, as the network
    would drop it, and counted in `dropped`. It is not logged, because a peer could cause thousands.
    """

    transport: IUDPTransport
    core: Any
    #: Set by netsvc; otherwise the core's context is used.
    context: Context | None = None
    dropped = 0
    #: `Context.own_ports`, with the ports of other echo-like services.
    _refused_ports: set[int | bytes]

    def startProtocol(self) -> None:
        """Never answer datagrams that claim to come from this port."""
        host: Any = self.transport.getHost()
        if self.context is None:
            self.context = self.core.context
        self._refused_ports = self.context.own_ports
        self._refused_ports |= ECHO_LIKE_PORTS
        self._refused_ports.add(host.name if hasattr(host, "name") else host.port)

    def datagramReceived(self, data: bytes, address: Any) -> None:
        """Send the answer, unless the sender must not be answered."""
        # `_is_refused` and `_send` are written out for UDP, as their calls are 2 % of the time that a datagram takes.
        if type(address) is not tuple:
            if not self._is_refused(address):
                self._send(self.answer(data), address)
        elif address[1] not in self._refused_ports:
            answer = self.answer(data)
            if answer is not None:
                try:
                    self.transport.write(answer, address)
                except (OSError, MessageLengthError):
                    self.dropped += 1

    def _is_refused(self, address: Any) -> bool:
        # The peer of a UNIX socket is its path, or None: then it cannot be answered. A peer can replace its socket by a
        # link to ours: what we send there would come back to us, from our own path.
        if type(address) is tuple:
            return address[1] in self._refused_ports
        return not address or os.fsencode(address) in self._refused_ports

    def _send(self, answer: bytes | None, address: Any) -> None:
        if answer is None:
            return
        try:
            self.transport.write(answer, address)
        except (OSError, MessageLengthError):
            self.dropped += 1

    def answer(self, data: bytes) -> bytes | None:
        """Return the datagram that answers `data`, or None for no answer."""
        raise NotImplementedError


class AnsweringFunction(AnsweringProtocol):
    """Answers each datagram with `function(data, peer)`, a function or coroutine function; None is no answer.

    At most `MOST_PENDING` coroutines run at a time; datagrams beyond that are dropped. Those that still run when the
    port is closed are cancelled. An exception of a coroutine is logged as one of `datagramReceived` is.
    """

    context: Context

    def __init__(self, function: Callable[[bytes, Any], Any]) -> None:
        self._function = function
        self._is_coroutine = iscoroutinefunction(function)
        self._pending: set[Deferred[None]] = set()

    def datagramReceived(self, data: bytes, address: Any) -> None:
        """Send the answer, unless the sender must not be answered."""
        if self._is_refused(address):
            return
        if not self._is_coroutine:
            self._send(self._function(data, address), address)
        elif len(self._pending) >= MOST_PENDING:
            self.dropped += 1
        else:
            later, loop = self._answer_later(data, address), running_loop()
            answered = Deferred.fromCoroutine(later if loop is None else run_in_task(later, loop))
            if not answered.called:
                self._pending.add(answered)
                answered.addBoth(lambda _: self._pending.discard(answered))

    async def _answer_later(self, data: bytes, address: Any) -> None:
        try:
            self._send(await self._function(data, address), address)
        except (CancelledError, asyncio.CancelledError):
            # The port is closed.
            pass
        except Exception:  # noqa: BLE001  (it fails one answer only)
            self.dropped += 1
            # The ports of netsvc limit how often they log it.
            failed = getattr(self.transport, "protocol_failed", None)
            if failed is None:
                self.context.log.failure("a coroutine that answers datagrams failed")
            else:
                failed(address)

    def stopProtocol(self) -> None:
        """Cancel the coroutines that still run."""
        for answered in list(self._pending):
            answered.cancel()
