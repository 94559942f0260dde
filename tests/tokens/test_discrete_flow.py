"""The sampler of discrete flow matching, on a network whose probabilities are known."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_showo import tiny_showo
from torch import Tensor
from toy_network import GRID, VOCABULARY, ToyNetwork, ToyPipeline

import tts_vision
from tts_vision.condition import Condition
from tts_vision.config import SamplerOptions
from tts_vision.context import SearchContext
from tts_vision.errors import CapabilityError, ConfigError
from tts_vision.ledger import Ledger
from tts_vision.moves import PREVIEW, Renoise
from tts_vision.pipelines.discrete_flow_sampler import DiscreteFlowSampler, PathNoise
from tts_vision.pipelines.tokens.kinetic import Metric, Schedule, path_probability
from tts_vision.pipelines.tokens.showo_flow import ShowoFlow
from tts_vision.registry import lookup
from tts_vision.rng import row_uniform
from tts_vision.sampler import Sampler
from tts_vision.testing.contracts import SamplerContract, kill_everywhere
from tts_vision.testing.toys import TargetReward
from tts_vision.types import Cost, Prompt, State
from tts_vision.verifier import as_verifier

CONDITION = Condition("two red circles")
KILLED = {"evosearch": {"particles": 6, "evolution_schedule": [1, 3]}, "beam_search": {"width": 2}}
SIZE = GRID[0] * GRID[1]


def sampler_of(preview: Any = "decode", **call: Any) -> DiscreteFlowSampler:
    return DiscreteFlowSampler(ToyPipeline(), options=SamplerOptions(pipeline_kwargs=call, preview=preview))


def network_of(sampler: DiscreteFlowSampler) -> ToyNetwork:
    network = sampler._network
    assert isinstance(network, ToyNetwork)
    return network


def finished(sampler: DiscreteFlowSampler, uids: tuple[int, ...], seed: int = 0) -> State:
    return sampler.advance(sampler.init(CONDITION, uids, seed=seed), sampler.num_steps)


def tensor_of(state: State, key: str = PREVIEW) -> Tensor:
    value = state.carry[key]
    assert isinstance(value, Tensor)
    return value


def brightness(images: Any, prompts: Any) -> list[float]:
    return [float(np.asarray(image).mean()) for image in images]


class TestDiscreteFlow(SamplerContract):
    @pytest.fixture
    def sampler(self) -> Sampler:
        return sampler_of()


class TestStrictReference(SamplerContract):
    @pytest.fixture
    def sampler(self) -> Sampler:
        return sampler_of(strict_reference=True, guidance_scale=0.0, temperature=0.8, top_k=4)


def showo_flow() -> ShowoFlow:
    return ShowoFlow.of(tiny_showo(), {"num_inference_steps": 5}, "tiny-flow")


class TestOnAShowo(SamplerContract):
    """The real network class: full codes go in, and no mask."""

    @pytest.fixture
    def sampler(self) -> Sampler:
        return DiscreteFlowSampler(
            showo_flow(), options=SamplerOptions(pipeline_kwargs={"guidance_scale": 1.0})
        )

    @pytest.fixture
    def tolerance(self) -> float:
        return 1e-4


def test_a_showo_as_a_flow_starts_from_random_codes() -> None:
    sampler = DiscreteFlowSampler(showo_flow())
    codes = sampler.init(CONDITION, tuple(range(50)), seed=0).latents
    assert codes.shape == (50, 16) and int(codes.max()) < 64 and len(codes.unique()) == 64
    end = sampler.advance(sampler.init(CONDITION, (0, 1), seed=0), sampler.num_steps)
    whole = sampler.plain(CONDITION, (0, 1), seed=0)
    assert [np.asarray(i).tobytes() for i in sampler.decode(end)] == [np.asarray(i).tobytes() for i in whole]
    call = showo_flow()(CONDITION.text, n=2)
    assert [np.asarray(i).tobytes() for i in call] == [np.asarray(i).tobytes() for i in whole]
    assert torch.equal(showo_flow()(CONDITION.text, n=2, output_type="tokens"), end.latents)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="'pil' or 'tokens' but got 'np'"):
        showo_flow()(CONDITION.text, output_type="np")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"must be one of num_inference_steps.*but got 'annealing'"):
        DiscreteFlowSampler(ToyPipeline(sampling={"annealing": "linear"}))


class TestShowsTheLikeliest(SamplerContract):
    @pytest.fixture
    def sampler(self) -> Sampler:
        return sampler_of("expected")


def by_hand(seed: int, uid: int, steps: int) -> Tensor:
    """One particle, token by token, from the equations alone."""
    network, metric, schedule = ToyNetwork(), Metric(ToyNetwork().codebook()), Schedule()
    encoded = network.encode(CONDITION)
    like = torch.empty(1, SIZE)
    x = (row_uniform(seed, "init", [uid], 0, like)[0] * VOCABULARY).long()
    for i in range(steps):
        t = i / steps
        numbers = row_uniform(seed, "step", [uid], i, torch.empty(1, SIZE, 3))[0]
        p = network.logits(encoded, x[None])[0].softmax(-1)
        after = x.clone()
        for s in range(SIZE):
            x1 = int((p[s].double().cumsum(-1) <= numbers[s, 0].double() * p[s].double().sum()).sum())
            if i == steps - 1:
                after[s] = x1
                continue
            d = metric.rows(torch.tensor([x1]))[0].double()
            path = (-schedule.beta(t) * d).softmax(-1)
            u = path * schedule.rate(t) * (d[x[s]] - d).clamp_min(0)
            if numbers[s, 1] < 1 - math.exp(-float(u.sum()) / steps):
                after[s] = int((u.cumsum(-1) <= numbers[s, 2].double() * u.sum()).sum())
        x = after
    return x


@pytest.mark.parametrize("strict", [False, True])
def test_equals_the_equations(strict: bool) -> None:
    sampler = sampler_of(strict_reference=strict)
    state = finished(sampler, (0, 5), seed=3)
    assert torch.equal(state.latents, torch.stack([by_hand(3, uid, 8) for uid in (0, 5)]))


def test_the_dead_first_step_is_left_out() -> None:
    """The authors' first step moves nothing, and its evaluations are those of the next one."""
    strict, ours = sampler_of(strict_reference=True), sampler_of()
    assert (strict.num_steps, ours.num_steps) == (8, 7)
    assert torch.equal(finished(strict, (0, 1, 2)).latents, finished(ours, (0, 1, 2)).latents)
    assert (network_of(strict).asked, network_of(ours).asked) == ([3] * 8, [3] * 7)
    assert strict.cost(CONDITION, 0, 8).nfe - ours.cost(CONDITION, 0, 7).nfe == 2
    start = strict.init(CONDITION, (0, 1, 2), seed=0)
    first = strict.advance(start)
    assert torch.equal(first.latents, start.latents)
    assert not torch.equal(strict.advance(first).latents, first.latents)


