"""The tiny pipelines run, are finite, reproducible and not degenerate."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from tiny_pipelines import STOCHASTIC, TINY, with_scheduler

PROMPT = "two red circles"


def _call(
    pipe: Any,
    name: str,
    *,
    prompt: str = PROMPT,
    seed: int = 0,
    steps: int = 2,
    output_type: str = "latent",
) -> torch.Tensor:
    tiny = TINY[name]
    generator = torch.Generator().manual_seed(seed)
    output = pipe(
        prompt, num_inference_steps=steps, generator=generator, output_type=output_type, **tiny.kwargs
    )
    media = output[next(iter(output))]
    return torch.stack(media) if isinstance(media, list) else media


@cache
def _built(name: str) -> Any:
    """A pipeline that tests leave as it is."""
    return TINY[name].build()


def _denoiser(pipe: Any) -> torch.nn.Module:
    return pipe.unet if hasattr(pipe, "unet") else pipe.transformer


def _differ(left: torch.Tensor, right: torch.Tensor) -> bool:
    return bool((left - right).norm() > 1e-3 * left.norm())


@pytest.mark.parametrize("name", TINY)
def test_runs_and_is_not_degenerate(name: str) -> None:
    before = torch.get_rng_state()
    pipe = _built(name)
    assert torch.equal(torch.get_rng_state(), before)

    latents = _call(pipe, name)
    assert torch.isfinite(latents).all()
    assert torch.equal(latents, _call(pipe, name))
    assert torch.equal(latents, _call(TINY[name].build(), name)), "two builds must have the same weights"
    assert _differ(latents, _call(pipe, name, prompt="a blue star"))
    assert _differ(latents, _call(pipe, name, seed=1))


@pytest.mark.parametrize("name", TINY)
def test_denoiser_depends_on_timestep(name: str) -> None:
    pipe = _built(name)
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    hook = _denoiser(pipe).register_forward_pre_hook(
        lambda module, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
    )
    _call(pipe, name)
    hook.remove()

    args, kwargs = calls[len(calls) // 2]  # some models run time from 0: not the first call
    key = "timestep" if "timestep" in kwargs else None
    outputs = []
    for scale in (1.0, 0.5):
        if key is None:
            inputs = (args[0], args[1] * scale, *args[2:])
            result = _denoiser(pipe)(*inputs, **kwargs)
        else:
            result = _denoiser(pipe)(*args, **{**kwargs, key: kwargs[key] * scale})
        sample = result[0]
        outputs.append(torch.stack(sample) if isinstance(sample, list) else sample)
    assert torch.isfinite(outputs[0]).all()
    assert _differ(*outputs)


@pytest.mark.parametrize("name", [name for name, tiny in TINY.items() if tiny.decodes])
def test_decodes(name: str) -> None:
    media = _call(_built(name), name, output_type="pt")
    assert media.ndim == (4 if TINY[name].modality == "image" else 5)
    assert torch.isfinite(media).all()
    assert media.min() >= 0 and media.max() <= 1
    assert media.std() > 0.01
    saturated = ((media == 0) | (media == 1)).float().mean()
    assert saturated < 0.6


UNSEEDED = {other: name for name, tiny in TINY.items() for other in tiny.unseeded_schedulers}


@pytest.mark.parametrize(("scheduler", "name"), UNSEEDED.items())
def test_unseeded_schedulers_draw_from_the_global_state(scheduler: str, name: str) -> None:
    assert scheduler in STOCHASTIC
    pipe = with_scheduler(TINY[name].build(), scheduler)
    with torch.random.fork_rng(devices=[]):
        latents = _call(pipe, name)
        assert torch.isfinite(latents).all()
        assert _differ(latents, _call(pipe, name))


def test_unknown_scheduler_is_refused() -> None:
    with pytest.raises(KeyError):
        with_scheduler(TINY["flux"].build(), "ddim")
