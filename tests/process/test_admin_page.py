"""The live page, in a real Chromium, while connections come and go."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver.common.keys import Keys

from tests.builders.admin_site import HOSTILE
from tests.builders.browser import Browser
from tests.builders.processes import ROOT, Server, free_port

pytestmark = pytest.mark.slow

#: Where the pictures of the documentation go, if they are to be made anew: `NETSVC_PICTURES=docs`.
PICTURES = os.environ.get("NETSVC_PICTURES")
#: Bytes of one of them.
LARGEST_PICTURE = 200_000


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture
def site() -> Iterator[str]:
    with serving(140) as server:
        yield address(server)


def serving(connections: int, workers: int = 1, *others: str) -> Server:
    """Start a made-up netsvc."""
    server = Server(
        [sys.executable, "-m", "tests.builders.admin_site", str(connections), str(workers), *others], cwd=ROOT
    )
    server.wait_for("^admin listens on ")
    return server


def address(server: Server) -> str:
    return server.lines[-1].removeprefix("admin listens on ")


def visit(browser: Browser, url: str) -> None:
    """Open the page, and wait until it lives."""
    browser.look_like(1280, 1000)
    browser.driver.get("about:blank")
    # Whatever the page before has had to say of a server that is gone.
    browser.complaints()
    browser.driver.get(url)
    browser.until(lambda: browser.text("#link") == "live")
    browser.take_time()
    browser.until(lambda: browser.all("#peers tbody tr"))


def peers(browser: Browser) -> list[str]:
    return list(browser.script("return [...document.querySelectorAll('#peers .peer')].map((each) => each.textContent)"))


def is_wider(browser: Browser) -> bool:
    return bool(browser.script("return document.documentElement.scrollWidth > innerWidth"))


def test_it_shows_what_there_is_and_what_happens(browser: Browser, site: str) -> None:
    visit(browser, site)
    assert browser.text("#state") == "Ready"
    assert len(browser.all("#services tbody")) == 5
    assert browser.driver.title.endswith("netsvc")
    assert len(browser.all(".chart svg")) == 6
    # Of the minutes before it was opened as well.
    assert browser.script("return document.querySelector('.curve').getAttribute('d').length") > 1000
    assert all(chart.get_attribute("aria-label") for chart in browser.all(".chart svg"))
    # As it happens: connections, numbers and curves change without anybody asking.
    before = (
        peers(browser),
        browser.text(".chart .value"),
        browser.script("return document.querySelector('.curve').getAttribute('d')"),
    )
    browser.one("input[value=new]").send_keys(Keys.SPACE)
    browser.until(lambda: peers(browser) != before[0])
    browser.until(lambda: browser.script("return document.querySelector('.curve').getAttribute('d')") != before[2])
    seen = set(peers(browser))
    browser.until(lambda: set(peers(browser)) - seen, "nobody has come")
    browser.until(lambda: seen - set(peers(browser)), "nobody has gone")
    assert browser.complaints() == []
    assert {url.partition("?")[0] for url in browser.requests()} <= {
        f"{site}/{name}"
        for name in (
            *("icon.svg", "favicon.ico", "page.css", "page.js", "draw.js", "figures.js", "rows.js"),
            "api/stream",
        )
    }


def test_what_a_peer_calls_itself_stays_text(browser: Browser, site: str) -> None:
    visit(browser, site)
    browser.one("#search").send_keys("onerror")
    browser.until(lambda: peers(browser) == [HOSTILE])
    assert browser.all("#peers img") == []
    assert "owned" not in browser.driver.title
    assert browser.one("#peers button").get_attribute("aria-label") == f"Close {HOSTILE}"
    assert browser.complaints() == []


def test_a_connection_is_closed_by_keyboard_alone(browser: Browser, site: str) -> None:
    visit(browser, site)
    body = browser.one("body")
    body.send_keys("/")
    search = browser.driver.switch_to.active_element
    assert search.get_attribute("id") == "search"
    search.send_keys("onerror")
    browser.until(lambda: peers(browser) == [HOSTILE])
    search.send_keys(Keys.TAB)
    button = browser.driver.switch_to.active_element
    assert button.text == "Close"
    button.send_keys(Keys.ENTER)
    assert button.text == "Sure?"
    assert browser.script("return getComputedStyle(arguments[0]).outlineStyle", button) == "solid"
    button.send_keys(Keys.ENTER)
    browser.until(lambda: browser.text("#message") == f"Closed {HOSTILE}")
    # The focus does not fall back to the beginning of the page.
    assert browser.driver.switch_to.active_element.get_attribute("id") == "search"
    browser.until(lambda: peers(browser) == [])
    assert browser.text("#nobody") == "No connection has these words."
    browser.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    browser.until(lambda: len(peers(browser)) > 1)


def test_one_press_closes_nothing(browser: Browser, site: str) -> None:
    visit(browser, site)
    # The one that stays.
    browser.one("#search").send_keys("onerror")
    browser.until(lambda: peers(browser) == [HOSTILE])
    first = browser.one("#peers button")
    first.click()
    assert first.text == "Sure?"
    # Nothing moves away from under the pointer, and the order is said to be held.
    browser.until(lambda: browser.one("#held").is_displayed())
    browser.one("#search").click()
    assert first.text == "Close"
    assert peers(browser) == [HOSTILE]


def test_a_command_is_asked_for_twice(browser: Browser, site: str) -> None:
    visit(browser, site)
    browser.one("[data-command=drain]").click()
    dialog = browser.one("#ask")
    assert dialog.is_displayed()
    assert browser.driver.switch_to.active_element.text == "Cancel"
    browser.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    browser.until(lambda: not dialog.is_displayed())
    assert browser.text("#message") == ""
    browser.one("[data-command=reload]").click()
    browser.one("#ask-yes").click()
    browser.until(lambda: browser.text("#message") == "reloaded: nothing has changed")


def test_limits_in_force_are_shown_when_asked_for(browser: Browser, site: str) -> None:
    visit(browser, site)
    button = browser.one("#services button")
    assert button.get_attribute("aria-expanded") == "false"
    button.send_keys(Keys.ENTER)
    assert button.get_attribute("aria-expanded") == "true"
    assert "perip\n100" in browser.one("#services .limits").text
    button.send_keys(Keys.ENTER)
    assert browser.all("#services .limits") == []


def test_it_says_that_the_link_is_lost_and_comes_back_by_itself(browser: Browser) -> None:
    # Its port is free until it serves again.
    port = str(free_port())
    with serving(20, 1, port) as server:
        visit(browser, address(server))
        assert server.stop() == -signal.SIGTERM
        browser.until(lambda: browser.text("#link") == "connection lost, trying again")
        assert browser.one("body").get_attribute("class") == "stale"
    with serving(20, 1, port):
        browser.until(lambda: browser.text("#link") == "live")
    browser.complaints()


def test_a_token_is_asked_for(browser: Browser, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("0123456789abcdef")
    with serving(20, 1, "0", str(token)) as server:
        browser.driver.get(address(server))
        browser.until(lambda: browser.one("#login").is_displayed())
        assert browser.text("#state") == "…"
        browser.one("#token").send_keys("wrong", Keys.ENTER)
        browser.until(lambda: "Try again" in browser.text("#login-text"))
        browser.until(lambda: browser.one("#login").is_displayed())
        browser.one("#token").send_keys("0123456789abcdef", Keys.ENTER)
        browser.until(lambda: browser.text("#link") == "live")
        assert "0123456789abcdef" not in browser.driver.current_url
        # It is kept while the tab is open.
        browser.driver.refresh()
        browser.until(lambda: browser.text("#link") == "live")
    browser.complaints()


def test_workers_are_told_apart(browser: Browser) -> None:
    with serving(60, 3) as server:
        visit(browser, address(server))
        assert len(browser.all("#processes tbody tr")) == 3
        shown = "return [...document.querySelectorAll('#peers tbody .worker')].map((each) => each.textContent)"
        assert set(browser.script(shown)) == {"1", "2", "3"}
        assert browser.all("#peers thead .worker")[0].is_displayed()


def test_ten_thousand_connections_leave_the_page_quick(browser: Browser, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(10_100) as server:
        visit(browser, address(server))
        browser.script(
            "window.long = []; new PerformanceObserver((list) => list.getEntries().forEach((each) => "
            "window.long.push(each.duration))).observe({ type: 'longtask', buffered: false })"
        )
        browser.until(lambda: len(peers(browser)) == 100)
        assert browser.text("#connections-count").startswith("100 of 10,")
        before = browser.text(".chart .value")
        for order in ("bytes", "age", "new", "rate"):
            first = peers(browser)[0]
            browser.script("document.querySelector(`input[value=${arguments[0]}]`).click()", order)
            browser.until(lambda first=first: peers(browser)[0] != first)  # type: ignore[misc]
        browser.until(lambda: browser.text(".chart .value") != before)
        assert len(browser.all("#peers tbody tr")) <= 200
        long = browser.script("return window.long")
    with capsys.disabled():
        print(f"\n10,000 connections: {len(long)} tasks over 50 ms, the longest {max(long, default=0):.0f} ms")


@pytest.mark.parametrize("width", [360, 412, 768, 1024, 1440])
def test_nothing_is_wider_than_the_window(browser: Browser, site: str, width: int) -> None:
    visit(browser, site)
    browser.look_like(width, 800, phone=width < 500)
    browser.script("document.querySelectorAll('#services button')[0].click()")
    assert not is_wider(browser)
    browser.one("#search").send_keys("onerror")
    browser.until(lambda: peers(browser) == [HOSTILE])
    assert not is_wider(browser)


def test_it_is_looked_at_in_light_and_dark_and_on_a_phone(browser: Browser, site: str, tmp_path: Path) -> None:
    visit(browser, site)
    directory = ROOT / PICTURES if PICTURES else tmp_path
    backgrounds = set()
    # In its first second a made-up server does nothing.
    shown = "return [...document.querySelectorAll('.chart .value:not([hidden])')].map((each) => each.textContent)"
    quiet = re.compile(r"0( |$)")
    browser.until(lambda: not any(quiet.match(each) for each in browser.script(shown)))
    for name, width, height, dark in (
        ("light", 1200, 1020, False),
        ("dark", 1200, 1020, True),
        ("phone", 390, 844, True),
    ):
        browser.look_like(width, height, dark=dark, phone=name == "phone")
        # What has come back fades in.
        browser.until(lambda: browser.script("return getComputedStyle(document.querySelector('main')).opacity") == "1")
        backgrounds.add((dark, browser.script("return getComputedStyle(document.body).backgroundColor")))
        picture = browser.driver.get_screenshot_as_png()
        assert 10_000 < len(picture) < LARGEST_PICTURE
        (directory / f"admin-{name}.png").write_bytes(picture)
    assert len(backgrounds) == 2