def test_a_single_step_takes_the_targets() -> None:
    sampler = sampler_of(num_inference_steps=1)
    assert sampler.num_steps == 1
    state = finished(sampler, (0,))
    assert torch.equal(state.latents, tensor_of(state))


def test_stepwise_equals_whole() -> None:
    sampler = sampler_of()
    whole = sampler.plain(CONDITION, (0, 2, 1), seed=4)
    for mine, theirs in zip(sampler.decode(finished(sampler, (0, 2, 1), seed=4)), whole):
        assert np.array_equal(np.asarray(mine), np.asarray(theirs))


def test_branching_takes_no_evaluation() -> None:
    """Many targets from one set of logits: copies share the evaluation of their next step."""
    sampler, ledger = sampler_of(), Ledger()
    sampler.bind(ledger)
    state = sampler.advance(sampler.init(CONDITION, (0, 1), seed=0), 3)
    network_of(sampler).asked.clear()
    ledger.spent = Cost()
    forks = state.select([0] * 5 + [1], uids=(0, 10, 11, 12, 13, 1))
    assert sampler.price(forks, 1) == sampler.cost(CONDITION, 3, 1) * 2
    children = sampler.advance(forks)
    assert network_of(sampler).asked == [2]
    assert ledger.spent == sampler.cost(CONDITION, 3, 1) * 2 and ledger.spent.nfe == 4
    assert len({row.numpy().tobytes() for row in tensor_of(children)}) == 6, "targets of their own"
    alone = sampler.advance(state.select([0], uids=(11,)))
    assert torch.equal(alone.latents, children.latents[2:3])
    assert torch.equal(tensor_of(alone), tensor_of(children)[2:3])


def test_a_search_over_targets_is_charged_once_for_each_set_of_logits() -> None:
    context = SearchContext(sampler_of(), TargetReward(), Prompt(CONDITION.text), seed=1)
    state = context.advance(context.init(1), 2)
    before = context.ledger.spent.nfe
    candidates = context.advance(context.select(state, [0] * 8))
    assert context.ledger.spent.nfe - before == 2
    context.score(candidates)
    assert context.ledger.spent.nfe - before == 2


