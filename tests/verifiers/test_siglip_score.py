import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_backbones import rename_key, tiny_clip
from tiny_rewards import LONG, as_pixels, check_slopes, doubled, odd_images, tiny_siglip

from samples import clips, some_images
from tts_vision import Prompt
from tts_vision.errors import VerifierError
from tts_vision.registry import lookup
from tts_vision.testing.contracts import DifferentiableVerifierContract, values
from tts_vision.verifiers.siglip_score import SiglipScore

PROMPT = Prompt("two red circles")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_siglip(tmp_path_factory.mktemp("siglip") / "tiny")


@pytest.fixture(scope="module")
def siglip_score(folder: Path) -> SiglipScore:
    return SiglipScore(checkpoint=str(folder), device="cpu", batch_size=3)


class TestContract(DifferentiableVerifierContract):
    @pytest.fixture
    def verifier(self, siglip_score: SiglipScore) -> SiglipScore:
        return siglip_score

    @pytest.fixture
    def media(self) -> list[Image.Image]:
        return some_images(4)


def test_is_the_logit_of_a_pair(folder: Path, siglip_score: SiglipScore) -> None:
    from transformers import AutoTokenizer, SiglipModel

    media = some_images(2, size=(64, 48))
    squashed = [image.resize((32, 32), Image.Resampling.BICUBIC) for image in media]
    pixels = torch.from_numpy(np.stack([np.asarray(p, dtype=np.float32) for p in squashed]) / 127.5 - 1)
    texts = ["two red circles", "a star"]
    words = AutoTokenizer.from_pretrained(folder)(
        texts, padding="max_length", max_length=64, return_tensors="pt"
    )
    model = SiglipModel.from_pretrained(folder)
    with torch.no_grad():
        output = model(input_ids=words.input_ids, pixel_values=pixels.permute(0, 3, 1, 2))
    logits = output.logits_per_image.diag().tolist()
    cosines = (output.image_embeds * output.text_embeds).sum(-1).tolist()
    scores = siglip_score.score(media, [Prompt(text) for text in texts])
    assert values(scores) == pytest.approx(logits, rel=1e-3)
    assert logits == pytest.approx([math.exp(2.3) * cosine - 1.5 for cosine in cosines], rel=1e-3)
    assert scores[1].parts == pytest.approx(
        {"logit": logits[1], "cosine": cosines[1], "probability": 1 / (1 + math.exp(-logits[1]))}, rel=1e-3
    )
    for value in ("probability", "cosine"):
        other = SiglipScore(checkpoint=str(folder), value=value, device="cpu")  # type: ignore[arg-type]
        found = values(other.score(media, [Prompt(text) for text in texts]))
        assert found == pytest.approx([score.parts[value] for score in scores], rel=1e-5)


@pytest.mark.parametrize("value", ["logit", "probability", "cosine"])
def test_gradients_against_finite_differences(folder: Path, value: str) -> None:
    verifier = SiglipScore(checkpoint=str(folder), value=value, device="cpu")  # type: ignore[arg-type]
    verifier.load()
    doubled(verifier, verifier._model)
    check_slopes(lambda x: verifier.rewards(x, [PROMPT, Prompt("a star")]), as_pixels(some_images(2)))


def test_long_prompts_are_cut_and_odd_images_scored(siglip_score: SiglipScore) -> None:
    scores = siglip_score.score([*odd_images(), clips(1)[0]], [PROMPT] * 6)
    assert [math.isnan(score.value) for score in scores] == [False] * 5 + [True]
    assert "got a clip" in (scores[-1].reason or "")
    assert scores[0].value == pytest.approx(siglip_score.score(some_images(1), [PROMPT])[0].value, rel=1e-4)
    long, longer = siglip_score.score(some_images(1) * 2, [Prompt(LONG), Prompt(f"{LONG} and a dog")])
    assert long.value == longer.value
    assert siglip_score.score([], []) == []


def test_weights_must_fit(folder: Path, tmp_path: Path) -> None:
    bad = rename_key(folder, tmp_path / "bad", "logit_bias", "logit_offset")
    with pytest.raises(VerifierError, match=r"1 missing \(logit_bias\) and 1 unexpected \(logit_offset\)"):
        SiglipScore(checkpoint=str(bad), device="cpu").load()
    clip = tiny_clip(tmp_path / "clip")
    with pytest.raises(VerifierError, match=r"must be a SigLIP with a fixed resolution but .* is clip"):
        SiglipScore(checkpoint=str(clip), device="cpu").load()
    assert lookup("verifier", "siglip_score").target is SiglipScore


@pytest.mark.download
def test_published_weights_prefer_the_right_words() -> None:
    """google/siglip-base-patch16-224 and any photo of a cat in TTS_VISION_CAT: "a photo of a cat" must have a
    higher probability than "a photo of a dog", by a factor of ten; a known score of a public image could
    not be confirmed.
    """
    file = os.environ.get("TTS_VISION_CAT", "")
    if not Path(file).is_file():
        pytest.skip("set TTS_VISION_CAT to a photo of a cat")
    verifier = SiglipScore(checkpoint="google/siglip-base-patch16-224", value="probability")
    texts = [Prompt("a photo of a cat"), Prompt("a photo of a dog")]
    cat, dog = values(verifier.score([Image.open(file)] * 2, texts))
    assert cat > 10 * dog
