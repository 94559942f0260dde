import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_vlms import qwen_vl

from samples import clips, some_images
from tts_vision import Prompt, Video
from tts_vision.errors import ConfigError
from tts_vision.media import read_media
from tts_vision.registry import lookup
from tts_vision.testing.contracts import VerifierContract
from tts_vision.types import Media
from tts_vision.verifiers import _frames
from tts_vision.verifiers._vlm import VisionLanguageModel
from tts_vision.verifiers.vision_reward import VisionReward, VisionRewardImage, linear, unmasked

PROMPT = Prompt("two red circles")
CLIP_QUESTIONS = ['Does it show "[[prompt]]"?', "Is it red?", "Is it an image of the user?"]
CLIP_WEIGHTS = [0.9, 0.25, 0.11]
IMAGE_QUESTIONS = [f"Is it red {i}?" for i in range(30)]
IMAGE_WEIGHTS = {"coef": [2.0, *(0.01 * i for i in range(1, 28))], "intercept": [0.5]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model and files in the published formats."""
    folder = tmp_path_factory.mktemp("vision_reward")
    qwen_vl(folder / "tiny")
    (folder / "clip.txt").write_text("\n".join(CLIP_QUESTIONS) + "\n")
    (folder / "clip.json").write_text(json.dumps(CLIP_WEIGHTS))
    (folder / "image.txt").write_text("\n".join(IMAGE_QUESTIONS))
    (folder / "image.json").write_text(json.dumps(IMAGE_WEIGHTS))
    return folder


def build(cls: type[Any], folder: Path, kind: str, **settings: Any) -> Any:
    return cls(
        questions=folder / f"{kind}.txt",
        weights=folder / f"{kind}.json",
        checkpoint=str(folder / "tiny"),
        device="cpu",
        dtype="float32",
        **{"batch_size": 8, **settings},
    )


class TestContract(VerifierContract):
    @pytest.fixture(scope="class")
    def verifier(self, folder: Path) -> VisionReward:
        return build(VisionReward, folder, "clip", soft=True)

    @pytest.fixture
    def media(self) -> list[Media]:
        return [clips(1, frames=2)[0], *clips(2, frames=20, seed=1)]


class TestImageContract(VerifierContract):
    @pytest.fixture(scope="class")
    def verifier(self, folder: Path) -> VisionRewardImage:
        return build(VisionRewardImage, folder, "image")

    @pytest.fixture
    def media(self) -> list[Media]:
        return list(some_images(3))


@pytest.mark.parametrize("soft", [True, False])
def test_is_the_mean_of_weight_times_answer(folder: Path, soft: bool) -> None:
    video = clips(1, frames=20)[0]  # 2.4 s
    judge = VisionLanguageModel(str(folder / "tiny"), owner="test", device="cpu")
    asked = ['Does it show "two red circles"?', "Is it red?", "Is it an image of the user?"]
    yes = judge.yes_probabilities([_frames.frame_images(video, [0, 8, 16])] * 3, asked)
    answers = [2 * p - 1 for p in yes] if soft else [1.0 if p > 0.5 else -1.0 for p in yes]
    (score,) = build(VisionReward, folder, "clip", soft=soft).score([video], [PROMPT])
    assert score.parts == pytest.approx(dict(zip(CLIP_QUESTIONS, answers, strict=True)), abs=1e-5)
    assert score.value == pytest.approx(
        (0.9 * answers[0] + 0.25 * answers[1] + 0.11 * answers[2]) / 3, abs=1e-5
    )


def test_images_have_alignment_masks_and_an_intercept(folder: Path) -> None:
    image = some_images(1)[0]
    judge = VisionLanguageModel(str(folder / "tiny"), owner="test", device="cpu")
    asked = ['Does this figure show "two red circles"? Please answer yes or no.', *IMAGE_QUESTIONS]
    alignment, *yes = judge.yes_probabilities([[image]] * 31, asked)
    answers = [1.0 if p > 0.5 else -1.0 for p in yes]
    for mask, about in {0: [22, 23, 24, 28, 29], 1: [25, 26], 2: [27]}.items():
        for i in about:
            answers[i] *= answers[mask] > 0
    expected = 2.0 * alignment + sum(0.01 * (i - 2) * answers[i] for i in range(3, 30)) + 0.5
    (score,) = build(VisionRewardImage, folder, "image").score([image], [PROMPT])
    assert score.value == pytest.approx(expected, abs=1e-5)
    assert len(score.parts) == 28 and score.parts["alignment"] == pytest.approx(alignment, abs=1e-5)


@pytest.mark.parametrize(("kind", "n"), [("clip", 3), ("image", 31)])
def test_all_questions_about_a_sample_are_one_batch(
    folder: Path, kind: str, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cls, media = (VisionReward, clips(2)) if kind == "clip" else (VisionRewardImage, some_images(2))
    together, one_by_one = (build(cls, folder, kind, batch_size=size, soft=True) for size in (None, 1))
    sizes: list[int] = []
    generate = together._vlm._generate

    def counted(inputs: Any, length: int, **settings: Any) -> Any:
        sizes.append(len(inputs["input_ids"]))
        return generate(inputs, length, **settings)

    monkeypatch.setattr(together._vlm, "_generate", counted)
    found, expected = (v.score(media, [PROMPT] * 2) for v in (together, one_by_one))
    assert sizes == [n, n]
    for score, other in zip(found, expected, strict=True):
        assert score.parts == pytest.approx(other.parts, abs=1e-5)


def test_masks_in_closed_form() -> None:
    everything = unmasked([1.0] * 30)
    assert list(everything) == list(range(3, 30)) and set(everything.values()) == {1.0}
    nobody = unmasked([-1.0, *[1.0] * 29])
    assert [i for i, answer in nobody.items() if answer == 0] == [22, 23, 24, 28, 29]
    nothing = unmasked([-1.0] * 30)
    assert [i for i, answer in nothing.items() if answer == 0] == list(range(22, 30))
    assert {answer for i, answer in nothing.items() if i < 22} == {-1.0}
    assert linear([1.0, -1.0, 0.0], [0.5, 0.25, 8.0]) == 0.25


def test_a_model_that_answers_nan_does_not_say_no(folder: Path) -> None:
    verifier = build(VisionReward, folder, "clip")
    verifier.load()
    verifier._vlm._model.lm_head.weight.fill_(math.nan)
    (score,) = verifier.score(clips(1), [PROMPT])
    assert math.isnan(score.value) and "NaN" in (score.reason or "")


def test_unusable_samples_are_unscored_and_spoil_nothing(folder: Path) -> None:
    verifier = build(VisionReward, folder, "clip", soft=True)
    good = clips(1)[0]
    empty = Video(torch.zeros(0, 8, 8, 3, dtype=torch.uint8))
    odd = Prompt("two <|image_pad|> circles")
    media = [some_images(1)[0], empty, good, good, Video(good.frames[:1])]
    scores = verifier.score(media, [PROMPT, PROMPT, odd, PROMPT, PROMPT])
    assert [math.isnan(score.value) for score in scores] == [True, True, True, False, False]
    assert "<|image_pad|>" in (scores[2].reason or "")
    assert scores[3].value == pytest.approx(verifier.score([good], [PROMPT])[0].value, abs=1e-5)
    (clip,) = build(VisionRewardImage, folder, "image").score([good], [PROMPT])
    assert math.isnan(clip.value) and "scores images" in (clip.reason or "")


@pytest.mark.parametrize(
    ("kind", "file", "text", "message"),
    [
        ("clip", "json", "[0.1, 0.2]", "must list 3 numbers for its questions but has 2 entries"),
        ("clip", "json", '{"coef": []}', "but has dict"),
        ("clip", "json", '[0.1, 0.2, "x"]', "must list 3 numbers"),
        ("clip", "json", "[0.1,", "must be JSON"),
        ("clip", "txt", None, "must be a text file"),
        ("clip", "txt", " \n", "must hold questions but is empty"),
        ("image", "txt", "one\ntwo", "must hold the 30 questions .* but holds 2"),
        ("image", "json", "[1]", "must map coef and intercept"),
        ("image", "json", '{"coef": [1]}', "must list 28 numbers"),
    ],
)
def test_files_that_do_not_fit_are_refused(
    folder: Path, tmp_path: Path, kind: str, file: str, text: str | None, message: str
) -> None:
    for suffix in ("txt", "json"):
        (tmp_path / f"{kind}.{suffix}").write_text((folder / f"{kind}.{suffix}").read_text())
    (tmp_path / f"{kind}.{file}").unlink()
    if text is not None:
        (tmp_path / f"{kind}.{file}").write_text(text)
    with pytest.raises(ConfigError, match=message):
        build(VisionReward if kind == "clip" else VisionRewardImage, tmp_path, kind)


def test_is_registered() -> None:
    assert lookup("verifier", "vision_reward").target is VisionReward
    assert lookup("verifier", "vision_reward_image").target is VisionRewardImage


@pytest.mark.download
def test_published_questions_prefer_the_right_prompt() -> None:
    """The published model cannot be loaded, so this asks another one and checks the order of two prompts.

    Needs a checkpoint in TTS_VISION_VIDEO_VQA, the folder of the published files in TTS_VISION_VISION_REWARD,
    a clip in TTS_VISION_CLIP and what it shows in TTS_VISION_CLIP_PROMPT.
    """
    names = ("VIDEO_VQA", "VISION_REWARD", "CLIP", "CLIP_PROMPT")
    checkpoint, files, file, text = (os.environ.get(f"TTS_VISION_{name}", "") for name in names)
    if not text or not all(path and Path(path).exists() for path in (checkpoint, files, file)):
        pytest.skip(f"set {', '.join(f'TTS_VISION_{name}' for name in names)}")
    verifier = VisionReward(
        questions=Path(files) / "VisionReward_video_qa_select.txt",
        weights=Path(files) / "weight.json",
        checkpoint=checkpoint,
        soft=True,
    )
    # the sum of the published weights, which bounds the value
    assert sum(verifier.weights) == pytest.approx(6.27717, abs=1e-5)
    wrong = Prompt("A violin lies on the surface of the moon.")
    scores = verifier.score([read_media(Path(file))] * 2, [Prompt(text), wrong])
    assert scores[0].value > scores[1].value
