"""A check finds the conflicts of addresses that the system would find at the start, and no others."""

from __future__ import annotations

import socket
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.application.internet import SSLServer, StreamServerEndpointService, TCPServer, UDPServer, UNIXServer
from twisted.application.service import MultiService
from twisted.internet.endpoints import TCP4ServerEndpoint, TCP6ServerEndpoint, UNIXServerEndpoint, _SystemdParser
from twisted.internet.protocol import DatagramProtocol, Factory
from twisted.python.systemd import ListenFDs

from netsvc.config.conflicts import Claim, claims_of, find_conflicts, find_unusable
from netsvc.embedded.tree import addresses
from netsvc.interfaces import Kind
from netsvc.listen.opening import ListenError
from netsvc.plan.address import parse_address
from netsvc.plan.plan import AdminUse, Plan
from tests.builders.activated import bound
from tests.builders.facts import lacks, states
from tests.builders.listening import opened
from tests.builders.loopback import reactor
from tests.builders.processes import free_port

STREAMS = (
    "{}",
    "0.0.0.0:{}",
    "[::]:{}",
    "127.0.0.1:{}",
    "127.0.0.2:{}",
    "[::1]:{}",
    "[0:0::1]:{}",
    "tcp:{}",
    "tcp:{}:interface=127.0.0.1",
    "tcp6:{}",
    r"tcp6:{}:interface=\:\:1",
    "haproxy:tcp:{}:interface=127.0.0.2",
    "proxy:trust=127.0.0.1:127.0.0.2:{}",
)
DATAGRAMS = (
    "{}",
    "127.0.0.1:{}",
    "[::1]:{}",
    "udp:{}",
    "udp6:{}",
    "udp:{}:interface=127.0.0.2",
)


def conflicts(*claims: tuple[str, Kind]) -> list[str]:
    return list(find_conflicts(Claim(text, parse_address(text, kind)) for text, kind in claims))


@pytest.mark.parametrize(("forms", "kind"), [(STREAMS, "stream"), (DATAGRAMS, "datagram")])
@pytest_twisted.inlineCallbacks
def test_two_addresses_conflict_exactly_if_the_second_cannot_be_bound(forms: tuple[str, ...], kind: Kind) -> Any:
    wrong = []
    for one, other in [*permutations(forms, 2), *((form, form) for form in forms)]:
        port = free_port()
        first, second = one.format(port), other.format(port)
        listening, beside = opened(first, kind), None
        try:
            beside = opened(second, kind)
        except ListenError:
            pass
        else:
            yield beside.stop()
        yield listening.stop()
        if bool(conflicts((first, kind), (second, kind))) != (beside is None):
            wrong.append((first, second))
    assert wrong == []


def test_paths_conflict_however_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "to").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    same: list[tuple[str, Kind]] = [
        ("unix:a.sock", "stream"),
        (f"unix:{tmp_path}/a.sock:mode=600", "stream"),
        ("unix:address=./to/a.sock", "stream"),
        ("haproxy:unix:to/a.sock", "stream"),
        # The file is one, whatever it takes.
        ("unixgram:a.sock", "datagram"),
    ]
    assert len(conflicts(*same)) == len(same) - 1
    assert conflicts(("unix:a.sock", "stream"), ("unix:b.sock", "stream")) == []


def test_what_systemd_passes_and_standard_input_can_be_had_once() -> None:
    assert len(conflicts(("systemd:web", "stream"), ("systemd:INET:name=web", "stream"))) == 1
    assert conflicts(("systemd:web", "stream"), ("systemd:web", "datagram"), ("systemd:other", "stream")) == []
    assert len(conflicts(("stdio:0x", "stream"), ("stdio:0x", "stream"))) == 1


