"""The app on a free port of this machine, and a headless Chromium that looks at it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from browsing import Served, find_browser, opened

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    pytest.importorskip("gradio", reason="the app needs gradio; pip install 'tts-vision[app]'")
    import uvicorn

    from tts_vision.app.jobs import Jobs
    from tts_vision.app.server import assemble

    jobs = Jobs(tmp_path_factory.mktemp("searches"))
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


@pytest.fixture
def page(browser: Browser, served: Served) -> Iterator[Page]:
    """The page of the app at a width of 1280 pixels; what goes wrong in it fails the test."""
    with opened(browser, served.address) as found:
        yield found
