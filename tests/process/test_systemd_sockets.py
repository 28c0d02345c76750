"""Which of the sockets that systemd has passed an address means."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from twisted.internet.endpoints import _SystemdParser
from twisted.python.systemd import ListenFDs

from netsvc.interfaces import Kind
from netsvc.listen.systemd import systemd_socket
from netsvc.plan.address import parse_address
from tests.builders.activated import bound
from tests.builders.facts import states

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
    with systemd_socket(parse_address(text, kind)) as copy:
        return copy.family, copy.getsockname()


def wrong(text: str, kind: Kind) -> str:
    open_before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ValueError, match="systemd") as raised:
        systemd_socket(parse_address(text, kind))
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
    assert states(wrong("systemd:INET:1", "stream"), "socket 1 ", "streams")


@pytest.mark.usefixtures("passed")
def test_what_does_not_fit_says_how_it_would() -> None:
    assert states(wrong("systemd:none", "stream"), " no socket none; ", ".socket")
    assert states(wrong("systemd:INET:5", "stream"), " no socket 5; ", ".socket")
    assert states(wrong("systemd:twice", "stream"), " 2 stream sockets ", " twice; ", ".socket", "FileDescriptorName=")
    assert states(wrong("systemd:twice", "datagram"), "socket twice ", "datagrams; ", "ListenDatagram=")
    assert states(wrong("systemd:connected", "stream"), "socket connected ", "streams; ", "ListenStream=", "Accept=no")


def test_what_systemd_has_passed_is_kept_from_children() -> None:
    with bound(STREAM) as one, bound(DATAGRAM) as other:
        # From 3 on, in a process of its own.
        program = (
            "import os\n"
            f"os.dup2({one.fileno()}, 3), os.dup2({other.fileno()}, 4)\n"
            "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='3', LISTEN_FDNAMES='a:b:none')\n"
            "from netsvc.listen.systemd import keep_from_children\n"
            "keep_from_children()\n"
            "from netsvc.listen.systemd import activated\n"
            "print(os.get_inheritable(3), os.get_inheritable(4), activated())\n"
        )
        numbers = (one.fileno(), other.fileno())
        said = subprocess.run([sys.executable, "-c", program], pass_fds=numbers, capture_output=True, text=True)
        assert said.stdout == "False False [('a', 3), ('b', 4), ('none', 5)]\n", said.stderr
