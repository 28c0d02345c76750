"""Each service against the contract, and against its RFC, sentence by sentence."""

from __future__ import annotations

from configparser import ConfigParser
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.address import IPv4Address

from netsvc.errors import UserError
from netsvc.service import ServicePlugin
from netsvc.testing import MemoryReactor, Served, check_service, serve

HERE = Path(__file__).parent.parent
NAMES = ("daytime", "qotd")
#: What an RFC asks for: an answer to an empty datagram, and a quote is a long one.
REQUIRED = {"daytime": ["empty-datagram"], "qotd": ["empty-datagram", "amplification"]}


def made(name: str, seconds: float = 0, **options: Any) -> Served:
    """Serve at a time, in seconds since 1970."""
    clock = MemoryReactor()
    clock.advance(seconds)
    return serve(f"netsvc_classic.{name}:service", clock=clock, **options)


def told(served: Served) -> bytes:
    """Return what a client that only reads is sent, after which the server must have closed."""
    client = served.connect()
    data = client.expect(client.received)
    client.expect_end()
    return data


def answered(served: Served, data: bytes = b"") -> bytes:
    """Send one datagram, and return the one that answers it."""
    client = served.connect_datagram()
    client.send(data)
    [answer] = client.received
    return answer


@pytest.mark.parametrize("name", NAMES)
def test_is_fit_for_production(name: str) -> None:
    samples = {"tcp": [b"x" * 50], "udp": [b"x" * 600]}
    check_service(f"netsvc_classic.{name}:service", samples=samples, allow=REQUIRED[name])


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
    served = made(name)
    for port in (7, 13, 17, 19, 37):
        client = served.connect_datagram(peer=IPv4Address("UDP", "192.0.2.1", port))
        client.send(b"x")
        client.expect_nothing()


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
        client = made("daytime").connect(window=0)
        client.send(b"x" * 1000)
        client.window = 1000
        client.expect(b"Thursday, January 1, 1970 00:00:00-UTC\r\n")
        client.expect_end()

    @pytest.mark.parametrize("data", [b"", b"ignored"])
    def test_an_answering_datagram_is_sent(self, data: bytes) -> None:
        assert answered(made("daytime", 86400), data) == b"Friday, January 2, 1970 00:00:00-UTC\r\n"


class TestQotd:
    """RFC 865."""

    def test_a_short_message_is_sent_and_the_connection_closed(self) -> None:
        assert told(made("qotd")).startswith(b"Be conservative in what you do")

    def test_an_answering_datagram_is_sent(self) -> None:
        assert answered(made("qotd"), b"ignored" * 20) == told(made("qotd"))

    def test_every_day_has_its_quote(self) -> None:
        days = [told(made("qotd", day * 86400 + 86399)) for day in range(4)]
        assert len(set(days)) == 3
        assert days[0] == days[3] == told(made("qotd"))

    def test_every_quote_that_is_told_is_counted(self) -> None:
        served = made("qotd", 86400)
        told(served)
        answered(served, b"x" * 100)
        assert served.metrics.value("quotes", number=2) == 2

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
        with pytest.raises(UserError, match=r"quote 2: 512 bytes long; the limit is 511"):
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
        with pytest.raises(UserError) as caught:
            made("qotd", file=str(file))
        assert caught.value.errors == (f"qotd file {file}{mistake}",)

    def test_a_missing_file_is_a_mistake(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r": No such file or directory; give another --qotd-file$"):
            made("qotd", file=str(tmp_path / "none"))
        with pytest.raises(UserError, match=r": Is a directory; give another --qotd-file$"):
            made("qotd", file=str(tmp_path))
