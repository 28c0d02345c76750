"""A WebSocket carries lines to a protocol that knows nothing of it, within limits, and only for pages that may."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Message, Ping, Pong, TextMessage

from netsvc.http.connection import Exchange
from netsvc.http.websocket import WebSocketLimits, WebSocketLines, upgrade
from tests.builders.http import Server, Transport, read_replies, request

NAMES = {"text.ircv3.net": False, "binary.ircv3.net": True}
#: RFC 6455, section 1.3: a key and what answers it.
KEY, ACCEPT = "dGhlIHNhbXBsZSBub25jZQ==", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
ASKING = {"Upgrade": "websocket", "Connection": "keep-alive, Upgrade", "Sec-WebSocket-Key": KEY}
ASKING["Sec-WebSocket-Version"] = "13"


class Lines(Protocol):
    """Keeps what it is given, and answers each line with itself in capitals if it is to."""

    transport: Any

    def __init__(self, *, answers: bool = True) -> None:
        self.got = b""
        self.answers = answers
        self.lost: Failure | None = None

    def dataReceived(self, data: bytes) -> None:
        self.got += data
        if self.answers:
            self.transport.write(data.upper())

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008
        assert self.lost is None
        self.lost = reason


class Client:
    """The client of one WebSocket: what it sends is masked by wsproto, as a browser does."""

    def __init__(self, protocol: Lines | None = None, *, origins: tuple[str, ...] = (), **limits: Any) -> None:
        self.protocol = Lines() if protocol is None else protocol
        self.server = Server(
            lambda exchange: upgrade(
                exchange,
                lambda: WebSocketLines(self.protocol, WebSocketLimits(**limits)),
                subprotocols=NAMES,
                origins=origins,
            )
        )
        self.transport: Transport = self.server.connect()
        self.wire = Connection(ConnectionType.CLIENT)

    def open(self, behind: bytes = b"", **headers: str) -> dict[str, str]:
        self.transport.protocol.dataReceived(
            request("/", headers=ASKING | {name.replace("_", "-"): value for name, value in headers.items()}) + behind
        )
        head, _, rest = self.transport.take().partition(b"\r\n\r\n")
        [reply] = read_replies(head + b"\r\n\r\n")
        assert reply.code == 101
        self.wire.receive_data(rest)
        return reply.headers

    @property
    def below(self) -> Any:
        """What the transport tells when its buffer is full, and empty again."""
        assert self.transport.producer is not None
        return self.transport.producer

    def send(self, *events: Event) -> list[Event]:
        self.transport.protocol.dataReceived(b"".join(bytes(self.wire.send(event)) for event in events))
        return self.take()

    def take(self) -> list[Event]:
        if sent := self.transport.take():
            self.wire.receive_data(sent)
        return list(self.wire.events())


@pytest.fixture
def client() -> Client:
    return Client()


def texts(events: list[Event]) -> list[Any]:
    return [event.data for event in events if isinstance(event, Message)]


def test_an_event_passes_a_layer_such_as_tls_as_everything_does(client: Client) -> None:
    # A layer has the attributes of the transport below, which its class does not have.
    vars(client.transport)["write_at_once"] = None
    client.open()
    client.protocol.transport.write_at_once(b"event\r\n")
    assert texts(client.take()) == ["event"]


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    """A frame, most often one of a client with a text."""
    first = draw(st.sampled_from([0x81, 0x81, 0x81, 0x82, 0x01, 0x00, 0x80, 0x89, 0x8A, 0x88, 0xC1, 0x83]))
    payload = draw(st.one_of(st.text(max_size=90).map(str.encode), st.binary(max_size=140)))
    extended = draw(st.sampled_from([len(payload) > 125, len(payload) > 125, True]))
    length = b"\xfe" + len(payload).to_bytes(2, "big") if extended else bytes([0x80 | len(payload)])
    mask = draw(st.binary(min_size=4, max_size=4))
    masked = bytes(byte ^ mask[place % 4] for place, byte in enumerate(payload))
    return bytes([first]) + length + mask + masked


def read_by_wsproto(data: bytes) -> tuple[bytes, list[int]]:
    """What is received of these frames as lines, and the code of the close."""
    wire = Connection(ConnectionType.SERVER)
    wire.receive_data(data)
    got, message, codes = b"", b"", []
    for event in wire.events():
        if isinstance(event, Message):
            message += event.data.encode() if isinstance(event, TextMessage) else bytes(event.data)
            if event.message_finished:
                got += message.rstrip(b"\r\n") + b"\r\n"
                message = b""
        elif isinstance(event, CloseConnection):
            codes.append(int(event.code))
            break
    return got, codes


class TestHandshake:
    def test_the_key_is_answered_and_the_subprotocol_that_the_client_likes_best_is_chosen(self, client: Client) -> None:
        headers = client.open(Sec_WebSocket_Protocol="chat, binary.ircv3.net, text.ircv3.net")
        assert headers["sec-websocket-accept"] == ACCEPT
        assert headers["sec-websocket-protocol"] == "binary.ircv3.net"
        assert (headers["upgrade"], headers["connection"].lower()) == ("websocket", "upgrade")
        assert "content-length" not in headers
        assert client.send(TextMessage("hello")) == [BytesMessage(b"HELLO")]

    @pytest.mark.parametrize("asked", ["", "chat"])
    def test_without_a_subprotocol_messages_are_text(self, client: Client, asked: str) -> None:
        assert "sec-websocket-protocol" not in client.open(Sec_WebSocket_Protocol=asked)
        assert client.send(BytesMessage(b"hello")) == [TextMessage("HELLO")]

    def test_what_comes_behind_the_request_is_received(self, client: Client) -> None:
        client.open(bytes(client.wire.send(TextMessage("early"))))
        assert client.protocol.got == b"early\r\n"
        assert texts(client.take()) == ["EARLY"]

    @pytest.mark.parametrize(
        ("change", "status"),
        [
            ({"Upgrade": ""}, 426),
            ({"Upgrade": "h2c"}, 426),
            ({"Connection": "keep-alive"}, 426),
            ({"Sec-WebSocket-Version": "8"}, 426),
            ({"Sec-WebSocket-Version": ""}, 426),
            ({"Sec-WebSocket-Key": ""}, 400),
            ({"Sec-WebSocket-Key": "short"}, 400),
            ({"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZS4u"}, 400),
            ({"Sec-WebSocket-Key": "\xff\xfe"}, 400),
            ({"Origin": "https://evil.example"}, 403),
            ({"Origin": "null"}, 403),
            ({"Origin": "https://localhost.evil.example"}, 403),
            ({"Origin": "\xff"}, 403),
        ],
    )
    def test_a_wrong_request_is_refused_with_the_reason_in_its_status(
        self, client: Client, change: dict[str, str], status: int
    ) -> None:
        client.transport.protocol.dataReceived(request("/", headers=ASKING | change))
        [reply] = read_replies(client.transport.take())
        assert reply.code == status
        assert reply.body.count(b"\n") == 1
        if "Sec-WebSocket-Version" in change:
            assert reply.headers["sec-websocket-version"] == "13"
        assert client.protocol.transport is None

    def test_only_get_of_version_1_1_switches(self) -> None:
        for data in (
            request("/", method="HEAD", headers=ASKING),
            request("/", headers=ASKING).replace(b"HTTP/1.1", b"HTTP/1.0"),
        ):
            client = Client()
            client.transport.protocol.dataReceived(data)
            assert client.transport.take().startswith(b"HTTP/1.1 400 ")

    @pytest.mark.parametrize(
        ("host", "origin", "origins"),
        [
            ("localhost", "http://localhost", ()),
            ("LocalHost:80", "http://localhost", ()),
            ("chat.example", "https://chat.example", ()),
            ("chat.example:443", "https://Chat.Example", ()),
            ("127.0.0.1:9001", "http://127.0.0.1:9001", ()),
            ("[::1]:9001", "http://[::1]:9001", ()),
            ("localhost", "https://other.example", ("https://other.example",)),
            ("localhost", "null", ("*",)),
        ],
    )
    def test_a_page_of_the_same_host_or_a_listed_origin_may_connect(
        self, host: str, origin: str, origins: tuple[str, ...]
    ) -> None:
        Client(origins=origins).open(Host=host, Origin=origin)

    def test_a_factory_that_builds_nothing_refuses(self) -> None:
        server = Server(lambda exchange: upgrade(exchange, lambda: None, subprotocols=NAMES))
        transport = server.connect(request("/", headers=ASKING))
        assert transport.take().startswith(b"HTTP/1.1 503 ")


class TestMessages:
    def test_a_message_is_a_line_and_a_line_a_message(self, client: Client) -> None:
        client.open()
        assert texts(client.send(TextMessage("one"), TextMessage("zwei \u4e16"), TextMessage(""))) == [
            "ONE",
            "ZWEI \u4e16",
            "",
        ]
        assert client.protocol.got == "one\r\nzwei \u4e16\r\n\r\n".encode()

    @pytest.mark.parametrize("end", ["\r\n", "\n", "\r"])
    def test_a_line_end_in_a_message_is_not_doubled(self, client: Client, end: str) -> None:
        client.open()
        client.send(TextMessage(f"hello{end}"))
        assert client.protocol.got == b"hello\r\n"

    def test_lines_written_in_pieces_or_together_are_a_message_each(self, client: Client) -> None:
        client.open()
        write = client.protocol.transport.write
        for data in (b"a\r\nb\r\nc", b"d", b"\r", b"\ne\n", b""):
            write(data)
        client.protocol.transport.writeSequence([b"f\r\n", b"g\r\n"])
        assert texts(client.take()) == ["a", "b", "cd", "e", "f", "g"]

    @pytest.mark.parametrize("size", [0, 125, 126, 65535, 65536])
    def test_frames_have_the_length_that_belongs_to_their_size(self, client: Client, size: int) -> None:
        client.open()
        client.protocol.transport.write(b"x" * size + b"\r\n")
        assert "".join(texts(client.take())) == "x" * size

    def test_lines_to_many_are_framed_once(self) -> None:
        clients = [Client() for _ in range(3)]
        line = b"hello\r\n"
        written: list[bytes] = []
        for each in clients:
            write = each.transport.write

            def keep(data: bytes, write: Callable[[bytes], None] = write) -> None:
                written.append(data)
                write(data)

            each.transport.write = keep  # type: ignore[method-assign]
            each.open()
            each.protocol.transport.write(line)
        frames = [data for data in written if data.startswith(b"\x81")]
        assert frames == [b"\x81\x05hello"] * 3
        assert len({id(frame) for frame in frames}) == 1

    def test_fragments_are_one_message_and_pings_between_them_are_answered(self, client: Client) -> None:
        client.open()
        events = client.send(
            TextMessage("Hel", message_finished=False),
            Ping(b"?"),
            TextMessage("", message_finished=False),
            TextMessage("lo"),
        )
        assert client.protocol.got == b"Hello\r\n"
        assert events == [Pong(b"?"), TextMessage("HELLO")]

    @given(
        lines=st.lists(st.text(st.characters(exclude_characters="\r\n", codec="utf-8"), max_size=200), max_size=8),
        sizes=st.lists(st.integers(1, 90), min_size=1, max_size=30),
    )
    def test_however_it_is_cut_it_is_the_same(self, lines: list[str], sizes: list[int]) -> None:
        client = Client(Lines(answers=False))
        client.open()
        data = b"".join(bytes(client.wire.send(TextMessage(line))) for line in lines)
        while data:
            for size in sizes:
                client.transport.protocol.dataReceived(data[:size])
                data = data[size:]
        assert client.protocol.got == "".join(f"{line}\r\n" for line in lines).encode()

    @given(
        pieces=st.lists(st.one_of(frames(), frames(), st.binary(max_size=20)), max_size=6),
        sizes=st.lists(st.integers(1, 200), min_size=1, max_size=30),
    )
    def test_every_frame_is_read_as_wsproto_reads_it(self, pieces: list[bytes], sizes: list[int]) -> None:
        client = Client(Lines(answers=False))
        client.open()
        # The head of a frame is judged when it is complete: pongs follow.
        rest = b"".join(pieces) + b"\x8a\x80mask" * 3
        expected, codes = read_by_wsproto(rest)
        while rest:
            for size in sizes:
                client.transport.protocol.dataReceived(rest[:size])
                rest = rest[size:]
        assert client.protocol.got == expected
        assert [event.code for event in client.take() if isinstance(event, CloseConnection)] == codes

    @given(data=st.binary(max_size=400))
    def test_whatever_is_sent_raises_nothing(self, data: bytes) -> None:
        client = Client()
        client.open()
        client.transport.protocol.dataReceived(data)
        client.transport.protocol.dataReceived(data)


class TestLimits:
    @pytest.mark.parametrize("parts", [1, 3])
    def test_a_message_that_is_too_long_ends_the_connection_and_what_was_before_it_is_received(
        self, parts: int
    ) -> None:
        client = Client(message=100)
        client.open()
        rest = [TextMessage("x" * 40, message_finished=number == parts - 1) for number in range(parts)]
        events = client.send(TextMessage("y" * 100), *(rest if parts > 1 else [TextMessage("x" * 101)]))
        assert client.protocol.got == b"y" * 100 + b"\r\n"
        assert [event.code for event in events if isinstance(event, CloseConnection)] == [1009]
        assert client.transport.ended

    def test_a_length_beyond_the_limit_is_not_waited_for(self) -> None:
        client = Client(message=100)
        client.open()
        # A frame of 2**40 bytes, of which 101 have come.
        client.transport.protocol.dataReceived(b"\x81\xff" + (1 << 40).to_bytes(8, "big") + bytes(4) + b"x" * 101)
        assert [event.code for event in client.take() if isinstance(event, CloseConnection)] == [1009]

    @pytest.mark.parametrize(
        ("frame", "code"),
        [
            (b"\x81\x05hello", 1002),  # not masked
            (b"\x83\x80" + bytes(4), 1002),  # an unknown opcode
            (b"\xc1\x80" + bytes(4), 1002),  # a reserved bit
            (b"\x80\x80" + bytes(4), 1002),  # a continuation of nothing
            (b"\x09\x80" + bytes(4), 1002),  # a ping in fragments
            (b"\x81\x81" + bytes(4) + b"\xff", 1007),  # not UTF-8
            (b"\x88\x82" + bytes(4) + b"\x00\x01", 1002),  # a close with a code that there is not
        ],
    )
    def test_a_wrong_frame_ends_the_connection_with_the_code(self, client: Client, frame: bytes, code: int) -> None:
        client.open()
        client.transport.protocol.dataReceived(frame)
        assert [event.code for event in client.take() if isinstance(event, CloseConnection)] == [code]
        assert client.transport.ended

    def test_pings_of_one_that_does_not_read_are_answered_once_when_it_does(self, client: Client) -> None:
        client.open()
        client.below.pauseProducing()
        assert client.send(*[Ping(b"%d" % number) for number in range(1000)]) == []
        client.below.resumeProducing()
        assert client.take() == [Pong(b"999")]

    def test_the_producer_of_the_protocol_is_told(self, client: Client) -> None:
        told: list[str] = []

        class Producer:
            def __getattr__(self, name: str) -> Callable[[], None]:
                return lambda: told.append(name)

        client.open()
        producer = Producer()
        client.protocol.transport.registerProducer(producer, True)
        client.below.pauseProducing()
        client.below.resumeProducing()
        client.protocol.transport.unregisterProducer()
        client.below.pauseProducing()
        client.protocol.transport.registerProducer(producer, True)
        assert told == ["pauseProducing", "resumeProducing", "pauseProducing"]
        with pytest.raises(ValueError, match="push"):
            client.protocol.transport.registerProducer(producer, False)

    def test_a_paused_protocol_is_given_nothing(self, client: Client) -> None:
        client.open()
        client.protocol.transport.pauseProducing()
        assert client.transport.producerState == "paused"
        client.protocol.transport.resumeProducing()
        assert client.transport.producerState == "producing"


class TestEnd:
    def test_a_client_that_closes_is_answered_and_the_protocol_hears_of_it_once(self, client: Client) -> None:
        client.open()
        events = client.send(TextMessage("last"), CloseConnection(1001, "away"))
        assert texts(events) == ["LAST"]
        assert [event.code for event in events if isinstance(event, CloseConnection)] == [1001]
        assert client.transport.ended
        client.transport.end()
        assert client.protocol.lost is not None
        client.protocol.transport.write(b"too late\r\n")

    def test_one_that_closes_without_a_word_is_gone(self, client: Client) -> None:
        client.open()
        client.transport.protocol.readConnectionLost()
        assert client.transport.gone
        assert client.protocol.lost is not None

    def test_the_protocol_closes_after_what_it_has_written_and_waits_for_the_client(self, client: Client) -> None:
        client.open()
        client.protocol.transport.write(b"goodbye\r\n")
        client.protocol.transport.loseConnection()
        client.protocol.transport.write(b"too late\r\n")
        events = client.take()
        assert texts(events) == ["goodbye"]
        assert isinstance(events[-1], CloseConnection)
        assert not client.transport.ended
        on_its_way = Connection(ConnectionType.CLIENT).send(TextMessage("on its way"))
        client.transport.protocol.dataReceived(bytes(on_its_way))
        client.send(events[-1].response())
        assert client.protocol.got == b""
        assert client.transport.ended

    def test_a_client_that_never_closes_is_not_waited_for(self, client: Client) -> None:
        client.transport.stays = True
        client.open()
        client.protocol.transport.loseConnection()
        assert not client.transport.ended
        client.server.clock.pump([1.0] * 10)
        assert client.transport.gone
        assert not client.server.clock.getDelayedCalls()

    def test_a_reset_reaches_the_protocol_with_its_reason(self, client: Client) -> None:
        client.open()
        reason = Failure(ConnectionLost())
        client.transport.protocol.connectionLost(reason)
        assert client.protocol.lost is reason

    def test_the_protocol_may_reset_the_connection(self, client: Client) -> None:
        client.open()
        client.protocol.transport.abortConnection()
        assert client.transport.aborted
        assert client.protocol.lost is not None


class TestSilence:
    def test_a_silent_client_is_asked_and_kept_while_it_answers(self, client: Client) -> None:
        client.open()
        asked = 0
        for _ in range(600):
            client.server.clock.advance(1)
            for event in client.take():
                assert event == Ping(b"")
                asked += 1
                client.send(Pong(b""))
        assert asked == pytest.approx(600 / 90, abs=1)
        assert not client.transport.ended

    @pytest.mark.parametrize("full", [False, True])
    def test_one_that_does_not_answer_is_reset(self, client: Client, full: bool) -> None:
        client.open()
        if full:
            client.below.pauseProducing()
        client.server.clock.pump([1.0] * 140)
        assert client.transport.aborted
        assert client.protocol.lost is not None
        assert not client.server.clock.getDelayedCalls()

    def test_one_that_talks_is_not_asked(self, client: Client) -> None:
        client.open()
        for _ in range(300):
            client.server.clock.advance(1)
            assert texts(client.send(TextMessage("."))) == ["."]


def test_attributes_that_are_not_its_own_are_those_of_the_transport_below(client: Client) -> None:
    client.open()
    transport = client.protocol.transport
    assert transport.getPeer() == client.transport.getPeer()
    assert transport.getHost() == client.transport.getHost()
    assert transport.stays is False
    assert not hasattr(transport, "getPeerCertificate")


def test_an_exchange_that_has_switched_is_recorded_with_its_status() -> None:
    ended: list[Exchange] = []
    client = Client()
    client.server.factory.request_ended = ended.append
    client.open()
    assert not ended
    client.transport.protocol.readConnectionLost()
    [exchange] = ended
    assert exchange.status == 101
