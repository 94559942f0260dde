"""Images of anybody on pipelines: encoded as image-to-image classes do, or given to edit pipelines."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES, photo
from PIL import Image

from tiny_pipelines import TINY, TinyPipeline
from tts_vision.algorithms.variations import variations
from tts_vision.condition import ORIGINAL, Condition
from tts_vision.config import SamplerOptions
from tts_vision.context import SearchContext
from tts_vision.errors import CapabilityError, PipelineError
from tts_vision.moves import Adopt
from tts_vision.pipelines import diffusers_sampler
from tts_vision.pipelines.diffusers_sampler import DiffusersSampler
from tts_vision.rng import row_seed
from tts_vision.testing.toys import TargetReward
from tts_vision.types import Prompt

STEPS, NOISE = 6, 0.7
PROMPT = Prompt("two red circles")
# text-to-image pipelines, each with the class that diffusers has for starting from an image
IMAGE_TO_IMAGE = {
    "stable_diffusion": "StableDiffusionImg2ImgPipeline",
    "stable_diffusion_xl": "StableDiffusionXLImg2ImgPipeline",
    "stable_diffusion_3": "StableDiffusion3Img2ImgPipeline",
    "flux": "FluxImg2ImgPipeline",
    "qwen_image": "QwenImageImg2ImgPipeline",
    "z_image": "ZImageImg2ImgPipeline",
    "chroma": "ChromaImg2ImgPipeline",
}
EDITORS = [
    "StableDiffusionInstructPix2PixPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "FluxKontextPipeline",
]


def sampler_of(entry: TinyPipeline, pipe: Any = None, **settings: Any) -> DiffusersSampler:
    call = {"num_inference_steps": STEPS, **entry.settings, **settings}
    return DiffusersSampler(pipe or entry.build(), options=SamplerOptions(pipeline_kwargs=call))


def ending_without_noise(entry: TinyPipeline) -> Any:
    """A pipeline whose schedule ends without noise, which that of Stable Diffusion does not."""
    pipe = entry.build()
    if "set_alpha_to_one" in pipe.scheduler.config:
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, set_alpha_to_one=True)
    return pipe


def image_of(sampler: DiffusersSampler) -> Image.Image:
    """An image of the size of the sampler's samples, without noise so that resizing hardly matters."""
    size = sampler.decode(sampler.init(Condition("x"), [0], seed=0))[0].size  # type: ignore[union-attr]
    y, x = np.mgrid[0 : size[1], 0 : size[0]]
    values = np.stack([255 * x / size[0], 255 * y / size[1], 0 * x + 90], -1)
    return Image.fromarray(values.astype(np.uint8))


def constant(like: torch.Tensor) -> torch.Tensor:
    return torch.full_like(like, NOISE)


