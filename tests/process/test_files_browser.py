"""The list of a directory, in a real Chromium; its picture is made here."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from tests.builders.browser import Browser
from tests.builders.processes import ROOT, Server

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")]

#: Where the picture of the documentation goes, if it is to be made anew: `NETSVC_PICTURES=docs`.
PICTURES = os.environ.get("NETSVC_PICTURES")
LARGEST_PICTURE = 200_000

HOSTILE = '<img src=x onerror=document.title="owned">.txt'
SIZES = {
    "README.md": 4_300,
    "debian-13.iso": 698_351_616,
    "lecture-01.pdf": 1_840_000,
    "lecture-02.pdf": 2_310_000,
    "notes.txt": 812,
    "Übungsplan.txt": 2_048,
}
DIRECTORIES = ("exercises", "photos", "videos")
#: 2026-11-02, and one more day for each entry.
MODIFIED, DAY = 1_793_610_000, 86_400


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = tmp_path_factory.mktemp("root")
    for directory in (root / "course", root / "hostile"):
        directory.mkdir()
    for name in DIRECTORIES:
        (root / "course" / name).mkdir()
    for name, size in SIZES.items():
        (root / "course" / name).touch()
        os.truncate(root / "course" / name, size)
    (root / "course" / "photos" / "sea.jpg").write_bytes(b"sea")
    (root / "hostile" / HOSTILE).touch()
    (root / "hostile" / ("long" * 50)).touch()
    for number, path in enumerate(sorted((root / "course").iterdir())):
        os.utime(path, (MODIFIED + number * DAY,) * 2)
    with Server.twistd("--files-http", "127.0.0.1:0", "--files-root", str(root)) as server:
        yield f"http://127.0.0.1:{server.port('files http')}"


def visit(browser: Browser, site: str, path: str = "/course/", *, width: int = 1000, dark: bool = False) -> None:
    browser.look_like(width, 520, dark=dark, phone=width < 500)
    browser.driver.get("about:blank")
    browser.complaints()
    browser.driver.get(f"{site}{path}")


def shown(browser: Browser) -> list[str]:
    rows = "return [...document.querySelectorAll('tbody tr td:first-child a')].map((each) => each.textContent)"
    return [name.rstrip("/") for name in browser.script(rows) if name != ".."]


def is_wider(browser: Browser) -> bool:
    return bool(browser.script("return document.documentElement.scrollWidth > innerWidth"))


def test_a_click_on_a_column_sorts_by_it_and_a_second_one_turns_it_round(browser: Browser, site: str) -> None:
    visit(browser, site)
    assert shown(browser) == [*DIRECTORIES, *sorted(SIZES, key=str.casefold)]
    browser.one("th.number a").click()
    files = [name for name in shown(browser) if name in SIZES]
    assert files == sorted(SIZES, key=lambda name: -SIZES[name])
    browser.one("th.number a").click()
    assert [name for name in shown(browser) if name in SIZES] == files[::-1]
    assert browser.one("th.number").get_attribute("aria-sort") == "ascending"
    assert browser.complaints() == []


def test_a_search_is_typed_after_a_slash(browser: Browser, site: str) -> None:
    visit(browser, site)
    ActionChains(browser.driver).send_keys("/").send_keys("LECTURE").send_keys(Keys.ENTER).perform()
    browser.until(lambda: shown(browser) == ["lecture-01.pdf", "lecture-02.pdf"])
    assert "search=LECTURE" in browser.driver.current_url
    browser.one(".soft a").click()
    browser.until(lambda: len(shown(browser)) == len(SIZES) + len(DIRECTORIES))


def test_the_keyboard_leads_everywhere(browser: Browser, site: str) -> None:
    visit(browser, site)
    keys = ActionChains(browser.driver)
    # The path, the search and its button, three columns, `..`, and the directories before the one that is meant.
    for _ in range(2 + 2 + 3 + 1 + 2):
        keys.send_keys(Keys.TAB)
    keys.send_keys(Keys.ENTER).perform()
    browser.until(lambda: browser.driver.current_url.endswith("/course/photos/"))
    assert shown(browser) == ["sea.jpg"]
    outline = browser.script("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline is not None
    browser.driver.back()
    browser.until(lambda: len(shown(browser)) > 1)


def test_crumbs_and_times_are_those_of_the_reader(browser: Browser, site: str) -> None:
    visit(browser, site, "/course/photos/")
    browser.one("nav a:nth-child(2)").click()
    browser.until(lambda: browser.driver.current_url == f"{site}/course/")
    first = browser.one("tbody tr.directory:nth-child(2) time")
    assert "UTC" in str(first.get_attribute("title")) and "UTC" not in first.text


def test_names_are_text(browser: Browser, site: str) -> None:
    visit(browser, site, "/hostile/")
    assert HOSTILE in shown(browser)
    assert browser.driver.title == "/hostile/"
    assert not browser.all("td img")
    assert browser.complaints() == []


@pytest.mark.parametrize("width", [320, 390, 768, 1440])
@pytest.mark.parametrize("path", ["/", "/course/", "/hostile/"])
def test_nothing_is_wider_than_the_window(browser: Browser, site: str, width: int, path: str) -> None:
    visit(browser, site, path, width=width)
    assert not is_wider(browser)


def test_a_directory_is_downloaded_as_an_archive(browser: Browser, site: str, tmp_path: Path) -> None:
    visit(browser, site, "/course/photos/")
    browser.driver.execute_cdp_cmd(
        "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path), "eventsEnabled": False}
    )
    browser.one('a[href="?zip"]').click()
    browser.until(lambda: [each.name for each in tmp_path.iterdir()] == ["photos.zip"])
    assert browser.driver.current_url == f"{site}/course/photos/"


def test_it_is_looked_at_in_light_and_dark_and_on_a_phone(browser: Browser, site: str, tmp_path: Path) -> None:
    directory = ROOT / PICTURES if PICTURES else tmp_path
    backgrounds = {}
    for name, width, dark in (("light", 1000, False), ("dark", 1000, True), ("phone", 390, True)):
        visit(browser, site, width=width, dark=dark)
        backgrounds[name] = browser.script("return getComputedStyle(document.querySelector('a')).color")
        picture = browser.driver.get_screenshot_as_png()
        assert 5_000 < len(picture) < LARGEST_PICTURE
        (directory if name == "light" else tmp_path).joinpath(f"files-{name}.png").write_bytes(picture)
    assert backgrounds["light"] != backgrounds["dark"] == backgrounds["phone"]
