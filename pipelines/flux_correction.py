"""ReflectionFlow's corrector (Zhuo et al. 2025): Flux that sees a rejected image as further tokens.

The condition is a third stream beside text and image, in the manner of OminiControl (Tan et al. 2024): its
latents go through the embedder and the blocks of the image, attention is over all three, and a LoRA changes
the layers for the condition alone. It is modulated as at time 0 with guidance 1, and stands to the left of
the image by its own width.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import FluxKontextPipeline, FluxTransformer2DModel
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from PIL import Image
from torch import Tensor, nn

from tts_vision.errors import PipelineError

CONDITION_SIZE = 512
PREFIX = "transformer."
"""Of the names of a LoRA's weights."""
_LAYERS = re.compile(
    r"x_embedder"
    r"|transformer_blocks\.\d+\.(norm1\.linear|attn\.to_[qkv]|attn\.to_out\.0|ff\.net\.2)"
    r"|single_transformer_blocks\.\d+\.(norm\.linear|proj_mlp|proj_out|attn\.to_[qkv])"
)
"""The layers that the LoRA changes."""


class LowRank(nn.Module):
    """What a LoRA adds to the output of a linear layer.

    Args:
        layer: The layer.
        rank: Of the change.
        scale: Factor on it.
    """

    def __init__(self, layer: nn.Linear, rank: int, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.lora_A = nn.Linear(layer.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, layer.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.lora_B(self.lora_A(x))


class CorrectionTransformer(FluxTransformer2DModel):
    """A Flux whose image tokens with 1 as first position, as FLUX.1 Kontext marks them, are a condition."""

    @classmethod
    def of(cls, transformer: FluxTransformer2DModel) -> CorrectionTransformer:
        """A Flux with this class's forward and the same weights, which are not copied."""
        with torch.device("meta"):
            found: CorrectionTransformer = cls.from_config(transformer.config)
        found.load_state_dict(transformer.state_dict(), assign=True)
        return found.eval().requires_grad_(False)

    def add_lora(self, state: Mapping[str, Tensor], scale: float = 1.0, source: str = "the LoRA") -> None:
        """Takes up a LoRA, all of whose weights must fit.

        Args:
            state: Weights ``transformer.LAYER.lora_A.weight`` and ``lora_B`` of each of `_LAYERS`.
            scale: Its factor: alpha over rank.
            source: Named in messages.

        Raises:
            PipelineError: If a weight is missing, unexpected or of another shape.
        """
        layers = {name: layer for name, layer in self.named_modules() if _LAYERS.fullmatch(name)}
        ranks = {value.shape[0] for key, value in state.items() if key.endswith("lora_A.weight")}
        rank = min(ranks, default=1)
        lora = nn.ModuleDict({_key(name): LowRank(layer, rank, scale) for name, layer in layers.items()})
        wanted = {
            f"{PREFIX}{name}.{part}.weight": (_key(name), part)
            for name in layers
            for part in ("lora_A", "lora_B")
        }
        missing, unexpected = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
        if missing or unexpected:
            raise PipelineError(
                f"A LoRA of ReflectionFlow must have the weights of {len(layers)} layers but {source} lacks "
                f"{_some(missing)} and has {_some(unexpected)} besides; give the published file of this "
                "model."
            )
        own = {f"{key}.{part}.weight": state[name] for name, (key, part) in wanted.items()}
        try:
            lora.load_state_dict(own)
        except RuntimeError as error:
            raise PipelineError(
                f"The weights of {source} must fit the transformer but do not: "
                f"{str(error).splitlines()[-1].strip()}; give the LoRA of this model."
            ) from error
        weight = self.x_embedder.weight
        self.condition_lora = lora.to(weight.device, weight.dtype).eval().requires_grad_(False)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        pooled_projections: Tensor | None = None,
        timestep: Tensor | None = None,
        img_ids: Tensor | None = None,
        txt_ids: Tensor | None = None,
        guidance: Tensor | None = None,
        joint_attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
    ) -> Any:
        """As in the base class; outputs for tokens of the condition are zeros."""
        assert img_ids is not None and txt_ids is not None and timestep is not None
        ids = img_ids[0] if img_ids.ndim == 3 else img_ids
        n = int((ids[:, 0] != 1).sum())  # the condition comes last
        if n == len(ids):
            return super().forward(
                hidden_states=hidden_states,
                encoder_hidden_states=encoder_hidden_states,
                pooled_projections=pooled_projections,
                timestep=timestep,
                img_ids=img_ids,
                txt_ids=txt_ids,
                guidance=guidance,
                joint_attention_kwargs=joint_attention_kwargs,
                return_dict=return_dict,
            )
        words = txt_ids[0] if txt_ids.ndim == 3 else txt_ids
        dtype = hidden_states.dtype
        now, scale = timestep.to(dtype) * 1000, None if guidance is None else guidance.to(dtype) * 1000
        start, one = torch.zeros_like(now), None if scale is None else torch.full_like(scale, 1000)
        rope = self.pos_embed(torch.cat((words, ids[:n], _left_of(ids[n:]))))
        image, _ = self.streams(
            self.x_embedder(hidden_states[:, :n]),
            self.context_embedder(encoder_hidden_states),
            self._for_condition("x_embedder", hidden_states[:, n:]),
            self._embedded(now, scale, pooled_projections),
            self._embedded(start, one, pooled_projections),
            rope,
        )
        output = self.proj_out(self.norm_out(image, self._embedded(now, scale, pooled_projections)))
        output = F.pad(output, (0, 0, 0, len(ids) - n))
        return Transformer2DModelOutput(sample=output) if return_dict else (output,)

    def streams(
        self,
        image: Tensor,
        text: Tensor,
        condition: Tensor,
        at: Tensor,
        at_condition: Tensor,
        rope: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Image and condition behind all blocks.

        Args:
            image: Embedded tokens ``(B, n, D)``.
            text: Likewise.
            condition: Likewise.
            at: Embedding of time, guidance and prompt, which modulates image and text, ``(B, D)``.
            at_condition: That which modulates the condition.
            rope: Rotary embeddings of text, image and condition, in this order.
        """
        for i, block in enumerate(self.transformer_blocks):
            where = f"transformer_blocks.{i}."
            x, gate, shift, scale, mlp_gate = block.norm1(image, emb=at)
            t, t_gate, t_shift, t_scale, t_mlp_gate = block.norm1_context(text, emb=at)
            c, c_gate, c_shift, c_scale, c_mlp_gate = self._modulated(
                block.norm1, f"{where}norm1.linear", condition, at_condition
            )
            attn = block.attn
            rows = [
                _heads(attn, (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj), t, added=True),
                _heads(attn, (attn.to_q, attn.to_k, attn.to_v), x),
                _heads(attn, [self._layer(f"{where}attn.to_{name}") for name in "qkv"], c),
            ]
            t, x, c = _attended(rows, rope).split([text.shape[1], image.shape[1], condition.shape[1]], 1)
            image = image + gate[:, None] * attn.to_out[0](x)
            text = text + t_gate[:, None] * attn.to_add_out(t)
            condition = condition + c_gate[:, None] * self._for_condition(f"{where}attn.to_out.0", c)
            x = block.norm2(image) * (1 + scale[:, None]) + shift[:, None]
            image = image + mlp_gate[:, None] * block.ff(x)
            t = block.norm2_context(text) * (1 + t_scale[:, None]) + t_shift[:, None]
            text = _clipped(text + t_mlp_gate[:, None] * block.ff_context(t))
            c = block.norm2(condition) * (1 + c_scale[:, None]) + c_shift[:, None]
            c = self._for_condition(f"{where}ff.net.2", block.ff.net[0](c))
            condition = condition + c_mlp_gate[:, None] * c
        both, words = torch.cat((text, image), 1), text.shape[1]
        for i, block in enumerate(self.single_transformer_blocks):
            where = f"single_transformer_blocks.{i}."
            x, gate = block.norm(both, emb=at)
            c, c_gate = self._modulated(block.norm, f"{where}norm.linear", condition, at_condition)
            attn = block.attn
            rows = [
                _heads(attn, (attn.to_q, attn.to_k, attn.to_v), x),
                _heads(attn, [self._layer(f"{where}attn.to_{name}") for name in "qkv"], c),
            ]
            own, its = _attended(rows, rope).split([both.shape[1], condition.shape[1]], 1)
            x = block.proj_out(torch.cat((own, block.act_mlp(block.proj_mlp(x))), 2))
            both = _clipped(both + gate[:, None] * x)
            c = block.act_mlp(self._for_condition(f"{where}proj_mlp", c))
            c = self._for_condition(f"{where}proj_out", torch.cat((its, c), 2))
            condition = condition + c_gate[:, None] * c
        return both[:, words:], condition

    def _embedded(self, time: Tensor, guidance: Tensor | None, pooled: Tensor | None) -> Tensor:
        given = (time, pooled) if guidance is None else (time, guidance, pooled)
        found: Tensor = self.time_text_embed(*given)
        return found

    def _modulated(self, norm: Any, name: str, x: Tensor, at: Tensor) -> Iterator[Tensor]:
        """The condition, and its gates and shifts, as the block's own adaptive norm returns them."""
        shift, scale, *rest = self._for_condition(name, norm.silu(at)).chunk(6 if "norm1" in name else 3, 1)
        yield norm.norm(x) * (1 + scale[:, None]) + shift[:, None]
        yield from rest

    def _layer(self, name: str) -> Any:
        return lambda x: self._for_condition(name, x)

    def _for_condition(self, name: str, x: Tensor) -> Tensor:
        """A layer with the LoRA, which no other stream has."""
        found: Tensor = self.get_submodule(name)(x)
        lora = self._modules.get("condition_lora")
        return found if lora is None else found + lora[_key(name)](x)


def _key(name: str) -> str:
    """A layer's name as one of a `ModuleDict`, which allows no dots."""
    return name.replace(".", "-")


def _some(names: Sequence[str]) -> str:
    return "none" if not names else ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")


def _left_of(ids: Tensor) -> Tensor:
    """Positions of a condition's tokens: to the left of the image by the condition's width."""
    moved = ids.clone()
    moved[:, 0] = 0
    moved[:, 2] -= ids[:, 2].max() + 1
    return moved


def _heads(
    attn: Any, layers: Sequence[Any], x: Tensor, *, added: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised queries, normalised keys, and values, ``(B, n, heads, d)``."""
    q, k, v = (layer(x).unflatten(-1, (attn.heads, -1)) for layer in layers)
    norms = (attn.norm_added_q, attn.norm_added_k) if added else (attn.norm_q, attn.norm_k)
    return norms[0](q), norms[1](k), v


def _attended(rows: Sequence[tuple[Tensor, Tensor, Tensor]], rope: tuple[Tensor, Tensor]) -> Tensor:
    """Attention over all streams, ``(B, n, D)``."""
    q, k, v = (torch.cat(parts, 1) for parts in zip(*rows))
    q, k = (apply_rotary_emb(x, rope, sequence_dim=1) for x in (q, k))
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    found = F.scaled_dot_product_attention(q, k, v)
    return found.transpose(1, 2).flatten(2).to(q.dtype)


def _clipped(x: Tensor) -> Tensor:
    return x.clip(-65504, 65504) if x.dtype == torch.float16 else x


class FluxReflectionEditPipeline(FluxKontextPipeline):
    """Flux that starts from noise and looks at a rejected image.

    The call is that of Flux, with the image. The release draws the latents of the condition from the
    autoencoder's distribution, by the global generator; here they are its mode.
    """

    @torch.no_grad()
    def __call__(
        self,
        image: Any = None,
        prompt: str | list[str] | None = None,
        prompt_2: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 30,
        sigmas: list[float] | None = None,
        guidance_scale: float = 3.5,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        joint_attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: Any = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006
        max_sequence_length: int = 512,
        condition_size: int = CONDITION_SIZE,
    ) -> Any:
        """Draws images.

        Args:
            image: The rejected image, a PIL image or several.
            prompt: The prompt with the reason.
            prompt_2: That of the T5 encoder, by default the same.
            height: Of the images, in pixels.
            width: Likewise.
            num_inference_steps: As in `FluxPipeline`, like all arguments but the last.
            sigmas: See there.
            guidance_scale: See there.
            num_images_per_prompt: See there.
            generator: See there.
            latents: See there.
            prompt_embeds: See there.
            pooled_prompt_embeds: See there.
            output_type: See there.
            return_dict: See there.
            joint_attention_kwargs: See there.
            callback_on_step_end: See there.
            callback_on_step_end_tensor_inputs: See there.
            max_sequence_length: See there.
            condition_size: Side of the square that the image is resized to, in pixels.
        """
        height = height or self.default_sample_size * self.vae_scale_factor
        width = width or self.default_sample_size * self.vae_scale_factor
        return super().__call__(
            image=_square(image, condition_size),
            prompt=prompt,
            prompt_2=prompt_2,
            height=height,
            width=width,
            num_inference_steps=num_inference_steps,
            sigmas=sigmas,
            guidance_scale=guidance_scale,
            num_images_per_prompt=num_images_per_prompt,
            generator=generator,
            latents=latents,
            prompt_embeds=prompt_embeds,
            pooled_prompt_embeds=pooled_prompt_embeds,
            output_type=output_type,
            return_dict=return_dict,
            joint_attention_kwargs=joint_attention_kwargs,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
            max_sequence_length=max_sequence_length,
            max_area=height * width,
            _auto_resize=False,
        )


def _square(image: Any, side: int) -> Any:
    """Images as squares; anything else as it is."""
    if isinstance(image, list):
        return [_square(each, side) for each in image]
    return image.resize((side, side)) if isinstance(image, Image.Image) else image
