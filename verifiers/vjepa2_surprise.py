"""V-JEPA 2 surprise: how well a world model foresees the later frames of a clip from the earlier ones."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tts_vision.errors import ConfigError
from tts_vision.model_verifier import BatchedVerifier, UnusableSample
from tts_vision.registry import register
from tts_vision.types import FAILS_AT, Media, Modality, Prompt, Score, Video
from tts_vision.verifiers._frames import at_rate, clip, evenly
from tts_vision.verifiers._weights import from_pretrained

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@register(
    "verifier",
    "vjepa2_surprise",
    paper="WMReward (Yuan et al. 2026), arXiv:2601.10553; V-JEPA 2 (Assran et al. 2025), arXiv:2506.09985",
    notes={"licence": "Apache-2.0", "weights": "facebook/vjepa2-vitg-fpc64-256"},
)
class VJEPA2Surprise(BatchedVerifier):
    """Agreement of a clip with the predictions of V-JEPA 2, at most 1: 1 minus WMReward's surprise.

    Windows slide over the clip. In each, V-JEPA 2 predicts the representations of the later frames from the
    earlier frames alone, and the cosine with the representations of the real ones is the agreement of that
    window. The value is their mean; the prompt is not read.

    Args:
        checkpoint: Folder or hub id of a pretrained V-JEPA 2 with its predictor.
        window: Frames of a window.
        context: The first frames of a window, which the others are predicted from.
        stride: Frames from one window to the next.
        frames: Most frames it looks at, evenly spread over a longer clip.
        fps: Frames per second that it looks at, at most those that the clip has; all of them by default.
        along: Whether a cosine runs over the channels of a token, or over the tokens of a channel, as in the
            code that was released with the paper.
        fails_above: Surprise of a window above which the clip counts as failed from its predicted frames on,
            for searches that go back to where a clip fails.
        batch_size: Windows computed at once.
    """

    name = "vjepa2_surprise"
    accepts: frozenset[Modality] = frozenset({"video"})

    def __init__(
        self,
        *,
        checkpoint: str = "facebook/vjepa2-vitg-fpc64-256",
        window: int = 16,
        context: int = 8,
        stride: int = 2,
        frames: int = 49,
        fps: float | None = None,
        along: Literal["channels", "tokens"] = "tokens",
        fails_above: float | None = None,
        device: str | None = None,
        dtype: str = "float32",
        batch_size: int = 4,
    ) -> None:
        super().__init__(device=device, dtype=dtype, batch_size=batch_size)
        if not 0 < context < window <= frames or stride < 1:
            raise ConfigError(
                "context, window, frames and stride must satisfy 0 < context < window <= frames and "
                f"stride >= 1 but got {context}, {window}, {frames} and {stride}; change them."
            )
        if fps is not None and not fps > 0:
            raise ConfigError(f"fps must be positive but got {fps}; raise it or leave it out.")
        if along not in ("channels", "tokens"):
            raise ConfigError(f"along must be channels or tokens but got {along!r}; change it.")
        self.checkpoint, self.along, self.fails_above = checkpoint, along, fails_above
        self.window, self.context, self.stride, self.frames, self.fps = window, context, stride, frames, fps

    def _load(self) -> None:
        from transformers import VJEPA2Model

        model = from_pretrained(VJEPA2Model, self.checkpoint, self.name, dtype=self.dtype)
        step = model.config.tubelet_size
        if self.window % step or self.context % step:
            raise ConfigError(
                f"window and context must be multiples of {step}, the frames of a token of "
                f"{self.checkpoint!r}, but are {self.window} and {self.context}; change them."
            )
        self._model = model.to(self.device)

    def _usable(self, sample: Media) -> Video:
        video = clip(sample, self.name)
        chosen = self._chosen(video)
        if len(chosen) < self.window:
            raise UnusableSample(
                f"{self.name} predicts within windows of {self.window} frames but looks at {len(chosen)} of "
                "this clip; make longer clips or lower window and context"
            )
        return video

    def _chosen(self, video: Video) -> list[int]:
        """The frames that it looks at."""
        total = len(video.frames)
        indices = list(range(total)) if self.fps is None else at_rate(total, video.fps, self.fps)
        if len(indices) > self.frames:
            indices = [indices[i] for i in evenly(len(indices), self.frames)]
        return indices

    def _score_batch(self, samples: list[Video], prompts: list[Prompt]) -> list[Score]:
        return [self._score(video) for video in samples]

    def _score(self, video: Video) -> Score:
        chosen = self._chosen(video)
        starts = range(0, len(chosen) - self.window + 1, self.stride)
        pixels = self._pixels(video.frames[chosen])
        windows = [pixels[start : start + self.window] for start in starts]
        size = self.batch_size
        surprise = torch.cat(
            [self._surprise(torch.stack(windows[i : i + size])) for i in range(0, len(windows), size)]
        ).tolist()
        parts = {"surprise": sum(surprise) / len(surprise), "worst": max(surprise)}
        limit = math.inf if self.fails_above is None else self.fails_above
        failed = next((start for start, x in zip(starts, surprise) if x > limit), None)
        if failed is not None:
            parts[FAILS_AT] = chosen[failed + self.context] / video.fps
        return Score(value=1 - parts["surprise"], parts=parts)

    def _pixels(self, frames: Tensor) -> Tensor:
        """Frames ``(T, H, W, 3)`` uint8 as the model takes them: squares ``(T, 3, S, S)``."""
        side = self._model.config.crop_size
        pixels = frames.to(self.device).permute(0, 3, 1, 2).float() / 255
        pixels = F.interpolate(pixels, (side, side), mode="bilinear", antialias=True, align_corners=False)
        mean, std = (pixels.new_tensor(values)[:, None, None] for values in (MEAN, STD))
        return ((pixels - mean) / std).to(self.dtype)

    def _surprise(self, windows: Tensor) -> Tensor:
        """Surprise ``(B,)``, from 0 to 2, of windows ``(B, T, 3, S, S)``."""
        # not by masks of the model's own call, which come after its encoder has seen the later frames
        seen = self._encoded(windows[:, : self.context])
        every = self._encoded(windows)
        known, total = seen.shape[1], every.shape[1]
        places = torch.arange(total, device=seen.device).expand(len(windows), -1)
        predicted = self._model.predictor(
            encoder_hidden_states=seen, context_mask=[places[:, :known]], target_mask=[places[:, known:]]
        ).last_hidden_state
        real = every[:, known:]
        along = 1 if self.along == "tokens" else 2
        return 1 - F.cosine_similarity(_normed(predicted), _normed(real), dim=along).mean(1)

    def _encoded(self, frames: Tensor) -> Tensor:
        found: Any = self._model.encoder(pixel_values_videos=frames)
        return found.last_hidden_state


def _normed(tokens: Tensor) -> Tensor:
    """Tokens ``(B, N, D)`` with mean 0 and variance 1 over their channels, as V-JEPA compares them."""
    return F.layer_norm(tokens.float(), tokens.shape[-1:])
