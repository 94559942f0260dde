"""Previews by a few cheap steps: where they end, what they cost, and that they leave their particle alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tiny_pipelines import TINY, TinyPipeline, with_scheduler
from tts_vision.algorithms.beam_search import beam_search
from tts_vision.algorithms.fk_steering import fk_steering
from tts_vision.condition import Condition
from tts_vision.config import SamplerOptions
from tts_vision.context import SearchContext
from tts_vision.errors import BudgetSpent, ConfigError
from tts_vision.ledger import Budget, Ledger
from tts_vision.moves import PREVIEW
from tts_vision.pipelines.diffusers_sampler import DiffusersSampler
from tts_vision.pipelines.driven import DENOISERS, modules
from tts_vision.pipelines.rollout import Coarse
from tts_vision.pipelines.stochastic import Level
from tts_vision.rehearsal import rehearse
from tts_vision.rng import row_seed
from tts_vision.testing.toys import TargetReward
from tts_vision.types import Prompt, State

CONDITION, OTHER = Condition("two red circles"), Condition("three blue squares")
STEPS = 6
FIRST_ORDER = [
    ("stable_diffusion", "ddim"),
    ("stable_diffusion", "euler"),
    ("stable_diffusion_v", None),
    ("flux", None),
    ("stable_diffusion_3", None),
    ("cogview4", None),
]


def build(name: str, scheduler: str | None = None) -> Any:
    pipe = TINY[name].build()
    return with_scheduler(pipe, scheduler) if scheduler else pipe


def sampler_of(
    pipe: Any, entry: TinyPipeline, preview: str = "rollout:2", **options: Any
) -> DiffusersSampler:
    kwargs = {**entry.kwargs, "num_inference_steps": STEPS, **options.pop("pipeline_kwargs", {})}
    return DiffusersSampler(pipe, options=SamplerOptions(pipeline_kwargs=kwargs, preview=preview, **options))


def pixels(sample: Any) -> np.ndarray:
    return np.asarray(sample).astype(int)


def farthest(some: Any, others: Any) -> int:
    return max(int(np.abs(pixels(a) - pixels(b)).max()) for a, b in zip(some, others, strict=True))


def begun(sampler: DiffusersSampler, uids: tuple[int, ...], step: int, seed: int = 5) -> State:
    """Particles at a step."""
    state = sampler.init(CONDITION, uids, seed=seed)
    return sampler.advance(state, step) if step else state


def ends(sampler: DiffusersSampler, state: State) -> torch.Tensor:
    """The latents that a rollout ends with."""
    return sampler._in_groups(state, sampler._group, sampler._rolled_out).latents


@pytest.mark.parametrize("pair", FIRST_ORDER, ids=str)
def test_over_all_remaining_steps_it_is_the_sample(pair: tuple[str, str | None]) -> None:
    entry, pipe = TINY[pair[0]], build(*pair)
    sampler = sampler_of(pipe, entry, f"rollout:{STEPS}")
    for step in (0, 1, STEPS - 1):
        state = begun(sampler, (0, 1), step)
        end = sampler.advance(state, STEPS - step)
        tolerance = 2e-3 * float(end.latents.abs().max())
        assert torch.allclose(ends(sampler, state), end.latents, rtol=0, atol=tolerance)
        assert farthest(sampler.preview(state), sampler.decode(end)) <= 1


@pytest.mark.parametrize("pair", [*FIRST_ORDER, ("stable_diffusion", "dpm++"), ("wan", None)], ids=str)
def test_one_step_is_the_estimate_of_the_step_to_come(pair: tuple[str, str | None]) -> None:
    entry, pipe = TINY[pair[0]], build(*pair)
    sampler = sampler_of(pipe, entry, "rollout:1")
    for step in (1, 3):
        state = begun(sampler, (0,), step)
        estimate = sampler.advance(state).carry[PREVIEW]
        assert isinstance(estimate, torch.Tensor)
        levels = sampler._known_levels(CONDITION)
        now, last = levels[step], levels[-1]  # a schedule may end before the noise is gone
        expected = last.alpha * estimate + last.sigma * (state.latents - now.alpha * estimate) / now.sigma
        tolerance = 1e-3 * float(estimate.abs().max())
        assert torch.allclose(ends(sampler, state), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("scheduler", ["ddim", "euler"])
def test_from_noise_it_is_a_plain_call_with_the_timesteps_that_are_left(scheduler: str) -> None:
    """Euler's own call with a list of timesteps; DDIM's steps written out, whose own have one length."""
    entry, pipe = TINY["stable_diffusion"], build("stable_diffusion", scheduler)
    sampler = sampler_of(pipe, entry, "rollout:3")
    found = ends(sampler, sampler.init(CONDITION, (0,), seed=5))
    chosen = sampler._coarse(CONDITION, 0).chosen
    assert chosen == (0, 2, 4)
    euler = with_scheduler(build("stable_diffusion"), "euler")
    reference = pipe.scheduler
    reference.set_timesteps(STEPS)
    timesteps = [int(reference.timesteps[i]) for i in chosen]
    plain = euler if scheduler == "euler" else pipe
    if scheduler == "ddim":
        kept = [float(reference.alphas_cumprod[t]) for t in timesteps]
        kept.append(float(reference.final_alpha_cumprod))
        state = sampler.init(CONDITION, (0,), seed=5)
        x = state.latents
        for i, t in enumerate(timesteps):
            noise = predicted_noise(pipe, entry, x, t)
            x0 = (x - (1 - kept[i]) ** 0.5 * noise) / kept[i] ** 0.5
            x = kept[i + 1] ** 0.5 * x0 + (1 - kept[i + 1]) ** 0.5 * noise
        expected = x
    else:
        expected = plain(
            prompt=CONDITION.text,
            timesteps=timesteps,
            generator=torch.Generator("cpu").manual_seed(5),
            output_type="latent",
            return_dict=False,
            **{k: v for k, v in entry.kwargs.items() if k != "num_inference_steps"},
        )[0]
    tolerance = 2e-3 * float(expected.abs().max())
    assert torch.allclose(found, expected, rtol=0, atol=tolerance)


def predicted_noise(pipe: Any, entry: TinyPipeline, x: torch.Tensor, t: int) -> torch.Tensor:
    """Guided noise of a Stable Diffusion, by its parts."""
    guidance = entry.kwargs.get("guidance_scale", 7.5)
    prompt, negative = pipe.encode_prompt(CONDITION.text, "cpu", 1, True)
    both = pipe.unet(torch.cat([x, x]), t, encoder_hidden_states=torch.cat([negative, prompt])).sample
    without, given = both.chunk(2)
    return without + guidance * (given - without)


def evaluations(pipe: Any) -> tuple[list[int], list[Any]]:
    """Counts rows of forwards of a pipeline's denoiser by hooks of its own."""
    rows: list[int] = []

    def count(module: Any, args: Any, kwargs: Any) -> None:
        x = kwargs.get("hidden_states", kwargs.get("sample", args[0] if args else None))
        rows.append(len(x))

    handles = [m.register_forward_pre_hook(count, with_kwargs=True) for _, m in modules(pipe, DENOISERS)]
    return rows, handles


