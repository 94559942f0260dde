"""Searches over scales on a tiny Infinity: budgets in MACs, shared forwards, resumed as if never killed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_infinity import tiny_infinity
from torch import Tensor

import tts_vision
from toy_search import run
from tts_vision.algorithms.beam_search import beam_search
from tts_vision.algorithms.best_of_n import best_of_n
from tts_vision.algorithms.evosearch import evosearch
from tts_vision.algorithms.fk_steering import fk_steering
from tts_vision.algorithms.greedy import greedy
from tts_vision.algorithms.search_over_paths import search_over_paths
from tts_vision.algorithms.tts_var import tts_var
from tts_vision.context import SearchContext
from tts_vision.ledger import Budget
from tts_vision.moves import TOKEN_NOISE, TokenNoise
from tts_vision.pipelines.var_sampler import ScaleSampler
from tts_vision.registry import register
from tts_vision.testing.contracts import check_result, kill_everywhere
from tts_vision.types import Media, Modality, Prompt, Score, State
from tts_vision.verifier import ALONE, Asked, Verifier

PROMPT = Prompt("x")


class Brightness(Verifier):
    """Likes bright images."""

    name = "brightness"
    accepts: frozenset[Modality] = frozenset({"image"})

    def score(self, media: Sequence[Media], prompts: Sequence[Prompt], asked: Asked = ALONE) -> list[Score]:
        return [Score(value=float(np.asarray(m).mean()) / 25) for m in media]


@register("features", "mean_colour")
class MeanColour:
    """Embeds an image as its mean colour."""

    name = "mean_colour"
    accepts: frozenset[Modality] = frozenset({"image"})

    def features(self, media: Sequence[Media]) -> Tensor:
        return torch.tensor(np.stack([np.asarray(m).mean((0, 1)) for m in media])).float()


SEARCHES: dict[str, Callable[..., State]] = {
    "best_of_n": best_of_n,
    "fk_steering": fk_steering,
    "search_over_paths": search_over_paths,
    "evosearch": evosearch,
    "beam_search": beam_search,
    "greedy": greedy,
    "tts_var": tts_var,
}
PARAMS: dict[str, dict[str, Any]] = {"tts_var": {"features": "mean_colour"}}


def context(**limits: Any) -> SearchContext:
    ctx = SearchContext(ScaleSampler(tiny_infinity()), Brightness(), PROMPT, seed=0)
    ctx.ledger.budget = Budget(**limits).resolve(ctx.cost())
    return ctx


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("times", [1, 6])
def test_all_searches_fit_their_budget(name: str, times: float) -> None:
    ctx = context(times=times)
    state = run(SEARCHES[name], ctx, **PARAMS.get(name, {}))
    check_result(ctx, state)
    sample = ctx.cost().macs
    assert ctx.ledger.budget.macs == pytest.approx(times * sample)
    assert (times - 1) * sample < ctx.ledger.spent.macs <= times * sample * (1 + 1e-9)


KILLED = {
    "tts_var": partial(tts_var, n=4, **PARAMS["tts_var"]),
    "beam_search": partial(beam_search, width=1, branch=2, scales=[1, 3]),
    "evosearch": partial(evosearch, evolution_schedule=[2], population_schedule=[2, 2], elites=1),
}


@pytest.mark.parametrize("name", KILLED)
def test_searches_survive_a_kill_anywhere(name: str, tmp_path: Path) -> None:
    kill_everywhere(KILLED[name], lambda: ScaleSampler(tiny_infinity()), Brightness(), tmp_path, most=12)


def test_branches_cost_one_forward() -> None:
    ctx = context()
    run(greedy, ctx, branch=4)
    assert ctx.ledger.spent.macs == pytest.approx(ctx.cost().macs)
    assert ctx.ledger.spent.decodes == 4 * 5


def test_tokens_drawn_again_are_what_the_sampler_goes_on_with() -> None:
    ctx = context()
    parents = ctx.advance(ctx.init(3), 3)
    same = ctx.mutate(parents, TokenNoise(0.0))
    assert torch.equal(same.latents, parents.latents)
    fresh = ctx.mutate(parents, TokenNoise(1.0))
    start = parents.latents.shape[1] - parents.carry[TOKEN_NOISE].shape[1]  # type: ignore[union-attr]
    assert torch.equal(fresh.latents[:, :start], parents.latents[:, :start])
    assert not torch.equal(fresh.latents, parents.latents)
    # the caches of the parents serve their children: as if all were computed anew
    ahead = ctx.advance(fresh, 1)
    anew = ScaleSampler(tiny_infinity())
    bare = State(fresh.latents, 3, fresh.uids, fresh.conditions, 0)
    assert torch.equal(anew.advance(bare).latents, ahead.latents)


def test_late_growth_branches_at_a_fine_scale() -> None:
    ctx = context()
    state = run(tts_var, ctx, batch_schedule=[2, 2, 2, 6, 6], cluster_scales=[], resample_scales=[])
    assert len(state) == 6
    coarse = {row.numpy().tobytes() for row in state.latents[:, : 1 + 4 + 6 + 9]}
    assert len(coarse) == 2 and len({row.numpy().tobytes() for row in state.latents}) > 2


def test_from_the_front_door(tmp_path: Path) -> None:
    result = tts_vision.search(
        tiny_infinity(),
        "two red circles",
        algorithm="tts_var",
        algorithm_params={"features": "mean_colour", "potential": "diff", "lam": 3},
        verifier=Brightness(),
        budget="4x",
        output=tmp_path / "run",
    )
    assert result.best.score.value == max(c.score.value for c in result.population)
    kinds = {event.what for event in result.trace}
    assert {"features", "score", "select", "decode"} <= kinds
    assert result.spent.tokens and result.spent.macs <= result.budget.macs  # type: ignore[operator]
