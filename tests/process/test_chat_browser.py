"""The page of the chat in a real Chromium, in one room with a client of lines; its pictures are made here."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from socket import socket

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from tests.builders.browser import Browser
from tests.builders.processes import ROOT, Server, connect, free_port

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")]

#: Where the pictures of the documentation go, if they are to be made anew: `NETSVC_PICTURES=docs`.
PICTURES = os.environ.get("NETSVC_PICTURES")
LARGEST_PICTURE = 200_000

HOSTILE = '<img src=x onerror=document.title="owned"> <script>document.title="owned"</script>'


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


class Chat:
    """A server with the page and the line protocol, which can be killed and started again."""

    def __init__(self, place: Path, *more: str) -> None:
        self._place = place
        self._more = more
        # Not ports that the system chooses: while the server is away, it may give them to others.
        self._web, self._line = (f"127.0.0.1:{free_port()}" for _ in range(2))
        self.start()

    def start(self) -> None:
        store = ("--chat-store", f"sqlite:{self._place}/chat.sqlite", "--chat-rate", "10000", "--chat-burst", "10000")
        history = ("--chat-history", "50", "--chat-backlog", "10000")
        self.server = Server.twistd("--chat-web", self._web, "--chat", self._line, *store, *history, *self._more)

    def kill(self) -> None:
        self.server.process.kill()
        self.server.wait()

    @property
    def url(self) -> str:
        return f"http://{self._web}/"

    def call(self, name: str) -> socket:
        client = connect(int(self._line.rpartition(":")[2]))
        client.sendall(f"/nick {name}\n".encode())
        hear(client, f"you are now {name}")
        return client


def hear(client: socket, text: str) -> str:
    got = b""
    while text.encode() not in got:
        data = client.recv(65536)
        assert data, got
        got += data
    return got.decode()


@pytest.fixture
def chat(tmp_path: Path) -> Iterator[Chat]:
    started = Chat(tmp_path)
    yield started
    started.server.stop()


def visit(browser: Browser, chat: Chat, *, width: int = 1000, dark: bool = False) -> None:
    browser.look_like(width, 640, dark=dark, phone=width < 500)
    browser.driver.get("about:blank")
    browser.complaints()
    browser.driver.get(chat.url)


def enter(browser: Browser, chat: Chat, name: str, password: str = "", *, key: str = "") -> None:
    for field, value in (("nick", name), ("room", "lobby")):
        browser.one(f"#enter [name={field}]").clear()
        browser.one(f"#enter [name={field}]").send_keys(value)
    if password or key:
        if not browser.script("return document.querySelector('details').open"):
            browser.one("#enter summary").click()
        browser.one("#enter [name=password]").clear()
        browser.one("#enter [name=password]").send_keys(password)
        browser.one("#enter [name=key]").clear()
        browser.one("#enter [name=key]").send_keys(key)
    browser.one("#enter button").click()


def messages(browser: Browser) -> list[str]:
    shown = (
        "return [...document.querySelectorAll('.log:not([hidden]) .message .words')].map((each) => each.textContent)"
    )
    return [str(each) for each in browser.script(shown)]


def sees(browser: Browser, text: str) -> None:
    browser.until(lambda: any(text in each for each in messages(browser)), f"no {text!r} in {messages(browser)}")


def say(browser: Browser, text: str) -> None:
    browser.one("#text").send_keys(text, Keys.ENTER)


def in_room(browser: Browser, name: str) -> None:
    browser.until(lambda: browser.text("#room") == name)


def test_a_browser_and_a_client_of_lines_are_in_one_room(browser: Browser, chat: Chat) -> None:
    visit(browser, chat)
    enter(browser, chat, "ada")
    in_room(browser, "#lobby")
    with chat.call("Zoë") as other:
        other.sendall(f"see https://example.org/a?b=1, ada\n{HOSTILE}\n/topic plans\n".encode())
        sees(browser, HOSTILE)
        assert "Zoë: see https://example.org/a?b=1, ada" in messages(browser)
        [link] = browser.all(".message a")
        assert link.get_attribute("href") == "https://example.org/a?b=1"
        assert link.get_attribute("rel") == "noopener noreferrer"
        assert len(browser.all(".mention")) == 1
        browser.until(lambda: browser.text("#topic") == "plans")
        assert browser.script(
            "return [...document.querySelectorAll('#members li')].map((each) => each.textContent)"
        ) == [
            "ada",
            "Zoë",
        ]
        # Tab completes a name; and a message that is written in several lines is several.
        browser.one("#text").send_keys("hello zo", Keys.TAB, "one", Keys.SHIFT, Keys.ENTER, Keys.NULL, "two")
        browser.one("#text").send_keys(Keys.ENTER)
        say(browser, "/me waves")
        got = hear(other, "ada waves")
        assert "[lobby] ada: hello Zoë one\n[lobby] ada: two\n" in got.replace("\r", "")
        sees(browser, "* ada waves")
        # What is said elsewhere is counted, and read when it is opened.
        say(browser, "/msg Zoë psst")
        hear(other, "psst")
        in_room(browser, "Zoë")
        other.sendall(b"ada: are you there?\n")
        browser.until(lambda: browser.driver.title.startswith("(1) "))
        browser.all("#rooms button")[0].click()
        browser.until(lambda: not browser.driver.title.startswith("("))
        sees(browser, "are you there?")
    browser.until(lambda: "Zoë has left" in browser.text("#logs"))
    assert "owned" not in browser.driver.title
    assert browser.complaints() == []
    # The browser may still load the icon.
    browser.until(lambda: chat.url + "icon.svg" in browser.requests())
    assert {each.removeprefix(chat.url) for each in browser.requests()} == {"page.css", "page.js", "irc.js", "icon.svg"}


def test_after_a_lost_connection_nothing_is_missing_and_nothing_is_there_twice(browser: Browser, chat: Chat) -> None:
    visit(browser, chat)
    enter(browser, chat, "ada")
    in_room(browser, "#lobby")
    say(browser, "before")
    sees(browser, "ada: before")
    chat.kill()
    browser.until(lambda: browser.text("#state"))
    say(browser, "while it is away")
    assert "while it is away" in browser.text(".pending")
    chat.start()
    with chat.call("bob") as other:
        # More than one page of history.
        other.sendall(b"".join(b"line %d\n" % number for number in range(250)))
        browser.until(lambda: not browser.text("#state"))
        sees(browser, "ada: while it is away")
        say(browser, "after")
        hear(other, "after")
    sees(browser, "ada: after")
    got = messages(browser)
    assert [each for each in got if each.startswith("bob: line")] == [f"bob: line {number}" for number in range(250)]
    assert [each for each in got if each.startswith("ada")] == ["ada: before", "ada: while it is away", "ada: after"]


def test_scrolling_up_shows_what_was_said_earlier(browser: Browser, chat: Chat) -> None:
    with chat.call("bob") as other:
        other.sendall(b"".join(b"line %d\n" % number for number in range(350)) + b"/me is done\n/nick robert\n")
        hear(other, "you are now robert")
        visit(browser, chat)
        enter(browser, chat, "ada")
        in_room(browser, "#lobby")
        sees(browser, "bob is done")
        assert len(messages(browser)) < 350

        def all_there() -> bool:
            browser.script("document.querySelector('.log:not([hidden])').scrollTop = 0")
            return len(messages(browser)) == 351

        browser.until(all_there)
        assert messages(browser)[:350] == [f"bob: line {number}" for number in range(350)]


def test_a_registered_name_needs_its_password_and_so_does_the_chat(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("sesame\n")
    chat = Chat(tmp_path, "--chat-irc-password", str(tmp_path / "password"))
    with chat.call("carol") as other:
        other.sendall(b"/register correct-horse-battery\n")
        hear(other, "carol")
    visit(browser, chat)
    for password, key in (("", ""), ("wrong-horse-battery", "sesame"), ("correct-horse-battery", "wrong")):
        enter(browser, chat, "carol", password, key=key)
        browser.until(lambda: browser.text("#refused"))
        assert browser.one("#enter [name=key]").is_displayed()
    enter(browser, chat, "carol", "correct-horse-battery", key="sesame")
    in_room(browser, "#lobby")
    with chat.call("dave") as other:
        say(browser, "it is me")
        hear(other, "carol: it is me")
    chat.server.stop()


@pytest.mark.parametrize(("width", "dark"), [(1000, False), (390, True)])
def test_it_fits_a_screen_and_a_phone(browser: Browser, chat: Chat, width: int, dark: bool) -> None:
    with chat.call("Zoë") as zoe, chat.call("José") as jose, chat.call("bob") as bob:
        zoe.sendall(b"/topic Release on Friday: https://example.org/plan\nGood morning!\n")
        hear(jose, "Good morning!")
        jose.sendall("¡Buenos días! The tests are green.\n".encode())
        hear(zoe, "green")
        bob.sendall(b"/me makes coffee\nShall we look at the list together?\n")
        hear(zoe, "together?")
        visit(browser, chat, width=width, dark=dark)
        enter(browser, chat, "ada")
        in_room(browser, "#lobby")
        say(browser, "Yes, in ten minutes: https://example.org/" + "list" * 15)
        sees(browser, "ten minutes")
        assert browser.script("return document.documentElement.scrollWidth") <= width
        assert browser.script("return document.querySelector('.log:not([hidden])').scrollTop >= 0")
        picture = browser.driver.get_screenshot_as_png()
        if width < 500:
            assert not browser.one("#members").is_displayed()
            browser.one("#people").click()
            assert browser.one("#members").is_displayed()
            browser.one("#people").click()
        # All of it can be reached by the keyboard.
        reached = set()
        for _ in range(10):
            ActionChains(browser.driver).send_keys(Keys.TAB).perform()
            reached.add(browser.script("return document.activeElement.id || document.activeElement.className"))
        assert {"people", "log", "text"} <= reached
        assert browser.complaints() == []
        assert 10_000 < len(picture) < LARGEST_PICTURE
        if PICTURES:
            (ROOT / PICTURES / f"chat{'-phone' if width < 500 else ''}.png").write_bytes(picture)
