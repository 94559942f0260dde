"""ImageReward: human preference by BLIP, whose text encoder looks at the image, with a small head."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from tts_vision.registry import register
from tts_vision.verifiers._backbones import CLIP_MEAN, CLIP_STD, clip_pixels, standard_pixels
from tts_vision.verifiers._rewards import PixelReward, TextCache
from tts_vision.verifiers._weights import check_keys, find_file, load_strictly, processor_from, read_state

MEAN, STD = 0.16717362830052426, 1.0333394966054072
WORDS = 35
# BLIP's contrastive heads and an old buffer: saved with the weights and not used for the reward
UNUSED = ("blip.vision_proj.", "blip.text_proj.", "blip.text_encoder.embeddings.position_ids")
# from the names of transformers' BlipVisionModel to those of the authors' vision transformer
VISION_NAMES = (
    (r"embeddings\.class_embedding", "cls_token"),
    (r"embeddings\.position_embedding", "pos_embed"),
    (r"embeddings\.patch_embedding\.(.+)", r"patch_embed.proj.\1"),
    (r"encoder\.layers\.(\d+)\.layer_norm(.+)", r"blocks.\1.norm\2"),
    (r"encoder\.layers\.(\d+)\.self_attn\.qkv\.(.+)", r"blocks.\1.attn.qkv.\2"),
    (r"encoder\.layers\.(\d+)\.self_attn\.projection\.(.+)", r"blocks.\1.attn.proj.\2"),
    (r"encoder\.layers\.(\d+)\.mlp\.(.+)", r"blocks.\1.mlp.\2"),
    (r"post_layernorm\.(.+)", r"norm.\1"),
)


class RewardModel(nn.Module):
    """BLIP's vision transformer, its text encoder with cross-attention, and the head.

    Args:
        vision: Sizes of transformers' ``BlipVisionConfig``.
        text: Sizes of transformers' ``BlipTextConfig``.
    """

    def __init__(self, vision: Mapping[str, Any], text: Mapping[str, Any]) -> None:
        from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

        super().__init__()
        # transformers' defaults are those of another release: the authors have eps 1e-6 and BERT's 12 heads
        self.vision = BlipVisionModel(BlipVisionConfig(**{"layer_norm_eps": 1e-6, **vision}))
        sizes = {"num_attention_heads": 12, "encoder_hidden_size": vision["hidden_size"], **text}
        self.text = BlipTextModel(BlipTextConfig(**sizes), add_pooling_layer=False)
        # without activations, as published
        self.mlp = nn.Sequential(
            nn.Linear(self.text.config.hidden_size, 1024),
            nn.Dropout(0.2),
            nn.Linear(1024, 128),
            nn.Dropout(0.2),
            nn.Linear(128, 64),
            nn.Dropout(0.1),
            nn.Linear(64, 16),
            nn.Linear(16, 1),
        )

    def forward(self, pixels: Tensor, words: Tensor) -> Tensor:
        """The rewards ``(B,)`` of pixels ``(B, 3, h, w)`` and tokens with their mask ``(B, 2, L)``."""
        seen = self.vision(pixel_values=pixels).last_hidden_state
        read = self.text(
            input_ids=words[:, 0], attention_mask=words[:, 1], encoder_hidden_states=seen, is_decoder=False
        ).last_hidden_state[:, 0]
        wide = torch.promote_types(read.dtype, torch.float32)
        return (self.mlp(read.to(wide))[:, 0] - MEAN) / STD


def published_name(key: str) -> str:
    """Name of a weight of `RewardModel` in the published file."""
    part, _, rest = key.partition(".")
    if part == "mlp":
        return f"mlp.layers.{rest}"
    if part == "text":
        return f"blip.text_encoder.{rest}"
    (name,) = (re.sub(own, theirs, rest) for own, theirs in VISION_NAMES if re.fullmatch(own, rest))
    return f"blip.visual_encoder.{name}"


def load_published(model: RewardModel, state: Mapping[str, Tensor], owner: str) -> None:
    """Loads the published weights into a model: every key must fit, none may be missing.

    Raises:
        VerifierError: If a key is missing, unexpected, or of another shape; names them as published.
    """
    names = {published_name(key): key for key in model.state_dict()}
    given = {key for key in state if not key.startswith(UNUSED)}
    check_keys(owner, missing=names.keys() - given, unexpected=given - names.keys())
    load_strictly(model, {own: state[name] for name, own in names.items()}, owner)


@register(
    "verifier",
    "image_reward",
    paper="ImageReward (Xu et al. 2023)",
    notes={
        "licence": "Apache-2.0",
        "weights": "THUDM/ImageReward, ImageReward.pt; google-bert/bert-base-uncased for the tokenizer",
        "gradients": "yes",
    },
)
class ImageReward(PixelReward):
    """ImageReward: BLIP's text encoder reads the prompt while it looks at the image; about -2 to 2.

    The reward has zero mean and unit variance over the authors' data. Prompts are cut at 35 tokens, which is
    shorter than many prompts.

    Args:
        checkpoint: The published file, a folder that holds ``ImageReward.pt``, or a repository on the hub.
        tokenizer: Folder or hub id of BERT's tokenizer.
        dtype: Precision of BLIP's weights: float32, bfloat16 or float16.
    """

    name = "image_reward"
    vision_sizes: Mapping[str, Any] = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 224,
    }
    text_sizes: Mapping[str, Any] = {}

    def __init__(
        self,
        *,
        checkpoint: str = "THUDM/ImageReward",
        tokenizer: str = "google-bert/bert-base-uncased",
        device: str | None = None,
        dtype: str = "float32",
        batch_size: int = 8,
    ) -> None:
        super().__init__(device=device, dtype=dtype, batch_size=batch_size)
        self.checkpoint, self.tokenizer = checkpoint, tokenizer

    def _load(self) -> None:
        from transformers import BertTokenizer

        state = read_state(find_file(self.checkpoint, "ImageReward.pt", self.name), self.name)
        self._tokenizer: Any = processor_from(BertTokenizer, self.tokenizer, self.name)
        self._tokenizer.add_tokens(["[DEC]", "[ENC]"], special_tokens=True)
        self._model = RewardModel(self.vision_sizes, self.text_sizes)
        load_published(self._model, state, self.name)
        self._model.eval().requires_grad_(False).to(self.device, self.dtype)
        self._model.mlp.float()  # the head is small and always computes in float32
        self._words = TextCache(self._tokens)

    def _tokens(self, texts: list[str]) -> Tensor:
        """``(B, 2, L)``: tokens and their mask."""
        words = self._tokenizer(
            texts, padding="max_length", truncation=True, max_length=WORDS, return_tensors="pt"
        )
        return torch.stack((words.input_ids, words.attention_mask), dim=1).to(self.device)

    def _preprocess(self, samples: list[Image.Image]) -> Tensor:
        size = self.vision_sizes["image_size"]
        return standard_pixels(samples, resize=size, crop=size, mean=CLIP_MEAN, std=CLIP_STD)

    def _fit(self, pixels: Tensor) -> Tensor:
        return clip_pixels(pixels, self.vision_sizes["image_size"])

    def _reward(self, pixels: Tensor, texts: Sequence[str]) -> Tensor:
        return self._model(pixels, self._words(texts))
