"""A token, or users with passwords, for files over HTTP."""

from __future__ import annotations

import base64
import hashlib
import os
import unicodedata
from collections.abc import Callable
from contextlib import suppress
from math import ceil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address, UNIXAddress

from netsvc.base.errors import UserError
from netsvc.guard.counters import Book
from netsvc.http.request import Request
from netsvc.plan.record import RequestRecord
from netsvc.server.requests import record_requests
from netsvc.services.files.access import (
    AT_ONCE,
    BURST,
    LOOK,
    MOST_REMEMBERED,
    MOST_WAITING,
    RATE,
    REMEMBERED,
    Credentials,
    parse_credentials,
    parse_users,
)
from tests.builders.files import make_core
from tests.builders.files_http import FilesSite
from tests.builders.http import Reply, Transport, connect, read_replies, request

TOKEN = "a-token-of-some-length"
ELSEWHERE = IPv4Address("TCP", "192.0.2.9", 4000)


def cheap_hash(password: str) -> str:
    """Hash a password at nearly no cost."""
    salt = b"salt" * 4
    derived = hashlib.scrypt(password.encode(), salt=salt, n=16, r=8, p=1, dklen=32)
    text = [base64.b64encode(each).decode().rstrip("=") for each in (salt, derived)]
    return f"$scrypt$ln=4,r=8,p=1${text[0]}${text[1]}"


HASHES = {"alice": cheap_hash("correct horse"), "café": cheap_hash("pässwörd"), "bob": cheap_hash("x:y")}


def basic(user: str, password: str, encoding: str = "utf-8") -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode(encoding)).decode()


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    top = tmp_path / "public"
    (top / "papers").mkdir(parents=True)
    (top / "f").write_bytes(b"content")
    (top / "papers" / "g").write_bytes(b"more")
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    write_users(tmp_path / "users", HASHES)
    for name in ("token", "users"):
        (tmp_path / name).chmod(0o600)
    return {"token": str(tmp_path / "token"), "users": str(tmp_path / "users")}


def write_users(path: Path, hashes: dict[str, str]) -> None:
    path.write_text("# users\n\n" + "".join(f"{user}:{hashed}\n" for user, hashed in hashes.items()), "utf-8")


class Site(FilesSite):
    def __init__(self, root: Path, **options: object) -> None:
        super().__init__(root, **options)
        self.peer: Any = None

    def send(self, data: bytes) -> Transport:
        transport = Transport()
        if self.peer is not None:
            transport.peerAddr = self.peer
        connect(self.factory, transport)
        transport.protocol.dataReceived(data)
        return transport

    def get(self, authorization: str = "", target: str = "/f", method: str = "GET") -> Reply:
        return self.ask(target, method, Authorization=authorization)


@pytest.fixture
def site(files: dict[str, str], tmp_path: Path) -> Site:
    return Site(tmp_path / "public", **files)


GOOD = {
    "the token": (f"Bearer {TOKEN}", "/f"),
    "any case": (f"bEARER {TOKEN}", "/f"),
    "the token as a password": (basic("anybody", TOKEN), "/f"),
    "the token in the path": ("", f"/{TOKEN}/f"),
    "the token in the path, and wrong credentials": (basic("alice", "wrong"), f"/{TOKEN}/f"),
    "a user": (basic("alice", "correct horse"), "/f"),
    "a colon in the password": (basic("bob", "x:y"), "/f"),
    "UTF-8": (basic("café", "pässwörd"), "/f"),
    "Latin-1": (basic("café", "pässwörd", "latin-1"), "/f"),
    "decomposed": (basic(unicodedata.normalize("NFD", "café"), unicodedata.normalize("NFD", "pässwörd")), "/f"),
}

BAD = {
    "nothing": "",
    "a wrong token": "Bearer another-token-of-it",
    "a part of the token": f"Bearer {TOKEN[:-1]}",
    "more than the token": f"Bearer {TOKEN}x",
    "a wrong password": basic("alice", "wrong"),
    "no password": basic("alice", ""),
    "another user's": basic("bob", "correct horse"),
    "no such user": basic("nobody", "correct horse"),
    "no name": basic("", "correct horse"),
    "no colon": "Basic " + base64.b64encode(b"alice").decode(),
    "no base64": "Basic %%%%",
    "a control character": basic("alice\r", "correct horse"),
    "nothing behind the scheme": "Basic",
    "another scheme": 'Digest username="alice"',
    "the hash itself": basic("alice", HASHES["alice"]),
}


