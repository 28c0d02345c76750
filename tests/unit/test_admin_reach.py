"""Where the admin server may listen, and what it asks for there."""

from __future__ import annotations

import ssl
from contextlib import suppress
from pathlib import Path

import pytest
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock

from netsvc.base.tokens import LONGEST_TOKEN, SHORTEST_TOKEN, may_be_read_by_others, read_token
from netsvc.config.admin_address import (
    LOCALHOST,
    MOST_CLIENT_CERTIFICATES,
    check_admin,
    is_exposed,
    places,
    read_clients,
)
from netsvc.listen.tls import Certificates
from netsvc.plan.address import TLS, parse_address
from netsvc.plan.plan import AdminUse
from tests.builders.facts import states
from tests.builders.pems import KEY, Handshake, Pem, pair, plain_factory

PEM = Pem("localhost", key=KEY)


def use(address: str, token_file: object = None, client_ca: object = None) -> AdminUse:
    token, ca = (None if each is None else str(each) for each in (token_file, client_ca))
    return AdminUse(parse_address(address, "stream"), token, ca, "netsvc.toml:7: ")


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text("x" * SHORTEST_TOKEN + "\n")
    return path


@pytest.fixture
def tls(tmp_path: Path) -> str:
    cert, key = PEM.write(tmp_path)
    return f"tls:9100:cert={cert}:key={key}"


@pytest.mark.parametrize(
    "address",
    ["9100", "localhost:9100", "LocalHost:0", "127.0.0.1:9100", "127.9.9.9:1", "[::1]:9100", "unix:/run/a",
     "tcp:9100:interface=127.0.0.1", "tcp6:9100:interface=\\:\\:1", "systemd:domain=UNIX:index=0"],
)  # fmt: skip
def test_what_only_this_machine_reaches_needs_nothing(address: str) -> None:
    assert not is_exposed(parse_address(address, "stream"))


@pytest.mark.parametrize(
    "address",
    ["0.0.0.0:9100", "[::]:9100", "10.0.0.1:9100", "localhost.example:9100", "tcp:9100", "tcp6:9100",
     "systemd:domain=INET:index=0"],
)  # fmt: skip
def test_what_others_may_reach_needs_a_token(address: str, token: Path) -> None:
    [line] = check_admin(use(address))
    assert line.startswith("netsvc.toml:7: ") and states(line, "admin", f" {address}: ")
    assert all(fact in line for fact in ("localhost", "unix:PATH", "token", "CA"))
    if not address.startswith("systemd"):
        assert check_admin(use(address, token)) == []


def test_tls_for_every_interface_needs_a_token_or_client_certificates(tls: str, token: Path) -> None:
    assert "token" in check_admin(use(tls))[0]
    assert check_admin(use(tls, token)) == []
    assert check_admin(use(tls, None, tls.split("=")[1].partition(":")[0])) == []
    assert check_admin(use(f"{tls}:interface=127.0.0.1")) == []


def test_client_certificates_need_tls(tls: str) -> None:
    [line] = check_admin(use("9100", None, "ca.pem"))
    assert line.startswith("netsvc.toml:7: ") and states(line, "admin", " 9100: ")
    assert "tls:PORT:cert=FILE:key=FILE" in line


@pytest.mark.parametrize("address", ["stdio:x", "haproxy:tcp:9100", "ssl:9100", "other:9100:x=1"])
def test_addresses_of_other_kinds_are_refused(address: str, token: Path) -> None:
    assert "HOST:PORT, unix:PATH or tls:PORT:…" in check_admin(use(address, token))[0]


@pytest.mark.parametrize("prefix", ["proxy:trust=10.0.0.1:", "guard:idle=3:"])
def test_what_is_for_services_is_refused(prefix: str) -> None:
    assert "proxy: and guard:" in check_admin(use(f"{prefix}9100"))[0]


def test_a_certificate_that_is_missing_is_named(tmp_path: Path, token: Path) -> None:
    [line] = check_admin(use(f"tls:9100:cert={tmp_path}/none.pem", token))
    assert line.endswith("none.pem: No such file or directory")