def test_previews_are_the_targets() -> None:
    sampler = sampler_of()
    state = sampler.advance(sampler.init(CONDITION, (0, 1), seed=0), 3)
    for image, codes in zip(sampler.preview(state), tensor_of(state)):
        assert isinstance(image, tts_vision.types.Image.Image)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1
        assert torch.equal(ToyNetwork().image_codes(pixels)[0], codes)
    likeliest = sampler_of("expected")
    other = likeliest.advance(likeliest.init(CONDITION, (0, 1), seed=0), 3)
    assert torch.equal(other.latents, state.latents)
    before = likeliest.advance(likeliest.init(CONDITION, (0, 1), seed=0), 2).latents
    logits = ToyNetwork().logits(ToyNetwork().encode(CONDITION), before)
    assert torch.equal(tensor_of(other, "likeliest"), logits.argmax(-1))
    with pytest.raises(CapabilityError, match="A preview needs at least one step"):
        sampler.preview(sampler.init(CONDITION, (0,), seed=0))
    with pytest.raises(ConfigError, match="must be 'decode' or 'expected' but got 'complete'"):
        sampler_of("complete")


@pytest.mark.parametrize("step", [0, 1, 4, 6])
def test_going_back_follows_the_path(step: int) -> None:
    """Tokens that are sent back are distributed as the path to the finished tokens, at that time."""
    sampler, uids = sampler_of(), tuple(range(100, 4100))
    end = finished(sampler, (0,))
    back = sampler.renoise(end.select([0] * len(uids), uids=uids), step)
    assert back.step == step
    time = 0 if step == 0 else (step + 1) / 8
    distances = Metric(ToyNetwork().codebook()).rows(end.latents[0])
    expected = path_probability(distances, Schedule().beta(time)).double()
    found = torch.nn.functional.one_hot(back.latents, VOCABULARY).double().mean(0)
    error = (expected * (1 - expected) / len(uids)).sqrt().clamp_min(1 / len(uids))
    assert float(((found - expected).abs() / error).max()) < 5


def test_going_back_from_the_way_uses_the_targets() -> None:
    sampler = sampler_of()
    state = sampler.advance(sampler.init(CONDITION, (0, 1), seed=0), 5)
    back = sampler.renoise(state, 2)
    assert torch.equal(tensor_of(back), tensor_of(state))
    later = sampler.advance(back, 5)
    assert later.step == sampler.num_steps and not torch.equal(
        later.latents, finished(sampler, (0, 1)).latents
    )
    cold = State(back.latents, 2, back.uids, back.conditions, 0)
    with pytest.raises(
        CapabilityError, match="Going back along the path needs a state that carries 'preview'"
    ):
        sampler.renoise(cold, 1)


def test_a_move_keeps_the_marginal() -> None:
    sampler, uids = sampler_of(), tuple(range(100, 4100))
    state = sampler.advance(sampler.init(CONDITION, (0,), seed=0), 3)
    move = sampler.move(3, 0.5)
    assert move == PathNoise(0.25)
    forks = state.select([0] * len(uids), uids=uids)
    children = sampler.apply(move, forks)
    path = path_probability(
        Metric(ToyNetwork().codebook()).rows(tensor_of(state)[0]), Schedule().beta(4 / 8)
    ).double()
    kept = torch.nn.functional.one_hot(state.latents[0], VOCABULARY).double()
    expected = 0.75 * kept + 0.25 * path
    found = torch.nn.functional.one_hot(children.latents, VOCABULARY).double().mean(0)
    error = (expected * (1 - expected) / len(uids)).sqrt().clamp_min(1 / len(uids))
    assert float(((found - expected).abs() / error).max()) < 5
    # at the start: fresh uniform tokens for a share
    start = sampler.init(CONDITION, (0,), seed=0).select([0] * len(uids), uids=uids)
    fresh = sampler.apply(PathNoise(1.0), start).latents
    share = torch.bincount(fresh.flatten(), minlength=VOCABULARY) / fresh.numel()
    assert (share - 1 / VOCABULARY).abs().max() < 0.01
    assert torch.equal(sampler.apply(PathNoise(0.0), start).latents, start.latents)


def test_other_text_on_the_way() -> None:
    sampler, star = sampler_of(), Condition("a blue star")
    state = sampler.advance(sampler.init(CONDITION, (0, 1), seed=0), 3)
    changed = State(state.latents, 3, state.uids, (star, CONDITION), 0, state.carry)
    end = sampler.advance(sampler.recondition(changed), sampler.num_steps - 3)
    assert not torch.equal(end.latents[0], finished(sampler, (0,)).latents[0])
    assert torch.equal(end.latents[1:], finished(sampler, (0, 1)).latents[1:])
    with pytest.raises(CapabilityError, match="preview"):
        sampler.preview(sampler.recondition(changed))


