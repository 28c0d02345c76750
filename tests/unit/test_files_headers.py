"""Headers that settings add to files over HTTP: Cache-Control, other origins, charsets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from netsvc.base.errors import UserError
from netsvc.options import parse_settings
from netsvc.services.files.core import FilesOptions
from tests.builders.files_http import FilesSite

OURS, OTHER = "https://a.example", "https://b.example"


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., FilesSite]]:
    made: list[FilesSite] = []

    def build(**options: object) -> FilesSite:
        site = FilesSite(tmp_path, **options)
        site.write("f.txt", b"0123456789")
        made.append(site)
        return site

    yield build
    for site in made:
        site.factory.close()
        site.core.stop()
        assert site.clock.getDelayedCalls() == []


@pytest.mark.parametrize(
    "value",
    ["no-cache", "public, max-age=3600", "max-age=0,must-revalidate", 'private="x-a, x-b", no-store', "S-MaxAge=1"],
)
def test_cache_control_is_sent_with_files_and_what_has_not_changed(make: Callable[..., FilesSite], value: str) -> None:
    site = make(**{"cache-control": value})
    for _ in range(2):
        reply = site.ask("/f.txt")
        assert reply.headers["cache-control"] == value
    unchanged = site.ask("/f.txt", If_None_Match=reply.headers["etag"])
    assert (unchanged.code, unchanged.headers["cache-control"]) == (304, value)
    assert "cache-control" not in site.ask("/missing").headers


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cache-control", ""),
        ("cache-control", "max-age"),
        ("cache-control", "max-age=1h"),
        ("cache-control", "maxage=1"),
        ("cache-control", "public,"),
        ("cache-control", "public private"),
        ("cache-control", "public=1"),
        ("cache-control", "no-cache\r\nX: y"),
        ("cache-control", 'private="a'),
        ("cors", ""),
        ("cors", "a.example"),
        ("cors", "https://a.example/"),
        ("cors", "https://A.example"),
        ("cors", "https://a.example:443"),
        ("cors", "http://a.example:99999"),
        ("cors", f"*,{OURS}"),
        ("cors", "null"),
        ("cors", "https://a.example\r\n"),
        ("charset", ""),
        ("charset", "a b"),
        ("charset", "utf-8\r\n"),
    ],
)
def test_a_wrong_setting_is_one_line(name: str, value: str) -> None:
    if value.strip() != value and name == "cors":
        # White space separates.
        assert parse_settings(FilesOptions, {"root": ".", name: value})[name] == (value.strip(),)
        return
    with pytest.raises(UserError) as caught:
        parse_settings(FilesOptions, {"root": ".", name: value})
    [line] = caught.value.errors
    assert line.startswith(f"--{name} ")
    assert "\n" not in line


def test_any_origin_may_read_files_lists_and_errors(make: Callable[..., FilesSite]) -> None:
    site = make(cors="*")
    for target in ("/f.txt", "/f.txt", "/", "/missing", "/?page=0"):
        for origin in ("", OURS):
            reply = site.ask(target, Origin=origin)
            assert reply.headers["access-control-allow-origin"] == "*"
            assert "Content-Range" in reply.headers["access-control-expose-headers"]
            assert "Origin" not in reply.headers.get("vary", "")


def test_only_the_given_origins_may_read_and_caches_know_that_it_depends(make: Callable[..., FilesSite]) -> None:
    site = make(cors=f"{OURS}, http://localhost:5173")
    for _ in range(2):
        allowed = site.ask("/f.txt", Origin=OURS)
        assert (allowed.headers["access-control-allow-origin"], allowed.headers["vary"]) == (OURS, "Origin")
        for origin in ("", OTHER, "null", f"{OURS}.evil.example"):
            reply = site.ask("/f.txt", Origin=origin)
            assert (reply.code, reply.body, reply.headers["vary"]) == (200, b"0123456789", "Origin")
            assert "access-control-allow-origin" not in reply.headers
    missing = site.ask("/missing", Origin=OURS)
    assert (missing.code, missing.headers["access-control-allow-origin"]) == (404, OURS)
    part = site.ask("/f.txt", Origin=OURS, Range="bytes=0-0")
    assert (part.code, part.headers["access-control-allow-origin"]) == (206, OURS)


@pytest.mark.parametrize("cors", ["*", OURS])
def test_a_preflight_request_is_told_methods_and_headers(make: Callable[..., FilesSite], cors: str) -> None:
    site = make(cors=cors)
    reply = site.ask("/f.txt", "OPTIONS", Origin=OURS, Access_Control_Request_Method="GET")
    assert (reply.code, reply.body) == (204, b"")
    assert reply.headers["access-control-allow-origin"] == cors
    assert reply.headers["access-control-allow-methods"] == "GET, HEAD"
    assert {"Range", "If-Range"} <= set(reply.headers["access-control-allow-headers"].split(", "))
    assert int(reply.headers["access-control-max-age"]) > 0


@pytest.mark.parametrize(
    "headers", [{"Origin": OTHER, "Access_Control_Request_Method": "GET"}, {"Origin": OURS}, {}], ids=str
)
def test_other_requests_for_options_are_not_told(make: Callable[..., FilesSite], headers: dict[str, str]) -> None:
    reply = make(cors=OURS).ask("/f.txt", "OPTIONS", **headers)
    assert (reply.code, reply.headers["allow"]) == (204, "GET, HEAD, OPTIONS")
    assert "access-control-allow-methods" not in reply.headers
    assert reply.headers["vary"] == "Origin"


def test_without_the_setting_nothing_is_said_about_origins(make: Callable[..., FilesSite]) -> None:
    reply = make().ask("/f.txt", "OPTIONS", Origin=OURS, Access_Control_Request_Method="GET")
    assert not [name for name in reply.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"", "text/plain; charset=utf-8"),
        (b"\xef\xbb\xbfa", "text/plain; charset=utf-8"),
        (b"\xff\xfea\0", "text/plain; charset=utf-16le"),
        (b"\xfe\xff\0a", "text/plain; charset=utf-16be"),
        (b"\x84\x31\x95\x33a", "text/plain; charset=gb18030"),
    ],
)
def test_the_mark_of_a_text_names_its_charset(make: Callable[..., FilesSite], start: bytes, kind: str) -> None:
    site = make()
    site.write("t.txt", start)
    assert site.ask("/t.txt").headers["content-type"] == kind
    assert site.ask("/t.txt", "HEAD").headers["content-type"] == kind


@pytest.mark.parametrize(("name", "said"), [("gb18030", "; charset=gb18030"), ("none", ""), ("NONE", "")])
def test_the_charset_of_other_texts_is_a_setting(make: Callable[..., FilesSite], name: str, said: str) -> None:
    site = make(charset=name)
    assert site.ask("/f.txt").headers["content-type"] == f"text/plain{said}"
    site.write("t.txt", b"\xef\xbb\xbfa")
    assert site.ask("/t.txt").headers["content-type"] == "text/plain; charset=utf-8"


def test_browsers_are_told_not_to_guess_the_type(make: Callable[..., FilesSite]) -> None:
    site = make()
    for target in ("/f.txt", "/f.txt", "/", "/missing"):
        assert site.ask(target).headers["x-content-type-options"] == "nosniff"
