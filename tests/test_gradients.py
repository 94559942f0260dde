"""Gradients through pipelines: as autograd by hand, row by row, paid for, the pipeline left whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from test_diffusers_sampler import PROMPT as CONDITION
from test_diffusers_sampler import build
from test_diffusers_sampler import sampler_of as sampler_in_steps
from torch import Tensor

from tiny_pipelines import TINY
from toy_plugins import MODEL, VERIFIER
from toy_search import events, toy_context
from tts_vision import search
from tts_vision.config import RunConfig
from tts_vision.errors import BudgetSpent, CapabilityError, ConfigError, PipelineError, VerifierError
from tts_vision.gradients import gradient_by_step, require_gradients, safe_rewards, with_gradient
from tts_vision.ledger import Budget, Ledger
from tts_vision.resolve import Live, prepare
from tts_vision.testing.contracts import SamplerContract, kill_everywhere
from tts_vision.testing.toys import GaussianMixtureSampler, TargetReward
from tts_vision.types import Cost, Media, Prompt, Score, State, Video
from tts_vision.verifier import ALONE, Asked, Verifier

PIPELINES = [
    "stable_diffusion",
    "stable_diffusion_xl",
    "stable_diffusion_3",
    "flux",
    "pixart_sigma",
    "cogview4",
    "wan",
]
PROMPT = Prompt(CONDITION.text)
sampler_of = partial(sampler_in_steps, steps=6)


def ramp(pixels: Tensor) -> Tensor:
    """A smooth reward that no two pixels share alike."""
    flat = pixels.flatten(1)
    weights = torch.linspace(0.5, 1.5, flat.shape[1], dtype=flat.dtype)
    return (flat * weights).mean(1) + flat.square().mean(1)


class Ramp(Verifier):
    """`ramp` as a verifier of images and clips."""

    name = "ramp"
    accepts = frozenset({"image", "video"})
    differentiable = True

    def score(self, media: Sequence[Media], prompts: Sequence[Prompt], asked: Asked = ALONE) -> list[Score]:
        from torchvision.transforms.functional import to_tensor

        clips = [m.frames.permute(0, 3, 1, 2) / 255 if isinstance(m, Video) else to_tensor(m) for m in media]
        return [Score(value=float(ramp(clip[None])[0])) for clip in clips]

    def rewards(self, pixels: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return ramp(pixels)


@pytest.mark.parametrize("name", PIPELINES)
def test_the_gradient_is_that_of_the_plain_call(name: str) -> None:
    """The pipeline's own undecorated call, from the same noise, differentiated without this toolkit."""
    entry = TINY[name]
    pipe = build(entry)
    sampler = sampler_of(pipe, entry)
    state = sampler.init(CONDITION, [0], seed=5)
    x = state.latents.clone().requires_grad_()
    with torch.enable_grad():
        decoded = type(pipe).__call__.__wrapped__(
            pipe,
            prompt=CONDITION.text,
            latents=x.clone(),
            num_inference_steps=sampler.num_steps,
            output_type="pt",
            return_dict=False,
            **entry.kwargs,
        )[0]
        reward = ramp(decoded)
        (expected,) = torch.autograd.grad(reward.sum(), x)
    ahead = sampler.gradient(state, sampler.num_steps, ramp)
    assert ahead.carry["reward"].tolist() == pytest.approx(reward.tolist(), abs=1e-6)
    difference = (ahead.carry["gradient"] - expected).norm() / expected.norm()
    assert float(expected.norm()) > 0 and float(difference) < 1e-5
    assert torch.equal(ahead.latents, sampler.advance(state, sampler.num_steps).latents)


