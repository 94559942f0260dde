"""Tiny pipelines of further video models with random weights, built offline as in `tiny_pipelines`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from families import (
    _GUIDED,
    _SHORT,
    _SIZE,
    Parts,
    _controlnet,
    _entry,
    _motion,
    _transformer,
    frames,
    mask,
    photo,
    varied,
)
from image_models import Build, clip_vision, cosmos_parts, flow, qwen_processor, seeded

import tiny_pipelines as tiny
from tiny_pipelines import TinyPipeline

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import nn


# Sana Video, EasyAnimate, Mochi, Latte, Allegro


def _sana_video(cls: str) -> Build:
    @seeded
    def build() -> DiffusionPipeline:
        import diffusers

        tokenizer = tiny._gemma_tokenizer()
        return getattr(diffusers, cls)(
            tokenizer=tokenizer,
            text_encoder=tiny._decoder_text("Gemma2", tokenizer, width=16),
            vae=tiny._wan_vae(),
            scheduler=flow(),
            transformer=diffusers.SanaVideoTransformer3DModel(
                in_channels=16,
                out_channels=16,
                num_attention_heads=2,
                attention_head_dim=12,
                num_layers=1,
                num_cross_attention_heads=2,
                cross_attention_head_dim=12,
                cross_attention_dim=24,
                caption_channels=16,
                sample_size=8,
                qk_norm="rms_norm_across_heads",
                rope_max_seq_len=32,
            ),
        )

    return build


@seeded
def easyanimate() -> DiffusionPipeline:
    """EasyAnimate 5.1: Qwen2-VL with an attention mask, batched guidance."""
    from diffusers import AutoencoderKLMagvit, EasyAnimatePipeline, EasyAnimateTransformer3DModel

    tokenizer = tiny._qwen2_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'][0]['text'] }}{% endfor %}"
    return EasyAnimatePipeline(
        tokenizer=tokenizer,
        text_encoder=tiny._decoder_text("Qwen3", tokenizer, width=16),
        vae=AutoencoderKLMagvit(
            in_channels=3,
            out_channels=3,
            down_block_types=("SpatialDownBlock3D", *("SpatialTemporalDownBlock3D",) * 3),
            up_block_types=("SpatialUpBlock3D", *("SpatialTemporalUpBlock3D",) * 3),
            block_out_channels=(8, 8, 8, 8),
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=2,
            spatial_group_norm=False,
        ),
        scheduler=flow(),
        transformer=EasyAnimateTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            out_channels=4,
            time_embed_dim=8,
            text_embed_dim=16,
            num_layers=1,
            sample_width=16,
            sample_height=16,
            patch_size=2,
        ),
    )


@seeded
def mochi() -> DiffusionPipeline:
    """Mochi 1: time from noise 0 to data 1, as diffusers' conversion writes it."""
    from diffusers import AutoencoderKLMochi, MochiPipeline, MochiTransformer3DModel

    tokenizer = tiny._t5_tokenizer()
    return MochiPipeline(
        tokenizer=tokenizer,
        text_encoder=tiny._t5_text(tokenizer),
        vae=AutoencoderKLMochi(
            latent_channels=12,
            encoder_block_out_channels=(32, 32, 32, 32),
            decoder_block_out_channels=(32, 32, 32, 32),
            layers_per_block=(1, 1, 1, 1, 1),
            latents_mean=(0.0,) * 12,
            latents_std=(1.0,) * 12,
        ),
        scheduler=flow(invert_sigmas=True, shift=1.0),
        transformer=MochiTransformer3DModel(
            patch_size=2,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=2,
            pooled_projection_dim=16,
            in_channels=12,
            text_embed_dim=32,
            time_embed_dim=4,
            max_sequence_length=16,
        ),
    )


