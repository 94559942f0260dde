"""The command ``app``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tts_vision.cli.application import app as commands
from tts_vision.errors import ConfigError


@commands.command("app")
def serve(
    host: Annotated[
        str, typer.Option(help="Address to listen on; by default only this machine reaches the app.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 7860,
    share: Annotated[
        bool, typer.Option("--share", help="Open Gradio's tunnel: whoever has the link reaches the app.")
    ] = False,
    auth: Annotated[
        str | None,
        typer.Option(help="USER:PASSWORD to ask for; API clients give the password as api_key."),
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            help="A model or verifier that may be used, beside the bundled ones. Give once for each. "
            "(default: all registered ones, and models of the hub, while only this machine reaches the app)"
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder that gets a folder for each search.")
    ] = Path("outputs"),
    queue: Annotated[int, typer.Option(min=1, help="Searches that may wait.")] = 20,
) -> None:
    """Serve the app: a page to run and steer searches, and an API as OpenAI's clients speak it."""
    from tts_vision.app.server import serve as run

    user, colon, password = (auth or "").partition(":")
    if auth is not None and not (user and colon and password):
        raise ConfigError(
            "--auth must be a user and a password but has no colon between two words; write A:B."
        )
    run(
        output.expanduser(),
        host=host,
        port=port,
        share=share,
        auth=None if auth is None else (user, password),
        allow=allow or (),
        queue=queue,
        tell=typer.echo,
    )