def test_the_gradient_of_a_preview_is_that_of_one_evaluation_by_hand() -> None:
    """Stable Diffusion with DDIM, written out: guidance, Tweedie's estimate, decoding."""
    entry = TINY["stable_diffusion"]
    pipe = build(entry)
    sampler = sampler_of(pipe, entry)
    state = sampler.advance(sampler.init(CONDITION, [0, 1], seed=5), 2)
    pipe.scheduler.set_timesteps(sampler.num_steps)
    t = pipe.scheduler.timesteps[2]
    alpha_bar = float(pipe.scheduler.alphas_cumprod[int(t)])
    prompt, negative = pipe.encode_prompt(CONDITION.text, "cpu", 2, True)
    x = state.latents.clone().requires_grad_()
    with torch.enable_grad():
        output = pipe.unet(torch.cat([x, x]), t, torch.cat([negative, prompt])).sample
        without, given = output.chunk(2)
        scale = entry.kwargs.get("guidance_scale", 7.5)
        eps = without + scale * (given - without)
        x0 = (x - math.sqrt(1 - alpha_bar) * eps) / math.sqrt(alpha_bar)
        decoded = pipe.vae.decode(x0 / pipe.vae.config.scaling_factor).sample
        reward = ramp((decoded / 2 + 0.5).clamp(0, 1))
        (expected,) = torch.autograd.grad(reward.sum(), x)
    ahead = sampler.gradient(state, 1, ramp)
    assert ahead.carry["reward"].tolist() == pytest.approx(reward.tolist(), abs=1e-6)
    assert float((ahead.carry["gradient"] - expected).norm() / expected.norm()) < 1e-5
    assert torch.equal(ahead.latents, sampler.advance(state).latents)


@pytest.mark.parametrize(
    ("name", "scheduler"),
    [
        ("stable_diffusion", "dpm++"),
        ("stable_diffusion_xl", "euler"),
        ("stable_diffusion_xl_turbo", None),
        ("stable_diffusion_img2img", None),
        ("flux", "unipc"),
        ("cogvideox", None),
    ],
)
def test_the_gradient_is_the_slope_and_rows_are_independent(name: str, scheduler: str | None) -> None:
    sampler = sampler_of(build(TINY[name], scheduler), TINY[name])
    ledger = Ledger()
    sampler.bind(ledger)
    SamplerContract().test_gradient_is_the_slope(sampler, ledger, CONDITION, 1e-4)


@pytest.mark.parametrize("name", ["stable_diffusion", "flux", "cogview4"])
def test_stochastic_steps_are_differentiated_with_their_noise_held(name: str) -> None:
    sampler = sampler_of(build(TINY[name]), TINY[name], stochastic=True)
    state = sampler.advance(sampler.init(CONDITION, [0, 7], seed=5), 2)
    ahead, plain = sampler.gradient(state, 1, ramp), sampler.advance(state)
    assert torch.equal(ahead.latents, plain.latents)
    assert torch.equal(ahead.carry["step_noise"], plain.carry["step_noise"])
    assert not any(isinstance(v, Tensor) and v.requires_grad for v in ahead.carry.values())


def test_noise_that_is_scaled_on_entry_is_told() -> None:
    sampler = sampler_of(build(TINY["stable_diffusion_xl"], "euler"), TINY["stable_diffusion_xl"])
    start = sampler.init(CONDITION, [0], seed=5)
    first = sampler.gradient(start, 1, ramp)
    scale = float(first.carry["gradient_scale"][0])
    assert scale > 2
    assert torch.allclose(gradient_by_step(first) * scale, first.carry["gradient"])
    second = sampler.gradient(sampler.advance(start), 1, ramp)
    assert second.carry["gradient_scale"].tolist() == [1.0]


@pytest.mark.parametrize("name", ["flux", "stable_diffusion"])
def test_the_guidance_gain_is_how_far_a_step_moves(name: str) -> None:
    """A shift of the model's score by one moves the step by the gain: checked on the step's own formula."""
    sampler = sampler_of(build(TINY[name]), TINY[name])
    state = sampler.advance(sampler.init(CONDITION, [0], seed=5), 2)
    ahead = sampler.gradient(state, 1, ramp)
    levels = sampler._known_levels(CONDITION)
    now, then = levels[2], levels[3]
    eps = -now.sigma  # the change of the noise estimate by a score of one
    moved = then.alpha * (-now.sigma * eps) / now.alpha + then.sigma * eps
    assert float(ahead.carry["guidance_gain"][0]) == pytest.approx(moved)
    assert moved > 0


# The pipeline is left as it was


def test_the_pipeline_is_left_as_it_was() -> None:
    entry = TINY["stable_diffusion"]
    pipe = build(entry)
    pipe.unet.requires_grad_(True)
    pipe.safety_checker = None
    networks = [pipe.unet, pipe.vae, pipe.text_encoder]
    before = [[p.requires_grad for p in network.parameters()] for network in networks]
    sampler = sampler_of(pipe, entry, recompute=True)
    state = sampler.init(CONDITION, [0], seed=0)
    sampler.gradient(state, sampler.num_steps, ramp)
    assert [[p.requires_grad for p in network.parameters()] for network in networks] == before
    assert all(p.grad is None for network in networks for p in network.parameters())
    assert not pipe.unet.is_gradient_checkpointing and not pipe.vae.is_gradient_checkpointing
    assert not {"to", "forward"} & (set(vars(pipe.vae)) | set(vars(pipe.unet)))
    assert "scheduler" in vars(pipe) and not pipe.unet._forward_pre_hooks
    assert torch.is_grad_enabled()
    with torch.no_grad():
        sampler.gradient(state, 1, ramp)
        assert not torch.is_grad_enabled()