def test_temperature_and_top_k() -> None:
    greedy = sampler_of(top_k=1)
    state = greedy.advance(greedy.init(CONDITION, (0,), seed=0), 1)
    logits = ToyNetwork().logits(ToyNetwork().encode(CONDITION), greedy.init(CONDITION, (0,), seed=0).latents)
    best = logits.gather(-1, tensor_of(state)[..., None])[..., 0]
    assert torch.equal(best, logits.max(-1).values)
    cold, hot = (tensor_of(finished(sampler_of(temperature=t), tuple(range(40)))) for t in (0.2, 5.0))
    spread = [torch.bincount(x.flatten(), minlength=VOCABULARY).double() / x.numel() for x in (cold, hot)]
    entropies = [float(-(p.clamp_min(1e-9).log() * p).sum()) for p in spread]
    assert entropies[0] < entropies[1]


@pytest.mark.parametrize("algorithm", ["evosearch", "beam_search"])
def test_searches_survive_kills(algorithm: str, tmp_path: Path) -> None:
    """What is resumed ends with the same samples, scores and costs as what was not killed."""
    verifier = as_verifier(brightness, "brightness")
    search = partial(lookup("algorithm", algorithm).target, **KILLED[algorithm])
    kill_everywhere(search, sampler_of, verifier, tmp_path, most=4)


@pytest.mark.parametrize(
    "algorithm", ["best_of_n", "fk_steering", "search_over_paths", "evosearch", "beam_search"]
)
def test_algorithms_run_unchanged(algorithm: str, tmp_path: Path) -> None:
    pipe = ToyPipeline()
    found = [
        tts_vision.search(
            pipe,
            CONDITION.text,
            algorithm=algorithm,
            verifier=brightness,
            budget="6x",
            seed=0,
            output=tmp_path / name,
        )
        for name in "ab"
    ]
    plain = brightness(DiscreteFlowSampler(pipe).plain(CONDITION, (0,), seed=0), [])[0]
    assert found[0].best.score.value > plain
    assert found[0].best.uid == found[1].best.uid and found[0].spent.nfe == found[1].spent.nfe
    assert tts_vision.replay(tmp_path / "a", pipe).max_difference == 0
    one = DiscreteFlowSampler(pipe).cost(CONDITION, 0, 7)
    assert found[0].spent.macs <= 6 * one.macs


def test_the_size_of_a_budget_is_planned_for_particles_that_start_apart() -> None:
    """Best of n takes as many particles as the budget has samples: none share their first step."""
    result = tts_vision.search(ToyPipeline(), CONDITION.text, verifier=brightness, budget="10x")
    assert len(result.population) == 10
    assert result.spent.macs == 10 * DiscreteFlowSampler(ToyPipeline()).cost(CONDITION, 0, 7).macs


def test_gaussian_noise_is_refused() -> None:
    with pytest.raises(CapabilityError, match="needs a sampler with noise but 'toy-flow' lacks noise"):
        tts_vision.search(ToyPipeline(), CONDITION.text, algorithm="zero_order", verifier=brightness)


def test_other_families_are_not_driven() -> None:
    assert DiscreteFlowSampler.accepts(ToyPipeline())
    assert not DiscreteFlowSampler.accepts(ToyPipeline(family="masked"))
    assert not DiscreteFlowSampler.accepts(object())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guidance": 2.0}, "must be one of num_inference_steps.*did you mean 'guidance_scale'"),
        ({"num_inference_steps": 0}, "num_inference_steps must be at least 1 but got 0"),
        ({"temperature": 0.0}, "temperature must be above 0 but got 0"),
        ({"temperature": "hot"}, "temperature must be of type float but got 'hot'"),
        ({"top_p": 1.5}, r"top_p in \[0, 1\] but got 0 and 1.5"),
        ({"a": -1.0}, "needs c and a above 0"),
        ({"strict_reference": 1}, "strict_reference must be of type bool but got 1"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sampler_of(**settings)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (Condition("a star", negative_text="blurry"), "must have no negative text but got 'blurry'"),
        (Condition("a star", embeddings={"prompt_embeds": torch.zeros(1, 2)}), "but got prompt_embeds"),
        (Condition("a star", overrides={"tau": 2.0}), "must be among none but got tau; set them in"),
        (Condition("a star " * 50), "at most 200 characters"),
    ],
)
def test_conditions_that_the_model_cannot_take(condition: Condition, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sampler_of().init(condition, (0,), seed=0)


def test_moves_of_others_are_refused() -> None:
    from tts_vision.testing.toys import GaussianMixtureSampler

    toy = GaussianMixtureSampler(num_steps=4)
    state = toy.init(CONDITION, (0,), seed=0)
    with pytest.raises(CapabilityError, match="'path_noise' needs the sampler of a discrete flow"):
        toy.apply(PathNoise(0.5), state)
    with pytest.raises(ConfigError, match=r"share must be in \[0, 1\] but got 2"):
        PathNoise(2.0)
    assert Renoise(1).target(3) == 1
