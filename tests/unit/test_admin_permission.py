"""Who may ask the admin server: this machine, its own page, and whoever knows the token; no other site."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import capturedLogs, formatEvent

from netsvc.admin.permission import Permission
from tests.builders.admin_asked import Admin

TOKEN = "0123456789abcdef"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9100", "127.0.0.1:9100", "127.8.8.8", "[::1]:9100"])
def test_whoever_names_this_machine_is_answered(host: str) -> None:
    assert Admin().ask("/api/status", Host=host).code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example:9100", "10.0.0.1", "[fe80::1]"],
)
def test_a_site_that_has_itself_taken_for_this_machine_is_refused(host: str) -> None:
    reply = Admin().ask("/api/status", Host=host)
    assert reply.code == 403
    assert "localhost" in reply.json["error"]


def test_the_name_that_it_listens_on_is_known() -> None:
    admin = Admin(permission=Permission(hosts={"10.0.0.1"}))
    assert admin.ask("/api/status", Host="10.0.0.1:9100").code == 200
    assert admin.ask("/api/status", Host="10.0.0.2:9100").code == 403


def test_with_a_token_any_name_will_do() -> None:
    admin = Admin(permission=Permission(TOKEN.encode(), None))
    assert admin.ask("/api/status", Host="admin.example", Authorization=f"Bearer {TOKEN}").code == 200


def test_two_names_are_none() -> None:
    admin = Admin()
    transport = admin.connect()
    transport.protocol.dataReceived(b"GET /api/status HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n")
    assert admin.read(transport).code == 400


@pytest.mark.parametrize(
    ("origin", "host", "code"),
    [
        ("http://localhost:9100", "localhost:9100", 200),
        ("http://LOCALHOST:9100", "localhost:9100", 200),
        ("https://localhost", "localhost:443", 200),
        ("http://localhost:80", "localhost", 200),
        ("http://localhost:9101", "localhost:9100", 403),
        ("http://evil.example", "localhost:9100", 403),
        ("null", "localhost:9100", 403),
        ("file://", "localhost:9100", 403),
    ],
)
def test_another_site_may_have_nothing_done(origin: str, host: str, code: int) -> None:
    admin = Admin()
    assert admin.post("/api/drain", Origin=origin, Host=host).code == code
    assert admin.operations.asked == (["drain"] if code == 200 else [])


@pytest.mark.parametrize("site", ["cross-site", "same-site", "whatever"])
def test_a_browser_that_asks_for_another_site_is_refused(site: str) -> None:
    admin = Admin()
    for path in ("/", "/api/status", "/api/stream", "/metrics"):
        assert admin.ask(path, Sec_Fetch_Site=site).code == 403
    assert admin.post("/api/reload", Sec_Fetch_Site=site).code == 403
    assert not admin.operations.asked


@pytest.mark.parametrize("site", ["same-origin", "none"])
def test_the_page_itself_and_who_types_its_address_are_answered(site: str) -> None:
    assert Admin().ask("/api/status", Sec_Fetch_Site=site).code == 200


def test_a_link_from_elsewhere_may_be_followed_but_does_nothing() -> None:
    link = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"}
    admin = Admin()
    assert admin.ask("/", headers=link).code == 200
    assert admin.ask("/", headers={**link, "Sec_Fetch_Dest": "iframe"}).code == 403
    assert admin.post("/api/drain", headers=link).code == 403


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded", "application/jsonx"])
def test_what_a_form_could_send_does_nothing(kind: str) -> None:
    admin = Admin()
    reply = admin.post("/api/drain", Content_Type=kind)
    assert reply.code == 415
    assert not admin.operations.asked


def test_a_token_is_asked_for_everything_that_shows_or_does_something() -> None:
    admin = Admin(permission=Permission(TOKEN.encode(), None))
    for path in ("/health", "/ready", "/metrics", "/api/status", "/api/stream", "/api/nothing"):
        reply = admin.ask(path)
        assert reply.code == 401
        assert reply.headers["www-authenticate"] == "Bearer"
    assert admin.post("/api/drain").code == 401
    assert not admin.operations.asked
    # The page shows nothing before it has asked for the token.
    for path in ("/", "/page.js", "/draw.js", "/figures.js", "/rows.js", "/page.css", "/icon.svg"):
        assert admin.ask(path).code == 200
    assert admin.ask("/", "POST").code == 401


@pytest.mark.parametrize(
    "given",
    ["", "Bearer", "Bearer ", f"Basic {TOKEN}", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN.upper()}"],
)
def test_a_wrong_token_is_refused(given: str) -> None:
    assert Admin(permission=Permission(TOKEN.encode(), None)).ask("/health", Authorization=given).code == 401


def test_guesses_are_said_once_a_second_with_how_many_there_were() -> None:
    admin = Admin(permission=Permission(TOKEN.encode(), None))
    with capturedLogs() as events:
        admin.ask("/health")
        for _ in range(100):
            admin.ask("/health", Authorization="Bearer guess")
        admin.clock.advance(1)
        admin.service.close()
    said = [formatEvent(event) for event in events]
    assert [re.sub("1 s, the last .*", "1 s", line) for line in said] == [
        "limit token refused 127.0.0.1 at admin",
        "limit token refused 99 in 1 s",
    ]
    assert not admin.clock.getDelayedCalls()


def test_the_right_token_opens() -> None:
    admin = Admin(permission=Permission(TOKEN.encode(), None))
    assert admin.ask("/health", Authorization=f"Bearer {TOKEN}").code == 200
    assert admin.ask("/health", Authorization=f"bearer  {TOKEN}").code == 200


@given(
    st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=40),
    st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=40),
)
def test_whatever_the_headers_are_there_is_an_answer(host: str, origin: str) -> None:
    assert Admin().ask("/health", Host=host, Origin=origin).code in (200, 400, 403)


def test_there_are_no_cookies() -> None:
    admin = Admin()
    for path in ("/", "/api/status"):
        assert "set-cookie" not in admin.ask(path, Cookie="a=b").headers