@pytest.mark.parametrize("name", ["stable_diffusion", "flux", "cogview4", "wan", "stable_diffusion_img2img"])
@pytest.mark.parametrize("k", [1, 2, 9])
def test_the_price_is_what_it_spends(name: str, k: int) -> None:
    entry, pipe, ledger = TINY[name], build(name), Ledger()
    sampler = sampler_of(pipe, entry, f"rollout:{k}")
    state = sampler.advance(sampler.init(CONDITION, (0, 1), seed=0), 1)
    rows, handles = evaluations(pipe)
    sampler.bind(ledger)
    planned = sampler.preview_cost(CONDITION, 1)
    assert not rows, "a price is found without an evaluation"
    sampler.preview(state)
    assert ledger.spent.nfe == sum(rows) == 2 * planned.nfe
    left = sampler.num_steps - 1
    assert planned.nfe == sampler.cost(CONDITION, 1, 1).nfe * min(k, left)
    assert sampler.preview_cost(CONDITION, sampler.num_steps).nfe == 0
    for handle in handles:
        handle.remove()


SCHEDULERS = [
    ("stable_diffusion", None),
    ("stable_diffusion", "dpm++"),
    ("stable_diffusion", "unipc"),
    ("stable_diffusion", "euler"),
    ("stable_diffusion", "heun"),
    ("flux", None),
    ("wan", None),
    ("stable_diffusion_img2img", None),
]