def test_a_failure_leaves_it_whole_too() -> None:
    entry = TINY["stable_diffusion"]
    pipe = build(entry)
    pipe.unet.requires_grad_(True)
    sampler = sampler_of(pipe, entry)

    def broken(pixels: Tensor) -> Tensor:
        raise RuntimeError("no reward")

    with torch.no_grad(), pytest.raises(RuntimeError, match="no reward"):
        sampler.gradient(sampler.init(CONDITION, [0], seed=0), 1, broken)
    assert all(p.requires_grad for p in pipe.unet.parameters())
    assert "to" not in vars(pipe.vae) and torch.is_grad_enabled()
    assert not sampler.advance(sampler.init(CONDITION, [0], seed=0)).latents.requires_grad


def test_the_prompt_is_encoded_once_and_without_a_graph() -> None:
    entry = TINY["stable_diffusion"]
    pipe = build(entry)
    pipe.text_encoder.requires_grad_(True)
    forward, ran = pipe.text_encoder.forward, []
    pipe.text_encoder.forward = lambda *a, **k: (ran.append(torch.is_grad_enabled()), forward(*a, **k))[1]
    sampler = sampler_of(pipe, entry)
    state = sampler.gradient(sampler.init(CONDITION, [0, 1], seed=0), 1, ramp)
    sampler.gradient(state, 1, ramp)
    assert ran == [False, False]  # the prompt and the negative one


def test_a_half_precision_autoencoder_that_is_raised_for_decoding() -> None:
    """Stable Diffusion XL decodes in float32 and lowers its autoencoder at once; gradients still find it."""
    entry = TINY["stable_diffusion_xl"]
    pipe = build(entry, dtype=torch.float16)
    pipe.vae.register_to_config(force_upcast=True)
    sampler = sampler_of(pipe, entry)
    half = sampler.gradient(sampler.init(CONDITION, [0], seed=5), 1, ramp)
    assert pipe.vae.dtype == torch.float16 and "to" not in vars(pipe.vae)
    whole = sampler_of(build(entry), entry)
    full = whole.gradient(whole.init(CONDITION, [0], seed=5), 1, ramp)
    cosine = torch.nn.functional.cosine_similarity(
        half.carry["gradient"].flatten(), full.carry["gradient"].flatten(), dim=0
    )
    assert float(cosine) > 0.95


def test_the_safety_checker_looks_at_finished_images_only() -> None:
    entry = TINY["stable_diffusion"]
    pipe = build(entry)
    seen = []

    def check(images: Any, clip_input: Any) -> Any:
        seen.append(len(images))
        return images, [False] * len(images)

    pipe.safety_checker = check
    pipe.feature_extractor = lambda images, return_tensors: type(
        "Batch", (), {"to": lambda self, *a: self, "pixel_values": torch.zeros(len(images))}
    )()
    sampler = sampler_of(pipe, entry)
    state = sampler.gradient(sampler.init(CONDITION, [0], seed=0), sampler.num_steps, ramp)
    assert not seen and pipe.safety_checker is check
    sampler.decode(state)
    assert seen == [1]


def test_offloaded_pipelines_say_that_gradients_cannot_follow() -> None:
    entry = TINY["flux"]
    pipe = build(entry)
    pipe.transformer._hf_hook = object()
    sampler = sampler_of(pipe, entry)
    assert "differentiable" not in sampler.capabilities
    with pytest.raises(CapabilityError, match=r"needs a sampler with 'differentiable'.*without offloading"):
        toy_context(sampler, Ramp()).gradient(State.initial(torch.zeros(1), (0,), CONDITION, 0))


def test_a_decoder_without_gradients_is_told() -> None:
    entry = TINY["stable_diffusion"]
    pipe = build(entry)
    decode = pipe.vae.decode
    pipe.vae.decode = lambda z, **kwargs: decode(z.detach(), **kwargs)
    sampler = sampler_of(pipe, entry)
    with pytest.raises(PipelineError, match="decode differentiably"):
        sampler.gradient(sampler.init(CONDITION, [0], seed=0), 1, ramp)


