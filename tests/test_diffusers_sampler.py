"""Every tiny pipeline, and one of each kind with every scheduler that it accepts, driven in segments."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from tiny_pipelines import TINY, TinyPipeline, with_scheduler
from tts_vision.condition import Condition
from tts_vision.config import SamplerOptions
from tts_vision.errors import ConfigError, PipelineError
from tts_vision.ledger import Budget, Ledger
from tts_vision.pipelines.diffusers_sampler import DiffusersSampler
from tts_vision.pipelines.schedule import noise_levels
from tts_vision.rng import row_seed
from tts_vision.types import State

PROMPT = Condition("two red circles")
STEPS = 4  # a solver of order two has its history after the first half, and uses it in the second
EVERY_SCHEDULER = {"stable_diffusion", "stable_diffusion_xl", "stable_diffusion_3", "wan", "cogvideox"}
"""One of each kind: epsilon, two encoders, flow, UniPC by default, a history in the loop."""


def schedulers(entry: TinyPipeline) -> tuple[str | None, ...]:
    """The default and every other scheduler; of most pipelines one that has a history."""
    others = entry.extra_schedulers
    if entry.name not in EVERY_SCHEDULER:
        others = tuple(name for name in others if name in ("dpm++", "unipc", "dpm++sde"))[:1]
    return (None, *others)


CELLS = [
    (entry, scheduler)
    for entry in TINY.values()
    for scheduler in schedulers(entry)
    if entry.build.__name__ != "latent_consistency"
]


def build(entry: TinyPipeline, scheduler: str | None = None, dtype: torch.dtype | None = None):
    pipe = entry.build()
    if scheduler is not None:
        pipe = with_scheduler(pipe, scheduler)
    return pipe if dtype is None else pipe.to(dtype)


def sampler_of(pipe, entry: TinyPipeline, steps: int = STEPS, **options) -> DiffusersSampler:
    kwargs = {**entry.kwargs, "num_inference_steps": steps}
    return DiffusersSampler(pipe, options=SamplerOptions(pipeline_kwargs=kwargs, **options))


def plain(pipe, entry: TinyPipeline, seed: int, output_type: str = "latent"):
    return pipe(
        prompt=PROMPT.text,
        num_inference_steps=STEPS,
        generator=torch.Generator("cpu").manual_seed(seed),
        output_type=output_type,
        return_dict=False,
        **entry.kwargs,
    )[0]


def stepwise(sampler: DiffusersSampler, state: State) -> State:
    while state.step < sampler.num_steps:
        state = sampler.advance(state)
    return state


def cell_id(value: object) -> str:
    return value.name if isinstance(value, TinyPipeline) else str(value or "default")


@pytest.fixture(params=CELLS, ids=lambda cell: f"{cell[0].name}-{cell[1] or 'default'}")
def cell(request) -> Iterator[tuple[TinyPipeline, str | None]]:
    yield request.param


def test_stepwise_equals_the_pipelines_own_call_and_rows_are_independent(cell):
    entry, scheduler = cell
    pipe = build(entry, scheduler)
    whole = plain(pipe, entry, seed=5)
    sampler = sampler_of(pipe, entry)
    one = sampler.init(PROMPT, [0], seed=5)
    assert torch.equal(stepwise(sampler, one).latents, whole)
    assert torch.equal(sampler.advance(one, sampler.num_steps).latents, whole)

    half = sampler.num_steps // 2
    three = sampler.advance(sampler.init(PROMPT, [0, 1, 2], seed=5), half)
    rest = sampler.num_steps - half
    finished = sampler.advance(three, rest).latents
    tolerance = {"rtol": 0, "atol": 2e-3 * float(finished.abs().max())}
    torch.testing.assert_close(finished[:1], whole, **tolerance)
    pruned = sampler.advance(three.select([2, 0]), rest).latents
    torch.testing.assert_close(pruned, finished[[2, 0]], **tolerance)
    if sampler.last_noisy_step < 0:
        forked = sampler.advance(three.select([1, 1, 0]), rest).latents
        torch.testing.assert_close(forked, finished[[1, 1, 0]], **tolerance)


@pytest.mark.parametrize(
    "name",
    [n for n, e in TINY.items() if e.decodes and e.modality == "image" and n not in ("latent_consistency",)],
)
def test_decoding_gives_the_pipelines_own_image(name):
    entry = TINY[name]
    pipe = build(entry)
    sampler = sampler_of(pipe, entry)
    state = sampler.advance(sampler.init(PROMPT, [0], seed=3), sampler.num_steps)
    expected = plain(pipe, entry, seed=3, output_type="pil")[0]
    assert np.array_equal(np.asarray(sampler.decode(state)[0]), np.asarray(expected))


@pytest.mark.parametrize(
    "name", ["stable_diffusion", "flux", "cogview4", "wan", "hunyuan_video", "cogvideox"]
)
def test_half_precision_is_bit_identical_too(name):
    entry = TINY[name]
    pipe = build(entry, dtype=torch.bfloat16)
    whole = plain(pipe, entry, seed=5)
    sampler = sampler_of(pipe, entry)
    result = stepwise(sampler, sampler.init(PROMPT, [0], seed=5)).latents
    assert torch.equal(result.to(whole.dtype), whole)


STOCHASTIC = [
    ("stable_diffusion", None),
    ("stable_diffusion", "euler"),
    ("stable_diffusion_v", "dpm++"),
    ("stable_diffusion_xl", None),
    ("stable_diffusion_3", None),
    ("flux", None),
    ("cogview4", None),
    ("wan", None),
]


@pytest.mark.parametrize("name, scheduler", STOCHASTIC)
def test_stochastic_steps_fork_and_stay_row_keyed(name, scheduler):
    entry = TINY[name]
    sampler = sampler_of(build(entry, scheduler), entry, steps=6, stochastic=True)
    assert {"stochastic", "step_noise"} <= sampler.capabilities
    state = sampler.advance(sampler.init(PROMPT, [0, 1, 2], seed=5), 3)
    rest = sampler.num_steps - 3
    finished = sampler.advance(state, rest).latents
    alone = sampler.advance(state.select([1]), rest).latents
    tolerance = {"rtol": 0, "atol": 2e-3 * float(finished.abs().max())}
    torch.testing.assert_close(alone, finished[1:2], **tolerance)
    forks = sampler.advance(state.select([1, 1], uids=[1, 9]), rest).latents
    torch.testing.assert_close(forks[0], finished[1], **tolerance)
    assert (forks[0] - forks[1]).abs().max() > 0.01
    same = sampler.advance(sampler.advance(state, 1), rest - 1).latents
    assert torch.equal(same, finished)


@pytest.mark.parametrize(
    "name, scheduler", [cell for cell in STOCHASTIC if cell[1] != "dpm++" and cell[0] != "wan"]
)
def test_without_noise_the_stochastic_step_is_the_deterministic_one(name, scheduler):
    """At eta 0 the DDIM step of a first-order solver is its own; DPM++ and UniPC are not first-order."""
    entry = TINY[name]
    still = sampler_of(build(entry, scheduler), entry, stochastic=True, eta=0.0)
    own = sampler_of(build(entry, scheduler), entry)
    state = still.init(PROMPT, [0], seed=5)
    a, b = still.advance(state, STEPS - 1).latents, own.advance(state, STEPS - 1).latents
    torch.testing.assert_close(a, b, rtol=0, atol=1e-4 * float(b.abs().max()))


@pytest.mark.parametrize("sde, interpolant", [("ddim", "linear"), ("euler", "linear"), ("euler", "vp")])
def test_step_noise_is_what_was_added(sde, interpolant):
    entry = TINY["flux"]
    sampler = sampler_of(
        build(entry), entry, stochastic=True, sde=sde, interpolant=interpolant, diffusion_norm=1.0
    )
    state = sampler.advance(sampler.init(PROMPT, [0, 1], seed=5), 2)
    added, std = state.carry["step_noise"], state.carry["step_noise_std"]
    assert added.shape == state.latents.shape and float(std[0]) > 0
    assert torch.isfinite(state.latents).all()
    assert abs(float(added.std()) / float(std[0]) - 1) < 0.3


def test_euler_steps_are_for_flow_models():
    entry = TINY["stable_diffusion"]
    with pytest.raises(ConfigError, match=r"flow model.*use sde='ddim'"):
        sampler_of(build(entry), entry, stochastic=True, sde="euler")


@pytest.mark.parametrize(
    "name, scheduler", [("stable_diffusion", None), ("stable_diffusion", "euler"), ("flux", None)]
)
def test_renoised_states_have_the_noise_level_of_the_step(name, scheduler):
    entry = TINY[name]
    sampler = sampler_of(build(entry, scheduler), entry)
    state = sampler.advance(sampler.init(PROMPT, list(range(4)), seed=5), 3)
    back = sampler.renoise(state, 1)
    assert back.step == 1 and set(back.carry) == {"root_uid"}
    levels = sampler._known_levels(PROMPT)
    now, earlier = levels[3], levels[1]
    kept = earlier.alpha / now.alpha
    noise = back.latents - kept * state.latents
    expected = (earlier.sigma**2 - (kept * now.sigma) ** 2) ** 0.5
    assert abs(float(noise.std()) / expected - 1) < 0.1
    start = sampler.renoise(state, 0)
    first = levels[0]
    scale = (first.alpha**2 + first.sigma**2) ** 0.5 if scheduler is None else first.sigma
    kept = first.alpha / now.alpha
    noise = start.latents - kept * state.latents / (1 if name == "flux" or scheduler is None else scale)
    assert abs(float(noise.std()) - 1) < 0.1
    assert torch.isfinite(stepwise(sampler, start).latents).all()


def test_image_to_image_goes_back_to_the_level_of_its_own_step():
    """Its steps are the last of the scheduler's, so its levels are too."""
    entry = TINY["stable_diffusion_img2img"]
    sampler = sampler_of(build(entry), entry, steps=6)
    state = sampler.advance(sampler.init(PROMPT, list(range(4)), seed=5), sampler.num_steps - 1)
    whole = noise_levels(sampler._calls.schedule())
    skipped = len(whole) - 1 - sampler.num_steps
    assert skipped > 0
    for to_step in (0, 1):
        back = sampler.renoise(state, to_step)
        now, earlier = whole[skipped + state.step], whole[skipped + to_step]
        kept = earlier.alpha / now.alpha
        expected = (earlier.sigma**2 - (kept * now.sigma) ** 2) ** 0.5
        assert abs(float((back.latents - kept * state.latents).std()) / expected - 1) < 0.1