@pytest.mark.parametrize("pair", SCHEDULERS, ids=str)
def test_the_particle_is_left_alone(pair: tuple[str, str | None]) -> None:
    if pair[1] is not None and pair[1] not in TINY[pair[0]].extra_schedulers:
        pytest.skip("not among its schedulers")
    entry, pipe = TINY[pair[0]], build(*pair)
    sampler, quiet = sampler_of(pipe, entry), sampler_of(pipe, entry, "decode")
    watched = sampler.init(CONDITION, (0, 1), seed=3)
    plain = quiet.init(CONDITION, (0, 1), seed=3)
    for step in range(sampler.num_steps):
        if step:
            before = {k: v.clone() for k, v in watched.carry.items() if isinstance(v, torch.Tensor)}
            latents = watched.latents.clone()
            sampler.preview(watched)
            assert torch.equal(watched.latents, latents) and watched.step == step
            assert all(torch.equal(watched.carry[k], v) for k, v in before.items())  # type: ignore[arg-type]
        watched, plain = sampler.advance(watched), quiet.advance(plain)
        assert torch.equal(watched.latents, plain.latents)
    assert type(pipe.scheduler) is type(build(*pair).scheduler)


@pytest.mark.parametrize("name", ["stable_diffusion", "flux"])
def test_rows_are_independent_and_forks_agree(name: str) -> None:
    entry, pipe = TINY[name], build(name)
    sampler = sampler_of(pipe, entry)
    first = sampler.advance(sampler.init(CONDITION, (0, 1), seed=0), 3)
    second = sampler.advance(sampler.init(OTHER, (2,), seed=0), 3)
    mixed = State.cat([first, second]).select([2, 0, 1, 0], uids=(2, 0, 1, 7))
    together = sampler.preview(mixed)
    alone = [sampler.preview(mixed.select([i]))[0] for i in range(4)]
    assert farthest(together, alone) <= 1
    assert farthest([together[1]], [together[3]]) <= 1, "a fork that has not moved is its parent"
    assert farthest([together[0]], [together[1]]) > 1
    again = sampler.preview(mixed)
    assert farthest(again, together) == 0, "there is no chance in it"


def test_it_shows_the_noise_of_the_last_step() -> None:
    entry, pipe = TINY["stable_diffusion"], build("stable_diffusion")
    sampler = sampler_of(pipe, entry, stochastic=True)
    assert sampler.preview_shows_step and not sampler_of(pipe, entry, "decode").preview_shows_step
    parent = sampler.advance(sampler.init(CONDITION, (0,), seed=0), 2)
    twins = sampler.advance(parent.select([0, 0], uids=(0, 5)), 1)
    assert farthest(*[[preview] for preview in sampler.preview(twins)]) > 1
    estimates = sampler_of(pipe, entry, "decode", stochastic=True).preview(twins)
    assert farthest([estimates[0]], [estimates[1]]) <= 1


def test_a_renoised_particle_has_a_rollout_and_no_estimate() -> None:
    entry, pipe = TINY["stable_diffusion"], build("stable_diffusion")
    sampler = sampler_of(pipe, entry)
    back = sampler.renoise(sampler.advance(sampler.init(CONDITION, (0,), seed=0), 4), 2)
    assert PREVIEW not in back.carry and len(sampler.preview(back)) == 1


