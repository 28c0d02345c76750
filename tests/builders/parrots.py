"""Builds services and protocols for the kit for plugin authors to check: sound ones, and broken ones."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.error import (
    ConnectionDone,
)
from twisted.internet.protocol import DatagramProtocol, Protocol
from twisted.python.failure import Failure

from netsvc.interfaces import Options
from netsvc.service import PlainCore, Service
from netsvc.testing import Finding, FindingsError, check_service


class Parrot(Protocol):
    """Sends back what it gets."""

    transport: Any
    factory: Any

    def dataReceived(self, data: bytes) -> None:
        self.transport.write(data)


class DatagramParrot(DatagramProtocol):
    """Sends back each datagram."""

    core: Any

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        if addr:
            self.transport.write(datagram, addr)  # type: ignore[union-attr]


def service(
    tcp: Any = Parrot, udp: Any = None, core: Any = PlainCore, options: type[Options] = Options, **names: Any
) -> Service:
    """Declare a service, all right but for what is given."""
    named = {"name": "demo", "description": "For tests", **names}
    streams, datagrams = ({name: each} if each is not None else {} for name, each in (("tcp", tcp), ("udp", udp)))
    return Service(**named, core=core, options=options, streams=streams, datagrams=datagrams)


def found(broken: Any, **how: Any) -> dict[str, Finding]:
    """Return what is found in a service, by kind; the text of the error has a line for each."""
    with pytest.raises(FindingsError) as caught:
        check_service(broken, **how)
    findings = caught.value.findings
    lines = str(caught.value).splitlines()[1:]
    assert [line.strip() for line in lines] == [str(each) for each in findings]
    # The first of a kind: a protocol that raises does so in many ways.
    return {each.kind: each for each in reversed(findings)}


class Recorder(Protocol):
    """Writes down what happens to it."""

    transport: Any

    def __init__(self) -> None:
        self.events: list[Any] = []

    def connectionMade(self) -> None:
        self.events.append("made")

    def dataReceived(self, data: bytes) -> None:
        self.events.append(data)

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008
        self.events.append(reason.type)


class Datagrams(DatagramProtocol):
    """Writes down what happens to it."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        self.events.append((datagram, addr))

    def stopProtocol(self) -> None:
        self.events.append("stopped")