def test_the_winner_is_re_made_by_the_plain_pipeline_from_its_seed():
    entry = TINY["stable_diffusion_xl"]
    pipe = build(entry, "euler_a")
    sampler = sampler_of(pipe, entry)
    state = sampler.advance(sampler.init(PROMPT, [3], seed=11), sampler.num_steps)
    assert torch.equal(state.latents, plain(pipe, entry, seed=row_seed(11, 3)))


def test_the_pipeline_is_left_as_it_was():
    entry = TINY["flux"]
    pipe = build(entry)
    before, config = dict(vars(pipe)), dict(pipe.config)
    sampler = sampler_of(pipe, entry)
    sampler.decode(sampler.advance(sampler.init(PROMPT, [0], seed=0), STEPS))
    assert vars(pipe).keys() - before.keys() <= {
        "_guidance_scale",
        "_joint_attention_kwargs",
        "_current_timestep",
        "_interrupt",
        "_num_timesteps",
    }
    assert pipe.scheduler is before["scheduler"] and dict(pipe.config) == config
    assert "forward" not in vars(pipe.text_encoder) and not pipe.transformer._forward_pre_hooks


@pytest.mark.parametrize("name", ["stable_diffusion", "flux", "stable_diffusion_3", "wan"])
def test_the_prompt_is_encoded_once_per_search(name):
    entry = TINY[name]
    pipe = build(entry)
    calls = []
    pipe.text_encoder.register_forward_hook(lambda *_: calls.append(1))
    forward = pipe.text_encoder.forward
    pipe.text_encoder.forward = lambda *a, **k: (ran.append(1), forward(*a, **k))[1]
    ran: list[int] = []
    sampler = sampler_of(pipe, entry)
    state = sampler.init(PROMPT, [0, 1, 2], seed=0)
    once = len(ran)
    state = sampler.advance(state, 2)
    sampler.advance(state.select([0, 2]), 2)
    assert len(ran) == once <= 2  # the prompt and, with guidance, the negative one


