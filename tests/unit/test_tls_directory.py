"""A directory in which many certificates come and go costs a little at a time, and no more than its limit."""

from __future__ import annotations

from pathlib import Path

import pytest
from twisted.internet.task import Clock

from netsvc.listen.certificates import MOST_CERTIFICATES
from netsvc.listen.tls import MOST_AT_ONCE, Certificates
from netsvc.plan.address import TLS
from tests.builders.facts import states
from tests.builders.logs import Lines, collected
from tests.builders.pems import KEY, Pem, rewrite, serial

lines = pytest.fixture(collected)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def look_at_all(certificates: Certificates, files: int) -> None:
    for _ in range(-(-files // MOST_AT_ONCE)):
        certificates.look()


def test_many_new_ones_are_read_in_several_looks(tmp_path: Path, clock: Clock, lines: Lines) -> None:
    pem = Pem("example.org", key=KEY)
    (tmp_path / "a.pem").write_bytes(pem.both)
    certificates = Certificates(TLS(directory=str(tmp_path)), clock)
    for number in range(2 * MOST_AT_ONCE + 1):
        (tmp_path / f"new{number}.pem").write_bytes(pem.both)
    for expected in (MOST_AT_ONCE, 2 * MOST_AT_ONCE, 2 * MOST_AT_ONCE + 1, 2 * MOST_AT_ONCE + 1):
        certificates.look()
        assert len(lines) == expected


def test_many_that_cannot_be_used_do_not_keep_others_from_being_read(
    tmp_path: Path, clock: Clock, lines: Lines
) -> None:
    old, new = Pem("z.example.org", key=KEY), Pem("z.example.org", key=KEY)
    (tmp_path / "z.pem").write_bytes(old.both)
    certificates = Certificates(TLS(directory=str(tmp_path)), clock)
    for number in range(3 * MOST_AT_ONCE):
        (tmp_path / f"bad{number}.pem").write_bytes(b"nonsense")
    look_at_all(certificates, 3 * MOST_AT_ONCE)
    assert len(lines) == 3 * MOST_AT_ONCE
    # It was tried before any of them.
    rewrite(tmp_path / "z.pem", new.both)
    certificates.look()
    assert serial(certificates) == new.serial
    # And each of them is tried again, some at each look.
    (tmp_path / "bad7.pem").write_bytes(Pem("mended.example.org", key=KEY).both)
    look_at_all(certificates, 3 * MOST_AT_ONCE)
    assert [line for line in lines if "bad7.pem is now in use" in line]


@pytest.mark.slow
def test_what_is_gone_is_forgotten_beyond_the_limit_the_oldest_first(
    tmp_path: Path, clock: Clock, lines: Lines
) -> None:
    pem, first, second = Pem("example.org", key=KEY), Pem("first.example.org"), Pem("second.example.org")
    (tmp_path / "default.pem").write_bytes(first.both)
    (tmp_path / "x.pem").write_bytes(second.both)
    certificates = Certificates(TLS(directory=str(tmp_path)), clock)
    (tmp_path / "b0.pem").write_bytes(pem.both)
    certificates.look()
    (tmp_path / "default.pem").unlink()
    certificates.look()
    (tmp_path / "x.pem").unlink()
    # Those that are there fill the limit but for the two.
    for number in range(1, MOST_CERTIFICATES - 2):
        (tmp_path / f"b{number}.pem").write_bytes(pem.both)
    look_at_all(certificates, MOST_CERTIFICATES)
    assert serial(certificates) == first.serial
    assert serial(certificates, "second.example.org") == second.serial
    assert not [line for line in lines if "no longer in use" in line]
    # What cannot be used takes no place.
    (tmp_path / "bad.pem").write_bytes(b"nonsense")
    certificates.look()
    assert serial(certificates) == first.serial
    (tmp_path / "bad.pem").unlink()
    (tmp_path / "c.pem").write_bytes(pem.both)
    certificates.look()
    assert states(lines[-1], "1 ", "removed")
    assert serial(certificates) == serial(certificates, "first.example.org") == pem.serial
    assert serial(certificates, "second.example.org") == second.serial
    # One that is there again is as new.
    (tmp_path / "x.pem").write_bytes(second.both)
    certificates.look()
    (tmp_path / "b0.pem").unlink()
    (tmp_path / "d.pem").write_bytes(pem.both)
    certificates.look()
    assert serial(certificates, "second.example.org") == second.serial
    assert len(certificates._by_file_name) == MOST_CERTIFICATES


def test_the_last_that_can_serve_is_kept_though_it_is_gone(tmp_path: Path, clock: Clock) -> None:
    pem = Pem("example.org", key=KEY)
    (tmp_path / "a.pem").write_bytes(pem.both)
    certificates = Certificates(TLS(directory=str(tmp_path)), clock)
    (tmp_path / "a.pem").unlink()
    for number in range(MOST_CERTIFICATES):
        (tmp_path / f"bad{number}.pem").write_bytes(b"nonsense")
    look_at_all(certificates, MOST_CERTIFICATES + 1)
    assert serial(certificates) == pem.serial
