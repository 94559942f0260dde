"""A hub that cannot be reached is asked once; its client is left as it was."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants, get_session, hf_hub_download
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

from tts_vision import hub

NOWHERE = "http://127.0.0.1:9"  # nobody listens on the port of the discard protocol


@pytest.fixture(autouse=True)
def _unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_reasons", {})


@pytest.fixture
def server() -> Iterator[str]:
    """An address that answers every request with status 404, after a moment."""

    class Answer(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            time.sleep(0.05)
            self.send_response(404)
            self.end_headers()

        do_GET = do_HEAD

        def log_message(self, *args: object) -> None: ...

    http = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}"
    http.shutdown()
    thread.join()
    http.server_close()


def test_a_hub_that_answers_is_in_reach(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", server)
    assert hub.out_of_reach() == ""


def test_a_hub_that_does_not_answer_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", NOWHERE)
    assert "ConnectError" in hub.out_of_reach()


def test_a_hub_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", NOWHERE)
    monkeypatch.setattr(hub, "_PATIENCE", 0.05)
    monkeypatch.setattr(hub, "_failure", lambda endpoint: time.sleep(0.5))
    assert hub.out_of_reach() == "no answer in 0.05 seconds"


def test_the_offline_mode_of_the_user_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.out_of_reach() == "HF_HUB_OFFLINE is set"
    assert not hub._reasons, "nothing was asked"


def test_a_download_fails_at_once_and_the_client_is_left_as_it_was(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", NOWHERE)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace("https://huggingface.co", NOWHERE)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    before = {event: list(hooks) for event, hooks in get_session().event_hooks.items()}
    start = time.monotonic()
    with hub.asked_once():
        for _ in range(3):
            with pytest.raises(LocalEntryNotFoundError):
                hf_hub_download("owner/name", "weights.bin", cache_dir=str(tmp_path))
        with pytest.raises(OfflineModeIsEnabled, match="cannot be reached"):
            get_session().head(f"{NOWHERE}/api/models/owner/name")
    assert time.monotonic() - start < 3, "five retries wait for 23 seconds"
    assert "Retrying" not in caplog.text
    assert {event: list(hooks) for event, hooks in get_session().event_hooks.items()} == before


def test_a_hub_in_reach_is_asked_as_always(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", server)
    with hub.asked_once():
        assert get_session().head(f"{server}/x").status_code == 404
