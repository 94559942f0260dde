"""Tiny pipelines of further image models with random weights, built offline as in `tiny_pipelines`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from families import (
    _EDIT,
    _GUIDED,
    _SHORT,
    _SIZE,
    _STRENGTH,
    Parts,
    _entry,
    assembled,
    photo,
    varied,
)

import tiny_pipelines as tiny
from tiny_pipelines import TinyPipeline

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKLQwenImage, DiffusionPipeline
    from torch import nn
    from transformers import PreTrainedTokenizerBase, Qwen2VLProcessor

Build = Callable[[], "DiffusionPipeline"]


def seeded(build: Build) -> Build:
    """A builder under a seed of its own, whose weights are filled and switched to inference."""

    @functools.wraps(build)
    def built() -> DiffusionPipeline:
        with tiny._seeded():
            return tiny._finish(build())

    return built


# Parts that several models share


def flow(**config: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **config})


def flux2_vae() -> nn.Module:
    from diffusers import AutoencoderKLFlux2

    return AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 4),
        layers_per_block=1,
        latent_channels=2,
        norm_num_groups=1,
        sample_size=16,
    )


def qwen_vae() -> AutoencoderKLQwenImage:
    """Divides sides by 4."""
    from diffusers import AutoencoderKLQwenImage

    return AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.1, -0.1, 0.0, 0.2],
        latents_std=[1.0, 2.0, 1.5, 1.0],
    )


def qwen_processor(tokenizer: PreTrainedTokenizerBase) -> Qwen2VLProcessor:
    """Shows images to a tiny Qwen2.5-VL in few patches."""
    from transformers import Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

    few = {"shortest_edge": 28 * 28, "longest_edge": 2 * 28 * 28}
    processor = Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=few),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(),
    )
    processor.chat_template = tokenizer.chat_template
    return processor


def clip_vision(width: int = 16, side: int = 32, patch: int = 8) -> tuple[nn.Module, Any]:
    """An image encoder of CLIP, and what resizes images for it."""
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=width,
        projection_dim=width,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=side,
        patch_size=patch,
    )
    return CLIPVisionModelWithProjection(config), CLIPImageProcessor(crop_size=side, size=side)


def qwen3_vl(tokenizer: PreTrainedTokenizerBase, *, width: int = 16) -> nn.Module:
    from transformers import Qwen3VLConfig, Qwen3VLModel

    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": width,
            "intermediate_size": width,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]},
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": width,
            "deepstack_visual_indexes": [0],
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    )
    return Qwen3VLModel(config)


# Qwen-Image and models of its layout


@functools.cache
def _small_edits() -> None:
    """Shrinks the area that Qwen's edit pipelines scale their images to, a constant of their modules."""
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit as edit
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_inpaint as inpaint
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as plus

    def fixed(target_area: float, ratio: float) -> tuple[int, int, None]:
        return 32, 32, None

    edit.calculate_dimensions = inpaint.calculate_dimensions = fixed
    plus.calculate_dimensions = lambda target_area, ratio: (32, 32)


def _qwen_edit(parts: Parts) -> Mapping[str, Any]:
    _small_edits()
    return {"vae": qwen_vae(), "processor": qwen_processor(parts["tokenizer"])}


@seeded
def krea2() -> DiffusionPipeline:
    """Krea 2: hidden states of several layers of the text encoder."""
    from diffusers import Krea2Pipeline, Krea2Transformer2DModel

    tokenizer = tiny._qwen2_tokenizer(tiny._QWEN_TEMPLATE)
    return Krea2Pipeline(
        scheduler=flow(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15),
        vae=qwen_vae(),
        text_encoder=qwen3_vl(tokenizer),
        tokenizer=tokenizer,
        text_encoder_select_layers=(0, 1, 2),
        transformer=Krea2Transformer2DModel(
            in_channels=16,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=32,
            timestep_embed_dim=8,
            text_hidden_dim=16,
            num_text_layers=3,
            text_num_attention_heads=2,
            text_num_key_value_heads=1,
            text_intermediate_size=16,
            num_layerwise_text_blocks=1,
            num_refiner_text_blocks=1,
            axes_dims_rope=(4, 2, 2),
        ),
    )