@seeded
def latte() -> DiffusionPipeline:
    """Latte: T5, a learned sigma, DDIM, frames of an image autoencoder."""
    from diffusers import DDIMScheduler, LattePipeline, LatteTransformer3DModel

    tokenizer = tiny._t5_tokenizer()
    return LattePipeline(
        tokenizer=tokenizer,
        text_encoder=tiny._t5_text(tokenizer),
        vae=tiny._vae(scaling_factor=0.18215),
        scheduler=DDIMScheduler(clip_sample=False),
        transformer=LatteTransformer3DModel(
            sample_size=8,
            num_layers=1,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_channels=32,
            in_channels=4,
            cross_attention_dim=16,
            out_channels=8,
            attention_bias=True,
            activation_fn="gelu-approximate",
            num_embeds_ada_norm=1000,
            norm_type="ada_norm_single",
            norm_elementwise_affine=False,
            norm_eps=1e-6,
            video_length=2,
        ),
    )


@seeded
def allegro() -> DiffusionPipeline:
    """Allegro: T5, an autoencoder in tiles."""
    from diffusers import AllegroPipeline, AllegroTransformer3DModel, AutoencoderKLAllegro, DDIMScheduler

    tokenizer = tiny._t5_tokenizer()
    vae = AutoencoderKLAllegro(
        down_block_types=("AllegroDownBlock3D",) * 4,
        up_block_types=("AllegroUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
    )
    vae.enable_tiling()
    vae.kernel, vae.stride = (8, 16, 16), (4, 8, 8)
    return AllegroPipeline(
        tokenizer=tokenizer,
        text_encoder=tiny._t5_text(tokenizer, width=24),
        vae=vae,
        scheduler=DDIMScheduler(clip_sample=False),
        transformer=AllegroTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            cross_attention_dim=24,
            sample_width=8,
            sample_height=8,
            sample_frames=8,
            caption_channels=24,
        ),
    )


# Cosmos


def _cosmos(cls: str, second: bool, channels: int) -> Build:
    @seeded
    def build() -> DiffusionPipeline:
        import diffusers

        if second:
            vae: nn.Module = tiny._wan_vae()
            scheduler = flow(use_karras_sigmas=True, shift=1.0)
        else:
            vae = diffusers.AutoencoderKLCosmos(
                latent_channels=4,
                encoder_block_out_channels=(8, 8, 8, 8),
                decode_block_out_channels=(8, 8, 8, 8),
                attention_resolutions=(8,),
                resolution=64,
                num_layers=1,
                spatial_compression_ratio=4,
                temporal_compression_ratio=4,
            )
            scheduler = diffusers.EDMEulerScheduler(
                sigma_min=0.002, sigma_max=80, sigma_data=0.5, final_sigmas_type="sigma_min"
            )
        parts = cosmos_parts(16 if second else 4, in_channels=channels)
        return getattr(diffusers, cls)(**parts, vae=vae, scheduler=scheduler)

    return build


# Hunyuan, Kandinsky, LTX 2


_HUNYUAN_WORDS = (
    "You are a helpful assistant Describe the video by detailing following aspects main content and theme of "
    "color shape size texture quantity text spatial relationships objects Actions events behaviors temporal "
    "physical movement changes background environment light style atmosphere camera angles movements "
    "transitions used system user"
)
_KANDINSKY_WORDS = (
    "You are a prompt engineer Describe the video in detail how camera moves or shakes describe zoom and "
    "view angle whether it follows objects location of main characters their action dynamism presented "
    "actions Name visual style is professional footage user generated content some kind animation game "
    "scren effects postprocessing transitions if they Pay attention to order key shown scene system"
)


