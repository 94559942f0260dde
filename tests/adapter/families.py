"""Further tiny pipelines, made of the components of those in `tiny_pipelines`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import tiny_pipelines as tiny
from tiny_pipelines import TinyPipeline

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from PIL import Image

Parts = dict[str, Any]


def assembled(
    name: str,
    base: Callable[[], DiffusionPipeline],
    change: Callable[[Parts], Mapping[str, Any]] | None = None,
) -> DiffusionPipeline:
    """A pipeline of another class from the components of `base`.

    Args:
        name: The class.
        base: Builds the pipeline whose components are taken.
        change: Components and constructor arguments that differ.
    """
    import diffusers

    with tiny._seeded():
        parts = dict(base().components)
        parts |= change(parts) if change is not None else {}
        cls = getattr(diffusers, name)
        known = inspect.signature(cls.__init__).parameters
        return tiny._finish(cls(**{key: value for key, value in parts.items() if key in known}))


def varied(component: Any, **changes: Any) -> Any:
    """A network of the same class with a changed configuration."""
    config = {key: value for key, value in component.config.items() if not key.startswith("_")}
    return type(component)(**{**config, **changes})


# Media


def photo(seed: int = 0, side: int = 16) -> Image.Image:
    """Noise as a picture."""
    import numpy as np
    from PIL import Image

    values = np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(values)


def mask(side: int = 16) -> Image.Image:
    """White on the right half, which is to be painted."""
    import numpy as np
    from PIL import Image

    values = np.zeros((side, side), np.uint8)
    values[:, side // 2 :] = 255
    return Image.fromarray(values)


def frames(n: int, side: int = 16) -> list[Image.Image]:
    return [photo(i, side) for i in range(n)]


# Changes of components


def _unet_channels(channels: int, **more: Any) -> Callable[[Parts], Mapping[str, Any]]:
    return lambda parts: {"unet": varied(parts["unet"], in_channels=channels, **more)}


def _transformer(**changes: Any) -> Callable[[Parts], Mapping[str, Any]]:
    return lambda parts: {"transformer": varied(parts["transformer"], **changes)}


def _controlnet(parts: Parts) -> Mapping[str, Any]:
    from diffusers import ControlNetModel

    return {
        "controlnet": ControlNetModel.from_unet(parts["unet"], conditioning_embedding_out_channels=(8, 16))
    }


def _flux_controlnet(parts: Parts) -> Mapping[str, Any]:
    from diffusers import FluxControlNetModel

    config = parts["transformer"].config
    own = inspect.signature(FluxControlNetModel.__init__).parameters
    return {"controlnet": FluxControlNetModel(**{k: v for k, v in config.items() if k in own})}


def _sd3_controlnet(extra: int = 0) -> Callable[[Parts], Mapping[str, Any]]:
    def change(parts: Parts) -> Mapping[str, Any]:
        from diffusers import SD3ControlNetModel

        config = parts["transformer"].config
        own = inspect.signature(SD3ControlNetModel.__init__).parameters
        given = {k: v for k, v in config.items() if k in own}
        return {
            "controlnet": SD3ControlNetModel(
                **{**given, "num_layers": 1, "extra_conditioning_channels": extra}
            )
        }

    return change


def _hunyuan_controlnet(parts: Parts) -> Mapping[str, Any]:
    from diffusers import HunyuanDiT2DControlNetModel

    config = parts["transformer"].config
    own = inspect.signature(HunyuanDiT2DControlNetModel.__init__).parameters
    given = {k: v for k, v in config.items() if k in own}
    return {"controlnet": HunyuanDiT2DControlNetModel(**{**given, "transformer_num_layers": 2})}


def _qwen_controlnet(parts: Parts) -> Mapping[str, Any]:
    from diffusers import QwenImageControlNetModel

    config = parts["transformer"].config
    own = inspect.signature(QwenImageControlNetModel.__init__).parameters
    given = {k: v for k, v in config.items() if k in own}
    return {"controlnet": QwenImageControlNetModel(**{**given, "num_layers": 1})}


def _sana_controlnet(parts: Parts) -> Mapping[str, Any]:
    from diffusers import SanaControlNetModel

    config = parts["transformer"].config
    own = inspect.signature(SanaControlNetModel.__init__).parameters
    return {
        "controlnet": SanaControlNetModel(
            **{**{k: v for k, v in config.items() if k in own}, "num_layers": 1}
        )
    }


def _adapter(parts: Parts) -> Mapping[str, Any]:
    from diffusers import T2IAdapter

    unet = varied(
        parts["unet"],
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    return {
        "unet": unet,
        "adapter": T2IAdapter(
            in_channels=3, channels=[8, 16], num_res_blocks=1, downscale_factor=2, adapter_type="full_adapter"
        ),
    }


def _motion(parts: Parts) -> Mapping[str, Any]:
    from diffusers import MotionAdapter, UNet2DConditionModel

    unet = tiny._unet({"block_out_channels": (8, 16), "norm_num_groups": 4})
    assert isinstance(unet, UNet2DConditionModel)
    return {
        "unet": unet,
        "motion_adapter": MotionAdapter(
            block_out_channels=(8, 16),
            motion_layers_per_block=1,
            motion_norm_num_groups=2,
            motion_num_attention_heads=2,
        ),
    }


def _motion_xl(parts: Parts) -> Mapping[str, Any]:
    return {"motion_adapter": _motion(parts)["motion_adapter"]}


def _linear_shift(parts: Parts) -> Mapping[str, Any]:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return {"scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0)}


_GUIDED = tiny._GUIDED
_SIZE = tiny._SIZE
_STRENGTH = {"strength": 0.6, "num_inference_steps": 6}
_SHORT = {"max_sequence_length": 16}
_EDIT = {"image": photo, "mask_image": mask}


def _entry(
    cls: str,
    base: Callable[[], DiffusionPipeline],
    settings: Mapping[str, Any],
    change: Callable[[Parts], Mapping[str, Any]] | None = None,
    *,
    media: Mapping[str, Callable[[], Any]] | None = None,
    modality: Literal["image", "video"] = "image",
    name: str | None = None,
) -> TinyPipeline:
    build = functools.partial(assembled, cls, base, change)
    return TinyPipeline(name or cls, build, settings, modality=modality, media=media or {})


def _sd15() -> list[TinyPipeline]:
    base = tiny.stable_diffusion
    return [
        _entry("StableDiffusionInpaintPipeline", base, {**_GUIDED, "strength": 0.7}, media=_EDIT),
        _entry(
            "StableDiffusionInpaintPipeline",
            base,
            {**_GUIDED, "strength": 1.0},
            _unet_channels(9),
            media=_EDIT,
            name="StableDiffusionInpaintPipeline, 9 channels",
        ),
        _entry(
            "StableDiffusionInstructPix2PixPipeline",
            base,
            {"guidance_scale": 4.0, "image_guidance_scale": 1.5},
            _unet_channels(8),
            media={"image": photo},
        ),
        _entry(
            "StableDiffusionControlNetImg2ImgPipeline",
            base,
            {**_GUIDED, **_STRENGTH},
            _controlnet,
            media={"image": photo, "control_image": functools.partial(photo, 1)},
        ),
        _entry(
            "StableDiffusionControlNetInpaintPipeline",
            base,
            {**_GUIDED, "strength": 0.7},
            _controlnet,
            media={**_EDIT, "control_image": functools.partial(photo, 1)},
        ),
        _entry("StableDiffusionPAGPipeline", base, _GUIDED, lambda p: {"pag_applied_layers": "down"}),
        _entry(
            "StableDiffusionPAGImg2ImgPipeline",
            base,
            {"guidance_scale": 4.0, **_STRENGTH},
            lambda p: {"pag_applied_layers": "down"},
            media={"image": photo},
        ),
        _entry(
            "StableDiffusionPAGInpaintPipeline",
            base,
            {**_GUIDED, "strength": 0.7},
            lambda p: {"pag_applied_layers": "down"},
            media=_EDIT,
        ),
        _entry(
            "StableDiffusionControlNetPAGPipeline",
            base,
            {**_GUIDED, "control_guidance_end": 0.6},
            lambda p: {**_controlnet(p), "pag_applied_layers": "down"},
            media={"image": photo},
        ),
        _entry("StableDiffusionAdapterPipeline", base, _GUIDED, _adapter, media={"image": photo}),
        _entry("AnimateDiffPipeline", base, {**_GUIDED, "num_frames": 3}, _motion, modality="video"),
        _entry(
            "AnimateDiffPAGPipeline",
            base,
            {**_GUIDED, "num_frames": 3},
            lambda p: {**_motion(p), "pag_applied_layers": "down"},
            modality="video",
        ),
        _entry(
            "AnimateDiffVideoToVideoPipeline",
            base,
            {**_GUIDED, "strength": 0.7},
            _motion,
            media={"video": functools.partial(frames, 3)},
            modality="video",
        ),
        _entry(
            "StableDiffusionControlNetPAGInpaintPipeline",
            base,
            {**_GUIDED, "strength": 0.7},
            lambda p: {**_controlnet(p), "pag_applied_layers": "down"},
            media={**_EDIT, "control_image": functools.partial(photo, 1)},
        ),
        _entry(
            "AnimateDiffControlNetPipeline",
            base,
            {**_GUIDED, "num_frames": 3},
            lambda p: {**_motion(p), **_controlnet(p)},
            media={"conditioning_frames": functools.partial(frames, 3)},
            modality="video",
        ),
        _entry("StableDiffusionSAGPipeline", base, {**_GUIDED, "sag_scale": 0.0}),
    ]


def _sdxl() -> list[TinyPipeline]:
    base = tiny.stable_diffusion_xl
    refined = {"requires_aesthetics_score": False}
    return [
        _entry(
            "StableDiffusionXLImg2ImgPipeline",
            base,
            {"guidance_scale": 4.0, **_STRENGTH},
            lambda p: refined,
            media={"image": photo},
        ),
        _entry(
            "StableDiffusionXLImg2ImgPipeline",
            base,
            {"guidance_scale": 4.0, "denoising_start": 0.5, "num_inference_steps": 8},
            lambda p: refined,
            media={"image": photo},
            name="StableDiffusionXLImg2ImgPipeline, refiner",
        ),
        _entry(
            "StableDiffusionXLPipeline",
            base,
            {**_GUIDED, "denoising_end": 0.6, "num_inference_steps": 8},
            name="StableDiffusionXLPipeline, denoising_end",
        ),
        _entry(
            "StableDiffusionXLInpaintPipeline",
            base,
            {**_GUIDED, "strength": 0.7},
            lambda p: refined,
            media=_EDIT,
        ),
        _entry("StableDiffusionXLControlNetPipeline", base, _GUIDED, _controlnet, media={"image": photo}),
        _entry(
            "StableDiffusionXLControlNetImg2ImgPipeline",
            base,
            {**_GUIDED, **_STRENGTH},
            lambda p: {**_controlnet(p), **refined},
            media={"image": photo, "control_image": functools.partial(photo, 1)},
        ),
        _entry(
            "StableDiffusionXLControlNetInpaintPipeline",
            base,
            {**_GUIDED, "strength": 0.7},
            lambda p: {**_controlnet(p), **refined},
            media={**_EDIT, "control_image": functools.partial(photo, 1)},
        ),
        _entry(
            "StableDiffusionXLInstructPix2PixPipeline",
            base,
            {**_GUIDED, "image_guidance_scale": 1.5},
            _unet_channels(8),
            media={"image": photo},
        ),
        _entry("StableDiffusionXLPAGPipeline", base, _GUIDED, lambda p: {"pag_applied_layers": "down"}),
        _entry(
            "StableDiffusionXLPAGImg2ImgPipeline",
            base,
            {"guidance_scale": 4.0, **_STRENGTH},
            lambda p: {"pag_applied_layers": "down", **refined},
            media={"image": photo},
        ),
        _entry(
            "StableDiffusionXLPAGInpaintPipeline",
            base,
            {**_GUIDED, "strength": 0.7},
            lambda p: {"pag_applied_layers": "down", **refined},
            media=_EDIT,
        ),
        _entry(
            "StableDiffusionXLControlNetPAGPipeline",
            base,
            {**_GUIDED, "control_guidance_end": 0.6},
            lambda p: {**_controlnet(p), "pag_applied_layers": "down"},
            media={"image": photo},
        ),
        _entry(
            "StableDiffusionXLControlNetPAGImg2ImgPipeline",
            base,
            {**_GUIDED, **_STRENGTH},
            lambda p: {**_controlnet(p), "pag_applied_layers": "down", **refined},
            media={"image": photo, "control_image": functools.partial(photo, 1)},
        ),
        _entry("AnimateDiffSDXLPipeline", base, {**_GUIDED, "num_frames": 3}, _motion_xl, modality="video"),
        _entry("StableDiffusionXLAdapterPipeline", base, _GUIDED, _adapter, media={"image": photo}),
    ]


def _sd3() -> list[TinyPipeline]:
    base = tiny.stable_diffusion_3
    guided = {**_GUIDED, **_SHORT}
    layers = {"pag_applied_layers": "blocks.1"}
    return [
        _entry("StableDiffusion3Img2ImgPipeline", base, {**guided, **_STRENGTH}, media={"image": photo}),
        _entry(
            "StableDiffusion3InpaintPipeline",
            base,
            {**guided, "strength": 0.7},
            lambda p: {
                "transformer": varied(p["transformer"], in_channels=16, out_channels=16),
                "vae": tiny._vae(channels=16, scaling_factor=1.5305, shift_factor=0.0609),
            },
            media=_EDIT,
        ),
        _entry(
            "StableDiffusion3ControlNetPipeline",
            base,
            guided,
            _sd3_controlnet(),
            media={"control_image": photo},
        ),
        _entry(
            "StableDiffusion3ControlNetInpaintingPipeline",
            base,
            guided,
            _sd3_controlnet(1),
            media={"control_image": photo, "control_mask": mask},
        ),
        _entry("StableDiffusion3PAGPipeline", base, guided, lambda p: layers),
        _entry(
            "StableDiffusion3PAGImg2ImgPipeline",
            base,
            {**guided, **_STRENGTH},
            lambda p: layers,
            media={"image": photo},
        ),
    ]


def _flux() -> list[TinyPipeline]:
    base = tiny.flux
    plain = {**_SIZE, "guidance_scale": 3.5, **_SHORT}
    control = {"control_image": functools.partial(photo, 1)}
    doubled = _transformer(in_channels=32, out_channels=16)
    return [
        _entry("FluxImg2ImgPipeline", base, {**plain, **_STRENGTH}, media={"image": photo}),
        _entry("FluxInpaintPipeline", base, {**plain, "strength": 0.7}, media=_EDIT),
        _entry(
            "FluxFillPipeline",
            base,
            plain,
            _transformer(in_channels=16 + 16 + 16, out_channels=16),
            media=_EDIT,
        ),
        _entry("FluxControlPipeline", base, plain, doubled, media=control),
        _entry(
            "FluxControlImg2ImgPipeline",
            base,
            {**plain, **_STRENGTH},
            doubled,
            media={"image": photo, **control},
        ),
        _entry(
            "FluxControlInpaintPipeline",
            base,
            {**plain, "strength": 0.7},
            doubled,
            media={**_EDIT, **control},
        ),
        _entry("FluxControlNetPipeline", base, plain, _flux_controlnet, media=control),
        _entry(
            "FluxControlNetImg2ImgPipeline",
            base,
            {**plain, **_STRENGTH},
            _flux_controlnet,
            media={"image": photo, **control},
        ),
        _entry(
            "FluxControlNetInpaintPipeline",
            base,
            {**plain, "strength": 0.7},
            _flux_controlnet,
            media={**_EDIT, **control},
        ),
        _entry(
            "FluxKontextInpaintPipeline",
            base,
            {**plain, "strength": 0.7, "max_area": 256, "_auto_resize": False},
            media=_EDIT,
        ),
        _entry(
            "FluxKontextPipeline",
            base,
            {**plain, "max_area": 256, "_auto_resize": False},
            media={"image": photo},
        ),
        _entry(
            "FluxPipeline",
            base,
            {**plain, "true_cfg_scale": 3.0, "negative_prompt": "blurry"},
            name="FluxPipeline, true guidance",
        ),
    ]


def _qwen() -> list[TinyPipeline]:
    base = tiny.qwen_image
    plain = {**_SIZE, "true_cfg_scale": 4.0, "negative_prompt": " "}
    return [
        _entry("QwenImageImg2ImgPipeline", base, {**plain, **_STRENGTH}, media={"image": photo}),
        _entry("QwenImageInpaintPipeline", base, {**plain, "strength": 0.7}, media=_EDIT),
        _entry("QwenImageControlNetPipeline", base, plain, _qwen_controlnet, media={"control_image": photo}),
    ]


def _images() -> list[TinyPipeline]:
    short = {**_GUIDED, **_SHORT}
    binned = {"use_resolution_binning": False, "clean_caption": False}
    large = {**tiny._LARGE, **_SHORT, "use_resolution_binning": False, "complex_human_instruction": None}
    return [
        _entry(
            "ZImageImg2ImgPipeline",
            tiny.z_image,
            {**_GUIDED, **_STRENGTH, "max_sequence_length": 32},
            media={"image": photo},
        ),
        _entry(
            "ZImageInpaintPipeline",
            tiny.z_image,
            {**_GUIDED, "strength": 0.7, "max_sequence_length": 32},
            media=_EDIT,
        ),
        _entry("ChromaImg2ImgPipeline", tiny.chroma, {**short, **_STRENGTH}, media={"image": photo}),
        _entry("PixArtAlphaPipeline", tiny.pixart_sigma, {**short, **binned}),
        _entry(
            "PixArtSigmaPAGPipeline",
            tiny.pixart_sigma,
            {**short, **binned},
            lambda p: {"pag_applied_layers": "blocks.1"},
        ),
        _entry(
            "HunyuanDiTPAGPipeline",
            tiny.hunyuan_dit,
            {**_GUIDED, "use_resolution_binning": False},
            lambda p: {"pag_applied_layers": "blocks.1"},
        ),
        _entry(
            "HunyuanDiTControlNetPipeline",
            tiny.hunyuan_dit,
            {**_GUIDED, "use_resolution_binning": False},
            _hunyuan_controlnet,
            media={"control_image": photo},
        ),
        _entry("SanaPAGPipeline", tiny.sana, large, lambda p: {"pag_applied_layers": "blocks.1"}),
        _entry(
            "SanaControlNetPipeline",
            tiny.sana,
            large,
            _sana_controlnet,
            media={"control_image": functools.partial(photo, 0, 32)},
        ),
        _entry(
            "CogView4ControlPipeline",
            tiny.cogview4,
            {**_GUIDED, "max_sequence_length": 32},
            _transformer(in_channels=8),
            media={"control_image": photo},
        ),
    ]


def _videos() -> list[TinyPipeline]:
    clip = {**_GUIDED, "num_frames": 5, **_SHORT}
    ltx = {**tiny._LARGE, "num_frames": 9, **_SHORT}
    cog = {**_GUIDED, **_SHORT}

    def video(
        cls: str, base: Callable[[], DiffusionPipeline], settings: Mapping[str, Any], *args: Any, **more: Any
    ) -> TinyPipeline:
        return _entry(cls, base, settings, *args, modality="video", **more)

    return [
        video(
            "WanVideoToVideoPipeline",
            tiny.wan,
            {**_GUIDED, **_SHORT, "strength": 0.7},
            media={"video": functools.partial(frames, 5)},
        ),
        video(
            "WanImageToVideoPipeline", tiny.wan, clip, _transformer(in_channels=36), media={"image": photo}
        ),
        video("SkyReelsV2Pipeline", tiny.wan, clip),
        video("LTXImageToVideoPipeline", tiny.ltx, ltx, media={"image": functools.partial(photo, 0, 32)}),
        video(
            "LTXConditionPipeline",
            tiny.ltx,
            ltx,
            _linear_shift,
            media={"image": functools.partial(photo, 0, 32)},
        ),
        video(
            "CogVideoXVideoToVideoPipeline",
            tiny.cogvideox,
            {**cog, "strength": 0.7},
            media={"video": functools.partial(frames, 9)},
        ),
        video(
            "CogVideoXImageToVideoPipeline",
            tiny.cogvideox,
            {**cog, "num_frames": 9},
            _transformer(in_channels=8, use_rotary_positional_embeddings=True),
            media={"image": photo},
        ),
        video(
            "CogVideoXFunControlPipeline",
            tiny.cogvideox,
            cog,
            _transformer(in_channels=8),
            media={"control_video": functools.partial(frames, 9)},
        ),
    ]


FAMILIES: dict[str, TinyPipeline] = {
    entry.name: entry
    for entries in (_sd15(), _sdxl(), _sd3(), _flux(), _qwen(), _images(), _videos())
    for entry in entries
}
"""All entries by name: the class, with the setting that sets an entry apart."""
