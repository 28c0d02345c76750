"""Which certificate serves whom, and what is said of those that cannot."""

from __future__ import annotations

import errno
import os
import re
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.interfaces import IProtocolNegotiationFactory
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from zope.interface import implementer

from netsvc.listen.certificates import (
    LONGEST_CHAIN,
    LONGEST_FILE,
    MOST_CERTIFICATES,
    CertificateError,
    CertificateFiles,
    find_certificates,
    read_certificate,
    read_file,
)
from netsvc.listen.opening import ListenError, check_address, listen
from netsvc.listen.tls import Certificates, check_tls
from netsvc.plan.address import TLS, parse_address
from tests.builders.logs import Lines, collected
from tests.builders.loopback import reactor
from tests.builders.pems import (
    BROKEN,
    KEY,
    Handshake,
    Pem,
    pair,
    plain_factory,
    rewrite,
    serial,
    small_rsa,
    write_directory,
)

lines = pytest.fixture(collected)
directory = pytest.fixture(write_directory)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@implementer(IProtocolNegotiationFactory)
class Speaking(Factory):
    noisy = False
    protocol = Protocol

    def acceptableProtocols(self) -> list[bytes]:
        return [b"netsvc/2", b"netsvc/1"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("one.example.org", "one"),
        ("www.one.example.org", "one"),
        ("ONE.Example.ORG", "one"),
        ("two.example.org", "two"),
        ("live.example.org", "live"),
        # Exactly before any wildcard, which is for one label.
        ("wild.one.example.org", "two"),
        ("x.one.example.org", "wild"),
        ("x.y.one.example.org", "live"),
        ("unknown.example.net", "live"),
        ("org", "live"),
        (None, "live"),
    ],
)
def test_the_name_that_a_client_asks_for_chooses(
    directory: dict[str, Pem], name: str | None, expected: str, tmp_path: Path, clock: Clock
) -> None:
    certificates = Certificates(TLS(directory=str(tmp_path)), clock)
    # live.example.org is the first by the names of the files.
    assert serial(certificates, name) == directory[expected].serial


def test_who_asks_for_no_name_that_is_known_gets_the_default(
    directory: dict[str, Pem], tmp_path: Path, clock: Clock
) -> None:
    default = Pem("default.example.org")
    (tmp_path / "default.pem").write_bytes(default.both)
    certificates = Certificates(TLS(directory=str(tmp_path)), clock)
    assert serial(certificates) == serial(certificates, "unknown.example.net") == default.serial
    assert serial(certificates, "one.example.org") == directory["one"].serial


def test_a_single_certificate_is_for_every_name(tmp_path: Path, clock: Clock) -> None:
    pem = Pem("example.org")
    certificates = Certificates(pair(pem.write(tmp_path)), clock)
    assert serial(certificates, "something.else") == serial(certificates) == pem.serial


def test_alpn_and_the_lowest_version_hold_for_a_certificate_that_was_chosen(
    directory: dict[str, Pem], tmp_path: Path, clock: Clock
) -> None:
    wrapped = Certificates(TLS(directory=str(tmp_path)), clock).wrap(Speaking())
    hands = Handshake(wrapped, "one.example.org", ["netsvc/1"]).complete()
    assert (hands.serial, hands.client.selected_alpn_protocol()) == (directory["one"].serial, "netsvc/1")
    with pytest.raises(ssl.SSLError, match="no application protocol"):
        Handshake(wrapped, "one.example.org", ["x"]).complete()


