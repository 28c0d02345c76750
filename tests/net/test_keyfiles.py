"""Key files serve where they can no longer be read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from netsvc.listen.opening import check_address, listen
from netsvc.listen.port import OpenPort
from netsvc.plan.address import parse_address
from netsvc.workers.keyfiles import read_key_files, with_key_files
from tests.builders.certificates import write_certificate
from tests.builders.loopback import reactor
from tests.builders.pems import Pem, plain_factory


@pytest.mark.parametrize(
    "form",
    [
        "ssl:0:privateKey={key}:certKey={certificate}",
        "ssl:0:{key}:{certificate}:interface=127.0.0.1",
        "haproxy:ssl:port=0:certKey={certificate}:privateKey={key}:extraCertChain={certificate}",
        "proxy:trust=10.0.0.0/8:ssl:0:privateKey={key}:certKey={certificate}",
    ],
)
def test_an_address_works_without_the_files_that_it_names(form: str, tmp_path: Path) -> None:
    (tmp_path / "a:b").mkdir()
    key, certificate = write_certificate(tmp_path / "a:b", "localhost")
    text = form.format(key=str(key).replace(":", "\\:"), certificate=str(certificate).replace(":", "\\:"))
    address = parse_address(text, "stream")
    contents = read_key_files(address)
    assert contents["privateKey"] == key.read_text()
    key.unlink()
    certificate.unlink()
    with pytest.raises(ValueError, match="No such file"):
        check_address(address)
    changed = with_key_files(address, contents)
    check_address(changed)
    assert (changed.scheme, changed.port, changed.host) == (address.scheme, address.port, address.host)
    # Lines that name the address name it as it was written.
    assert (changed.text, changed.proxy) == (address.text, address.proxy)
    for word in changed.endpoint.split("/proc/self/fd/")[1:]:
        os.close(int(word.split(":")[0]))


@pytest.mark.parametrize("form", ["cert={0}/a.crt:key={0}/a.key", "directory={0}"])
@pytest.mark.parametrize("before", ["", "proxy:trust=unix:"])
def test_tls_of_our_own_works_without_its_files_too(form: str, before: str, tmp_path: Path) -> None:
    directory = tmp_path / "there"
    directory.mkdir()
    cert, key = Pem("example.org").write(directory)
    address = parse_address(f"{before}tls:0:{form.format(directory)}:interface=127.0.0.1", "stream")
    contents = read_key_files(address)
    assert contents == {str(cert): cert.read_text(), str(key): key.read_text()}
    directory.rename(tmp_path / "moved")
    with pytest.raises(ValueError, match="No such file"):
        check_address(address)
    changed = with_key_files(address, contents)
    results: list[object] = []
    listen(reactor(), changed, plain_factory()).addCallback(results.append)
    [listening] = results
    assert isinstance(listening, OpenPort)
    listening.abandon()
    assert (changed.text, changed.endpoint, changed.port, changed.proxy) == (
        address.text,
        address.endpoint,
        address.port,
        address.proxy,
    )


def test_of_a_certificate_that_cannot_be_read_whole_nothing_is_taken(tmp_path: Path) -> None:
    cert, key = Pem("example.org").write(tmp_path)
    address = parse_address(f"tls:0:cert={cert}:key={key}", "stream")
    key.unlink()
    assert read_key_files(address) == {}
    assert with_key_files(address, {}) is address


def test_the_key_that_twisted_looks_for_when_none_is_named_is_taken_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_key_files(parse_address("ssl:0", "stream")) == {}
    (tmp_path / "server.pem").write_text("x")
    assert read_key_files(parse_address("ssl:0", "stream")) == {"privateKey": "x"}


@pytest.mark.parametrize(
    ("text", "kind"),
    [("9001", "stream"), ("9001", "datagram"), ("haproxy:tcp:1", "stream"), ("proxy:trust=unix:tcp:1", "stream")],
)
def test_other_addresses_stay_as_they_are(text: str, kind: str) -> None:
    address = parse_address(text, kind)  # type: ignore[arg-type]
    assert read_key_files(address) == {}
    assert with_key_files(address, {"privateKey": "x"}) is address


def test_files_that_could_not_be_read_are_left_to_the_one_who_opens_the_address() -> None:
    address = parse_address("ssl:0:privateKey=/no/such", "stream")
    assert with_key_files(address, read_key_files(address)) is address