@pytest.mark.parametrize(
    "content", [b"", b"x" * (SHORTEST_TOKEN - 1), b"x" * (LONGEST_TOKEN + 1), b"two words of it all", b"\xc3\xa4" * 20]
)
def test_a_token_that_is_too_short_or_odd_is_refused(content: bytes, token: Path) -> None:
    token.write_bytes(content)
    [line] = check_admin(use("9100", token))
    assert "16 to 1024 characters" in line and str(token) in line
    assert "openssl rand -hex 32" in line


def test_a_token_at_the_limits_is_read(token: Path) -> None:
    assert read_token(str(token)) == b"x" * SHORTEST_TOKEN
    token.write_bytes(b"y" * LONGEST_TOKEN)
    assert len(read_token(str(token))) == LONGEST_TOKEN


def test_a_file_that_is_missing_is_named(tmp_path: Path, tls: str) -> None:
    assert check_admin(use("9100", tmp_path / "none"))[0].endswith("none: No such file or directory")
    assert check_admin(use(tls, None, tmp_path / "none"))[0].endswith("none: No such file or directory")


def test_a_file_that_every_user_may_read_is_known(token: Path) -> None:
    token.chmod(0o640)
    assert not may_be_read_by_others(str(token))
    token.chmod(0o644)
    assert may_be_read_by_others(str(token))
    assert not may_be_read_by_others(f"{token}.none")


def test_certificates_of_those_that_sign_are_read(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    path.write_bytes(PEM.cert * MOST_CLIENT_CERTIFICATES)
    assert len(read_clients(str(path))) == MOST_CLIENT_CERTIFICATES
    path.write_bytes(PEM.cert * (MOST_CLIENT_CERTIFICATES + 1))
    with pytest.raises(ValueError, match="more than 100 certificates"):
        read_clients(str(path))
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"ca\.pem: .*\bPEM\b"):
        read_clients(str(path))


def test_localhost_is_both_loopback_addresses() -> None:
    assert tuple(place.host for place in places(parse_address("9100", "stream"))) == LOCALHOST
    assert tuple(place.host for place in places(parse_address("localhost:9100", "stream"))) == LOCALHOST
    assert [place.host for place in places(parse_address("10.0.0.1:9100", "stream"))] == ["10.0.0.1"]


def test_a_unix_socket_is_for_its_user_alone_unless_said_otherwise() -> None:
    [place] = places(parse_address("unix:/run/a", "stream"))
    assert place.endpoint == "unix:/run/a:mode=600"
    [place] = places(parse_address("unix:/run/a:mode=660", "stream"))
    assert place.endpoint == "unix:/run/a:mode=660"


def test_an_abstract_socket_has_no_mode_and_so_needs_a_token(token: Path) -> None:
    [line] = check_admin(use("unix:@admin"))
    assert all(fact in line for fact in ("every user", "unix:PATH", "token"))
    assert check_admin(use("unix:@admin", token)) == []
    [place] = places(parse_address("unix:@admin", "stream"))
    assert place.endpoint == "unix:@admin"


@pytest.mark.parametrize("directory", [False, True])
def test_with_a_client_ca_nobody_is_served_without_a_certificate(tmp_path: Path, directory: bool) -> None:
    place = PEM.write(tmp_path)
    served: list[object] = []
    tls = TLS(directory=str(tmp_path)) if directory else pair(place)
    [signer] = read_clients(str(place[0]))

    class Greeting(Protocol):
        def dataReceived(self, data: bytes) -> None:
            served.append(data)

    for clients, expected in (((), [b"hello"]), ((signer,), [b"hello"])):
        shaken = Handshake(Certificates(tls, Clock(), clients).wrap(plain_factory(Greeting)), "localhost")
        # By TLS 1.3 the client is done before the server has seen that there is no certificate.
        with suppress(ssl.SSLError):
            shaken.complete()
            shaken.client.write(b"hello")
            shaken.move()
        assert served == expected
