import math
import os
from pathlib import Path

import pytest
import torch
from tiny_vlms import qwen_vl

from samples import clips, some_images
from tts_vision import Prompt, Video
from tts_vision.errors import ConfigError, VerifierError
from tts_vision.media import read_media
from tts_vision.registry import lookup
from tts_vision.testing.contracts import VerifierContract
from tts_vision.verifiers import _frames
from tts_vision.verifiers._vlm import VisionLanguageModel
from tts_vision.verifiers.video_vqa import VideoVQA

PROMPT = Prompt("two red circles")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return qwen_vl(tmp_path_factory.mktemp("video_vqa") / "tiny")


@pytest.fixture(scope="module")
def tiny(checkpoint: Path) -> VideoVQA:
    return VideoVQA(checkpoint=str(checkpoint), frames=3, device="cpu", dtype="float32", batch_size=2)


class TestContract(VerifierContract):
    @pytest.fixture
    def verifier(self, tiny: VideoVQA) -> VideoVQA:
        return tiny

    @pytest.fixture
    def media(self) -> list[Video]:
        return [clips(1, frames=2)[0], *clips(2, frames=8, seed=1)]


def test_is_the_yes_probability_of_the_frames(checkpoint: Path, tiny: VideoVQA) -> None:
    long, short = clips(1, frames=9)[0], clips(1, frames=2, seed=3)[0]
    judge = VisionLanguageModel(str(checkpoint), owner="test", device="cpu")
    question = 'These are frames of a video in order. Does this video show "{}"? Please answer yes or no.'
    expected = judge.yes_probabilities(
        [_frames.frame_images(long, [1, 4, 7]), _frames.frame_images(short, [0, 1])],
        [question.format("two red circles"), question.format("a blue star")],
    )
    scores = tiny.score([long, short], [PROMPT, Prompt("a blue star")])
    assert [score.value for score in scores] == pytest.approx(expected, abs=1e-5)
    assert all(0 < score.value < 1 for score in scores)


def test_half_precision(checkpoint: Path, tiny: VideoVQA) -> None:
    half = VideoVQA(checkpoint=str(checkpoint), frames=3, device="cpu")
    assert half.score(clips(1), [PROMPT])[0].value == pytest.approx(
        tiny.score(clips(1), [PROMPT])[0].value, abs=0.1
    )


def test_the_question_is_the_users(checkpoint: Path, tiny: VideoVQA) -> None:
    other = VideoVQA(
        checkpoint=str(checkpoint), frames=3, template="{prompt}? yes or no", device="cpu", dtype="float32"
    )
    video = clips(1)
    assert other.score(video, [PROMPT])[0].value != tiny.score(video, [PROMPT])[0].value
    with pytest.raises(ConfigError, match="template must contain"):
        VideoVQA(template="Is it good?")


def test_unusable_samples_are_unscored_and_spoil_nothing(tiny: VideoVQA) -> None:
    good = clips(1)[0]
    empty = Video(torch.zeros(0, 8, 8, 3, dtype=torch.uint8))
    odd = Prompt("two <|image_pad|> circles")
    media = [some_images(1)[0], empty, good, good, Video(good.frames[:1])]
    scores = tiny.score(media, [PROMPT, PROMPT, odd, PROMPT, PROMPT])
    assert [math.isnan(score.value) for score in scores] == [True, True, True, False, False]
    assert "got an image" in (scores[0].reason or "") and "<|image_pad|>" in (scores[2].reason or "")
    assert scores[3].value == pytest.approx(tiny.score([good], [PROMPT])[0].value, abs=1e-5)
    assert tiny.score([], []) == []


def test_parameters_are_checked() -> None:
    with pytest.raises(ConfigError, match="frames must be at least 1"):
        VideoVQA(frames=0)
    with pytest.raises(VerifierError, match="video_vqa"):
        VideoVQA(checkpoint="/nowhere").load()
    assert lookup("verifier", "video_vqa").target is VideoVQA


@pytest.mark.download
def test_published_weights_prefer_the_right_prompt() -> None:
    """Checks the order of two prompts; needs any video-capable checkpoint in TTS_VISION_VIDEO_VQA, a clip in
    TTS_VISION_CLIP and what it shows in TTS_VISION_CLIP_PROMPT.
    """
    names = ("VIDEO_VQA", "CLIP", "CLIP_PROMPT")
    checkpoint, file, text = (os.environ.get(f"TTS_VISION_{name}", "") for name in names)
    if not text or not all(path and Path(path).exists() for path in (checkpoint, file)):
        pytest.skip(f"set {', '.join(f'TTS_VISION_{name}' for name in names)}")
    wrong = Prompt("A violin lies on the surface of the moon.")
    scores = VideoVQA(checkpoint=checkpoint).score([read_media(Path(file))] * 2, [Prompt(text), wrong])
    assert scores[0].value > scores[1].value