@seeded
def nucleus() -> DiffusionPipeline:
    """Nucleus-MoE: the layout of Qwen-Image, with experts that choose their tokens."""
    from diffusers import NucleusMoEImagePipeline, NucleusMoEImageTransformer2DModel

    tokenizer = tiny._qwen2_tokenizer(tiny._QWEN_TEMPLATE)
    return NucleusMoEImagePipeline(
        scheduler=flow(),
        vae=qwen_vae(),
        text_encoder=qwen3_vl(tokenizer),
        processor=qwen_processor(tokenizer),
        transformer=NucleusMoEImageTransformer2DModel(
            patch_size=2,
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=4,
            joint_attention_dim=16,
            axes_dims_rope=(8, 4, 4),
            dense_moe_strategy="leave_first_block_dense",
            num_experts=2,
            moe_intermediate_dim=16,
            capacity_factors=1.0,
        ),
    )


# Flux 2, Bria, HiDream, Ovis


def _flux2(cls: str, text: Callable[[], tuple[PreTrainedTokenizerBase, nn.Module]], embeds: bool) -> Build:
    @seeded
    def build() -> DiffusionPipeline:
        import diffusers

        tokenizer, encoder = text()
        return getattr(diffusers, cls)(
            scheduler=flow(use_dynamic_shifting=True),
            vae=flux2_vae(),
            text_encoder=encoder,
            tokenizer=tokenizer,
            transformer=diffusers.Flux2Transformer2DModel(
                in_channels=8,
                num_layers=1,
                num_single_layers=1,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=16,
                axes_dims_rope=(4, 4, 4, 4),
                guidance_embeds=embeds,
            ),
        )

    return build


def _mistral() -> tuple[PreTrainedTokenizerBase, nn.Module]:
    tokenizer = tiny._llama_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'][0]['text'] }}{% endfor %}"
    tokenizer.truncation_side = "left"  # the system's text is longer than all else
    return tokenizer, tiny._decoder_text("Mistral", tokenizer, width=16)


def _qwen3() -> tuple[PreTrainedTokenizerBase, nn.Module]:
    tokenizer = tiny._qwen2_tokenizer()
    return tokenizer, tiny._decoder_text("Qwen3", tokenizer, width=16)


@seeded
def bria() -> DiffusionPipeline:
    """Bria 3: T5, packed latents, batched guidance."""
    from diffusers import BriaPipeline, BriaTransformer2DModel

    tokenizer = tiny._t5_tokenizer()
    return BriaPipeline(
        scheduler=flow(),
        vae=tiny._vae(scaling_factor=0.13025, shift_factor=0.0),
        text_encoder=tiny._t5_text(tokenizer),
        tokenizer=tokenizer,
        transformer=BriaTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=32,
            axes_dims_rope=[0, 4, 4],
        ),
    )


@seeded
def bria_fibo() -> DiffusionPipeline:
    """Bria Fibo: hidden states of all layers of a language model, the autoencoder of Wan 2.2."""
    from diffusers import AutoencoderKLWan, BriaFiboPipeline, BriaFiboTransformer2DModel

    tokenizer = tiny._llama_tokenizer()
    return BriaFiboPipeline(
        scheduler=flow(),
        vae=AutoencoderKLWan(
            base_dim=4,
            decoder_base_dim=4,
            z_dim=16,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            in_channels=12,
            out_channels=12,
            patch_size=2,
            scale_factor_spatial=16,
            temperal_downsample=[False, True, True],
        ),
        text_encoder=tiny._decoder_text("Llama", tokenizer, width=32),
        tokenizer=tokenizer,
        transformer=BriaFiboTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=64,
            text_encoder_dim=32,
            axes_dims_rope=[0, 4, 4],
        ),
    )


