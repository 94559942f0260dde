"""Previews that look ahead: the next scale's expectation, and the likeliest completion, at their price."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_infinity import SCHEDULE, tiny_infinity
from tiny_var import VAR_CONFIG, vqvae

from tts_vision.algorithms.beam_search import beam_search
from tts_vision.algorithms.tts_var import tts_var
from tts_vision.condition import Condition
from tts_vision.config import SamplerOptions
from tts_vision.context import SearchContext
from tts_vision.errors import BudgetSpent, ConfigError
from tts_vision.ledger import Budget, Ledger
from tts_vision.pipelines.var.model import images_of
from tts_vision.pipelines.var_sampler import ScaleSampler
from tts_vision.rehearsal import rehearse
from tts_vision.testing.toys import TargetReward
from tts_vision.tokens import likeliest
from tts_vision.types import Prompt, State

CONDITION, OTHER = Condition("two red circles"), Condition("a blue star")


def sampler_of(preview: str, **options: Any) -> ScaleSampler:
    return ScaleSampler(tiny_infinity(), options=SamplerOptions(preview=preview, **options))


def pixels(images: Any) -> list[np.ndarray]:
    return [np.asarray(image) for image in images]


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_a_completion_is_the_greedy_end_of_the_same_model(scale: int) -> None:
    sampler = sampler_of("complete")
    state = sampler.advance(sampler.init(CONDITION, (0, 1), seed=3), scale)
    greedy = sampler_of("decode", pipeline_kwargs={"top_k": 1})
    begun = greedy.init(CONDITION, (0, 1), seed=3)
    ended = greedy.advance(replace(state, carry=begun.carry), sampler.num_steps - scale)
    # the greedy model draws bits of probability 0 or 1: there is no chance in them
    for ours, theirs in zip(pixels(sampler.preview(state)), pixels(greedy.decode(ended))):
        assert np.array_equal(ours, theirs)
    assert state.step == scale, "the state is left as it was"


@pytest.mark.parametrize("scale", [1, 3])
def test_an_expectation_is_the_mean_over_drawn_scales(scale: int) -> None:
    sampler = sampler_of("expected")
    state = sampler.advance(sampler.init(CONDITION, (0,), seed=3), scale)
    many = sampler.advance(state.select([0] * 4000, uids=range(4000)))
    mean = sampler._model.features(many.latents).mean(0, keepdim=True)
    (preview,) = pixels(sampler.preview(state))
    expected = pixels(images_of(sampler._model.pixels(mean)))[0]
    plain = pixels(sampler_of("decode").preview(state))[0]
    assert np.abs(preview.astype(int) - expected).max() <= 6, "4,000 draws"
    assert np.abs(preview.astype(int) - plain).max() > 6


def test_the_expectation_of_a_vocabulary() -> None:
    quantizer = vqvae().quantizer
    schedule = VAR_CONFIG.schedule
    grid = schedule.grids[1]
    size = quantizer.embedding.weight.shape[0]
    probability = torch.rand(2, grid[0] * grid[1], size, generator=torch.Generator().manual_seed(0))
    probability /= probability.sum(-1, keepdim=True)
    features = quantizer.empty(2, schedule)
    certain = torch.nn.functional.one_hot(probability.argmax(-1), size).float()
    of_ids = quantizer.added(features, probability.argmax(-1), schedule, 1)
    assert torch.allclose(quantizer.with_expected(features, certain, schedule, 1), of_ids, atol=1e-6)
    mixed = quantizer.with_expected(features, probability, schedule, 1)
    halves = [quantizer.with_expected(features, p, schedule, 1) for p in (certain, 2 * probability - certain)]
    assert torch.allclose(mixed, (halves[0] + halves[1]) / 2, atol=1e-5), "it is linear up to a bias"


def test_prices() -> None:
    for preview, scales in (("decode", 0), ("expected", 1), ("complete", 3)):
        sampler, ledger = sampler_of(preview), Ledger()
        state = sampler.advance(sampler.init(CONDITION, (0, 1), seed=0), 2)
        sampler.bind(ledger)
        sampler.preview(state)
        expected = sampler.cost(CONDITION, 2, scales)
        assert sampler.preview_cost(CONDITION, 2) == expected
        assert ledger.spent == expected * 2
        assert expected.tokens == 2 * sum(SCHEDULE.lengths[2 : 2 + scales])


def test_rows_of_several_conditions_keep_their_order() -> None:
    sampler = sampler_of("complete")
    first = sampler.advance(sampler.init(CONDITION, (0, 1), seed=0), 2)
    second = sampler.advance(sampler.init(OTHER, (2,), seed=0), 2)
    mixed = State.cat([first, second]).select([2, 0, 1])
    alone = [pixels(sampler.preview(s))[i] for s, i in ((second, 0), (first, 0), (first, 1))]
    for ours, theirs in zip(pixels(sampler.preview(mixed)), alone):
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("preview", ["expected", "complete"])
@pytest.mark.parametrize("algorithm", [beam_search, tts_var], ids=lambda a: a.__name__)
def test_searches_pay_what_was_rehearsed_and_stay_within_budget(preview: str, algorithm: Any) -> None:
    params: dict[str, Any] = {"width": 2} if algorithm is beam_search else {"n": 4, "features": FEATURES}

    def context(budget: Budget | None = None) -> SearchContext:
        return SearchContext(
            sampler_of(preview),
            TargetReward(),
            Prompt(CONDITION.text),
            seed=0,
            ledger=Ledger(budget) if budget else None,
        )

    planned = rehearse(context(), algorithm, params)
    ctx = context()
    algorithm(ctx, **params)
    assert planned is not None
    assert ctx.ledger.spent.nfe <= planned.nfe
    assert ctx.ledger.spent.decodes == planned.decodes
    plain = SearchContext(sampler_of("decode"), TargetReward(), Prompt(CONDITION.text), seed=0)
    algorithm(plain, **params)
    assert ctx.ledger.spent.nfe > plain.ledger.spent.nfe
    tight = context(Budget(nfe=0.6 * ctx.ledger.spent.nfe))
    with pytest.raises(BudgetSpent):
        algorithm(tight, **params)
    assert tight.ledger.spent.nfe <= 0.6 * ctx.ledger.spent.nfe


class Colours:
    """Embeds images by their mean colour."""

    name = "colours"
    accepts = frozenset({"image"})

    def features(self, media: Any) -> torch.Tensor:
        return torch.tensor([np.asarray(image).mean((0, 1)).tolist() for image in media])


FEATURES = f"{__file__}@Colours"


def test_greedy_tokens() -> None:
    bits = likeliest(torch.tensor([[[0.2, 0.7]]]), torch.zeros(1, 0, 2, dtype=torch.uint8))
    assert bits.tolist() == [[[0, 1]]] and bits.dtype == torch.uint8
    ids = likeliest(torch.tensor([[[0.2, 0.7, 0.1]]]), torch.zeros(1, 0, dtype=torch.int64))
    assert ids.tolist() == [[1]] and ids.dtype == torch.int64


def test_pipelines_with_an_estimate_of_their_own_refuse_it() -> None:
    from tiny_pipelines import TINY
    from tts_vision.pipelines.diffusers_sampler import DiffusersSampler

    with pytest.raises(ConfigError, match="'rollout:k' for StableDiffusionPipeline but got 'complete'"):
        DiffusersSampler(TINY["stable_diffusion"].build(), options=SamplerOptions(preview="complete"))
    with pytest.raises(ConfigError, match="is for diffusion and flow models but tiny-infinity draws tokens"):
        sampler_of("rollout:2")