# Memory and cost


def kept_bytes(work: Callable[[], Any]) -> int:
    """The most bytes that graphs held at once for the way back."""
    held = most = 0

    class Held:
        def __init__(self, tensor: Tensor) -> None:
            nonlocal held, most
            self.tensor, self.size = tensor, tensor.numel() * tensor.element_size()
            held += self.size
            most = max(most, held)

        def __del__(self) -> None:
            nonlocal held
            held -= self.size

    with torch.autograd.graph.saved_tensors_hooks(Held, lambda kept: kept.tensor):
        work()
    return most


@pytest.mark.parametrize("name", ["stable_diffusion", "cogview4"])
def test_computing_again_gives_the_same_gradient_from_less_memory(name: str) -> None:
    entry, results, memory, costs = TINY[name], [], [], []
    for recompute in (False, None, True):
        sampler = sampler_of(build(entry), entry, recompute=recompute)
        state = sampler.init(CONDITION, [0], seed=5)
        ledger = Ledger()
        sampler.bind(ledger)
        found: list[Tensor] = []
        memory.append(
            kept_bytes(lambda: found.append(sampler.gradient(state, 6, ramp).carry["gradient"]))  # noqa: B023
        )
        results.append(found[0])
        costs.append(ledger.spent.nfe / sampler.cost(CONDITION, 0, 6).nfe)
        assert ledger.spent.nfe == sampler.gradient_cost(CONDITION, 0, 6).nfe
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
    assert memory[0] > 2 * memory[1] > 0
    assert memory[1] >= memory[2]
    # forth and back; the steps again; their blocks again
    assert costs == [2, 3, 4]


def test_one_step_on_a_cpu_is_computed_once() -> None:
    sampler = sampler_of(build(TINY["flux"]), TINY["flux"])
    assert sampler.gradient_cost(CONDITION, 0, 1) == sampler.cost(CONDITION, 0, 1) * 2


def test_going_back_is_charged_before_it_runs() -> None:
    sampler = sampler_of(build(TINY["stable_diffusion"]), TINY["stable_diffusion"])
    state = sampler.init(CONDITION, [0], seed=0)
    once = sampler.cost(CONDITION, 0, 1).nfe
    sampler.bind(Ledger(Budget(nfe=2 * once - 1)))
    with pytest.raises(BudgetSpent):
        sampler.gradient(state, 1, ramp)


# Gradients in a search


def test_a_context_charges_and_records_a_gradient() -> None:
    ctx = toy_context(GaussianMixtureSampler(num_steps=5, guidance=True))
    state = ctx.advance(ctx.init(3), 2)
    before = ctx.ledger.spent
    ahead, rewards = ctx.gradient(state)
    assert ctx.ledger.spent == before + Cost(nfe=3 * 4, decodes=3, verifier_calls=3)
    assert ctx.ledger.calls == {"target_reward": 3}
    (event,) = events(ctx, "gradient")
    assert (event.uids, event.from_step, event.step) == (state.uids, 2, 3)
    assert event.backwards == 6 and event.reasons == (None,) * 3
    assert list(event.rewards) == rewards.tolist() == ahead.carry["reward"].tolist()
    assert torch.equal(ahead.carry["origin"], state.latents)
    each = ctx.cost(1, step=2, gradient=True, scored=False)
    assert each * 3 == Cost(nfe=12, decodes=3, verifier_calls=3)
    assert ctx.measure(ahead, "reward").tolist() == rewards.tolist()


@pytest.mark.parametrize("max_batch", [1, 2])
def test_micro_batches_change_no_gradient(max_batch: int) -> None:
    found = []
    for size in (None, max_batch):
        ctx = toy_context(GaussianMixtureSampler(num_steps=5, order=2), max_batch=size)
        state, rewards = ctx.gradient(ctx.advance(ctx.init(5), 2), 2)
        found.append((state.carry["gradient"], rewards, ctx.ledger.spent))
    assert torch.allclose(found[0][0], found[1][0]) and torch.allclose(found[0][1], found[1][1])
    assert found[0][2] == found[1][2]


