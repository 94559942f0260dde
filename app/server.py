"""Starts the app: the page, the API, and the worker behind them."""

from __future__ import annotations

import importlib.util
import secrets
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tts_vision.errors import ConfigError

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from tts_vision.app.jobs import Jobs

HOST, PORT = "127.0.0.1", 7860


def check_installed() -> None:
    """Checks that the libraries of the app are installed.

    Raises:
        ConfigError: If they are not.
    """
    if importlib.util.find_spec("gradio") is None:
        raise ConfigError("The app needs gradio, which is not installed; pip install 'tts-vision[app]'.")


def serve(
    output: Path,
    *,
    host: str = HOST,
    port: int = PORT,
    share: bool = False,
    auth: tuple[str, str] | None = None,
    allow: Sequence[str] = (),
    queue: int = 20,
    tell: Callable[[str], None] = print,
) -> None:
    """Serves the app until it is interrupted.

    Args:
        output: The folder of the searches.
        host: The address to listen on; by default only this machine reaches it.
        port: The port to listen on.
        share: Whether everybody on the internet who has the link reaches it, through Gradio's tunnel.
        auth: User and password.
        allow: The models and verifiers that may be used beside the bundled ones. Without any, all registered
            plugins and models of the hub may be used while only this machine reaches the app.
        queue: Searches that may wait.
        tell: Called with lines about the address.

    Raises:
        ConfigError: If gradio is not installed, or the port is taken.
    """
    check_installed()
    import uvicorn

    from tts_vision.app.guard import LOOPBACK
    from tts_vision.app.jobs import Jobs
    from tts_vision.app.rules import Rules

    is_open = share or host not in LOOPBACK
    rules = Rules(frozenset(allow) if is_open or allow else None)
    listener = _listen(host, port)
    jobs = Jobs(output, queue=queue, rules=rules)
    try:
        app = assemble(jobs, hosts=None if is_open else LOOPBACK, auth=auth)
        tell(f"http://{'localhost' if host in LOOPBACK else host}:{port}  (searches in {jobs.output})")
        if is_open and auth is None:
            tell(
                "note    whoever reaches this address can use this machine's models; "
                "--auth USER:PASSWORD asks for a password"
            )
        if share:
            tell(_tunnel(host, port))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=3))
        server.run(sockets=[listener])
    finally:
        jobs.close()
        listener.close()


def assemble(
    jobs: Jobs, *, hosts: frozenset[str] | None = None, auth: tuple[str, str] | None = None
) -> ASGIApp:
    """The whole server: the API, the page, and the guard before them.

    Args:
        jobs: The searches.
        hosts: As in `Guard`.
        auth: As in `Guard`.
    """
    from tts_vision.app import ui
    from tts_vision.app.guard import Guard
    from tts_vision.app.http import serve_jobs

    return Guard(ui.mount(serve_jobs(jobs), jobs), hosts, auth)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"The app must listen on {host}:{port} but the system says: {error.strerror}; choose another "
            "--port or --host."
        ) from None
    return listener


def _tunnel(host: str, port: int) -> str:
    """The public address of a local port, through Gradio's tunnel.

    Raises:
        ConfigError: If it cannot be made.
    """
    from gradio.networking import setup_tunnel

    try:
        local = "127.0.0.1" if host in ("0.0.0.0", "localhost") else host
        return str(setup_tunnel(local, port, secrets.token_urlsafe(32), None, None))
    except Exception as error:
        raise ConfigError(
            f"--share needs Gradio's tunnel, which could not be opened: {error}; leave it out, or use --host "
            "and --auth."
        ) from error
