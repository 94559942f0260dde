"""Every search on a masked-token model: budgets kept, resumed as if never killed, from the front door."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_showo import tiny_showo
from torch import Tensor

import tts_vision
from tts_vision.algorithms.evosearch import evosearch
from tts_vision.algorithms.fk_steering import fk_steering
from tts_vision.config import SamplerOptions
from tts_vision.context import SearchContext
from tts_vision.pipelines.masked_sampler import MaskedSampler
from tts_vision.registry import register
from tts_vision.testing.contracts import kill_everywhere
from tts_vision.testing.toys import TargetReward
from tts_vision.types import Media, Modality, Prompt, State
from tts_vision.verifier import FunctionVerifier

PROMPT = "two red circles"
NFE = 2 * 5  # of one sample


def brightness(images: Sequence[Media], prompts: Sequence[str]) -> list[float]:
    return [float(np.asarray(image).mean()) for image in images if isinstance(image, Image.Image)]


@register("features", "corners")
class Corners:
    """Embeds an image as the mean colours of its quarters."""

    name = "corners"
    accepts: frozenset[Modality] = frozenset({"image"})

    def features(self, media: Sequence[Media]) -> Tensor:
        small = [np.asarray(image.resize((2, 2)), dtype=np.float32) for image in media]  # type: ignore[union-attr]
        return torch.from_numpy(np.stack(small)).flatten(1)


SEARCHES: dict[str, dict[str, Any]] = {
    "best_of_n": {},
    "beam_search": {},
    "greedy": {},
    "fk_steering": {},
    "evosearch": {},
    "search_over_paths": {},
    "zero_order": {"starts": 2},
    "tts_var": {"features": "corners"},
    "prompt_search": {"rewrites": ["a red circle and a red circle", "two circles"]},
}


@pytest.mark.parametrize("name", SEARCHES)
def test_searches_run_unchanged(name: str) -> None:
    result = tts_vision.search(
        tiny_showo(),
        PROMPT,
        algorithm=name,
        algorithm_params=SEARCHES[name],
        verifier=brightness,
        budget="8x",
        seed=1,
    )
    # equal starts share evaluations, which the plan does not count on
    assert 6 * NFE < result.spent.nfe <= 8 * NFE
    assert result.best.score.value == max(c.score.value for c in result.population)
    assert len({np.asarray(c.load()).tobytes() for c in result.population}) == len(result.population) > 1
    first = next((c for c in result.population if c.uid == 0), None)
    if first is not None and first.text["prompt"] == PROMPT and len(result.lineage(0)) == 1:
        assert largest_difference(first.load(), tiny_showo()(PROMPT, seed=1)[0]) <= 1


def largest_difference(a: Any, b: Any) -> int:
    """Of the pixels of two images, of 255."""
    return int(np.abs(np.asarray(a, int) - np.asarray(b, int)).max())


@pytest.mark.parametrize("name", ["evosearch", "zero_order"])
def test_the_winner_is_made_again_from_its_lineage(name: str, tmp_path: Path) -> None:
    params = {"evosearch": {"elites": 1, "evolution_schedule": [2, 4], "population_schedule": [2, 3, 3]}}
    result = tts_vision.search(
        tiny_showo(),
        PROMPT,
        algorithm=name,
        algorithm_params=params.get(name, {"starts": 1, "n": 4}),
        verifier=brightness,
        budget="8x",
        output=tmp_path,
    )
    assert {event.what for event in result.trace} & {"remask_step", "neighbour"}
    assert tts_vision.replay(tmp_path, pipe=tiny_showo()).max_difference <= 1


def test_drafts_are_finished_from_where_they_stand(tmp_path: Path) -> None:
    folder = tmp_path / "drafts"
    tts_vision.draft(tiny_showo(), PROMPT, 4, verifier=brightness, seed=1, output=folder)
    result = tts_vision.finish(folder, [2], pipe=tiny_showo(), verifier=brightness)
    whole = tiny_showo()(PROMPT, seed=1, n=3)[2]
    (finished,) = result.population
    assert finished.uid == 2 and largest_difference(finished.load(), whole) <= 1


KILLED: dict[str, Callable[[SearchContext], State]] = {
    "evosearch": partial(evosearch, evolution_schedule=[2, 4], population_schedule=[2, 3, 3], elites=1),
    "fk_steering": partial(fk_steering, n=3, ess_threshold=None),
}


@pytest.mark.parametrize("name", KILLED)
def test_searches_survive_a_kill_anywhere(name: str, tmp_path: Path) -> None:
    make = partial(MaskedSampler, tiny_showo())
    kill_everywhere(KILLED[name], make, FunctionVerifier(brightness), tmp_path, most=4)


def test_chosen_tokens_drawn_again_survive_a_kill(tmp_path: Path) -> None:
    def corrected(ctx: SearchContext) -> State:
        state = ctx.finish(ctx.init(2))
        ctx.score(state)
        move = ctx.sampler.remasking((0, 1, 2, 5), 3)
        assert move is not None
        state = ctx.finish(ctx.mutate(state, move, [0, 0, 1]))
        ctx.score(state)
        return state

    kill_everywhere(corrected, partial(MaskedSampler, tiny_showo()), FunctionVerifier(brightness), tmp_path)


@pytest.mark.parametrize("stochastic", [True, False])
def test_micro_batches_change_nothing(stochastic: bool) -> None:
    ends = []
    for size in (None, 1, 2):
        options = SamplerOptions(stochastic=stochastic)
        sampler = MaskedSampler(tiny_showo(), options=options)
        ctx = SearchContext(sampler, TargetReward(), Prompt(PROMPT), seed=1, max_batch=size)
        state = ctx.advance(ctx.init(5), 3)
        back = ctx.renoise(state, 1, [0, 0, 2])
        ends.append(torch.cat([ctx.finish(state).latents, ctx.finish(back).latents]))
    assert torch.equal(ends[0], ends[1]) and torch.equal(ends[0], ends[2])
