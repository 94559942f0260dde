"""A search keeps what a pipeline's own call does: edits, plans, texts, frame rates, caches."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from contract import SEED, STEPS, Subject, cost_is_what_hooks_count, stepwise_equals_whole
from families import FAMILIES, photo
from image_models import IMAGES
from test_diffusers_sampler import PROMPT, stepwise

import tts_vision
from tiny_pipelines import TINY, with_scheduler
from tts_vision.condition import Condition
from tts_vision.config import SamplerOptions
from tts_vision.errors import CapabilityError, ConfigError, PipelineError, TTSVisionError
from tts_vision.ledger import Ledger
from tts_vision.pipelines.diffusers_sampler import DiffusersSampler
from tts_vision.pipelines.frame_rates import frame_rate
from tts_vision.pipelines.noise import noise_scale, unit_noise
from tts_vision.pipelines.schedule import clipped, first_order, noise_levels, noisy_steps, predictions
from tts_vision.pipelines.trees import pack_tree, unpack_tree
from tts_vision.rng import row_seed
from tts_vision.types import State, Video

BASE = {**TINY["stable_diffusion"].kwargs, "num_inference_steps": STEPS}


def sampler_of(pipe: Any, settings: dict[str, Any], **options: Any) -> DiffusersSampler:
    return DiffusersSampler(pipe, options=SamplerOptions(pipeline_kwargs=settings, **options))


def own(pipe: Any, settings: dict[str, Any], uid: int = 0, **more: Any) -> torch.Tensor:
    generator = torch.Generator("cpu").manual_seed(row_seed(SEED, uid))
    call = {"prompt": PROMPT.text, **settings, **more}
    return pipe(**call, generator=generator, output_type="latent", return_dict=False)[0]


# Callbacks


def test_edits_of_a_callback_are_in_the_state() -> None:
    pipe = TINY["stable_diffusion"].build()
    steps: list[int] = []

    def brighten(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        steps.append(step)
        return {"latents": tensors["latents"] + 0.1 * (step + 1)}

    settings = {**BASE, "callback_on_step_end": brighten}
    expected = own(pipe, settings, uid=3)
    assert not torch.equal(expected, own(pipe, BASE, uid=3))
    steps.clear()
    sampler = sampler_of(pipe, settings)
    state = stepwise(sampler, sampler.init(PROMPT, [0, 3], seed=SEED).select([1, 0]))
    assert torch.equal(state.latents[:1], expected)
    assert sorted(steps) == sorted([*range(STEPS)] * 2)  # rows one by one, each step once


def test_a_callback_that_interrupts_ends_its_row_alone() -> None:
    pipe = TINY["stable_diffusion"].build()

    def stop(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = step >= 1 and float(tensors["latents"].mean()) > float(limit)
        return {}

    settings = {**BASE, "callback_on_step_end": stop}
    limit = float("inf")
    means = [float(own(pipe, {**BASE, "num_inference_steps": STEPS}, uid=uid).mean()) for uid in (0, 3)]
    limit = sum(means) / 2
    expected = [own(pipe, settings, uid=uid) for uid in (0, 3)]
    sampler = sampler_of(pipe, settings)
    state = stepwise(sampler, sampler.init(PROMPT, [0, 3], seed=SEED))
    for row, latents in zip(state.latents, expected):
        assert torch.equal(row, latents[0])


def cut_guidance(at: int) -> Any:
    """A callback that ends guidance after a step, as the documentation of diffusers does it."""

    def cut(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == at:
            pipe._guidance_scale = 0.0
            return {"prompt_embeds": tensors["prompt_embeds"].chunk(2)[-1]}
        return tensors

    return cut


def test_a_callback_that_edits_other_tensors_goes_on_in_the_next_segment() -> None:
    """Rows, forks and a stored state go on as the own call does."""
    pipe = TINY["stable_diffusion"].build()
    settings = {**BASE, "callback_on_step_end": cut_guidance(1)}
    with pytest.raises(KeyError):  # it did not ask for the tensor that it reads
        own(pipe, settings)
    settings["callback_on_step_end_tensor_inputs"] = ["prompt_embeds"]
    expected = {uid: own(pipe, settings, uid=uid)[0] for uid in (0, 3)}
    assert not torch.equal(expected[0], own(pipe, BASE)[0])
    sampler, ledger = sampler_of(pipe, settings), Ledger()
    sampler.bind(ledger)
    scale = pipe._guidance_scale
    state = sampler.advance(sampler.init(PROMPT, [0, 3], seed=SEED), 2)
    assert pipe._guidance_scale == scale  # as it was found
    kept = {key: rows.shape for key, rows in state.carry.items() if key.startswith("callback/tensors")}
    assert [shape[:2] for shape in kept.values()] == [(2, 1)]
    shared = {**state.shared, "callback": json.loads(json.dumps(state.shared["callback"]))}
    spent = ledger.spent.nfe
    forked = stepwise(sampler, replace(state, shared=shared).select([1, 0, 1]))
    assert ledger.spent.nfe - spent == 3 * (STEPS - 2)  # one evaluation a step and row
    for row, uid in zip(forked.latents, (3, 0, 3)):
        assert torch.equal(row, expected[uid])


def test_the_official_callback_of_sdxl_is_carried() -> None:
    from diffusers.callbacks import SDXLCFGCutoffCallback

    entry = TINY["stable_diffusion_xl"]
    pipe, base = entry.build(), {**entry.kwargs, "num_inference_steps": STEPS}
    callback = SDXLCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=1)
    settings = {**base, "callback_on_step_end": callback}
    expected = own(pipe, settings)
    sampler = sampler_of(pipe, settings)
    assert torch.equal(stepwise(sampler, sampler.init(PROMPT, [0], seed=SEED)).latents, expected)
    assert not torch.equal(expected, own(pipe, base))


def test_a_callback_that_edits_a_mask_and_interrupts_is_carried() -> None:
    entry = FAMILIES["StableDiffusionInpaintPipeline"]
    pipe = entry.build()

    def grow(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = step >= 2 and float(tensors["latents"].mean()) > limit
        return {"mask": torch.ones_like(tensors["mask"])} if step == 0 else {}

    settings = {
        **entry.kwargs,
        "strength": 1.0,
        "num_inference_steps": STEPS,
        "callback_on_step_end": grow,
        "callback_on_step_end_tensor_inputs": ["latents", "mask"],
    }
    limit = float("inf")
    unstopped = [own(pipe, settings, uid=uid) for uid in (0, 3)]
    limit = sum(float(latents.mean()) for latents in unstopped) / 2
    expected = [own(pipe, settings, uid=uid)[0] for uid in (0, 3)]
    sampler = sampler_of(pipe, settings)
    state = stepwise(sampler, sampler.init(PROMPT, [0, 3], seed=SEED))
    assert all(torch.equal(row, latents) for row, latents in zip(state.latents, expected))


def test_a_callback_must_return_the_tensors_that_it_edits() -> None:
    pipe = TINY["stable_diffusion"].build()
    returns = False

    def louder(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        tensors["prompt_embeds"].mul_(1.1)
        return {"prompt_embeds": tensors["prompt_embeds"]} if returns else {}

    settings = {**BASE, "callback_on_step_end": louder}
    settings["callback_on_step_end_tensor_inputs"] = ["prompt_embeds"]
    sampler = sampler_of(pipe, settings)
    with pytest.raises(PipelineError, match="changes prompt_embeds in place; return them"):
        sampler.advance(sampler.init(PROMPT, [0], seed=SEED))
    returns = True
    assert torch.equal(stepwise(sampler, sampler.init(PROMPT, [0], seed=SEED)).latents, own(pipe, settings))


def test_going_back_keeps_what_a_callback_did_before_or_is_refused() -> None:
    pipe = TINY["stable_diffusion"].build()
    settings = {**BASE, "callback_on_step_end": cut_guidance(1)}
    settings["callback_on_step_end_tensor_inputs"] = ["prompt_embeds"]
    sampler = sampler_of(pipe, settings)
    assert "adopt" not in sampler.capabilities
    end = sampler.advance(sampler.init(PROMPT, [0], seed=SEED), STEPS)
    assert "callback" in sampler.renoise(end, 2).shared  # edited after step 1
    assert "callback" not in sampler.renoise(end, 1).shared
    sampler.advance(sampler.renoise(end, 2))
    for to_step in (1, 2):
        stepwise(sampler, sampler.renoise(end, to_step))
    with pytest.raises(CapabilityError, match="has edited tensors of the loop by step 4"):
        sampler.recondition(end)
    settings["callback_on_step_end"] = lambda pipe, step, timestep, tensors: {
        "prompt_embeds": tensors["prompt_embeds"] * 1.1
    }
    sampler = sampler_of(pipe, settings)
    end = sampler.advance(sampler.init(PROMPT, [0], seed=SEED), STEPS)
    with pytest.raises(CapabilityError, match="changed them after steps 0 to 3; let it change them once"):
        sampler.renoise(end, 2)


def test_a_loop_that_takes_no_results_of_its_callback_goes_on_without_them() -> None:
    entry = IMAGES["PRXPipeline"]
    pipe, base = entry.build(), {**entry.kwargs, "num_inference_steps": STEPS}
    settings = {
        **base,
        "callback_on_step_end": lambda pipe, step, t, tensors: {"latents": tensors["latents"] * 2},
    }
    expected = own(pipe, settings)
    assert torch.equal(expected, own(pipe, base))
    sampler = sampler_of(pipe, settings)
    assert torch.equal(stepwise(sampler, sampler.init(PROMPT, [0], seed=SEED)).latents, expected)


def test_a_callback_that_changes_the_network_is_refused() -> None:
    from diffusers.callbacks import IPAdapterScaleCutoffCallback, MultiPipelineCallbacks

    callback = IPAdapterScaleCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=1)
    settings = {**BASE, "callback_on_step_end": MultiPipelineCallbacks([callback])}
    with pytest.raises(ConfigError, match="sets the scale of its adapters for good"):
        sampler_of(TINY["stable_diffusion"].build(), settings)


def test_a_step_leaves_the_state_that_it_starts_from() -> None:
    """Some loops write into the latents that enter them."""
    pipe = TINY["stable_diffusion"].build()

    class InPlace(diffusers.DDIMScheduler):
        def step(self, model_output: Any, timestep: Any, sample: Any, **options: Any) -> Any:
            sample.copy_(super().step(model_output, timestep, sample, return_dict=False)[0])
            return (sample,)

    pipe.scheduler = InPlace.from_config(pipe.scheduler.config)
    sampler = sampler_of(pipe, BASE)
    state = sampler.advance(sampler.init(PROMPT, [0], seed=SEED))
    before = state.latents.clone()
    sampler.advance(state)
    assert torch.equal(state.latents, before)


# Segments


def test_a_pipeline_is_told_its_device_in_a_segment_and_is_what_it_was_afterwards() -> None:
    """Diffusers looks through all modules for it, each time that a call asks."""
    pipe = TINY["stable_diffusion"].build()
    kind, seen = type(pipe), list[type]()

    def encode(*args: Any, **kwargs: Any) -> Any:
        seen.append(type(pipe))
        assert isinstance(pipe, kind) and pipe._execution_device == torch.device("cpu")
        raise ValueError("no text")

    sampler = sampler_of(pipe, BASE)
    pipe.encode_prompt = encode
    with pytest.raises(ValueError, match="no text"):
        sampler.init(PROMPT, [0], seed=SEED)
    assert seen and seen[0] is not kind and seen[0].__name__ == kind.__name__
    assert type(pipe) is kind and not any("tts_vision" in name for name in vars(pipe))


def test_a_pipeline_that_moves_is_asked_for_its_device_again() -> None:
    pipe = TINY["stable_diffusion"].build()
    sampler = sampler_of(pipe, BASE)
    assert sampler._device().type == "cpu"
    pipe.unet.to("meta")
    assert sampler._device() == pipe._execution_device
    for network in (pipe.text_encoder, pipe.vae):
        network.to("meta")
    assert sampler._device().type == pipe._execution_device.type == "meta"


@pytest.mark.parametrize(
    ("name", "draws"),
    [("stable_diffusion", 0), ("flux", 0), ("wan", 0), ("stable_diffusion_img2img", 1)],
)
def test_noise_that_a_segment_drops_is_not_drawn(name: str, draws: int) -> None:
    """The image of the last is noised anew; its noise is in what the loop goes on with."""
    entry = TINY[name]
    pipe, prepared = entry.build(), list[int]()
    prepare = pipe.prepare_latents
    pipe.prepare_latents = lambda *args, **kwargs: (prepared.append(1), prepare(*args, **kwargs))[1]
    settings = {**entry.kwargs, "num_inference_steps": STEPS}
    expected = {uid: own(pipe, settings, uid=uid)[0] for uid in (0, 3)}
    sampler = sampler_of(pipe, settings)
    for uid in (0, 3, 0):
        start = sampler.init(PROMPT, [uid], seed=SEED)
        before = len(prepared)
        state = stepwise(sampler, start)
        assert len(prepared) - before == draws * sampler.num_steps
        assert torch.equal(state.latents[0], expected[uid])


# Plans


@pytest.mark.parametrize("scheduler", ["PNDMScheduler", "HeunDiscreteScheduler"])
def test_image_to_image_takes_the_steps_that_its_own_method_says(scheduler: str) -> None:
    entry = TINY["stable_diffusion_img2img"]
    pipe = entry.build()
    config = {k: v for k, v in pipe.scheduler.config.items() if not k.startswith("_")}
    pipe.scheduler = getattr(diffusers, scheduler).from_config({**config, "skip_prk_steps": True})
    settings = {**entry.kwargs, "num_inference_steps": 7, "strength": 0.55}
    sampler = sampler_of(pipe, settings)
    state = stepwise(sampler, sampler.init(PROMPT, [0], seed=SEED))
    assert torch.equal(state.latents, own(pipe, settings))


def test_a_call_without_steps_is_refused_by_what_makes_it_so() -> None:
    entry = TINY["stable_diffusion_img2img"]
    with pytest.raises(ConfigError, match=r"at least one step.*strength 0\.05"):
        sampler_of(entry.build(), {**entry.kwargs, "strength": 0.05, "num_inference_steps": 10})


@pytest.mark.parametrize("name", ["FluxControlPipeline", "FluxFillPipeline"])
def test_a_budget_counts_models_that_concatenate_channels(name: str) -> None:
    """A wrong price would plan more samples than can be finished, or fewer than were paid for."""
    subject = Subject.of(FAMILIES[name])
    cost_is_what_hooks_count(subject)
    entry = FAMILIES[name]
    result = tts_vision.search(
        entry.build(),
        PROMPT.text,
        verifier=lambda images, prompts: [float(np.asarray(i).mean()) for i in images],
        budget="3x",
        pipeline_kwargs={"num_inference_steps": 3, **entry.kwargs},
    )
    assert len(result.population) == 3 and result.spent.nfe == 9


# Rows


def test_the_winner_of_an_edit_is_made_again_by_its_seed() -> None:
    """The image is encoded with randomness of its row, wherever the row is in the batch."""
    entry = FAMILIES["FluxImg2ImgPipeline"]
    subject = Subject.of(entry)
    state = subject.sampler.advance(subject.started(0, 3, 7), subject.sampler.num_steps)
    for row, uid in zip(state.latents, (0, 3, 7)):
        torch.testing.assert_close(row, subject.own(uid, "latent")[0], rtol=0, atol=1e-4)


def test_images_are_encoded_once_for_all_segments() -> None:
    entry = TINY["stable_diffusion_img2img"]
    pipe = entry.build()
    encode, ran = pipe.vae.encode, []
    pipe.vae.encode = lambda *args, **kwargs: (ran.append(1), encode(*args, **kwargs))[1]
    sampler = sampler_of(pipe, {**entry.kwargs, "num_inference_steps": STEPS})
    stepwise(sampler, sampler.init(PROMPT, [0], seed=SEED))
    assert len(ran) == 1


# Noise


@pytest.mark.parametrize(
    ("scheduler", "noisy"),
    [
        (diffusers.KDPM2AncestralDiscreteScheduler, [1, 3, 5]),
        (diffusers.EulerAncestralDiscreteScheduler, [0, 1, 2]),
        (diffusers.KDPM2DiscreteScheduler, []),
        (diffusers.DDIMScheduler, []),
    ],
)
def test_which_steps_draw_noise_is_found_over_the_whole_schedule(scheduler: Any, noisy: list[int]) -> None:
    one = scheduler()
    one.set_timesteps(4)
    assert noisy_steps(one, 0.0) == noisy


def test_a_scheduler_that_draws_in_its_half_steps_is_driven_from_the_seed() -> None:
    entry = TINY["stable_diffusion"]
    pipe = entry.build()
    pipe.scheduler = diffusers.KDPM2AncestralDiscreteScheduler.from_config(pipe.scheduler.config)
    sampler = sampler_of(pipe, BASE)
    assert "stochastic" in sampler.capabilities
    state = stepwise(sampler, sampler.init(PROMPT, [3], seed=SEED))
    assert torch.equal(state.latents, own(pipe, BASE, uid=3))


@pytest.mark.parametrize("scheduler", ["heun", "kdpm2"])
def test_stochastic_steps_pay_for_no_half_steps(scheduler: str) -> None:
    pipe = TINY["stable_diffusion"].build()
    if scheduler == "heun":
        with_scheduler(pipe, "heun")
    else:
        pipe.scheduler = diffusers.KDPM2DiscreteScheduler.from_config(pipe.scheduler.config)
    sampler = sampler_of(pipe, BASE, stochastic=True)
    assert sampler.num_steps == STEPS and sampler.cost(PROMPT, 0, STEPS).nfe == 2 * STEPS
    state = sampler.init(PROMPT, [0], seed=SEED)
    for _ in range(STEPS - 1):
        state = sampler.advance(state)
        assert float(state.carry["step_noise_std"][0]) > 0
    assert torch.isfinite(sampler.advance(state).latents).all()


def test_first_order_keeps_the_levels_of_whole_steps() -> None:
    half = diffusers.HeunDiscreteScheduler()
    whole = diffusers.EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012)
    for one in (half, whole):
        one.set_timesteps(5)
    first_order(half)
    torch.testing.assert_close(half.sigmas.float(), whole.sigmas.float(), rtol=1e-4, atol=1e-4)
    assert len(half.timesteps) == 5 and half.order == 1


def test_stochastic_steps_clip_as_the_scheduler_does() -> None:
    """At eta 0 the step of a clipping DDIM is its own."""
    pipe = TINY["stable_diffusion"].build()
    pipe.scheduler = diffusers.DDIMScheduler.from_config(
        pipe.scheduler.config, clip_sample=True, clip_sample_range=0.5, set_alpha_to_one=False
    )
    still, plain = sampler_of(pipe, BASE, stochastic=True, eta=0.0), sampler_of(pipe, BASE)
    start = plain.init(PROMPT, [0], seed=SEED)
    a, b = still.advance(start, STEPS).latents, plain.advance(start, STEPS).latents
    torch.testing.assert_close(a, b, rtol=0, atol=1e-4)
    assert float(clipped(pipe.scheduler, torch.tensor([-2.0, 0.2])).min()) == -0.5


def test_a_schedule_from_zero_to_one_is_read_as_noise_to_data() -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    scheduler.set_timesteps(4)
    levels = noise_levels(scheduler)
    assert levels[0].sigma > levels[1].sigma > levels[-1].sigma == 0
    x0, noise = torch.full((1, 4), 2.0), torch.full((1, 4), -1.0)
    level = levels[1]
    x = level.alpha * x0 + level.sigma * noise
    found, eps = predictions(scheduler, x0 - noise, x, level)
    torch.testing.assert_close(found, x0)
    torch.testing.assert_close(eps, noise)
    # the scheduler's own step goes the same way
    scheduler.set_begin_index(1)
    step = scheduler.step(x0 - noise, scheduler.timesteps[1], x, return_dict=False)[0]
    torch.testing.assert_close(step, levels[2].alpha * x0 + levels[2].sigma * noise)


def test_the_factor_on_the_noise_is_measured() -> None:
    generator = torch.Generator("cpu").manual_seed(3)
    state = generator.get_state()
    noise = torch.randn(4, 8, 8, generator=generator)
    packed = (noise * 80.0).permute(1, 2, 0)
    assert noise_scale(packed, state, [80.0, 1.0]) == 80.0
    blended = torch.cat([packed[:4], torch.zeros_like(packed[4:])])
    assert noise_scale(blended, state, [80.0, 1.0]) is None
    for scale in (14.6146, 80.0, 0.3):
        entered = noise * scale
        assert torch.equal(unit_noise(entered, scale) * scale, entered)


# Texts


def test_embeddings_of_the_prompt_are_taken_as_settings() -> None:
    pipe = TINY["stable_diffusion"].build()
    positive, negative = pipe.encode_prompt("a blue star", "cpu", 1, True, "blurry")
    settings = {**BASE, "prompt_embeds": positive, "negative_prompt_embeds": negative}
    sampler = sampler_of(pipe, settings)
    state = stepwise(sampler, sampler.init(PROMPT, [0], seed=SEED))
    expected = own(pipe, BASE, prompt="a blue star", negative_prompt="blurry")
    assert torch.equal(state.latents, expected)
    with pytest.raises(ConfigError, match="stand for one prompt, 'two red circles'"):
        sampler.init(Condition("a green square"), [0], seed=SEED)


def test_a_negative_prompt_that_would_be_cut_is_refused() -> None:
    pipe = TINY["stable_diffusion"].build()
    sampler = sampler_of(pipe, {**BASE, "negative_prompt": "red circle " * 60})
    with pytest.raises(ConfigError, match="A negative prompt must have at most 77 tokens"):
        sampler.init(PROMPT, [0], seed=SEED)


# Frame rates


def test_clips_have_the_frame_rate_of_their_call_or_model() -> None:
    entry = TINY["ltx"]
    for given, expected in (({}, 25.0), ({"frame_rate": 12}, 12.0)):
        pipe = entry.build()
        sampler = sampler_of(pipe, {**entry.kwargs, **given, "num_inference_steps": 2})
        clip = sampler.decode(sampler.advance(sampler.init(PROMPT, [0], seed=SEED), 2))[0]
        assert isinstance(clip, Video) and clip.fps == expected
    assert frame_rate("WanImageToVideoPipeline", {}, {}) == 16.0
    assert frame_rate("SomethingPipeline", {"fps": 30}, {}) == 30.0


# Caches


def cached(kind: str) -> tuple[Any, dict[str, Any], torch.Tensor]:
    """A pipeline with a cache on its denoiser, its settings, and latents of its own call without it."""
    entry = TINY["cogvideox" if kind == "PyramidAttentionBroadcast" else "flux"]
    pipe, settings = entry.build(), {**entry.kwargs, "num_inference_steps": 6}
    plain = own(pipe, settings)
    config = {
        "FirstBlockCache": {"threshold": 1.0},
        "MagCache": {"num_inference_steps": 6, "mag_ratios": [1.0] * 6, "max_skip_steps": 2},
        "TaylorSeerCache": {"cache_interval": 3, "disable_cache_before_step": 1},
        "PyramidAttentionBroadcast": {
            "spatial_attention_block_skip_range": 2,
            "spatial_attention_timestep_skip_range": (0, 1000),
            "current_timestep_callback": lambda: pipe.current_timestep,
        },
    }[kind]
    pipe.transformer.enable_cache(getattr(diffusers, f"{kind}Config")(**config))
    return pipe, settings, plain


@pytest.mark.parametrize(
    "kind", ["FirstBlockCache", "MagCache", "TaylorSeerCache", "PyramidAttentionBroadcast"]
)
def test_the_state_of_a_cache_belongs_to_its_particle(kind: str) -> None:
    """Rows, forks and a state that was stored continue under a cache as the own call does, bit for bit."""
    pipe, settings, plain = cached(kind)
    expected = {uid: own(pipe, settings, uid=uid)[0] for uid in (0, 3)}
    assert not torch.equal(expected[0], plain[0])  # the cache has an effect
    sampler = sampler_of(pipe, settings)
    assert "differentiable" not in sampler.capabilities
    state = sampler.init(PROMPT, [0, 3], seed=SEED)
    for _ in range(3):
        state = sampler.advance(state)
    layout = json.loads(json.dumps(state.shared["caches"]))
    stored = replace(state, shared={**state.shared, "caches": layout})
    sampler.advance(sampler.init(PROMPT, [7], seed=SEED), 2)  # another particle leaves nothing behind
    forked = stepwise(sampler, stored.select([1, 0, 1]))
    for row, uid in zip(forked.latents, (3, 0, 3)):
        assert torch.equal(row, expected[uid])
    assert torch.equal(own(pipe, settings), expected[0][None])


def test_caches_of_texts_of_different_lengths_are_no_batch() -> None:
    """The activations of the text are in them."""
    entry = TINY["qwen_image"]
    pipe, settings = entry.build(), {**entry.kwargs, "num_inference_steps": 3}
    pipe.transformer.enable_cache(diffusers.FirstBlockCacheConfig(threshold=1.0))
    sampler = sampler_of(pipe, settings)
    texts = ("two red circles", "a photo of two red circles left of a blue star on a white background")
    states = [sampler.init(Condition(text), [uid], seed=SEED) for uid, text in enumerate(texts)]
    for found in (
        lambda: sampler.advance(State.cat(states)),
        lambda: State.cat([*map(sampler.advance, states)]),
    ):
        with pytest.raises(TTSVisionError, match="texts of different lengths; pad the texts"):
            found()
    same = State.cat([*map(sampler.advance, states[:1])])
    assert torch.isfinite(stepwise(sampler, same).latents).all()


def test_a_cache_of_another_layout_is_not_taken_for_its_own() -> None:
    carry, shared = pack_tree("caches", {"a": 1, "b": torch.ones(2)}, "A cache")
    assert unpack_tree("caches", carry, shared, torch.device("cpu"))["a"] == 1  # type: ignore[index]
    _, other = pack_tree("caches", {"b": torch.ones(2), "a": 1.0}, "A cache")
    with pytest.raises(PipelineError, match="caches of particles at one step must hold tensors of the same"):
        unpack_tree("caches", carry, other, torch.device("cpu"))


def test_a_cache_whose_state_is_hidden_is_driven_whole() -> None:
    entry = TINY["cogvideox"]
    pipe = entry.build()
    pipe.transformer.enable_cache(
        diffusers.FasterCacheConfig(
            spatial_attention_block_skip_range=2,
            tensor_format="BFCHW",
            current_timestep_callback=lambda: pipe.current_timestep,
        )
    )
    sampler = sampler_of(pipe, {**entry.kwargs, "num_inference_steps": 2})
    assert "whole" in sampler.capabilities
    assert "FasterCache keeps activations" in sampler.facts(PROMPT)["driven_whole"]


def test_a_class_that_trades_its_scheduler_is_refused() -> None:
    parts = {k: v for k, v in TINY["stable_diffusion"].build().components.items() if k != "image_encoder"}
    pipe = diffusers.StableDiffusionPanoramaPipeline(**parts, requires_safety_checker=False)
    with pytest.raises(PipelineError, match="between the views of an image"):
        sampler_of(pipe, BASE)


def test_stepwise_is_checked_against_the_own_call() -> None:
    """The contract notices a sampler that loses what a loop does after its step."""
    subject = Subject.of(FAMILIES["StableDiffusionInpaintPipeline"])
    subject.sampler._left = lambda segment: segment.proxy.prev_sample  # type: ignore[method-assign]
    with pytest.raises(AssertionError):
        stepwise_equals_whole(subject)
    assert photo().size == (16, 16)
