"""The network of the playground's motion judge: a video tower, and a text tower that looks at the clip.

After BLIP (Li et al. 2022): the video tower never sees the text. A frame becomes 16 cells by convolutions; a
cell attends to all cells of its chunk and of those before. The text tower attends to the cells of the first
chunks and says whether they show what the text asks.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tts_vision.errors import PipelineError
from tts_vision.pipelines.module_folders import CONFIG, WEIGHTS, save_weights, write_settings
from tts_vision.pipelines.playground import motion
from tts_vision.pipelines.playground.video import MAX_TOKENS, build_motion_tokenizer

BLEND = "blend.json"
CELLS = 16  # of a frame
_CELLS_OF_CHUNK = CELLS * motion.CHUNK


@dataclass(frozen=True)
class MotionJudgeConfig:
    """Architecture of the judge.

    Attributes:
        width: Width of both towers, a multiple of 32.
        video_layers: Layers of the video tower.
        text_layers: Layers of the text tower.
    """

    width: int = 160
    video_layers: int = 3
    text_layers: int = 3


class MotionJudge(nn.Module):
    """The judge.

    Args:
        config: Architecture.
    """

    def __init__(self, config: MotionJudgeConfig) -> None:
        super().__init__()
        self.config = config
        width, heads = config.width, config.width // 32
        sides = (3, 32, 64, 128)
        convolutions = [
            layer
            for a, b in pairwise(sides)
            for layer in (nn.Conv2d(a, b, 4, stride=2, padding=1), nn.GroupNorm(8, b), nn.GELU())
        ]
        self.cells = nn.Sequential(*convolutions, nn.Conv2d(sides[-1], width, 4, stride=2, padding=1))
        self.cell_place = nn.Parameter(0.1 * torch.randn(1, 1, CELLS, width))
        self.frame_place = nn.Parameter(0.1 * torch.randn(1, motion.FRAMES, 1, width))
        self.words = nn.Embedding(len(build_motion_tokenizer()), width)
        self.word_place = nn.Parameter(0.1 * torch.randn(1, MAX_TOKENS + 1, width))
        shape: dict[str, Any] = {
            "dropout": 0.0,
            "activation": nn.functional.gelu,
            "batch_first": True,
            "norm_first": True,
        }
        self.video_layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, 4 * width, **shape) for _ in range(config.video_layers)
        )
        self.text_layers = nn.ModuleList(
            nn.TransformerDecoderLayer(width, heads, 4 * width, **shape) for _ in range(config.text_layers)
        )
        self.video_norm, self.text_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.verdict = nn.Linear(width, 1)

    def seen(self, frames: Tensor) -> Tensor:
        """The states of the cells.

        Args:
            frames: Of the first chunks, in [-1, 1], `(b, t, 3, 64, 64)`, t a multiple of 4.

        Returns:
            `(b, 16 t, width)`, which later chunks do not change.
        """
        b, t = frames.shape[:2]
        cells = self.cells(frames.flatten(0, 1)).flatten(2).transpose(1, 2).unflatten(0, (b, t))
        states = (cells + self.cell_place + self.frame_place[:, :t]).flatten(1, 2)
        chunk = torch.arange(states.shape[1], device=states.device) // _CELLS_OF_CHUNK
        later = chunk[:, None] < chunk[None, :]
        for layer in self.video_layers:
            states = layer(states, src_mask=later)
        return self.video_norm(states)

    def said(self, seen: Tensor, ids: Tensor, chunks: Tensor) -> Tensor:
        """The logit of texts being right for the first chunks of a clip.

        Args:
            seen: States of the cells, `(b, c, width)`.
            ids: Tokens, padded with zeros on the right, `(b, t)`.
            chunks: How many chunks count, `(b,)`.

        Returns:
            Logits, `(b,)`.
        """
        states = self.words(ids) + self.word_place[:, : ids.shape[1]]
        chunk = torch.arange(seen.shape[1], device=seen.device) // _CELLS_OF_CHUNK
        unseen, pads = chunk[None, :] >= chunks[:, None], ids == 0
        for layer in self.text_layers:
            states = layer(states, seen, tgt_key_padding_mask=pads, memory_key_padding_mask=unseen)
        return self.verdict(self.text_norm(states[:, 0]))[:, 0]

    def forward(self, frames: Tensor, ids: Tensor) -> Tensor:
        """Logits of each text being right for the first one, two, ... chunks.

        Args:
            frames: `(b, t, 3, 64, 64)` in [-1, 1].
            ids: k texts of each clip, `(b, k, t)`.

        Returns:
            `(b, k, chunks)`.
        """
        seen = self.seen(frames)
        b, k, _ = ids.shape
        chunks = frames.shape[1] // motion.CHUNK
        texts = ids.flatten(0, 1).repeat_interleave(chunks, 0)
        count = torch.arange(1, chunks + 1, device=ids.device).repeat(b * k)
        return self.said(seen.repeat_interleave(k * chunks, 0), texts, count).view(b, k, chunks)


@dataclass(frozen=True)
class Blend:
    """The weights by which two logits are one: that of the motion judge, and that of the worst frame.

    Attributes:
        motion: Of the motion judge.
        frame: Of `playground_judge`, asked whether a frame shows the objects.
        offset: Added to both.
    """

    motion: float
    frame: float
    offset: float

    def __call__(self, logits: Tensor) -> Tensor:
        """One logit of two: `(..., 2)` to `(...)`."""
        motion, frame = logits.unbind(-1)
        return self.motion * motion + self.frame * frame + self.offset


def worst_frames(chances: Tensor) -> Tensor:
    """The logit of the worst frame up to each chunk.

    Args:
        chances: Of frames that show the objects, as many of each chunk, `(b, chunks, k)`.

    Returns:
        `(b, chunks)`.
    """
    return chances.logit(eps=1e-4).amin(-1).cummin(-1).values


def pixels_of(frames: Tensor) -> Tensor:
    """Frames `(..., 64, 64, 3)` uint8 as the judge takes them: `(..., 3, 64, 64)` in [-1, 1]."""
    return frames.movedim(-1, -3).float().div(127.5).sub(1.0)


def token_ids(texts: list[str]) -> Tensor:
    """Texts `(b, t)` as the judge takes them: `</s>` first, padded on the right to the longest."""
    words = build_motion_tokenizer("right", opened=True)(
        texts, padding="max_length", max_length=MAX_TOKENS + 1, return_tensors="pt"
    )
    return words.input_ids


def save_judge(judge: MotionJudge, blend: Blend, folder: Path) -> None:
    """Writes a judge in half precision, and its blend."""
    save_weights(judge, folder, torch.float16)
    write_settings(folder / CONFIG, asdict(judge.config))
    write_settings(folder / BLEND, asdict(blend))


def load_judge(folder: Path) -> tuple[MotionJudge, Blend]:
    """Reads a folder of `save_judge`, in float32.

    Raises:
        PipelineError: If a file is missing or does not fit.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        judge = MotionJudge(MotionJudgeConfig(**json.loads((folder / CONFIG).read_text())))
        judge.load_state_dict(load_file(folder / WEIGHTS))
        blend = Blend(**json.loads((folder / BLEND).read_text()))
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        raise PipelineError(
            f"A motion judge must have {CONFIG}, {BLEND} and {WEIGHTS} that fit but {str(folder)!r} cannot "
            f"be read: {str(error).splitlines()[0]}; install it again, or train it with "
            "'python -m tts_vision.pipelines.playground.train_video'."
        ) from error
    return judge.eval().requires_grad_(False), blend
