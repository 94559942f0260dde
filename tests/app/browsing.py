"""A headless Chromium on a page of the app, and what a person does there."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

    from tts_vision.app.jobs import Jobs

LIVE = "#tv-live .tv-panel"
PROMPT = "two red circles left of a blue star"
FAST = "pipeline.num_inference_steps=3"
"""Less than a quarter of the steps of a sample."""
SLOWER = "pipeline.num_inference_steps=6"
"""For searches that are looked at while they run."""
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")


class Served:
    """A server of the app.

    Attributes:
        jobs: Its searches.
        address: Its address.
    """

    def __init__(self, jobs: Jobs, address: str) -> None:
        self.jobs, self.address = jobs, address

    def folder(self, job: str) -> Path:
        """The folder of a job."""
        return self.jobs.output / job


def find_browser() -> str | None:
    """The path of a Chromium of this machine."""
    return next((path for name in _BROWSERS if (path := shutil.which(name))), None)


# of requests that run while a page is loaded anew
_CUT_BY_RELOAD = ("AbortError", "Connection errored out")


class opened:
    """A page of its own session, closed at the end of the block.

    Args:
        browser: The browser.
        address: The address.
        width: Width of the window in pixels.
        height: Height of it.
    """

    def __init__(self, browser: Browser, address: str, width: int = 1280, height: int = 900) -> None:
        self._context = browser.new_context(
            viewport={"width": width, "height": height}, accept_downloads=True
        )
        self._address = address
        self.errors: list[str] = []

    def __enter__(self) -> Page:
        page = self.page = self._context.new_page()
        page.set_default_timeout(120_000)
        page.on("pageerror", lambda error: self._heard(str(error)))
        page.on("console", lambda said: self._heard(said.text) if said.type == "error" else None)
        page.goto(self._address)
        page.wait_for_selector("#tv-go")
        page.wait_for_selector("#tv-live .tv-bar")
        return page

    def _heard(self, error: str) -> None:
        if not any(cut in error for cut in _CUT_BY_RELOAD):
            self.errors.append(error)

    def __exit__(self, kind: Any, *_: Any) -> None:
        self._context.close()
        if kind is None:
            assert not self.errors, self.errors


def choose(page: Page, label: str, value: str) -> None:
    """Sets a control of a list by its label, in the tab that is open."""
    control = page.locator(f"input[aria-label='{label}']:visible")
    control.click()
    control.fill(value)
    option = page.get_by_role("option", name=value, exact=True)
    if option.count():
        option.first.click()
    else:
        control.press("Enter")
    control.press("Escape")
    control.blur()


def write(page: Page, label: str, value: str) -> None:
    """Fills a field by its label, in the tab that is open."""
    page.get_by_role("textbox", name=label).locator("visible=true").fill(value)


def open_tab(page: Page, name: str) -> None:
    """Opens a tab."""
    page.get_by_role("tab", name=name, exact=True).click()


def open_advanced(page: Page) -> None:
    """Opens the advanced settings of the Search tab, if they are closed."""
    further = page.get_by_label("Further settings")
    if not further.is_visible():
        page.get_by_role("button", name="Advanced").click()
        further.wait_for()


def search(
    page: Page,
    prompt: str,
    *,
    algorithm: str = "best_of_n",
    verifier: str = "playground_clip",
    budget: str = "4x",
    settings: str = FAST,
) -> str:
    """Starts a search; returns its job."""
    before = page.get_attribute(LIVE, "data-job")
    page.fill("#tv-prompt textarea", prompt)
    for label, value in (("Algorithm", algorithm), ("Verifier", verifier)):
        if page.input_value(f"input[aria-label='{label}']:visible") != value:
            choose(page, label, value)
    write(page, "Budget", budget)
    further = page.get_by_label("Further settings")
    if settings or further.count():  # a closed accordion has nothing inside
        open_advanced(page)
        if further.input_value() != settings:
            further.fill(settings)
    page.click("#tv-go")
    page.wait_for_selector(f"{LIVE}[data-job]:not([data-job='']):not([data-job='{before}'])")
    return str(page.get_attribute(LIVE, "data-job"))


def wait_for(page: Page, state: str, panel: str = LIVE) -> None:
    """Waits until a live view is in a state."""
    page.wait_for_selector(f"{panel}[data-state='{state}']")


def act(page: Page, name: str, panel: str = LIVE) -> None:
    """Presses a button of a live view."""
    page.locator(panel).get_by_role("button", name=name, exact=True).click()


def points(page: Page) -> int:
    """Points of the curve."""
    return int(page.get_attribute(f"{LIVE} .tv-curvebox", "data-points") or 0)


def tiles(page: Page, panel: str = LIVE) -> Locator:
    """The samples that are shown."""
    return page.locator(f"{panel} .tv-tile")
