"""The Hugging Face hub where it may be out of reach: asked once, instead of five times for every file."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_PATIENCE = 5.0
_reasons: dict[str, str] = {}
_lock = threading.Lock()


def out_of_reach() -> str:
    """Why the hub cannot be asked for files; empty if it can. It is tried once per process."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    return _silence(constants.ENDPOINT)


@contextmanager
def asked_once() -> Iterator[None]:
    """While the block runs, the hub's client does not retry for a hub that cannot be reached at all.

    Its requests fail at once, as in its offline mode, so that files in its cache are still found.
    """
    from huggingface_hub import get_session

    session: Any = get_session()
    hooks = {event: list(called) for event, called in session.event_hooks.items()}
    session.event_hooks = {**hooks, "request": [_refuse_if_silent, *hooks.get("request", [])]}
    try:
        yield
    finally:
        session.event_hooks = hooks


def _refuse_if_silent(request: Any) -> None:
    """Called by the client before each request; raises the error of its offline mode."""
    from huggingface_hub import constants
    from huggingface_hub.errors import OfflineModeIsEnabled

    if str(request.url).startswith(constants.ENDPOINT) and (reason := _silence(constants.ENDPOINT)):
        raise OfflineModeIsEnabled(f"{constants.ENDPOINT} cannot be reached ({reason})")


def _silence(endpoint: str) -> str:
    """Why an address does not answer; empty if it does, with whatever status."""
    with _lock:
        if endpoint not in _reasons:
            # a thread, because looking up the name of a host knows no timeout
            found: list[str] = []
            asking = threading.Thread(target=lambda: found.append(_failure(endpoint)), daemon=True)
            asking.start()
            asking.join(_PATIENCE)
            _reasons[endpoint] = found[0] if found else f"no answer in {_PATIENCE:g} seconds"
        return _reasons[endpoint]


def _failure(endpoint: str) -> str:
    """The error of one small request; empty if it was answered."""
    from huggingface_hub import get_session

    # a client of its own with the proxies of the environment, and without the hook above
    try:
        with type(get_session())(timeout=_PATIENCE) as client:
            client.head(endpoint)
    except Exception as error:  # of sockets, TLS and proxies
        return f"{type(error).__name__}: {str(error).strip()}".rstrip(": ")
    return ""
