"""Each service against the contract, and against its RFC, sentence by sentence."""

from __future__ import annotations

from configparser import ConfigParser
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from netsvc.errors import MistakeError
from netsvc.service import ServicePlugin
from netsvc.testing import FakeTransport, MemoryReactor, bind, build, check_service, connect

HERE = Path(__file__).parent.parent
NAMES = ("discard", "daytime", "time", "qotd", "chargen")
CLIENT = ("192.0.2.1", 54321)


def made(name: str, seconds: float = 0, **settings: object) -> Any:
    """Build a service at a time, in seconds since 1970, and start it."""
    clock = MemoryReactor()
    clock.advance(seconds)
    bench = build(f"netsvc_classic.{name}:service", settings, clock=clock)
    bench.check()
    bench.start()
    return bench


def told(bench: Any) -> bytes:
    """Return what a client that only reads is told, after which the server must have closed."""
    _, transport = connect(bench, "tcp")
    assert transport.ended and not transport.aborted
    return transport.value()


def answered(bench: Any, data: bytes = b"") -> bytes:
    """Return the one datagram that answers one."""
    _, transport = bind(bench, "udp")
    transport.feed(data, CLIENT)
    transport.stopListening()
    [(answer, address)] = transport.written
    assert address == CLIENT
    return bytes(answer)


@pytest.mark.parametrize("name", NAMES)
def test_keeps_the_contract_and_has_good_habits(name: str) -> None:
    report = check_service(f"netsvc_classic.{name}:service", samples={"tcp": [b"x" * 50], "udp": [b"x" * 600]})
    assert report.notes == ()


@pytest.mark.parametrize("name", NAMES)
def test_is_declared_in_both_ways_alike(name: str) -> None:
    metadata = ConfigParser()
    metadata.read(HERE / "setup.cfg")
    points = dict(
        line.split(" = ") for line in metadata["options.entry_points"]["netsvc.services"].strip().splitlines()
    )
    # twisted/plugins is no package, so the file is run as Twisted finds it: by its path.
    names: dict[str, Any] = {}
    exec((HERE / "twisted/plugins/netsvc_classic_plugins.py").read_text(), names)  # noqa: S102
    plugin = names[name]
    assert isinstance(plugin, ServicePlugin)
    service = import_module(f"netsvc_classic.{name}").service
    assert (plugin.name, plugin.target, plugin.description) == (name, points[name], service.description)
    assert plugin.load() is service
    assert set(points) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_answers_no_service_that_would_answer_back(name: str) -> None:
    _, transport = bind(made(name), "udp")
    for port in (7, 13, 17, 19, 37):
        transport.feed(b"x", ("192.0.2.1", port))
    assert transport.written == []


class TestDiscard:
    """RFC 863."""

    def test_any_data_received_is_thrown_away_and_no_response_is_sent(self) -> None:
        _, transport = connect(made("discard"), "tcp")
        for data in (b"x", bytes(range(256)), b"x" * 100_000):
            transport.feed(data)
            assert transport.reading
        assert transport.value() == b""

    def test_this_continues_until_the_calling_user_terminates_the_connection(self) -> None:
        _, transport = connect(made("discard"), "tcp")
        transport.feed(b"x")
        assert not transport.ended
        transport.half_close()
        assert transport.ended

    def test_a_datagram_is_thrown_away_and_no_response_is_sent(self) -> None:
        _, transport = bind(made("discard"), "udp")
        for data in (b"", b"x", bytes(65507)):
            transport.feed(data, CLIENT)
        assert transport.written == []


