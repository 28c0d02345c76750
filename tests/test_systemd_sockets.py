"""Which of the sockets that systemd has passed an address means."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from twisted.internet.endpoints import _SystemdParser
from twisted.python.systemd import ListenFDs

from netsvc.address import parse_address
from netsvc.interfaces import Kind
from netsvc.listeners.passed import passed_socket
from tests.activated import bound

STREAM, DATAGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, socket.socket]]:
    """Pretend that systemd has passed some sockets; two of them are of one unit, and so are two others."""
    with ExitStack() as open_ones:
        made = {
            "echo stream": open_ones.enter_context(bound(STREAM, "::1")),
            "echo datagram": open_ones.enter_context(bound(DATAGRAM)),
            "twice one": open_ones.enter_context(bound(STREAM)),
            "twice other": open_ones.enter_context(bound(STREAM)),
            "connected": open_ones.enter_context(socket.socket()),
        }
        names = [label.split()[0] for label in made]
        monkeypatch.setattr(_SystemdParser, "_sddaemon", ListenFDs([each.fileno() for each in made.values()], names))
        yield made


def found(text: str, kind: Kind) -> tuple[socket.AddressFamily, object]:
    with passed_socket(parse_address(text, kind)) as copy:
        return copy.family, copy.getsockname()


def wrong(text: str, kind: Kind) -> str:
    open_before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ValueError, match="systemd") as raised:
        passed_socket(parse_address(text, kind))
    assert len(os.listdir("/proc/self/fd")) == open_before
    return str(raised.value)


@pytest.mark.parametrize("text", ["systemd:echo", "systemd:name=echo", "systemd:domain=INET:name=echo"])
def test_of_one_name_it_is_the_one_of_its_kind_and_its_family_is_its_own(
    passed: dict[str, socket.socket], text: str
) -> None:
    assert found(text, "stream") == (socket.AF_INET6, passed["echo stream"].getsockname())
    assert found(text, "datagram") == (socket.AF_INET, passed["echo datagram"].getsockname())
    # What was passed is still there, for a reload.
    assert found(text, "stream")[0] == socket.AF_INET6


def test_a_place_is_one_socket(passed: dict[str, socket.socket]) -> None:
    assert found("systemd:INET:2", "stream") == (socket.AF_INET, passed["twice one"].getsockname())
    assert wrong("systemd:INET:1", "stream").startswith("the socket 1 that systemd passed is not one for streams")


@pytest.mark.usefixtures("passed")
def test_what_does_not_fit_says_how_it_would() -> None:
    assert wrong("systemd:none", "stream") == "systemd passed no socket none; is it run by a .socket unit?"
    assert wrong("systemd:INET:5", "stream") == "systemd passed no socket 5; is it run by a .socket unit?"
    assert wrong("systemd:twice", "stream") == (
        "systemd passed 2 stream sockets named twice; give each a .socket unit of its own, with its FileDescriptorName="
    )
    assert wrong("systemd:twice", "datagram") == (
        "the socket twice that systemd passed is not one for datagrams; its .socket unit needs ListenDatagram="
    )
    assert wrong("systemd:connected", "stream") == (
        "the socket connected that systemd passed is not one for streams; its .socket unit needs ListenStream= and "
        "Accept=no"
    )