UNSEEDED = [(entry, name) for entry in TINY.values() for name in entry.unseeded_schedulers]


@pytest.mark.parametrize("cell", UNSEEDED, ids=lambda cell: f"{cell[0].name}-{cell[1]}")
def test_noise_that_a_pipeline_draws_without_a_generator_is_keyed_too(cell):
    entry, scheduler = cell
    sampler = sampler_of(build(entry, scheduler), entry)
    assert "stochastic" in sampler.capabilities
    state = sampler.init(PROMPT, [0, 1, 2], seed=5)
    finished = sampler.advance(state, sampler.num_steps).latents
    half = sampler.advance(state, 2)
    alone = stepwise(sampler, half.select([1])).latents
    tolerance = {"rtol": 0, "atol": 2e-3 * float(finished.abs().max())}
    torch.testing.assert_close(alone, finished[1:2], **tolerance)
    forks = stepwise(sampler, half.select([1, 1], uids=[1, 9])).latents
    assert (forks[0] - forks[1]).abs().max() > 0.001


def test_the_cost_of_a_sample_is_what_its_loop_will_evaluate():
    """Found out before anything is evaluated, whatever decides about guidance."""
    for name in ("z_image", "qwen_image", "stable_diffusion_3", "pixart_sigma", "flux"):
        entry = TINY[name]
        sampler = sampler_of(build(entry), entry)
        ledger = Ledger()
        state = sampler.init(PROMPT, [0], seed=0)
        expected = sampler.cost(PROMPT, 0, STEPS).nfe
        sampler.bind(ledger)
        assert ledger.spent.nfe == 0
        sampler.advance(state, STEPS)
        assert ledger.spent.nfe == expected, name