class TestDaytime:
    """RFC 867."""

    def test_the_date_and_time_is_sent_and_the_connection_closed(self) -> None:
        assert told(made("daytime")) == b"Thursday, January 1, 1970 00:00:00-UTC\r\n"

    def test_has_the_form_of_the_examples(self) -> None:
        # "Tuesday, February 22, 1982 17:37:43-PST" is the RFC's; that day was a Monday.
        assert told(made("daytime", 383_247_463)) == b"Monday, February 22, 1982 17:37:43-UTC\r\n"

    def test_is_just_one_line_of_printing_characters(self) -> None:
        line = told(made("daytime", 2**31 + 0.9))
        assert line.count(b"\n") == 1
        assert line.endswith(b"\r\n")
        assert line[:-2].decode("ascii").isprintable()

    def test_any_data_received_is_thrown_away(self) -> None:
        _, transport = connect(made("daytime"), "tcp", window=0)
        transport.feed(b"x" * 1000)
        transport.take(1000)
        assert transport.value() == b"Thursday, January 1, 1970 00:00:00-UTC\r\n"
        assert transport.ended

    @pytest.mark.parametrize("data", [b"", b"ignored"])
    def test_an_answering_datagram_is_sent(self, data: bytes) -> None:
        assert answered(made("daytime", 86400), data) == b"Friday, January 2, 1970 00:00:00-UTC\r\n"


class TestTime:
    """RFC 868."""

    @pytest.mark.parametrize(
        ("seconds", "number"),
        [
            (0, 2_208_988_800),  # "corresponds to 00:00 1 Jan 1970 GMT"
            (189_302_400, 2_398_291_200),  # 1 Jan 1976
            (315_532_800, 2_524_521_600),  # 1 Jan 1980
            (420_595_200, 2_629_584_000),  # 1 May 1983
        ],
    )
    def test_the_examples_of_the_rfc(self, seconds: int, number: int) -> None:
        assert told(made("time", seconds)) == number.to_bytes(4, "big")
        assert answered(made("time", seconds + 0.9)) == number.to_bytes(4, "big")

    def test_the_base_serves_until_2036(self) -> None:
        assert told(made("time", 2_085_978_495)) == b"\xff\xff\xff\xff"
        assert told(made("time", 2_085_978_496)) == b"\x00\x00\x00\x00"

    def test_the_server_sends_four_bytes_and_closes(self) -> None:
        assert len(told(made("time"))) == 4

    def test_a_datagram_is_answered_whatever_it_holds(self) -> None:
        assert answered(made("time"), b"not empty") == (2_208_988_800).to_bytes(4, "big")


class TestQotd:
    """RFC 865."""

    def test_a_short_message_is_sent_and_the_connection_closed(self) -> None:
        assert told(made("qotd")).startswith(b"Be conservative in what you do")

    def test_an_answering_datagram_is_sent(self) -> None:
        assert answered(made("qotd"), b"ignored") == told(made("qotd"))

    def test_every_day_has_its_quote(self) -> None:
        days = [told(made("qotd", day * 86400 + 86399)) for day in range(4)]
        assert len(set(days)) == 3
        assert days[0] == days[3] == told(made("qotd"))

    def test_every_quote_that_is_told_is_counted(self) -> None:
        bench = made("qotd", 86400)
        told(bench)
        answered(bench)
        assert bench.context.metrics.value("quotes", number=2) == 2

    def test_is_limited_to_printing_characters_space_and_line_ends(self) -> None:
        for day in range(3):
            quote = told(made("qotd", day * 86400))
            assert len(quote) < 512
            assert quote.endswith(b"\r\n")
            assert all(line.isprintable() for line in quote.decode("ascii").split("\r\n"))

    def test_quotes_come_from_a_file(self, tmp_path: Path) -> None:
        file = tmp_path / "quotes"
        file.write_bytes("one\n%\n二\r\nlines\r\n%\r\n\n%\n".encode())
        quotes = [told(made("qotd", day * 86400, file=str(file))) for day in range(3)]
        assert quotes == [b"one\r\n", "二\r\nlines\r\n".encode(), b"one\r\n"]

    def test_should_be_less_than_512_characters(self, tmp_path: Path) -> None:
        file = tmp_path / "quotes"
        file.write_bytes(b"x" * 509)
        assert len(told(made("qotd", file=str(file)))) == 511
        file.write_bytes(b"one\n%\n" + b"x" * 510)
        with pytest.raises(MistakeError, match=r"quote 2: 512 bytes long; the limit is 511"):
            made("qotd", file=str(file))

    @pytest.mark.parametrize(
        ("content", "mistake"),
        [
            (b"", ": no quote in it; write one"),
            (b"\n%\n  \n", ": no quote in it; write one"),
            (b"ok\xff", ": byte 3 is not UTF-8; save it as UTF-8"),
            (b"\x1b[2J", ", quote 1: has a control character; remove it"),
            (b"x" * 1_048_577, ": longer than 1048576 bytes; split it"),
        ],
    )
    def test_a_file_that_cannot_be_served_is_a_mistake(self, tmp_path: Path, content: bytes, mistake: str) -> None:
        file = tmp_path / "quotes"
        file.write_bytes(content)
        with pytest.raises(MistakeError) as caught:
            made("qotd", file=str(file))
        assert caught.value.mistakes == (f"qotd file {file}{mistake}",)

    def test_a_missing_file_is_a_mistake(self, tmp_path: Path) -> None:
        with pytest.raises(MistakeError, match=r": No such file or directory; give another --qotd-file$"):
            made("qotd", file=str(tmp_path / "none"))
        with pytest.raises(MistakeError, match=r": Is a directory; give another --qotd-file$"):
            made("qotd", file=str(tmp_path))