def test_steps_spread_over_what_is_left() -> None:
    levels = [Level(1 - s / 10, s / 10) for s in range(10, -1, -1)]
    assert Coarse.of(levels, 4, 0, 2) == Coarse(4, (4, 7), 10)
    assert Coarse.of(levels, 4, 3, 2) == Coarse(7, (7, 10), 13)
    assert Coarse.of(levels, 8, 0, 5).chosen == (8, 9)
    assert Coarse.of(levels, 0, 0, 4).chosen == (0, 2, 5, 8)
    for step in range(10):
        for steps in range(1, 12):
            chosen = Coarse.of(levels, step, 0, steps).chosen
            assert chosen[0] == step and len(set(chosen)) == min(steps, 10 - step) and max(chosen) < 10
    twice = [levels[0], *(level for level in levels[1:-1] for _ in range(2)), levels[-1]]
    assert len(Coarse.of(twice, 1, 0, 99).chosen) == 9, "half-steps of a second-order solver are no steps"


@pytest.mark.parametrize(
    ("name", "scheduler", "message"),
    [
        ("latent_consistency", None, "is driven whole, because it decodes a variable of its loop"),
        ("stable_diffusion", "kdpm2", "evaluates the network between them"),
    ],
)
def test_where_it_cannot_be(name: str, scheduler: str | None, message: str) -> None:
    if scheduler == "kdpm2":
        from diffusers import KDPM2DiscreteScheduler

        pipe = build(name)
        pipe.scheduler = KDPM2DiscreteScheduler.from_config(pipe.scheduler.config)
        pipe.scheduler.set_timesteps(4)
    else:
        pipe = build(name)
    with pytest.raises(
        ConfigError, match=f"A rollout preview needs a pipeline .*{message}.*preview='decode'"
    ):
        sampler_of(pipe, TINY[name])


def test_settings() -> None:
    assert SamplerOptions(preview="rollout:4").preview == "rollout:4"
    for wrong in ("rollout", "rollout:0", "rollout:-1", "rollout:2.5", "rollouts:2", "x0"):
        with pytest.raises(
            ConfigError, match="preview must be 'decode', 'expected', 'complete' or 'rollout:k'"
        ):
            SamplerOptions(preview=wrong)
    with pytest.raises(ConfigError, match="'decode', the estimate of each step, or 'rollout:k'"):
        sampler_of(build("flux"), TINY["flux"], "complete")


@pytest.mark.parametrize("algorithm", [beam_search, fk_steering], ids=lambda a: a.__name__)
def test_searches_pay_what_was_rehearsed_and_stay_within_budget(algorithm: Any) -> None:
    entry, pipe = TINY["stable_diffusion"], build("stable_diffusion")
    params: dict[str, Any] = {"width": 2, "scales": [2, 4]} if algorithm is beam_search else {"n": 2}

    def context(budget: Budget | None = None, preview: str = "rollout:2") -> SearchContext:
        sampler = sampler_of(pipe, entry, preview, stochastic=True)
        ledger = Ledger(budget) if budget else None
        return SearchContext(sampler, TargetReward(), Prompt(CONDITION.text), seed=0, ledger=ledger)

    planned, ctx, plain = rehearse(context(), algorithm, params), context(), context(preview="decode")
    algorithm(ctx, **params)
    algorithm(plain, **params)
    assert planned is not None and plain.ledger.spent.nfe < ctx.ledger.spent.nfe <= planned.nfe
    tight = context(Budget(nfe=0.6 * ctx.ledger.spent.nfe))
    with pytest.raises(BudgetSpent):
        algorithm(tight, **params)
    assert tight.ledger.spent.nfe <= 0.6 * ctx.ledger.spent.nfe


def test_an_inpainting_loop_blends_at_the_levels_of_the_rollout() -> None:
    entry = TINY.get("stable_diffusion_inpaint")
    if entry is None:
        pytest.skip("no tiny inpainting pipeline")
    sampler = sampler_of(entry.build(), entry, "rollout:2")
    state = sampler.advance(sampler.init(CONDITION, (0,), seed=row_seed(0, 0)), 1)
    end = sampler.advance(state, sampler.num_steps - 1)
    assert farthest(sampler.preview(state), sampler.decode(end)) < 255