@pytest.mark.parametrize("name, scale", [("z_image", 0.5), ("stable_diffusion", 1.0)])
def test_guidance_that_a_pipeline_decides_in_its_own_way_is_counted(name, scale):
    entry = TINY[name]
    kwargs = {**entry.kwargs, "num_inference_steps": STEPS, "guidance_scale": scale}
    sampler = DiffusersSampler(build(entry), options=SamplerOptions(pipeline_kwargs=kwargs))
    state = sampler.init(PROMPT, [0, 1], seed=0)
    expected = sampler.cost(PROMPT, 0, STEPS).nfe
    ledger = Ledger()
    sampler.bind(ledger)
    sampler.advance(state, STEPS)
    assert ledger.spent.nfe == 2 * expected


@pytest.mark.parametrize(
    "name, nfe",
    [
        ("stable_diffusion", 2),
        ("flux", 1),
        ("cogview4", 2),
        ("stable_diffusion_xl_turbo", 1),
        ("z_image", None),
    ],
)
def test_every_evaluation_is_charged_before_it_runs(name, nfe):
    entry = TINY[name]
    sampler = sampler_of(build(entry), entry)
    ledger = Ledger()
    sampler.bind(ledger)
    state = sampler.init(PROMPT, [0, 1, 2], seed=0)
    assert ledger.spent.nfe == 0
    expected = sampler.cost(PROMPT, 0, STEPS).nfe * 3
    sampler.advance(state, STEPS)
    assert ledger.spent.nfe == expected
    if nfe is not None:
        assert expected == nfe * STEPS * 3
    assert {"encode", "denoise"} <= set(ledger.seconds)


def test_a_spent_budget_stops_the_network_and_leaves_the_pipeline_whole():
    from tts_vision.errors import BudgetSpent

    entry = TINY["stable_diffusion"]
    pipe = build(entry)
    scheduler = pipe.scheduler
    sampler = sampler_of(pipe, entry)
    ledger = Ledger(Budget(nfe=5))
    sampler.bind(ledger)
    state = sampler.init(PROMPT, [0], seed=0)
    with pytest.raises(BudgetSpent):
        sampler.advance(state, STEPS)
    assert ledger.spent.nfe == 4 and pipe.scheduler is scheduler and not pipe.unet._forward_pre_hooks


def test_preview_is_the_prediction_of_the_last_step():
    entry = TINY["stable_diffusion"]
    sampler = sampler_of(build(entry), entry)
    state = sampler.init(PROMPT, [0, 1], seed=0)
    with pytest.raises(Exception, match="at least one step"):
        sampler.preview(state)
    last = sampler.advance(sampler.advance(state, STEPS - 1), 1)
    assert len(sampler.preview(last)) == 2
    # the last DDIM step lands on the predicted sample, up to the noise that set_alpha_to_one=False leaves
    close = (last.carry["preview"] - last.latents).abs().mean() / last.latents.abs().mean()
    assert float(close) < 0.2