@pytest.mark.parametrize("kind", ["stream", "datagram"])
def test_a_socket_of_systemd_conflicts_with_its_own_address_in_either_order(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = socket.SOCK_STREAM if kind == "stream" else socket.SOCK_DGRAM
    path = f"{'unix' if kind == 'stream' else 'unixgram'}:{tmp_path}/web"
    with bound(shape) as one, bound(shape, "::") as every, bound(shape, f"{tmp_path}/web") as file:
        numbers = [each.fileno() for each in (one, every, file)]
        monkeypatch.setattr(_SystemdParser, "_sddaemon", ListenFDs(numbers, ["one", "every", "file"]))
        port, open_port = one.getsockname()[1], every.getsockname()[1]
        same = [("one", f"127.0.0.1:{port}"), ("one", f"{port}"), ("every", f"{open_port}"), ("file", path)]
        same += [("one", "systemd:INET:index=0"), ("every", f"127.0.0.2:{open_port}")]
        for name, text in same:
            for first, second in permutations((f"systemd:{name}", text)):
                assert len(conflicts((first, kind), (second, kind))) == 1, (first, second)
        other: Kind = "datagram" if kind == "stream" else "stream"
        assert conflicts(("systemd:one", kind), (f"127.0.0.2:{port}", kind), (f"{port}", other)) == []


def test_an_address_that_cannot_be_bound_is_found_without_binding_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    wrong: list[tuple[str, Kind]] = [
        ("192.0.2.1:0", "stream"),
        ("192.0.2.1:0", "datagram"),
        ("[2001:db8::1]:0", "stream"),
        ("tcp:0:interface=192.0.2.1", "stream"),
        ("haproxy:tcp:0:interface=192.0.2.1", "stream"),
        ("nowhere.invalid:0", "stream"),
        (f"unix:{tmp_path}/none/a.sock", "stream"),
        (f"unixgram:{tmp_path}/none/a.sock", "datagram"),
        (f"unix:{tmp_path}/file/a.sock", "stream"),
        (f"unix:{tmp_path}/file", "stream"),
        ("239.1.2.3%none9:0", "datagram"),
    ]
    right: list[tuple[str, Kind]] = [
        ("0", "stream"),
        ("127.0.0.1:1", "stream"),
        ("localhost:0", "datagram"),
        ("239.1.2.3:0", "datagram"),
        (f"unix:{tmp_path}/a.sock", "stream"),
        ("unix:@none/a", "stream"),
        ("systemd:web", "stream"),
    ]
    for text, kind in wrong:
        address = parse_address(text, kind)
        [line] = find_unusable([Claim("echo", address)])
        with pytest.raises(ListenError) as raised:
            opened(text, kind)
        assert states(line, "echo ", f"{text}: {raised.value}")
    assert list(find_unusable(Claim("echo", parse_address(text, kind)) for text, kind in right)) == []
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_admin_address_needs_no_ipv6() -> None:
    first, *others = claims_of(Plan({}, (), admin=AdminUse(parse_address("9100", "stream"))))
    assert (first.address.host, first.optional) == ("127.0.0.1", False)
    assert [(each.address.host, each.optional) for each in others] == [("::1", True)]
    assert list(find_unusable([Claim("admin", parse_address("192.0.2.1:1", "stream"), optional=True)])) == []


def test_the_line_names_both_and_their_addresses() -> None:
    [line] = conflicts(("127.0.0.1:9001", "stream"), ("9001", "stream"))
    assert lacks(line, "9001 is used twice", "127.0.0.1:9001", "choose another address") == []


@pytest.mark.parametrize(
    ("service", "texts"),
    [
        (lambda factory: TCPServer(80, factory), ["tcp:80"]),
        (lambda factory: TCPServer(80, factory, 50, "127.0.0.1"), ["tcp:80:interface=127.0.0.1"]),
        (lambda factory: TCPServer(80, factory, interface="::1"), [r"tcp:80:interface=\:\:1"]),
        (lambda factory: SSLServer(443, factory, None, 50, "127.0.0.1"), ["tcp:443:interface=127.0.0.1"]),
        (lambda factory: UNIXServer("/run/x", factory), ["unix:/run/x"]),
        (lambda _: UDPServer(53, DatagramProtocol(), "127.0.0.1"), ["udp:53:interface=127.0.0.1"]),
        (lambda factory: StreamServerEndpointService(TCP4ServerEndpoint(reactor(), 80), factory), ["tcp:80"]),
        (
            lambda factory: StreamServerEndpointService(TCP6ServerEndpoint(reactor(), 80), factory),
            [r"tcp:80:interface=\:\:"],
        ),
        (lambda factory: StreamServerEndpointService(UNIXServerEndpoint(reactor(), "x"), factory), ["unix:x"]),
        (lambda _: MultiService(), []),
    ],
)
def test_the_addresses_of_a_tree_are_known_before_its_start(
    service: Callable[[Factory], Any], texts: list[str]
) -> None:
    assert [each.text for each in addresses(service(Factory()))] == texts
