"""What the verifiers share: samples as pictures, batches, and models that load on first use."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeAlias

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tts_vision.errors import ConfigError
from tts_vision.types import Media, Modality, Prompt, Score, Video

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ScoreBatch: TypeAlias = Callable[[list[Any], list[Prompt]], list[Score]]
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class UnusableSample(Exception):
    """A sample that a verifier cannot score; the message is the reason."""


class LazyModel(ABC):
    """What loads its model on first use.

    Args:
        device: Where it computes; by default the accelerator, if there is one.
        dtype: Precision of its weights: float32, bfloat16 or float16.
        batch_size: Samples computed at once.
    """

    def __init__(self, *, device: str | None = None, dtype: str = "float32", batch_size: int = 8) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1 but got {batch_size}; raise it.")
        if dtype not in DTYPES:
            raise ConfigError(f"dtype must be one of {', '.join(DTYPES)} but got {dtype!r}; change it.")
        self.device = torch.device(device or default_device())
        self.dtype = DTYPES[dtype]
        self.batch_size = batch_size
        self._loaded = False

    @abstractmethod
    def _load(self) -> None:
        """Loads the model; called once.

        Raises:
            VerifierError: If its weights cannot be found or do not fit.
        """

    def load(self) -> None:
        """Loads the model, so that later calls only compute; called by a search before it spends anything."""
        if not self._loaded:
            self._load()
            self._loaded = True


class BatchedVerifier(LazyModel):
    """A verifier whose model loads on first use and scores in batches of its own choosing.

    A subclass sets `name` and `accepts`, loads in `_load`, and scores one batch in `_score_batch`. Samples
    that cannot be used are unscored with the reason; all others are scored as if those were not there.
    Its parameters are those of `LazyModel`.
    """

    name: str
    accepts: ClassVar[frozenset[Modality]] = frozenset({"image"})

    @abstractmethod
    def _score_batch(self, samples: list[Any], prompts: list[Prompt]) -> list[Score]:
        """Scores of one batch, at most `batch_size`, of what `_usable` returned.

        Raises:
            UnusableSample: If a sample turns out only here to be one that cannot be scored.
        """

    def _usable(self, sample: Media) -> Any:
        """The sample as `_score_batch` takes it: by default an RGB picture.

        Raises:
            UnusableSample: If it cannot be scored.
        """
        return picture(sample, self.name)

    def score(self, media: Sequence[Media], prompts: Sequence[Prompt]) -> list[Score]:
        """One score per sample, in order."""
        return self._in_batches(self._score_batch, media, prompts)

    @torch.no_grad()
    def _in_batches(
        self, score_batch: ScoreBatch, media: Sequence[Media], prompts: Sequence[Prompt]
    ) -> list[Score]:
        """What `score_batch` says of each sample, in order, unscored where it cannot be used."""
        if not media:
            return []
        self.load()
        scores: dict[int, Score] = {}
        usable: list[tuple[int, Any]] = []
        for i, sample in enumerate(media):
            try:
                usable.append((i, self._usable(sample)))
            except UnusableSample as error:
                scores[i] = Score.unscored(str(error))
        for at in range(0, len(usable), self.batch_size):
            batch = usable[at : at + self.batch_size]
            found = _one_by_one(score_batch, [s for _, s in batch], [prompts[i] for i, _ in batch])
            scores.update(zip((i for i, _ in batch), map(_finite, found), strict=True))
        return [scores[i] for i in range(len(media))]


def _one_by_one(score_batch: ScoreBatch, samples: list[Any], prompts: list[Prompt]) -> list[Score]:
    """Scores of a batch; of each sample alone, if one of them turns out to be unusable."""
    try:
        return score_batch(samples, prompts)
    except UnusableSample as error:
        if len(samples) == 1:
            return [Score.unscored(str(error))]
        return [score for s, p in zip(samples, prompts) for score in _one_by_one(score_batch, [s], [p])]


def default_device() -> str:
    """The best device there is."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def picture(sample: Media, name: str = "this verifier") -> Image.Image:
    """The sample as an RGB picture; transparency is shown on white.

    Raises:
        UnusableSample: If it is no picture or has no pixels.
    """
    if isinstance(sample, Video):
        raise UnusableSample(f"{name} scores pictures but got a clip; frame_mean({name}) scores clips")
    if not isinstance(sample, Image.Image):
        raise UnusableSample(f"{name} scores pictures but got {type(sample).__name__}")
    if not (sample.width and sample.height):
        raise UnusableSample(f"a picture must have pixels but is {sample.width}x{sample.height}")
    try:
        if sample.mode in {"RGBA", "LA", "PA"} or "transparency" in sample.info:
            rgba = sample.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
        return sample.convert("RGB")
    except (OSError, ValueError) as error:  # a truncated file is found out here
        raise UnusableSample(f"the picture cannot be read: {error}") from error


def clip_pixels(
    pixels: Tensor,
    size: int = 224,
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
    interpolation: str = "bicubic",
) -> Tensor:
    """Pixels as CLIP takes them, with their gradient: shorter edge to `size`, centre crop, normalised.

    Args:
        pixels: ``(B, 3, H, W)`` in [0, 1].
        size: Side of the result.
        mean: Of each channel.
        std: Of each channel.
        interpolation: ``bicubic`` or ``bilinear``.

    Returns:
        ``(B, 3, size, size)``.
    """
    height, width = pixels.shape[-2:]
    short = min(height, width)
    target = (size * height // short, size * width // short)
    if target != (height, width):
        pixels = F.interpolate(pixels, target, mode=interpolation, antialias=True).clamp(0, 1)
    top, left = (round((edge - size) / 2) for edge in target)
    pixels = pixels[..., top : top + size, left : left + size]
    shape = (1, 3, 1, 1)
    return (pixels - pixels.new_tensor(mean).view(shape)) / pixels.new_tensor(std).view(shape)


def _finite(score: Score) -> Score:
    if math.isinf(score.value):
        return Score(value=math.nan, parts=score.parts, reason=f"the model answered {score.value}")
    if math.isnan(score.value) and not score.reason:
        return Score(value=math.nan, parts=score.parts, reason="the model answered NaN")
    return score