@pytest.mark.parametrize("kind", BROKEN)
def test_a_mistake_in_an_address_is_one_line(kind: str, tmp_path: Path) -> None:
    bad_cert, bad_key, reason = BROKEN[kind]
    cert, key = Pem("example.org").write(tmp_path)
    if bad_cert is not None:
        cert.write_bytes(bad_cert)
    if bad_key is not None:
        key.write_bytes(bad_key)
    address = parse_address(f"tls:0:cert={cert}:key={key}:interface=127.0.0.1", "stream")
    for check in (check_address, lambda address: Certificates(address.tls, Clock())):
        with pytest.raises(CertificateError, match=reason) as raised:
            check(address)
        assert str(raised.value).startswith(f"{tmp_path}/a.")
        assert len(str(raised.value).splitlines()) == 1
    failures: list[Any] = []
    listen(reactor(), address, plain_factory()).addErrback(lambda failure: failures.append(failure.value))
    assert isinstance(failures[0], ListenError)
    assert reason in str(failures[0])


def test_a_key_that_openssl_finds_too_small_is_a_line(tmp_path: Path, clock: Clock, lines: Lines) -> None:
    small = Pem("example.org", key=small_rsa())
    cert, key = small.write(tmp_path)
    with pytest.raises(CertificateError, match=r"a.crt: OpenSSL refuses it \(.*too small\)"):
        Certificates(pair((cert, key)), clock)


def _chain(length: int) -> tuple[Pem, bytes]:
    """Make a certificate and a chain for it of so many bytes in DER form."""
    first = Pem("example.org", key=KEY)
    chain, left = first.cert, length - _der(first.cert)
    link = Pem(*(f"{'x' * 50}{number}.example.org" for number in range(50)), key=KEY).cert
    while left >= 2 * _der(link):
        chain, left = chain + link, left - _der(link)
    # One that fills what is left.
    for filling in range(left):
        last = Pem("y" * 60, "x" * filling, key=KEY).cert
        if _der(last) >= left:
            break
    return first, chain + last


def _der(pem: bytes) -> int:
    return len(ssl.PEM_cert_to_DER_cert(pem.decode()))


@pytest.mark.slow
def test_the_longest_chain_is_served_and_a_longer_one_is_a_line(tmp_path: Path, clock: Clock, lines: Lines) -> None:
    cert, key = Pem("example.org", key=KEY).write(tmp_path)
    # A signature is a few bytes longer or shorter by chance.
    first, chain = _chain(LONGEST_CHAIN - 20)
    cert.write_bytes(chain)
    certificates = Certificates(pair((cert, key)), clock)
    assert serial(certificates) == first.serial
    _, longer = _chain(LONGEST_CHAIN + 20)
    rewrite(cert, longer)
    clock.advance(1)
    assert serial(certificates) == first.serial
    [line] = lines
    assert re.fullmatch(
        re.escape(str(cert)) + r": the chain of \d+ certificates has 28[67]\d\d bytes, more than 28672; "
        "keep only the first certificate and those that sign it; the previous certificate stays in use",
        line,
    )
    with pytest.raises(CertificateError, match="the chain of"):
        check_tls(pair((cert, key)))


def _nothing(path: Path) -> None:
    path.with_suffix(".key").unlink()
    path.write_bytes(b"")


def _no_key(path: Path) -> None:
    path.with_suffix(".key").write_bytes(b"")


def _another_key(path: Path) -> None:
    path.with_suffix(".key").write_bytes(BROKEN["another key"][1] or b"")


def _broken_key(path: Path) -> None:
    path.with_suffix(".key").write_bytes(BROKEN["broken key"][1] or b"")


def _passphrase(path: Path) -> None:
    path.with_suffix(".key").write_bytes(BROKEN["a passphrase"][1] or b"")


def _broken(path: Path) -> None:
    path.write_bytes(BROKEN["cut"][0] or b"")


def _too_long(path: Path) -> None:
    path.write_bytes(_chain(LONGEST_CHAIN + 20)[1])


def _too_small(path: Path) -> None:
    Pem("example.org", key=small_rsa()).write(path.parent, path.stem)


