"""Verifiers with a model: loading once, batches that fit into memory, samples that cannot be used."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from PIL import Image

from tts_vision.errors import ConfigError
from tts_vision.model_verifier import BatchedVerifier, UnusableSample, as_image
from tts_vision.scoring import safe_scores
from tts_vision.types import Media, Prompt, Score, Video
from tts_vision.verifier import ALONE, Asked, Verifier

PROMPT = Prompt("two red circles")


class Red(BatchedVerifier):
    """The red channel; has memory for `fits` images, and cannot use white ones.

    Args:
        fits: Images that fit into memory.
    """

    name = "red"

    def __init__(self, *, fits: int = 100, batch_size: int = 8) -> None:
        super().__init__(device="cpu", batch_size=batch_size)
        self.fits = fits
        self.loads = 0
        self.batches: list[int] = []

    def _load(self) -> None:
        self.loads += 1

    def _score_batch(self, samples: list[Image.Image], prompts: list[Prompt]) -> list[Score]:
        assert len(samples) == len(prompts) <= self.batch_size
        self.batches.append(len(samples))
        if len(samples) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        values = [float(image.getpixel((0, 0))[0]) for image in samples]  # type: ignore[index]
        if 255.0 in values:
            raise UnusableSample("it is white")
        return [Score(value=math.nan if value == 254 else value) for value in values]


def reds(*levels: int) -> list[Media]:
    return [Image.new("RGB", (4, 4), (level, 0, 0)) for level in levels]


def numbers(scores: Sequence[Score]) -> list[float]:
    return [score.value for score in scores]


def test_the_model_loads_once_and_scores_in_batches() -> None:
    verifier = Red(batch_size=3)
    assert isinstance(verifier, Verifier) and verifier.accepts == {"image"} and not verifier.loads
    for _ in range(2):
        assert numbers(verifier.score(reds(*range(7)), [PROMPT] * 7)) == list(range(7))
    assert verifier.loads == 1 and verifier.batches == [3, 3, 1] * 2
    assert verifier.score([], []) == []


def test_a_full_memory_halves_the_batches_for_good_and_charges_once() -> None:
    verifier = Red(fits=2, batch_size=8)
    charged: list[dict[str, int]] = []
    asked = Asked(charge=lambda calls: charged.append(dict(calls)))
    for _ in range(2):
        found = safe_scores(verifier, reds(*range(9)), [PROMPT] * 9, asked=asked)
        assert numbers(found) == list(range(9))
    assert verifier.batch_size == 2
    assert verifier.batches == [8, 4, 2, 2, 2, 2, 1, 2, 2, 2, 2, 1]
    assert charged == [{"red": 9}] * 2


def test_a_sample_that_alone_fills_the_memory_is_unscored() -> None:
    charged: list[dict[str, int]] = []
    asked = Asked(charge=lambda calls: charged.append(dict(calls)))
    found = safe_scores(Red(fits=0), reds(1, 2), [PROMPT] * 2, asked=asked)
    assert all(math.isnan(score.value) and "OutOfMemoryError" in (score.reason or "") for score in found)
    assert charged == [{"red": 2}]


def test_unusable_samples_cost_only_themselves() -> None:
    clip = Video(torch.zeros(2, 4, 4, 3, dtype=torch.uint8))
    media = [clip, *reds(1, 255, 2, 254), Image.new("RGB", (0, 4))]
    scores = Red().score(media, [PROMPT] * 6)
    assert [math.isnan(value) for value in numbers(scores)] == [True, False, True, False, True, True]
    reasons = [score.reason or "" for score in scores]
    assert "frame_mean(red) scores clips" in reasons[0] and reasons[2] == "it is white"
    assert reasons[4] == "the model answered NaN" and "0x4" in reasons[5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1 but got 0"),
        ({"dtype": "float8"}, "dtype must be one of float32, bfloat16, float16 but got 'float8'"),
    ],
)
def test_settings_that_cannot_be(options: dict[str, Any], message: str) -> None:
    class Empty(BatchedVerifier):
        name = "empty"

        def _load(self) -> None: ...

        def _score_batch(self, samples: list[Any], prompts: list[Prompt]) -> list[Score]:
            return []

    with pytest.raises(ConfigError, match=message):
        Empty(**options)
    assert Empty(device="cpu", dtype=torch.float16).dtype == torch.float16


def test_transparency_is_shown_on_white() -> None:
    half = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    assert as_image(half).getpixel((0, 0)) == (255, 255, 255)
    assert as_image(Image.new("L", (2, 2), 7)).getpixel((0, 0)) == (7, 7, 7)
    with pytest.raises(UnusableSample, match="x scores images but got str"):
        as_image("no image", "x")  # type: ignore[arg-type]


# Verifiers without a model


class Picky(Verifier):
    """The red channel of at most `fits` images at a time, which must not be 13."""

    name, accepts = "picky", frozenset({"image"})

    def __init__(self, fits: int = 100) -> None:
        self.fits = fits
        self.seen: list[int] = []

    def score(self, media: Sequence[Media], prompts: Sequence[Prompt], asked: Asked = ALONE) -> list[Score]:
        self.seen.append(len(media))
        if len(media) > self.fits:
            raise MemoryError
        values = [float(image.getpixel((0, 0))[0]) for image in media]  # type: ignore[union-attr, index]
        if 13.0 in values:
            raise ValueError("unlucky")
        return [Score(value=value) for value in values]


def test_any_verifier_scores_in_halves_when_memory_is_full() -> None:
    verifier = Picky(fits=2)
    charged: list[dict[str, int]] = []
    asked = Asked(charge=lambda calls: charged.append(dict(calls)))
    found = safe_scores(verifier, reds(*range(5)), [PROMPT] * 5, asked=asked)
    assert numbers(found) == list(range(5)) and charged == [{"picky": 5}]
    assert verifier.seen == [5, 3, 2, 2, 1]


def test_other_failures_are_charged_for_each_attempt() -> None:
    verifier = Picky()
    charged: list[dict[str, int]] = []
    asked = Asked(charge=lambda calls: charged.append(dict(calls)))
    found = safe_scores(verifier, reds(1, 13, 2), [PROMPT] * 3, asked=asked, paid=True)
    assert numbers(found) == pytest.approx([1, math.nan, 2], nan_ok=True)
    assert found[1].reason == "picky raised ValueError: unlucky"
    assert charged == [{"picky": 1}] * 3
