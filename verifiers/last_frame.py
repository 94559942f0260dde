"""A verifier of images as a verifier of clips: the score of their last frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from tts_vision.registry import register
from tts_vision.verifier import Verifier
from tts_vision.verifiers.frame_mean import FrameMean


@register("verifier", "last_frame", notes={"licence": "that of its member", "weights": "those of its member"})
class LastFrame(FrameMean):
    """Score of the last frame of a clip, by a verifier of images: ``last_frame(clip_score)``.

    Of the preview of a clip that is generated chunk by chunk, that is the newest frame: image-level alignment
    in Tree-of-Frames (Liu et al. 2025).
    """

    kind: ClassVar[str] = "last_frame"

    def __init__(self, members: Sequence[Verifier]) -> None:
        super().__init__(members, frames=1)

    def _chosen(self, total: int) -> list[int]:
        return [total - 1]
