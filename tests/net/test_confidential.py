"""A protocol knows whether a client can send it a secret: TLS, a UNIX socket, loopback, and what a proxy says."""

from __future__ import annotations

import ssl
import struct
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock, StringTransport

from netsvc.base.errors import StartError
from netsvc.listen.proxy import _is_confidential
from netsvc.listen.proxy_header import Header
from netsvc.plan.address import is_plain, parse_address
from netsvc.plan.plan import Listener, Plan, ServiceUse
from netsvc.reactor.epoll import NetsvcReactor
from netsvc.server.instances import examine
from netsvc.server.server import Server
from netsvc.service import PlainCore, Service
from netsvc.stream import StreamProtocol, is_confidential
from tests.builders.certificates import write_certificate
from tests.builders.facts import states
from tests.builders.proxied import TCP4, Inner, Served, on_reactor, v2, v2_inet

served = pytest.fixture(params=[EPollReactor, NetsvcReactor])(on_reactor)

TLS_CLIENT = struct.pack("!BHBI", 0x20, 5, 0x01, 0)
PLAIN_CLIENT = struct.pack("!BHBI", 0x20, 5, 0x00, 0)
FAR, NEAR, HERE = ("192.0.2.9", 4000), ("127.0.0.1", 4000), ("192.0.2.1", 443)


class Asking(Inner):
    answer: bool

    def connectionMade(self) -> None:
        super().connectionMade()
        self.answer = is_confidential(self.transport)


@pytest.mark.parametrize(
    ("peer", "answer"),
    [
        (IPv4Address("TCP", "127.8.9.1", 1), True),
        (IPv6Address("TCP", "::1", 1), True),
        (IPv6Address("TCP", "::ffff:127.0.0.1", 1), True),
        (UNIXAddress(None), True),
        (IPv4Address("TCP", "192.0.2.1", 1), False),
        (IPv6Address("TCP", "::ffff:192.0.2.1", 1), False),
        (IPv6Address("TCP", "fe80::1%lo", 1), False),
        (None, False),
    ],
)
def test_only_this_machine_is_near(peer: Any, answer: bool) -> None:
    assert is_confidential(StringTransport(peerAddress=peer or object())) is answer


@pytest.mark.parametrize(
    ("header", "answer"),
    [
        (v2_inet(FAR, HERE, behind=TLS_CLIENT), True),
        (v2_inet(FAR, HERE, behind=b"\x02\x00\x01x" + TLS_CLIENT), True),
        (v2_inet(FAR, HERE, behind=PLAIN_CLIENT), False),
        (v2_inet(FAR, HERE), False),
        (v2_inet(NEAR, HERE), True),
        (TCP4, False),
        # The client is not known.
        (b"PROXY UNKNOWN\r\n", False),
        (v2(0, 0, b""), False),
        (v2(1, 0, TLS_CLIENT), False),
        # Malformed.
        (v2_inet(FAR, HERE, behind=b"\x02\xff\xff" + TLS_CLIENT), False),
        (v2_inet(FAR, HERE, behind=TLS_CLIENT[:-1]), False),
        (v2_inet(FAR, HERE, behind=b"\x20\x00\x01\x01"), False),
    ],
)
@pytest.mark.parametrize("place", ["127.0.0.1:0", "tcp:0:interface=127.0.0.1", "unix:{}/s"])
def test_a_proxy_on_this_machine_is_believed(
    served: Served, place: str, header: bytes, answer: bool, tmp_path: Path
) -> None:
    served.factory.kind = Asking
    served.listen(f"proxy:trust=127.0.0.1,unix:{place.format(tmp_path)}")
    assert served.inner(header)[1].answer is answer


def test_a_proxy_elsewhere_is_not_enough() -> None:
    said = Header(40, FAR, HERE, encrypted=True)
    assert not _is_confidential(said, IPv4Address("TCP", "192.0.2.7", 1))
    assert _is_confidential(said, IPv4Address("TCP", "127.0.0.1", 1))