class TestChargen:
    """RFC 864."""

    def stream(self, window: int, bench: Any = None) -> FakeTransport:
        return connect(bench or made("chargen"), "tcp", window=window)[1]

    def test_the_pattern_is_lines_of_72_characters_round_a_ring_of_95(self) -> None:
        ring = [chr(32 + number) for number in range(95)]
        lines = self.stream(74 * 200).value().decode("ascii").split("\r\n")
        for number, line in enumerate(lines[:200]):
            assert line == "".join(ring[(number + place) % 95] for place in range(72))
        assert lines[200:] == [""]

    def test_the_data_flow_is_limited_by_the_flow_control_of_tcp(self) -> None:
        transport = self.stream(0)
        assert 0 < transport.buffered < 65536
        transport.take(1_000_000)
        assert len(transport.value()) == 1_000_000
        assert transport.buffered < 65536

    def test_any_data_received_is_thrown_away(self) -> None:
        transport = self.stream(74)
        transport.feed(b"x" * 100_000)
        transport.take(74)
        assert len(transport.value()) == 148

    def test_this_continues_until_the_calling_user_terminates_the_connection(self) -> None:
        transport = self.stream(74)
        assert not transport.ended
        transport.half_close()
        assert transport.ended

    def test_is_prepared_for_the_careful_close_and_the_rude_abort(self) -> None:
        bench = made("chargen")
        careful, rude = self.stream(1000, bench), self.stream(1000, bench)
        assert len(bench.core.live) == 2
        careful.half_close()
        rude.lose()
        assert bench.core.live == set()

    def test_a_drain_ends_it_when_the_client_has_read_what_was_sent(self) -> None:
        bench = made("chargen")
        transport = self.stream(10, bench)
        bench.drain()
        assert not transport.ended
        transport.take(100_000)
        assert transport.ended
        assert len(transport.value()) == 95 * 74

    @pytest.mark.parametrize(("asked", "sent"), [(0, 0), (1, 1), (511, 511), (512, 512), (513, 512), (65507, 512)])
    def test_a_datagram_has_at_most_512_characters_and_never_more_than_it_answers(self, asked: int, sent: int) -> None:
        answer = answered(made("chargen"), bytes(asked))
        assert len(answer) == sent
        assert answer == self.stream(512).value()[:sent]

    def test_there_is_no_continuity_from_one_datagram_to_another(self) -> None:
        bench = made("chargen")
        assert answered(bench, b"12345") == answered(bench, b"54321") == b' !"#$'