@seeded
def hidream() -> DiffusionPipeline:
    """HiDream: four text encoders, routed experts."""
    from diffusers import HiDreamImagePipeline, HiDreamImageTransformer2DModel

    tokenizers = [
        tiny._clip_tokenizer(),
        tiny._clip_tokenizer(),
        tiny._t5_tokenizer(),
        tiny._llama_tokenizer(),
    ]
    pipe = HiDreamImagePipeline(
        scheduler=flow(),
        vae=tiny._vae(scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=tiny._clip_text(tokenizers[0], projection=16),
        tokenizer=tokenizers[0],
        text_encoder_2=tiny._clip_text(tokenizers[1], projection=16),
        tokenizer_2=tokenizers[1],
        text_encoder_3=tiny._t5_text(tokenizers[2]),
        tokenizer_3=tokenizers[2],
        text_encoder_4=tiny._decoder_text("Llama", tokenizers[3], width=16),
        tokenizer_4=tokenizers[3],
        transformer=HiDreamImageTransformer2DModel(
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_channels=[32, 16],
            text_emb_dim=32,
            num_routed_experts=2,
            num_activated_experts=2,
            axes_dims_rope=(4, 2, 2),
            max_resolution=(16, 16),
            llama_layers=(0, 1),
        ),
    )
    pipe.default_sample_size = 8  # every size is scaled to this area
    return pipe


@seeded
def ovis() -> DiffusionPipeline:
    """Ovis-Image: Qwen3, packed latents, two guidance forwards."""
    from diffusers import OvisImagePipeline, OvisImageTransformer2DModel

    tokenizer, encoder = _qwen3()
    return OvisImagePipeline(
        scheduler=flow(),
        vae=tiny._vae(scaling_factor=1.5305, shift_factor=0.0609),
        text_encoder=encoder,
        tokenizer=tokenizer,
        transformer=OvisImageTransformer2DModel(
            in_channels=16,
            out_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(4, 4, 8),
        ),
    )


@seeded
def ernie() -> DiffusionPipeline:
    """ERNIE-Image: latents in patches, text of any length, the step's result by name."""
    from diffusers import ErnieImagePipeline, ErnieImageTransformer2DModel

    tokenizer = tiny._llama_tokenizer()
    return ErnieImagePipeline(
        scheduler=flow(),
        vae=flux2_vae(),
        text_encoder=tiny._decoder_text("Mistral", tokenizer, width=16),
        tokenizer=tokenizer,
        transformer=ErnieImageTransformer2DModel(
            hidden_size=32,
            num_attention_heads=2,
            num_layers=1,
            ffn_hidden_size=32,
            in_channels=8,
            out_channels=8,
            patch_size=1,
            text_in_dim=16,
            rope_axes_dim=(4, 6, 6),
        ),
    )


@seeded
def longcat() -> DiffusionPipeline:
    """LongCat-Image: Qwen2.5-VL between a prefix and a suffix, packed latents."""
    from diffusers import LongCatImagePipeline, LongCatImageTransformer2DModel

    tokenizer = tiny._qwen2_tokenizer(tiny._QWEN_TEMPLATE)
    return LongCatImagePipeline(
        scheduler=flow(use_dynamic_shifting=True),
        vae=tiny._vae(channels=16, scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=tiny._qwen_vl_text(tokenizer),
        tokenizer=tokenizer,
        text_processor=qwen_processor(tokenizer),
        transformer=LongCatImageTransformer2DModel(
            in_channels=64,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            pooled_projection_dim=16,
            axes_dims_rope=(4, 4, 8),
        ),
    )


# Sana Sprint, Lumina, CogView 3, PRX, Kandinsky 3, OmniGen, Cosmos


def _sprint(parts: Parts) -> Mapping[str, Any]:
    from diffusers import SCMScheduler

    return {
        "scheduler": SCMScheduler(),
        "transformer": varied(parts["transformer"], guidance_embeds=True, qk_norm="rms_norm_across_heads"),
    }


@seeded
def lumina() -> DiffusionPipeline:
    """Lumina-Next: Gemma, a learned sigma, time from noise 0 to data 1."""
    from diffusers import LuminaNextDiT2DModel, LuminaPipeline

    tokenizer = tiny._gemma_tokenizer()
    return LuminaPipeline(
        scheduler=flow(shift=1.0),
        vae=tiny._vae(scale=8, scaling_factor=0.13025),
        text_encoder=tiny._decoder_text("Gemma2", tokenizer, width=16),
        tokenizer=tokenizer,
        transformer=LuminaNextDiT2DModel(
            sample_size=4,
            patch_size=2,
            in_channels=4,
            hidden_size=32,
            num_layers=2,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=16,
            learn_sigma=True,
            qk_norm=True,
            cross_attention_dim=16,
        ),
    )


@seeded
def cogview3() -> DiffusionPipeline:
    """CogView3 Plus: T5, batched guidance, the scheduler of CogVideoX."""
    from diffusers import CogVideoXDDIMScheduler, CogView3PlusPipeline, CogView3PlusTransformer2DModel

    tokenizer = tiny._t5_tokenizer()
    return CogView3PlusPipeline(
        scheduler=CogVideoXDDIMScheduler(prediction_type="v_prediction", timestep_spacing="trailing"),
        vae=tiny._vae(scaling_factor=0.13025),
        text_encoder=tiny._t5_text(tokenizer),
        tokenizer=tokenizer,
        transformer=CogView3PlusTransformer2DModel(
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            text_embed_dim=32,
            time_embed_dim=16,
            condition_dim=4,
            pos_embed_max_size=8,
            sample_size=8,
        ),
    )


@seeded
def prx() -> DiffusionPipeline:
    """PRX: the step's result by name, batched guidance."""
    from diffusers import PRXPipeline, PRXTransformer2DModel

    tokenizer = tiny._gemma_tokenizer()
    tokenizer.model_max_length = 32
    return PRXPipeline(
        scheduler=flow(),
        vae=tiny._vae(scaling_factor=1.0, shift_factor=0.0),
        text_encoder=tiny._decoder_text("Gemma2", tokenizer, width=16),
        tokenizer=tokenizer,
        transformer=PRXTransformer2DModel(
            patch_size=1,
            in_channels=4,
            context_in_dim=16,
            hidden_size=16,
            mlp_ratio=2.0,
            num_heads=2,
            depth=1,
            axes_dim=[4, 4],
        ),
        default_sample_size=16,
    )


@seeded
def kandinsky3() -> DiffusionPipeline:
    """Kandinsky 3: T5, a UNet of its own, DDPM."""
    from diffusers import DDPMScheduler, Kandinsky3Pipeline, Kandinsky3UNet, VQModel

    tokenizer = tiny._t5_tokenizer()
    return Kandinsky3Pipeline(
        tokenizer=tokenizer,
        text_encoder=tiny._t5_text(tokenizer),
        unet=Kandinsky3UNet(
            in_channels=4,
            time_embedding_dim=4,
            groups=2,
            attention_head_dim=4,
            layers_per_block=3,
            block_out_channels=(32, 64),
            cross_attention_dim=4,
            encoder_hid_dim=32,
        ),
        scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=True),
        movq=VQModel(
            block_out_channels=[32, 32],
            down_block_types=["DownEncoderBlock2D"] * 2,
            up_block_types=["UpDecoderBlock2D"] * 2,
            latent_channels=4,
            norm_num_groups=8,
            norm_type="spatial",
            num_vq_embeddings=12,
            vq_embed_dim=4,
        ),
    )


@seeded
def omnigen() -> DiffusionPipeline:
    """OmniGen: one transformer for text and images, time from noise 0 to data 1."""
    from diffusers import OmniGenPipeline, OmniGenTransformer2DModel

    return OmniGenPipeline(
        transformer=OmniGenTransformer2DModel(
            in_channels=4,
            patch_size=2,
            hidden_size=16,
            num_attention_heads=2,
            num_key_value_heads=2,
            intermediate_size=32,
            num_layers=1,
            time_step_dim=4,
            rope_scaling={"long_factor": [1.0] * 4, "short_factor": [1.0] * 4},
        ),
        scheduler=flow(invert_sigmas=True, num_train_timesteps=1, shift=1.0),
        vae=tiny._vae(scale=8, scaling_factor=0.13025),
        tokenizer=tiny._llama_tokenizer(),
    )


class Passing:
    """A safety checker that lets everything pass."""

    def to(self, *args: Any, **kwargs: Any) -> Passing:
        return self

    def check_text_safety(self, prompt: str) -> bool:
        return True

    def check_video_safety(self, video: Any) -> Any:
        return video


def cosmos_parts(channels: int = 4, **transformer: Any) -> dict[str, Any]:
    """The components that all Cosmos models share, without autoencoder and scheduler."""
    from diffusers import CosmosTransformer3DModel

    tokenizer = tiny._t5_tokenizer()
    return {
        "text_encoder": tiny._t5_text(tokenizer),
        "tokenizer": tokenizer,
        "safety_checker": Passing(),
        "transformer": CosmosTransformer3DModel(
            **{
                "in_channels": channels,
                "out_channels": channels,
                "num_attention_heads": 2,
                "attention_head_dim": 16,
                "num_layers": 1,
                "mlp_ratio": 2,
                "text_embed_dim": 32,
                "adaln_lora_dim": 4,
                "max_size": (4, 32, 32),
                "patch_size": (1, 2, 2),
                "rope_scale": (2.0, 1.0, 1.0),
                "concat_padding_mask": True,
                "extra_pos_embed_type": "learnable",
                **transformer,
            }
        ),
    }


@seeded
def cosmos2_image() -> DiffusionPipeline:
    """Cosmos Predict 2, text to image: noise of standard deviation sigma_max."""
    from diffusers import Cosmos2TextToImagePipeline

    return Cosmos2TextToImagePipeline(
        **cosmos_parts(16), vae=tiny._wan_vae(), scheduler=flow(use_karras_sigmas=True, shift=1.0)
    )


# Kolors, HunyuanImage


@seeded
def kolors() -> DiffusionPipeline:
    """Kolors: the UNet of SDXL on ChatGLM."""
    from diffusers import EulerDiscreteScheduler, KolorsPipeline
    from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig, ChatGLMModel

    tokenizer = _chatglm_tokenizer()
    config = ChatGLMConfig(
        num_layers=2,
        padded_vocab_size=tokenizer.vocab_size + 8,
        hidden_size=16,
        ffn_hidden_size=16,
        kv_channels=8,
        num_attention_heads=2,
        seq_length=64,
        add_qkv_bias=True,
        multi_query_attention=True,
        multi_query_group_num=1,
        original_rope=True,
    )
    return KolorsPipeline(
        vae=tiny._vae(scaling_factor=0.13025),
        text_encoder=ChatGLMModel(config),
        tokenizer=tokenizer,
        unet=tiny._unet(
            {
                "use_linear_projection": True,
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 8,
                "projection_class_embeddings_input_dim": 6 * 8 + 16,
            }
        ),
        scheduler=EulerDiscreteScheduler(timestep_spacing="leading", **tiny._SD_BETAS),
    )


def _chatglm_tokenizer() -> Any:
    """A tokenizer of ChatGLM with a SentencePiece model of the words that the tests use."""
    import io
    import tempfile
    from pathlib import Path

    import sentencepiece
    from diffusers.pipelines.kolors.tokenizer import ChatGLMTokenizer

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(tiny._words()), *tiny._words()]),
        model_writer=model,
        vocab_size=120,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.model"
        path.write_bytes(model.getvalue())
        return ChatGLMTokenizer(str(path), model_max_length=64)