def _expired(path: Path) -> None:
    Pem("example.org", days=(-30, -1)).write(path.parent, path.stem)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "spoil",
    [
        _nothing,
        _no_key,
        _another_key,
        _broken_key,
        _passphrase,
        _broken,
        _too_long,
        _too_small,
        _expired,
        _folder,
        Path.unlink,
    ],
)
def test_no_name_of_a_file_gets_raw_into_a_line(
    spoil: Callable[[Path], None], tmp_path: Path, clock: Clock, lines: Lines
) -> None:
    evil = f"evil\x1b[31m\n\u202e{os.fsdecode(bytes([255]))}"
    escaped = r"evil\x1b[31m\n\u202e\xff"
    folder = tmp_path / evil
    folder.mkdir()
    Pem("good.example.org").write(folder, "good")
    certificates = Certificates(TLS(directory=str(folder)), clock)
    cert, key = Pem("example.org").write(folder, evil)
    clock.advance(1)
    certificates.look()
    spoil(cert)
    clock.advance(1)
    certificates.look()
    key.unlink(missing_ok=True)
    folder.rename(tmp_path / "moved")
    certificates.look()
    assert len(lines) == (4 if spoil is _expired else 3)
    for line in lines:
        # Once, and not again where the line is made.
        assert line.startswith(f"{tmp_path}/{escaped}"), line
        assert line.isprintable()
        assert r"\\" not in line


def test_the_names_in_a_mistake_are_escaped(tmp_path: Path) -> None:
    folder = tmp_path / "a\nb"
    with pytest.raises(CertificateError, match=r"/a\\nb: No such file"):
        check_tls(TLS(directory=str(folder)))
    folder.mkdir()
    with pytest.raises(CertificateError, match=r"/a\\nb: no certificate"):
        check_tls(TLS(directory=str(folder)))
    for number in range(MOST_CERTIFICATES + 1):
        (folder / f"{number}.pem").touch()
    with pytest.raises(CertificateError, match=r"/a\\nb: more than"):
        check_tls(TLS(directory=str(folder)))
    # A long path is shown whole: the file is named at its end.
    with pytest.raises(CertificateError, match=r"/x{250}/y{250}: No such file"):
        read_file(f"{tmp_path}/{'x' * 250}/{'y' * 250}")


def test_a_directory_without_certificates_or_with_too_many_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(CertificateError, match=r"no certificate found; expected NAME\.pem"):
        check_tls(TLS(directory=str(tmp_path)))
    with pytest.raises(CertificateError, match="No such file or directory"):
        check_tls(TLS(directory=str(tmp_path / "none")))
    (tmp_path / "a.key").write_text("x")
    with pytest.raises(CertificateError, match="no certificate found"):
        check_tls(TLS(directory=str(tmp_path)))
    for number in range(MOST_CERTIFICATES + 1):
        (tmp_path / f"{number}.pem").touch()
    with pytest.raises(CertificateError, match="more than 1000 certificates"):
        check_tls(TLS(directory=str(tmp_path)))
    (tmp_path / "0.pem").unlink()
    assert len(find_certificates(TLS(directory=str(tmp_path)))) == MOST_CERTIFICATES


def test_only_files_are_read_and_no_huge_ones(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "huge").write_bytes(bytes(LONGEST_FILE + 1))
    (tmp_path / "fits").write_bytes(bytes(LONGEST_FILE))
    for name, reason in (("fifo", "not a regular file"), ("huge", "1048576 bytes"), (".", "Is a directory")):
        with pytest.raises(CertificateError, match=reason):
            read_file(str(tmp_path / name))
    assert len(read_file(str(tmp_path / "fits"))) == LONGEST_FILE
    with pytest.raises(CertificateError, match=os.strerror(errno.ENOENT)):
        read_file(str(tmp_path / "none"))


def test_places_do_not_depend_on_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pem = Pem("example.org")
    pem.write(tmp_path)
    expected = CertificateFiles("a.crt", f"{tmp_path}/a.crt", f"{tmp_path}/a.key")
    assert find_certificates(TLS("a.crt", "a.key")) == [expected]
    certificates = Certificates(TLS(directory="."), Clock())
    monkeypatch.chdir("/")
    assert serial(certificates) == pem.serial
    assert read_certificate(expected).names == ("example.org",)
