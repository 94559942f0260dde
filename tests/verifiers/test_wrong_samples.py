"""Images for verifiers of clips, clips for verifiers of images, and clips that are too short."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from toy_clips import Slides, position

from samples import clips, some_images
from tts_vision import Prompt, Video, search
from tts_vision.errors import ConfigError
from tts_vision.scoring import safe_scores
from tts_vision.testing.toys import GaussianMixtureSampler, TargetReward
from tts_vision.verifiers.flicker import Flicker
from tts_vision.verifiers.frame_mean import FrameMean
from tts_vision.verifiers.jpeg import JpegIncompressibility

PROMPT = Prompt("two red circles")


def test_a_search_of_clips_needs_a_verifier_of_clips(tmp_path: Path) -> None:
    for verifier in (JpegIncompressibility(), TargetReward()):
        with pytest.raises(ConfigError, match=r"scores image but .* makes video; .*frame_mean\(NAME\)"):
            search(Slides(num_steps=2), "a", verifier=verifier, budget="2x", output=tmp_path / "out")
    with pytest.raises(ConfigError, match=r"scores image but .* makes video"):
        search(
            Slides(num_steps=2), "a", verifier=position, holdout_verifier=JpegIncompressibility(), budget="2x"
        )
    assert not (tmp_path / "out" / "population").exists()
    result = search(Slides(num_steps=2), "a", verifier=FrameMean([JpegIncompressibility()]), budget="2x")
    assert not math.isnan(result.best.score.value)


def test_a_search_of_images_needs_a_verifier_of_images() -> None:
    with pytest.raises(ConfigError, match=r"'flicker' scores video but 'gaussian_mixture' makes image"):
        search(GaussianMixtureSampler(num_steps=2), "a", verifier="flicker", budget="2x")


def test_a_sample_of_the_other_kind_is_unscored_and_spoils_nothing() -> None:
    image, clip = some_images(1)[0], clips(1)[0]
    of_images = safe_scores(JpegIncompressibility(), [image, clip, image], [PROMPT] * 3)
    assert [math.isnan(score.value) for score in of_images] == [False, True, False]
    assert "got a clip; frame_mean(jpeg_incompressibility) scores clips" in (of_images[1].reason or "")
    of_clips = safe_scores(Flicker(), [clip, image, Video(clip.frames[:1]), clip], [PROMPT] * 4)
    assert [math.isnan(score.value) for score in of_clips] == [False, True, True, False]
    assert "got an image" in (of_clips[1].reason or "") and "only one" in (of_clips[2].reason or "")
    broken = Video(torch.zeros(3, 4, 5, 4, dtype=torch.uint8))
    assert "(3, 4, 5, 4)" in (safe_scores(Flicker(), [broken], [PROMPT])[0].reason or "")