def _hunyuan_image(guided: bool) -> Build:
    @seeded
    def build() -> DiffusionPipeline:
        from diffusers import (
            AdaptiveProjectedMixGuidance,
            AutoencoderKLHunyuanImage,
            HunyuanImagePipeline,
            HunyuanImageTransformer2DModel,
        )
        from transformers import ByT5Tokenizer

        tokenizer, byte_tokenizer = tiny._qwen2_tokenizer(tiny._QWEN_TEMPLATE), ByT5Tokenizer()
        pipe = HunyuanImagePipeline(
            scheduler=flow(shift=7.0),
            vae=AutoencoderKLHunyuanImage(
                in_channels=3,
                out_channels=3,
                latent_channels=4,
                block_out_channels=(32, 32),
                layers_per_block=1,
                spatial_compression_ratio=2,
                sample_size=16,
                scaling_factor=0.476986,
                downsample_match_channel=False,
                upsample_match_channel=False,
            ),
            text_encoder=tiny._qwen_vl_text(tokenizer),
            tokenizer=tokenizer,
            text_encoder_2=tiny._t5_text(byte_tokenizer),
            tokenizer_2=byte_tokenizer,
            transformer=HunyuanImageTransformer2DModel(
                in_channels=4,
                out_channels=4,
                num_attention_heads=4,
                attention_head_dim=8,
                num_layers=1,
                num_single_layers=1,
                num_refiner_layers=1,
                patch_size=(1, 1),
                guidance_embeds=not guided,
                text_embed_dim=16,
                text_embed_2_dim=32,
                rope_axes_dim=(4, 4),
            ),
            guider=AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=2) if guided else None,
            ocr_guider=AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=3)
            if guided
            else None,
        )
        pipe.tokenizer_max_length = pipe.tokenizer_2_max_length = 64
        return pipe

    return build


