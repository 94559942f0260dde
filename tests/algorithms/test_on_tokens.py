"""Searches that know nothing of tokens run on a model that is made of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from toy_tokens import TokenAlgorithmContract, TokenSampler

from toy_search import events, run, toy_context
from tts_vision.algorithms.best_of_n import best_of_n
from tts_vision.algorithms.fk_steering import fk_steering
from tts_vision.algorithms.search_over_paths import search_over_paths
from tts_vision.types import State


class TestBestOfN(TokenAlgorithmContract):
    @pytest.fixture
    def algorithm(self) -> Callable[..., State]:
        return best_of_n


class TestFKSteering(TokenAlgorithmContract):
    @pytest.fixture
    def algorithm(self) -> Callable[..., State]:
        return fk_steering

    @pytest.fixture
    def sizes(self) -> dict[str, Any]:
        return {"n": 3, "ess_threshold": None}


class TestSearchOverPaths(TokenAlgorithmContract):
    @pytest.fixture
    def algorithm(self) -> Callable[..., State]:
        return search_over_paths

    @pytest.fixture
    def sizes(self) -> dict[str, Any]:
        return {"n": 2, "forks": 2}


def test_paths_keep_the_scales_before_the_fork() -> None:
    ctx = toy_context(TokenSampler(), times=8)
    run(search_over_paths, ctx, start=0.5, back=0.2, forward=0.6)
    back = events(ctx, "renoise")[0]
    assert (back.from_step, back.step) == (3, 2)
