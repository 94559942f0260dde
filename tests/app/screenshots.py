"""Takes the screenshots of the docs: ``python tests/app/screenshots.py [FOLDER]``, about a minute.

Each tab at 1280 and 390 pixels, the Search tab in the dark as well. Look at them before they are committed.
"""

from __future__ import annotations

import io
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from browsing import (
    LIVE,
    PROMPT,
    Served,
    choose,
    find_browser,
    open_tab,
    opened,
    search,
    tiles,
    wait_for,
    write,
)

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

FOLDER = Path(__file__).parents[2] / "docs" / "images" / "app"
WIDTHS = {1280: 860, 390: 844}
_COLOURS = 256


def main(folder: Path = FOLDER) -> None:
    """Takes all screenshots into a folder."""
    from playwright.sync_api import sync_playwright

    folder.mkdir(parents=True, exist_ok=True)
    served = start()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
        prepare(browser, served)
        pictures = sorted(served.jobs.output.glob("*circle*/best.png"))[:2]
        for width, height in WIDTHS.items():
            for theme in ("light", "dark"):
                address = f"{served.address}/?__theme={theme}{served.views}"
                with opened(browser, address, width, height) as page:
                    take(page, folder, width, theme, pictures)
        browser.close()
    served.jobs.close()


class Prepared(Served):
    """A server whose views show something.

    Attributes:
        views: The part of the address that names them.
    """

    views = ""


def start() -> Prepared:
    """A server on a free port, with a folder of its own."""
    import uvicorn

    from tts_vision.app.jobs import Jobs
    from tts_vision.app.server import assemble

    jobs = Jobs(tempfile.mkdtemp())
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(assemble(jobs), log_level="error"))
    threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True).start()
    while not server.started:
        time.sleep(0.05)
    return Prepared(jobs, f"http://127.0.0.1:{listener.getsockname()[1]}")


def prepare(browser: Browser, served: Prepared) -> None:
    """Runs what the screenshots show."""
    with opened(browser, served.address) as page:
        for prompt, algorithm in (
            ("a green square", "best_of_n"),
            ("three yellow triangles", "zero_order"),
            ("a red star and a blue circle", "fk_steering"),
        ):
            search(page, prompt, algorithm=algorithm, budget="6x", settings="")
            wait_for(page, "finished")
        job = search(page, PROMPT, algorithm="evosearch", budget="24x", settings="")
        wait_for(page, "finished")
        open_tab(page, "Draft")
        page.fill("#tv-draft-prompt textarea", PROMPT)
        page.get_by_label("number input for How many drafts").fill("16")
        page.click("#tv-draft-go")
        panel = "#tv-drafts .tv-panel"
        page.wait_for_selector(f"{panel}[data-drafts='yes']")
        drafts = page.get_attribute(panel, "data-job")
        open_tab(page, "Compare")
        page.fill("#tv-compare-prompts textarea", f"{PROMPT}\nthree yellow triangles")
        write(page, "Budget", "8x")
        page.click("#tv-compare-go")
        wait_for(page, "finished", "#tv-compare .tv-panel")
        comparison = page.evaluate("new URL(location).searchParams.get('comparison')")
    served.views = f"&job={job}&drafts={drafts}&comparison={comparison}"


def take(page: Page, folder: Path, width: int, theme: str, pictures: list[Path]) -> None:
    """Takes the screenshots at a width and in a theme; `pictures` are for the Score tab."""
    tiles(page).first.wait_for()
    page.locator(f"{LIVE} .tv-best .tv-open").click()
    page.wait_for_timeout(1500)
    shoot(page, folder / f"search-{width}-{theme}.png")
    if theme == "dark":
        return
    open_tab(page, "Draft")
    page.wait_for_selector("#tv-drafts .tv-panel[data-drafts='yes'] .tv-tile")
    page.locator("#tv-drafts").get_by_role("button", name="Choose the best").click()
    page.locator("#tv-drafts .tv-tile .tv-open").nth(2).click()
    page.wait_for_timeout(1200)
    shoot(page, folder / f"draft-{width}.png")
    open_tab(page, "Compare")
    page.wait_for_selector("#tv-compare .tv-legend")
    page.wait_for_timeout(600)
    shoot(page, folder / f"compare-{width}.png")
    open_tab(page, "Gallery")
    page.locator("#tv-gallery li[data-job] button").nth(1).click()
    page.wait_for_selector("#tv-gallery .tv-code")
    page.wait_for_timeout(1200)
    page.evaluate("scrollTo(0, 0)")
    shoot(page, folder / f"gallery-{width}.png")
    open_tab(page, "Score")
    page.set_input_files("#tv-score-files input[type=file]", pictures)
    page.fill("#tv-score-prompt textarea", "two red circles left of a blue star")
    choose(page, "Verifiers", "playground_oracle")
    page.click("#tv-score-go")
    page.wait_for_selector("#tv-scores tbody td")
    page.wait_for_timeout(1200)
    shoot(page, folder / f"score-{width}.png")


def shoot(page: Page, path: Path) -> None:
    """Writes the whole page as a PNG file of few colours."""
    from PIL import Image

    image = Image.open(io.BytesIO(page.screenshot(full_page=True)))
    image.convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path.name}  {path.stat().st_size / 1024:.0f} kB")


if __name__ == "__main__":
    main(Path(sys.argv[1])) if len(sys.argv) > 1 else main()
