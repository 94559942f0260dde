from __future__ import annotations

import math
import sys
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from samples import clips, some_images
from tts_vision import Prompt
from tts_vision.errors import ConfigError, VerifierError
from tts_vision.registry import lookup
from tts_vision.testing.contracts import VerifierContract
from tts_vision.types import Media
from tts_vision.verifiers.frame_mean import FrameMean
from tts_vision.verifiers.imaging_quality import ImagingQuality, vbench_pixels

PROMPT = Prompt("two red circles")
QUIET = pytest.mark.filterwarnings("ignore:imaging_quality uses pyiqa")


class Metric:
    """A stand-in for a metric of pyiqa: 100 times the mean of its input, which is at least 4 pixels wide."""

    def __init__(self, mode: str = "NR", lower_better: bool = False) -> None:
        self.metric_mode, self.lower_better = mode, lower_better
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, pixels: Tensor) -> Tensor:
        assert pixels.dtype == torch.float32 and pixels.min() >= 0 and pixels.max() <= 1
        self.shapes.append(tuple(pixels.shape))
        assert pixels.shape[-1] >= 4, "image too small for a patch"
        return 100 * pixels.mean().view(1, 1)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A stand-in for the package; a list of what it was asked for."""
    calls: list[dict[str, Any]] = []

    def create_metric(name: str, **settings: Any) -> Metric:
        assert name in {"musiq-spaq", "niqe", "lpips"}, f"unknown metric {name}"
        metric = Metric("FR" if name == "lpips" else "NR", name == "niqe")
        calls.append({"name": name, "metric": metric, **settings})
        return metric

    monkeypatch.setitem(sys.modules, "pyiqa", SimpleNamespace(create_metric=create_metric))
    return calls


@QUIET
class TestContract(VerifierContract):
    @pytest.fixture
    def verifier(self, made: list[dict[str, Any]]) -> ImagingQuality:
        return ImagingQuality(device="cpu")

    @pytest.fixture
    def media(self) -> list[Media]:
        return list(some_images(4))


def test_its_licence_is_said_when_it_is_chosen() -> None:
    with pytest.warns(UserWarning, match=r"PolyForm-Noncommercial-1.0.0\) does not allow commercial use"):
        ImagingQuality(device="cpu")
    notes = lookup("verifier", "imaging_quality").notes
    assert "PolyForm-Noncommercial" in notes["licence"] and "tts-vision[quality]" in notes["install"]


@QUIET
def test_a_missing_package_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    with pytest.raises(
        VerifierError, match=r"needs the package pyiqa.*pip install 'tts-vision\[quality\]'.*licence"
    ):
        ImagingQuality(device="cpu").load()


@QUIET
def test_is_vbenchs_musiq_over_a_hundred(made: list[dict[str, Any]]) -> None:
    image = some_images(1)[0]
    (score,) = ImagingQuality(device="cpu").score([image], [PROMPT])
    assert score.value == pytest.approx(np.asarray(image).mean() / 255, abs=1e-5)
    (call,) = made
    assert call.pop("metric").shapes == [(1, 3, 40, 48)]
    assert call == {"name": "musiq-spaq", "device": torch.device("cpu")}


@QUIET
def test_another_metric_its_file_and_its_direction(made: list[dict[str, Any]]) -> None:
    verifier = ImagingQuality(metric="niqe", checkpoint="/weights.pth", scale=1.0, device="cpu")
    (score,) = verifier.score([Image.new("RGB", (8, 8), "white")], [PROMPT])
    assert score.value == pytest.approx(-100.0)
    assert made[0]["pretrained_model_path"] == "/weights.pth"


def test_large_images_are_reduced_as_vbench_does() -> None:
    image = some_images(1, size=(640, 333))[0]
    found = vbench_pixels(image, 512)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
    expected = F.interpolate(pixels, (266, 512), mode="bilinear", align_corners=False) / 255  # 266.4
    assert found.shape == (1, 3, 266, 512) and torch.allclose(found, expected, atol=1e-4)
    assert vbench_pixels(image, 640).shape == (1, 3, 333, 640)  # never enlarged
    assert vbench_pixels(Image.new("RGB", (900, 1)), 512).shape == (1, 3, 1, 512)


@QUIET
def test_odd_samples_cost_only_themselves(made: list[dict[str, Any]]) -> None:
    half = Image.new("RGBA", (8, 8), (0, 0, 0, 51))
    media = [
        Image.new("L", (8, 8), 51),
        half,
        Image.new("RGB", (1, 1)),
        clips(1)[0],
        Image.new("RGB", (8, 8)),
    ]
    scores = ImagingQuality(device="cpu").score(media, [PROMPT] * 5)
    assert [score.value for score in scores] == pytest.approx(
        [0.2, 0.8, math.nan, math.nan, 0.0], nan_ok=True
    )
    assert "musiq-spaq cannot take an image of 1x1" in (scores[2].reason or "")
    assert "frame_mean(imaging_quality)" in (scores[3].reason or "")
    assert ImagingQuality(device="cpu").score([], []) == []


@QUIET
def test_clips_by_their_frames(made: list[dict[str, Any]]) -> None:
    (video,) = clips(1)
    (score,) = FrameMean([ImagingQuality(device="cpu")], frames=8).score([video], [PROMPT])
    assert score.value == pytest.approx(float(video.frames.float().mean()) / 255, abs=1e-5)


@QUIET
def test_metrics_that_cannot_be(made: list[dict[str, Any]]) -> None:
    with pytest.raises(ConfigError, match="must need no reference image but 'lpips'"):
        ImagingQuality(metric="lpips", device="cpu").load()
    with pytest.raises(VerifierError, match=r"Metric 'beauty' .* AssertionError: unknown metric beauty"):
        ImagingQuality(metric="beauty", device="cpu").load()
    with pytest.raises(ConfigError, match="longest must be at least 1"):
        ImagingQuality(longest=0)
    with pytest.raises(ConfigError, match="scale must be positive"):
        ImagingQuality(scale=-1.0)


def test_a_refused_setting_needs_no_warning() -> None:
    with warnings.catch_warnings(), pytest.raises(ConfigError):
        warnings.simplefilter("error")
        ImagingQuality(scale=math.nan)


@pytest.mark.download
@QUIET
def test_published_weights_prefer_a_sharp_image() -> None:
    """An image of sharp edges beats its blurred copy; needs pyiqa and its MUSIQ weights."""
    pytest.importorskip("pyiqa")
    blocks = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    sharp = Image.fromarray(blocks).resize((512, 512), Image.Resampling.NEAREST)
    blurred = sharp.resize((48, 48), Image.Resampling.BICUBIC).resize((512, 512))
    better, worse = ImagingQuality().score([sharp, blurred], [PROMPT] * 2)
    assert better.value > worse.value
