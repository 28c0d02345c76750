"""What a reload does where TLS changes, or who is trusted to speak for others: the port stays."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography import x509

from tests.builders.facts import states
from tests.builders.logs import Lines, collected
from tests.builders.pems import Pem, client_context
from tests.builders.reloaded import ONE, RunningServer, plan, world


@pytest.fixture
def lines() -> Iterator[Lines]:
    """Collect what is logged."""
    yield from collected()


def served(made: RunningServer) -> int:
    """Return the serial number of the certificate that the next client is shown."""
    with client_context().wrap_socket(made.connect(made.port()), do_handshake_on_connect=False) as client:
        client.setblocking(False)
        for _ in range(1000):
            made.turn()
            with suppress(ssl.SSLWantReadError):
                client.do_handshake()
                break
        return x509.load_der_x509_certificate(client.getpeercert(binary_form=True) or b"").serial_number


def tls(place: tuple[Path, Path]) -> str:
    cert, key = place
    return f"one tcp tls:0:cert={cert}:key={key}:interface=127.0.0.1"


def test_other_certificates_are_for_the_next_connections_on_the_same_port(tmp_path: Path) -> None:
    first, second = Pem("a.example"), Pem("b.example")
    one, two = first.write(tmp_path, "one"), second.write(tmp_path, "two")
    with world(plan(ONE, tls(one))) as made:
        port = made.port()
        assert served(made) == first.serial
        assert states(made.reload(plan(ONE, tls(two))), "1 ", " kept", "changed: ", "one tcp")
        assert made.port() == port
        assert served(made) == second.serial
        two[0].unlink()
        [line] = made.errors(plan(ONE, tls(two).replace("two.key", "none.key")))
        assert states(line, "one tcp ", " tls:0:")
        assert served(made) == second.serial
        # A failure after it was read leaves it out as well.
        assert made.errors(plan({"one": {"text": "bad", "fail": "start"}}, tls(one))) == ("start fails",)
        assert served(made) == second.serial


def test_tls_comes_and_goes_on_the_same_port_and_those_who_are_there_stay(tmp_path: Path) -> None:
    pem = Pem("a.example")
    with world(plan(ONE, "one tcp 127.0.0.1:0")) as made:
        port = made.port()
        client, _ = made.greeting(port)
        made.reload(plan(ONE, tls(pem.write(tmp_path))))
        assert made.port() == port
        assert served(made) == pem.serial
        assert made.echoes(client)
        made.reload(plan(ONE, "one tcp 127.0.0.1:0"))
        assert made.greeting(port)[1] == b"one"
        made.advance(10)
        assert made.echoes(client)


@pytest.mark.parametrize("place", ["127.0.0.1:0", "tcp:0:interface=127.0.0.1"])
def test_who_is_trusted_changes_for_the_next_connections_on_the_same_port(place: str) -> None:
    header = b"PROXY TCP4 192.0.2.9 192.0.2.1 1 2\r\n"
    with world(plan(ONE, f"one tcp proxy:trust=127.0.0.1:{place}")) as made:
        port = made.port()
        client = made.connect(port)
        client.sendall(header)
        assert made.receive(client) == b"one\n"
        made.reload(plan(ONE, f"one tcp proxy:trust=192.0.2.1:{place}"))
        assert made.port() == port
        assert made.receive(made.connect(port)) == b""
        assert made.echoes(client)
        made.reload(plan(ONE, f"one tcp proxy:trust=127.0.0.1:timeout=9:{place}"))
        late = made.connect(port)
        made.turn()
        made.advance(8)
        late.sendall(header)
        assert made.receive(late) == b"one\n"


def test_an_unchanged_certificate_that_has_expired_is_warned_of_at_each_reload(tmp_path: Path, lines: Lines) -> None:
    same = plan(ONE, tls(Pem("a.example", days=(-30, -1)).write(tmp_path)))
    with world(same) as made:
        for count in (1, 2, 3):
            assert len([line for line in lines if states(line, "certificate", "expired")]) == count
            made.reload(same)


def test_of_several_ports_each_keeps_the_tls_that_it_has(tmp_path: Path) -> None:
    secret = tls(Pem("a.example").write(tmp_path))
    with world(plan(ONE, "one tcp 127.0.0.1:0", secret)) as made:
        port = made.port(1)
        assert made.reload(plan(ONE, secret)) == "1 listener kept, 1 closed"
        assert made.port() == port
