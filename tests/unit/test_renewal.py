"""A certificate is renewed under the connections, or stays; and is there where its files are not."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock

from netsvc.listen.certificates import (
    PreloadedTLS,
    find_certificates,
    read_file,
)
from netsvc.listen.tls import Certificates
from netsvc.plan.address import TLS
from tests.builders.facts import states
from tests.builders.logs import Lines, collected
from tests.builders.pems import BROKEN, KEY, Handshake, Pem, pair, plain_factory, rewrite, serial, write_directory

lines = pytest.fixture(collected)
directory = pytest.fixture(write_directory)


@pytest.fixture
def clock() -> Clock:
    return Clock()


class Echo(Protocol):
    transport: Any

    def dataReceived(self, data: bytes) -> None:
        self.transport.write(data)


def test_a_renewed_certificate_is_for_the_next_connection(tmp_path: Path, clock: Clock, lines: Lines) -> None:
    old, new = Pem("example.org", key=KEY), Pem("example.org", key=KEY)
    cert, key = old.write(tmp_path)
    certificates = Certificates(pair((cert, key)), clock)
    before = Handshake(certificates.wrap(plain_factory(Echo))).complete()
    rewrite(cert, new.cert)
    # It was looked at within this second.
    assert serial(certificates) == old.serial
    clock.advance(1)
    assert serial(certificates) == new.serial
    assert [states(line, cert, f"{new.expires:%Y-%m-%d}") for line in lines] == [True]
    # The connection that was there is not touched.
    before.client.write(b"still")
    before.move()
    clock.advance(0)
    before.move()
    assert before.client.read() == b"still"
    clock.advance(5)
    assert serial(certificates) == new.serial
    assert len(lines) == 1


def test_files_are_looked_at_once_a_second_and_only_for_connections(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificates = Certificates(pair(Pem("example.org").write(tmp_path)), clock)
    looks: list[object] = []
    original = os.stat

    def look(path: Any) -> os.stat_result:
        looks.append(path)
        return original(path)

    monkeypatch.setattr("netsvc.listen.tls.os.stat", look)
    clock.advance(100)
    assert looks == []
    for _ in range(50):
        certificates.serverConnectionForTLS(None)
        clock.advance(0.1)
    assert len(looks) == 2 * 5


def test_a_clock_that_is_set_back_stops_no_renewal(tmp_path: Path) -> None:
    clock = Clock()
    clock.advance(1000)
    new = Pem("example.org")
    cert, key = Pem("example.org").write(tmp_path)
    certificates = Certificates(pair((cert, key)), clock)
    rewrite(cert, new.cert)
    rewrite(key, new.key)
    clock.rightNow = 10.0
    assert serial(certificates) == new.serial


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_new_one_keeps_the_old_and_says_so_once(kind: str, tmp_path: Path, clock: Clock, lines: Lines) -> None:
    bad_cert, bad_key, reason = BROKEN[kind]
    old = Pem("example.org")
    cert, key = old.write(tmp_path)
    certificates = Certificates(pair((cert, key)), clock)
    if bad_cert is not None:
        rewrite(cert, bad_cert)
    if bad_key is not None:
        rewrite(key, bad_key)
    for _ in range(3):
        clock.advance(1)
        assert serial(certificates) == old.serial
    assert len(lines) == 1
    assert reason in lines[0]
    assert "previous" in lines[0]
    # The same mistake in other files is another change.
    rewrite(cert, (old.cert if bad_cert is None else bad_cert) + b"\n")
    clock.advance(1)
    assert serial(certificates) == old.serial
    assert len(lines) == 2
    # And when they are mended, they are used.
    new = Pem("example.org")
    rewrite(cert, new.cert)
    rewrite(key, new.key)
    clock.advance(1)
    assert serial(certificates) == new.serial
    assert len(lines) == 3


def test_a_key_that_is_renewed_before_its_certificate_waits_for_it(tmp_path: Path, clock: Clock) -> None:
    old, new = Pem("example.org"), Pem("example.org")
    cert, key = old.write(tmp_path)
    certificates = Certificates(pair((cert, key)), clock)
    key.write_bytes(new.key)
    clock.advance(1)
    assert serial(certificates) == old.serial
    cert.write_bytes(new.cert)
    clock.advance(1)
    assert serial(certificates) == new.serial


def test_what_could_not_be_used_is_tried_again_even_if_it_looks_the_same(
    tmp_path: Path, clock: Clock, lines: Lines
) -> None:
    old, new = Pem("example.org", key=KEY), Pem("example.org", key=KEY)
    cert, key = old.write(tmp_path)
    certificates = Certificates(pair((cert, key)), clock)
    cert.write_bytes(b"x" * len(new.cert))
    stamp = cert.stat().st_mtime_ns
    clock.advance(1)
    assert serial(certificates) == old.serial
    cert.write_bytes(new.cert)
    os.utime(cert, ns=(stamp, stamp))
    clock.advance(1)
    assert serial(certificates) == new.serial
    assert len(lines) == 2


def test_files_that_are_gone_leave_the_certificate_and_say_so_once(tmp_path: Path, clock: Clock, lines: Lines) -> None:
    old = Pem("example.org")
    cert, key = old.write(tmp_path)
    certificates = Certificates(pair((cert, key)), clock)
    cert.unlink()
    key.unlink()
    for _ in range(3):
        clock.advance(1)
        assert serial(certificates) == old.serial
    assert [states(line, f"{cert}: ", os.strerror(errno.ENOENT), "previous") for line in lines] == [True]


def test_certificates_come_into_a_directory_and_change_and_go(
    directory: dict[str, Pem], tmp_path: Path, clock: Clock, lines: Lines
) -> None:
    certificates = Certificates(TLS(directory=str(tmp_path)), clock)
    new, changed = Pem("new.example.org"), Pem("moved.example.org")
    assert serial(certificates, "new.example.org") == directory["live"].serial
    (tmp_path / "new.pem").write_bytes(new.both)
    rewrite(tmp_path / "one.pem", changed.both)
    clock.advance(1)
    assert serial(certificates, "new.example.org") == new.serial
    assert serial(certificates, "moved.example.org") == changed.serial
    assert serial(certificates, "one.example.org") == directory["live"].serial
    (tmp_path / "new.pem").unlink()
    clock.advance(1)
    assert serial(certificates, "new.example.org") == new.serial
    assert [states(line, f"{tmp_path}/new.pem: ", os.strerror(errno.ENOENT)) for line in lines[2:]] == [True]


def test_the_default_of_a_directory_is_renewed_and_still_chooses_by_name(
    directory: dict[str, Pem], tmp_path: Path, clock: Clock
) -> None:
    certificates = Certificates(TLS(directory=str(tmp_path)), clock)
    new = Pem("live.example.org", key=KEY)
    rewrite(tmp_path / "live.example.org" / "fullchain.pem", new.cert)
    clock.advance(1)
    assert serial(certificates) == new.serial
    assert serial(certificates, "one.example.org") == directory["one"].serial
    default = Pem("default.example.org")
    (tmp_path / "default.pem").write_bytes(default.both)
    clock.advance(1)
    assert serial(certificates) == default.serial
    assert serial(certificates, "one.example.org") == directory["one"].serial
    # A file that is touched and says the same needs no line.
    rewrite(tmp_path / "default.pem", default.both)
    clock.advance(1)
    assert serial(certificates, "two.example.org") == directory["two"].serial


def test_a_broken_newcomer_is_told_once_and_forgotten_when_it_goes(
    directory: dict[str, Pem], tmp_path: Path, clock: Clock, lines: Lines
) -> None:
    certificates = Certificates(TLS(directory=str(tmp_path)), clock)
    (tmp_path / "another.pem").write_text("nonsense")
    for _ in range(3):
        clock.advance(1)
        assert serial(certificates) == directory["live"].serial
    assert [states(line, f"{tmp_path}/another.pem: ", "PEM") for line in lines] == [True]
    assert "previous" not in lines[0]
    (tmp_path / "another.pem").unlink()
    certificates.warn_of_expiry()
    for _ in range(3):
        clock.advance(1)
        serial(certificates)
    assert len(lines) == 1


def test_a_directory_that_cannot_be_read_any_more_serves_on_and_says_so_once(
    directory: dict[str, Pem], tmp_path: Path, clock: Clock, lines: Lines
) -> None:
    certificates = Certificates(TLS(directory=str(tmp_path)), clock)
    moved = tmp_path.with_name("moved")
    for _ in range(2):
        lines.clear()
        tmp_path.rename(moved)
        for _ in range(3):
            clock.advance(1)
            assert serial(certificates, "two.example.org") == directory["two"].serial
        assert [states(line, f"{tmp_path}: ", os.strerror(errno.ENOENT), "previous") for line in lines] == [True]
        moved.rename(tmp_path)
        clock.advance(1)
        assert serial(certificates, "two.example.org") == directory["two"].serial


@pytest.mark.parametrize(
    ("days", "what"), [((-30, -1), "expired on"), ((1, 30), "is not valid before")], ids=["expired", "not yet"]
)
def test_one_that_is_not_valid_is_warned_about_at_the_start_and_when_it_comes(
    days: tuple[int, int], what: str, tmp_path: Path, clock: Clock, lines: Lines
) -> None:
    bad, good = Pem("example.org", days=days, key=KEY), Pem("example.org", key=KEY)
    cert, key = bad.write(tmp_path)
    certificates = Certificates(pair((cert, key)), clock)
    assert serial(certificates) == bad.serial
    assert len(lines) == 1
    assert lines[0].startswith(f"{cert}: the certificate {what} 20")
    assert " UTC" in lines[0]
    assert lines.levels == ["warn"]
    rewrite(cert, good.cert)
    clock.advance(1)
    assert serial(certificates) == good.serial
    certificates.warn_of_expiry()
    assert len(lines) == 2
    rewrite(cert, bad.cert)
    clock.advance(1)
    assert serial(certificates) == bad.serial
    certificates.warn_of_expiry()
    assert [what in line for line in lines] == [True, False, False, True, True]


def carried(tls: TLS) -> PreloadedTLS:
    paths = {path for files in find_certificates(tls) for path in files.paths()}
    return PreloadedTLS(tls.cert, tls.key, tls.directory, {path: read_file(path) for path in paths})


@pytest.mark.parametrize("in_directory", [False, True])
def test_what_was_carried_along_serves_where_the_files_cannot_be_read(
    in_directory: bool, tmp_path: Path, clock: Clock, lines: Lines
) -> None:
    pem = Pem("example.org", days=(-30, -1))
    place = pem.write(tmp_path)
    tls = carried(TLS(directory=str(tmp_path)) if in_directory else pair(place))
    moved = tmp_path.with_name("moved")
    tmp_path.rename(moved)
    certificates = Certificates(tls, clock)
    for _ in range(3):
        assert serial(certificates) == pem.serial
        clock.advance(1)
    # Who carried it has warned of its end.
    assert [line for line in lines if "expired" in line] == []
    missing = tmp_path if in_directory else place[0]
    assert [states(line, f"{missing}: ", os.strerror(errno.ENOENT), "previous") for line in lines] == [True]
    # When they can be read after all, they are.
    moved.rename(tmp_path)
    new = Pem("example.org")
    new.write(tmp_path)
    clock.advance(1)
    assert serial(certificates) == new.serial


def test_a_directory_that_was_carried_along_has_all_its_names(
    directory: dict[str, Pem], tmp_path: Path, clock: Clock
) -> None:
    tls = carried(TLS(directory=str(tmp_path)))
    tmp_path.rename(tmp_path.with_name("moved"))
    certificates = Certificates(tls, clock)
    for kind in ("one", "two", "live"):
        assert serial(certificates, f"{kind}.example.org") == directory[kind].serial
    tmp_path.with_name("moved").rename(tmp_path)


def test_what_can_be_read_is_newer_than_what_was_carried_along(tmp_path: Path, clock: Clock, lines: Lines) -> None:
    old, new = Pem("example.org"), Pem("example.org")
    tls = carried(pair(old.write(tmp_path)))
    assert serial(Certificates(tls, clock)) == old.serial
    assert lines == []
    new.write(tmp_path)
    assert serial(Certificates(tls, clock)) == new.serial
    assert len(lines) == 1