def _hunyuan15(from_image: bool) -> Build:
    @seeded
    def build() -> DiffusionPipeline:
        import diffusers
        from transformers import ByT5Tokenizer

        tokenizer, byte_tokenizer = tiny._qwen2_tokenizer(_HUNYUAN_WORDS), ByT5Tokenizer()
        parts = {
            "tokenizer": tokenizer,
            "text_encoder": tiny._decoder_text("Qwen3", tokenizer, width=16),
            "tokenizer_2": byte_tokenizer,
            "text_encoder_2": tiny._t5_text(byte_tokenizer),
            "guider": diffusers.ClassifierFreeGuidance(guidance_scale=4.0),
            "scheduler": flow(shift=7.0),
            "vae": diffusers.AutoencoderKLHunyuanVideo15(
                latent_channels=4,
                block_out_channels=(16, 16),
                layers_per_block=1,
                spatial_compression_ratio=4,
                temporal_compression_ratio=2,
                downsample_match_channel=False,
                upsample_match_channel=False,
            ),
            "transformer": diffusers.HunyuanVideo15Transformer3DModel(
                in_channels=9,
                out_channels=4,
                num_attention_heads=2,
                attention_head_dim=8,
                num_layers=1,
                num_refiner_layers=1,
                mlp_ratio=2.0,
                patch_size=1,
                patch_size_t=1,
                text_embed_dim=16,
                text_embed_2_dim=32,
                image_embed_dim=8,
                rope_axes_dim=(2, 2, 4),
                target_size=16,
                task_type="i2v" if from_image else "t2v",
            ),
        }
        if from_image:
            parts |= _siglip(8)
            pipe = diffusers.HunyuanVideo15ImageToVideoPipeline(**parts)
        else:
            pipe = diffusers.HunyuanVideo15Pipeline(**parts)
        pipe.tokenizer_max_length, pipe.tokenizer_2_max_length = 192, 16
        pipe.vision_num_semantic_tokens = 16
        return pipe

    return build


def _siglip(width: int) -> dict[str, Any]:
    from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

    config = SiglipVisionConfig(
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=4,
    )
    return {
        "image_encoder": SiglipVisionModel(config),
        "feature_extractor": SiglipImageProcessor(size={"height": 16, "width": 16}),
    }


def _kandinsky5(cls: str, conditioned: bool) -> Build:
    @seeded
    def build() -> DiffusionPipeline:
        import diffusers

        tokenizer, tokenizer_2 = tiny._qwen2_tokenizer(_KANDINSKY_WORDS), tiny._clip_tokenizer()
        return getattr(diffusers, cls)(
            vae=diffusers.AutoencoderKLHunyuanVideo(
                latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4
            ),
            text_encoder=tiny._qwen_vl_text(tokenizer),
            tokenizer=qwen_processor(tokenizer),
            text_encoder_2=tiny._clip_text(tokenizer_2),
            tokenizer_2=tokenizer_2,
            scheduler=flow(),
            transformer=diffusers.Kandinsky5Transformer3DModel(
                in_visual_dim=4,
                in_text_dim=16,
                in_text_dim2=16,
                time_dim=16,
                out_visual_dim=4,
                model_dim=32,
                ff_dim=32,
                num_text_blocks=1,
                num_visual_blocks=1,
                axes_dims=(4, 6, 6),
                visual_cond=conditioned,
            ),
        )

    return build


