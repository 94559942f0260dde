"""Complete tiny diffusers pipelines with random weights, built on the fly and offline.

Each factory builds a pipeline of a real class: tokenizers, text encoders, denoiser, VAE, scheduler. So

    tiny = TINY["flux"]
    pipe = tiny.build()
    pipe("two red circles", num_inference_steps=6, generator=generator, output_type="pt", **tiny.kwargs)

runs text encoding, the denoising loop and the VAE. The weights come from seeded generators of their own: the
same factory always gives the same pipeline, and the global random state is left as it was. No layer stays at
zero (adaLN-zero blocks are filled like the others), so outputs depend on latents, prompt and timestep.

``with_scheduler`` swaps the scheduler by a short name; `TinyPipeline.extra_schedulers` lists the names with
which a plain call of that class runs.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from diffusers import AutoencoderKL, DiffusionPipeline, SchedulerMixin
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Words that get a token of their own; other words fall back to characters or bytes, so any prompt is usable.
_PHRASES = (
    "a an and the of to on in at is no with without left right above below two three four photo image video",
    "red green blue yellow purple white black circle circles square squares star stars triangle triangles",
    "cat dog",
)
_QWEN_TEMPLATE = (
    "system user assistant You are a prompt engineer Describe the image by detailing the color shape size "
    "texture quantity text spatial relationships of the objects and background"
)
_CHARACTERS = [chr(code) for code in range(33, 127)]

_DIFFUSION: dict[str, tuple[str, dict[str, Any]]] = {
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "dpm++sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "lcm": ("LCMScheduler", {}),
}
_FLOW_SIGMAS: dict[str, Any] = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
_FLOW: dict[str, tuple[str, dict[str, Any]]] = {
    "euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "euler_a": ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}),
    "heun": ("FlowMatchHeunDiscreteScheduler", {}),
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", **_FLOW_SIGMAS}),
    "dpm++sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", **_FLOW_SIGMAS}),
    "unipc": ("UniPCMultistepScheduler", _FLOW_SIGMAS),
}
_COGVIDEOX: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("CogVideoXDDIMScheduler", {}),
    "cogvideox_dpm": ("CogVideoXDPMScheduler", {}),
    "dpm++": _DIFFUSION["dpm++"],
    "dpm++sde": _DIFFUSION["dpm++sde"],
    "euler": _DIFFUSION["euler"],
    "euler_a": _DIFFUSION["euler_a"],
    "unipc": _DIFFUSION["unipc"],
}
STOCHASTIC = frozenset({"euler_a", "ddpm", "dpm++sde", "lcm", "cogvideox_dpm"})
"""Scheduler names whose steps draw noise."""


@dataclass(frozen=True)
class TinyPipeline:
    """A tiny pipeline and how to call it.

    Attributes:
        name: Key in `TINY`.
        build: Makes a fresh pipeline; the same weights every time.
        settings: Plain call arguments (sizes, guidance, sequence lengths).
        modality: What a finished call returns.
        decodes: Whether ``output_type="pt"`` works; ``"latent"`` always does.
        extra_schedulers: Names for `with_scheduler`, besides the default, with which a plain call runs and a
            seeded call is reproducible.
        unseeded_schedulers: Names with which a plain call runs, but the pipeline does not hand its generator
            to ``step``: the noise comes from the global random state.
        steps: A number of inference steps that suits the model; every entry also runs with 6.
        media: Call arguments that hold an image, made on demand.
    """

    name: str
    build: Callable[[], DiffusionPipeline]
    settings: Mapping[str, Any]
    modality: Literal["image", "video"] = "image"
    decodes: bool = True
    extra_schedulers: tuple[str, ...] = ()
    unseeded_schedulers: tuple[str, ...] = ()
    steps: int = 6
    media: Mapping[str, Callable[[], torch.Tensor]] = field(default_factory=dict)

    @property
    def kwargs(self) -> dict[str, Any]:
        """Call arguments besides prompt, steps, generator and output type; a new dict each time."""
        return {**self.settings, **{key: make() for key, make in self.media.items()}}


def is_flow(scheduler: SchedulerMixin) -> bool:
    """Whether the scheduler integrates a flow-matching velocity."""
    by_class = type(scheduler).__name__.startswith("FlowMatch")
    return by_class or scheduler.config.get("prediction_type") == "flow_prediction"


def with_scheduler(pipe: DiffusionPipeline, name: str) -> DiffusionPipeline:
    """Put another scheduler into a pipeline, made from the config of the present one.

    Args:
        pipe: The pipeline; changed in place.
        name: ``"default"`` (nothing changes), ``"euler"``, ``"euler_a"``, ``"heun"``, ``"ddim"``, ``"ddpm"``,
            ``"dpm++"``, ``"dpm++sde"``, ``"unipc"``, ``"lcm"`` or ``"cogvideox_dpm"``; which of them exist
            depends on what the model predicts.

    Returns:
        The same pipeline.

    Raises:
        KeyError: If no scheduler of that name exists for this kind of model.
    """
    import diffusers

    if name == "default":
        return pipe
    if type(pipe.scheduler).__name__.startswith("CogVideoX"):
        table = _COGVIDEOX
    else:
        table = _FLOW if is_flow(pipe.scheduler) else _DIFFUSION
    class_name, options = table[name]
    cls = getattr(diffusers, class_name)
    old = dict(pipe.scheduler.config)
    if "use_flow_sigmas" in options:
        old["flow_shift"] = old.get("flow_shift", old.get("shift", 1.0))
    elif class_name.startswith("FlowMatch"):
        old["shift"] = old.get("shift", old.get("flow_shift", 1.0))
    known = inspect.signature(cls.__init__).parameters
    pipe.scheduler = cls(**{**{key: value for key, value in old.items() if key in known}, **options})
    return pipe


# ----------------------------------------------------------------------------
# Weights


@contextmanager
def _seeded(seed: int = 0) -> Iterator[None]:
    """Run constructors under a seed and give the global CPU random state back afterwards."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _fill(module: nn.Module, seed: int) -> None:
    """Overwrite every parameter with small seeded values, zero-initialised and uninitialised ones too."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim >= 2:
                value = noise / math.sqrt(parameter[0].numel())
            elif name.endswith("bias"):
                value = 0.1 * noise
            elif "norm" in name or "gamma" in name:
                value = 1.0 + 0.1 * noise
            else:
                value = 0.5 * noise
            if "decoder.conv_out" in name:
                value = 0.5 * value  # most pixels of a decoded image stay within its range
            parameter.copy_(value)


def _finish(pipe: DiffusionPipeline) -> DiffusionPipeline:
    """Fill the weights of all networks, switch them to inference and silence the progress bar."""
    import torch

    for seed, (_, component) in enumerate(sorted(pipe.components.items())):
        if isinstance(component, torch.nn.Module):
            _fill(component, seed)
            component.eval().requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


# ----------------------------------------------------------------------------
# Tokenizers


def _words(text: str = "") -> list[str]:
    """The known words plus those of a template text, in order, without repeats."""
    return list(dict.fromkeys([*" ".join(_PHRASES).split(), *re.findall(r"[A-Za-z]+", text)]))


def _merge(units: Iterable[list[str]], vocab: dict[str, int]) -> list[tuple[str, str]]:
    """Learn byte-pair merges until each unit (a list of symbols) is one token.

    Args:
        units: Words as lists of symbols of ``vocab``.
        vocab: Token ids; the merged tokens are added.

    Returns:
        The merges, most frequent pair first.
    """
    merges = _merges_of(tuple(map(tuple, units)))
    for pair in merges:
        vocab.setdefault("".join(pair), len(vocab))
    return [*merges]


@functools.cache
def _merges_of(units: tuple[tuple[str, ...], ...]) -> list[tuple[str, str]]:
    words = [list(unit) for unit in units]
    merges: list[tuple[str, str]] = []
    while pairs := Counter(pair for word in words for pair in itertools.pairwise(word)):
        pair = max(pairs, key=pairs.__getitem__)
        merges.append(pair)
        for word in words:
            for index in range(len(word) - 2, -1, -1):
                if (*word[index : index + 2],) == pair:
                    word[index : index + 2] = ["".join(pair)]
    return merges


def _number(tokens: Iterable[str]) -> dict[str, int]:
    return {token: index for index, token in enumerate(dict.fromkeys(tokens))}


def _byte_alphabet() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def _clip_tokenizer() -> PreTrainedTokenizerBase:
    from transformers import CLIPTokenizer

    start, end = "<|startoftext|>", "<|endoftext|>"
    alphabet = _byte_alphabet()
    vocab = _number([*alphabet, *(symbol + "</w>" for symbol in alphabet)])
    merges = _merge(([*word[:-1], word[-1] + "</w>"] for word in _words()), vocab)
    for token in (start, end):  # CLIP pools at the highest id: the end token comes last
        vocab[token] = len(vocab)
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)


def _t5_tokenizer() -> PreTrainedTokenizerBase:
    from transformers import T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -8.0)]
    pieces += [("▁" + word, -2.0) for word in _words()]
    pieces += [(character, -8.0) for character in _CHARACTERS]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)


def _bert_tokenizer() -> PreTrainedTokenizerBase:
    from transformers import BertTokenizer

    control = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocab = _number([*control, *_words(), *_CHARACTERS, *("##" + character for character in _CHARACTERS)])
    return BertTokenizer(vocab=vocab, model_max_length=77)


def _qwen2_tokenizer(text: str = "") -> PreTrainedTokenizerBase:
    """Byte-level BPE with Qwen's control tokens and a short chat template."""
    from transformers import Qwen2Tokenizer

    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
    control += ["<|image_pad|>", "<|video_pad|>"]
    vocab = _number([*control, *_byte_alphabet()])
    merges = _merge((list(prefix + word) for word in _words(text) for prefix in ("", "Ġ")), vocab)
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=merges, model_max_length=1024, padding_side="right")
    tokenizer.add_special_tokens({"additional_special_tokens": control[1:]})
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return tokenizer


