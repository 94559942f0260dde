"""Models that load on first use, and the base class of verifiers that score with one, in batches."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from PIL import Image

from tts_vision.errors import ConfigError
from tts_vision.memory import in_halves
from tts_vision.types import Media, Modality, Prompt, Score, Video
from tts_vision.verifier import ALONE, Asked, Verifier

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ScoreBatch: TypeAlias = Callable[[list[Any], list[Prompt]], list[Score]]


class UnusableSample(Exception):
    """A sample that a verifier cannot score; the message is the reason."""


class LazyModel(ABC):
    """A plugin whose model loads on first use.

    Args:
        device: Device of the model; by default the accelerator, if there is one.
        dtype: Precision of the weights: float32, bfloat16 or float16.
        batch_size: Samples computed at once.
    """

    def __init__(
        self,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "float32",
        batch_size: int = 8,
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1 but got {batch_size}; raise it.")
        if isinstance(dtype, str) and dtype not in DTYPES:
            raise ConfigError(f"dtype must be one of {', '.join(DTYPES)} but got {dtype!r}; change it.")
        self.device = torch.device(device or default_device())
        self.dtype = DTYPES[dtype] if isinstance(dtype, str) else dtype
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

    def _use_batches_of(self, size: int) -> None:
        """Remembers a batch size that fits into memory."""
        self.batch_size = size


class BatchedVerifier(LazyModel, Verifier):
    """A verifier whose model loads on first use and scores in batches.

    A subclass sets `name` and `accepts`, loads the model in `_load`, and scores one batch in `_score_batch`.
    Samples that cannot be used are unscored with the reason; the others are scored without them. When memory
    is full, the batch size is halved and stays so.

    Example:
        >>> class Brightness(BatchedVerifier):
        ...     name = "brightness"
        ...     def _load(self):
        ...         self._model = torch.nn.Identity().to(self.device)
        ...     def _score_batch(self, samples, prompts):
        ...         pixels = torch.stack([torch.from_numpy(np.array(image)) for image in samples])
        ...         means = self._model(pixels.to(self.device, self.dtype)).mean((1, 2, 3))
        ...         return [Score(value=value) for value in means.tolist()]
    """

    accepts: frozenset[Modality] = frozenset({"image"})

    @abstractmethod
    def _score_batch(self, samples: list[Any], prompts: list[Prompt]) -> list[Score]:
        """Scores of at most `batch_size` samples, each as `_usable` returned it.

        Raises:
            UnusableSample: If a sample turns out to be unusable only here.
        """

    def _usable(self, sample: Media) -> Any:
        """The sample in the form that `_score_batch` takes; by default an RGB image.

        Raises:
            UnusableSample: If it cannot be scored.
        """
        return as_image(sample, self.name)

    def score(self, media: Sequence[Media], prompts: Sequence[Prompt], asked: Asked = ALONE) -> list[Score]:
        return self._in_batches(self._score_batch, media, prompts)

    @torch.no_grad()
    def _in_batches(
        self, score_batch: ScoreBatch, media: Sequence[Media], prompts: Sequence[Prompt]
    ) -> list[Score]:
        """The scores by `score_batch`, in the order of the samples; unscored where one cannot be used."""
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

        def work(start: int, stop: int) -> list[Score]:
            batch = usable[start:stop]
            return _one_by_one(score_batch, [s for _, s in batch], [prompts[i] for i, _ in batch])

        batches = in_halves(len(usable), self.batch_size, work, shrunk=self._use_batches_of)
        found = [score for batch in batches for score in batch]
        scores.update(zip((i for i, _ in usable), map(_finite, found), strict=True))
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
    """The best device of this machine."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def as_image(sample: Media, name: str = "this verifier") -> Image.Image:
    """The sample as an RGB image; transparency is shown on white.

    Args:
        sample: Any sample.
        name: Name of the verifier, for messages.

    Raises:
        UnusableSample: If it is no image or has no pixels.
    """
    if isinstance(sample, Video):
        raise UnusableSample(f"{name} scores images but got a clip; frame_mean({name}) scores clips")
    if not isinstance(sample, Image.Image):
        raise UnusableSample(f"{name} scores images but got {type(sample).__name__}")
    if not (sample.width and sample.height):
        raise UnusableSample(f"an image must have pixels but is {sample.width}x{sample.height}")
    try:
        if sample.mode in {"RGBA", "LA", "PA"} or "transparency" in sample.info:
            rgba = sample.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
        return sample.convert("RGB")
    except (OSError, ValueError) as error:  # truncated files fail here
        raise UnusableSample(f"the image cannot be read: {error}") from error


def _finite(score: Score) -> Score:
    if math.isinf(score.value):
        reason = f"the model answered {score.value}"
        return score.model_copy(update={"value": math.nan, "reason": reason})
    if math.isnan(score.value) and not score.reason:
        return score.model_copy(update={"reason": "the model answered NaN"})
    return score