# IP-Adapter, and other additions to Stable Diffusion


def with_ip_adapter(base: Build) -> Build:
    """The pipeline with an IP-Adapter loaded, which looks at images of 32 pixels."""

    def build() -> DiffusionPipeline:
        with tiny._seeded():
            pipe = base()
            encoder, extractor = clip_vision()
            tiny._fill(encoder, 5)
            pipe.register_modules(image_encoder=encoder.eval(), feature_extractor=extractor)
            pipe.load_ip_adapter(
                _ip_weights(pipe.unet, encoder.config.projection_dim),
                subfolder="",
                weight_name="",
                image_encoder_folder=None,
            )
            pipe.set_ip_adapter_scale(0.7)
        return pipe

    return build


def _ip_weights(unet: Any, width: int, tokens: int = 4) -> dict[str, dict[str, torch.Tensor]]:
    """Random weights of an IP-Adapter for a UNet."""
    import torch

    cross, generator = unet.config.cross_attention_dim, torch.Generator().manual_seed(3)

    def random(*shape: int) -> torch.Tensor:
        return 0.3 * torch.randn(shape, generator=generator)

    adapter = {}
    number = 1
    for name, processor in unet.attn_processors.items():
        if name.endswith("attn1.processor") or "motion_module" in name:
            continue
        module = unet.get_submodule(name.removesuffix(".processor"))
        adapter[f"{number}.to_k_ip.weight"] = random(module.to_k.out_features, cross)
        adapter[f"{number}.to_v_ip.weight"] = random(module.to_v.out_features, cross)
        number += 2
        del processor
    projection = {
        "proj.weight": random(cross * tokens, width),
        "proj.bias": random(cross * tokens),
        "norm.weight": 1 + random(cross),
        "norm.bias": random(cross),
    }
    return {"image_proj": projection, "ip_adapter": adapter}


