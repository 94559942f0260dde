"""The promises, for every further pipeline class: editing, control, guidance, video."""

from __future__ import annotations

from contextlib import suppress
from functools import cache

import diffusers
import pytest
from classes import CLASSES, REFUSED
from contract import CHECKS, NotPromised, Subject

from tts_vision.errors import PipelineError
from tts_vision.pipelines.rows import ONE_BY_ONE
from tts_vision.pipelines.whole import UNDRIVABLE, WHOLE

OF_A_FAMILY = {"stochastic", "preview"}
"""Checks of rules and decoders rather than of a class's own loop."""


@cache
def first_of_family() -> frozenset[str]:
    """The first class of each package of diffusers: those of one share schedulers and decoders."""
    first: dict[str, str] = {}
    for name in CLASSES:
        package = getattr(diffusers, name.split(",")[0]).__module__.rpartition(".")[0]
        first.setdefault(package, name)
    return frozenset(first.values())


@pytest.mark.parametrize("name", CLASSES)
def test_a_pipeline_is_driven_as_its_own_call_runs(name: str) -> None:
    subject = Subject.of(CLASSES[name])
    for title, check in CHECKS.items():
        if title in OF_A_FAMILY and name not in first_of_family():
            continue  # the support table has all
        with suppress(NotPromised):
            check(subject)


@pytest.mark.parametrize("name", REFUSED)
def test_a_pipeline_that_cannot_be_driven_is_refused_when_it_is_loaded(name: str) -> None:
    with pytest.raises(PipelineError, match=REFUSED[name].reason):
        Subject.of(REFUSED[name].entry)


@pytest.mark.parametrize("name", [*WHOLE, *UNDRIVABLE, *ONE_BY_ONE])
def test_exceptions_are_made_for_classes_that_exist(name: str) -> None:
    assert hasattr(diffusers, name)
