"""Words of the page: it is written for artists, and says *sample* where the toolkit says particle."""

from __future__ import annotations

import html
import re

from tts_vision.app.estimate import Estimate
from tts_vision.catalogue import Setting
from tts_vision.errors import TTSVisionError

_WORD = re.compile(r"\b(p)articles?\b|\b(P)articles?\b")
_ROLES = re.compile(r":\w+:`([^`]+)`|``([^`]+)``|`([^`]+)`")
_NAMES = {"n": "Number of samples", "lam": "Strength of the reward (lam)", "lr": "Learning rate (lr)"}


def for_artists(text: str) -> str:
    """A text of the toolkit in the words of the page, without marks of reStructuredText."""
    plain = _ROLES.sub(lambda found: next(part for part in found.groups() if part is not None), text)
    return _WORD.sub(_sample, plain)


def _sample(found: re.Match[str]) -> str:
    word = "Sample" if found[0][0] == "P" else "sample"
    return word + ("s" if found[0].endswith("s") else "")


def label_of(setting: Setting) -> str:
    """The label of a parameter on the page."""
    return _NAMES.get(setting.name) or for_artists(setting.name.replace("_", " ")).capitalize()


def told(error: TTSVisionError | str) -> str:
    """A refusal as HTML that screen readers announce."""
    return f'<p class="tv-told" role="alert">{html.escape(for_artists(str(error)))}</p>'


def noted(text: str) -> str:
    """A remark as HTML."""
    return f'<p class="tv-noted">{html.escape(for_artists(text))}</p>'


def forecast_of(estimate: Estimate) -> str:
    """A forecast as HTML: seconds, their range, and what is spent."""
    if estimate.seconds is None or estimate.low is None or estimate.high is None:
        return noted(estimate.note)
    cost = [
        f"{value:,.0f} {unit}"
        for value, unit in (
            (estimate.nfe, "network evaluations"),
            (estimate.macs, "multiply-accumulates"),
            (estimate.verifier_calls, "verifier calls"),
        )
        if value
    ]
    spread = f"{duration(estimate.low)} to {duration(estimate.high)}"
    return noted(f"About {duration(estimate.seconds)} ({spread}): {', '.join(cost)}.")


def duration(seconds: float) -> str:
    """Seconds in words, to two digits."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 119.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7170 else f"{seconds / 3600:.1f} h"