@pytest.mark.parametrize("case", GOOD)
def test_the_right_credentials_open_the_files(site: Site, case: str) -> None:
    authorization, target = GOOD[case]
    for _ in range(2):
        reply = site.get(authorization, target)
        assert (reply.code, reply.body) == (200, b"content")
    assert {event["name"] for event in site.events} == {"f"}


@pytest.mark.parametrize("case", BAD)
def test_any_other_credentials_open_nothing(site: Site, case: str) -> None:
    for target in ("/f", "/", "/none", "/papers/", "/f?sha256"):
        reply = site.get(BAD[case], target)
        if reply.code == 429:
            continue
        assert reply.code == 401
        assert reply.headers["www-authenticate"] == 'Basic realm="files", charset="UTF-8", Bearer'
        assert b"content" not in reply.body
    assert {event["size"] for event in site.events} == {0}


def test_two_credentials_are_none(site: Site) -> None:
    one = f"Authorization: Bearer {TOKEN}\r\n"
    transport = site.send(f"GET /f HTTP/1.1\r\nHost: x\r\n{one}{one}\r\n".encode())
    assert read_replies(transport.value())[0].code == 401
    transport.end()


def test_no_secret_and_nothing_like_one_is_logged(site: Site) -> None:
    slips = ["Secret", "hunter2-hunter2-hunter2"]
    for target in ("/f", f"/{TOKEN}", f"/{TOKEN}/f", f"/{TOKEN}/papers", f"/{slips[1]}/f", f"/{TOKEN}x/f"):
        site.get(basic("alice", slips[0]), target)
        site.get("", target)
    site.get(f"Bearer {TOKEN}")
    logged = "".join(map(str, site.events))
    assert len(site.events) > 9
    assert not any(secret in logged for secret in (TOKEN, *slips, *HASHES.values()))


def test_a_link_with_the_token_leads_through_the_directories(site: Site) -> None:
    assert site.get("", f"/{TOKEN}").headers["location"] == f"/{TOKEN}/"
    assert site.get("", f"//{TOKEN}").code == 401
    assert site.get("", f"/{TOKEN}/papers").headers["location"] == f"/{TOKEN}/papers/"
    assert site.get("", f"/{TOKEN}/?json").json["total"] == 2
    assert b'href="./papers/"' in site.get("", f"/{TOKEN}/").body
    assert site.get("", f"/{TOKEN}/papers/g").body == b"more"
    assert site.get("", f"/papers/{TOKEN}/g").code == 401


def test_records_of_requests_have_the_user_and_no_token(site: Site) -> None:
    records: list[RequestRecord] = []
    book = Book()
    book.record, book.has_requests = records.append, True
    record_requests(site.factory, book)
    # The second one is known by then, and the file in memory.
    for _ in range(2):
        site.get(basic("café", "pässwörd"), "/f")
    site.get("", f"/{TOKEN}/papers/g?a=b")
    site.get("", f"/{TOKEN}x/f")
    site.get(basic("alice", TOKEN), "/f")
    assert [(record.user, record.line, record.status) for record in records] == [
        ("café", b"GET /f HTTP/1.1", 200),
        ("café", b"GET /f HTTP/1.1", 200),
        ("", b"GET /papers/g?a=b HTTP/1.1", 200),
        ("", b"GET / HTTP/1.1", 401),
        # A token proves nothing about the name.
        ("", b"GET /f HTTP/1.1", 200),
    ]
    assert [event.get("user") for event in site.events] == ["café", "café", None, None, None]
    assert site.events[0]["line"].endswith(": sent (GET 200 café)")


def test_a_page_of_another_origin_can_read_that_it_needs_credentials(files: dict[str, str], tmp_path: Path) -> None:
    site = Site(tmp_path / "public", cors="https://a.example", **files)
    asked = request("/f", headers={"Origin": "https://a.example"})
    preflight = request(
        "/f", "OPTIONS", headers={"Origin": "https://a.example", "Access-Control-Request-Method": "GET"}
    )
    replies = [read_replies(site.send(each).value())[0] for each in (asked, preflight)]
    assert [reply.code for reply in replies] == [401, 204]
    assert {reply.headers["access-control-allow-origin"] for reply in replies} == {"https://a.example"}
    site.factory.close()
    site.core.stop()


def test_methods_are_answered_as_without(site: Site) -> None:
    assert site.get(method="OPTIONS").code == 204
    assert site.get(method="DELETE").code == 401
    assert site.get(f"Bearer {TOKEN}", method="DELETE").code == 405
    assert site.get(method="HEAD").code == 401


