"""ViCLIP (Wang et al. 2024): CLIP's two towers, the one of images joined over frames, in plain torch.

The modules are named as in the published checkpoint, so that it loads key by key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tts_vision.errors import VerifierError

HEAD = 64
"""Width of an attention head, as in all sizes of CLIP."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of a ViCLIP.

    Attributes:
        width: Of the video tower.
        layers: Of the video tower.
        patch: Side of a patch in pixels.
        grid: Patches on a side of a frame.
        frames: Frames of a clip.
        text_width: Of the text tower.
        text_layers: Of the text tower.
        context: Tokens of a text.
        words: Entries of the vocabulary.
        embedding: Length of both embeddings.
    """

    width: int
    layers: int
    patch: int
    grid: int
    frames: int
    text_width: int
    text_layers: int
    context: int
    words: int
    embedding: int

    @property
    def pixels(self) -> int:
        """Side of a frame."""
        return self.grid * self.patch

    @classmethod
    def of(cls, state: Mapping[str, Tensor], owner: str) -> Sizes:
        """The sizes that the weights of a checkpoint have.

        Raises:
            VerifierError: If they are not those of a ViCLIP.
        """
        try:
            width, patch = state["vision_encoder.conv1.weight"].shape[0::4]
            positions = len(state["vision_encoder.positional_embedding"])
            words, text_width = state["text_encoder.token_embedding.weight"].shape
            found = cls(
                width=width,
                layers=_layers(state, "vision_encoder."),
                patch=patch,
                grid=round((positions - 1) ** 0.5),
                frames=state["vision_encoder.temporal_positional_embedding"].shape[1],
                text_width=text_width,
                text_layers=_layers(state, "text_encoder."),
                context=len(state["text_encoder.positional_embedding"]),
                words=words,
                embedding=state["vision_encoder.proj"].shape[1],
            )
        except (KeyError, ValueError, IndexError) as error:
            raise VerifierError(
                f"The weights of {owner!r} must be those of a ViCLIP but they lack or misshape "
                f"{str(error).strip(chr(39))}; give the published ViClip-InternVid-10M-FLT.pth."
            ) from error
        if found.width % HEAD or found.text_width % HEAD:
            raise VerifierError(
                f"The towers of {owner!r} must be multiples of {HEAD} wide, a head each, but are "
                f"{found.width} and {found.text_width}; give the published ViClip-InternVid-10M-FLT.pth."
            )
        return found


class QuickGELU(nn.Module):
    """OpenAI's approximation of the GELU."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    """A pre-norm transformer layer.

    Args:
        width: Of the residual stream.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, width // HEAD, batch_first=True)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, 4 * width))
        self.mlp.add_module("gelu", QuickGELU())
        self.mlp.add_module("c_proj", nn.Linear(4 * width, width))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, attn_mask=mask, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """A stack of `Block`.

    Args:
        width: Of the residual stream.
        layers: Number of blocks.
    """

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width) for _ in range(layers))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in self.resblocks:
            x = block(x, mask)
        return x


class VideoTower(nn.Module):
    """The patches of all frames attend to each other and to one class token.

    Args:
        sizes: Of the model.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width, kernel = sizes.width, (1, sizes.patch, sizes.patch)
        self.conv1 = nn.Conv3d(3, width, kernel, kernel, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros(sizes.grid**2 + 1, width))
        self.temporal_positional_embedding = nn.Parameter(torch.zeros(1, sizes.frames, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = Transformer(width, sizes.layers)
        self.proj = nn.Parameter(torch.zeros(width, sizes.embedding))

    def forward(self, clips: Tensor) -> Tensor:
        """``(B, 3, T, H, W)`` normalised pixels -> ``(B, D)``."""
        patches = self.conv1(clips).flatten(3).permute(0, 2, 3, 1)  # (B, T, N, W)
        patches = patches + self.positional_embedding[1:] + self.temporal_positional_embedding.unsqueeze(2)
        first = (self.class_embedding + self.positional_embedding[0]).expand(len(clips), 1, -1)
        tokens = self.transformer(self.ln_pre(torch.cat((first, patches.flatten(1, 2)), dim=1)))
        return self.ln_post(tokens[:, 0]) @ self.proj


class TextTower(nn.Module):
    """CLIP's causal text transformer, read at the end token.

    Args:
        sizes: Of the model.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width = sizes.text_width
        self.token_embedding = nn.Embedding(sizes.words, width)
        self.positional_embedding = nn.Parameter(torch.zeros(sizes.context, width))
        self.transformer = Transformer(width, sizes.text_layers)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.zeros(width, sizes.embedding))

    def forward(self, tokens: Tensor) -> Tensor:
        """``(B, context)`` numbers of tokens, of which the end token is the largest -> ``(B, D)``."""
        length = tokens.shape[1]
        embedded = self.token_embedding(tokens) + self.positional_embedding
        future = torch.ones(length, length, dtype=torch.bool, device=tokens.device).triu(1)
        x = self.ln_final(self.transformer(embedded, future))
        return x[torch.arange(len(x), device=x.device), tokens.argmax(1)] @ self.text_projection


class ViCLIP(nn.Module):
    """The published model; ``temp`` is its temperature in training, which no score reads.

    Args:
        sizes: Of the model.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.vision_encoder = VideoTower(sizes)
        self.text_encoder = TextTower(sizes)
        self.temp = nn.Parameter(torch.tensor(0.01))


def _layers(state: Mapping[str, Tensor], tower: str) -> int:
    """The number of blocks of a tower."""
    pattern = re.compile(re.escape(tower) + r"transformer\.resblocks\.(\d+)\.")
    return 1 + max(int(match[1]) for key in state if (match := pattern.match(key)))