def _ip_entry(cls: str, base: Build, settings: Mapping[str, Any], media: Mapping[str, Any]) -> TinyPipeline:
    return TinyPipeline(
        f"{cls}, IP-Adapter",
        with_ip_adapter(base),
        settings,
        media={**media, "ip_adapter_image": functools.partial(photo, 4, 32)},
    )


@seeded
def ledits() -> DiffusionPipeline:
    """LEDITS++: edits an image that it has inverted before."""
    from diffusers import DPMSolverMultistepScheduler, LEditsPPPipelineStableDiffusion

    scheduler = DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", **tiny._SD_BETAS)
    return LEditsPPPipelineStableDiffusion(**{**tiny._sd_parts(), "scheduler": scheduler})


def _union(parts: Parts) -> Mapping[str, Any]:
    import inspect

    from diffusers import ControlNetUnionModel

    known = inspect.signature(ControlNetUnionModel.__init__).parameters
    config = {key: value for key, value in parts["unet"].config.items() if key in known}
    width = config["block_out_channels"][0]
    return {
        "controlnet": ControlNetUnionModel(
            **config,
            conditioning_embedding_out_channels=(8, 16),
            num_trans_channel=width,
            num_proj_channel=width,
            num_trans_head=2,
        )
    }


def _crossed(parts: Parts) -> Mapping[str, Any]:
    from diffusers import ControlNetXSAdapter

    unet = varied(parts["unet"], layers_per_block=2, use_linear_projection=True)
    adapter = ControlNetXSAdapter.from_unet(unet, size_ratio=1, conditioning_embedding_out_channels=(8, 16))
    return {"unet": unet, "controlnet": adapter}