@pytest.mark.parametrize(("peer", "code"), [(ELSEWHERE, 403), (UNIXAddress(None), 200), (None, 200)])
def test_credentials_are_not_taken_where_others_can_read_them(site: Site, peer: Any, code: int) -> None:
    site.peer = peer
    for target in ("/f", f"/{TOKEN}/f"):
        assert site.get(f"Bearer {TOKEN}", target).code == code
    assert site.core.confidential == ("http",)


def test_they_are_if_the_option_says_so(files: dict[str, str], tmp_path: Path) -> None:
    site = Site(tmp_path / "public", **files, plain_passwords=True)
    site.peer = ELSEWHERE
    assert site.get(basic("alice", "correct horse")).code == 200
    assert site.core.confidential == ()


def test_everybody_is_admitted_without_a_token_and_users(tmp_path: Path) -> None:
    core, _ = make_core(tmp_path)
    assert (core.access, core.confidential, core.notes(["http", "tftp"])) == (None, (), [])


def test_a_check_names_the_protocols_that_know_no_credentials(site: Site) -> None:
    assert site.core.notes(["http"]) == []
    [line] = site.core.notes(["tftp", "http", "classic"])
    assert "classic and tftp" in line


def test_an_address_that_guesses_is_slowed_down_and_no_other(site: Site) -> None:
    site.peer = ELSEWHERE
    site.core.access.plain = True  # type: ignore[union-attr]
    right = basic("alice", "correct horse")
    assert site.get(right).code == 200
    for number in range(BURST):
        # Each is tried once, whether it is a password or a token.
        wrong = basic("bob", f"wrong {number}") if number % 2 else f"Bearer wrong-token-number-{number}"
        assert site.get(wrong).code == 401
    refused = site.get(basic("bob", "x:y"))
    assert (refused.code, refused.headers["retry-after"]) == (429, str(ceil(1 / RATE)))
    # What was right before is known, and needs no guess.
    assert site.get(right).code == 200
    site.peer = IPv4Address("TCP", "192.0.2.10", 4000)
    assert site.get(basic("bob", "x:y")).code == 200
    site.peer = ELSEWHERE
    site.clock.advance(1 / RATE)
    assert site.get(basic("bob", "x:y")).code == 200


def test_a_changed_file_is_read_again(site: Site, files: dict[str, str]) -> None:
    alice = basic("alice", "correct horse")
    assert site.get(alice).code == 200
    write_users(Path(files["users"]), {"carol": cheap_hash("new")})
    assert site.get(alice).code == 200
    site.clock.advance(LOOK)
    assert site.get(alice).code == 401
    assert site.get(basic("carol", "new")).code == 200
    Path(files["token"]).write_text("another-token-instead\n")
    site.clock.advance(LOOK)
    assert site.get(f"Bearer {TOKEN}").code == 401
    assert site.get("Bearer another-token-instead").code == 200


def test_the_old_content_stays_in_force_if_a_file_cannot_be_used(site: Site, files: dict[str, str]) -> None:
    Path(files["users"]).write_text("alice:letmein\n")
    os.unlink(files["token"])
    for _ in range(3):
        site.clock.advance(LOOK)
        assert site.get(basic("alice", "correct horse")).code == 200
        assert site.get(f"Bearer {TOKEN}").code == 200
    [error] = [event for event in site.events if "reason" in event]
    assert "letmein" not in str(error)


def test_a_changed_password_is_not_remembered(site: Site, files: dict[str, str]) -> None:
    alice = basic("alice", "correct horse")
    assert site.get(alice).code == 200
    write_users(Path(files["users"]), HASHES | {"alice": cheap_hash("other")})
    site.clock.advance(LOOK)
    assert site.get(alice).code == 401
    assert site.get(basic("alice", "other")).code == 200


class Pool:
    """A pool whose threads run when the test says so."""

    def __init__(self) -> None:
        self.jobs: list[Callable[[], None]] = []

    def callInThreadWithCallback(
        self, done: Callable[[bool, object], None], call: Callable[..., object], *arguments: object
    ) -> None:
        self.jobs.append(lambda: done(True, call(*arguments)))


@pytest.fixture
def pool(site: Site) -> Pool:
    made = Pool()
    clock: Any = site.clock
    clock.getThreadPool = lambda: made
    clock.callFromThread = lambda call, *arguments: call(*arguments)
    return made


def ask(site: Site, authorization: str) -> Transport:
    return site.send(request("/f", Authorization=authorization))


