"""All classes of the contract run, and those that are refused when they are loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from families import FAMILIES, Parts, _entry, varied
from image_models import IMAGES, Build, ledits, seeded
from video_models import VIDEOS

import tiny_pipelines as tiny
from tiny_pipelines import TinyPipeline

if TYPE_CHECKING:
    from collections.abc import Mapping

CLASSES: dict[str, TinyPipeline] = {**FAMILIES, **IMAGES, **VIDEOS}
"""Those that are driven, by name: the class, with the setting that sets an entry apart."""


@dataclass(frozen=True)
class Refused:
    """A pipeline that is refused, and a part of the reason that is told."""

    entry: TinyPipeline
    reason: str


def modular() -> Any:
    """A modular pipeline of Stable Diffusion XL with tiny components."""
    from diffusers.modular_pipelines import StableDiffusionXLAutoBlocks

    pipe = StableDiffusionXLAutoBlocks().init_pipeline()
    parts = tiny.stable_diffusion_xl().components
    pipe.update_components(**{name: part for name, part in parts.items() if name in pipe.components})
    return pipe


def _depth_too(parts: Parts) -> Mapping[str, Any]:
    return {"vae": varied(parts["vae"], in_channels=6, out_channels=6)}


@seeded
def stable_video() -> Any:
    """Stable Video Diffusion, which is told nothing but an image."""
    from diffusers import (
        AutoencoderKLTemporalDecoder,
        EulerDiscreteScheduler,
        StableVideoDiffusionPipeline,
        UNetSpatioTemporalConditionModel,
    )
    from image_models import clip_vision

    encoder, extractor = clip_vision()
    return StableVideoDiffusionPipeline(
        vae=AutoencoderKLTemporalDecoder(
            block_out_channels=(32,), down_block_types=("DownEncoderBlock2D",), latent_channels=4
        ),
        image_encoder=encoder,
        unet=UNetSpatioTemporalConditionModel(
            block_out_channels=(32, 32),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
            up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
            cross_attention_dim=16,
            num_attention_heads=2,
            projection_class_embeddings_input_dim=96,
            addition_time_embed_dim=32,
        ),
        scheduler=EulerDiscreteScheduler(prediction_type="v_prediction", use_karras_sigmas=True),
        feature_extractor=extractor,
    )


def _refused(name: str, build: Build, reason: str) -> Refused:
    return Refused(TinyPipeline(name, build, {}), reason)


REFUSED: dict[str, Refused] = {
    refused.entry.name: refused
    for refused in (
        _refused("LEditsPPPipelineStableDiffusion", ledits, "takes none"),
        _refused("StableDiffusionXLModularPipeline", modular, "made of blocks"),
        _refused("StableVideoDiffusionPipeline", stable_video, "takes none"),
        Refused(
            _entry("StableDiffusionLDM3DPipeline", tiny.stable_diffusion, {}, _depth_too),
            "a map of its depth",
        ),
        Refused(
            _entry("StableDiffusionPanoramaPipeline", tiny.stable_diffusion, {}),
            "between the views of an image",
        ),
    )
}
"""By the class."""
