"""The app on a free port of this machine, and a headless Chromium that looks at it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from browsing import Served, find_browser, open_tab, opened

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    pytest.importorskip("gradio", reason="the app needs gradio; pip install 'tts-vision[app]'")
    import uvicorn

    from tts_vision.app.jobs import Jobs
    from tts_vision.app.server import assemble
    from tts_vision.config import RunConfig

    jobs = Jobs(tmp_path_factory.mktemp("searches"))
    # the model loads while the browser starts
    jobs.call(lambda: jobs.models.live(RunConfig(prompt="x")))  # type: ignore[call-arg]
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(assemble(jobs), log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.05)
    yield Served(jobs, f"http://127.0.0.1:{listener.getsockname()[1]}")
    server.should_exit = True
    thread.join(10)
    jobs.close()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright; pip install playwright")
    path = find_browser()
    if path is None:
        pytest.skip("needs a browser: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def window(browser: Browser, served: Served) -> Iterator[opened]:
    """One window for all tests that need no page of their own: loading one takes two seconds."""
    found = opened(browser, served.address)
    with found:
        yield found


@pytest.fixture
def page(window: opened, served: Served) -> Iterator[Page]:
    """The page of the app at a width of 1280 pixels; what goes wrong in it fails the test."""
    window.errors.clear()
    window.page.set_viewport_size({"width": 1280, "height": 900})
    open_tab(window.page, "Search")
    yield window.page
    for job in [*served.jobs._jobs.values()]:
        if job.is_active:  # of a test that failed
            job.cancel()
    assert not window.errors, window.errors