def test_a_password_is_checked_once_however_many_ask(site: Site, pool: Pool) -> None:
    waiting = [ask(site, basic("alice", "correct horse")) for _ in range(6)]
    gone = waiting.pop()
    gone.end()
    assert len(pool.jobs) == 1
    assert not any(each.value() for each in waiting)
    pool.jobs.pop()()
    assert all(read_replies(each.value())[0].body == b"content" for each in waiting)
    assert not gone.value()
    # It is remembered, for a while.
    assert ask(site, basic("alice", "correct horse")).value()
    site.clock.advance(REMEMBERED)
    assert not ask(site, basic("alice", "correct horse")).value()
    assert len(pool.jobs) == 1
    pool.jobs.pop()()


def test_a_few_are_checked_at_once_and_few_wait(site: Site, pool: Pool) -> None:
    for number in range(AT_ONCE + MOST_WAITING):
        site.peer = IPv4Address("TCP", f"127.0.0.{number + 2}", 1)
        ask(site, basic("alice", f"wrong {number}"))
    assert len(pool.jobs) == AT_ONCE
    site.peer = IPv4Address("TCP", "127.0.1.1", 1)
    refused = ask(site, basic("alice", "correct horse"))
    assert read_replies(refused.value())[0].code == 503
    for _ in range(AT_ONCE + MOST_WAITING):
        pool.jobs.pop(0)()
    assert not pool.jobs
    assert site.get(f"Bearer {TOKEN}").code == 200


def test_few_passwords_are_remembered(site: Site) -> None:
    users = {f"user{number}": HASHES["alice"] for number in range(MOST_REMEMBERED + 5)}
    site.core.access.users = users  # type: ignore[union-attr]
    site.core.access.refresh = lambda: None  # type: ignore[method-assign, union-attr]
    guarded = site.factory.serve.__self__  # type: ignore[attr-defined]
    for user in users:
        guarded._right[user.encode()] = (HASHES["alice"], 1e9)
        if len(guarded._right) > MOST_REMEMBERED:
            break
    assert site.get(basic("user0", "correct horse")).code == 200
    assert len(guarded._right) <= MOST_REMEMBERED + 1


USERS = [
    (b"alice:letmein", ":1: "),
    (b"alice", ":1: "),
    (b":" + HASHES["alice"].encode(), ":1: "),
    (b"a\x1bb:" + HASHES["alice"].encode(), ":1: "),
    (f"alice:{HASHES['alice']}\n# again\nalice:{HASHES['bob']}".encode(), ":3: "),
    (b"alice:$scrypt$ln=30,r=8,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA", ":1: "),
    (b"", ": no user"),
    (b"# none\n", ": no user"),
]


@pytest.mark.parametrize(("data", "place"), USERS)
def test_a_wrong_file_of_users_is_refused_by_its_line(data: bytes, place: str) -> None:
    with pytest.raises(UserError) as raised:
        parse_users(data, "the/users")
    assert any(line.startswith(f"the/users{place}") for line in raised.value.errors)
    assert "letmein" not in str(raised.value)


def test_a_start_says_which_file_cannot_be_used(files: dict[str, str], tmp_path: Path) -> None:
    for name in ("token", "users"):
        core, _ = make_core(tmp_path, **files | {name: str(tmp_path / "none")})
        for call in (core.check, core.start):
            with pytest.raises(UserError, match=f"files {name} .*/none: No such file"):
                call()


@pytest.mark.parametrize("name", ["token", "users"])
def test_a_file_that_others_can_read_is_warned_of(files: dict[str, str], tmp_path: Path, name: str) -> None:
    os.chmod(files[name], 0o644)
    core, events = make_core(tmp_path, **files)
    core.start()
    assert [event["path"] for event in events if "path" in event] == [files[name]]
    core.stop()


@given(
    st.lists(st.one_of(st.binary(max_size=60), st.builds(lambda data: b"Basic " + base64.b64encode(data), st.binary())))
)
def test_any_header_is_credentials_or_an_error(values: list[bytes]) -> None:
    asked = Request(b"GET", b"/", 11, [(b"authorization", value) for value in values], keep_alive=True)
    try:
        found = parse_credentials(asked)
    except ValueError:
        return
    assert (found is None) == (not values)
    if found is not None and found.user is not None:
        assert found.user.isprintable()


@given(
    st.text(st.characters(exclude_categories=("C", "Z")), max_size=20),
    st.text(st.characters(exclude_categories=("C", "Z")), max_size=20),
)
def test_names_and_passwords_come_through(user: str, password: str) -> None:
    user = user.replace(":", "")
    asked = Request(b"GET", b"/", 11, [(b"authorization", basic(user, password).encode())], keep_alive=True)
    assert parse_credentials(asked) == Credentials(unicodedata.normalize("NFC", user), password)


@given(st.binary(max_size=300))
def test_any_file_of_users_is_read_or_refused(data: bytes) -> None:
    with suppress(UserError):
        assert parse_users(data, "users")