def _ltx2(cls: str) -> Build:
    @seeded
    def build() -> DiffusionPipeline:
        import diffusers
        from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder

        tokenizer = tiny._gemma_tokenizer()
        vae = diffusers.AutoencoderKLLTX2Video(
            latent_channels=4,
            block_out_channels=(8,),
            decoder_block_out_channels=(8,),
            layers_per_block=(1,),
            decoder_layers_per_block=(1, 1),
            spatio_temporal_scaling=(True,),
            decoder_spatio_temporal_scaling=(True,),
            decoder_inject_noise=(False, False),
            downsample_type=("spatial",),
            upsample_residual=(False,),
            upsample_factor=(1,),
            timestep_conditioning=False,
            patch_size=1,
            patch_size_t=1,
        )
        vae.use_framewise_encoding = vae.use_framewise_decoding = False
        connector = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1}
        return getattr(diffusers, cls)(
            scheduler=flow(),
            vae=vae,
            audio_vae=diffusers.AutoencoderKLLTX2Audio(
                base_channels=4,
                output_channels=2,
                ch_mult=(1,),
                num_res_blocks=1,
                attn_resolutions=None,
                in_channels=2,
                resolution=32,
                latent_channels=2,
                mid_block_add_attention=False,
                sample_rate=16000,
                mel_hop_length=160,
                mel_bins=8,
            ),
            text_encoder=tiny._decoder_text("Gemma2", tokenizer, width=16),
            tokenizer=tokenizer,
            connectors=LTX2TextConnectors(
                caption_channels=16,
                text_proj_in_factor=3,
                **{f"video_connector_{k}": v for k, v in connector.items()},
                **{f"audio_connector_{k}": v for k, v in connector.items()},
                video_connector_num_learnable_registers=None,
                audio_connector_num_learnable_registers=None,
                connector_rope_base_seq_len=32,
                rope_theta=10000.0,
                rope_double_precision=False,
                causal_temporal_positioning=False,
                rope_type="split",
            ),
            transformer=diffusers.LTX2VideoTransformer3DModel(
                in_channels=4,
                out_channels=4,
                num_attention_heads=2,
                attention_head_dim=8,
                cross_attention_dim=16,
                audio_in_channels=4,
                audio_out_channels=4,
                audio_num_attention_heads=2,
                audio_attention_head_dim=4,
                audio_cross_attention_dim=8,
                num_layers=1,
                caption_channels=16,
                rope_double_precision=False,
                rope_type="split",
            ),
            vocoder=LTX2Vocoder(
                in_channels=16,
                hidden_channels=8,
                out_channels=2,
                upsample_kernel_sizes=[4, 4],
                upsample_factors=[2, 2],
                resnet_kernel_sizes=[3],
                resnet_dilations=[[1, 3, 5]],
                output_sampling_rate=16000,
            ),
        )

    return build


# Wan and models made from it


def _vace(parts: Parts) -> Mapping[str, Any]:
    from diffusers import WanVACETransformer3DModel

    return {
        "scheduler": flow(shift=7.0),
        "transformer": WanVACETransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=16,
            out_channels=16,
            text_dim=32,
            freq_dim=16,
            ffn_dim=32,
            num_layers=3,
            rope_max_seq_len=32,
            vace_layers=[0, 2],
            vace_in_channels=96,
        ),
    }


def _wan_image(model: str) -> Callable[[Parts], Mapping[str, Any]]:
    """A transformer of the layout of Wan that also reads the image by CLIP."""

    def change(parts: Parts) -> Mapping[str, Any]:
        import diffusers

        encoder, processor = clip_vision()
        config = {k: v for k, v in parts["transformer"].config.items() if not k.startswith("_")}
        config |= {"in_channels": 36, "image_dim": 16}
        names = ("num_attention_heads", "attention_head_dim", "in_channels", "out_channels", "text_dim")
        names += ("freq_dim", "ffn_dim", "num_layers", "rope_max_seq_len", "image_dim")
        return {
            "image_encoder": encoder,
            "image_processor": processor,
            "transformer": getattr(diffusers, model)(**{name: config[name] for name in names}),
        }

    return change


def _anyflow(parts: Parts) -> Mapping[str, Any]:
    from diffusers import AnyFlowTransformer3DModel, FlowMapEulerDiscreteScheduler

    return {
        "scheduler": FlowMapEulerDiscreteScheduler(num_train_timesteps=1000, shift=5.0),
        "transformer": AnyFlowTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=16,
            out_channels=16,
            text_dim=32,
            freq_dim=16,
            ffn_dim=32,
            num_layers=1,
            rope_max_seq_len=32,
            gate_value=0.25,
            deltatime_type="r",
        ),
    }


