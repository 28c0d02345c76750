"""Listings of directories over HTTP, as HTML and as JSON."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred

from netsvc.services.files import listing
from netsvc.services.files.http import AT_ONCE, MOST_WAITING, Listings
from netsvc.services.files.listing import LONGEST_SEARCH, Query, parse_query
from netsvc.services.files.root import Directory
from tests.builders.files_http import MODIFIED, FilesSite
from tests.builders.http import Transport, connect, read_replies, request


@pytest.fixture
def site(tmp_path: Path) -> Iterator[FilesSite]:
    top = tmp_path / "public"
    top.mkdir()
    made = FilesSite(top)
    made.write("b.txt", b"12345")
    made.write("A.txt", b"1")
    made.write("sub/inner.txt", b"1")
    made.write(".hidden", b"h")
    os.utime(top / "A.txt", (MODIFIED + 60, MODIFIED + 60))
    yield made
    made.factory.close()
    made.core.stop()
    assert made.clock.getDelayedCalls() == []


def links(site: FilesSite, target: str) -> list[str]:
    """Return the links of the rows of a page."""
    body = site.ask(target).body.decode()
    return [unescape(link) for link in re.findall(r'<tr[^>]*><td><a href="([^"]*)"', body)]


def names(site: FilesSite, target: str) -> list[str]:
    reply = site.ask(target)
    assert reply.headers["content-type"] == "application/json"
    return [entry["name"] for entry in reply.json["entries"]]


def test_directories_come_first_and_names_are_sorted_whatever_their_case(site: FilesSite) -> None:
    assert links(site, "/") == ["./sub/", "./A.txt", "./b.txt"]
    assert links(site, "/sub/") == ["../", "./inner.txt"]
    assert site.results == [("/", 0, "listed", "GET", 200), ("sub/", 0, "listed", "GET", 200)]


def test_the_same_listing_is_json_for_programs(site: FilesSite) -> None:
    assert names(site, "/?json") == ["sub", "A.txt", "b.txt"]
    reply = site.ask("/", Accept="application/json")
    assert reply.json == site.ask("/?json").json
    assert reply.json["entries"][2] == {
        **{"name": "b.txt", "url": "b.txt", "type": "file", "size": 5, "modified": "1994-11-06T08:49:37Z"},
    }
    assert {key: reply.json[key] for key in ("path", "total", "page", "pages", "complete")} == {
        **{"path": "/", "total": 3, "page": 1, "pages": 1, "complete": True},
    }
    # A browser names JSON last, if at all.
    assert site.ask("/", Accept="text/html,application/json;q=0.1").headers["content-type"].startswith("text/html")


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("sort=name&order=desc", ["b.txt", "A.txt", "sub"]),
        ("sort=size", ["sub", "A.txt", "b.txt"]),
        ("sort=size&order=desc", ["b.txt", "A.txt", "sub"]),
        ("sort=time&order=desc&search=txt", ["A.txt", "b.txt"]),
        ("search=a.T", ["A.txt"]),
        ("search=%20", ["sub", "A.txt", "b.txt"]),
        ("search=nothing", []),
        ("page=2", []),
    ],
)
def test_a_listing_is_sorted_and_searched(site: FilesSite, query: str, expected: list[str]) -> None:
    assert names(site, f"/?json&{query}") == expected


@pytest.mark.parametrize(
    "query",
    [
        "sort=x",
        "order=x",
        "page=0",
        "page=x",
        "page=99999999",
        f"search={'x' * (LONGEST_SEARCH + 1)}",
        "&".join("abcdefghijklm"),
    ],
)
def test_what_cannot_be_listed_is_a_bad_request(site: FilesSite, query: str) -> None:
    query = query.replace("&", "=1&") if "=" not in query else query
    assert site.ask(f"/?{query}").code == 400


def test_pages_follow_each_other(site: FilesSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "PAGE_SIZE", 2)
    monkeypatch.setattr(listing, "JSON_SIZE", 2)
    assert links(site, "/") == ["./sub/", "./A.txt"]
    body = site.ask("/?sort=name").body.decode()
    [following] = re.findall(r'rel="next" href="([^"]*)"', body)
    assert links(site, "/" + unescape(following)) == ["./b.txt"]
    assert [site.ask(f"/?json&page={page}").json["pages"] for page in (1, 2)] == [2, 2]


def test_a_directory_with_too_many_entries_says_so(site: FilesSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "MOST_ENTRIES", 2)
    reply = site.ask("/?json")
    assert (len(reply.json["entries"]) <= 2, reply.json["complete"]) == (True, False)


def test_names_of_any_bytes_are_links_to_their_files_and_no_part_of_the_page(site: FilesSite) -> None:
    evil = ["<script>alert(1)", '"onclick="x', "a:b", "a?b#c", "%41", "学习", "&amp;"]
    for name in [*map(os.fsencode, evil), b"\xff\xfe", "中文".encode("gbk")]:
        site.write(name, name)
    found = links(site, "/?search=")
    targets = {unquote_to_bytes(link.removeprefix("./")) for link in found}
    assert {*map(os.fsencode, evil), b"\xff\xfe", "中文".encode("gbk")} <= targets
    for link in found:
        if not link.endswith("/"):
            name = unquote_to_bytes(link.removeprefix("./"))
            assert site.ask("/" + link.removeprefix("./")).body == (site.root / os.fsdecode(name)).read_bytes()
    page = site.ask("/").body.decode()
    assert "<script>alert" not in page and '"onclick' not in page
    assert "中文" in page
    assert "中文" in names(site, "/?json")


def test_the_page_may_run_only_its_own_script(site: FilesSite) -> None:
    policy = site.ask("/").headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy


def test_links_are_listed_if_what_they_lead_to_is_served(site: FilesSite) -> None:
    (site.root / "inside").symlink_to("sub/inner.txt")
    (site.root / "below").symlink_to("sub")
    (site.root / "outside").symlink_to("/etc")
    (site.root / "nowhere").symlink_to("nothing")
    (site.root / "secret").symlink_to(".hidden")
    os.mkfifo(site.root / "fifo")
    entries = {entry["name"]: entry["type"] for entry in site.ask("/?json").json["entries"]}
    expected = {"sub": "directory", "A.txt": "file", "b.txt": "file", "inside": "file", "below": "directory"}
    assert {name: kind for name, kind in entries.items() if name != "secret"} == expected
    assert site.ask("/below/").code == 200


def test_listings_can_be_turned_off_and_hidden_files_shown(tmp_path: Path) -> None:
    site = FilesSite(tmp_path, no_listing=True)
    site.write("index.html", b"home")
    site.write("sub/f", b"f")
    assert (site.ask("/").body, site.ask("/sub/").code) == (b"home", 404)
    site.core.stop()
    open_site = FilesSite(tmp_path, hidden=True)
    open_site.write("sub/.hidden", b"h")
    assert names(open_site, "/sub/?json") == [".hidden", "f"]
    open_site.core.stop()


@pytest.mark.parametrize(
    ("target", "status"), [("/missing/", 404), ("/A.txt/", 404), ("/../", 404), ("/%2e%2e/", 404), ("/.git/", 404)]
)
def test_what_is_no_directory_is_not_listed(site: FilesSite, target: str, status: int) -> None:
    (site.root / ".git").mkdir()
    assert site.ask(target).code == status


def test_few_directories_are_listed_at_once_and_few_wait(site: FilesSite, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Deferred[bytes]] = []

    def begin(_self: Listings, directory: Directory, *_query: object) -> Deferred[bytes]:
        directory.close()
        begun.append(Deferred())
        return begun[-1]

    monkeypatch.setattr(Listings, "_in_thread", begin)
    clients = [connect(site.factory, Transport()) for _ in range(AT_ONCE + MOST_WAITING + 1)]
    for client in clients:
        client.protocol.dataReceived(request("/"))
    assert len(begun) == AT_ONCE
    [refused] = [client for client in clients if client.value()]
    assert read_replies(refused.value())[0].code == 503
    for each in begun:
        each.callback(b"made")
    assert all(read_replies(client.value())[0].body == b"made" for client in clients if client is not refused)


def test_a_listing_that_fails_is_unavailable(site: FilesSite, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object) -> object:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(listing, "_scan", fail)
    assert site.ask("/").code == 503


@given(
    st.sampled_from(["name", "size", "time"]),
    st.booleans(),
    st.text(max_size=20),
    st.integers(1, 1000),
    st.booleans(),
)
def test_a_link_to_a_listing_is_read_as_it_was_meant(
    sort: str, descending: bool, search: str, page: int, as_json: bool
) -> None:
    query = Query(sort, descending, search.strip(), page, as_json)
    try:
        search.encode()
    except UnicodeEncodeError:
        return
    assert parse_query(query.written().removeprefix("?").encode()) == query
