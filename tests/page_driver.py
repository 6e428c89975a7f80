"""The page of the service in a real browser, as a person meets it."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

Condition = Callable[[], Any]
SCREENSHOTS = Path(__file__).parents[1] / "docs" / "screenshots"


class Page:
    """The page as a person meets it."""

    def __init__(self, browser: Any, service: Any, eventually: Callable[[Condition], Any]) -> None:
        self.browser, self.service, self.eventually = browser, service, eventually

    def open(self, *, width: int = 1280, height: int = 900, scheme: str = "light") -> Page:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.prefer(scheme)
        self.browser.get(self.service.url)
        self.eventually(lambda: self.all(".sample"))
        return self

    def prefer(self, scheme: str) -> None:
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})

    def all(self, selector: str) -> list[Any]:
        return list(self.browser.find_elements("css selector", selector))

    def one(self, selector: str) -> Any:
        return self.eventually(lambda: self.all(selector))[0]

    def text(self, selector: str) -> str:
        return " ".join(str(self.browser.execute_script("return document.querySelector(arguments[0])?.innerText ?? ''", selector)).split())

    def sees(self, selector: str, text: str) -> None:
        self.eventually(lambda: text in self.text(selector))

    def upload(self, *paths: Path) -> None:
        self.browser.find_element("id", "files").send_keys("\n".join(map(str, paths)))

    def sample(self, name: str) -> None:
        next(button for button in self.all(".sample") if name in button.text).click()

    def slide(self, name: str, value: int) -> None:
        """Move a slider, as a hand would: the page hears of it."""
        script = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input', {bubbles: true}))"
        self.browser.execute_script(script, self.one(f"#{name}"), value)

    def choose(self, selector: str, value: str) -> None:
        """Of a list that unfolds."""
        self.one(f"{selector} option[value='{value}']").click()

    def pixels(self) -> tuple[float, float]:
        """Of the picture as painted: mean grey value, and how far it is from grey (mean of red less blue)."""
        script = """
            const done = arguments[0];
            requestAnimationFrame(() => requestAnimationFrame(() => {
                const canvas = document.querySelector("#canvas");
                const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", {willReadFrequently: true});
                copy.drawImage(canvas, 0, 0);
                const {data} = copy.getImageData(0, 0, canvas.width, canvas.height);
                let grey = 0, colour = 0;
                for (let i = 0; i < data.length; i += 4) { grey += data[i + 1]; colour += Math.abs(data[i] - data[i + 2]); }
                done([4 * grey / data.length, 4 * colour / data.length]);
            }));"""
        grey, colour = self.browser.execute_async_script(script)
        return float(grey), float(colour)

    def overflow(self) -> int:
        """Pixels by which the page is wider than the screen."""
        return int(self.browser.execute_script("return document.documentElement.scrollWidth - document.documentElement.clientWidth"))

    def keep(self, name: str) -> None:
        """Write the screen to ``docs/screenshots`` where that is asked for."""
        if os.environ.get("CXR_RAY_SCREENSHOTS"):
            SCREENSHOTS.mkdir(exist_ok=True)
            self.pixels()  # everything is painted
            screen = Image.open(io.BytesIO(self.browser.get_screenshot_as_png())).convert("RGB")
            screen.thumbnail((960, 960))
            screen.save(SCREENSHOTS / f"{name}.png", optimize=True)


@contextlib.contextmanager
def watched(browser: Any, service: Any, eventually: Callable[[Condition], Any]) -> Iterator[Page]:
    """The page, not opened yet; afterwards no script has failed and nothing was asked of another host."""
    browser.get_log("browser")
    yield Page(browser, service, eventually)
    said = [entry["message"] for entry in browser.get_log("browser") if "the server responded with" not in entry["message"]]
    assert [line for line in said if "ERR_INTERNET_DISCONNECTED" not in line] == []
    names = browser.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    browser.get("about:blank")  # nothing is under way when the service stops
    assert {urlsplit(name).hostname for name in names if not name.startswith("blob:")} == {"127.0.0.1"}