@pytest.mark.parametrize("name", IMAGE_TO_IMAGE)
def test_an_adopted_image_goes_on_as_in_the_image_to_image_class(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    entry = TINY[name]
    pipe = ending_without_noise(entry)
    sampler = sampler_of(entry, pipe)
    image = image_of(sampler)
    monkeypatch.setattr(diffusers_sampler, "row_noise", lambda seed, what, uids, step, like: constant(like))
    begin = sampler.init(Condition(PROMPT.text, images={ORIGINAL: image}), [0], seed=0)
    end = sampler.apply(Adopt(STEPS), begin)
    (original,) = sampler.decode(end)
    assert isinstance(original, Image.Image) and original.tobytes() == image.tobytes()
    ours = sampler.decode(sampler.advance(sampler.renoise(end, STEPS // 2), STEPS - STEPS // 2))[0]

    cls = getattr(importlib.import_module("diffusers"), IMAGE_TO_IMAGE[name])
    module = importlib.import_module(cls.__module__)
    monkeypatch.setattr(
        module,
        "randn_tensor",
        lambda shape, generator=None, device=None, dtype=None, layout=None: torch.full(
            shape, NOISE, dtype=dtype
        ),
    )
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
    theirs = cls.from_pipe(pipe)(
        prompt=PROMPT.text,
        image=image,
        strength=0.5,
        num_inference_steps=STEPS,
        output_type="pil",
        **entry.kwargs,
    ).images[0]
    difference = np.abs(np.asarray(ours, np.int16) - np.asarray(theirs, np.int16))
    assert difference.max() <= 2


@pytest.mark.parametrize(
    "name", [name for name, entry in TINY.items() if entry.modality == "image" and not entry.media]
)
def test_what_is_decoded_of_an_adopted_image_is_its_encoding(name: str) -> None:
    entry = TINY[name]
    pipe = ending_without_noise(entry)
    sampler = sampler_of(entry, pipe)
    if "adopt" not in sampler.capabilities:
        assert "renoise" not in sampler.capabilities
        return
    image = image_of(sampler)
    begin = sampler.init(Condition(PROMPT.text, images={ORIGINAL: image}), [0, 1], seed=0)
    end = sampler.apply(Adopt(STEPS), begin)
    pixels = pipe.image_processor.preprocess(image)
    if "qwen" in name:
        pixels = pixels[:, :, None]
    found = pipe.vae.encode(pixels)
    z = found.latent_dist.mode() if hasattr(found, "latent_dist") else found[0]
    seen = sampler._decoder_input(end.select([1]), end.latents[1:])
    assert seen.shape == z.shape and torch.allclose(seen, z, rtol=1e-3, atol=1e-3 * float(z.abs().max()))


@pytest.mark.parametrize("name", EDITORS)
def test_edit_pipelines_start_from_the_image_by_themselves(name: str, tmp_path: Path) -> None:
    entry = next(entry for entry in FAMILIES.values() if entry.name == name)
    pipe = entry.build()
    sampler = sampler_of(entry, pipe)
    assert {"adopt", "edits"} <= sampler.capabilities
    image = photo(3, 32)
    image.save(tmp_path / "photo.png")
    ctx = SearchContext(sampler, TargetReward(), PROMPT, seed=7)
    state = variations(ctx, image=str(tmp_path / "photo.png"), n=2)
    first = min(ctx.candidates)
    original = ctx.candidates[first].load()
    assert isinstance(original, Image.Image) and original.tobytes() == image.tobytes()
    assert ctx.ledger.spent.nfe == 2 * sampler.cost(Condition(PROMPT.text), 0, sampler.num_steps).nfe
    for uid in state.uids:
        generator = torch.Generator("cpu").manual_seed(row_seed(7, uid))
        call = {"num_inference_steps": STEPS, **entry.settings, "image": image}
        (own,) = pipe(prompt=PROMPT.text, generator=generator, output_type="pil", **call).images
        found = ctx.candidates[uid].load()
        assert np.abs(np.asarray(found, np.int16) - np.asarray(own, np.int16)).max() <= 1
    adopted = ctx.mutate(
        ctx.init(1, Condition("x", images={"image": image, ORIGINAL: image})), Adopt(ctx.num_steps)
    )
    with pytest.raises(CapabilityError, match=r"encodes it for itself, so it cannot be sent back"):
        ctx.renoise(adopted, 1)


def test_a_strength_that_an_edit_pipeline_does_not_take_is_told(tmp_path: Path) -> None:
    entry = next(entry for entry in FAMILIES.values() if entry.name == EDITORS[0])
    photo(3, 32).save(tmp_path / "photo.png")
    ctx = SearchContext(sampler_of(entry), TargetReward(), PROMPT, seed=7)
    with pytest.warns(UserWarning, match=r"so that strength=0.4 is not used; set pipeline.strength"):
        variations(ctx, image=str(tmp_path / "photo.png"), n=1, strength=0.4)


def test_a_pipeline_that_does_more_to_its_latents_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = TINY["stable_diffusion"].build()
    sampler = sampler_of(TINY["stable_diffusion"], pipe)
    begin = sampler.init(Condition("x", images={ORIGINAL: photo(0, 32)}), [0], seed=0)
    decoder_input = sampler._decoder_input
    monkeypatch.setattr(sampler, "_decoder_input", lambda row, x: decoder_input(row, x.tanh()))
    with pytest.raises(PipelineError, match=r"rescales, unpacks and decodes its latents, but .* does more"):
        sampler.apply(Adopt(STEPS), begin)
    with pytest.raises(ValueError, match=r"names 'original' but it has images \[\]"):
        sampler.apply(Adopt(STEPS), sampler.init(Condition("x"), [0], seed=0))


def test_pipelines_that_cannot_go_back_adopt_nothing() -> None:
    sampler = sampler_of(TINY["latent_consistency"])
    assert "adopt" not in sampler.capabilities
    ctx = SearchContext(sampler, TargetReward(), PROMPT, seed=7)
    with pytest.raises(CapabilityError, match=r"[Rr]efining an image needs a sampler with 'adopt'"):
        variations(ctx, image="photo.png", n=1)
