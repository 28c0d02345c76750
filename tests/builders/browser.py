"""A real Chromium without a screen, as Debian has it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from tests.builders.processes import PATIENCE
from tests.builders.programs import program

__all__ = ["Browser"]


class Browser:
    """One window; a test is skipped without the browser. Errors in its console are one at the end."""

    def __init__(self, profile: Path) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = program("chromium", "chromium")
        for argument in (
            "--headless=new",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
            f"--user-data-dir={profile}",
        ):
            options.add_argument(argument)
        if os.geteuid() == 0:
            # It refuses to run as root with one.
            options.add_argument("--no-sandbox")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        # With the path of the driver nothing is looked for, or fetched, elsewhere.
        self.driver = webdriver.Chrome(options, Service(program("chromedriver", "chromium-driver")))
        self.driver.set_page_load_timeout(PATIENCE)
        self.driver.set_script_timeout(PATIENCE)

    def close(self) -> None:
        """End it."""
        self.driver.quit()

    def look_like(self, width: int, height: int, *, dark: bool = False, phone: bool = False) -> None:
        """Change the window, and what its user prefers."""
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1.5 if phone else 1, "mobile": phone},
        )
        self.driver.execute_cdp_cmd(
            "Emulation.setEmulatedMedia",
            {"features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]},
        )

    def all(self, selector: str) -> list[WebElement]:
        """Find all elements by a CSS selector."""
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> WebElement:
        """Find one."""
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        """Read the text of one, shown or not."""
        return str(self.script("return document.querySelector(arguments[0]).textContent", selector))

    def script(self, code: str, *arguments: Any) -> Any:
        """Run a function's body in the page."""
        return self.driver.execute_script(code, *arguments)

    def until(self, true: Callable[[], Any], what: str = "") -> Any:
        """Wait for what comes to be; return it."""
        deadline = time.monotonic() + PATIENCE
        while True:
            found = true()
            if found:
                return found
            assert time.monotonic() < deadline, what or "it did not come"
            time.sleep(0.05)

    def take_time(self) -> None:
        """Keep what the page shows for some seconds, such as the question after a first press, until it is answered."""
        self.script(
            "const start = window.setTimeout; window.setTimeout = (call, time, ...words) =>"
            " start(call, time >= 4000 && call.name !== 'connect' ? 3_600_000 : time, ...words)"
        )

    def complaints(self) -> list[str]:
        """What the console has had to say since."""
        return [str(entry["message"]) for entry in self.driver.get_log("browser")]

    def requests(self) -> set[str]:
        """Where the page has asked for something."""
        found = self.script("return performance.getEntriesByType('resource').map((each) => each.name)")
        return set(json.loads(json.dumps(found)))