@seeded
def motif() -> DiffusionPipeline:
    """Motif-Video: T5Gemma, guidance by a component that may keep a running average."""
    from diffusers import AdaptiveProjectedGuidance, MotifVideoPipeline, MotifVideoTransformer3DModel
    from transformers import T5Gemma2EncoderConfig, T5Gemma2TextConfig
    from transformers.models.t5gemma2.modeling_t5gemma2 import T5Gemma2Encoder

    tokenizer = tiny._gemma_tokenizer()
    text = T5Gemma2TextConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        vocab_size=len(tokenizer),
        max_position_embeddings=128,
        head_dim=16,
        num_key_value_heads=2,
        dropout_rate=0.0,
    )
    return MotifVideoPipeline(
        vae=tiny._wan_vae(),
        scheduler=flow(),
        text_encoder=T5Gemma2Encoder(T5Gemma2EncoderConfig(text_config=text)),
        tokenizer=tokenizer,
        transformer=MotifVideoTransformer3DModel(
            in_channels=33,
            out_channels=16,
            num_attention_heads=2,
            attention_head_dim=12,
            num_layers=1,
            num_single_layers=1,
            patch_size=1,
            patch_size_t=1,
            text_embed_dim=32,
            rope_axes_dim=(4, 4, 4),
        ),
        guider=AdaptiveProjectedGuidance(guidance_scale=4.0),
    )


# Stable Diffusion with frames


@seeded
def text_to_video() -> DiffusionPipeline:
    """ModelScope's text to video: a UNet over frames, whose scheduler sees frames as samples."""
    from diffusers import TextToVideoSDPipeline, UNet3DConditionModel

    parts = tiny._sd_parts()
    names = ("vae", "text_encoder", "tokenizer", "scheduler")
    return TextToVideoSDPipeline(
        **{name: parts[name] for name in names},
        unet=UNet3DConditionModel(
            block_out_channels=(8, 8),
            layers_per_block=1,
            sample_size=8,
            down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
            up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
            cross_attention_dim=16,
            attention_head_dim=4,
            norm_num_groups=2,
        ),
    )


def _sparse(parts: Parts) -> Mapping[str, Any]:
    from diffusers import SparseControlNetModel

    return {
        **_motion(parts),
        "controlnet": SparseControlNetModel(
            conditioning_channels=3,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlockMotion", "CrossAttnDownBlockMotion"),
            cross_attention_dim=16,
            conditioning_embedding_out_channels=(8, 8),
            norm_num_groups=2,
            attention_head_dim=4,
            motion_num_attention_heads=2,
            use_simplified_condition_embedding=False,
        ),
    }


