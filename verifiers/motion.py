"""Dynamic degree: how much moves in a clip, by the optical flow of RAFT."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tts_vision.errors import ConfigError
from tts_vision.memory import in_halves
from tts_vision.model_verifier import BatchedVerifier, UnusableSample
from tts_vision.registry import register
from tts_vision.types import Media, Modality, Prompt, Score, Video
from tts_vision.verifiers._backbones import load_torchvision
from tts_vision.verifiers._frames import moving

RAFT_WEIGHTS = "https://download.pytorch.org/models/raft_large_C_T_V1-22a6c225.pth"
SMALLEST = 128  # RAFT's correlation pyramid ends at a sixteenth of an eighth of a side


def at_eight_fps(total: int, fps: float) -> list[int]:
    """Every ``max(1, round(fps / 8))``-th frame."""
    return list(range(0, total, max(1, round(fps / 8))))


def top_magnitude(flow: Tensor, share: float = 0.05) -> Tensor:
    """Mean length of the longest vectors of each flow, in pixels.

    Args:
        flow: ``(B, 2, H, W)``.
        share: Of the vectors that are the longest; at least one is taken.

    Returns:
        ``(B,)``.
    """
    lengths = flow.norm(dim=1).flatten(1)
    return lengths.topk(max(1, int(lengths.shape[1] * share)), dim=1).values.mean(1)


def is_dynamic(magnitudes: Sequence[float], shorter_side: int) -> bool:
    """VBench's rule: at least ``round(4 N / 16)`` of the pairs of N frames exceed 6 px per 256 px of side.

    Where N = 2 that count rounds to 0, so every clip of two frames is dynamic.

    Args:
        magnitudes: `top_magnitude` of each pair of neighbouring frames, at least one.
        shorter_side: Of the frames, in pixels.
    """
    frames = len(magnitudes) + 1
    moving_pairs = sum(magnitude > 6 * shorter_side / 256 for magnitude in magnitudes)
    return moving_pairs >= round(4 * frames / 16)


def raft_pixels(frames: Tensor) -> Tensor:
    """Frames as RAFT takes them: in [-1, 1], edges repeated on all sides up to multiples of 8.

    Args:
        frames: ``(T, H, W, 3)`` uint8.

    Returns:
        ``(T, 3, h, w)`` float32.
    """
    pixels = frames.permute(0, 3, 1, 2).float() / 127.5 - 1
    down, right = -pixels.shape[2] % 8, -pixels.shape[3] % 8
    margins = (right // 2, right - right // 2, down // 2, down - down // 2)
    return F.pad(pixels, margins, mode="replicate")


def comparable(sample: Media, name: str) -> Video:
    """The sample, if it is a clip whose frames RAFT can compare.

    Raises:
        UnusableSample: If it is not.
    """
    video = moving(sample, name)
    height, width = video.frames.shape[1:3]
    if min(height, width) <= SMALLEST - 8:
        raise UnusableSample(
            f"RAFT needs sides of more than {SMALLEST - 8} pixels but the frames are {width}x{height}"
        )
    return video


@register(
    "verifier",
    "motion",
    paper="VBench (Huang et al. 2024), dynamic degree, by RAFT (Teed and Deng 2020)",
    notes={"licence": "BSD-3-Clause", "weights": RAFT_WEIGHTS},
)
class Motion(BatchedVerifier):
    """How much moves in a clip: mean length of its 5 % longest flow vectors, in pixels at a side of 256.

    The flow is between neighbours of frames taken at about 8 per second. The value is the mean over pairs,
    scaled to frames with a shorter side of 256 pixels, 0 or more and without a bound; VBench counts a pair
    as moving above 6. ``parts["dynamic"]`` is VBench's verdict, 1 or 0, and ``parts["pairs"]`` the number of
    pairs. More motion is not always better: combine it with another verifier. The prompt is not read.

    VBench uses the authors' weights ``raft-things``; these are torchvision's C_T_V1, ported from the authors
    and trained on the same data.

    Args:
        checkpoint: File of torchvision's RAFT (large), or its address.
        updates: Refinements of the flow.
        batch_size: Pairs of frames computed at once.
    """

    name = "motion"
    accepts: frozenset[Modality] = frozenset({"video"})

    def __init__(
        self,
        *,
        checkpoint: str = RAFT_WEIGHTS,
        updates: int = 20,
        device: str | None = None,
        batch_size: int = 4,
    ) -> None:
        super().__init__(device=device, batch_size=batch_size)
        if updates < 1:
            raise ConfigError(f"updates must be at least 1 but got {updates}; raise it.")
        self.checkpoint, self.updates = checkpoint, updates

    def _load(self) -> None:
        from torchvision.models.optical_flow import raft_large

        self._model = load_torchvision(raft_large, self.checkpoint, RAFT_WEIGHTS, self.name).to(self.device)

    def _usable(self, sample: Media) -> Video:
        video = comparable(sample, self.name)
        if len(at_eight_fps(len(video.frames), video.fps)) < 2:
            raise UnusableSample(
                f"motion looks at 8 frames per second and needs two but the clip has {len(video.frames)} "
                f"at {video.fps:g}"
            )
        return video

    def _score_batch(self, samples: list[Video], prompts: list[Prompt]) -> list[Score]:
        return [self._score(video) for video in samples]

    def _score(self, video: Video) -> Score:
        frames = raft_pixels(video.frames[at_eight_fps(len(video.frames), video.fps)])

        def work(start: int, stop: int) -> Tensor:
            return top_magnitude(self.flow(frames[start:stop], frames[start + 1 : stop + 1]))

        found = in_halves(len(frames) - 1, self.batch_size, work, shrunk=self._use_batches_of)
        magnitudes = torch.cat(found).tolist()
        shorter_side = min(video.frames.shape[1:3])
        return Score(
            value=sum(magnitudes) / len(magnitudes) * 256 / shorter_side,
            parts={
                "dynamic": float(is_dynamic(magnitudes, shorter_side)),
                "pairs": float(len(magnitudes)),
            },
        )

    def flow(self, frames: Tensor, later: Tensor) -> Tensor:
        """Optical flow between frames of `raft_pixels`: ``(B, 2, h, w)`` in pixels, to the right and down."""
        return self._model(frames.to(self.device), later.to(self.device), num_flow_updates=self.updates)[-1]
