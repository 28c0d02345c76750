"""Key files serve where they can no longer be read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from netsvc.address import parse_address
from netsvc.keyfiles import read_key_files, with_key_files
from netsvc.listeners import check_address
from tests.certificates import write_certificate


@pytest.mark.parametrize(
    "form",
    [
        "ssl:0:privateKey={key}:certKey={certificate}",
        "ssl:0:{key}:{certificate}:interface=127.0.0.1",
        "haproxy:ssl:port=0:certKey={certificate}:privateKey={key}:extraCertChain={certificate}",
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
    for word in changed.text.split("/proc/self/fd/")[1:]:
        os.close(int(word.split(":")[0]))


def test_the_key_that_twisted_looks_for_when_none_is_named_is_taken_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_key_files(parse_address("ssl:0", "stream")) == {}
    (tmp_path / "server.pem").write_text("x")
    assert read_key_files(parse_address("ssl:0", "stream")) == {"privateKey": "x"}


@pytest.mark.parametrize(("text", "kind"), [("9001", "stream"), ("9001", "datagram"), ("haproxy:tcp:1", "stream")])
def test_other_addresses_stay_as_they_are(text: str, kind: str) -> None:
    address = parse_address(text, kind)  # type: ignore[arg-type]
    assert read_key_files(address) == {}
    assert with_key_files(address, {"privateKey": "x"}) is address


def test_files_that_could_not_be_read_are_left_to_the_one_who_opens_the_address() -> None:
    address = parse_address("ssl:0:privateKey=/no/such", "stream")
    assert with_key_files(address, read_key_files(address)) is address