def _gemma_tokenizer(text: str = "") -> PreTrainedTokenizerBase:
    from transformers import GemmaTokenizer

    vocab = _number(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", "\n", *_CHARACTERS])
    merges = _merge((list(prefix + word) for word in _words(text) for prefix in ("▁", "")), vocab)
    return _starting_with(GemmaTokenizer(vocab=vocab, merges=merges, model_max_length=512), "<bos>")


def _llama_tokenizer(text: str = "") -> PreTrainedTokenizerBase:
    from transformers import LlamaTokenizerFast

    control = ["<unk>", "<s>", "</s>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    vocab = _number([*control, "▁", "\n", *_CHARACTERS])
    merges = _merge((list(prefix + word) for word in _words(text) for prefix in ("▁", "")), vocab)
    tokenizer = LlamaTokenizerFast(
        vocab=vocab, merges=merges, pad_token="</s>", padding_side="right", model_max_length=512
    )
    tokenizer.add_special_tokens({"additional_special_tokens": control[3:]})
    return _starting_with(tokenizer, "<s>")


def _glm_tokenizer() -> PreTrainedTokenizerBase:
    """Byte-level BPE that opens every text with ``[gMASK]<sop>``, as GLM-4 does."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = _number(["<|endoftext|>", "[gMASK]", "<sop>", *_byte_alphabet()])
    merges = _merge((list(prefix + word) for word in _words() for prefix in ("", "Ġ")), vocab)
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        additional_special_tokens=["[gMASK]", "<sop>"],
        padding_side="left",
        model_max_length=512,
    )
    return _starting_with(tokenizer, "[gMASK]", "<sop>")


def _starting_with(tokenizer: PreTrainedTokenizerBase, *tokens: str) -> PreTrainedTokenizerBase:
    """Make a fast tokenizer open every text with the given tokens."""
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=[*tokens, "$A"],
        special_tokens=[(token, tokenizer.convert_tokens_to_ids(token)) for token in tokens],
    )
    return tokenizer


# ----------------------------------------------------------------------------
# Text encoders and VAEs


def _clip_text(
    tokenizer: PreTrainedTokenizerBase, *, width: int = 16, projection: int | None = None
) -> PreTrainedModel:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=projection or width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def _t5_text(
    tokenizer: PreTrainedTokenizerBase, *, width: int = 32, multilingual: bool = False
) -> PreTrainedModel:
    from transformers import T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

    config = (UMT5Config if multilingual else T5Config)(
        vocab_size=len(tokenizer),
        d_model=width,
        d_kv=8,
        d_ff=2 * width,
        num_layers=1,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    return (UMT5EncoderModel if multilingual else T5EncoderModel)(config)


def _decoder_text(
    name: str, tokenizer: PreTrainedTokenizerBase, *, width: int, layers: int = 2
) -> PreTrainedModel:
    """A tiny decoder-only language model without head: ``name`` is Gemma2, Glm, Llama or Qwen3."""
    import transformers

    config = getattr(transformers, f"{name}Config")(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=1024,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return getattr(transformers, f"{name}Model")(config)


def _bert_text(tokenizer: PreTrainedTokenizerBase, *, width: int = 16) -> PreTrainedModel:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=77,
        pad_token_id=tokenizer.pad_token_id,
    )
    return BertModel(config)


def _qwen_vl_text(tokenizer: PreTrainedTokenizerBase, *, width: int = 16) -> PreTrainedModel:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 2048,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]},
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": width,
            "fullatt_block_indexes": [0],
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def _vae(
    *, scale: int = 2, channels: int = 4, scaling_factor: float = 0.5, shift_factor: float | None = None
) -> AutoencoderKL:
    """An image VAE that divides the sides by ``scale``."""
    from diffusers import AutoencoderKL

    blocks = int(math.log2(scale)) + 1
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        block_out_channels=(8,) * blocks,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=8 * scale,
        scaling_factor=scaling_factor,
        shift_factor=shift_factor,
        use_quant_conv=shift_factor is None,
        use_post_quant_conv=shift_factor is None,
        force_upcast=False,
    )


# ----------------------------------------------------------------------------
# UNet pipelines


_UNET_BLOCKS: dict[str, Any] = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
}
_SD_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def _unet(options: Mapping[str, Any] | None = None) -> nn.Module:
    """A UNet with two levels; ``options`` override or extend the config."""
    from diffusers import UNet2DConditionModel

    up = ("CrossAttnUpBlock2D", "UpBlock2D")
    base = {"sample_size": 8, "up_block_types": up, "cross_attention_dim": 16, **_UNET_BLOCKS}
    return UNet2DConditionModel(**{**base, **(options or {})})


def _sd_parts() -> dict[str, Any]:
    """Components that all Stable Diffusion 1 and 2 pipelines share."""
    from diffusers import DDIMScheduler

    tokenizer = _clip_tokenizer()
    return {
        "vae": _vae(scaling_factor=0.18215),
        "text_encoder": _clip_text(tokenizer),
        "tokenizer": tokenizer,
        "unet": _unet(),
        "scheduler": DDIMScheduler(clip_sample=False, set_alpha_to_one=False, **_SD_BETAS),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


def stable_diffusion() -> DiffusionPipeline:
    """Stable Diffusion 1.5: epsilon prediction, DDIM."""
    from diffusers import StableDiffusionPipeline

    with _seeded():
        return _finish(StableDiffusionPipeline(**_sd_parts()))


def stable_diffusion_v() -> DiffusionPipeline:
    """Stable Diffusion 2.1: v prediction, DDIM, linear projections."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    with _seeded():
        parts = _sd_parts()
        parts["unet"] = _unet({"use_linear_projection": True})
        parts["scheduler"] = DDIMScheduler(
            clip_sample=False, set_alpha_to_one=False, prediction_type="v_prediction", **_SD_BETAS
        )
        return _finish(StableDiffusionPipeline(**parts))


def stable_diffusion_img2img() -> DiffusionPipeline:
    """Stable Diffusion 1.5 started from an image."""
    from diffusers import StableDiffusionImg2ImgPipeline

    with _seeded():
        return _finish(StableDiffusionImg2ImgPipeline(**_sd_parts()))


def stable_diffusion_controlnet() -> DiffusionPipeline:
    """Stable Diffusion 1.5 with one ControlNet."""
    from diffusers import ControlNetModel, StableDiffusionControlNetPipeline

    with _seeded():
        controlnet = ControlNetModel(
            cross_attention_dim=16, conditioning_embedding_out_channels=(8, 16), **_UNET_BLOCKS
        )
        return _finish(StableDiffusionControlNetPipeline(controlnet=controlnet, **_sd_parts()))


def latent_consistency() -> DiffusionPipeline:
    """A latent consistency model: guidance is an embedding, every step re-noises."""
    from diffusers import LatentConsistencyModelPipeline, LCMScheduler

    with _seeded():
        parts = _sd_parts()
        parts["unet"] = _unet({"time_cond_proj_dim": 8})
        parts["scheduler"] = LCMScheduler(clip_sample=False, set_alpha_to_one=False, **_SD_BETAS)
        return _finish(LatentConsistencyModelPipeline(**parts))


def _sdxl(scheduler: SchedulerMixin) -> DiffusionPipeline:
    from diffusers import StableDiffusionXLPipeline

    tokenizer, tokenizer_2 = _clip_tokenizer(), _clip_tokenizer()
    return StableDiffusionXLPipeline(
        vae=_vae(scaling_factor=0.13025),
        text_encoder=_clip_text(tokenizer),
        text_encoder_2=_clip_text(tokenizer_2, projection=16),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        unet=_unet(
            {
                "cross_attention_dim": 32,
                "use_linear_projection": True,
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 8,
                "projection_class_embeddings_input_dim": 6 * 8 + 16,
            }
        ),
        scheduler=scheduler,
        add_watermarker=False,
    )


def stable_diffusion_xl() -> DiffusionPipeline:
    """Stable Diffusion XL: two CLIP encoders, Euler."""
    from diffusers import EulerDiscreteScheduler

    with _seeded():
        return _finish(_sdxl(EulerDiscreteScheduler(timestep_spacing="leading", **_SD_BETAS)))


def stable_diffusion_xl_turbo() -> DiffusionPipeline:
    """SDXL-Turbo: one ancestral step without guidance."""
    from diffusers import EulerAncestralDiscreteScheduler

    with _seeded():
        return _finish(_sdxl(EulerAncestralDiscreteScheduler(timestep_spacing="trailing", **_SD_BETAS)))


# ----------------------------------------------------------------------------
# Transformer pipelines, text to image


def stable_diffusion_3() -> DiffusionPipeline:
    """Stable Diffusion 3: two CLIP encoders and T5, batched guidance."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    with _seeded():
        tokenizer, tokenizer_2, tokenizer_3 = _clip_tokenizer(), _clip_tokenizer(), _t5_tokenizer()
        return _finish(
            StableDiffusion3Pipeline(
                transformer=SD3Transformer2DModel(
                    sample_size=8,
                    patch_size=2,
                    in_channels=4,
                    out_channels=4,
                    num_layers=2,
                    attention_head_dim=8,
                    num_attention_heads=2,
                    joint_attention_dim=32,
                    caption_projection_dim=16,
                    pooled_projection_dim=32,
                    pos_embed_max_size=8,
                ),
                scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
                vae=_vae(scaling_factor=1.5305, shift_factor=0.0609),
                text_encoder=_clip_text(tokenizer, projection=16),
                tokenizer=tokenizer,
                text_encoder_2=_clip_text(tokenizer_2, projection=16),
                tokenizer_2=tokenizer_2,
                text_encoder_3=_t5_text(tokenizer_3),
                tokenizer_3=tokenizer_3,
            )
        )


def flux() -> DiffusionPipeline:
    """FLUX.1-dev: packed latents, distilled guidance, shift from the number of tokens."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    with _seeded():
        tokenizer, tokenizer_2 = _clip_tokenizer(), _t5_tokenizer()
        return _finish(
            FluxPipeline(
                scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
                vae=_vae(scaling_factor=0.3611, shift_factor=0.1159),
                text_encoder=_clip_text(tokenizer),
                tokenizer=tokenizer,
                text_encoder_2=_t5_text(tokenizer_2),
                tokenizer_2=tokenizer_2,
                transformer=FluxTransformer2DModel(
                    in_channels=16,
                    num_layers=1,
                    num_single_layers=1,
                    attention_head_dim=16,
                    num_attention_heads=2,
                    joint_attention_dim=32,
                    pooled_projection_dim=16,
                    guidance_embeds=True,
                    axes_dims_rope=(4, 4, 8),
                ),
            )
        )


def cogview4() -> DiffusionPipeline:
    """CogView4: GLM text encoder, two forwards for guidance, its own timestep grid."""
    from diffusers import CogView4Pipeline, CogView4Transformer2DModel, FlowMatchEulerDiscreteScheduler

    with _seeded():
        tokenizer = _glm_tokenizer()
        return _finish(
            CogView4Pipeline(
                tokenizer=tokenizer,
                text_encoder=_decoder_text("Glm", tokenizer, width=32),
                vae=_vae(scaling_factor=1.0, shift_factor=0.0),
                transformer=CogView4Transformer2DModel(
                    patch_size=2,
                    in_channels=4,
                    out_channels=4,
                    num_layers=2,
                    attention_head_dim=8,
                    num_attention_heads=2,
                    text_embed_dim=32,
                    time_embed_dim=16,
                    condition_dim=8,
                    pos_embed_max_size=8,
                    sample_size=8,
                ),
                scheduler=FlowMatchEulerDiscreteScheduler(
                    base_shift=0.25, max_shift=0.75, use_dynamic_shifting=True, time_shift_type="linear"
                ),
            )
        )


def pixart_sigma() -> DiffusionPipeline:
    """PixArt-Sigma: noise prediction by a transformer that also learns sigma, DPM++."""
    from diffusers import DPMSolverMultistepScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel

    with _seeded():
        tokenizer = _t5_tokenizer()
        return _finish(
            PixArtSigmaPipeline(
                tokenizer=tokenizer,
                text_encoder=_t5_text(tokenizer),
                vae=_vae(scaling_factor=0.13025),
                transformer=PixArtTransformer2DModel(
                    sample_size=8,
                    patch_size=2,
                    in_channels=4,
                    out_channels=8,
                    num_layers=2,
                    num_attention_heads=2,
                    attention_head_dim=8,
                    cross_attention_dim=16,
                    caption_channels=32,
                    use_additional_conditions=False,
                ),
                scheduler=DPMSolverMultistepScheduler(timestep_spacing="leading", **_SD_BETAS),
            )
        )


def sana() -> DiffusionPipeline:
    """Sana: linear attention, Gemma 2, deep-compression autoencoder, DPM++ over flow sigmas."""
    from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel

    with _seeded():
        tokenizer = _gemma_tokenizer()
        blocks = ("ResBlock", "EfficientViTBlock")
        return _finish(
            SanaPipeline(
                tokenizer=tokenizer,
                text_encoder=_decoder_text("Gemma2", tokenizer, width=16),
                vae=AutoencoderDC(
                    latent_channels=4,
                    attention_head_dim=4,
                    encoder_block_types=blocks,
                    decoder_block_types=blocks,
                    encoder_block_out_channels=(8, 8),
                    decoder_block_out_channels=(8, 8),
                    encoder_layers_per_block=(1, 1),
                    decoder_layers_per_block=(1, 1),
                    encoder_qkv_multiscales=((), (5,)),
                    decoder_qkv_multiscales=((), (5,)),
                    upsample_block_type="interpolate",
                    downsample_block_type="conv",
                    scaling_factor=0.41407,
                ),
                transformer=SanaTransformer2DModel(
                    in_channels=4,
                    out_channels=4,
                    num_attention_heads=2,
                    attention_head_dim=8,
                    num_layers=2,
                    num_cross_attention_heads=2,
                    cross_attention_head_dim=8,
                    cross_attention_dim=16,
                    caption_channels=16,
                    sample_size=8,
                ),
                scheduler=DPMSolverMultistepScheduler(flow_shift=3.0, **_FLOW_SIGMAS),
            )
        )


def lumina2() -> DiffusionPipeline:
    """Lumina Image 2: Gemma 2, the transformer's time runs from noise 0 to data 1, two guidance forwards."""
    from diffusers import FlowMatchEulerDiscreteScheduler, Lumina2Pipeline, Lumina2Transformer2DModel

    with _seeded():
        tokenizer = _gemma_tokenizer(
            "You are an assistant designed to generate superior images with the superior degree of image text"
            " alignment based on textual prompts or user prompts Prompt Start"
        )
        return _finish(
            Lumina2Pipeline(
                transformer=Lumina2Transformer2DModel(
                    sample_size=4,
                    patch_size=2,
                    in_channels=4,
                    hidden_size=16,
                    num_layers=2,
                    num_refiner_layers=1,
                    num_attention_heads=2,
                    num_kv_heads=1,
                    multiple_of=16,
                    axes_dim_rope=(4, 2, 2),
                    axes_lens=(300, 32, 32),
                    cap_feat_dim=16,
                ),
                scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
                vae=_vae(
                    scale=8, scaling_factor=0.3611, shift_factor=0.1159
                ),  # the pipeline takes 8 for granted
                text_encoder=_decoder_text("Gemma2", tokenizer, width=16),
                tokenizer=tokenizer,
            )
        )


def aura_flow() -> DiffusionPipeline:
    """AuraFlow: UMT5 text encoder, batched guidance."""
    from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel, FlowMatchEulerDiscreteScheduler

    with _seeded():
        tokenizer = _t5_tokenizer()
        return _finish(
            AuraFlowPipeline(
                tokenizer=tokenizer,
                text_encoder=_t5_text(tokenizer, multilingual=True),
                vae=_vae(scaling_factor=0.13025),
                transformer=AuraFlowTransformer2DModel(
                    sample_size=8,
                    patch_size=2,
                    in_channels=4,
                    out_channels=4,
                    num_mmdit_layers=1,
                    num_single_dit_layers=1,
                    attention_head_dim=8,
                    num_attention_heads=2,
                    joint_attention_dim=32,
                    caption_projection_dim=16,
                    pos_embed_max_size=64,
                ),
                scheduler=FlowMatchEulerDiscreteScheduler(shift=1.73),
            )
        )


def chroma() -> DiffusionPipeline:
    """Chroma: Flux's layout without CLIP, with true guidance and an attention mask."""
    from diffusers import ChromaPipeline, ChromaTransformer2DModel, FlowMatchEulerDiscreteScheduler

    with _seeded():
        tokenizer = _t5_tokenizer()
        return _finish(
            ChromaPipeline(
                scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
                vae=_vae(scaling_factor=0.3611, shift_factor=0.1159),
                text_encoder=_t5_text(tokenizer),
                tokenizer=tokenizer,
                transformer=ChromaTransformer2DModel(
                    in_channels=16,
                    num_layers=1,
                    num_single_layers=1,
                    attention_head_dim=16,
                    num_attention_heads=2,
                    joint_attention_dim=32,
                    axes_dims_rope=(4, 4, 8),
                    approximator_num_channels=16,
                    approximator_hidden_dim=32,
                    approximator_layers=1,
                ),
            )
        )


def qwen_image() -> DiffusionPipeline:
    """Qwen-Image: Qwen2.5-VL text encoder, packed latents, video-style VAE."""
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImagePipeline,
        QwenImageTransformer2DModel,
    )

    with _seeded():
        tokenizer = _qwen2_tokenizer(_QWEN_TEMPLATE)
        return _finish(
            QwenImagePipeline(
                scheduler=FlowMatchEulerDiscreteScheduler(
                    base_shift=0.5,
                    max_shift=0.9,
                    max_image_seq_len=8192,
                    shift_terminal=0.02,
                    use_dynamic_shifting=True,
                ),
                vae=AutoencoderKLQwenImage(
                    base_dim=8,
                    z_dim=4,
                    dim_mult=[1, 1],
                    num_res_blocks=1,
                    temperal_downsample=[False],
                    latents_mean=[0.1, -0.1, 0.0, 0.2],
                    latents_std=[1.0, 2.0, 1.5, 1.0],
                ),
                text_encoder=_qwen_vl_text(tokenizer),
                tokenizer=tokenizer,
                transformer=QwenImageTransformer2DModel(
                    patch_size=2,
                    in_channels=16,
                    out_channels=4,
                    num_layers=2,
                    attention_head_dim=16,
                    num_attention_heads=2,
                    joint_attention_dim=16,
                    axes_dims_rope=(8, 4, 4),
                ),
            )
        )


def z_image() -> DiffusionPipeline:
    """Z-Image: Qwen3 text encoder with a chat template, lists of latents and embeddings."""
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel

    with _seeded():
        tokenizer = _qwen2_tokenizer()
        return _finish(
            ZImagePipeline(
                scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
                vae=_vae(scaling_factor=0.3611, shift_factor=0.1159),
                text_encoder=_decoder_text("Qwen3", tokenizer, width=16),
                tokenizer=tokenizer,
                transformer=ZImageTransformer2DModel(
                    in_channels=4,
                    dim=32,
                    n_layers=2,
                    n_refiner_layers=1,
                    n_heads=2,
                    n_kv_heads=2,
                    cap_feat_dim=16,
                    axes_dims=[8, 4, 4],
                    axes_lens=[256, 32, 32],
                ),
            )
        )


def hunyuan_dit() -> DiffusionPipeline:
    """HunyuanDiT: BERT and T5 text encoders, v prediction with a learned sigma, DDPM."""
    from diffusers import DDPMScheduler, HunyuanDiT2DModel, HunyuanDiTPipeline

    with _seeded():
        tokenizer, tokenizer_2 = _bert_tokenizer(), _t5_tokenizer()
        return _finish(
            HunyuanDiTPipeline(
                vae=_vae(scaling_factor=0.13025),
                text_encoder=_bert_text(tokenizer),
                tokenizer=tokenizer,
                transformer=HunyuanDiT2DModel(
                    num_attention_heads=2,
                    attention_head_dim=8,
                    in_channels=4,
                    patch_size=2,
                    sample_size=8,
                    hidden_size=16,
                    num_layers=2,
                    mlp_ratio=2.0,
                    cross_attention_dim=16,
                    cross_attention_dim_t5=32,
                    pooled_projection_dim=16,
                ),
                scheduler=DDPMScheduler(
                    beta_start=0.00085,
                    beta_end=0.018,
                    beta_schedule="scaled_linear",
                    clip_sample=False,
                    prediction_type="v_prediction",
                    steps_offset=1,
                ),
                safety_checker=None,
                feature_extractor=None,
                requires_safety_checker=False,
                text_encoder_2=_t5_text(tokenizer_2),
                tokenizer_2=tokenizer_2,
            )
        )


def kandinsky5() -> DiffusionPipeline:
    """Kandinsky 5 image: Qwen2.5-VL and CLIP, channels last, two guidance forwards."""
    from diffusers import FlowMatchEulerDiscreteScheduler, Kandinsky5T2IPipeline, Kandinsky5Transformer3DModel
    from transformers import Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

    with _seeded():
        tokenizer, tokenizer_2 = _qwen2_tokenizer(_QWEN_TEMPLATE), _clip_tokenizer()
        pipe = Kandinsky5T2IPipeline(
            transformer=Kandinsky5Transformer3DModel(
                in_visual_dim=4,
                in_text_dim=16,
                in_text_dim2=16,
                time_dim=16,
                out_visual_dim=4,
                model_dim=32,
                ff_dim=32,
                num_text_blocks=1,
                num_visual_blocks=2,
                axes_dims=(4, 6, 6),
            ),
            vae=_vae(scale=8, scaling_factor=0.3611),  # the pipeline takes 8 for granted
            text_encoder=_qwen_vl_text(tokenizer),
            tokenizer=Qwen2VLProcessor(
                image_processor=Qwen2VLImageProcessor(),
                tokenizer=tokenizer,
                video_processor=Qwen2VLVideoProcessor(),
            ),
            text_encoder_2=_clip_text(tokenizer_2),
            tokenizer_2=tokenizer_2,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        )
        pipe.resolutions = [(32, 32)]  # other sizes are resized to the nearest of these
        return _finish(pipe)


# ----------------------------------------------------------------------------
# Text to video


def _wan_vae() -> nn.Module:
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(
        base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )


def wan() -> DiffusionPipeline:
    """Wan 2.1: UMT5, two guidance forwards, UniPC over flow sigmas."""
    from diffusers import UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel

    with _seeded():
        tokenizer = _t5_tokenizer()
        return _finish(
            WanPipeline(
                tokenizer=tokenizer,
                text_encoder=_t5_text(tokenizer, multilingual=True),
                vae=_wan_vae(),
                scheduler=UniPCMultistepScheduler(flow_shift=3.0, **_FLOW_SIGMAS),
                transformer=WanTransformer3DModel(
                    num_attention_heads=2,
                    attention_head_dim=12,
                    in_channels=16,
                    out_channels=16,
                    text_dim=32,
                    freq_dim=16,
                    ffn_dim=32,
                    num_layers=2,
                    rope_max_seq_len=32,
                ),
            )
        )


def ltx() -> DiffusionPipeline:
    """LTX-Video: T5, packed latents, batched guidance."""
    from diffusers import (
        AutoencoderKLLTXVideo,
        FlowMatchEulerDiscreteScheduler,
        LTXPipeline,
        LTXVideoTransformer3DModel,
    )

    with _seeded():
        tokenizer = _t5_tokenizer()
        scaling = (True, True, False, False)
        return _finish(
            LTXPipeline(
                scheduler=FlowMatchEulerDiscreteScheduler(
                    base_shift=0.95,
                    max_shift=2.05,
                    base_image_seq_len=1024,
                    shift_terminal=0.1,
                    use_dynamic_shifting=True,
                ),
                vae=AutoencoderKLLTXVideo(
                    latent_channels=8,
                    block_out_channels=(8, 8, 8, 8),
                    decoder_block_out_channels=(8, 8, 8, 8),
                    layers_per_block=(1, 1, 1, 1, 1),
                    decoder_layers_per_block=(1, 1, 1, 1, 1),
                    spatio_temporal_scaling=scaling,
                    decoder_spatio_temporal_scaling=scaling,
                    patch_size=1,
                ),
                text_encoder=_t5_text(tokenizer),
                tokenizer=tokenizer,
                transformer=LTXVideoTransformer3DModel(
                    in_channels=8,
                    out_channels=8,
                    num_attention_heads=2,
                    attention_head_dim=16,
                    cross_attention_dim=32,
                    num_layers=2,
                    caption_channels=32,
                ),
            )
        )


def cogvideox() -> DiffusionPipeline:
    """CogVideoX: T5, v prediction, latents with frames before channels, its own DDIM."""
    from diffusers import (
        AutoencoderKLCogVideoX,
        CogVideoXDDIMScheduler,
        CogVideoXPipeline,
        CogVideoXTransformer3DModel,
    )

    with _seeded():
        tokenizer = _t5_tokenizer()
        return _finish(
            CogVideoXPipeline(
                tokenizer=tokenizer,
                text_encoder=_t5_text(tokenizer),
                vae=AutoencoderKLCogVideoX(
                    block_out_channels=(8, 8, 8, 8),
                    latent_channels=4,
                    layers_per_block=1,
                    norm_num_groups=2,
                    sample_height=16,
                    sample_width=16,
                ),
                transformer=CogVideoXTransformer3DModel(
                    num_attention_heads=2,
                    attention_head_dim=16,
                    in_channels=4,
                    out_channels=4,
                    time_embed_dim=8,
                    text_embed_dim=32,
                    num_layers=2,
                    sample_width=2,
                    sample_height=2,
                    sample_frames=9,
                    max_text_seq_length=16,
                ),
                scheduler=CogVideoXDDIMScheduler(
                    prediction_type="v_prediction",
                    rescale_betas_zero_snr=True,
                    snr_shift_scale=3.0,
                    set_alpha_to_one=True,
                    timestep_spacing="trailing",
                    clip_sample=False,
                ),
            )
        )


def hunyuan_video() -> DiffusionPipeline:
    """HunyuanVideo: Llama with a prompt template and CLIP, distilled guidance."""
    from diffusers import (
        AutoencoderKLHunyuanVideo,
        FlowMatchEulerDiscreteScheduler,
        HunyuanVideoPipeline,
        HunyuanVideoTransformer3DModel,
    )
    from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE

    with _seeded():
        tokenizer, tokenizer_2 = _llama_tokenizer(DEFAULT_PROMPT_TEMPLATE["template"]), _clip_tokenizer()
        return _finish(
            HunyuanVideoPipeline(
                text_encoder=_decoder_text("Llama", tokenizer, width=16, layers=3),
                tokenizer=tokenizer,
                transformer=HunyuanVideoTransformer3DModel(
                    in_channels=4,
                    out_channels=4,
                    num_attention_heads=2,
                    attention_head_dim=12,
                    num_layers=1,
                    num_single_layers=1,
                    num_refiner_layers=1,
                    patch_size=1,
                    text_embed_dim=16,
                    pooled_projection_dim=16,
                    rope_axes_dim=(4, 4, 4),
                ),
                vae=AutoencoderKLHunyuanVideo(
                    latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4
                ),
                scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
                text_encoder_2=_clip_text(tokenizer_2),
                tokenizer_2=tokenizer_2,
            )
        )


def _picture() -> torch.Tensor:
    """A smooth 16 x 16 image, shape ``(1, 3, 16, 16)``, values in [0, 1]."""
    import torch

    ramp = torch.linspace(0.0, 1.0, 16)
    red, green = torch.meshgrid(ramp, ramp, indexing="ij")
    return torch.stack([red, green, 1.0 - red])[None]


_SIZE = {"height": 16, "width": 16}
_GUIDED = {**_SIZE, "guidance_scale": 4.0}
_LARGE = {"height": 32, "width": 32, "guidance_scale": 4.0}
_AFTER_DDIM = ("euler", "euler_a", "heun", "ddpm", "dpm++", "dpm++sde", "unipc", "lcm")
_AFTER_EULER = ("euler_a", "heun", "ddim", "ddpm", "dpm++", "dpm++sde", "unipc", "lcm")

_ENTRIES = (
    TinyPipeline("stable_diffusion", stable_diffusion, _GUIDED, extra_schedulers=_AFTER_DDIM),
    TinyPipeline("stable_diffusion_v", stable_diffusion_v, _GUIDED, extra_schedulers=_AFTER_DDIM),
    TinyPipeline(
        "stable_diffusion_img2img",
        stable_diffusion_img2img,
        {"guidance_scale": 4.0, "strength": 0.7},
        extra_schedulers=_AFTER_DDIM,
        media={"image": _picture},
    ),
    TinyPipeline(
        "stable_diffusion_controlnet",
        stable_diffusion_controlnet,
        _GUIDED,
        extra_schedulers=_AFTER_DDIM,
        media={"image": _picture},
    ),
    TinyPipeline("latent_consistency", latent_consistency, _GUIDED, steps=4),
    TinyPipeline("stable_diffusion_xl", stable_diffusion_xl, _GUIDED, extra_schedulers=_AFTER_EULER),
    TinyPipeline(
        "stable_diffusion_xl_turbo",
        stable_diffusion_xl_turbo,
        {**_SIZE, "guidance_scale": 0.0},
        extra_schedulers=("euler", "ddim", "dpm++", "lcm"),
        steps=1,
    ),
    TinyPipeline(
        "stable_diffusion_3",
        stable_diffusion_3,
        {**_GUIDED, "max_sequence_length": 16},
        extra_schedulers=("heun", "dpm++", "unipc"),
        unseeded_schedulers=("euler_a", "dpm++sde"),
    ),
    TinyPipeline(
        "flux",
        flux,
        {**_SIZE, "guidance_scale": 3.5, "max_sequence_length": 16},
        extra_schedulers=("dpm++", "unipc"),
        unseeded_schedulers=("euler_a", "dpm++sde"),
    ),
    TinyPipeline(
        "cogview4", cogview4, {**_GUIDED, "max_sequence_length": 32}, unseeded_schedulers=("euler_a",)
    ),
    TinyPipeline(
        "pixart_sigma",
        pixart_sigma,
        {**_GUIDED, "max_sequence_length": 16, "use_resolution_binning": False, "clean_caption": False},
        extra_schedulers=("euler", "euler_a", "heun", "ddim", "ddpm", "dpm++sde", "unipc", "lcm"),
    ),
    TinyPipeline(
        "sana",
        sana,
        {
            **_LARGE,
            "max_sequence_length": 16,
            "use_resolution_binning": False,
            "complex_human_instruction": None,
        },
        extra_schedulers=("euler", "euler_a", "heun", "dpm++sde", "unipc"),
    ),
    TinyPipeline(
        "lumina2",
        lumina2,
        {**_LARGE, "max_sequence_length": 128},
        extra_schedulers=("unipc",),
        unseeded_schedulers=("euler_a",),
    ),
    TinyPipeline(
        "aura_flow",
        aura_flow,
        {**_GUIDED, "max_sequence_length": 16},
        extra_schedulers=("heun", "dpm++", "unipc"),
        unseeded_schedulers=("euler_a", "dpm++sde"),
    ),
    TinyPipeline(
        "chroma",
        chroma,
        {**_GUIDED, "max_sequence_length": 16},
        extra_schedulers=("unipc",),
        unseeded_schedulers=("euler_a",),
    ),
    TinyPipeline(
        "qwen_image",
        qwen_image,
        {**_SIZE, "true_cfg_scale": 4.0, "negative_prompt": " "},
        extra_schedulers=("unipc",),
        unseeded_schedulers=("euler_a",),
    ),
    TinyPipeline(
        "z_image", z_image, {**_GUIDED, "max_sequence_length": 32}, unseeded_schedulers=("euler_a",)
    ),
    TinyPipeline(
        "hunyuan_dit",
        hunyuan_dit,
        {**_GUIDED, "use_resolution_binning": False},
        extra_schedulers=("euler", "euler_a", "heun", "ddim", "dpm++", "dpm++sde", "unipc", "lcm"),
    ),
    TinyPipeline(
        "kandinsky5",
        kandinsky5,
        {**_LARGE, "max_sequence_length": 32},
        extra_schedulers=("heun", "dpm++", "unipc"),
        unseeded_schedulers=("euler_a", "dpm++sde"),
    ),
    TinyPipeline(
        "wan",
        wan,
        {**_GUIDED, "num_frames": 5, "max_sequence_length": 16},
        modality="video",
        extra_schedulers=("euler", "heun", "dpm++"),
        unseeded_schedulers=("euler_a", "dpm++sde"),
    ),
    TinyPipeline(
        "ltx",
        ltx,
        {**_LARGE, "num_frames": 9, "max_sequence_length": 16},
        modality="video",
        extra_schedulers=("unipc",),
        unseeded_schedulers=("euler_a",),
    ),
    TinyPipeline(
        "cogvideox",
        cogvideox,
        {**_GUIDED, "num_frames": 9, "max_sequence_length": 16},
        modality="video",
        extra_schedulers=("cogvideox_dpm", "euler", "euler_a", "dpm++", "dpm++sde", "unipc"),
    ),
    TinyPipeline(
        "hunyuan_video",
        hunyuan_video,
        {**_GUIDED, "num_frames": 5, "max_sequence_length": 64},
        modality="video",
        extra_schedulers=("unipc",),
        unseeded_schedulers=("euler_a",),
    ),
)

TINY: dict[str, TinyPipeline] = {entry.name: entry for entry in _ENTRIES}
"""All tiny pipelines by name."""