def test_the_header_of_twisteds_endpoint_is_not_believed(served: Served) -> None:
    served.factory.kind = Asking
    served.listen("haproxy:tcp:0:interface=127.0.0.1")
    assert not served.inner(v2_inet(NEAR, HERE, behind=TLS_CLIENT))[1].answer


@pytest.mark.parametrize("before", ["", "proxy:trust=127.0.0.1:"])
@pytest.mark.parametrize("scheme", ["tls", "ssl"])
def test_tls_is_enough(served: Served, scheme: str, before: str, tmp_path: Path) -> None:
    key, cert = write_certificate(tmp_path, "localhost")
    names = ("cert", "key") if scheme == "tls" else ("certKey", "privateKey")
    served.factory.kind = Asking
    served.listen(f"{before}{scheme}:0:{names[0]}={cert}:{names[1]}={key}:interface=127.0.0.1")
    client = served.connect(TCP4 if before else b"")
    context = ssl.create_default_context(cafile=str(cert))
    secured = context.wrap_socket(
        client.dup(), server_hostname="localhost", do_handshake_on_connect=False, suppress_ragged_eofs=True
    )
    served.sockets.append(secured)

    def shaken() -> bool:
        try:
            secured.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return bool(served.factory.built)

    served.until(shaken)
    assert served.factory.built[0].answer


@pytest.mark.parametrize(
    ("address", "plain"),
    [
        ("9001", True),
        ("0.0.0.0:9001", True),
        ("192.0.2.1:9001", True),
        ("[2001:db8::1]:9001", True),
        ("tcp:9001", True),
        ("systemd:web", True),
        ("haproxy:tcp:9001:interface=127.0.0.1", True),
        ("127.0.0.1:9001", False),
        ("[::1]:9001", False),
        ("tcp:9001:interface=127.0.0.1", False),
        ("unix:/run/x", False),
        ("unix:@x", False),
        ("tls:9001:cert=x.pem", False),
        ("ssl:9001", False),
        # The header of each connection says.
        ("proxy:trust=10.0.0.0/8:9001", False),
    ],
)
def test_an_address_is_plain_if_others_reach_it(address: str, plain: bool) -> None:
    assert is_plain(parse_address(address, "stream")) is plain


class Login(StreamProtocol):
    """Takes passwords."""


class Core(PlainCore):
    confidential = ("login",)


SERVICE = Service("doors", "Doors", core=Core, streams={"login": Login, "open": Login})


def plan(*listeners: tuple[str, str]) -> Plan:
    return Plan(
        {"doors": ServiceUse("doors")},
        tuple(Listener("doors", name, parse_address(address, "stream")) for name, address in listeners),
    )


def test_a_plain_address_is_refused_for_a_protocol_that_takes_secrets() -> None:
    asked = plan(("login", "0.0.0.0:0"), ("login", "127.0.0.1:0"), ("open", "0.0.0.0:0"))
    [line] = examine(asked, lambda _: SERVICE, Clock())
    assert states(line, "doors login ", "0.0.0.0:0: ")


def test_a_start_and_a_reload_refuse_it() -> None:
    with pytest.raises(StartError, match=r"doors login .*0\.0\.0\.0:0: "):
        Server(plan(("login", "0.0.0.0:0")), lambda _: SERVICE, MemoryReactorClock()).privilegedStartService()
    reactor = MemoryReactorClock()
    server = Server(plan(("open", "127.0.0.1:0")), lambda _: SERVICE, reactor)
    server.privilegedStartService()
    server.startService()
    reactor.run()
    failures: list[Any] = []
    server.reload(plan(("open", "127.0.0.1:0"), ("login", "0.0.0.0:0"))).addErrback(failures.append)
    assert states(str(failures[0].value), "doors login ", "0.0.0.0:0: ")
    server.stopService()
