"""A toy model of clips, for files, figures and pages of them."""

from __future__ import annotations

import torch

from tts_vision.media import pixels
from tts_vision.testing.toys import GaussianMixtureSampler
from tts_vision.types import Media, State, Video


class Slides(GaussianMixtureSampler):
    """The toy sampler with clips of six frames in which its image slides to the side.

    Attributes:
        scale: Factor by which height and width are enlarged.
    """

    modality = "video"
    scale = (1, 1)

    def decode(self, state: State) -> list[Media]:
        return [self._slide(media) for media in super().decode(state)]

    def preview(self, state: State) -> list[Media]:
        return [self._slide(media) for media in super().preview(state)]

    def _slide(self, media: Media) -> Video:
        image = torch.from_numpy(pixels(media))[0]
        frames = torch.stack([image.roll(2 * t, 1) for t in range(6)])
        height, width = self.scale
        return Video(frames.repeat_interleave(height, 1).repeat_interleave(width, 2), fps=12.5)


def position(media: list[Media], prompts: list[str]) -> list[float]:
    """A verifier: another value for each clip of `Slides`."""
    return [float(pixels(clip)[0, 0].mean()) for clip in media]
