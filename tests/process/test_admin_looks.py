"""How the page looks: colours that can be read, whatever there is to be shown, and nothing that moves unasked."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib.resources import files

import pytest
from selenium.webdriver.common.keys import Keys

from tests.builders.browser import Browser
from tests.builders.processes import ROOT, Server

#: Red, green, blue, and how much of what is below does not show through: 0 to 1.
Colour = tuple[float, float, float, float]

PAGE = files("netsvc.admin").joinpath("page")


def palettes() -> dict[str, dict[str, str]]:
    """Read the colours of both schemes; what the dark one does not say is as in the light one."""
    light, dark = re.findall(r":root \{(.*?)\}", PAGE.joinpath("page.css").read_text("utf-8"), re.DOTALL)
    found = [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{3,8})\b", each)) for each in (light, dark)]
    return {"light": found[0], "dark": {**found[0], **found[1]}}


def colour(text: str) -> Colour:
    digits = text.removeprefix("#")
    if len(digits) == 3:
        digits = "".join(each * 2 for each in digits)
    red, green, blue, *alpha = (int(digits[place : place + 2], 16) / 255 for place in range(0, len(digits), 2))
    return red, green, blue, alpha[0] if alpha else 1.0


def over(above: Colour, below: Colour) -> Colour:
    red, green, blue = (one * above[3] + other * (1 - above[3]) for one, other in zip(above[:3], below, strict=False))
    return red, green, blue, 1.0


def luminance(shown: Colour) -> float:
    """See WCAG 2.2, relative luminance."""
    red, green, blue = (each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in shown[:3])
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(above: Colour, below: Colour) -> float:
    """See WCAG 2.2, contrast ratio."""
    darker, lighter = sorted((luminance(over(above, below)), luminance(below)))
    return (lighter + 0.05) / (darker + 0.05)


#: What is written in which colour, and on what, the undermost first.
TEXTS = [
    *((name, (back,)) for name in ("text", "dim") for back in ("back", "panel", "soft")),
    *((name, (back,)) for name in ("good", "bad", "accent") for back in ("panel",)),
    *((name, ("panel", f"{name}-soft")) for name in ("good", "warn", "bad", "accent")),
    ("text", ("panel", "warn-soft")),
    ("accent", ("soft",)),
    ("panel", ("bad",)),
    ("panel", ("accent",)),
    ("back", ("text",)),
]
#: What is drawn, or stands around what can be typed into.
SHAPES = [*((f"c{number}", ("panel",)) for number in range(6)), ("edge", ("panel",)), ("accent", ("back",))]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(
    ("name", "below", "least"),
    [*((*each, 4.5) for each in TEXTS), *((*each, 3.0) for each in SHAPES)],
    ids=lambda value: " on ".join(value) if isinstance(value, tuple) else str(value),
)
def test_colours_are_told_apart(scheme: str, name: str, below: tuple[str, ...], least: float) -> None:
    palette = {name: colour(text) for name, text in palettes()[scheme].items()}
    back = palette[below[0]]
    for each in below[1:]:
        back = over(palette[each], back)
    assert contrast(palette[name], back) >= least


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture
def scene(browser: Browser, request: pytest.FixtureRequest) -> Iterator[str]:
    """Show a made-up netsvc: how many connections, workers, and the scene."""
    connections, workers, name = request.param
    command = [sys.executable, "-m", "tests.builders.admin_site", str(connections), str(workers), "0", "", "", name]
    with Server(command, cwd=ROOT) as server:
        server.wait_for("^admin listens on ")
        browser.look_like(1280, 1000)
        browser.driver.get("about:blank")
        browser.complaints()
        browser.driver.get(server.lines[-1].removeprefix("admin listens on "))
        browser.until(lambda: browser.text("#link") == "live")
        yield name
        assert browser.complaints() == []
        browser.driver.get("about:blank")


def is_wider(browser: Browser) -> bool:
    """Tell whether anything has to be looked for sideways: on the page, or within a table."""
    return bool(
        browser.script(
            "return document.documentElement.scrollWidth > innerWidth"
            " || [...document.querySelectorAll('.panel')].some((each) => each.scrollWidth > each.clientWidth)"
        )
    )


@pytest.mark.slow
@pytest.mark.parametrize("scene", [(0, 1, "fresh")], indirect=True)
def test_a_fresh_server_says_that_nothing_has_happened(browser: Browser, scene: str) -> None:
    assert browser.text("#state") == "Ready"
    empty = [each.text for each in browser.all(".empty") if each.is_displayed()]
    assert empty == ["No connections.", "No refusals.", "None."]
    assert not browser.one("#peers").is_displayed()
    assert [each.text for each in browser.all(".chart .value:not([hidden])")][:2] == ["0", "0"]
    assert "NaN" not in browser.script("return document.documentElement.outerHTML")


@pytest.mark.slow
@pytest.mark.parametrize("scene", [(60, 2, "trouble")], indirect=True)
def test_what_is_down_is_named_at_the_top_and_at_its_place(browser: Browser, scene: str) -> None:
    assert browser.text("#state") == "Not ready"
    assert browser.driver.title.startswith("Not ready: ")
    browser.until(lambda: browser.one("#trouble").is_displayed())
    assert browser.text("#trouble") == "reply tcp is down: port 9004 is in use; stop what uses it"
    assert browser.text("#services-count") == "5 listeners, 1 down"
    assert browser.text("#services tbody:last-child .problem") == "port 9004 is in use; stop what uses it"


@pytest.mark.slow
@pytest.mark.parametrize("scene", [(120, 8, "large")], indirect=True)
def test_long_names_and_many_listeners_and_workers_fit(browser: Browser, scene: str) -> None:
    assert browser.text("#services-count") == "40 listeners"
    assert len(browser.all("#processes tbody tr")) == 8
    browser.until(lambda: len(browser.all("#peers tbody tr")) == 100)
    for width in (360, 768, 1024, 1440):
        browser.look_like(width, 900, phone=width < 500)
        assert not is_wider(browser), width
        # The connections are not pushed out of reach.
        assert browser.script("return document.querySelector('#connections').offsetTop") < 2200
    names = browser.script("return [...document.querySelectorAll('#services .name')].map((each) => each.textContent)")
    assert names[4:8] == ["gateway-0", "gateway-1", "gateway-2", "gateway-3"]


@pytest.mark.slow
@pytest.mark.parametrize("scene", [(30, 1, "")], indirect=True)
def test_whatever_has_the_focus_has_a_ring(browser: Browser, scene: str) -> None:
    met = set()
    for _ in range(14):
        browser.driver.switch_to.active_element.send_keys(Keys.TAB)
        kind, shown = browser.script(
            "const at = document.activeElement, ring = at.matches('[type=radio]') ? at.nextElementSibling : at;"
            "const style = getComputedStyle(ring);"
            "return [at.id || at.textContent || at.name, `${style.outlineStyle} ${parseFloat(style.outlineWidth)}`]"
        )
        met.add(kind)
        assert shown == "solid 2", kind
    assert {"Skip to connections", "Reload", "Drain", "Limits", "order", "search", "Close"} <= met


@pytest.mark.slow
@pytest.mark.parametrize("scene", [(30, 1, "")], indirect=True)
def test_nothing_moves_where_that_is_not_wanted(browser: Browser, scene: str) -> None:
    moving = (
        "return [...document.querySelectorAll('*')].filter((each) => { const style = getComputedStyle(each);"
        " return parseFloat(style.transitionDuration) > 0 || style.animationName !== 'none'; }).length"
    )
    assert browser.script(moving) > 0
    browser.driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-reduced-motion", "value": "reduce"}]}
    )
    assert browser.script(moving) == 0


@pytest.mark.slow
@pytest.mark.parametrize("scene", [(0, 1, "fresh")], indirect=True)
def test_numbers_are_short(browser: Browser, scene: str) -> None:
    sizes = [0, 1, 999, 999.6, 1000, 9994, 9996, 12_345, 99_940, 99_960, 999_499, 999_500, 1e9, 7.89e12, 5e15]
    counts = [0, 7, 12_345, 9_999_999, 10_000_000, 1_234_567_890]
    spans = [0, 59.9, 60, 63, 3599, 3600, 86_399, 86_400, 93_784, 8_640_000]
    delays = [0, 0.0003, 0.0099, 0.012, 0.9994, 1.26]
    written = browser.driver.execute_async_script(
        "const [lists, done] = arguments;"
        "import('/figures.js').then((made) => done(lists"
        ".map(([name, values]) => values.map((each) => made[name](each)))), (error) => done(String(error)))",
        [["bytes", sizes], ["count", counts], ["span", spans], ["delay", delays]],
    )
    assert written == [
        [
            "0 B",
            "1 B",
            "999 B",
            "1.00 kB",
            "1.00 kB",
            "9.99 kB",
            "10.0 kB",
            "12.3 kB",
            "99.9 kB",
            "100 kB",
            "999 kB",
            "1.00 MB",
            "1.00 GB",
            "7.89 TB",
            "5.00 PB",
        ],
        ["0", "7", "12,345", "9,999,999", "10.0M", "1.23G"],
        ["0s", "59s", "1m00s", "1m03s", "59m59s", "1h00m", "23h59m", "1d00h", "1d02h", "100d"],
        ["0.0 ms", "0.3 ms", "9.9 ms", "12 ms", "999 ms", "1.3 s"],
    ]


@pytest.mark.slow
@pytest.mark.parametrize("scene", [(0, 1, "fresh")], indirect=True)
def test_a_table_that_is_held_for_long_does_not_grow_without_end(browser: Browser, scene: str) -> None:
    kept, shown, later = browser.driver.execute_async_script(
        "const done = arguments[0];"
        "import('/rows.js').then(({ Rows }) => {"
        "  const body = document.createElement('tbody'), rows = new Rows(body, () => {}, () => {});"
        "  const some = (first) => Array.from({ length: 100 }, (_, place) => first + place);"
        "  rows.show(some(0), String);"
        "  for (let first = 100; first < 5000; first += 100) rows.show(some(first), String, true);"
        "  const held = [rows.rows.size, body.children.length];"
        "  rows.show(some(9000), String);"
        "  done([...held, body.children.length]);"
        "}, (error) => done([String(error)]))"
    )
    assert (kept, shown, later) == (200, 200, 100)
