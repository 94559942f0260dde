from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny_vlms
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file

from samples import clips, some_images
from tts_vision import Prompt
from tts_vision.errors import ConfigError, VerifierError
from tts_vision.registry import lookup
from tts_vision.testing.contracts import VerifierContract
from tts_vision.types import Media
from tts_vision.verifiers.vqa_score import VQAScore

TINY = {"device": "cpu", "dtype": "float32"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vlms.qwen_vl(tmp_path_factory.mktemp("vqa"))


@pytest.fixture(scope="module")
def verifier(folder: Path) -> VQAScore:
    return VQAScore(checkpoint=str(folder), batch_size=2, **TINY)


class TestContract(VerifierContract):
    @pytest.fixture
    def verifier(self, verifier: VQAScore) -> VQAScore:
        return verifier

    @pytest.fixture
    def media(self) -> Sequence[Media]:
        return some_images(4)


def test_asks_the_published_question(folder: Path, verifier: VQAScore) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    image = some_images(1)[0]
    text = (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>"
        'Does this figure show "a {red} dog"? Please answer yes or no.<|im_end|>\n<|im_start|>assistant\n'
    )
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logits = model(**processor(text=[text], images=[image], return_tensors="pt")).logits[0, -1]
    vocabulary = processor.tokenizer.get_vocab()
    sums = [
        sum(math.exp(logits[vocabulary[t]]) for w in words for t in (w, f"Ġ{w}") if t in vocabulary)
        for words in (("yes", "Yes", "YES"), ("no", "No", "NO"))
    ]
    (score,) = verifier.score([image], [Prompt("a {red} dog")])
    assert score.value == pytest.approx(sums[0] / sum(sums))


QUESTIONS = {
    "paper": 'Does this figure show "a {red} dog"? Please answer yes or no.',
    "clip-flant5": 'Does this figure show "a {red} dog"? Please answer yes or no.',
    "instructblip": 'Question: Does this figure show "a {red} dog"? Please answer yes or no.',
    "qwen2.5-vl": 'Does this image show "a {red} dog"?',
    "qwen3-vl": 'Does this figure show "a {red} dog"? Please answer Yes or No.',
    "llama-3.2-vision": 'Does this image show "a {red} dog"? Answer the question with Yes or No',
}


@pytest.mark.parametrize("variant", QUESTIONS)
def test_variants_are_those_of_the_released_code(folder: Path, variant: Any) -> None:
    """P(answer) over the whole vocabulary, for some with the end of the answer: exp(-cross-entropy)."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    answer = "yes" if variant == "instructblip" else "Yes"
    ended = variant in {"clip-flant5", "instructblip"}
    images = some_images(2, (64, 40))
    prompts = [Prompt("a {red} dog"), Prompt("a {red} dog and something that makes this question longer")]
    expected = []
    for image, prompt in zip(images, prompts):
        question = QUESTIONS[variant].replace("a {red} dog", prompt.text)
        text = (
            "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>"
            f"{question}<|im_end|>\n<|im_start|>assistant\n"
        )
        tokens = processor.tokenizer(f"{answer}<|im_end|>").input_ids
        assert len(tokens) == 2
        inputs = processor(text=[f"{text}{answer}"], images=[image], return_tensors="pt")
        with torch.no_grad():
            logits = model(**inputs).logits[0]
        loss = torch.nn.functional.cross_entropy(logits[-2:], torch.tensor(tokens), reduction="none")
        expected.append(float((-(loss.mean() if ended else loss[0])).exp()))
    found = VQAScore(checkpoint=str(folder), variant=variant, batch_size=2, **TINY).score(images, prompts)
    assert [score.value for score in found] == pytest.approx(expected, rel=1e-4)


def test_the_variant_of_geneval2_adds_up_its_spellings(folder: Path) -> None:
    """Unnormalised, over the first tokens of Yes and yes, with and without a space."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    image = some_images(1)[0]
    text = (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>"
        'Does this image show "a dog"? Answer the question with Yes or No.<|im_end|>\n<|im_start|>assistant\n'
    )
    with torch.no_grad():
        logits = model(**processor(text=[text], images=[image], return_tensors="pt")).logits[0, -1]
    probabilities = logits.softmax(-1)
    first = {processor.tokenizer(word).input_ids[0] for word in ("Yes", "yes", " Yes", " yes")}
    verifier = VQAScore(checkpoint=str(folder), variant="geneval2", **TINY)
    (score,) = verifier.score([image], [Prompt("a dog")])
    assert len(first) > 2
    assert score.value == pytest.approx(sum(float(probabilities[token]) for token in first), rel=1e-4)
    assert verifier.score([], []) == []


def test_an_answer_of_ones_own(folder: Path) -> None:
    yes, no = (
        VQAScore(checkpoint=str(folder), variant="paper", answer=answer, **TINY) for answer in (None, "No")
    )
    image, prompt = some_images(1), [Prompt("a dog")]
    p = [v.score(image, prompt)[0].value for v in (yes, no)]
    assert 0 < p[0] != p[1] > 0 and sum(p) < 1
    with pytest.raises(ConfigError, match="answer must be a word"):
        VQAScore(answer=" ")
    with pytest.raises(ConfigError, match="variant must be one of normalised, paper"):
        VQAScore(variant="gpt")  # type: ignore[arg-type]
    assert yes.score([], []) == []


def test_the_question_can_be_another(folder: Path, verifier: VQAScore) -> None:
    other = VQAScore(checkpoint=str(folder), template="{prompt}, yes?", **TINY)
    image, prompt = some_images(1), [Prompt("a dog")]
    assert other.score(image, prompt)[0].value != verifier.score(image, prompt)[0].value
    with pytest.raises(ConfigError, match="template must contain"):
        VQAScore(template="Is it good?")


def test_odd_samples_cost_only_themselves(verifier: VQAScore) -> None:
    good = some_images(1)[0]
    odd = [
        good,
        Image.new("RGB", (1, 1), "red"),
        Image.new("RGBA", (30, 30), (255, 0, 0, 80)),
        good.convert("L"),
        clips(1)[0],
        Image.new("RGB", (900, 2)),  # longer than Qwen's processor takes
        good,
    ]
    scores = verifier.score(odd, [Prompt("a dog")] * len(odd))
    (alone,) = verifier.score([good], [Prompt("a dog")])
    assert [math.isnan(score.value) for score in scores] == [False] * 4 + [True, True, False]
    assert "got a clip" in (scores[4].reason or "") and "cannot take" in (scores[5].reason or "")
    assert scores[0].value == pytest.approx(alone.value, abs=1e-6) == scores[6].value
    assert verifier.score([], []) == []


def test_weights_are_loaded_strictly(tmp_path: Path) -> None:
    folder = tiny_vlms.qwen_vl(tmp_path)
    file = folder / "model.safetensors"
    state = load_file(file)
    state["model.layers.0.wrong"] = state.pop("model.layers.0.mlp.up_proj.weight")
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(VerifierError, match=r"'vqa_score'.*up_proj.*wrong"):
        VQAScore(checkpoint=str(folder), **TINY).load()


def test_is_registered() -> None:
    assert lookup("verifier", "vqa_score").target is VQAScore


@pytest.mark.download
def test_real_weights_know_a_red_circle() -> None:
    """A drawn red circle is more likely to show "a red circle" than "a blue square"."""
    checkpoint = os.environ.get("TTS_VISION_VLM")
    if not checkpoint:
        pytest.skip("set TTS_VISION_VLM to a checkpoint of an image-text-to-text model")
    drawn = Image.new("RGB", (256, 256), "white")
    ImageDraw.Draw(drawn).ellipse((64, 64, 192, 192), fill="red")
    verifier = VQAScore(checkpoint=checkpoint)
    right, wrong = verifier.score([drawn] * 2, [Prompt("a red circle"), Prompt("a blue square")])
    assert right.value > 0.5 > wrong.value
