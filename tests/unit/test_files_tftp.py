"""Files over TFTP: requests, ports, limits and access lines, in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import LogEvent, Logger

from netsvc.base.errors import UserError
from netsvc.interfaces import Context
from netsvc.services.files import service
from netsvc.services.files.tftp import UNVERIFIED_BURST, Tftp
from netsvc.services.files.tftp_transfer import HALF_OPEN
from netsvc.testing import MemoryReactor
from netsvc.testing.wire import FakeDatagramTransport
from tests.builders.bench import Bench, bind, build
from tests.builders.files import open_below, pattern

CLIENT = ("192.0.2.1", 54321)


def ask(name: bytes, mode: bytes = b"octet", *options: bytes, writes: bool = False) -> bytes:
    return bytes((0, 2 if writes else 1)) + b"".join(part + b"\0" for part in (name, mode, *options))


def ack(block: int) -> bytes:
    return b"\0\4" + block.to_bytes(2, "big")


class Served:
    """The TFTP listener of a files service, and its clients."""

    def __init__(self, root: Path, **options: object) -> None:
        self.events: list[LogEvent] = []
        log = Logger("netsvc.files", observer=self.events.append)  # type: ignore[arg-type]
        settings = {"root": str(root), **{name.replace("_", "-"): value for name, value in options.items()}}
        self.bench: Bench = build(service, settings, context=Context(MemoryReactor(), log))
        self.bench.start()
        self.clock = self.bench.clock
        self.listener: Tftp
        self.transport: FakeDatagramTransport
        self.listener, self.transport = bind(self.bench, "tftp")

    def ask(self, data: bytes, client: Any = CLIENT) -> FakeDatagramTransport:
        """Send a datagram to the listener; return the port that answers."""
        before = set(self.transport.beside)
        self.transport.feed(data, client)
        opened = set(self.transport.beside) - before
        return opened.pop() if opened else self.transport

    @property
    def answers(self) -> list[tuple[bytes, Any]]:
        answers = self.transport.written[:]
        self.transport.written.clear()
        return answers

    @property
    def results(self) -> list[tuple[str, int, str]]:
        return [(event["name"], event["size"], event["result"]) for event in self.events]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    (tmp_path / "f").write_bytes(b"content")
    (tmp_path / "long").write_bytes(pattern(1300))
    (tmp_path / "lines").write_bytes(b"a\nb\r")
    (tmp_path / "d").mkdir()
    (tmp_path / ".hidden").write_bytes(b"hidden")
    (tmp_path / "文件").write_bytes("内容".encode())
    one = Served(tmp_path, tftp_transfers=5, tftp_peer=3)
    yield one
    for port in list(one.listener.transfers):
        port.opened.close()
    one.bench.stop()
    assert one.listener._count == {}
    assert one.listener._half_open == {}
    assert one.bench.core.downloads == 0
    assert one.clock.getDelayedCalls() == []
    assert open_below(tmp_path) == []


def test_a_file_is_sent_from_a_port_of_its_own(served: Served) -> None:
    port = served.ask(ask(b"long"))
    assert port.written == [(b"\0\3\0\1" + pattern(1300)[:512], CLIENT)]
    for block in (1, 2):
        port.feed(ack(block), CLIENT)
    assert [packet[4:] for packet, _ in port.written[1:]] == [pattern(1300)[512:1024], pattern(1300)[1024:]]
    port.feed(ack(3), CLIENT)
    assert served.results == [("long", 1300, "sent")]
    event = served.events[0]
    assert (event["peer"], event["mode"], event["blksize"], event["windowsize"]) == ("192.0.2.1:54321", "octet", 512, 1)
    assert not port.connected
    assert served.answers == []


def test_options_are_agreed(served: Served) -> None:
    options = (b"tsize", b"0", b"blksize", b"700", b"windowsize", b"4", b"timeout", b"9", b"x", b"y")
    port = served.ask(ask(b"long", b"octet", *options))
    assert port.written == [(b"\0\6tsize\x001300\0blksize\x00700\0windowsize\x004\0timeout\x009\0", CLIENT)]
    port.feed(ack(0), CLIENT)
    assert [len(packet) for packet, _ in port.written[1:]] == [704, 604]
    port.feed(ack(2), CLIENT)
    assert served.results == [("long", 1300, "sent")]


def test_netascii_has_no_size(served: Served) -> None:
    port = served.ask(ask(b"lines", b"NetASCII", b"tsize", b"0"))
    assert port.written == [(b"\0\3\0\1a\r\nb\r\0", CLIENT)]
    port.feed(ack(1), CLIENT)
    assert served.results == [("lines", 4, "sent")]


@pytest.mark.parametrize("name", ["文件".encode(), "文件".encode("gbk"), b"/f", b"d\\..\\f", b"./f"])
def test_names_are_found(served: Served, name: bytes) -> None:
    port = served.ask(ask(name))
    assert port.written[0][0][4:] in (b"content", "内容".encode())
    port.feed(ack(1), CLIENT)


@pytest.mark.parametrize(
    ("data", "code", "result"),
    [
        (ask(b"missing"), 1, "no such file"),
        (ask(b"d"), 1, "not a regular file"),
        (ask(b".hidden"), 1, "hidden"),
        (ask(b"../secret"), 1, "outside the root"),
        (ask(b"x" * 5000), 1, "name too long"),
        (ask(b"f", writes=True), 2, "read only"),
        (ask(b"new", b"netascii", writes=True), 2, "read only"),
        (ask(b"f", b"mail"), 4, "unknown mode"),
        (b"\0\1f", 4, None),
        (b"\0\1\0octet\0", 4, None),
        (b"\0\3\0\1data", 4, None),
        (b"\0\x63", 4, None),
    ],
)
def test_a_refusal_is_one_error(served: Served, data: bytes, code: int, result: str | None) -> None:
    served.ask(data)
    [(answer, client)] = served.answers
    assert (answer[:4], answer[-1:], client) == (bytes((0, 5, 0, code)), b"\0", CLIENT)
    assert len(answer) < 40
    assert [each for _, _, each in served.results] == ([] if result is None else [result])


@pytest.mark.parametrize("data", [b"", b"\0", b"\0\4\0\1", b"\0\4", b"\0\5\0\0x\0", b"\0\5"])
def test_nothing_else_is_answered(served: Served, data: bytes) -> None:
    served.ask(data)
    assert (served.answers, served.results) == ([], [])


@pytest.mark.parametrize("client", [("192.0.2.1", 7), ("127.0.0.1", 69), "/run/client"])
def test_a_client_that_may_be_another_service_is_not_answered(served: Served, client: Any) -> None:
    served.transport.feed(ask(b"f"), client)
    served.transport.feed(ask(b"missing"), client)
    assert served.answers == []


def test_a_foreigner_is_told_so_and_the_transfer_goes_on(served: Served) -> None:
    port = served.ask(ask(b"long"))
    port.feed(ack(1), ("192.0.2.1", 4))
    port.feed(b"", ("192.0.2.2", 54321))
    port.feed(b"\0\5\0\0no\0", ("192.0.2.2", 54321))
    port.feed(ask(b"", b""), ("192.0.2.2", 54321))
    assert port.written[1:] == [(b"\0\5\0\5unknown transfer\0", ("192.0.2.1", 4))]
    for block in (1, 2, 3):
        port.feed(ack(block), CLIENT)
    assert served.results == [("long", 1300, "sent")]


def test_a_request_that_comes_again_gets_the_first_packet_again(served: Served) -> None:
    port = served.ask(ask(b"long"))
    served.ask(ask(b"long"))
    assert len(port.written) == 2
    assert port.written[0] == port.written[1]
    assert len(served.listener.transfers) == 1
    served.ask(ask(b"f"))
    assert served.results == [("long", 0, "asked for something else")]
    assert len(served.listener.transfers) == 1


def test_a_request_that_is_late_does_not_disturb_a_transfer(served: Served) -> None:
    port = served.ask(ask(b"long"))
    port.feed(ack(1), CLIENT)
    late = served.ask(ask(b"long"))
    late.feed(b"\0\5\0\5unknown transfer\0", CLIENT)
    port.feed(ack(2), CLIENT)
    port.feed(ack(3), CLIENT)
    assert served.results == [("long", 0, "refused by the client"), ("long", 1300, "sent")]


def test_a_forged_address_gets_one_packet_for_each_request_at_a_bounded_rate(served: Served) -> None:
    port = served.ask(ask(b"long"))
    for _ in range(2 * UNVERIFIED_BURST):
        served.ask(ask(b"long"))
    served.clock.advance(HALF_OPEN)
    assert len(port.written) == UNVERIFIED_BURST
    assert served.results == [("long", 0, "client did not answer")]
    assert served.answers == []


def test_what_is_acknowledged_is_not_counted(served: Served) -> None:
    for _ in range(2 * UNVERIFIED_BURST):
        served.ask(ask(b"f")).feed(ack(1), CLIENT)
    assert [result for _, _, result in served.results] == ["sent"] * (2 * UNVERIFIED_BURST)


def test_transfers_of_one_address_are_limited(served: Served) -> None:
    ports = [served.ask(ask(b"long"), ("192.0.2.1", number)) for number in (1001, 1002, 1003)]
    # The place of one that nobody has acknowledged.
    ports.append(served.ask(ask(b"long"), ("192.0.2.1", 1004)))
    assert served.results == [("long", 0, "gave way to another")]
    assert not ports[0].connected
    for number, port in zip((1002, 1003, 1004), ports[1:], strict=True):
        port.feed(ack(1), ("192.0.2.1", number))
    assert served.ask(ask(b"long"), ("192.0.2.1", 1005)) is served.transport
    assert (served.results[1:], served.answers) == ([("long", 0, "too many transfers")], [])
    assert len(served.listener.transfers) == 3


def test_transfers_are_limited(served: Served) -> None:
    clients = [(f"192.0.2.{number}", 1000) for number in range(1, 7)]
    ports = [served.ask(ask(b"long"), client) for client in clients]
    assert served.results == [("long", 0, "gave way to another")]
    for client, port in list(zip(clients, ports, strict=True))[1:]:
        port.feed(ack(1), client)
    assert served.ask(ask(b"long"), clients[0]) is served.transport
    assert served.results[1:] == [("long", 0, "too many transfers")]


def test_a_drain_waits_for_transfers(served: Served) -> None:
    port = served.ask(ask(b"long"))
    done = served.bench.drain()
    assert done is not None
    served.ask(ask(b"f"), ("192.0.2.9", 1000))
    assert served.answers == [(b"\0\5\0\0busy\0", ("192.0.2.9", 1000))]
    for block in (1, 2):
        port.feed(ack(block), CLIENT)
    assert not done.called
    port.feed(ack(3), CLIENT)
    assert done.called


def test_a_port_that_is_closed_ends_the_transfer(served: Served) -> None:
    port = served.ask(ask(b"long"))
    port.close()
    assert port.written[1:] == [(b"\0\5\0\0the server stops\0", CLIENT)]
    assert served.results == [("long", 0, "cut off")]


def test_a_stalled_transfer_gives_way_to_a_download(tmp_path: Path) -> None:
    (tmp_path / "long").write_bytes(pattern(1300))
    served = Served(tmp_path, downloads=1, stall=2)
    port = served.ask(ask(b"long"))
    port.feed(ack(1), CLIENT)
    served.clock.advance(2)
    served.bench.core.open(b"long").close()
    assert port.written[-1] == (b"\0\5\0\0busy\0", CLIENT)
    assert served.results == [("long", 512, "stalled, and gave way to another")]
    served.bench.stop()


def test_ports_are_of_the_range(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"content")
    served = Served(tmp_path, tftp_ports="40100-40101")
    ports = [served.ask(ask(b"f"), ("192.0.2.1", number)) for number in (1001, 1002)]
    assert {port.getHost().port for port in ports} == {40100, 40101}
    served.ask(ask(b"f"), ("192.0.2.1", 1003))
    assert served.answers == [(b"\0\5\0\0busy\0", ("192.0.2.1", 1003))]
    assert served.results == [("f", 0, "no free port")]
    for port in ports:
        port.close()
    served.bench.stop()


@pytest.mark.parametrize("value", ["1", "2000", "2000-1999", "80-2000", "2000-65536", "a-b", "-", "2000-"])
def test_a_wrong_range_is_an_error(tmp_path: Path, value: str) -> None:
    with pytest.raises(UserError) as caught:
        build(service, {"root": str(tmp_path), "tftp-ports": value})
    assert "tftp-ports" in str(caught.value)


@given(st.lists(st.tuples(st.binary(max_size=40), st.integers(0, 6), st.booleans()), max_size=12))
def test_any_datagrams_are_survived(packets: list[tuple[bytes, int, bool]]) -> None:
    served = Served(Path(__file__).parent)
    name = Path(__file__).name.encode()
    port = served.ask(ask(name))
    for data, opcode, is_for_transfer in packets:
        (port if is_for_transfer and port.connected else served.transport).feed(bytes((0, opcode)) + data, CLIENT)
    other = ("192.0.2.7", 5000)
    assert served.ask(ask(name), other).written[-1][0][:4] == b"\0\3\0\1"
    for transfer in list(served.listener.transfers):
        transfer.opened.close()
    served.bench.stop()
