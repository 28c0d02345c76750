"""Which content coding is sent: Accept-Encoding, and files that are stored compressed beside the plain ones."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsvc.services.files.coding import ENDINGS, IDENTITY, accepted_codings
from netsvc.services.files.download import SMALL
from tests.builders.files import open_below, pattern
from tests.builders.files_http import MODIFIED, FilesSite


@pytest.mark.parametrize(
    ("value", "accepted"),
    [
        (None, "identity"),
        ("", "identity"),
        ("gzip", "gzip identity"),
        ("x-gzip", "gzip identity"),
        ("GZip, BR", "br gzip identity"),
        ("gzip, deflate, br, zstd", "br zstd gzip identity"),
        ("gzip;q=1.0, br;q=0.5", "gzip br identity"),
        ("gzip ; q=0.5 , br\t;\tQ=0.500", "br gzip identity"),
        ("*", "br zstd gzip identity"),
        ("*;q=0.5, gzip", "gzip br zstd identity"),
        ("gzip;q=0.2, *", "br zstd identity gzip"),
        ("gzip;q=0, *", "br zstd identity"),
        ("gzip;q=0.5, identity", "identity gzip"),
        ("gzip, identity;q=0", "gzip"),
        ("gzip, *;q=0", "gzip"),
        ("*;q=0, identity", "identity"),
        ("*;q=0", ""),
        ("identity;q=0", ""),
        ("gzip;q=0.000", "identity"),
        ("br;q=2, gzip;q=, zstd;q=0.0001", "identity"),
        ("br;x=1, gzip", "gzip identity"),
        (",, gzip ,,", "gzip identity"),
        ("unknown", "identity"),
        ("gzip," * 1000, "identity"),
    ],
)
def test_codings_are_accepted_in_the_order_that_the_client_likes_them(value: str | None, accepted: str) -> None:
    assert " ".join(accepted_codings([] if value is None else [value.encode()])) == accepted


def test_several_headers_are_one_list() -> None:
    assert accepted_codings([b"gzip;q=0.5", b"br"]) == ("br", "gzip", "identity")


_PARTS = st.sampled_from([*ENDINGS, IDENTITY, "*", "x-gzip", ";q=", "0", "1", "0.5", ",", " ", "\t", "=", "é"])


@given(st.lists(st.lists(_PARTS).map("".join)))
def test_any_value_accepts_some_of_our_codings_once(values: list[str]) -> None:
    accepted = accepted_codings([each.encode("latin-1") for each in values])
    assert len(set(accepted)) == len(accepted)
    assert set(accepted) <= {*ENDINGS, IDENTITY}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[FilesSite]:
    made = FilesSite(tmp_path, precompressed=True)
    made.write("a.js", b"plain")
    made.write("a.js.br", b"brotli")
    made.write("a.js.gz", b"gzipped")
    yield made
    made.factory.close()
    assert made.core.downloads == 0
    made.core.stop()
    assert open_below(tmp_path) == []


@pytest.mark.parametrize(
    ("accept", "coding", "body"),
    [
        ("", "", b"plain"),
        ("gzip, br, zstd", "br", b"brotli"),
        ("gzip, zstd", "gzip", b"gzipped"),
        ("zstd", "", b"plain"),
        ("gzip, identity;q=0", "gzip", b"gzipped"),
    ],
)
def test_a_file_is_sent_as_it_is_stored_for_the_client(site: FilesSite, accept: str, coding: str, body: bytes) -> None:
    for _ in range(2):
        reply = site.ask("/a.js", Accept_Encoding=accept)
        assert (reply.code, reply.body, reply.headers.get("content-encoding", "")) == (200, body, coding)
        assert reply.headers["content-type"] == "text/javascript; charset=utf-8"
        assert reply.headers["vary"] == "Accept-Encoding"
        head = site.ask("/a.js", "HEAD", Accept_Encoding=accept)
        assert (head.headers["x-length"], head.headers["etag"]) == (str(len(body)), reply.headers["etag"])
        assert head.headers.get("content-encoding", "") == coding


def test_each_coding_has_a_tag_of_its_own_for_conditions_and_ranges(site: FilesSite) -> None:
    site.write("a.js.br", b"equal")
    plain = site.ask("/a.js").headers["etag"]
    coded = site.ask("/a.js", Accept_Encoding="br").headers["etag"]
    assert plain != coded
    unchanged = site.ask("/a.js", Accept_Encoding="br", If_None_Match=coded)
    assert (unchanged.code, unchanged.headers["vary"]) == (304, "Accept-Encoding")
    assert site.ask("/a.js", Accept_Encoding="br", If_None_Match=plain).code == 200
    part = site.ask("/a.js", Accept_Encoding="br", Range="bytes=1-2", If_Range=coded)
    assert (part.code, part.body, part.headers["content-encoding"]) == (206, b"qu", "br")
    assert part.headers["content-range"] == "bytes 1-2/5"
    assert site.ask("/a.js", Accept_Encoding="br", Range="bytes=1-2", If_Range=plain).code == 200
    failed = site.ask("/a.js", Accept_Encoding="br", If_Match=plain)
    assert failed.code == 412
    assert "content-encoding" not in failed.headers
    assert failed.headers["content-type"].startswith("text/plain")


def test_several_ranges_of_a_coded_file_are_answered_with_all_of_it(site: FilesSite) -> None:
    site.write("a.js.br", pattern(3 * SMALL))
    reply = site.ask("/a.js", Accept_Encoding="br", Range="bytes=0-1,9-10")
    assert (reply.code, reply.body) == (200, pattern(3 * SMALL))


def test_a_client_that_accepts_nothing_stored_is_told_so(site: FilesSite) -> None:
    reply = site.ask("/a.js", Accept_Encoding="zstd, identity;q=0")
    assert (reply.code, reply.headers["vary"]) == (406, "Accept-Encoding")
    assert site.results[-1][2:] == ("no acceptable coding", "GET", 406)


def test_a_compressed_file_that_is_older_or_no_regular_file_is_not_sent(site: FilesSite, tmp_path: Path) -> None:
    os.utime(site.root / "a.js.br", (MODIFIED - 1, MODIFIED - 1))
    (site.root / "a.js.gz").unlink()
    (site.root / "a.js.gz").mkdir()
    os.mkfifo(site.root / "a.js.zst")
    assert site.ask("/a.js", Accept_Encoding="br, gzip, zstd").body == b"plain"
    secret = tmp_path.parent / f"{tmp_path.name}-secret"
    secret.write_bytes(b"secret")
    (site.root / "a.js.zst").unlink()
    (site.root / "a.js.zst").symlink_to(secret)
    assert site.ask("/a.js", Accept_Encoding="zstd").body == b"plain"


def test_a_compressed_file_alone_is_a_file_of_its_own(site: FilesSite) -> None:
    reply = site.ask("/a.js.gz", Accept_Encoding="gzip")
    assert (reply.body, reply.headers["content-type"]) == (b"gzipped", "application/gzip")
    assert "content-encoding" not in reply.headers
    (site.root / "a.js").unlink()
    assert site.ask("/a.js", Accept_Encoding="gzip").code == 404


def test_one_place_is_enough_for_a_coded_file(tmp_path: Path) -> None:
    site = FilesSite(tmp_path, precompressed=True, downloads=1)
    site.write("a", b"plain")
    site.write("a.gz", pattern(2 * SMALL))
    assert site.ask("/a", Accept_Encoding="gzip").body == pattern(2 * SMALL)
    site.factory.close()
    site.core.stop()


def test_without_the_option_compressed_files_are_not_looked_for(tmp_path: Path) -> None:
    site = FilesSite(tmp_path)
    site.write("a", b"plain")
    site.write("a.gz", b"gzipped")
    reply = site.ask("/a", Accept_Encoding="gzip, identity;q=0")
    assert (reply.code, reply.body) == (200, b"plain")
    assert "vary" not in reply.headers
    site.factory.close()
    site.core.stop()
