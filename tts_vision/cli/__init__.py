"""The command ``tts-vision``, a module for each command."""

from __future__ import annotations

from tts_vision.cli import app as _app  # noqa: F401  # importing a command adds it
from tts_vision.cli import check, compare, draft, evaluate, generate, listing, refine, score  # noqa: F401
from tts_vision.cli.application import app, main

__all__ = ["app", "main"]