def test_memory_that_runs_out_halves_the_batch() -> None:
    ctx = toy_context(GaussianMixtureSampler(num_steps=5, max_rows=2))
    whole = toy_context(GaussianMixtureSampler(num_steps=5))
    state, rewards = ctx.gradient(ctx.init(5))
    expected, same = whole.gradient(whole.init(5))
    assert torch.allclose(state.carry["gradient"], expected.carry["gradient"])
    assert rewards.tolist() == same.tolist() and ctx.max_batch == 2
    assert ctx.ledger.spent == whole.ledger.spent


def test_a_gradient_that_cannot_be_paid_for_is_not_begun() -> None:
    ctx = toy_context(nfe=19)
    state = ctx.init(2)
    with pytest.raises(BudgetSpent):
        ctx.gradient(state, 5)
    assert ctx.ledger.spent == Cost()
    calls = toy_context(verifier_calls=1)
    with pytest.raises(BudgetSpent):
        calls.gradient(calls.init(2))
    assert calls.ledger.spent == Cost()


class Picky(TargetReward):
    """Fails on positions right of 0, and answers NaN above 0."""

    def rewards(self, pixels: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        if (pixels[:, 0] > 0).any():
            raise ValueError("too far right")
        return torch.where(pixels[:, 1, 0, 0] > 0, torch.nan, super().rewards(pixels, prompts))


def test_a_sample_without_a_reward_costs_only_itself() -> None:
    ctx = toy_context(GaussianMixtureSampler(num_steps=5), Picky())
    state, rewards = ctx.gradient(ctx.init(16), 5)
    right, above = (state.latents[:, i] > 0 for i in (0, 1))
    assert 0 < int(right.sum()) < 16 and int((~right & above).sum())
    assert torch.equal(rewards.isnan(), right | above)
    (event,) = events(ctx, "gradient")
    for i, reason in enumerate(event.reasons):
        expected = (
            "target_reward raised ValueError: too far right"
            if right[i]
            else "target_reward answered nan"
            if above[i]
            else None
        )
        assert reason == expected
    gradient = state.carry["gradient"]
    assert gradient.isfinite().all() and not gradient[right | above].any()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda pixels: pixels.sum(), r"shape \(2,\), but returned shape \(\)"),
        (lambda pixels: pixels.detach().flatten(1).sum(1), "without a gradient"),
    ],
)
def test_a_verifier_that_breaks_its_promise_is_an_error(answer: Any, message: str) -> None:
    verifier = TargetReward()
    verifier.rewards = lambda pixels, prompts: answer(pixels)  # type: ignore[method-assign]
    with pytest.raises(VerifierError, match=message):
        safe_rewards(verifier, torch.rand(2, 3, 4, 4, requires_grad=True), [PROMPT] * 2)


def test_memory_that_runs_out_in_a_verifier_is_no_failed_sample() -> None:
    verifier = TargetReward()

    def full(pixels: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        raise RuntimeError("DefaultCPUAllocator: not enough memory")

    verifier.rewards = full  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="not enough memory"):
        safe_rewards(verifier, torch.rand(2, 3, 4, 4, requires_grad=True), [PROMPT] * 2)


def test_rows_with_gradients_that_are_no_numbers_have_none() -> None:
    class Steep(GaussianMixtureSampler):
        def gradient(self, state: State, steps: int, reward: Any) -> State:
            ahead = super().gradient(state, steps, reward)
            ahead.carry["gradient"][0, 0] = torch.inf  # type: ignore[index]
            return ahead

    sampler, reward = Steep(), TargetReward()
    state = sampler.init(CONDITION, [0, 1], seed=0)
    ahead = with_gradient(sampler, state, 1, lambda pixels: reward.rewards(pixels, [PROMPT] * 2))
    gradient = ahead.carry["gradient"]
    assert not gradient[0].any() and gradient.isfinite().all()  # type: ignore[union-attr, index]


def test_wrong_numbers_of_steps_are_refused() -> None:
    ctx = toy_context()
    with pytest.raises(ConfigError, match="advanced by 1 to 5 more steps but got 0"):
        ctx.gradient(ctx.init(1), 0)
    with pytest.raises(ConfigError, match="advanced by 1 to 5 more steps but got 6"):
        ctx.gradient(ctx.init(1), 6)


def test_what_is_not_carried_cannot_be_measured() -> None:
    ctx = toy_context()
    with pytest.raises(CapabilityError, match=r"carries 'reward'.*take it from ctx.advance or ctx.gradient"):
        ctx.measure(ctx.init(1), "reward")


