"""Finds and loads what embeds samples, for searches that care for diversity."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from tts_vision.config import Spec
from tts_vision.errors import ConfigError, TTSVisionError, VerifierError
from tts_vision.parameters import validate
from tts_vision.registry import lookup, registered_model
from tts_vision.types import FeatureExtractor

PAPER_FEATURES = "dino_features:checkpoint=facebook/dinov2-with-registers-large,pool=patches_pca"


def default_features(model: str) -> str:
    """The extractor that a search of `model` uses by default: the one that it was registered with, if any."""
    entry = registered_model(model)
    return (entry.features if entry is not None else "") or PAPER_FEATURES


def load_extractor(text: str) -> FeatureExtractor:
    """The extractor that a spec such as ``dino_features:pool=patches_mean`` names, loaded.

    The last two are kept, so that many searches load each once.

    Raises:
        ConfigError: If there is none, or a parameter is not one of its own.
        VerifierError: If it cannot be loaded.
    """
    spec = Spec.parse(text)
    if spec.members:
        raise ConfigError(
            f"Features are of one extractor but got {text!r}; write '{spec.name}' without parentheses."
        )
    return _loaded(lookup("features", spec.name).target, str(spec))


@lru_cache(maxsize=2)
def _loaded(target: Callable[..., Any], text: str) -> FeatureExtractor:
    spec = Spec.parse(text)
    made: Any = target
    try:
        if inspect.isclass(target) or inspect.isroutine(target):
            made = target(**validate(target, spec.params, f"features {spec.name!r}"))
        load = getattr(made, "load", None)
        if load is not None:
            load()
    except TTSVisionError:
        raise
    except Exception as error:
        raise VerifierError(
            f"Features {text!r} must load but: {type(error).__name__}: {error}; check the parameters and "
            "the weights."
        ) from error
    if not isinstance(made, FeatureExtractor):
        raise ConfigError(
            f"Features must have name, accepts and features(media) but {text!r} is a "
            f"{type(made).__qualname__}; add what is missing."
        )
    return made