def _entries() -> list[TinyPipeline]:
    sd, sdxl, qwen = tiny.stable_diffusion, tiny.stable_diffusion_xl, tiny.qwen_image
    short = {**_GUIDED, **_SHORT}
    large = {**tiny._LARGE, **_SHORT}
    qwen_large = {"height": 32, "width": 32, "true_cfg_scale": 4.0, "negative_prompt": " "}
    sprint = {
        **large,
        "use_resolution_binning": False,
        "complex_human_instruction": None,
        "intermediate_timesteps": None,
    }
    layers = {"text_encoder_out_layers": (1,)}
    klein = _flux2("Flux2KleinPipeline", _qwen3, False)
    return [
        _entry("QwenImageEditPipeline", qwen, qwen_large, _qwen_edit, media={"image": photo}),
        _entry("QwenImageEditPlusPipeline", qwen, qwen_large, _qwen_edit, media={"image": photo}),
        _entry(
            "QwenImageEditPlusPipeline",
            qwen,
            qwen_large,
            _qwen_edit,
            media={"image": lambda: [photo(0), photo(1)]},
            name="QwenImageEditPlusPipeline, two images",
        ),
        _entry(
            "QwenImageEditInpaintPipeline", qwen, {**qwen_large, "strength": 0.7}, _qwen_edit, media=_EDIT
        ),
        TinyPipeline("Krea2Pipeline", krea2, {**large, "guidance_scale": 3.0}),
        TinyPipeline(
            "NucleusMoEImagePipeline", nucleus, {**large, "return_index": -1, "negative_prompt": " "}
        ),
        TinyPipeline("Flux2Pipeline", _flux2("Flux2Pipeline", _mistral, True), {**short, **layers}),
        TinyPipeline("Flux2KleinPipeline", klein, {**short, **layers}),
        TinyPipeline(
            "Flux2KleinPipeline, edit",
            klein,
            {**short, **layers},
            media={"image": functools.partial(photo, 0, 64)},
        ),
        TinyPipeline("BriaPipeline", bria, {**_GUIDED, "max_sequence_length": 32}),
        TinyPipeline("BriaFiboPipeline", bria_fibo, {**tiny._LARGE, "negative_prompt": "blurry"}),
        TinyPipeline("HiDreamImagePipeline", hidream, short),
        TinyPipeline("OvisImagePipeline", ovis, short),
        TinyPipeline("ErnieImagePipeline", ernie, _GUIDED),
        TinyPipeline("LongCatImagePipeline", longcat, {**_GUIDED, "enable_prompt_rewrite": False}),
        _entry("SanaSprintPipeline", tiny.sana, sprint, _sprint),
        _entry(
            "SanaSprintImg2ImgPipeline",
            tiny.sana,
            {**sprint, **_STRENGTH},
            _sprint,
            media={"image": functools.partial(photo, 0, 32)},
        ),
        TinyPipeline("LuminaPipeline", lumina, {**large, "clean_caption": False}),
        TinyPipeline("CogView3PlusPipeline", cogview3, short),
        TinyPipeline("PRXPipeline", prx, {**_GUIDED, "use_resolution_binning": False}),
        TinyPipeline("Kandinsky3Pipeline", kandinsky3, _GUIDED),
        TinyPipeline("OmniGenPipeline", omnigen, {**tiny._LARGE, "guidance_scale": 3.0}),
        TinyPipeline("Cosmos2TextToImagePipeline", cosmos2_image, large),
        TinyPipeline("KolorsPipeline", kolors, {**_GUIDED, "max_sequence_length": 32}),
        _entry(
            "KolorsImg2ImgPipeline",
            kolors,
            {"guidance_scale": 4.0, "max_sequence_length": 32, **_STRENGTH},
            media={"image": photo},
        ),
        _entry(
            "KolorsPAGPipeline",
            kolors,
            {**_GUIDED, "max_sequence_length": 32},
            lambda p: {"pag_applied_layers": "down"},
        ),
        TinyPipeline(
            "HunyuanImagePipeline", _hunyuan_image(False), {**_SIZE, "distilled_guidance_scale": 3.5}
        ),
        TinyPipeline("HunyuanImagePipeline, guider with a running average", _hunyuan_image(True), _SIZE),
        _ip_entry("StableDiffusionPipeline", sd, _GUIDED, {}),
        _ip_entry("StableDiffusionXLPipeline", sdxl, _GUIDED, {}),
        _ip_entry(
            "StableDiffusionImg2ImgPipeline",
            functools.partial(assembled, "StableDiffusionImg2ImgPipeline", sd),
            {"guidance_scale": 4.0, **_STRENGTH},
            {"image": photo},
        ),
        _entry(
            "StableDiffusionXLControlNetUnionPipeline",
            sdxl,
            {**_GUIDED, "control_mode": 0},
            _union,
            media={"control_image": photo},
        ),
        _entry("StableDiffusionControlNetXSPipeline", sd, _GUIDED, _crossed, media={"image": photo}),
        _entry("StableDiffusionXLControlNetXSPipeline", sdxl, _GUIDED, _crossed, media={"image": photo}),
    ]


IMAGES: dict[str, TinyPipeline] = {entry.name: entry for entry in _entries()}
"""All entries by name: the class, with the setting that sets an entry apart."""