@pytest.mark.parametrize("name", ["stable_diffusion_img2img", "stable_diffusion_controlnet"])
def test_arguments_pass_through(name):
    entry = TINY[name]
    pipe = build(entry)
    kwargs = {**entry.kwargs, "negative_prompt": "blurry"}
    expected = pipe(
        prompt=PROMPT.text,
        num_inference_steps=STEPS,
        generator=torch.Generator().manual_seed(1),
        output_type="latent",
        return_dict=False,
        **kwargs,
    )[0]
    options = SamplerOptions(pipeline_kwargs={**kwargs, "num_inference_steps": STEPS})
    sampler = DiffusersSampler(pipe, options=options)
    assert torch.equal(stepwise(sampler, sampler.init(PROMPT, [0], seed=1)).latents, expected)


@pytest.mark.parametrize(
    "name, extra",
    [
        ("stable_diffusion_controlnet", {"control_guidance_start": 0.2, "control_guidance_end": 0.6}),
        (
            "stable_diffusion_3",
            {"skip_guidance_layers": [0], "skip_layer_guidance_start": 0.2, "skip_layer_guidance_stop": 0.7},
        ),
        ("cogvideox", {"use_dynamic_cfg": True}),
    ],
)
def test_arguments_that_depend_on_the_step_mean_what_they_say(name, extra):
    entry = TINY[name]
    pipe = build(entry)
    kwargs = {**entry.kwargs, **extra, "num_inference_steps": STEPS}
    expected = pipe(
        prompt=PROMPT.text,
        generator=torch.Generator().manual_seed(1),
        output_type="latent",
        return_dict=False,
        **kwargs,
    )[0]
    sampler = DiffusersSampler(pipe, options=SamplerOptions(pipeline_kwargs=kwargs))
    state = sampler.init(PROMPT, [0], seed=1)
    cost = sampler.cost(PROMPT, 0, STEPS).nfe
    ledger = Ledger()
    sampler.bind(ledger)
    assert torch.equal(stepwise(sampler, state).latents, expected)
    assert ledger.spent.nfe == cost


def test_unknown_arguments_are_refused():
    entry = TINY["flux"]
    with pytest.raises(ConfigError, match=r"guidence_scale.*did you mean 'guidance_scale'"):
        DiffusersSampler(build(entry), options=SamplerOptions(pipeline_kwargs={"guidence_scale": 2}))
    with pytest.raises(ConfigError, match="set by the search"):
        DiffusersSampler(build(entry), options=SamplerOptions(pipeline_kwargs={"latents": None}))
    with pytest.raises(ConfigError, match="num_inference_steps must be at least 1"):
        DiffusersSampler(build(entry), options=SamplerOptions(pipeline_kwargs={"num_inference_steps": 0}))


def test_a_prompt_that_would_be_cut_off_is_refused():
    entry = TINY["stable_diffusion"]
    sampler = sampler_of(build(entry), entry)
    with pytest.raises(ConfigError, match=r"at most \d+ tokens.*shorten it"):
        sampler.init(Condition("circle " * 500), [0], seed=0)


def test_what_cannot_be_driven_says_why():
    with pytest.raises(PipelineError, match="no diffusers pipeline"):
        DiffusersSampler(object())


def test_a_loop_that_cannot_be_continued_is_driven_whole():
    """LCM's own loop decodes a variable that its latents do not hold."""
    entry = TINY["latent_consistency"]
    pipe = entry.build()
    sampler = sampler_of(pipe, entry)
    assert sampler.num_steps == 1 and sampler.capabilities == {"whole", "noise", "moves"}
    state = sampler.init(PROMPT, [0, 3], seed=5)
    expected_nfe = sampler.cost(PROMPT, 0, 1).nfe
    ledger = Ledger()
    sampler.bind(ledger)
    finished = sampler.advance(state)
    assert ledger.spent.nfe == 2 * expected_nfe == 2 * STEPS
    for image, uid in zip(sampler.decode(finished), (0, 3)):
        expected = plain(pipe, entry, seed=row_seed(5, uid), output_type="pil")[0]
        assert np.array_equal(np.asarray(image), np.asarray(expected))
    assert "decodes a variable" in sampler.facts(PROMPT)["driven_whole"]
    with pytest.raises(ConfigError, match="driven whole, because it decodes a variable"):
        sampler_of(pipe, entry, stochastic=True)