def _entries() -> list[TinyPipeline]:
    clip = {**_GUIDED, "num_frames": 5, **_SHORT}
    large = {**tiny._LARGE, "num_frames": 5, **_SHORT}
    sana = {
        **tiny._LARGE,
        **_SHORT,
        "frames": 5,
        "complex_human_instruction": None,
        "use_resolution_binning": False,
    }
    ltx2 = {
        **large,
        "guidance_scale": 1.0,
        "stg_scale": 0.0,
        "modality_scale": 1.0,
        "guidance_rescale": 0.0,
        "audio_guidance_scale": 1.0,
        "audio_stg_scale": 0.0,
        "audio_modality_scale": 1.0,
        "audio_guidance_rescale": 0.0,
        "spatio_temporal_guidance_blocks": None,
        "use_cross_timestep": False,
        "frame_rate": 25.0,
    }
    big = functools.partial(photo, 0, 32)

    def video(
        name: str, build: Build, settings: Mapping[str, Any], **media: Callable[[], Any]
    ) -> TinyPipeline:
        return TinyPipeline(name, build, settings, modality="video", media=media)

    def changed(
        name: str,
        base: Build,
        settings: Mapping[str, Any],
        change: Callable[[Parts], Mapping[str, Any]] | None = None,
        **media: Callable[[], Any],
    ) -> TinyPipeline:
        return _entry(name, base, settings, change, media=media, modality="video")

    return [
        video("SanaVideoPipeline", _sana_video("SanaVideoPipeline"), sana),
        video("SanaImageToVideoPipeline", _sana_video("SanaImageToVideoPipeline"), sana, image=big),
        video("EasyAnimatePipeline", easyanimate, {**_GUIDED, "num_frames": 5, "negative_prompt": "blurry"}),
        video("MochiPipeline", mochi, {**clip, "num_frames": 7}),
        video("LattePipeline", latte, {**_GUIDED, "video_length": 2, "clean_caption": False}),
        video("AllegroPipeline", allegro, {**clip, "num_frames": 8, "clean_caption": False}),
        video(
            "CosmosTextToWorldPipeline",
            _cosmos("CosmosTextToWorldPipeline", False, 4),
            {**large, "num_frames": 9},
        ),
        video(
            "CosmosVideoToWorldPipeline",
            _cosmos("CosmosVideoToWorldPipeline", False, 5),
            {**large, "num_frames": 9},
            image=big,
        ),
        video(
            "Cosmos2VideoToWorldPipeline",
            _cosmos("Cosmos2VideoToWorldPipeline", True, 17),
            {**large, "num_frames": 9},
            image=big,
        ),
        video("HunyuanVideo15Pipeline", _hunyuan15(False), {**_SIZE, "num_frames": 5}),
        video("HunyuanVideo15ImageToVideoPipeline", _hunyuan15(True), {"num_frames": 5}, image=photo),
        changed(
            "HunyuanSkyreelsImageToVideoPipeline",
            tiny.hunyuan_video,
            {**clip, "max_sequence_length": 64, "guidance_scale": 1.0},
            _transformer(in_channels=8),
            image=photo,
        ),
        video(
            "Kandinsky5T2VPipeline",
            _kandinsky5("Kandinsky5T2VPipeline", False),
            {**large, "max_sequence_length": 32},
        ),
        video(
            "Kandinsky5I2VPipeline",
            _kandinsky5("Kandinsky5I2VPipeline", True),
            {**large, "num_frames": 17, "max_sequence_length": 32},
            image=big,
        ),
        video("LTX2Pipeline", _ltx2("LTX2Pipeline"), ltx2),
        video("LTX2ImageToVideoPipeline", _ltx2("LTX2ImageToVideoPipeline"), ltx2, image=big),
        changed(
            "WanVACEPipeline",
            tiny.wan,
            clip,
            _vace,
            video=functools.partial(frames, 5),
            mask=lambda: [mask()] * 5,
        ),
        changed(
            "ChronoEditPipeline", tiny.wan, clip, _wan_image("ChronoEditTransformer3DModel"), image=photo
        ),
        changed(
            "SkyReelsV2ImageToVideoPipeline",
            tiny.wan,
            clip,
            _wan_image("SkyReelsV2Transformer3DModel"),
            image=photo,
        ),
        changed(
            "LucyEditPipeline",
            tiny.wan,
            clip,
            _transformer(in_channels=32),
            video=functools.partial(frames, 5),
        ),
        changed("AnyFlowPipeline", tiny.wan, clip, _anyflow),
        video("MotifVideoPipeline", motif, {**_SIZE, "num_frames": 5, **_SHORT}),
        video("TextToVideoSDPipeline", text_to_video, {**_GUIDED, "num_frames": 3}),
        changed(
            "AnimateDiffSparseControlNetPipeline",
            tiny.stable_diffusion,
            {**_GUIDED, "num_frames": 3, "controlnet_frame_indices": [0, 2]},
            _sparse,
            conditioning_frames=functools.partial(frames, 2),
        ),
        changed(
            "AnimateDiffVideoToVideoControlNetPipeline",
            tiny.stable_diffusion,
            {**_GUIDED, "strength": 0.7},
            lambda p: {**_motion(p), **_controlnet(p)},
            video=functools.partial(frames, 3),
            conditioning_frames=functools.partial(frames, 3),
        ),
        changed(
            "PIAPipeline",
            tiny.stable_diffusion,
            {**_GUIDED, "num_frames": 3, "motion_scale": 0},
            lambda p: {**_motion(p), "unet": varied(_motion(p)["unet"], in_channels=9)},
            image=photo,
        ),
    ]


VIDEOS: dict[str, TinyPipeline] = {entry.name: entry for entry in _entries()}
"""All entries by name: the class, with the setting that sets an entry apart."""
