"""Test-time search for image and video generators: any method, any model, any verifier.

``tts_vision.search(pipe, prompt, algorithm=..., verifier=..., budget=...)`` is the front door. Names
are loaded when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tts_vision.candidates import Candidate
    from tts_vision.comparisons import Comparison, compare
    from tts_vision.condition import Condition
    from tts_vision.config import ModelOptions, RunConfig, SamplerOptions
    from tts_vision.context import SearchContext
    from tts_vision.drafts import draft, finish
    from tts_vision.errors import (
        CapabilityError,
        ConfigError,
        PipelineError,
        StorageError,
        TTSVisionError,
        VerifierError,
    )
    from tts_vision.ledger import Budget
    from tts_vision.refining import refine
    from tts_vision.registry import register
    from tts_vision.replays import Replay, replay
    from tts_vision.results import Result, load_result
    from tts_vision.runner import resume, search
    from tts_vision.sampler import Sampler
    from tts_vision.self_check import check
    from tts_vision.types import (
        Cost,
        FeatureExtractor,
        Media,
        Prompt,
        Score,
        State,
        Video,
    )
    from tts_vision.verifier import Verifier

__all__ = [
    "Budget",
    "Candidate",
    "CapabilityError",
    "Comparison",
    "Condition",
    "ConfigError",
    "Cost",
    "FeatureExtractor",
    "Media",
    "ModelOptions",
    "PipelineError",
    "Prompt",
    "Replay",
    "Result",
    "RunConfig",
    "Sampler",
    "SamplerOptions",
    "Score",
    "SearchContext",
    "State",
    "StorageError",
    "TTSVisionError",
    "Verifier",
    "VerifierError",
    "Video",
    "__version__",
    "check",
    "compare",
    "draft",
    "finish",
    "load_result",
    "refine",
    "register",
    "replay",
    "resume",
    "search",
]

_HOMES = {
    "comparisons": ("Comparison", "compare"),
    "config": ("ModelOptions", "RunConfig", "SamplerOptions"),
    "candidates": ("Candidate",),
    "condition": ("Condition",),
    "context": ("SearchContext",),
    "drafts": ("draft", "finish"),
    "errors": (
        "CapabilityError",
        "ConfigError",
        "PipelineError",
        "StorageError",
        "TTSVisionError",
        "VerifierError",
    ),
    "ledger": ("Budget",),
    "refining": ("refine",),
    "registry": ("register",),
    "replays": ("Replay", "replay"),
    "results": ("Result", "load_result"),
    "runner": ("resume", "search"),
    "self_check": ("check",),
    "sampler": ("Sampler",),
    "types": (
        "Cost",
        "FeatureExtractor",
        "Media",
        "Prompt",
        "Score",
        "State",
        "Video",
    ),
    "verifier": ("Verifier",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("tts-vision")
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
