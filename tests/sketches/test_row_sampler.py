"""A model of token rows keeps the contract of samplers; equal rows share their forwards."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from row_sampler import RowSampler

import tts_vision
from tts_vision.algorithms.evosearch import evosearch
from tts_vision.condition import Condition
from tts_vision.ledger import Ledger
from tts_vision.moves import TokenNoise
from tts_vision.testing.contracts import SamplerContract, kill_everywhere
from tts_vision.types import Cost, State
from tts_vision.verifier import FunctionVerifier

CONDITION = Condition("two red circles")


def bright(images: Any, prompts: Any) -> list[float]:
    """Likes tokens of high numbers."""
    return [float(np.asarray(image).mean()) / 255 for image in images]


class TestRowSampler(SamplerContract):
    @pytest.fixture
    def sampler(self) -> RowSampler:
        return RowSampler()


def test_equal_rows_of_one_prompt_share_a_forward() -> None:
    sampler, ledger = RowSampler(), Ledger()
    other = Condition("a blue star")
    parts = [sampler.init(c, [uid], seed=0) for uid, c in enumerate((CONDITION, other, CONDITION, CONDITION))]
    sampler.bind(ledger)
    state = sampler.advance(State.cat(parts))
    assert ledger.spent == sampler.cost(CONDITION, 0, 1) * 2  # one for each prompt
    ledger.spent = Cost()
    sampler.advance(state.select([0, 0, 1, 3], uids=(0, 10, 1, 3)))
    different = {tuple(row) for row in state.latents[[0, 1, 3]].tolist()}
    assert ledger.spent == sampler.cost(CONDITION, 1, 1) * len(different)


def test_later_rows_cost_more() -> None:
    costs = [RowSampler().cost(CONDITION, row, 1) for row in range(6)]
    assert [cost.macs for cost in costs] == [25, 50, 75, 100, 125, 150]
    assert sum(costs, Cost()) == RowSampler().cost(CONDITION, 0, 6)


def test_a_move_draws_the_last_row_again() -> None:
    sampler = RowSampler()
    parents = sampler.advance(sampler.init(CONDITION, range(50), seed=0), 3)
    children = sampler.apply(TokenNoise(1.0), parents)
    assert torch.equal(children.latents[:, :10], parents.latents[:, :10])
    assert not torch.equal(children.latents[:, 10:], parents.latents[:, 10:])
    assert torch.equal(sampler.apply(TokenNoise(0.0), parents).latents, parents.latents)


def test_a_preview_is_as_high_as_the_end() -> None:
    sampler = RowSampler()
    state = sampler.advance(sampler.init(CONDITION, [0], seed=0), 2)
    images = [*sampler.preview(state), *sampler.decode(sampler.advance(state, 4))]
    early, end = map(np.asarray, images)
    assert early.shape == end.shape == (6, 5, 3)
    assert np.array_equal(early[:2], end[:2]) and (early[2:] == early[1]).all()


@pytest.mark.parametrize(
    "algorithm",
    [
        "best_of_n",
        "beam_search",
        "fk_steering",
        "greedy",
        "search_over_paths",
        "evosearch",
        "tts_var:clustering=false",
    ],
)
def test_searches_run_unchanged(algorithm: str) -> None:
    result = tts_vision.search(RowSampler(), "x", algorithm=algorithm, verifier=bright, budget="16x")
    sample = RowSampler().cost(Condition("x"), 0, 6)
    assert 15 * sample.macs < result.spent.macs <= 16 * sample.macs
    assert result.best.score.value == max(c.score.value for c in result.population)


def test_evolution_survives_a_kill_anywhere(tmp_path: Path) -> None:
    algorithm = partial(evosearch, evolution_schedule=[2, 4], population_schedule=[3, 3, 3], elites=1)
    kill_everywhere(algorithm, RowSampler, FunctionVerifier(bright), tmp_path)