def test_a_search_with_gradients_survives_a_kill_anywhere(tmp_path: Any) -> None:
    def algorithm(ctx: Any) -> State:
        state = ctx.advance(ctx.init(3), 1)
        for _ in range(3):
            state, rewards = ctx.gradient(state)
            order = [int(i) for i in rewards.argsort(descending=True)]
            lean = ctx.measure(state, "reward")
            state = ctx.select(state, [order[0], order[0], order[-1]] if lean.max() > -2 else order)
        state = ctx.finish(state)
        ctx.score(state)
        return state

    kill_everywhere(algorithm, lambda: GaussianMixtureSampler(num_steps=6), TargetReward(), tmp_path)


# Errors at the edge


class Blunt(Verifier):
    """A verifier without gradients."""

    name = "blunt"
    accepts = TargetReward.accepts

    def score(self, media: Sequence[Media], prompts: Sequence[Prompt], asked: Asked = ALONE) -> list[Score]:
        return [Score(value=0.0) for _ in media]


@pytest.mark.parametrize("algorithm", ["reno", "das", "gradient_guidance"])
def test_a_verifier_without_gradients_is_refused_before_anything_is_computed(algorithm: str) -> None:
    with pytest.raises(
        CapabilityError, match=rf"Algorithm '{algorithm}' needs a verifier that gives gradients but 'blunt'"
    ):
        search(MODEL, "a", algorithm=algorithm, verifier=Blunt())
    ctx = toy_context(verifier=Blunt())
    with pytest.raises(CapabilityError, match="'blunt' gives none"):
        ctx.gradient(ctx.init(1))
    assert ctx.ledger.spent == Cost()


def test_verifiers_say_whether_they_give_gradients() -> None:
    require_gradients(TargetReward(), "this")
    with pytest.raises(CapabilityError, match=r"^This needs a verifier that gives gradients but 'blunt'"):
        require_gradients(Blunt(), "this")
    with pytest.raises(CapabilityError, match="need a verifier with a differentiable reward but 'blunt'"):
        Blunt().rewards(torch.zeros(1, 3, 4, 4), [PROMPT])


def test_a_sampler_without_gradients_is_refused() -> None:
    class Rigid(GaussianMixtureSampler):
        def __init__(self) -> None:
            super().__init__()
            self.capabilities = self.capabilities - {"differentiable"}

    config = RunConfig(prompt="a", verifier=VERIFIER, model="<Rigid>", algorithm="reno")
    with pytest.raises(CapabilityError, match="'gaussian_mixture' lacks differentiable"):
        prepare(config, Live(pipe=Rigid()))
    ctx = toy_context(Rigid())
    with pytest.raises(CapabilityError, match="needs a sampler with 'differentiable'"):
        ctx.gradient(ctx.init(1))


# Whole searches on tiny pipelines


@pytest.mark.parametrize(
    ("algorithm", "name", "kwargs"),
    [
        ("reno", "flux", {"num_inference_steps": 2}),
        ("gradient_guidance", "stable_diffusion", {"num_inference_steps": 4}),
        ("gradient_guidance", "wan", {"num_inference_steps": 3}),
        ("das", "stable_diffusion_3", {"num_inference_steps": 4}),
    ],
)
def test_algorithms_run_on_pipelines(algorithm: str, name: str, kwargs: dict[str, Any]) -> None:
    entry = TINY[name]
    result = search(
        build(entry),
        "two red circles",
        algorithm=algorithm,
        verifier=Ramp(),
        budget="9x",
        seed=2,
        pipeline_kwargs={**entry.kwargs, **kwargs},
    )
    assert result.spent.nfe <= (result.budget.nfe or 0)
    assert any(event.what == "gradient" for event in result.trace)
    plain = next(c for c in result.population if c.uid == min(c.uid for c in result.population))
    assert result.best.score.value >= plain.score.value


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reno_climbs_on_a_one_step_pipeline(dtype: torch.dtype) -> None:
    entry = TINY["stable_diffusion_xl_turbo"]
    result = search(
        build(entry, dtype=dtype),
        "two red circles",
        algorithm="reno",
        algorithm_params={"n": 1, "iterations": 7, "lr": 20.0},
        verifier=Ramp(),
        budget="60x",
        pipeline_kwargs={**entry.kwargs, "num_inference_steps": 1},
    )
    rewards = [event.rewards[0] for event in result.trace if event.what == "gradient"]
    assert len(rewards) == 6 and rewards[-1] > rewards[3] > rewards[0]
