"""Base class of feature extractors: images in batches, clips as the mean of their frames."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from tts_vision.errors import ConfigError, VerifierError
from tts_vision.model_verifier import LazyModel, UnusableSample, as_image
from tts_vision.types import Media, Modality, Video
from tts_vision.verifiers._frames import clip, evenly, frame_images


class ImageFeatures(LazyModel):
    """Embeds images, and clips as the mean of the embeddings of evenly spaced frames.

    A subclass sets `name`, loads in `_load` and sets `size` there, and embeds one batch in `_embed`.

    Args:
        frames: Frames of a clip whose embeddings are averaged, evenly spaced; all of a shorter clip.
    """

    name: str
    accepts: frozenset[Modality] = frozenset({"image", "video"})
    size: int

    def __init__(
        self, *, frames: int = 8, device: str | None = None, dtype: str = "float32", batch_size: int = 8
    ) -> None:
        super().__init__(device=device, dtype=dtype, batch_size=batch_size)
        if frames < 1:
            raise ConfigError(f"frames must be at least 1 but got {frames}; raise it.")
        self.frames = frames

    @abstractmethod
    def _embed(self, images: list[Image.Image]) -> Tensor:
        """``(B, D)`` of at most `batch_size` RGB images."""

    @torch.no_grad()
    def features(self, media: Sequence[Media]) -> Tensor:
        """``(B, D)`` float32 on the CPU, one row per sample, not normalised.

        Raises:
            VerifierError: If a sample cannot be embedded; every sample needs a row.
        """
        self.load()
        if not media:
            return torch.empty(0, self.size)
        views = [self._views(sample, number) for number, sample in enumerate(media)]
        flat = [view for views_of_one in views for view in views_of_one]
        batches = [flat[at : at + self.batch_size] for at in range(0, len(flat), self.batch_size)]
        embedded = torch.cat([self._embed(batch).float().cpu() for batch in batches])
        found = torch.stack([rows.mean(0) for rows in embedded.split([len(v) for v in views])])
        for number, row in enumerate(found):
            if not row.isfinite().all():
                raise _refused(self.name, number, "the model answered with numbers that are not finite")
        return found

    def _views(self, sample: Media, number: int) -> list[Image.Image]:
        """The image, or the frames of a clip."""
        try:
            if isinstance(sample, Video):
                video = clip(sample, self.name)
                total = len(video.frames)
                return frame_images(video, evenly(total, min(self.frames, total)))
            return [as_image(sample, self.name)]
        except UnusableSample as error:
            raise _refused(self.name, number, str(error)) from error


def _refused(name: str, number: int, reason: str) -> VerifierError:
    return VerifierError(
        f"Every sample that {name!r} embeds must be usable but sample {number} (from 0) is not: {reason}; "
        "leave it out."
    )
